//! What of a member's gossip is believed, before SWIM hears of it.
//!
//! SWIM believes whatever members say of each other. Then one of them that lies, or anybody in a
//! cluster without a key, could replace a living node by a later life of it that nobody can refute,
//! or have all others call addresses that nobody has been seen at. So news of a node, or of a life,
//! that is new here counts only once that life has answered at its address; until then it is probed,
//! and joins by its own answer. What is said of lives that are known is SWIM's business: those
//! can speak for themselves.

use foca::{Codec, Header, Member, State};

use super::super::identity::{Identity, IdentityCodec};
use super::Membership;
use ringlane_types::time::Instant;

/// Members, dead ones included, that are told apart; of more nothing is believed.
pub(super) const MEMBERS_MAX: usize = 4096;

/// Gossip, taken apart.
pub(super) struct Gossip {
    pub header: Header<Identity>,
    pub updates: Vec<Member<Identity>>,
}

impl Gossip {
    /// Reads foca's datagram; `None` when it is none.
    pub fn read(mut bytes: &[u8]) -> Option<Self> {
        let header = IdentityCodec.decode_header(&mut bytes).ok()?;
        let mut updates = Vec::new();
        if let Some((count, rest)) = bytes.split_first_chunk::<2>() {
            let mut rest = rest;
            for _ in 0..u16::from_be_bytes(*count) {
                updates.push(IdentityCodec.decode_member(&mut rest).ok()?);
            }
        } else if !bytes.is_empty() {
            return None;
        }
        Some(Self { header, updates })
    }

    /// Writes it as foca reads it.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        IdentityCodec.encode_header(&self.header, &mut bytes).expect("there is room");
        if !self.updates.is_empty() {
            bytes.extend_from_slice(&(self.updates.len() as u16).to_be_bytes());
            for member in &self.updates {
                IdentityCodec.encode_member(member, &mut bytes).expect("there is room");
            }
        }
        bytes
    }
}

/// What becomes of an update about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpdateVerdict {
    /// SWIM may hear it.
    Apply,
    /// Whoever is at the address is to be asked first.
    Verify,
    /// Nothing follows.
    Drop,
    /// It is about another life of this node: members are to be asked whether its place is taken.
    OwnId,
}

impl Membership {
    /// Whether what `source` says is listened to; it has proved that it is at its address.
    pub(super) fn accepts_from(&self, source: &Identity) -> bool {
        let own = source.key == self.identity().key;
        !own && has_one_host(source) && self.may_replace(source) && self.has_room_for(source)
    }

    pub(super) fn verdict_on(&self, source: &Identity, update: &Member<Identity>) -> UpdateVerdict {
        let identity = update.id();
        let life = (identity.boot, identity.renewal);
        let me = self.identity();
        if identity.key == me.key {
            let ours = (me.boot, me.renewal);
            return if life <= ours { UpdateVerdict::Apply } else { UpdateVerdict::OwnId };
        }
        if !has_one_host(identity) || !self.has_room_for(identity) {
            return UpdateVerdict::Drop;
        }
        if identity == source {
            return UpdateVerdict::Apply;
        }
        let known = self.known.get(&identity.key);
        match known {
            Some(known) if life <= (known.identity.boot, known.identity.renewal) => {
                UpdateVerdict::Apply
            }
            // Nobody is sent anything because of somebody who is dead.
            None if update.state() == State::Down => UpdateVerdict::Apply,
            Some(known) if !known.alive && update.state() == State::Down => UpdateVerdict::Apply,
            _ if update.state() == State::Down || !self.may_replace(identity) => {
                UpdateVerdict::Drop
            }
            _ if self.contacts.has_answered(identity) => UpdateVerdict::Apply,
            _ => UpdateVerdict::Verify,
        }
    }

    /// Takes out of `gossip` what is not believed; whom to ask is appended to `ask`. True if
    /// members are to be asked about this node's own place.
    pub(super) fn filter_updates(&self, gossip: &mut Gossip, ask: &mut Vec<Identity>) -> bool {
        let source = gossip.header.src.clone();
        let mut own = false;
        gossip.updates.retain(|update| match self.verdict_on(&source, update) {
            UpdateVerdict::Apply => true,
            UpdateVerdict::Verify => {
                ask.push(update.id().clone());
                false
            }
            UpdateVerdict::Drop => false,
            UpdateVerdict::OwnId => {
                own |= update.state() != State::Down;
                false
            }
        });
        own
    }

    /// A later life may follow at the same address, whose former owner must have gone, or when the
    /// former one is dead. Earlier lives are SWIM's business.
    fn may_replace(&self, identity: &Identity) -> bool {
        self.known.get(&identity.key).is_none_or(|known| {
            let former = &known.identity;
            !known.alive || former.gossip == identity.gossip || identity.boot <= former.boot
        })
    }

    fn has_room_for(&self, identity: &Identity) -> bool {
        self.known.contains_key(&identity.key)
            || self.foca.iter_membership_state().len() < MEMBERS_MAX
    }

    /// Members are asked soon whether another process has this node's place, at most once in
    /// `JOIN_PERIOD_ALONE`.
    pub(super) fn verify_own_id(&mut self, now: Instant) {
        if self.id_verified_at.is_none_or(|at| now.since(at) >= super::JOIN_PERIOD_ALONE) {
            self.id_verified_at = Some(now);
            self.declared_dead = true;
            self.join_at = Some(now);
        }
    }
}

/// Connections are made to nobody but the host that answers gossip.
fn has_one_host(identity: &Identity) -> bool {
    identity.link.ip() == identity.gossip.ip()
}
