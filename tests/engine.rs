//! Engines without sockets: however input is cut, and however many cores share the keys, a client
//! gets the same bytes in the same order.

use ringlane::hash::HashSecret;
use std::collections::VecDeque;
use std::rc::Rc;

use bumpalo::Bump;
use proptest::prelude::*;
use ringlane::codec;
use ringlane::engine::{BoundedOutput, Engine, EngineConfig, Outbox, Session, Stop};
use ringlane::protocol::pipeline::Completion;
use ringlane::protocol::{Context, Limits, Output};
use ringlane::request::{Consistency, ItemRef, Request, Response, Value};
use ringlane::shard::ShardConfig;
use ringlane::time::Instant;

const NOW: Instant = Instant::from_millis(1_800_000_000_000);

/// Answers of one connection, held back beyond a limit like a client that reads slowly.
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

/// Requests on their way to other cores, as bytes, like in the mesh.
#[derive(Default)]
struct InTransit(VecDeque<(u32, u32, Vec<u8>)>);

impl ringlane::engine::cluster::PeerOutbox for InTransit {
    fn buffer_for(&mut self, _to: ringlane::cluster::link::Peer) -> Option<&mut Vec<u8>> {
        None
    }
}

impl Outbox for InTransit {
    fn send(&mut self, core: u32, sequence: u32, _: Consistency, request: &Request<'_>) {
        let mut bytes = vec![0; codec::encoded_request_bytes(request)];
        codec::encode_request(request, &mut bytes);
        self.0.push_back((core, sequence, bytes));
    }

    fn is_full(&self) -> bool {
        self.0.len() > 40
    }
}

/// A node of a few cores with one connection, to core 0.
struct Node {
    engines: Vec<Engine>,
    session: Session,
    pending: Vec<u8>,
    out: Out,
    in_transit: InTransit,
    closed: bool,
    /// Requests that are taken at once.
    quantum: u32,
    /// The most that the pipeline ever held, in bytes.
    held_max: usize,
}

impl Node {
    fn new(core_count: u32) -> Self {
        let engine = |core| {
            Engine::new(EngineConfig {
                core,
                core_count,
                hash_seed: 42,
                hash_secret: Rc::new(HashSecret::of_seed(42)),
                shard: ShardConfig { memory_bytes: 8 << 20, ..ShardConfig::tiny() },
                default_ttl: None,
                pipeline_requests_max: 64,
                pipeline_bytes_max: 8 << 10,
            })
        };
        Self {
            engines: (0..core_count).map(engine).collect(),
            session: Session::default(),
            pending: Vec::new(),
            out: Out::default(),
            in_transit: InTransit::default(),
            closed: false,
            quantum: u32::MAX,
            held_max: 0,
        }
    }

    /// Feeds what is pending as far as it goes.
    fn feed(&mut self) {
        let limits = Limits { body_bytes_streamed: u32::MAX, ..Limits::default() };
        let scratch = Bump::new();
        let context = Context {
            limits: &limits,
            now: NOW,
            hash_secret: &HashSecret::of_seed(42),
            scratch: &scratch,
        };
        let Self { engines, session, pending, out, in_transit, quantum, .. } = self;
        session.quantum = *quantum;
        let fed = engines[0].feed(session, pending, &context, out, in_transit);
        let consumed = fed.consumed;
        self.engines[0].resume(&mut self.session, NOW, &mut self.out, &mut self.in_transit);
        match fed.stop {
            Stop::NeedInput | Stop::HeldBack | Stop::QuantumUsed => {}
            Stop::Close => self.closed = true,
            stop => panic!("not part of this test: {stop:?}"),
        }
        self.pending.drain(..consumed);
    }

    /// Lets one core answer the oldest request that is for it.
    fn deliver(&mut self, choice: usize) {
        if self.in_transit.0.is_empty() {
            return;
        }
        let core = self.in_transit.0[choice % self.in_transit.0.len()].0;
        let position = self.in_transit.0.iter().position(|(to, ..)| *to == core).expect("one is");
        let (core, sequence, bytes) = self.in_transit.0.remove(position).expect("found");
        let request = codec::decode_request(&bytes).expect("well-formed");
        let mut answer = Vec::new();
        self.engines[core as usize].serve(&[((), request)], NOW, |(), response| {
            let response = match *response {
                Response::OverAllowance { value_bytes, .. } => {
                    Response::OverAllowance { value_bytes, request: &bytes }
                }
                response => response,
            };
            answer = vec![0; codec::encoded_response_bytes(&response)];
            codec::encode_response(&response, &mut answer);
            true
        });
        let response = codec::decode_response(&answer).expect("well-formed");
        let completion = Completion::Response(&response);
        self.session.pipeline.complete(sequence, completion, NOW, &mut self.out);
        self.engines[0].resume(&mut self.session, NOW, &mut self.out, &mut self.in_transit);
        self.held_max = self.held_max.max(self.session.pipeline.bytes_held());
    }

