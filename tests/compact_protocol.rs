//! The compact binary protocol spoken to a live server of one and of two cores: what the golden
//! frames cannot show, since it takes a shard, a mesh and streamed values.

mod support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ringlane::protocol::compact::client::{EntryWriter, Frame, ResponseFrame};
use ringlane::protocol::compact::opcode::request_flags::{ANY_ORDER, DETAILS, QUIET};
use ringlane::protocol::compact::{Opcode, Status, Topology};
use support::Server;
use support::ports::{free_port, free_ports};

/// How long an answer may take before it counts as missing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `test` against a fresh server of one core and one of two.
fn with_servers(test: impl Fn(&str)) {
    let Some(binary) = option_env!("CARGO_BIN_EXE_ringlane") else {
        return eprintln!("skipped: the server is not part of this build (feature `server`)");
    };
    for cores in ["1", "2"] {
        let port = free_port();
        let arguments = ["--listen", "127.0.0.1", "--cores", cores, "--port", &port.to_string()];
        match Server::start(binary, &arguments, port) {
            Ok(server) => test(&server.address),
            Err(reason) => return eprintln!("skipped: {binary} does not start: {reason}"),
        }
    }
}

/// A client of one connection.
struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    taken: usize,
}

/// A response that outlives the buffer it came in.
#[derive(Debug, PartialEq)]
struct Answer {
    status: Status,
    opaque: u32,
    more: bool,
    index: Option<u32>,
    ttl_millis: Option<u64>,
    version: Option<u64>,
    client_flags: u32,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("above zero");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream, received: Vec::new(), taken: 0 }
    }

    /// Sends bytes while answers to earlier ones may already be arriving.
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    fn send_frames(&mut self, frames: &[Frame<'_>]) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        self.send(&bytes);
    }

    fn answer(&mut self) -> Answer {
        loop {
            let rest = &self.received[self.taken..];
            if let Some((response, length)) = ResponseFrame::decode(rest).expect("known codes") {
                let answer = Answer {
                    status: response.status,
                    opaque: response.opaque,
                    more: response.more,
                    index: response.index,
                    ttl_millis: response.ttl_millis,
                    version: response.version,
                    client_flags: response.client_flags,
                    key: response.key.to_vec(),
                    value: response.value.to_vec(),
                };
                self.taken += length;
                return answer;
            }
            self.received.drain(..self.taken);
            self.taken = 0;
            let mut chunk = [0; 64 << 10];
            let bytes = self.stream.read(&mut chunk).expect("an answer in time");
            assert!(bytes > 0, "closed instead of an answer");
            self.received.extend_from_slice(&chunk[..bytes]);
        }
    }

    fn ask(&mut self, frame: Frame<'_>) -> Answer {
        self.send_frames(&[frame]);
        self.answer()
    }

    /// All answers to one request, the last one without MORE.
    fn answers(&mut self) -> Vec<Answer> {
        let mut answers = vec![self.answer()];
        while answers.last().is_some_and(|answer| answer.more) {
            answers.push(self.answer());
        }
        answers
    }

    /// Nothing further was answered: the next answer is that of a NOOP.
    fn expect_silence(&mut self) {
        let noop = self.ask(Frame::new(Opcode::Noop, 0xfeed));
        assert_eq!((noop.status, noop.opaque), (Status::Ok, 0xfeed), "{noop:?}");
    }
}

fn key(number: u32) -> Vec<u8> {
    format!("key:{number}").into_bytes()
}

fn value(number: u32) -> Vec<u8> {
    format!("value {number}").into_bytes()
}

#[test]
fn quiet_sets_are_silent_and_an_mget_finds_them_in_order() {
    with_servers(|address| {
        let mut client = Client::connect(address);
        for number in 0..300 {
            let (key, value) = (key(number), value(number));
            client.send_frames(&[Frame { flags: QUIET, ..Frame::set(&key, &value, number) }]);
        }
        client.expect_silence();
        for flags in [0, QUIET, ANY_ORDER, QUIET | ANY_ORDER] {
            let mut bytes = Vec::new();
            let head = Frame { flags, ..Frame::new(Opcode::Mget, 7) };
            let mut entries = EntryWriter::new(&head, &mut bytes);
            (0..310).for_each(|number| entries.get(&key(number)));
            entries.finish();
            client.send(&bytes);
            let answers = client.answers();
            // Quiet leaves out the misses, but for the last entry's.
            assert_eq!(answers.len(), if flags & QUIET == 0 { 310 } else { 301 });
            assert_eq!(answers.last().and_then(|answer| answer.index), Some(309));
            let indexes: Vec<u32> =
                answers.iter().map(|answer| answer.index.expect("an entry")).collect();
            assert_eq!(indexes.iter().collect::<BTreeSet<_>>().len(), indexes.len());
            assert!(flags & ANY_ORDER != 0 || indexes.is_sorted());
            for answer in &answers {
                let number = answer.index.expect("an entry");
                let found = number < 300;
                assert_eq!(answer.status, if found { Status::Ok } else { Status::NotFound });
                assert_eq!(answer.value, if found { value(number) } else { Vec::new() });
            }
        }
        client.expect_silence();
    });
}

