//! What is going to happen, and when.

use std::net::SocketAddr;

use ringlane::cluster::identity::{Boot, NodeKey};
use ringlane::cluster::link::Peer;
use ringlane::time::Instant;

#[derive(Debug)]
pub enum Happening {
    Datagram {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Frame {
        from: Peer,
        from_boot: Boot,
        core: u16,
        bytes: Vec<u8>,
    },
    LinkUp {
        node: NodeKey,
        boot: Boot,
    },
    /// A link is gone; lost unless it was no longer wanted.
    LinkDown {
        node: NodeKey,
        boot: Boot,
        lost: bool,
    },
    /// There is room again on the link of this core with that one.
    PeerBuffer {
        core: u16,
        peer: Peer,
    },
    Refused {
        node: NodeKey,
        address: SocketAddr,
    },
    Wake,
    Restart,
}

pub struct Due {
    pub at: Instant,
    pub number: u64,
    pub node: usize,
    /// Only for this life; restarts are for any.
    pub boot: Boot,
    pub what: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
