//! Sends the packets recorded from memcached 1.6.18 in `memcached_binary_packets.txt` to a server and
//! compares every byte of its answers. The same file is played to this server and, where it is
//! installed, to memcached 1.6.18 again, so that the record itself is known to be right.
//!
//! `RINGLANE_TRANSCRIPT_ADDR=host:port` plays it to a server that is running already, which has to
//! be a fresh one.

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use support::Server;
use support::ports::free_port;

const RECORD: &str = include_str!("memcached_binary_packets.txt");

/// How long an answer may take before it counts as missing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const HEADER_BYTES: usize = 24;

/// What is sent over one connection and what comes back.
struct Section {
    title: String,
    sent: Vec<Vec<u8>>,
    answered: Vec<Vec<u8>>,
    closes: bool,
}

/// The tokens this server gave for those of the record.
#[derive(Default)]
struct Tokens(HashMap<u64, u64>);

#[test]
fn ringlane_answers_memcached_binary_packets_as_memcached_did() {
    if let Ok(address) = std::env::var("RINGLANE_TRANSCRIPT_ADDR") {
        return play(&address);
    }
    let Some(binary) = option_env!("CARGO_BIN_EXE_ringlane") else {
        return eprintln!("skipped: the server is not part of this build (feature `server`)");
    };
    for cores in ["1", "2"] {
        let port = free_port();
        let arguments = ["--listen", "127.0.0.1", "--cores", cores, "--port", &port.to_string()];
        match Server::start(binary, &arguments, port) {
            Ok(server) => play(&server.address),
            Err(reason) => return eprintln!("skipped: {binary} does not start: {reason}"),
        }
    }
}

#[test]
fn memcached_answers_memcached_binary_packets_as_recorded() {
    let version = Command::new("memcached").arg("-V").output();
    match &version {
        Ok(output) if output.stdout.starts_with(b"memcached 1.6.18") => {}
        Ok(_) => return eprintln!("skipped: the record is of memcached 1.6.18"),
        Err(error) => return eprintln!("skipped: no memcached: {error}"),
    }
    let port = free_port();
    let arguments = ["-l", "127.0.0.1", "-U", "0", "-u", "root", "-p", &port.to_string()];
    let server = Server::start("memcached", &arguments, port).expect("memcached starts");
    play(&server.address);
}

fn play(address: &str) {
    let mut tokens = Tokens::default();
    let mut failures = Vec::new();
    for section in sections() {
        if let Err(problem) = section.play(address, &mut tokens) {
            failures.push(format!("{}: {problem}", section.title));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

impl Section {
    fn play(&self, address: &str, tokens: &mut Tokens) -> Result<(), String> {
        let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout above zero");
        let mut sent = self.sent.concat();
        let mut at = 0;
        for packet in &self.sent {
            let cas = tokens.given(cas_of(packet));
            sent[at + 16..at + HEADER_BYTES].copy_from_slice(&cas.to_be_bytes());
            at += packet.len();
        }
        // Some answers come and fill the pipe while the rest is still being sent.
        let mut writer = stream.try_clone().map_err(|error| error.to_string())?;
        std::thread::scope(|scope| {
            // A server that closes early does not read the rest, which is not the point here.
            scope.spawn(move || writer.write_all(&sent));
            for expected in &self.answered {
                let mut answer = vec![0; HEADER_BYTES];
                stream
                    .read_exact(&mut answer)
                    .map_err(|error| format!("{error} instead of {}", shown(expected)))?;
                let body: [u8; 4] = answer[8..12].try_into().expect("four bytes");
                answer.resize(HEADER_BYTES + u32::from_be_bytes(body) as usize, 0);
                stream
                    .read_exact(&mut answer[HEADER_BYTES..])
                    .map_err(|error| format!("{error} within {}", shown(&answer)))?;
                tokens.learn(cas_of(expected), cas_of(&answer))?;
                let mut as_recorded = answer.clone();
                as_recorded[16..HEADER_BYTES].copy_from_slice(&expected[16..HEADER_BYTES]);
                if as_recorded != *expected {
                    return Err(format!(
                        "\n  expected {}\n  answered {}",
                        shown(expected),
                        shown(&answer)
                    ));
                }
            }
            let mut rest = [0; 64];
            if !self.closes {
                stream.set_read_timeout(Some(Duration::from_millis(20))).expect("above zero");
            }
            match stream.read(&mut rest) {
                Ok(0) if self.closes => Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset && self.closes => Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.closes => Ok(()),
                Ok(0) => Err("closed".to_string()),
                Ok(bytes) => Err(format!("answered more: {}", shown(&rest[..bytes]))),
                Err(error) => Err(format!("{error} instead of the end")),
            }
        })
    }
}

impl Tokens {
    /// The token this server gave where the record has `recorded`.
    fn given(&self, recorded: u64) -> u64 {
        self.0.get(&recorded).copied().unwrap_or(recorded)
    }

    /// Takes note that this server gave `given` where the record has `recorded`.
    fn learn(&mut self, recorded: u64, given: u64) -> Result<(), String> {
        match self.0.get(&recorded) {
            _ if (recorded == 0) != (given == 0) => Err(format!("cas {given} for {recorded}")),
            _ if recorded == 0 => Ok(()),
            Some(known) if *known == given => Ok(()),
            Some(known) => Err(format!("cas {given} where {known} was given before")),
            None if self.0.values().any(|other| *other == given) => {
                Err(format!("cas {given} was given before, to something else"))
            }
            None => {
                self.0.insert(recorded, given);
                Ok(())
            }
        }
    }
}

fn cas_of(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[16..HEADER_BYTES].try_into().expect("eight bytes"))
}

/// A packet for people: its header in hex, and its body as text.
fn shown(packet: &[u8]) -> String {
    let header: String =
        packet.iter().take(HEADER_BYTES).map(|byte| format!("{byte:02x}")).collect();
    let body = &packet[packet.len().min(HEADER_BYTES)..];
    format!("{header} {}", body[..body.len().min(60)].escape_ascii())
}

fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in RECORD.lines() {
        let (kind, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        match kind {
            "" | "; " => {}
            "# " => sections.push(Section {
                title: rest.to_string(),
                sent: Vec::new(),
                answered: Vec::new(),
                closes: false,
            }),
            _ => {
                let section = sections.last_mut().expect("a title comes first");
                match kind {
                    "> " => section.sent.push(packet(rest)),
                    "< " => section.answered.push(packet(rest)),
                    _ if line == "closed" => section.closes = true,
                    _ => panic!("not understood: {line}"),
                }
            }
        }
    }
    assert!(sections.len() > 40, "the record is short");
    sections
}

/// Hex digits with blanks anywhere, and `xx*count` for a run of one byte.
fn packet(text: &str) -> Vec<u8> {
    let byte = |pair: &str| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{pair}"));
    let mut packet = Vec::new();
    for word in text.split_ascii_whitespace() {
        match word.split_once('*') {
            Some((pair, count)) => {
                let count: usize = count.parse().expect("a count");
                packet.resize(packet.len() + count, byte(pair));
            }
            None => packet.extend((0..word.len()).step_by(2).map(|at| byte(&word[at..at + 2]))),
        }
    }
    assert!(packet.len() >= HEADER_BYTES, "no packet: {text}");
    packet
}
