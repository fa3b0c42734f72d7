//! Filters a member's gossip before SWIM processes it.
//!
//! SWIM trusts everything that members report about each other. So a lying member, or anyone in a
//! cluster without a key, could replace a live node with a later boot that cannot be refuted, or
//! make all others contact addresses at which no node has been seen. Therefore an update about an
//! unknown node or boot counts only once that boot has answered at its address; until then it is
//! probed, and joins by its own answer. Updates about known boots are left to SWIM: those can
//! refute them.

use foca::{Codec, Header, Member, State};

use super::super::identity::{Identity, IdentityCodec};
use super::Membership;
use ringlane_types::time::Instant;

/// Maximum members tracked, including dead ones; updates about further ones are ignored.
pub(super) const MEMBERS_MAX: usize = 4096;

/// Decoded gossip.
pub(super) struct Gossip {
    pub header: Header<Identity>,
    pub updates: Vec<Member<Identity>>,
}

impl Gossip {
    /// Decodes foca's datagram; `None` if it is invalid.
    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
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

    /// Encodes it for foca.
    pub(super) fn write(&self) -> Vec<u8> {
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

/// The verdict on an update about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpdateVerdict {
    /// Pass it to SWIM.
    Apply,
    /// Probe the address first.
    Verify,
    /// Ignore it.
    Drop,
    /// It is about another boot of this node: ask members whether its id is in use.
    OwnId,
}

impl Membership {
    /// Whether to listen to `source`, which has proved its address.
    pub(super) fn accepts_from(&self, source: &Identity) -> bool {
        let own = source.key == self.identity().key;
        !own && has_one_host(source) && self.may_replace(source) && self.has_room_for(source)
    }

    pub(super) fn verdict_on(&self, source: &Identity, update: &Member<Identity>) -> UpdateVerdict {
        let identity = update.id();
        let boot_and_renewal = (identity.boot, identity.renewal);
        let me = self.identity();
        if identity.key == me.key {
            let ours = (me.boot, me.renewal);
            return if boot_and_renewal <= ours {
                UpdateVerdict::Apply
            } else {
                UpdateVerdict::OwnId
            };
        }
        if !has_one_host(identity) || !self.has_room_for(identity) {
            return UpdateVerdict::Drop;
        }
        if identity == source {
            return UpdateVerdict::Apply;
        }
        let known = self.known.get(&identity.key);
        match known {
            Some(known) if boot_and_renewal <= (known.identity.boot, known.identity.renewal) => {
                UpdateVerdict::Apply
            }
            // A dead node's update causes no message.
            None if update.state() == State::Down => UpdateVerdict::Apply,
            Some(known) if !known.alive && update.state() == State::Down => UpdateVerdict::Apply,
            _ if update.state() == State::Down || !self.may_replace(identity) => {
                UpdateVerdict::Drop
            }
            _ if self.contacts.has_answered(identity) => UpdateVerdict::Apply,
            _ => UpdateVerdict::Verify,
        }
    }

    /// Removes untrusted updates from `gossip` and appends the nodes to probe to `ask`. True if
    /// members should be asked about this node's own id.
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

    /// A later boot may follow at the same address, whose former process must be gone, or if the
    /// former one is dead. Earlier boots are left to SWIM.
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

    /// Schedules asking members whether another process uses this node's id, at most once per
    /// `JOIN_PERIOD_ALONE`.
    pub(super) fn verify_own_id(&mut self, now: Instant) {
        if self.id_verified_at.is_none_or(|at| now.since(at) >= super::JOIN_PERIOD_ALONE) {
            self.id_verified_at = Some(now);
            self.declared_dead = true;
            self.join_at = Some(now);
        }
    }
}

/// Connections are made only to the host that answers gossip.
fn has_one_host(identity: &Identity) -> bool {
    identity.link.ip() == identity.gossip.ip()
}
