//! Core to core: requests travel to the owner of a key and answers back, in batches.
//!
//! A core collects messages for each other core in a buffer and once per turn hands over the whole
//! buffer, so that what is paid per message is writing it once and reading it in place, and what is
//! paid for atomics and cache lines in flight is paid per turn. Buffers come back and are used again.
//! Refused: a ring of bytes, which copies each message twice more, and has to treat what is larger
//! than the ring apart.
//!
//! Requests and answers travel apart so that two cores full of requests for each other can still
//! answer: answers are always taken, requests only when there is room for their answer.
//!
//! Whoever publishes to a core that sleeps wakes it with a message from net ring to net ring, which
//! travels with the sends of the turn and costs no system call of its own; a running core is never
//! disturbed. Threads that have no net ring ring its doorbell, an eventfd that its ring watches.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

use arrayvec::ArrayVec;
use rtrb::{Consumer, Producer, RingBuffer};

use super::control::Control;
use super::core_state::asker;
use super::net_ring::Token;
use crate::cluster::quorum::Consistency;
use crate::engine::Engine;
use crate::engine::cluster::{Links, Taken};
use crate::protocol::relay;
use crate::request::{Request, Response};
use crate::time::Instant;

/// Bytes before each message: its length, and whom the answer is for.
const HEAD_BYTES: usize = 16;
/// Buffers on their way between two cores; a further one waits at the sender.
const BUFFERS: usize = 64;
/// Emptied buffers kept by a sender, and the room each may keep.
const SPARE_BUFFERS: usize = 16;
const SPARE_BYTES: usize = 32 << 10;
/// Room of a new buffer.
const BUFFER_BYTES: usize = 4 << 10;
/// A buffer of this length is handed over before the turn is over: the other core can begin, and
/// no buffer has to grow with the length of a turn.
const FULL_BYTES: usize = 16 << 10;
/// Control messages on their way between two cores; a further one waits at the sender.
const CONTROLS: usize = 64;

/// Whom an answer is for: a connection of the asking core and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// The connection.
    pub token: Token,
    /// The request's place in its pipeline.
    pub sequence: u32,
}

/// How a core is woken.
pub struct Doorbell {
    sleeping: AtomicBool,
    /// The owner's net ring, or -1 while it has none.
    ring: AtomicI32,
    bell: File,
}

impl Doorbell {
    /// A doorbell that rings by writing to `eventfd`.
    pub fn new(eventfd: OwnedFd) -> Self {
        Self {
            sleeping: AtomicBool::new(false),
            ring: AtomicI32::new(-1),
            bell: File::from(eventfd),
        }
    }

    /// Tells others the owner's net ring; -1 before it closes.
    pub fn set_ring(&self, ring: RawFd) {
        self.ring.store(ring, Ordering::Release);
    }

    /// Says that the owner is about to sleep. It must look for work once more afterwards.
    pub fn lie_down(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Says that the owner is awake.
    pub fn get_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// The net ring that has to be sent a message if the owner sleeps and nobody else is waking it.
    /// What was published before is seen by the owner once it wakes.
    pub fn to_wake(&self) -> Option<RawFd> {
        fence(Ordering::SeqCst);
        let asleep =
            self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed);
        asleep.then(|| self.ring.load(Ordering::Acquire)).filter(|&ring| ring >= 0)
    }

    /// Wakes the owner whether or not it says it sleeps.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the owner is being woken anyway.
        let _ = (&self.bell).write(&1u64.to_ne_bytes());
    }

    /// The eventfd.
    pub fn eventfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Messages one behind the other. Its room is zeroed when it grows and never again, which is why
/// it is no plain vector: one that is cleared and resized would be zeroed for every message.
#[derive(Debug, Default)]
struct Buffer {
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

    /// Makes the next `bytes` bytes part of it; what they hold is arbitrary.
    #[inline]
    fn extend(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.used;
        self.used += bytes;
        if self.used > self.room.len() {
            self.grow();
        }
        &mut self.room[start..self.used]
    }

    #[cold]
    fn grow(&mut self) {
        self.room.resize(self.used.next_power_of_two().max(BUFFER_BYTES), 0);
    }

    /// Empties it and gives back room beyond [`SPARE_BYTES`].
    fn clear(&mut self) {
        self.used = 0;
        self.room.truncate(SPARE_BYTES);
        self.room.shrink_to(SPARE_BYTES);
    }
}

/// One direction between two cores: the sender's end.
struct Sender {
    buffers: Producer<Buffer>,
    /// Buffers that the receiver is done with.
    returned: Consumer<Buffer>,
    spare: Vec<Buffer>,
    /// Messages collected since the last hand-over.
    staged: Buffer,
    /// Something was handed over since the last [`Sender::publish`].
    handed_over: bool,
    /// Bytes handed over whose buffer has not come back.
    under_way: usize,
    /// A buffer waits while those under way hold more than this.
    bytes_max: usize,
}

