//! What a node tells about itself: figures gathered from all cores, rendered under memcached's names.
//!
//! Cores count for themselves and share nothing, so a question for statistics gathers one
//! [`CoreStats`] from each and adds them up here. Rendering produces name and value pairs through a
//! callback, so that the text protocol, the classic binary one and the admin page share it. Names
//! and their order are memcached's, since dashboards know them; where this server has nothing to
//! count, the figure is the constant that means so. Figures of our own are under `stats cores`, so
//! that tools that count memcached's names are not surprised.

use std::fmt::Arguments;
use std::time::Duration;

use crate::config::Config;
use crate::protocol::node::Tuning;
use crate::shard::counters::Counters;
use crate::shard::{ClassStats, Gauges};
use crate::time::Instant;
use ringlane_types::counters;

mod classes;
mod cluster;
mod connections;
mod cores;
mod general;
pub mod json;
pub mod prometheus;
mod settings;

pub use cluster::{ClusterView, CoreClusterStats, LinkCounters, RingNodeView};
pub use connections::{Address, ConnectionState, ConnectionStats};

counters! {
    /// What has happened to one core's connections since the start or since `stats reset`.
    pub struct ConnectionCounters {
        /// Bytes received from clients.
        bytes_read,
        /// Bytes sent to clients.
        bytes_written,
        /// Connections ever accepted.
        total_connections,
        /// Connections refused because the limit was reached.
        rejected_connections,
        /// Times a connection had to let others go first, having used up its share of a turn.
        conn_yields,
        /// Times receiving paused because all receive buffers were in use.
        read_buf_oom,
        /// flush_all commands, refused ones included.
        cmd_flush,
        /// Connections closed because they were silent for too long.
        idle_kicks,
        /// Connections closed because they held memory that others waited for, and moved nothing.
        stalled_kicks,
        /// Long values refused, and connections closed in the middle of a very long line, because
        /// the memory for connections was used up.
        uploads_refused,
        /// Attempts to authenticate.
        auth_cmds,
        /// Attempts to authenticate that failed.
        auth_errors,
    }
}

/// One core's part of the statistics.
#[derive(Clone, Debug, Default)]
pub struct CoreStats {
    /// What its shard has counted.
    pub counters: Counters,
    /// What its connections have counted.
    pub connections: ConnectionCounters,
    /// How its shard stands.
    pub gauges: Gauges,
    /// Its slab classes, those with pages at least.
    pub classes: Vec<ClassStats>,
    /// Connections it has now.
    pub curr_connections: u64,
    /// Bytes that its connections hold besides items now.
    pub connection_bytes: u64,
    /// The most that they ever did.
    pub connection_bytes_peak: u64,
    /// Receive buffers of the core.
    pub receive_buffers: u64,
    /// Bytes of those buffers.
    pub receive_buffer_bytes: u64,
    /// Bytes of receive buffers that hold nothing now.
    pub receive_buffer_bytes_free: u64,
    /// Requests of its own connections that its own shard answered.
    pub local_requests: u64,
    /// Requests handed to other cores.
    pub forwarded_requests: u64,
    /// Requests answered for other cores.
    pub served_requests: u64,
    /// Time spent working.
    pub busy: Duration,
    /// CPU time of the longest turn since the counters were reset; measured only while debug messages
    /// are logged.
    pub longest_turn: Duration,
    /// Completions of its net ring that named no operation under way and were ignored. Other than zero
    /// they are a fault of the server or of the kernel.
    pub stale_completions: u64,
    /// Time spent waiting for work, polling included.
    pub idle: Duration,
    /// Its part in the cluster, if there is one.
    pub cluster: Option<Box<CoreClusterStats>>,
}

/// What the host tells about the process.
#[derive(Clone, Debug, Default)]
pub struct ProcessStats {
    /// Process number.
    pub pid: u32,
    /// Time since the start.
    pub uptime: Duration,
    /// CPU time spent in the program.
    pub user: Duration,
    /// CPU time spent in the kernel.
    pub system: Duration,
}

