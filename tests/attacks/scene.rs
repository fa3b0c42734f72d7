//! The server under attack, and what must not change by it.
//!
//! Beside each attack a bystander asks for its own items every two milliseconds. What counts is how
//! long after the moment at which it wanted to ask it has its answers, so that a stall of the server
//! counts for every request that would have fallen into it. Afterwards memory, descriptors,
//! connections, the log and all items are looked at.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringlane::protocol::compact::client::{Frame, ResponseFrame};
use ringlane::protocol::compact::{Opcode, Topology};
use socket2::{Domain, SockRef, Socket, Type};

use crate::figure;
use crate::live::ports::{free_port, free_ports};
use crate::live::{Client, Noise, Server};

/// Memory for items of every server here.
const MEMORY_BYTES: u64 = 64 << 20;
/// What may wait in a node at once outside of that: answers that are not read and uploads that do not
/// go on.
const WAITING_BYTES_MAX: u64 = 64 << 20;
/// Tables that grow with connections, and what the allocator keeps.
const UNSTATED_BYTES_MAX: u64 = 24 << 20;
/// What the allocator may keep after an attack.
const LEFT_BYTES_MAX: u64 = 16 << 20;
/// Most bytes that one attack may add to the log.
const LOG_BYTES_MAX: u64 = 32 << 10;
/// The longest wait of the bystander, whatever else the machine has to do: beyond it the server hangs.
const HANG: Duration = Duration::from_secs(10);
/// How often the bystander asks.
const TICK: Duration = Duration::from_millis(2);
/// Longest wait for what an attack leaves to be gone.
const SETTLE: Duration = Duration::from_secs(20);

/// Values by which attacks make the server work: on each core one of a megabyte, and one of half.
pub const LARGE_BYTES: usize = 1_000_000;
pub const HALF_BYTES: usize = 550_000;
/// Short items of the witness.
const WITNESSES: usize = 128;

/// How the server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// Two cores, thousands of connections.
    Plain,
    /// Forty connections at most.
    FewConnections,
    /// As many files as are open, and a few.
    FewFiles,
    /// The same, and nobody reads the log, which is full.
    DeafLog,
    /// A node with cluster ports on loopback, without a key.
    Cluster,
    /// The same with a key.
    KeyedCluster,
}

/// What one attack is.
pub struct Attack {
    pub name: &'static str,
    pub setup: Setup,
    pub run: fn(&Scene, &mut Noise),
}

/// A running server and what is known of it.
pub struct Scene {
    pub server: Server,
    pub setup: Setup,
    /// Where the node talks to others.
    pub cluster: SocketAddr,
    pub admin: SocketAddr,
    /// The port of core 0; the next is that of core 1.
    shard_ports: u16,
    /// Keys of one core each, by core.
    large: [String; 2],
    half: [String; 2],
    log: PathBuf,
    /// Keeps a pipe that nobody reads.
    _pipe: Option<std::io::PipeReader>,
    /// Memory of the empty server.
    fixed_bytes: u64,
    hash_seed: u64,
    /// An attack flushes everything: the bystander may miss, and items are stored again.
    is_forgotten: AtomicBool,
}

/// What an attack did to the bystander and to memory.
#[derive(Debug)]
pub struct Figures {
    p50: Duration,
    p99: Duration,
    max: Duration,
    control_p99: Duration,
    peak_bytes: u64,
    took: Duration,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "bystander p50 {:6.2} p99 {:7.2} max {:7.2} ms, echo p99 {:6.2} ms, peak {:4} MiB, {:4.1} s",
            millis(self.p50),
            millis(self.p99),
            millis(self.max),
            millis(self.control_p99),
            self.peak_bytes >> 20,
            self.took.as_secs_f64()
        )
    }
}

/// Figures that must be the same afterwards.
struct Level {
    descriptors: usize,
    connections: u64,
    rss: u64,
    /// Memory of items, of the whole node: what it has been given once stays its own.
    touched: u64,
    log: u64,
}

/// Whether figures of time and memory are judged; a build that checks itself needs more of both.
pub fn judges() -> bool {
    std::env::var("RINGLANE_ATTACK_FIGURES").as_deref() != Ok("shown")
}

