//! The replica's side: answers what other nodes ask about this core's records.

use super::*;
use crate::message::{ReadOutcome, WriteOutcome};
use crate::record::Record;
use crate::store::Merged;

impl Coordinator {
    /// Handles a message about a key.
    pub(super) fn data_message<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        bytes: &[u8],
        message: &Message<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        match *message {
            Message::Write { stamp, key, .. } | Message::Read { stamp, key, .. } => {
                if self.is_in_view(from, stamp, bytes, turn)
                    && !self.waits_for_fetch(from, key, bytes, turn)
                    && (matches!(message, Message::Write { .. })
                        || !self.waits_for_room(from, key, bytes, turn))
                {
                    self.act(from, message, turn);
                }
            }
            Message::Fetch { operation, epoch, key } => {
                if self.view().is_none_or(|view| view.epoch() < epoch) {
                    let outcome = ReadOutcome::NotReady;
                    if let Some(out) = turn.effects.buffer_for(from) {
                        Message::ReadReply { operation, outcome }.write(out);
                    }
                } else if !self.waits_for_fetch(from, key, bytes, turn)
                    && !self.waits_for_room(from, key, bytes, turn)
                {
                    self.act(from, message, turn);
                }
            }
            Message::Merge { ticket, key, record } => {
                self.take_merge(key, &record, turn);
                if ticket != 0
                    && let Some(out) = turn.effects.buffer_for(from)
                {
                    Message::Merged { ticket }.write(out);
                }
            }
            Message::Forward(ref forward) => self.forwarded_here(from, forward, turn),
            Message::WriteReply { operation, outcome } => {
                self.write_replied(from, operation, outcome, turn);
            }
            Message::ReadReply { operation, ref outcome } => {
                self.read_replied(from, operation, outcome, turn);
            }
            Message::Merged { ticket } => self.merged(from, ticket, turn),
            Message::ForwardReply { operation, outcome, version, response } => {
                self.forward_replied(from, operation, outcome, version, response, turn);
            }
        }
    }

    /// Performs a message that had to wait until its key was complete here.
    pub(super) fn resume<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        bytes: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        let message = Message::read(bytes).expect("read before it waited");
        let stamp = match message {
            Message::Write { stamp, .. } | Message::Read { stamp, .. } => Some(stamp),
            _ => None,
        };
        if stamp.is_none_or(|stamp| self.is_in_view(from, stamp, bytes, turn)) {
            self.act(from, &message, turn);
        }
    }

    /// Performs a message; views agree and the key is complete.
    fn act<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        message: &Message<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        match *message {
            Message::Write { operation, guard, key, record, .. } => {
                let outcome = self.take_write(key, guard, &record, turn);
                reply_write(from, operation, outcome, turn);
            }
            Message::Read { operation, known, promise, key, .. } => {
                match self.promise(key, promise, turn) {
                    Ok(()) => self.reply_read(from, operation, key, known, turn),
                    Err(outcome) => reply_read(from, operation, outcome, turn),
                }
            }
            Message::Fetch { operation, key, .. } => {
                self.reply_read(from, operation, key, Version::NONE, turn);
            }
            _ => unreachable!("only these ask about a record"),
        }
    }

    /// Whether this core is in the view that a message is stamped with; if not, it answers so.
    fn is_in_view<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        stamp: u64,
        bytes: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        let same = self.view().is_some_and(|view| view.stamp() == stamp);
        if !same {
            self.reply_other_view(from, bytes, turn);
        }
        same
    }

    /// Makes the message wait if its key has to be fetched first.
    fn waits_for_fetch<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        key: &[u8],
        bytes: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        let Some(placement) = &self.placement else { return false };
        if placement.transfers.is_empty() {
            return false;
        }
        let point = self.point_of(key);
        if self.pending_transfer(point, 0).is_none() {
            return false;
        }
        let Some((id, mut operation)) = self.operations.begin(self.until(turn.now)) else {
            self.reply_not_ready(from, bytes, turn);
            return true;
        };
        operation.origin = Origin::Message(from);
        operation.point = point;
        operation.stamp = placement.view.stamp();
        operation.key.extend_from_slice(key);
        operation.request.extend_from_slice(bytes);
        if !self.must_fetch(&operation, turn) {
            self.operations.end(id, operation);
            return false;
        }
        if let Some(operation) = self.begin_fetch(id, operation, turn) {
            self.checks.push_back((turn.now.after(CHECK_EVERY), id));
            self.operations.keep(id, operation);
        }
        true
    }

    /// If another node asks for it, promises to accept no write older than its own.
    fn promise<S: ReplicaStore, O: Effects>(
        &mut self,
        key: &[u8],
        version: Version,
        turn: &mut Turn<'_, S, O>,
    ) -> Result<(), ReadOutcome<'static>> {
        if version == Version::NONE {
            return Ok(());
        }
        if self.clock.observe(version, turn.now).is_err() {
            return Err(ReadOutcome::NotReady);
        }
        let hash = self.hash(key).to_bits();
        self.promises.make(hash, version).map_err(ReadOutcome::Promised)
    }

    fn take_write<S: ReplicaStore, O: Effects>(
        &mut self,
        key: &[u8],
        guard: Option<Version>,
        record: &Record<'_>,
        turn: &mut Turn<'_, S, O>,
    ) -> WriteOutcome {
        if self.clock.observe(record.version, turn.now).is_err() {
            return WriteOutcome::ClockAhead;
        }
        if let Some(promised) = self.promise_against(key, record.version) {
            return match guard {
                Some(_) => WriteOutcome::Conflict(promised),
                None => WriteOutcome::Superseded(promised),
            };
        }
        if let Some(base) = guard {
            let held = self.held_version(key, turn);
            if held > base && held < record.version {
                return WriteOutcome::Conflict(held);
            }
        }
        match turn.store.merge(key, record, turn.now) {
            Merged::Stored | Merged::Same => WriteOutcome::Applied,
            Merged::Older(version) => WriteOutcome::Superseded(version),
            Merged::TooLarge => WriteOutcome::TooLarge,
            Merged::NoMemory => WriteOutcome::NoMemory,
        }
    }

    /// Merges an unrequested record.
    pub(super) fn take_merge<S: ReplicaStore, O: Effects>(
        &mut self,
        key: &[u8],
        record: &Record<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        if self.clock.observe(record.version, turn.now).is_ok() {
            turn.store.merge(key, record, turn.now);
        }
    }

    /// Replies that this core is in another view than the sender of `message`.
    pub(super) fn reply_other_view<S: ReplicaStore, O: Effects>(
        &self,
        to: Peer,
        message: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        let digest = self.view().map_or(0, |view| view.stamp());
        let (read, write) = (ReadOutcome::OtherView(digest), WriteOutcome::OtherView(digest));
        refuse(to, message, read, write, turn);
    }

    /// Replies that this core cannot perform `message` yet.
    pub(super) fn reply_not_ready<S: ReplicaStore, O: Effects>(
        &self,
        to: Peer,
        message: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        refuse(to, message, ReadOutcome::NotReady, WriteOutcome::NotReady, turn);
    }
}

fn reply_read<S: ReplicaStore, O: Effects>(
    to: Peer,
    operation: OperationId,
    outcome: ReadOutcome<'_>,
    turn: &mut Turn<'_, S, O>,
) {
    if let Some(out) = turn.effects.buffer_for(to) {
        Message::ReadReply { operation, outcome }.write(out);
    }
}

fn reply_write<S: ReplicaStore, O: Effects>(
    to: Peer,
    operation: OperationId,
    outcome: WriteOutcome,
    turn: &mut Turn<'_, S, O>,
) {
    if let Some(out) = turn.effects.buffer_for(to) {
        Message::WriteReply { operation, outcome }.write(out);
    }
}

/// Answers a read or a write that is not performed.
fn refuse<S: ReplicaStore, O: Effects>(
    to: Peer,
    message: &[u8],
    read: ReadOutcome<'_>,
    write: WriteOutcome,
    turn: &mut Turn<'_, S, O>,
) {
    match Message::read(message) {
        Ok(Message::Write { operation, .. }) => reply_write(to, operation, write, turn),
        Ok(Message::Read { operation, .. } | Message::Fetch { operation, .. }) => {
            reply_read(to, operation, read, turn);
        }
        _ => {}
    }
}
