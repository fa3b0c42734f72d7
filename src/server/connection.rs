//! One client connection: what has arrived, what is on its way out, and whether it may go on.

use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::connection_memory::{Charge, ConnectionMemory};
use super::net_ring::{self, Token};
use super::pending::Pending;
use super::process;
use crate::engine::{BoundedOutput, Session};
use crate::protocol::Output;
use crate::request::Consistency;
use crate::request::{ItemRef, Span, Staged, Value};
use crate::shard::Staging;
use crate::time::Instant;

/// One client connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// Its name in the net ring and the mesh.
    pub token: Token,
    /// Decoder and pipeline.
    pub session: Session,
    /// Input that could not be used yet: the beginning of a request, or whole ones held back.
    pub pending: Pending,
    /// Answers to be sent.
    pub out: Outgoing,
    /// A long value that is arriving.
    pub streaming: Option<Box<StreamingBody>>,
    /// A multishot receive is armed.
    pub receiving: bool,
    /// A cancellation of the receive is on its way.
    pub cancelling: bool,
    /// A receive into the item of the arriving value is in flight.
    pub filling: bool,
    /// Turns for which the connection still counts as one that sends long values: it is received
    /// from once at a time, so that the next value can go straight into its item.
    pub bulk: u8,
    /// Turns for which its answers have waited for others of the same batch.
    pub deferrals: u8,
    /// A send is in flight.
    pub sending: bool,
    /// Input waits in `pending` until answers are sent or other cores have room.
    pub held_back: bool,
    /// Listed among those that may go on.
    pub listed: bool,
    /// Listed among those that wait for room in the memory for connections.
    pub waits_for_room: bool,
    /// Listed among those that wait for room in the shard for a long value.
    pub awaits_item: bool,
    /// Sends that have ended; wraps.
    pub sends: u8,
    /// Its part in the memory for connections.
    pub charge: Charge,
    /// A node command is being carried out; input waits behind it.
    pub awaiting_node: bool,
    /// The peer will send no more.
    pub ended: bool,
    /// Close once everything due is sent.
    pub closing: bool,
    /// Close at once; nothing can be sent any more.
    pub broken: bool,
    /// Listed for the end of the turn.
    pub dirty: bool,
    /// When something last arrived; of a client that reads slowly, when it last took something.
    pub last_active: Instant,
    /// How many bytes had moved when it was last found silent in the middle of a receive or send.
    moved: u64,
}

