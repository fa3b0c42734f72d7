//! A client's view of the nodes: where each key is stored, and how that changes.
//!
//! One address is enough: a node describes its cluster in its answer to HELLO (`hello`), from which
//! a `routes::Layout` and its ring are built, and `discovery` keeps them up to date while nodes
//! come and go. A client looks up the endpoint of a key in `routes::Routes` and saves the hop
//! between nodes, and, if nodes have a port per core, the one between cores.

#![deny(missing_docs, unreachable_pub)]

pub mod address;
pub mod discovery;
pub mod hello;
pub mod routes;
