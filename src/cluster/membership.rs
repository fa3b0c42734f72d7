//! Who is alive: SWIM gossip, driven by events and a given time.
//!
//! The crate foca speaks SWIM. Around it this module keeps the timers, wraps every datagram so
//! that only nodes of the same cluster are heard, finds the first members through the addresses of
//! `--join`, and finds them again after a partition in which everybody gave up on everybody.
//!
//! ```text
//! | magic u32 | kind u8 | cluster u64 | parameters u64 | sender u64 | boot u64 | sequence u64 |
//! | body: gossip, an identity or a reason | tag, 16 bytes, only with a key |      little-endian
//! ```
//!
//! With a cluster key a datagram must carry its tag and a sequence number that this sender did not
//! use before; the number holds the time, so that a recording is no use after our own restart
//! either. Who is refused is told why, and so are we: the reasons end in both logs.
//!
//! What is decided here is liveness only. Which nodes hold data is decided by the roster: a node
//! that is silent for a while keeps its seat, else every hiccup would move its keys.

use core::net::SocketAddr;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams, Timer};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::frame::{Key, TAG_BYTES};
use super::identity::{Boot, Identity, IdentityCodec, NodeKey};
use super::wire::{Reader, Writer};
use crate::time::Instant;

mod envelope;
mod suspicion;
#[cfg(test)]
mod tests;

use envelope::{Envelope, Kind, Opened};
pub use envelope::{Refusal, Terms};
use suspicion::Suspicions;

/// Most addresses that are remembered for finding the cluster again.
const KNOWN_MAX: usize = 1024;
/// How often a node without any living member looks for one.
const KNOCK_LONELY: Duration = Duration::from_secs(1);
/// How often a node with members looks for those of `--join` that are not among them.
const KNOCK_IDLE: Duration = Duration::from_secs(15);

/// How the cluster's nodes watch each other.
#[derive(Clone, Debug)]
pub struct MembershipSettings {
    /// What all members must have in common.
    pub terms: Terms,
    /// The cluster's key; `None` accepts everybody.
    pub key: Option<Key>,
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
    /// The defaults for a cluster with these terms.
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

/// What happens to the membership.
#[derive(Clone, Copy, Debug)]
pub enum Event<'b> {
    /// Begin. Comes first, once.
    Start,
    /// The nearest deadline has come; harmless at any time.
    Tick,
    /// A datagram.
    Datagram {
        /// Who sent it, as the socket says.
        from: SocketAddr,
        /// Its bytes.
        bytes: &'b [u8],
    },
    /// Nobody listens any more where this life of a member took connections, so its process is
    /// gone. Since somebody between could have said so in its name, it is a suspect from now on,
    /// and dead a probe period later unless it refutes.
    Refused {
        /// The member.
        node: NodeKey,
        /// In which life.
        boot: Boot,
    },
    /// Say goodbye. Nothing is sent or believed afterwards.
    Leave,
}

/// What is to be done, or known, because of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
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
    /// The others had declared this node dead; it has come back under a new renewal.
    Rejoined,
    /// A node was refused. Worth a line in the log.
    Refused {
        /// Who.
        from: SocketAddr,
        /// Why.
        reason: Refusal,
    },
    /// A node refused us. Worth a line in the log; with a wrong key its word is not certain.
    RefusedBy {
        /// Who.
        from: SocketAddr,
        /// Why.
        reason: Refusal,
    },
    /// The cluster knows a later boot of this node's id: another process was started under it, or
    /// this one was started with a clock set back. The later boot counts; this membership is over.
    Superseded {
        /// The other one, or our own earlier life.
        by: Identity,
    },
}

