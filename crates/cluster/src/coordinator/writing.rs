//! Writing: the request is performed here, and its outcome is sent to the other replicas.
//!
//! A replica that is away gets a hint. If a replica holds something newer than a blind write, the
//! write is retried under a newer version: the other may have been acknowledged long ago by a node
//! whose clock is ahead, and an acknowledged write must be newer than all acknowledged before.
//!
//! A guarded write was computed from the current record, and of two computed from the same record
//! not both may be acknowledged. Its version is the one that its read quorum promised. A replica
//! counts if it applied the write, which needs that it held nothing but the base, or if it holds
//! something newer that was computed from the write. Anything else, older or newer, is a conflict:
//! if no other core holds the write, it is undone and computed again.

use super::*;
use crate::message::WriteOutcome;
use crate::record::Record;
use ringlane_types::request::Operation as Command;

impl Coordinator {
    /// Performs the request on the own store; continues with the replicas if that changed anything.
    pub(super) fn apply<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let replication = self.settings.replication;
        if let Origin::Node(peer, _) = operation.origin
            && !operation.kind.may_change()
            && let Ok(request) = &codec::decode_request(&operation.request)
            && self.answer_must_wait(peer, request, turn)
        {
            return self.congest(id, operation, peer);
        }
        if operation.guarded {
            let bytes = self.length_here(&operation.key, turn).unwrap_or(0);
            if self.holds_too_much(operation.origin, bytes) {
                return self.refuse_busy(id, operation, turn);
            }
        }
        // In place: moving it right after it was written would stall on store forwarding.
        let mut decoded = codec::decode_request(&operation.request);
        let request = decoded.as_mut().expect("checked at first");
        request.hash = self.hash(request.key);
        self.mark_exposed(request.key);
        operation.response.clear();
        if !operation.kind.may_change() {
            turn.store.execute(request, Version::NONE, turn.now, &mut operation.response);
            return self.finish(id, operation, turn);
        }
        operation.base = Version::NONE;
        operation.prior.clear();
        if operation.guarded
            && let Some(held) = turn.store.read(request.key, turn.now)
        {
            operation.base = held.version;
            operation.prior.set(&held);
        }
        let version = if operation.guarded { operation.version } else { self.clock.next(turn.now) };
        turn.store.execute(request, version, turn.now, &mut operation.response);
        if is_refused_set(&request.operation, &operation.response) {
            // The old value is gone here, so the others must not keep it.
            let gone = Record::deleted(version);
            turn.store.merge(request.key, &gone, turn.now);
        }
        if self.held_version(request.key, turn) != version {
            return self.finish(id, operation, turn);
        }
        if operation.guarded {
            self.begin_attempt(&operation.key, operation.base, version);
        }
        operation.version = version;
        operation.stage = Stage::Writing;
        operation.needed = replication.writes_for(operation.consistency);
        for replica in &mut operation.replicas {
            let here = replica.node == self.me;
            replica.state = if here { State::Applied } else { State::Unasked };
        }
        self.write(id, operation, turn)
    }

    /// Sends the write to replicas that have not got it, and ends the operation if possible.
    pub(super) fn write<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let mut unreached = ArrayVec::<NodeKey, REPLICAS_MAX>::new();
        let Turn { now, store, effects } = turn;
        let record = store.read(&operation.key, *now);
        let held = record.as_ref().map_or(Version::NONE, |record| record.version);
        let follows = self.follows(held, &operation);
        for at in 0..operation.replicas.len() {
            let Replica { node, boot, state } = operation.replicas[at];
            if state != State::Unasked {
                continue;
            }
            operation.replicas[at].state = match &record {
                Some(record) if follows => {
                    match self.send_write(id, &operation, (node, boot), record, *now, *effects) {
                        Sent::Yes => State::Asked(*now),
                        Sent::Later => State::Congested,
                        Sent::No => {
                            unreached.push(node);
                            State::Failed
                        }
                    }
                }
                // Something newer that was not computed from ours has arrived here, or ours is no
                // longer here. Sending the record here would not tell the others of ours.
                _ => State::Superseded,
            };
        }
        for node in unreached {
            self.keep_hint(node, &operation.key, turn);
        }
        self.evaluate_acks(id, operation, turn)
    }

    /// Sends a replica the record held here. It may be newer than a guarded write, but then it was
    /// computed from that.
    fn send_write(
        &mut self,
        id: OperationId,
        operation: &Operation,
        (node, boot): (NodeKey, Boot),
        record: &Record<'_>,
        now: Instant,
        effects: &mut impl Effects,
    ) -> Sent {
        if !self.is_present(node, boot) || !self.peers.admits(node, now) {
            return Sent::No;
        }
        let key = &operation.key[..];
        let Some(to) = self.peer(node, key) else { return Sent::No };
        let record = *record;
        let out = match effects.request_buffer(to, record.value_bytes()) {
            PeerBuffer::Open(out) => out,
            PeerBuffer::Full => {
                self.peers.not_sent(node, now);
                self.wait_for_room(to, id);
                return Sent::Later;
            }
            PeerBuffer::Unlinked => {
                self.peers.failed(node, now);
                return Sent::No;
            }
        };
        let own = record.version == operation.version;
        let guard = operation.guarded.then_some(operation.base).filter(|_| own);
        if !own {
            self.mark_exposed(key);
        }
        Message::Write { operation: id, stamp: operation.stamp, guard, key, record }.write(out);
        Sent::Yes
    }

    /// Answers when enough replicas hold the write; retries, or gives up, when that is impossible.
    fn evaluate_acks<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let needed = operation.needed as usize;
        let applied = operation.count(|state| state == State::Applied);
        let asked = operation
            .count(|state| matches!(state, State::Asked(_) | State::Unasked | State::Congested));
        if applied >= needed {
            self.end_attempt(&operation);
            self.answer(&mut operation, turn);
            operation.release();
        }
        if asked > 0 && (operation.answered || applied + asked >= needed) {
            return Some(operation);
        }
        if operation.answered {
            self.hint_refusers(&operation, turn);
            return self.finish(id, operation, turn);
        }
        let superseded = operation.count(|state| state == State::Superseded);
        if superseded > 0 && !operation.guarded {
            self.counters.write_retries += 1;
            return self.apply(id, operation, turn);
        }
        let conflicts = superseded + operation.count(|state| state == State::Conflict);
        let alone = conflicts + 1 == operation.replicas.len() && applied == 1;
        if conflicts > 0 && alone && !operation.asked_again {
            // No other replica has it. If nobody has seen it either, it is undone, and the next
            // check reads what the others had; otherwise the outcome is unknown.
            self.counters.write_retries += 1;
            if !self.end_attempt(&operation) {
                self.hint_refusers(&operation, turn);
                return self.finish_uncertain(id, operation, turn);
            }
            self.roll_back(&operation, turn);
            operation.stage = Stage::Waiting;
            return Some(operation);
        }
        if asked > 0 {
            // Some may still apply it; the requester should not wait for that.
            return Some(operation);
        }
        self.hint_refusers(&operation, turn);
        self.finish_short(id, operation, applied, turn)
    }

    /// Replicas that refused a guarded write still hold something older; they are sent it without
    /// the condition.
    fn hint_refusers<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &Operation,
        turn: &mut Turn<'_, S, O>,
    ) {
        for replica in &operation.replicas {
            if replica.state == State::Conflict {
                self.keep_hint(replica.node, &operation.key, turn);
            }
        }
    }

    /// Records that a guarded write, computed from `base`, is in progress.
    fn begin_attempt(&mut self, key: &[u8], base: Version, version: Version) {
        let hash = self.hash(key).to_bits();
        let before = self.attempts.get(&hash).filter(|before| before.version == base);
        let since = before.map_or(version, |before| before.since);
        self.attempts.insert(hash, Attempt { version, since, exposed: false });
    }

    /// Whether version `held` includes the operation's write: it is that write, or was computed
    /// here from it.
    fn follows(&self, held: Version, operation: &Operation) -> bool {
        let version = operation.version;
        let attempt = || self.attempts.get(&self.hash(&operation.key).to_bits());
        let computed = |attempt: &Attempt| attempt.version == held && attempt.since <= version;
        held == version || operation.guarded && attempt().is_some_and(computed)
    }

    /// Records that somebody sees the record of `key`.
    pub(super) fn mark_exposed(&mut self, key: &[u8]) {
        if self.attempts.is_empty() {
            return;
        }
        let hash = self.hash(key).to_bits();
        if let Some(attempt) = self.attempts.get_mut(&hash) {
            attempt.exposed = true;
        }
    }

    /// Records that somebody sees all records.
    pub(super) fn mark_all_exposed(&mut self) {
        self.attempts.values_mut().for_each(|attempt| attempt.exposed = true);
    }

    /// A guarded write is decided. Returns whether it was an attempt that nobody had seen.
    pub(super) fn end_attempt(&mut self, operation: &Operation) -> bool {
        if !operation.guarded {
            return false;
        }
        let hash = self.hash(&operation.key).to_bits();
        let own = |attempt: &&Attempt| attempt.version == operation.version;
        let Some(attempt) = self.attempts.get(&hash).filter(own).copied() else { return false };
        self.attempts.remove(&hash);
        !attempt.exposed
    }

    fn roll_back<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &Operation,
        turn: &mut Turn<'_, S, O>,
    ) {
        let prior = operation.prior.get();
        let prior = (prior.version != Version::NONE).then_some(&prior);
        turn.store.roll_back(&operation.key, operation.version, prior, turn.now);
    }

    /// A replica has answered a write.
    pub(super) fn write_replied<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        id: OperationId,
        outcome: WriteOutcome,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.peers.succeeded(from.node, turn.now);
        let Some(mut operation) = self.operations.take(id) else { return };
        let asked = operation
            .replica(from.node)
            .is_some_and(|replica| matches!(replica.state, State::Asked(_)));
        if operation.stage != Stage::Writing || !asked {
            return self.operations.keep(id, operation);
        }
        let state = match outcome {
            WriteOutcome::Applied => State::Applied,
            WriteOutcome::Superseded(version) | WriteOutcome::Conflict(version) => {
                let _ = self.clock.observe(version, turn.now);
                match outcome {
                    WriteOutcome::Conflict(_) => State::Conflict,
                    _ if self.follows(version, &operation) => State::Applied,
                    _ => State::Superseded,
                }
            }
            WriteOutcome::NotReady | WriteOutcome::OtherView(_) => {
                // Sent again at the next check, when views may agree.
                let replica = operation.replica(from.node).expect("just found");
                replica.state = State::Unasked;
                return self.operations.keep(id, operation);
            }
            WriteOutcome::TooLarge | WriteOutcome::NoMemory | WriteOutcome::ClockAhead => {
                State::Failed
            }
        };
        operation.replica(from.node).expect("just found").state = state;
        if let Some(operation) = self.evaluate_acks(id, operation, turn) {
            self.operations.keep(id, operation);
        }
    }

    /// The view has changed while replicas were being told: those of the new one count.
    pub(super) fn write_under_new_view<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let Some(placement) = &self.placement else { return Some(operation) };
        operation.stamp = placement.view.stamp();
        let members = self.members(operation.point);
        let here = members.contains(&(self.me, self.boot));
        if !here || self.must_fetch(&operation, turn) {
            // The new replicas must now decide whether it holds; only a blind write can be
            // restarted.
            if operation.answered {
                return self.finish(id, operation, turn);
            }
            if operation.guarded {
                return self.finish_uncertain(id, operation, turn);
            }
            return self.route(id, operation, turn);
        }
        operation.replicas.clear();
        operation.asked_again = true;
        for (node, boot) in members {
            let state = if node == self.me { State::Applied } else { State::Unasked };
            operation.replicas.push(Replica { node, boot, state });
        }
        self.write(id, operation, turn)
    }

    /// Keeps the record held here for a replica that could not be told.
    pub(super) fn keep_hint<S: ReplicaStore, O: Effects>(
        &mut self,
        node: NodeKey,
        key: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        // A hint is sent whatever happens to the write meanwhile.
        self.mark_exposed(key);
        if let Some(record) = turn.store.read(key, turn.now) {
            self.hints.keep(node, key, &record, turn.now);
        }
    }

    /// Delivers the hints of nodes that are back, and drops those that are too old.
    pub(super) fn hand_over_hints<S: ReplicaStore, O: Effects>(
        &mut self,
        turn: &mut Turn<'_, S, O>,
    ) {
        if self.hints.is_empty() {
            return;
        }
        let view = self.placement.as_ref().map(|placement| placement.view.clone());
        self.hints.expire(turn.now, |node| {
            view.as_ref().is_none_or(|view| view.roster().member(node).is_some())
        });
        let nodes: ArrayVec<NodeKey, 64> = self.hints.nodes().take(64).collect();
        for node in nodes {
            self.hand_over(node, turn);
        }
    }

    fn hand_over<S: ReplicaStore, O: Effects>(&mut self, node: NodeKey, turn: &mut Turn<'_, S, O>) {
        if !self.peers.is_present(node) {
            return;
        }
        let Some(reach) = self.reach.get(&node).copied() else { return };
        let effects = &mut *turn.effects;
        self.hints.hand_over(node, turn.now, |ticket, key, record| {
            let to = Peer { node, core: reach.facts.core_of(key) };
            if let Some(out) = effects.request_buffer(to, record.value_bytes()).open() {
                Message::Merge { ticket, key, record: *record }.write(out);
            }
        });
    }

    /// A replica has stored what it was sent under `ticket`, or holds something newer.
    pub(super) fn merged<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        ticket: u64,
        turn: &mut Turn<'_, S, O>,
    ) {
        if self.hints.confirmed(from.node, ticket) {
            self.hand_over(from.node, turn);
        }
    }
}

/// Whether a set was refused in a way that also removes what was there.
fn is_refused_set(command: &Command<'_>, response: &[u8]) -> bool {
    let removes = matches!(command, Command::Store(store) if store.refusal_removes);
    let refused =
        matches!(codec::decode_response(response), Ok(Response::TooLarge | Response::OutOfMemory));
    removes && refused
}
