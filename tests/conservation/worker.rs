//! One client: it owns some keys, changes them over all of its connections and remembers every
//! answer.

use std::net::SocketAddr;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::live::Noise;
use crate::model::{
    Entry, Held, Kind, Outcome, Piece, Request, Span, Token, VALUE_BYTES_MAX, Value,
};
use crate::pipe::Pipe;
use crate::wire::{PROTOCOLS, Protocol, may_be_quiet};

/// What a reset connection has left with the server has been carried out after so long.
const REST: Duration = Duration::from_secs(3);
/// Most bytes of one batch, in each direction.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Longest value that is still appended to, and longest addition.
const GROWN_FROM_BYTES_MAX: usize = 300_000;
const GROWN_BY_BYTES_MAX: u64 = 12_000;
/// Connections of a client.
const PIPES: usize = 8;
/// Connections that only serve bursts. Few, since the kernel hands on what has come over twenty at a
/// time, and what comes at once is to be as much as possible.
const BURST_PIPES: usize = 2;
/// Bytes of a burst on one connection.
const BURST_BYTES: u64 = 1_500_000;
/// Most bytes of one client's values, as long as nothing may be evicted: those that change, and
/// those of bursts.
const CHANGING_BYTES_MAX: usize = 8 << 20;
const BURSTS_BYTES_MAX: usize = 200 << 20;
/// Every so many keys is a counter.
const COUNTER_EVERY: u32 = 8;

/// What all clients of a phase share with the one who leads them.
pub struct Shared {
    pub address: SocketAddr,
    /// Held for reading during each batch, for writing while the leader wants silence.
    pub gate: RwLock<()>,
    /// Raised by the leader: every client writes new keys at once.
    pub bursts: AtomicU32,
    /// Raised when everything was flushed.
    pub flushes: AtomicU32,
    /// How long values are: a number below [`SIZES`].
    pub sizes: AtomicU32,
    pub is_over: AtomicBool,
    /// Whether items may be evicted: then a miss proves nothing, and there is no limit to what is
    /// stored.
    pub evicts: bool,
    /// Whether there is anything besides bursts.
    pub changes: bool,
    pub answers: AtomicU64,
    pub resets: AtomicU64,
}

/// Mixes of lengths: tiny, small, pages, long, all.
pub const SIZES: u32 = 5;

pub struct Worker<'s> {
    number: u32,
    shared: &'s Shared,
    noise: Noise,
    table: Vec<Entry>,
    /// The keys that change all the time; those of bursts stay, so that the server grows.
    changing: Vec<u32>,
    pipes: Vec<(Protocol, Pipe)>,
    version: u32,
    bursts: u32,
    flushes: u32,
    /// There is as much as there should be.
    crowded: bool,
    burst_bytes: usize,
    /// Bytes since somebody looked.
    moved: usize,
    batches: u32,
}

impl<'s> Worker<'s> {
    pub fn new(number: u32, seed: u64, shared: &'s Shared) -> Self {
        // Again and again, so that each protocol is spoken with both cores.
        let pipes = PROTOCOLS.iter().cycle().take(PIPES + BURST_PIPES);
        let pipes = pipes.map(|&protocol| (protocol, Pipe::connect(shared.address))).collect();
        let noise = Noise::new(seed ^ (u64::from(number) + 1) << 32);
        Self {
            number,
            shared,
            noise,
            table: Vec::new(),
            changing: Vec::new(),
            pipes,
            version: 0,
            bursts: 0,
            flushes: 0,
            crowded: false,
            burst_bytes: 0,
            moved: 0,
            batches: 0,
        }
    }

    /// Works until the phase is over, then reads everything once. How many items there are for
    /// certain, and at most.
    pub fn run(mut self) -> (u64, u64) {
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let silence = self.shared.gate.read().expect("nobody panics with it");
            self.notice();
            if self.bursts != self.shared.bursts.load(Ordering::Relaxed) {
                self.bursts = self.shared.bursts.load(Ordering::Relaxed);
                self.burst();
            } else if self.shared.changes {
                self.batch();
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(silence);
            // Others who want the gate get it.
            std::thread::yield_now();
        }
        let silence = self.shared.gate.read().expect("nobody panics with it");
        self.notice();
        drop(silence);
        let all: Vec<u32> = (0..self.table.len() as u32).collect();
        self.read_back(&all);
        let certain = self.table.iter().filter(|entry| entry.held_for_good().is_some());
        let possible = self.table.iter().filter(|entry| entry.may_hold().is_some());
        (certain.count() as u64, possible.count() as u64)
    }

