//! Two nodes of one core each, without sockets: what a client of one reads of the other.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bumpalo::Bump;
use proptest::prelude::*;

use super::*;
use crate::{BoundedOutput, EngineConfig, Outbox, Session, Stop};
use ringlane_cluster::coordinator::CoordinatorSettings;
use ringlane_cluster::governor_notice::GovernorNotice;
use ringlane_cluster::identity::{Boot, Identity};
use ringlane_cluster::link::{LinkEvent, PeerFacts};
use ringlane_cluster::quorum::Replication;
use ringlane_cluster::roster::{Change, Roster, RosterMember};
use ringlane_cluster::view::View;
use ringlane_protocol::pipeline::Completion;
use ringlane_protocol::{Context, Limits, Output};
use ringlane_ring::{RingHash, RingParameters};
use ringlane_shard::ShardConfig;
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{Consistency, ItemRef, Value};

const NOW: Instant = Instant::from_millis(1_700_000_000_000);
/// What one connection may hold and wait for.
const PIPELINE_BYTES: usize = 8 << 10;
const VALUE_BYTES_MAX: usize = 20_000;
/// What is around a value in an answer, and in its request while that is put off.
const AROUND_BYTES: usize = 200;

/// Answers of one connection, whose client reads when it likes.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    unread: usize,
}

impl Output for Out {
    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.unread += bytes.len();
    }

    fn value(&mut self, value: &Value<'_>, _item: Option<ItemRef>) {
        value.parts().for_each(|part| self.bytes(part));
    }
}

impl BoundedOutput for Out {
    fn is_full(&self) -> bool {
        self.unread > 512
    }
}

/// What a node has for the other one.
#[derive(Default)]
struct Wire(Vec<u8>);

impl PeerOutbox for Wire {
    fn buffer_for(&mut self, _to: Peer) -> Option<&mut Vec<u8>> {
        Some(&mut self.0)
    }
}

impl Outbox for Wire {
    fn send(&mut self, core: u32, _: u32, _: Consistency, _: &Request<'_>) {
        panic!("there is no core {core}");
    }

    fn is_full(&self) -> bool {
        false
    }
}

struct Node {
    engine: Engine,
    wire: Wire,
}

/// A client of the first of two nodes.
struct Pair {
    nodes: [Node; 2],
    peers: [Peer; 2],
    /// Frames on their way: to whom, and what.
    frames: VecDeque<(usize, Vec<u8>)>,
    session: Session,
    pending: Vec<u8>,
    out: Out,
    /// The most that was held and let come for it.
    held_max: usize,
}

fn engine(number: u64) -> Engine {
    Engine::new(EngineConfig {
        core: 0,
        core_count: 1,
        hash_seed: number,
        hash_secret: Rc::new(HashSecret::of_seed(number)),
        shard: ShardConfig { memory_bytes: 8 << 20, ..ShardConfig::tiny() },
        default_ttl: None,
        pipeline_requests_max: 64,
        pipeline_bytes_max: PIPELINE_BYTES,
    })
}

impl Pair {
    fn new(replication: Replication) -> Self {
        let identity = |number: u8| {
            let address = ([127, 0, 0, number], 7000).into();
            Identity::new(&format!("n{number}"), Boot(1), address, address)
        };
        let member = |number: u8| {
            let Identity { id, key, boot, gossip, link, .. } = identity(number);
            RosterMember { id, key, boot, weight: 1, slot: 0, gossip, link }
        };
        let roster = Roster::initial(member(0), 1);
        let roster = roster.with([&Change::Add(member(1))]).expect("another member");
        let hash = RingHash::default();
        let ring = RingParameters { hash, points_per_weight: 8, replicas: replication.replicas() };
        let view = Arc::new(View::new(Arc::new(roster), ring).expect("a ring"));
        let peers = [0, 1].map(|number| Peer { node: identity(number).key, core: 0 });
        let nodes = [0, 1].map(|number: u8| {
            let mut engine = engine(number.into());
            let secret = engine.config().hash_secret.clone();
            let settings = CoordinatorSettings::new(replication, secret);
            let coordinator = Coordinator::new(identity(number).key, Boot(1), settings);
            engine.join_cluster(coordinator, &RetentionTimes::default());
            let (other, mut wire) = (1 - number, Wire::default());
            engine.coordinate(NOW, &mut wire, |coordinator, turn| {
                let (node, hash_seed) = (identity(other).key, other.into());
                let facts = PeerFacts { boot: Boot(1), core_count: 1, hash_seed };
                coordinator.notice(GovernorNotice::ViewChanged(view.clone()), turn);
                coordinator
                    .notice(GovernorNotice::Liveness { node, boot: Boot(1), alive: true }, turn);
                coordinator.link(LinkEvent::Up { peer: Peer { node, core: 0 }, facts }, turn);
            });
            Node { engine, wire }
        });
        Self {
            nodes,
            peers,
            frames: VecDeque::new(),
            session: Session::default(),
            pending: Vec::new(),
            out: Out::default(),
            held_max: 0,
        }
    }

