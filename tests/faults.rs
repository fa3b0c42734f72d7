//! Bad input and bad clients against the real server.
//!
//! Whatever one connection does, it gets the protocol's own error or a close, the others go on
//! unharmed, and afterwards connections, items and memory are back at their level.

mod live;

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use live::{Client, Noise, Server};
use socket2::SockRef;

/// Two cores on one CPU where there is only one, so that requests cross in any case.
const TWO_CORES: [&str; 4] = ["-m", "64", "--cpus", "0,0"];

/// What a server looked like before it was mistreated, and a connection that must not suffer.
struct Witness {
    server: Server,
    client: Client,
    rounds: u32,
}

impl Witness {
    fn start(flags: &[&str]) -> Self {
        let server = Server::start(flags);
        let mut client = server.connect();
        for i in 0..64 {
            client.store(&format!("witness:{i}"), &value_of(i));
        }
        Self { server, client, rounds: 0 }
    }

    /// The other connections go on: reads and writes on every core are answered right.
    fn goes_on(&mut self) {
        self.server.assert_alive();
        self.rounds += 1;
        for i in 0..64 {
            let found = self.client.fetch(&format!("witness:{i}"));
            assert_eq!(found, Some(value_of(i)), "witness:{i} in round {}", self.rounds);
        }
        let key = format!("round:{}", self.rounds);
        self.client.store(&key, b"x");
        assert_eq!(self.client.ask(&format!("delete {key}")), "DELETED");
    }

    /// Nothing stays behind: only the witness and the one who asks are connected, and only the
    /// witness's items exist.
    fn back_to_level(&mut self) {
        self.goes_on();
        self.server.wait_for("the connections to be gone", |s| s.stat("curr_connections") == 2);
        assert_eq!(self.server.stat("curr_items"), 64);
    }
}

fn value_of(i: usize) -> Vec<u8> {
    format!("value {i} ").into_bytes().repeat(1 + i)
}

#[test]
fn garbage_is_answered_or_the_connection_closed() {
    let mut witness = Witness::start(&TWO_CORES);
    let mut noise = Noise::new(7);
    for round in 0..600u64 {
        let mut client = witness.server.connect();
        let length = 1 + noise.below(4000) as usize;
        let mut bytes = noise.bytes(length);
        // Every protocol gets its share: text, classic binary, compact binary, whatever comes.
        match round % 4 {
            0 => bytes[0] = b'a' + (round % 26) as u8,
            1 => bytes[0] = 0x80,
            2 => bytes[0] = 0x82 | (bytes[0] & 0x7c),
            _ => {}
        }
        client.try_send(&bytes);
        let _ = client.socket().shutdown(Shutdown::Write);
        client.rest();
        if round % 100 == 0 {
            witness.goes_on();
        }
    }
    // Random bytes may well spell a valid binary store, hence the flush of all but the witness's.
    witness.server.wait_for("the connections", |s| s.stat("curr_connections") == 2);
    witness.goes_on();
}

#[test]
fn mangled_commands_are_answered_or_the_connection_closed() {
    let commands: [&[u8]; 12] = [
        b"set mangled 0 0 5\r\nhello\r\n",
        b"get witness:1 witness:2 witness:3\r\n",
        b"gat 100 witness:1\r\n",
        b"cas mangled 0 0 2 77\r\nhi\r\n",
        b"incr mangled 5\r\n",
        b"touch mangled 0\r\n",
        b"mg witness:1 t f v s k Oabc\r\n",
        b"ms mangled 5 T100 F3\r\nhello\r\n",
        b"md mangled q\r\nmn\r\n",
        b"\x80\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x01\0\0\0\0\0\0\0\0mangled",
        b"\x80\x01\x00\x07\x08\x00\x00\x00\x00\x00\x00\x11\x00\x00\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0mangledhi",
        b"stats items\r\nverbosity 1\r\nversion\r\n",
    ];
    let mut witness = Witness::start(&TWO_CORES);
    let mut noise = Noise::new(11);
    for round in 0..1200 {
        let mut bytes = commands[round % commands.len()].to_vec();
        for _ in 0..=noise.below(3) {
            let at = noise.below(bytes.len() as u64) as usize;
            match noise.below(3) {
                0 => bytes[at] ^= 1 << noise.below(8),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, noise.next() as u8),
            }
        }
        let mut client = witness.server.connect();
        client.try_send(&bytes);
        let _ = client.socket().shutdown(Shutdown::Write);
        client.rest();
        if round % 200 == 0 {
            witness.server.assert_alive();
        }
    }
    witness.server.wait_for("the connections", |s| s.stat("curr_connections") == 2);
}

