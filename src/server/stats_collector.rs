//! Lets threads outside the mesh read a core's statistics.
//!
//! The control executor is not on the mesh. It posts a request and rings the core's doorbell; the
//! core checks for requests at the end of each turn, one load of a rarely changing cache line, and
//! posts its statistics. Refused: counters that cores publish continuously, which would charge
//! every request for an occasional scrape.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use glommio::sync::Semaphore;

use super::node::Node;
use crate::stats::{ConnectionStats, CoreStats};

/// Longest wait for the statistics of all cores.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between checks for their arrival.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Queries all cores on behalf of the tasks of one executor.
pub struct StatsCollector {
    node: Arc<Node>,
    /// Each core has one slot for a request: one task asks at a time.
    asking: Semaphore,
}

impl StatsCollector {
    /// Queries the cores of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, asking: Semaphore::new(1) }
    }

    /// The statistics of all cores, in core order.
    ///
    /// # Errors
    /// The first core that does not reply in time.
    pub async fn collect(&self, request: StatsRequest) -> Result<Vec<CoreReport>, usize> {
        let _turn = self.asking.acquire_permit(1).await.expect("it is never closed");
        for (core, doorbell) in self.node.cores.iter().zip(self.node.doorbells.iter()) {
            core.stats_slot.ask(request);
            doorbell.ring();
        }
        let asked_at = Instant::now();
        let mut all = Vec::with_capacity(self.node.cores.len());
        for (number, core) in self.node.cores.iter().enumerate() {
            loop {
                if let Some(report) = core.stats_slot.take() {
                    all.push(report);
                    break;
                }
                if asked_at.elapsed() > TIMEOUT {
                    return Err(number);
                }
                glommio::timer::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(all)
    }
}

/// What is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StatsRequest {
    /// The core's statistics.
    Totals = 1,
    /// The statistics and each connection.
    Connections = 2,
}

/// A core's reply.
#[derive(Debug)]
pub struct CoreReport {
    /// Its statistics.
    pub figures: CoreStats,
    /// Its connections, if requested.
    pub connections: Vec<ConnectionStats>,
}

/// The slot through which one core is queried.
#[derive(Debug, Default)]
pub struct StatsSlot {
    request: AtomicU8,
    report: Mutex<Option<CoreReport>>,
}

impl StatsSlot {
    /// Posts a request and drops the reply to an earlier one. Ring the core's doorbell afterwards.
    pub fn ask(&self, request: StatsRequest) {
        self.take();
        self.request.store(request as u8, Ordering::Release);
    }

    /// The core's reply, once it has arrived.
    pub fn take(&self) -> Option<CoreReport> {
        self.report.lock().expect("a panic ends the process").take()
    }

    /// Takes the pending request, if there is one.
    #[inline]
    pub fn take_request(&self) -> Option<StatsRequest> {
        if self.request.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.request.swap(0, Ordering::Acquire) {
            1 => Some(StatsRequest::Totals),
            2 => Some(StatsRequest::Connections),
            _ => None,
        }
    }

    /// Posts the core's reply.
    pub fn publish(&self, report: CoreReport) {
        *self.report.lock().expect("a panic ends the process") = Some(report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_once_and_an_old_report_is_not_taken_for_a_new_one() {
        let stats_slot = StatsSlot::default();
        assert_eq!(stats_slot.take_request(), None);
        stats_slot.ask(StatsRequest::Connections);
        assert_eq!(
            (stats_slot.take_request(), stats_slot.take_request()),
            (Some(StatsRequest::Connections), None)
        );
        let report = || CoreReport { figures: CoreStats::default(), connections: Vec::new() };
        stats_slot.publish(report());
        stats_slot.ask(StatsRequest::Totals);
        assert!(stats_slot.take().is_none(), "report too late for the first request");
        stats_slot.publish(report());
        assert!(stats_slot.take().is_some() && stats_slot.take().is_none());
    }
}
