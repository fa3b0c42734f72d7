//! The roster: which nodes are members, and so have points on the ring, in one epoch.
//!
//! Liveness changes by the second and every node sees it differently; the placement of keys must
//! neither flicker nor differ. So an unresponsive node stays a member, and membership changes only
//! by decisions that the members take one after the other (see
//! [`roster_consensus`](super::roster_consensus)): each creates a new roster, numbered by its epoch
//! and chained to its parent by a digest. A node that was absent follows the chain; one whose
//! roster is not in the chain belongs to another history.

use core::net::SocketAddr;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::identity::{Boot, NodeKey};
use super::version::TieBreaker;
use ringlane_ring::{NODE_ID_BYTES_MAX, NODES_MAX, Ring, RingError, RingNode, RingParameters};
use ringlane_types::wire::{CodecError, Reader, Writer};

/// A node in the roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterMember {
    /// The node's id.
    pub id: Arc<str>,
    /// The id's key.
    pub key: NodeKey,
    /// Its boot, one start of its process. Another boot is another replica.
    pub boot: Boot,
    /// Its weight on the ring.
    pub weight: u32,
    /// Its slot, unique in this roster: the tie-break of its versions.
    pub slot: u16,
    /// Its gossip address.
    pub gossip: SocketAddr,
    /// Its address for connections of other nodes.
    pub link: SocketAddr,
}

/// A requested change of the roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add this node with this boot, weight and address; the slot is ignored.
    Add(RosterMember),
    /// Remove this node, if it still has this boot.
    Remove {
        /// The node.
        key: NodeKey,
        /// Which start of its process.
        boot: Boot,
    },
}

/// The members in one epoch. An immutable value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// Number of decisions since the cluster was founded.
    pub epoch: u64,
    /// Digest of the previous roster; a random number for the first.
    pub parent: u64,
    /// The first slot to try for the next member.
    next_slot: u16,
    /// Sorted by id.
    members: Vec<RosterMember>,
    digest: u64,
}

impl Roster {
    /// The first roster of a new cluster, with this one node.
    pub fn initial(founder: RosterMember, random: u64) -> Self {
        let members = vec![RosterMember { slot: 0, ..founder }];
        Self { epoch: 1, parent: random, next_slot: 1, members, digest: 0 }.with_digest()
    }

    /// The members, sorted by id.
    pub fn members(&self) -> &[RosterMember] {
        &self.members
    }

    /// A number that differs between rosters that differ in anything, including their history.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The member of the node with this key.
    pub fn member(&self, key: NodeKey) -> Option<&RosterMember> {
        self.members.iter().find(|member| member.key == key)
    }

    /// Whether this boot of the node is a member.
    pub fn has(&self, key: NodeKey, boot: Boot) -> bool {
        self.member(key).is_some_and(|member| member.boot == boot)
    }

    /// Whether `change` is settled: in effect, overtaken by a later boot, or impossible.
    pub fn satisfies(&self, change: &Change) -> bool {
        match change {
            Change::Add(wanted) => match self.member(wanted.key) {
                Some(member) if member.id != wanted.id => true,
                Some(member) => {
                    member.boot > wanted.boot
                        || *member == RosterMember { slot: member.slot, ..wanted.clone() }
                }
                None => self.members.len() >= NODES_MAX,
            },
            Change::Remove { key, boot } => !self.has(*key, *boot) || self.members.len() == 1,
        }
    }

    /// The next roster, with `changes` applied; `None` if they change nothing.
    pub fn with<'c>(&self, changes: impl IntoIterator<Item = &'c Change>) -> Option<Self> {
        let mut next = self.clone();
        for change in changes {
            if next.satisfies(change) {
                continue;
            }
            match change {
                Change::Add(wanted) => {
                    let old = next.members.iter().position(|member| member.key == wanted.key);
                    let former = old.map(|at| next.members.remove(at));
                    let slot = match former {
                        Some(member) if member.boot == wanted.boot => member.slot,
                        _ => next.allocate_slot(),
                    };
                    let place = next.members.partition_point(|member| member.id < wanted.id);
                    next.members.insert(place, RosterMember { slot, ..wanted.clone() });
                }
                Change::Remove { key, .. } => next.members.retain(|member| member.key != *key),
            }
        }
        if next.members == self.members {
            return None;
        }
        next.epoch = self.epoch + 1;
        next.parent = self.digest;
        Some(next.with_digest())
    }

    /// The ring on which the members have their points.
    pub fn ring(&self, parameters: RingParameters) -> Result<Ring, RingError> {
        let node =
            |member: &RosterMember| RingNode { id: (&*member.id).into(), weight: member.weight };
        Ring::new(self.epoch, parameters, self.members.iter().map(node))
    }

    /// Which of two histories of one cluster wins when they meet: the longer, then the larger.
    /// Total; the nodes of the other one rejoin.
    pub fn supersedes(&self, other: &Roster) -> bool {
        let rank = |roster: &Roster| (roster.epoch, roster.members.len(), roster.digest);
        rank(self) > rank(other)
    }

    /// The least recently used free slot.
    fn allocate_slot(&mut self) -> u16 {
        let slots = (0..TieBreaker::SLOTS).map(|step| (self.next_slot + step) % TieBreaker::SLOTS);
        let slot = slots
            .into_iter()
            .find(|slot| self.members.iter().all(|member| member.slot != *slot))
            .expect("no more members than slots");
        self.next_slot = (slot + 1) % TieBreaker::SLOTS;
        slot
    }

    fn with_digest(mut self) -> Self {
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
        out.put_u16(self.members.len() as u16);
        self.members.iter().for_each(|member| member.write(out));
    }

    /// Decodes one from a message; rejects rosters that cannot have been decided.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let (epoch, parent) = (reader.u64()?, reader.u64()?);
        let (next_slot, count) = (reader.u16()?, reader.u16()?);
        if next_slot >= TieBreaker::SLOTS || !(1..=NODES_MAX).contains(&(count as usize)) {
            return Err(CodecError::Unknown);
        }
        let members =
            (0..count).map(|_| RosterMember::read(reader)).collect::<Result<Vec<_>, _>>()?;
        let sorted = members.windows(2).all(|pair| pair[0].id < pair[1].id);
        let mut slots: Vec<u16> = members.iter().map(|member| member.slot).collect();
        let mut keys: Vec<NodeKey> = members.iter().map(|member| member.key).collect();
        slots.sort_unstable();
        keys.sort_unstable();
        let distinct = slots.windows(2).all(|pair| pair[0] < pair[1])
            && keys.windows(2).all(|pair| pair[0] < pair[1]);
        if !sorted || !distinct {
            return Err(CodecError::Unknown);
        }
        Ok(Self { epoch, parent, next_slot, members, digest: 0 }.with_digest())
    }
}

