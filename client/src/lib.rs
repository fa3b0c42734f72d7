//! What a client knows of the nodes: where each key lives, and what has changed about it.
//!
//! One address is enough: a node describes its cluster in its answer to HELLO (`hello`), from which
//! a `routes::Layout` and its ring are made, and `discovery` keeps them up to date while nodes come
//! and go. Whoever sends requests asks `routes::Routes` for the endpoint of a key and saves the hop
//! between nodes, and, where nodes offer a port for each core, the one between cores.

pub mod address;
pub mod discovery;
pub mod hello;
pub mod routes;
