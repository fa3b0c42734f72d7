//! The admin pages of the real binary: what they say, and how they take bad requests.

mod live;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use live::{Server, free_port};

/// Longest wait for an answer: a test that meets it has found a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server of two cores with admin pages.
struct Node {
    server: Server,
    admin: u16,
}

impl Node {
    fn start() -> Self {
        let admin = free_port();
        let address = format!("127.0.0.1:{admin}");
        let server = Server::start(&["-m", "64", "--cpus", "0,0", "--admin", &address]);
        Self { server, admin }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.admin)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends bytes and reads until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("it takes requests");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and a close");
        answer
    }

    /// A page's status line and body.
    fn page(&self, path: &str) -> (String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = self.raw(request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let length = format!("Content-Length: {}\r\n", body.len());
        assert!(format!("{head}\r\n").contains(&length), "{head}");
        (head.lines().next().expect("a status line").to_owned(), body.to_owned())
    }

    fn metrics(&self) -> HashMap<String, f64> {
        let (status, body) = self.page("/metrics");
        assert_eq!(status, "HTTP/1.1 200 OK");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                (name.to_owned(), value.parse().expect("a number"))
            })
            .collect()
    }
}

#[test]
fn metrics_are_the_sums_of_all_cores() {
    let node = Node::start();
    let mut client = node.server.connect();
    for i in 0..200 {
        client.store(&format!("key:{i}"), b"value");
        assert!(client.fetch(&format!("key:{i}")).is_some());
    }
    assert!(client.fetch("nothing").is_none());
    let metrics = node.metrics();
    assert_eq!(metrics["ringlane_cmd_set_total"], 200.0);
    assert_eq!(metrics["ringlane_get_hits_total"], 200.0);
    assert_eq!(metrics["ringlane_get_misses_total"], 1.0);
    assert_eq!(metrics["ringlane_items"], 200.0);
    assert_eq!(metrics["ringlane_connections"], 1.0);
    assert_eq!(metrics["ringlane_cores"], 2.0);
    let core =
        |number, name| metrics[&format!("ringlane_core_{name}{{core=\"{number}\",cpu=\"0\"}}")];
    assert_eq!(core(0, "items") + core(1, "items"), 200.0);
    assert!(core(0, "items") > 0.0 && core(1, "items") > 0.0, "both cores own keys");
    let served = |name| core(0, name) + core(1, name);
    assert_eq!(served("local_requests_total") + served("served_requests_total"), 401.0);
    assert!(client.stats()["curr_items"] == "200", "the client goes on");
}

#[test]
fn an_item_has_one_class_number_everywhere() {
    let node = Node::start();
    let mut client = node.server.connect();
    client.store("classy", &[b'v'; 3000]);
    let me = client.ask("me classy");
    let class = me.split(" cls=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a class");
    assert!(class.parse::<u32>().expect("a number") > 64, "beyond memcached's numbers: {me}");
    client.send(format!("lru_crawler metadump {class}\r\n").as_bytes());
    assert_eq!(client.line(), "OK");
    let item = String::from_utf8(client.take(15)).expect("text");
    assert!(item.starts_with("key=classy exp="), "{item}");
    let mut client = node.server.connect();
    assert!(client.stats_of("slabs")[&format!("{class}:used_chunks")] == "1");
    assert!(client.stats_of("items")[&format!("items:{class}:number")] == "1");
    let prefix = format!("ringlane_class_items{{class=\"{class}\",");
    assert!(node.metrics().iter().any(|(name, &items)| name.starts_with(&prefix) && items == 1.0));
}

#[test]
fn stats_is_one_object_of_all_topics() {
    let node = Node::start();
    let mut client = node.server.connect();
    client.store("key", b"value");
    let (status, body) = node.page("/stats");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for part in [
        "\"curr_items\":1,",
        "\"maxbytes\":67108864,",
        ":number\":1,",
        "\"active_slabs\":",
        ":addr\":\"tcp:127.0.0.1:",
        "\"core:1:cpu\":0,",
    ] {
        assert!(body.contains(part), "no {part} in {body}");
    }
}

#[test]
fn health_says_ok() {
    assert_eq!(Node::start().page("/health"), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
}

#[test]
fn requests_that_cannot_be_served_are_told_why() {
    let node = Node::start();
    for (request, status) in [
        ("GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n", "404 Not Found"),
        ("POST /stats HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", "405 Method Not Allowed"),
        ("DELETE /health HTTP/1.0\r\n\r\n", "405 Method Not Allowed"),
        ("get stats\r\n\r\n", "400 Bad Request"),
        ("GET /health SPDY/3\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = node.raw(request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
    }
    // Exactly as long as is read: what is left unread when a socket closes may cost the answer.
    let mut endless = b"GET /health HTTP/1.1\r\nX: ".to_vec();
    endless.resize(8 << 10, b'x');
    let answer = node.raw(&endless);
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(node.page("/health").1, "ok\n");
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let node = Node::start();
    let request = "GET /health HTTP/1.1\r\n\r\n";
    let last = "HEAD /health?really HTTP/1.1\r\nConnection: close\r\n\r\n";
    let answers = node.raw(format!("{request}{request}{last}").as_bytes());
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
    assert_eq!(answers.matches("\r\n\r\nok\n").count(), 2, "HEAD has no body: {answers}");
}

/// Who holds all the connections, silent or slow, does not keep a health check out.
#[test]
fn a_newcomer_takes_the_place_of_the_connection_that_was_idle_for_longest() {
    let node = Node::start();
    let mut idle: Vec<TcpStream> = (0..32).map(|_| node.connect()).collect();
    // The last one's answer tells that all have been accepted.
    for place in std::iter::once(31).chain(0..8) {
        let stream = &mut idle[place];
        stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").expect("it takes requests");
        assert!(stream.read(&mut [0; 1024]).expect("an answer") > 0);
    }
    for stream in &mut idle[8..] {
        stream.write_all(b"GET /hea").expect("it takes a part of a request");
    }
    for number in 0..100 {
        let page = node.page("/health");
        assert_eq!(page, ("HTTP/1.1 200 OK".into(), "ok\n".into()), "number {number}");
    }
    // One had to go, of those that never got on.
    let mut last = idle.pop().expect("32 of them");
    last.write_all(b"lth HTTP/1.1\r\nConnection: close\r\n\r\n").expect("the slow one goes on");
    let mut answer = String::new();
    last.read_to_string(&mut answer).expect("an answer and a close");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(idle[8].read(&mut [0; 16]).ok(), Some(0), "the slowest is closed");
}