    /// Takes in what the leader has done meanwhile, and looks at how much there is.
    fn notice(&mut self) {
        let flushes = self.shared.flushes.load(Ordering::Relaxed);
        if self.flushes != flushes {
            self.flushes = flushes;
            self.table.iter_mut().for_each(Entry::flush);
        }
        self.batches += 1;
        if self.batches.is_multiple_of(32) || self.moved > CHANGING_BYTES_MAX / 8 {
            self.moved = 0;
            let entries = self.changing.iter().map(|&index| &self.table[index as usize]);
            let lengths = entries.filter_map(Entry::may_hold).map(|held| held.value.len());
            self.crowded = !self.shared.evicts && lengths.sum::<usize>() > CHANGING_BYTES_MAX;
        }
    }

    /// The number from which a key's values are made.
    fn key(&self, index: u32) -> u32 {
        self.number << 24 | index
    }

    fn name(&self, index: u32) -> String {
        let filling = (index as usize * 7) % 90;
        format!("client{}:{index}:{:x<filling$}", self.number, "")
    }

    fn value_bytes(&mut self) -> u64 {
        let noise = &mut self.noise;
        let any = noise.below(100);
        match (self.shared.sizes.load(Ordering::Relaxed), any) {
            (_, 0..3) => 0,
            (0, _) | (4, 3..40) => noise.below(100),
            (1, _) | (4, 40..75) => noise.below(4000),
            (2, _) | (4, 75..96) => 3000 + noise.below(20_000),
            (3, 3..50) => 30_000 + noise.below(200_000),
            (_, 99) => VALUE_BYTES_MAX as u64,
            (_, _) => 64_000 + noise.below(VALUE_BYTES_MAX as u64 - 64_000),
        }
    }

    fn piece(&mut self, bytes: u64) -> Piece {
        self.version += 1;
        Piece { version: self.version, bytes: bytes as u32 }
    }

    fn ttl(&mut self) -> u32 {
        match self.noise.below(10) {
            0..3 => 2 + self.noise.below(5) as u32,
            _ => 0,
        }
    }

    /// A key that is not waiting for late effects; now and then a new one.
    fn pick(&mut self) -> Option<u32> {
        let now = Instant::now();
        let count = self.changing.len() as u64;
        if count == 0 || self.noise.below(12) == 0 && count < 15_000 && !self.crowded {
            let index = self.fresh();
            self.changing.push(index);
            return Some(index);
        }
        let index = match self.noise.below(10) {
            // Some keys are asked for often.
            0..3 => self.changing[self.noise.below(count.min(64)) as usize],
            3..9 => self.changing[self.noise.below(count) as usize],
            _ => self.noise.below(self.table.len() as u64) as u32,
        };
        let entry = &mut self.table[index as usize];
        match entry.rests_until {
            Some(until) if until > now => None,
            _ => {
                entry.rests_until = None;
                Some(index)
            }
        }
    }

    fn fresh(&mut self) -> u32 {
        self.table.push(Entry::default());
        self.table.len() as u32 - 1
    }

    fn choose(&mut self, index: u32) -> Kind {
        let ttl = self.ttl();
        let any = self.noise.below(100);
        if self.changing.binary_search(&index).is_err() {
            return if any < 50 { Kind::Get } else { Kind::Gets };
        }
        if index.is_multiple_of(COUNTER_EVERY) {
            let by = self.noise.below(1000) as u32;
            return match any {
                0..10 => Kind::SetNumber(by, ttl),
                10..50 => Kind::Increment(by),
                50..70 => Kind::Decrement(by),
                70..90 => Kind::Get,
                90..95 => Kind::Touch(ttl),
                _ => Kind::Delete,
            };
        }
        let entry = &self.table[index as usize];
        let held = entry.may_hold().map(|held| held.value.len());
        if self.crowded && held.is_some_and(|bytes| bytes > 2000) && any < 70 {
            return Kind::Delete;
        }
        let token = match entry.token {
            Token::Valid(token) | Token::Stale(token) => Some(token),
            Token::Unknown => None,
        };
        let bytes = if self.crowded { self.noise.below(200) } else { self.value_bytes() };
        let addition = self.noise.below(GROWN_BY_BYTES_MAX);
        let grows = held.is_none_or(|bytes| bytes < GROWN_FROM_BYTES_MAX) && !self.crowded;
        match (any, token) {
            (0..22, _) => Kind::Get,
            (22..32, _) => Kind::Gets,
            (32..36, _) => Kind::GetAndTouch(ttl),
            (36..60, _) => Kind::Set(self.piece(bytes), ttl),
            (60..66, _) => Kind::Add(self.piece(bytes), ttl),
            (66..72, _) => Kind::Replace(self.piece(bytes), ttl),
            (72..76, _) if grows => Kind::Append(self.piece(addition)),
            (76..80, _) if grows => Kind::Prepend(self.piece(addition)),
            (72..88, Some(token)) => Kind::Cas(token, self.piece(bytes), ttl),
            (88..92, _) => Kind::Touch(ttl),
            (92.., _) => Kind::Delete,
            _ => Kind::Gets,
        }
    }

