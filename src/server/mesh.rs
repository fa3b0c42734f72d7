//! Core to core: requests travel to the owner of a key and answers back, in batches.
//!
//! Between two cores there are four byte rings, requests and answers each way. Requests and
//! answers are apart so that two cores full of requests for each other can still answer: answers
//! are always taken, requests only when there is room for their answer. A core collects messages
//! for each other core and publishes them once per turn, so an atomic store and a cache line
//! handed over are paid per turn, not per message. Messages larger than a fair part of the ring
//! leave it as a parcel, one owned allocation that changes hands.
//!
//! Whoever publishes to a core that sleeps rings its doorbell, the eventfd that the core sleeps
//! on; a running core is never disturbed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use arrayvec::ArrayVec;
use rtrb::{Consumer, Producer, RingBuffer};

use super::control::Control;
use super::net_ring::Token;
use crate::engine::Engine;
use crate::protocol::relay;
use crate::request::{Request, Response};
use crate::time::Instant;

/// Bytes before each message: its length, and whom the answer is for.
const HEAD_BYTES: usize = 16;
/// In the length field: the message itself is the next parcel.
const PARCEL: u32 = 1 << 31;
/// Parcels on their way between two cores; a further one waits at the sender.
const PARCELS: usize = 64;
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
    bell: File,
}

impl Doorbell {
    /// A doorbell that rings by writing to `eventfd`.
    pub fn new(eventfd: OwnedFd) -> Self {
        Self { sleeping: AtomicBool::new(false), bell: File::from(eventfd) }
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

    /// Wakes the owner if it sleeps. What was published before is seen by it.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.ring_loudly();
        }
    }

    /// Wakes the owner whether or not it says it sleeps.
    pub fn ring_loudly(&self) {
        // Fails only when the counter is full, and then the owner is being woken anyway.
        let _ = (&self.bell).write(&1u64.to_ne_bytes());
    }

    /// The eventfd.
    pub fn eventfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// One direction between two cores: the sender's end.
struct Sender {
    ring: Producer<u8>,
    parcels: Producer<Vec<u8>>,
    /// Messages collected in this turn, and what did not fit before.
    staged: Vec<u8>,
    /// Parcels that wait, each with the position of its message, counted since the beginning.
    staged_parcels: VecDeque<(u64, Vec<u8>)>,
    /// Bytes ever published.
    published: u64,
    /// Longest message that stays in the ring; a longer one becomes a parcel.
    message_bytes_max: usize,
}

/// One direction between two cores: the receiver's end.
struct Receiver {
    ring: Consumer<u8>,
    parcels: Consumer<Vec<u8>>,
    /// Bytes taken off the ring that are not handled yet: whole messages and a part of one.
    incoming: Vec<u8>,
}

fn direction(bytes: usize) -> (Sender, Receiver) {
    let (ring_in, ring_out) = RingBuffer::new(bytes);
    let (parcels_in, parcels_out) = RingBuffer::new(PARCELS);
    let sender = Sender {
        ring: ring_in,
        parcels: parcels_in,
        staged: Vec::new(),
        staged_parcels: VecDeque::new(),
        published: 0,
        message_bytes_max: bytes / 8,
    };
    (sender, Receiver { ring: ring_out, parcels: parcels_out, incoming: Vec::new() })
}

impl Sender {
    /// Collects one message whose body `encode` writes into exactly `bytes` bytes.
    fn stage(&mut self, to: Return, bytes: usize, encode: impl FnOnce(&mut [u8])) {
        let inline = HEAD_BYTES + bytes <= self.message_bytes_max;
        let length = if inline { bytes as u32 } else { bytes as u32 | PARCEL };
        let head = [length, to.token.index, to.token.generation, to.sequence];
        let start = self.staged.len();
        self.staged.resize(start + HEAD_BYTES + if inline { bytes } else { 0 }, 0);
        for (place, word) in self.staged[start..].chunks_exact_mut(4).zip(head) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        if inline {
            encode(&mut self.staged[start + HEAD_BYTES..]);
        } else {
            let mut parcel = vec![0; bytes];
            encode(&mut parcel);
            self.staged_parcels.push_back((self.published + start as u64, parcel));
        }
    }

