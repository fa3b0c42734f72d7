//! One core of a cluster's node whose peers say anything at any time: whatever they do, each
//! request is answered, and once; the shard stays whole; nothing is left under way.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringlane::cluster::coordinator::{ClientRef, Coordinator, CoordinatorSettings};
use ringlane::cluster::governor_notice::GovernorNotice;
use ringlane::cluster::identity::{Boot, NodeKey};
use ringlane::cluster::link::{LinkEvent, Peer, PeerBuffer, PeerFacts};
use ringlane::cluster::message::{
    Forward, ForwardOutcome, Message, Messages, NodeMessage, OperationId, ReadOutcome, WriteOutcome,
};
use ringlane::cluster::quorum::Replication;
use ringlane::cluster::record::{Content, Live, Record, RetentionTimes};
use ringlane::cluster::roster::{Change, Roster, RosterMember};
use ringlane::cluster::version::Version;
use ringlane::cluster::view::View;
use ringlane::codec::{
    encode_request, encode_response, encoded_request_bytes, encoded_response_bytes,
};
use ringlane::engine::Outcome;
use ringlane::engine::cluster::PeerOutbox;
use ringlane::engine::{Engine, EngineConfig};
use ringlane::hash::{HashSecret, KeyHash};
use ringlane::request::Consistency;
use ringlane::request::{
    Arithmetic, Delete, Get, Operation, Request, Response, Store, StoreMode, Value, Vivify,
};
use ringlane::ring::{Point, RingHash, RingParameters};
use ringlane::shard::ShardConfig;
use ringlane::time::Instant;

use crate::NOW;
use crate::choices::Choices;

const SEED: u64 = 7;
const KEYS: [&[u8]; 6] = [b"a", b"b", b"c", b"dd", b"eee", &[b'f'; 250]];

/// Reads `input` as what happens to a core.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    let mut core = Core::new(choices.byte());
    while !choices.is_empty() {
        core.step(&mut choices);
    }
    core.finish();
}

/// Links with everybody, which may have no room, and what was sent.
#[derive(Default)]
struct Sent {
    bodies: Vec<u8>,
    full: bool,
}

impl PeerOutbox for Sent {
    fn buffer_for(&mut self, _to: Peer) -> Option<&mut Vec<u8>> {
        Some(&mut self.bodies)
    }

    fn request_buffer(&mut self, _to: Peer, _bytes: usize) -> PeerBuffer<'_> {
        if self.full { PeerBuffer::Full } else { PeerBuffer::Open(&mut self.bodies) }
    }

    fn takes_long_answer(&mut self, _to: Peer) -> bool {
        !self.full
    }
}

struct Core {
    engine: Engine,
    now: Instant,
    links: Sent,
    views: Vec<Arc<View>>,
    /// How many of them have been in effect.
    placed: usize,
    /// Numbers that peers were given to answer with.
    operations: Vec<u64>,
    asked: u32,
    waiting: HashSet<u32>,
}

fn key_of(number: u8) -> NodeKey {
    NodeKey::of(&format!("n{number}"))
}

/// Rosters one after the other: a node joins, one begins a new life, one leaves.
fn views(replicas: u8) -> Vec<Arc<View>> {
    let member = |number: u8, boot| {
        let address = ([127, 0, 0, number], 7000).into();
        let id: Arc<str> = format!("n{number}").into();
        let key = NodeKey::of(&id);
        RosterMember {
            id,
            key,
            boot: Boot(boot),
            weight: 1,
            slot: 0,
            gossip: address,
            link: address,
        }
    };
    let mut roster = Roster::initial(member(1, 1), 5);
    let mut rosters = Vec::new();
    for change in [
        Change::Add(member(2, 1)),
        Change::Add(member(3, 1)),
        Change::Add(member(4, 1)),
        Change::Add(member(2, 2)),
        Change::Remove { key: key_of(3), boot: Boot(1) },
    ] {
        roster = roster.with([&change]).expect("a change");
        rosters.push(roster.clone());
    }
    let ring = RingParameters { hash: RingHash::Md5, points_per_weight: 4, replicas };
    rosters.into_iter().map(|r| Arc::new(View::new(Arc::new(r), ring).expect("a ring"))).collect()
}