#[test]
fn any_order_answers_each_request_once_and_order_is_kept_without_it() {
    with_servers(|address| {
        let mut client = Client::connect(address);
        for number in 0..50 {
            let (key, value) = (key(number), value(number));
            assert_eq!(client.ask(Frame::set(&key, &value, 0)).status, Status::Ok);
        }
        let keys: Vec<Vec<u8>> = (0..1000).map(|opaque| key(opaque % 50)).collect();
        for flags in [0, ANY_ORDER] {
            let gets: Vec<Frame<'_>> = (0..1000u32)
                .map(|opaque| Frame { flags, ..Frame::get(&keys[opaque as usize], opaque) })
                .collect();
            client.send_frames(&gets);
            let answers: Vec<Answer> = (0..1000).map(|_| client.answer()).collect();
            let opaques: Vec<u32> = answers.iter().map(|answer| answer.opaque).collect();
            assert!(flags == ANY_ORDER || opaques.is_sorted());
            assert_eq!(opaques.iter().collect::<BTreeSet<_>>().len(), 1000);
            assert!(answers.iter().all(|answer| answer.value == value(answer.opaque % 50)));
        }
    });
}

#[test]
fn long_values_are_streamed_and_too_long_ones_cost_only_their_own_entry() {
    with_servers(|address| {
        let mut client = Client::connect(address);
        let long: Vec<u8> = (0..900_000u32).map(|at| (at / 7) as u8).collect();
        let too_long = vec![b'x'; 1_500_000];
        assert_eq!(client.ask(Frame::set(b"long", &long, 1)).status, Status::Ok);
        assert_eq!(client.ask(Frame::get(b"long", 2)).value, long);
        assert_eq!(client.ask(Frame::set(b"long", &too_long, 3)).status, Status::TooLarge);
        assert_eq!(client.ask(Frame::get(b"long", 4)).status, Status::NotFound);

        let mut bytes = Vec::new();
        let mut entries = EntryWriter::new(&Frame::new(Opcode::Mset, 5), &mut bytes);
        entries.set(&Frame { client_flags: 3, ..Frame::set(b"a", b"short", 0) });
        entries.set(&Frame { ttl_millis: Some(60_000), ..Frame::set(b"b", &long, 0) });
        entries.set(&Frame::set(b"c", &too_long, 0));
        entries.set(&Frame::set(b"d", b"", 0));
        entries.finish();
        // In pieces, so that both long values are met before they have arrived.
        for piece in bytes.chunks(100_000) {
            client.send(piece);
        }
        let statuses: Vec<Status> = client.answers().iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [Status::Ok, Status::Ok, Status::TooLarge, Status::Ok]);
        assert_eq!(client.ask(Frame::get(b"a", 6)).client_flags, 3);
        let found = client.ask(Frame { flags: DETAILS, ..Frame::get(b"b", 7) });
        assert_eq!(found.value, long);
        assert!(found.ttl_millis.is_some_and(|millis| (30_000..=60_000).contains(&millis)));
        assert_eq!(client.ask(Frame::get(b"c", 8)).status, Status::NotFound);
        let empty = client.ask(Frame::get(b"d", 9));
        assert_eq!((empty.status, empty.value.len()), (Status::Ok, 0));
    });
}

#[test]
fn versions_guard_stores_and_deletes() {
    with_servers(|address| {
        let mut client = Client::connect(address);
        let stored = client.ask(Frame { flags: DETAILS, ..Frame::set(b"k", b"1", 1) });
        let version = stored.version;
        assert!(version.is_some_and(|version| version != 0));
        let frame = |opcode, value| Frame { key: b"k", value, version, ..Frame::new(opcode, 2) };
        assert_eq!(client.ask(frame(Opcode::Cas, b"2")).status, Status::Ok);
        assert_eq!(client.ask(frame(Opcode::Cas, b"3")).status, Status::Exists);
        assert_eq!(client.ask(frame(Opcode::Delete, b"")).status, Status::Exists);
        let found = client.ask(Frame { flags: DETAILS, ..Frame::get(b"k", 3) });
        assert_eq!(found.value, b"2");
        let version = found.version;
        let delete = Frame { key: b"k", version, ..Frame::new(Opcode::Delete, 4) };
        assert_eq!(client.ask(delete).status, Status::Ok);
        assert_eq!(client.ask(delete).status, Status::NotFound);
    });
}

