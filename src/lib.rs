//! Ringlane: a distributed in-memory cache server for Linux.
//!
//! One pinned executor per core owns one [`shard`] and nothing is shared. Everything outside
//! `server` is a state machine over bytes, events and a given time: it owns no socket, clock,
//! thread or task. `ARCHITECTURE.md` is the map. Modules are declared in dependency order.

pub mod codec;
pub mod config;
pub mod hash;
pub mod log_limiter;
pub mod prefetch;
pub mod request;
pub mod time;

pub mod cluster;
pub mod protocol;
pub mod shard;
pub mod stats;

pub mod engine;

#[cfg(feature = "server")]
pub mod server;
