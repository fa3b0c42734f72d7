//! One core's coordinator, asked and answered message by message.

use super::*;
use crate::hot_keys::HotKeySettings;
use crate::identity::Identity;
use crate::message::{ForwardOutcome, Messages, ReadOutcome, WriteOutcome};
use crate::quorum::Replication;
use crate::record::{Content, Record, RetentionTimes};
use crate::roster::{Change, Roster, RosterMember};
use crate::store::MapStore;
use ringlane_ring::{RingHash, RingParameters};
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{
    Arithmetic, Delete, Get, Operation as Command, Store as StoreRequest,
};
use ringlane_types::time::Deadline;
use std::rc::Rc;

mod congested;
mod put_off;

const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// Collects what is said to anybody.
#[derive(Default)]
struct Said {
    messages: Vec<u8>,
    answers: Vec<(ClientRef, String)>,
    /// Reads that came back: how long the value is, and the request.
    put_off: Vec<(u32, Vec<u8>)>,
    /// Whether there is no room on any link; else for so many requests.
    full: bool,
    request_buffer: Option<u32>,
}

impl Effects for Said {
    fn buffer_for(&mut self, _to: Peer) -> Option<&mut Vec<u8>> {
        Some(&mut self.messages)
    }

    fn request_buffer(&mut self, to: Peer, _bytes: usize) -> PeerBuffer<'_> {
        if self.full || self.request_buffer == Some(0) {
            return PeerBuffer::Full;
        }
        self.request_buffer = self.request_buffer.map(|left| left - 1);
        self.buffer_for(to).map_or(PeerBuffer::Unlinked, PeerBuffer::Open)
    }

    fn takes_long_answer(&mut self, _to: Peer) -> bool {
        !self.full
    }

    fn answer(&mut self, asker: ClientRef, response: &Response<'_>) {
        if let Response::OverAllowance { value_bytes, request } = response {
            return self.put_off.push((*value_bytes, request.to_vec()));
        }
        let shown = match response {
            Response::Hit(hit) => String::from_utf8_lossy(&hit.value.to_vec()).into_owned(),
            other => format!("{other:?}").split(' ').next().unwrap_or_default().to_owned(),
        };
        self.answers.push((asker, shown));
    }

    fn ranges_complete(&mut self, _epoch: u64) {}
}

/// A core of the first of `count` nodes, all of which keep every key.
struct Bench {
    coordinator: Coordinator,
    store: MapStore,
    view: Arc<View>,
    me: NodeKey,
    others: Vec<NodeKey>,
    /// What forwarded writes must be newer than.
    after: Version,
    now: Instant,
    /// As in [`Said`].
    full: bool,
    request_buffer: Option<u32>,
}

impl Bench {
    fn new(count: u8) -> Self {
        Self::with_replication(count, Replication::new(count, count, 1).expect("valid"))
    }

    fn with_replication(count: u8, replication: Replication) -> Self {
        let identity = |number: u8| {
            let address = ([127, 0, 0, number], 7000).into();
            Identity::new(&format!("n{number}"), Boot(1), address, address)
        };
        let member = |number: u8| {
            let Identity { id, key, boot, gossip, link, .. } = identity(number);
            RosterMember { id, key, boot, weight: 1, slot: 0, gossip, link }
        };
        let mut roster = Roster::initial(member(1), 1);
        for number in 2..=count {
            roster = roster.with([&Change::Add(member(number))]).expect("another member");
        }
        let ring = RingParameters {
            hash: RingHash::Md5,
            points_per_weight: 8,
            replicas: replication.replicas(),
        };
        let view = Arc::new(View::new(Arc::new(roster), ring).expect("a ring"));
        let me = identity(1).key;
        let others = (2..=count).map(|number| identity(number).key).collect();
        let secret = Rc::new(HashSecret::of_seed(0));
        let coordinator =
            Coordinator::new(me, Boot(1), CoordinatorSettings::new(replication, secret));
        let store = MapStore::default();
        let mut bench = Self {
            coordinator,
            store,
            view: view.clone(),
            me,
            others,
            after: Version::NONE,
            now: NOW,
            full: false,
            request_buffer: None,
        };
        bench.with(|coordinator, turn| {
            coordinator.view_changed(view, turn);
            for number in 2..=count {
                let node = identity(number).key;
                let facts = PeerFacts { boot: Boot(1), core_count: 1, hash_seed: 0 };
                coordinator.liveness(node, Boot(1), true, turn);
                coordinator.link(LinkEvent::Up { peer: Peer { node, core: 0 }, facts }, turn);
            }
        });
        bench
    }