/// How a member looks from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Answers.
    Alive,
    /// Missed a probe and may still refute.
    Suspect,
    /// Given up on, or gone.
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
    knock_at: Option<Instant>,
    suspicions: Suspicions,
    probe_period: Duration,
    /// A suspicion is ended after this.
    suspect_max: Duration,
    /// Members as last reported, and where to look for them.
    known: HashMap<NodeKey, Known>,
    /// Told to be dead since the last knock; whom we knock at next may know a later boot of ours.
    declared_dead: bool,
    superseded: bool,
    left: bool,
    /// Datagrams that foca found fault with.
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
    /// The membership of the node `identity`. `seed` decides every random choice.
    pub fn new(identity: Identity, settings: &MembershipSettings, seed: u64) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let gossip_random = Xoshiro256PlusPlus::seed_from_u64(random.random());
        let envelope = Envelope::new(settings, identity.key, identity.boot);
        Self {
            foca: Foca::new(identity, swim(settings), gossip_random, IdentityCodec),
            swim: swim(settings),
            envelope,
            listed: settings.listed.clone(),
            join: settings.join.clone(),
            random,
            timers: BinaryHeap::new(),
            timers_made: 0,
            knock_at: None,
            suspicions: Suspicions::default(),
            probe_period: settings.probe_period,
            suspect_max: settings.probe_period * (settings.missed_max + 1),
            known: HashMap::new(),
            declared_dead: false,
            superseded: false,
            left: false,
            malformed: 0,
        }
    }

    /// This node, as it calls itself at the moment.
    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// Takes one event; what follows from it is appended to `effects`.
    pub fn handle(&mut self, event: Event<'_>, now: Instant, effects: &mut Vec<Effect>) {
        if self.left || self.superseded {
            return;
        }
        match event {
            Event::Start => {
                self.suspicions.look_at = Some(now.after(self.probe_period));
                self.knock(now, effects);
            }
            Event::Tick => self.tick(now, effects),
            Event::Datagram { from, bytes } => self.datagram(from, bytes, now, effects),
            Event::Refused { node, boot } => self.accuse(node, boot, now, effects),
            Event::Leave => {
                self.with_foca(now, effects, |foca, runtime| foca.leave_cluster(runtime));
                self.left = true;
                self.timers.clear();
                (self.knock_at, self.suspicions.look_at) = (None, None);
            }
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.superseded {
            return None;
        }
        let timer = self.timers.peek().map(|Reverse(scheduled)| scheduled.at);
        [timer, self.knock_at, self.suspicions.look_at].into_iter().flatten().min()
    }

    /// All other members that are remembered, sorted by id.
    pub fn members(&self) -> Vec<(Identity, Health)> {
        let me = self.identity().key;
        let mut members: Vec<(Identity, Health)> = self
            .foca
            .iter_membership_state()
            // A node that was declared dead is also remembered by itself as it was before.
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

    /// Datagrams of the right cluster that made no sense.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while self.timers.peek().is_some_and(|Reverse(next)| next.at <= now) {
            let Reverse(due) = self.timers.pop().expect("just peeked");
            self.with_foca(now, effects, |foca, runtime| foca.handle_timer(due.timer, runtime));
        }
        if self.knock_at.is_some_and(|at| at <= now) {
            self.knock(now, effects);
        }
        if self.suspicions.look_at.is_some_and(|at| at <= now) {
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
    fn accuse(&mut self, node: NodeKey, boot: Boot, now: Instant, effects: &mut Vec<Effect>) {
        let accused = self.foca.iter_membership_state().find(|member| {
            let Identity { key, boot: life, .. } = member.id();
            (*key, *life) == (node, boot) && member.state() != foca::State::Down
        });
        let Some(accused) = accused.cloned() else { return };
        let incarnation = accused.incarnation();
        if !self.suspicions.accuse(node, incarnation, now.after(self.probe_period)) {
            return;
        }
        let identity = accused.id().clone();
        let to = identity.gossip;
        let suspect = foca::Member::new(identity, incarnation, foca::State::Suspect);
        self.with_foca(now, effects, |foca, runtime| {
            foca.apply_many(std::iter::once(suspect), true, runtime)
        });
        self.send_knock(to, now, effects);
    }

    fn datagram(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        match self.envelope.open(bytes, now) {
            Opened::Noise => {}
            Opened::Refused { reason, tell } => {
                effects.push(Effect::Refused { from, reason });
                if tell {
                    let bytes = self.envelope.seal(Kind::Refused, &[reason as u8], now);
                    effects.push(Effect::Send { to: from, bytes });
                }
            }
            Opened::RefusedUs(reason) => effects.push(Effect::RefusedBy { from, reason }),
            Opened::Accepted { kind, body } => self.accepted(from, kind, body, now, effects),
        }
    }

    fn accepted(
        &mut self,
        from: SocketAddr,
        kind: Kind,
        body: &[u8],
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        match kind {
            Kind::Gossip if self.is_from_doubtful(body) => self.send_knock(from, now, effects),
            Kind::Gossip => {
                self.with_foca(now, effects, |foca, runtime| foca.handle_data(body, runtime));
            }
            Kind::Knock | Kind::Welcome => {
                let mut reader = Reader::new(body);
                let Ok(identity) = Identity::read(&mut reader) else {
                    self.malformed += 1;
                    return;
                };
                if !self.admits(&identity) {
                    let reason = Refusal::NotListed;
                    effects.push(Effect::Refused { from, reason });
                    let bytes = self.envelope.seal(Kind::Refused, &[reason as u8], now);
                    effects.push(Effect::Send { to: from, bytes });
                } else if kind == Kind::Knock {
                    self.welcome(from, &identity, now, effects);
                } else {
                    self.welcomed(identity, reader, now, effects);
                }
            }
            Kind::Refused => {}
        }
    }

    /// Tells who knocked who we are, and which later boot of its id is known here, if any.
    fn welcome(
        &mut self,
        from: SocketAddr,
        guest: &Identity,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let mut body = Vec::new();
        self.identity().write(&mut body);
        let known = self.known.get(&guest.key).map(|known| &known.identity);
        if let Some(later) = known.filter(|known| known.boot > guest.boot) {
            later.write(&mut body);
        }
        let bytes = self.envelope.seal(Kind::Welcome, &body, now);
        effects.push(Effect::Send { to: from, bytes });
    }

    fn welcomed(
        &mut self,
        host: Identity,
        mut rest: Reader<'_>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.suspicions.acquit(host.key);
        match Identity::read(&mut rest) {
            Ok(by) if by.key == self.identity().key && by.boot > self.identity().boot => {
                if !self.superseded {
                    effects.push(Effect::Superseded { by });
                }
                self.superseded = true;
            }
            _ => {
                if self.is_doubtful(host.key, host.boot) {
                    self.begin_anew(effects);
                }
                self.with_foca(now, effects, |foca, runtime| foca.announce(host, runtime));
            }
        }
    }

    /// Whether this node holds everybody for dead, `node` too: most likely it was itself cut off.
    fn is_doubtful(&self, node: NodeKey, boot: Boot) -> bool {
        self.foca.num_members() == 0
            && self.foca.iter_membership_state().any(|member| {
                let Identity { key, boot: life, .. } = member.id();
                (*key, *life) == (node, boot) && member.state() == foca::State::Down
            })
    }

    /// Whether gossip comes from somebody whom this node, alone, has wrongly held for dead. Telling
    /// him so would make him renew himself and others lose sight of him; whether he hears us is
    /// asked first.
    fn is_from_doubtful(&self, gossip: &[u8]) -> bool {
        let source = Identity::read(&mut Reader::new(gossip));
        source.is_ok_and(|source| self.is_doubtful(source.key, source.boot))
    }

    /// Comes back from being cut off from all: as a renewed member that has forgotten whom it held
    /// for dead, so that nobody hears of it and nobody need renew himself.
    fn begin_anew(&mut self, effects: &mut Vec<Effect>) {
        let identity = self.identity();
        let identity = foca::Identity::renew(identity).unwrap_or_else(|| identity.clone());
        let random = Xoshiro256PlusPlus::seed_from_u64(self.random.random());
        self.foca = Foca::new(identity, self.swim.clone(), random, IdentityCodec);
        self.timers.clear();
        effects.push(Effect::Rejoined);
    }

    fn admits(&self, identity: &Identity) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.iter().any(|id| **id == *identity.id))
    }

    /// Looks for members: all of `--join` that are not known to be alive, and, with nobody alive,
    /// a few of those who once were.
    fn knock(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let lonely = self.foca.num_members() == 0;
        let doubtful = std::mem::take(&mut self.declared_dead);
        let mut places: Vec<SocketAddr> = self.join.clone();
        if lonely || doubtful {
            let mut known: Vec<&Known> = self.known.values().collect();
            known.sort_by_key(|known| known.identity.key);
            for _ in 0..3.min(known.len()) {
                let chosen = self.random.random_range(0..known.len());
                places.push(known.swap_remove(chosen).identity.gossip);
            }
        }
        let ours = self.identity().gossip;
        places.sort_unstable();
        places.dedup();
        for to in places {
            let alive = |known: &Known| known.alive && known.identity.gossip == to;
            if to != ours && (doubtful || !self.known.values().any(alive)) {
                self.send_knock(to, now, effects);
            }
        }
        self.knock_at = Some(now.after(if lonely { KNOCK_LONELY } else { KNOCK_IDLE }));
    }

    /// Asks whoever is there to say who he is.
    fn send_knock(&mut self, to: SocketAddr, now: Instant, effects: &mut Vec<Effect>) {
        let mut body = Vec::new();
        self.identity().write(&mut body);
        let bytes = self.envelope.seal(Kind::Knock, &body, now);
        effects.push(Effect::Send { to, bytes });
    }

    /// Runs foca and turns what it wants into effects and timers.
    fn with_foca(
        &mut self,
        now: Instant,
        effects: &mut Vec<Effect>,
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
            let bytes = self.envelope.seal(Kind::Gossip, &gossip, now);
            effects.push(Effect::Send { to: to.gossip, bytes });
        }
        while let Some(notification) = runtime.to_notify() {
            self.notified(notification, now, effects);
        }
    }

    fn notified(
        &mut self,
        notification: OwnedNotification<Identity>,
        now: Instant,
        effects: &mut Vec<Effect>,
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
                effects.push(Effect::Rejoined);
                self.declared_dead = true;
                self.knock_at = Some(now);
            }
            OwnedNotification::Idle => self.knock_at = Some(now),
            OwnedNotification::Active | OwnedNotification::Defunct => {}
        }
    }

    fn report(&mut self, identity: Identity, alive: bool, effects: &mut Vec<Effect>) {
        let unchanged = self.known.get(&identity.key).is_some_and(|known| {
            let Identity { boot, link, gossip, .. } = &known.identity;
            (known.alive, boot, link, gossip)
                == (alive, &identity.boot, &identity.link, &identity.gossip)
        });
        if self.known.len() < KNOWN_MAX || self.known.contains_key(&identity.key) {
            self.known.insert(identity.key, Known { identity: identity.clone(), alive });
        }
        if !unchanged {
            effects.push(if alive { Effect::Alive(identity) } else { Effect::Dead(identity) });
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
        // With the envelope below the 1,232 bytes that every IPv6 path carries.
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
    /// By time, then in foca's own order for timers of one moment, then as they were made.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, &self.timer, self.number).cmp(&(other.at, &other.timer, other.number))
    }
}
