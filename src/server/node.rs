//! State shared by the cores of one node: settings, the clock, doorbells and a few counters.
//!
//! Nothing here is on the request path. Each counter has one writer, the core it belongs to, except
//! those touched once per connection.

use std::fmt;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::clock::Clock;
use super::cluster::Mailboxes;
use super::mesh::Doorbell;
use super::stats_collector::StatsSlot;
use crate::cluster::identity::Boot;
use crate::config::{Config, LogLevel};
use crate::log_limiter::{LogKind, LogLimiter};
use crate::protocol::admin_command::MemcachedKnobs;
use crate::stats::ClusterView;
use crate::time::Instant;

/// A node's shared state.
pub struct Node {
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// Identifies this start of the process to the other nodes of a cluster.
    pub boot: Boot,
    /// Wakes each core.
    pub doorbells: Arc<[Doorbell]>,
    /// Wakes the control executor.
    pub control_bell: Doorbell,
    /// Messages between the cores and the control executor.
    pub mailboxes: Mailboxes,
    /// Statistics of each core.
    pub cores: Box<[CoreFigures]>,
    /// Open connections of all cores.
    pub connections: AtomicU32,
    knobs: Mutex<MemcachedKnobs>,
    log_limiter: Mutex<LogLimiter>,
    /// The members of the cluster, as last published by the control executor.
    members: Mutex<Option<Arc<ClusterView>>>,
    verbosity: AtomicU32,
    flushed_at_millis: AtomicU64,
    leaving: AtomicBool,
    hurried: AtomicBool,
    stopping: AtomicBool,
    stopping_since_millis: AtomicU64,
    ended: AtomicBool,
    superseded_by: OnceLock<SocketAddr>,
}

/// Statistics of one core, on separate cache lines.
#[derive(Default)]
#[repr(align(128))]
pub struct CoreFigures {
    /// Open connections, including those being handed to this core.
    pub connections: AtomicU32,
    /// Where other threads request the core's statistics.
    pub stats_slot: StatsSlot,
}

impl Node {
    /// The shared state of a node that is about to start.
    pub fn new(config: Config, doorbells: Arc<[Doorbell]>, control_bell: Doorbell) -> Self {
        let mailboxes = Mailboxes::new(config.core_count());
        let cores = (0..config.core_count()).map(|_| CoreFigures::default()).collect();
        let verbosity = AtomicU32::new(config.verbosity.into());
        let detail = config.prefix_delimiter.is_some();
        let clock = Clock::start();
        Self {
            config,
            boot: Boot(clock.now().as_millis()),
            clock,
            doorbells,
            control_bell,
            mailboxes,
            cores,
            connections: AtomicU32::new(0),
            knobs: Mutex::new(MemcachedKnobs { detail, ..MemcachedKnobs::default() }),
            log_limiter: Mutex::new(LogLimiter::new()),
            members: Mutex::new(None),
            verbosity,
            flushed_at_millis: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stopping_since_millis: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            superseded_by: OnceLock::new(),
        }
    }

    /// Counts a new connection; false at the limit.
    pub fn admit(&self) -> bool {
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        if open >= self.config.connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Counts a closed connection.
    pub fn dismiss(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// The core with the fewest connections; `here` on a tie.
    pub fn least_loaded_core(&self, here: usize) -> usize {
        let load = |core: usize| self.cores[core].connections.load(Ordering::Relaxed);
        (0..self.cores.len()).min_by_key(|&core| (load(core), core != here)).unwrap_or(here)
    }

    /// Logs a line that remote parties can trigger, about `source`, unless there were too many
    /// alike.
    pub fn log(
        &self,
        level: log::Level,
        kind: LogKind,
        source: impl Hash,
        line: fmt::Arguments<'_>,
    ) {
        let now = self.clock.now();
        // A line below the log level does not use up the allowance.
        if log::log_enabled!(level) && self.log_limiter().admits(kind, source, now) {
            log::log!(level, "{line}");
        }
    }

    /// Logs how many lines were suppressed. Call it periodically.
    pub fn log_withheld(&self) {
        let now = self.clock.now();
        self.log_limiter().summaries(now, |kind, count| {
            log::warn!("suppressed {count} more log lines about {}", kind.what());
        });
    }

    fn log_limiter(&self) -> MutexGuard<'_, LogLimiter> {
        self.log_limiter.lock().expect("a panic ends the process")
    }

    /// Values of memcached's knobs.
    pub fn knobs(&self) -> MutexGuard<'_, MemcachedKnobs> {
        self.knobs.lock().expect("a panic ends the process")
    }

