//! The compact binary protocol through any node, and how many replicas a request wants to hear from.

use std::io::{Read, Write};
use std::net::TcpStream;

use ringlane::protocol::compact::client::{EntryWriter, Frame, ResponseFrame};
use ringlane::protocol::compact::opcode::request_flags::DETAILS;
use ringlane::protocol::compact::{Opcode, Status};
use ringlane::request::Consistency;

use crate::THREE_COPIES;
use crate::nodes::{Cluster, Node, PATIENCE};

const KEYS: usize = 30;

/// What a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: Status,
    version: Option<u64>,
    ttl_millis: Option<u64>,
    client_flags: u32,
    value: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    fn of(node: &Node) -> Self {
        let stream = TcpStream::connect(node.address()).expect("the node takes clients");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("above zero");
        Self { stream, received: Vec::new() }
    }

    fn answer(&mut self) -> Answer {
        loop {
            if let Some((response, length)) =
                ResponseFrame::decode(&self.received).expect("known codes")
            {
                let answer = Answer {
                    status: response.status,
                    version: response.version,
                    ttl_millis: response.ttl_millis,
                    client_flags: response.client_flags,
                    value: response.value.to_vec(),
                };
                self.received.drain(..length);
                return answer;
            }
            let mut chunk = [0; 4096];
            let bytes = self.stream.read(&mut chunk).expect("an answer in time");
            assert!(bytes > 0, "closed instead of an answer");
            self.received.extend_from_slice(&chunk[..bytes]);
        }
    }

    fn ask(&mut self, frame: Frame<'_>) -> Answer {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).expect("the node takes requests");
        self.answer()
    }

    /// Asks and wants `status`.
    fn demand(&mut self, status: Status, frame: Frame<'_>) -> Answer {
        let answer = self.ask(frame);
        let key = String::from_utf8_lossy(frame.key);
        assert_eq!(answer.status, status, "{:?} {key}: {answer:?}", frame.opcode);
        answer
    }

    /// Sends a request of several entries; its answers.
    fn ask_entries(&mut self, frame: &Frame<'_>, entries: &[Frame<'_>]) -> Vec<Answer> {
        let mut bytes = Vec::new();
        let mut writer = EntryWriter::new(frame, &mut bytes);
        for entry in entries {
            match frame.opcode {
                Opcode::Mget => writer.get(entry.key),
                _ => writer.set(entry),
            }
        }
        writer.finish();
        self.stream.write_all(&bytes).expect("the node takes requests");
        entries.iter().map(|_| self.answer()).collect()
    }
}

fn on<'a>(opcode: Opcode, key: &'a str, value: &'a [u8]) -> Frame<'a> {
    Frame { key: key.as_bytes(), value, ..Frame::new(opcode, 7) }
}

/// Every command, each through the next node.
fn commands(clients: &mut [Client], number: usize) {
    let key = &*format!("compact-{number}");
    let count = clients.len();
    let mut turn = number;
    let mut demand = |status, frame| {
        turn += 1;
        clients[turn % count].demand(status, frame)
    };
    use Opcode::*;
    let (five, ten) = (5_u64.to_le_bytes(), 10_u64.to_le_bytes());
    demand(Status::NotFound, on(Get, key, b""));
    demand(Status::NotStored, on(Replace, key, b"x"));
    let flags = Frame { client_flags: 9, ttl_millis: Some(90_000), ..on(Add, key, b"5") };
    demand(Status::Ok, flags);
    demand(Status::NotStored, on(Add, key, b"6"));
    assert_eq!(demand(Status::Ok, on(Incr, key, &ten)).value, 15_u64.to_le_bytes());
    assert_eq!(demand(Status::Ok, on(Decr, key, &five)).value, ten);
    demand(Status::Ok, on(Append, key, b"7"));
    demand(Status::Ok, on(Prepend, key, b"2"));
    let details = Frame { flags: DETAILS, ..on(Get, key, b"") };
    let mut seen: Vec<Answer> = (0..count).map(|_| demand(Status::Ok, details)).collect();
    assert_eq!((&*seen[0].value, seen[0].client_flags), (&b"2107"[..], 9));
    for answer in &mut seen {
        let left = answer.ttl_millis.take().expect("it expires");
        assert!((60_000..=90_000).contains(&left), "{left} ms left");
    }
    assert!(seen.iter().all(|answer| *answer == seen[0]), "{seen:?}");
    let version = seen[0].version;
    assert!(version.is_some());
    demand(Status::Ok, Frame { version, ..on(Cas, key, b"new") });
    demand(Status::Exists, Frame { version, ..on(Cas, key, b"old") });
    demand(Status::Ok, Frame { ttl_millis: Some(50_000), ..on(Touch, key, b"") });
    demand(Status::Ok, Frame { ttl_millis: Some(70_000), ..on(Gat, key, b"") });
    let left = demand(Status::Ok, on(Ttl, key, b"")).ttl_millis.expect("it expires");
    assert!((50_001..=70_000).contains(&left), "{left} ms left");
    demand(Status::Ok, on(Persist, key, b""));
    assert_eq!(demand(Status::Ok, on(Ttl, key, b"")).ttl_millis, None);
    demand(Status::Ok, on(Exists, key, b""));
    demand(Status::Ok, on(Delete, key, b""));
    demand(Status::NotFound, on(Delete, key, b""));
    demand(Status::NotFound, on(Exists, key, b""));
}

