//! Who performs a request: this core, or another node to which it is forwarded.

use super::*;
use ringlane_types::request::Operation as Command;

impl Coordinator {
    /// Starts an operation, or restarts it under the view in effect.
    pub(super) fn route<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        operation.stage = Stage::Waiting;
        operation.replicas.clear();
        let Some(placement) = &self.placement else {
            return self.refuse_or_wait(id, operation, turn);
        };
        let view = &placement.view;
        operation.stamp = view.stamp();
        let members = self.members(operation.point);
        if !members.contains(&(self.me, self.boot)) {
            return self.forward(id, operation, &members, turn);
        }
        if self.must_fetch(&operation, turn) {
            return self.begin_fetch(id, operation, turn);
        }
        self.coordinate(id, operation, &members, turn)
    }

    /// The nodes that hold the keys at `point`. If availability comes before strictness, the next
    /// ones on the circle stand in for those that are away.
    pub(super) fn members(&self, point: Point) -> Members {
        let Some(placement) = &self.placement else { return Members::new() };
        let view = &placement.view;
        let named = |node| {
            let member = view.member(node);
            (member.key, member.boot)
        };
        let replicas = view.ring().replicas(point);
        let listed: Members = replicas.iter().map(|node| named(*node)).collect();
        let here = |(node, boot): &(NodeKey, Boot)| {
            (*node, *boot) == (self.me, self.boot) || self.peers.is_alive(*node, *boot)
        };
        if self.settings.replication.is_strict() || listed.iter().all(here) {
            return listed;
        }
        let standing: Members =
            view.ring().walk(point).map(named).filter(here).take(replicas.len()).collect();
        if standing.is_empty() { listed } else { standing }
    }

    /// Coordinates an operation that this core may perform: it has everything from the former
    /// holders.
    pub(super) fn coordinate<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        members: &Members,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        match operation.origin {
            Origin::Client(_) => self.counters.coordinated += 1,
            Origin::Node(..) => self.counters.served += 1,
            Origin::Message(from) => {
                let message = std::mem::take(&mut operation.request);
                self.resume(from, &message, turn);
                operation.request = message;
                operation.answered = true;
                return self.finish(id, operation, turn);
            }
        }
        let replication = self.settings.replication;
        let (changes, blind) = (operation.kind.may_change(), operation.kind == Kind::Overwrite);
        let (reads, writes) = (
            replication.reads_for(operation.consistency),
            replication.writes_for(operation.consistency),
        );
        if changes && !blind && self.settings.replication.replicas() > 1 {
            // If two nodes compute from the same record, one of them is refused and has to retry;
            // so all such requests go to the same one, the first that can be reached.
            let first = members.iter().find(|(node, boot)| {
                (*node, *boot) == (self.me, self.boot) || self.is_present(*node, *boot)
            });
            let elsewhere = first.is_some_and(|first| *first != (self.me, self.boot));
            if elsewhere && matches!(operation.origin, Origin::Client(_)) {
                return self.forward(id, operation, members, turn);
            }
        }
        for (node, boot) in members {
            operation.replicas.push(Replica { node: *node, boot: *boot, state: State::Unasked });
        }
        if changes {
            operation.guarded = !blind && replication.replicas() > 1;
            operation.reads_first =
                replication.replicas() > 1 && (!blind || !replication.writes_meet());
            let present = self.present(&operation);
            if present < writes as usize {
                operation.needed = writes;
                return self.finish_short(id, operation, present, turn);
            }
            operation.needed =
                if operation.reads_first { reads.max(replication.read_quorum()) } else { writes };
        } else {
            operation.needed = reads;
        }
        if changes && !operation.reads_first {
            return self.apply(id, operation, turn);
        }
        self.begin_read(id, operation, turn)
    }

    /// How many of the operation's replicas can be asked, this one included.
    pub(super) fn present(&self, operation: &Operation) -> usize {
        let here = |replica: &&Replica| {
            replica.node == self.me || self.is_present(replica.node, replica.boot)
        };
        operation.replicas.iter().filter(here).count()
    }

    /// Passes the request to the first of `members` that takes it.
    fn forward<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        members: &Members,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        match operation.origin {
            Origin::Client(_) => {}
            // One hop only: the sender's view and ours differ, and it must decide again.
            Origin::Node(peer, asked) => {
                self.reply_not_begun(peer, asked, turn);
                operation.answered = true;
                return self.finish(id, operation, turn);
            }
            Origin::Message(peer) => {
                self.reply_other_view(peer, &operation.request, turn);
                operation.answered = true;
                return self.finish(id, operation, turn);
            }
        }
        operation.needed = 1;
        if self.is_answered_by_copy(&mut operation, turn) {
            self.operations.end(id, operation);
            return None;
        }
        for (node, boot) in members {
            if *node == self.me || !self.is_present(*node, *boot) {
                continue;
            }
            if !self.peers.admits(*node, turn.now) {
                continue;
            }
            let Some(to) = self.peer(*node, &operation.key) else { continue };
            let out = match turn.effects.forward_buffer(to, operation.request.len()) {
                PeerBuffer::Open(out) => out,
                PeerBuffer::Full => {
                    self.peers.not_sent(*node, turn.now);
                    return self.congest(id, operation, to);
                }
                PeerBuffer::Unlinked => {
                    self.peers.failed(*node, turn.now);
                    continue;
                }
            };
            let message = Message::Forward(Forward {
                operation: id,
                stamp: operation.stamp,
                consistency: operation.consistency,
                point: operation.point,
                after: operation.version,
                request: &operation.request,
            });
            message.write(out);
            self.counters.forwarded += 1;
            operation.stage = Stage::Forwarded(to);
            operation.sent_at = turn.now;
            return Some(operation);
        }
        self.finish_short(id, operation, 0, turn)
    }

    /// Answers a plain read of a hot key from a copy; drops the copy when the key is changed.
    fn is_answered_by_copy<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &mut Operation,
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        if operation.kind.may_change() {
            self.hot_keys.forget(&operation.key);
            return false;
        }
        operation.hot = self.hot_keys.count(&operation.key, turn.now);
        let Origin::Client(asker) = operation.origin else { return false };
        if !operation.hot || !self.may_be_copied(operation) {
            return false;
        }
        let allowance = operation.allowance();
        let Some(copy) = self.hot_keys.copy(&operation.key, turn.now) else { return false };
        if allowance.is_limited()
            && let Ok(Response::Hit(hit)) = codec::decode_response(copy)
            && let value_bytes = hit.value.len() as u32
            && value_bytes > allowance.0
        {
            self.put_off(asker, operation, value_bytes, turn);
            return true;
        }
        turn.effects.pass_on(asker, copy);
        self.leave_queue(asker, &operation.key);
        true
    }

    /// Checks a forwarded request, whose node may be gone.
    pub(super) fn check_forwarded<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        operation: Box<Operation>,
        to: Peer,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        if self.peers.is_present(to.node) {
            return Some(operation);
        }
        self.peers.failed(to.node, turn.now);
        if operation.kind.may_change() {
            return self.finish_uncertain(id, operation, turn);
        }
        self.route(id, operation, turn)
    }

    /// The node that a request was forwarded to has answered.
    pub(super) fn forward_replied<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        id: OperationId,
        outcome: ForwardOutcome,
        version: Version,
        bytes: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        // Even if it comes too late: a node that answers can be asked.
        self.peers.succeeded(from.node, turn.now);
        let Some(mut operation) = self.operations.take(id) else { return };
        if !matches!(operation.stage, Stage::Forwarded(to) if to.node == from.node) {
            return self.operations.keep(id, operation);
        }
        let _ = self.clock.observe(version, turn.now);
        if operation.kind.may_change() {
            // A read concurrent with the write may have left a copy of the former value.
            self.hot_keys.forget(&operation.key);
        }
        match outcome {
            ForwardOutcome::Answered => match codec::decode_response(bytes) {
                Ok(Response::OverAllowance { value_bytes, .. })
                    if value_bytes > operation.allowance().0 =>
                {
                    if let Origin::Client(asker) = operation.origin {
                        self.put_off(asker, &operation, value_bytes, turn);
                    }
                    self.operations.end(id, operation);
                }
                // No correct peer reports a value within the allowance as over it.
                Ok(Response::OverAllowance { .. }) | Err(_) => {
                    self.counters.malformed += 1;
                    self.finish_uncertain(id, operation, turn);
                }
                Ok(_) => {
                    if let Origin::Client(asker) = operation.origin {
                        self.pass_on(asker, &operation.key, bytes, turn);
                    }
                    self.keep_copy(&operation, bytes, turn.now);
                    self.operations.end(id, operation);
                }
            },
            ForwardOutcome::QuorumNotReached { needed, reached } => {
                self.counters.quorum_failures += 1;
                if let Origin::Client(asker) = operation.origin {
                    let response = Response::QuorumNotReached { needed, reached };
                    self.tell(asker, &operation.key, &response, turn);
                }
                self.operations.end(id, operation);
            }
            ForwardOutcome::Unknown => {
                self.finish_uncertain(id, operation, turn);
            }
            ForwardOutcome::NotBegun => {
                operation.stage = Stage::Waiting;
                self.operations.keep(id, operation);
            }
        }
    }

    /// Keeps the answer to a plain read of a hot key.
    fn keep_copy(&mut self, operation: &Operation, answer: &[u8], now: Instant) {
        if operation.hot && self.may_be_copied(operation) {
            self.hot_keys.keep(&operation.key, answer, now);
        }
    }

    /// Whether a copy may answer: no stricter consistency is requested than is configured, and that
    /// promises no more than a copy can keep.
    fn may_be_copied(&self, operation: &Operation) -> bool {
        operation.kind == Kind::PlainGet
            && operation.consistency == Consistency::Configured
            && !self.settings.replication.is_strict()
    }

    /// Another node forwards a request for this core to coordinate.
    pub(super) fn forwarded_here<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        forward: &Forward<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        let asked = forward.operation;
        let known = self.view().is_some_and(|view| view.stamp() == forward.stamp);
        if self.clock.observe(forward.after, turn.now).is_err() || !known {
            return self.reply_not_begun(from, asked, turn);
        }
        let alone = self.is_sole_replica(forward.point);
        match &mut codec::decode_request(forward.request) {
            Ok(request) if !is_sendable(&request.operation) => {
                self.reply_not_begun(from, asked, turn);
            }
            Ok(request) if alone => {
                // Another node hashes with another seed.
                request.hash = self.hash(request.key);
                if self.answer_must_wait(from, request, turn) {
                    return self.begin_forwarded(from, forward, request, true, turn);
                }
                self.answer_as_sole_replica(from, asked, request, turn);
            }
            Ok(request) => self.begin_forwarded(from, forward, request, false, turn),
            Err(_) => self.reply_not_begun(from, asked, turn),
        }
    }

    /// Starts the operation for another node's request, or makes it wait for room for its answer.
    fn begin_forwarded<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        forward: &Forward<'_>,
        request: &Request<'_>,
        waits: bool,
        turn: &mut Turn<'_, S, O>,
    ) {
        let Some((id, mut operation)) = self.operations.begin(self.until(turn.now)) else {
            return self.reply_not_begun(from, forward.operation, turn);
        };
        operation.origin = Origin::Node(from, forward.operation);
        operation.consistency = forward.consistency;
        operation.kind = Kind::of(&request.operation);
        operation.point = forward.point;
        operation.key.extend_from_slice(request.key);
        operation.request.extend_from_slice(forward.request);
        if !waits {
            return self.begin(id, operation, turn);
        }
        operation.stamp = forward.stamp;
        if let Some(operation) = self.congest(id, operation, from) {
            self.checks.push_back((turn.now.after(CHECK_EVERY), id));
            self.operations.keep(id, operation);
        }
    }

    /// Answers another node's request for a key that no other node holds: no operation is needed.
    fn answer_as_sole_replica<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        asked: OperationId,
        request: &Request<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.counters.served += 1;
        let version = match request.operation.may_change() {
            true => self.clock.next(turn.now),
            false => Version::NONE,
        };
        // Without a link for the answer the requester would not learn of it, so nothing is done.
        if let Some(out) = turn.effects.buffer_for(from) {
            Message::write_answer(asked, version, out, |out| {
                turn.store.execute(request, version, turn.now, out);
            });
        }
    }

    /// Tells another node the outcome of the request it forwarded, with the response if there is
    /// one.
    pub(super) fn reply_forward<S: ReplicaStore, O: Effects>(
        &self,
        peer: Peer,
        asked: OperationId,
        outcome: ForwardOutcome,
        version: Version,
        response: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        if let Some(out) = turn.effects.buffer_for(peer) {
            Message::ForwardReply { operation: asked, outcome, version, response }.write(out);
        }
    }

    pub(super) fn reply_not_begun<S: ReplicaStore, O: Effects>(
        &self,
        peer: Peer,
        asked: OperationId,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.reply_forward(peer, asked, ForwardOutcome::NotBegun, Version::NONE, b"", turn);
    }

    /// Without a view no key can be located: a request from another node is sent back; a client's
    /// request waits a little, since a starting node gets its first view within a second.
    fn refuse_or_wait<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        match operation.origin {
            Origin::Client(_) => return Some(operation),
            Origin::Node(peer, asked) => self.reply_not_begun(peer, asked, turn),
            Origin::Message(peer) => self.reply_other_view(peer, &operation.request, turn),
        }
        operation.answered = true;
        self.finish(id, operation, turn)
    }
}

/// Whether a request has a meaning outside the core it was made for.
fn is_sendable(command: &Command<'_>) -> bool {
    !matches!(
        command,
        Command::Store(ringlane_types::request::Store {
            value: ringlane_types::request::Body::Staged(_),
            ..
        })
    )
}
