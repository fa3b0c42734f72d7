//! Operations in progress, and the table that holds them.
//!
//! The table has a fixed number of slots. An operation reuses the memory of its slot's former ones,
//! so a busy core allocates nothing for it. An id consists of a slot and how often that was used:
//! an answer to an operation that has ended finds none.

use arrayvec::ArrayVec;

use super::super::identity::{Boot, NodeKey};
use super::super::link::Peer;
use super::super::message::OperationId;
use super::super::record::RecordBuf;
use super::super::version::Version;
use super::ClientRef;
use ringlane_ring::{Point, REPLICAS_MAX};
use ringlane_types::codec;
use ringlane_types::request::Consistency;
use ringlane_types::request::{Allowance, Operation as Command, Request, StoreMode};
use ringlane_types::time::Instant;

/// Capacity that a finished operation's buffers may keep.
pub(super) const BYTES_KEPT: usize = 4 << 10;

/// Who waits for the end of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// A client of this node.
    Client(ClientRef),
    /// Another node, which forwarded the request and waits for the answer to its own operation.
    Node(Peer, OperationId),
    /// Another node, whose message waits until this core has what it asks about.
    Message(Peer),
}

/// What a request can do to its key, as far as this decides how the request is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads only the value: a copy can answer it.
    PlainGet,
    /// Reads more than that, and changes nothing.
    Read,
    /// Replaces the record, whatever it was: a plain set.
    Overwrite,
    /// Its result depends on the current record.
    Change,
}

impl Kind {
    pub(super) fn of(command: &Command<'_>) -> Self {
        match command {
            Command::Get(get) if get.is_plain() => Self::PlainGet,
            Command::Store(store) if store.mode == StoreMode::Set && store.compare.is_none() => {
                Self::Overwrite
            }
            command if command.may_change() => Self::Change,
            _ => Self::Read,
        }
    }

    pub(super) fn may_change(self) -> bool {
        matches!(self, Self::Overwrite | Self::Change)
    }
}

/// The stage of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be started again at the next check.
    Waiting,
    /// Not started: its connection's previous request for the same key has not been answered.
    Queued,
    /// Asks the former holders of the key for their records.
    Fetching,
    /// Asks replicas what they know.
    Reading,
    /// Has changed the key here and tells the replicas.
    Writing,
    /// Another node's core works on it.
    Forwarded(Peer),
    /// There is no room for the request, or for the answer, on the link with that core.
    Congested(Peer),
}

/// What is known of one replica in the current stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not asked, or to be asked again.
    Unasked,
    /// Asked at this time.
    Asked(Instant),
    /// To be asked when there is room on its link.
    Congested,
    /// Reading, fetching: it holds this version.
    Holds(Version),
    /// Writing: it holds the write, or something computed from it.
    Applied,
    /// Writing: it holds a newer write that was not computed from ours.
    Superseded,
    /// Writing: it holds a write that ours was not computed from.
    Conflict,
    /// It cannot take part: it is away, or out of memory.
    Failed,
}

/// One of the nodes that an operation involves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica {
    pub node: NodeKey,
    pub boot: Boot,
    pub state: State,
}

/// One operation.
#[derive(Debug)]
pub(super) struct Operation {
    pub origin: Origin,
    pub stage: Stage,
    pub consistency: Consistency,
    /// What its request can do.
    pub kind: Kind,
    /// Whether its key was hot when it was forwarded.
    pub hot: bool,
    /// Where its key is on the ring.
    pub point: Point,
    /// When it is given up: the operation timeout counts from its arrival, not from its turn.
    pub until: Instant,
    /// When it was forwarded.
    pub sent_at: Instant,
    /// The view of `replicas`.
    pub stamp: u64,
    /// How many of them must take part.
    pub needed: u8,
    pub replicas: ArrayVec<Replica, REPLICAS_MAX>,
    /// Reading: the version held here when it began, which replicas are told.
    pub known: Version,
    /// The write's version, once it has one; a guarded write has it before it reads.
    pub version: Version,
    /// The version that a guarded write was computed from.
    pub base: Version,
    /// Computed from the current record, so replicas must not hold anything newer than that.
    pub guarded: bool,
    /// Whether the write was sent to a replica more than once, so that what it holds now says
    /// nothing about what it held in between.
    pub asked_again: bool,
    /// Whether replicas must be read before it is applied.
    pub reads_first: bool,
    /// The requester has been answered; the rest is for the replicas.
    pub answered: bool,
    /// Fetching: transfers up to this epoch are done.
    pub fetched_epoch: u64,
    pub key: Vec<u8>,
    /// The request as encoded by the codec, or the message that waits.
    pub request: Vec<u8>,
    /// The response as encoded by the codec.
    pub response: Vec<u8>,
    /// The record that a guarded write replaced here.
    pub prior: RecordBuf,
    /// Bytes it held when last counted.
    held_bytes: usize,
}

