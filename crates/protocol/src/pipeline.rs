//! Keeps answers in request order when requests of one connection finish out of order.
//!
//! Most requests are answered in place and never come here. Once one is on its way to another
//! core, everything behind it has to wait its turn: later answers that are already known are kept
//! as bytes, later requests to other cores as slots. Both kinds lie in one byte queue in request
//! order, so the pipeline of a connection is two ring buffers that stop allocating once they have
//! grown to the connection's depth; the alternative, one small allocation per waiting request,
//! cost more than the hop to the other core.
//!
//! Answers on their way cannot be stopped, so each read takes an *allowance* with it: the longest
//! value that may come back now. All allowances of a connection together stay within a bound; how
//! many requests may be on their way so depends on how long the connection's answers usually are,
//! of which the pipeline keeps an estimate. A value that is longer than its read's allowance stays
//! where it is, and the read, which had no effect, becomes *deferred*: its length is known from
//! then on, and it is made again when there is room for so much. Nothing long is ever held for a
//! client that does not read.
//!
//! A deferred read happens later than requests that came behind it. What would tell the difference,
//! a change of the same key on either side, is deferred too until the read is done.

use std::collections::VecDeque;

use super::text::bad_data_chunk;
use super::{Answer, Output, Reply, ReplyForm, encode};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::Response;
use ringlane_types::time::Instant;

#[cfg(test)]
mod tests;

/// The unanswered requests of one connection, oldest first.
#[derive(Debug)]
pub struct Pipeline {
    slots: VecDeque<Slot>,
    /// Sequence number of the oldest slot; wraps.
    first: u32,
    /// Length of the answers to come, judged by those that came.
    answer_bytes: u32,
    /// What the slots carry: a waiting slot its key and tail, a ready one its answer.
    bytes: Vec<u8>,
    /// Where the oldest slot's bytes begin in `bytes`.
    start: usize,
    /// How many bytes were dropped from the front of `bytes` since it was last empty.
    dropped: usize,
    /// Room for answers that come early.
    spare: Vec<Vec<u8>>,
    /// Sums over the slots.
    sums: Sums,
}

/// What all slots together hold or may still bring.
#[derive(Debug, Default)]
struct Sums {
    /// Bytes of answers that came early, and of deferred requests.
    apart_bytes: usize,
    /// Allowances of the requests on their way, but for those that were alone when they went.
    allowed_bytes: usize,
    /// Bytes that were set aside for requests on their way.
    reserved_bytes: usize,
    /// Slots whose request may come to happen later than those behind them.
    loose: u32,
    /// Deferred ones among them.
    deferred: u32,
    /// Those that were deferred for the sake of another one.
    parked: u32,
    /// One bit for each tag of a loose slot.
    filter: u64,
    /// Loose slots whose request may change its key.
    changing: u32,
    /// One bit for each tag of one of those: all that a read has to be compared with.
    changing_filter: u64,
}

/// Length of an answer while none has come: few enough requests are let go that even long answers
/// to all of them can be borne.
const ANSWER_BYTES_UNKNOWN: u32 = 10 << 10;
/// An answer that is not as long as expected lowers the expectation by this part.
const ANSWER_BYTES_DECAY: u32 = 64;
/// An answer this long is never too long. Nothing is set aside for it.
pub const ALLOWANCE_BYTES_MIN: usize = 1 << 10;

/// What answers a waiting request.
#[derive(Clone, Copy)]
pub enum Completion<'r> {
    /// The owner of the key.
    Response(&'r Response<'r>),
    /// Nobody: what followed its data block was not the end of a block.
    BadDataChunk,
    /// The node: this writes the answer.
    Custom(&'r dyn Fn(&Reply<'_>, &mut dyn Output)),
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
            Completion::Custom(write) => write(reply, out),
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

/// Why bytes are to be set aside for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Far more than is usually needed, so that a request that is alone need not be made twice.
    Generous,
    /// As much as the connection's answers usually take.
    Usual,
    /// What an answer is known to take.
    Known,
}

/// How long an answer may be that a request on its way brings back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Its allowance in bytes; 0 for requests whose answers are always short.
    pub bytes: u32,
    /// Bytes set aside for it beyond this connection.
    pub reserved: u32,
    /// It was alone in the pipeline and does not count against the others.
    pub alone: bool,
}

/// By what a later request can tell whether it must not overtake this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Order {
    /// Of the key's hash, and never 0; 0 for slots that are not loose.
    tag: u32,
    /// Performing it may change the item.
    changes: bool,
}

