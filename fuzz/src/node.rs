//! A node of one or two cores without sockets: what a client is answered must not depend on how
//! its bytes are split, although batches, hops to the other core and waiting answers do.

use bumpalo::Bump;
use ringlane::codec::{
    decode_request, decode_response, encode_request, encode_response, encoded_request_bytes,
    encoded_response_bytes,
};
use ringlane::engine::{BoundedOutput, Engine, EngineConfig, Outbox, Session, Stop};
use ringlane::hash::HashSecret;
use ringlane::protocol::pipeline::Completion;
use ringlane::protocol::{AdminAnswer, Context, Decoder, Limits, Output, encode_admin};
use ringlane::request::{Consistency, ItemRef, Request, Response, Value};
use ringlane::shard::{Eviction, ShardConfig};
use std::rc::Rc;

use crate::NOW;

const HASH_SEED: u64 = 7;

/// Feeds `input` whole, byte by byte and in pieces of its first byte's choice, and compares the
/// answers.
pub fn check(input: &[u8]) {
    let Some((&choice, input)) = input.split_first() else { return };
    let core_count = 1 + u32::from(choice & 1);
    let whole = Node::new(core_count).talk(input, input.len().max(1));
    for piece in [1, 1 + usize::from(choice % 61)] {
        let pieces = Node::new(core_count).talk(input, piece);
        assert_eq!(whole.escape_ascii().to_string(), pieces.escape_ascii().to_string());
    }
}

/// The core that has the connection, and perhaps another.
struct Node {
    here: Engine,
    other: Option<Engine>,
    session: Session,
    mesh: Mesh,
    out: Out,
}

/// Requests on their way to the other core.
#[derive(Default)]
struct Mesh(Vec<(u32, Vec<u8>)>);

impl ringlane::engine::cluster::PeerOutbox for Mesh {
    fn buffer_for(&mut self, _to: ringlane::cluster::link::Peer) -> Option<&mut Vec<u8>> {
        None
    }
}

impl Outbox for Mesh {
    fn send(&mut self, core: u32, sequence: u32, _: Consistency, request: &Request<'_>) {
        assert_eq!(core, 1);
        let mut message = vec![0; encoded_request_bytes(request)];
        encode_request(request, &mut message);
        self.0.push((sequence, message));
    }

    fn is_full(&self) -> bool {
        self.0.len() > 30
    }
}

/// What the client is sent.
#[derive(Default)]
struct Out(Vec<u8>);

impl Output for Out {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn value(&mut self, value: &Value<'_>, item: Option<ItemRef>) {
        self.0.value(value, item);
    }
}

impl BoundedOutput for Out {
    fn is_full(&self) -> bool {
        false
    }
}

impl Node {
    fn new(core_count: u32) -> Self {
        let engine = |core| {
            let shard = ShardConfig {
                memory_bytes: 1 << 20,
                item_bytes_max: 2048,
                eviction: Eviction::Lru,
            };
            Engine::new(EngineConfig {
                core,
                core_count,
                hash_seed: HASH_SEED,
                hash_secret: Rc::new(HashSecret::of_seed(HASH_SEED)),
                shard,
                default_ttl: None,
                pipeline_requests_max: 40,
                pipeline_bytes_max: 1 << 20,
            })
        };
        Self {
            here: engine(0),
            other: (core_count > 1).then(|| engine(1)),
            session: Session::default(),
            mesh: Mesh::default(),
            out: Out::default(),
        }
    }

    /// All that the node answers to `input`, which arrives in pieces.
    fn talk(mut self, input: &[u8], piece: usize) -> Vec<u8> {
        let limits = Limits {
            item_bytes_max: 2048,
            line_bytes_max: 1 << 20,
            multiget_line_bytes_max: 1 << 20,
            // The data of a store is never split off here: that is the shell's part.
            body_bytes_streamed: u32::MAX,
        };
        let (mut start, mut end) = (0, 0);
        loop {
            let scratch = Bump::new();
            let context = Context {
                limits: &limits,
                now: NOW,
                hash_secret: &HashSecret::of_seed(HASH_SEED),
                scratch: &scratch,
            };
            let fed = self.here.feed(
                &mut self.session,
                &input[start..end],
                &context,
                &mut self.out,
                &mut self.mesh,
            );
            start += fed.consumed;
            let held_back = match fed.stop {
                Stop::NeedInput => false,
                Stop::QuantumUsed => unreachable!("there is no bound"),
                Stop::HeldBack => {
                    assert!(!self.mesh.0.is_empty(), "held back by nothing");
                    true
                }
                Stop::Close => {
                    self.deliver();
                    break;
                }
                Stop::Admin { reply, .. } => {
                    encode_admin(&reply, AdminAnswer::Done, &mut self.out);
                    true
                }
                Stop::StoreHeader { .. } => unreachable!("nothing is that long"),
            };
            self.deliver();
            if !held_back {
                if end == input.len() {
                    break;
                }
                end = (end + piece).min(input.len());
            }
        }
        assert!(self.session.pipeline.is_empty(), "something is never answered");
        match self.session.decoder {
            Decoder::Compact(_) => sorted_frames(&self.out.0),
            _ => self.out.0,
        }
    }

    /// Has the other core answer what waits for it, and what is made again for its answers.
    fn deliver(&mut self) {
        while !self.mesh.0.is_empty() {
            let other = self.other.as_mut().expect("who else would it be for");
            let sent = std::mem::take(&mut self.mesh.0);
            let decoded = sent.iter().map(|(sequence, message)| {
                let token = (*sequence, &message[..]);
                (token, decode_request(message).expect("own encoding"))
            });
            let requests: Vec<_> = decoded.collect();
            let (pipeline, out) = (&mut self.session.pipeline, &mut self.out);
            other.serve(&requests, NOW, |(sequence, request), response| {
                let response = match *response {
                    Response::OverAllowance { value_bytes, .. } => {
                        Response::OverAllowance { value_bytes, request }
                    }
                    response => response,
                };
                let mut message = vec![0; encoded_response_bytes(&response)];
                encode_response(&response, &mut message);
                let response = decode_response(&message).expect("own encoding");
                pipeline.complete(sequence, Completion::Response(&response), NOW, out);
                true
            });
            self.here.resume(&mut self.session, NOW, &mut self.out, &mut self.mesh);
        }
    }
}

/// The frames of a stream in an order that does not depend on which of them overtook which.
fn sorted_frames(mut stream: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    while let Some(header) = stream.first_chunk::<12>() {
        let fields = [(1, 4), (2, 8), (4, 8), (8, 4)];
        let fields: usize =
            fields.iter().filter(|(flag, _)| header[1] & flag != 0).map(|(_, bytes)| bytes).sum();
        let value = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let (frame, rest) = stream.split_at(12 + fields + header[3] as usize + value as usize);
        frames.push(frame);
        stream = rest;
    }
    assert!(stream.is_empty(), "half a frame was answered");
    frames.sort();
    frames.concat()
}