/// Ticks of 50 ms within which everything ends: what has not ended before does with its timeout.
const ENDING_TICKS: usize = 110;

impl Core {
    fn new(choice: u8) -> Self {
        let (replicas, write, read) =
            [(1, 1, 1), (2, 1, 1), (3, 2, 2), (3, 3, 1), (3, 1, 3), (3, 1, 1)][choice as usize % 6];
        let replication = Replication::new(replicas, write, read).expect("valid");
        let secret = Rc::new(HashSecret::of_seed(SEED));
        let settings = CoordinatorSettings {
            operations_max: if choice & 64 != 0 { 4 } else { 64 },
            ..CoordinatorSettings::new(replication, secret.clone())
        };
        let mut engine = Engine::new(EngineConfig {
            core: 0,
            core_count: 1,
            hash_seed: SEED,
            hash_secret: secret,
            shard: ShardConfig::tiny(),
            default_ttl: None,
            pipeline_requests_max: 40,
            pipeline_bytes_max: 1 << 20,
        });
        let coordinator = Coordinator::new(key_of(1), Boot(1), settings);
        engine.join_cluster(coordinator, &RetentionTimes::default());
        let mut core = Self {
            engine,
            now: NOW,
            links: Sent::default(),
            views: views(replicas),
            placed: 0,
            operations: vec![0],
            asked: 0,
            waiting: HashSet::new(),
        };
        core.place();
        core.place();
        for node in 2..=4 {
            core.link(node, true);
            core.live(node, 1, true);
        }
        core
    }

    fn place(&mut self) {
        let Some(view) = self.views.get(self.placed).cloned() else { return };
        self.placed += 1;
        self.notice(GovernorNotice::ViewChanged(view));
    }

    fn notice(&mut self, notice: GovernorNotice) {
        self.engine.coordinate(self.now, &mut self.links, |core, turn| core.notice(notice, turn));
    }

    fn link(&mut self, node: u8, up: bool) {
        let peer = Peer { node: key_of(node), core: 0 };
        let facts = PeerFacts { boot: Boot(1), core_count: 1, hash_seed: 0 };
        let event = if up {
            LinkEvent::Up { peer, facts }
        } else {
            LinkEvent::Down { peer, boot: Boot(1) }
        };
        self.engine.coordinate(self.now, &mut self.links, |core, turn| core.link(event, turn));
    }

    fn live(&mut self, node: u8, boot: u64, alive: bool) {
        self.notice(GovernorNotice::Liveness { node: key_of(node), boot: Boot(boot), alive });
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.byte() % 32 {
            0..=9 => self.ask(choices),
            10..=24 => self.hear(choices),
            25..=26 => {
                self.now = self.now.after(Duration::from_millis(choices.byte() as u64 * 8));
                self.tick();
            }
            27 => self.place(),
            28 => self.link(2 + choices.byte() % 3, choices.flag()),
            29 => {
                let boot = 1 + choices.byte() as u64 % 2;
                self.live(2 + choices.byte() % 3, boot, choices.flag());
            }
            30 => self.links.full = choices.flag(),
            _ => match choices.byte() % 4 {
                0 => {
                    let epoch = self.views[self.placed - 1].epoch();
                    self.notice(GovernorNotice::Rebalanced(epoch));
                }
                1 => self.engine.flush_everywhere_at(self.now, self.now),
                2 => {
                    self.engine.due_flush(self.now, &mut self.links);
                }
                _ => drop(self.engine.shard.maintain(self.now, 8)),
            },
        }
        self.settle();
    }

    fn tick(&mut self) {
        self.engine.coordinate(self.now, &mut self.links, |core, turn| core.tick(turn));
    }

