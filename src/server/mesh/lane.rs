//! One direction between two cores: messages are collected in buffers, which are passed whole.

use rtrb::{Consumer, Producer, RingBuffer};

use crate::server::net_ring::Token;

/// Bytes before each message: its length, and the receiver of the answer.
const HEAD_BYTES: usize = 16;
/// Maximum buffers in transit between two cores; a further one waits at the sender.
const BUFFERS: usize = 64;
/// Empty buffers kept by a sender, and the capacity that each may retain.
const SPARE_BUFFERS: usize = 16;
const SPARE_BYTES: usize = 32 << 10;
/// Capacity of a new buffer.
const BUFFER_BYTES: usize = 4 << 10;
/// A buffer of this length is passed before the turn is over: the other core can start, and buffers
/// do not grow with the length of a turn.
const FULL_BYTES: usize = 16 << 10;

/// The receiver of an answer: a connection of the requesting core and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The connection.
    pub token: Token,
    /// The request's number in its pipeline.
    pub sequence: u32,
}

/// Consecutive messages. Its memory is zeroed when it grows and never again, so it is not a plain
/// vector: one that is cleared and resized would be zeroed for every message.
#[derive(Debug, Default)]
pub struct Buffer {
    room: Vec<u8>,
    used: usize,
}

impl Buffer {
    fn len(&self) -> usize {
        self.used
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn bytes(&self) -> &[u8] {
        &self.room[..self.used]
    }

    /// Appends `bytes` bytes of arbitrary content.
    #[inline]
    fn extend(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.used;
        self.used += bytes;
        if self.used > self.room.len() {
            self.grow(start);
        }
        &mut self.room[start..self.used]
    }

    #[cold]
    fn grow(&mut self, start: usize) {
        if self.used > SPARE_BYTES && start <= SPARE_BYTES {
            // For a long message. Memory from the kernel is already zeroed.
            let mut room = vec![0; self.used];
            room[..start].copy_from_slice(&self.room[..start]);
            self.room = room;
        } else {
            self.room.resize(self.used.next_power_of_two().max(BUFFER_BYTES), 0);
        }
    }

    /// Empties it and frees capacity beyond [`SPARE_BYTES`].
    fn clear(&mut self) {
        self.used = 0;
        self.room.truncate(SPARE_BYTES);
        self.room.shrink_to(SPARE_BYTES);
    }
}

/// One lane between two cores: the sender's end.
pub struct Sender {
    buffers: Producer<Buffer>,
    /// Buffers returned by the receiver.
    returned: Consumer<Buffer>,
    spare: Vec<Buffer>,
    /// Messages collected since the last buffer was passed.
    staged: Buffer,
    /// A buffer was passed since the last [`Sender::publish`].
    handed_over: bool,
    /// Bytes in buffers that have not been returned.
    under_way: usize,
    /// A buffer waits while those in transit hold more than this.
    bytes_max: usize,
}

/// One lane between two cores: the receiver's end.
pub struct Receiver {
    buffers: Consumer<Buffer>,
    returns: Producer<Buffer>,
    /// The current buffer.
    current: Buffer,
    /// Start of its first unhandled message.
    at: usize,
}

pub fn lane(bytes_max: usize) -> (Sender, Receiver) {
    let (buffers_in, buffers_out) = RingBuffer::new(BUFFERS);
    // Buffers in transit, the current one, and those returned since the sender last checked.
    let (returns_in, returns_out) = RingBuffer::new(2 * BUFFERS);
    let sender = Sender {
        buffers: buffers_in,
        returned: returns_out,
        spare: Vec::with_capacity(SPARE_BUFFERS),
        staged: Buffer::default(),
        handed_over: false,
        under_way: 0,
        bytes_max,
    };
    (
        sender,
        Receiver { buffers: buffers_out, returns: returns_in, current: Buffer::default(), at: 0 },
    )
}

impl Sender {
    /// Collects one message whose body `encode` writes into exactly `bytes` bytes.
    #[inline]
    pub fn stage(&mut self, to: ReplyTo, bytes: usize, encode: impl FnOnce(&mut [u8])) {
        let head = [bytes as u32, to.token.index, to.token.generation, to.sequence];
        let start = self.staged.len();
        let (place, body) = self.staged.extend(HEAD_BYTES + bytes).split_at_mut(HEAD_BYTES);
        for (place, word) in place.chunks_exact_mut(4).zip(head) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        encode(body);
        // Retry only after as much more: there may be no room.
        if self.staged.len() / FULL_BYTES > start / FULL_BYTES {
            self.hand_over();
        }
    }

    /// Collected bytes not passed yet.
    #[inline]
    pub fn staged_bytes(&self) -> usize {
        self.staged.len()
    }

    /// Passes the rest, if there is room. True if any buffer was passed since the last call: then
    /// the receiver must be awake.
    pub fn publish(&mut self) -> bool {
        if !self.staged.is_empty() {
            self.hand_over();
        }
        std::mem::take(&mut self.handed_over)
    }

