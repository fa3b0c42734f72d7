//! Starts the real server for tests, talks to it and looks at it from outside.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

#[path = "../support/ports.rs"]
pub mod ports;

pub use ports::free_port;

/// Longest wait for anything, far beyond what a busy machine needs: a test that meets it has
/// found a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// One running server on a free port of 127.0.0.1; killed when dropped.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts it with `flags` and waits until it listens.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_by(&[], flags, Stdio::inherit)
    }

    /// The same by a command that executes it, and with its log somewhere.
    pub fn start_by(prefix: &[&str], flags: &[&str], log: impl Fn() -> Stdio) -> Self {
        // Between the look-up of a free port and its use another process may take it.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(prefix, flags, free_port(), log()) {
                return server;
            }
        }
        panic!("the server does not start with {flags:?}");
    }

    fn try_start(prefix: &[&str], flags: &[&str], port: u16, log: Stdio) -> Option<Self> {
        let binary = binary();
        let words = [prefix, &[&binary]].concat();
        let child = Command::new(words[0])
            .args(&words[1..])
            .args(["-l", "127.0.0.1", "-p", &port.to_string(), "--log", "warn"])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary is built by cargo");
        // From here on, whatever happens, dropping it kills the child and waits for it.
        let mut server = Self { child, port };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if TcpStream::connect(server.address()).is_ok() {
                // The probe above must not be counted by a test that counts connections.
                server.wait_for("the probe to be gone", |s| s.stat("curr_connections") == 1);
                return Some(server);
            }
            if server.child.try_wait().expect("a child can be waited for").is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        Client::new(TcpStream::connect(self.address()).expect("the server accepts"))
    }

    /// One figure of `stats`, read over a connection of its own.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.connect().stats();
        let text = stats.get(name).unwrap_or_else(|| panic!("no {name} in {stats:?}"));
        text.parse().unwrap_or_else(|_| panic!("{name} is {text}"))
    }

    /// Resident memory of the process in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most it has had since [`Self::forget_peak`].
    pub fn peak_rss_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// From here on the peak counts.
    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("it is our child");
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the process is alive");
        let line = status.lines().find(|line| line.starts_with(name)).expect("such a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") << 10
    }

    /// How many files it has open.
    pub fn descriptors(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        files.expect("the process is alive").count()
    }

    /// CPU time of all its threads, to a hundredth of a second.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .expect("the process is alive");
        // As proc(5) counts them, utime and stime are the 14th and 15th, after the name.
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>());
        Duration::from_millis(10 * ticks.map(|n| n.expect("a number")).sum::<u64>())
    }

    /// Waits until `holds`, looking again and again; fails when it does not come true.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Server) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.expect("there is a kill").success(), "no signal {name} was sent");
    }

    /// Waits for the process to end.
    pub fn ended(mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails if the process has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
            panic!("the server has ended with {status}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server under test: the one cargo built, or what `RINGLANE_BINARY` names, to try a release
/// build or to see what another server does.
pub fn binary() -> String {
    let built = env!("CARGO_BIN_EXE_ringlane");
    std::env::var("RINGLANE_BINARY").unwrap_or_else(|_| built.to_owned())
}

/// One connection, speaking bytes.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Takes over a connected socket. Every read and write fails rather than hang.
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        Self { stream: BufReader::new(stream) }
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends bytes; fails if the server has closed.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server takes bytes");
    }

    /// Sends bytes to a server that may close meanwhile; true if all were taken.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// The next line without its end; fails at the end of the stream.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("an answer");
        assert!(line.ends_with(b"\r\n"), "no whole line: {:?}", String::from_utf8_lossy(&line));
        line.truncate(line.len() - 2);
        String::from_utf8_lossy(&line).into_owned()
    }

    /// The next line without its end; `None` if the server has closed instead.
    pub fn line_if_open(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let ended = self.stream.read_until(b'\n', &mut line);
        match ended {
            Ok(_) => line.strip_suffix(b"\r\n").map(|line| String::from_utf8_lossy(line).into()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    }

    /// Exactly `count` bytes.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("so many bytes");
        bytes
    }

    /// Everything up to the end of the stream. A reset counts as the end; a timeout fails.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    }

    /// Sends a line and reads one.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.send(line.as_bytes());
        self.send(b"\r\n");
        self.line()
    }

    /// Stores a value and demands STORED.
    #[track_caller]
    pub fn store(&mut self, key: &str, value: &[u8]) {
        let answer = self.try_store(key, value);
        assert_eq!(answer, "STORED", "{key}, {} bytes", value.len());
    }

    /// Stores a value; what the server says.
    #[track_caller]
    pub fn try_store(&mut self, key: &str, value: &[u8]) -> String {
        self.send(format!("set {key} 0 0 {}\r\n", value.len()).as_bytes());
        self.send(value);
        self.send(b"\r\n");
        self.line()
    }

    /// Reads a value; `None` for a miss.
    #[track_caller]
    pub fn fetch(&mut self, key: &str) -> Option<Vec<u8>> {
        let header = self.ask(&format!("get {key}"));
        if header == "END" {
            return None;
        }
        let bytes = header.rsplit(' ').next().and_then(|n| n.parse().ok());
        let value = self.take(bytes.unwrap_or_else(|| panic!("no value header: {header}")));
        assert_eq!(self.take(7), b"\r\nEND\r\n");
        Some(value)
    }

    /// All of `stats`.
    pub fn stats(&mut self) -> HashMap<String, String> {
        self.stats_of("")
    }

    /// All of `stats` with an argument.
    pub fn stats_of(&mut self, topic: &str) -> HashMap<String, String> {
        self.send(format!("stats {topic}\r\n").as_bytes());
        let mut found = HashMap::new();
        loop {
            let line = self.line();
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("END"), None, None) => return found,
                (Some("STAT"), Some(name), Some(value)) => {
                    found.insert(name.into(), value.into());
                }
                _ => panic!("no line of statistics: {line}"),
            }
        }
    }
}

/// Repeatable noise: equal seeds give equal bytes.
pub struct Noise(u64);

impl Noise {
    /// Starts at `seed`, which must not be 0.
    pub fn new(seed: u64) -> Self {
        assert_ne!(seed, 0);
        Self(seed)
    }

    /// The next 64 bits (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// A pipe that takes nothing more, for a process whose log nobody reads; the reader keeps it so.
pub fn full_pipe() -> (std::io::PipeReader, Stdio) {
    // The capacity of pipes unless somebody changes it.
    const PIPE_BYTES: usize = 64 << 10;
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&[b'.'; PIPE_BYTES]).expect("it takes so much");
    (reader, writer.into())
}
