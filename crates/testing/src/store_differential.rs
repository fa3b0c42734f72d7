//! The shard and the naive store get the same calls and must agree about every answer and record.
//!
//! With ample memory the shard forgets nothing but tombstones whose time has come. Otherwise it may
//! have evicted what the map still has; whatever it shows must be what the map has. For proptest
//! and fuzzing.

use ringlane_types::hash::HashSecret;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use ringlane_cluster::record::{Content, Live, Record, RecordBuf, RetentionTimes};
use ringlane_cluster::store::{MapStore, ReplicaStore};
use ringlane_cluster::version::Version;
use ringlane_engine::store::{ShardStore, enable_tombstones};
use ringlane_shard::Shard;
use ringlane_shard::{Eviction, ShardConfig};
use ringlane_types::codec;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Marks, Operation, Request, Response, Store as Write, StoreMode,
    Value, Vivify,
};
use ringlane_types::time::{Deadline, Instant};

const START: u64 = 1_700_000_000_000;
/// The version of a write long before.
const FIRST: Version = Version((START - 3_600_000) << 20);

fn retention() -> RetentionTimes {
    RetentionTimes { tombstone: Duration::from_secs(60), ..RetentionTimes::default() }
}

struct Pair {
    shard: Shard,
    map: MapStore,
    now: Instant,
    last: Version,
    /// Versions given so far, for calls that name old ones.
    given: Vec<Version>,
    /// Whether there is so little memory that records are evicted.
    pressed: bool,
    /// Number of the last key that only takes up memory.
    filler: u32,
    walk: Option<Walk>,
}

/// A scan that goes on between other calls.
struct Walk {
    cursor: u64,
    /// Keys whose records have been there since it began.
    owed: BTreeSet<Vec<u8>>,
    seen: BTreeSet<Vec<u8>>,
}

/// Reads arbitrary bytes as calls, performs them on both stores, and panics where they disagree.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte() as usize;
    let pressed = choice & 1 == 1;
    use Eviction::{Fifo, Lfu, Lru, Random, S3Fifo, Ttl};
    let config = ShardConfig {
        memory_bytes: if pressed { 1 << 20 } else { 6 << 20 },
        item_bytes_max: 256 << 10,
        eviction: [Lru, Fifo, Random, Ttl, Lfu, S3Fifo, S3Fifo, Lru][choice >> 1 & 7],
    };
    let mut shard = Shard::new(&config, Rc::new(HashSecret::of_seed(5)), 0, 1);
    enable_tombstones(&mut shard, &retention());
    let mut pair = Pair {
        shard,
        map: MapStore::default(),
        now: Instant::from_millis(START),
        last: FIRST,
        given: vec![FIRST],
        pressed,
        filler: 0,
        walk: None,
    };
    while !input.0.is_empty() {
        pair.step(&mut input);
    }
    pair.shard.check_invariants();
    pair.compare_all();
    assert!(pressed || pair.shard.counters().evictions == 0, "memory is ample");
    // Long after, nothing of what was deleted or expired is left.
    pair.now = pair.now.after(Duration::from_secs(86_400 * 30));
    while pair.shard.maintain(pair.now, 1000) {}
    pair.now = pair.now.after(retention().tombstone + Duration::from_secs(2));
    while pair.shard.maintain(pair.now, 1000) {}
    pair.shard.check_invariants();
    let gauges = pair.shard.gauges();
    assert_eq!((gauges.tombstones, gauges.flushed_items), (0, 0));
    pair.compare_all();
}

impl Pair {
    fn step(&mut self, input: &mut Input<'_>) {
        let key = input.key();
        match input.byte() % 32 {
            0..=4 => self.get(&key, input),
            5..=9 => self.store(&key, input),
            10..=12 => self.delete(&key, input),
            13..=15 => self.arithmetic(&key, input),
            16..=20 => self.merge(&key, input),
            21..=22 => self.roll_back(&key, input),
            23 => {
                let version = self.version_near(&key, input);
                self.both(&key, |store, _| store.forget(&key, version));
            }
            24 => {
                let version = self.given[input.byte() as usize % self.given.len()];
                self.shard_store().flush(version);
                self.map.flush(version);
                self.walk = None;
            }
            25 if input.byte() < 40 => {
                self.shard_store().clear();
                self.map.clear();
                self.walk = None;
            }
            25..=26 => self.advance(input),
            27 if self.pressed => self.fill(input),
            27..=28 => self.walk(1 + input.byte() as usize % 8),
            29 => drop(self.shard.maintain(self.now, 1 + input.byte() as u32 / 8)),
            30 => self.compare_all(),
            _ => self.shard.check_invariants(),
        }
        self.compare(&key);
    }

