//! What the threads of a phase share, and what each of them reports.

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
use crate::workload::mix::Command;

/// What threads of one phase share.
pub struct Shared {
    /// The plan.
    pub plan: Plan,
    /// The workload.
    pub workload: Workload,
    /// Time zero.
    pub epoch: Instant,
    /// When load starts, in nanoseconds since the epoch; set before the threads pass `gate`.
    pub start_ns: AtomicU64,
    /// Holds the threads back until all are connected.
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

/// What a thread tells while it runs.
pub enum Note {
    /// It has connected what can be connected: how many, and what went wrong.
    Ready(usize, Faults),
    /// About the last second.
    Second(Second),
}

/// One second of one thread.
pub struct Second {
    /// Which, from the start of the recording. The last one also has the answers that came late.
    pub number: u64,
    /// Latencies of the answers that came in it.
    pub latency: Histogram<u64>,
    /// Totals so far.
    pub totals: Totals,
    /// Faults so far.
    pub faults: Faults,
}

/// Plain counts of one phase, warm-up left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests answered.
    pub answers: u64,
    /// Keys asked for by gets and multigets.
    pub keys_asked: u64,
    /// Of these, keys that were there.
    pub keys_hit: u64,
    /// Connections made anew for churn.
    pub renewed: u64,
}

impl Totals {
    /// Counts one answer that found `hits` keys.
    #[inline]
    pub fn count(&mut self, workload: &Workload, command: Command, hits: u32) {
        self.answers += 1;
        let asked = match command {
            Command::Get => 1,
            Command::Multiget => workload.multiget_keys as u64,
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

/// What a thread has to say in the end.
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
    /// Part of the window in which this thread was at work, 0 to 1.
    pub busy: f64,
    /// Part of the window in which others had this thread's CPU while it had work, 0 to 1.
    pub waited: f64,
    /// CPU time of the server in the window, measured by the first thread.
    pub server_cpu: Option<CpuUse>,
    /// Whether in the end none of its connections was open nor could be made again.
    pub gone: bool,
    /// Requests due in the window that were never sent, for want of room in the pipelines.
    pub unsent: u64,
}
