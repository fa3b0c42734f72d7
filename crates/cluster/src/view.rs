//! A roster with its ring, and the ranges that this node is still copying.
//!
//! When a roster assigns a node ranges that others held before, it is a replica of them at once,
//! but an incomplete one. Its answers would break the guarantee that every read quorum meets every
//! acknowledged write. So until a [`RangeTransfer`] of the range is done, each key is first
//! requested from its holders under the previous roster: from enough of them that every write
//! acknowledged there is seen, and that no quorum of the old set can act independently of the new
//! one (a holder that answers has left the old roster for good). Then the node counts as a full
//! replica for that key.

use std::sync::Arc;

use super::identity::{Boot, NodeKey};
use super::quorum::Replication;
use super::roster::{Roster, RosterMember};
use ringlane_ring::{NodeIndex, Point, REPLICAS_MAX, Replicas, Ring, RingError, RingParameters};

/// A roster and the ring of its members. A [`NodeIndex`] of the ring is a position among the
/// members.
#[derive(Debug)]
pub struct View {
    roster: Arc<Roster>,
    ring: Ring,
}

impl View {
    /// The view of `roster`.
    pub fn new(roster: Arc<Roster>, parameters: RingParameters) -> Result<Self, RingError> {
        let ring = roster.ring(parameters)?;
        Ok(Self { roster, ring })
    }

    /// The roster.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The stamp of requests under this view.
    #[inline]
    pub fn stamp(&self) -> u64 {
        self.roster.digest()
    }

    /// Its epoch.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.roster.epoch
    }

    /// The member at a position of the ring.
    #[inline]
    pub fn member(&self, node: NodeIndex) -> &RosterMember {
        &self.roster.members()[node.0 as usize]
    }

    /// The position of this boot of a node.
    pub fn index_of(&self, key: NodeKey, boot: Boot) -> Option<NodeIndex> {
        let members = self.roster.members();
        let at = members.iter().position(|member| member.key == key && member.boot == boot)?;
        Some(NodeIndex(at as u16))
    }

    /// Whether this boot of a node is among the replicas of `point`.
    pub fn holds(&self, key: NodeKey, boot: Boot, point: Point) -> bool {
        self.index_of(key, boot).is_some_and(|node| self.ring.replicas(point).contains(&node))
    }
}

/// Progress of a transfer from one of the previous holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Not everything has arrived.
    Missing,
    /// Everything has arrived.
    Copied,
    /// It will never answer: permanently dead.
    Gone,
}

/// The ranges assigned to this node by one roster, and how much of them has arrived.
#[derive(Clone, Debug)]
pub struct RangeTransfer {
    /// The previous view.
    pub before: Arc<View>,
    /// The view that assigned the ranges.
    pub after: Arc<View>,
    /// Progress, by position among the previous members.
    pub sources: Vec<Source>,
}

/// The previous holders of a key's point.
#[derive(Clone, Copy, Debug)]
pub struct Holders {
    /// Their positions in the previous view.
    pub nodes: Replicas,
    /// How many of them must have been copied for the point to be complete.
    pub needed: usize,
    /// How many have.
    pub copied: usize,
}

impl RangeTransfer {
    /// The epoch of the roster that assigned the ranges.
    pub fn epoch(&self) -> u64 {
        self.after.epoch()
    }

    /// Whether this roster assigned `point` to this node.
    pub fn concerns(&self, me: NodeKey, boot: Boot, point: Point) -> bool {
        self.after.holds(me, boot, point) && !self.before.holds(me, boot, point)
    }

    /// The previous holders of `point`.
    pub fn holders(&self, point: Point, replication: Replication) -> Holders {
        let nodes = self.before.ring().replicas(point);
        let count = |state| {
            let is = |node: &&NodeIndex| self.sources[node.0 as usize] == state;
            nodes.iter().filter(is).count()
        };
        let (copied, gone) = (count(Source::Copied), count(Source::Gone));
        let wanted = if replication.is_strict() {
            replication.copies_needed(nodes.len()).max(1)
        } else {
            nodes.len()
        };
        // Permanently lost holders cannot be waited for: more was lost than the guarantee covers.
        let needed = wanted.min(nodes.len() - gone);
        Holders { nodes, needed, copied }
    }

    /// Whether it is complete on the whole ring.
    pub fn is_complete(&self, me: NodeKey, boot: Boot, replication: Replication) -> bool {
        self.points().all(|point| {
            let holders = self.holders(point, replication);
            holders.copied >= holders.needed || !self.concerns(me, boot, point)
        })
    }

    /// One point of every range in which neither list of replicas changes.
    fn points(&self) -> impl Iterator<Item = Point> {
        [&self.before, &self.after]
            .into_iter()
            .flat_map(|view| (0..view.ring().point_count()).map(|point| view.ring().point(point).0))
    }