    /// Requests for one connection.
    fn requests(&mut self, protocol: Protocol) -> Vec<Request> {
        let count = 1 + self.noise.below(40);
        let mut bytes = 0;
        let mut requests = Vec::new();
        for _ in 0..count {
            let Some(index) = self.pick() else { continue };
            let kind = self.choose(index);
            let quiet = may_be_quiet(protocol, kind) && self.noise.below(6) == 0;
            bytes += self.bytes_of(index, kind);
            requests.push(Request { index, kind, quiet });
            if bytes > BATCH_BYTES_MAX {
                break;
            }
        }
        self.moved += bytes;
        if let Some(last) = requests.last_mut() {
            last.quiet = false;
        }
        requests
    }

    /// About how many bytes a request moves.
    fn bytes_of(&self, index: u32, kind: Kind) -> usize {
        match kind {
            Kind::Set(piece, _) | Kind::Add(piece, _) | Kind::Replace(piece, _) => {
                piece.bytes as usize
            }
            Kind::Cas(_, piece, _) => piece.bytes as usize,
            Kind::Get | Kind::Gets | Kind::GetAndTouch(_) => {
                self.table[index as usize].may_hold().map_or(0, |held| held.value.len())
            }
            _ => 0,
        }
    }

    fn batch(&mut self) {
        let pipe = self.noise.below(PIPES as u64) as usize;
        let any = self.noise.below(100);
        if self.pipes[pipe].0 == Protocol::Text && any < 25 {
            let mut indexes: Vec<u32> = (0..30).filter_map(|_| self.pick()).collect();
            indexes.sort_unstable();
            indexes.dedup();
            return self.read_many(pipe, &indexes);
        }
        let requests = self.requests(self.pipes[pipe].0);
        if any == 99 {
            self.lose(pipe, &requests);
        } else {
            self.perform(pipe, &requests);
        }
    }

    fn encoded(&self, protocol: Protocol, requests: &[Request]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &request in requests {
            let (key, name) = (self.key(request.index), self.name(request.index));
            protocol.encode(key, &name, request, &mut bytes);
        }
        bytes
    }

    fn perform(&mut self, pipe: usize, requests: &[Request]) {
        let bytes = self.encoded(self.pipes[pipe].0, requests);
        let sent = Instant::now();
        self.pipes[pipe].1.queue(&bytes);
        self.collect(pipe, requests, sent);
    }

    /// Reads the answers to requests and takes them in.
    fn collect(&mut self, pipe: usize, requests: &[Request], sent: Instant) {
        let mut outcomes = Vec::new();
        for request in requests {
            let name = self.name(request.index);
            let (protocol, pipe) = &mut self.pipes[pipe];
            outcomes.push(match request.quiet {
                true => Outcome::Silent,
                false => protocol.decode(pipe, &name, request.kind),
            });
        }
        let span = Span { sent, received: Instant::now() };
        for (request, outcome) in requests.iter().zip(&outcomes) {
            self.take_in(pipe, request.index, request.kind, outcome, span);
        }
    }

    fn take_in(&mut self, pipe: usize, index: u32, kind: Kind, outcome: &Outcome, span: Span) {
        let (key, evicts) = (self.key(index), self.shared.evicts);
        let answered = self.table[index as usize].answered(key, kind, outcome, span, evicts);
        self.shared.answers.fetch_add(1, Ordering::Relaxed);
        if let Err(wrong) = answered {
            let (protocol, name) = (self.pipes[pipe].0, self.name(index));
            panic!("{name} (key {key:#x}) over {protocol:?}, connection {pipe}: {wrong}");
        }
    }

