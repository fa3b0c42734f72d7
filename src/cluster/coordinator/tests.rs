//! One core's coordinator, asked and answered message by message.

use super::*;
use crate::cluster::identity::Identity;
use crate::cluster::message::{ForwardOutcome, Messages, WriteOutcome};
use crate::cluster::ring::{RingHash, RingParameters};
use crate::cluster::roster::{Change, Roster, Seat};
use crate::cluster::store::MapStore;
use crate::request::{Delete, Get, Operation as Command, Store as StoreRequest};

const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// Collects what is said to anybody.
#[derive(Default)]
struct Said {
    messages: Vec<u8>,
    answers: Vec<(Asker, String)>,
}

impl Outside for Said {
    fn room(&mut self, _to: Peer) -> Option<&mut Vec<u8>> {
        Some(&mut self.messages)
    }

    fn answer(&mut self, asker: Asker, response: &Response<'_>) {
        let shown = match response {
            Response::Hit(hit) => String::from_utf8_lossy(&hit.value.to_vec()).into_owned(),
            other => format!("{other:?}").split(' ').next().unwrap_or_default().to_owned(),
        };
        self.answers.push((asker, shown));
    }

    fn settled(&mut self, _epoch: u64) {}
}

/// A core of the first of `count` nodes, all of which keep every key.
struct Bench {
    coordinator: Coordinator,
    store: MapStore,
    view: Arc<View>,
    me: NodeKey,
    other: NodeKey,
}

impl Bench {
    fn new(count: u8) -> Self {
        let identity = |number: u8| {
            let address = ([127, 0, 0, number], 7000).into();
            Identity::new(&format!("n{number}"), Boot(1), address, address)
        };
        let seat = |number: u8| {
            let Identity { id, key, boot, gossip, link, .. } = identity(number);
            Seat { id, key, boot, weight: 1, slot: 0, gossip, link }
        };
        let mut roster = Roster::found(seat(1), 1);
        for number in 2..=count {
            roster = roster.with([&Change::Seat(seat(number))]).expect("another seat");
        }
        let ring = RingParameters { hash: RingHash::Md5, points_per_weight: 8, replicas: count };
        let view = Arc::new(View::new(Arc::new(roster), ring).expect("a ring"));
        let (me, other) = (identity(1).key, identity(2).key);
        let replication = Replication::new(count, count, 1).expect("valid");
        let coordinator = Coordinator::new(me, Boot(1), CoordinatorSettings::new(replication));
        let store = MapStore::default();
        let mut bench = Self { coordinator, store, view: view.clone(), me, other };
        bench.with(|coordinator, turn| {
            coordinator.placed(view, turn);
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
        let mut said = Said::default();
        let mut turn = Turn { now: NOW, store: &mut self.store, outside: &mut said };
        call(&mut self.coordinator, &mut turn);
        said
    }

    fn ask(&mut self, connection: u32, sequence: u32, key: &str, operation: Command<'_>) -> Said {
        let key = key.as_bytes();
        let asker = Asker { connection, sequence, ..Asker::default() };
        let request = Request { key, hash: KeyHash::of(key, 0), operation };
        self.with(|coordinator, turn| {
            coordinator.request(asker, Consistency::Configured, &request, turn);
        })
    }

    fn hear(&mut self, message: &Message<'_>) -> Said {
        let mut body = Vec::new();
        message.write(&mut body);
        let from = Peer { node: self.other, core: 0 };
        let message = Messages::new(&body).next().expect("one").expect("whole");
        self.with(|coordinator, turn| coordinator.message(from, message, turn))
    }

    /// What comes back for `command`, forwarded by another node under `stamp`.
    fn forwarded(&mut self, stamp: u64, command: Command<'_>) -> (ForwardOutcome, Vec<u8>) {
        let request = Request { key: b"k", hash: KeyHash::of(b"k", 7), operation: command };
        let mut bytes = vec![0; relay::encoded_request_bytes(&request)];
        relay::encode_request(&request, &mut bytes);
        let (operation, consistency) = (OperationId(9), Consistency::Configured);
        let said = self.hear(&Message::Forward { operation, stamp, consistency, request: &bytes });
        match said.first() {
            Message::ForwardReply { operation: OperationId(9), outcome, response, .. } => {
                (outcome, response.to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    /// A key whose first replica this node is.
    fn own_key(&self) -> String {
        let mut keys = (0..).map(|number: u32| format!("key{number}"));
        let own = |key: &String| {
            let ring = self.view.ring();
            self.view.seat(ring.owner(ring.place(key.as_bytes()))).key == self.me
        };
        keys.find(own).expect("one of them")
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

#[test]
fn what_a_node_keeps_alone_is_answered_to_others_at_once_and_only_in_the_same_view() {
    let mut bench = Bench::new(1);
    let stamp = bench.view.stamp();
    assert_eq!(bench.forwarded(stamp ^ 1, set(b"v")).0, ForwardOutcome::NotBegun);
    let (outcome, response) = bench.forwarded(stamp, get());
    assert_eq!(outcome, ForwardOutcome::Answered);
    assert!(matches!(relay::decode_response(&response), Ok(Response::Miss)));
    let (_, response) = bench.forwarded(stamp, set(b"v"));
    assert!(matches!(relay::decode_response(&response), Ok(Response::Stored { .. })));
    let (_, response) = bench.forwarded(stamp, get());
    let Ok(Response::Hit(hit)) = relay::decode_response(&response) else { panic!("no hit") };
    assert_eq!(hit.value.to_vec(), b"v");
    assert_eq!(Version(hit.cas).instant(), NOW, "it has a version of the cluster");
    assert_eq!(bench.coordinator.operations(), 0);
    assert_eq!(bench.coordinator.counters().served, 3);
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
    assert!(bench.coordinator.in_order.is_empty());
}