impl Scene {
    pub fn start(setup: Setup) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let log = scratch.join(format!("attacks-{}-{number}.log", std::process::id()));
        let shard_ports = free_ports(2);
        let [admin, cluster] = [free_port(), free_port()].map(loopback);
        let (shards, admin_text) = (shard_ports.to_string(), admin.to_string());
        let cluster_text = cluster.to_string();
        let key = scratch.join("attacks.key");
        write_secret(&key);
        let key = key.to_str().expect("a path in UTF-8");
        let mut flags = vec!["-m", "64", "--shard-ports", &shards, "--admin", &admin_text];
        let parallel = std::thread::available_parallelism().map_or(1, |count| count.get());
        flags.extend(if parallel > 1 { ["-t", "2"] } else { ["--cpus", "0,0"] });
        match setup {
            Setup::FewConnections => flags.extend(["-c", "40"]),
            Setup::Cluster => flags.extend(["--cluster-listen", &cluster_text]),
            Setup::KeyedCluster => {
                flags.extend(["--cluster-listen", &cluster_text, "--cluster-key-file", key]);
            }
            Setup::Plain | Setup::FewFiles | Setup::DeafLog => {}
        }
        let few = ["sh", "-c", "ulimit -n 240; exec \"$0\" \"$@\""];
        let prefix = match setup {
            Setup::FewFiles | Setup::DeafLog => &few[..],
            _ => &[],
        };
        let (mut reader, mut full) = std::io::pipe().expect("a pipe");
        let server = Server::start_by(prefix, &flags, || match setup {
            Setup::DeafLog => full.try_clone().expect("a pipe").into(),
            _ => Stdio::from(File::create(&log).expect("the scratch directory is writable")),
        });
        let pipe = (setup == Setup::DeafLog).then(|| {
            // Without what was said at the start it holds exactly this much.
            rustix::io::ioctl_fionbio(&reader, true).expect("a pipe");
            while reader.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
            full.write_all(&[b' '; 64 << 10]).expect("a pipe holds 64 KiB");
            reader
        });
        let mut scene = Self {
            server,
            setup,
            cluster,
            admin,
            shard_ports,
            large: Default::default(),
            half: Default::default(),
            log,
            _pipe: pipe,
            fixed_bytes: 0,
            hash_seed: 0,
            is_forgotten: AtomicBool::new(false),
        };
        scene.furnish();
        scene
    }

    /// Stores what the bystander asks for and what attacks make the server work with.
    fn furnish(&mut self) {
        let hello = hello(self.server.address());
        let topology = Topology::from_bytes(&hello).expect("a list of tags");
        self.hash_seed = topology.hash_seed;
        let key_of = |core: u16, name: &str| {
            let mut keys = (0..).map(|number| format!("{name}:{number}"));
            keys.find(|key| topology.core_of(key.as_bytes()) == Some(core)).expect("endless")
        };
        self.large = [0, 1].map(|core| key_of(core, "large"));
        self.half = [0, 1].map(|core| key_of(core, "half"));
        // The node that has met others may still be looking for them.
        sleep(Duration::from_millis(50));
        self.fixed_bytes = self.server.rss_bytes();
        self.store();
    }

    fn store(&self) {
        let mut client = self.server.connect();
        for (key, bytes) in self.holdings() {
            client.store(&key, &value_of(&key, bytes));
        }
    }

    /// To be called by an attack that is about to flush.
    pub fn forget(&self) {
        self.is_forgotten.store(true, Ordering::Relaxed);
    }

    /// All items that must stay.
    fn holdings(&self) -> Vec<(String, usize)> {
        let large = self.large.iter().map(|key| (key.clone(), LARGE_BYTES));
        let half = self.half.iter().map(|key| (key.clone(), HALF_BYTES));
        let small = (0..WITNESSES).map(|i| (witness(i), (i * i) % 9000));
        small.chain(half).chain(large).collect()
    }

    /// The key of a megabyte on this core, and of half of it.
    pub fn large(&self, core: usize) -> &str {
        &self.large[core]
    }

    pub fn half(&self, core: usize) -> &str {
        &self.half[core]
    }

    /// The seed by which the node says it hashes keys.
    pub fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    /// Where core 0 or 1 takes connections.
    pub fn core(&self, core: usize) -> SocketAddr {
        loopback(self.shard_ports + core as u16)
    }

    /// A connection of an attacker to a core, which hardly holds anything in its own buffers.
    pub fn connect(&self, core: usize) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        socket.connect(&self.core(core).into()).expect("the server accepts");
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        stream
    }

    /// So many of them, to both cores in turn.
    pub fn connect_many(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|i| self.connect(i % 2)).collect()
    }

    fn level(&self) -> Level {
        let mut client = self.server.connect();
        let cores = client.stats_of("cores");
        let touched = (0..2)
            .map(|core| cores[&format!("core:{core}:touched_bytes")].parse::<u64>())
            .map(|bytes| bytes.expect("a number"));
        Level {
            descriptors: self.server.descriptors(),
            connections: client.stats()["curr_connections"].parse().expect("a number"),
            rss: self.server.rss_bytes(),
            touched: touched.sum(),
            log: std::fs::metadata(&self.log).map_or(0, |log| log.len()),
        }
    }

    /// Runs an attack with a bystander at its side, then looks at what is left. Fails by panic.
    pub fn suffer(&mut self, attack: &Attack, noise: &mut Noise) -> Figures {
        let forgotten = &self.is_forgotten;
        let mut bystander = Bystander::new(self);
        let before = self.level();
        if judges() {
            self.server.forget_peak();
        }
        let begun = Instant::now();
        let (waits, attacked) = bystander.watch(forgotten, || {
            std::thread::scope(|scope| {
                let attacking = scope.spawn(|| {
                    // What is measured is the server, not who gets the CPU of a busy machine.
                    let _ = rustix::process::setpriority_process(None, 10);
                    (attack.run)(self, noise);
                });
                attacking.join()
            })
        });
        let took = begun.elapsed();
        if let Err(panic) = attacked {
            resume_unwind(panic);
        }
        self.server.assert_alive();
        let figures = Figures {
            p50: permille(&waits.waits, 500),
            p99: permille(&waits.waits, 990),
            max: permille(&waits.waits, 1000),
            control_p99: permille(&waits.control, 990),
            peak_bytes: self.server.peak_rss_bytes(),
            took,
        };
        self.check(&before, &figures);
        drop(bystander);
        figures
    }

    fn check(&mut self, before: &Level, figures: &Figures) {
        let left = |after: &Level| {
            (after.descriptors, after.connections) != (before.descriptors, before.connections)
        };
        let grown = |after: &Level| {
            let touched = after.touched - before.touched;
            judges() && after.rss > before.rss + touched + LEFT_BYTES_MAX
        };
        let begun = Instant::now();
        let mut after = self.level();
        while (left(&after) || grown(&after)) && begun.elapsed() < SETTLE {
            sleep(Duration::from_millis(50));
            after = self.level();
        }
        self.server.assert_alive();
        assert_eq!(after.descriptors, before.descriptors, "descriptors; {figures}");
        assert_eq!(after.connections, before.connections, "connections; {figures}");
        assert!(
            !grown(&after),
            "{} MiB have become {}, of which {} are of items; {figures}",
            before.rss >> 20,
            after.rss >> 20,
            (after.touched - before.touched) >> 20
        );
        let logged = after.log.saturating_sub(before.log);
        assert!(logged <= LOG_BYTES_MAX, "{logged} bytes were logged; {figures}");
        if self.is_forgotten.swap(false, Ordering::Relaxed) {
            self.store();
        }
        let mut client = Client::new(TcpStream::connect(self.core(0)).expect("it accepts"));
        for (key, bytes) in self.holdings() {
            let found = client.fetch(&key);
            assert!(found.is_some(), "{key} is gone; {figures}");
            assert!(found == Some(value_of(&key, bytes)), "{key} has changed; {figures}");
        }
        if judges() {
            let stated = self.fixed_bytes + MEMORY_BYTES + WAITING_BYTES_MAX + UNSTATED_BYTES_MAX;
            let peak = figures.peak_bytes;
            assert!(peak <= stated, "{} MiB at most; {figures}", stated >> 20);
        }
        assert!(figures.max <= HANG, "the server hangs; {figures}");
        if let Some(millis) = figure("RINGLANE_ATTACK_P99_MILLIS") {
            let p99_max = Duration::from_millis(millis);
            assert!(figures.p99 <= p99_max, "{p99_max:?} at most; {figures}");
        }
    }

    /// Asks the server to end, and waits for it.
    pub fn end(self) {
        self.server.signal("TERM");
        let status = self.server.ended();
        assert_eq!(status.code(), Some(0), "it ends when it is told to: {status}");
        let _ = std::fs::remove_file(&self.log);
    }
}