    /// Takes note of answers, and of what peers were asked.
    fn settle(&mut self) {
        let waiting = &mut self.waiting;
        self.engine.take_answers(|asker, _| {
            assert!(waiting.remove(&asker.sequence), "answered twice, or nobody asked");
        });
        for message in Messages::new(&self.links.bodies) {
            let message = message.expect("own encoding");
            if NodeMessage::is_one(message) {
                match NodeMessage::read(message).expect("own encoding") {
                    NodeMessage::Compare { round, .. } | NodeMessage::Listing { round, .. } => {
                        self.operations.push(round);
                    }
                    _ => {}
                }
                continue;
            }
            match Message::read(message).expect("own encoding") {
                Message::Write { operation: OperationId(number), .. }
                | Message::Read { operation: OperationId(number), .. }
                | Message::Fetch { operation: OperationId(number), .. }
                | Message::Forward(Forward { operation: OperationId(number), .. })
                | Message::Merge { ticket: number, .. } => self.operations.push(number),
                _ => {}
            }
        }
        self.links.bodies.clear();
        let old = self.operations.len().saturating_sub(32);
        self.operations.drain(..old);
    }

    fn ask(&mut self, choices: &mut Choices<'_>) {
        let key = choices.pick(&KEYS);
        let value = choices.bytes();
        let operation = self.operation(value, choices);
        let request =
            Request { key, hash: KeyHash::of(key, &HashSecret::of_seed(SEED)), operation };
        let consistency = consistency(choices);
        self.asked += 1;
        let connection = choices.byte() as u32 % 3;
        let asker = ClientRef { connection, sequence: self.asked, ..ClientRef::default() };
        let placed = (self.engine.point(key), &request);
        let taken =
            self.engine.perform(|| asker, consistency, placed, self.now, &mut self.links, |_| {});
        if let Outcome::Pending = taken {
            self.waiting.insert(self.asked);
        }
    }

    fn operation<'v>(&self, value: &'v [u8], choices: &mut Choices<'_>) -> Operation<'v> {
        use StoreMode::{Add, Append, Prepend, Replace, Set};
        let deadline = choices.deadline(self.now);
        let compare = choices.flag().then(|| self.version(choices).0);
        match choices.byte() % 8 {
            0..=1 => Operation::Get(Get {
                touch: choices.flag().then_some(deadline),
                lease: choices.flag(),
                vivify: choices.flag().then_some(Vivify { deadline, cas: None, binary_key: false }),
                ..Get::default()
            }),
            2..=4 => Operation::Store(Store {
                mode: choices.pick(&[Set, Set, Add, Replace, Append, Prepend]),
                compare,
                deadline,
                flags: choices.byte() as u32,
                ..Store::set(value)
            }),
            5 => Operation::Delete(Delete {
                compare,
                invalidate: choices.flag(),
                ..Delete::default()
            }),
            6 => Operation::Arithmetic(Arithmetic {
                compare,
                create: choices.flag().then_some((7, deadline)),
                ..Arithmetic::by(choices.byte() as u64, choices.flag())
            }),
            _ => Operation::Get(Get::default()),
        }
    }

    /// One near the present, an old one, or one of the far future.
    fn version(&self, choices: &mut Choices<'_>) -> Version {
        let now = self.now.as_millis() << 20;
        match choices.byte() % 8 {
            0..=2 => Version(now + choices.byte() as u64),
            3..=4 => Version(now - ((choices.byte() as u64) << 22)),
            5 => Version(choices.number()),
            6 => Version(now + ((choices.byte() as u64) << 24)),
            _ => Version::NONE,
        }
    }

    fn record<'v>(&self, value: &'v [u8], choices: &mut Choices<'_>) -> Record<'v> {
        let version = self.version(choices);
        if choices.byte().is_multiple_of(4) {
            return Record::deleted(version);
        }
        let live = Live {
            deadline: choices.deadline(self.now),
            flags: choices.byte() as u32,
            marks: choices.byte(),
            value: Value::Whole(value),
        };
        Record { version, content: Content::Live(live) }
    }

