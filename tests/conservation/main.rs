//! Conservation under load: every acknowledged write is remembered, and nothing else is ever read.
//!
//! Clients change keys of their own by all commands of all protocols, and the server goes through
//! all that moves memory meanwhile: growth, pauses in which memory is given back, pages that pass
//! from one size to another, expiry, `flush_all`, connections reset in mid-request, uploads and
//! downloads that take their time. As long as nothing may be evicted nothing may be missing; where
//! something may, what is read is the last acknowledged value or nothing.
//!
//! `RINGLANE_CONSERVATION_SECONDS` says how long in all, `RINGLANE_SEED` repeats a run as far as
//! timing allows, `RINGLANE_BINARY` names another server.

#[path = "../live/mod.rs"]
mod live;
mod model;
mod pipe;
mod wire;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime};

use live::{Client, Noise, Server};
use wire::{PROTOCOLS, Protocol};
use worker::{SIZES, Shared, Worker, long_value};

/// Clients of a phase, each with eight connections.
const CLIENTS: u32 = 3;
/// What all phases take together, unless told otherwise.
const SECONDS: u64 = 42;
/// Longest phase; a longer run repeats them with other seeds.
const PHASE_SECONDS_MAX: u64 = 60;

/// One server and how it is used.
struct Phase {
    name: &'static str,
    flags: &'static [&'static str],
    evicts: bool,
    /// Whether items change all the time, or the server only grows now and then.
    changes: bool,
}

const PHASES: [Phase; 4] = [
    Phase { name: "growth", flags: &["-m", "1024", "-t", "1"], evicts: false, changes: false },
    Phase { name: "one core", flags: &["-m", "1024", "-t", "1"], evicts: false, changes: true },
    Phase {
        name: "two cores",
        flags: &["-m", "1024", "--cpus", "0,0"],
        evicts: false,
        changes: true,
    },
    Phase {
        name: "two cores, too little room",
        flags: &["-m", "32", "--cpus", "0,0"],
        evicts: true,
        changes: true,
    },
];

/// Phases are run one at a time: what they need is time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn figure(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// Repeats a phase for its share of the time.
fn run(phase: &Phase) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let share = figure("RINGLANE_CONSERVATION_SECONDS").unwrap_or(SECONDS) / PHASES.len() as u64;
    let share = Duration::from_secs(share.max(1));
    let begun = Instant::now();
    while begun.elapsed() + Duration::from_secs(1) < share {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let seed = figure("RINGLANE_SEED").unwrap_or(clock.as_nanos() as u64 | 1);
        let span = (share - begun.elapsed()).min(Duration::from_secs(PHASE_SECONDS_MAX));
        println!("{}: RINGLANE_SEED={seed}, {} s", phase.name, span.as_secs());
        one_run(phase, seed, span);
    }
}

fn one_run(phase: &Phase, seed: u64, span: Duration) {
    let mut server = Server::start(phase.flags);
    let shared = Shared {
        address: server.address(),
        gate: RwLock::new(()),
        bursts: AtomicU32::new(0),
        flushes: AtomicU32::new(0),
        sizes: AtomicU32::new(0),
        is_over: AtomicBool::new(false),
        evicts: phase.evicts,
        changes: phase.changes,
        answers: AtomicU64::new(0),
        resets: AtomicU64::new(0),
    };
    let begun = Instant::now();
    let (counts, faults) = std::thread::scope(|scope| {
        let work = |number| {
            let shared = &shared;
            move || {
                let over = OverIfItPanics(shared);
                let counts = Worker::new(number, seed, shared).run();
                std::mem::forget(over);
                counts
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(work(number))).collect();
        let led = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Leader::new(&server, &shared, seed).lead(begun + span);
        }));
        shared.is_over.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        let mut faults = u32::from(led.is_err());
        for client in clients {
            match client.join() {
                Ok(count) => counts.push(count),
                Err(_) => faults += 1,
            }
        }
        (counts, faults)
    });
    let (answers, resets) =
        (shared.answers.load(Ordering::Relaxed), shared.resets.load(Ordering::Relaxed));
    let flushes = shared.flushes.load(Ordering::Relaxed);
    let bursts = shared.bursts.load(Ordering::Relaxed);
    let done = format!(
        "{answers} answers, {bursts} bursts, {resets} resets, {flushes} flushes in {:.1} s",
        begun.elapsed().as_secs_f32()
    );
    server.assert_alive();
    assert_eq!(faults, 0, "wrong answers in \"{}\", seed {seed}, after {done}", phase.name);
    println!("  {done}");
    assert!(answers > 100 && bursts > 0, "hardly anything was tried: {done}");
    let evictions = server.stat("evictions");
    if phase.evicts {
        assert!(evictions > 0 || span < Duration::from_secs(5), "the memory was never full");
    } else {
        assert_eq!(evictions, 0, "there was room for all");
        let certain: u64 = counts.iter().map(|count| count.0).sum();
        // The leader's one long value as well.
        let possible: u64 = counts.iter().map(|count| count.1).sum::<u64>() + 1;
        let items = server.stat("curr_items");
        let range = certain..=possible;
        assert!(range.contains(&items), "{items} items instead of {certain} to {possible}");
    }
}

