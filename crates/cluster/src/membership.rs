//! Who is alive: SWIM gossip, driven by events and a given time.
//!
//! The crate foca implements SWIM. This module adds the timers, wraps every datagram so that only
//! nodes of the same cluster are heard, finds the first members through the addresses of `--join`,
//! and finds them again after a partition in which all nodes declared each other dead.
//!
//! ```text
//! | magic u32 | kind u8 | cluster u64 | parameters u64 | sender u64 | boot u64 | sequence u64 |
//! | cookie shown u64 | cookie wanted u64 | body | tag, 16 bytes, only with a key |  little-endian
//!
//! kind      body                          what makes it trustworthy    what it may do
//! gossip    foca's, from the sender's     the cookie that we gave      everything in SWIM, see
//!           identity on                   that identity's address      `update_filter`
//! probe     nonce, identity, padding      nothing                      an answer no longer than it
//! join ack  nonce, identity, perhaps a    the nonce of a probe of      its identity has answered;
//!           later boot of the prober      ours at that address         a later boot ends this one
//! refused   nonce, reason; if the id is   the nonce; the id in use     a line in the log; see
//!           in use address and boot       with a key also the tag      `on_id_in_use`
//! cookie    the sender's address          the cookie that we gave      what we send there shows the
//!                                         that address                 new one
//! ```
//!
//! With a key all but a refusal must also carry its tag. A cluster without one cannot authenticate
//! a sender, but it can verify its address: see `contacts`.
//!
//! With a cluster key a datagram must carry its tag and a sequence number that this sender has not
//! used before; the number contains the time, so that a recording is useless even after our own
//! restart. A refusal states its reason, which both sides log.
//!
//! This module decides only liveness. The roster decides which nodes hold data: a node that is
//! unresponsive for a while stays on the roster, else every brief outage would move its keys.

use core::net::SocketAddr;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams, Timer};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::frame::{AuthKey, TAG_BYTES};
use super::identity::{Boot, IDENTITY_BYTES_MAX, Identity, IdentityCodec, NodeKey};
use ringlane_types::time::Instant;
use ringlane_types::wire::{CodecError, Reader, Writer};

mod contacts;
mod envelope;
mod suspicion;
#[cfg(test)]
mod tests;
mod update_filter;

use contacts::{Contacts, JoinProbe, Secret};
use envelope::{Envelope, Head, IdHolder, Kind, Opened};
pub use envelope::{GossipRefusal, Terms};
use suspicion::Suspicions;
use update_filter::Gossip;

/// Maximum members, including dead ones, remembered for finding the cluster again.
const KNOWN_MAX: usize = 2048;
/// Longest body of a join ack. Join probes are padded to it, so that a forged sender address cannot
/// attract more bytes than were sent in its name.
const JOIN_ACK_BYTES_MAX: usize = 8 + 2 * IDENTITY_BYTES_MAX;
/// A node without members that only hears that its id is in use gives up after this.
const ID_IN_USE_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval at which a node without live members looks for one.
const JOIN_PERIOD_ALONE: Duration = Duration::from_secs(1);
/// Interval at which a node with members looks for those of `--join` that are not among them.
const JOIN_PERIOD: Duration = Duration::from_secs(15);

/// Settings of failure detection.
#[derive(Clone, Debug)]
pub struct MembershipSettings {
    /// Settings that all members must have in common.
    pub terms: Terms,
    /// The cluster's key; `None` accepts everybody.
    pub key: Option<AuthKey>,
    /// How often a member is probed.
    pub probe_period: Duration,
    /// A member is dead after this many periods without a sign of life, at least 2: one to suspect
    /// it, the others to refute.
    pub missed_max: u32,
    /// A dead member is forgotten after this.
    pub forget_after: Duration,
    /// With a static list: the ids that may join. `None` admits any.
    pub listed: Option<Arc<[Box<str>]>>,
    /// Gossip addresses of some members.
    pub join: Vec<SocketAddr>,
    /// A datagram whose clock is further off than this is refused as a recording. Only with a key.
    pub clocks_differ_max: Duration,
}