#[test]
fn an_endless_line_closes_the_connection() {
    let mut witness = Witness::start(&TWO_CORES);
    let before = witness.server.rss_bytes();
    for start in ["x", "set ", "gat ", "mg ", "get ", "gets ", "get a "] {
        let mut client = witness.server.connect();
        client.try_send(start.as_bytes());
        let chunk = vec![b'k'; 64 << 10];
        // A close may leave the sender with a full window, hence its little patience; what counts
        // is the end of the stream below.
        let patience = Some(Duration::from_millis(500));
        client.socket().set_write_timeout(patience).expect("a timeout");
        // 32 MiB without an end of line: more than any limit.
        let taken = (0..512).take_while(|_| client.try_send(&chunk)).count();
        assert!(taken < 512, "{start:?}: an endless line is read for ever");
        client.rest();
        witness.goes_on();
    }
    let grown = witness.server.rss_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes stay behind");
    witness.back_to_level();
}

#[test]
fn impossible_lengths_are_refused() {
    let mut witness = Witness::start(&TWO_CORES);
    for length in ["-1", "2147483646", "3000000000", "99999999999999999999", "1e3", "0x10", ""] {
        let mut client = witness.server.connect();
        let answer = client.ask(&format!("set huge 0 0 {length}"));
        assert!(answer.starts_with("CLIENT_ERROR"), "{length}: {answer}");
        assert_eq!(client.ask("mn"), "MN", "{length}: the connection goes on");
    }
    for number in ["-1", "99999999999999999999", "x"] {
        let mut client = witness.server.connect();
        assert!(client.ask(&format!("incr huge {number}")).starts_with("CLIENT_ERROR"), "{number}");
        assert!(client.ask(&format!("touch huge {number}x")).starts_with("CLIENT_ERROR"));
    }
    // A length that may be said but not stored: the data is dropped, the connection goes on.
    let mut client = witness.server.connect();
    let answer = client.try_store("huge", &vec![b'v'; 3 << 20]);
    assert_eq!(answer, "SERVER_ERROR object too large for cache");
    assert_eq!(client.ask("mn"), "MN");
    drop(client);
    // The largest length that may be said, given up after a part of it.
    let mut client = witness.server.connect();
    client.send(b"set huge 0 0 2147483645\r\n");
    client.try_send(&vec![b'v'; 1 << 20]);
    drop(client);
    witness.back_to_level();
}

#[test]
fn impossible_binary_lengths_are_refused() {
    let mut witness = Witness::start(&TWO_CORES);
    let classic = |opcode: u8, key: u16, extras: u8, body: u32| {
        let mut frame = vec![0x80, opcode];
        frame.extend(key.to_be_bytes());
        frame.extend([extras, 0, 0, 0]);
        frame.extend(body.to_be_bytes());
        frame.extend([0; 12]);
        frame.extend([b'k'; 64]);
        let mut client = witness.server.connect();
        client.try_send(&frame);
        let _ = client.socket().shutdown(Shutdown::Write);
        // Either an error frame or a close; the end must come either way.
        let answer = client.rest();
        if let Some(&magic) = answer.first() {
            assert_eq!(magic, 0x81, "opcode {opcode}: {answer:?}");
            assert_ne!(answer[6..8], [0, 0], "opcode {opcode} with body {body} is no success");
        }
    };
    for opcode in [0x00, 0x01, 0x02, 0x04, 0x05, 0x09, 0x0c, 0x0e, 0x1c, 0x21, 0xff] {
        classic(opcode, 65535, 8, 65543);
        classic(opcode, 3, 8, u32::MAX);
        classic(opcode, 10, 8, 2);
        classic(opcode, 3, 255, 4);
        classic(opcode, 251, 8, 300);
    }
    for opcode in 0x82..=0xffu8 {
        // opcode, flags, key length, value length, opaque: all bits set.
        let mut client = witness.server.connect();
        let mut frame = vec![opcode, 0xff];
        frame.extend([0xff; 10]);
        frame.extend([b'k'; 64]);
        client.try_send(&frame);
        let _ = client.socket().shutdown(Shutdown::Write);
        client.rest();
    }
    witness.back_to_level();
}

