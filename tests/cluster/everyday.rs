//! Any node answers for all: every command through every node, on one copy and on three.

use std::net::TcpStream;

use crate::THREE_COPIES;
use crate::live::{Client, Noise};
use crate::nodes::Cluster;

/// More keys than nodes by far, so that each node has some.
const KEYS: usize = 60;

/// A client of each node.
fn clients(cluster: &Cluster) -> Vec<Client> {
    cluster.up().map(|node| node.client()).collect()
}

/// Lines up to and with END.
fn lines_to_end(client: &mut Client) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "END") {
        lines.push(client.line());
    }
    lines
}

fn every_command_works_through_every_node(flags: &[&str]) {
    let Some(cluster) = Cluster::form(3, flags) else { return };
    let mut clients = clients(&cluster);
    for number in 0..KEYS {
        storing_and_reading(&mut clients, &format!("plain-{number}"), number);
        changing(&mut clients, &format!("changed-{number}"), number);
        meta(&mut clients, &format!("meta-{number}"), number);
    }
    multigets(&mut clients);
    large_values(&mut clients);
    classic_binary(&mut clients);
    counting_by_prefix(&mut clients[0]);
    flushing(&mut clients);
}

/// A node counts what its clients ask, whoever keeps the keys.
fn counting_by_prefix(client: &mut Client) {
    assert_eq!(client.ask("stats detail on"), "OK");
    for number in 0..20 {
        client.send(format!("set counted:{number} 0 0 1\r\nx\r\n").as_bytes());
        assert_eq!(client.line(), "STORED");
        assert!(client.fetch(&format!("counted:{number}")).is_some());
        assert!(client.fetch(&format!("counted:{number}-not")).is_none());
    }
    client.send(b"stats detail dump\r\n");
    let lines = lines_to_end(client);
    assert!(lines.contains(&"PREFIX counted get 40 hit 20 set 20 del 0".to_owned()), "{lines:?}");
    assert_eq!(client.ask("stats detail off"), "OK");
}

/// What one node stored with flags and a TTL, every node reads with the same CAS token.
fn storing_and_reading(clients: &mut [Client], key: &str, number: usize) {
    let (one, value) = (number % clients.len(), format!("value {number}"));
    clients[one].send(format!("set {key} {number} 100 {}\r\n{value}\r\n", value.len()).as_bytes());
    assert_eq!(clients[one].line(), "STORED");
    let mut seen = Vec::new();
    for client in &mut *clients {
        client.send(format!("gets {key}\r\n").as_bytes());
        seen.push(lines_to_end(client));
        let ttl = client.ask(&format!("mg {key} t f"));
        assert!(
            ["HD t100", "HD t99", "HD t98"].iter().any(|start| ttl.starts_with(start)),
            "{ttl}"
        );
        assert!(ttl.ends_with(&format!(" f{number}")), "{ttl}");
    }
    let header = format!("VALUE {key} {number} {} ", value.len());
    assert!(seen[0][0].starts_with(&header), "{seen:?}");
    assert_eq!(seen[0][1], value);
    assert!(seen.iter().all(|lines| *lines == seen[0]), "{seen:?}");

    // The token is good through any other node, once.
    let token = seen[0][0].rsplit(' ').next().expect("a token");
    let other = (one + 1) % clients.len();
    for expected in ["STORED", "EXISTS"] {
        clients[other].send(format!("cas {key} 5 0 2 {token}\r\nok\r\n").as_bytes());
        assert_eq!(clients[other].line(), expected, "{key}");
    }
    for client in clients {
        assert_eq!(client.fetch(key).as_deref(), Some(&b"ok"[..]));
    }
}

