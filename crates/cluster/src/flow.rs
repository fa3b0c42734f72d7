//! What waits for one peer, in which order it leaves, and how much the peer lets come.
//!
//! A link carries requests and answers, short and long, and none of them may keep the others
//! waiting for its own length. Short messages of a turn leave together as one frame, as if there
//! were nothing else. A message longer than [`LONG_BYTES`] waits beside them and leaves in pieces,
//! each a frame of its own; between two sends whatever is short goes first.
//!
//! ```text
//! frame body   messages, each behind its length
//!            | mark u32 | bytes of the whole message u32 | a piece of it
//!            | mark u32 | pieces' bytes allowed so far u64
//! mark         ffffff00, 01: a piece of a request, of an answer; 02, 03: credit for those
//! ```
//!
//! Pieces are sent on credit: a receiver allows [`WINDOW_BYTES`] more than it has taken, for requests
//! and for answers separately, so that neither can hold up the other. It takes what comes at once and
//! holds one message of each class while its pieces arrive; what cannot be done yet waits in the
//! coordinator's table, which is bounded, not here. The refused alternative, to stop reading a
//! connection, would also stop the answers that make room again.
//!
//! What waits on the sender's side is bounded, too: whoever has a request asks whether it fits
//! ([`Sending::is_full`]) and keeps it otherwise. Answers are never refused here, since whoever asked
//! waits for them; before a long one is made, [`Sending::takes_long_answer`] is asked.

use std::collections::VecDeque;
use std::mem;

use super::frame::{HEAD_BYTES, Sealer};
use super::message::Message;

/// A longer message, its length included, leaves in pieces.
pub const LONG_BYTES: usize = 16 << 10;
/// Longest piece.
pub const PIECE_BYTES: usize = 32 << 10;
/// Bytes of pieces that may be on their way without having been taken, for each class.
pub const WINDOW_BYTES: u64 = 1 << 20;
/// Longest body of a frame between cores.
pub const FRAME_BYTES_MAX: usize = 128 << 10;
/// Short messages beyond this leave as several frames.
const SHORT_FRAME_BYTES: usize = 64 << 10;
/// Pieces are added to a send until it is so long: what is short waits for no more than that.
const SEND_BYTES: usize = 128 << 10;
/// Credit is given again when so much of the window has been taken.
const CREDIT_STEP: u64 = WINDOW_BYTES / 4;
/// Room that an idle link's buffers may keep.
const BYTES_KEPT: usize = 64 << 10;
/// Messages are shorter than this, so what stands in the place of a length and is not is a mark.
const MARK: u32 = 0xffff_ff00;
const PIECE_HEAD_BYTES: usize = 8;

const _: () = {
    assert!(super::frame::BODY_BYTES_MAX < MARK as usize);
    assert!(PIECE_BYTES + PIECE_HEAD_BYTES <= FRAME_BYTES_MAX);
    assert!(SHORT_FRAME_BYTES + LONG_BYTES <= FRAME_BYTES_MAX);
    assert!(CREDIT_STEP + PIECE_BYTES as u64 <= WINDOW_BYTES);
};

/// What has credit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Requests, and what needs no answer.
    Request,
    /// Answers.
    Answer,
}

impl Class {
    const ALL: [Self; 2] = [Self::Request, Self::Answer];

    fn of(message: &[u8]) -> Self {
        if Message::is_answer(message) { Self::Answer } else { Self::Request }
    }
}

/// What the body of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'b> {
    /// Messages.
    Messages(&'b [u8]),
    /// A piece of a long message.
    Piece {
        /// Its class.
        class: Class,
        /// Length of the whole message.
        total: usize,
        /// What comes next of it.
        bytes: &'b [u8],
    },
    /// So many bytes of pieces may be sent, counted from the link's beginning.
    Credit {
        /// Of this class.
        class: Class,
        /// The bytes.
        up_to: u64,
    },
}

/// The peer broke the rules of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unruly;

impl<'b> Body<'b> {
    /// What `body` is. Any bytes may come.
    ///
    /// # Errors
    /// When it begins like a piece or a credit and is none.
    #[inline]
    pub fn read(body: &'b [u8]) -> Result<Self, Unruly> {
        match body.first_chunk() {
            Some(first) if u32::from_le_bytes(*first) >= MARK => Self::read_marked(body),
            _ => Ok(Body::Messages(body)),
        }
    }

