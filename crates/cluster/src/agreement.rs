//! How the members decide on the next roster: one decision after the other, each by a majority.
//!
//! Gossip alone would let two nodes compute two rings of the same age, and two quorums that never
//! meet. So what follows a roster is decided once, among the members of that roster, by Paxos with
//! a single decision: a proposer gets promises from a majority, proposes what the highest ballot
//! among them had accepted or else what is wished for, and a majority that accepts decides. A
//! member's votes are kept in memory only. That is sound because a restart is a new boot, which
//! has no vote until it is seated: a member that forgets its promises is no member any more.
//!
//! A cluster that lost the majority of its members for good could never decide again. Then, and
//! only then, those who are left decide among themselves, without the members they hold for gone
//! ([`Instance::without`]). Two parts of a cluster may do so apart; where two histories meet, the
//! one that [outlasts](Roster::outlasts) the other stays and the others join it anew.
//!
//! Refused: a leader with a log (there are a few decisions a day), and rings that merge (two
//! incomparable rings can serve disjoint quorums before they do).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::identity::{Boot, NodeKey};
use super::roster::{Change, Roster, Seat};
use ringlane_types::time::Instant;

mod message;
#[cfg(test)]
mod tests;

pub use message::{Ballot, CHAIN_MAX, Instance, Message};

/// A proposer gives up a try after this.
const TRY_FOR: Duration = Duration::from_secs(1);
/// A wish nobody repeated is dropped after this.
const WISH_FOR: Duration = Duration::from_secs(15);
/// Most wishes kept; further ones are dropped, and repeated by whoever has them.
const WISHES_MAX: usize = 256;
/// Most decisions a member votes in at once: the ordinary one and some without gone members.
const VOTES_MAX: usize = 8;

/// What happens to the agreement.
#[derive(Clone, Debug)]
pub enum Event {
    /// The nearest deadline has come; harmless at any time.
    Tick,
    /// A message from another node.
    Message {
        /// Its sender.
        from: NodeKey,
        /// The message.
        message: Message,
    },
    /// This node wants a change.
    Wish(Change),
    /// This node is the first of a new cluster.
    Found {
        /// Its seat.
        seat: Seat,
        /// A number no other founder uses.
        random: u64,
    },
}

/// What follows from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message; it may be lost.
    Send {
        /// Whom to.
        to: NodeKey,
        /// The message.
        message: Message,
    },
    /// A roster was decided on. They come in order, each the parent of the next; a node's first
    /// ones may be from before its time.
    Decided(Arc<Roster>),
    /// Another history of this cluster outlasts ours: give up the seat, and all data where
    /// promises are given, and join those.
    Outlasted(Arc<Roster>),
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
pub struct Agreement {
    me: NodeKey,
    boot: Boot,
    /// The latest rosters, each the parent of the next; empty before this node knows any.
    log: VecDeque<Arc<Roster>>,
    votes: HashMap<u64, Vote>,
    proposal: Option<Proposal>,
    wishes: Vec<Wish>,
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
struct Wish {
    change: Change,
    until: Instant,
}

impl Agreement {
    /// The part of the node `me` in its life `boot`. `seed` decides every random choice.
    pub fn new(me: NodeKey, boot: Boot, seed: u64) -> Self {
        Self {
            me,
            boot,
            log: VecDeque::new(),
            votes: HashMap::new(),
            proposal: None,
            wishes: Vec::new(),
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
        event: Event,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        match event {
            Event::Tick => self.tick(situation, now, effects),
            Event::Message { from, message } => {
                self.message(from, message, situation, now, effects);
            }
            Event::Wish(change) => self.wish(change, now),
            Event::Found { seat, random } => {
                assert!(self.log.is_empty(), "a member founds no cluster");
                self.decided(Arc::new(Roster::found(seat, random)), now, effects);
            }
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let trying = self.proposal.as_ref().map(|proposal| proposal.until);
        trying.or(self.propose_at)
    }

    fn tick(&mut self, situation: Situation<'_>, now: Instant, effects: &mut Vec<Effect>) {
        if self.proposal.as_ref().is_some_and(|proposal| proposal.until <= now) {
            self.proposal = None;
            self.try_later(now);
        }
        if self.proposal.is_none() && self.propose_at.is_some_and(|at| at <= now) {
            self.propose_at = None;
            self.wishes.retain(|wish| wish.until > now);
            if self.may_propose() {
                if situation.hold {
                    self.try_later(now);
                } else {
                    self.propose(situation, now, effects);
                }
            }
        }
    }

    fn wish(&mut self, change: Change, now: Instant) {
        if self.roster().is_some_and(|roster| roster.satisfies(&change)) {
            return;
        }
        let until = now.after(WISH_FOR);
        match self.wishes.iter().position(|wish| wish.change == change) {
            Some(known) => self.wishes[known].until = until,
            None if self.wishes.len() < WISHES_MAX => self.wishes.push(Wish { change, until }),
            None => return,
        }
        if self.propose_at.is_none() && self.may_propose() {
            self.try_later(now);
        }
    }

    /// Whether this node is a member and somebody wants something.
    fn may_propose(&self) -> bool {
        self.roster().is_some_and(|roster| {
            roster.has(self.me, self.boot)
                && self.wishes.iter().any(|wish| !roster.satisfies(&wish.change))
        })
    }

    /// Random, so that of several members with the same wish one is first.
    fn try_later(&mut self, now: Instant) {
        let millis = self.random.random_range(10..300);
        self.propose_at = Some(now.after(Duration::from_millis(millis)));
    }

    fn propose(&mut self, situation: Situation<'_>, now: Instant, effects: &mut Vec<Effect>) {
        let Some(roster) = self.roster().cloned() else { return };
        let voters = roster.seats();
        let is_gone = |seat: &&Seat| situation.gone.contains(&(seat.key, seat.boot));
        let mut without: Vec<(NodeKey, Boot)> =
            voters.iter().filter(is_gone).map(|seat| (seat.key, seat.boot)).collect();
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
            until: now.after(TRY_FOR),
        });
        self.ask_voters(Message::Prepare(instance, ballot), situation, now, effects);
    }

