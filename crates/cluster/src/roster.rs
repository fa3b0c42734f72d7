//! The roster: which nodes hold seats, and so points on the ring, in one epoch.
//!
//! Liveness changes by the second and every node sees it differently; where keys belong must
//! neither flicker nor differ. So a silent node keeps its seat, and seats change only by decisions
//! that the members take one after the other (see [`agreement`](super::agreement)): each makes a
//! new roster, numbered by its epoch and chained to its parent by a digest. A node that was away
//! follows the chain; one whose roster is not in the chain belongs to another history.

use core::net::SocketAddr;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::identity::{Boot, NodeKey};
use super::version::Tie;
use super::wire::{Malformed, Reader, Writer};
use ringlane_ring::{NODE_ID_BYTES_MAX, NODES_MAX, Ring, RingError, RingNode, RingParameters};

/// A member's place in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The node's id.
    pub id: Arc<str>,
    /// The id's key.
    pub key: NodeKey,
    /// The life of the process that holds the seat. Another boot is another replica.
    pub boot: Boot,
    /// Its weight on the ring.
    pub weight: u32,
    /// Its slot, which no other seat of this roster has: the tie-break of its versions.
    pub slot: u16,
    /// Where it takes gossip.
    pub gossip: SocketAddr,
    /// Where it takes connections of other nodes.
    pub link: SocketAddr,
}

/// Somebody's wish to change the roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Seat this node, under this boot, weight and address; the slot is not looked at.
    Seat(Seat),
    /// Take the seat from this node, if it still has this boot.
    Unseat {
        /// Whose.
        key: NodeKey,
        /// In which life.
        boot: Boot,
    },
}

/// Who is seated in one epoch. An immutable value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// Counts the decisions since the cluster was founded.
    pub epoch: u64,
    /// Digest of the roster before; a random number for the first.
    pub parent: u64,
    /// The slot to try first for the next seat.
    next_slot: u16,
    /// Sorted by id.
    seats: Vec<Seat>,
    digest: u64,
}

impl Roster {
    /// The first roster of a new cluster, with this one node.
    pub fn found(founder: Seat, random: u64) -> Self {
        let seats = vec![Seat { slot: 0, ..founder }];
        Self { epoch: 1, parent: random, next_slot: 1, seats, digest: 0 }.digested()
    }

