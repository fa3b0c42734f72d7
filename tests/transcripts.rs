//! Plays the conversations in `tests/transcripts` against live servers and compares every byte.
//!
//! The same files run against this server and, where it is installed, against memcached: what they
//! claim is memcached's behaviour, not our idea of it. A transcript reads
//!
//! ```text
//! # a comment
//! = a section: its own connection; at its end nothing unexpected may have been answered
//! > set key 0 0 2             sent, with \r\n behind it
//! >> raw bytes\n              sent as they are
//! < STORED                    the next line answered, \r\n not shown
//! << raw                      the next bytes answered
//! <~ STAT cmd_get 5           lines answered up to this one, which comes before `END`
//! <r VERSION \*               only this server answers so (also >r and >>r)
//! <m VERSION 1.6.\*           only memcached 1.6.18 does, which is older than what we follow
//! ! sleep 1.1                 wait for so many seconds
//! ! close                     the server has closed the connection, without further answers
//! ! on b                      go on with another connection, which is opened at its first use
//! ! leave                     do not check the end of this section
//! ! options -M -m 64          first line only: start the server with these options
//! ! only ringlane             what follows is not played to memcached; `! only all` ends it
//! ```
//!
//! Escapes: `\r \n \t \0 \s \\ \xHH`, `\(text*250)` for repetitions
//! (`\#` in it is the number of the repetition, from 0), `\[name]` for a number that is
//! remembered (and sent again), `\[_]` for any number, `\*` for anything up to the end of the line.
//!
//! `RINGLANE_TRANSCRIPT_ADDR=host:port` plays them to a server that is running already.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "support/ports.rs"]
mod ports;

use ports::free_port;

/// How long an answer may take before it counts as missing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn ringlane_answers_as_the_transcripts_say() {
    if let Ok(address) = std::env::var("RINGLANE_TRANSCRIPT_ADDR") {
        return play_all(
            |_| Ok(Server { address: address.clone(), child: None }),
            Kind::Ringlane,
            false,
        );
    }
    let Some(binary) = option_env!("CARGO_BIN_EXE_ringlane") else {
        return eprintln!("skipped: the server is not part of this build (feature `server`)");
    };
    let start = |options: &[String]| {
        let port = free_port();
        let fixed = ["--listen", "127.0.0.1", "--cores", "2", "--port", &port.to_string()];
        Server::start(binary, &fixed, options, port)
    };
    match start(&[]) {
        Err(reason) => eprintln!("skipped: {binary} does not start: {reason}"),
        Ok(server) => {
            drop(server);
            play_all(start, Kind::Ringlane, true);
        }
    }
}

#[test]
fn memcached_answers_as_the_transcripts_say() {
    let version = Command::new("memcached").arg("-V").output();
    let version = match &version {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return eprintln!("skipped: no memcached: {error}"),
    };
    if version != "memcached 1.6.18" {
        return eprintln!("skipped: the transcripts know memcached 1.6.18, this is {version}");
    }
    let start = |options: &[String]| {
        let port = free_port();
        let fixed = ["-l", "127.0.0.1", "-U", "0", "-u", "root", "-p", &port.to_string()];
        Server::start("memcached", &fixed, options, port)
    };
    play_all(start, Kind::Memcached, true);
}