impl Connection {
    /// A fresh connection over `socket`.
    pub fn new(socket: OwnedFd, token: Token, memory: Rc<ConnectionMemory>, now: Instant) -> Self {
        Self {
            socket,
            token,
            session: Session::default(),
            pending: Pending::default(),
            out: Outgoing::new(memory),
            streaming: None,
            receiving: false,
            cancelling: false,
            filling: false,
            bulk: 0,
            deferrals: 0,
            sending: false,
            held_back: false,
            listed: false,
            waits_for_room: false,
            awaits_item: false,
            sends: 0,
            charge: Charge::default(),
            awaiting_node: false,
            ended: false,
            closing: false,
            broken: false,
            dirty: false,
            last_active: now,
            moved: 0,
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The socket.
    pub fn socket(&self) -> &impl AsFd {
        &self.socket
    }

    /// Whether more answers of the same batch are expected from other cores any moment, so that
    /// one send is likely to do for all of them.
    pub fn should_defer_send(&mut self) -> bool {
        let waits = !self.session.pipeline.is_empty()
            && self.streaming.is_none()
            && !self.awaiting_node
            && !self.broken
            && self.deferrals < DEFERRALS_MAX
            && self.out.output.buffer.len() < DEFERRED_BYTES_MAX;
        self.deferrals += u8::from(waits);
        waits
    }

    /// The end of a send is waited for: something is to be done then.
    pub fn waits_for_send(&self) -> bool {
        !self.out.output.is_empty()
            || self.ended
            || self.is_stalled()
            || self.streaming.is_some()
            || self.session.pipeline.has_deferred()
    }

    /// Answers to requests that came together with the current one are still to be sent.
    pub fn has_answers(&self) -> bool {
        !self.out.output.is_empty()
    }

    /// The client has to read before it is sent more.
    pub fn is_output_full(&self) -> bool {
        self.out.is_full()
    }

    /// Input must wait.
    pub fn is_stalled(&self) -> bool {
        self.held_back || self.awaiting_node || self.closing || self.broken
    }

    /// Room for its arriving value is still being made.
    pub fn is_awaiting_item(&self) -> bool {
        let target = self.streaming.as_ref().map(|streaming| &streaming.target);
        matches!(target, Some(BodyTarget::Awaited(_)))
    }

    /// Something waits that may be able to go on once something has come or was sent.
    pub fn wants_to_go_on(&self) -> bool {
        (self.held_back || self.session.pipeline.has_deferred()) && !self.listed && !self.broken
    }

    /// Bytes that it holds outside of any shard.
    pub fn bytes_held(&self) -> usize {
        let streaming = self.streaming.as_ref().map_or(0, |streaming| streaming.buffered_bytes());
        self.out.bytes_held() + self.session.pipeline.bytes_held() + self.pending.len() + streaming
    }

    /// Everything due has been sent and nothing more will be.
    pub fn is_finished(&self) -> bool {
        let silent = !self.sending && self.out.output.is_empty();
        let done = self.closing || (self.ended && !self.held_back);
        let answered = !self.owes_answers();
        !self.filling && ((self.broken && !self.sending) || (done && silent && answered))
    }

    /// Whether a request that arrived as a whole is still being worked on. A store whose value has
    /// stopped arriving is the last in the pipeline and not one.
    pub fn owes_answers(&self) -> bool {
        self.session.pipeline.len() > usize::from(self.streaming.is_some()) || self.awaiting_node
    }

    /// Whether it has been silent for longer than `timeout`. One that the node works for is not, and
    /// one in the middle of a long value is once nothing of it has moved for that long.
    pub fn is_silent(&mut self, timeout: Duration, now: Instant) -> bool {
        if now.since(self.last_active) <= timeout || self.owes_answers() {
            return false;
        }
        if (self.sending || self.filling)
            && let Some(moved) = process::bytes_moved(self.socket.as_fd())
            && let moved = moved.acked.wrapping_add(moved.received)
            && mem::replace(&mut self.moved, moved) != moved
        {
            self.last_active = now;
            return false;
        }
        true
    }

    /// Ends both directions, so that the kernel gives back an armed receive.
    pub fn shut_down(&self) {
        let _ = socket2::SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }
}

/// Turns of a busy core for which answers may wait for others of the same batch.
pub const DEFERRALS_MAX: u8 = 8;
/// Answers of this many bytes are sent without waiting.
const DEFERRED_BYTES_MAX: usize = 32 << 10;

/// Answers of one connection that are to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// The bytes, in order.
    pub output: net_ring::SendBuffer,
    /// Bytes of pinned values among them.
    pinned_bytes: usize,
    /// Values among them whose items are not pinned yet, from this one on.
    unpinned_from: u32,
    /// Bytes that are being sent, without pinned values.
    sending_bytes: u32,
    /// Bytes of pinned values that are being sent.
    sending_pinned_bytes: usize,
    memory: Rc<ConnectionMemory>,
}

/// Values of at least this many bytes are sent from their item. Below it, copying is cheaper than
/// keeping the item in place.
const PINNED_BYTES_MIN: usize = 8 << 10;

impl Outgoing {
    /// Room for answers, full when the memory for connections says so.
    pub fn new(memory: Rc<ConnectionMemory>) -> Self {
        Self {
            output: net_ring::SendBuffer::default(),
            pinned_bytes: 0,
            unpinned_from: 0,
            sending_bytes: 0,
            sending_pinned_bytes: 0,
            memory,
        }
    }

    /// Makes sure that it has room to begin with, of those that are `spare`.
    #[inline]
    pub fn ensure_buffer(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.output.buffer.capacity() == 0
            && let Some(room) = spare.pop()
        {
            self.output.buffer = room;
        }
    }

    /// Bytes to be sent, without those that are being sent.
    pub fn bytes_to_send(&self) -> usize {
        self.output.buffer.len() + self.pinned_bytes
    }

    /// Takes everything, to be sent. Only one is sent at a time: see [`Outgoing::sent`].
    pub fn take_to_send(&mut self) -> net_ring::SendBuffer {
        self.sending_bytes = self.output.buffer.len() as u32;
        self.sending_pinned_bytes = self.pinned_bytes;
        self.take()
    }

    /// Notes that what was taken to be sent is done with.
    pub fn sent(&mut self) {
        self.sending_bytes = 0;
        self.sending_pinned_bytes = 0;
    }

    /// Bytes it holds, those that are being sent included, without values that lie in their items.
    pub fn bytes_held(&self) -> usize {
        self.output.buffer.len() + self.sending_bytes as usize
    }

    /// Whether values are sent from their items.
    pub fn refers(&self) -> bool {
        self.pinned_bytes + self.sending_pinned_bytes > 0
    }

    /// Takes everything.
    pub fn take(&mut self) -> net_ring::SendBuffer {
        self.pinned_bytes = 0;
        self.unpinned_from = 0;
        mem::take(&mut self.output)
    }
}

impl Output for Outgoing {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.output.buffer.extend_from_slice(bytes);
    }

    #[inline]
    fn value(&mut self, value: &Value<'_>, item: Option<ItemRef>) {
        match (value, item) {
            (Value::Whole(bytes), None) => self.output.buffer.extend_from_slice(bytes),
            (Value::Whole(bytes), _) if bytes.len() < PINNED_BYTES_MIN => {
                self.output.buffer.extend_from_slice(bytes);
            }
            (value, Some(item)) => self.by_reference(value, item),
            (value, None) => self.output.buffer.value(value, None),
        }
    }
}

impl Outgoing {
    #[cold]
    #[allow(unsafe_code)]
    fn by_reference(&mut self, value: &Value<'_>, item: ItemRef) {
        let at = self.output.buffer.len();
        for part in value.parts() {
            self.pinned_bytes += part.len();
            // SAFETY: the engine pins the item, once for each part, right after the answer is
            // encoded and before the shard can change; the worker unpins it when the send is done
            // or given up, and keeps the shard longer than its net ring.
            self.output.pinned.push(unsafe { net_ring::Pinned::new(at, item, part) });
        }
    }
}

