//! Fetching: a key whose range is still being copied is fetched from its former holders first.
//!
//! A node that became a replica through a new view takes part for a key only after it has copied
//! the key from enough of those who held it under the previous view. All of them are in the new
//! view when they answer, so no quorum of the old view can act unnoticed by the new one. A fetched
//! key is remembered, so that a busy one is not fetched for every request.
//!
//! Where availability comes before strictness, former holders that are away are not waited for, and
//! records already here are answered without asking anybody.

use std::sync::Arc;

use super::*;
use crate::message::ReadOutcome;

impl Coordinator {
    /// Whether the operation's key has to be fetched before this core may act on it.
    pub(super) fn must_fetch<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &Operation,
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        let Some(transfer) = self.pending_transfer(operation.point, operation.fetched_epoch) else {
            return false;
        };
        // A node that fetches from us asks about the time before its own view.
        if let Origin::Message(_) = operation.origin
            && let Ok(Message::Fetch { epoch, .. }) = Message::read(&operation.request)
            && transfer.epoch() >= epoch
        {
            return false;
        }
        if self.fetched.contains(&self.hash(&operation.key).to_bits()) {
            return false;
        }
        self.settings.replication.is_strict() || turn.store.read(&operation.key, turn.now).is_none()
    }

    /// The oldest transfer after `epoch` that `point` waits for.
    pub(super) fn pending_transfer(&self, point: Point, epoch: u64) -> Option<&Arc<RangeTransfer>> {
        let replication = self.settings.replication;
        self.placement.as_ref()?.pending_transfer(self.me, self.boot, point, epoch, replication)
    }

    /// Asks the former holders of the oldest view that has not been handled.
    pub(super) fn begin_fetch<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let point = operation.point;
        let Some(transfer) = self.pending_transfer(point, operation.fetched_epoch) else {
            return self.end_fetch(id, operation, turn);
        };
        let holders = transfer.holders(point, self.settings.replication);
        operation.stage = Stage::Fetching;
        operation.needed = holders.needed as u8;
        operation.replicas.clear();
        for node in holders.nodes.iter() {
            let member = transfer.before.member(*node);
            let copied = transfer.sources[node.0 as usize] == Source::Copied;
            let state = if copied { State::Holds(Version::NONE) } else { State::Unasked };
            operation.replicas.push(Replica { node: member.key, boot: member.boot, state });
        }
        self.fetch(id, operation, turn)
    }

    /// Asks the holders that have not been asked.
    pub(super) fn fetch<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let Some(transfer) = self.pending_transfer(operation.point, operation.fetched_epoch) else {
            return self.end_fetch(id, operation, turn);
        };
        let epoch = transfer.epoch();
        for at in 0..operation.replicas.len() {
            let Replica { node, boot, state } = operation.replicas[at];
            if state != State::Unasked || !self.is_present(node, boot) {
                continue;
            }
            let message = Message::Fetch { operation: id, epoch, key: &operation.key };
            match self.send(id, node, &operation.key, &message, turn) {
                Sent::Yes => operation.replicas[at].state = State::Asked(turn.now),
                Sent::Later => operation.replicas[at].state = State::Congested,
                Sent::No => {}
            }
        }
        self.continue_fetch(id, operation, turn)
    }

    /// Continues when enough have answered.
    pub(super) fn continue_fetch<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let asked = operation.count(|state| matches!(state, State::Asked(_) | State::Congested));
        let enough = operation.taking_part() >= operation.needed as usize;
        // Without strictness, holders that are away are ignored.
        let all = asked == 0 && !self.settings.replication.is_strict();
        if !enough && !all {
            return Some(operation);
        }
        let epoch =
            self.pending_transfer(operation.point, operation.fetched_epoch).map(|f| f.epoch());
        let Some(epoch) = epoch else { return self.end_fetch(id, operation, turn) };
        operation.fetched_epoch = epoch;
        self.begin_fetch(id, operation, turn)
    }

    fn end_fetch<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let still_arriving = self.pending_transfer(operation.point, 0).is_some();
        if still_arriving && self.fetched.len() < FETCHED_MAX {
            self.fetched.insert(self.hash(&operation.key).to_bits());
        }
        operation.replicas.clear();
        let members = self.members(operation.point);
        self.coordinate(id, operation, &members, turn)
    }

    /// Replies with this node's record of a key; `known` is the version known to the requester.
    pub(super) fn reply_read<S: ReplicaStore, O: Effects>(
        &mut self,
        to: Peer,
        asked: OperationId,
        key: &[u8],
        known: Version,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.mark_exposed(key);
        let outcome = match turn.store.read(key, turn.now) {
            None if known == Version::NONE => ReadOutcome::Nothing,
            None => ReadOutcome::Older(Version::NONE),
            Some(record) if record.version == known => ReadOutcome::Same,
            Some(record) if record.version < known => ReadOutcome::Older(record.version),
            Some(record) => ReadOutcome::Record(record),
        };
        if let Some(out) = turn.effects.buffer_for(to) {
            Message::ReadReply { operation: asked, outcome }.write(out);
        }
    }
}