/// Ends the phase for all when one client has found something.
struct OverIfItPanics<'s>(&'s Shared);

impl Drop for OverIfItPanics<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// How a pause ends.
#[derive(Clone, Copy, Debug)]
enum Pause {
    Plain,
    /// A line of a megabyte is completed, which keeps a core busy while the others write.
    LongLine,
    /// The process stands still while the others write, so that it meets everything at once.
    Standstill,
}

/// Decides when the clients pause, flushes, and has a long value on its way all the time.
struct Leader<'s> {
    server: &'s Server,
    shared: &'s Shared,
    noise: Noise,
    flushers: Vec<(Protocol, pipe::Pipe)>,
    stalled: Client,
    slow: Client,
    uploads: u32,
}

impl<'s> Leader<'s> {
    fn new(server: &'s Server, shared: &'s Shared, seed: u64) -> Self {
        let pipes = PROTOCOLS.iter().map(|&it| (it, pipe::Pipe::connect(shared.address)));
        let stalled = server.connect();
        let slow = server.connect();
        let noise = Noise::new(seed);
        Self { server, shared, noise, flushers: pipes.collect(), stalled, slow, uploads: 0 }
    }

    fn lead(&mut self, until: Instant) {
        while Instant::now() < until && !self.shared.is_over.load(Ordering::Relaxed) {
            if !self.shared.changes {
                self.pause(Pause::Standstill);
                continue;
            }
            self.shared.sizes.store(self.noise.below(SIZES.into()) as u32, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(300 + self.noise.below(700)));
            if self.noise.below(6) == 0 {
                self.flush();
            }
            let pause = match self.noise.below(5) {
                0 => Pause::Plain,
                1 | 2 => Pause::LongLine,
                _ => Pause::Standstill,
            };
            self.pause(pause);
        }
    }

    fn flush(&mut self) {
        let silence = self.shared.gate.write().expect("nobody panics with it");
        let any = self.noise.below(self.flushers.len() as u64) as usize;
        let (protocol, pipe) = &mut self.flushers[any];
        protocol.flush(pipe);
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        drop(silence);
    }

    /// Silence for long enough that memory is given back, then new keys from all sides.
    ///
    /// What the server does after a second without growth is to meet the new keys: hence growth
    /// before the silence, and silence that is mostly shorter.
    fn pause(&mut self, pause: Pause) {
        self.shared.bursts.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(200));
        let silence = self.shared.gate.write().expect("nobody panics with it");
        if self.shared.is_over.load(Ordering::Relaxed) {
            return;
        }
        self.uploads += 1;
        let held = long_value(self.uploads);
        let value = held.value.bytes(u32::MAX);
        self.slow.send(format!("set leader 0 0 {}\r\n", value.len()).as_bytes());
        self.slow.send(&value[..value.len() / 2]);
        if matches!(pause, Pause::LongLine) {
            let line = [&b"get "[..], &b"a ".repeat(500_000), b"a"].concat();
            self.stalled.send(&line);
        }
        std::thread::sleep(Duration::from_millis(500 + self.noise.below(450)));
        if matches!(pause, Pause::Standstill) {
            self.server.signal("STOP");
        }
        self.shared.bursts.fetch_add(1, Ordering::Relaxed);
        drop(silence);
        match pause {
            Pause::Plain => {}
            Pause::LongLine => {
                self.stalled.send(b"\r\n");
                assert_eq!(self.stalled.line(), "END");
            }
            Pause::Standstill => {
                std::thread::sleep(Duration::from_millis(500 + self.noise.below(300)));
                self.server.signal("CONT");
            }
        }
        self.slow.send(&value[value.len() / 2..]);
        self.slow.send(b"\r\n");
        assert_eq!(self.slow.line(), "STORED", "a long value that has taken its time");
        self.download(&value);
    }

    /// Reads the long value slowly, while it is changed.
    fn download(&mut self, value: &[u8]) {
        self.slow.send(b"get leader\r\n");
        let line = self.slow.line();
        if line == "END" && self.shared.evicts {
            return;
        }
        assert_eq!(line, format!("VALUE leader 0 {}", value.len()));
        let mut first = self.slow.take(1000);
        let mut other = self.server.connect();
        if self.noise.below(2) == 0 {
            assert_ne!(other.ask("delete leader"), "ERROR");
        } else {
            let answer = other.try_store("leader", &value[..1000]);
            assert!(answer == "STORED" || self.shared.evicts, "{answer}");
        }
        std::thread::sleep(Duration::from_millis(100));
        first.extend(self.slow.take(value.len() - 1000));
        assert!(first == value, "a value has changed while it was read");
        assert_eq!((self.slow.line(), self.slow.line()), (String::new(), "END".to_owned()));
    }
}

#[test]
fn a_server_that_grows_by_leaps_keeps_everything() {
    run(&PHASES[0]);
}

#[test]
fn one_core_with_room_for_all_keeps_everything() {
    run(&PHASES[1]);
}

#[test]
fn two_cores_with_room_for_all_keep_everything() {
    run(&PHASES[2]);
}

#[test]
fn with_too_little_room_nothing_stale_or_foreign_is_read() {
    run(&PHASES[3]);
}
