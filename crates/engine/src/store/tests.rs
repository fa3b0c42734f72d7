//! Rules of the shard as the cluster's store, one test each.

use ringlane_types::hash::HashSecret;
use std::rc::Rc;
use std::time::Duration;

use super::{ShardStore, enable_tombstones};
use ringlane_cluster::record::{Content, Live, Record, RecordBuf, RetentionTimes};
use ringlane_cluster::store::{Merged, ReplicaStore};
use ringlane_cluster::version::Version;
use ringlane_shard::Shard;
use ringlane_shard::{Eviction, ShardConfig};
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Operation, Purpose, Request, Response, Store as Write,
    StoreMode, Value, Vivify,
};
use ringlane_types::time::{Deadline, Instant};

const START: Instant = Instant::from_millis(1_700_000_000_000);

struct Bench {
    shard: Shard,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::of(&ShardConfig::tiny())
    }

    fn of(config: &ShardConfig) -> Self {
        let mut shard = Shard::new(config, Rc::new(HashSecret::of_seed(7)), 0, 1);
        enable_tombstones(&mut shard, &RetentionTimes::default());
        Self { shard, now: START }
    }

    fn store(&mut self) -> ShardStore<'_> {
        self.shard.check_invariants();
        ShardStore::new(&mut self.shard)
    }

    fn merge(&mut self, key: &str, record: &Record<'_>) -> Merged {
        let now = self.now;
        self.store().merge(key.as_bytes(), record, now)
    }

    /// As [`Bench::merge`], without the slow check of invariants.
    fn put(&mut self, key: &str, record: &Record<'_>) {
        let merged = ShardStore::new(&mut self.shard).merge(key.as_bytes(), record, self.now);
        assert_eq!(merged, Merged::Stored);
    }

    fn read(&mut self, key: &str) -> Option<RecordBuf> {
        let now = self.now;
        self.store().read(key.as_bytes(), now).map(|record| RecordBuf::copied(&record))
    }

    fn version(&mut self, key: &str) -> Option<Version> {
        self.read(key).map(|record| record.version())
    }

    fn value(&mut self, key: &str) -> Option<Vec<u8>> {
        let (record, now) = (self.read(key)?, self.now);
        record.get().visible(now).map(|live| live.value.to_vec())
    }

    fn run(&mut self, key: &str, version: Version, operation: Operation<'_>) -> Response<'_> {
        let (key, now) = (key.as_bytes(), self.now);
        let request = Request { key, hash: self.shard.hash_key(key), operation };
        self.store().execute_local(&request, version, now)
    }

    fn set(&mut self, key: &str, version: Version, value: &str, deadline: Deadline) {
        let store = Write { deadline, ..Write::set(value.as_bytes()) };
        let answer = self.run(key, version, Operation::Store(store));
        assert!(matches!(answer, Response::Stored { cas, .. } if cas == version.0), "{answer:?}");
    }

    fn delete(&mut self, key: &str, version: Version) {
        let answer = self.run(key, version, Operation::Delete(Delete::default()));
        assert!(matches!(answer, Response::Deleted), "{answer:?}");
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        while self.shard.maintain(self.now, 100) {}
    }
}

/// The `n`-th version of the moment the tests start.
fn v(n: u64) -> Version {
    Version(START.as_millis() << 20 | n << 10)
}

fn live(n: u64, value: &[u8]) -> Record<'_> {
    Record::live(v(n), value, Deadline::NEVER)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn in_seconds(after: u64) -> Deadline {
    Deadline::at(START.after(seconds(after)))
}

