//! Links: how the cores of one node reach the cores of another.
//!
//! Each core of a node has one connection with each core of every other node, so a message about a
//! key goes directly to the core that owns it there. The transport tells the core when a link opens
//! and closes; what is in flight when it closes may be lost.

use core::net::IpAddr;

use super::identity::{Boot, NodeKey};
use ringlane_types::hash::core_of;

/// In place of a core's number: the control executor, which speaks for the node.
pub const NODE_CORE: u16 = u16::MAX;

/// One core of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The node.
    pub node: NodeKey,
    /// Its core, or [`NODE_CORE`].
    pub core: u16,
}

/// What a core must know about another node to find the core that owns a key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// Which start of its process the link reaches.
    pub boot: Boot,
    /// Number of its cores.
    pub core_count: u16,
    /// Seed of its public key hashes.
    pub hash_seed: u64,
}

impl PeerFacts {
    /// The core that owns `key` there.
    #[inline]
    pub fn core_of(&self, key: &[u8]) -> u16 {
        core_of(key, self.hash_seed, u32::from(self.core_count)) as u16
    }
}

/// Where a node accepts clients. Nodes tell each other, so that each can describe all to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientEndpoint {
    /// Its address; `None` for any of its addresses, and without TCP.
    pub ip: Option<IpAddr>,
    /// The port that reaches any core; 0 when it is not reached over TCP.
    pub port: u16,
    /// The port that reaches core 0; core i has this plus i.
    pub shard_ports: Option<u16>,
}

/// Where a request for a peer is written, if it can be.
#[derive(Debug)]
pub enum PeerBuffer<'r> {
    /// Here.
    Open(&'r mut Vec<u8>),
    /// Nowhere yet: too much is queued for that peer. The caller is notified when there is room.
    Full,
    /// Nowhere: there is no link.
    Unlinked,
}

impl<'r> PeerBuffer<'r> {
    /// Where it is written; `None` otherwise.
    pub fn open(self) -> Option<&'r mut Vec<u8>> {
        match self {
            PeerBuffer::Open(out) => Some(out),
            PeerBuffer::Full | PeerBuffer::Unlinked => None,
        }
    }
}

/// A link was opened or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// From now on messages can be sent to `peer`.
    Up {
        /// The peer it reaches.
        peer: Peer,
        /// What is known about that node.
        facts: PeerFacts,
    },
    /// The link is gone, with everything in flight.
    Down {
        /// The peer it reached.
        peer: Peer,
        /// In which boot.
        boot: Boot,
    },
}