    fn read_marked(body: &'b [u8]) -> Result<Self, Unruly> {
        let (first, rest) = body.split_first_chunk().expect("looked at");
        let mark = u32::from_le_bytes(*first) - MARK;
        let class = Class::ALL[mark as usize % 2];
        match mark {
            0 | 1 => {
                let (total, bytes) = rest.split_first_chunk().ok_or(Unruly)?;
                let total = u32::from_le_bytes(*total) as usize;
                if bytes.is_empty() { Err(Unruly) } else { Ok(Body::Piece { class, total, bytes }) }
            }
            2 | 3 => {
                let up_to = u64::from_le_bytes(rest.try_into().map_err(|_| Unruly)?);
                Ok(Body::Credit { class, up_to })
            }
            _ => Err(Unruly),
        }
    }
}

/// One side's way to its peer.
#[derive(Debug)]
pub struct Sending {
    sealer: Sealer,
    queue_bytes_max: usize,
    /// Longest message that the peer takes.
    message_bytes_max: usize,
    /// The frame of short messages being collected: nothing, or room for its head and messages.
    short: Vec<u8>,
    /// An empty buffer, for the frame after the one on its way.
    spare: Vec<u8>,
    long: [Long; 2],
    /// The class of the next piece, if it may be sent.
    next: usize,
    /// Credit that the peer is to be told of.
    owed: [Option<u64>; 2],
    /// Bytes on their way.
    in_flight: usize,
}

/// Long messages of one class.
#[derive(Debug)]
struct Long {
    messages: VecDeque<LongMessage>,
    /// Bytes of theirs that have not been sent.
    bytes: usize,
    /// Bytes ever sent, and up to which the peer allows.
    sent: u64,
    allowed: u64,
}

/// A message that lies somewhere in a buffer.
#[derive(Debug)]
struct LongMessage {
    buffer: Vec<u8>,
    /// What has not been sent.
    from: usize,
    to: usize,
    total: u32,
}

impl Sending {
    /// Nothing waits. At most about `queue_bytes_max` bytes of requests are taken, and of long
    /// answers; messages longer than `message_bytes_max` are dropped.
    pub fn new(sealer: Sealer, queue_bytes_max: usize, message_bytes_max: usize) -> Self {
        let long = || Long { messages: VecDeque::new(), bytes: 0, sent: 0, allowed: WINDOW_BYTES };
        Self {
            sealer,
            queue_bytes_max,
            message_bytes_max,
            short: Vec::new(),
            spare: Vec::new(),
            long: [long(), long()],
            next: 0,
            owed: [None, None],
            in_flight: 0,
        }
    }

    /// Where messages are collected; they leave with the next send.
    #[inline]
    pub fn room(&mut self) -> &mut Vec<u8> {
        if self.short.is_empty() {
            self.sealer.begin(&mut self.short);
        }
        &mut self.short
    }

    /// Whether a request of `bytes` has to wait. Short ones do not wait for long ones.
    #[inline]
    pub fn is_full(&self, bytes: usize) -> bool {
        let beside = match bytes > LONG_BYTES {
            true => self.long[Class::Request as usize].bytes,
            false => self.in_flight,
        };
        self.short.len() + beside >= self.queue_bytes_max
    }

    /// Whether a long answer need not wait.
    pub fn takes_long_answer(&self) -> bool {
        self.short.len() + self.long[Class::Answer as usize].bytes < self.queue_bytes_max
    }

    /// Whether anything that had to wait may be tried again.
    pub fn is_roomy(&self) -> bool {
        !self.is_full(0) && !self.is_full(usize::MAX) && self.takes_long_answer()
    }

    /// Forgets what waits: the link is gone.
    pub fn clear(&mut self) {
        self.short = Vec::new();
        self.owed = [None, None];
        for long in &mut self.long {
            (long.messages, long.bytes) = (VecDeque::new(), 0);
        }
    }

    /// Bytes that wait or are on their way.
    pub fn waiting_bytes(&self) -> usize {
        self.in_flight + self.short.len() + self.long.iter().map(|long| long.bytes).sum::<usize>()
    }

