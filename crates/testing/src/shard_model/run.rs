//! Drives a shard and the model with the same operations, read from arbitrary bytes.

use super::{Answer, Cas, Model};
use ringlane_shard::counters::Counters;
use ringlane_shard::{Eviction, ScanCursor, Shard, ShardConfig, StageRefusal, Staging};
use ringlane_types::hash::{HashSecret, KeyHash};
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, ItemRef, Operation, Purpose, Request, Response, Store,
    StoreMode, Vivify,
};
use ringlane_types::time::{Deadline, Instant};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// Interprets `bytes` as a configuration and operations, performs them on a shard and on the
/// model, and panics where they disagree or an invariant breaks. Any bytes will do.
pub fn run(bytes: &[u8]) {
    run_with(&HashSecret::of_seed(11), bytes);
}

/// The same where all keys of seven bytes that begin with the same four have one hash.
pub fn run_colliding(bytes: &[u8]) {
    run_with(&HashSecret::drawn(|| 0), bytes);
}

fn run_with(secret: &HashSecret, bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte();
    let config = ShardConfig {
        memory_bytes: [1 << 20, 1 << 20, 2 << 20, 4 << 20][choice as usize & 3],
        item_bytes_max: [64 << 10, 512 << 10, 100 << 10, 1 << 10][choice as usize >> 2 & 3],
        eviction: match choice >> 4 & 3 {
            0 => Eviction::Lru,
            1 => Eviction::None,
            2 => [Eviction::Fifo, Eviction::Random, Eviction::Ttl, Eviction::Lfu]
                [choice as usize >> 2 & 3],
            _ => [Eviction::S3Fifo, Eviction::S3Fifo, Eviction::Lfu, Eviction::None]
                [choice as usize >> 2 & 3],
        },
    };
    let core_count = 1 + (choice >> 6) as u32;
    let shard = Shard::new(&config, Rc::new(secret.clone()), core_count - 1, core_count);
    let mut pair = Pair {
        model: Model::new(config.item_bytes_max as u64, shard.frequency_mask()),
        shard,
        secret,
        evicts: config.eviction != Eviction::None,
        now: Instant::from_millis(1_700_000_000_000 + input.byte() as u64 * 77_777_777),
        last_cas: 0,
        core: core_count as u64 - 1,
        core_count: core_count as u64,
        pins: HashMap::new(),
        filler: 0,
    };
    while !input.0.is_empty() {
        pair.step(&mut input);
    }
    pair.finish();
}

struct Pair<'a> {
    shard: Shard,
    secret: &'a HashSecret,
    model: Model,
    evicts: bool,
    now: Instant,
    /// The latest CAS token that the shard chose.
    last_cas: u64,
    core: u64,
    core_count: u64,
    /// Pinned items: key and value when they were pinned, and how often.
    pins: HashMap<ItemRef, (Vec<u8>, u32)>,
    filler: u32,
}

