//! The send queue of a link to one peer, its order, and the peer's flow control.
//!
//! A link carries requests and answers, short and long, and none of them may block the others for
//! its whole length. The short messages of a turn are sent together as one frame. A message longer
//! than [`LONG_BYTES`] is queued separately and sent in pieces, each a frame of its own; between
//! two sends, short messages go first.
//!
//! ```text
//! frame body   messages, each behind its length
//!            | mark u32 | bytes of the whole message u32 | a piece of it
//!            | mark u32 | pieces' bytes allowed so far u64
//! mark         ffffff00, 01, 02: a piece, by class; 03, 04, 05: credit for those
//! ```
//!
//! Pieces are sent on credit, for each [`Class`] separately, so that none can hold up the others:
//! [`UNASKED_BYTES`] may come at any time, and of a message that was admitted up to
//! [`WINDOW_BYTES`] more than were taken. Which messages are admitted, of all links of a core, is
//! up to [`Arrivals`]: what arrives in part is bounded, and so is what other nodes hand on to be
//! coordinated. The rest waits where it comes from. The refused alternative, to stop reading a
//! connection, would also stop the answers that make room again.
//!
//! The queue on the sender's side is bounded, too: before queueing a request, the caller checks
//! whether it fits ([`Sending::is_full`]) and otherwise keeps it. Answers are never refused here,
//! since the requester waits for them; before a long one is built, the same is checked.

use std::collections::VecDeque;
use std::mem;

use super::frame::{HEAD_BYTES, Sealer};
use super::message::Message;

mod arriving;

pub use arriving::{Arrivals, Gathering};

/// A longer message, including its length field, is sent in pieces.
pub const LONG_BYTES: usize = 16 << 10;
/// Maximum length of a piece.
pub const PIECE_BYTES: usize = 32 << 10;
/// Bytes of pieces of an admitted message that may be in flight without having been consumed.
pub const WINDOW_BYTES: u64 = 1 << 20;
/// Bytes of pieces of each class that may be sent without admission.
pub const UNASKED_BYTES: u64 = 128 << 10;
/// Maximum length of the body of a frame between cores.
pub const FRAME_BYTES_MAX: usize = 128 << 10;
/// Short messages beyond this are sent as several frames.
const SHORT_FRAME_BYTES: usize = 64 << 10;
/// Pieces are added to a send until it has this length: short messages wait for no more than that.
const SEND_BYTES: usize = 128 << 10;
/// Credit is granted again when this much of the window has been consumed.
const CREDIT_STEP: u64 = WINDOW_BYTES / 4;
/// The same for what may be sent without admission.
const UNASKED_STEP: u64 = UNASKED_BYTES / 4;
/// Capacity that an idle link's buffers may keep.
const BYTES_KEPT: usize = 64 << 10;
/// Messages are shorter than this, so a length field of at least this is a mark.
const MARK: u32 = 0xffff_ff00;
const PIECE_HEAD_BYTES: usize = 8;

const _: () = {
    assert!(super::frame::BODY_BYTES_MAX < MARK as usize);
    assert!(PIECE_BYTES + PIECE_HEAD_BYTES <= FRAME_BYTES_MAX);
    assert!(SHORT_FRAME_BYTES + LONG_BYTES <= FRAME_BYTES_MAX);
    assert!(CREDIT_STEP + PIECE_BYTES as u64 <= WINDOW_BYTES);
    // A piece is always allowed when no message is in progress.
    assert!(UNASKED_STEP + PIECE_BYTES as u64 <= UNASKED_BYTES);
};

/// A kind of messages with credit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Performed on arrival: replicas' writes and reads, and messages without an answer.
    Request,
    /// Answers.
    Answer,
    /// Clients' requests that the receiver is to coordinate, for which it needs memory of its own.
    Forward,
}

/// Number of classes.
pub(crate) const CLASSES: usize = 3;

impl Class {
    const ALL: [Self; CLASSES] = [Self::Request, Self::Answer, Self::Forward];

