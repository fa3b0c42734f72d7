//! Agreement between nodes: who they are, which of them keep a key, and what a quorum of them says.
//!
//! Everything here is a state machine over events, bytes and a given time. Sockets, clocks and
//! randomness live outside; a simulated world of nodes runs the same code that a real one does.

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
pub mod wire;
