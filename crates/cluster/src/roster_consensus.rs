//! Consensus of the members on the next roster: one decision after the other, each by a majority.
//!
//! With gossip alone two nodes could compute two rings of the same age, with disjoint quorums. So
//! the successor of a roster is decided once, among the members of that roster, by single-decree
//! Paxos: a proposer gets promises from a majority, proposes the value accepted under the highest
//! ballot among them or else the requested one, and a majority that accepts decides. A member's
//! votes are held only in memory. That is sound because a restart is a new boot, which has no vote
//! until it is on the roster: a member that forgets its promises is no longer a member.
//!
//! A cluster that permanently lost the majority of its members could never decide again. Then, and
//! only then, the remaining members decide among themselves, without the members they consider gone
//! ([`Instance::without`]). Two parts of a cluster may do so separately; when two histories meet,
//! the one that [supersedes](Roster::supersedes) the other wins and the other's nodes rejoin.
//!
//! Refused: a leader with a log (there are only a few decisions per day), and merging rings (two
//! incomparable rings can serve disjoint quorums before they merge).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::identity::{Boot, NodeKey};
use super::roster::{Change, Roster, RosterMember};
use ringlane_types::time::Instant;

mod message;
#[cfg(test)]
mod tests;

pub use message::{Ballot, CHAIN_MAX, ConsensusMessage, Instance};

/// A proposer abandons an attempt after this.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// A request that is not repeated is dropped after this.
const REQUEST_LIFETIME: Duration = Duration::from_secs(15);
/// Maximum stored requests; further ones are dropped and repeated by their senders.
const REQUESTS_MAX: usize = 256;
/// Maximum decisions a member votes in at once: the ordinary one and some without gone members.
const VOTES_MAX: usize = 8;

/// An input of the consensus.
#[derive(Clone, Debug)]
pub enum ConsensusEvent {
    /// The next deadline is due; harmless at any time.
    Tick,
    /// A message from another node.
    Message {
        /// Its sender.
        from: NodeKey,
        /// The message.
        message: ConsensusMessage,
    },
    /// This node requests a change.
    RequestChange(Change),
    /// This node is the first of a new cluster.
    FoundCluster {
        /// Its entry in the roster.
        member: RosterMember,
        /// A number no other founder uses.
        random: u64,
    },
}

/// An effect of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsensusEffect {
    /// Send a message; it may be lost.
    Send {
        /// The receiver.
        to: NodeKey,
        /// The message.
        message: ConsensusMessage,
    },
    /// A roster was decided. They come in order, each the parent of the next; a node's first ones
    /// may predate it.
    Decided(Arc<Roster>),
    /// Another history of this cluster supersedes ours: leave ours, drop all data if quorums are
    /// strict, and join the other.
    HistorySuperseded(Arc<Roster>),
}

/// Conditions for the proposer.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'s> {
    /// Gone members, without which this node would decide if they are the majority: dead for long,
    /// or replaced by a later boot.
    pub gone: &'s [(NodeKey, Boot)],
    /// Delay changes: the last one has not been rebalanced.
    pub hold: bool,
}

/// One node's consensus state.
#[derive(Debug)]
pub struct RosterConsensus {
    me: NodeKey,
    boot: Boot,
    /// The latest rosters, each the parent of the next; empty while this node knows none.
    log: VecDeque<Arc<Roster>>,
    votes: HashMap<u64, Vote>,
    proposal: Option<Proposal>,
    requests: Vec<RequestedChange>,
    propose_at: Option<Instant>,
    round: u32,
    random: Xoshiro256PlusPlus,
}

/// This node's promise and acceptance in one decision.
#[derive(Clone, Debug, Default)]
struct Vote {
    promised: Ballot,
    accepted: Option<(Ballot, Arc<Roster>)>,
}

#[derive(Debug)]
struct Proposal {
    instance: Instance,
    ballot: Ballot,
    needed: usize,
    promises: HashSet<NodeKey>,
    accepts: HashSet<NodeKey>,
    /// The value accepted under the highest ballot among the promises.
    found: Option<(Ballot, Arc<Roster>)>,
    /// The proposed value, from the second phase on.
    value: Option<Arc<Roster>>,
    until: Instant,
}

#[derive(Debug)]
struct RequestedChange {
    change: Change,
    until: Instant,
}

impl RosterConsensus {
    /// The state of node `me` with boot `boot`. `seed` decides every random choice.
    pub fn new(me: NodeKey, boot: Boot, seed: u64) -> Self {
        Self {
            me,
            boot,
            log: VecDeque::new(),
            votes: HashMap::new(),
            proposal: None,
            requests: Vec::new(),
            propose_at: None,
            round: 0,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
        }
    }