/// Plays every transcript, several at a time, and reports all that went wrong.
fn play_all(
    start: impl Fn(&[String]) -> Result<Server, String> + Sync,
    kind: Kind,
    may_start: bool,
) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the transcripts are there")
        .map(|file| file.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    if let Ok(only) = std::env::var("RINGLANE_TRANSCRIPT") {
        files.retain(|path| path.to_string_lossy().contains(&only));
    }
    assert!(!files.is_empty(), "no transcripts");
    let queue = std::sync::Mutex::new(files.iter());
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no player panics").next();
                    let Some(path) = next else { break };
                    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
                    let text = std::fs::read(path).expect("a readable transcript");
                    let text = String::from_utf8(text).expect("transcripts are UTF-8");
                    let transcript = Transcript::parse(&text)
                        .unwrap_or_else(|(line, problem)| panic!("{name}:{line}: {problem}"));
                    if !transcript.options.is_empty() && !may_start {
                        eprintln!("skipped: {name} wants to start the server with options");
                        continue;
                    }
                    if transcript.is_empty_for(kind) {
                        continue;
                    }
                    let result = start(&transcript.options)
                        .map_err(|reason| (0, format!("the server does not start: {reason}")))
                        .and_then(|server| transcript.play(&server.address, kind));
                    if let Err((line, problem)) = result {
                        let failure = format!("{name}:{line}: {problem}");
                        failures.lock().expect("no player panics").push(failure);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no player panics");
    failures.sort();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Who is being talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ringlane,
    Memcached,
}

/// A server that ends with the test.
struct Server {
    address: String,
    child: Option<Child>,
}

impl Server {
    fn start(binary: &str, fixed: &[&str], options: &[String], port: u16) -> Result<Self, String> {
        let mut child = Command::new(binary)
            .args(fixed)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let address = format!("127.0.0.1:{port}");
        let started = Instant::now();
        while TcpStream::connect(&address).is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                let mut said = String::new();
                let _ = child.stderr.take().expect("it is piped").read_to_string(&mut said);
                return Err(format!("{status}: {}", said.trim()));
            }
            if started.elapsed() > START_TIMEOUT {
                let _ = child.kill();
                let _ = child.wait();
                return Err("it does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Nobody reads what it says from now on, so it must not have to wait for a reader.
        let mut said = child.stderr.take().expect("it is piped");
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(Self { address, child: Some(child) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A line number and what is wrong there.
type Problem = (usize, String);

struct Transcript {
    options: Vec<String>,
    steps: Vec<(usize, Option<Kind>, Step)>,
}

enum Step {
    Section(String),
    Send(Vec<Piece>),
    ExpectLine(Vec<Piece>),
    SkipToLine(Vec<Piece>),
    ExpectBytes(Vec<Piece>),
    Sleep(Duration),
    Close,
    On(String),
    Leave,
}

/// A part of what is sent or expected.
enum Piece {
    Bytes(Vec<u8>),
    /// A decimal number, remembered under a name unless that is `_`.
    Number(String),
    /// Anything up to the end of the line.
    Rest,
}

impl Transcript {
    fn parse(text: &str) -> Result<Self, Problem> {
        let mut transcript = Transcript { options: Vec::new(), steps: Vec::new() };
        let mut only = None;
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
            let fail = |problem: &str| Err((number, format!("{problem}: {line}")));
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (mark, kind) = match mark.strip_suffix('r') {
                Some(mark) => (mark, Some(Kind::Ringlane)),
                None => match mark.strip_suffix('m') {
                    Some(mark) => (mark, Some(Kind::Memcached)),
                    None => (mark, only),
                },
            };
            let pieces = |ending: &[u8]| {
                let mut pieces = pieces(rest)?;
                pieces.push(Piece::Bytes(ending.to_vec()));
                Ok::<_, String>(pieces)
            };
            let step = match mark {
                "=" => Ok(Step::Section(rest.to_owned())),
                ">" => pieces(b"\r\n").map(Step::Send),
                ">>" => pieces(b"").map(Step::Send),
                "<" => pieces(b"").map(Step::ExpectLine),
                "<~" => pieces(b"").map(Step::SkipToLine),
                "<<" => pieces(b"").map(Step::ExpectBytes),
                "!" => match rest.split_once(' ').unwrap_or((rest, "")) {
                    ("sleep", seconds) => match seconds.parse() {
                        Ok(seconds) => Ok(Step::Sleep(Duration::from_secs_f64(seconds))),
                        Err(_) => return fail("how long"),
                    },
                    ("close", "") => Ok(Step::Close),
                    ("leave", "") => Ok(Step::Leave),
                    ("on", name) => Ok(Step::On(name.to_owned())),
                    ("options", options) => {
                        transcript.options = options.split(' ').map(str::to_owned).collect();
                        continue;
                    }
                    ("only", who) => {
                        only = match who {
                            "ringlane" => Some(Kind::Ringlane),
                            "memcached" => Some(Kind::Memcached),
                            "all" => None,
                            _ => return fail("who"),
                        };
                        continue;
                    }
                    _ => return fail("no such directive"),
                },
                _ => return fail("no such mark"),
            };
            match step {
                Ok(step) => transcript.steps.push((number, kind, step)),
                Err(problem) => return fail(&problem),
            }
        }
        Ok(transcript)
    }

    fn is_empty_for(&self, kind: Kind) -> bool {
        self.steps.iter().all(|step| step.1.is_some_and(|only| only != kind))
    }

    fn play(&self, address: &str, kind: Kind) -> Result<(), Problem> {
        let mut player = Player {
            address,
            connections: HashMap::new(),
            current: String::new(),
            numbers: HashMap::new(),
            section: String::new(),
        };
        for (line, only, step) in &self.steps {
            if only.is_none_or(|only| only == kind) {
                player
                    .step(step)
                    .map_err(|problem| (*line, format!("[{}] {problem}", player.section)))?;
            }
        }
        player.end_section().map_err(|problem| (0, format!("[{}] {problem}", player.section)))
    }
}

/// Splits text with escapes into pieces.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut found = Vec::new();
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let escape = rest.chars().next().ok_or("a lone backslash")?;
        rest = &rest[escape.len_utf8()..];
        let mut until = |end: char| {
            let (inside, after) = rest.split_once(end).ok_or(format!("no {end}"))?;
            rest = after;
            Ok::<_, String>(inside)
        };
        match escape {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            's' => bytes.push(b' '),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits = rest.get(..2).ok_or("two hexadecimal digits")?;
                let byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
                bytes.push(byte);
                rest = &rest[2..];
            }
            '(' => {
                let (what, count) = until(')')?.rsplit_once('*').ok_or("how often")?;
                let count = count.parse().map_err(|_| "how often")?;
                // What does not count its repetitions is read only once.
                let counted = what.contains("\\#");
                for i in 0..if counted { count } else { 1 } {
                    for piece in pieces(&what.replace("\\#", &i.to_string()))? {
                        let Piece::Bytes(what) = piece else {
                            return Err("only bytes can be repeated".into());
                        };
                        bytes.extend_from_slice(&what.repeat(if counted { 1 } else { count }));
                    }
                }
            }
            '[' | '*' => {
                let piece = match escape {
                    '*' => Piece::Rest,
                    _ => Piece::Number(until(']')?.to_owned()),
                };
                found.push(Piece::Bytes(std::mem::take(&mut bytes)));
                found.push(piece);
            }
            other => return Err(format!("no escape \\{other}")),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    found.push(Piece::Bytes(bytes));
    Ok(found)
}

struct Connection {
    stream: TcpStream,
    /// Bytes received and not yet looked at.
    received: Vec<u8>,
    checked_at_end: bool,
}

impl Connection {
    /// Receives once; false at the end of the stream.
    fn receive(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(bytes) => {
                self.received.extend_from_slice(&buffer[..bytes]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(format!("no answer, only {}", shown(&self.received)))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                } else {
                    line.extend_from_slice(b"\\n");
                }
                return Ok(line);
            }
            if !self.receive()? {
                return Err(format!("closed after {}", shown(&self.received)));
            }
        }
    }

    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.received.len() < count {
            if !self.receive()? {
                return Err(format!("closed after {}", shown(&self.received)));
            }
        }
        Ok(self.received.drain(..count).collect())
    }
}

struct Player<'a> {
    address: &'a str,
    connections: HashMap<String, Connection>,
    current: String,
    numbers: HashMap<String, Vec<u8>>,
    section: String,
}

impl Player<'_> {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Section(name) => {
                self.end_section()?;
                self.section = name.clone();
                self.current = String::new();
            }
            Step::Send(pieces) => {
                let bytes = self.literal(pieces)?;
                let connection = self.connection()?;
                // A server that has closed already shows that when it is read from.
                let _ = connection.stream.write_all(&bytes);
            }
            Step::ExpectLine(pieces) => {
                let line = self.connection()?.line()?;
                if !self.matches(pieces, &line) {
                    return Err(format!("expected {}, got {}", self.told(pieces), shown(&line)));
                }
            }
            Step::SkipToLine(pieces) => loop {
                let line = self.connection()?.line()?;
                if self.matches(pieces, &line) {
                    break;
                }
                if line == b"END" || line == b"ERROR" {
                    return Err(format!("{} does not come", self.told(pieces)));
                }
            },
            Step::ExpectBytes(pieces) => {
                let expected = self.literal(pieces)?;
                let got = self.connection()?.bytes(expected.len())?;
                if got != expected {
                    return Err(format!("expected {}, got {}", shown(&expected), shown(&got)));
                }
            }
            Step::Sleep(span) => std::thread::sleep(*span),
            Step::Close => {
                let connection = self.connection()?;
                while connection.receive()? {}
                let received = std::mem::take(&mut connection.received);
                self.connections.remove(&self.current);
                if !received.is_empty() {
                    return Err(format!("expected a close, got {}", shown(&received)));
                }
            }
            Step::On(name) => self.current = name.clone(),
            Step::Leave => self.connection()?.checked_at_end = false,
        }
        Ok(())
    }

    /// The connection in use, opened if need be.
    fn connection(&mut self) -> Result<&mut Connection, String> {
        if !self.connections.contains_key(&self.current) {
            let stream = TcpStream::connect(self.address).map_err(|error| error.to_string())?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let connection = Connection { stream, received: Vec::new(), checked_at_end: true };
            self.connections.insert(self.current.clone(), connection);
        }
        Ok(self.connections.get_mut(&self.current).expect("it was inserted"))
    }

    /// Nothing may be left unread on any connection: the next answer is that to a no-op.
    fn end_section(&mut self) -> Result<(), String> {
        for (_, mut connection) in self.connections.drain() {
            if connection.checked_at_end {
                connection.stream.write_all(b"mn\r\n").map_err(|error| error.to_string())?;
                let line = connection.line()?;
                if line != b"MN" {
                    return Err(format!("at the end of the section: unexpected {}", shown(&line)));
                }
            }
        }
        Ok(())
    }

    /// What pieces stand for, all numbers being known.
    fn literal(&self, pieces: &[Piece]) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                Piece::Number(name) => {
                    bytes.extend_from_slice(self.numbers.get(name).ok_or("no such number yet")?);
                }
                Piece::Rest => return Err("anything cannot be meant here".into()),
            }
        }
        Ok(bytes)
    }

    /// Whether a line is what the pieces say. New numbers are remembered.
    fn matches(&mut self, pieces: &[Piece], line: &[u8]) -> bool {
        let mut rest = line;
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => match rest.strip_prefix(&bytes[..]) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Piece::Rest => return true,
                Piece::Number(name) => {
                    let end = rest.iter().position(|byte| !byte.is_ascii_digit());
                    let (digits, after) = rest.split_at(end.unwrap_or(rest.len()));
                    if digits.is_empty() {
                        return false;
                    }
                    if name != "_" {
                        let known = self.numbers.entry(name.clone());
                        if known.or_insert_with(|| digits.to_vec()) != digits {
                            return false;
                        }
                    }
                    rest = after;
                }
            }
        }
        rest.is_empty()
    }

    fn told(&self, pieces: &[Piece]) -> String {
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend_from_slice(match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Number(name) => self.numbers.get(name).map_or(b"<number>", |n| n),
                Piece::Rest => b"...",
            });
        }
        shown(&bytes)
    }
}

/// Bytes as text, long ones cut.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let mut text = format!("`{}`", bytes[..bytes.len().min(MOST)].escape_ascii());
    if bytes.len() > MOST {
        write!(text, "... ({} bytes)", bytes.len()).expect("a string takes everything");
    }
    text
}