    fn of(message: &[u8]) -> Self {
        match message {
            message if Message::is_answer(message) => Self::Answer,
            message if Message::is_forward(message) => Self::Forward,
            _ => Self::Request,
        }
    }
}

/// The body of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameBody<'b> {
    /// Messages.
    Messages(&'b [u8]),
    /// A piece of a long message.
    Piece {
        /// Its class.
        class: Class,
        /// Length of the whole message.
        total: usize,
        /// Its next bytes.
        bytes: &'b [u8],
    },
    /// The bytes of pieces that may be sent, counted from the link's beginning.
    Credit {
        /// Of this class.
        class: Class,
        /// The bytes.
        up_to: u64,
    },
}

/// The peer violated the protocol of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedFrame;

impl<'b> FrameBody<'b> {
    /// Decodes `body`, which may be anything.
    ///
    /// # Errors
    /// If it begins like a piece or a credit and is neither.
    #[inline]
    pub fn read(body: &'b [u8]) -> Result<Self, MalformedFrame> {
        match body.first_chunk() {
            Some(first) if u32::from_le_bytes(*first) >= MARK => Self::read_marked(body),
            _ => Ok(FrameBody::Messages(body)),
        }
    }

    fn read_marked(body: &'b [u8]) -> Result<Self, MalformedFrame> {
        let (first, rest) = body.split_first_chunk().expect("looked at");
        let mark = u32::from_le_bytes(*first) - MARK;
        let class = Class::ALL[mark as usize % CLASSES];
        match mark {
            0..3 => {
                let (total, bytes) = rest.split_first_chunk().ok_or(MalformedFrame)?;
                let total = u32::from_le_bytes(*total) as usize;
                if bytes.is_empty() {
                    Err(MalformedFrame)
                } else {
                    Ok(FrameBody::Piece { class, total, bytes })
                }
            }
            3..6 => {
                let up_to = u64::from_le_bytes(rest.try_into().map_err(|_| MalformedFrame)?);
                Ok(FrameBody::Credit { class, up_to })
            }
            _ => Err(MalformedFrame),
        }
    }
}

/// The sending half of a link.
#[derive(Debug)]
pub struct Sending {
    sealer: Sealer,
    queue_bytes_max: usize,
    /// Longest message that the peer accepts.
    message_bytes_max: usize,
    /// The frame of short messages being collected: nothing, or space for its header, and messages.
    short: Vec<u8>,
    /// An empty buffer, for the frame after the one in flight.
    spare: Vec<u8>,
    long: [Long; CLASSES],
    /// The class of the next piece, if it may be sent.
    next: usize,
    /// Credit to be sent to the peer.
    owed: [Option<u64>; CLASSES],
    /// Bytes in flight.
    in_flight: usize,
}

/// Long messages of one class.
#[derive(Debug)]
struct Long {
    messages: VecDeque<LongMessage>,
    /// Their unsent bytes.
    bytes: usize,
    /// Bytes ever sent, and the limit set by the peer.
    sent: u64,
    allowed: u64,
}

/// A message at some offset in a buffer.
#[derive(Debug)]
struct LongMessage {
    buffer: Vec<u8>,
    /// Where its unsent part begins.
    from: usize,
    to: usize,
    total: u32,
}

impl Sending {
    /// An empty queue. It takes at most about `queue_bytes_max` bytes of requests, and of long
    /// answers; messages longer than `message_bytes_max` are dropped.
    pub fn new(sealer: Sealer, queue_bytes_max: usize, message_bytes_max: usize) -> Self {
        let long = || Long { messages: VecDeque::new(), bytes: 0, sent: 0, allowed: UNASKED_BYTES };
        Self {
            sealer,
            queue_bytes_max,
            message_bytes_max,
            short: Vec::new(),
            spare: Vec::new(),
            long: [long(), long(), long()],
            next: 0,
            owed: [None; CLASSES],
            in_flight: 0,
        }
    }

