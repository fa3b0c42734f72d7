//! Operations that wait for room on a link, and what a peer's silence means.
//!
//! A link reports when its queue is full, and again when there is room. Until then an operation
//! keeps its message and its deadline; operations waiting for one peer continue in the order in
//! which they came. Congestion of a link is local and says nothing about the peer: its circuit
//! breaker counts only requests that were sent and not answered, and lost links.
//!
//! The bytes held by requests in progress are bounded
//! ([`CoordinatorSettings::operation_bytes_max`]): a long one beyond that is refused as busy.

use super::*;
use ringlane_types::request::{Allowance, Operation as Command};

/// Which operations wait for which peer's link.
#[derive(Debug)]
pub(super) struct Congested {
    waiting: HashMap<Peer, VecDeque<OperationId>, ahash::RandomState>,
}

impl Congested {
    /// No operation waits.
    pub(super) fn new(hasher: ahash::RandomState) -> Self {
        Self { waiting: HashMap::with_hasher(hasher) }
    }
}

/// The outcome of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Sent.
    Yes,
    /// To be retried when there is room; the operation waits for that.
    Later,
    /// It cannot be sent.
    No,
}

impl Coordinator {
    /// Something arrived from a core of another node; `in_part` if it was a part of a long message,
    /// or if that core has taken one.
    #[inline]
    pub fn heard(&mut self, from: Peer, in_part: bool, now: Instant) {
        self.peers.heard(from, in_part, now);
    }

    /// There is room on the link with `peer` again.
    pub fn on_buffer_available<S: ReplicaStore, O: Effects>(
        &mut self,
        peer: Peer,
        turn: &mut Turn<'_, S, O>,
    ) {
        let Some(mut waiting) = self.congested.waiting.remove(&peer) else { return };
        while let Some(id) = waiting.pop_front() {
            let Some(operation) = self.operations.take(id) else { continue };
            if let Some(operation) = self.try_again(id, operation, peer, turn) {
                self.operations.keep(id, operation);
            }
            if self.congested.waiting.contains_key(&peer) {
                // No room again. Those behind it keep their places.
                break;
            }
        }
        if !waiting.is_empty() {
            self.congested.waiting.entry(peer).or_default().extend(waiting);
        }
        self.begin_queued(turn);
    }

