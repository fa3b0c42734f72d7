//! One node's view of its cluster: liveness, membership, data movement.
//!
//! Gossip ([`Membership`]) determines liveness, the members' decisions ([`RosterConsensus`])
//! determine the roster, and each node reports how far it has copied the ranges assigned to it. The
//! governor combines the three: it founds the cluster or requests to join, has dead nodes removed
//! after a while, delays decisions until the last one has been rebalanced, and notifies the cores
//! of its node of what is in effect.
//!
//! There is one governor per node. It runs beside the cores and handles a few messages per second.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::governor_notice::GovernorNotice;
use super::identity::{Boot, Identity, NodeKey};
use super::membership::{
    Health, Membership, MembershipEffect, MembershipEvent, MembershipSettings,
};
use super::message::{Messages, NodeMessage};
use super::quorum::Replication;
use super::roster::{Change, Roster, RosterMember};
use super::roster_consensus::{
    ConsensusEffect, ConsensusEvent, ConsensusMessage, RosterConsensus, Situation,
};
use super::version::Version;
use super::view::View;
use ringlane_ring::RingParameters;
use ringlane_types::log_limiter::LogKind;
use ringlane_types::time::Instant;

mod event;
mod link_loss_probes;
#[cfg(test)]
mod tests;

pub use event::{GovernorEffect, GovernorEvent, LogLine, MemberStatus};
use link_loss_probes::LinkLossProbes;

/// Interval at which the governor re-evaluates its goals and reports its status to the others.
const ROUND_PERIOD: Duration = Duration::from_secs(1);
/// The first of the nodes that name each other in `--join` waits this long for an existing cluster.
const FOUND_AFTER: Duration = Duration::from_secs(3);
/// The others wait this long for the ones before them.
const FOUND_LATE_AFTER: Duration = Duration::from_secs(10);
/// Longest delay of a decision for nodes that are still copying.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// Maximum other nodes remembered, including dead ones.
const KNOWN_MAX: usize = 4096;

/// Settings of a governor.
#[derive(Clone, Debug)]
pub struct GovernorSettings {
    /// Failure detection.
    pub membership: MembershipSettings,
    /// Parameters of the ring.
    pub ring: RingParameters,
    /// Replicas and quorums.
    pub replication: Replication,
    /// This node's weight on the ring.
    pub weight: u32,
    /// Cores of this node.
    pub core_count: usize,
}

/// One node's governor.
pub struct Governor {
    settings: GovernorSettings,
    seed: Xoshiro256PlusPlus,
    membership: Membership,
    consensus: RosterConsensus,
    view: Option<Arc<View>>,
    /// The latest boot of each other node reported by gossip.
    known: BTreeMap<NodeKey, Known>,
    link_loss_probes: LinkLossProbes,
    statuses: BTreeMap<NodeKey, Status>,
    settled: Vec<u64>,
    decided_at: Instant,
    rebalanced_epoch: u64,
    flushed: Version,
    round_at: Instant,
    found_at: Option<Instant>,
    leaving: bool,
    handed_over: bool,
    ended: bool,
    gone: Vec<(NodeKey, Boot)>,
}

#[derive(Clone, Debug)]
struct Known {
    identity: Identity,
    alive: bool,
    since: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Status {
    epoch: u64,
    settled: u64,
}

impl Governor {
    /// The governor of the node `identity`. `seed` decides every random choice.
    pub fn new(identity: Identity, settings: GovernorSettings, seed: u64) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let membership = Membership::new(identity.clone(), &settings.membership, random.random());
        let consensus = RosterConsensus::new(identity.key, identity.boot, random.random());
        Self {
            settled: vec![0; settings.core_count],
            settings,
            seed: random,
            membership,
            consensus,
            view: None,
            known: BTreeMap::new(),
            link_loss_probes: LinkLossProbes::default(),
            statuses: BTreeMap::new(),
            decided_at: Instant::default(),
            rebalanced_epoch: 0,
            flushed: Version::NONE,
            round_at: Instant::default(),
            found_at: None,
            leaving: false,
            handed_over: false,
            ended: false,
            gone: Vec::new(),
        }
    }

    /// This node's current identity.
    pub fn identity(&self) -> &Identity {
        self.membership.identity()
    }

    /// The roster in effect, as far as this node knows.
    pub fn roster(&self) -> Option<&Arc<Roster>> {
        self.consensus.roster()
    }