/// Every changing command, each through the next node.
fn changing(clients: &mut [Client], key: &str, number: usize) {
    let count = clients.len();
    let mut turn = number;
    let mut ask = |line: &str| {
        turn += 1;
        clients[turn % count].ask(line)
    };
    assert_eq!(ask(&format!("replace {key} 0 0 1\r\nx")), "NOT_STORED");
    assert_eq!(ask(&format!("append {key} 0 0 1\r\nx")), "NOT_STORED");
    assert_eq!(ask(&format!("incr {key} 1")), "NOT_FOUND");
    assert_eq!(ask(&format!("touch {key} 0")), "NOT_FOUND");
    assert_eq!(ask(&format!("delete {key}")), "NOT_FOUND");
    assert_eq!(ask(&format!("add {key} 7 0 1\r\n5")), "STORED");
    assert_eq!(ask(&format!("add {key} 7 0 1\r\n6")), "NOT_STORED");
    assert_eq!(ask(&format!("incr {key} 10")), "15");
    assert_eq!(ask(&format!("decr {key} 5")), "10");
    assert_eq!(ask(&format!("append {key} 0 0 1\r\n7")), "STORED");
    assert_eq!(ask(&format!("prepend {key} 0 0 1\r\n2")), "STORED");
    assert_eq!(ask(&format!("incr {key} 1")), "2108");
    assert_eq!(ask(&format!("replace {key} 8 0 4\r\nabcd")), "STORED");
    assert_eq!(ask(&format!("touch {key} 500")), "TOUCHED");
    let client = &mut clients[number % count];
    client.send(format!("gat 600 {key}\r\n").as_bytes());
    assert_eq!(lines_to_end(client), [&*format!("VALUE {key} 8 4"), "abcd", "END"]);
    for client in &mut *clients {
        let ttl = client.ask(&format!("mg {key} t"));
        assert!(ttl.starts_with("HD t600") || ttl.starts_with("HD t59"), "{ttl}");
        assert_eq!(client.fetch(key).as_deref(), Some(&b"abcd"[..]));
    }
    assert_eq!(clients[(number + 1) % count].ask(&format!("delete {key}")), "DELETED");
    for client in clients {
        assert_eq!(client.fetch(key), None, "{key}");
    }
}

fn meta(clients: &mut [Client], key: &str, number: usize) {
    let count = clients.len();
    let token = clients[number % count].ask(&format!("ms {key} 5 c T90 F3\r\nhello"));
    for client in &mut *clients {
        let answer = client.ask(&format!("mg {key} c s v"));
        assert_eq!(format!("HD {}", answer.split(' ').nth(2).expect("a token")), token);
        assert_eq!((answer.ends_with(" s5"), client.line().as_str()), (true, "hello"), "{answer}");
    }
    let mut next = (number..).map(|turn| turn % count).skip(1);
    let mut ask = |line: String| clients[next.next().expect("endless")].ask(&line);
    assert_eq!(ask(format!("ms {key} 1 MA\r\n!")), "HD");
    assert_eq!(ask(format!("mg {key} s")), "HD s6");
    assert_eq!(ask(format!("md {key} C1")), "EX");
    assert_eq!(ask(format!("md {key} q\r\nmn")), "MN");
    assert_eq!(ask(format!("mg {key} v")), "EN");
    let client = &mut clients[number % count];
    assert_eq!(client.ask(&format!("ma {key} N0 J41 v")), "VA 2");
    assert_eq!(client.line(), "41");
    for client in clients {
        assert_eq!(client.fetch(key).as_deref(), Some(&b"41"[..]));
    }
}

/// One request for keys of all nodes, with misses between them.
fn multigets(clients: &mut [Client]) {
    for client in clients {
        let mut line = "get".to_owned();
        (0..KEYS).for_each(|number| line += &format!(" plain-{number} absent-{number}"));
        client.send(format!("{line}\r\n").as_bytes());
        let lines = lines_to_end(client);
        let expected =
            (0..KEYS).flat_map(|number| [format!("VALUE plain-{number} 5 2"), "ok".into()]);
        assert_eq!(lines, expected.chain(["END".to_owned()]).collect::<Vec<_>>());
    }
}

fn large_values(clients: &mut [Client]) {
    // As long as an item may be, but for key and header.
    let value = Noise::new(7).bytes((1 << 20) - 200);
    for number in 0..6 {
        let key = format!("large-{number}");
        clients[number % 3].store(&key, &value);
        for client in &mut *clients {
            assert!(client.fetch(&key).as_ref() == Some(&value), "{key} differs");
        }
    }
}