    fn hear(&mut self, choices: &mut Choices<'_>) {
        let from = Peer { node: key_of(2 + choices.byte() % 4), core: choices.byte() as u16 % 2 };
        let mut body = Vec::new();
        match choices.byte() % 16 {
            0..=10 => self.message(choices, &mut body),
            11..=14 => self.node_message(choices, &mut body),
            _ => {
                let raw = choices.bytes();
                body.extend_from_slice(&(raw.len() as u32).to_le_bytes());
                body.extend_from_slice(raw);
            }
        }
        choices.tamper(&mut body);
        self.engine.frame(from, &body, self.now, &mut self.links);
    }

    fn message(&self, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let number = choices.pick(&self.operations);
        let operation = OperationId(number);
        let stamp = self.stamp(choices);
        let key = choices.pick(&KEYS);
        let value = choices.bytes();
        let record = self.record(value, choices);
        let version = self.version(choices);
        let mut inner = Vec::new();
        let message = match choices.byte() % 10 {
            0..=1 => {
                use WriteOutcome::*;
                let outcome = choices.pick(&[
                    Applied,
                    Applied,
                    Superseded(version),
                    Conflict(version),
                    NotReady,
                    OtherView(stamp),
                    TooLarge,
                    NoMemory,
                    ClockAhead,
                ]);
                Message::WriteReply { operation, outcome }
            }
            2..=3 => {
                use ReadOutcome::*;
                let outcome = choices.pick(&[
                    Record(record),
                    Record(record),
                    Same,
                    Older(version),
                    Nothing,
                    NotReady,
                    OtherView(stamp),
                    Promised(version),
                ]);
                Message::ReadReply { operation, outcome }
            }
            4 => {
                use ForwardOutcome::*;
                let outcome = choices.pick(&[
                    Answered,
                    Answered,
                    QuorumNotReached { needed: 2, reached: 1 },
                    Unknown,
                    NotBegun,
                ]);
                self.response(value, choices, &mut inner);
                Message::ForwardReply { operation, outcome, version, response: &inner }
            }
            5 => {
                let guard = choices.flag().then_some(version);
                Message::Write { operation, stamp, guard, key, record }
            }
            6 => {
                let promise = if choices.flag() { self.version(choices) } else { Version::NONE };
                Message::Read { operation, stamp, known: version, promise, key }
            }
            7 => match choices.byte() % 3 {
                0 => Message::Fetch { operation, epoch: choices.byte() as u64 % 8, key },
                1 => Message::Merge { ticket: number, key, record },
                _ => Message::Merged { ticket: number },
            },
            _ => {
                let operation = self.operation(value, choices);
                let request =
                    Request { key, hash: KeyHash::of(key, &HashSecret::of_seed(0)), operation };
                inner.resize(encoded_request_bytes(&request), 0);
                encode_request(&request, &mut inner);
                choices.tamper(&mut inner);
                let (consistency, after) = (consistency(choices), self.version(choices));
                let operation = OperationId(choices.number());
                // Mostly the right one: a wrong one must do no harm either.
                let point = match choices.byte() {
                    0 => Point(choices.number() as u32),
                    _ => RingHash::Md5.point_of(key),
                };
                Message::Forward(Forward {
                    operation,
                    stamp,
                    consistency,
                    point,
                    after,
                    request: &inner,
                })
            }
        };
        message.write(out);
    }

    fn response(&self, value: &[u8], choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let response = match choices.byte() % 8 {
            0 => Response::Stored { cas: 3, value_bytes: 2 },
            1 => Response::Deleted,
            2 => Response::NotStored,
            3 => Response::NotFound,
            4 => Response::Exists,
            5 => Response::QuorumNotReached { needed: 1, reached: 0 },
            6 => return out.extend_from_slice(value),
            _ => Response::Miss,
        };
        out.resize(encoded_response_bytes(&response), 0);
        encode_response(&response, out);
        choices.tamper(out);
    }

