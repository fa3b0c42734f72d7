//! Decides which other nodes are worth sending requests to.
//!
//! Three sources are combined: gossip (alive or dead), the link (connected or not) and the circuit
//! breaker (answering or not). Any of them can be the first to know. The result only selects which
//! nodes to ask and which to store hints for; it never counts towards a quorum.

use std::collections::{HashMap, VecDeque};

use super::breaker::{Breaker, BreakerSettings, BreakerState};
use super::identity::{Boot, NodeKey};
use super::link::Peer as PeerCore;
use ringlane_types::time::Instant;

/// Maximum breaker changes stored until they are read; older ones are only counted.
const CHANGES_MAX: usize = 64;

/// A breaker opened, or closed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerChange {
    /// The node.
    pub node: NodeKey,
    /// Whether it opened.
    pub opened: bool,
}

/// How often breakers have opened and closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BreakerCounters {
    /// Opened.
    pub opened: u64,
    /// Closed.
    pub closed: u64,
}

/// The other nodes, as one core sees them.
#[derive(Debug, Default)]
pub struct Peers {
    settings: BreakerSettings,
    peers: HashMap<NodeKey, Peer, ahash::RandomState>,
    signs: HashMap<PeerCore, Signs, ahash::RandomState>,
    changes: VecDeque<BreakerChange>,
    counters: BreakerCounters,
}

/// The last signs of life of a core of another node.
#[derive(Clone, Copy, Debug, Default)]
struct Signs {
    /// Any message.
    heard: Instant,
    /// A part of a long message, in either direction.
    moved: Instant,
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
    /// Creates an empty set of peers.
    pub fn new(settings: BreakerSettings, hasher: ahash::RandomState) -> Self {
        Self {
            settings,
            peers: HashMap::with_hasher(hasher.clone()),
            signs: HashMap::with_hasher(hasher),
            changes: VecDeque::new(),
            counters: BreakerCounters::default(),
        }
    }

    /// A message arrived from a core of another node; `in_part` if it shows that a long one is in
    /// transit.
    #[inline]
    pub fn heard(&mut self, from: PeerCore, in_part: bool, now: Instant) {
        let signs = self.signs.entry(from).or_default();
        signs.heard = now;
        if in_part {
            signs.moved = now;
        }
    }

    /// Whether nothing at all has come from that core after `since`.
    pub fn is_silent(&self, peer: PeerCore, since: Instant) -> bool {
        self.signs.get(&peer).is_none_or(|signs| signs.heard <= since)
    }

    /// Whether something long was in transit after `since`.
    pub fn is_moving(&self, peer: PeerCore, since: Instant) -> bool {
        self.signs.get(&peer).is_some_and(|signs| signs.moved > since)
    }

    /// The next unread breaker change, oldest first.
    pub fn next_change(&mut self) -> Option<BreakerChange> {
        self.changes.pop_front()
    }

    /// How often breakers have opened and closed.
    pub fn counters(&self) -> BreakerCounters {
        self.counters
    }

    fn changed(&mut self, node: NodeKey, opened: bool) {
        *if opened { &mut self.counters.opened } else { &mut self.counters.closed } += 1;
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(BreakerChange { node, opened });
    }

    /// Gossip reports this boot of a node as alive or dead.
    pub fn liveness(&mut self, node: NodeKey, boot: Boot, alive: bool, now: Instant) {
        let peer = self.peer(node, now);
        let closes = alive && (!peer.alive || peer.boot != boot) && peer.breaker.reset(now);
        if (peer.alive, peer.boot) != (alive, boot) {
            peer.since = now;
        }
        (peer.alive, peer.boot) = (alive, boot);
        if closes {
            self.changed(node, false);
        }
    }

    /// The link to a node was established, or broke.
    pub fn link(&mut self, node: NodeKey, connected: bool, now: Instant) {
        let peer = self.peer(node, now);
        let closes = connected && !peer.connected && peer.breaker.reset(now);
        peer.connected = connected;
        if closes {
            self.changed(node, false);
        }
    }

    /// A request admitted by [`Peers::admits`] was not sent after all, for lack of room.
    pub fn not_sent(&mut self, node: NodeKey, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.breaker.not_sent(now);
        }
    }

    /// Whether a request to `node` could be sent now: like [`Peers::admits`], without the
    /// obligation to send one.
    pub fn may_be_asked(&self, node: NodeKey, now: Instant) -> bool {
        let open = |peer: &Peer| peer.breaker.state(now) == BreakerState::Open;
        self.peers.get(&node).is_some_and(|peer| peer.alive && peer.connected && !open(peer))
    }

    /// Whether a request to `node` may be sent now. If so, it must be sent and its outcome
    /// reported.
    #[inline]
    pub fn admits(&mut self, node: NodeKey, now: Instant) -> bool {
        let peer = self.peers.get_mut(&node);
        peer.is_some_and(|peer| peer.alive && peer.connected && peer.breaker.admits(now))
    }

    /// Whether gossip and link consider `node` present, regardless of the breaker.
    pub fn is_present(&self, node: NodeKey) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.alive && peer.connected)
    }

    /// Whether gossip considers this boot of `node` alive.
    pub fn is_alive(&self, node: NodeKey, boot: Boot) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.alive && peer.boot == boot)
    }

    /// Since when gossip considers this boot of `node` dead; `None` while it is alive. An unknown
    /// boot, or one followed by a later one, has always been dead.
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
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.breaker.succeeded(now)
        {
            self.changed(node, false);
        }
    }

    /// A request to `node` got no answer, or its link was lost.
    pub fn failed(&mut self, node: NodeKey, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.breaker.failed(now)
        {
            self.changed(node, true);
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
    use ringlane_types::hash::HashSecret;

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
