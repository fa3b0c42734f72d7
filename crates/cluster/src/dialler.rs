//! Which links this node dials, and when it retries.
//!
//! The control executors link first: that link tells how many cores the other node has, and
//! thereby which links between cores there are. A failed dial is repeated after a pause that
//! doubles up to [`BACKOFF_MAX`], shortened at random so that nodes that lost the same peer do not
//! return in step. A link that was lost soon after it was established counts as failed, otherwise
//! two nodes that disagree would dial without pause.
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

/// Shortest pause after a failed dial, before it is shortened at random.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A link that lasted this long counts as successful.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// One end to dial from and one to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId {
    /// The core here, or [`NODE_CORE`].
    pub core: u16,
    /// The core there, or [`NODE_CORE`].
    pub peer: Peer,
}

/// A connection to establish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Its two ends.
    pub link: LinkId,
    /// Where the other node listens.
    pub address: SocketAddr,
    /// Tells this link from earlier ones between the same two. Never 0.
    pub serial: u64,
}

/// The links that this node is to dial.
#[derive(Debug)]
pub struct Dialler {
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
    targets: BTreeMap<LinkId, Target>,
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
    BackingOff(Instant),
    /// Being dialled.
    Dialled(u64),
    /// Linked since then.
    Up(u64, Instant),
}

