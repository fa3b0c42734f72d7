//! What clients leave unread or unfinished, against the real server: memory stays within its bounds,
//! the others are answered, and who goes on after all gets everything, in order.

mod live;

use std::net::TcpStream;
use std::time::Duration;

use live::{Client, Server};
use socket2::{Domain, Socket, Type};

const MIB: u64 = 1 << 20;
/// What the process needs besides items and connections, with what the allocator keeps.
const SLACK: u64 = 40 * MIB;
const VALUE_BYTES: usize = 1_000_000;
const KEYS: usize = 8;

/// Two cores on one CPU where there is only one, so that requests cross in any case.
fn start(flags: &[&str]) -> Server {
    Server::start(&[&["--cpus", "0,0"], flags].concat())
}

/// A client whose socket takes little that it does not read.
fn narrow(server: &Server) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
    socket.connect(&server.address().into()).expect("the server accepts");
    Client::new(TcpStream::from(socket))
}

fn value(key: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| b'a' + ((i / 1000 + i + key) % 26) as u8).collect()
}

fn store_all(client: &mut Client) {
    (0..KEYS).for_each(|key| client.store(&format!("big{key}"), &value(key, VALUE_BYTES)));
}

/// A sum of the figure over the cores.
fn sum(server: &Server, figure: &str) -> u64 {
    let stats = server.connect().stats_of("cores");
    let ours = stats.iter().filter(|(name, _)| name.ends_with(&format!(":{figure}")));
    ours.map(|(_, value)| value.parse::<u64>().expect("a number")).sum()
}

#[test]
fn long_answers_that_nobody_reads_are_not_piled_up() {
    const CLIENTS: usize = 12;
    const REQUESTS: usize = 200;
    let mut server = start(&["-m", "64"]);
    let mut bystander = server.connect();
    store_all(&mut bystander);
    let before = server.rss_bytes();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| narrow(&server)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        // Many short answers first, so that many requests are let go at once.
        client.send("get no1 no2 no3 no4\r\n".repeat(200).as_bytes());
        (0..200).for_each(|_| assert_eq!(client.line(), "END"));
        client.send(format!("get big{}\r\n", number % KEYS).repeat(REQUESTS).as_bytes());
    }
    for _ in 0..50 {
        assert_eq!(bystander.ask("get no1 no2 no3 no4"), "END");
        std::thread::sleep(Duration::from_millis(10));
        let now = server.rss_bytes();
        assert!(now < before.max(64 * MIB) + 64 * MIB + SLACK, "{now} bytes, from {before}");
    }
    server.assert_alive();
    // Who reads after all gets all of it.
    for (number, mut client) in clients.into_iter().enumerate().take(2) {
        let expected = value(number % KEYS, VALUE_BYTES);
        for request in 0..REQUESTS {
            assert_eq!(client.line(), format!("VALUE big{} 0 {VALUE_BYTES}", number % KEYS));
            assert!(client.take(VALUE_BYTES) == expected, "request {request}");
            assert_eq!((client.line(), client.line()), (String::new(), "END".into()));
        }
    }
    assert_eq!(sum(&server, "stalled_kicks"), 0, "nobody had to wait for them");
}

#[test]
fn a_deferred_read_sees_what_was_there_when_it_came() {
    let server = start(&["-m", "64"]);
    let mut client = server.connect();
    for round in 0..20 {
        let mut session = Vec::new();
        for key in 0..KEYS {
            let (old, new) = (value(key, 300_000), value(key + 1, 10));
            client.store(&format!("k{key}"), &old);
            session.extend(format!("get k{key}\r\nset k{key} 0 0 10\r\n").bytes());
            session.extend(&new);
            session.extend(format!("\r\nget k{key}\r\ndelete k{key}\r\nget k{key}\r\n").bytes());
        }
        client.send(&session);
        for key in 0..KEYS {
            for (bytes, seed) in [(300_000, key), (10, key + 1)] {
                assert_eq!(client.line(), format!("VALUE k{key} 0 {bytes}"), "round {round}");
                assert!(client.take(bytes) == value(seed, bytes), "round {round}, {key}");
                assert_eq!((client.line(), client.line()), (String::new(), "END".into()));
                if bytes > 10 {
                    assert_eq!(client.line(), "STORED");
                }
            }
            assert_eq!((client.line(), client.line()), ("DELETED".into(), "END".into()));
        }
    }
}