    /// The share of the ring assigned to this node, whether or not it has arrived.
    pub fn share(&self, me: NodeKey, boot: Boot) -> f64 {
        let mut points: Vec<Point> = self.points().collect();
        points.sort_unstable();
        let Some(last) = points.last() else { return 0.0 };
        let mut from = last.0 as i64 - (1 << 32);
        let mut gained = 0;
        for point in points {
            if self.concerns(me, boot, point) {
                gained += point.0 as i64 - from;
            }
            from = point.0 as i64;
        }
        gained as f64 / (1u64 << 32) as f64
    }
}

/// The placement of keys as known to one core: an immutable value, replaced as a whole.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The view in effect.
    pub view: Arc<View>,
    /// Incomplete transfers, oldest first.
    pub transfers: Vec<Arc<RangeTransfer>>,
}

impl Placement {
    /// The oldest transfer after `epoch` that `point` waits for; `None` if this node is a full
    /// replica of it, or not a replica.
    #[inline]
    pub fn pending_transfer(
        &self,
        me: NodeKey,
        boot: Boot,
        point: Point,
        after_epoch: u64,
        replication: Replication,
    ) -> Option<&Arc<RangeTransfer>> {
        if self.transfers.is_empty() {
            return None;
        }
        self.transfers.iter().find(|transfer| {
            let holders = transfer.holders(point, replication);
            transfer.epoch() > after_epoch
                && holders.copied < holders.needed
                && transfer.concerns(me, boot, point)
        })
    }
}

const _: () = assert!(REPLICAS_MAX <= 8, "per-replica states are arrays of eight");

#[cfg(test)]
mod tests {
    use super::super::roster::Change;
    use super::super::roster::tests::member;
    use super::*;

    const THREE: RingParameters =
        RingParameters { hash: ringlane_ring::RingHash::Md5, points_per_weight: 20, replicas: 3 };

    fn views(first: &[&str], then: &str, boot: u64) -> (Arc<View>, Arc<View>) {
        let mut roster = Roster::initial(member(first[0], 1), 0);
        for id in &first[1..] {
            roster = roster.with(&[Change::Add(member(id, 1))]).unwrap();
        }
        let next = roster.with(&[Change::Add(member(then, boot))]).unwrap();
        let view = |roster| Arc::new(View::new(Arc::new(roster), THREE).unwrap());
        (view(roster), view(next))
    }

    fn quorums(write: u8, read: u8) -> Replication {
        Replication::new(3, write, read).unwrap()
    }

    #[test]
    fn a_newcomer_lacks_what_it_gained_until_enough_holders_were_copied() {
        let (before, after) = views(&["a", "b", "c", "e"], "d", 1);
        let (me, boot) = (NodeKey::of("d"), Boot(1));
        let mut transfer = RangeTransfer { before, after, sources: vec![Source::Missing; 4] };
        let gained: Vec<Point> =
            transfer.points().filter(|p| transfer.concerns(me, boot, *p)).collect();
        assert!(!gained.is_empty());
        let share = transfer.share(me, boot);
        assert!((0.45..0.75).contains(&share), "three fifths of the circle, not {share}");
        assert!(!transfer.is_complete(me, boot, quorums(2, 2)));
        let point = gained[0];
        let holders = transfer.holders(point, quorums(2, 2));
        assert_eq!((holders.needed, holders.copied), (2, 0));
        transfer.sources[holders.nodes[0].0 as usize] = Source::Copied;
        transfer.sources[holders.nodes[2].0 as usize] = Source::Copied;
        let placement =
            Placement { view: transfer.after.clone(), transfers: vec![Arc::new(transfer)] };
        assert!(placement.pending_transfer(me, boot, point, 0, quorums(2, 2)).is_none());
        assert!(placement.pending_transfer(me, boot, point, 0, quorums(1, 3)).is_some());
    }

    #[test]
    fn a_restarted_node_lacks_everything_it_held() {
        let (before, after) = views(&["a", "b", "c"], "b", 2);
        let transfer = RangeTransfer { before, after, sources: vec![Source::Missing; 3] };
        assert!(transfer.points().all(|point| transfer.concerns(NodeKey::of("b"), Boot(2), point)));
        assert!(transfer.points().all(|point| !transfer.concerns(
            NodeKey::of("a"),
            Boot(1),
            point
        )));
    }

    #[test]
    fn holders_that_are_gone_for_good_are_not_waited_for() {
        let (before, after) = views(&["a", "b", "c"], "b", 2);
        let mut transfer = RangeTransfer { before, after, sources: vec![Source::Missing; 3] };
        let (me, boot) = (NodeKey::of("b"), Boot(2));
        // Our own earlier boot is gone; both others are still needed for two of three.
        transfer.sources[1] = Source::Gone;
        assert_eq!(transfer.holders(Point(0), quorums(2, 2)).needed, 2);
        transfer.sources[2] = Source::Gone;
        assert_eq!(transfer.holders(Point(0), quorums(2, 2)).needed, 1);
        assert!(!transfer.is_complete(me, boot, quorums(2, 2)));
        transfer.sources[0] = Source::Copied;
        assert!(transfer.is_complete(me, boot, quorums(2, 2)));
        transfer.sources[0] = Source::Gone;
        assert!(transfer.is_complete(me, boot, quorums(2, 2)), "nobody is left to wait for");
    }
}
