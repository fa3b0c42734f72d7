//! What the benchmarks share: keys, values and requests that are the same on every run, and one
//! core's engine with a connection that is no socket.

#![allow(dead_code, reason = "each benchmark uses its part")]

use bumpalo::Bump;
use ringlane::engine::{BoundedOutput, Engine, EngineConfig, Outbox, Session, Stop};
use ringlane::hash::{HashSecret, KeyHash};
use ringlane::protocol::compact::client::Frame;
use ringlane::protocol::{Context, Limits, Output};
use ringlane::request::{Consistency, Get, ItemRef, Operation, Request, Store, Value};
use ringlane::shard::ShardConfig;
use ringlane::time::Instant;
use std::rc::Rc;
use std::sync::LazyLock;

/// The time at which everything happens.
pub const NOW: Instant = Instant::from_millis(1_800_000_000_000);
/// Seed of key hashes.
/// The keys of key hashes.
pub static SECRET: LazyLock<HashSecret> = LazyLock::new(|| HashSecret::of_seed(42));
/// Length of every value in bytes.
pub const VALUE_BYTES: usize = 32;

/// Whether cargo asks for measurements; `cargo test` only wants to see that everything runs.
pub fn is_measuring() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Key number `number`, 16 bytes.
pub fn key(number: u64) -> [u8; 16] {
    let mut key = *b"key:000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// The value of key number `number`.
pub fn value(number: u64) -> [u8; VALUE_BYTES] {
    [b'a' + (number % 26) as u8; VALUE_BYTES]
}

/// Random numbers that are the same on every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// A number below `count`.
    pub fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((bits as u128 * count as u128) >> 64) as u64
    }
}

/// A plain read of `key`.
pub fn get_of(key: &[u8]) -> Request<'_> {
    let operation = Operation::Get(Get::default());
    Request { key, hash: KeyHash::of(key, &SECRET), operation }
}

/// A plain write of `value` under `key`.
pub fn set_of<'b>(key: &'b [u8], value: &'b [u8]) -> Request<'b> {
    let operation = Operation::Store(Store::set(value));
    Request { key, hash: KeyHash::of(key, &SECRET), operation }
}

/// Appends a request about key `number` to a connection's input.
pub type Write = fn(u64, &mut Vec<u8>);

/// Every protocol's plain read and plain write, by name.
pub const WRITES: [(&str, Write); 8] = [
    ("text get", text_get),
    ("text set", text_set),
    ("meta get", meta_get),
    ("meta set", meta_set),
    ("binary get", binary_get),
    ("binary set", binary_set),
    ("classic get", classic_get),
    ("classic set", classic_set),
];

/// `get KEY`
pub fn text_get(number: u64, input: &mut Vec<u8>) {
    concat(input, &[b"get ", &key(number), b"\r\n"]);
}

/// `set KEY 0 0 32` and its data.
pub fn text_set(number: u64, input: &mut Vec<u8>) {
    concat(input, &[b"set ", &key(number), b" 0 0 32\r\n", &value(number), b"\r\n"]);
}

/// `set KEY 0 60 32` and its data: an item that expires.
pub fn text_set_with_ttl(number: u64, input: &mut Vec<u8>) {
    concat(input, &[b"set ", &key(number), b" 0 60 32\r\n", &value(number), b"\r\n"]);
}

/// `mg KEY v`
pub fn meta_get(number: u64, input: &mut Vec<u8>) {
    concat(input, &[b"mg ", &key(number), b" v\r\n"]);
}

/// `ms KEY 32` and its data.
pub fn meta_set(number: u64, input: &mut Vec<u8>) {
    concat(input, &[b"ms ", &key(number), b" 32\r\n", &value(number), b"\r\n"]);
}

/// GET of the compact binary protocol.
pub fn binary_get(number: u64, input: &mut Vec<u8>) {
    Frame::get(&key(number), number as u32).encode(input);
}

/// SET of the compact binary protocol.
pub fn binary_set(number: u64, input: &mut Vec<u8>) {
    Frame::set(&key(number), &value(number), number as u32).encode(input);
}

/// GET of memcached's binary protocol.
pub fn classic_get(number: u64, input: &mut Vec<u8>) {
    classic_header(input, 0x00, 0, 0);
    concat(input, &[&key(number)]);
}