    fn with(&mut self, call: impl FnOnce(&mut Coordinator, &mut Turn<'_, MapStore, Said>)) -> Said {
        let mut said =
            Said { full: self.full, request_buffer: self.request_buffer, ..Said::default() };
        let mut turn = Turn { now: self.now, store: &mut self.store, effects: &mut said };
        call(&mut self.coordinator, &mut turn);
        said
    }

    fn ask(&mut self, connection: u32, sequence: u32, key: &str, operation: Command<'_>) -> Said {
        let key = key.as_bytes();
        let asker = ClientRef { connection, sequence, ..ClientRef::default() };
        let request = Request { key, hash: KeyHash::of(key, &HashSecret::of_seed(0)), operation };
        self.with(|coordinator, turn| {
            let point = coordinator.point_of(key);
            coordinator.request(asker, Consistency::Configured, point, &request, turn);
        })
    }

    fn hear(&mut self, message: &Message<'_>) -> Said {
        let other = self.others.first().copied().unwrap_or(NodeKey(77));
        self.hear_from(other, message)
    }

    fn hear_from(&mut self, node: NodeKey, message: &Message<'_>) -> Said {
        let mut body = Vec::new();
        message.write(&mut body);
        let from = Peer { node, core: 0 };
        let message = Messages::new(&body).next().expect("one").expect("whole");
        self.with(|coordinator, turn| coordinator.message(from, message, turn))
    }

    /// What is said when another node forwards `command` under `stamp`.
    fn forward(&mut self, stamp: u64, command: Command<'_>) -> Said {
        let request = Request {
            key: b"k",
            hash: KeyHash::of(b"k", &HashSecret::of_seed(7)),
            operation: command,
        };
        let mut bytes = vec![0; codec::encoded_request_bytes(&request)];
        codec::encode_request(&request, &mut bytes);
        self.hear(&Message::Forward(Forward {
            operation: OperationId(9),
            stamp,
            consistency: Consistency::Configured,
            point: RingHash::Md5.point_of(b"k"),
            after: self.after,
            request: &bytes,
        }))
    }

    /// What comes back for `command`, forwarded by another node under `stamp`.
    fn forwarded(&mut self, stamp: u64, command: Command<'_>) -> (ForwardOutcome, Vec<u8>) {
        match self.forward(stamp, command).first() {
            Message::ForwardReply { operation: OperationId(9), outcome, response, .. } => {
                (outcome, response.to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    /// A key whose first replica this node is.
    fn own_key(&self) -> String {
        self.key_of(self.me)
    }

    /// A key whose first replica `node` is.
    fn key_of(&self, node: NodeKey) -> String {
        let mut keys = (0..).map(|number: u32| format!("key{number}"));
        let its_own = |key: &String| {
            let ring = self.view.ring();
            self.view.member(ring.owner(ring.point_of(key.as_bytes()))).key == node
        };
        keys.find(its_own).expect("one of them")
    }
}

impl Said {
    fn first(&self) -> Message<'_> {
        let message = Messages::new(&self.messages).next().expect("something").expect("whole");
        Message::read(message).expect("understood")
    }

    fn answers(&self) -> Vec<&str> {
        self.answers.iter().map(|(_, answer)| &answer[..]).collect()
    }
}

fn set(value: &[u8]) -> Command<'_> {
    Command::Store(StoreRequest::set(value))
}

fn get() -> Command<'static> {
    Command::Get(Get::default())
}

/// Whether a core whose ranges grow waits for what somebody has who died, came back as long as
/// nobody looked, and left the roster; and whether it still does when it would be forgotten.
fn waits_for_the_removed(replication: Replication) -> [bool; 2] {
    let mut bench = Bench::with_replication(4, replication);
    let (dead, others) = (bench.others[2], [bench.others[0], bench.others[1]]);
    let change = Change::Remove { key: dead, boot: Boot(1) };
    let roster = bench.view.roster().with([&change]).expect("three seats are left");
    let ring = bench.view.ring().parameters();
    let view = Arc::new(View::new(Arc::new(roster), ring).expect("a ring"));
    bench.with(|coordinator, turn| {
        coordinator.liveness(dead, Boot(1), false, turn);
        coordinator.view_changed(view.clone(), turn);
        for node in others {
            coordinator.copied_from(node, Boot(1), view.epoch(), turn);
        }
    });
    let waits = bench.coordinator.transfer_progress().0 > 0.0;
    bench.now = NOW.after(Duration::from_secs(600));
    bench.with(|coordinator, turn| coordinator.tick(turn));
    [waits, bench.coordinator.transfer_progress().0 > 0.0]
}

#[test]
fn who_may_hold_the_only_copy_is_waited_for_until_he_would_be_forgotten() {
    let replication = |n, w, r| Replication::new(n, w, r).expect("valid");
    assert_eq!(waits_for_the_removed(replication(3, 1, 3)), [true, false]);
    assert_eq!(waits_for_the_removed(replication(3, 2, 2)), [false, false], "two others know");
    assert_eq!(waits_for_the_removed(replication(3, 1, 1)), [false, false], "nothing is promised");
}

#[test]
fn a_link_of_a_former_life_that_goes_late_does_not_take_the_new_one_along() {
    let mut bench = Bench::new(2);
    let node = bench.others[0];
    bench.with(|coordinator, turn| {
        // Started again with one core in place of two: nothing replaces the link with the second.
        let (first, second) = (Peer { node, core: 0 }, Peer { node, core: 1 });
        let facts = PeerFacts { boot: Boot(1), core_count: 1, hash_seed: 0 };
        coordinator.link(LinkEvent::Up { peer: second, facts }, turn);
        coordinator.link(LinkEvent::Down { peer: first, boot: Boot(1) }, turn);
        let facts = PeerFacts { boot: Boot(2), ..facts };
        coordinator.link(LinkEvent::Up { peer: first, facts }, turn);
        coordinator.link(LinkEvent::Down { peer: second, boot: Boot(1) }, turn);
        assert!(coordinator.is_present(node, Boot(2)));
        coordinator.link(LinkEvent::Down { peer: first, boot: Boot(2) }, turn);
        assert!(!coordinator.is_present(node, Boot(2)));
    });
}

#[test]
fn what_a_node_keeps_alone_is_answered_to_others_at_once_and_only_in_the_same_view() {
    let mut bench = Bench::new(1);
    let stamp = bench.view.stamp();
    assert_eq!(bench.forwarded(stamp ^ 1, set(b"v")).0, ForwardOutcome::NotBegun);
    let (outcome, response) = bench.forwarded(stamp, get());
    assert_eq!(outcome, ForwardOutcome::Answered);
    assert!(matches!(codec::decode_response(&response), Ok(Response::Miss)));
    let (_, response) = bench.forwarded(stamp, set(b"v"));
    assert!(matches!(codec::decode_response(&response), Ok(Response::Stored { .. })));
    let (_, response) = bench.forwarded(stamp, get());
    let Ok(Response::Hit(hit)) = codec::decode_response(&response) else { panic!("no hit") };
    assert_eq!(hit.value.to_vec(), b"v");
    assert_eq!(Version(hit.cas).instant(), NOW, "it has a version of the cluster");
    assert_eq!(bench.coordinator.operations(), 0);
    assert_eq!(bench.coordinator.counters().served, 3);
}

#[test]
fn a_write_begun_elsewhere_before_gets_a_newer_version_here() {
    let mut bench = Bench::new(1);
    let stamp = bench.view.stamp();
    bench.after = Version::at(NOW.after(Duration::from_secs(2)));
    assert_eq!(bench.forwarded(stamp, set(b"v")).0, ForwardOutcome::Answered);
    let held = bench.store.read(b"k", NOW).expect("it was set").version;
    assert!(held > bench.after);
    bench.after = Version::at(NOW.after(Duration::from_secs(60)));
    assert_eq!(bench.forwarded(stamp, set(b"w")).0, ForwardOutcome::NotBegun, "too far ahead");
}

#[test]
fn a_forwarded_request_says_nothing_of_the_secret_hash() {
    let mut bench = Bench::with_replication(2, Replication::default());
    let key = bench.key_of(bench.others[0]);
    for command in [get(), set(b"v")] {
        let said = bench.ask(1, 0, &key, command);
        let Message::Forward(forward) = said.first() else { panic!("{:?}", said.first()) };
        let told = codec::decode_request(forward.request).expect("whole");
        assert_eq!((told.key, told.hash), (key.as_bytes(), KeyHash::default()));
    }
}

#[test]
fn no_copy_of_a_hot_key_outlives_a_write_that_was_acknowledged_here() {
    let mut bench = Bench::with_replication(2, Replication::default());
    let key = bench.key_of(bench.others[0]);
    let forwarded = |said: &Said| match said.first() {
        Message::Forward(forward) => forward.operation,
        other => panic!("{other:?}"),
    };
    let answer = |bench: &mut Bench, operation, response: &Response<'_>| {
        let mut bytes = vec![0; codec::encoded_response_bytes(response)];
        codec::encode_response(response, &mut bytes);
        let (outcome, version) = (ForwardOutcome::Answered, Version::NONE);
        let response = &bytes[..];
        bench.hear(&Message::ForwardReply { operation, outcome, version, response })
    };
    for _ in 0..HotKeySettings::default().threshold {
        let asked = forwarded(&bench.ask(1, 0, &key, get()));
        answer(&mut bench, asked, &Response::Miss);
    }
    assert_eq!(bench.ask(1, 0, &key, get()).answers(), ["Miss"], "hot, and answered by a copy");

    bench.now = NOW.after(HotKeySettings::default().cache_age_max);
    let read = forwarded(&bench.ask(1, 0, &key, get()));
    let written = forwarded(&bench.ask(2, 0, &key, set(b"v")));
    answer(&mut bench, read, &Response::Miss);
    assert_eq!(bench.ask(1, 0, &key, get()).answers(), ["Miss"], "not acknowledged yet");
    answer(&mut bench, written, &Response::Stored { cas: 1, value_bytes: 1 });
    forwarded(&bench.ask(1, 0, &key, get()));
}

#[test]
fn requests_of_one_connection_for_one_key_take_place_one_after_the_other() {
    let mut bench = Bench::new(2);
    let key = bench.own_key();
    let written = bench.ask(1, 0, &key, set(b"one"));
    let Message::Write { operation: first, .. } = written.first() else { panic!("no write") };
    assert!(bench.ask(1, 1, &key, get()).answers.is_empty(), "the set is not acknowledged");
    assert!(bench.ask(1, 2, &key, Command::Delete(Delete::default())).messages.is_empty());
    assert!(bench.ask(1, 3, &key, get()).answers.is_empty());
    assert_eq!(bench.ask(2, 0, &key, get()).answers(), ["one"], "another connection goes on");
    assert_eq!(bench.ask(1, 4, "another", get()).answers(), ["Miss"], "another key goes on");

    let outcome = WriteOutcome::Applied;
    let said = bench.hear(&Message::WriteReply { operation: first, outcome });
    assert_eq!(said.answers(), ["Stored", "one"]);
    let Message::Write { operation: second, .. } = said.first() else { panic!("no deletion") };
    let said = bench.hear(&Message::WriteReply { operation: second, outcome });
    assert_eq!(said.answers(), ["Deleted", "Miss"]);
    let sequences: Vec<u32> = said.answers.iter().map(|(asker, _)| asker.sequence).collect();
    assert_eq!(sequences, [2, 3]);
    assert_eq!(bench.coordinator.operations(), 0);
    assert!(bench.coordinator.key_queues.is_empty());
}

#[test]
fn requests_that_wait_for_each_other_all_end_with_the_timeout_of_the_first() {
    let mut bench = Bench::new(2);
    let key = bench.own_key();
    bench.ask(1, 0, &key, set(b"one"));
    for sequence in 1..12 {
        assert!(bench.ask(1, sequence, &key, set(b"two")).messages.is_empty());
    }
    bench.ask(1, 12, &key, get());
    bench.now = NOW.after(RetentionTimes::default().operation);
    let said = bench.with(|coordinator, turn| coordinator.tick(turn));
    let bodies = Messages::new(&said.messages).map(|body| body.expect("whole"));
    let tried = bodies.filter(|body| matches!(Message::read(body), Ok(Message::Write { .. })));
    assert_eq!(tried.count(), 0, "what nobody waits for is not tried");
    assert_eq!(said.answers(), ["QuorumNotReached"; 13]);
    let sequences: Vec<u32> = said.answers.iter().map(|(asker, _)| asker.sequence).collect();
    assert_eq!(sequences, (0..13).collect::<Vec<_>>());
    assert_eq!(bench.coordinator.operations(), 0);
    assert!(bench.coordinator.key_queues.is_empty());
}

/// Three nodes, any two of which decide, that hold the counter `key` at 24.
fn counter() -> (Bench, String) {
    let mut bench = Bench::with_replication(3, Replication::new(3, 2, 2).expect("valid"));
    let key = bench.own_key();
    let written = bench.ask(1, 0, &key, set(b"24"));
    let Message::Write { operation, .. } = written.first() else { panic!("no write") };
    for other in bench.others.clone() {
        let outcome = WriteOutcome::Applied;
        bench.hear_from(other, &Message::WriteReply { operation, outcome });
    }
    (bench, key)
}

/// Begins a step of the counter, up to its write.
fn step(bench: &mut Bench, key: &str) -> (OperationId, Version) {
    step_of(bench, 1, key)
}

/// The same, for a client of its own connection.
fn step_of(bench: &mut Bench, connection: u32, key: &str) -> (OperationId, Version) {
    let asked = bench.ask(connection, 1, key, Command::Arithmetic(Arithmetic::by(1, false)));
    let Message::Read { operation, promise, .. } = asked.first() else { panic!("no read") };
    let same = Message::ReadReply { operation, outcome: ReadOutcome::Same };
    let written = bench.hear(&same);
    let Message::Write { operation, record, .. } = written.first() else { panic!("no write") };
    assert_eq!(record.version, promise);
    (operation, record.version)
}

/// All others refuse a write. What came of the last refusal.
fn refuse(bench: &mut Bench, operation: OperationId, outcome: WriteOutcome) -> Said {
    let others = bench.others.clone();
    let refuse = |other| bench.hear_from(other, &Message::WriteReply { operation, outcome });
    others.into_iter().map(refuse).last().expect("others")
}

fn held(bench: &mut Bench, key: &str) -> Vec<u8> {
    match bench.store.read(key.as_bytes(), NOW).expect("the counter").content {
        Content::Live(live) => live.value.to_vec(),
        Content::Deleted => Vec::new(),
    }
}

#[test]
fn a_step_that_meets_another_from_the_same_value_is_taken_back() {
    for outcome in [WriteOutcome::Superseded, WriteOutcome::Conflict] {
        let (mut bench, key) = counter();
        let (operation, ours) = step(&mut bench, &key);
        assert_eq!(held(&mut bench, &key), b"25");
        let said = refuse(&mut bench, operation, outcome(Version(ours.0 + 1)));
        assert!(said.answers.is_empty(), "{:?}", said.answers());
        assert_eq!(held(&mut bench, &key), b"24");
        assert_eq!(bench.coordinator.operations(), 1, "it is to be begun again");
    }
}

#[test]
fn a_step_that_others_may_have_from_the_one_before_it_is_not_taken_back() {
    for hinted in [true, false] {
        let (mut bench, key) = counter();
        let (first, _) = step_of(&mut bench, 1, &key);
        let (second, ours) = step_of(&mut bench, 2, &key);
        assert_eq!(held(&mut bench, &key), b"26");
        let conflict = WriteOutcome::Conflict(Version(ours.0 + 1));
        let other = bench.others[0];
        if hinted {
            // Nobody takes the first. They are told later what is here by now: the second.
            let said = refuse(&mut bench, first, conflict);
            assert_eq!(said.answers(), ["Uncertain"]);
        } else {
            // The first is sent once more, as what was computed from it.
            let outcome = WriteOutcome::NotReady;
            bench.hear_from(other, &Message::WriteReply { operation: first, outcome });
            bench.now = bench.now.after(CHECK_EVERY);
            let said = bench.with(|coordinator, turn| coordinator.tick(turn));
            let Message::Write { guard: None, record, .. } = said.first() else { panic!("none") };
            assert_eq!(record.version, ours);
        }
        let said = refuse(&mut bench, second, conflict);
        assert_eq!(said.answers(), ["Uncertain"]);
        assert_eq!(held(&mut bench, &key), b"26");
    }
}

#[test]
fn a_read_that_knew_of_a_write_taken_back_asks_again() {
    let (mut bench, key) = counter();
    let (operation, ours) = step(&mut bench, &key);
    let asked = bench.ask(2, 0, &key, get());
    let Message::Read { operation: read, known, .. } = asked.first() else { panic!("no read") };
    assert_eq!(known, ours);
    refuse(&mut bench, operation, WriteOutcome::Conflict(Version(ours.0 - 1)));
    let outcome = ReadOutcome::Older(Version(ours.0 - 1));
    let said = bench.hear(&Message::ReadReply { operation: read, outcome });
    assert!(said.answers.is_empty(), "what is held here is older than that");
    let Message::Read { known, promise, .. } = said.first() else { panic!("no second read") };
    assert!(known < ours && promise == Version::NONE);
}

#[test]
fn a_step_that_others_passed_over_while_it_was_read_for_begins_again() {
    let (mut bench, key) = counter();
    let asked = bench.ask(1, 1, &key, Command::Arithmetic(Arithmetic::by(1, false)));
    let Message::Read { operation, promise, .. } = asked.first() else { panic!("no read") };
    // Another node of a later slot wants to write too, and its version is newer.
    let theirs = Version(promise.0 + (1 << 20) + 7);
    let said = bench.hear(&Message::Read {
        operation: OperationId(1),
        stamp: bench.view.stamp(),
        known: Version::NONE,
        promise: theirs,
        key: key.as_bytes(),
    });
    assert!(matches!(said.first(), Message::ReadReply { outcome: ReadOutcome::Record(_), .. }));
    let said = bench.hear(&Message::ReadReply { operation, outcome: ReadOutcome::Same });
    let Message::Read { promise: again, .. } = said.first() else { panic!("no second read") };
    assert!(again > theirs);
}

#[test]
fn what_is_older_than_a_promise_to_another_is_refused() {
    let (mut bench, key) = counter();
    let (stamp, key, operation) = (bench.view.stamp(), key.as_bytes(), OperationId(1));
    let later = |millis: u64| Version(Version::at(NOW).0 + (millis << 20));
    let (promise, older) = (Version(later(9).0 + 7), Version(later(8).0 + 8));
    bench.hear(&Message::Read { operation, stamp, known: Version::NONE, promise, key });
    let record = Record::deleted(older);
    let mut outcome = |guard| {
        let said = bench.hear(&Message::Write { operation, stamp, guard, key, record });
        let Message::WriteReply { outcome, .. } = said.first() else { panic!("no answer") };
        outcome
    };
    assert_eq!(outcome(None), WriteOutcome::Superseded(promise));
    assert_eq!(outcome(Some(later(0))), WriteOutcome::Conflict(promise));
    let promise = Version(later(7).0 + 9);
    let said = bench.hear(&Message::Read { operation, stamp, known: Version::NONE, promise, key });
    let Message::ReadReply { outcome, .. } = said.first() else { panic!("no answer") };
    assert!(matches!(outcome, ReadOutcome::Promised(version) if version > promise));
}

#[test]
fn a_step_that_a_later_one_was_computed_from_counts_where_that_is_held() {
    let mut bench = Bench::with_replication(3, Replication::new(3, 2, 2).expect("valid"));
    let key = bench.own_key();
    let others = bench.others.clone();
    let create = Some((1, Deadline::NEVER));
    let step = Arithmetic { create, ..Arithmetic::by(1, false) };
    let mut steps = Vec::new();
    for connection in [1, 2] {
        let asked = bench.ask(connection, 0, &key, Command::Arithmetic(step));
        let Message::Read { operation, .. } = asked.first() else { panic!("no read") };
        let outcome = if connection == 1 { ReadOutcome::Nothing } else { ReadOutcome::Same };
        let said = bench.hear_from(others[0], &Message::ReadReply { operation, outcome });
        let Message::Write { operation, record, .. } = said.first() else { panic!("no write") };
        steps.push((operation, record.version));
    }
    let (first, (_, newest)) = (steps[0].0, steps[1]);
    let outcome = WriteOutcome::Superseded(newest);
    let said = bench.hear_from(others[1], &Message::WriteReply { operation: first, outcome });
    assert_eq!(said.answers(), ["Number(Number"], "the second step knows of the first");
}