    /// Passes the collected messages, if there is room.
    #[inline(never)]
    fn hand_over(&mut self) {
        while let Ok(mut buffer) = self.returned.pop() {
            self.under_way -= buffer.len();
            if self.spare.len() < SPARE_BUFFERS {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
        let bytes = self.staged.len();
        if self.under_way > 0 && self.under_way + bytes > self.bytes_max {
            return;
        }
        let next = self.spare.pop().unwrap_or_default();
        match self.buffers.push(std::mem::replace(&mut self.staged, next)) {
            Ok(()) => {
                self.under_way += bytes;
                self.handed_over = true;
            }
            Err(rtrb::PushError::Full(buffer)) => {
                let next = std::mem::replace(&mut self.staged, buffer);
                self.spare.extend((!next.room.is_empty()).then_some(next));
            }
        }
    }
}

impl Receiver {
    /// Ensures that the current buffer has an unhandled message. False if none has arrived.
    pub fn take(&mut self) -> bool {
        while self.at == self.current.len() {
            let Ok(next) = self.buffers.pop() else { return false };
            let done = std::mem::replace(&mut self.current, next);
            self.at = 0;
            self.give_back(done);
        }
        true
    }

    /// Marks all messages before `at` as handled.
    pub fn advance_to(&mut self, at: usize) {
        self.at = at;
        if at == self.current.len() {
            let done = std::mem::take(&mut self.current);
            self.at = 0;
            self.give_back(done);
        }
    }

    fn give_back(&mut self, buffer: Buffer) {
        if !buffer.is_empty() {
            self.returns.push(buffer).expect("no more buffers exist than fit");
        }
    }

    /// The current buffer, and the start of its first unhandled message.
    #[inline]
    pub fn current(&self) -> (&[u8], usize) {
        (self.current.bytes(), self.at)
    }

    /// Whether a further buffer has arrived.
    #[inline]
    pub fn has_arrivals(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// Whether there are unhandled messages.
    #[inline]
    pub fn has_more(&self) -> bool {
        self.at < self.current.len() || self.has_arrivals()
    }
}

/// The message that begins at `at` in `bytes`, and its end.
#[inline]
pub fn message(bytes: &[u8], at: usize) -> Option<(ReplyTo, &[u8], usize)> {
    let head: &[u8; HEAD_BYTES] = bytes.get(at..)?.first_chunk()?;
    let word = |i: usize| u32::from_le_bytes(head[i * 4..][..4].try_into().expect("four bytes"));
    let token = Token { index: word(1), generation: word(2) };
    let start = at + HEAD_BYTES;
    let end = start + word(0) as usize;
    Some((ReplyTo { token, sequence: word(3) }, &bytes[start..end], end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(sequence: u32) -> ReplyTo {
        ReplyTo { token: Token { index: 7, generation: 9 }, sequence }
    }

    /// Takes all that has arrived; returns the bodies with their sequence numbers.
    fn take(receiver: &mut Receiver) -> Vec<(u32, Vec<u8>)> {
        let mut bodies = Vec::new();
        while receiver.take() {
            let (to, body, end) =
                message(receiver.current.bytes(), receiver.at).expect("whole messages");
            bodies.push((to.sequence, body.to_vec()));
            receiver.advance_to(end);
        }
        bodies
    }

    #[test]
    fn messages_of_any_length_arrive_whole_and_in_order() {
        let (mut sender, mut receiver) = lane(4096);
        let (mut expected, mut arrived) = (Vec::new(), Vec::new());
        for sequence in 0..2000u32 {
            // Some larger than all that may be under way together.
            let bytes = [0, 1, 40, 495, 496, 497, 3000, 70_000][sequence as usize % 8];
            let body = vec![sequence as u8; bytes];
            sender.stage(to(sequence), bytes, |place| place.copy_from_slice(&body));
            expected.push((sequence, body));
            if sequence % 5 == 4 {
                sender.publish();
                arrived.extend(take(&mut receiver));
            }
        }
        assert!(arrived == expected);
    }

    #[test]
    fn beyond_the_bytes_under_way_the_rest_stays_at_the_sender() {
        let (mut sender, mut receiver) = lane(1024);
        let stage = |sender: &mut Sender, sequence| {
            sender.stage(to(sequence), 500, |place| place.fill(sequence as u8));
        };
        stage(&mut sender, 0);
        assert!(sender.publish());
        stage(&mut sender, 1);
        assert!(!sender.publish(), "1,032 bytes are more than 1,024");
        stage(&mut sender, 2);
        assert_eq!(take(&mut receiver).len(), 1);
        assert!(sender.publish(), "whatever its length, one buffer may be under way");
        let bodies = take(&mut receiver);
        assert_eq!(bodies.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_full_buffer_does_not_wait_for_the_end_of_the_turn() {
        let (mut sender, mut receiver) = lane(1 << 20);
        let mut arrived = 0;
        for sequence in 0..1000 {
            sender.stage(to(sequence), 100, |place| place.fill(1));
            assert!(sender.staged.len() < FULL_BYTES);
            arrived += take(&mut receiver).len();
        }
        assert!(arrived > 800, "{arrived} of 1000");
        assert!(sender.publish(), "nobody was woken for what was handed over before");
        assert_eq!(arrived + take(&mut receiver).len(), 1000);
        assert!(!sender.publish());
    }

    #[test]
    fn buffers_come_back_and_only_so_many_are_under_way() {
        let (mut sender, mut receiver) = lane(1 << 20);
        let mut published = 0;
        for sequence in 0..BUFFERS as u32 * 3 {
            sender.stage(to(sequence), 8, |place| place.fill(1));
            published += usize::from(sender.publish());
        }
        assert_eq!(published, BUFFERS);
        let mut arrived = take(&mut receiver).len();
        assert!(sender.publish());
        arrived += take(&mut receiver).len();
        assert_eq!(arrived, BUFFERS * 3);
        let room = sender.spare.iter().map(|buffer| buffer.room.len()).min();
        assert!(sender.spare.len() >= SPARE_BUFFERS - 1 && room > Some(0), "{:?}", sender.spare);
        sender.stage(to(0), 8, |place| place.fill(1));
        sender.publish();
        take(&mut receiver);
        sender.stage(to(0), 8, |place| place.fill(1));
        sender.publish();
        assert_eq!(sender.under_way, HEAD_BYTES + 8);
    }
}