#[test]
fn a_deleted_key_is_a_miss_for_every_operation_and_leaves_a_tombstone() {
    let mut bench = Bench::new();
    let touch = Get { purpose: Purpose::Touch, touch: Some(in_seconds(9)), ..Get::default() };
    let inspect = Get { purpose: Purpose::Inspect, no_use: true, lease: true, ..Get::default() };
    let write = |mode| Write { mode, ..Write::set(b"x") };
    let misses = [
        Operation::Get(Get::default()),
        Operation::Get(touch),
        Operation::Get(inspect),
        Operation::Store(write(StoreMode::Replace)),
        Operation::Store(write(StoreMode::Append)),
        Operation::Store(Write { compare: Some(v(2).0), ..Write::set(b"x") }),
        Operation::Delete(Delete::default()),
        Operation::Arithmetic(Arithmetic::by(1, false)),
    ];
    bench.set("k", v(1), "value", Deadline::NEVER);
    bench.delete("k", v(2));
    for operation in misses {
        let answer = bench.run("k", v(3), operation);
        let missed = matches!(answer, Response::Miss | Response::NotStored | Response::NotFound);
        assert!(missed, "{operation:?} was answered {answer:?}");
        assert_eq!(bench.version("k"), Some(v(2)));
    }
    let gauges = bench.shard.gauges();
    assert_eq!((gauges.items, gauges.tombstones, gauges.ttl_items), (0, 1, 0));
    let mut cursor = Default::default();
    while bench.shard.scan(&mut cursor, 100, START, |hit| panic!("{hit:?} is listed")) {}
}

#[test]
fn what_stores_over_a_tombstone_takes_its_place() {
    let create = Arithmetic { create: Some((5, Deadline::NEVER)), ..Arithmetic::by(1, false) };
    let vivify = Vivify { deadline: Deadline::NEVER, cas: Some(3), binary_key: false };
    let long = [b'l'; 40_000];
    for operation in [
        Operation::Store(Write::set(b"")),
        Operation::Store(Write::set(&long)),
        Operation::Store(Write { mode: StoreMode::Add, ..Write::set(b"x") }),
        Operation::Store(Write {
            mode: StoreMode::Append,
            vivify: Some(Deadline::NEVER),
            ..Write::set(b"x")
        }),
        Operation::Arithmetic(create),
        Operation::Get(Get { vivify: Some(vivify), lease: true, ..Get::default() }),
    ] {
        let mut bench = Bench::new();
        bench.set("k", v(1), "value", Deadline::NEVER);
        bench.delete("k", v(2));
        bench.run("k", v(3), operation);
        assert_eq!(bench.version("k"), Some(v(3)), "{operation:?}");
        let gauges = bench.shard.gauges();
        assert_eq!((gauges.items, gauges.tombstones), (1, 0), "{operation:?}");
    }
}

#[test]
fn whatever_removes_leaves_a_tombstone_of_the_version_given() {
    let gone = Some(Deadline::PAST);
    let removals = [
        Operation::Delete(Delete::default()),
        Operation::Delete(Delete { invalidate: true, deadline: gone, ..Delete::default() }),
        Operation::Delete(Delete { empty: Some(0), deadline: gone, ..Delete::default() }),
        Operation::Store(Write { deadline: Deadline::PAST, ..Write::set(b"x") }),
        Operation::Store(Write { value: Body::Refused(1 << 20), ..Write::set(b"") }),
        Operation::Arithmetic(Arithmetic { touch: gone, ..Arithmetic::by(1, false) }),
        Operation::Get(Get { touch: gone, ..Get::default() }),
    ];
    for operation in removals {
        let mut bench = Bench::new();
        bench.set("k", v(1), "5", Deadline::NEVER);
        bench.run("k", v(2), operation);
        assert_eq!(bench.version("k"), Some(v(2)), "{operation:?}");
        assert_eq!(bench.value("k"), None, "{operation:?}");
        assert_eq!(bench.shard.gauges().tombstones, 1, "{operation:?}");
        // The next call frees what the last answer may have shown.
        bench.run("other", v(3), Operation::Get(Get::default()));
        bench.shard.check_invariants();
    }
}