    /// The seats, sorted by id.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// A number that differs between rosters that differ in anything, their history included.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The seat of the node with this key.
    pub fn seat(&self, key: NodeKey) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.key == key)
    }

    /// Whether this very life of the node is seated.
    pub fn has(&self, key: NodeKey, boot: Boot) -> bool {
        self.seat(key).is_some_and(|seat| seat.boot == boot)
    }

    /// Whether nothing is left to do about `change`: it is in effect, or overtaken by a later boot,
    /// or impossible.
    pub fn satisfies(&self, change: &Change) -> bool {
        match change {
            Change::Seat(wanted) => match self.seat(wanted.key) {
                Some(seat) if seat.id != wanted.id => true,
                Some(seat) => {
                    seat.boot > wanted.boot || *seat == Seat { slot: seat.slot, ..wanted.clone() }
                }
                None => self.seats.len() >= NODES_MAX,
            },
            Change::Unseat { key, boot } => !self.has(*key, *boot) || self.seats.len() == 1,
        }
    }

    /// The next roster, with `changes` made; `None` when they change nothing.
    pub fn with<'c>(&self, changes: impl IntoIterator<Item = &'c Change>) -> Option<Self> {
        let mut next = self.clone();
        for change in changes {
            if next.satisfies(change) {
                continue;
            }
            match change {
                Change::Seat(wanted) => {
                    let old = next.seats.iter().position(|seat| seat.key == wanted.key);
                    let same_life = old.map(|at| next.seats.remove(at));
                    let slot = match same_life {
                        Some(seat) if seat.boot == wanted.boot => seat.slot,
                        _ => next.take_slot(),
                    };
                    let place = next.seats.partition_point(|seat| seat.id < wanted.id);
                    next.seats.insert(place, Seat { slot, ..wanted.clone() });
                }
                Change::Unseat { key, .. } => next.seats.retain(|seat| seat.key != *key),
            }
        }
        if next.seats == self.seats {
            return None;
        }
        next.epoch = self.epoch + 1;
        next.parent = self.digest;
        Some(next.digested())
    }

    /// The ring on which the seated nodes have their points.
    pub fn ring(&self, parameters: RingParameters) -> Result<Ring, RingError> {
        let node = |seat: &Seat| RingNode { id: (&*seat.id).into(), weight: seat.weight };
        Ring::new(self.epoch, parameters, self.seats.iter().map(node))
    }

    /// Which of two histories of one cluster stays when they meet: the longer, then the larger.
    /// Total; the nodes of the other one join anew.
    pub fn outlasts(&self, other: &Roster) -> bool {
        let rank = |roster: &Roster| (roster.epoch, roster.seats.len(), roster.digest);
        rank(self) > rank(other)
    }

    /// A slot that no seat has, the least recently given one.
    fn take_slot(&mut self) -> u16 {
        let slots = (0..Tie::SLOTS).map(|step| (self.next_slot + step) % Tie::SLOTS);
        let slot = slots
            .into_iter()
            .find(|slot| self.seats.iter().all(|seat| seat.slot != *slot))
            .expect("no more seats than slots");
        self.next_slot = (slot + 1) % Tie::SLOTS;
        slot
    }

    fn digested(mut self) -> Self {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        self.digest = xxh3_64(&bytes);
        self
    }

    /// Appends the roster to a message.
    pub fn write(&self, out: &mut impl Writer) {
        out.put_u64(self.epoch);
        out.put_u64(self.parent);
        out.put_u16(self.next_slot);
        out.put_u16(self.seats.len() as u16);
        self.seats.iter().for_each(|seat| seat.write(out));
    }

    /// Reads one from a message; refuses what could not have been decided.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (epoch, parent) = (reader.u64()?, reader.u64()?);
        let (next_slot, count) = (reader.u16()?, reader.u16()?);
        if next_slot >= Tie::SLOTS || !(1..=NODES_MAX).contains(&(count as usize)) {
            return Err(Malformed);
        }
        let seats = (0..count).map(|_| Seat::read(reader)).collect::<Result<Vec<_>, _>>()?;
        let sorted = seats.windows(2).all(|pair| pair[0].id < pair[1].id);
        let mut slots: Vec<u16> = seats.iter().map(|seat| seat.slot).collect();
        let mut keys: Vec<NodeKey> = seats.iter().map(|seat| seat.key).collect();
        slots.sort_unstable();
        keys.sort_unstable();
        let distinct = slots.windows(2).all(|pair| pair[0] < pair[1])
            && keys.windows(2).all(|pair| pair[0] < pair[1]);
        if !sorted || !distinct {
            return Err(Malformed);
        }
        Ok(Self { epoch, parent, next_slot, seats, digest: 0 }.digested())
    }
}

impl Seat {
    fn write(&self, out: &mut impl Writer) {
        out.put_short(self.id.as_bytes());
        out.put_u64(self.boot.0);
        out.put_u16(self.weight as u16);
        out.put_u16(self.slot);
        out.put_address(self.gossip);
        out.put_address(self.link);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let id = reader.text()?;
        let (boot, weight, slot) = (Boot(reader.u64()?), reader.u16()? as u32, reader.u16()?);
        let (gossip, link) = (reader.address()?, reader.address()?);
        let weight_valid = (1..=ringlane_ring::WEIGHT_MAX).contains(&weight);
        if id.len() > NODE_ID_BYTES_MAX || !weight_valid || slot >= Tie::SLOTS {
            return Err(Malformed);
        }
        Ok(Self { id: id.into(), key: NodeKey::of(id), boot, weight, slot, gossip, link })
    }
}