impl MembershipSettings {
    /// The defaults for a cluster with these settings.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            key: None,
            probe_period: Duration::from_secs(1),
            missed_max: 3,
            forget_after: Duration::from_secs(600),
            listed: None,
            join: Vec::new(),
            clocks_differ_max: Duration::from_secs(30),
        }
    }
}

/// An event for the membership.
#[derive(Clone, Copy, Debug)]
pub enum MembershipEvent<'b> {
    /// Start. Comes first, once.
    Start,
    /// The next deadline has passed; harmless at any time.
    Tick,
    /// A datagram.
    Datagram {
        /// Its sender according to the socket.
        from: SocketAddr,
        /// Its bytes.
        bytes: &'b [u8],
    },
    /// Nobody listens any more where this boot of a member accepted connections, so its process is
    /// gone. Since somebody in between could have forged that, the member is suspected from now on,
    /// and dead a probe period later unless it refutes.
    ListenerGone {
        /// The member.
        node: NodeKey,
        /// In which boot.
        boot: Boot,
    },
    /// Say goodbye. Nothing is sent or accepted afterwards.
    Leave,
}

/// An effect of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEffect {
    /// Send a datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A member is alive: new, back, or under a new boot or address.
    Alive(Identity),
    /// A member is dead, or left.
    Dead(Identity),
    /// The others had declared this node dead; it has returned under a new renewal.
    Rejoined,
    /// A node was refused. Worth a line in the log.
    Refused {
        /// Who.
        from: SocketAddr,
        /// Why.
        reason: GossipRefusal,
    },
    /// A node refused us. Worth a line in the log; with a wrong key it may be forged.
    RefusedBy {
        /// Who.
        from: SocketAddr,
        /// Why.
        reason: GossipRefusal,
    },
    /// This node was replaced: another process, which answered itself, runs under its id, or the
    /// cluster knows a later boot of it, since this one was started with a clock set back or was
    /// away while another one was present. This membership has ended.
    Superseded {
        /// Where the other one is, or was.
        by: SocketAddr,
    },
}

/// A member's liveness as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Answers.
    Alive,
    /// Missed a probe and may still refute.
    Suspect,
    /// Declared dead, or gone.
    Dead,
}

/// This node's view of who is alive.
pub struct Membership {
    foca: Foca<Identity, IdentityCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
    swim: foca::Config,
    envelope: Envelope,
    listed: Option<Arc<[Box<str>]>>,
    join: Vec<SocketAddr>,
    random: Xoshiro256PlusPlus,
    timers: BinaryHeap<Reverse<Scheduled>>,
    timers_made: u64,
    join_at: Option<Instant>,
    suspicions: Suspicions,
    contacts: Contacts,
    /// When members were last asked whether another process has replaced this node.
    id_verified_at: Option<Instant>,
    /// Since when this node has only heard that it was replaced.
    id_in_use_since: Option<Instant>,
    probe_period: Duration,
    /// A suspicion ends after this.
    suspect_max: Duration,
    /// Members as last reported, and where to look for them.
    known: HashMap<NodeKey, Known>,
    /// We were told to be dead since the last probe; the member probed next may know a later boot
    /// of ours.
    declared_dead: bool,
    superseded: bool,
    left: bool,
    /// Datagrams that foca rejected.
    malformed: u64,
}

#[derive(Clone, Debug)]
struct Known {
    identity: Identity,
    alive: bool,
}

struct Scheduled {
    at: Instant,
    number: u64,
    timer: Timer<Identity>,
}