    /// Sends `message` to all who vote, this node included.
    fn ask_voters(
        &mut self,
        message: Message,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (Some(roster), Some(proposal)) = (self.roster().cloned(), &self.proposal) else {
            return;
        };
        let without = proposal.instance.without.clone();
        for seat in roster.seats() {
            if seat.key != self.me && !without.contains(&(seat.key, seat.boot)) {
                effects.push(Effect::Send { to: seat.key, message: message.clone() });
            }
        }
        self.message(self.me, message, situation, now, effects);
    }

    fn message(
        &mut self,
        from: NodeKey,
        message: Message,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            Message::Prepare(instance, ballot) => {
                let Some(vote) = self.vote(from, &instance, situation, effects) else { return };
                let id = instance.id();
                let reply = if ballot >= vote.promised {
                    vote.promised = ballot;
                    Message::Promise { instance: id, ballot, accepted: vote.accepted.clone() }
                } else {
                    Message::Refuse { instance: id, promised: vote.promised }
                };
                self.reply(from, reply, situation, now, effects);
            }
            Message::Accept(instance, ballot, roster) => {
                let follows = |parent: &Arc<Roster>| roster.epoch == parent.epoch + 1;
                if roster.parent != instance.parent || !self.roster().is_some_and(follows) {
                    return;
                }
                let Some(vote) = self.vote(from, &instance, situation, effects) else { return };
                let id = instance.id();
                let reply = if ballot >= vote.promised {
                    vote.promised = ballot;
                    vote.accepted = Some((ballot, roster));
                    Message::Accepted { instance: id, ballot }
                } else {
                    Message::Refuse { instance: id, promised: vote.promised }
                };
                self.reply(from, reply, situation, now, effects);
            }
            Message::Promise { instance, ballot, accepted } => {
                self.promised(from, instance, ballot, accepted, situation, now, effects);
            }
            Message::Accepted { instance, ballot } => {
                self.accepted(from, instance, ballot, now, effects);
            }
            Message::Refuse { instance, promised } => {
                let ours = |proposal: &Proposal| proposal.instance.id() == instance;
                if self.proposal.as_ref().is_some_and(ours) {
                    self.round = self.round.max(promised.round);
                    self.proposal = None;
                    self.try_later(now);
                }
            }
            Message::Chain(rosters) => self.follow(from, &rosters, now, effects),
            Message::Ask { digest } => self.tell(from, digest, effects),
            Message::Wish(change) => {
                let theirs = matches!(&change, Change::Seat(seat) if seat.key == from);
                if theirs && self.roster().is_some_and(|roster| roster.satisfies(&change)) {
                    self.tell(from, 0, effects);
                }
                self.wish(change, now);
            }
        }
    }

    fn reply(
        &mut self,
        to: NodeKey,
        message: Message,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if to == self.me {
            self.message(to, message, situation, now, effects);
        } else {
            effects.push(Effect::Send { to, message });
        }
    }