impl BoundedOutput for Outgoing {
    #[inline]
    fn is_full(&self) -> bool {
        let limit = self.memory.output_bytes_max();
        let next = self.output.buffer.len() + self.pinned_bytes;
        let sending = self.sending_bytes as usize + self.sending_pinned_bytes;
        next >= limit || next + sending >= 2 * limit
    }

    #[inline]
    fn next_unpinned(&mut self) -> Option<ItemRef> {
        let pinned = self.output.pinned.get(self.unpinned_from as usize)?;
        self.unpinned_from += 1;
        Some(pinned.item)
    }
}

/// What is missing of a value is received straight into its item from this many bytes on; less is
/// copied from the receive buffers, which saves a change of mode.
const FILLED_BYTES_MIN: usize = 32 << 10;

/// Most that is received so at a time: the kernel copies all that has come in one go.
const FILLED_BYTES_MAX: usize = 256 << 10;

/// Least room added at a time to the buffer of a value that arrives for another core.
const BUFFER_STEP_BYTES: usize = 32 << 10;

/// A store whose long value is arriving piece by piece.
#[derive(Debug)]
pub struct StreamingBody {
    /// The request in the codec's form, with an empty value.
    pub request: Vec<u8>,
    /// Its place in the pipeline.
    pub sequence: u32,
    /// Where the value goes.
    pub target: BodyTarget,
    /// Bytes of the value that have arrived.
    pub arrived: usize,
    /// Bytes of the whole value.
    pub value_bytes: usize,
    /// What has arrived of the bytes behind the value.
    pub trailer: Vec<u8>,
    /// How many there will be.
    pub trailer_bytes: usize,
    /// How many replicas the client wants to agree.
    pub consistency: Consistency,
}

/// Where an arriving value goes.
#[derive(Debug)]
pub enum BodyTarget {
    /// Into an item of this core's shard, for which room is being made.
    Awaited(Staging),
    /// Into an item of this core's shard.
    Item(Staged, Vec<Span>),
    /// Into a buffer, to be handed to the core that owns the key.
    Buffer(Vec<u8>),
}

impl StreamingBody {
    /// Takes what belongs to the value and its trailer from `input`; returns how many bytes.
    pub fn take(&mut self, input: &[u8], memory: &mut [u8]) -> usize {
        let of_value = input.len().min(self.value_bytes - self.arrived);
        match &mut self.target {
            BodyTarget::Awaited(_) => unreachable!("nothing arrives before there is room for it"),
            BodyTarget::Buffer(buffer) => {
                if buffer.capacity() - buffer.len() < of_value {
                    // By a quarter, and not beyond the whole.
                    let more = (buffer.len() / 4).max(of_value).max(BUFFER_STEP_BYTES);
                    buffer.reserve_exact(more.min(self.value_bytes - self.arrived));
                }
                buffer.extend_from_slice(&input[..of_value]);
            }
            BodyTarget::Item(_, spans) => {
                let mut rest = &input[..of_value];
                let mut skip = self.arrived;
                for span in spans.iter() {
                    let bytes = span.bytes as usize;
                    if skip >= bytes {
                        skip -= bytes;
                        continue;
                    }
                    let part = rest.len().min(bytes - skip);
                    let start = span.offset as usize + skip;
                    memory[start..start + part].copy_from_slice(&rest[..part]);
                    rest = &rest[part..];
                    skip = 0;
                    if rest.is_empty() {
                        break;
                    }
                }
            }
        }
        self.arrived += of_value;
        let of_trailer = (input.len() - of_value).min(self.trailer_bytes - self.trailer.len());
        self.trailer.extend_from_slice(&input[of_value..of_value + of_trailer]);
        of_value + of_trailer
    }

    /// The next place of the value in its item, if so much of it is missing that receiving
    /// straight into it pays.
    pub fn receive_target<'m>(&self, memory: &'m mut [u8]) -> Option<&'m mut [u8]> {
        let BodyTarget::Item(_, spans) = &self.target else { return None };
        let mut skip = self.arrived;
        let span = spans.iter().find(|span| {
            let inside = skip < span.bytes as usize;
            skip -= if inside { 0 } else { span.bytes as usize };
            inside
        })?;
        let start = span.offset as usize + skip;
        let bytes = (span.bytes as usize - skip).min(FILLED_BYTES_MAX);
        (bytes >= FILLED_BYTES_MIN).then(|| &mut memory[start..start + bytes])
    }

    /// Bytes of it that are in no shard.
    pub fn buffered_bytes(&self) -> usize {
        match &self.target {
            BodyTarget::Buffer(buffer) => buffer.len(),
            BodyTarget::Awaited(_) | BodyTarget::Item(..) => 0,
        }
    }

    /// Everything is here.
    pub fn is_complete(&self) -> bool {
        self.arrived == self.value_bytes && self.trailer.len() == self.trailer_bytes
    }
}
