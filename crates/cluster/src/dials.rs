//! Which links this node dials, and when again.
//!
//! The executors beside the cores link first: that link tells how many cores the other node has,
//! and with it which links between cores there are. A dial that failed is repeated after a pause
//! that doubles up to [`PAUSE_MAX`], cut by chance, so that nodes that lost the same peer do not
//! return in step. A link that was lost soon after it was made counts as failed, else two nodes
//! that disagree would dial without pause.
//!
//! Only the node with the smaller key dials; the other side waits.

use core::net::SocketAddr;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::identity::NodeKey;
use super::link::{NODE_CORE, Peer};
use ringlane_types::time::Instant;

/// Shortest pause after a failed dial, before chance cuts it.
pub const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A link that held for so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// One end to dial from and one to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// The core here, or [`NODE_CORE`].
    pub core: u16,
    /// The core there, or [`NODE_CORE`].
    pub peer: Peer,
}

/// A connection to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Between whom.
    pub ends: Ends,
    /// Where the other node listens.
    pub address: SocketAddr,
    /// Tells this link from earlier ones between the same two. Never 0.
    pub serial: u64,
}

/// The links that this node is to dial.
#[derive(Debug)]
pub struct Dials {
    me: NodeKey,
    core_count: u16,
    nodes: BTreeMap<NodeKey, Node>,
    dials_made: u64,
    random: Xoshiro256PlusPlus,
}

#[derive(Debug)]
struct Node {
    address: SocketAddr,
    core_count: u16,
    targets: BTreeMap<Ends, Target>,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    state: State,
    /// Failures in a row.
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// To be dialled at this time.
    Paused(Instant),
    /// Being dialled.
    Dialled(u64),
    /// Linked since then.
    Up(u64, Instant),
}

impl Dials {
    /// The dials of the node `me` with so many cores. `seed` decides every random choice.
    pub fn new(me: NodeKey, core_count: u16, seed: u64) -> Self {
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { me, core_count, nodes: BTreeMap::new(), dials_made: 0, random }
    }

    /// Links with `node`, which listens at `address`, are wanted.
    pub fn want(&mut self, node: NodeKey, address: SocketAddr, now: Instant) {
        if node <= self.me {
            return;
        }
        let wanted = self.nodes.entry(node).or_insert_with(|| {
            let ends = Ends { core: NODE_CORE, peer: Peer { node, core: NODE_CORE } };
            let target = Target { state: State::Paused(now), failures: 0 };
            Node { address, core_count: 0, targets: BTreeMap::from([(ends, target)]) }
        });
        wanted.address = address;
    }

    /// No link with `node` is wanted any more. Those that are up are for others to close.
    pub fn unwant(&mut self, node: NodeKey) {
        self.nodes.remove(&node);
    }

    /// When [`Dials::next`] has something.
    pub fn next_deadline(&self) -> Option<Instant> {
        let targets = self.nodes.values().flat_map(|node| node.targets.values());
        let due = targets.filter_map(|target| match target.state {
            State::Paused(at) => Some(at),
            _ => None,
        });
        due.min()
    }

    /// The next connection to make, if one is due. What becomes of it must be told.
    pub fn next(&mut self, now: Instant) -> Option<Dial> {
        let due = |target: &Target| matches!(target.state, State::Paused(at) if at <= now);
        for node in self.nodes.values_mut() {
            if let Some((&ends, target)) = node.targets.iter_mut().find(|(_, t)| due(t)) {
                self.dials_made += 1;
                target.state = State::Dialled(self.dials_made);
                return Some(Dial { ends, address: node.address, serial: self.dials_made });
            }
        }
        None
    }

    /// The link is there, and its node has so many cores. False when it is not wanted any more.
    pub fn succeeded(&mut self, dial: &Dial, core_count: u16, now: Instant) -> bool {
        if self.current(dial.ends, dial.serial).is_none() {
            return false;
        }
        self.know(dial.ends.peer.node, core_count, now);
        // Gone if that node has fewer cores than it had.
        let Some(target) = self.current(dial.ends, dial.serial) else { return false };
        target.state = State::Up(dial.serial, now);
        true
    }

    /// The link could not be made.
    pub fn failed(&mut self, dial: &Dial, now: Instant) {
        self.pause(dial.ends, dial.serial, now);
    }

    /// A link that had been made is gone.
    pub fn lost(&mut self, ends: Ends, serial: u64, now: Instant) {
        if let Some(target) = self.current(ends, serial)
            && let State::Up(_, since) = target.state
        {
            if now.since(since) >= GOOD_AFTER {
                target.failures = 0;
            }
            self.pause(ends, serial, now);
        }
    }

