//! Clients: each asks one thing after the other and notes what it was told.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringlane::hash::{HashSecret, KeyHash};
use ringlane::request::{Arithmetic, Body, Delete, Get, Operation, Request, Store, StoreMode};
use ringlane::time::{Deadline, Instant};

use crate::checks::{Counter, Register};
use crate::node::Answer;

/// What a client has asked for and not been told yet.
#[derive(Clone, Debug)]
pub enum Asked {
    Read(String),
    Write(String, usize),
    Delete(String, usize),
    Increment(String),
    ReadCounter(String),
    /// The first half of a compare and store.
    Look(String),
    CompareAndStore(String, u64),
}

/// One client.
#[derive(Debug)]
pub struct Client {
    pub waiting: Option<(Asked, Instant)>,
    pub next_at: Instant,
    /// A number and token to store over, from the first half of a compare and store.
    looked: Option<(String, u64, Option<u64>)>,
}

/// A request that owns its bytes.
#[derive(Clone, Debug)]
pub struct Owned {
    pub key: String,
    pub value: Vec<u8>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Get,
    Set,
    Add,
    CompareAndSet(u64),
    Delete,
    Increment,
}

impl Owned {
    pub fn request(&self, secret: &HashSecret) -> Request<'_> {
        let store = |mode, compare| {
            let value = Body::Bytes(&self.value);
            Operation::Store(Store { mode, compare, value, ..Store::set(b"") })
        };
        let operation = match self.kind {
            Kind::Get => Operation::Get(Get::default()),
            Kind::Set => store(StoreMode::Set, None),
            Kind::Add => store(StoreMode::Add, None),
            Kind::CompareAndSet(token) => store(StoreMode::Set, Some(token)),
            Kind::Delete => Operation::Delete(Delete::default()),
            Kind::Increment => Operation::Arithmetic(Arithmetic {
                create: Some((1, Deadline::NEVER)),
                ..Arithmetic::by(1, false)
            }),
        };
        let key = self.key.as_bytes();
        Request { key, hash: KeyHash::of(key, secret), operation }
    }
}

/// All clients and everything they know.
pub struct Workload {
    random: Xoshiro256PlusPlus,
    pub clients: Vec<Client>,
    registers: BTreeMap<String, Register>,
    counters: BTreeMap<String, Counter>,
    keys: u32,
    pause_max: u64,
    next_value: u64,
    pub acknowledged: u64,
    pub unclear: u64,
    /// Which kinds of operation this run uses, one bit each.
    kinds: u32,
    pub active: bool,
}

impl Workload {
    pub fn new(mut random: Xoshiro256PlusPlus, now: Instant) -> Self {
        let clients = (0..random.random_range(2..7))
            .map(|_| Client {
                waiting: None,
                next_at: now.after(Duration::from_secs(12)),
                looked: None,
            })
            .collect();
        Self {
            clients,
            registers: BTreeMap::new(),
            counters: BTreeMap::new(),
            keys: random.random_range(1..12),
            pause_max: random.random_range(20..400),
            next_value: 0,
            acknowledged: 0,
            unclear: 0,
            kinds: random.random_range(1..16) | 1,
            active: true,
            random,
        }
    }

    pub fn next_at(&self) -> Option<Instant> {
        let idle = self.clients.iter().filter(|client| client.waiting.is_none());
        if self.active { idle.map(|client| client.next_at).min() } else { None }
    }

    /// What client `number` asks for next.
    pub fn ask(&mut self, number: usize, now: Instant) -> Owned {
        let pick = self.random.random_range(0..100);
        let key = self.random.random_range(0..self.keys);
        let uses = |bit: u32| self.kinds & (1 << bit) != 0;
        if let Some((key, base, token)) = self.clients[number].looked.take() {
            let counter = self.counters.entry(key.clone()).or_default();
            counter.ask(now);
            let kind = token.map_or(Kind::Add, Kind::CompareAndSet);
            let value = (base + 1).to_string().into_bytes();
            let asked = Asked::CompareAndStore(key.clone(), base + 1);
            self.clients[number].waiting = Some((asked, now));
            return Owned { key, value, kind };
        }
        let (asked, owned) = match pick {
            0..15 if uses(1) => {
                let key = format!("incr-{key}");
                self.counters.entry(key.clone()).or_default().ask(now);
                let owned = Owned { key: key.clone(), value: Vec::new(), kind: Kind::Increment };
                (Asked::Increment(key), owned)
            }
            15..25 if uses(1) => {
                let key = format!("incr-{key}");
                let owned = Owned { key: key.clone(), value: Vec::new(), kind: Kind::Get };
                (Asked::ReadCounter(key), owned)
            }
            25..40 if uses(2) => {
                let key = format!("cas-{key}");
                let owned = Owned { key: key.clone(), value: Vec::new(), kind: Kind::Get };
                (Asked::Look(key), owned)
            }
            40..50 if uses(3) => {
                let key = format!("key-{key}");
                let write = self.registers.entry(key.clone()).or_default().ask(None, now);
                let owned = Owned { key: key.clone(), value: Vec::new(), kind: Kind::Delete };
                (Asked::Delete(key, write), owned)
            }
            pick if pick % 2 == 0 => {
                let key = format!("key-{key}");
                self.next_value += 1;
                let value = self.next_value;
                let write = self.registers.entry(key.clone()).or_default().ask(Some(value), now);
                let value = value.to_string().into_bytes();
                (Asked::Write(key.clone(), write), Owned { key, value, kind: Kind::Set })
            }
            _ => {
                let key = format!("key-{key}");
                let owned = Owned { key: key.clone(), value: Vec::new(), kind: Kind::Get };
                (Asked::Read(key), owned)
            }
        };
        self.clients[number].waiting = Some((asked, now));
        owned
    }

