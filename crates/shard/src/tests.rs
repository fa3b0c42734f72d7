//! Rules of the operations, one test each. Whole sequences are compared with the model elsewhere.

use super::*;
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{Allowance, Arithmetic, Delete, Get, Purpose, Store, StoreMode};
use std::rc::Rc;

const START: u64 = 1_700_000_000_000;

struct Bench {
    shard: Shard,
    secret: Rc<HashSecret>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::of(&ShardConfig::tiny(), HashSecret::of_seed(7))
    }

    fn of(config: &ShardConfig, secret: HashSecret) -> Self {
        let secret = Rc::new(secret);
        let shard = Shard::new(config, secret.clone(), 0, 1);
        Self { shard, secret, now: Instant::from_millis(START) }
    }

    fn run<'a>(&'a mut self, key: &str, operation: Operation<'_>) -> Response<'a> {
        let key = key.as_bytes();
        self.shard.check_invariants();
        let request = Request { key, hash: KeyHash::of(key, &self.secret), operation };
        self.shard.execute(&request, self.now)
    }

    fn set(&mut self, key: &str, value: &str) -> u64 {
        match self.run(key, Operation::Store(Store::set(value.as_bytes()))) {
            Response::Stored { cas, .. } => cas,
            other => panic!("{other:?}"),
        }
    }

    fn get(&mut self, key: &str) -> Option<String> {
        match self.run(key, Operation::Get(Get::default())) {
            Response::Hit(hit) => Some(String::from_utf8(hit.value.to_vec()).unwrap()),
            Response::Miss => None,
            other => panic!("{other:?}"),
        }
    }

    fn incr(&mut self, key: &str, delta: u64) -> Response<'_> {
        self.run(key, Operation::Arithmetic(Arithmetic::by(delta, false)))
    }
}

#[test]
fn a_stored_value_is_read_back() {
    let mut bench = Bench::new();
    bench.set("k", "value");
    assert_eq!(bench.get("k").as_deref(), Some("value"));
    bench.set("k", "other and longer value");
    assert_eq!(bench.get("k").as_deref(), Some("other and longer value"));
    assert_eq!(bench.get("l"), None);
}

#[test]
fn every_value_length_survives() {
    let mut bench = Bench::new();
    for bytes in [0, 1, 100, 4095, 4096, 5000, 32_000, 32_768, 40_000, 65_000] {
        let value: String = (0..bytes).map(|i| (b'a' + (i % 23) as u8) as char).collect();
        bench.set("k", &value);
        assert_eq!(bench.get("k"), Some(value));
    }
}

#[test]
fn append_and_prepend_join_values_across_sizes() {
    let mut bench = Bench::new();
    bench.set("k", "m");
    let mut expected = String::from("m");
    for (round, bytes) in [1, 30, 500, 4000, 30_000, 20_000, 3].into_iter().enumerate() {
        let part = "x".repeat(bytes) + "y";
        let mode = if round % 2 == 0 { StoreMode::Append } else { StoreMode::Prepend };
        expected = if round % 2 == 0 { expected + &part } else { part.clone() + &expected };
        let store = Store { mode, ..Store::set(part.as_bytes()) };
        let length = expected.len() as u32;
        match bench.run("k", Operation::Store(store)) {
            Response::Stored { value_bytes, .. } => assert_eq!(value_bytes, length),
            other => panic!("{other:?}"),
        }
        assert_eq!(bench.get("k").as_ref(), Some(&expected));
    }
}

#[test]
fn incr_pads_in_place_and_grows_when_longer() {
    let mut bench = Bench::new();
    bench.set("k", "10");
    match bench.run("k", Operation::Arithmetic(Arithmetic::by(1, true))) {
        Response::Number(number) => assert_eq!(number.value, 9),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.get("k").as_deref(), Some("9 "));
    assert!(matches!(bench.incr("k", 991), Response::Number(n) if n.value == 1000));
    assert_eq!(bench.get("k").as_deref(), Some("1000"));
}

