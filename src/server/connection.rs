//! One client connection: its input, its output, and whether it can continue.

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
    /// Its id in the net ring and the mesh.
    pub token: Token,
    /// Decoder and pipeline.
    pub session: Session,
    /// Unprocessed input: an incomplete request, or whole ones held back.
    pub pending: Pending,
    /// Answers to be sent.
    pub out: Outgoing,
    /// A long value being received.
    pub streaming: Option<Box<StreamingBody>>,
    /// A multishot receive is armed.
    pub receiving: bool,
    /// A cancellation of the receive is in flight.
    pub cancelling: bool,
    /// A receive into the item of the value being received is in flight.
    pub filling: bool,
    /// Turns for which the connection still counts as a sender of long values: it uses single
    /// receives, so that the next value can be received directly into its item.
    pub bulk: u8,
    /// Turns for which its answers have waited for others of the same batch.
    pub deferrals: u8,
    /// A send is in flight.
    pub sending: bool,
    /// Input waits in `pending` until answers are sent or other cores have room.
    pub held_back: bool,
    /// Listed among those that may continue.
    pub listed: bool,
    /// Listed among those waiting for connection memory.
    pub waits_for_room: bool,
    /// Listed among those waiting for shard memory for a long value.
    pub awaits_item: bool,
    /// Number of completed sends; wraps.
    pub sends: u8,
    /// Its share of connection memory.
    pub charge: Charge,
    /// A node command is in progress; further input waits.
    pub awaiting_node: bool,
    /// The peer will send no more.
    pub ended: bool,
    /// Close once all due answers are sent.
    pub closing: bool,
    /// Close at once; nothing can be sent any more.
    pub broken: bool,
    /// Listed for the end of the turn.
    pub dirty: bool,
    /// When something last arrived; for a client that reads slowly, when it last received
    /// something.
    pub last_active: Instant,
    /// Bytes transferred when it was last found idle in the middle of a receive or send.
    moved: u64,
}

impl Connection {
    /// A new connection over `socket`.
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

    /// Whether more answers of the same batch are expected from other cores at any moment, so that
    /// one send can probably carry all of them.
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

    /// Whether work waits for the end of a send.
    pub fn waits_for_send(&self) -> bool {
        !self.out.output.is_empty()
            || self.ended
            || self.is_stalled()
            || self.streaming.is_some()
            || self.session.pipeline.has_deferred()
    }

    /// Whether answers to requests that arrived with the current one are still to be sent.
    pub fn has_answers(&self) -> bool {
        !self.out.output.is_empty()
    }

    /// Whether the client must read before it is sent more.
    pub fn is_output_full(&self) -> bool {
        self.out.is_full()
    }

    /// Whether input must wait.
    pub fn is_stalled(&self) -> bool {
        self.held_back || self.awaiting_node || self.closing || self.broken
    }

    /// Whether memory for its incoming value is still being allocated.
    pub fn is_awaiting_item(&self) -> bool {
        let target = self.streaming.as_ref().map(|streaming| &streaming.target);
        matches!(target, Some(BodyTarget::Awaited(_)))
    }

    /// Whether waiting work may be able to continue after a receive or send.
    pub fn wants_to_go_on(&self) -> bool {
        (self.held_back || self.session.pipeline.has_deferred()) && !self.listed && !self.broken
    }

    /// Bytes that it holds outside any shard.
    pub fn bytes_held(&self) -> usize {
        let streaming = self.streaming.as_ref().map_or(0, |streaming| streaming.buffered_bytes());
        self.out.bytes_held() + self.session.pipeline.bytes_held() + self.pending.len() + streaming
    }

    /// Whether everything due has been sent and nothing more will be.
    pub fn is_finished(&self) -> bool {
        let silent = !self.sending && self.out.output.is_empty();
        let done = self.closing || (self.ended && !self.held_back);
        let answered = !self.owes_answers();
        !self.filling && ((self.broken && !self.sending) || (done && silent && answered))
    }

    /// Whether a completely received request is still in progress. A store whose value has stopped
    /// arriving is the last in the pipeline and does not count.
    pub fn owes_answers(&self) -> bool {
        self.session.pipeline.len() > usize::from(self.streaming.is_some()) || self.awaiting_node
    }

    /// Whether it has been idle for longer than `timeout`. One with a request in progress is not;
    /// one in the middle of a long value is if none of it was transferred for that long.
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

    /// Shuts down both directions, so that the kernel completes an armed receive.
    pub fn shut_down(&self) {
        let _ = socket2::SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }
}

/// Turns of a busy core for which answers may wait for others of the same batch.
pub const DEFERRALS_MAX: u8 = 8;
/// Answers of this many bytes are sent without waiting.
const DEFERRED_BYTES_MAX: usize = 32 << 10;