    /// Publishes what fits. True when anything was.
    fn publish(&mut self) -> bool {
        if self.staged.is_empty() {
            return false;
        }
        // Parcels first: whoever sees a message that names one must find it.
        while let Some((position, parcel)) = self.staged_parcels.pop_front() {
            if let Err(rtrb::PushError::Full(parcel)) = self.parcels.push(parcel) {
                self.staged_parcels.push_front((position, parcel));
                break;
            }
        }
        let due = match self.staged_parcels.front() {
            Some((position, _)) => (position - self.published) as usize,
            None => self.staged.len(),
        };
        let (published, _) = self.ring.push_partial_slice(&self.staged[..due]);
        let published = published.len();
        self.published += published as u64;
        if published == self.staged.len() {
            self.staged.clear();
        } else {
            self.staged.drain(..published);
        }
        published > 0
    }
}

impl Receiver {
    /// Takes what has arrived off the ring, so that the sender has room again.
    fn take(&mut self) -> bool {
        let bytes = self.ring.slots();
        if bytes > 0 {
            let chunk = self.ring.read_chunk(bytes).expect("as many were there");
            let (first, second) = chunk.as_slices();
            self.incoming.extend_from_slice(first);
            self.incoming.extend_from_slice(second);
            chunk.commit_all();
        }
        self.incoming.len() >= HEAD_BYTES
    }

    /// Forgets the first `bytes` bytes, which are handled.
    fn done(&mut self, bytes: usize) {
        if bytes == self.incoming.len() {
            self.incoming.clear();
        } else {
            self.incoming.drain(..bytes);
        }
    }
}

/// A message in `bytes` at `at`.
enum Message<'m> {
    /// In place, ending at the given position.
    Inline(Return, &'m [u8], usize),
    /// In the next parcel; the head ends at the given position.
    Parcel(Return, usize),
}

/// The message that begins at `at`, if it is there as a whole.
#[inline]
fn message(bytes: &[u8], at: usize) -> Option<Message<'_>> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let word = |i: usize| u32::from_le_bytes(head[i * 4..][..4].try_into().expect("four bytes"));
    let token = Token { index: word(1), generation: word(2) };
    let to = Return { token, sequence: word(3) };
    let start = at + HEAD_BYTES;
    if word(0) & PARCEL != 0 {
        return Some(Message::Parcel(to, start));
    }
    let end = start + word(0) as usize;
    Some(Message::Inline(to, bytes.get(start..end)?, end))
}

/// All of one core's rings, and everybody's doorbells.
pub struct Mesh {
    /// Bytes collected for one core beyond which connections hold back.
    staged_bytes_max: usize,
    peers: Vec<Option<Peer>>,
    doorbells: Arc<[Doorbell]>,
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

