//! A node's statistics: gathered from all cores and rendered under memcached's names.
//!
//! Cores count separately and share nothing, so a request for statistics gathers one [`CoreStats`]
//! from each and adds them up here. Rendering produces name and value pairs through a callback, so
//! that the text protocol, the classic binary one and the admin page share it. Names and their
//! order are memcached's, since dashboards know them; where this server has nothing to count, the
//! value is a constant. Ringlane's own statistics are under `stats cores`, so that tools that count
//! memcached's names are not surprised.

use std::fmt::Arguments;
use std::time::Duration;

use crate::config::Config;
use crate::protocol::admin_command::MemcachedKnobs;
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
pub use connections::{ConnectionAddress, ConnectionState, ConnectionStats};

counters! {
    /// Connection events of one core since startup or since `stats reset`.
    pub struct ConnectionCounters {
        /// Bytes received from clients.
        bytes_read,
        /// Bytes sent to clients.
        bytes_written,
        /// Connections ever accepted.
        total_connections,
        /// Connections refused because the limit was reached.
        rejected_connections,
        /// Times a connection yielded to others after using up its share of a turn.
        conn_yields,
        /// Times receiving paused because all receive buffers were in use.
        read_buf_oom,
        /// flush_all commands, refused ones included.
        cmd_flush,
        /// Connections closed by the idle timeout.
        idle_kicks,
        /// Connections closed because they held memory that others waited for and made no progress.
        stalled_kicks,
        /// Long values refused, and connections closed in the middle of a very long line, because
        /// connection memory was used up.
        uploads_refused,
        /// Authentication attempts.
        auth_cmds,
        /// Failed authentication attempts.
        auth_errors,
    }
}

/// One core's part of the statistics.
#[derive(Clone, Debug, Default)]
pub struct CoreStats {
    /// Counters of its shard.
    pub counters: Counters,
    /// Counters of its connections.
    pub connections: ConnectionCounters,
    /// Current state of its shard.
    pub gauges: Gauges,
    /// Its slab classes, at least those with pages.
    pub classes: Vec<ClassStats>,
    /// Open connections.
    pub curr_connections: u64,
    /// Connection memory in use, in bytes.
    pub connection_bytes: u64,
    /// Peak of it.
    pub connection_bytes_peak: u64,
    /// Receive buffers of the core.
    pub receive_buffers: u64,
    /// Bytes of those buffers.
    pub receive_buffer_bytes: u64,
    /// Bytes of unused receive buffers.
    pub receive_buffer_bytes_free: u64,
    /// Requests of its own connections that its own shard answered.
    pub local_requests: u64,
    /// Requests handed to other cores.
    pub forwarded_requests: u64,
    /// Requests answered for other cores.
    pub served_requests: u64,
    /// Time spent working.
    pub busy: Duration,
    /// CPU time of the longest turn since the counters were reset; measured only while the log
    /// level is debug or trace.
    pub longest_turn: Duration,
    /// Completions of its net ring that named no operation under way and were ignored. Other than
    /// zero they are a fault of the server or of the kernel.
    pub stale_completions: u64,
    /// Time spent waiting for work, polling included.
    pub idle: Duration,
    /// Its cluster statistics, on a node of a cluster.
    pub cluster: Option<Box<CoreClusterStats>>,
}

/// Facts about the process.
#[derive(Clone, Debug, Default)]
pub struct ProcessStats {
    /// Process id.
    pub pid: u32,
    /// Time since startup.
    pub uptime: Duration,
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
}

/// All statistics at one moment.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    /// When it was taken.
    pub now: Instant,
    /// The process.
    pub process: &'a ProcessStats,
    /// The node's configuration.
    pub config: &'a Config,
    /// Settings changed by clients since.
    pub knobs: &'a MemcachedKnobs,
    /// Log verbosity, 0 to 2.
    pub verbosity: u32,
    /// Time of the last flush_all, or zero: items written before it are invalid.
    pub flushed_at: Instant,
    /// All cores, in order.
    pub cores: &'a [CoreStats],
    /// The members, on a node of a cluster.
    pub cluster: Option<&'a ClusterView>,
    /// Listeners and connections; needed for [`Topic::Connections`] only.
    pub connections: &'a [ConnectionStats],
}

impl Snapshot<'_> {
    /// Current memory limit for items in bytes.
    fn memory_bytes(&self) -> u64 {
        self.knobs.memory_bytes.unwrap_or(self.config.memory_bytes)
    }

    /// Adds up one statistic of all cores.
    fn sum(&self, figure: impl Fn(&CoreStats) -> u64) -> u64 {
        self.cores.iter().map(figure).sum()
    }
}

/// Topic of a `stats` command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// No argument: general statistics.
    General,
    /// `settings`: the node's configuration.
    Settings,
    /// `items`: items by slab class.
    Items,
    /// `slabs`: memory by slab class.
    Slabs,
    /// `sizes`: items by size, which is not supported.
    Sizes,
    /// `conns`: listeners and connections.
    Connections,
    /// `cores`: Ringlane's own statistics, per core.
    Cores,
    /// `cluster`: members and the traffic between them.
    Cluster,
    /// `hotkeys`: keys of other nodes that are requested very often here.
    HotKeys,
    /// `reset`: nothing to render; resets counters to zero.
    Reset,
    /// `detail on`, `detail off`: nothing to render; counting by prefix starts or stops.
    Detail(bool),
    /// `detail dump`: see [`PrefixCounters::dump`](crate::engine::PrefixCounters::dump).
    DetailDump,
    /// `detail` with any other argument: an error.
    DetailUsage,
}

impl Topic {
    /// Parses the argument of a stats command; `None` if it is unknown.
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

/// Receives one name and its value.
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
