//! The mesh between cores: carries requests to the owner of a key and answers back, in batches.
//!
//! A core collects messages for each other core in a buffer and passes the whole buffer once per
//! turn, so that each message is written once and read in place, and the cost of atomics and cache
//! line transfers is paid per turn. Buffers are returned and reused. Refused: a byte ring, which
//! copies each message twice more, and needs a special case for messages larger than the ring.
//!
//! Requests and answers travel separately so that two cores full of requests for each other can
//! still answer: answers are always accepted, requests only if there is room for their answer.
//!
//! A core that publishes to a sleeping core wakes it with a message from net ring to net ring,
//! which is submitted with the turn's sends and costs no extra system call; a running core is never
//! disturbed. Threads without a net ring ring its doorbell, an eventfd that its ring watches.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use rtrb::{Consumer, Producer, RingBuffer};

use super::core_message::CoreMessage;
use super::core_state::asker;
use crate::codec;
use crate::engine::cluster::PeerOutbox;
use crate::engine::{Engine, WORK_WEIGHT};
use crate::request::Consistency;
use crate::request::{Get, Operation, Request, Response};
use crate::time::Instant;

mod doorbell;
mod lane;

pub use doorbell::Doorbell;
pub use lane::ReplyTo;
use lane::{Receiver, Sender, lane, message};

/// Maximum control messages in transit between two cores; a further one waits at the sender.
const CONTROLS: usize = 64;

/// One core's rings, and the doorbells of all cores.
pub struct Mesh {
    /// Bytes collected for one core beyond which connections are held back.
    staged_bytes_max: usize,
    peers: Vec<Option<Peer>>,
    doorbells: Arc<[Doorbell]>,
    sleepers: Vec<RawFd>,
    full: bool,
    /// Bytes that this turn, which ends with [`Mesh::publish`], may still serve for other cores,
    /// and accept of their answers.
    serve_bytes_left: usize,
    take_bytes_left: usize,
    core: u32,
    /// Control messages of this core to itself.
    own: VecDeque<CoreMessage>,
}

struct Peer {
    requests_out: Sender,
    answers_out: Sender,
    controls_out: Producer<CoreMessage>,
    controls_staged: VecDeque<CoreMessage>,
    requests_in: Receiver,
    answers_in: Receiver,
    controls_in: Consumer<CoreMessage>,
}