    /// Where messages are collected; they go out with the next send.
    #[inline]
    pub fn room(&mut self) -> &mut Vec<u8> {
        if self.short.is_empty() {
            self.sealer.begin(&mut self.short);
        }
        &mut self.short
    }

    /// Whether a message of `class` and `bytes` has to wait. Short ones do not wait for long ones.
    /// Of long ones, at most about `others_max` bytes are accepted beside those already queued,
    /// which bounds all links of a core together; but each link may always have one.
    #[inline]
    pub fn is_full(&self, class: Class, bytes: usize, others_max: usize) -> bool {
        if bytes <= LONG_BYTES {
            return self.short.len() + self.in_flight >= self.queue_bytes_max;
        }
        let own = self.short.len() + self.long[class as usize].bytes;
        own >= self.queue_bytes_max || (self.short.len() >= others_max && own > LONG_BYTES)
    }

    /// Whether anything that had to wait may be retried.
    pub fn is_roomy(&self, others_max: usize) -> bool {
        let long = |class| !self.is_full(class, usize::MAX, others_max);
        !self.is_full(Class::Request, 0, others_max) && Class::ALL.into_iter().all(long)
    }

    /// Bytes of queued long messages.
    pub fn long_bytes(&self) -> usize {
        self.long.iter().map(|long| long.bytes).sum()
    }

    /// Drops everything queued: the link is gone.
    pub fn clear(&mut self) {
        self.short = Vec::new();
        self.owed = [None; CLASSES];
        for long in &mut self.long {
            (long.messages, long.bytes) = (VecDeque::new(), 0);
        }
    }

    /// Bytes queued or in flight.
    pub fn waiting_bytes(&self) -> usize {
        self.in_flight + self.short.len() + self.long_bytes()
    }

    /// The peer allows pieces of `class` up to `up_to` bytes, counted from the beginning.
    pub fn allow(&mut self, class: Class, up_to: u64) {
        let long = &mut self.long[class as usize];
        long.allowed = long.allowed.max(up_to);
    }

    /// Tells the peer with the next send that it may send up to `up_to` bytes of `class`.
    pub fn tell_credit(&mut self, class: Class, up_to: u64) {
        self.owed[class as usize] = Some(up_to);
    }

