//! Keeps answers in request order when requests of one connection finish out of order.
//!
//! Most requests are answered in place and never come here. Once one is on its way to another
//! core, everything behind it has to wait its turn: later answers that are already known are kept
//! as bytes, later requests to other cores as slots. Both kinds lie in one byte queue in request
//! order, so the pipeline of a connection is two ring buffers that stop allocating once they have
//! grown to the connection's depth; the alternative, one small allocation per waiting request,
//! cost more than the hop to the other core.
//!
//! Answers on their way cannot be stopped, so how many requests may be on theirs depends on how
//! long the connection's answers are: the pipeline keeps an estimate of it.

use std::collections::VecDeque;

use super::text::bad_data_chunk;
use super::{Answer, Output, Reply, ReplyForm, encode};
use crate::request::Response;
use crate::time::Instant;

/// The unanswered requests of one connection, oldest first.
#[derive(Debug)]
pub struct Pipeline {
    slots: VecDeque<Slot>,
    /// Sequence number of the oldest slot; wraps.
    first: u32,
    /// What the slots carry: a waiting slot its key and tail, a ready one its answer.
    bytes: Vec<u8>,
    /// Where the oldest slot's bytes begin in `bytes`.
    start: usize,
    /// How many bytes were dropped from the front of `bytes` since it was last empty.
    dropped: usize,
    /// Length of the answers to come, judged by those that came.
    answer_bytes: usize,
    /// Room for answers that come early.
    spare: Vec<Vec<u8>>,
}

/// Length of an answer while none has come: few enough requests are let go that even long answers
/// to all of them can be borne.
const ANSWER_BYTES_UNKNOWN: usize = 10 << 10;
/// An answer that is not as long as expected lowers the expectation by this part.
const ANSWER_BYTES_DECAY: usize = 64;

/// What answers a waiting request.
#[derive(Clone, Copy)]
pub enum Completion<'r> {
    /// The owner of the key.
    Response(&'r Response<'r>),
    /// Nobody: what followed its data block was not the end of a block.
    BadDataChunk,
    /// The node: this writes the answer.
    Written(&'r dyn Fn(&Reply<'_>, &mut dyn Output)),
}

impl Completion<'_> {
    /// Bytes of the answer, in so far as they can be many.
    fn long_bytes(&self) -> usize {
        match self {
            Completion::Response(Response::Hit(hit)) => hit.value.len(),
            _ => 0,
        }
    }

    fn encode(self, reply: &Reply<'_>, now: Instant, out: &mut impl Output) {
        match self {
            Completion::Response(response) => encode(reply, response, now, out),
            Completion::BadDataChunk => {
                if let Answer::Bytes(bytes) = bad_data_chunk(reply) {
                    out.bytes(bytes);
                }
            }
            Completion::Written(write) => write(reply, out),
        }
    }
}

/// Room kept for an empty pipeline; what a burst needed beyond it is given back.
const BYTES_KEPT: usize = 16 << 10;
/// Buffers kept for early answers, and the room each may keep: what a batch needs whose requests go
/// to several cores. They are apart from the queue because they leave it in another order than they
/// come.
const EARLY_KEPT: usize = 32;
const EARLY_BYTES_KEPT: usize = 256;

#[derive(Debug)]
struct Slot {
    /// Where this slot's bytes begin, counted from when the queue was last empty.
    begin: usize,
    /// Bytes of this slot in the queue.
    bytes: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Another core works on it; the slot's bytes are the key and then the tail.
    Waiting { form: ReplyForm, key_bytes: u8 },
    /// Answered; the slot's bytes are the answer.
    Ready,
    /// Answered by a core that was faster than the one before it.
    Early(Vec<u8>),
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            first: 0,
            bytes: Vec::new(),
            start: 0,
            dropped: 0,
            answer_bytes: ANSWER_BYTES_UNKNOWN,
            spare: Vec::new(),
        }
    }
}

impl Pipeline {
    /// How many further requests may be waited for, if at most `requests_max` may be in all and
    /// their answers should not pass `bytes_max` by much. One is always let go.
    pub fn room(&self, requests_max: usize, bytes_max: usize) -> usize {
        if self.bytes_held() >= bytes_max {
            return 0;
        }
        let bearable = bytes_max / self.answer_bytes.max(1);
        bearable.clamp(1, requests_max).saturating_sub(self.len())
    }

    #[inline]
    fn note_answer(&mut self, bytes: usize) {
        let lowered = self.answer_bytes - self.answer_bytes.div_ceil(ANSWER_BYTES_DECAY);
        self.answer_bytes = lowered.max(bytes);
    }