    /// Sends a part of the requests and resets the connection.
    fn lose(&mut self, pipe: usize, requests: &[Request]) {
        let protocol = self.pipes[pipe].0;
        let bytes = self.encoded(protocol, requests);
        let cut = self.noise.below(bytes.len() as u64 + 1) as usize;
        let fresh = Pipe::connect(self.shared.address);
        let (_, mut lost) = std::mem::replace(&mut self.pipes[pipe], (protocol, fresh));
        let sent = Instant::now();
        lost.queue(&bytes[..cut]);
        lost.push();
        if self.noise.below(2) == 0 {
            std::thread::sleep(Duration::from_millis(self.noise.below(4)));
        }
        lost.reset();
        let received = Instant::now();
        for request in requests {
            let (key, evicts) = (self.key(request.index), self.shared.evicts);
            let span = Span { sent, received: received + REST };
            self.table[request.index as usize].lose(key, request.kind, span, evicts);
        }
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads several keys in one line of the text protocol.
    fn read_many(&mut self, pipe: usize, indexes: &[u32]) {
        if indexes.is_empty() {
            return;
        }
        let names: Vec<String> = indexes.iter().map(|&index| self.name(index)).collect();
        let sent = Instant::now();
        let socket = &mut self.pipes[pipe].1;
        socket.queue(format!("gets {}\r\n", names.join(" ")).as_bytes());
        let mut outcomes = vec![Outcome::Missed; indexes.len()];
        let mut next = 0;
        loop {
            let line = socket.line();
            if line == "END" {
                break;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let ["VALUE", name, flags, bytes, token] = words[..] else { panic!("{line}") };
            let ahead = names[next..].iter().position(|known| known == name);
            let at = next + ahead.unwrap_or_else(|| panic!("nobody asked for {line} now"));
            let value = socket.take(bytes.parse().expect("a length"));
            assert_eq!(socket.line(), "", "after {name}");
            let flags = flags.parse().expect("flags");
            let token = Some(token.parse().expect("a token"));
            outcomes[at] = Outcome::Found { flags, token, value };
            next = at + 1;
        }
        let span = Span { sent, received: Instant::now() };
        for (&index, outcome) in indexes.iter().zip(&outcomes) {
            self.take_in(pipe, index, Kind::Gets, outcome, span);
        }
    }

    /// New keys over all connections at once, without waiting for answers in between; then all of
    /// them are read. Values of one burst are of one length, so that they need pages of their own.
    fn burst(&mut self) {
        if !self.shared.evicts && self.burst_bytes > BURSTS_BYTES_MAX {
            return;
        }
        let mut sent = Vec::new();
        let mut fresh = Vec::new();
        let bytes = 2000 + u64::from(self.bursts) * 1700 % 12_000;
        for pipe in PIPES..self.pipes.len() {
            let mut requests = Vec::new();
            for _ in 0..BURST_BYTES / bytes {
                let index = self.fresh();
                // Items of the TTL wheel as well.
                let ttl = if self.noise.below(4) == 0 { 20 } else { 0 };
                let kind = match index.is_multiple_of(COUNTER_EVERY) {
                    true => Kind::SetNumber(index, ttl),
                    false => Kind::Set(self.piece(bytes), ttl),
                };
                requests.push(Request { index, kind, quiet: false });
                fresh.push(index);
            }
            let bytes = self.encoded(self.pipes[pipe].0, &requests);
            self.burst_bytes += bytes.len();
            let now = Instant::now();
            self.pipes[pipe].1.queue(&bytes);
            self.pipes[pipe].1.push();
            sent.push((pipe, requests, now));
        }
        for (pipe, requests, sent) in sent {
            self.collect(pipe, &requests, sent);
        }
        self.read_back(&fresh);
    }

    /// Reads keys over one connection after the other.
    fn read_back(&mut self, indexes: &[u32]) {
        let mut rest = indexes;
        let mut pipe = 0;
        while !rest.is_empty() {
            let mut bytes = 0;
            let many = rest.iter().take_while(|&&index| {
                bytes += 100 + self.bytes_of(index, Kind::Get);
                bytes < BATCH_BYTES_MAX
            });
            let (now, later) = rest.split_at(many.count().clamp(1, 200));
            rest = later;
            pipe = (pipe + 1) % PIPES;
            let kind = Kind::Get;
            let requests: Vec<Request> =
                now.iter().map(|&index| Request { index, kind, quiet: false }).collect();
            self.perform(pipe, &requests);
        }
    }
}

/// What the leader keeps besides: one long value at a time.
pub fn long_value(number: u32) -> Held {
    let piece = Piece { version: number, bytes: 900_000 };
    Held { value: Value::Pieces(vec![piece]), flags: 0, life: None }
}