fn entries(clients: &mut [Client]) {
    let keys: Vec<String> = (0..KEYS).map(|number| format!("entry-{number}")).collect();
    let sets: Vec<Frame<'_>> =
        keys.iter().map(|key| on(Opcode::Set, key, key.as_bytes())).collect();
    let count = clients.len();
    for answer in clients[0].ask_entries(&Frame::new(Opcode::Mset, 1), &sets) {
        assert_eq!(answer.status, Status::Ok);
    }
    for client in &mut clients[1..count] {
        let answers = client.ask_entries(&Frame::new(Opcode::Mget, 2), &sets);
        let found: Vec<Vec<u8>> = answers.into_iter().map(|answer| answer.value).collect();
        let mut expected: Vec<Vec<u8>> = keys.iter().map(|key| key.clone().into_bytes()).collect();
        // Entries are answered as they become known.
        let mut sorted = found;
        sorted.sort();
        expected.sort();
        assert_eq!(sorted, expected);
    }
}

#[test]
fn the_compact_protocol_works_through_every_node() {
    for flags in [&[][..], &THREE_COPIES] {
        let Some(cluster) = Cluster::form(3, flags) else { return };
        let mut clients: Vec<Client> = cluster.up().map(Client::of).collect();
        (0..KEYS).for_each(|number| commands(&mut clients, number));
        entries(&mut clients);
    }
}

/// What every consistency leads to, for a write and a read of each of some keys.
fn outcomes(node: &Node, expected: [(Consistency, Status); 4]) {
    let mut client = Client::of(node);
    for (consistency, status) in expected {
        for number in 0..KEYS {
            let key = &*format!("asked-{number}");
            let value = format!("{consistency:?} {number}").into_bytes();
            let set = Frame { consistency, ..on(Opcode::Set, key, &value) };
            let answer = client.ask(set);
            assert_eq!(answer.status, status, "{consistency:?} set {key}: {answer:?}");
            let answer = client.ask(Frame { consistency, ..on(Opcode::Get, key, b"") });
            assert_eq!(answer.status, status, "{consistency:?} get {key}: {answer:?}");
            if status == Status::Ok {
                assert_eq!(answer.value, value, "{consistency:?} {key}");
            }
        }
    }
}

#[test]
fn a_request_says_how_many_replicas_it_wants_to_hear_from() {
    use Consistency::{All, Configured, One, Quorum};
    use Status::{Ok, QuorumNotReached};
    let flags = [&THREE_COPIES[..], &["--operation-timeout", "1s"]].concat();
    let Some(mut cluster) = Cluster::form(3, &flags) else { return };
    outcomes(&cluster.nodes[0], [(All, Ok), (Quorum, Ok), (One, Ok), (Configured, Ok)]);
    // What all have taken, one can tell: there is no later write anywhere.
    let mut clients: Vec<Client> = cluster.up().map(Client::of).collect();
    for number in 0..KEYS {
        let (key, value) = (&*format!("told-{number}"), format!("{number}").into_bytes());
        let consistency = All;
        clients[number % 3].demand(Ok, Frame { consistency, ..on(Opcode::Set, key, &value) });
        for client in &mut clients {
            let get = Frame { consistency: One, ..on(Opcode::Get, key, b"") };
            assert_eq!(client.demand(Ok, get).value, value);
        }
    }
    cluster.nodes[2].kill();
    cluster.wait_state(2, "dead");
    let short = QuorumNotReached;
    outcomes(&cluster.nodes[0], [(All, short), (Quorum, Ok), (One, Ok), (Configured, Ok)]);
    cluster.nodes[1].kill();
    cluster.wait_state(1, "dead");
    outcomes(&cluster.nodes[0], [(All, short), (Quorum, short), (One, Ok), (Configured, short)]);
}