/// Everything there is to tell, as of one moment.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    /// When it was taken.
    pub now: Instant,
    /// The process.
    pub process: &'a ProcessStats,
    /// What the node runs with.
    pub config: &'a Config,
    /// What clients have changed since.
    pub tuning: &'a Tuning,
    /// Log verbosity, 0 to 2.
    pub verbosity: u32,
    /// The moment of the last flush_all, or zero: items written before it are gone.
    pub flushed_at: Instant,
    /// All cores, in order.
    pub cores: &'a [CoreStats],
    /// The members, on a node of a cluster.
    pub cluster: Option<&'a ClusterView>,
    /// Listeners and connections; needed for [`Topic::Connections`] only.
    pub connections: &'a [ConnectionStats],
}

impl Snapshot<'_> {
    /// Memory for items, in bytes, as it is allowed now.
    fn memory_bytes(&self) -> u64 {
        self.tuning.memory_bytes.unwrap_or(self.config.memory_bytes)
    }

    /// Adds up one figure of all cores.
    fn sum(&self, figure: impl Fn(&CoreStats) -> u64) -> u64 {
        self.cores.iter().map(figure).sum()
    }
}

/// What `stats` was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// No argument: everything in general.
    General,
    /// `settings`: what the node runs with.
    Settings,
    /// `items`: items by slab class.
    Items,
    /// `slabs`: memory by slab class.
    Slabs,
    /// `sizes`: items by size, which is not counted here.
    Sizes,
    /// `conns`: listeners and connections.
    Connections,
    /// `cores`: this server's own figures, core by core.
    Cores,
    /// `cluster`: members, and what passes between them.
    Cluster,
    /// `hotkeys`: keys of other nodes that are asked for here very often.
    HotKeys,
    /// `reset`: nothing to render; counters become zero.
    Reset,
    /// `detail on`, `detail off`: nothing to render; counting by prefix starts or stops.
    Detail(bool),
    /// `detail dump`: see [`PrefixCounters::dump`](crate::engine::PrefixCounters::dump).
    DetailDump,
    /// `detail` with anything else: an error.
    DetailUsage,
}

impl Topic {
    /// What the argument of a stats command means; `None` if nothing.
    pub fn parse(argument: &[u8]) -> Option<Self> {
        let mut words = argument.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let Some(word) = words.next() else { return Some(Topic::General) };
        Some(match word {
            b"settings" => Topic::Settings,
            b"items" => Topic::Items,
            b"slabs" => Topic::Slabs,
            b"sizes" => Topic::Sizes,
            b"conns" => Topic::Connections,
            b"cores" => Topic::Cores,
            b"cluster" => Topic::Cluster,
            b"hotkeys" => Topic::HotKeys,
            b"reset" => Topic::Reset,
            b"detail" => match words.next() {
                Some(b"on") => Topic::Detail(true),
                Some(b"off") => Topic::Detail(false),
                Some(b"dump") => Topic::DetailDump,
                _ => Topic::DetailUsage,
            },
            _ => return None,
        })
    }
}

/// Takes one name and its value.
pub type Emit<'e> = &'e mut dyn FnMut(Arguments<'_>, Arguments<'_>);

/// Renders a topic as names and values, in order. Topics that are commands render nothing.
pub fn render(topic: Topic, snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    match topic {
        Topic::General => general::render(snapshot, emit),
        Topic::Settings => settings::render(snapshot, emit),
        Topic::Items => classes::items(snapshot, emit),
        Topic::Slabs => classes::slabs(snapshot, emit),
        Topic::Sizes => emit(format_args!("sizes_status"), format_args!("disabled")),
        Topic::Connections => connections::render(snapshot.connections, emit),
        Topic::Cores => cores::render(snapshot, emit),
        Topic::Cluster => cluster::render(snapshot, emit),
        Topic::HotKeys => cluster::render_hot_keys(snapshot, emit),
        Topic::Reset | Topic::Detail(_) | Topic::DetailDump | Topic::DetailUsage => {}
    }
}

/// Emits fixed names with their values.
macro_rules! emit {
    ($emit:ident: $($name:ident = $value:expr,)*) => {
        $($emit(format_args!("{}", stringify!($name)), format_args!("{}", $value));)*
    };
}
use emit;

#[cfg(test)]
mod tests;
