//! How operations end: the requester is answered once, and the next in the queue may start.

use super::*;

impl Coordinator {
    /// An operation has timed out.
    pub(super) fn give_up<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        match operation.stage {
            Stage::Forwarded(to) => {
                let since = operation.sent_at;
                let long_ago = turn.now.since(since) >= self.silent_after();
                if long_ago && self.peers.is_silent(to, since) {
                    self.peers.failed(to.node, turn.now);
                }
                self.finish_uncertain(id, operation, turn)
            }
            Stage::Congested(to) => {
                // A link on which nothing was sent in all that time is not merely congested.
                let began = operation.until.before(self.settings.retention.operation);
                if matches!(operation.origin, Origin::Client(_)) && self.peers.is_silent(to, began)
                {
                    self.peers.failed(to.node, turn.now);
                }
                self.finish_busy(id, operation, turn)
            }
            Stage::Writing => {
                for replica in &mut operation.replicas {
                    if !matches!(replica.state, State::Applied | State::Superseded) {
                        replica.state = State::Failed;
                        self.keep_hint(replica.node, &operation.key, turn);
                    }
                }
                let reached = operation.taking_part();
                self.finish_short(id, operation, reached, turn)
            }
            _ => {
                let reached = operation.taking_part();
                self.finish_short(id, operation, reached, turn)
            }
        }
    }

    /// Ends an operation: answers with its response unless that was done.
    pub(super) fn finish<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        self.answer(&mut operation, turn);
        self.operations.end(id, operation);
        None
    }

    /// Answers with the operation's response, once.
    pub(super) fn answer<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &mut Operation,
        turn: &mut Turn<'_, S, O>,
    ) {
        if std::mem::replace(&mut operation.answered, true) {
            return;
        }
        match operation.origin {
            Origin::Client(asker) => match codec::over_allowance(&operation.response) {
                Some(value_bytes) => self.put_off(asker, operation, value_bytes, turn),
                None => self.pass_on(asker, &operation.key, &operation.response, turn),
            },
            Origin::Node(peer, asked) => {
                let Operation { version, response, .. } = &*operation;
                self.reply_forward(peer, asked, ForwardOutcome::Answered, *version, response, turn);
            }
            Origin::Message(_) => {}
        }
    }

    /// The request found no room on its link until its deadline: it has not been performed.
    fn finish_busy<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let Origin::Client(asker) = operation.origin else {
            return self.finish_short(id, operation, 0, turn);
        };
        if operation.version != Version::NONE {
            // It was started here before its link was found full, so some replicas may hold it.
            return self.finish_uncertain(id, operation, turn);
        }
        operation.answered = true;
        self.counters.busy += 1;
        self.tell(asker, &operation.key, &Response::Busy, turn);
        self.operations.end(id, operation);
        None
    }

    /// Too few replicas took part.
    pub(super) fn finish_short<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        reached: usize,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        self.end_attempt(&operation);
        if !std::mem::replace(&mut operation.answered, true) {
            self.counters.quorum_failures += 1;
            let (needed, reached) = (operation.needed.max(1), reached as u8);
            match operation.origin {
                Origin::Client(asker) => {
                    let response = Response::QuorumNotReached { needed, reached };
                    self.tell(asker, &operation.key, &response, turn);
                }
                Origin::Node(peer, asked) => {
                    let outcome = ForwardOutcome::QuorumNotReached { needed, reached };
                    self.reply_forward(peer, asked, outcome, operation.version, b"", turn);
                }
                Origin::Message(peer) => self.reply_not_ready(peer, &operation.request, turn),
            }
        }
        self.operations.end(id, operation);
        None
    }

    /// It is unknown whether the request was performed.
    pub(super) fn finish_uncertain<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        self.end_attempt(&operation);
        if !std::mem::replace(&mut operation.answered, true) {
            self.counters.uncertain += 1;
            match operation.origin {
                Origin::Client(asker) => {
                    self.tell(asker, &operation.key, &Response::Uncertain, turn);
                }
                Origin::Node(peer, asked) => {
                    let outcome = ForwardOutcome::Unknown;
                    self.reply_forward(peer, asked, outcome, operation.version, b"", turn);
                }
                Origin::Message(_) => {}
            }
        }
        self.operations.end(id, operation);
        None
    }

    /// Answers a client, whose next request for the same key may then start.
    pub(super) fn tell<S: ReplicaStore, O: Effects>(
        &mut self,
        asker: ClientRef,
        key: &[u8],
        response: &Response<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        turn.effects.answer(asker, response);
        self.leave_queue(asker, key);
    }

    /// Like [`Coordinator::tell`], with a response encoded by the codec.
    pub(super) fn pass_on<S: ReplicaStore, O: Effects>(
        &mut self,
        asker: ClientRef,
        key: &[u8],
        response: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        turn.effects.pass_on(asker, response);
        self.leave_queue(asker, key);
    }

    /// Returns a client's read to the core that has the connection: its value exceeds its
    /// allowance, so it has not been performed. It comes again when there is room for that much.
    pub(super) fn put_off<S: ReplicaStore, O: Effects>(
        &mut self,
        asker: ClientRef,
        operation: &Operation,
        value_bytes: u32,
        turn: &mut Turn<'_, S, O>,
    ) {
        let mut request = codec::decode_request(&operation.request).expect("encoded by this core");
        request.hash = self.hash(request.key);
        let mut told = vec![0; codec::encoded_request_bytes(&request)];
        codec::encode_request(&request, &mut told);
        let response = Response::OverAllowance { value_bytes, request: &told };
        self.tell(asker, &operation.key, &response, turn);
    }

    pub(super) fn leave_queue(&mut self, asker: ClientRef, key: &[u8]) {
        if !self.key_queues.is_empty() {
            self.key_queues.leave(QueueKey::of(asker, self.hash(key)));
        }
    }
}