#[test]
fn clients_that_stall_are_closed_when_others_want_what_they_hold() {
    let server = start(&["-m", "64", "--connection-memory", "2MiB"]);
    let mut bystander = server.connect();
    store_all(&mut bystander);
    let deaf: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = narrow(&server);
            let all: String = (0..KEYS).map(|key| format!("get big{key}\r\n")).collect();
            client.send(all.repeat(10).as_bytes());
            client
        })
        .collect();
    for round in 0..3 {
        for key in 0..KEYS {
            let found = bystander.fetch(&format!("big{key}")).expect("it is there");
            assert!(found == value(key, VALUE_BYTES), "round {round}, {key}");
        }
    }
    server.wait_for("somebody to be closed", |server| sum(server, "stalled_kicks") > 0);
    drop(deaf);
    server.wait_for("all to be gone", |server| server.stat("curr_connections") == 2);
    server.wait_for("nothing to be held", |server| sum(server, "connection_bytes") == 0);
}

#[test]
fn uploads_that_stand_still_give_way_to_those_that_move_and_to_answers() {
    const UPLOADS: usize = 120;
    let server = start(&["-m", "256", "--connection-memory", "16MiB"]);
    let mut bystander = server.connect();
    let modest = value(3, 9000);
    (0..8).for_each(|key| bystander.store(&format!("modest{key}"), &modest));
    let half = value(0, VALUE_BYTES / 2);
    let _standing: Vec<Client> = (0..UPLOADS)
        .map(|number| {
            let mut client = server.connect();
            client.send(format!("set up{number} 0 0 {VALUE_BYTES}\r\n").as_bytes());
            client.send(&half);
            client
        })
        .collect();
    server.wait_for("uploads to fill the room", |server| sum(server, "uploads_refused") > 0);
    std::thread::sleep(Duration::from_millis(300));
    store_all(&mut bystander);
    for key in 0..8 {
        assert_eq!(bystander.fetch(&format!("modest{key}")), Some(modest.clone()));
    }
    for key in 0..KEYS {
        let found = bystander.fetch(&format!("big{key}")).expect("it is there");
        assert!(found == value(key, VALUE_BYTES), "{key}");
    }
}

#[test]
fn unfinished_values_are_bounded_and_refused_in_the_protocols_words() {
    const UPLOADS: usize = 120;
    let server = start(&["-m", "64", "--connection-memory", "8MiB"]);
    let mut bystander = server.connect();
    let before = server.rss_bytes();
    let mut clients: Vec<Client> = (0..UPLOADS).map(|_| server.connect()).collect();
    let value = value(0, VALUE_BYTES);
    let (most, rest) = value.split_at(VALUE_BYTES - 10);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("set up{number} 0 0 {VALUE_BYTES}\r\n").as_bytes());
        client.send(most);
    }
    let now = server.rss_bytes();
    assert!(now < before + (64 + 8) * MIB + SLACK, "{now} bytes, from {before}");
    bystander.store("short", b"value");
    let mut answers = [0, 0];
    for (number, client) in clients.iter_mut().enumerate() {
        // One that moved nothing for long while others waited may be closed.
        if !client.try_send(rest) || !client.try_send(b"\r\nget up\r\n") {
            continue;
        }
        let answer = match client.line_if_open() {
            Some(line) => line,
            None => continue,
        };
        match answer.as_str() {
            "STORED" => answers[0] += 1,
            "SERVER_ERROR out of memory storing object" => answers[1] += 1,
            other => panic!("upload {number}: {other}"),
        }
        assert_eq!(client.line(), "END", "the connection goes on");
    }
    assert!(answers.iter().all(|&count| count > 0), "{answers:?} stored and refused");
    assert!(sum(&server, "uploads_refused") > 0);
    drop(clients);
    server.wait_for("nothing to be held", |server| sum(server, "connection_bytes") == 0);
    bystander.store("long", &value);
    assert!(bystander.fetch("long") == Some(value));
}