#[test]
fn every_truncation_of_a_session_leaves_nothing_behind() {
    let session: &[u8] =
        b"set cut 0 0 10\r\n0123456789\r\nget cut witness:1\r\nms cut 3 T9\r\nabc\r\n\
        mg cut v\r\ndelete cut\r\n";
    let mut witness = Witness::start(&TWO_CORES);
    for end in 1..session.len() {
        let mut client = witness.server.connect();
        client.send(&session[..end]);
        if end % 2 == 0 {
            let _ = client.socket().shutdown(Shutdown::Write);
            client.rest();
        }
    }
    let mut client = witness.server.connect();
    witness.server.wait_for("the others to be gone", |s| s.stat("curr_connections") == 3);
    client.send(session);
    assert_eq!(client.line(), "STORED");
    drop(client);
    let mut cleaner = witness.server.connect();
    cleaner.ask("delete cut");
    drop(cleaner);
    witness.back_to_level();
}

#[test]
fn a_client_that_never_reads_is_not_read_from() {
    let mut witness = Witness::start(&TWO_CORES);
    witness.client.store("large", &vec![b'v'; 100_000]);
    let before = witness.server.rss_bytes();
    let mut deaf: Vec<Client> = (0..8).map(|_| witness.server.connect()).collect();
    let requests = b"get large\r\n".repeat(1000);
    for client in &mut deaf {
        client.socket().set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        // 3,000,000 requests would be answered with 300 GB.
        let taken = (0..3000).take_while(|_| client.try_send(&requests)).count();
        assert!(taken < 3000, "requests are read though no answer is");
        witness.goes_on();
    }
    let grown = witness.server.rss_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes are kept for clients that do not read");
    drop(deaf);
    assert_eq!(witness.client.ask("delete large"), "DELETED");
    witness.back_to_level();
}

#[test]
fn a_client_that_stopped_reading_gets_everything_once_it_reads() {
    let server = Server::start(&TWO_CORES);
    let mut client = server.connect();
    let value: Vec<u8> = Noise::new(3).bytes(100_000);
    client.store("large", &value);
    let mut reader = server.connect();
    let count = 300;
    let mut writer = reader.socket().try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || {
        use std::io::Write;
        for i in 0..count {
            let missing = format!("get large missing:{i}\r\nincr counter:{i} 1\r\n");
            writer.write_all(missing.as_bytes()).expect("the server takes requests again");
        }
    });
    // Meanwhile the answers fill every buffer on the way.
    server.wait_for("the server to stall", |s| s.stat("cmd_get") > 10);
    for _ in 0..count {
        assert_eq!(reader.line(), "VALUE large 0 100000");
        assert!(reader.take(value.len()) == value, "the value has changed on the way");
        assert_eq!(reader.line(), "");
        assert_eq!(reader.line(), "END");
        assert_eq!(reader.line(), "NOT_FOUND");
    }
    sender.join().expect("the sender ends");
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut witness = Witness::start(&TWO_CORES);
    let session = b"set slow 0 0 5\r\nhe\r\nl\r\nget slow\r\nmg slow v\r\ndelete slow\r\n";
    let mut slow = witness.server.connect();
    for byte in session {
        slow.send(&[*byte]);
        witness.goes_on();
    }
    let expected = "STORED|VALUE slow 0 5|he|l|END|VA 5|he|l|DELETED";
    for line in expected.split('|') {
        assert_eq!(slow.line(), line);
    }
    drop(slow);
    witness.back_to_level();
}

#[test]
fn ten_thousand_connects_and_disconnects_leave_nothing_behind() {
    let mut witness = Witness::start(&TWO_CORES);
    let mut after_a_thousand = 0;
    for round in 0..10_000 {
        let stream = TcpStream::connect(witness.server.address()).expect("the server accepts");
        match round % 5 {
            // At once, silently.
            0 => {}
            // With a reset.
            1 => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER"),
            // In the middle of a line.
            2 => {
                Client::new(stream).try_send(b"get witn");
            }
            // With an answer on its way, and a reset.
            3 => {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
                Client::new(stream).try_send(b"get witness:1 witness:2\r\nget witness:3\r\n");
            }
            // In an orderly way.
            _ => {
                let mut client = Client::new(stream);
                client.send(b"mn\r\nquit\r\n");
                assert_eq!(client.rest(), b"MN\r\n");
            }
        }
        if round % 1000 == 999 {
            witness.goes_on();
        }
        if round == 999 {
            after_a_thousand = witness.server.rss_bytes();
        }
    }
    witness.back_to_level();
    assert!(witness.server.stat("total_connections") >= 10_000);
    // Memory touched ahead of need may have come in between; it goes when it is not needed.
    witness.server.wait_for("9,000 connections to have left less than 4 MiB behind", |server| {
        server.rss_bytes().saturating_sub(after_a_thousand) < 4 << 20
    });
}

