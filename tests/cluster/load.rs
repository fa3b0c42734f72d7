//! Clients that remember what was acknowledged to them, and hold the cluster to it.
//!
//! Every client has keys of its own, which nobody else writes. Each change has a number that is
//! part of the value; so whatever a read answers tells which change it is from, and it must be one
//! that may be in effect: the last acknowledged one, a later one, or one whose outcome nobody said.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nodes::PATIENCE;
use crate::live::Noise;

/// Longest wait of a client for an answer, above the nodes' own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// Pause between two requests of a client, which leaves the machine to the nodes.
const PAUSE: Duration = Duration::from_micros(500);
/// Longest value in bytes.
const VALUE_BYTES_MAX: u64 = 3000;

/// What a client knows of one key.
#[derive(Clone, Debug, Default)]
struct Record {
    /// The last change that was acknowledged; 0 for none.
    acknowledged: u64,
    /// The last change that was tried.
    tried: u64,
    /// Which of those from `acknowledged` on were deletions.
    deletions: BTreeSet<u64>,
    /// Changes of which nobody said how they ended, and whether they were deletions. A node that
    /// hung may carry them out at any time later.
    open: BTreeMap<u64, bool>,
    failing_since: Option<Instant>,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Change(u64),
}

impl Record {
    fn permits(&self, found: Found) -> bool {
        match found {
            Found::Nothing => {
                self.acknowledged == 0
                    || !self.deletions.is_empty()
                    || self.open.values().any(|deletion| *deletion)
            }
            Found::Change(number) => {
                let current = (self.acknowledged.max(1)..=self.tried).contains(&number)
                    && !self.deletions.contains(&number);
                current || self.open.get(&number) == Some(&false)
            }
        }
    }

    fn acknowledge(&mut self, number: u64) {
        self.acknowledged = number;
        self.deletions = self.deletions.split_off(&number);
    }
}

/// The value of a change: its number, and bytes that follow from it.
fn value(key: &str, number: u64) -> Vec<u8> {
    let mut text = format!("{key} {number} ").into_bytes();
    let bytes = (number * 7919 + key.len() as u64) % VALUE_BYTES_MAX;
    text.extend((0..bytes).map(|at| b'a' + ((number + at) % 26) as u8));
    text
}

/// Why a request has no answer of use.
#[derive(Debug)]
pub enum Trouble {
    /// The node said so.
    Answered(String),
    /// The connection broke, or nothing came.
    Broken(io::Error),
}

