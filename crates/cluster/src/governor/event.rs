//! Input events and effects of a governor.

use core::net::SocketAddr;
use std::sync::Arc;

use super::super::governor_notice::GovernorNotice;
use super::super::identity::{Boot, NodeKey};
use super::super::membership::Health;
use super::super::version::Version;
use ringlane_types::log_limiter::LogKind;

/// An event for the governor.
#[derive(Clone, Copy, Debug)]
pub enum GovernorEvent<'b> {
    /// Start. Comes first, once.
    Start,
    /// The next deadline has passed; harmless at any time.
    Tick,
    /// A gossip datagram.
    Datagram {
        /// Its sender according to the socket.
        from: SocketAddr,
        /// Its bytes.
        bytes: &'b [u8],
    },
    /// The body of a frame from another node's governor.
    Message {
        /// Its sender.
        from: NodeKey,
        /// Its messages.
        bytes: &'b [u8],
    },
    /// The link with another node's governor was lost.
    LinkLost {
        /// The node.
        node: NodeKey,
    },
    /// The host of a node has reported that nobody listens at its address for connections.
    ConnectionRefused {
        /// The node.
        node: NodeKey,
        /// The address.
        address: SocketAddr,
    },
    /// A core has copied everything it gained up to the roster of this epoch.
    Settled {
        /// The core.
        core: usize,
        /// The epoch.
        epoch: u64,
    },
    /// A client of this node flushes everything up to this version on all nodes.
    Flush(Version),
    /// This node's weight has changed.
    SetWeight(u32),
    /// Leave the roster. [`GovernorEffect::HandedOver`] follows when others have copied this node's
    /// data.
    Leave,
    /// Say goodbye. Nothing is sent or accepted afterwards.
    Shutdown,
}

/// An effect of an event.
#[derive(Clone, Debug)]
pub enum GovernorEffect {
    /// Send a gossip datagram.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Send the body of a frame to another node's governor; it may be lost.
    Send {
        /// Whom to.
        to: NodeKey,
        /// The messages.
        bytes: Vec<u8>,
    },
    /// Try to connect to a node; if its host reports that nobody listens there,
    /// [`GovernorEvent::ConnectionRefused`] must follow. Other outcomes need not be reported.
    ProbeListener {
        /// The node.
        node: NodeKey,
        /// Where it takes connections.
        address: SocketAddr,
    },
    /// Links with this boot of a node are wanted, or no longer wanted.
    Link {
        /// The node.
        node: NodeKey,
        /// In which boot.
        boot: Boot,
        /// Where it takes connections.
        address: SocketAddr,
        /// Whether they are wanted.
        wanted: bool,
    },
    /// Tell all cores of this node.
    Notice(GovernorNotice),
    /// This node was replaced by another process, or by a later boot: it must end.
    Superseded {
        /// Where the other one is, or was.
        by: SocketAddr,
    },
    /// This node has left the roster and others have copied what it held, or there is no other
    /// member.
    HandedOver,
    /// Worth a line in the log.
    Log(LogLine),
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Whether it needs attention.
    pub warning: bool,
    /// What it is about. Remote parties may cause it, so lines of a kind are limited.
    pub kind: LogKind,
    /// Whom it is about, in 64 bits; lines about each are limited further.
    pub source: u64,
    /// The text.
    pub text: String,
}

/// The status of a member, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: Arc<str>,
    /// Its key.
    pub key: NodeKey,
    /// Its boot.
    pub boot: Boot,
    /// Where it accepts connections.
    pub link: SocketAddr,
    /// Its liveness as seen from here.
    pub health: Health,
    /// Its weight, if it is in the roster.
    pub weight: Option<u32>,
    /// The epoch of its roster, as last reported; 0 if it never was.
    pub epoch: u64,
    /// The epoch up to which it has all its data.
    pub settled: u64,
}
