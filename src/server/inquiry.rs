//! Lets threads outside the mesh read a core's statistics.
//!
//! The control executor is not on the mesh. It posts a request and rings the core's doorbell; the
//! core checks for requests at the end of each turn, one load of a rarely changing cache line, and
//! posts its statistics. Refused: counters that cores publish continuously, which would charge every
//! request for an occasional scrape.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use glommio::sync::Semaphore;

use super::node::Node;
use crate::stats::{ConnectionStats, CoreStats};

/// Longest wait for the statistics of all cores.
const PATIENCE: Duration = Duration::from_secs(1);
/// Interval between checks for their arrival.
const STEP: Duration = Duration::from_millis(1);

/// Queries all cores on behalf of the tasks of one executor.
pub struct Inquirer {
    node: Arc<Node>,
    /// Each core has one slot for a request: one task asks at a time.
    asking: Semaphore,
}

impl Inquirer {
    /// Queries the cores of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, asking: Semaphore::new(1) }
    }

    /// The statistics of all cores, in core order.
    ///
    /// # Errors
    /// The first core that does not reply in time.
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

/// What is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wish {
    /// The core's statistics.
    Figures = 1,
    /// The statistics and each connection.
    Connections = 2,
}

/// A core's reply.
#[derive(Debug)]
pub struct Told {
    /// Its statistics.
    pub figures: CoreStats,
    /// Its connections, if requested.
    pub connections: Vec<ConnectionStats>,
}

/// The slot through which one core is queried.
#[derive(Debug, Default)]
pub struct Inquiry {
    wish: AtomicU8,
    told: Mutex<Option<Told>>,
}

impl Inquiry {
    /// Posts a request and drops the reply to an earlier one. Ring the core's doorbell afterwards.
    pub fn ask(&self, wish: Wish) {
        self.take();
        self.wish.store(wish as u8, Ordering::Release);
    }

    /// The core's reply, once it has arrived.
    pub fn take(&self) -> Option<Told> {
        self.told.lock().expect("a panic ends the process").take()
    }

    /// Takes the pending request, if there is one.
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

    /// Posts the core's reply.
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