    /// The roster in effect, as far as this node knows.
    pub fn roster(&self) -> Option<&Arc<Roster>> {
        self.log.back()
    }

    /// Handles one event; appends its effects to `effects`.
    pub fn handle(
        &mut self,
        event: ConsensusEvent,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        match event {
            ConsensusEvent::Tick => self.tick(situation, now, effects),
            ConsensusEvent::Message { from, message } => {
                self.message(from, message, situation, now, effects);
            }
            ConsensusEvent::RequestChange(change) => self.request(change, now),
            ConsensusEvent::FoundCluster { member, random } => {
                assert!(self.log.is_empty(), "a member founds no cluster");
                self.adopt(Arc::new(Roster::initial(member, random)), now, effects);
            }
        }
    }

    /// When the next [`ConsensusEvent::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let trying = self.proposal.as_ref().map(|proposal| proposal.until);
        trying.or(self.propose_at)
    }

    fn tick(&mut self, situation: Situation<'_>, now: Instant, effects: &mut Vec<ConsensusEffect>) {
        if self.proposal.as_ref().is_some_and(|proposal| proposal.until <= now) {
            self.proposal = None;
            self.schedule_attempt(now);
        }
        if self.proposal.is_none() && self.propose_at.is_some_and(|at| at <= now) {
            self.propose_at = None;
            self.requests.retain(|request| request.until > now);
            if self.can_propose() {
                if situation.hold {
                    self.schedule_attempt(now);
                } else {
                    self.propose(situation, now, effects);
                }
            }
        }
    }

    fn request(&mut self, change: Change, now: Instant) {
        if self.roster().is_some_and(|roster| roster.satisfies(&change)) {
            return;
        }
        let until = now.after(REQUEST_LIFETIME);
        match self.requests.iter().position(|request| request.change == change) {
            Some(known) => self.requests[known].until = until,
            None if self.requests.len() < REQUESTS_MAX => {
                self.requests.push(RequestedChange { change, until })
            }
            None => return,
        }
        if self.propose_at.is_none() && self.can_propose() {
            self.schedule_attempt(now);
        }
    }

    /// Whether this node is a member and a change is requested.
    fn can_propose(&self) -> bool {
        self.roster().is_some_and(|roster| {
            roster.has(self.me, self.boot)
                && self.requests.iter().any(|request| !roster.satisfies(&request.change))
        })
    }

    /// Random, so that one of several members with the same request comes first.
    fn schedule_attempt(&mut self, now: Instant) {
        let millis = self.random.random_range(10..300);
        self.propose_at = Some(now.after(Duration::from_millis(millis)));
    }

    fn propose(
        &mut self,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        let Some(roster) = self.roster().cloned() else { return };
        let voters = roster.members();
        let is_gone = |member: &&RosterMember| situation.gone.contains(&(member.key, member.boot));
        let mut without: Vec<(NodeKey, Boot)> =
            voters.iter().filter(is_gone).map(|member| (member.key, member.boot)).collect();
        if voters.len() - without.len() > voters.len() / 2 {
            without.clear();
        }
        if without.contains(&(self.me, self.boot)) {
            return;
        }
        let electorate = voters.len() - without.len();
        let instance = Instance { parent: roster.digest(), without };
        self.round += 1;
        let ballot = Ballot { round: self.round, proposer: self.me };
        self.proposal = Some(Proposal {
            instance: instance.clone(),
            ballot,
            needed: electorate / 2 + 1,
            promises: HashSet::new(),
            accepts: HashSet::new(),
            found: None,
            value: None,
            until: now.after(ATTEMPT_TIMEOUT),
        });
        self.send_to_voters(ConsensusMessage::Prepare(instance, ballot), situation, now, effects);
    }

    /// Sends `message` to all voters, including this node.
    fn send_to_voters(
        &mut self,
        message: ConsensusMessage,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        let (Some(roster), Some(proposal)) = (self.roster().cloned(), &self.proposal) else {
            return;
        };
        let without = proposal.instance.without.clone();
        for member in roster.members() {
            if member.key != self.me && !without.contains(&(member.key, member.boot)) {
                effects.push(ConsensusEffect::Send { to: member.key, message: message.clone() });
            }
        }
        self.message(self.me, message, situation, now, effects);
    }

    fn message(
        &mut self,
        from: NodeKey,
        message: ConsensusMessage,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        match message {
            ConsensusMessage::Prepare(instance, ballot) => {
                let Some(vote) = self.vote(from, &instance, situation, effects) else { return };
                let id = instance.id();
                let reply = if ballot >= vote.promised {
                    vote.promised = ballot;
                    ConsensusMessage::Promise {
                        instance: id,
                        ballot,
                        accepted: vote.accepted.clone(),
                    }
                } else {
                    ConsensusMessage::Reject { instance: id, promised: vote.promised }
                };
                self.reply(from, reply, situation, now, effects);
            }
            ConsensusMessage::Accept(instance, ballot, roster) => {
                let follows = |parent: &Arc<Roster>| roster.epoch == parent.epoch + 1;
                if roster.parent != instance.parent || !self.roster().is_some_and(follows) {
                    return;
                }
                let Some(vote) = self.vote(from, &instance, situation, effects) else { return };
                let id = instance.id();
                let reply = if ballot >= vote.promised {
                    vote.promised = ballot;
                    vote.accepted = Some((ballot, roster));
                    ConsensusMessage::Accepted { instance: id, ballot }
                } else {
                    ConsensusMessage::Reject { instance: id, promised: vote.promised }
                };
                self.reply(from, reply, situation, now, effects);
            }
            ConsensusMessage::Promise { instance, ballot, accepted } => {
                self.on_promise(from, instance, ballot, accepted, situation, now, effects);
            }
            ConsensusMessage::Accepted { instance, ballot } => {
                self.on_accepted(from, instance, ballot, now, effects);
            }
            ConsensusMessage::Reject { instance, promised } => {
                let ours = |proposal: &Proposal| proposal.instance.id() == instance;
                if self.proposal.as_ref().is_some_and(ours) {
                    self.round = self.round.max(promised.round);
                    self.proposal = None;
                    self.schedule_attempt(now);
                }
            }
            ConsensusMessage::Chain(rosters) => self.adopt_chain(from, &rosters, now, effects),
            ConsensusMessage::RequestChain { digest } => self.send_chain(from, digest, effects),
            ConsensusMessage::RequestChange(change) => {
                let theirs = matches!(&change, Change::Add(member) if member.key == from);
                if theirs && self.roster().is_some_and(|roster| roster.satisfies(&change)) {
                    self.send_chain(from, 0, effects);
                }
                self.request(change, now);
            }
        }
    }

    fn reply(
        &mut self,
        to: NodeKey,
        message: ConsensusMessage,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        if to == self.me {
            self.message(to, message, situation, now, effects);
        } else {
            effects.push(ConsensusEffect::Send { to, message });
        }
    }

    /// This node's vote in `instance`, if it has one. Brings a sender that is behind or ahead up to
    /// date.
    fn vote(
        &mut self,
        from: NodeKey,
        instance: &Instance,
        situation: Situation<'_>,
        effects: &mut Vec<ConsensusEffect>,
    ) -> Option<&mut Vote> {
        let roster = self.roster()?.clone();
        if roster.digest() != instance.parent {
            if self.log.iter().any(|known| known.digest() == instance.parent) {
                self.send_chain(from, instance.parent, effects);
            } else {
                effects.push(ConsensusEffect::Send {
                    to: from,
                    message: ConsensusMessage::RequestChain { digest: roster.digest() },
                });
            }
            return None;
        }
        // A majority must be one in everyone's eyes: a voter in a decision without some members
        // must consider them gone too.
        let agrees = instance.without.iter().all(|member| situation.gone.contains(member));
        let voter = roster.has(self.me, self.boot) && roster.member(from).is_some();
        if !agrees || !voter || instance.without.contains(&(self.me, self.boot)) {
            return None;
        }
        let id = instance.id();
        if self.votes.len() >= VOTES_MAX && !self.votes.contains_key(&id) {
            return None;
        }
        Some(self.votes.entry(id).or_default())
    }

    #[expect(clippy::too_many_arguments, reason = "one message's fields, and what every event has")]
    fn on_promise(
        &mut self,
        from: NodeKey,
        instance: u64,
        ballot: Ballot,
        accepted: Option<(Ballot, Arc<Roster>)>,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        let Some(proposal) = self
            .proposal
            .as_mut()
            .filter(|proposal| proposal.instance.id() == instance && proposal.ballot == ballot)
        else {
            return;
        };
        if proposal.value.is_some() {
            return;
        }
        proposal.promises.insert(from);
        if let Some(accepted) = accepted
            && proposal.found.as_ref().is_none_or(|found| accepted.0 > found.0)
        {
            proposal.found = Some(accepted);
        }
        if proposal.promises.len() < proposal.needed {
            return;
        }
        let found = proposal.found.take().map(|(_, roster)| roster);
        let gone = proposal.instance.without.clone();
        let requested = || {
            // A decision without gone members also removes them, or the next one would have to be
            // without them again.
            let removal = |&(key, boot): &(NodeKey, Boot)| Change::Remove { key, boot };
            let removals: Vec<Change> = gone.iter().map(removal).collect();
            let changes = self.requests.iter().map(|request| &request.change).chain(&removals);
            self.log.back()?.with(changes).map(Arc::new)
        };
        let Some(value) = found.or_else(requested) else {
            self.proposal = None;
            return;
        };
        let proposal = self.proposal.as_mut().expect("looked at above");
        proposal.value = Some(value.clone());
        let message = ConsensusMessage::Accept(proposal.instance.clone(), ballot, value);
        self.send_to_voters(message, situation, now, effects);
    }

    fn on_accepted(
        &mut self,
        from: NodeKey,
        instance: u64,
        ballot: Ballot,
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        let Some(proposal) = self
            .proposal
            .as_mut()
            .filter(|proposal| proposal.instance.id() == instance && proposal.ballot == ballot)
        else {
            return;
        };
        proposal.accepts.insert(from);
        if proposal.accepts.len() < proposal.needed {
            return;
        }
        let Some(roster) = proposal.value.clone() else { return };
        let parent = self.log.back().expect("only a member proposes").clone();
        self.adopt(roster.clone(), now, effects);
        let mut told: Vec<NodeKey> =
            parent.members().iter().chain(roster.members()).map(|member| member.key).collect();
        told.sort_unstable();
        told.dedup();
        told.retain(|to| *to != self.me);
        for to in told {
            // New members get the history too, so that every log is as long as possible.
            let known = if parent.member(to).is_some() { parent.digest() } else { 0 };
            self.send_chain(to, known, effects);
        }
    }

    /// Adopts a decision.
    fn adopt(&mut self, roster: Arc<Roster>, now: Instant, effects: &mut Vec<ConsensusEffect>) {
        self.log.push_back(roster.clone());
        if self.log.len() > CHAIN_MAX {
            self.log.pop_front();
        }
        self.votes.clear();
        self.proposal = None;
        // A member that was just removed must not return because of an old request.
        let removed = |member: &RosterMember| {
            let before = self.log.iter().rev().nth(1);
            before.is_some_and(|before| before.has(member.key, member.boot))
                && !roster.has(member.key, member.boot)
        };
        self.requests.retain(|request| {
            !roster.satisfies(&request.change)
                && !matches!(&request.change, Change::Add(member) if removed(member))
        });
        effects.push(ConsensusEffect::Decided(roster));
        if self.propose_at.is_none() && self.can_propose() {
            self.schedule_attempt(now);
        }
    }

    /// Sends `to` the chain from the roster with `digest` on, or all known rosters.
    fn send_chain(&mut self, to: NodeKey, digest: u64, effects: &mut Vec<ConsensusEffect>) {
        let known = self.log.iter().position(|roster| roster.digest() == digest);
        if known.is_some_and(|at| at + 1 == self.log.len()) || self.log.is_empty() {
            return;
        }
        let chain = self.log.iter().skip(known.unwrap_or(0)).cloned().collect();
        effects.push(ConsensusEffect::Send { to, message: ConsensusMessage::Chain(chain) });
    }

    /// Follows a chain of decisions as far as it continues this node's log.
    fn adopt_chain(
        &mut self,
        from: NodeKey,
        chain: &[Arc<Roster>],
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        let linked = chain
            .windows(2)
            .all(|pair| pair[1].parent == pair[0].digest() && pair[1].epoch == pair[0].epoch + 1);
        let (Some(last), true) = (chain.last(), linked) else { return };
        let Some(current) = self.roster().cloned() else {
            return self.adopt_first_chain(chain, now, effects);
        };
        if self.log.iter().any(|known| known.digest() == last.digest()) {
            return self.send_chain(from, last.digest(), effects);
        }
        if let Some(next) = chain.iter().position(|roster| roster.parent == current.digest()) {
            chain[next..].iter().for_each(|roster| self.adopt(roster.clone(), now, effects));
        } else if chain[0].epoch > current.epoch + 1 && chain.len() < CHAIN_MAX {
            // It does not reach back to our roster; another node will be asked for more.
        } else if last.supersedes(&current) {
            effects.push(ConsensusEffect::HistorySuperseded(last.clone()));
        } else {
            self.send_chain(from, last.digest(), effects);
        }
    }

    /// Adopts the first chain, if it shows how this node became a member: the roster before that
    /// names the previous holders of its ranges.
    fn adopt_first_chain(
        &mut self,
        chain: &[Arc<Roster>],
        now: Instant,
        effects: &mut Vec<ConsensusEffect>,
    ) {
        match chain.iter().position(|roster| roster.has(self.me, self.boot)) {
            None => {}
            Some(0) if chain.len() < CHAIN_MAX => {}
            Some(0) => {
                effects.push(ConsensusEffect::HistorySuperseded(chain[chain.len() - 1].clone()))
            }
            Some(_) => chain.iter().for_each(|roster| self.adopt(roster.clone(), now, effects)),
        }
    }
}