    fn try_again<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        peer: Peer,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        if operation.stage == Stage::Congested(peer) {
            let answers = matches!(operation.origin, Origin::Node(..) | Origin::Message(_));
            if answers && !turn.effects.takes_long_answer(peer) {
                self.wait_for_room(peer, id);
                return Some(operation);
            }
            return self.route(id, operation, turn);
        }
        let replica = operation.replica(peer.node);
        let Some(replica) = replica.filter(|replica| replica.state == State::Congested) else {
            return Some(operation);
        };
        replica.state = State::Unasked;
        match operation.stage {
            Stage::Fetching => self.fetch(id, operation, turn),
            Stage::Reading => self.read(id, operation, true, turn),
            Stage::Writing => self.write(id, operation, turn),
            _ => Some(operation),
        }
    }

    /// Operation `id` is to be retried when there is room on the link with `peer`.
    pub(super) fn wait_for_room(&mut self, peer: Peer, id: OperationId) {
        self.counters.congested += 1;
        let waiting = self.congested.waiting.entry(peer).or_default();
        if waiting.len() > 64 + 2 * self.operations.len() {
            // Drop those that have ended.
            waiting.retain(|id| self.operations.get(*id).is_some());
        }
        waiting.push_back(id);
    }

    /// Links that operations wait for are gone: the operations look for another way at their next
    /// check.
    pub(super) fn no_room_any_more(&mut self, gone: impl Fn(Peer) -> bool) {
        let Self { congested, operations, .. } = self;
        for (peer, waiting) in congested.waiting.extract_if(|peer, _| gone(*peer)) {
            for id in waiting {
                let Some(mut operation) = operations.take(id) else { continue };
                if operation.stage == Stage::Congested(peer) {
                    operation.stage = Stage::Waiting;
                } else if let Some(replica) = operation.replica(peer.node)
                    && replica.state == State::Congested
                {
                    replica.state = State::Unasked;
                }
                operations.keep(id, operation);
            }
        }
    }

    /// Whether an operation of `origin` that holds `bytes` is too much beside those in progress.
    /// Short ones are bounded by the number of operations. What other nodes forward waits there
    /// while there is no room, see [`Coordinator::forward_room`].
    pub(super) fn holds_too_much(&self, origin: Origin, bytes: usize) -> bool {
        let forwarded = self.operations.forwarded_bytes();
        let held = match origin {
            Origin::Node(..) => forwarded,
            _ => self.operations.held_bytes() - forwarded,
        };
        bytes > operation::BYTES_KEPT && held >= self.settings.operation_bytes_max
    }

    /// Refuses an operation, which has not been performed, since it would hold too much.
    pub(super) fn refuse_busy<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        operation.answered = true;
        self.counters.busy += 1;
        match operation.origin {
            Origin::Client(asker) => self.tell(asker, &operation.key, &Response::Busy, turn),
            Origin::Node(peer, asked) => self.reply_not_begun(peer, asked, turn),
            Origin::Message(_) => unreachable!("messages of replicas compute nothing"),
        }
        self.operations.end(id, operation);
        None
    }

    /// Whether `request` has to wait for room for its answer on the link with `peer`. Requests with
    /// short answers wait, too, if they would overtake others.
    pub(super) fn answer_must_wait<S: ReplicaStore, O: Effects>(
        &self,
        peer: Peer,
        request: &Request<'_>,
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        let allowance = match &request.operation {
            Command::Get(get) => get.allowance,
            _ => Allowance::FULL,
        };
        allowance.0 as usize > self.settings.long_bytes
            && !turn.effects.takes_long_answer(peer)
            && self.length_here(request.key, turn).is_some_and(|bytes| {
                bytes > self.settings.long_bytes && bytes <= allowance.0 as usize
            })
    }

    /// Makes the answer to `peer` wait for room.
    pub(super) fn congest(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        peer: Peer,
    ) -> Option<Box<Operation>> {
        operation.stage = Stage::Congested(peer);
        self.wait_for_room(peer, id);
        Some(operation)
    }

    /// Makes a message that asks for the record of `key` wait until there is room for the answer.
    /// True if it waits, or was answered otherwise.
    pub(super) fn waits_for_room<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        key: &[u8],
        bytes: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        if turn.effects.takes_long_answer(from) || !self.is_long_here(key, turn) {
            return false;
        }
        let Some((id, mut operation)) = self.operations.begin(self.until(turn.now)) else {
            self.reply_not_ready(from, bytes, turn);
            return true;
        };
        operation.origin = Origin::Message(from);
        operation.point = self.point_of(key);
        operation.stamp = self.view().map_or(0, |view| view.stamp());
        operation.key.extend_from_slice(key);
        operation.request.extend_from_slice(bytes);
        if let Some(operation) = self.congest(id, operation, from) {
            self.checks.push_back((turn.now.after(CHECK_EVERY), id));
            self.operations.keep(id, operation);
        }
        true
    }

    fn is_long_here<S: ReplicaStore, O: Effects>(
        &self,
        key: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        self.length_here(key, turn).is_some_and(|bytes| bytes > self.settings.long_bytes)
    }

    pub(super) fn length_here<S: ReplicaStore, O: Effects>(
        &self,
        key: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) -> Option<usize> {
        turn.store.read(key, turn.now).map(|record| record.value_bytes())
    }

    /// How long a peer must have been silent.
    pub(super) fn silent_after(&self) -> Duration {
        SILENT_AFTER.max(self.settings.retention.operation / SILENT_PART)
    }

    /// Checks the replicas that an operation waits for. It does without those that are away. Slow
    /// ones are waited for until the operation timeout; they are asked again in case the message
    /// was lost, unless it is long, which would slow them down further.
    pub(super) fn look_at_replicas<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &mut Operation,
        turn: &mut Turn<'_, S, O>,
    ) {
        let (now, silent_after) = (turn.now, self.silent_after());
        let mut long = None;
        for at in 0..operation.replicas.len() {
            let Replica { node, state, .. } = operation.replicas[at];
            let away = !self.peers.is_present(node);
            let next = match state {
                State::Congested if away => State::Unasked,
                State::Asked(_) if away => {
                    self.peers.failed(node, now);
                    operation.asked_again = true;
                    State::Unasked
                }
                State::Asked(since) if now.since(since) >= silent_after => {
                    let Some(to) = self.peer(node, &operation.key) else { continue };
                    if self.peers.is_silent(to, since) {
                        self.peers.failed(node, now);
                    }
                    let writing = operation.stage == Stage::Writing;
                    let long = writing
                        && *long.get_or_insert_with(|| self.is_long_here(&operation.key, turn));
                    let moving = self.peers.is_moving(to, now.before(silent_after));
                    let shut = !self.peers.may_be_asked(node, now);
                    if shut && operation.answered {
                        // Nobody waits any more, so a hint is just as good.
                        self.keep_hint(node, &operation.key, turn);
                        State::Failed
                    } else if long || moving || shut {
                        State::Asked(now)
                    } else {
                        operation.asked_again = true;
                        State::Unasked
                    }
                }
                _ => continue,
            };
            operation.replicas[at].state = next;
        }
    }
}