#[test]
fn a_gat_with_a_past_time_answers_once_more() {
    let mut bench = Bench::new();
    bench.set("k", "v");
    let get = Get { purpose: Purpose::Touch, touch: Some(Deadline::PAST), ..Get::default() };
    match bench.run("k", Operation::Get(get)) {
        Response::Hit(hit) => assert_eq!(hit.value.to_vec(), b"v"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.get("k"), None);
}

#[test]
fn a_value_over_the_allowance_is_neither_read_nor_touched() {
    let mut bench = Bench::new();
    for value in ["0123456789".to_string(), "long".repeat(10_000)] {
        bench.set("k", &value);
        let touch = Some(Deadline::at(bench.now.after(std::time::Duration::from_secs(9))));
        let limited = |bytes| Get {
            allowance: Allowance::of(bytes),
            touch,
            lease: true,
            vivify: None,
            ..Get::default()
        };
        let counted = bench.shard.counters().clone();
        match bench.run("k", Operation::Get(limited(value.len() - 1))) {
            Response::OverAllowance { value_bytes, request: [] } => {
                assert_eq!(value_bytes as usize, value.len());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(format!("{:?}", bench.shard.counters()), format!("{counted:?}"));
        match bench.run("k", Operation::Get(limited(value.len()))) {
            Response::Hit(hit) => {
                assert_eq!(hit.value.len(), value.len());
                assert!(!hit.marks.fetched && hit.deadline_before.is_never(), "the first to read");
            }
            other => panic!("{other:?}"),
        }
    }
    let least = Get { allowance: Allowance(0), ..Get::default() };
    assert!(matches!(bench.run("missing", Operation::Get(least)), Response::Miss));
}

#[test]
fn items_stored_right_after_a_flush_survive_it() {
    let mut bench = Bench::new();
    bench.set("old", "v");
    bench.shard.flush_all(bench.now, bench.now);
    bench.set("new", "v");
    assert_eq!(bench.get("old"), None);
    assert_eq!(bench.get("new").as_deref(), Some("v"));
    assert_eq!(bench.shard.counters().get_flushed, 1);
}

#[test]
fn many_flushes_while_items_are_being_sent_do_not_run_out_of_epochs() {
    let mut bench = Bench::new();
    let mut pinned = Vec::new();
    for round in 0..40 {
        let key = format!("sent {round}");
        bench.set(&key, "v");
        let Response::Hit(hit) = bench.run(&key, Operation::Get(Get::default())) else {
            panic!("it is there")
        };
        let item = hit.item.unwrap();
        bench.shard.pin(item);
        pinned.push(item);
        bench.shard.flush_all(bench.now, bench.now);
    }
    for item in pinned {
        assert_eq!(bench.shard.pinned_value(item).to_vec(), b"v");
        bench.shard.unpin(item);
    }
    while bench.shard.maintain(bench.now, 1000) {}
    bench.shard.check_invariants();
    assert_eq!(bench.shard.gauges().chunk_bytes, 0);
}

#[test]
fn deleting_twice_finds_nothing_the_second_time() {
    let mut bench = Bench::new();
    bench.set("k", "v");
    let delete = Operation::Delete(Delete::default());
    assert!(matches!(bench.run("k", delete), Response::Deleted));
    assert!(matches!(bench.run("k", delete), Response::NotFound));
}

#[test]
fn with_eviction_a_set_always_succeeds() {
    let mut bench = Bench::new();
    for round in 0..3000u32 {
        let bytes = [10, 200, 3000, 30_000, 65_000][round as usize * 7 % 5];
        let key = format!("key-{round}");
        let value = "v".repeat(bytes);
        bench.set(&key, &value);
        if round % 64 == 0 {
            assert_eq!(bench.get(&key), Some(value));
            bench.shard.maintain(bench.now, 100);
        }
        bench.now = bench.now.after(std::time::Duration::from_millis(3));
    }
    assert!(bench.shard.counters().evictions > 0);
    bench.shard.check_invariants();
}

/// Under this secret keys of seven bytes that begin with the same four have one hash.
fn colliding() -> HashSecret {
    HashSecret::drawn(|| 0)
}

#[test]
fn keys_of_one_hash_take_each_others_places_in_a_chain_of_bounded_length() {
    let mut bench = Bench::of(&ShardConfig::tiny(), colliding());
    for i in 0..500 {
        bench.now = bench.now.after(std::time::Duration::from_millis(100));
        bench.set(&format!("key:{i:03}"), "v");
        assert_eq!(bench.get(&format!("key:{i:03}")).as_deref(), Some("v"));
        assert_eq!(
            bench.get("key:000").as_deref(),
            Some("v"),
            "what is read stays, after {i} others"
        );
    }
    assert_eq!((bench.shard.gauges().items, bench.shard.counters().chain_evictions), (80, 420));
    assert!((1..=420).all(|i| bench.get(&format!("key:{i:03}")).is_none()), "the oldest have gone");
    // Keys of other chains lose nothing, and nothing is evicted but from full chains.
    for i in 0..500 {
        bench.set(&format!("a longer key {i}"), "v");
    }
    assert!((0..500).all(|i| bench.get(&format!("a longer key {i}")).is_some()));
    assert_eq!(bench.shard.counters().evictions, bench.shard.counters().chain_evictions);
}

#[test]
fn where_nothing_may_be_evicted_a_full_chain_refuses() {
    let config = ShardConfig { eviction: crate::Eviction::None, ..ShardConfig::tiny() };
    let mut bench = Bench::of(&config, colliding());
    for i in 0..80 {
        bench.set(&format!("key:{i:03}"), "v");
    }
    let store = Operation::Store(Store::set(b"v"));
    assert!(matches!(bench.run("key:080", store), Response::OutOfMemory));
    bench.set("another key, longer", "v");
    assert!(matches!(
        bench.run("key:007", Operation::Delete(Delete::default())),
        Response::Deleted
    ));
    bench.set("key:080", "v");
    assert_eq!(bench.shard.gauges().items, 81);
    // Expired items give way.
    let Operation::Store(mut brief) = store else { unreachable!() };
    brief.deadline = Deadline::at(bench.now.after(std::time::Duration::from_secs(1)));
    assert!(matches!(
        bench.run("key:008", Operation::Delete(Delete::default())),
        Response::Deleted
    ));
    assert!(matches!(bench.run("key:081", Operation::Store(brief)), Response::Stored { .. }));
    bench.now = bench.now.after(std::time::Duration::from_secs(5));
    bench.set("key:082", "v");
    assert_eq!(bench.shard.counters().chain_evictions, 1);
}