    fn node_message(&self, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let (epoch, round) = (choices.byte() as u64 % 8, choices.pick(&self.operations));
        let (stamp, version) = (self.stamp(choices), self.version(choices));
        let horizon = self.version(choices);
        let mut inner = Vec::new();
        match choices.byte() % 9 {
            0 => {
                let settled = choices.byte() as u64 % 8;
                NodeMessage::Status { stamp, epoch, settled, flushed: version }.write(out);
            }
            1 => {
                let (cursor, bytes_max) = (choices.number(), choices.number() as u32);
                NodeMessage::Pull { epoch, cursor, bytes_max }.write(out);
            }
            2..=3 => {
                for _ in 0..choices.byte() % 4 {
                    let (key, value) = (choices.pick(&KEYS), choices.bytes());
                    let record = self.record(value, choices);
                    Message::Merge { ticket: 0, key, record }.write(&mut inner);
                }
                choices.tamper(&mut inner);
                let (cursor, next) = (choices.byte() as u64 % 2, choices.flag().then_some(1));
                NodeMessage::Pulled { epoch, cursor, next, merges: &inner }.write(out);
            }
            4 => {
                let digest = choices.byte();
                let count = choices.pick(&[64, 256, 1024, 4096, 7]);
                inner.resize(count * 8, digest);
                let segments = &inner[..];
                NodeMessage::Compare { round, stamp, cutoff: version, horizon, segments }
                    .write(out);
            }
            5 => {
                let segments = choices.bytes();
                self.keys(choices, true, &mut inner);
                let (complete, entries) = (choices.flag(), &inner[..]);
                NodeMessage::Listing { round, segments, complete, entries }.write(out);
            }
            6 => {
                self.keys(choices, false, &mut inner);
                NodeMessage::Want { round, keys: &inner }.write(out);
            }
            7 => NodeMessage::Compared { round }.write(out),
            _ => NodeMessage::Flush { version }.write(out),
        }
    }

    /// Keys behind their lengths, and perhaps their versions.
    fn keys(&self, choices: &mut Choices<'_>, versions: bool, out: &mut Vec<u8>) {
        for _ in 0..choices.byte() % 5 {
            let key = choices.pick(&KEYS);
            out.push(key.len() as u8);
            out.extend_from_slice(key);
            if versions {
                out.extend_from_slice(&self.version(choices).0.to_le_bytes());
            }
        }
        choices.tamper(out);
    }

    fn stamp(&self, choices: &mut Choices<'_>) -> u64 {
        match choices.byte() % 8 {
            0..=5 => self.views[self.placed - 1].stamp(),
            6 => self.views[choices.below(self.views.len())].stamp(),
            _ => choices.number(),
        }
    }

    /// Time passes, and nobody says anything any more.
    fn finish(mut self) {
        self.settle();
        for _ in 0..ENDING_TICKS {
            if self.waiting.is_empty() {
                break;
            }
            self.now = self.now.after(Duration::from_millis(50));
            self.tick();
            self.settle();
        }
        assert!(self.waiting.is_empty(), "{} requests are never answered", self.waiting.len());
        // What peers began ends too.
        for _ in 0..ENDING_TICKS {
            let coordinator = self.engine.coordinator().expect("one of a cluster's");
            if coordinator.operations() == 0 {
                break;
            }
            self.now = self.now.after(Duration::from_millis(50));
            self.tick();
            self.settle();
        }
        let coordinator = self.engine.coordinator().expect("one of a cluster's");
        assert_eq!(coordinator.operations(), 0, "something is under way for ever");
        self.engine.shard.check_invariants();
    }
}

fn consistency(choices: &mut Choices<'_>) -> Consistency {
    use Consistency::*;
    choices.pick(&[Configured, Configured, Configured, One, Quorum, All])
}