    /// The members of the cluster; `None` on a standalone node.
    pub fn members(&self) -> Option<Arc<ClusterView>> {
        self.members.lock().expect("a panic ends the process").clone()
    }

    /// Publishes the current members.
    pub fn set_members(&self, view: ClusterView) {
        *self.members.lock().expect("a panic ends the process") = Some(Arc::new(view));
    }

    /// Log verbosity as memcached counts it.
    pub fn verbosity(&self) -> u32 {
        self.verbosity.load(Ordering::Relaxed)
    }

    /// Sets the verbosity: 0 is the configured level, 1 and 2 show more.
    pub fn set_verbosity(&self, level: u32) {
        self.verbosity.store(level, Ordering::Relaxed);
        let shown = match level {
            0 => level_filter(self.config.log),
            1 => level_filter(self.config.log).max(log::LevelFilter::Debug),
            _ => log::LevelFilter::Trace,
        };
        log::set_max_level(shown);
    }

    /// When the last flush_all takes effect, zero for never.
    pub fn flushed_at(&self) -> Instant {
        Instant::from_millis(self.flushed_at_millis.load(Ordering::Relaxed))
    }

    /// Records a flush_all.
    pub fn set_flushed_at(&self, at: Instant) {
        self.flushed_at_millis.store(at.as_millis(), Ordering::Relaxed);
    }

    /// Stops the node: it first leaves its cluster, if any.
    pub fn leave(&self) {
        if self.config.cluster.is_none() {
            return self.stop();
        }
        self.leaving.store(true, Ordering::SeqCst);
        self.control_bell.ring();
    }

    /// Stops the node without waiting for other nodes to copy its items.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::SeqCst);
        self.leave();
    }

    /// Whether the node stops without waiting for other nodes.
    pub fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::SeqCst) || self.is_stopping()
    }

    /// Whether the node is to leave its cluster.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) || self.is_stopping()
    }

    /// Tells all cores to stop.
    pub fn stop(&self) {
        if !self.stopping.swap(true, Ordering::SeqCst) {
            let now = self.clock.uptime().as_millis() as u64;
            self.stopping_since_millis.store(now, Ordering::SeqCst);
        }
        self.doorbells.iter().for_each(Doorbell::ring);
        self.control_bell.ring();
    }

    /// Whether the node is shutting down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Stops the node because another process at `by` has taken its place in the cluster.
    pub fn superseded(&self, by: SocketAddr) {
        let _ = self.superseded_by.set(by);
        self.stop();
    }

    /// The address of the process that took this node's place, if that is why it stops.
    pub fn superseded_by(&self) -> Option<SocketAddr> {
        self.superseded_by.get().copied()
    }

    /// Notifies the control executor that all cores have stopped.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.control_bell.ring();
    }

    /// Whether all cores have stopped.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// How long it has been shutting down.
    pub fn stopping_for(&self) -> Duration {
        let since = Duration::from_millis(self.stopping_since_millis.load(Ordering::Relaxed));
        self.clock.uptime().saturating_sub(since)
    }
}

fn level_filter(level: LogLevel) -> log::LevelFilter {
    match level {
        LogLevel::Off => log::LevelFilter::Off,
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    }
}
