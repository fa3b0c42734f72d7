//! Links: how the cores of one node reach the cores of another.
//!
//! Each core of a node has one connection with each core of every other node, so a message about a
//! key goes straight to the core that owns it there. Whoever carries the messages tells the core
//! when a link comes and goes; what is in flight when it goes may be lost.

use core::net::IpAddr;

use super::identity::{Boot, NodeKey};
use ringlane_types::hash::core_of;

/// In the place of a core's number: the executor beside the cores, which speaks for the node.
pub const NODE_CORE: u16 = u16::MAX;

/// One core of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The node.
    pub node: NodeKey,
    /// Its core, or [`NODE_CORE`].
    pub core: u16,
}

/// What a core must know of another node to find the core that owns a key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// Which start of its process the link reaches.
    pub boot: Boot,
    /// How many cores it has.
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

/// Where a node takes clients. Nodes tell each other, so that each can tell a client of all.
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
    /// Nowhere yet: too much waits for that peer. Whoever was told so is called when that is over.
    Full,
    /// Nowhere: there is no link.
    Unlinked,
}

impl<'r> PeerBuffer<'r> {
    /// Where it is written, for whoever does without otherwise.
    pub fn open(self) -> Option<&'r mut Vec<u8>> {
        match self {
            PeerBuffer::Open(out) => Some(out),
            PeerBuffer::Full | PeerBuffer::Unlinked => None,
        }
    }
}

/// A link came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Messages to `peer` can be sent from now on.
    Up {
        /// Whom it reaches.
        peer: Peer,
        /// What is known of that node.
        facts: PeerFacts,
    },
    /// The link is gone, and with it all that was on its way.
    Down {
        /// Whom it reached.
        peer: Peer,
        /// In which boot.
        boot: Boot,
    },
}