fn write_secret(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.expect("a file").write_all(b"a secret of the attacked node\n").expect("a file");
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn witness(number: usize) -> String {
    format!("witness:{number}")
}

fn value_of(key: &str, bytes: usize) -> Vec<u8> {
    key.bytes().chain(*b"|").cycle().take(bytes).collect()
}

/// What HELLO tells.
fn hello(address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    let mut frame = Vec::new();
    Frame::new(Opcode::Hello, 1).encode(&mut frame);
    stream.write_all(&frame).expect("it takes requests");
    let mut received = Vec::new();
    loop {
        if let Some((response, _)) = ResponseFrame::decode(&received).expect("known codes") {
            return response.value.to_vec();
        }
        let mut chunk = [0; 4096];
        let bytes = stream.read(&mut chunk).expect("an answer");
        assert!(bytes > 0, "closed instead of an answer");
        received.extend_from_slice(&chunk[..bytes]);
    }
}

/// Somebody who just wants its items.
struct Bystander {
    clients: Vec<Client>,
}

impl Bystander {
    fn new(scene: &Scene) -> Self {
        let connect = |i: usize| TcpStream::connect(scene.core(i % 2)).expect("the server accepts");
        let mut clients: Vec<Client> = (0..4).map(|i| Client::new(connect(i))).collect();
        // Once around, so that all of them are known to their cores.
        clients.iter_mut().for_each(|client| assert_eq!(client.ask("mn"), "MN"));
        Self { clients }
    }

    /// Asks in time until `meanwhile` is over. How long it waited, from short to long.
    fn watch<T>(&mut self, forgotten: &AtomicBool, meanwhile: impl FnOnce() -> T) -> (Waits, T) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                in_time(&over, |number| {
                    let count = self.clients.len();
                    ask(&mut self.clients[number % count], number, forgotten);
                })
            });
            let control = scope.spawn(|| {
                let (mut near, mut far) = pair();
                let echo = std::thread::spawn(move || {
                    let mut bytes = [0; 64];
                    while far.read_exact(&mut bytes).is_ok() && far.write_all(&bytes).is_ok() {}
                });
                let waits = in_time(&over, |_| {
                    near.write_all(&[1; 64]).expect("an echo");
                    near.read_exact(&mut [0; 64]).expect("an echo");
                });
                drop(near);
                echo.join().expect("an echo");
                waits
            });
            let ended = OnDrop(&over);
            let outcome = meanwhile();
            drop(ended);
            let waits = asking.join().unwrap_or_else(|panic| resume_unwind(panic));
            let control = control.join().unwrap_or_else(|panic| resume_unwind(panic));
            (Waits { waits, control }, outcome)
        })
    }
}