    /// Sends `input` in pieces, with other cores answering in between as `choices` say.
    fn run(self, input: &[u8], cuts: &[usize], choices: &[usize]) -> Vec<u8> {
        self.run_measured(input, cuts, choices).0
    }

    /// The same; returns also the most that the pipeline held meanwhile, in bytes.
    fn run_measured(mut self, input: &[u8], cuts: &[usize], choices: &[usize]) -> (Vec<u8>, usize) {
        let mut choices = choices.iter().cycle();
        let mut rest = input;
        for cut in cuts.iter().chain(&[usize::MAX]) {
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            rest = later;
            self.pending.extend_from_slice(piece);
            self.feed();
            self.deliver(*choices.next().expect("a cycle"));
        }
        let mut rounds = 0;
        // The client reads on until nothing moves any more.
        loop {
            let before = (self.pending.len(), self.out.bytes.len(), self.in_transit.0.len());
            self.out.unread = 0;
            self.deliver(*choices.next().expect("a cycle"));
            self.feed();
            // A request that has to be made again is under way as one was before.
            let now = (self.pending.len(), self.out.bytes.len(), self.in_transit.0.len());
            if before == now && self.in_transit.0.is_empty() {
                break;
            }
            rounds += 1;
            assert!(rounds < 100_000, "nothing comes to an end");
        }
        assert!(self.session.pipeline.is_empty(), "everything is answered");
        assert!(self.in_transit.0.is_empty());
        self.engines.iter().for_each(|engine| engine.shard.check_invariants());
        (self.out.bytes, self.held_max)
    }
}