    /// The view in effect.
    pub fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref()
    }

    /// Handles one event; appends its effects to `effects`.
    pub fn handle(
        &mut self,
        event: GovernorEvent<'_>,
        now: Instant,
        effects: &mut Vec<GovernorEffect>,
    ) {
        if self.ended {
            return;
        }
        match event {
            GovernorEvent::Start => {
                self.round_at = now;
                self.found_at = self.founding_time(now);
                self.gossip(MembershipEvent::Start, now, effects);
                self.round(now, effects);
            }
            GovernorEvent::Tick => {
                self.gossip(MembershipEvent::Tick, now, effects);
                self.agree(ConsensusEvent::Tick, now, effects);
                self.probe_after_link_loss(now, effects);
                if self.round_at <= now {
                    self.round(now, effects);
                }
            }
            GovernorEvent::Datagram { from, bytes } => {
                self.gossip(MembershipEvent::Datagram { from, bytes }, now, effects);
            }
            GovernorEvent::Message { from, bytes } => {
                for message in Messages::new(bytes) {
                    let Ok(Ok(message)) = message.map(NodeMessage::read) else { return };
                    self.message(from, message, now, effects);
                }
            }
            GovernorEvent::LinkLost { node } => {
                if self.known.get(&node).is_some_and(|known| known.alive) {
                    self.link_loss_probes.begin(node, now);
                    self.probe_after_link_loss(now, effects);
                }
            }
            GovernorEvent::ConnectionRefused { node, address } => {
                self.refused(node, address, now, effects)
            }
            GovernorEvent::Settled { core, epoch } => {
                self.settled[core] = epoch;
                self.send_status(effects);
                self.announce_rebalanced(effects);
            }
            GovernorEvent::Flush(version) => {
                self.flush(version, effects);
                self.send_status(effects);
            }
            GovernorEvent::SetWeight(weight) => {
                self.settings.weight = weight;
                self.round(now, effects);
            }
            GovernorEvent::Leave => {
                self.leaving = true;
                self.round(now, effects);
            }
            GovernorEvent::Shutdown => {
                self.gossip(MembershipEvent::Leave, now, effects);
                self.ended = true;
            }
        }
    }

    /// When the next [`GovernorEvent::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ended {
            return None;
        }
        let inner = [
            self.membership.next_deadline(),
            self.consensus.next_deadline(),
            self.link_loss_probes.next_deadline(),
        ];
        inner.into_iter().flatten().chain([self.round_at]).min()
    }

    /// The pass that a link to the member at `address` must present there.
    pub fn pass_to(&self, address: SocketAddr) -> u64 {
        self.membership.pass_to(address)
    }

    /// Whether to accept a link from a caller that claims to be this boot of `node` and presents
    /// `pass`.
    pub fn admits_link(&self, node: NodeKey, boot: Boot, pass: u64) -> bool {
        self.membership.admits_link(node, boot, pass)
    }

    /// All members and former members that are remembered, this node included, by id.
    pub fn members(&self) -> Vec<MemberStatus> {
        let roster = self.consensus.roster();
        let weight = |key: NodeKey, boot: Boot| {
            roster
                .and_then(|roster| roster.member(key))
                .filter(|s| s.boot == boot)
                .map(|s| s.weight)
        };
        let me = self.identity().clone();
        let mut members: Vec<MemberStatus> = self
            .membership
            .members()
            .into_iter()
            .map(|(identity, health)| {
                let status = self.statuses.get(&identity.key).copied().unwrap_or_default();
                let Status { epoch, settled } = status;
                let Identity { id, key, boot, link, .. } = identity;
                MemberStatus {
                    weight: weight(key, boot),
                    id,
                    key,
                    boot,
                    link,
                    health,
                    epoch,
                    settled,
                }
            })
            .collect();
        members.push(MemberStatus {
            weight: weight(me.key, me.boot),
            epoch: roster.map_or(0, |roster| roster.epoch),
            settled: self.own_settled(),
            id: me.id,
            key: me.key,
            boot: me.boot,
            link: me.link,
            health: Health::Alive,
        });
        members.sort_by(|a, b| a.id.cmp(&b.id));
        members.dedup_by(|a, b| a.key == b.key);
        members
    }

    /// When this node founds the cluster if it hears of none: at once without nodes to join, a
    /// little later if it is one of several that name each other, the first of them before the
    /// rest. Others never do.
    fn founding_time(&self, now: Instant) -> Option<Instant> {
        let own = self.identity().gossip;
        let join = &self.settings.membership.join;
        if join.iter().all(|address| *address == own) {
            Some(now)
        } else if join.iter().min() == Some(&own) {
            Some(now.after(FOUND_AFTER))
        } else {
            join.contains(&own).then_some(now.after(FOUND_LATE_AFTER))
        }
    }

    /// Re-evaluates all goals, and reports this node's status.
    fn round(&mut self, now: Instant, effects: &mut Vec<GovernorEffect>) {
        self.round_at = now.after(ROUND_PERIOD);
        self.found_cluster(now, effects);
        self.update_gone(now);
        self.request_own_membership(now, effects);
        if self.is_in_roster() {
            for (key, boot) in self.gone.clone() {
                self.agree(
                    ConsensusEvent::RequestChange(Change::Remove { key, boot }),
                    now,
                    effects,
                );
            }
        }
        self.send_status(effects);
        self.announce_rebalanced(effects);
    }

    fn found_cluster(&mut self, now: Instant, effects: &mut Vec<GovernorEffect>) {
        if self.consensus.roster().is_some() {
            self.found_at = None;
        }
        if self.leaving || self.found_at.is_none_or(|at| at > now) {
            return;
        }
        // All live nodes have reported by now whether they know of a cluster; one that precedes us
        // is left to found it. A node that went away without reporting, or knowing of a cluster,
        // may be on the other side of a partition with all the data; it is waited for until it is
        // forgotten.
        let own = self.identity().gossip;
        let forget_after = self.settings.membership.forget_after;
        let elsewhere = self.known.iter().any(|(key, known)| {
            let joins = self.settings.membership.join.contains(&known.identity.gossip);
            let first = known.alive && joins && known.identity.gossip < own;
            let counts = known.alive || now.since(known.since) < forget_after;
            let status = self.statuses.get(key);
            first || counts && status.is_none_or(|status| status.epoch > 0)
        });
        let beginners = self.known.values().filter(|known| known.alive).count() + 1;
        if elsewhere || beginners < self.founders_needed() {
            return;
        }
        self.found_at = None;
        let (member, random) = (self.own_entry(), self.seed.random());
        log(effects, false, member.key.0, format!("founding a cluster as {}", member.id));
        self.agree(ConsensusEvent::FoundCluster { member, random }, now, effects);
    }

    /// Number of nodes without a cluster needed to found one, unless this node has none to join.
    /// Acknowledged writes are on a write quorum; if that many nodes have lost them, or never had
    /// them, the guarantee no longer applies. Fewer may have been restarted and cut off, and would
    /// answer with misses.
    fn founders_needed(&self) -> usize {
        let own = self.identity().gossip;
        let alone = self.settings.membership.join.iter().all(|address| *address == own);
        let replication = self.settings.replication;
        if alone || !replication.is_strict() { 1 } else { replication.write_quorum().into() }
    }

    fn own_entry(&self) -> RosterMember {
        let Identity { id, key, gossip, link, boot, .. } = self.identity().clone();
        RosterMember { id, key, boot, weight: self.settings.weight, slot: 0, gossip, link }
    }

    fn is_in_roster(&self) -> bool {
        let Identity { key, boot, .. } = *self.identity();
        self.consensus.roster().is_some_and(|roster| roster.has(key, boot))
    }

    /// Requests this node's own membership, or its end, from members who can decide.
    fn request_own_membership(&mut self, now: Instant, effects: &mut Vec<GovernorEffect>) {
        let Identity { key, boot, .. } = *self.identity();
        let change =
            if self.leaving { Change::Remove { key, boot } } else { Change::Add(self.own_entry()) };
        if self.consensus.roster().is_some_and(|roster| roster.satisfies(&change)) {
            return;
        }
        if self.is_in_roster() {
            return self.agree(ConsensusEvent::RequestChange(change), now, effects);
        }
        if self.leaving {
            return;
        }
        // Any member will do; ask a few, because one may be out of touch.
        let mut alive: Vec<NodeKey> =
            self.known.iter().filter(|(_, known)| known.alive).map(|(key, _)| *key).collect();
        for _ in 0..3.min(alive.len()) {
            let chosen = self.seed.random_range(0..alive.len());
            let to = alive.swap_remove(chosen);
            send_consensus(to, ConsensusMessage::RequestChange(change.clone()), effects);
        }
    }

    /// Members that will not come back: dead for long, or alive under a later boot.
    fn update_gone(&mut self, now: Instant) {
        let forget_after = self.settings.membership.forget_after;
        let Some(roster) = self.consensus.roster() else { return };
        let gone = |member: &&RosterMember| {
            self.known.get(&member.key).is_some_and(|known| {
                let later = known.identity.boot > member.boot;
                later || (!known.alive && now.since(known.since) >= forget_after)
            })
        };
        self.gone =
            roster.members().iter().filter(gone).map(|member| (member.key, member.boot)).collect();
    }

    fn own_settled(&self) -> u64 {
        self.settled.iter().copied().min().unwrap_or(0)
    }

    fn send_status(&self, effects: &mut Vec<GovernorEffect>) {
        let (stamp, epoch) =
            self.consensus.roster().map_or((0, 0), |roster| (roster.digest(), roster.epoch));
        let (settled, flushed) = (self.own_settled(), self.flushed);
        let mut bytes = Vec::new();
        NodeMessage::Status { stamp, epoch, settled, flushed }.write(&mut bytes);
        for (node, _) in self.known.iter().filter(|(_, known)| known.alive) {
            effects.push(GovernorEffect::Send { to: *node, bytes: bytes.clone() });
        }
    }

    /// Whether all live members hold the data assigned to them up to the roster in effect.
    fn is_rebalanced(&self) -> bool {
        let Some(roster) = self.consensus.roster() else { return false };
        let me = self.identity().key;
        roster.members().iter().all(|member| {
            if member.key == me {
                return self.own_settled() >= roster.epoch || !self.is_in_roster();
            }
            let alive = self
                .known
                .get(&member.key)
                .is_some_and(|known| known.alive && known.identity.boot == member.boot);
            !alive || self.has_settled(member.key, roster.epoch)
        })
    }

    /// Whether all members hold the data assigned to them, including unreachable ones: a node that
    /// was cut off considers all others dead, and may hold the only copy of writes it acknowledged.
    fn is_handed_over(&self) -> bool {
        let me = self.identity().key;
        self.consensus.roster().is_some_and(|roster| {
            let mut others = roster.members().iter().filter(|member| member.key != me);
            others.all(|member| self.has_settled(member.key, roster.epoch))
        })
    }

    /// Whether `node` has reported that it holds the data assigned to it up to the roster of
    /// `epoch`.
    fn has_settled(&self, node: NodeKey, epoch: u64) -> bool {
        self.statuses.get(&node).is_some_and(|status| status.settled >= epoch)
    }

    fn announce_rebalanced(&mut self, effects: &mut Vec<GovernorEffect>) {
        // Without a roster there is nothing to hand over, and without other members no receiver.
        let Identity { key, boot, .. } = *self.identity();
        let alone = |roster: &Arc<Roster>| roster.members().len() == 1 && roster.has(key, boot);
        if self.leaving && self.consensus.roster().is_none_or(alone) {
            self.hand_over(effects);
        }
        let Some(epoch) = self.consensus.roster().map(|roster| roster.epoch) else { return };
        if !self.is_rebalanced() {
            return;
        }
        if self.rebalanced_epoch < epoch {
            self.rebalanced_epoch = epoch;
            effects.push(GovernorEffect::Notice(GovernorNotice::Rebalanced(epoch)));
        }
        if self.leaving && !self.is_in_roster() && self.is_handed_over() {
            self.hand_over(effects);
        }
    }

    fn hand_over(&mut self, effects: &mut Vec<GovernorEffect>) {
        if !std::mem::replace(&mut self.handed_over, true) {
            effects.push(GovernorEffect::HandedOver);
        }
    }

    fn flush(&mut self, version: Version, effects: &mut Vec<GovernorEffect>) {
        if version > self.flushed {
            self.flushed = version;
            effects.push(GovernorEffect::Notice(GovernorNotice::Flushed(version)));
        }
    }

    fn message(
        &mut self,
        from: NodeKey,
        message: NodeMessage<'_>,
        now: Instant,
        effects: &mut Vec<GovernorEffect>,
    ) {
        match message {
            NodeMessage::Consensus(message) => {
                // A late message must not add a node that has left or is gone.
                if let ConsensusMessage::RequestChange(Change::Add(member)) = &message
                    && !self.known.get(&member.key).is_some_and(|known| {
                        known.alive && known.identity.boot == member.boot && member.key == from
                    })
                {
                    return;
                }
                self.agree(ConsensusEvent::Message { from, message }, now, effects);
            }
            NodeMessage::Status { stamp, epoch, settled, flushed } => {
                self.statuses.insert(from, Status { epoch, settled });
                self.flush(flushed, effects);
                let (own_stamp, own_epoch) = self
                    .consensus
                    .roster()
                    .map_or((0, 0), |roster| (roster.digest(), roster.epoch));
                if own_epoch > 0 && stamp != own_stamp && epoch >= own_epoch {
                    send_consensus(
                        from,
                        ConsensusMessage::RequestChain { digest: own_stamp },
                        effects,
                    );
                }
                self.announce_rebalanced(effects);
            }
            _ => {}
        }
    }

    fn gossip(
        &mut self,
        event: MembershipEvent<'_>,
        now: Instant,
        effects: &mut Vec<GovernorEffect>,
    ) {
        let mut outcome = Vec::new();
        self.membership.handle(event, now, &mut outcome);
        for effect in outcome {
            match effect {
                MembershipEffect::Send { to, bytes } => {
                    effects.push(GovernorEffect::Datagram { to, bytes });
                }
                MembershipEffect::Alive(identity) => self.alive(identity, now, effects),
                MembershipEffect::Dead(identity) => self.dead(identity, now, effects),
                MembershipEffect::Rejoined => {
                    let text = "rejoined: the other nodes had declared this node dead".into();
                    log(effects, true, self.identity().key.0, text);
                }
                MembershipEffect::Refused { from, reason } => {
                    let text = format!("refused {from}: {}", reason.sentence());
                    log_datagram(effects, LogKind::Refused, from, text);
                }
                MembershipEffect::RefusedBy { from, reason } => {
                    let sentence = reason.sentence();
                    let text = format!("{from} refuses this node: {sentence}");
                    log_datagram(effects, LogKind::RefusedBy, from, text);
                }
                MembershipEffect::Superseded { by } => {
                    self.ended = true;
                    effects.push(GovernorEffect::Superseded { by });
                }
            }
        }
    }

    fn probe_after_link_loss(&mut self, now: Instant, effects: &mut Vec<GovernorEffect>) {
        while let Some(node) = self.link_loss_probes.next(now) {
            let known = self.known.get(&node).filter(|known| known.alive);
            if let Some(address) = known.map(|known| known.identity.link) {
                effects.push(GovernorEffect::ProbeListener { node, address });
            }
        }
    }

    /// A process listens as long as it lives, so the boot we know of has ended.
    fn refused(
        &mut self,
        node: NodeKey,
        address: SocketAddr,
        now: Instant,
        effects: &mut Vec<GovernorEffect>,
    ) {
        let there = |known: &&Known| known.alive && known.identity.link == address;
        if let Some(known) = self.known.get(&node).filter(there) {
            self.link_loss_probes.end(node);
            let boot = known.identity.boot;
            self.gossip(MembershipEvent::ListenerGone { node, boot }, now, effects);
        }
    }

    fn alive(&mut self, identity: Identity, now: Instant, effects: &mut Vec<GovernorEffect>) {
        let Identity { key: node, boot, link: address, .. } = identity;
        self.link_loss_probes.end(node);
        if let Some(former) = self.known.get(&node)
            && former.identity.boot != boot
        {
            let boot = former.identity.boot;
            let address = former.identity.link;
            effects.push(GovernorEffect::Link { node, boot, address, wanted: false });
            effects.push(GovernorEffect::Notice(GovernorNotice::Liveness {
                node,
                boot,
                alive: false,
            }));
            self.statuses.remove(&node);
        }
        log(effects, false, node.0, format!("node {} is alive at {address}", identity.id));
        self.remember(node, Known { identity, alive: true, since: now });
        effects.push(GovernorEffect::Notice(GovernorNotice::Liveness { node, boot, alive: true }));
        effects.push(GovernorEffect::Link { node, boot, address, wanted: true });
        self.round_at = now;
    }

    fn dead(&mut self, identity: Identity, now: Instant, effects: &mut Vec<GovernorEffect>) {
        let Identity { key: node, boot, link: address, .. } = identity;
        self.link_loss_probes.end(node);
        log(effects, true, node.0, format!("node {} is dead", identity.id));
        self.remember(node, Known { identity, alive: false, since: now });
        effects.push(GovernorEffect::Notice(GovernorNotice::Liveness { node, boot, alive: false }));
        effects.push(GovernorEffect::Link { node, boot, address, wanted: false });
        self.round_at = now;
    }

    /// Remembers a node's state, replacing a dead non-member at the limit.
    fn remember(&mut self, node: NodeKey, known: Known) {
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&node) {
            let is_member = |key| self.consensus.roster().is_some_and(|r| r.member(key).is_some());
            let mut others = self.known.iter();
            let gone = others.find(|(key, other)| !other.alive && !is_member(**key));
            let Some(forgotten) = gone.map(|(key, _)| *key) else { return };
            self.known.remove(&forgotten);
            self.statuses.remove(&forgotten);
        }
        self.known.insert(node, known);
    }

    fn agree(&mut self, event: ConsensusEvent, now: Instant, effects: &mut Vec<GovernorEffect>) {
        // A member may wait for data of a dead one; only the next roster removes the latter.
        let hold = self.consensus.roster().is_some()
            && self.gone.is_empty()
            && !self.is_rebalanced()
            && now.since(self.decided_at) < HOLD_MAX;
        let mut outcome = Vec::new();
        let situation = Situation { gone: &self.gone, hold };
        self.consensus.handle(event, situation, now, &mut outcome);
        for effect in outcome {
            match effect {
                ConsensusEffect::Send { to, message } => send_consensus(to, message, effects),
                ConsensusEffect::Decided(roster) => self.decided(roster, now, effects),
                ConsensusEffect::HistorySuperseded(_) => return self.restart_empty(now, effects),
            }
        }
    }

    fn decided(&mut self, roster: Arc<Roster>, now: Instant, effects: &mut Vec<GovernorEffect>) {
        self.decided_at = now;
        let members: Vec<&str> = roster.members().iter().map(|member| &*member.id).collect();
        log(
            effects,
            false,
            roster.epoch,
            format!("roster {}: {}", roster.epoch, members.join(", ")),
        );
        match View::new(roster, self.settings.ring) {
            Ok(view) => {
                let view = Arc::new(view);
                self.view = Some(view.clone());
                effects.push(GovernorEffect::Notice(GovernorNotice::ViewChanged(view)));
            }
            Err(error) => log(effects, true, 0, format!("a roster has no valid ring: {error}")),
        }
        self.update_gone(now);
        self.round_at = now;
    }

    /// Another history of the cluster wins: this node joins it as if it had just been started.
    fn restart_empty(&mut self, now: Instant, effects: &mut Vec<GovernorEffect>) {
        let old = self.identity().clone();
        let boot = Boot(now.as_millis().max(old.boot.0 + 1));
        let text = "another history of this cluster is longer: joining it without data".into();
        log(effects, true, old.key.0, text);
        let identity = Identity::new(&old.id, boot, old.gossip, old.link);
        // Live nodes are found again through these.
        let mut settings = self.settings.membership.clone();
        let alive = self.known.values().filter(|known| known.alive);
        settings.join.extend(alive.map(|known| known.identity.gossip));
        self.membership = Membership::new(identity, &settings, self.seed.random());
        self.consensus = RosterConsensus::new(old.key, boot, self.seed.random());
        for (node, known) in std::mem::take(&mut self.known) {
            let (boot, address) = (known.identity.boot, known.identity.link);
            effects.push(GovernorEffect::Link { node, boot, address, wanted: false });
            effects.push(GovernorEffect::Notice(GovernorNotice::Liveness {
                node,
                boot,
                alive: false,
            }));
        }
        self.statuses.clear();
        self.link_loss_probes = LinkLossProbes::default();
        self.view = None;
        self.settled.fill(0);
        (self.rebalanced_epoch, self.found_at) = (0, None);
        effects.push(GovernorEffect::Notice(GovernorNotice::RestartedEmpty(boot)));
        self.gossip(MembershipEvent::Start, now, effects);
    }
}

fn send_consensus(to: NodeKey, message: ConsensusMessage, effects: &mut Vec<GovernorEffect>) {
    let mut bytes = Vec::new();
    NodeMessage::Consensus(message).write(&mut bytes);
    effects.push(GovernorEffect::Send { to, bytes });
}

fn log(effects: &mut Vec<GovernorEffect>, warning: bool, source: u64, text: String) {
    let kind = LogKind::Members;
    effects.push(GovernorEffect::Log(LogLine { warning, kind, source, text }));
}

/// A log line about a datagram from `from`. Keyed by host, since ports can be chosen freely.
fn log_datagram(effects: &mut Vec<GovernorEffect>, kind: LogKind, from: SocketAddr, text: String) {
    let source = match from.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        // A host with an IPv6 address controls a /64 network.
        IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
    };
    effects.push(GovernorEffect::Log(LogLine { warning: true, kind, source, text }));
}