/// How long answers took, from short to long: the server's, and those of an echo in this process, which
/// waits for nothing but the CPU.
struct Waits {
    waits: Vec<Duration>,
    control: Vec<Duration>,
}

fn permille(waits: &[Duration], share: usize) -> Duration {
    waits[(waits.len() - 1) * share / 1000]
}

/// Asks every tick until it is over. A wait begins when the tick was due, whatever happened before.
fn in_time(over: &AtomicBool, mut ask: impl FnMut(usize)) -> Vec<Duration> {
    let mut waits = Vec::new();
    let mut due = Instant::now();
    let mut number = 0;
    while !over.load(Ordering::Relaxed) || waits.is_empty() {
        sleep(due.saturating_duration_since(Instant::now()));
        ask(number);
        number += 1;
        // All that should have been asked meanwhile has waited, too.
        while due <= Instant::now() {
            waits.push(due.elapsed());
            due += TICK;
        }
    }
    waits.sort_unstable();
    waits
}

/// Two ends of a TCP connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("a port")).expect("it listens");
    let (far, _) = listener.accept().expect("it is connected");
    near.set_nodelay(true).expect("TCP_NODELAY");
    far.set_nodelay(true).expect("TCP_NODELAY");
    (near, far)
}

/// Sets a flag however it goes out of scope.
struct OnDrop<'f>(&'f AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Four items at once, of both cores.
fn ask(client: &mut Client, number: usize, forgotten: &AtomicBool) {
    let numbers = (0..4).map(|i| (number * 4 + i) % WITNESSES);
    let requests: String = numbers.clone().map(|i| format!("get {}\r\n", witness(i))).collect();
    client.send(requests.as_bytes());
    for i in numbers {
        let key = witness(i);
        let value = value_of(&key, (i * i) % 9000);
        let line = client.line();
        if line == "END" && forgotten.load(Ordering::Relaxed) {
            continue;
        }
        assert_eq!(line, format!("VALUE {key} 0 {}", value.len()));
        assert!(client.take(value.len()) == value, "{key} has changed");
        assert_eq!((client.line(), client.line()), (String::new(), "END".to_owned()));
    }
}

/// Makes a socket send a reset when it closes.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}