#[test]
fn clients_killed_in_mid_value_leave_nothing_behind() {
    // Nothing is evicted: memory kept for a lost value would be missed below.
    let server = Server::start(&["-m", "16", "--cpus", "0,0", "-M"]);
    let port = server.address().port();
    for _ in 0..12 {
        let mut victims: Vec<_> = (0..4)
            .map(|i| {
                let script = format!(
                    "exec 3<>/dev/tcp/127.0.0.1/{port}; \
                     printf 'set victim:{i} 0 0 900000\\r\\n' >&3; \
                     head -c 500000 /dev/zero >&3; exec sleep 60"
                );
                Command::new("bash").args(["-c", &script]).spawn().expect("there is a bash")
            })
            .collect();
        server.wait_for("the victims to be in mid-value", |s| s.stat("curr_connections") == 5);
        for victim in &mut victims {
            victim.kill().expect("kill -9");
            victim.wait().expect("it ends");
        }
    }
    server.wait_for("the connections to be gone", |s| s.stat("curr_connections") == 1);
    assert_eq!(server.stat("curr_items"), 0);
    let mut client = server.connect();
    for i in 0..8 {
        client.store(&format!("value:{i}"), &vec![b'v'; 700_000]);
    }
    for i in 0..8 {
        assert_eq!(client.fetch(&format!("value:{i}")).map(|v| v.len()), Some(700_000));
    }
}

#[test]
fn resets_in_mid_value_leave_nothing_behind() {
    let mut witness = Witness::start(&TWO_CORES);
    for round in 0..300 {
        let mut client = witness.server.connect();
        SockRef::from(client.socket()).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        client.try_send(format!("set reset:{round} 0 0 1000000\r\n").as_bytes());
        client.try_send(&vec![b'v'; 3000 * (round + 1)]);
    }
    witness.back_to_level();
    // All memory is there again: as much as a fresh server keeps.
    let mut client = witness.server.connect();
    for i in 0..40 {
        client.store(&format!("value:{i}"), &vec![b'v'; 1_000_000]);
    }
    let kept = (0..40).filter(|i| client.fetch(&format!("value:{i}")).is_some()).count();
    assert_eq!(kept, 40, "of 40 MB in 64 MiB");
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = Server::start(&["-m", "64", "--cpus", "0,0", "-c", "10"]);
    // The look at the statistics may still be counted, so the first tries may be refused.
    let served = || {
        let mut client = server.connect();
        (client.try_send(b"mn\r\n") && client.rest_of_line() == "MN").then_some(client)
    };
    let mut clients = Vec::new();
    server_fills(&mut clients, served);
    let mut refused = server.connect();
    assert_eq!(refused.line(), "ERROR Too many open connections");
    assert!(refused.rest().is_empty());
    for client in &mut clients {
        assert_eq!(client.ask("mn"), "MN", "the others go on");
    }
    clients.truncate(5);
    // The room is there again as soon as the server has noticed.
    server_fills(&mut clients, served);
}

/// Connects until ten are served at once.
fn server_fills(clients: &mut Vec<Client>, served: impl Fn() -> Option<Client>) {
    let begun = std::time::Instant::now();
    while clients.len() < 10 {
        clients.extend(served());
        assert!(begun.elapsed() < Duration::from_secs(30), "only {} are served", clients.len());
    }
}

#[test]
fn a_half_closed_connection_gets_its_answers() {
    let server = Server::start(&TWO_CORES);
    let mut client = server.connect();
    let mut session = Vec::new();
    for i in 0..100 {
        session.extend(format!("set half:{i} 0 0 3\r\nabc\r\nget half:{i}\r\n").bytes());
    }
    client.send(&session);
    client.socket().shutdown(Shutdown::Write).expect("half a close");
    let answers = String::from_utf8(client.rest()).expect("text");
    assert_eq!(answers.matches("STORED\r\n").count(), 100);
    assert_eq!(answers.matches("abc\r\nEND\r\n").count(), 100);
}

