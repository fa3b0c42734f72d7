//! Figures of a core for those who are no core.
//!
//! The control executor is not on the mesh. It leaves a wish and rings the core's doorbell; the core
//! looks for wishes at the end of each turn, one load of a line that hardly ever changes, and leaves
//! its figures. Refused: counters that cores keep up to date for others to read, which would cost
//! every request what one scrape in a while needs.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use glommio::sync::Semaphore;

use super::node::Node;
use crate::stats::{ConnectionStats, CoreStats};

/// Longest wait for the figures of all cores.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often is looked whether they have arrived.
const STEP: Duration = Duration::from_millis(1);

/// Asks all cores, for the tasks of one executor.
pub struct Inquirer {
    node: Arc<Node>,
    /// Cores have one place for a wish: one task asks at a time.
    asking: Semaphore,
}

impl Inquirer {
    /// Asks the cores of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, asking: Semaphore::new(1) }
    }

    /// What all cores tell, in core order.
    ///
    /// # Errors
    /// The first core that does not tell in time.
    pub async fn ask_cores(&self, wish: Wish) -> Result<Vec<Told>, usize> {
        let _turn = self.asking.acquire_permit(1).await.expect("it is never closed");
        for (core, doorbell) in self.node.cores.iter().zip(self.node.doorbells.iter()) {
            core.inquiry.ask(wish);
            doorbell.ring();
        }
        let asked_at = Instant::now();
        let mut all = Vec::with_capacity(self.node.cores.len());
        for (number, core) in self.node.cores.iter().enumerate() {
            loop {
                if let Some(told) = core.inquiry.take() {
                    all.push(told);
                    break;
                }
                if asked_at.elapsed() > PATIENCE {
                    return Err(number);
                }
                glommio::timer::sleep(STEP).await;
            }
        }
        Ok(all)
    }
}

/// What is wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wish {
    /// The core's figures.
    Figures = 1,
    /// Those and its connections, one by one.
    Connections = 2,
}

/// What a core tells.
#[derive(Debug)]
pub struct Told {
    /// Its figures.
    pub figures: CoreStats,
    /// Its connections, if they were wished for.
    pub connections: Vec<ConnectionStats>,
}

/// Where one core is asked.
#[derive(Debug, Default)]
pub struct Inquiry {
    wish: AtomicU8,
    told: Mutex<Option<Told>>,
}

impl Inquiry {
    /// Leaves a wish, and forgets what was told to an earlier one. The core's doorbell is to be
    /// rung afterwards.
    pub fn ask(&self, wish: Wish) {
        self.take();
        self.wish.store(wish as u8, Ordering::Release);
    }

    /// What the core has told, once it has.
    pub fn take(&self) -> Option<Told> {
        self.told.lock().expect("a panic ends the process").take()
    }

    /// The wish that the core has to fulfil, if there is one; it counts as fulfilled from now on.
    #[inline]
    pub fn wish(&self) -> Option<Wish> {
        if self.wish.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.wish.swap(0, Ordering::Acquire) {
            1 => Some(Wish::Figures),
            2 => Some(Wish::Connections),
            _ => None,
        }
    }

    /// Tells the core's figures.
    pub fn tell(&self, told: Told) {
        *self.told.lock().expect("a panic ends the process") = Some(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_seen_once_and_an_old_answer_is_not_taken_for_a_new_one() {
        let inquiry = Inquiry::default();
        assert_eq!(inquiry.wish(), None);
        inquiry.ask(Wish::Connections);
        assert_eq!((inquiry.wish(), inquiry.wish()), (Some(Wish::Connections), None));
        let told = || Told { figures: CoreStats::default(), connections: Vec::new() };
        inquiry.tell(told());
        inquiry.ask(Wish::Figures);
        assert!(inquiry.take().is_none(), "told too late for the first wish");
        inquiry.tell(told());
        assert!(inquiry.take().is_some() && inquiry.take().is_none());
    }
}