impl Membership {
    /// The membership of the node `identity`. `seed` determines every random choice.
    pub fn new(identity: Identity, settings: &MembershipSettings, seed: u64) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let gossip_random = Xoshiro256PlusPlus::seed_from_u64(random.random());
        let secret = Secret::new(std::array::from_fn(|_| random.random()));
        let envelope = Envelope::new(settings, identity.key, identity.boot, secret);
        Self {
            foca: Foca::new(identity, swim(settings), gossip_random, IdentityCodec),
            swim: swim(settings),
            envelope,
            listed: settings.listed.clone(),
            join: settings.join.clone(),
            random,
            timers: BinaryHeap::new(),
            timers_made: 0,
            join_at: None,
            suspicions: Suspicions::default(),
            contacts: Contacts::default(),
            id_verified_at: None,
            id_in_use_since: None,
            probe_period: settings.probe_period,
            suspect_max: settings.probe_period * (settings.missed_max + 1),
            known: HashMap::new(),
            declared_dead: false,
            superseded: false,
            left: false,
            malformed: 0,
        }
    }

    /// This node's current identity.
    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// Handles one event; its effects are appended to `effects`.
    pub fn handle(
        &mut self,
        event: MembershipEvent<'_>,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        if self.left || self.superseded {
            return;
        }
        match event {
            MembershipEvent::Start => {
                self.suspicions.check_at = Some(now.after(self.probe_period));
                self.send_join_probes(now, effects);
            }
            MembershipEvent::Tick => self.tick(now, effects),
            MembershipEvent::Datagram { from, bytes } => self.datagram(from, bytes, now, effects),
            MembershipEvent::ListenerGone { node, boot } => self.suspect(node, boot, now, effects),
            MembershipEvent::Leave => {
                self.with_foca(now, effects, |foca, runtime| foca.leave_cluster(runtime));
                self.left = true;
                self.timers.clear();
                (self.join_at, self.suspicions.check_at) = (None, None);
            }
        }
    }

    /// When the next [`MembershipEvent::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.superseded {
            return None;
        }
        let timer = self.timers.peek().map(|Reverse(scheduled)| scheduled.at);
        [timer, self.join_at, self.suspicions.check_at].into_iter().flatten().min()
    }

    /// All other remembered members, sorted by id.
    pub fn members(&self) -> Vec<(Identity, Health)> {
        let me = self.identity().key;
        let mut members: Vec<(Identity, Health)> = self
            .foca
            .iter_membership_state()
            // A node that was declared dead also remembers its own former identity.
            .filter(|member| member.id().key != me)
            .map(|member| {
                let health = match member.state() {
                    foca::State::Alive => Health::Alive,
                    foca::State::Suspect => Health::Suspect,
                    foca::State::Down => Health::Dead,
                };
                (member.id().clone(), health)
            })
            .collect();
        members.sort_by(|a, b| a.0.id.cmp(&b.0.id));
        members
    }

    /// Malformed datagrams of this cluster.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<MembershipEffect>) {
        while self.timers.peek().is_some_and(|Reverse(next)| next.at <= now) {
            let Reverse(due) = self.timers.pop().expect("just peeked");
            self.with_foca(now, effects, |foca, runtime| foca.handle_timer(due.timer, runtime));
        }
        if self.join_at.is_some_and(|at| at <= now) {
            self.send_join_probes(now, effects);
        }
        if self.suspicions.check_at.is_some_and(|at| at <= now) {
            let members = self.foca.iter_membership_state();
            let (limit, period) = (self.suspect_max, self.probe_period);
            let overdue = self.suspicions.overdue(members, now, limit, period);
            if !overdue.is_empty() {
                self.with_foca(now, effects, |foca, runtime| {
                    foca.apply_many(overdue.into_iter(), true, runtime)
                });
            }
        }
    }

    /// Suspects a member whose process seems to be gone, and asks it whether that is so.
    fn suspect(
        &mut self,
        node: NodeKey,
        boot: Boot,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        let member = self.foca.iter_membership_state().find(|member| {
            let Identity { key, boot: its_boot, .. } = member.id();
            (*key, *its_boot) == (node, boot) && member.state() != foca::State::Down
        });
        let Some(member) = member.cloned() else { return };
        let incarnation = member.incarnation();
        if !self.suspicions.suspect_on_evidence(node, incarnation, now.after(self.probe_period)) {
            return;
        }
        let identity = member.id().clone();
        let to = identity.gossip;
        let (named_by_member, unverified) = (false, false);
        let suspect = foca::Member::new(identity, incarnation, foca::State::Suspect);
        self.with_foca(now, effects, |foca, runtime| {
            foca.apply_many(std::iter::once(suspect), true, runtime)
        });
        self.send_join_probe(to, named_by_member, unverified, now, effects);
    }

    /// What a link with the member at `address` must show there: the cookie that it gave us. 0 if
    /// it gave none.
    pub fn pass_to(&self, address: SocketAddr) -> u64 {
        self.contacts.cookie_of(address).unwrap_or(0)
    }

    /// Whether a peer that claims to be this boot of `node` and shows `pass` may be linked with: it
    /// is alive, and what is sent to its address reaches it.
    pub fn admits_link(&self, node: NodeKey, boot: Boot, pass: u64) -> bool {
        self.known.get(&node).is_some_and(|known| {
            let cookie = self.envelope.secret.cookie(known.identity.gossip);
            known.alive && known.identity.boot == boot && pass == cookie
        })
    }

    fn datagram(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        match self.envelope.open(bytes, now) {
            Opened::Noise => {}
            Opened::Refused { reason, tell } => {
                effects.push(MembershipEffect::Refused { from, reason });
                if tell {
                    // The nonce of a probe: nothing else is disclosed.
                    let nonce = Reader::new(&bytes[envelope::HEAD_BYTES..]).u64().unwrap_or(0);
                    self.refuse(from, nonce, reason, None, bytes.len(), now, effects);
                }
            }
            Opened::RefusedUs { reason, nonce, other } => {
                let Some(probe) = self.contacts.answered(nonce, now) else { return };
                effects.push(MembershipEffect::RefusedBy { from, reason });
                if let Some(other) = other {
                    self.on_id_in_use(probe, other, now, effects);
                }
            }
            Opened::Accepted { kind, head, body } => {
                let asked_with = bytes.len();
                self.accepted(from, kind, head, (body, asked_with), now, effects);
            }
        }
    }

    /// Refuses a sender with a reason, in no more bytes than it sent.
    #[allow(clippy::too_many_arguments)]
    fn refuse(
        &mut self,
        to: SocketAddr,
        nonce: u64,
        reason: GossipRefusal,
        other: Option<IdHolder>,
        asked_with: usize,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        let mut body = Vec::new();
        body.put_u64(nonce);
        body.put_u8(reason as u8);
        if let Some(IdHolder { address, boot }) = other {
            body.put_address(address);
            body.put_u64(boot.0);
        }
        self.answer(Kind::Refused, to, 0, &body, asked_with, now, effects);
    }

    /// Answers an unverified sender, with no more bytes than it sent.
    #[allow(clippy::too_many_arguments)]
    fn answer(
        &mut self,
        kind: Kind,
        to: SocketAddr,
        shown: u64,
        body: &[u8],
        asked_with: usize,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        let bytes = self.envelope.seal(kind, to, shown, body, now);
        if bytes.len() <= asked_with {
            effects.push(MembershipEffect::Send { to, bytes });
        }
    }

    /// A member, or the process itself, says that our id belongs to a live process at `other`. Only
    /// the process itself is believed, and only if a member has named it or it was there first: a
    /// later one must not end an earlier one.
    fn on_id_in_use(
        &mut self,
        probe: JoinProbe,
        other: IdHolder,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        let alone = self.foca.num_members() == 0;
        if probe.to == other.address {
            if probe.named_by_member || (alone && other.boot < self.identity().boot) {
                self.supersede(other.address, effects);
            }
            return;
        }
        if other.address != self.identity().gossip {
            self.send_join_probe(other.address, true, true, now, effects);
        }
        // It may have ended a moment ago, which members take a while to notice.
        let since = *self.id_in_use_since.get_or_insert(now);
        if alone && now.since(since) >= ID_IN_USE_TIMEOUT {
            self.supersede(other.address, effects);
        }
    }

    fn supersede(&mut self, by: SocketAddr, effects: &mut Vec<MembershipEffect>) {
        if !std::mem::replace(&mut self.superseded, true) {
            effects.push(MembershipEffect::Superseded { by });
        }
    }

    fn accepted(
        &mut self,
        from: SocketAddr,
        kind: Kind,
        head: Head,
        (body, asked_with): (&[u8], usize),
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        let mut reader = Reader::new(body);
        let understood = match kind {
            Kind::Gossip => self.on_gossip(head, body, asked_with, now, effects),
            Kind::JoinProbe => {
                self.on_join_probe(from, head, &mut reader, asked_with, now, effects)
            }
            Kind::JoinAck => self.on_join_ack(from, head, &mut reader, now, effects),
            Kind::Cookie => self.on_cookie(head, &mut reader, now, effects),
            Kind::Refused => Ok(()),
        };
        if understood.is_err() {
            self.malformed += 1;
        }
    }

    fn on_gossip(
        &mut self,
        head: Head,
        body: &[u8],
        asked_with: usize,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) -> Result<(), CodecError> {
        let source = Identity::read(&mut Reader::new(body))?;
        if source.key != head.sender || source.boot != head.boot {
            return Err(CodecError::Unknown);
        }
        if head.shown != self.envelope.secret.cookie(source.gossip) {
            // Perhaps this node was restarted after giving out its cookie.
            let mut own = Vec::new();
            own.put_address(self.identity().gossip);
            let (to, shown) = (source.gossip, head.cookie);
            self.answer(Kind::Cookie, to, shown, &own, asked_with, now, effects);
            return Ok(());
        }
        if !self.admits(&source) || !self.accepts_from(&source) {
            return Ok(());
        }
        self.contacts.proved(&source, head.cookie, now);
        if self.was_cut_off_from(source.key, source.boot) {
            // Declaring it dead to itself would make it renew its identity and others lose track of
            // it; check first whether it hears us.
            self.send_join_probe(source.gossip, false, true, now, effects);
            return Ok(());
        }
        let mut gossip = Gossip::read(body).ok_or(CodecError::Unknown)?;
        let mut ask = Vec::new();
        if self.filter_updates(&mut gossip, &mut ask) {
            self.verify_own_id(now);
        }
        let filtered = gossip.write();
        self.with_foca(now, effects, |foca, runtime| foca.handle_data(&filtered, runtime));
        for identity in ask {
            self.send_join_probe(identity.gossip, false, true, now, effects);
        }
        Ok(())
    }

    /// Answers a join probe with our identity, and with a later boot of its id if one is known
    /// here.
    fn on_join_probe(
        &mut self,
        from: SocketAddr,
        head: Head,
        reader: &mut Reader<'_>,
        asked_with: usize,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) -> Result<(), CodecError> {
        let (nonce, guest) = (reader.u64()?, Identity::read(reader)?);
        let known = self.known.get(&guest.key);
        let later = known.filter(|known| known.identity.boot > guest.boot);
        let later = later.map(|known| known.identity.clone());
        let other = if guest.key == self.identity().key {
            Some(self.identity())
        } else {
            let elsewhere = known.filter(|known| {
                let Identity { boot, gossip, .. } = &known.identity;
                known.alive && *boot != guest.boot && *gossip != guest.gossip
            });
            elsewhere.map(|known| &known.identity)
        };
        let other = other.map(|other| IdHolder { address: other.gossip, boot: other.boot });
        let reason = match other {
            _ if !self.admits(&guest) => Some(GossipRefusal::NotListed),
            Some(_) => Some(GossipRefusal::IdInUse),
            None => None,
        };
        if let Some(reason) = reason {
            effects.push(MembershipEffect::Refused { from, reason });
            let other = other.filter(|_| reason == GossipRefusal::IdInUse);
            self.refuse(from, nonce, reason, other, asked_with, now, effects);
            return Ok(());
        }
        let mut body = Vec::new();
        body.put_u64(nonce);
        self.identity().write(&mut body);
        if let Some(later) = later {
            later.write(&mut body);
        }
        self.answer(Kind::JoinAck, from, head.cookie, &body, asked_with, now, effects);
        Ok(())
    }

    fn on_join_ack(
        &mut self,
        from: SocketAddr,
        head: Head,
        reader: &mut Reader<'_>,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) -> Result<(), CodecError> {
        let (nonce, host) = (reader.u64()?, Identity::read(reader)?);
        let Some(probe) = self.contacts.answered(nonce, now) else { return Ok(()) };
        if !self.admits(&host) {
            effects.push(MembershipEffect::Refused { from, reason: GossipRefusal::NotListed });
            return Ok(());
        }
        if host.gossip != probe.to {
            // It claims another address, at which it has not answered yet.
            self.send_join_probe(host.gossip, false, true, now, effects);
            return Ok(());
        }
        if !self.accepts_from(&host) {
            return Ok(());
        }
        self.contacts.proved(&host, head.cookie, now);
        self.id_in_use_since = None;
        if let Some(gossip) = self.contacts.release(host.gossip) {
            self.send_gossip(host.gossip, gossip, now, effects);
        }
        self.suspicions.clear_suspicion(host.key);
        match Identity::read(reader) {
            Ok(by) if by.key == self.identity().key && by.boot > self.identity().boot => {
                self.supersede(by.gossip, effects);
            }
            _ => {
                if self.was_cut_off_from(host.key, host.boot) {
                    self.rejoin(effects);
                }
                self.with_foca(now, effects, |foca, runtime| foca.announce(host, runtime));
            }
        }
        Ok(())
    }

    /// From now on, datagrams to an address show the cookie that it wants.
    fn on_cookie(
        &mut self,
        head: Head,
        reader: &mut Reader<'_>,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) -> Result<(), CodecError> {
        let address = reader.address()?;
        if head.shown == self.envelope.secret.cookie(address) {
            self.contacts.renewed(address, head.cookie);
            if let Some(gossip) = self.contacts.release(address) {
                self.send_gossip(address, gossip, now, effects);
            }
        }
        Ok(())
    }

    /// Whether this node considers everybody dead, including `node`: most likely it was itself cut
    /// off.
    fn was_cut_off_from(&self, node: NodeKey, boot: Boot) -> bool {
        self.foca.num_members() == 0
            && self.foca.iter_membership_state().any(|member| {
                let Identity { key, boot: its_boot, .. } = member.id();
                (*key, *its_boot) == (node, boot) && member.state() == foca::State::Down
            })
    }

    /// Returns after being cut off from all: as a renewed member that has forgotten whom it
    /// considered dead, so that nobody hears of that and nobody else need renew itself.
    fn rejoin(&mut self, effects: &mut Vec<MembershipEffect>) {
        let identity = self.identity();
        let identity = foca::Identity::renew(identity).unwrap_or_else(|| identity.clone());
        let random = Xoshiro256PlusPlus::seed_from_u64(self.random.random());
        self.foca = Foca::new(identity, self.swim.clone(), random, IdentityCodec);
        self.timers.clear();
        effects.push(MembershipEffect::Rejoined);
    }

    fn admits(&self, identity: &Identity) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.iter().any(|id| **id == *identity.id))
    }

    /// Looks for members: all of `--join` that are not known to be alive, and, if nobody is alive,
    /// a few former members.
    fn send_join_probes(&mut self, now: Instant, effects: &mut Vec<MembershipEffect>) {
        let alone = self.foca.num_members() == 0;
        let recheck = std::mem::take(&mut self.declared_dead);
        let mut addresses: Vec<SocketAddr> = self.join.clone();
        if alone || recheck {
            let mut known: Vec<&Known> = self.known.values().collect();
            known.sort_by_key(|known| known.identity.key);
            for _ in 0..3.min(known.len()) {
                let chosen = self.random.random_range(0..known.len());
                addresses.push(known.swap_remove(chosen).identity.gossip);
            }
        }
        let ours = self.identity().gossip;
        addresses.sort_unstable();
        addresses.dedup();
        for to in addresses {
            let alive = |known: &Known| known.alive && known.identity.gossip == to;
            if to != ours && (recheck || !self.known.values().any(alive)) {
                self.send_join_probe(to, false, false, now, effects);
            }
        }
        self.join_at = Some(now.after(if alone { JOIN_PERIOD_ALONE } else { JOIN_PERIOD }));
    }

    /// Asks the node at an address to identify itself. `unverified`: the address is known only from
    /// others, so it is probed less often.
    fn send_join_probe(
        &mut self,
        to: SocketAddr,
        named_by_member: bool,
        unverified: bool,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        let secret = &mut self.envelope.secret;
        let Some(nonce) = self.contacts.begin_probe(to, named_by_member, unverified, secret, now)
        else {
            return;
        };
        let mut body = Vec::with_capacity(JOIN_ACK_BYTES_MAX);
        body.put_u64(nonce);
        self.identity().write(&mut body);
        body.resize(JOIN_ACK_BYTES_MAX, 0);
        let shown = self.pass_to(to);
        let bytes = self.envelope.seal(Kind::JoinProbe, to, shown, &body, now);
        effects.push(MembershipEffect::Send { to, bytes });
    }

    /// Sends foca's datagram, once it is known that what is sent there reaches a node that wants
    /// it.
    fn send_gossip(
        &mut self,
        to: SocketAddr,
        gossip: Vec<u8>,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        if let Some(shown) = self.contacts.cookie_of(to) {
            let bytes = self.envelope.seal(Kind::Gossip, to, shown, &gossip, now);
            effects.push(MembershipEffect::Send { to, bytes });
        } else {
            self.contacts.hold(to, gossip, now);
            self.send_join_probe(to, false, true, now, effects);
        }
    }

    /// Runs foca and turns its requests into effects and timers.
    fn with_foca(
        &mut self,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
        act: impl FnOnce(
            &mut Foca<Identity, IdentityCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
            &mut foca::AccumulatingRuntime<Identity>,
        ) -> Result<(), foca::Error>,
    ) {
        let mut runtime = foca::AccumulatingRuntime::new();
        if act(&mut self.foca, &mut runtime).is_err() {
            self.malformed += 1;
        }
        while let Some((after, timer)) = runtime.to_schedule() {
            self.timers_made += 1;
            let at = now.after(after);
            self.timers.push(Reverse(Scheduled { at, number: self.timers_made, timer }));
        }
        while let Some((to, gossip)) = runtime.to_send() {
            self.send_gossip(to.gossip, gossip.to_vec(), now, effects);
        }
        while let Some(notification) = runtime.to_notify() {
            self.notified(notification, now, effects);
        }
    }

    fn notified(
        &mut self,
        notification: OwnedNotification<Identity>,
        now: Instant,
        effects: &mut Vec<MembershipEffect>,
    ) {
        match notification {
            OwnedNotification::MemberUp(identity) => self.report(identity, true, effects),
            OwnedNotification::MemberDown(identity) => self.report(identity, false, effects),
            OwnedNotification::Rename(_, identity) => {
                let alive = self.known.get(&identity.key).is_some_and(|known| known.alive);
                if alive {
                    self.report(identity, true, effects);
                }
            }
            OwnedNotification::Rejoin(_) => {
                effects.push(MembershipEffect::Rejoined);
                self.declared_dead = true;
                self.join_at = Some(now);
            }
            OwnedNotification::Idle => self.join_at = Some(now),
            OwnedNotification::Active | OwnedNotification::Defunct => {}
        }
    }

    fn report(&mut self, identity: Identity, alive: bool, effects: &mut Vec<MembershipEffect>) {
        let unchanged = self.known.get(&identity.key).is_some_and(|known| {
            let Identity { boot, link, gossip, .. } = &known.identity;
            (known.alive, boot, link, gossip)
                == (alive, &identity.boot, &identity.link, &identity.gossip)
        });
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&identity.key) {
            let dead = self.known.iter().filter(|(_, known)| !known.alive).map(|(key, _)| *key);
            let Some(forgotten) = dead.min() else { return };
            self.known.remove(&forgotten);
        }
        self.known.insert(identity.key, Known { identity: identity.clone(), alive });
        if !unchanged {
            effects.push(if alive {
                MembershipEffect::Alive(identity)
            } else {
                MembershipEffect::Dead(identity)
            });
        }
    }
}

fn swim(settings: &MembershipSettings) -> foca::Config {
    let count = |count| NonZeroUsize::new(count).expect("a constant above zero");
    let periodic =
        |frequency, members| Some(PeriodicParams { frequency, num_members: count(members) });
    foca::Config {
        probe_period: settings.probe_period,
        probe_rtt: settings.probe_period * 2 / 5,
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(10).expect("a constant above zero"),
        suspect_to_down_after: settings.probe_period * settings.missed_max.saturating_sub(1).max(1),
        remove_down_after: Some(settings.forget_after),
        // Including the envelope, below the 1,232 bytes that every IPv6 path carries.
        max_packet_size: count(1150),
        notify_down_members: true,
        periodic_announce: periodic(settings.probe_period * 10, 1),
        periodic_announce_to_down_members: periodic(settings.probe_period * 3, 2),
        periodic_gossip: periodic(settings.probe_period / 5, 3),
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// By time, then in foca's own order for timers of the same time, then in order of creation.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, &self.timer, self.number).cmp(&(other.at, &other.timer, other.number))
    }
}