impl Operation {
    fn new() -> Self {
        Self {
            origin: Origin::Message(Peer { node: NodeKey(0), core: 0 }),
            stage: Stage::Waiting,
            consistency: Consistency::Configured,
            kind: Kind::Change,
            hot: false,
            point: Point(0),
            until: Instant::default(),
            sent_at: Instant::default(),
            stamp: 0,
            needed: 0,
            replicas: ArrayVec::new(),
            known: Version::NONE,
            version: Version::NONE,
            base: Version::NONE,
            guarded: false,
            asked_again: false,
            reads_first: false,
            answered: false,
            fetched_epoch: 0,
            key: Vec::new(),
            request: Vec::new(),
            response: Vec::new(),
            prior: RecordBuf::default(),
            held_bytes: 0,
        }
    }

    /// How long a value the requester can take.
    pub(super) fn allowance(&self) -> Allowance {
        match codec::decode_request(&self.request) {
            Ok(Request { operation: Command::Get(get), .. }) => get.allowance,
            _ => Allowance::FULL,
        }
    }

    fn clear(&mut self) {
        self.stage = Stage::Waiting;
        self.consistency = Consistency::Configured;
        self.replicas.clear();
        (self.known, self.version, self.base) = (Version::NONE, Version::NONE, Version::NONE);
        (self.guarded, self.reads_first, self.answered) = (false, false, false);
        (self.asked_again, self.hot) = (false, false);
        self.kind = Kind::Change;
        self.fetched_epoch = 0;
        self.key.clear();
        self.release();
    }

    /// The requester has been answered: what was kept for that is no longer needed.
    pub(super) fn release(&mut self) {
        for buffer in [&mut self.request, &mut self.response] {
            buffer.clear();
            buffer.shrink_to(BYTES_KEPT);
        }
        self.prior.clear();
        self.prior.shrink_to(BYTES_KEPT);
    }

    /// The replica on `node`.
    pub(super) fn replica(&mut self, node: NodeKey) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.node == node)
    }

    /// How many replicas are in a state.
    pub(super) fn count(&self, is: impl Fn(State) -> bool) -> usize {
        self.replicas.iter().filter(|replica| is(replica.state)).count()
    }

    /// How many replicas have taken part in the current stage.
    pub(super) fn taking_part(&self) -> usize {
        self.count(|state| matches!(state, State::Holds(_) | State::Applied))
    }
}

/// All operations of one core.
#[derive(Debug, Default)]
pub(super) struct Operations {
    slots: Vec<OperationSlot>,
    free: Vec<u32>,
    #[expect(clippy::vec_box, reason = "boxes move between here and the places as they are")]
    spare: Vec<Box<Operation>>,
    limit: usize,
    /// Bytes of requests, responses and former values that they hold.
    held_bytes: usize,
    /// Bytes of those that other nodes forwarded.
    forwarded_bytes: usize,
}

#[derive(Debug, Default)]
struct OperationSlot {
    times: u32,
    operation: Option<Box<Operation>>,
}