    /// Learns how many cores `node` has: the links to be dialled follow from it.
    fn know(&mut self, node: NodeKey, core_count: u16, now: Instant) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if known.core_count == core_count {
            return;
        }
        known.core_count = core_count;
        let is_there = |core: u16| core < core_count || core == NODE_CORE;
        known.targets.retain(|ends, _| is_there(ends.peer.core));
        for core in 0..self.core_count {
            for theirs in 0..core_count {
                let ends = Ends { core, peer: Peer { node, core: theirs } };
                let target = Target { state: State::Paused(now), failures: 0 };
                known.targets.entry(ends).or_insert(target);
            }
        }
    }

    fn current(&mut self, ends: Ends, serial: u64) -> Option<&mut Target> {
        let target = self.nodes.get_mut(&ends.peer.node)?.targets.get_mut(&ends)?;
        match target.state {
            State::Dialled(current) | State::Up(current, _) if current == serial => Some(target),
            _ => None,
        }
    }

    fn pause(&mut self, ends: Ends, serial: u64, now: Instant) {
        let chance: f64 = self.random.random();
        let Some(target) = self.current(ends, serial) else { return };
        let doubled = PAUSE_MIN.saturating_mul(1 << target.failures.min(16));
        let pause = doubled.min(PAUSE_MAX).mul_f64(0.5 + chance / 2.0);
        target.failures = target.failures.saturating_add(1);
        target.state = State::Paused(now.after(pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeKey = NodeKey(5);
    const PEER: NodeKey = NodeKey(9);
    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn address() -> SocketAddr {
        "127.0.0.2:7000".parse().unwrap()
    }

    fn dials() -> Dials {
        let mut dials = Dials::new(ME, 2, 1);
        dials.want(PEER, address(), NOW);
        dials
    }

    fn all(dials: &mut Dials, now: Instant) -> Vec<Dial> {
        std::iter::from_fn(|| dials.next(now)).collect()
    }

    fn cores(made: &[Dial]) -> Vec<(u16, u16)> {
        made.iter().map(|dial| (dial.ends.core, dial.ends.peer.core)).collect()
    }

    #[test]
    fn the_node_with_the_smaller_key_dials() {
        let mut dials = Dials::new(ME, 2, 1);
        dials.want(NodeKey(4), address(), NOW);
        dials.want(ME, address(), NOW);
        assert_eq!((dials.next(NOW), dials.next_deadline()), (None, None));
        dials.want(PEER, address(), NOW);
        assert_eq!(dials.next_deadline(), Some(NOW));
        assert!(dials.next(NOW).is_some());
    }

    #[test]
    fn the_first_link_tells_which_others_there_are() {
        let mut dials = dials();
        let first = all(&mut dials, NOW);
        assert_eq!(cores(&first), [(NODE_CORE, NODE_CORE)]);
        assert!(dials.succeeded(&first[0], 3, NOW));
        let rest = all(&mut dials, NOW);
        assert_eq!(cores(&rest), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        assert_eq!(dials.next_deadline(), None);
    }

    #[test]
    fn fewer_cores_after_a_restart_mean_fewer_links() {
        let mut dials = dials();
        let first = dials.next(NOW).unwrap();
        dials.succeeded(&first, 3, NOW);
        let rest = all(&mut dials, NOW);
        dials.lost(first.ends, first.serial, NOW);
        let later = NOW.after(PAUSE_MAX);
        let again = dials.next(later).unwrap();
        assert!(dials.succeeded(&again, 1, later));
        assert!(!dials.succeeded(&rest[2], 1, later), "no such core any more");
        assert!(dials.succeeded(&rest[0], 1, later));
    }

    #[test]
    fn pauses_grow_to_their_bound_and_are_cut_by_chance() {
        let mut dials = dials();
        let (mut now, mut pauses) = (NOW, Vec::new());
        for _ in 0..12 {
            let dial = dials.next(now).unwrap();
            dials.failed(&dial, now);
            let at = dials.next_deadline().unwrap();
            assert!(dials.next(now).is_none());
            pauses.push(at.since(now));
            now = at;
        }
        assert!(pauses[0] >= PAUSE_MIN / 2 && pauses[0] <= PAUSE_MIN, "{pauses:?}");
        assert!(pauses[11] >= PAUSE_MAX / 2 && pauses[11] <= PAUSE_MAX, "{pauses:?}");
        assert!(pauses.windows(2).any(|pair| pair[1] > pair[0] * 3 / 2), "{pauses:?}");
    }

    #[test]
    fn a_link_lost_at_once_counts_as_failed_and_a_good_one_does_not() {
        let mut dials = dials();
        let mut now = NOW;
        for _ in 0..10 {
            let dial = dials.next(now).unwrap();
            dials.succeeded(&dial, 0, now);
            dials.lost(dial.ends, dial.serial, now);
            now = dials.next_deadline().unwrap();
        }
        assert!(now.since(NOW) > Duration::from_secs(5));
        let dial = dials.next(now).unwrap();
        dials.succeeded(&dial, 0, now);
        now = now.after(GOOD_AFTER);
        dials.lost(dial.ends, dial.serial, now);
        assert!(dials.next_deadline().unwrap().since(now) <= PAUSE_MIN);
    }

    #[test]
    fn news_of_earlier_links_changes_nothing() {
        let mut dials = dials();
        let first = dials.next(NOW).unwrap();
        dials.succeeded(&first, 0, NOW);
        dials.unwant(PEER);
        assert!(!dials.succeeded(&first, 0, NOW), "not wanted");
        dials.want(PEER, address(), NOW);
        let second = dials.next(NOW).unwrap();
        assert!(dials.succeeded(&second, 0, NOW));
        dials.lost(first.ends, first.serial, NOW);
        dials.failed(&first, NOW);
        assert_eq!(dials.next_deadline(), None, "the second link is up");
    }
}