#[derive(Debug)]
struct Slot {
    /// Where this slot's bytes begin, counted from when the queue was last empty.
    begin: usize,
    /// Bytes of this slot in the queue.
    bytes: usize,
    allowed: Allowed,
    order: Order,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Another core works on it; the slot's bytes are the key and then the tail.
    Waiting { form: ReplyForm, key_bytes: u8 },
    /// Nobody works on it; the slot's bytes are as for a waiting one.
    Deferred(Box<Deferred>),
    /// Answered; the slot's bytes are the answer.
    Ready,
    /// Answered by a core that was faster than the one before it.
    Early(Vec<u8>),
}

/// A request that has to be made, or made again.
#[derive(Debug)]
pub struct Deferred {
    form: ReplyForm,
    key_bytes: u8,
    /// The request as the codec writes it.
    pub request: Vec<u8>,
    /// Length of the value that it asks for, in bytes; `None` if that is not known.
    pub value_bytes: Option<u32>,
}

impl Deferred {
    /// How its answer is written.
    pub fn form(&self) -> ReplyForm {
        self.form
    }
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            first: 0,
            answer_bytes: ANSWER_BYTES_UNKNOWN,
            bytes: Vec::new(),
            start: 0,
            dropped: 0,
            spare: Vec::new(),
            sums: Sums::default(),
        }
    }
}

/// The part of a key's hash by which slots are compared. Equal keys have equal ones.
#[inline]
fn tag(hash: KeyHash) -> u32 {
    (hash.to_bits() >> 16) as u32 | 1
}

#[inline]
fn filter_bit(tag: u32) -> u64 {
    1 << (tag >> 1 & 63)
}

impl Pipeline {
    /// How many further requests may be waited for, if at most `requests_max` may be in all and
    /// what is held for them and may come should not pass `bytes_max`. One is always let go, but
    /// none while one is held back for the sake of another.
    pub fn room(&self, requests_max: usize, bytes_max: usize) -> usize {
        if self.is_empty() {
            return requests_max.min(1 + bytes_max / self.usual_allowance(bytes_max));
        }
        let taken = self.bytes_held() + self.sums.allowed_bytes;
        if taken >= bytes_max || self.sums.parked > 0 {
            return 0;
        }
        let bearable = (bytes_max - taken) / self.usual_allowance(bytes_max);
        bearable.min(requests_max.saturating_sub(self.len()))
    }

    /// What a read may bring back that goes to another core now, if all reads of the connection may
    /// bring `bytes_max`. `reserve` sets bytes aside, of what all connections may hold, or says no.
    #[inline]
    pub fn allowance(
        &self,
        bytes_max: usize,
        mut reserve: impl FnMut(usize, Claim) -> bool,
    ) -> Allowed {
        let alone = self.is_empty();
        if alone && reserve(bytes_max, Claim::Generous) {
            return Allowed { bytes: bytes_max as u32, reserved: bytes_max as u32, alone };
        }
        let usual = self.usual_allowance(bytes_max);
        if usual > ALLOWANCE_BYTES_MIN && reserve(usual, Claim::Usual) {
            return Allowed { bytes: usual as u32, reserved: usual as u32, alone };
        }
        Allowed { bytes: ALLOWANCE_BYTES_MIN as u32, reserved: 0, alone }
    }

    /// Enough for about every answer, as things look.
    #[inline]
    pub fn usual_allowance(&self, bytes_max: usize) -> usize {
        (2 * self.answer_bytes as usize).min(bytes_max).max(ALLOWANCE_BYTES_MIN)
    }