    fn shard_store(&mut self) -> ShardStore<'_> {
        ShardStore::new(&mut self.shard)
    }

    /// Calls both stores, which must answer the same.
    fn both<T: PartialEq + std::fmt::Debug>(
        &mut self,
        key: &[u8],
        call: impl Fn(&mut dyn ReplicaStore, Instant) -> T,
    ) {
        self.settle(key);
        let now = self.now;
        let answer = call(&mut self.shard_store(), now);
        assert_eq!(answer, call(&mut self.map, now), "of the shard and the map, key {}", key[0]);
    }

    fn get(&mut self, key: &[u8], input: &mut Input<'_>) {
        let options = input.byte();
        let mut get =
            Get { no_use: options & 1 != 0, lease: options & 2 != 0, ..Default::default() };
        get.touch = (options & 4 != 0).then(|| input.deadline(self.now));
        get.vivify = (options & 8 != 0).then(|| Vivify {
            deadline: input.deadline(self.now),
            cas: Some(77),
            binary_key: options & 16 != 0,
        });
        get.refresh_below_seconds = (options & 32 != 0).then(|| input.byte() as u32);
        get.refresh_first = options & 64 != 0;
        self.execute(key, Operation::Get(get));
    }

    fn store(&mut self, key: &[u8], input: &mut Input<'_>) {
        let (value, options, more) = (input.value(), input.byte(), input.byte());
        if self.value_bytes(key) + value.len() > 200 << 10 {
            // The naive store has no limit.
            return;
        }
        use StoreMode::{Add, Append, Prepend, Replace, Set};
        let store = Write {
            mode: [Set, Add, Replace, Append, Prepend, Set, Set, Append][options as usize & 7],
            flags: if options & 8 != 0 { more as u32 } else { 0 },
            binary_key: options & 16 != 0,
            deadline: if options & 32 != 0 { input.deadline(self.now) } else { Deadline::NEVER },
            compare: (options & 64 != 0).then(|| self.version_near(key, input).0),
            accept_older: options & 128 != 0,
            cas: (more & 1 != 0).then_some(99),
            vivify: (more & 2 != 0).then(|| input.deadline(self.now)),
            refusal_removes: more & 4 != 0,
            value: if more & 56 == 56 { Body::Refused(1 << 30) } else { Body::Bytes(&value) },
        };
        self.execute(key, Operation::Store(store));
    }

    fn delete(&mut self, key: &[u8], input: &mut Input<'_>) {
        let options = input.byte();
        let delete = Delete {
            compare: (options & 1 != 0).then(|| self.version_near(key, input).0),
            invalidate: options & 2 != 0,
            deadline: (options & 4 != 0).then(|| input.deadline(self.now)),
            empty: (options & 24 == 24).then(|| input.byte() as u32),
            cas: (options & 32 != 0).then_some(5),
        };
        self.execute(key, Operation::Delete(delete));
    }

    fn arithmetic(&mut self, key: &[u8], input: &mut Input<'_>) {
        if self.value_bytes(key) > 30_000 {
            // A number with much behind it: the shard does not look into a chained value.
            return;
        }
        let options = input.byte();
        let delta = if options & 1 != 0 { u64::MAX - 3 } else { input.byte() as u64 };
        let arithmetic = Arithmetic {
            compare: (options & 4 != 0).then(|| self.version_near(key, input).0),
            create: (options & 8 != 0).then(|| (delta, input.deadline(self.now))),
            touch: (options & 16 != 0).then(|| input.deadline(self.now)),
            cas: (options & 32 != 0).then_some(5),
            binary_key: options & 64 != 0,
            ..Arithmetic::by(delta, options & 128 != 0)
        };
        self.execute(key, Operation::Arithmetic(arithmetic));
    }

    fn execute(&mut self, key: &[u8], operation: Operation<'_>) {
        let version = self.next_version();
        let request = Request { key, hash: self.shard.hash_key(key), operation };
        self.settle(key);
        let before = self.map.read(key, self.now).map(|record| RecordBuf::copied(&record));
        let now = self.now;
        let foreseen = self.shard_store().would_change(&request, now);
        self.both(key, |store, now| {
            let mut response = vec![7];
            store.execute(&request, version, now, &mut response);
            shown(&response[1..])
        });
        let changed = match (before, self.map.read(key, self.now)) {
            (Some(before), Some(after)) => before.get().order(&after).is_ne(),
            (before, after) => before.is_some() || after.is_some(),
        };
        assert!(foreseen || !changed, "{operation:?} changed the record unforeseen");
        if matches!(operation, Operation::Get(_)) {
            assert_eq!(foreseen, changed, "{operation:?}");
        }
        if changed {
            let there = self.map.read(key, self.now).expect("changes leave a record");
            assert_eq!(there.version, version, "a change has its own version");
        }
    }

    fn merge(&mut self, key: &[u8], input: &mut Input<'_>) {
        let version = self.version_near(key, input);
        let record = self.record(version, input);
        self.both(key, |store, now| store.merge(key, &record.get(), now));
        // Once more changes nothing.
        self.both(key, |store, now| store.merge(key, &record.get(), now));
    }

    fn roll_back(&mut self, key: &[u8], input: &mut Input<'_>) {
        let attempt = self.version_near(key, input);
        let older = self.given[input.byte() as usize % self.given.len()];
        let record = (input.byte() & 3 != 0).then(|| self.record(older, input));
        let record = record.as_ref().map(RecordBuf::get);
        self.both(key, |store, now| store.roll_back(key, attempt, record.as_ref(), now));
    }

    fn advance(&mut self, input: &mut Input<'_>) {
        let amount = input.byte() as u64;
        let millis = match input.byte() % 8 {
            0..=3 => amount,
            4..=5 => amount * 50,
            6 => amount * 1000,
            _ => amount * 300_000,
        };
        self.now = self.now.after(Duration::from_millis(millis));
        if millis > 100_000 {
            while self.shard.maintain(self.now, 1000) {}
        }
    }

    fn value_bytes(&mut self, key: &[u8]) -> usize {
        self.map.read(key, self.now).map_or(0, |record| RecordBuf::copied(&record).value_bytes())
    }

    /// Lets the map forget what the shard may have forgotten by itself.
    fn settle(&mut self, key: &[u8]) {
        let now = self.now;
        let lost = self.shard_store().read(key, now).is_none();
        if let Some(there) = self.map.read(key, now)
            && lost
        {
            if !self.pressed {
                assert!(there.visible(now).is_none(), "a value was lost: {there:?}");
                assert!(there.version.instant().after(retention().tombstone) <= now, "{there:?}");
            }
            let version = there.version;
            self.map.forget(key, version);
        }
        if lost && let Some(walk) = &mut self.walk {
            walk.owed.remove(key);
        }
    }

    /// Takes up memory with records the map does not follow.
    fn fill(&mut self, input: &mut Input<'_>) {
        let (count, value) = (input.byte(), input.value());
        let version = self.next_version();
        for _ in 0..count {
            self.filler += 1;
            let key = [FILLER, &self.filler.to_le_bytes()].concat();
            let record = Record::live(version, &value, Deadline::NEVER);
            let now = self.now;
            self.shard_store().merge(&key, &record, now);
        }
    }

    /// Goes on with a scan, or begins one. What stays is shown, and only once.
    fn walk(&mut self, count: usize) {
        let now = self.now;
        let mut walk = self.walk.take().unwrap_or_else(|| {
            (0..KEYS).for_each(|number| self.settle(&key_of(number)));
            let owed = scanned(&mut self.map, now).into_iter().map(|(key, _)| key);
            Walk { cursor: 0, owed: owed.collect(), seen: BTreeSet::new() }
        });
        let next = ShardStore::new(&mut self.shard).scan(walk.cursor, count, now, &mut |shown| {
            // With many records the index may grow so that some are shown again.
            let first = walk.seen.insert(shown.key.to_vec());
            assert!(first || self.pressed, "key {} is shown again", shown.key[0]);
        });
        if let Some(cursor) = next {
            walk.cursor = cursor;
            self.walk = Some(walk);
            return;
        }
        for key in walk.owed.difference(&walk.seen) {
            let gone = self.shard_store().read(key, now).is_none();
            assert!(gone, "key {} stayed and was not shown", key[0]);
        }
    }

    fn compare(&mut self, key: &[u8]) {
        self.settle(key);
        let now = self.now;
        let there = self.map.read(key, now).map(|record| RecordBuf::copied(&record));
        let here = self.shard_store().read(key, now).map(|record| RecordBuf::copied(&record));
        assert_same(key, here, there);
    }

    /// Both scans show the same records, and clients see those that live.
    fn compare_all(&mut self) {
        (0..KEYS).for_each(|number| self.settle(&key_of(number)));
        let now = self.now;
        let mut shown = scanned(&mut self.shard_store(), now);
        shown.retain(|(key, _)| !key.starts_with(FILLER));
        let expected = scanned(&mut self.map, now);
        assert_eq!(shown.len(), expected.len(), "each record is shown once");
        for (key, record) in shown {
            let there = expected.iter().find(|(other, _)| *other == key);
            assert_same(&key, Some(record), there.map(|(_, record)| record.clone()));
        }
        let live = expected.iter().filter(|(_, record)| record.get().visible(now).is_some());
        let mut visible = 0;
        let mut cursor = Default::default();
        let mut look = |key: &[u8]| visible += usize::from(!key.starts_with(FILLER));
        while self.shard.scan(&mut cursor, 100, now, |hit| look(hit.key)) {}
        assert_eq!(visible, live.count(), "clients see what lives");
    }

    fn next_version(&mut self) -> Version {
        self.last = Version((self.last.0 + 1024).max(self.now.as_millis() << 20));
        self.given.push(self.last);
        self.last
    }

    /// That of the record of `key`, one next to it, an old or a new one.
    fn version_near(&mut self, key: &[u8], input: &mut Input<'_>) -> Version {
        let there = self.map.read(key, self.now).map_or(FIRST, |record| record.version);
        match input.byte() % 8 {
            0..=3 => there,
            4 => Version(there.0 - 1),
            5 => Version(there.0 + 1).min(self.last),
            6 => self.given[input.byte() as usize % self.given.len()],
            _ => self.next_version(),
        }
    }

    fn record(&self, version: Version, input: &mut Input<'_>) -> RecordBuf {
        let (value, options) = (input.value(), input.byte());
        let mut deadline = Deadline::NEVER;
        if options & 1 != 0 {
            // Seen from its version it may be far, and then is kept in whole seconds everywhere.
            deadline = input.deadline(self.now);
            if !deadline.is_never() {
                deadline = Deadline::from_millis(deadline.as_millis() / 1000 * 1000);
            }
        }
        let live = Live {
            deadline,
            flags: if options & 2 != 0 { 7 } else { 0 },
            marks: [0, Marks::STALE_BIT, Marks::WON_BIT, Marks::BINARY_KEY_BIT]
                [options as usize >> 2 & 3],
            value: Value::Whole(&value),
        };
        let content = if options >> 6 == 0 { Content::Deleted } else { Content::Live(live) };
        RecordBuf::copied(&Record { version, content })
    }
}