    /// Client `number` gets an answer.
    pub fn told(&mut self, number: usize, answer: &Answer, now: Instant) -> Result<(), String> {
        let Some((asked, began)) = self.clients[number].waiting.take() else {
            return Err(format!("client {number} was answered twice: {answer:?}"));
        };
        // Who is refused does not ask again at once.
        let refused = if *answer == Answer::Unclear { 50 } else { 0 };
        let pause = refused + self.random.random_range(1..=self.pause_max);
        self.clients[number].next_at = now.after(Duration::from_millis(pause));
        if *answer == Answer::Unclear {
            self.unclear += 1;
            return Ok(());
        }
        self.acknowledged += 1;
        let value_of =
            |bytes: &[u8]| -> Option<u64> { std::str::from_utf8(bytes).ok()?.parse().ok() };
        let outcome = match (&asked, answer) {
            (Asked::Read(key), Answer::Hit(value, _)) => {
                self.registers.entry(key.clone()).or_default().may_show(value_of(value), began, now)
            }
            (Asked::Read(key), Answer::Miss) => {
                self.registers.entry(key.clone()).or_default().may_show(None, began, now)
            }
            (Asked::Write(key, write), Answer::Stored) => {
                self.registers.get_mut(key).expect("asked").acknowledge(*write, now);
                Ok(())
            }
            (Asked::Delete(key, write), Answer::Deleted) => {
                self.registers.get_mut(key).expect("asked").acknowledge(*write, now);
                Ok(())
            }
            (Asked::Delete(key, write), Answer::NotFound) => {
                // A read that showed nothing, and no write.
                let register = self.registers.get_mut(key).expect("asked");
                register.withdraw(*write);
                register.may_show(None, began, now)
            }
            (Asked::Increment(key), Answer::Number(number)) => {
                let counter = self.counters.get_mut(key).expect("asked");
                counter
                    .acknowledge(*number, now)
                    .and_then(|()| counter.may_show(*number, began, now))
            }
            (Asked::ReadCounter(key), Answer::Hit(value, _)) => {
                let counter = self.counters.entry(key.clone()).or_default();
                counter.may_show(value_of(value).unwrap_or(u64::MAX), began, now)
            }
            (Asked::ReadCounter(key), Answer::Miss) => {
                self.counters.entry(key.clone()).or_default().may_show(0, began, now)
            }
            (Asked::Look(key), Answer::Hit(value, token)) => {
                let base = value_of(value).unwrap_or(u64::MAX - 1);
                self.clients[number].looked = Some((key.clone(), base, Some(*token)));
                let counter = self.counters.entry(key.clone()).or_default();
                counter.may_show(base, began, now)
            }
            (Asked::Look(key), Answer::Miss) => {
                self.clients[number].looked = Some((key.clone(), 0, None));
                self.counters.entry(key.clone()).or_default().may_show(0, began, now)
            }
            (Asked::CompareAndStore(key, value), Answer::Stored) => {
                let counter = self.counters.get_mut(key).expect("asked");
                counter.acknowledge(*value, now)
            }
            (Asked::CompareAndStore(..), Answer::Exists | Answer::NotFound | Answer::NotStored) => {
                Ok(())
            }
            (asked, answer) => Err(format!("{asked:?} was answered {answer:?}")),
        };
        outcome
            .map_err(|why| format!("{asked:?}, asked at {}: {why}", began.as_millis() % 1_000_000))
    }
}
