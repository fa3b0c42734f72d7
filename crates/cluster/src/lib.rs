//! Agreement between nodes: membership, replication, and quorums.
//!
//! Everything here is a state machine over events, bytes and a given time. Sockets, clocks and
//! randomness live outside; a simulated cluster runs the same code as a real one.

#![deny(missing_docs, unreachable_pub)]

pub mod breaker;
pub mod coordinator;
pub mod dialler;
pub mod flow;
pub mod frame;
pub mod governor;
pub mod governor_notice;
pub mod handshake;
pub mod hints;
pub mod hot_keys;
pub mod identity;
pub mod link;
pub mod membership;
pub mod message;
pub mod peers;
pub mod promises;
pub mod quorum;
pub mod record;
pub mod roster;
pub mod roster_consensus;
pub mod store;
pub mod version;
pub mod view;
