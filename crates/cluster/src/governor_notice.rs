//! Notices of the governor to every core of its node.

use std::sync::Arc;

use super::identity::{Boot, NodeKey};
use super::version::Version;
use super::view::View;

/// A notice to all cores; their order matters.
#[derive(Clone, Debug)]
pub enum GovernorNotice {
    /// The placement of keys has changed.
    ViewChanged(Arc<View>),
    /// A node is alive, or dead.
    Liveness {
        /// The node.
        node: NodeKey,
        /// Which start of its process.
        boot: Boot,
        /// Whether it is alive.
        alive: bool,
    },
    /// Every live member holds all data assigned to it up to the roster of this epoch: data of
    /// other nodes may be dropped.
    Rebalanced(u64),
    /// Everything up to this version is flushed.
    Flushed(Version),
    /// This node begins a new boot, without data or membership: another history of the cluster
    /// wins.
    RestartedEmpty(Boot),
}