#[test]
fn tokens_that_clients_ask_for_do_not_order_copies() {
    let mut bench = Bench::new();
    let store = Write { cas: Some(1), ..Write::set(b"1") };
    bench.run("k", v(5), Operation::Store(store));
    assert_eq!(bench.version("k"), Some(v(5)));
    let arithmetic = Arithmetic { cas: Some(1), ..Arithmetic::by(1, false) };
    bench.run("k", v(6), Operation::Arithmetic(arithmetic));
    assert_eq!(bench.version("k"), Some(v(6)));
    let empty = Delete { empty: Some(0), cas: Some(1), ..Delete::default() };
    bench.run("k", v(7), Operation::Delete(empty));
    assert_eq!(bench.version("k"), Some(v(7)));
}

#[test]
fn reads_give_a_version_only_where_they_change_something() {
    let mut bench = Bench::new();
    bench.set("k", v(1), "x", in_seconds(100));
    bench.run("k", v(2), Operation::Get(Get { lease: true, ..Get::default() }));
    let same = Get { touch: Some(in_seconds(100)), ..Get::default() };
    bench.run("k", v(3), Operation::Get(same));
    assert_eq!(bench.version("k"), Some(v(1)), "a read and a touch that changes nothing");
    let touch = Get { touch: Some(in_seconds(200)), ..Get::default() };
    let answer = bench.run("k", v(4), Operation::Get(touch));
    assert!(matches!(answer, Response::Hit(hit) if hit.cas == v(4).0), "{answer:?}");
    let soon = Get { refresh_below_seconds: Some(300), ..Get::default() };
    let answer = bench.run("k", v(5), Operation::Get(soon));
    assert!(matches!(answer, Response::Hit(hit) if hit.cas == v(5).0 && hit.marks.won));
    bench.run("k", v(6), Operation::Get(soon));
    assert_eq!(bench.version("k"), Some(v(5)), "the second reader wins nothing");
}