impl Change {
    /// Appends the change to a message.
    pub fn write(&self, out: &mut impl Writer) {
        match self {
            Change::Seat(seat) => {
                out.put_u8(1);
                seat.write(out);
            }
            Change::Unseat { key, boot } => {
                out.put_u8(2);
                out.put_u64(key.0);
                out.put_u64(boot.0);
            }
        }
    }

    /// Reads one from a message.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.u8()? {
            1 => Ok(Change::Seat(Seat::read(reader)?)),
            2 => Ok(Change::Unseat { key: NodeKey(reader.u64()?), boot: Boot(reader.u64()?) }),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn seat(id: &str, boot: u64) -> Seat {
        let address = SocketAddr::new([127, 0, 0, 1].into(), 7946);
        Seat {
            id: id.into(),
            key: NodeKey::of(id),
            boot: Boot(boot),
            weight: 1,
            slot: 0,
            gossip: address,
            link: address,
        }
    }

    fn unseat(id: &str, boot: u64) -> Change {
        Change::Unseat { key: NodeKey::of(id), boot: Boot(boot) }
    }

    fn ids(roster: &Roster) -> Vec<&str> {
        roster.seats().iter().map(|seat| &*seat.id).collect()
    }

    #[test]
    fn each_decision_is_chained_to_the_one_before() {
        let first = Roster::found(seat("b", 1), 42);
        let second = first.with(&[Change::Seat(seat("a", 1))]).unwrap();
        assert_eq!((second.epoch, second.parent), (2, first.digest()));
        assert_eq!(ids(&second), ["a", "b"]);
        let other = Roster::found(seat("b", 1), 43);
        assert_ne!(other.digest(), first.digest(), "two foundings are two histories");
    }

    #[test]
    fn a_restarted_node_gets_another_slot_and_a_new_weight_keeps_it() {
        let roster = Roster::found(seat("a", 1), 0).with(&[Change::Seat(seat("b", 1))]).unwrap();
        let slot = |roster: &Roster| roster.seat(NodeKey::of("b")).unwrap().slot;
        let restarted = roster.with(&[Change::Seat(seat("b", 2))]).unwrap();
        assert_ne!(slot(&restarted), slot(&roster));
        let heavier = Seat { weight: 3, ..seat("b", 1) };
        assert_eq!(slot(&roster.with(&[Change::Seat(heavier)]).unwrap()), slot(&roster));
    }

    #[test]
    fn what_is_in_effect_or_overtaken_changes_nothing() {
        let roster = Roster::found(seat("a", 5), 0).with(&[Change::Seat(seat("b", 5))]).unwrap();
        let earlier_life = Change::Seat(seat("b", 4));
        for change in [Change::Seat(seat("b", 5)), earlier_life, unseat("b", 4), unseat("c", 1)] {
            assert!(roster.satisfies(&change));
            assert_eq!(roster.with(&[change]), None);
        }
    }

    #[test]
    fn the_last_seat_cannot_be_taken() {
        let roster = Roster::found(seat("a", 1), 0);
        assert_eq!(roster.with(&[unseat("a", 1)]), None);
    }

    #[test]
    fn slots_stay_distinct_however_often_nodes_come_and_go() {
        let mut roster = Roster::found(seat("a", 1), 0);
        for boot in 1..3000u64 {
            let id = format!("n{}", boot % 7);
            roster = roster.with(&[Change::Seat(seat(&id, boot))]).unwrap();
            let mut slots: Vec<u16> = roster.seats().iter().map(|seat| seat.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), roster.seats().len());
        }
    }

    #[test]
    fn a_roster_survives_the_wire_with_its_digest() {
        let roster = Roster::found(seat("a", 1), 7)
            .with(&[Change::Seat(Seat { weight: 9, ..seat("größe", 3) })])
            .unwrap();
        let mut bytes = Vec::new();
        roster.write(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Roster::read(&mut reader), Ok(roster));
        assert_eq!(reader.end(), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes: Vec<u8>) {
            let _ = Roster::read(&mut Reader::new(&bytes));
            let _ = Change::read(&mut Reader::new(&bytes));
        }
    }
}