#[test]
fn silent_connections_are_closed_after_the_idle_timeout() {
    let server = Server::start(&[&TWO_CORES[..], &["--idle-timeout", "3"]].concat());
    let mut client = server.connect();
    assert_eq!(client.ask("mn"), "MN");
    // The end of the stream comes without anything being said.
    assert!(client.rest().is_empty());
    assert!(server.stat("idle_kicks") >= 1);
}

#[test]
fn a_slow_client_is_not_a_silent_one() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const VALUE_BYTES: usize = 24 << 20;
    /// Longer than the timeout and the time until the next look.
    const STEPS: u32 = 15;
    const PAUSE: Duration = Duration::from_millis(300);
    let server = Server::start(&["-m", "256", "--max-item-size", "32MiB", "--idle-timeout", "1"]);
    let value = Noise::new(7).bytes(VALUE_BYTES);
    let begun = std::time::Instant::now();

    // In the middle of sending a value.
    let mut client = server.connect();
    client.send(format!("set large 0 0 {VALUE_BYTES}\r\n").as_bytes());
    for part in value.chunks(VALUE_BYTES.div_ceil(STEPS as usize)) {
        client.send(part);
        std::thread::sleep(PAUSE);
    }
    client.send(b"\r\n");
    assert_eq!(client.line(), "STORED");

    // In the middle of reading it.
    client.send(b"get large\r\n");
    assert_eq!(client.line(), format!("VALUE large 0 {VALUE_BYTES}"));
    for part in value.chunks(VALUE_BYTES.div_ceil(STEPS as usize)) {
        std::thread::sleep(PAUSE);
        assert!(client.take(part.len()) == part);
    }
    assert_eq!((client.line(), client.line()), (String::new(), "END".to_owned()));
    assert!(begun.elapsed() > 4 * TIMEOUT);

    // One that stops in the middle of either is not waited for.
    let (mut deaf, mut mute) = (server.connect(), server.connect());
    deaf.send(b"get large\r\n");
    mute.send(format!("set other 0 0 {VALUE_BYTES}\r\nhalf").as_bytes());
    assert!(mute.rest().is_empty());
    drop(client);
    server.wait_for("the deaf client to be closed", |server| server.stat("curr_connections") == 1);
}

#[test]
fn no_thread_gives_way_so_far_that_it_keeps_the_others_from_memory() {
    // All of them share the kernel's lock of the process's memory, and a thread of the class below
    // all others holds it for as long as no CPU is idle.
    let server = Server::start(&TWO_CORES);
    let mut client = server.connect();
    client.store("large", &vec![b'v'; 1_000_000]);
    let tasks = format!("/proc/{}/task", server.pid());
    let mut threads = 0;
    for task in std::fs::read_dir(tasks).expect("the process is alive").flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).expect("the thread is alive");
        let (name, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // As proc(5) counts them, nice is the 19th and policy the 41st, here from the third on.
        let (nice, policy) = (fields[16], fields[38]);
        assert_eq!(nice, "0", "{name}");
        let (normal, batch) = (libc::SCHED_OTHER.to_string(), libc::SCHED_BATCH.to_string());
        assert!(policy == normal || policy == batch, "{name} has policy {policy}");
        threads += 1;
    }
    assert!(threads > 3, "{threads} threads");
}

#[test]
fn a_signal_ends_the_server_in_spite_of_stalled_clients() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&TWO_CORES);
        let mut client = server.connect();
        client.store("large", &vec![b'v'; 500_000]);
        let mut deaf = server.connect();
        deaf.send(&b"get large\r\n".repeat(100));
        let mut stuck = server.connect();
        stuck.send(b"set stuck 0 0 100000\r\nhalf");
        let mut pending = server.connect();
        pending.send(b"get lar");
        server.signal(signal);
        let begun = std::time::Instant::now();
        let status = server.ended();
        assert_eq!(status.code(), Some(0), "after SIG{signal}: {status}");
        assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    }
}

impl Client {
    /// A line, or whatever comes before the end of the stream.
    fn rest_of_line(&mut self) -> String {
        use std::io::Read;
        let mut bytes = Vec::new();
        let mut byte = [0];
        let mut socket = self.socket();
        loop {
            match socket.read(&mut byte) {
                Ok(1) if byte[0] != b'\n' => bytes.push(byte[0]),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("neither an answer nor a close: {error}"),
            }
        }
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}