/// A request of memcached's classic binary protocol.
fn classic(opcode: u8, extras: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let body = (extras.len() + key.len() + value.len()) as u32;
    let mut bytes = vec![0x80, opcode, 0, key.len() as u8, extras.len() as u8, 0, 0, 0];
    bytes.extend(body.to_be_bytes());
    bytes.extend([0; 12]);
    [extras, key.as_bytes(), value].iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Status, CAS token and body of an answer.
fn classic_answer(client: &mut Client) -> (u16, u64, Vec<u8>) {
    let head = client.take(24);
    let number = |at: usize, bytes: usize| {
        head[at..at + bytes].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let body = client.take(number(8, 4) as usize);
    (number(6, 2) as u16, number(16, 8), body)
}

fn classic_binary(clients: &mut [Client]) {
    for number in 0..KEYS {
        let (key, value) = (format!("classic-{number}"), format!("v{number}"));
        // The first byte of a connection decides which protocol it speaks.
        let node = clients[number % 3].socket().peer_addr().expect("connected");
        let mut writer = Client::new(TcpStream::connect(node).expect("the node takes clients"));
        writer.send(&classic(1, &[0, 0, 0, 9, 0, 0, 0, 0], &key, value.as_bytes()));
        let (status, token, _) = classic_answer(&mut writer);
        assert_eq!(status, 0);
        writer.send(&classic(0, &[], &key, &[]));
        let (status, read_token, body) = classic_answer(&mut writer);
        assert_eq!((status, read_token, &body[..4]), (0, token, &[0, 0, 0, 9][..]));
        assert_eq!(&body[4..], value.as_bytes());
        for client in &mut *clients {
            client.send(format!("gets {key}\r\n").as_bytes());
            let header = format!("VALUE {key} 9 {} {token}", value.len());
            assert_eq!(lines_to_end(client), [&*header, &*value, "END"]);
        }
    }
}

fn flushing(clients: &mut [Client]) {
    let before: Vec<String> = (0..KEYS).map(|number| format!("plain-{number}")).collect();
    assert_eq!(clients[1].ask("flush_all"), "OK");
    // The node that was told has flushed; the others hear of it.
    for client in &mut *clients {
        crate::nodes::wait_for("a flush", || before.iter().all(|key| client.fetch(key).is_none()));
    }
    clients[2].store("after", b"the flush");
    for client in clients {
        assert_eq!(client.fetch("after").as_deref(), Some(&b"the flush"[..]));
    }
}

#[test]
fn after_flush_all_nothing_old_is_read_on_the_connection_that_was_told() {
    let Some(cluster) = Cluster::form(3, &["--hot-key-threshold", "5"]) else { return };
    let keys: Vec<String> = (0..30).map(|number| format!("key{number}")).collect();
    let mut client = cluster.nodes[0].client();
    for _ in 0..20 {
        for key in &keys {
            assert_eq!(client.try_store(key, b"old"), "STORED");
        }
        // Often enough for copies of them to be kept here.
        for key in keys.iter().cycle().take(300) {
            assert_eq!(client.fetch(key).as_deref(), Some(&b"old"[..]));
        }
        // All in one packet, so that nothing is read before the command is performed.
        let gets: String = keys.iter().map(|key| format!("get {key}\r\n")).collect();
        client.send(format!("flush_all\r\n{gets}").as_bytes());
        assert_eq!(client.line(), "OK");
        for key in &keys {
            assert_eq!(client.line(), "END", "{key} is still read");
        }
    }
}

#[test]
fn every_command_works_through_every_node_with_one_copy() {
    every_command_works_through_every_node(&[]);
}

#[test]
fn every_command_works_through_every_node_with_three_copies() {
    every_command_works_through_every_node(&THREE_COPIES);
}

#[test]
fn every_command_works_between_nodes_of_two_cores() {
    every_command_works_through_every_node(&[&THREE_COPIES[..], &["--cpus", "0,0"]].concat());
}