fn scanned(store: &mut dyn ReplicaStore, now: Instant) -> Vec<(Vec<u8>, RecordBuf)> {
    let (mut found, mut cursor) = (Vec::new(), Some(0));
    while let Some(from) = cursor {
        cursor = store.scan(from, 3, now, &mut |scanned| {
            assert!(scanned.used <= now);
            found.push((scanned.key.to_vec(), RecordBuf::copied(&scanned.record)));
        });
    }
    found
}

fn assert_same(key: &[u8], here: Option<RecordBuf>, there: Option<RecordBuf>) {
    let same = match (&here, &there) {
        (Some(here), Some(there)) => here.get().order(&there.get()).is_eq(),
        (None, None) => true,
        _ => false,
    };
    assert!(same, "key {}: the shard has {here:?}, the map {there:?}", key[0]);
}

/// A response without what the naive store does not know.
fn shown(response: &[u8]) -> String {
    let mut response = codec::decode_response(response).expect("it was encoded just now");
    if let Response::Hit(hit) = &mut response {
        hit.idle_seconds = 0;
        hit.class = 0;
        hit.item_bytes = 0;
        hit.marks.fetched = false;
    }
    format!("{response:?}")
}

const KEYS: u8 = 10;
/// What the keys that only take up memory begin with.
const FILLER: &[u8] = b"#";