/// Builds the meshes of all cores, in core order. `ring_bytes` is the size of each byte ring.
pub fn build(core_count: usize, ring_bytes: usize, doorbells: Arc<[Doorbell]>) -> Vec<Mesh> {
    let mut meshes: Vec<Mesh> = (0..core_count)
        .map(|core| Mesh {
            staged_bytes_max: ring_bytes,
            peers: (0..core_count).map(|_| None).collect(),
            doorbells: doorbells.clone(),
            sleepers: Vec::with_capacity(core_count),
            full: false,
            serve_bytes_left: TURN_BYTES,
            take_bytes_left: TURN_BYTES,
            core: core as u32,
            own: VecDeque::new(),
        })
        .collect();
    for one in 0..core_count {
        for other in one + 1..core_count {
            let (requests_there, requests_there_in) = lane(ring_bytes);
            let (requests_back, requests_back_in) = lane(ring_bytes);
            let (answers_there, answers_there_in) = lane(ring_bytes);
            let (answers_back, answers_back_in) = lane(ring_bytes);
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

/// Maximum bytes of requests and answers that a turn serves for other cores, and of answers that it
/// accepts: copying them takes a good part of a millisecond. The rest waits for the next turn.
const TURN_BYTES: usize = 1 << 20;
/// Number of requests of other cores executed together.
const BATCH: usize = 24;
/// Maximum requests of other cores per turn, including the work of their evictions and moves.
const REQUESTS_PER_TURN: usize = 2048;

impl Mesh {
    /// Number of cores.
    pub fn core_count(&self) -> usize {
        self.peers.len()
    }

    /// The doorbells of all cores, in core order.
    pub fn doorbells(&self) -> &Arc<[Doorbell]> {
        &self.doorbells
    }

    fn peer(&mut self, core: u32) -> &mut Peer {
        self.peers[core as usize].as_mut().expect("no core sends to itself")
    }

    /// Collects a request for the core that owns its key.
    #[inline]
    pub fn request(&mut self, core: u32, to: ReplyTo, request: &Request<'_>) {
        let bytes = codec::encoded_request_bytes(request);
        let limit = self.staged_bytes_max;
        let sender = &mut self.peer(core).requests_out;
        sender.stage(to, bytes, |place| codec::encode_request(request, place));
        self.full |= sender.staged_bytes() > limit;
    }

    /// Collects a control message.
    pub fn control(&mut self, core: u32, message: CoreMessage) {
        self.peer(core).controls_staged.push_back(message);
    }

    /// Collects a control message that may be for this core itself.
    pub fn control_or_here(&mut self, core: u32, message: CoreMessage) {
        if core == self.core { self.own.push_back(message) } else { self.control(core, message) }
    }

    /// Whether connections should be held back until some core has accepted requests.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Publishes the messages collected since the last call; [`Mesh::next_sleeper`] lists the cores
    /// to wake. Returns whether some had to stay for lack of room.
    pub fn publish(&mut self) -> bool {
        let mut behind = false;
        self.full = false;
        self.serve_bytes_left = TURN_BYTES;
        self.take_bytes_left = TURN_BYTES;
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
            if published && let Some(ring) = self.doorbells[core].take_sleeper() {
                self.sleepers.push(ring);
            }
            behind |= peer.requests_out.staged_bytes() > 0
                || peer.answers_out.staged_bytes() > 0
                || !peer.controls_staged.is_empty();
            self.full |= peer.requests_out.staged_bytes() > self.staged_bytes_max;
        }
        behind
    }

    /// The net ring of a core that was asleep when something was published for it, to wake it by a
    /// message.
    pub fn next_sleeper(&mut self) -> Option<RawFd> {
        self.sleepers.pop()
    }

    /// Whether messages of other cores wait here.
    #[inline]
    pub fn has_arrivals(&self) -> bool {
        self.peers.iter().flatten().any(|peer| {
            peer.requests_in.has_more()
                || peer.answers_in.has_more()
                || !peer.controls_in.is_empty()
        }) || !self.own.is_empty()
    }

    /// Executes requests of other cores, as far as there is room for the answers, up to the turn's
    /// limit. Returns their number.
    pub fn serve(&mut self, engine: &mut Engine, now: Instant) -> usize {
        let mut served = 0;
        let work = engine.shard.work();
        let left = &mut self.serve_bytes_left;
        for peer in self.peers.iter_mut().flatten() {
            while *left > 0
                && is_turn_short(served, engine, work)
                && peer.answers_out.staged_bytes() <= self.staged_bytes_max
                && peer.requests_in.take()
            {
                served += serve_batch(peer, engine, now, left);
            }
        }
        served
    }

    /// Like [`Mesh::serve`] in cluster mode: answers of other nodes come later, through
    /// [`Mesh::answer`].
    pub fn serve_clustered(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        links: &mut impl PeerOutbox,
    ) -> usize {
        let mut served = 0;
        let work = engine.shard.work();
        let left = &mut self.serve_bytes_left;
        for (peer, core) in self.peers.iter_mut().zip(0..) {
            let Some(Peer { requests_in, answers_out, .. }) = peer else { continue };
            while *left > 0
                && is_turn_short(served, engine, work)
                && answers_out.staged_bytes() <= self.staged_bytes_max
                && !engine.is_saturated()
                && requests_in.take()
            {
                let (bytes, start) = requests_in.current();
                let mut hashes = ArrayVec::<_, BATCH>::new();
                let mut keys = ArrayVec::<_, BATCH>::new();
                let mut at = start;
                while !hashes.is_full()
                    && let Some((_, body, end)) = message(bytes, at)
                {
                    let (key, hash) = codec::decode_key(body).expect(MALFORMED);
                    keys.push(key);
                    hashes.push(hash);
                    at = end;
                }
                engine.prefetch(hashes.iter().copied());
                let places = engine.points::<BATCH>(&keys);
                drop(keys);
                let mut at = start;
                for place in places {
                    let (to, body, end) = message(bytes, at).expect(MALFORMED);
                    let request = &codec::decode_request(body).expect(MALFORMED);
                    let (to, consistency) = without_consistency(to);
                    let asker = || asker(core, to);
                    let asked = (Some(place), request);
                    // Requests answered by other nodes are counted with their answers.
                    let mut performed = false;
                    engine.perform(asker, consistency, asked, now, links, |response| {
                        performed = response.is_performed();
                        let bytes = stage_answer(answers_out, to, response, || body);
                        *left = left.saturating_sub(bytes + body.len());
                    });
                    at = end;
                    served += 1;
                    engine.traffic.served += u64::from(performed);
                    if *left == 0 {
                        break;
                    }
                }
                requests_in.advance_to(at);
            }
        }
        served
    }

    /// Collects an answer for a core whose request was not answered at once.
    pub fn answer(&mut self, core: u32, to: ReplyTo, response: &Response<'_>) {
        let sender = &mut self.peer(core).answers_out;
        let bytes = codec::encoded_response_bytes(response);
        sender.stage(to, bytes, |place| codec::encode_response(response, place));
    }

    /// Delivers the answers of other cores, up to the turn's limit. Returns their number.
    pub fn answers(&mut self, mut take: impl FnMut(ReplyTo, &Response<'_>)) -> usize {
        let mut taken = 0;
        let left = &mut self.take_bytes_left;
        for peer in self.peers.iter_mut().flatten() {
            while *left > 0 && peer.answers_in.take() {
                let (bytes, mut at) = peer.answers_in.current();
                while *left > 0
                    && let Some((to, body, end)) = message(bytes, at)
                {
                    taken += 1;
                    *left = left.saturating_sub(body.len());
                    match &codec::decode_response(body) {
                        Ok(response) => take(to, response),
                        Err(error) => panic!("{MALFORMED}: {error:?}"),
                    }
                    at = end;
                }
                peer.answers_in.advance_to(at);
            }
        }
        taken
    }

    /// Delivers one control message, with the core it came from.
    pub fn next_control(&mut self) -> Option<(u32, CoreMessage)> {
        if let Some(message) = self.own.pop_front() {
            return Some((self.core, message));
        }
        self.peers
            .iter_mut()
            .enumerate()
            .find_map(|(core, peer)| Some((core as u32, peer.as_mut()?.controls_in.pop().ok()?)))
    }
}

/// Connections of a core are numbered below this; the bits above hold a request's consistency,
/// which only cluster nodes use.
const CONSISTENCY_SHIFT: u32 = 30;
const _: () = assert!(crate::config::CONNECTION_SLOTS <= 1 << CONSISTENCY_SHIFT);

/// The receiver of an answer, with the request's consistency.
pub fn with_consistency(mut to: ReplyTo, consistency: Consistency) -> ReplyTo {
    to.token.index |= (consistency as u32) << CONSISTENCY_SHIFT;
    to
}

fn without_consistency(mut to: ReplyTo) -> (ReplyTo, Consistency) {
    use Consistency::*;
    let asked = [Configured, One, Quorum, All][(to.token.index >> CONSISTENCY_SHIFT) as usize];
    to.token.index &= (1 << CONSISTENCY_SHIFT) - 1;
    (to, asked)
}

const MALFORMED: &str = "cores of one process encode messages alike";

/// Whether more requests of other cores may be executed in a turn that has executed this many,
/// given the shard's `work` at its start.
fn is_turn_short(served: usize, engine: &Engine, work: u32) -> bool {
    let work = engine.shard.work().wrapping_sub(work);
    served + (WORK_WEIGHT * work) as usize <= REQUESTS_PER_TURN
}

/// Executes the next batch of a peer's requests, until answers of `left` bytes are written. Returns
/// the number of requests.
fn serve_batch(peer: &mut Peer, engine: &mut Engine, now: Instant, left: &mut usize) -> usize {
    let Peer { requests_in, answers_out, .. } = peer;
    // Each with the end of its message.
    let mut batch = ArrayVec::<((ReplyTo, usize), Request<'_>), BATCH>::new();
    let (bytes, start) = requests_in.current();
    let mut at = start;
    while !batch.is_full()
        && at - start < *left
        && let Some((to, body, end)) = message(bytes, at)
    {
        if let Some((key, hash, allowance)) = codec::decode_plain_get(body) {
            let operation = Operation::Get(Get { allowance, ..Get::default() });
            batch.push(((to, end), Request { key, hash, operation }));
        } else {
            batch.push(((to, end), codec::decode_request(body).expect(MALFORMED)));
        }
        at = end;
    }
    let mut answered = 0;
    engine.serve(&batch, now, |(to, end): (ReplyTo, usize), response: &Response<'_>| {
        let request = || nth_message(bytes, start, answered);
        *left = left.saturating_sub(stage_answer(answers_out, to, response, request));
        answered += 1;
        at = end;
        *left > 0
    });
    *left = left.saturating_sub(at - start);
    drop(batch);
    requests_in.advance_to(at);
    answered
}

/// Collects an answer; returns its length in bytes. An answer over the allowance includes the
/// request as received.
#[inline]
fn stage_answer<'b>(
    answers_out: &mut Sender,
    to: ReplyTo,
    response: &Response<'_>,
    request: impl FnOnce() -> &'b [u8],
) -> usize {
    let undone;
    let response = match *response {
        Response::OverAllowance { value_bytes, .. } => {
            undone = Response::OverAllowance { value_bytes, request: request() };
            &undone
        }
        _ => response,
    };
    let bytes = codec::encoded_response_bytes(response);
    answers_out.stage(to, bytes, |place| codec::encode_response(response, place));
    bytes
}

/// The body of the message `count` messages after the one at `start`.
#[cold]
fn nth_message(bytes: &[u8], start: usize, count: usize) -> &[u8] {
    let (mut at, mut left) = (start, count);
    loop {
        let (_, body, end) = message(bytes, at).expect(MALFORMED);
        if left == 0 {
            return body;
        }
        (at, left) = (end, left - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::net_ring::Token;

    #[test]
    fn what_consistency_a_request_wants_travels_with_whom_its_answer_is_for() {
        use Consistency::*;
        let to = ReplyTo { token: Token { index: 7, generation: 9 }, sequence: 3 };
        for consistency in [Configured, One, Quorum, All] {
            let there = with_consistency(to, consistency);
            assert_eq!(without_consistency(there), (to, consistency));
        }
    }
}
