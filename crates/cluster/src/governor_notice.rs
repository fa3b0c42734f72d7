//! What the governor tells every core of its node.

use std::sync::Arc;

use super::identity::{Boot, NodeKey};
use super::version::Version;
use super::view::View;

/// Something that all cores must know, in the order in which it is told.
#[derive(Clone, Debug)]
pub enum GovernorNotice {
    /// Keys lie like this from now on.
    ViewChanged(Arc<View>),
    /// A node is alive, or dead.
    Liveness {
        /// The node.
        node: NodeKey,
        /// Which start of its process.
        boot: Boot,
        /// Whether it lives.
        alive: bool,
    },
    /// Everybody who is alive has what became his own up to the roster of this epoch: what belongs
    /// to others may be forgotten.
    Rebalanced(u64),
    /// Everything of a version up to this one is gone.
    Flushed(Version),
    /// This node begins a new life, without data or membership: another history of the cluster stays.
    RestartedEmpty(Boot),
}
