//! How the members decide on the next roster: one decision after the other, each by a majority.
//!
//! Gossip alone would let two nodes compute two rings of the same age, and two quorums that never
//! meet. So what follows a roster is decided once, among the members of that roster, by Paxos with
//! a single decision: a proposer gets promises from a majority, proposes what the highest ballot
//! among them had accepted or else what was requested, and a majority that accepts decides. A
//! member's votes are kept in memory only. That is sound because a restart is a new boot, which
//! has no vote until it is in the roster: a member that forgets its promises is no member any more.
//!
//! A cluster that lost the majority of its members for good could never decide again. Then, and
//! only then, those who are left decide among themselves, without the members they hold for gone
//! ([`Instance::without`]). Two parts of a cluster may do so apart; where two histories meet, the
//! one that [supersedes](Roster::supersedes) the other stays and the others join it anew.
//!
//! Refused: a leader with a log (there are a few decisions a day), and rings that merge (two
//! incomparable rings can serve disjoint quorums before they do).

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

/// A proposer gives up a try after this.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// A request that nobody repeated is dropped after this.
const REQUEST_LIFETIME: Duration = Duration::from_secs(15);
/// Most requests kept; further ones are dropped and repeated by their senders.
const REQUESTS_MAX: usize = 256;
/// Most decisions a member votes in at once: the ordinary one and some without gone members.
const VOTES_MAX: usize = 8;

/// An input of the consensus.
#[derive(Clone, Debug)]
pub enum ConsensusEvent {
    /// The nearest deadline has come; harmless at any time.
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

/// What follows from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsensusEffect {
    /// Send a message; it may be lost.
    Send {
        /// Whom to.
        to: NodeKey,
        /// The message.
        message: ConsensusMessage,
    },
    /// A roster was decided on. They come in order, each the parent of the next; a node's first
    /// ones may be from before its time.
    Decided(Arc<Roster>),
    /// Another history of this cluster supersedes ours: give up membership, and all data where
    /// promises are given, and join those.
    HistorySuperseded(Arc<Roster>),
}

/// What the proposer should take into account.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'s> {
    /// Members that this node would decide without, if most are such: dead for long, or replaced
    /// by a later boot.
    pub gone: &'s [(NodeKey, Boot)],
    /// Wait with changes: the last one has not been digested.
    pub hold: bool,
}

/// One node's part in the decisions.
#[derive(Debug)]
pub struct RosterConsensus {
    me: NodeKey,
    boot: Boot,
    /// The latest rosters, each the parent of the next; empty before this node knows any.
    log: VecDeque<Arc<Roster>>,
    votes: HashMap<u64, Vote>,
    proposal: Option<Proposal>,
    requests: Vec<RequestedChange>,
    propose_at: Option<Instant>,
    round: u32,
    random: Xoshiro256PlusPlus,
}

/// What this node promised and accepted in one decision.
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
    /// What the highest ballot among the promises had accepted.
    found: Option<(Ballot, Arc<Roster>)>,
    /// What is proposed, from the second phase on.
    value: Option<Arc<Roster>>,
    until: Instant,
}

#[derive(Debug)]
struct RequestedChange {
    change: Change,
    until: Instant,
}

impl RosterConsensus {
    /// The part of the node `me` in `boot`. `seed` decides every random choice.
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

    /// Takes one event; what follows from it is appended to `effects`.
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

    /// Random, so that of several members with the same request one is first.
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

    /// Sends `message` to all who vote, this node included.
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

    /// This node's vote in `instance`, if it has one. Who is behind, or ahead, is put right.
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
        // A majority that is only a majority for some is one for nobody: whoever votes without
        // others must miss them too.
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
            // Who decides without the gone removes them too, or the next decision would be
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
            // Newcomers get the history too, so that every log is as long as it can be.
            let known = if parent.member(to).is_some() { parent.digest() } else { 0 };
            self.send_chain(to, known, effects);
        }
    }

    /// Adopts what was decided.
    fn adopt(&mut self, roster: Arc<Roster>, now: Instant, effects: &mut Vec<ConsensusEffect>) {
        self.log.push_back(roster.clone());
        if self.log.len() > CHAIN_MAX {
            self.log.pop_front();
        }
        self.votes.clear();
        self.proposal = None;
        // A member that was just removed does not return because of an old request.
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

    /// Sends `to` the chain from the roster with `digest` on, or all that is known.
    fn send_chain(&mut self, to: NodeKey, digest: u64, effects: &mut Vec<ConsensusEffect>) {
        let known = self.log.iter().position(|roster| roster.digest() == digest);
        if known.is_some_and(|at| at + 1 == self.log.len()) || self.log.is_empty() {
            return;
        }
        let chain = self.log.iter().skip(known.unwrap_or(0)).cloned().collect();
        effects.push(ConsensusEffect::Send { to, message: ConsensusMessage::Chain(chain) });
    }

    /// Follows a chain of decisions as far as it continues what this node knows.
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
            // It does not reach back to where we are; whoever knows more will be asked.
        } else if last.supersedes(&current) {
            effects.push(ConsensusEffect::HistorySuperseded(last.clone()));
        } else {
            self.send_chain(from, last.digest(), effects);
        }
    }

    /// Takes over the first chain, if it shows how this node became a member: the roster before that
    /// names those who hold what is now ours.
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