    /// This node's vote in `instance`, if it has one. Who is behind, or ahead, is put right.
    fn vote(
        &mut self,
        from: NodeKey,
        instance: &Instance,
        situation: Situation<'_>,
        effects: &mut Vec<Effect>,
    ) -> Option<&mut Vote> {
        let roster = self.roster()?.clone();
        if roster.digest() != instance.parent {
            if self.log.iter().any(|known| known.digest() == instance.parent) {
                self.tell(from, instance.parent, effects);
            } else {
                effects.push(Effect::Send {
                    to: from,
                    message: Message::Ask { digest: roster.digest() },
                });
            }
            return None;
        }
        // A majority that is only a majority for some is one for nobody: whoever votes without
        // others must miss them too.
        let agrees = instance.without.iter().all(|seat| situation.gone.contains(seat));
        let voter = roster.has(self.me, self.boot) && roster.seat(from).is_some();
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
    fn promised(
        &mut self,
        from: NodeKey,
        instance: u64,
        ballot: Ballot,
        accepted: Option<(Ballot, Arc<Roster>)>,
        situation: Situation<'_>,
        now: Instant,
        effects: &mut Vec<Effect>,
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
        let wished = || {
            // Who decides without the gone takes their seats too, or the next decision would be
            // without them again.
            let unseat = |&(key, boot): &(NodeKey, Boot)| Change::Unseat { key, boot };
            let unseats: Vec<Change> = gone.iter().map(unseat).collect();
            let changes = self.wishes.iter().map(|wish| &wish.change).chain(&unseats);
            self.log.back()?.with(changes).map(Arc::new)
        };
        let Some(value) = found.or_else(wished) else {
            self.proposal = None;
            return;
        };
        let proposal = self.proposal.as_mut().expect("looked at above");
        proposal.value = Some(value.clone());
        let message = Message::Accept(proposal.instance.clone(), ballot, value);
        self.ask_voters(message, situation, now, effects);
    }

    fn accepted(
        &mut self,
        from: NodeKey,
        instance: u64,
        ballot: Ballot,
        now: Instant,
        effects: &mut Vec<Effect>,
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
        self.decided(roster.clone(), now, effects);
        let mut told: Vec<NodeKey> =
            parent.seats().iter().chain(roster.seats()).map(|seat| seat.key).collect();
        told.sort_unstable();
        told.dedup();
        told.retain(|to| *to != self.me);
        for to in told {
            // Newcomers get the history too, so that every log is as long as it can be.
            let known = if parent.seat(to).is_some() { parent.digest() } else { 0 };
            self.tell(to, known, effects);
        }
    }

    /// Adopts what was decided.
    fn decided(&mut self, roster: Arc<Roster>, now: Instant, effects: &mut Vec<Effect>) {
        self.log.push_back(roster.clone());
        if self.log.len() > CHAIN_MAX {
            self.log.pop_front();
        }
        self.votes.clear();
        self.proposal = None;
        // A seat that was just given up is not taken again because of an old wish for it.
        let given_up = |seat: &Seat| {
            let before = self.log.iter().rev().nth(1);
            before.is_some_and(|before| before.has(seat.key, seat.boot))
                && !roster.has(seat.key, seat.boot)
        };
        self.wishes.retain(|wish| {
            !roster.satisfies(&wish.change)
                && !matches!(&wish.change, Change::Seat(seat) if given_up(seat))
        });
        effects.push(Effect::Decided(roster));
        if self.propose_at.is_none() && self.may_propose() {
            self.try_later(now);
        }
    }

    /// Sends `to` the chain from the roster with `digest` on, or all that is known.
    fn tell(&mut self, to: NodeKey, digest: u64, effects: &mut Vec<Effect>) {
        let known = self.log.iter().position(|roster| roster.digest() == digest);
        if known.is_some_and(|at| at + 1 == self.log.len()) || self.log.is_empty() {
            return;
        }
        let chain = self.log.iter().skip(known.unwrap_or(0)).cloned().collect();
        effects.push(Effect::Send { to, message: Message::Chain(chain) });
    }

    /// Follows a chain of decisions as far as it continues what this node knows.
    fn follow(
        &mut self,
        from: NodeKey,
        chain: &[Arc<Roster>],
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let linked = chain
            .windows(2)
            .all(|pair| pair[1].parent == pair[0].digest() && pair[1].epoch == pair[0].epoch + 1);
        let (Some(last), true) = (chain.last(), linked) else { return };
        let Some(current) = self.roster().cloned() else {
            return self.begin(chain, now, effects);
        };
        if self.log.iter().any(|known| known.digest() == last.digest()) {
            return self.tell(from, last.digest(), effects);
        }
        if let Some(next) = chain.iter().position(|roster| roster.parent == current.digest()) {
            chain[next..].iter().for_each(|roster| self.decided(roster.clone(), now, effects));
        } else if chain[0].epoch > current.epoch + 1 && chain.len() < CHAIN_MAX {
            // It does not reach back to where we are; whoever knows more will be asked.
        } else if last.outlasts(&current) {
            effects.push(Effect::Outlasted(last.clone()));
        } else {
            self.tell(from, last.digest(), effects);
        }
    }

    /// Takes over the first chain, if it tells how this node was seated: the roster before that
    /// names those who hold what is now ours.
    fn begin(&mut self, chain: &[Arc<Roster>], now: Instant, effects: &mut Vec<Effect>) {
        match chain.iter().position(|roster| roster.has(self.me, self.boot)) {
            None => {}
            Some(0) if chain.len() < CHAIN_MAX => {}
            Some(0) => effects.push(Effect::Outlasted(chain[chain.len() - 1].clone())),
            Some(_) => chain.iter().for_each(|roster| self.decided(roster.clone(), now, effects)),
        }
    }
}