impl Operations {
    /// A table for up to `limit` operations.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether the limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.limit
    }

    /// How many are in progress.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of requests, responses and former values that they hold.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Bytes of those that other nodes forwarded.
    pub(super) fn forwarded_bytes(&self) -> usize {
        self.forwarded_bytes
    }

    /// A cleared operation to be given up at `until`, and its id, to be kept with
    /// [`Operations::keep`] or dropped with [`Operations::end`]. `None` when the table is full.
    pub(super) fn begin(&mut self, until: Instant) -> Option<(OperationId, Box<Operation>)> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(OperationSlot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.times = slot.times.wrapping_add(1);
        let id = OperationId(u64::from(slot.times) << 32 | u64::from(index));
        let mut operation = self.spare.pop().unwrap_or_else(|| Box::new(Operation::new()));
        operation.until = until;
        Some((id, operation))
    }

    /// Takes out the operation `id`, if it is still in progress; it must be kept or ended
    /// afterwards.
    pub(super) fn take(&mut self, id: OperationId) -> Option<Box<Operation>> {
        let slot = self.slots.get_mut(id.0 as u32 as usize)?;
        if slot.times != (id.0 >> 32) as u32 {
            return None;
        }
        slot.operation.take()
    }

    /// The operation `id`, if it is still in progress.
    pub(super) fn get(&self, id: OperationId) -> Option<&Operation> {
        let slot = self.slots.get(id.0 as u32 as usize)?;
        slot.operation.as_deref().filter(|_| slot.times == (id.0 >> 32) as u32)
    }

    /// Puts it back into the table.
    pub(super) fn keep(&mut self, id: OperationId, mut operation: Box<Operation>) {
        let bytes =
            operation.request.len() + operation.response.len() + operation.prior.value_bytes();
        self.holds(&mut operation, bytes);
        self.slots[id.0 as u32 as usize].operation = Some(operation);
    }

    /// Ends it.
    pub(super) fn end(&mut self, id: OperationId, mut operation: Box<Operation>) {
        self.holds(&mut operation, 0);
        operation.clear();
        self.spare.push(operation);
        self.free.push(id.0 as u32);
    }

    fn holds(&mut self, operation: &mut Operation, bytes: usize) {
        let before = std::mem::replace(&mut operation.held_bytes, bytes);
        self.held_bytes = self.held_bytes - before + bytes;
        if let Origin::Node(..) = operation.origin {
            self.forwarded_bytes = self.forwarded_bytes - before + bytes;
        }
    }

    /// What operations in progress have read may be gone: no copies of it are kept.
    pub(super) fn keep_no_copies(&mut self) {
        let operations = self.slots.iter_mut().filter_map(|slot| slot.operation.as_deref_mut());
        operations.for_each(|operation| operation.hot = false);
    }

    /// The ids of those selected by `wanted`.
    pub(super) fn ids(&self, wanted: impl Fn(&Operation) -> bool) -> Vec<OperationId> {
        let picked = self
            .slots
            .iter()
            .zip(0u64..)
            .filter(|(slot, _)| slot.operation.as_deref().is_some_and(&wanted));
        picked.map(|(slot, index)| OperationId(u64::from(slot.times) << 32 | index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_an_operation_that_is_over_finds_nobody() {
        let mut operations = Operations::new(1);
        let (first, operation) = operations.begin(Instant::default()).unwrap();
        assert!(operations.begin(Instant::default()).is_none(), "the table is full");
        operations.keep(first, operation);
        let operation = operations.take(first).unwrap();
        operations.end(first, operation);
        let (second, operation) = operations.begin(Instant::default()).unwrap();
        operations.keep(second, operation);
        assert!(operations.take(first).is_none());
        assert!(operations.take(second).is_some());
    }

    #[test]
    fn a_place_given_out_again_shows_nothing_of_its_former_operation() {
        let mut operations = Operations::new(4);
        let (id, mut operation) = operations.begin(Instant::default()).unwrap();
        operation.key.extend_from_slice(b"key");
        (operation.answered, operation.version) = (true, Version(7));
        operations.end(id, operation);
        let (_, operation) = operations.begin(Instant::default()).unwrap();
        assert!(operation.key.is_empty() && !operation.answered);
        assert_eq!(operation.version, Version::NONE);
    }
}