/// Commands whose answers hold no CAS token: those are given per core.
fn command() -> impl Strategy<Value = String> {
    let key = || (0..12u32).prop_map(|n| format!("key{n}"));
    let keys = || proptest::collection::vec(key(), 1..30).prop_map(|keys| keys.join(" "));
    let value = || "[a-z0-9]{0,40}";
    let number = || 0..1000u32;
    prop_oneof![
        3 => keys().prop_map(|keys| format!("get {keys}\r\n")),
        3 => (key(), value(), number())
            .prop_map(|(k, v, f)| format!("set {k} {f} 0 {}\r\n{v}\r\n", v.len())),
        1 => (key(), value())
            .prop_map(|(k, v)| format!("set {k} 0 0 {} noreply\r\n{v}\r\n", v.len())),
        1 => (key(), value()).prop_map(|(k, v)| format!("append {k} 0 0 {}\r\n{v}\r\n", v.len())),
        1 => (key(), number()).prop_map(|(k, n)| format!("add {k} 0 0 {}\r\n{n}\r\n", n.to_string().len())),
        1 => (key(), number()).prop_map(|(k, n)| format!("incr {k} {n}\r\n")),
        1 => key().prop_map(|k| format!("delete {k}\r\n")),
        1 => (key(), number()).prop_map(|(k, n)| format!("mg {k} v f t s O{n} k\r\n")),
        1 => key().prop_map(|k| format!("mg {k} v q\r\n")),
        1 => (key(), value()).prop_map(|(k, v)| format!("ms {k} {} T60\r\n{v}\r\n", v.len())),
        1 => Just("mn\r\n".to_string()),
        1 => Just("nonsense\r\n".to_string()),
        1 => Just("set k 0 0 2\r\nxxx\r\n".to_string()),
        1 => Just(format!("get {}\r\n", "k".repeat(251))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_number_of_cores_and_any_cut_give_the_same_answers(
        commands in proptest::collection::vec(command(), 1..60),
        cuts in proptest::collection::vec(1usize..200, 0..40),
        choices in proptest::collection::vec(0usize..1000, 1..20),
        core_count in 2u32..6,
        quantum in 1u32..40,
    ) {
        let input = commands.concat().into_bytes();
        let whole = Node::new(1).run(&input, &[], &[0]);
        let cut = Node::new(1).run(&input, &cuts, &[0]);
        prop_assert_eq!(String::from_utf8_lossy(&cut), String::from_utf8_lossy(&whole));
        let shared = Node::new(core_count).run(&input, &cuts, &choices);
        prop_assert_eq!(String::from_utf8_lossy(&shared), String::from_utf8_lossy(&whole));
        let sliced = Node { quantum, ..Node::new(core_count) }.run(&input, &cuts, &choices);
        prop_assert_eq!(String::from_utf8_lossy(&sliced), String::from_utf8_lossy(&whole));
    }
}

/// Commands of few keys with values of very different lengths, so that what is too long for its
/// allowance meets changes of the same key before and after it.
fn long_command() -> impl Strategy<Value = String> {
    let key = || (0..4u32).prop_map(|n| format!("key{n}"));
    let keys = || proptest::collection::vec(key(), 1..8).prop_map(|keys| keys.join(" "));
    let length = || prop_oneof![2 => 0usize..100, 2 => 1000..9000usize, 1 => 9000..60_000usize];
    prop_oneof![
        4 => keys().prop_map(|keys| format!("get {keys}\r\n")),
        1 => keys().prop_map(|keys| format!("gat 100 {keys}\r\n")),
        2 => key().prop_map(|k| format!("mg {k} t s v T50\r\n")),
        1 => key().prop_map(|k| format!("mg {k} t s N30\r\n")),
        3 => (key(), length(), any::<char>())
            .prop_map(|(k, n, c)| format!("set {k} 0 0 {n}\r\n{}\r\n", letter(c).repeat(n))),
        1 => (key(), length())
            .prop_map(|(k, n)| format!("append {k} 0 0 {n}\r\n{}\r\n", "+".repeat(n))),
        1 => key().prop_map(|k| format!("set {k} 0 0 2 noreply\r\n41\r\n")),
        1 => key().prop_map(|k| format!("incr {k} 1\r\n")),
        1 => key().prop_map(|k| format!("touch {k} 70\r\n")),
        1 => key().prop_map(|k| format!("delete {k}\r\n")),
    ]
}

fn letter(seed: char) -> String {
    char::from(b'a' + (seed as u32 % 26) as u8).to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn values_of_any_length_give_the_same_answers_and_are_not_piled_up(
        commands in proptest::collection::vec(long_command(), 1..60),
        cuts in proptest::collection::vec(1usize..5000, 0..40),
        choices in proptest::collection::vec(0usize..1000, 1..20),
        core_count in 2u32..5,
    ) {
        const BATCH: usize = 24;
        const COPIED: usize = 8 << 10;
        let input = commands.concat().into_bytes();
        let whole = Node::new(1).run(&input, &[], &[0]);
        let (shared, held) = Node::new(core_count).run_measured(&input, &cuts, &choices);
        prop_assert!(shared == whole, "{} bytes and {}", shared.len(), whole.len());
        // The pipeline's own bound, what one batch may copy beyond it, and what it puts off.
        let longest = 64 << 10;
        prop_assert!(held <= (8 << 10) + BATCH * COPIED + longest, "{held} bytes held");
    }
}

#[test]
fn no_more_is_taken_at_once_than_the_quantum() {
    const QUANTUM: usize = 30;
    let keys = "get a b c d e f g h i j k l m n o p\r\n";
    for (line, requests) in [("get a\r\n", 1), (keys, 16), ("mn\r\n", 1), ("nonsense\r\n", 1)] {
        let mut node = Node { quantum: QUANTUM as u32, ..Node::new(1) };
        let total = 20 * QUANTUM * requests;
        node.pending.extend_from_slice(line.repeat(20 * QUANTUM).as_bytes());
        let mut turns = 0;
        while !node.pending.is_empty() {
            node.out.unread = 0;
            node.feed();
            turns += 1;
        }
        assert!(turns >= total / QUANTUM, "{turns} turns for {total} requests of {line:?}");
        assert!(turns <= total / QUANTUM * 2, "{turns} turns for {total} requests of {line:?}");
    }
}

#[test]
fn quit_answers_what_came_before_and_ignores_what_comes_after() {
    let input = b"set a 0 0 1\r\n1\r\nget a\r\nquit\r\nget a\r\n";
    let mut node = Node::new(1);
    node.pending.extend_from_slice(input);
    node.feed();
    assert!(node.closed);
    assert_eq!(node.out.bytes, b"STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n");
}