    /// Publishes what was collected since the last time and rings the doorbells of those who sleep.
    /// Returns whether anything had to stay behind for lack of room.
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
            if published {
                self.doorbells[core].ring();
            }
            behind |= !peer.requests_out.staged.is_empty()
                || !peer.answers_out.staged.is_empty()
                || !peer.controls_staged.is_empty();
            self.full |= peer.requests_out.staged.len() > self.staged_bytes_max;
        }
        behind
    }

    /// Whether other cores have sent anything that waits here.
    #[inline]
    pub fn has_arrivals(&self) -> bool {
        self.peers.iter().flatten().any(|peer| {
            peer.requests_in.ring.slots() > 0
                || peer.answers_in.ring.slots() > 0
                || !peer.controls_in.is_empty()
        })
    }

    /// Executes requests of other cores, as far as there is room for the answers. Returns how many.
    pub fn serve(&mut self, engine: &mut Engine, now: Instant) -> usize {
        let mut served = 0;
        for peer in self.peers.iter_mut().flatten() {
            if !peer.requests_in.take() {
                continue;
            }
            let mut at = 0;
            while peer.answers_out.staged.len() <= self.staged_bytes_max {
                let count = serve_batch(peer, &mut at, engine, now);
                if count == 0 {
                    break;
                }
                served += count;
            }
            peer.requests_in.done(at);
        }
        served
    }

    /// Hands out the answers of other cores. Returns how many.
    pub fn answers(&mut self, mut take: impl FnMut(Return, &Response<'_>)) -> usize {
        let mut taken = 0;
        for peer in self.peers.iter_mut().flatten() {
            if !peer.answers_in.take() {
                continue;
            }
            let mut at = 0;
            while let Some(message) = message(&peer.answers_in.incoming, at) {
                taken += 1;
                match message {
                    Message::Inline(to, body, end) => {
                        take(to, &relay::decode_response(body).expect(MALFORMED));
                        at = end;
                    }
                    Message::Parcel(to, end) => {
                        let parcel = peer.answers_in.parcels.pop().expect(PARCEL_FIRST);
                        take(to, &relay::decode_response(&parcel).expect(MALFORMED));
                        at = end;
                    }
                }
            }
            peer.answers_in.done(at);
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

const MALFORMED: &str = "cores of one process encode messages alike";
const PARCEL_FIRST: &str = "a parcel is published before the message that names it";

/// Executes one batch of a peer's requests, which begin at `at`. Returns how many.
fn serve_batch(peer: &mut Peer, at: &mut usize, engine: &mut Engine, now: Instant) -> usize {
    let Receiver { incoming, parcels, .. } = &mut peer.requests_in;
    let answers = &mut peer.answers_out;
    let mut answer = |to: Return, response: &Response<'_>| {
        let bytes = relay::encoded_response_bytes(response);
        answers.stage(to, bytes, |place| relay::encode_response(response, place));
    };
    let mut batch = ArrayVec::<(Return, Request<'_>), BATCH>::new();
    while !batch.is_full() {
        match message(incoming, *at) {
            None => break,
            Some(Message::Inline(to, body, end)) => {
                batch.push((to, relay::decode_request(body).expect(MALFORMED)));
                *at = end;
            }
            // A parcel's bytes live no longer than this arm, so it goes alone.
            Some(Message::Parcel(..)) if !batch.is_empty() => break,
            Some(Message::Parcel(to, end)) => {
                let parcel = parcels.pop().expect(PARCEL_FIRST);
                let request = relay::decode_request(&parcel).expect(MALFORMED);
                engine.serve(&[(to, request)], now, answer);
                *at = end;
                return 1;
            }
        }
    }
    engine.serve(&batch, now, &mut answer);
    batch.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(sequence: u32) -> Return {
        Return { token: Token { index: 7, generation: 9 }, sequence }
    }

    /// Publishes and receives until nothing moves; returns the bodies with their sequence numbers.
    fn pump(sender: &mut Sender, receiver: &mut Receiver) -> Vec<(u32, Vec<u8>)> {
        let mut bodies = Vec::new();
        while sender.publish() || receiver.ring.slots() > 0 {
            receiver.take();
            let mut at = 0;
            while let Some(message) = message(&receiver.incoming, at) {
                match message {
                    Message::Inline(to, body, end) => {
                        bodies.push((to.sequence, body.to_vec()));
                        at = end;
                    }
                    Message::Parcel(to, end) => {
                        bodies.push((to.sequence, receiver.parcels.pop().unwrap()));
                        at = end;
                    }
                }
            }
            receiver.done(at);
        }
        bodies
    }

    #[test]
    fn messages_of_any_length_arrive_whole_and_in_order() {
        let (mut sender, mut receiver) = direction(4096);
        let mut expected = Vec::new();
        for sequence in 0..2000u32 {
            // Lengths around the limit between inline messages and parcels, and far beyond it.
            let bytes = [0, 1, 40, 495, 496, 497, 3000, 70_000][sequence as usize % 8];
            let body = vec![sequence as u8; bytes];
            sender.stage(to(sequence), bytes, |place| place.copy_from_slice(&body));
            expected.push((sequence, body));
            if sequence % 50 == 49 {
                assert_eq!(pump(&mut sender, &mut receiver), std::mem::take(&mut expected));
            }
        }
    }

    #[test]
    fn a_full_ring_keeps_the_rest_at_the_sender() {
        let (mut sender, mut receiver) = direction(1024);
        for sequence in 0..100 {
            sender.stage(to(sequence), 50, |place| place.fill(sequence as u8));
        }
        assert!(sender.publish());
        assert!(!sender.staged.is_empty(), "6,600 bytes do not fit into 1,024");
        let bodies = pump(&mut sender, &mut receiver);
        assert_eq!(bodies.len(), 100);
        assert!(bodies.iter().enumerate().all(|(i, (n, body))| *n == i as u32 && body.len() == 50));
    }

    #[test]
    fn parcels_beyond_their_ring_wait_and_hold_back_what_names_them() {
        let (mut sender, mut receiver) = direction(4096);
        for sequence in 0..PARCELS as u32 * 3 {
            sender.stage(to(sequence), 5000, |place| place.fill(1));
        }
        let mut arrived = 0;
        for _ in 0..10 {
            sender.publish();
            arrived += pump(&mut sender, &mut receiver).len();
        }
        assert_eq!(arrived, PARCELS * 3);
    }
}