    /// Feeds what is pending as far as it goes, and makes what was put off.
    fn feed(&mut self) {
        let limits = Limits { body_bytes_streamed: u32::MAX, ..Limits::default() };
        let (scratch, secret) = (Bump::new(), HashSecret::of_seed(0));
        let context =
            Context { limits: &limits, now: NOW, hash_secret: &secret, scratch: &scratch };
        let Node { engine, wire } = &mut self.nodes[0];
        let fed = engine.feed(&mut self.session, &self.pending, &context, &mut self.out, wire);
        let consumed = fed.consumed;
        assert!(matches!(fed.stop, Stop::NeedInput | Stop::HeldBack), "{:?}", fed.stop);
        engine.resume(&mut self.session, NOW, &mut self.out, wire);
        self.pending.drain(..consumed);
        self.note_held();
        self.post(0);
        if self.nodes[0].engine.has_answers() {
            self.complete();
            self.feed();
        }
    }

    /// Passes the client what has arrived for it.
    fn complete(&mut self) {
        let (session, out) = (&mut self.session, &mut self.out);
        self.nodes[0].engine.take_answers(|asker, response| {
            let completion = Completion::Response(response);
            session.pipeline.complete(asker.sequence, completion, NOW, out);
        });
        self.note_held();
    }

    fn note_held(&mut self) {
        let pipeline = &self.session.pipeline;
        let held = self.out.unread + pipeline.bytes_held() + pipeline.bytes_reserved();
        self.held_max = self.held_max.max(held);
    }

    fn post(&mut self, from: usize) {
        let body = std::mem::take(&mut self.nodes[from].wire.0);
        if !body.is_empty() {
            self.frames.push_back((1 - from, body));
        }
    }

    /// One frame arrives.
    fn deliver(&mut self) {
        let Some((to, body)) = self.frames.pop_front() else { return };
        let Node { engine, wire } = &mut self.nodes[to];
        engine.frame(self.peers[1 - to], &body, NOW, wire);
        self.complete();
        self.post(to);
        self.feed();
    }

    fn is_done(&self) -> bool {
        self.frames.is_empty() && self.pending.is_empty() && self.session.pipeline.is_empty()
    }
}

/// What a node of its own answers.
fn alone(input: &[u8]) -> Vec<u8> {
    let limits = Limits { body_bytes_streamed: u32::MAX, ..Limits::default() };
    let (scratch, secret) = (Bump::new(), HashSecret::of_seed(0));
    let context = Context { limits: &limits, now: NOW, hash_secret: &secret, scratch: &scratch };
    let (mut engine, mut session, mut at) = (engine(0), Session::default(), 0);
    let (mut out, mut wire) = (Out::default(), Wire::default());
    while at < input.len() {
        out.unread = 0;
        at += engine.feed(&mut session, &input[at..], &context, &mut out, &mut wire).consumed;
        engine.resume(&mut session, NOW, &mut out, &mut wire);
    }
    out.bytes
}

/// One request, by what was drawn for it.
fn request((kind, key, bytes): (u8, u8, usize)) -> String {
    let value = char::from(b'a' + (bytes % 26) as u8).to_string().repeat(bytes);
    match kind % 8 {
        0..=4 => format!("get key{key}\r\n"),
        5 => format!("set key{key} 0 0 {bytes}\r\n{value}\r\n"),
        6 => format!("gat 100 key{key}\r\n"),
        _ => format!("delete key{key}\r\n"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_client_reads_other_nodes_as_its_own_and_little_is_held_for_it(
        (replicas, reads) in prop::sample::select(vec![(1u8, 1u8), (2, 1), (2, 2)]),
        values in prop::collection::vec(1..VALUE_BYTES_MAX, 8),
        requests in prop::collection::vec((0..8u8, 0..8u8, 1..VALUE_BYTES_MAX), 1..120),
        turns in prop::collection::vec(0..8u8, 1..40),
    ) {
        let stores: String = (0..).zip(&values).map(|(key, &bytes)| request((5, key, bytes))).collect();
        let rest: String = requests.into_iter().map(request).collect();
        // After many short answers many requests are let go at once.
        let input = "get none\r\n".repeat(400) + &stores + &rest;
        let mut pair = Pair::new(Replication::new(replicas, replicas, reads).expect("valid"));
        pair.pending = input.clone().into_bytes();
        pair.feed();
        let mut steps = 0;
        while !pair.is_done() {
            // The client reads now and then.
            if turns[steps % turns.len()] < 2 || steps > 100_000 {
                pair.out.unread = 0;
                pair.feed();
            }
            pair.deliver();
            steps += 1;
            prop_assert!(steps < 200_000, "nothing goes on");
        }
        prop_assert!(pair.out.bytes == alone(input.as_bytes()));
        let bound = PIPELINE_BYTES + VALUE_BYTES_MAX + 64 * AROUND_BYTES;
        prop_assert!(pair.held_max <= bound, "{} bytes were held", pair.held_max);
    }
}