/// SET of memcached's binary protocol.
pub fn classic_set(number: u64, input: &mut Vec<u8>) {
    classic_header(input, 0x01, 8, VALUE_BYTES);
    concat(input, &[&[0; 8], &key(number), &value(number)]);
}

fn classic_header(input: &mut Vec<u8>, opcode: u8, extra_bytes: u8, value_bytes: usize) {
    let key_bytes = key(0).len();
    let body_bytes = extra_bytes as usize + key_bytes + value_bytes;
    input.extend_from_slice(&[0x80, opcode, 0, key_bytes as u8, extra_bytes, 0, 0, 0]);
    input.extend_from_slice(&(body_bytes as u32).to_be_bytes());
    input.extend_from_slice(&[0; 12]);
}

fn concat(input: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| input.extend_from_slice(part));
}

/// `count` inputs of `depth` requests each, about random keys out of `keys`.
pub fn pipelines(write: Write, depth: usize, keys: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(7);
    let mut pipeline = || {
        let mut input = Vec::new();
        (0..depth).for_each(|_| write(random.below(keys), &mut input));
        input
    };
    (0..count).map(|_| pipeline()).collect()
}

/// One core with all keys to itself, and one connection to it.
pub struct Node {
    /// The core.
    pub engine: Engine,
    session: Session,
    limits: Limits,
    scratch: Bump,
    out: Out,
}

impl Node {
    /// An empty node with this much memory.
    pub fn new(memory_bytes: u64) -> Self {
        let shard = ShardConfig { memory_bytes, ..ShardConfig::tiny() };
        let engine = Engine::new(EngineConfig {
            core: 0,
            core_count: 1,
            hash_seed: 42,
            hash_secret: Rc::new(SECRET.clone()),
            shard,
            default_ttl: None,
            pipeline_requests_max: 1024,
            pipeline_bytes_max: 256 << 10,
        });
        Self {
            engine,
            session: Session::default(),
            limits: Limits::default(),
            scratch: Bump::new(),
            out: Out(Vec::with_capacity(256 << 10)),
        }
    }

    /// A node that holds keys 0 to `keys`.
    pub fn filled(memory_bytes: u64, keys: u64) -> Self {
        let mut node = Self::new(memory_bytes);
        for number in 0..keys {
            node.engine.shard.execute(&set_of(&key(number), &value(number)), NOW);
            node.engine.shard.maintain(NOW, 64);
        }
        node
    }

    /// A new connection instead of the old one, for another protocol.
    pub fn reconnect(&mut self) {
        self.session = Session::default();
    }

    /// Feeds whole requests as a turn of the server would, and returns their answers.
    #[inline(never)]
    pub fn feed(&mut self, input: &[u8]) -> &[u8] {
        self.scratch.reset();
        self.out.0.clear();
        let context = Context {
            limits: &self.limits,
            now: NOW,
            hash_secret: &SECRET,
            scratch: &self.scratch,
        };
        let fed =
            self.engine.feed(&mut self.session, input, &context, &mut self.out, &mut NoOtherCores);
        assert!(matches!(fed.stop, Stop::NeedInput), "stopped: {:?}", fed.stop);
        assert_eq!(fed.consumed, input.len(), "everything is taken");
        &self.out.0
    }
}

/// Answers, copied.
struct Out(Vec<u8>);

impl Output for Out {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    #[inline]
    fn value(&mut self, value: &Value<'_>, item: Option<ItemRef>) {
        self.0.value(value, item);
    }
}

impl BoundedOutput for Out {
    #[inline]
    fn is_full(&self) -> bool {
        false
    }
}

/// There is one core.
struct NoOtherCores;

impl ringlane::engine::cluster::PeerOutbox for NoOtherCores {
    fn buffer_for(&mut self, _to: ringlane::cluster::link::Peer) -> Option<&mut Vec<u8>> {
        None
    }
}

impl Outbox for NoOtherCores {
    fn send(&mut self, core: u32, _: u32, _: Consistency, _: &Request<'_>) {
        unreachable!("core {core} of one");
    }

    #[inline]
    fn is_full(&self) -> bool {
        false
    }
}