#[test]
fn times_to_live_are_in_milliseconds() {
    with_servers(|address| {
        let mut client = Client::connect(address);
        let on = |opcode, ttl_millis| Frame { key: b"k", ttl_millis, ..Frame::new(opcode, 1) };
        client.ask(Frame { ttl_millis: Some(60_000), ..Frame::set(b"k", b"v", 0) });
        let left = client.ask(on(Opcode::Ttl, None)).ttl_millis.expect("it expires");
        assert!((30_000..=60_000).contains(&left), "{left}");
        assert_eq!(client.ask(on(Opcode::Persist, None)).status, Status::Ok);
        assert_eq!(client.ask(on(Opcode::Ttl, None)).ttl_millis, None);
        assert_eq!(client.ask(on(Opcode::Gat, Some(90_000))).value, b"v");
        assert!(client.ask(on(Opcode::Ttl, None)).ttl_millis.is_some_and(|left| left > 60_000));
        assert_eq!(client.ask(on(Opcode::Expire, Some(1))).status, Status::Ok);
        // Asked until it is gone, since the server's clock moves on its own.
        while client.ask(on(Opcode::Exists, None)).status == Status::Ok {}
        assert_eq!(client.ask(on(Opcode::Touch, Some(5))).status, Status::NotFound);
    });
}

#[test]
fn faults_leave_the_connection_in_step_until_they_cannot() {
    with_servers(|address| {
        let mut client = Client::connect(address);
        let mut unknown = Vec::new();
        Frame { value: &[0x88; 300], ..Frame::get(b"abc", 8) }.encode(&mut unknown);
        unknown[0] = 0xf1;
        client.send(&unknown);
        let mut answer = [0; 12];
        client.stream.read_exact(&mut answer).expect("an answer");
        assert_eq!((answer[0], answer[2]), (0xf1, Status::UnknownOpcode as u8));
        let mut sentence = vec![0; answer[4] as usize];
        client.stream.read_exact(&mut sentence).expect("a sentence");
        assert_eq!(client.ask(Frame::new(Opcode::Get, 9)).status, Status::Invalid);
        let long_key = [b'k'; 300];
        assert_eq!(client.ask(Frame::set(&long_key, b"v", 10)).status, Status::Invalid);
        client.expect_silence();
        client.send(b"GET / HTTP/1.1\r\n\r\n");
        let mut rest = Vec::new();
        match client.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    });
}

#[test]
fn hello_tells_the_core_of_each_key_and_the_shard_port_that_reaches_it() {
    let Some(binary) = option_env!("CARGO_BIN_EXE_ringlane") else {
        return eprintln!("skipped: the server is not part of this build (feature `server`)");
    };
    let shard_ports = free_ports(2);
    let port = free_port();
    let (port_text, base_text) = (port.to_string(), shard_ports.to_string());
    let arguments = [
        "--listen",
        "127.0.0.1",
        "--cores",
        "2",
        "--port",
        &port_text,
        "--shard-ports",
        &base_text,
    ];
    let server = match Server::start(binary, &arguments, port) {
        Ok(server) => server,
        Err(reason) => return eprintln!("skipped: {binary} does not start: {reason}"),
    };
    let mut anywhere = Client::connect(&server.address);
    let list = anywhere.ask(Frame::new(Opcode::Hello, 1)).value;
    let topology = Topology::from_bytes(&list).expect("a list of tags");
    assert_eq!((topology.core_count, topology.port), (2, port));
    assert_eq!(topology.shard_ports, Some(shard_ports));
    let mut direct: Vec<Client> = (0..2)
        .map(|core| {
            let mut client = Client::connect(&format!("127.0.0.1:{}", shard_ports + core));
            let list = client.ask(Frame::new(Opcode::Hello, 2)).value;
            assert_eq!(Topology::from_bytes(&list).expect("a list of tags").core, core);
            client
        })
        .collect();
    for number in 0..100 {
        let (key, value) = (key(number), value(number));
        let core = topology.core_of(&key).expect("a known hash");
        assert_eq!(direct[core as usize].ask(Frame::set(&key, &value, number)).status, Status::Ok);
        assert_eq!(anywhere.ask(Frame::get(&key, number)).value, value);
    }
    let stats = |client: &mut Client| {
        client.send_frames(&[Frame { key: b"cores", ..Frame::new(Opcode::Stats, 3) }]);
        client.answers()
    };
    // Every set went to the core that owns the key; only `anywhere` may have caused hops.
    let forwarded: Vec<(String, String)> = stats(&mut anywhere)
        .iter()
        .map(|stat| (text(&stat.key), text(&stat.value)))
        .filter(|(name, _)| name.contains("forwarded"))
        .collect();
    assert!(!forwarded.is_empty(), "no figure of forwarded requests");
    let forwarded: u64 =
        forwarded.iter().map(|(_, value)| value.parse::<u64>().expect("a number")).sum();
    assert!(forwarded <= 100, "{forwarded} requests were forwarded");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
