//! State shared by the threads of a phase, and the reports of each.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::errors::Faults;
use crate::histogram::Recorder;
use crate::plan::Plan;
use crate::process::CpuUse;
use crate::wire::WrongAnswer;
use crate::workload::Workload;
use crate::workload::mix::WorkloadCommand;

/// State shared by the threads of one phase.
pub struct Shared {
    /// The plan.
    pub plan: Plan,
    /// The workload.
    pub workload: Workload,
    /// Time zero.
    pub epoch: Instant,
    /// When load starts, in nanoseconds since the epoch; set before the threads pass `gate`.
    pub start_ns: AtomicU64,
    /// Blocks the threads until all are connected.
    pub gate: Barrier,
    /// Ends the phase early.
    pub stop: AtomicBool,
    /// The wrong answer that ended it.
    pub wrong: Mutex<Option<WrongAnswer>>,
}

impl Shared {
    /// Nanoseconds since the epoch.
    pub fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

/// A report of a running thread.
pub enum Note {
    /// Connecting is done: the number of connections, and the errors.
    Ready(usize, Faults),
    /// The last second.
    Second(SecondCounts),
}

/// One second of one thread.
pub struct SecondCounts {
    /// Its number from the start of the recording. The last one includes late answers.
    pub number: u64,
    /// Latencies of the answers received in it.
    pub latency: Histogram<u64>,
    /// Totals so far.
    pub totals: Totals,
    /// Faults so far.
    pub faults: Faults,
}

/// Counters of one phase, excluding warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests answered.
    pub answers: u64,
    /// Keys requested by gets and multigets.
    pub keys_asked: u64,
    /// Keys found among these.
    pub keys_hit: u64,
    /// Connections reopened for churn.
    pub renewed: u64,
}

impl Totals {
    /// Counts one answer that found `hits` keys.
    #[inline]
    pub fn count(&mut self, workload: &Workload, command: WorkloadCommand, hits: u32) {
        self.answers += 1;
        let asked = match command {
            WorkloadCommand::Get => 1,
            WorkloadCommand::Multiget => workload.multiget_keys as u64,
            _ => return,
        };
        self.keys_asked += asked;
        self.keys_hit += u64::from(hits);
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: Totals) {
        self.answers += other.answers;
        self.keys_asked += other.keys_asked;
        self.keys_hit += other.keys_hit;
        self.renewed += other.renewed;
    }
}

/// The final report of a thread.
pub struct ThreadResult {
    /// Latencies.
    pub recorder: Recorder,
    /// Counts.
    pub totals: Totals,
    /// Faults.
    pub faults: Faults,
    /// Nanoseconds from the start of the recording to its end.
    pub window_ns: u64,
    /// CPU time of this thread in the window.
    pub cpu: CpuUse,
    /// Fraction of the window in which this thread was busy, 0 to 1.
    pub busy: f64,
    /// Fraction of the window in which this thread was runnable while others used its CPU, 0 to 1.
    pub waited: f64,
    /// CPU time of the server in the window, measured by the first thread.
    pub server_cpu: Option<CpuUse>,
    /// Whether at the end none of its connections was open or could be reopened.
    pub gone: bool,
    /// Requests due in the window that were never sent, for lack of room in the pipelines.
    pub unsent: u64,
}