fn key_of(number: u8) -> Vec<u8> {
    vec![b'a' + number; [1, 2, 3, 8, 20, 60, 120, 249, 250, 9][number as usize]]
}

/// Arbitrary bytes as choices; zeros at the end.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn key(&mut self) -> Vec<u8> {
        key_of(self.byte() % KEYS)
    }

    fn value(&mut self) -> Vec<u8> {
        let (choice, fine) = (self.byte(), self.byte());
        let bytes = match choice % 16 {
            0..=4 => return (fine as u64 * 10u64.pow(choice as u32 % 5)).to_string().into_bytes(),
            5..=9 => fine as usize % 32,
            10..=11 => fine as usize * 4,
            12 => 4000 + fine as usize,
            13 => 32_500 + fine as usize,
            _ => fine as usize * 400,
        };
        vec![b'a' + fine % 26; bytes]
    }

    fn deadline(&mut self, now: Instant) -> Deadline {
        let amount = self.byte() as u64;
        let millis = match self.byte() % 8 {
            0 => return Deadline::NEVER,
            1 => return Deadline::PAST,
            2..=3 => amount * 7,
            4..=5 => amount * 1000,
            6 => amount * 60_000,
            _ => amount * 3_600_000,
        };
        Deadline::at(now.after(Duration::from_millis(millis)))
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_shard_is_the_store_that_the_map_describes(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            run(&bytes);
        }
    }
}