impl Pair<'_> {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 32 {
            0..=5 => self.get(input),
            6..=14 => self.store(input),
            15..=16 => self.delete(input),
            17..=19 => self.arithmetic(input),
            20..=22 => self.advance(input),
            23 => {
                let budget = 1 + input.byte() as u32 * 8;
                self.shard.maintain(self.now, budget);
                // What was never used may be given back, after which it is zeroes.
                self.shard.untouched_mut().fill(0);
            }
            24 => {
                let at = match input.byte() % 4 {
                    0 => self.now.after(Duration::from_millis(input.short() as u64)),
                    1 => Instant::from_millis(0),
                    _ => self.now,
                };
                self.shard.flush_all(at, self.now);
                self.model.flush_all(at, self.now);
                if at == self.now && input.byte() < 64 {
                    self.flush_often(input);
                }
            }
            25 => self.pin(input),
            26 => self.fill(input),
            27 => self.scan(),
            28 => {
                let (from, to) = (input.byte() as i32 % 40 - 1, input.byte() as i32 % 40);
                self.shard.reassign_page(from, to);
            }
            29 => {
                let bytes = (self.shard.gauges().memory_bytes_max, 1 << 20, 2 << 20);
                let bytes = [bytes.0, bytes.1, bytes.2][input.byte() as usize % 3];
                self.shard.set_memory_limit(bytes);
            }
            _ => self.shard.check_invariants(),
        }
        self.check_pins();
    }

    fn finish(mut self) {
        self.shard.check_invariants();
        for item in std::mem::take(&mut self.pins) {
            (0..item.1.1).for_each(|_| self.shard.unpin(item.0));
        }
        self.shard.check_invariants();
        self.scan();
        // Everything goes, and nothing stays behind.
        self.shard.flush_all(self.now, self.now);
        // Twice, for a sweep under way may have passed what was pinned.
        while self.shard.maintain(self.now, 1000) {}
        while self.shard.maintain(self.now, 1000) {}
        self.shard.check_invariants();
        let gauges = self.shard.gauges();
        assert_eq!((gauges.items, gauges.flushed_items, gauges.item_bytes), (0, 0, 0));
        assert_eq!((gauges.ttl_items, gauges.chunk_bytes), (0, 0));
    }

    /// Flushes so often that no epoch is left, with something stored in between.
    fn flush_often(&mut self, input: &mut Input<'_>) {
        for _ in 0..17 {
            self.fill(input);
            self.store(input);
            self.shard.flush_all(self.now, self.now);
            self.model.flush_all(self.now, self.now);
        }
        self.shard.check_invariants();
    }

    fn get(&mut self, input: &mut Input<'_>) {
        let key = input.key();
        let options = input.byte();
        let mut get = Get {
            purpose: [Purpose::Get, Purpose::Touch, Purpose::Inspect, Purpose::Describe]
                [options as usize & 3],
            no_use: options & 4 != 0,
            lease: options & 8 != 0,
            ..Get::default()
        };
        if options & 16 != 0 {
            get.touch = Some(input.deadline(self.now));
        }
        if options & 32 != 0 {
            let (deadline, cas) = (input.deadline(self.now), input.cas(self, &key));
            get.vivify = Some(Vivify { deadline, cas, binary_key: options & 64 != 0 });
        }
        if options & 128 != 0 {
            let seconds = input.short();
            get.refresh_below_seconds = Some(seconds as u32);
            get.refresh_first = seconds & 1 == 1;
        }
        self.execute(&key, Operation::Get(get), None);
    }

    fn store(&mut self, input: &mut Input<'_>) {
        let key = input.key();
        let value = input.value();
        let options = input.byte();
        let mode = [StoreMode::Set, StoreMode::Add, StoreMode::Replace, StoreMode::Append]
            [options as usize & 3];
        let prepends = mode == StoreMode::Append && options & 4 != 0;
        let mut store = Store {
            mode: if prepends { StoreMode::Prepend } else { mode },
            refusal_removes: options & 8 != 0,
            binary_key: options & 16 != 0,
            flags: if options & 32 != 0 { input.short() as u32 } else { 0 },
            ..Store::set(&value)
        };
        if options & 64 != 0 {
            store.deadline = input.deadline(self.now);
        }
        if options & 128 != 0 {
            let more = input.byte();
            store.compare = (more & 1 != 0).then(|| input.cas(self, &key)).flatten();
            store.accept_older = more & 2 != 0;
            store.cas = (more & 4 != 0).then(|| input.cas(self, &key)).flatten();
            store.vivify = (more & 8 != 0).then(|| input.deadline(self.now));
            if more & 16 != 0 {
                return self.store_staged(&key, &store, &value, more);
            }
        }
        self.execute(&key, Operation::Store(store), None);
    }

    /// Receives the value into place, perhaps announced otherwise than it is stored.
    fn store_staged(&mut self, key: &[u8], store: &Store<'_>, value: &[u8], choice: u8) {
        let (flags, deadline) = match choice & 32 {
            0 => (store.flags, store.deadline),
            _ => (!store.flags, Deadline::NEVER),
        };
        let mut staging = Staging::new(key.len(), flags, deadline, value.len() as u32);
        let slice = 1 + u32::from(choice & 15);
        let staged = loop {
            match self.shard.make_room(&mut staging, slice, self.now).transpose() {
                Some(staged) => break staged,
                None => self.shard.check_invariants(),
            }
        };
        match staged {
            Ok(staged) => {
                let mut rest = value;
                for span in self.shard.staged_spans(&staged).collect::<Vec<_>>() {
                    let (part, more) = rest.split_at(span.bytes as usize);
                    let start = span.offset as usize;
                    self.shard.memory_mut()[start..start + part.len()].copy_from_slice(part);
                    rest = more;
                }
                assert!(rest.is_empty());
                self.note_evictions();
                if choice & 192 == 192 {
                    self.shard.check_invariants();
                    self.shard.discard(staged);
                    return;
                }
                let store = Store { value: Body::Staged(staged), ..*store };
                self.execute(key, Operation::Store(store), Some(value));
            }
            Err(refusal) => {
                let fits = self.model.fits(key, flags, value.len());
                assert_eq!(refusal == StageRefusal::TooLarge, !fits);
                if !fits && !self.model.fits(key, store.flags, value.len()) {
                    let store = Store { value: Body::Refused(value.len() as u64), ..*store };
                    self.execute(key, Operation::Store(store), Some(value));
                }
            }
        }
    }

    fn delete(&mut self, input: &mut Input<'_>) {
        let key = input.key();
        let options = input.byte();
        let delete = Delete {
            compare: (options & 1 != 0).then(|| input.cas(self, &key)).flatten(),
            invalidate: options & 2 != 0,
            deadline: (options & 4 != 0).then(|| input.deadline(self.now)),
            empty: (options & 24 == 24).then(|| input.byte() as u32),
            cas: (options & 32 != 0).then(|| input.cas(self, &key)).flatten(),
        };
        self.execute(&key, Operation::Delete(delete), None);
        // The new token is in no answer.
        let inspect = Get { purpose: Purpose::Inspect, no_use: true, ..Get::default() };
        self.execute(&key, Operation::Get(inspect), None);
    }

    fn arithmetic(&mut self, input: &mut Input<'_>) {
        let key = input.key();
        let options = input.byte();
        let delta = match options & 3 {
            0 => input.byte() as u64,
            1 => u64::MAX - input.byte() as u64,
            _ => 1 << (input.byte() % 64),
        };
        let arithmetic = Arithmetic {
            compare: (options & 4 != 0).then(|| input.cas(self, &key)).flatten(),
            create: (options & 8 != 0).then(|| (delta, input.deadline(self.now))),
            touch: (options & 16 != 0).then(|| input.deadline(self.now)),
            cas: (options & 32 != 0).then(|| input.cas(self, &key)).flatten(),
            binary_key: options & 64 != 0,
            ..Arithmetic::by(delta, options & 128 != 0)
        };
        self.execute(&key, Operation::Arithmetic(arithmetic), None);
        if self.pins.is_empty() {
            return;
        }
        // A number that is being sent is not padded but stored anew.
        let (inspect, now) = (self.inspect(&key), self.now);
        if let Response::Hit(hit) = self.shard.execute(&inspect, now)
            && let Some(item) = self.model.items.get_mut(&key)
            && hit.value.to_vec() == item.value.trim_ascii_end()
        {
            item.value = hit.value.to_vec();
        }
    }

    fn inspect<'k>(&self, key: &'k [u8]) -> Request<'k> {
        let get = Get { purpose: Purpose::Inspect, no_use: true, ..Get::default() };
        Request { key, hash: KeyHash::of(key, self.secret), operation: Operation::Get(get) }
    }

    fn advance(&mut self, input: &mut Input<'_>) {
        let amount = input.byte() as u64;
        let millis = match input.byte() % 8 {
            0..=3 => amount,
            4 => amount * 50,
            5 => amount * 1000,
            6 => amount * 100_000,
            _ => amount * 40_000_000,
        };
        self.now = self.now.after(Duration::from_millis(millis));
    }

    /// Fills memory with items the model does not follow. Under a secret that lets keys collide
    /// they do, with one of the model's.
    fn fill(&mut self, input: &mut Input<'_>) {
        let count = 1 + input.byte() as u32;
        let bytes = input.value_bytes() / 4;
        for _ in 0..count {
            self.filler += 1;
            let key = format!("BCDE{:03x}", self.filler);
            let value = vec![b'f'; bytes];
            let request = Request {
                key: key.as_bytes(),
                hash: KeyHash::of(key.as_bytes(), self.secret),
                operation: Operation::Store(Store::set(&value)),
            };
            let fits = self.model.fits(key.as_bytes(), 0, bytes);
            match self.shard.execute(&request, self.now) {
                Response::Stored { cas, .. } => self.last_cas = cas,
                Response::TooLarge => assert!(!fits),
                Response::OutOfMemory => assert!(!self.evicts || !self.pins.is_empty()),
                other => panic!("a set was answered {other:?}"),
            }
            self.model.counters.cmd_set += u64::from(fits);
        }
        self.model.counters = self.shard.counters().clone();
        self.note_evictions();
    }

    fn pin(&mut self, input: &mut Input<'_>) {
        if input.byte() & 1 == 0
            && let Some(&item) = self.pins.keys().min()
        {
            self.shard.unpin(item);
            self.model.counters.total_items = self.shard.counters().total_items;
            let (_, count) = self.pins.get_mut(&item).expect("it is pinned");
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&item);
            }
            return;
        }
        let key = input.key();
        let request = self.inspect(&key);
        if self.pins.len() < 3
            && let Response::Hit(hit) = self.shard.execute(&request, self.now)
        {
            let (item, value) = (hit.item.expect("it is ours"), hit.value.to_vec());
            self.shard.pin(item);
            self.pins.entry(item).or_insert((value, 0)).1 += 1;
        }
    }

    fn check_pins(&self) {
        for (&item, (value, _)) in &self.pins {
            assert_eq!(&self.shard.pinned_value(item).to_vec(), value, "a pinned value stays");
        }
    }

    /// A walk visits what is there.
    fn scan(&mut self) {
        self.model.run_due_work(self.now);
        let attend = self.inspect(b"nobody");
        self.shard.execute(&attend, self.now);
        let mut seen = HashMap::new();
        let mut cursor = ScanCursor::default();
        let (shard, now) = (&self.shard, self.now);
        while shard.scan(&mut cursor, 10, now, |hit| {
            let twice = seen.insert(hit.key.to_vec(), hit.value.to_vec());
            assert_eq!(twice, None, "an item is visited once");
        }) {}
        for (key, item) in &self.model.items {
            match seen.get(key) {
                Some(value) => assert_eq!(value, &item.value),
                None => assert!(
                    self.may_be_gone(key),
                    "{key:?} was not visited: {item:?} {} pins {:?} {:?}",
                    self.shard.counters().evictions,
                    self.pins.keys(),
                    self.shard.gauges()
                ),
            }
        }
    }

    /// Whether the shard may lack an item that the model has.
    fn may_be_gone(&self, key: &[u8]) -> bool {
        self.model.items.get(key).is_some_and(|item| {
            let evicted = item.evictions < self.shard.counters().evictions;
            // A far deadline is kept in whole seconds, rounded down.
            let second = item.deadline.as_millis() / 1000 * 1000;
            evicted || second <= self.now.as_millis()
        })
    }

    /// Performs an operation on both and compares. A staged or refused value is given to the model
    /// as `value`.
    fn execute(&mut self, key: &[u8], operation: Operation<'_>, value: Option<&[u8]>) {
        let model_operation = match (&operation, value) {
            (Operation::Store(store), Some(value)) => {
                Operation::Store(Store { value: Body::Bytes(value), ..*store })
            }
            (operation, _) => *operation,
        };
        self.model.run_due_work(self.now);
        // Under eviction the shard may lack the item; first find out.
        let inspect = self.inspect(key);
        if self.may_be_gone(key) && matches!(self.shard.execute(&inspect, self.now), Response::Miss)
        {
            self.model.items.remove(key);
        }
        let request = Request { key, hash: KeyHash::of(key, self.secret), operation };
        let answer = Answer::of(&self.shard.execute(&request, self.now), key);
        let counters_before = self.model.counters.clone();
        let item_before = self.model.items.get(key).cloned();

        let mut expected =
            self.model.execute(key, &model_operation, self.now).allowing_for(&answer);
        if expected != answer && answer == Answer::OutOfMemory {
            return self.out_of_memory(key, &model_operation, item_before);
        }
        if let Some(before) = item_before
            && (expected != answer || !self.counters_agree())
        {
            let after = self.model.items.insert(key.to_vec(), before);
            if self.may_be_gone(key) {
                self.model.items.remove(key);
                self.model.counters = counters_before.clone();
                expected =
                    self.model.execute(key, &model_operation, self.now).allowing_for(&answer);
            } else if let Some(after) = after {
                self.model.items.insert(key.to_vec(), after);
            }
        }
        let no_room = answer == Answer::Miss && !self.evicts && matches!(expected, Answer::Hit(_));
        if no_room && matches!(operation, Operation::Get(Get { vivify: Some(_), .. })) {
            self.model.items.remove(key);
            self.model.counters = self.shard.counters().clone();
            return;
        }
        let first = key[0];
        assert_eq!(answer, expected, "of key {first} at {:?}: {operation:?}", self.now);
        self.learn(key, &answer);
        assert_eq!(self.comparable_counters(), self.model.counters, "{operation:?}");
    }

    /// The shard had no room: allowed where nothing may be evicted, or much is held.
    fn out_of_memory(
        &mut self,
        key: &[u8],
        operation: &Operation<'_>,
        item_before: Option<super::ModelItem>,
    ) {
        let gauges = self.shard.gauges();
        let held = !self.pins.is_empty();
        assert!(!self.evicts || held, "an evicting shard always finds room: {gauges:?}");
        let removes = matches!(operation, Operation::Store(Store { refusal_removes: true, .. }));
        match item_before.filter(|_| !removes) {
            Some(item) => self.model.items.insert(key.to_vec(), item),
            None => self.model.items.remove(key),
        };
        if self.evicts || matches!(operation, Operation::Delete(_)) {
            self.model.items.remove(key);
        }
        self.model.counters = self.shard.counters().clone();
        self.note_evictions();
    }

    /// Takes over a CAS token that the shard chose.
    fn learn(&mut self, key: &[u8], answer: &Answer) {
        self.note_evictions();
        let Some(Cas::Exactly(cas)) = answer.cas() else { return };
        if let Some(item) = self.model.items.get_mut(key)
            && item.cas == Cas::Fresh
        {
            assert!(cas > self.last_cas, "tokens only grow");
            assert_eq!((cas - 1) % self.core_count, self.core, "tokens are this core's");
            self.last_cas = cas;
            item.cas = Cas::Exactly(cas);
        }
        if let (Answer::Hit(found), Some(item)) = (answer, self.model.items.get_mut(key)) {
            item.deadline = found.deadline;
        }
    }

    fn note_evictions(&mut self) {
        self.model.evictions = self.shard.counters().evictions;
        // Items stored by this very operation are not older than its evictions.
    }

    fn comparable_counters(&self) -> Counters {
        let mut shard = self.shard.counters().clone();
        let model = &self.model.counters;
        // What the background may do first, or memory decides.
        shard.get_expired = model.get_expired;
        shard.get_flushed = model.get_flushed;
        shard.evictions = model.evictions;
        shard.evicted_unfetched = model.evicted_unfetched;
        shard.expired_unfetched = model.expired_unfetched;
        shard.reclaimed = model.reclaimed;
        shard.chain_evictions = model.chain_evictions;
        shard.slabs_moved = model.slabs_moved;
        shard.store_no_memory = model.store_no_memory;
        if !self.pins.is_empty() {
            shard.total_items = model.total_items;
        }
        shard
    }

    fn counters_agree(&self) -> bool {
        self.comparable_counters() == self.model.counters
    }
}