#[test]
fn marks_travel_with_the_record() {
    let (mut one, mut other) = (Bench::new(), Bench::new());
    one.run("k", v(1), Operation::Store(Write { binary_key: true, ..Write::set(b"x") }));
    one.run("k", v(2), Operation::Delete(Delete { invalidate: true, ..Delete::default() }));
    assert_eq!(other.merge("k", &one.read("k").unwrap().get()), Merged::Stored);
    let lease = Get { lease: true, ..Get::default() };
    match other.run("k", v(3), Operation::Get(lease)) {
        Response::Hit(hit) => {
            assert!(hit.marks.stale && hit.marks.won && hit.marks.binary_key);
            assert!(!hit.marks.fetched && !hit.marks.win_sent);
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(one.merge("k", &other.read("k").unwrap().get()), Merged::Stored);
    match one.run("k", v(4), Operation::Get(lease)) {
        Response::Hit(hit) => assert!(hit.marks.win_sent && !hit.marks.won),
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn an_expired_item_hides_older_writes_until_it_may_be_forgotten() {
    let lifetime = RetentionTimes::default().tombstone;
    let mut bench = Bench::new();
    bench.set("k", v(5), "value", in_seconds(10));
    // First before the wheel comes by, then after it.
    bench.now = START.after(seconds(10));
    for _ in 0..2 {
        assert_eq!(bench.merge("k", &live(4, b"late")), Merged::Older(v(5)));
        assert_eq!(bench.merge("k", &Record::deleted(v(5))), Merged::Same);
        assert_eq!(bench.value("k"), None);
        bench.pass(seconds(1));
    }
    assert_eq!(bench.shard.gauges().tombstones, 1);
    assert_eq!(bench.shard.counters().reclaimed, 1);
    // Its last use is when it was stored, and so is the latest moment at which it came.
    bench.now = START.after(lifetime - seconds(1));
    assert_eq!(bench.version("k"), Some(v(5)));
    bench.pass(seconds(2));
    assert_eq!(bench.version("k"), None);
    let gauges = bench.shard.gauges();
    assert_eq!((gauges.tombstones, gauges.chunk_bytes), (0, 0));
    assert_eq!(bench.merge("k", &live(4, b"late")), Merged::Stored);
}

#[test]
fn what_expires_long_after_it_came_leaves_nothing() {
    let mut bench = Bench::new();
    bench.set("k", v(1), "value", in_seconds(7200));
    bench.pass(seconds(7201));
    assert_eq!(bench.version("k"), None);
    assert_eq!(bench.shard.gauges().chunk_bytes, 0);
}

#[test]
fn a_tombstone_is_remembered_from_its_arrival_if_it_was_written_before() {
    let retention = RetentionTimes::default();
    let mut bench = Bench::new();
    bench.now = START.after(seconds(500));
    bench.merge("late", &Record::deleted(v(1)));
    let ahead = Version(START.after(seconds(520)).as_millis() << 20);
    bench.merge("ahead", &Record::deleted(ahead));
    let now = bench.now;
    let mut received = Vec::new();
    bench.store().scan(0, 10, now, &mut |found| received.push((found.key[0], found.used)));
    received.sort();
    assert_eq!(received, [(b'a', ahead.instant()), (b'l', now)]);
    for (key, version) in [("late", v(1)), ("ahead", ahead)] {
        let forgotten = retention.forget_at(version, now);
        bench.now = Instant::from_millis(forgotten.as_millis() - 1);
        assert!(bench.read(key).is_some());
        bench.now = forgotten;
        assert!(bench.read(key).is_none());
    }
}

#[test]
fn values_of_any_length_pass_from_shard_to_shard() {
    for bytes in [0, 1, 4096, 32_768, 40_000, 65_000] {
        let (mut one, mut other) = (Bench::new(), Bench::new());
        let value: String = (0..bytes).map(|i| (b'a' + (i % 23) as u8) as char).collect();
        one.set("key", v(1), &value, in_seconds(50));
        let now = one.now;
        let mut store = one.store();
        let record = store.read(b"key", now).unwrap();
        let Content::Live(live) = record.content else { panic!("{record:?}") };
        assert_eq!(matches!(live.value, Value::Chained(_)), bytes >= 32_768);
        assert_eq!(other.merge("key", &record), Merged::Stored);
        assert_eq!(other.merge("key", &record), Merged::Same);
        assert_eq!(other.value("key").unwrap(), value.as_bytes());
    }
}

#[test]
fn a_record_that_finds_no_room_takes_what_was_there_with_it() {
    let large = vec![b'x'; 70_000];
    let mut bench = Bench::new();
    bench.merge("k", &live(1, b"old"));
    assert_eq!(bench.merge("k", &live(2, &large)), Merged::TooLarge);
    assert_eq!(bench.version("k"), None);

    let mut bench = Bench::of(&ShardConfig { eviction: Eviction::None, ..ShardConfig::tiny() });
    bench.merge("k", &live(1, b"old"));
    let mut filled = 0;
    while bench.merge(&format!("filler {filled}"), &live(1, &large[..60_000])) == Merged::Stored {
        filled += 1;
    }
    assert!(filled > 8);
    assert_eq!(bench.merge("k", &live(2, &large[..60_000])), Merged::NoMemory);
    assert_eq!(bench.version("k"), None);
}

#[test]
fn a_full_shard_that_evicts_nothing_still_keeps_deletions() {
    let mut bench = Bench::of(&ShardConfig { eviction: Eviction::None, ..ShardConfig::tiny() });
    let value = "v".repeat(900);
    let mut keys = Vec::new();
    loop {
        let key = format!("a key of some length {}", keys.len());
        let store = Write::set(value.as_bytes());
        match bench.run(&key, v(1), Operation::Store(store)) {
            Response::Stored { .. } => keys.push(key),
            _ => break,
        }
    }
    for key in &keys {
        bench.delete(key, v(2));
        assert_eq!(bench.version(key), Some(v(2)), "{key}");
    }
    assert_eq!(bench.shard.gauges().tombstones, keys.len() as u64);
}

#[test]
fn only_the_attempt_itself_can_be_taken_back() {
    let mut bench = Bench::new();
    bench.merge("k", &live(5, b"base"));
    bench.merge("k", &live(9, b"attempt"));
    let now = bench.now;
    bench.store().roll_back(b"k", v(8), Some(&live(5, b"base")), now);
    assert_eq!(bench.value("k").unwrap(), b"attempt");
    bench.store().roll_back(b"k", v(9), Some(&live(5, b"base")), now);
    assert_eq!((bench.value("k").unwrap(), bench.version("k")), (b"base".to_vec(), Some(v(5))));
    bench.store().roll_back(b"k", v(5), None, now);
    assert_eq!(bench.version("k"), None);
    assert_eq!(bench.shard.gauges().chunk_bytes, 0);
}

#[test]
fn a_flush_takes_old_versions_for_good_and_leaves_newer_ones() {
    let mut bench = Bench::new();
    for n in 0..200u64 {
        let (key, record) = (format!("key {n}"), live(n + 1, b"value"));
        match n % 3 {
            0 => bench.merge(&key, &Record::deleted(v(n + 1))),
            _ => bench.merge(&key, &record),
        };
    }
    bench.store().flush(v(100));
    assert_eq!(bench.merge("new", &live(100, b"late")), Merged::Older(v(100)));
    let survives = |n: u64| n + 1 > 100;
    for n in (0..200).step_by(7) {
        assert_eq!(bench.version(&format!("key {n}")).is_some(), survives(n), "{n}");
        let got = bench.run(&format!("key {n}"), v(999), Operation::Get(Get::default()));
        assert_eq!(matches!(got, Response::Hit(_)), survives(n) && n % 3 != 0, "{n}");
    }
    bench.pass(Duration::ZERO);
    let gauges = bench.shard.gauges();
    assert_eq!(gauges.flushed_items, 0, "the sweep has seen everything");
    let living = (0..200).filter(|&n| survives(n));
    assert_eq!(gauges.items, living.clone().filter(|n| n % 3 != 0).count() as u64);
    assert_eq!(living.filter(|&n| bench.version(&format!("key {n}")).is_none()).count(), 0);
    // An older flush takes nothing, however many there are.
    for n in 1..40 {
        bench.store().flush(v(n));
    }
    assert_eq!(bench.shard.gauges().items, gauges.items);
    for n in 100..140 {
        bench.store().flush(v(n));
    }
    let left = (0..200).filter(|&n| bench.version(&format!("key {n}")).is_some());
    assert_eq!(left.count(), (0..200).filter(|n| n + 1 > 139).count());
}

#[test]
fn flushes_faster_than_the_sweep_are_as_exact_as_slow_ones() {
    let mut bench = Bench::new();
    let key = |n: u64| format!("key {n}");
    let mut written = 0;
    for round in 0..30u64 {
        // Five of each ten survive the next flush.
        for n in written..written + 10 {
            let record = live(1000 * (round + 1) + n, b"value");
            let deleted = Record::deleted(v(1000 * (round + 1) + n));
            bench.merge(&key(n), if n % 4 == 3 { &deleted } else { &record });
        }
        written += 10;
        bench.store().flush(v(1000 * (round + 1) + written - 6));
        for n in 0..written {
            assert_eq!(bench.version(&key(n)).is_some(), n + 5 >= written, "{n} in {round}");
            // Some are met by reads.
            if n % 3 == 0 {
                let hit = bench.run(&key(n), v(99_999), Operation::Get(Get::default()));
                assert_eq!(matches!(hit, Response::Hit(_)), n + 5 >= written && n % 4 != 3);
            }
        }
        if round % 8 == 7 {
            bench.shard.maintain(bench.now, 40);
        }
    }
    bench.pass(Duration::ZERO);
    bench.pass(Duration::ZERO);
    let gauges = bench.shard.gauges();
    assert_eq!(gauges.flushed_items, 0, "the sweep has seen everything");
    let left = (written - 5..written).filter(|n| n % 4 != 3).count() as u64;
    assert_eq!(gauges.items, left);
}

#[test]
fn a_cleared_store_takes_old_versions_again() {
    let mut bench = Bench::new();
    for round in 0..20 {
        bench.merge("value", &live(5, b"x"));
        bench.merge("deleted", &Record::deleted(v(5)));
        bench.store().flush(v(4));
        bench.store().clear();
        assert_eq!((bench.version("value"), bench.version("deleted")), (None, None), "{round}");
        assert_eq!(bench.merge("value", &live(1, b"old")), Merged::Stored);
        assert_eq!(bench.merge("deleted", &Record::deleted(v(1))), Merged::Stored);
        assert_eq!(bench.shard.gauges().items, 1);
    }
    bench.store().clear();
    bench.pass(Duration::ZERO);
    bench.pass(Duration::ZERO);
    assert_eq!(bench.shard.gauges().chunk_bytes, 0);
}

#[test]
fn a_scan_shows_once_all_that_stays_while_the_store_grows_and_moves() {
    const STAY: u64 = 2000;
    const GO: u64 = 8000;
    let mut bench = Bench::of(&ShardConfig { memory_bytes: 16 << 20, ..ShardConfig::tiny() });
    for n in 0..STAY {
        let record = if n % 5 == 0 { Record::deleted(v(1)) } else { live(1, b"value") };
        bench.put(&format!("stays {n}"), &record);
        for n in n * GO / STAY..(n + 1) * GO / STAY {
            bench.put(&format!("goes {n}"), &live(1, b"value"));
        }
    }
    let (mut seen, mut cursor, mut calls) = (std::collections::HashMap::new(), Some(0), 0);
    while let Some(from) = cursor {
        let (now, mut shown) = (bench.now, 0);
        cursor = ShardStore::new(&mut bench.shard).scan(from, 10, now, &mut |found| {
            *seen.entry(found.key.to_vec()).or_insert(0) += 1;
            shown += 1;
        });
        assert!(shown <= 60, "{shown} at once");
        calls += 1;
        assert!(calls < 20_000, "it comes to an end");
        // Splits buckets, reads what was old, and makes room into which pages are moved.
        for n in 0..40 {
            let key = format!("goes {}", calls * 40 + n);
            ShardStore::new(&mut bench.shard).forget(key.as_bytes(), v(1));
        }
        if calls < 200 {
            for n in 0..10 {
                bench.put(&format!("comes {calls} {n}"), &live(1, b"x"));
            }
        }
        if (20..150).contains(&calls) {
            bench.shard.reassign_page(-1, 0);
        }
        let read = format!("stays {}", calls * 17 % STAY);
        let (key, operation) = (read.as_bytes(), Operation::Get(Get::default()));
        let request = Request { key, hash: bench.shard.hash_key(key), operation };
        ShardStore::new(&mut bench.shard).execute_local(&request, v(2), now);
        bench.shard.maintain(now, 20);
    }
    let counters = bench.shard.counters();
    assert!(counters.slabs_moved > 1 && counters.evictions == 0, "{counters:?}");
    for n in 0..STAY {
        let times = seen.get(format!("stays {n}").as_bytes());
        assert_eq!(times, Some(&1), "{n}");
    }
    bench.shard.check_invariants();
}

#[test]
fn a_cursor_that_nobody_was_given_ends_with_the_index() {
    let mut bench = Bench::new();
    bench.put("k", &live(1, b"value"));
    let many_buckets = u64::MAX >> 33 << 31;
    for cursor in [many_buckets, many_buckets | 12345, u64::MAX, u64::MAX >> 1, 1 << 40] {
        let (mut at, now, mut calls) = (Some(cursor), bench.now, 0);
        while let Some(from) = at {
            at = ShardStore::new(&mut bench.shard).scan(from, 128, now, &mut |_| {});
            calls += 1;
            assert!(calls < 1000, "a peer's cursor {cursor:#x} keeps the core");
        }
    }
}

#[test]
fn a_scan_of_an_index_that_grows_manifold_shows_all_that_stays() {
    let mut bench = Bench::of(&ShardConfig { memory_bytes: 16 << 20, ..ShardConfig::tiny() });
    let stays = |n| format!("stays {n}");
    (0..100).for_each(|n| bench.put(&stays(n), &live(1, b"value")));
    let (mut seen, mut cursor, mut calls) = (std::collections::HashSet::new(), Some(0), 0);
    while let Some(from) = cursor {
        let now = bench.now;
        cursor = ShardStore::new(&mut bench.shard).scan(from, 10, now, &mut |found| {
            seen.insert(found.key.to_vec());
        });
        calls += 1;
        if calls < 8 {
            (0..3000).for_each(|n| bench.put(&format!("comes {calls} {n}"), &live(1, b"x")));
        }
    }
    assert!((0..100).all(|n| seen.contains(stays(n).as_bytes())));
}

#[test]
fn a_far_deadline_is_the_same_on_every_shard() {
    for days in [19, 21, 24, 25, 300, 40_000] {
        let (mut one, mut other) = (Bench::new(), Bench::new());
        // The other's wheel has stood still for a day.
        other.set("ticks", v(1), "x", in_seconds(86_400 * 10));
        for bench in [&mut one, &mut other] {
            bench.now = START.after(Duration::from_millis(86_400_123));
        }
        let deadline = Deadline::at(one.now.after(Duration::from_millis(days * 86_400_000 + 77)));
        one.set("k", v(1), "x", deadline);
        let record = one.read("k").unwrap();
        assert_eq!(other.merge("k", &record.get()), Merged::Stored);
        assert_eq!(other.merge("k", &record.get()), Merged::Same, "{days} days");
        let touch = Get { touch: Some(deadline), ..Get::default() };
        one.run("k", v(2), Operation::Get(touch));
        assert_eq!(one.version("k"), Some(v(1)), "the touch changed nothing");
    }
}

#[test]
fn there_is_room_until_a_record_would_evict_another() {
    let mut bench = Bench::new();
    let value = [b'x'; 3000];
    let mut stored = 0;
    while ShardStore::new(&mut bench.shard).has_room() {
        bench.put(&format!("key {stored}"), &live(1, &value));
        stored += 1;
    }
    assert!(stored > 200, "{stored}");
    assert_eq!(bench.shard.counters().evictions, 0);
}

#[test]
fn forgetting_names_a_version() {
    let mut bench = Bench::new();
    bench.merge("k", &Record::deleted(v(5)));
    bench.store().forget(b"k", v(4));
    assert_eq!(bench.version("k"), Some(v(5)));
    bench.store().forget(b"k", v(5));
    assert_eq!(bench.version("k"), None);
    assert_eq!(bench.shard.gauges().chunk_bytes, 0);
}

#[test]
fn a_response_is_appended_to_what_is_there() {
    let mut bench = Bench::new();
    bench.set("k", v(1), "x", Deadline::NEVER);
    let hash = bench.store().hash(b"k");
    let request = Request { key: b"k", hash, operation: Operation::Get(Get::default()) };
    let (now, mut response) = (bench.now, b"before".to_vec());
    bench.store().execute(&request, v(2), now, &mut response);
    assert!(response.starts_with(b"before"));
    let answer = ringlane_types::codec::decode_response(&response[6..]);
    assert!(matches!(answer, Ok(Response::Hit(hit)) if hit.value.to_vec() == b"x"));
}

#[test]
fn a_pinned_item_stays_readable_under_its_tombstone() {
    let mut bench = Bench::new();
    bench.set("k", v(1), "sent", in_seconds(5));
    let Response::Hit(hit) = bench.run("k", v(2), Operation::Get(Get::default())) else {
        panic!("it is there")
    };
    let item = hit.item.unwrap();
    bench.shard.pin(item);
    bench.pass(seconds(6));
    assert_eq!(bench.shard.gauges().tombstones, 1);
    assert_eq!(bench.shard.pinned_value(item).to_vec(), b"sent");
    bench.shard.unpin(item);
    bench.shard.check_invariants();
    let live = Live { deadline: Deadline::NEVER, flags: 3, marks: 255, value: Value::Whole(b"x") };
    let record = Record { version: v(9), content: Content::Live(live) };
    assert_eq!(bench.merge("k", &record), Merged::Stored);
    bench.shard.check_invariants();
}
