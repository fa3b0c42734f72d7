//! Ringlane: a distributed in-memory cache server for Linux.
//!
//! One pinned executor per core owns one [`shard`] and nothing is shared. Everything outside
//! `server` is a state machine over bytes, events and a given time: it owns no socket, clock,
//! thread or task. `ARCHITECTURE.md` is the map. Modules are declared in dependency order.

pub mod config;
pub mod stats;

pub use ringlane_cluster as cluster;
pub use ringlane_engine as engine;
pub use ringlane_protocol as protocol;
pub use ringlane_ring as ring;
pub use ringlane_shard as shard;
pub use ringlane_types::{codec, hash, log_limiter, request, time, wire};

#[cfg(feature = "server")]
pub mod server;