/// The output of one connection.
#[derive(Debug)]
pub struct Outgoing {
    /// The bytes, in order.
    pub output: net_ring::SendBuffer,
    /// Bytes of pinned values in it.
    pinned_bytes: usize,
    /// Index of the first value in it whose item is not pinned yet.
    unpinned_from: u32,
    /// Bytes being sent, excluding pinned values.
    sending_bytes: u32,
    /// Bytes of pinned values being sent.
    sending_pinned_bytes: usize,
    memory: Rc<ConnectionMemory>,
}

/// Values of at least this many bytes are sent directly from their item. Below, copying is cheaper
/// than pinning the item.
const PINNED_BYTES_MIN: usize = 8 << 10;

impl Outgoing {
    /// An encoder output with the limit given by connection memory.
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

    /// Ensures that it has a buffer, taken from `spare` if possible.
    #[inline]
    pub fn ensure_buffer(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.output.buffer.capacity() == 0
            && let Some(room) = spare.pop()
        {
            self.output.buffer = room;
        }
    }

    /// Bytes to be sent, excluding those being sent.
    pub fn bytes_to_send(&self) -> usize {
        self.output.buffer.len() + self.pinned_bytes
    }

    /// Takes everything, to be sent. Only one send is in flight at a time: see [`Outgoing::sent`].
    pub fn take_to_send(&mut self) -> net_ring::SendBuffer {
        self.sending_bytes = self.output.buffer.len() as u32;
        self.sending_pinned_bytes = self.pinned_bytes;
        self.take()
    }

    /// Records that the output taken for sending is done.
    pub fn sent(&mut self) {
        self.sending_bytes = 0;
        self.sending_pinned_bytes = 0;
    }

    /// Bytes it holds, including those being sent, excluding pinned values.
    pub fn bytes_held(&self) -> usize {
        self.output.buffer.len() + self.sending_bytes as usize
    }

    /// Whether it contains values sent from their items.
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
            // SAFETY: the engine pins the item, once per part, right after the answer is encoded
            // and before the shard can change; the worker unpins it when the send is done or
            // abandoned, and keeps the shard longer than its net ring.
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

/// The rest of a value is received directly into its item from this many missing bytes on; less is
/// copied from the receive buffers, which saves a change of mode.
const FILLED_BYTES_MIN: usize = 32 << 10;

/// Maximum received this way at a time: the kernel copies everything that has arrived in one go.
const FILLED_BYTES_MAX: usize = 256 << 10;

/// Minimum growth of the buffer of a value received for another core.
const BUFFER_STEP_BYTES: usize = 32 << 10;

/// A store whose long value is being received in pieces.
#[derive(Debug)]
pub struct StreamingBody {
    /// The request as encoded by the codec, with an empty value.
    pub request: Vec<u8>,
    /// Its place in the pipeline.
    pub sequence: u32,
    /// Where the value goes.
    pub target: BodyTarget,
    /// Received bytes of the value.
    pub arrived: usize,
    /// Bytes of the whole value.
    pub value_bytes: usize,
    /// Received bytes of the trailer.
    pub trailer: Vec<u8>,
    /// Length of the trailer.
    pub trailer_bytes: usize,
    /// The requested consistency.
    pub consistency: Consistency,
}

/// Destination of an incoming value.
#[derive(Debug)]
pub enum BodyTarget {
    /// An item of this core's shard whose memory is being allocated.
    Awaited(Staging),
    /// An item of this core's shard.
    Item(Staged, Vec<Span>),
    /// A buffer, to be passed to the core that owns the key.
    Buffer(Vec<u8>),
}

impl StreamingBody {
    /// Consumes the part of `input` that belongs to the value and its trailer; returns its length.
    pub fn take(&mut self, input: &[u8], memory: &mut [u8]) -> usize {
        let of_value = input.len().min(self.value_bytes - self.arrived);
        match &mut self.target {
            BodyTarget::Awaited(_) => unreachable!("nothing arrives before there is room for it"),
            BodyTarget::Buffer(buffer) => {
                if buffer.capacity() - buffer.len() < of_value {
                    // Grow by a quarter, at most to the full length.
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

    /// The next destination within its item, if enough of the value is missing for a direct receive
    /// to pay off.
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

    /// Its bytes outside any shard.
    pub fn buffered_bytes(&self) -> usize {
        match &self.target {
            BodyTarget::Buffer(buffer) => buffer.len(),
            BodyTarget::Awaited(_) | BodyTarget::Item(..) => 0,
        }
    }

    /// Whether everything has arrived.
    pub fn is_complete(&self) -> bool {
        self.arrived == self.value_bytes && self.trailer.len() == self.trailer_bytes
    }
}