    /// Whether something can be sent now.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.short.len() > HEAD_BYTES
            || self.owed != [None; CLASSES]
            || self.long.iter().any(Long::may_send)
    }

    /// Separates long messages from short ones, so that they count as such. To be called when a
    /// turn's messages have been collected. Returns how many were dropped as too long for the peer.
    #[inline]
    pub fn separate(&mut self) -> u64 {
        if self.short.len() <= HEAD_BYTES + LONG_BYTES { 0 } else { self.separate_long() }
    }

    #[cold]
    fn separate_long(&mut self) -> u64 {
        let is_long = |message: &&[u8]| message.len() > LONG_BYTES;
        let Some(last) = split(&self.short[HEAD_BYTES..]).filter(is_long).last() else { return 0 };
        let last = last.as_ptr_range();
        let buffer = mem::replace(&mut self.short, mem::take(&mut self.spare));
        let mut dropped = 0;
        for message in split(&buffer[HEAD_BYTES..]) {
            if message.len() <= LONG_BYTES {
                self.room().extend_from_slice(message);
            } else if message.len() > self.message_bytes_max {
                dropped += 1;
            } else if message.as_ptr_range() != last {
                self.long[Class::of(&message[4..]) as usize].push(message.to_vec(), 0);
            }
        }
        // The last one stays where it is; usually it is the only one.
        let from = last.start.addr() - buffer.as_ptr().addr();
        let bytes = last.end.addr() - last.start.addr();
        if bytes <= self.message_bytes_max {
            let class = Class::of(&buffer[from + 4..]);
            let mut buffer = buffer;
            buffer.truncate(from + bytes);
            self.long[class as usize].push(buffer, from);
        }
        dropped
    }

    /// The frames to send next, as one buffer; empty when there are none. To be followed by
    /// [`Sending::sent`] when they have been sent.
    pub fn take(&mut self) -> Vec<u8> {
        debug_assert_eq!(self.in_flight, 0, "one send at a time");
        let mut frames = mem::take(&mut self.spare);
        if self.short.len() > HEAD_BYTES {
            mem::swap(&mut frames, &mut self.short);
            if frames.len() <= HEAD_BYTES + SHORT_FRAME_BYTES {
                self.sealer.end(0, &mut frames);
            } else {
                frames = self.seal_parts(&frames[HEAD_BYTES..]);
            }
        }
        for class in Class::ALL {
            if let Some(up_to) = self.owed[class as usize].take() {
                self.seal(&mut frames, |out| {
                    out.extend_from_slice(&(MARK + CLASSES as u32 + class as u32).to_le_bytes());
                    out.extend_from_slice(&up_to.to_le_bytes());
                });
            }
        }
        while frames.len() < SEND_BYTES && self.long.iter().any(Long::may_send) {
            let mut turns = (0..CLASSES).map(|turn| (self.next + turn) % CLASSES);
            let class = turns.find(|class| self.long[*class].may_send()).expect("one may");
            self.next = (class + 1) % CLASSES;
            self.seal_piece(class, &mut frames);
        }
        self.in_flight = frames.len();
        frames
    }

    /// The buffer returned by [`Sending::take`] has been sent and comes back.
    pub fn sent(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        buffer.shrink_to(BYTES_KEPT);
        self.spare = buffer;
        self.in_flight = 0;
    }

    /// Seals more short messages than fit into a frame as several frames, split between messages.
    #[cold]
    fn seal_parts(&mut self, messages: &[u8]) -> Vec<u8> {
        let mut frames = Vec::with_capacity(messages.len() + 4 * HEAD_BYTES);
        let mut start = None;
        for message in split(messages) {
            if let Some(begun) = start
                && frames.len() - begun - HEAD_BYTES + message.len() > SHORT_FRAME_BYTES
            {
                self.sealer.end(begun, &mut frames);
                start = None;
            }
            if start.is_none() {
                start = Some(self.sealer.begin(&mut frames));
            }
            frames.extend_from_slice(message);
        }
        if let Some(begun) = start {
            self.sealer.end(begun, &mut frames);
        }
        frames
    }

    fn seal_piece(&mut self, class: usize, frames: &mut Vec<u8>) {
        let start = self.sealer.begin(frames);
        let long = &mut self.long[class];
        let message = long.messages.front_mut().expect("it may be sent");
        let credit = (long.allowed - long.sent).min(PIECE_BYTES as u64) as usize;
        let bytes = credit.min(message.to - message.from);
        frames.extend_from_slice(&(MARK + class as u32).to_le_bytes());
        frames.extend_from_slice(&message.total.to_le_bytes());
        frames.extend_from_slice(&message.buffer[message.from..message.from + bytes]);
        message.from += bytes;
        long.sent += bytes as u64;
        long.bytes -= bytes;
        if message.from == message.to {
            long.messages.pop_front();
        }
        self.sealer.end(start, frames);
    }

    fn seal(&mut self, frames: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.sealer.begin(frames);
        write(frames);
        self.sealer.end(start, frames);
    }
}

impl Long {
    fn push(&mut self, buffer: Vec<u8>, from: usize) {
        let to = buffer.len();
        self.bytes += to - from;
        self.messages.push_back(LongMessage { buffer, from, to, total: (to - from) as u32 });
    }

    #[inline]
    fn may_send(&self) -> bool {
        !self.messages.is_empty() && self.sent < self.allowed
    }
}

/// The concatenated messages, each with its length before it.
fn split(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = rest.first_chunk::<4>()?;
        let bytes = (4 + u32::from_le_bytes(*length) as usize).min(rest.len());
        let (message, after) = rest.split_at(bytes);
        rest = after;
        Some(message)
    })
}

#[cfg(test)]
mod tests;