/// One direction between two cores: the receiver's end.
struct Receiver {
    buffers: Consumer<Buffer>,
    returns: Producer<Buffer>,
    /// The buffer that is being worked on.
    current: Buffer,
    /// Where its first message begins that is not handled yet.
    at: usize,
}

fn direction(bytes_max: usize) -> (Sender, Receiver) {
    let (buffers_in, buffers_out) = RingBuffer::new(BUFFERS);
    // What is under way, the buffer in hand and what came back since the sender last looked.
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
    fn stage(&mut self, to: Return, bytes: usize, encode: impl FnOnce(&mut [u8])) {
        let head = [bytes as u32, to.token.index, to.token.generation, to.sequence];
        let start = self.staged.len();
        let (place, body) = self.staged.extend(HEAD_BYTES + bytes).split_at_mut(HEAD_BYTES);
        for (place, word) in place.chunks_exact_mut(4).zip(head) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        encode(body);
        // Again only after as much more: there may be no room.
        if self.staged.len() / FULL_BYTES > start / FULL_BYTES {
            self.hand_over();
        }
    }

    /// Hands over what is left, if there is room. True when anything was handed over since the last
    /// time: then the receiver has to be awake.
    fn publish(&mut self) -> bool {
        if !self.staged.is_empty() {
            self.hand_over();
        }
        std::mem::take(&mut self.handed_over)
    }

    /// Hands over what was collected, if there is room.
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
    /// Makes sure that the buffer in hand has a message that is not handled yet. False when none
    /// has arrived.
    fn take(&mut self) -> bool {
        while self.at == self.current.len() {
            let Ok(next) = self.buffers.pop() else { return false };
            let done = std::mem::replace(&mut self.current, next);
            self.at = 0;
            self.give_back(done);
        }
        true
    }

    /// Notes that all messages before `at` are handled.
    fn handled(&mut self, at: usize) {
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

    /// Something has arrived or is in hand.
    #[inline]
    fn has_more(&self) -> bool {
        self.at < self.current.len() || !self.buffers.is_empty()
    }
}

/// The message that begins at `at` in `bytes`, and where it ends.
#[inline]
fn message(bytes: &[u8], at: usize) -> Option<(Return, &[u8], usize)> {
    let head: &[u8; HEAD_BYTES] = bytes.get(at..)?.first_chunk()?;
    let word = |i: usize| u32::from_le_bytes(head[i * 4..][..4].try_into().expect("four bytes"));
    let token = Token { index: word(1), generation: word(2) };
    let start = at + HEAD_BYTES;
    let end = start + word(0) as usize;
    Some((Return { token, sequence: word(3) }, &bytes[start..end], end))
}

/// All of one core's rings, and everybody's doorbells.
pub struct Mesh {
    /// Bytes collected for one core beyond which connections hold back.
    staged_bytes_max: usize,
    peers: Vec<Option<Peer>>,
    doorbells: Arc<[Doorbell]>,
    to_wake: Vec<RawFd>,
    full: bool,
    core: u32,
    /// Control messages of this core to itself.
    own: VecDeque<Control>,
}

struct Peer {
    requests_out: Sender,
    answers_out: Sender,
    controls_out: Producer<Control>,
    controls_staged: VecDeque<Control>,
    requests_in: Receiver,
    answers_in: Receiver,
    controls_in: Consumer<Control>,
}

/// Builds the meshes of all cores, in core order. `ring_bytes` is the size of each byte ring.
pub fn build(core_count: usize, ring_bytes: usize, doorbells: Arc<[Doorbell]>) -> Vec<Mesh> {
    let mut meshes: Vec<Mesh> = (0..core_count)
        .map(|core| Mesh {
            staged_bytes_max: ring_bytes,
            peers: (0..core_count).map(|_| None).collect(),
            doorbells: doorbells.clone(),
            to_wake: Vec::with_capacity(core_count),
            full: false,
            core: core as u32,
            own: VecDeque::new(),
        })
        .collect();
    for one in 0..core_count {
        for other in one + 1..core_count {
            let (requests_there, requests_there_in) = direction(ring_bytes);
            let (requests_back, requests_back_in) = direction(ring_bytes);
            let (answers_there, answers_there_in) = direction(ring_bytes);
            let (answers_back, answers_back_in) = direction(ring_bytes);
            let (controls_there, controls_there_in) = RingBuffer::new(CONTROLS);
            let (controls_back, controls_back_in) = RingBuffer::new(CONTROLS);
            meshes[one].peers[other] = Some(Peer {
                requests_out: requests_there,
                answers_out: answers_there,
                controls_out: controls_there,
                controls_staged: VecDeque::new(),
                requests_in: requests_back_in,
                answers_in: answers_back_in,
                controls_in: controls_back_in,
            });
            meshes[other].peers[one] = Some(Peer {
                requests_out: requests_back,
                answers_out: answers_back,
                controls_out: controls_back,
                controls_staged: VecDeque::new(),
                requests_in: requests_there_in,
                answers_in: answers_there_in,
                controls_in: controls_there_in,
            });
        }
    }
    meshes
}

/// Requests of other cores that are executed together.
const BATCH: usize = 24;

impl Mesh {
    /// Number of cores.
    pub fn core_count(&self) -> usize {
        self.peers.len()
    }

    /// Everybody's doorbells, in core order.
    pub fn doorbells(&self) -> &Arc<[Doorbell]> {
        &self.doorbells
    }

    fn peer(&mut self, core: u32) -> &mut Peer {
        self.peers[core as usize].as_mut().expect("no core sends to itself")
    }

    /// Collects a request for the core that owns its key.
    #[inline]
    pub fn request(&mut self, core: u32, to: Return, request: &Request<'_>) {
        let bytes = relay::encoded_request_bytes(request);
        let limit = self.staged_bytes_max;
        let sender = &mut self.peer(core).requests_out;
        sender.stage(to, bytes, |place| relay::encode_request(request, place));
        self.full |= sender.staged.len() > limit;
    }

    /// Collects a control message.
    pub fn control(&mut self, core: u32, message: Control) {
        self.peer(core).controls_staged.push_back(message);
    }

    /// Collects a control message that may be for this core itself.
    pub fn control_or_here(&mut self, core: u32, message: Control) {
        if core == self.core { self.own.push_back(message) } else { self.control(core, message) }
    }

    /// Whether connections should hold back until some core has taken requests.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Publishes what was collected since the last time; [`Mesh::next_to_wake`] names those who have
    /// to be woken. Returns whether anything had to stay behind for lack of room.
    pub fn publish(&mut self) -> bool {
        let mut behind = false;
        self.full = false;
        for (core, peer) in self.peers.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            let mut published = peer.requests_out.publish();
            published |= peer.answers_out.publish();
            while let Some(message) = peer.controls_staged.pop_front() {
                if let Err(rtrb::PushError::Full(message)) = peer.controls_out.push(message) {
                    peer.controls_staged.push_front(message);
                    break;
                }
                published = true;
            }
            if published && let Some(ring) = self.doorbells[core].to_wake() {
                self.to_wake.push(ring);
            }
            behind |= !peer.requests_out.staged.is_empty()
                || !peer.answers_out.staged.is_empty()
                || !peer.controls_staged.is_empty();
            self.full |= peer.requests_out.staged.len() > self.staged_bytes_max;
        }
        behind
    }

    /// The net ring of a core that slept when something was published for it, to be sent a message.
    pub fn next_to_wake(&mut self) -> Option<RawFd> {
        self.to_wake.pop()
    }

    /// Whether other cores have sent anything that waits here.
    #[inline]
    pub fn has_arrivals(&self) -> bool {
        self.peers.iter().flatten().any(|peer| {
            peer.requests_in.has_more()
                || !peer.answers_in.buffers.is_empty()
                || !peer.controls_in.is_empty()
        })
    }

    /// Executes requests of other cores, as far as there is room for the answers. Returns how many.
    pub fn serve(&mut self, engine: &mut Engine, now: Instant) -> usize {
        let mut served = 0;
        for peer in self.peers.iter_mut().flatten() {
            while peer.answers_out.staged.len() <= self.staged_bytes_max && peer.requests_in.take()
            {
                served += serve_batch(peer, engine, now);
            }
        }
        served
    }

    /// As [`Mesh::serve`], on a node among others: answers that other nodes have to give come later,
    /// through [`Mesh::answer`].
    pub fn serve_among_others(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        links: &mut impl Links,
    ) -> usize {
        let mut served = 0;
        for (peer, core) in self.peers.iter_mut().zip(0..) {
            let Some(Peer { requests_in, answers_out, .. }) = peer else { continue };
            while answers_out.staged.len() <= self.staged_bytes_max
                && !engine.is_saturated()
                && requests_in.take()
            {
                let bytes = requests_in.current.bytes();
                let mut hashes = ArrayVec::<_, BATCH>::new();
                let mut at = requests_in.at;
                while !hashes.is_full()
                    && let Some((_, body, end)) = message(bytes, at)
                {
                    hashes.push(relay::decode_request(body).expect(MALFORMED).hash);
                    at = end;
                }
                engine.prefetch(&hashes);
                let mut at = requests_in.at;
                for _ in &hashes {
                    let (to, body, end) = message(bytes, at).expect(MALFORMED);
                    let request = relay::decode_request(body).expect(MALFORMED);
                    let (to, consistency) = without_consistency(to);
                    let asker = || asker(core, to);
                    let taken = engine.request(asker, consistency, &request, now, links);
                    if let Taken::Answered(response) = taken {
                        let bytes = relay::encoded_response_bytes(&response);
                        answers_out.stage(to, bytes, |place| {
                            relay::encode_response(&response, place);
                        });
                    }
                    at = end;
                    served += 1;
                }
                requests_in.handled(at);
            }
        }
        served
    }

    /// Collects an answer for a core whose request was not answered at once.
    pub fn answer(&mut self, core: u32, to: Return, response: &Response<'_>) {
        let bytes = relay::encoded_response_bytes(response);
        let sender = &mut self.peer(core).answers_out;
        sender.stage(to, bytes, |place| relay::encode_response(response, place));
    }

    /// Hands out the answers of other cores. Returns how many.
    pub fn answers(&mut self, mut take: impl FnMut(Return, &Response<'_>)) -> usize {
        let mut taken = 0;
        for peer in self.peers.iter_mut().flatten() {
            while peer.answers_in.take() {
                let mut at = peer.answers_in.at;
                while let Some((to, body, end)) = message(peer.answers_in.current.bytes(), at) {
                    taken += 1;
                    take(to, &relay::decode_response(body).expect(MALFORMED));
                    at = end;
                }
                peer.answers_in.handled(at);
            }
        }
        taken
    }

    /// Hands out one control message, with the core it came from.
    pub fn next_control(&mut self) -> Option<(u32, Control)> {
        if let Some(message) = self.own.pop_front() {
            return Some((self.core, message));
        }
        self.peers
            .iter_mut()
            .enumerate()
            .find_map(|(core, peer)| Some((core as u32, peer.as_mut()?.controls_in.pop().ok()?)))
    }
}

/// Connections of a core are numbered below this; the bits above say how many replicas a request
/// wants to agree, which only nodes of a cluster look at.
const CONSISTENCY_SHIFT: u32 = 30;

/// Whom an answer is for, with how many replicas the request wants to agree.
pub fn with_consistency(mut to: Return, consistency: Consistency) -> Return {
    to.token.index |= (consistency as u32) << CONSISTENCY_SHIFT;
    to
}

fn without_consistency(mut to: Return) -> (Return, Consistency) {
    use Consistency::*;
    let asked = [Configured, One, Quorum, All][(to.token.index >> CONSISTENCY_SHIFT) as usize];
    to.token.index &= (1 << CONSISTENCY_SHIFT) - 1;
    (to, asked)
}

const MALFORMED: &str = "cores of one process encode messages alike";

/// Executes the next of a peer's requests, as many as make a batch. Returns how many.
fn serve_batch(peer: &mut Peer, engine: &mut Engine, now: Instant) -> usize {
    let Peer { requests_in, answers_out, .. } = peer;
    let mut batch = ArrayVec::<(Return, Request<'_>), BATCH>::new();
    let mut at = requests_in.at;
    while !batch.is_full()
        && let Some((to, body, end)) = message(requests_in.current.bytes(), at)
    {
        batch.push((to, relay::decode_request(body).expect(MALFORMED)));
        at = end;
    }
    engine.serve(&batch, now, |to: Return, response: &Response<'_>| {
        let bytes = relay::encoded_response_bytes(response);
        answers_out.stage(to, bytes, |place| relay::encode_response(response, place));
    });
    let served = batch.len();
    drop(batch);
    requests_in.handled(at);
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(sequence: u32) -> Return {
        Return { token: Token { index: 7, generation: 9 }, sequence }
    }

    /// Takes all that has arrived; returns the bodies with their sequence numbers.
    fn take(receiver: &mut Receiver) -> Vec<(u32, Vec<u8>)> {
        let mut bodies = Vec::new();
        while receiver.take() {
            let (to, body, end) =
                message(receiver.current.bytes(), receiver.at).expect("whole messages");
            bodies.push((to.sequence, body.to_vec()));
            receiver.handled(end);
        }
        bodies
    }

    #[test]
    fn what_consistency_a_request_wants_travels_with_whom_its_answer_is_for() {
        use Consistency::*;
        for consistency in [Configured, One, Quorum, All] {
            let there = with_consistency(to(3), consistency);
            assert_eq!(without_consistency(there), (to(3), consistency));
        }
    }

    #[test]
    fn messages_of_any_length_arrive_whole_and_in_order() {
        let (mut sender, mut receiver) = direction(4096);
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
        let (mut sender, mut receiver) = direction(1024);
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
        let (mut sender, mut receiver) = direction(1 << 20);
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
        let (mut sender, mut receiver) = direction(1 << 20);
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