    /// No request is unanswered.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many requests are unanswered or wait behind one that is.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes held for them.
    pub fn bytes_held(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Adds a request that is answered later. The number names it to [`Pipeline::complete`].
    pub fn wait(&mut self, reply: &Reply<'_>) -> u32 {
        let sequence = self.first.wrapping_add(self.slots.len() as u32);
        let begin = self.dropped + self.bytes.len();
        self.bytes.extend_from_slice(reply.key);
        self.bytes.extend_from_slice(reply.tail);
        let state = State::Waiting { form: reply.form, key_bytes: reply.key.len() as u8 };
        let bytes = reply.key.len() + reply.tail.len();
        self.slots.push_back(Slot { begin, bytes, state });
        sequence
    }

    /// Adds an answer that is known, to be sent after those before it. `write` appends it.
    pub fn ready(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let bytes = self.bytes.len() - before;
        self.note_answer(bytes);
        match self.slots.back_mut() {
            Some(slot) if matches!(slot.state, State::Ready) => slot.bytes += bytes,
            _ => {
                let begin = self.dropped + before;
                self.slots.push_back(Slot { begin, bytes, state: State::Ready });
            }
        }
    }

    /// Answers request `sequence` and writes all answers that are due now. An answer that may
    /// overtake others is written at once.
    ///
    /// # Panics
    /// When `sequence` names no waiting request: each is completed exactly once.
    pub fn complete(
        &mut self,
        sequence: u32,
        completion: Completion<'_>,
        now: Instant,
        out: &mut impl Output,
    ) {
        let position = sequence.wrapping_sub(self.first) as usize;
        assert!(position < self.slots.len(), "completed a request that is not in the pipeline");
        self.note_answer(completion.long_bytes());
        let slot = &mut self.slots[position];
        let offset = slot.begin - self.dropped;
        let State::Waiting { form, key_bytes } = slot.state else {
            panic!("completed a request twice");
        };
        let context = &self.bytes[offset..offset + slot.bytes];
        let (key, tail) = context.split_at(key_bytes as usize);
        let reply = Reply { form, key, tail };
        if position == 0 || form.may_overtake() {
            completion.encode(&reply, now, out);
            slot.state = State::Early(Vec::new());
            self.advance(out);
        } else {
            let mut early = self.spare.pop().unwrap_or_default();
            completion.encode(&reply, now, &mut early);
            slot.state = State::Early(early);
        }
    }

    /// Writes the answers at the head that are due and forgets them.
    fn advance(&mut self, out: &mut impl Output) {
        while let Some(slot) = self.slots.front() {
            let end = self.start + slot.bytes;
            match &slot.state {
                State::Waiting { .. } => break,
                State::Ready => out.bytes(&self.bytes[self.start..end]),
                State::Early(answer) => out.bytes(answer),
            }
            self.start = end;
            self.first = self.first.wrapping_add(1);
            if let Some(Slot { state: State::Early(mut answer), .. }) = self.slots.pop_front()
                && (1..=EARLY_BYTES_KEPT).contains(&answer.capacity())
                && self.spare.len() < EARLY_KEPT
            {
                answer.clear();
                self.spare.push(answer);
            }
        }
        if self.slots.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(BYTES_KEPT);
            self.start = 0;
            self.dropped = 0;
        } else if self.start > self.bytes.len() / 2 && self.start > 4096 {
            self.bytes.drain(..self.start);
            self.dropped += self.start;
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bumpalo::Bump;

    use super::*;
    use crate::hash::HashSecret;
    use crate::protocol::{Context, Decoder, Limits, Step};
    use crate::request::{Hit, Marks, Value};
    use crate::time::Deadline;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    /// A pipeline in which `delete` requests wait, one for each key.
    fn waiting(keys: &[&str]) -> (Pipeline, Vec<u32>) {
        let mut pipeline = Pipeline::default();
        let numbers = keys.iter().map(|key| wait(&mut pipeline, &format!("get {key}"))).collect();
        (pipeline, numbers)
    }

    fn wait(pipeline: &mut Pipeline, line: &str) -> u32 {
        let (limits, scratch) = (Limits::default(), Bump::new());
        let context = Context {
            limits: &limits,
            now: NOW,
            hash_secret: &HashSecret::of_seed(0),
            scratch: &scratch,
        };
        let line = format!("{line}\r\n");
        match Decoder::default().next(line.as_bytes(), &context) {
            Step::Request { reply, .. } => pipeline.wait(&reply),
            step => panic!("no request: {step:?}"),
        }
    }

    fn complete(pipeline: &mut Pipeline, number: u32, out: &mut Vec<u8>) {
        pipeline.complete(number, Completion::Response(&Response::Miss), NOW, out);
    }

    #[test]
    fn early_answers_wait_for_those_before_them() {
        let (mut pipeline, numbers) = waiting(&["a", "b", "c"]);
        pipeline.ready(|bytes| bytes.extend_from_slice(b"known\r\n"));
        let mut out = Vec::new();
        complete(&mut pipeline, numbers[2], &mut out);
        complete(&mut pipeline, numbers[1], &mut out);
        assert!(out.is_empty());
        complete(&mut pipeline, numbers[0], &mut out);
        assert_eq!(out, b"END\r\nEND\r\nEND\r\nknown\r\n");
        assert!(pipeline.is_empty());
    }

    #[test]
    fn answers_in_order_are_written_at_once() {
        let (mut pipeline, numbers) = waiting(&["a", "b"]);
        let mut out = Vec::new();
        complete(&mut pipeline, numbers[0], &mut out);
        assert_eq!(out, b"END\r\n");
        pipeline.ready(|bytes| bytes.extend_from_slice(b"x\r\n"));
        assert_eq!(out, b"END\r\n");
        complete(&mut pipeline, numbers[1], &mut out);
        assert_eq!(out, b"END\r\nEND\r\nx\r\n");
    }

    #[test]
    fn a_full_turn_of_the_queue_keeps_order_and_room() {
        let mut pipeline = Pipeline::default();
        let mut out = Vec::new();
        let mut oldest = std::collections::VecDeque::new();
        for i in 0..5000u32 {
            oldest.push_back(wait(&mut pipeline, &format!("get key-number-{i}")));
            pipeline.ready(|bytes| bytes.extend_from_slice(format!("{i}\r\n").as_bytes()));
            if oldest.len() > 7 {
                complete(&mut pipeline, oldest.pop_front().unwrap(), &mut out);
            }
        }
        while let Some(number) = oldest.pop_front() {
            complete(&mut pipeline, number, &mut out);
        }
        let expected: String = (0..5000).map(|i| format!("END\r\n{i}\r\n")).collect();
        assert_eq!(out, expected.as_bytes());
        assert_eq!(pipeline.bytes_held(), 0);
        assert!(pipeline.bytes.capacity() <= BYTES_KEPT);
    }

    #[test]
    fn early_answers_come_into_room_that_earlier_ones_had() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        let mut rooms = Vec::new();
        for _ in 0..3 {
            let numbers: Vec<_> =
                (0..30).map(|i| wait(&mut pipeline, &format!("get {i}"))).collect();
            numbers.iter().rev().for_each(|&number| complete(&mut pipeline, number, &mut out));
            assert!(pipeline.is_empty());
            rooms.push(pipeline.spare.iter().map(|room| room.as_ptr()).collect::<BTreeSet<_>>());
        }
        assert_eq!(out, b"END\r\n".repeat(90));
        assert_eq!(rooms[0].len(), 29, "the first is never early");
        assert_eq!(rooms[0], rooms[2]);
    }

    #[test]
    fn long_answers_let_few_requests_go_and_short_ones_many() {
        let mut pipeline = Pipeline::default();
        let (requests_max, bytes_max) = (1024, 256 << 10);
        assert_eq!(pipeline.room(requests_max, bytes_max), 25, "nothing is known yet");
        let number = wait(&mut pipeline, "get long");
        assert_eq!(pipeline.room(requests_max, bytes_max), 24);
        let value = vec![0; 100_000];
        let hit = Hit { value: Value::Whole(&value), ..short_hit() };
        pipeline.complete(number, Completion::Response(&Response::Hit(hit)), NOW, &mut Vec::new());
        assert_eq!(pipeline.room(requests_max, bytes_max), 2);
        let mut rooms = Vec::new();
        for _ in 0..1000 {
            let number = wait(&mut pipeline, "get short");
            complete(&mut pipeline, number, &mut Vec::new());
            rooms.push(pipeline.room(requests_max, bytes_max));
        }
        assert!(rooms.is_sorted() && *rooms.last().unwrap() == requests_max, "{rooms:?}");
        let number = wait(&mut pipeline, "get huge");
        let value = vec![0; 1 << 20];
        let hit = Hit { value: Value::Whole(&value), ..short_hit() };
        pipeline.complete(number, Completion::Response(&Response::Hit(hit)), NOW, &mut Vec::new());
        assert_eq!(pipeline.room(requests_max, bytes_max), 1, "one is always let go");
    }

    fn short_hit() -> Hit<'static> {
        Hit {
            item: None,
            key: b"k",
            value: Value::Whole(b""),
            flags: 0,
            cas: 1,
            deadline: Deadline::NEVER,
            deadline_before: Deadline::NEVER,
            idle_seconds: 0,
            marks: Marks::default(),
            class: 1,
            item_bytes: 50,
        }
    }

    #[test]
    #[should_panic(expected = "not in the pipeline")]
    fn completing_twice_is_a_broken_invariant() {
        let (mut pipeline, numbers) = waiting(&["a"]);
        complete(&mut pipeline, numbers[0], &mut Vec::new());
        complete(&mut pipeline, numbers[0], &mut Vec::new());
    }
}