/// Arbitrary bytes as choices; zeros at the end.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn key(&mut self) -> Vec<u8> {
        let number = self.byte() % 24;
        let bytes = match number {
            0..=7 => 1 + number as usize,
            8..=15 => 3 * number as usize,
            _ => 250 - 3 * (23 - number as usize),
        };
        (0..bytes).map(|at| number.wrapping_mul(11).wrapping_add(at as u8)).collect()
    }

    fn value_bytes(&mut self) -> usize {
        let choice = self.byte();
        let fine = self.byte() as usize;
        match choice % 16 {
            0..=4 => fine % 24,
            5..=8 => fine,
            9..=10 => fine * 16 + fine,
            11 => 4000 + fine,
            12 => 32_500 + fine,
            13 => fine * 128,
            14 => fine * 512,
            _ => fine * 2100,
        }
    }

    fn value(&mut self) -> Vec<u8> {
        if self.byte().is_multiple_of(3) {
            let digits = match self.byte() % 8 {
                0 => u64::MAX,
                1 => 9,
                shift => 10u64.pow(shift as u32) - 1,
            };
            let pad = self.byte() as usize % 4;
            return format!("{}{digits}{}", " ".repeat(pad), " ".repeat(pad / 2)).into_bytes();
        }
        let (bytes, salt) = (self.value_bytes(), self.byte());
        (0..bytes).map(|at| salt.wrapping_add(at as u8).wrapping_mul(at as u8 | 1)).collect()
    }

    fn deadline(&mut self, now: Instant) -> Deadline {
        let amount = self.byte() as u64;
        let millis = match self.byte() % 8 {
            0 => return Deadline::NEVER,
            1 => return Deadline::PAST,
            2 => amount * 7,
            3 => amount * 1000,
            4 => amount * 60_000,
            5 => amount * 3_600_000,
            6 => amount * 86_400_000,
            _ => amount * 864_000_000,
        };
        Deadline::at(now.after(Duration::from_millis(millis)))
    }

    /// A token: the item's own, one near it, or another.
    fn cas(&mut self, pair: &Pair, key: &[u8]) -> Option<u64> {
        let own = match pair.model.items.get(key).map(|item| item.cas) {
            Some(Cas::Exactly(cas)) => cas,
            _ => 5,
        };
        Some(match self.byte() % 8 {
            0..=4 => own,
            5 => own.wrapping_sub(1),
            6 => own.saturating_add(1),
            _ => self.byte() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{run, run_colliding};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_shard_answers_as_the_model_does(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            run(&bytes);
        }

        #[test]
        fn it_does_where_all_keys_have_one_hash(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            run_colliding(&bytes);
        }
    }
}
