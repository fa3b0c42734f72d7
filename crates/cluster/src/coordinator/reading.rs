//! Reading: finds the newest record in a read quorum and stores it here.
//!
//! When a write is to be computed from it, replicas also promise its version; see
//! [`promises`](crate::promises).
//!
//! Replicas are told the version known here and send their record only if it has another one.
//! Anything newer is merged into the own store at once, so in the end the newest record is simply
//! the one here, and the request is performed on it. Replicas that answered with an older one are
//! sent the newest; nobody waits for that.

use super::*;
use crate::message::ReadOutcome;
use crate::store::Merged;

impl Coordinator {
    /// Starts reading; `operation.needed` replicas must take part.
    pub(super) fn begin_read<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        operation.stage = Stage::Reading;
        if operation.guarded {
            operation.version = self.clock.next(turn.now);
            let hash = self.hash(&operation.key).to_bits();
            let promised = self.promises.make(hash, operation.version);
            debug_assert!(promised.is_ok(), "it is newer than all that was heard of");
        }
        let own = self.held_version(&operation.key, turn);
        operation.known = own;
        for replica in &mut operation.replicas {
            let here = replica.node == self.me;
            replica.state = if here { State::Holds(own) } else { State::Unasked };
        }
        let present = self.present(&operation);
        if present < operation.needed as usize {
            return self.finish_short(id, operation, present, turn);
        }
        self.read(id, operation, false, turn)
    }

    /// Asks as many replicas as are still needed, or `all`, and ends the stage when enough have
    /// answered.
    pub(super) fn read<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        all: bool,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let needed = operation.needed as usize;
        let mut under_way =
            operation.taking_part() + operation.count(|state| matches!(state, State::Asked(_)));
        for at in 0..operation.replicas.len() {
            let Replica { node, boot, state } = operation.replicas[at];
            if state != State::Unasked || (under_way >= needed && !all) {
                continue;
            }
            if !self.is_present(node, boot) || !self.peers.admits(node, turn.now) {
                continue;
            }
            let Operation { stamp, known, ref key, .. } = *operation;
            let promise = if operation.guarded { operation.version } else { Version::NONE };
            let message = Message::Read { operation: id, stamp, known, promise, key };
            match self.send(id, node, &operation.key, &message, turn) {
                Sent::Yes => {
                    operation.replicas[at].state = State::Asked(turn.now);
                    under_way += 1;
                }
                Sent::Later => {
                    operation.replicas[at].state = State::Congested;
                    self.peers.not_sent(node, turn.now);
                }
                Sent::No => self.peers.failed(node, turn.now),
            }
        }
        if operation.taking_part() >= needed {
            return self.end_read(id, operation, turn);
        }
        Some(operation)
    }

    /// A replica has answered a read.
    pub(super) fn read_replied<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        id: OperationId,
        outcome: &ReadOutcome<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.peers.succeeded(from.node, turn.now);
        let Some(mut operation) = self.operations.take(id) else { return };
        let stage = operation.stage;
        let asked = operation
            .replica(from.node)
            .is_some_and(|replica| matches!(replica.state, State::Asked(_)));
        if !asked || !matches!(stage, Stage::Reading | Stage::Fetching) {
            return self.operations.keep(id, operation);
        }
        let state = self.take_over(&operation, outcome, turn);
        operation.replica(from.node).expect("just found").state = state;
        let going_on = if state == State::Unasked {
            // Asked again at the next check, when views may agree.
            Some(operation)
        } else if stage == Stage::Reading {
            self.read(id, operation, false, turn)
        } else {
            self.continue_fetch(id, operation, turn)
        };
        if let Some(operation) = going_on {
            self.operations.keep(id, operation);
        }
    }

    /// Merges a replica's record into the own store, and returns the resulting state of the
    /// replica.
    fn take_over<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &Operation,
        outcome: &ReadOutcome<'_>,
        turn: &mut Turn<'_, S, O>,
    ) -> State {
        match *outcome {
            ReadOutcome::Record(record) => {
                if self.clock.observe(record.version, turn.now).is_err() {
                    return State::Failed;
                }
                match turn.store.merge(&operation.key, &record, turn.now) {
                    Merged::Stored | Merged::Same | Merged::Older(_) => {
                        State::Holds(record.version)
                    }
                    Merged::TooLarge | Merged::NoMemory => State::Failed,
                }
            }
            ReadOutcome::Same => State::Holds(operation.known),
            ReadOutcome::Older(version) => State::Holds(version),
            ReadOutcome::Nothing => State::Holds(Version::NONE),
            ReadOutcome::NotReady | ReadOutcome::OtherView(_) => State::Unasked,
            ReadOutcome::Promised(version) => match self.clock.observe(version, turn.now) {
                Ok(()) => State::Holds(version),
                Err(_) => State::Failed,
            },
        }
    }

    /// Enough have answered.
    fn end_read<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        let held = self.held_version(&operation.key, turn);
        // A write was undone here, and replicas were asked only for anything newer than it; or one
        // of them has promised another node a newer version.
        let outdated = |state| matches!(state, State::Holds(version) if version > held);
        // A record that arrived in between was not requested for this write.
        let passed = operation.guarded
            && (held > operation.version
                || self.promise_against(&operation.key, operation.version).is_some());
        if operation.count(outdated) > 0 || passed {
            return self.begin_read(id, operation, turn);
        }
        self.repair(&operation, held, turn);
        self.apply(id, operation, turn)
    }

    /// Sends the newest record, which is the one here, to replicas that answered with an older one.
    fn repair<S: ReplicaStore, O: Effects>(
        &mut self,
        operation: &Operation,
        newest: Version,
        turn: &mut Turn<'_, S, O>,
    ) {
        let key = &operation.key[..];
        for replica in &operation.replicas {
            let State::Holds(version) = replica.state else { continue };
            if replica.node == self.me || version >= newest {
                continue;
            }
            if self.send_record(replica.node, key, 0, turn) {
                self.counters.read_repairs += 1;
            }
        }
    }

    /// Sends the record held here for the receiver to merge.
    pub(super) fn send_record<S: ReplicaStore, O: Effects>(
        &mut self,
        node: NodeKey,
        key: &[u8],
        ticket: u64,
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        self.mark_exposed(key);
        let Some(to) = self.peer(node, key) else { return false };
        let Some(record) = turn.store.read(key, turn.now) else { return false };
        let Some(out) = turn.effects.request_buffer(to, record.value_bytes()).open() else {
            return false;
        };
        Message::Merge { ticket, key, record }.write(out);
        true
    }

    /// The promise to another node that forbids a write to `key` under `version`, if one does.
    pub(super) fn promise_against(&self, key: &[u8], version: Version) -> Option<Version> {
        self.promises.against(self.hash(key).to_bits(), version)
    }

    /// The version of the record held here.
    pub(super) fn held_version<S: ReplicaStore, O: Effects>(
        &self,
        key: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) -> Version {
        turn.store.read(key, turn.now).map_or(Version::NONE, |record| record.version)
    }
}