    /// The peer allows pieces of `class` up to so many bytes from the beginning.
    pub fn allow(&mut self, class: Class, up_to: u64) {
        let long = &mut self.long[class as usize];
        long.allowed = long.allowed.max(up_to);
    }

    /// Tells the peer with the next send that it may send up to so many bytes of `class`.
    pub fn tell_credit(&mut self, class: Class, up_to: u64) {
        self.owed[class as usize] = Some(up_to);
    }

    /// Whether something can be sent now.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.short.len() > HEAD_BYTES
            || self.owed != [None, None]
            || self.long.iter().any(Long::may_send)
    }

    /// Puts what is long apart from what is short, so that it counts as that; to be called when a
    /// turn's messages are collected. How many were dropped since the peer takes none so long.
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
        // The last one stays where it lies; usually it is the only one.
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
    /// [`Sending::sent`] when they have left.
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
                    out.extend_from_slice(&(MARK + 2 + class as u32).to_le_bytes());
                    out.extend_from_slice(&up_to.to_le_bytes());
                });
            }
        }
        while frames.len() < SEND_BYTES && self.long.iter().any(Long::may_send) {
            let class = if self.long[self.next].may_send() { self.next } else { 1 - self.next };
            self.next = 1 - class;
            self.seal_piece(class, &mut frames);
        }
        self.in_flight = frames.len();
        frames
    }

    /// What [`Sending::take`] gave has left; its buffer comes back.
    pub fn sent(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        buffer.shrink_to(BYTES_KEPT);
        self.spare = buffer;
        self.in_flight = 0;
    }

    /// Seals more short messages than fit into a frame as several, at the limits of messages.
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

/// The other direction: pieces becoming messages.
#[derive(Debug)]
pub struct Gathering {
    message_bytes_max: usize,
    long: [Gathered; 2],
}

#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    total: usize,
    taken: u64,
    /// What the peer was last allowed; 0 for the window at the beginning.
    told: u64,
}

impl Gathering {
    /// Takes messages of up to `message_bytes_max`, their length included.
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, long: Default::default() }
    }

    /// Takes a piece. The message that it completes, behind its length; give it back.
    ///
    /// # Errors
    /// When it belongs to no message that is taken here, or came without credit.
    pub fn piece(
        &mut self,
        class: Class,
        total: usize,
        piece: &[u8],
    ) -> Result<Option<Vec<u8>>, Unruly> {
        let Self { message_bytes_max, long } = self;
        let Gathered { bytes, total: begun, taken, told } = &mut long[class as usize];
        if bytes.is_empty() {
            if total > *message_bytes_max {
                return Err(Unruly);
            }
            *begun = total;
            bytes.reserve_exact(total);
        }
        *taken += piece.len() as u64;
        let without_credit = *taken > (*told).max(WINDOW_BYTES);
        if without_credit || *begun != total || bytes.len() + piece.len() > total {
            return Err(Unruly);
        }
        bytes.extend_from_slice(piece);
        Ok((bytes.len() == total).then(|| mem::take(bytes)))
    }

    /// The buffer of a message that [`Gathering::piece`] completed.
    pub fn give_back(&mut self, class: Class, mut buffer: Vec<u8>) {
        buffer.clear();
        buffer.shrink_to(BYTES_KEPT);
        self.long[class as usize].bytes = buffer;
    }

    /// The credit that the peer is to be told of, if it is time to.
    pub fn due_credit(&mut self, class: Class) -> Option<u64> {
        let Gathered { taken, told, .. } = &mut self.long[class as usize];
        let up_to = *taken + WINDOW_BYTES;
        let due = up_to - (*told).max(WINDOW_BYTES) >= CREDIT_STEP;
        due.then(|| {
            *told = up_to;
            up_to
        })
    }

    /// Forgets what has not arrived whole: the link is gone.
    pub fn clear(&mut self) {
        self.long.iter_mut().for_each(|long| long.bytes = Vec::new());
    }

    /// Bytes held of messages that have not arrived whole.
    pub fn held_bytes(&self) -> usize {
        self.long.iter().map(|long| long.bytes.len()).sum()
    }
}

/// The messages in a row, each with its length before it.
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
