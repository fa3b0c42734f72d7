//! What happens to a governor, and what it wants done.

use core::net::SocketAddr;
use std::sync::Arc;

use super::super::governor_notice::GovernorNotice;
use super::super::identity::{Boot, NodeKey};
use super::super::membership::Health;
use super::super::version::Version;
use ringlane_types::log_limiter::LogKind;

/// What happens to the governor.
#[derive(Clone, Copy, Debug)]
pub enum GovernorEvent<'b> {
    /// Begin. Comes first, once.
    Start,
    /// The nearest deadline has come; harmless at any time.
    Tick,
    /// A gossip datagram.
    Datagram {
        /// Who sent it, as the socket says.
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
    /// Nobody listens where a node takes connections: its host has said so.
    ConnectionRefused {
        /// The node.
        node: NodeKey,
        /// Where.
        address: SocketAddr,
    },
    /// All that became a core's own up to the roster of this epoch has arrived there.
    Settled {
        /// The core.
        core: usize,
        /// The epoch.
        epoch: u64,
    },
    /// A client of this node wants everything of a version up to this one gone, everywhere.
    Flush(Version),
    /// This node's weight is another from now on.
    SetWeight(u32),
    /// Leave the roster. [`GovernorEffect::HandedOver`] follows when others hold what was held
    /// here.
    Leave,
    /// Say goodbye. Nothing is sent or believed afterwards.
    Shutdown,
}

/// What is to be done because of an event.
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
    /// Try to connect with a node; if its host says that nobody listens there,
    /// [`GovernorEvent::ConnectionRefused`] follows. Of what else comes of it nothing need be told.
    ProbeListener {
        /// The node.
        node: NodeKey,
        /// Where it takes connections.
        address: SocketAddr,
    },
    /// Links with this boot of a node are wanted, or not any more.
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
    /// This node's place is taken by another process, or by a later boot: it must end.
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

/// What is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Whether somebody should look at it.
    pub warning: bool,
    /// What it is about: others may cause it, so too many of a kind are withheld.
    pub kind: LogKind,
    /// Whom it is about, in 64 bits; of each there are fewer lines than of the kind.
    pub source: u64,
    /// What to say.
    pub text: String,
}

/// How a member stands, for views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: Arc<str>,
    /// Its key.
    pub key: NodeKey,
    /// Its boot.
    pub boot: Boot,
    /// Where it takes connections.
    pub link: SocketAddr,
    /// How it looks from here.
    pub health: Health,
    /// Its weight, if it is in the roster.
    pub weight: Option<u32>,
    /// The epoch of its roster, as it last said; 0 if it never did.
    pub epoch: u64,
    /// The epoch up to which it misses nothing.
    pub settled: u64,
}