impl Dialler {
    /// The dialler of the node `me` with so many cores. `seed` determines every random choice.
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
            let link = LinkId { core: NODE_CORE, peer: Peer { node, core: NODE_CORE } };
            let target = Target { state: State::BackingOff(now), failures: 0 };
            Node { address, core_count: 0, targets: BTreeMap::from([(link, target)]) }
        });
        wanted.address = address;
    }

    /// Links with `node` are no longer wanted. Closing existing ones is up to the caller.
    pub fn unwant(&mut self, node: NodeKey) {
        self.nodes.remove(&node);
    }

    /// When [`Dialler::next`] has something.
    pub fn next_deadline(&self) -> Option<Instant> {
        let targets = self.nodes.values().flat_map(|node| node.targets.values());
        let due = targets.filter_map(|target| match target.state {
            State::BackingOff(at) => Some(at),
            _ => None,
        });
        due.min()
    }

    /// The next connection to establish, if one is due. Its outcome must be reported.
    pub fn next(&mut self, now: Instant) -> Option<Dial> {
        let due = |target: &Target| matches!(target.state, State::BackingOff(at) if at <= now);
        for node in self.nodes.values_mut() {
            if let Some((&link, target)) = node.targets.iter_mut().find(|(_, t)| due(t)) {
                self.dials_made += 1;
                target.state = State::Dialled(self.dials_made);
                return Some(Dial { link, address: node.address, serial: self.dials_made });
            }
        }
        None
    }

    /// The link is established, and its node has so many cores. False if it is no longer wanted.
    pub fn succeeded(&mut self, dial: &Dial, core_count: u16, now: Instant) -> bool {
        if self.current(dial.link, dial.serial).is_none() {
            return false;
        }
        self.set_core_count(dial.link.peer.node, core_count, now);
        // Absent if that node has fewer cores than before.
        let Some(target) = self.current(dial.link, dial.serial) else { return false };
        target.state = State::Up(dial.serial, now);
        true
    }

    /// The link could not be established.
    pub fn failed(&mut self, dial: &Dial, now: Instant) {
        self.back_off(dial.link, dial.serial, now);
    }

    /// An established link is gone.
    pub fn lost(&mut self, link: LinkId, serial: u64, now: Instant) {
        if let Some(target) = self.current(link, serial)
            && let State::Up(_, since) = target.state
        {
            if now.since(since) >= STABLE_AFTER {
                target.failures = 0;
            }
            self.back_off(link, serial, now);
        }
    }

    /// Records how many cores `node` has, which determines the links to dial.
    fn set_core_count(&mut self, node: NodeKey, core_count: u16, now: Instant) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if known.core_count == core_count {
            return;
        }
        known.core_count = core_count;
        let is_there = |core: u16| core < core_count || core == NODE_CORE;
        known.targets.retain(|link, _| is_there(link.peer.core));
        for core in 0..self.core_count {
            for theirs in 0..core_count {
                let link = LinkId { core, peer: Peer { node, core: theirs } };
                let target = Target { state: State::BackingOff(now), failures: 0 };
                known.targets.entry(link).or_insert(target);
            }
        }
    }

    fn current(&mut self, link: LinkId, serial: u64) -> Option<&mut Target> {
        let target = self.nodes.get_mut(&link.peer.node)?.targets.get_mut(&link)?;
        match target.state {
            State::Dialled(current) | State::Up(current, _) if current == serial => Some(target),
            _ => None,
        }
    }

    fn back_off(&mut self, link: LinkId, serial: u64, now: Instant) {
        let chance: f64 = self.random.random();
        let Some(target) = self.current(link, serial) else { return };
        let doubled = BACKOFF_MIN.saturating_mul(1 << target.failures.min(16));
        let pause = doubled.min(BACKOFF_MAX).mul_f64(0.5 + chance / 2.0);
        target.failures = target.failures.saturating_add(1);
        target.state = State::BackingOff(now.after(pause));
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

    fn dialler() -> Dialler {
        let mut dialler = Dialler::new(ME, 2, 1);
        dialler.want(PEER, address(), NOW);
        dialler
    }

    fn all(dialler: &mut Dialler, now: Instant) -> Vec<Dial> {
        std::iter::from_fn(|| dialler.next(now)).collect()
    }

    fn cores(made: &[Dial]) -> Vec<(u16, u16)> {
        made.iter().map(|dial| (dial.link.core, dial.link.peer.core)).collect()
    }

    #[test]
    fn the_node_with_the_smaller_key_dials() {
        let mut dialler = Dialler::new(ME, 2, 1);
        dialler.want(NodeKey(4), address(), NOW);
        dialler.want(ME, address(), NOW);
        assert_eq!((dialler.next(NOW), dialler.next_deadline()), (None, None));
        dialler.want(PEER, address(), NOW);
        assert_eq!(dialler.next_deadline(), Some(NOW));
        assert!(dialler.next(NOW).is_some());
    }

    #[test]
    fn the_first_link_tells_which_others_there_are() {
        let mut dialler = dialler();
        let first = all(&mut dialler, NOW);
        assert_eq!(cores(&first), [(NODE_CORE, NODE_CORE)]);
        assert!(dialler.succeeded(&first[0], 3, NOW));
        let rest = all(&mut dialler, NOW);
        assert_eq!(cores(&rest), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        assert_eq!(dialler.next_deadline(), None);
    }

    #[test]
    fn fewer_cores_after_a_restart_mean_fewer_links() {
        let mut dialler = dialler();
        let first = dialler.next(NOW).unwrap();
        dialler.succeeded(&first, 3, NOW);
        let rest = all(&mut dialler, NOW);
        dialler.lost(first.link, first.serial, NOW);
        let later = NOW.after(BACKOFF_MAX);
        let again = dialler.next(later).unwrap();
        assert!(dialler.succeeded(&again, 1, later));
        assert!(!dialler.succeeded(&rest[2], 1, later), "no such core any more");
        assert!(dialler.succeeded(&rest[0], 1, later));
    }

    #[test]
    fn pauses_grow_to_their_bound_and_are_cut_by_chance() {
        let mut dialler = dialler();
        let (mut now, mut pauses) = (NOW, Vec::new());
        for _ in 0..12 {
            let dial = dialler.next(now).unwrap();
            dialler.failed(&dial, now);
            let at = dialler.next_deadline().unwrap();
            assert!(dialler.next(now).is_none());
            pauses.push(at.since(now));
            now = at;
        }
        assert!(pauses[0] >= BACKOFF_MIN / 2 && pauses[0] <= BACKOFF_MIN, "{pauses:?}");
        assert!(pauses[11] >= BACKOFF_MAX / 2 && pauses[11] <= BACKOFF_MAX, "{pauses:?}");
        assert!(pauses.windows(2).any(|pair| pair[1] > pair[0] * 3 / 2), "{pauses:?}");
    }

    #[test]
    fn a_link_lost_at_once_counts_as_failed_and_a_good_one_does_not() {
        let mut dialler = dialler();
        let mut now = NOW;
        for _ in 0..10 {
            let dial = dialler.next(now).unwrap();
            dialler.succeeded(&dial, 0, now);
            dialler.lost(dial.link, dial.serial, now);
            now = dialler.next_deadline().unwrap();
        }
        assert!(now.since(NOW) > Duration::from_secs(5));
        let dial = dialler.next(now).unwrap();
        dialler.succeeded(&dial, 0, now);
        now = now.after(STABLE_AFTER);
        dialler.lost(dial.link, dial.serial, now);
        assert!(dialler.next_deadline().unwrap().since(now) <= BACKOFF_MIN);
    }

    #[test]
    fn news_of_earlier_links_changes_nothing() {
        let mut dialler = dialler();
        let first = dialler.next(NOW).unwrap();
        dialler.succeeded(&first, 0, NOW);
        dialler.unwant(PEER);
        assert!(!dialler.succeeded(&first, 0, NOW), "not wanted");
        dialler.want(PEER, address(), NOW);
        let second = dialler.next(NOW).unwrap();
        assert!(dialler.succeeded(&second, 0, NOW));
        dialler.lost(first.link, first.serial, NOW);
        dialler.failed(&first, NOW);
        assert_eq!(dialler.next_deadline(), None, "the second link is up");
    }
}