impl RosterMember {
    fn write(&self, out: &mut impl Writer) {
        out.put_short(self.id.as_bytes());
        out.put_u64(self.boot.0);
        out.put_u16(self.weight as u16);
        out.put_u16(self.slot);
        out.put_address(self.gossip);
        out.put_address(self.link);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let id = reader.text()?;
        let (boot, weight, slot) = (Boot(reader.u64()?), reader.u16()? as u32, reader.u16()?);
        let (gossip, link) = (reader.address()?, reader.address()?);
        let weight_valid = (1..=ringlane_ring::WEIGHT_MAX).contains(&weight);
        if id.len() > NODE_ID_BYTES_MAX || !weight_valid || slot >= TieBreaker::SLOTS {
            return Err(CodecError::Unknown);
        }
        Ok(Self { id: id.into(), key: NodeKey::of(id), boot, weight, slot, gossip, link })
    }
}

impl Change {
    /// Appends the change to a message.
    pub fn write(&self, out: &mut impl Writer) {
        match self {
            Change::Add(member) => {
                out.put_u8(1);
                member.write(out);
            }
            Change::Remove { key, boot } => {
                out.put_u8(2);
                out.put_u64(key.0);
                out.put_u64(boot.0);
            }
        }
    }

    /// Reads one from a message.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match reader.u8()? {
            1 => Ok(Change::Add(RosterMember::read(reader)?)),
            2 => Ok(Change::Remove { key: NodeKey(reader.u64()?), boot: Boot(reader.u64()?) }),
            _ => Err(CodecError::Unknown),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn member(id: &str, boot: u64) -> RosterMember {
        let address = SocketAddr::new([127, 0, 0, 1].into(), 7946);
        RosterMember {
            id: id.into(),
            key: NodeKey::of(id),
            boot: Boot(boot),
            weight: 1,
            slot: 0,
            gossip: address,
            link: address,
        }
    }

    fn removal(id: &str, boot: u64) -> Change {
        Change::Remove { key: NodeKey::of(id), boot: Boot(boot) }
    }

    fn ids(roster: &Roster) -> Vec<&str> {
        roster.members().iter().map(|member| &*member.id).collect()
    }

    #[test]
    fn each_decision_is_chained_to_the_one_before() {
        let first = Roster::initial(member("b", 1), 42);
        let second = first.with(&[Change::Add(member("a", 1))]).unwrap();
        assert_eq!((second.epoch, second.parent), (2, first.digest()));
        assert_eq!(ids(&second), ["a", "b"]);
        let other = Roster::initial(member("b", 1), 43);
        assert_ne!(other.digest(), first.digest(), "two foundings are two histories");
    }

    #[test]
    fn a_restarted_node_gets_another_slot_and_a_new_weight_keeps_it() {
        let roster =
            Roster::initial(member("a", 1), 0).with(&[Change::Add(member("b", 1))]).unwrap();
        let slot = |roster: &Roster| roster.member(NodeKey::of("b")).unwrap().slot;
        let restarted = roster.with(&[Change::Add(member("b", 2))]).unwrap();
        assert_ne!(slot(&restarted), slot(&roster));
        let heavier = RosterMember { weight: 3, ..member("b", 1) };
        assert_eq!(slot(&roster.with(&[Change::Add(heavier)]).unwrap()), slot(&roster));
    }

    #[test]
    fn what_is_in_effect_or_overtaken_changes_nothing() {
        let roster =
            Roster::initial(member("a", 5), 0).with(&[Change::Add(member("b", 5))]).unwrap();
        let earlier_life = Change::Add(member("b", 4));
        for change in [Change::Add(member("b", 5)), earlier_life, removal("b", 4), removal("c", 1)]
        {
            assert!(roster.satisfies(&change));
            assert_eq!(roster.with(&[change]), None);
        }
    }

    #[test]
    fn the_last_member_cannot_be_removed() {
        let roster = Roster::initial(member("a", 1), 0);
        assert_eq!(roster.with(&[removal("a", 1)]), None);
    }

    #[test]
    fn slots_stay_distinct_however_often_nodes_come_and_go() {
        let mut roster = Roster::initial(member("a", 1), 0);
        for boot in 1..3000u64 {
            let id = format!("n{}", boot % 7);
            roster = roster.with(&[Change::Add(member(&id, boot))]).unwrap();
            let mut slots: Vec<u16> = roster.members().iter().map(|member| member.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), roster.members().len());
        }
    }

    #[test]
    fn a_roster_survives_the_wire_with_its_digest() {
        let roster = Roster::initial(member("a", 1), 7)
            .with(&[Change::Add(RosterMember { weight: 9, ..member("größe", 3) })])
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
