//! Which other nodes are worth sending requests to.
//!
//! Three opinions are combined: gossip's (alive or dead), the link's (connected or not) and the
//! circuit breaker's (answering or not). Any of them can be the first to know. The outcome only
//! chooses whom to ask and for whom to keep hints; it never counts for a quorum.

use std::collections::HashMap;

use super::breaker::{Breaker, BreakerSettings, BreakerState};
use super::identity::{Boot, NodeKey};
use crate::time::Instant;

/// The other nodes, as one core sees them.
#[derive(Debug, Default)]
pub struct Peers {
    settings: BreakerSettings,
    peers: HashMap<NodeKey, Peer, ahash::RandomState>,
}

#[derive(Debug)]
struct Peer {
    boot: Boot,
    alive: bool,
    /// When gossip last changed its mind.
    since: Instant,
    connected: bool,
    breaker: Breaker,
}

impl Peers {
    /// Nobody is known yet.
    pub fn new(settings: BreakerSettings, hasher: ahash::RandomState) -> Self {
        Self { settings, peers: HashMap::with_hasher(hasher) }
    }

    /// Gossip says that this life of a node is alive, or dead.
    pub fn liveness(&mut self, node: NodeKey, boot: Boot, alive: bool, now: Instant) {
        let peer = self.peer(node, now);
        if alive && (!peer.alive || peer.boot != boot) {
            peer.breaker.reset(now);
        }
        if (peer.alive, peer.boot) != (alive, boot) {
            peer.since = now;
        }
        (peer.alive, peer.boot) = (alive, boot);
    }

    /// The link to a node was made, or broke.
    pub fn link(&mut self, node: NodeKey, connected: bool, now: Instant) {
        let peer = self.peer(node, now);
        if connected && !peer.connected {
            peer.breaker.reset(now);
        }
        peer.connected = connected;
    }

    /// Whether a request to `node` may be sent now. If so, it must be sent, and its outcome told.
    #[inline]
    pub fn admits(&mut self, node: NodeKey, now: Instant) -> bool {
        let peer = self.peers.get_mut(&node);
        peer.is_some_and(|peer| peer.alive && peer.connected && peer.breaker.admits(now))
    }

    /// Whether gossip and link hold `node` for present, whatever the breaker says.
    pub fn is_present(&self, node: NodeKey) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.alive && peer.connected)
    }

    /// Whether gossip holds this life of `node` for alive.
    pub fn is_alive(&self, node: NodeKey, boot: Boot) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.alive && peer.boot == boot)
    }

    /// Since when gossip holds this life of `node` for dead; `None` while it is alive. One that has
    /// never been heard of, or that a later one has followed, has been dead for ever.
    pub fn dead_since(&self, node: NodeKey, boot: Boot) -> Option<Instant> {
        match self.peers.get(&node).filter(|peer| peer.boot == boot) {
            Some(peer) if peer.alive => None,
            Some(peer) => Some(peer.since),
            None => Some(Instant::default()),
        }
    }

    /// A request to `node` was answered.
    #[inline]
    pub fn succeeded(&mut self, node: NodeKey, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.breaker.succeeded(now);
        }
    }

    /// A request to `node` was not answered in time.
    pub fn failed(&mut self, node: NodeKey, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.breaker.failed(now);
        }
    }

    /// The breaker's state, for views.
    pub fn breaker(&self, node: NodeKey, now: Instant) -> Option<BreakerState> {
        self.peers.get(&node).map(|peer| peer.breaker.state(now))
    }

    fn peer(&mut self, node: NodeKey, now: Instant) -> &mut Peer {
        let settings = self.settings;
        self.peers.entry(node).or_insert_with(|| Peer {
            boot: Boot::default(),
            alive: false,
            since: now,
            connected: true,
            breaker: Breaker::new(settings, now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashSecret;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);
    const NODE: NodeKey = NodeKey(7);

    #[test]
    fn a_peer_is_asked_while_gossip_link_and_breaker_agree() {
        let mut peers =
            Peers::new(BreakerSettings::default(), HashSecret::of_seed(1).table_hasher());
        assert!(!peers.admits(NODE, NOW), "unknown");
        peers.liveness(NODE, Boot(1), true, NOW);
        assert!(peers.admits(NODE, NOW) && peers.dead_since(NODE, Boot(1)).is_none());
        peers.link(NODE, false, NOW);
        assert!(!peers.admits(NODE, NOW));
        peers.link(NODE, true, NOW);
        assert!(peers.admits(NODE, NOW));
        (0..10).for_each(|_| peers.failed(NODE, NOW));
        assert!(!peers.admits(NODE, NOW) && peers.is_present(NODE));
        let later = NOW.after(std::time::Duration::from_secs(1));
        peers.liveness(NODE, Boot(1), false, later);
        peers.liveness(NODE, Boot(1), false, later.after(std::time::Duration::from_secs(1)));
        assert!(!peers.is_present(NODE));
        assert_eq!(peers.dead_since(NODE, Boot(1)), Some(later));
        assert_eq!(peers.dead_since(NODE, Boot(0)), Some(Instant::default()), "a former life");
    }

    #[test]
    fn a_peer_that_comes_back_is_asked_at_once() {
        let mut peers =
            Peers::new(BreakerSettings::default(), HashSecret::of_seed(1).table_hasher());
        peers.liveness(NODE, Boot(1), true, NOW);
        (0..10).for_each(|_| peers.failed(NODE, NOW));
        peers.liveness(NODE, Boot(2), true, NOW);
        assert!(peers.admits(NODE, NOW));
        (0..10).for_each(|_| peers.failed(NODE, NOW));
        peers.link(NODE, false, NOW);
        peers.link(NODE, true, NOW);
        assert!(peers.admits(NODE, NOW));
    }
}