    #[inline]
    fn note_answer(&mut self, bytes: usize) {
        let lowered = self.answer_bytes - self.answer_bytes.div_ceil(ANSWER_BYTES_DECAY);
        self.answer_bytes = lowered.max(bytes.min(u32::MAX as usize) as u32);
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
    #[inline]
    pub fn bytes_held(&self) -> usize {
        self.bytes.len() - self.start + self.sums.apart_bytes
    }

    /// Bytes set aside beyond the connection for requests on their way.
    #[inline]
    pub fn bytes_reserved(&self) -> usize {
        self.sums.reserved_bytes
    }

    /// Some requests have to be made, or made again.
    #[inline]
    pub fn has_deferred(&self) -> bool {
        self.sums.deferred > 0
    }

    /// Some requests may come to happen later than those behind them.
    #[inline]
    pub fn is_loose(&self) -> bool {
        self.sums.loose > 0
    }

    /// Whether a request for the key with this hash, which `changes` it or not, must not be made
    /// before all requests here have been.
    #[inline]
    pub fn conflicts(&self, hash: KeyHash, changes: bool) -> bool {
        self.sums.loose > 0 && self.conflicts_before(self.slots.len(), tag(hash), changes)
    }

    fn conflicts_before(&self, position: usize, tag: u32, changes: bool) -> bool {
        let filter = if changes { self.sums.filter } else { self.sums.changing_filter };
        filter & filter_bit(tag) != 0
            && self
                .slots
                .iter()
                .take(position)
                .any(|slot| slot.order.tag == tag && (changes || slot.order.changes))
    }

    /// Adds a request that is answered later. The number names it to [`Pipeline::complete`].
    #[inline]
    pub fn reserve(&mut self, reply: &Reply<'_>) -> u32 {
        self.push(reply, Allowed::default(), Order::default())
    }

    /// The same for a request that may come back undone because its answer is longer than what it
    /// is `allowed`. It may change the key with this hash if it `changes`.
    #[inline]
    pub fn reserve_limited(
        &mut self,
        reply: &Reply<'_>,
        allowed: Allowed,
        (hash, changes): (KeyHash, bool),
    ) -> u32 {
        self.push(reply, allowed, Order { tag: tag(hash), changes })
    }

    /// The same for a read whose answer may be as long as it likes, but not more than it is
    /// `allowed`.
    #[inline]
    pub fn reserve_allowed(&mut self, reply: &Reply<'_>, allowed: Allowed) -> u32 {
        self.push(reply, allowed, Order::default())
    }

    #[inline]
    fn push(&mut self, reply: &Reply<'_>, allowed: Allowed, order: Order) -> u32 {
        let sequence = self.first.wrapping_add(self.slots.len() as u32);
        let begin = self.dropped + self.bytes.len();
        self.bytes.extend_from_slice(reply.key);
        self.bytes.extend_from_slice(reply.tail);
        let state = State::Waiting { form: reply.form, key_bytes: reply.key.len() as u8 };
        let bytes = reply.key.len() + reply.tail.len();
        self.slots.push_back(Slot { begin, bytes, allowed, order, state });
        self.sums.went(allowed);
        self.sums.loosened(order);
        sequence
    }

    /// Adds an answer that is known, to be sent after those before it. `write` appends it.
    pub fn push_ready(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let bytes = self.bytes.len() - before;
        self.note_answer(bytes);
        match self.slots.back_mut() {
            Some(slot) if matches!(slot.state, State::Ready) => slot.bytes += bytes,
            _ => {
                let begin = self.dropped + before;
                let (allowed, order) = (Allowed::default(), Order::default());
                self.slots.push_back(Slot { begin, bytes, allowed, order, state: State::Ready });
            }
        }
    }

    /// Adds a request that is to be made later: a read whose value has `value_bytes` bytes, or one
    /// that must not overtake one before it. `write` appends it as the codec writes it.
    #[cold]
    pub fn defer(
        &mut self,
        reply: &Reply<'_>,
        (hash, changes): (KeyHash, bool),
        value_bytes: Option<u32>,
        request: Vec<u8>,
    ) {
        let order = Order { tag: tag(hash), changes };
        self.push(reply, Allowed::default(), order);
        let slot = self.slots.back_mut().expect("just added");
        self.sums.put_off(slot, value_bytes, request);
        if let Some(bytes) = value_bytes {
            self.note_answer(bytes as usize);
        }
    }

    /// The position of the first deferred request from `from` on.
    pub fn next_deferred(&self, from: usize) -> Option<usize> {
        if self.sums.deferred == 0 {
            return None;
        }
        let deferred = |slot: &Slot| matches!(slot.state, State::Deferred(_));
        self.slots.iter().skip(from).position(deferred).map(|at| from + at)
    }

    /// Whether the deferred request at `position` must wait for one before it.
    pub fn is_behind(&self, position: usize) -> bool {
        let order = self.slots[position].order;
        self.conflicts_before(position, order.tag, order.changes)
    }

    /// Whether an answer of `bytes` bytes can be had for the request at `position` without passing
    /// `bytes_max`. The oldest can always have its answer.
    pub fn may_have(&self, position: usize, bytes: usize, bytes_max: usize) -> bool {
        position == 0 || self.bytes_held() + self.sums.allowed_bytes + bytes <= bytes_max
    }

    /// What the deferred request at `position` is.
    ///
    /// # Panics
    /// When the one at `position` is not deferred.
    pub fn deferred(&self, position: usize) -> &Deferred {
        match &self.slots[position].state {
            State::Deferred(deferred) => deferred,
            _ => panic!("not a deferred request"),
        }
    }

    /// Notes that the deferred request at `position` is being made. It is waiting from then on, and
    /// may come back undone if it is `limited`.
    ///
    /// # Panics
    /// When the one at `position` is not deferred.
    pub fn undefer(&mut self, position: usize, allowed: Allowed, limited: bool) -> (u32, Deferred) {
        let slot = &mut self.slots[position];
        let State::Deferred(deferred) = &slot.state else { panic!("not a deferred request") };
        let waiting = State::Waiting { form: deferred.form, key_bytes: deferred.key_bytes };
        let State::Deferred(deferred) = std::mem::replace(&mut slot.state, waiting) else {
            unreachable!("looked at above");
        };
        self.sums.deferred -= 1;
        self.sums.parked -= u32::from(deferred.value_bytes.is_none());
        self.sums.apart_bytes -= deferred.request.len();
        slot.allowed = allowed;
        self.sums.went(allowed);
        if !limited {
            self.sums.tightened(&mut slot.order);
        }
        (self.first.wrapping_add(position as u32), *deferred)
    }

    /// Answers request `sequence` and writes all answers that are due now. An answer that may
    /// overtake others is written at once. A read that was not performed, because its value is
    /// longer than its allowance, becomes deferred.
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
        if let Completion::Response(&Response::OverAllowance { value_bytes, request }) = completion
        {
            return self.put_off(position, value_bytes, request);
        }
        self.note_answer(completion.long_bytes());
        let slot = &mut self.slots[position];
        let offset = slot.begin - self.dropped;
        let State::Waiting { form, key_bytes } = slot.state else {
            panic!("completed a request twice");
        };
        self.sums.came(&mut slot.allowed);
        self.sums.tightened(&mut slot.order);
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
            self.sums.apart_bytes += early.len();
            slot.state = State::Early(early);
        }
    }

    #[cold]
    fn put_off(&mut self, position: usize, value_bytes: u32, request: &[u8]) {
        let slot = &mut self.slots[position];
        self.sums.came(&mut slot.allowed);
        assert!(slot.order.tag != 0, "a read that was not limited came back undone");
        self.sums.put_off(slot, Some(value_bytes), request.to_vec());
        self.note_answer(value_bytes as usize);
    }

    /// Writes the answers at the head that are due and forgets them.
    fn advance(&mut self, out: &mut impl Output) {
        while let Some(slot) = self.slots.front() {
            let end = self.start + slot.bytes;
            match &slot.state {
                State::Waiting { .. } | State::Deferred(_) => break,
                State::Ready => out.bytes(&self.bytes[self.start..end]),
                State::Early(answer) => {
                    self.sums.apart_bytes -= answer.len();
                    out.bytes(answer);
                }
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
            debug_assert!(self.sums.are_none(), "{:?}", self.sums);
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

impl Sums {
    #[inline]
    fn went(&mut self, allowed: Allowed) {
        self.allowed_bytes += if allowed.alone { 0 } else { allowed.bytes as usize };
        self.reserved_bytes += allowed.reserved as usize;
    }

    #[inline]
    fn came(&mut self, allowed: &mut Allowed) {
        self.allowed_bytes -= if allowed.alone { 0 } else { allowed.bytes as usize };
        self.reserved_bytes -= allowed.reserved as usize;
        *allowed = Allowed::default();
    }

    #[inline]
    fn loosened(&mut self, order: Order) {
        if order.tag != 0 {
            self.loose += 1;
            self.filter |= filter_bit(order.tag);
            if order.changes {
                self.changing += 1;
                self.changing_filter |= filter_bit(order.tag);
            }
        }
    }

    #[inline]
    fn tightened(&mut self, order: &mut Order) {
        if order.tag != 0 {
            self.changing -= u32::from(order.changes);
            if self.changing == 0 {
                self.changing_filter = 0;
            }
            *order = Order::default();
            self.loose -= 1;
            if self.loose == 0 {
                self.filter = 0;
            }
        }
    }

    /// Makes a waiting slot, which is loose, a deferred one.
    fn put_off(&mut self, slot: &mut Slot, value_bytes: Option<u32>, request: Vec<u8>) {
        let State::Waiting { form, key_bytes } = slot.state else {
            panic!("completed a request twice");
        };
        self.apart_bytes += request.len();
        self.deferred += 1;
        self.parked += u32::from(value_bytes.is_none());
        slot.state = State::Deferred(Box::new(Deferred { form, key_bytes, request, value_bytes }));
    }

    fn are_none(&self) -> bool {
        self.apart_bytes + self.allowed_bytes + self.reserved_bytes == 0
            && self.loose + self.changing + self.deferred + self.parked == 0
    }
}
