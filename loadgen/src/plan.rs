//! What one phase of a run does, the same for all its threads.

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
    /// The next when an answer has come.
    Closed,
    /// At a rate, in requests per second over all threads.
    Open {
        /// Requests per second, above 0.
        rate: f64,
        /// How send times lie.
        arrival: Arrival,
    },
}

/// When a closed-loop connection sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Refill {
    /// When all of its pipeline is answered, as clients with batches do.
    Batch,
    /// As soon as there is room.
    Sliding,
}

/// What one phase does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is asked.
    pub job: Job,
    /// How it is paced.
    pub pace: LoadMode,
    /// The server, or the first of several nodes.
    pub address: Address,
    /// Where each key is asked.
    pub directory: Arc<Directory>,
    /// The protocol.
    pub protocol: Protocol,
    /// Connections of all threads together.
    pub connections: usize,
    /// Requests a connection may have unanswered.
    pub pipeline: usize,
    /// When a closed-loop connection sends again.
    pub refill: Refill,
    /// Load before anything is recorded.
    pub warmup: Duration,
    /// How long to record; `None` until the job is done.
    pub window: Option<Duration>,
    /// A request without an answer for this long is given up, with its connection.
    pub timeout: Duration,
    /// Requests after which a connection is closed and made anew; 0 is never.
    pub churn: u64,
    /// Poll instead of sleeping.
    pub spin: bool,
    /// CPUs, one for each thread.
    pub cpus: Vec<usize>,
    /// The processes whose CPU time is measured, together.
    pub server_pids: Vec<u32>,
}
