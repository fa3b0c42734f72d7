//! The plan of one phase of a run, the same for all its threads.

use std::sync::Arc;
use std::time::Duration;

use crate::schedule::Arrival;
use crate::source::Job;
use crate::wire::Protocol;
use ringlane_client::address::Address;
use ringlane_client::discovery::Directory;

/// How requests are paced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoadMode {
    /// The next request when an answer has arrived.
    Closed,
    /// At a rate, in requests per second over all threads.
    Open {
        /// Requests per second, above 0.
        rate: f64,
        /// Distribution of send times.
        arrival: Arrival,
    },
}

/// When a closed-loop connection sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Refill {
    /// When its whole pipeline is answered, as batching clients do.
    Batch,
    /// As soon as there is room.
    Sliding,
}

/// The plan of one phase.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The job.
    pub job: Job,
    /// The load mode.
    pub pace: LoadMode,
    /// The server, or the first of several nodes.
    pub address: Address,
    /// Which endpoint serves each key.
    pub directory: Arc<Directory>,
    /// The protocol.
    pub protocol: Protocol,
    /// Total connections of all threads.
    pub connections: usize,
    /// Unanswered requests per connection.
    pub pipeline: usize,
    /// When a closed-loop connection sends again.
    pub refill: Refill,
    /// Load before anything is recorded.
    pub warmup: Duration,
    /// How long to record; `None` until the job is done.
    pub window: Option<Duration>,
    /// A request without an answer for this long is abandoned, with its connection.
    pub timeout: Duration,
    /// Requests after which a connection is reopened; 0 means never.
    pub churn: u64,
    /// Poll instead of sleeping.
    pub spin: bool,
    /// CPUs, one for each thread.
    pub cpus: Vec<usize>,
    /// The processes whose total CPU time is measured.
    pub server_pids: Vec<u32>,
}