impl Trouble {
    /// Whether what was asked for may still happen: anything but a plain refusal.
    fn leaves_open(&self) -> bool {
        match self {
            Self::Answered(line) => line.contains("outcome unknown"),
            Self::Broken(_) => true,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A connection whose failures are results.
pub struct Talk(BufReader<TcpStream>);

impl Talk {
    /// Connects.
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks what is answered with one line.
    pub fn ask(&mut self, request: &[u8]) -> Result<String, Trouble> {
        self.0.get_mut().write_all(request)?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) if line.starts_with("SERVER_ERROR") => Err(Trouble::Answered(line.into())),
            Some(line) => Ok(line.into()),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<String, Trouble> {
        let mut request = format!("set {key} 0 0 {}\r\n", value.len()).into_bytes();
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
        self.ask(&request)
    }

    /// What is stored, or an account of why it is no value of ours.
    fn get(&mut self, key: &str) -> Result<Result<Found, String>, Trouble> {
        let line = self.ask(format!("get {key}\r\n").as_bytes())?;
        if line == "END" {
            return Ok(Ok(Found::Nothing));
        }
        let bytes = line.strip_prefix(&format!("VALUE {key} 0 ")).and_then(|n| n.parse().ok());
        let Some(bytes) = bytes else { return Ok(Err(format!("answered {line:?}"))) };
        let mut found = vec![0; bytes];
        self.0.read_exact(&mut found)?;
        let mut end = [0; 7];
        self.0.read_exact(&mut end)?;
        let number = found.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        Ok(match number {
            Some(number) if found == value(key, number) => Ok(Found::Change(number)),
            _ => Err(format!("mangled: {:?}", String::from_utf8_lossy(&found))),
        })
    }
}

/// How many clients do what.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Clients, each with one connection at a time.
    pub clients: usize,
    /// Keys of each.
    pub keys: u64,
    /// Whether a miss of what was stored is only counted: copies of one are lost with their node.
    pub may_miss: bool,
}

/// Clients at work until they are told to end.
pub struct Load {
    plan: Plan,
    end: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Outcome>>,
}

/// What the clients met.
#[derive(Default)]
pub struct Outcome {
    records: BTreeMap<String, Record>,
    /// Answers that must not have been.
    pub violations: Vec<String>,
    /// Requests that failed, with when.
    pub errors: Vec<(Instant, String)>,
    /// Longest span in which a key could not be read or written, from the first failed request
    /// to the end of the first successful one.
    pub longest_gap: Duration,
    /// Requests that were answered.
    pub answered: u64,
    /// Reads that found what they should.
    pub hits: u64,
    /// Reads that found nothing although something was stored.
    pub misses: u64,
}

struct Worker {
    plan: Plan,
    addresses: Vec<SocketAddr>,
    turn: usize,
    talk: Option<Talk>,
    outcome: Outcome,
}

impl Load {
    /// Starts the clients; each begins at another of `addresses` and goes on to the next when a
    /// connection fails. Returns once every key has been written.
    pub fn start(name: &str, addresses: &[SocketAddr], plan: Plan) -> Self {
        let (end, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..plan.clients).map(|client| {
            let mut worker = Worker {
                plan,
                addresses: addresses.to_vec(),
                turn: client,
                talk: None,
                outcome: Outcome::default(),
            };
            let prefix = format!("{name}-{client}");
            let (end, progress) = (end.clone(), progress.clone());
            std::thread::spawn(move || {
                worker.work(&prefix, &end, &progress);
                worker.outcome
            })
        });
        let load = Self { plan, clients: clients.collect(), end, progress };
        load.run_for_requests(plan.keys * plan.clients as u64);
        load
    }

    /// Waits until so many requests more have been answered.
    pub fn run_for_requests(&self, count: u64) {
        let target = self.progress.load(Ordering::Relaxed) + count;
        let begun = Instant::now();
        while self.progress.load(Ordering::Relaxed) < target {
            assert!(begun.elapsed() < PATIENCE, "the clients do not get on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the clients.
    pub fn stop(self) -> Outcome {
        self.end.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for client in self.clients {
            all.absorb(client.join().expect("clients do not panic"));
        }
        all.errors.sort();
        let last = all.errors.last().map(|(at, what)| (at.elapsed(), what));
        println!(
            "{} answered, {} failed (last {last:?} ago), longest gap {:?}, {} hits, {} misses, {}",
            all.answered,
            all.errors.len(),
            all.longest_gap,
            all.hits,
            all.misses,
            if self.plan.may_miss { "misses allowed" } else { "none allowed" }
        );
        all
    }
}

impl Worker {
    fn work(&mut self, prefix: &str, end: &AtomicBool, progress: &AtomicU64) {
        let mut noise = Noise::new(0x9e37_79b9 + self.turn as u64);
        let (mut done, keys) = (0, self.plan.keys);
        let mut failed = None;
        while !end.load(Ordering::Relaxed) {
            // The first round writes every key; later what failed is tried again at once.
            let chosen = if done < keys { done } else { noise.below(keys) };
            let number = failed.take().unwrap_or(chosen);
            let key = format!("{prefix}-{number}");
            let mut record = self.outcome.records.remove(&key).unwrap_or_default();
            let (begun, tried) = (Instant::now(), record.tried);
            let outcome = match noise.below(100) {
                _ if done < keys => self.set(&key, &mut record),
                0..45 => self.set(&key, &mut record),
                45..50 => self.delete(&key, &mut record),
                _ => self.get(&key, &mut record),
            };
            match outcome {
                Ok(()) => {
                    let failing_since = record.failing_since.take().unwrap_or(begun);
                    let gap = failing_since.elapsed();
                    self.outcome.longest_gap = self.outcome.longest_gap.max(gap);
                    self.outcome.answered += 1;
                    progress.fetch_add(1, Ordering::Relaxed);
                    done += 1;
                }
                Err(trouble) => {
                    if record.tried > tried && trouble.leaves_open() {
                        let deletion = record.deletions.contains(&record.tried);
                        record.open.insert(record.tried, deletion);
                    }
                    record.failing_since.get_or_insert(begun);
                    failed = Some(number);
                    self.failed(trouble);
                }
            }
            self.outcome.records.insert(key, record);
            std::thread::sleep(PAUSE);
        }
        // What still fails at the end has failed for so long.
        let still = self.outcome.records.values().filter_map(|record| record.failing_since);
        let gap = still.map(|since| since.elapsed()).max().unwrap_or_default();
        self.outcome.longest_gap = self.outcome.longest_gap.max(gap);
    }

    fn failed(&mut self, trouble: Trouble) {
        if matches!(trouble, Trouble::Broken(_)) {
            self.talk = None;
            self.turn += 1;
        }
        self.outcome.errors.push((Instant::now(), format!("{trouble:?}")));
    }

    fn talk(&mut self) -> Result<&mut Talk, Trouble> {
        if self.talk.is_none() {
            let address = self.addresses[self.turn % self.addresses.len()];
            self.talk = Some(Talk::new(address)?);
        }
        Ok(self.talk.as_mut().expect("it was just made"))
    }

    fn set(&mut self, key: &str, record: &mut Record) -> Result<(), Trouble> {
        record.tried += 1;
        let number = record.tried;
        let answer = self.talk()?.set(key, &value(key, number))?;
        record.acknowledge(number);
        self.demand(answer == "STORED", || format!("set {key} {number}: {answer}"));
        Ok(())
    }

    fn delete(&mut self, key: &str, record: &mut Record) -> Result<(), Trouble> {
        record.tried += 1;
        let number = record.tried;
        let before = record.clone();
        record.deletions.insert(number);
        let answer = self.talk()?.ask(format!("delete {key}\r\n").as_bytes())?;
        if answer == "NOT_FOUND" {
            // Nothing was there, so nothing was changed.
            record.deletions.remove(&number);
            record.tried -= 1;
            self.judge(key, &before, Ok(Found::Nothing));
            return Ok(());
        }
        record.acknowledge(number);
        self.demand(answer == "DELETED", || format!("delete {key} {number}: {answer}"));
        Ok(())
    }

    fn get(&mut self, key: &str, record: &mut Record) -> Result<(), Trouble> {
        let found = self.talk()?.get(key)?;
        self.judge(key, record, found);
        Ok(())
    }

    fn judge(&mut self, key: &str, record: &Record, found: Result<Found, String>) {
        let fine = found.as_ref().is_ok_and(|found| record.permits(*found));
        if fine {
            self.outcome.hits += 1;
        } else if self.plan.may_miss && found == Ok(Found::Nothing) {
            self.outcome.misses += 1;
        } else {
            self.demand(false, || format!("{key} {record:?} read {found:?}"));
        }
    }

    fn demand(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.outcome.violations.len() < 20 {
            self.outcome.violations.push(what());
        }
    }
}

impl Outcome {
    /// Adds what other clients met.
    pub fn absorb(&mut self, other: Outcome) {
        self.records.extend(other.records);
        self.violations.extend(other.violations);
        self.errors.extend(other.errors);
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.answered += other.answered;
        self.hits += other.hits;
        self.misses += other.misses;
    }

    /// Fails if a client was told anything that must not be.
    pub fn assert_truthful(&self) {
        assert!(self.violations.is_empty(), "{:#?}", self.violations);
    }

    /// Fails if a request failed after `at`.
    pub fn assert_no_error_after(&self, at: Instant) {
        self.assert_no_error_between(at, Instant::now());
    }

    /// Fails if a request failed after `from` and before `to`.
    pub fn assert_no_error_between(&self, from: Instant, to: Instant) {
        let late = self.errors.iter().filter(|(when, _)| (from..to).contains(when));
        let late: Vec<_> = late.map(|(when, what)| (*when - from, what)).collect();
        assert!(late.is_empty(), "{} errors, the first {:?} later", late.len(), late.first());
    }

    /// Reads every key once more through `address` and fails if anything acknowledged is lost or
    /// older. Returns the part of the keys that were found as they should, which is all of them
    /// unless the plan permits misses.
    pub fn account(&self, address: SocketAddr, may_miss: bool) -> f64 {
        let mut talk = Talk::new(address).expect("the node takes clients");
        let (begun, mut found_count) = (Instant::now(), 0);
        for (key, record) in &self.records {
            let found = loop {
                match talk.get(key) {
                    Ok(found) => break found,
                    Err(trouble) => {
                        assert!(begun.elapsed() < PATIENCE, "{key} cannot be read: {trouble:?}");
                        std::thread::sleep(Duration::from_millis(50));
                        talk = Talk::new(address).expect("the node takes clients");
                    }
                }
            };
            let fine = found.as_ref().is_ok_and(|found| record.permits(*found));
            found_count += u64::from(fine);
            let miss = may_miss && found == Ok(Found::Nothing);
            assert!(fine || miss, "{key} {record:?} reads {found:?} through {address}");
        }
        found_count as f64 / self.records.len() as f64
    }
}
