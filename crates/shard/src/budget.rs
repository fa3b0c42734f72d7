//! Tests of guarantees about memory and time: bytes per item, prompt expiry, bounded steps.

use super::*;
use crate::Eviction;
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{Get, Store};
use std::rc::Rc;
use std::time::Duration;

const START: Instant = Instant::from_millis(1_700_000_000_000);

fn shard(memory_bytes: u64) -> Shard {
    let config = ShardConfig { memory_bytes, item_bytes_max: 1 << 20, eviction: Eviction::Lru };
    Shard::new(&config, Rc::new(HashSecret::of_seed(3)), 0, 1)
}

fn key(number: u32, bytes: usize) -> Vec<u8> {
    let mut key = format!("{number:010}").into_bytes();
    key.resize(bytes, b'k');
    key
}

fn set(shard: &mut Shard, key: &[u8], value: &[u8], deadline: Deadline, now: Instant) {
    let store = Store { deadline, ..Store::set(value) };
    let hash = KeyHash::of(key, &HashSecret::of_seed(3));
    let request = Request { key, hash, operation: Operation::Store(store) };
    let answer = shard.execute(&request, now);
    assert!(matches!(answer, Response::Stored { .. }), "{answer:?}");
}

/// Bytes of memory per item above key and value: slab pages and index buckets.
fn overhead(items: u32, key_bytes: usize, value_bytes: usize, deadline: Deadline) -> f64 {
    let mut shard = shard(256 << 20);
    let value = vec![1; value_bytes];
    for number in 0..items {
        set(&mut shard, &key(number, key_bytes), &value, deadline, START);
    }
    let gauges = shard.gauges();
    assert_eq!(gauges.items, items as u64, "everything fits");
    let bytes = gauges.slab_bytes + gauges.bucket_bytes;
    bytes as f64 / items as f64 - (key_bytes + value_bytes) as f64
}

#[test]
fn an_item_of_20_and_32_bytes_costs_at_most_40_bytes_more_with_a_ttl_and_32_without() {
    let hour = Deadline::at(START.after(Duration::from_secs(3600)));
    // Just before, during and just after a doubling of the index.
    for items in [260_000, 390_000, 520_000] {
        let with = overhead(items, 20, 32, hour);
        let without = overhead(items, 20, 32, Deadline::NEVER);
        assert!(with <= 40.0 && without <= 32.0, "{with} {without}");
    }
}

#[test]
fn an_item_of_50_and_500_bytes_costs_at_most_75_bytes_more() {
    let hour = Deadline::at(START.after(Duration::from_secs(3600)));
    let (with, without) =
        (overhead(380_000, 50, 500, hour), overhead(380_000, 50, 500, Deadline::NEVER));
    assert!(with <= 75.0 && without <= 75.0, "{with} {without}");
}

#[test]
fn expired_items_are_reclaimed_within_a_second_by_bounded_steps() {
    const ITEMS: u32 = 200_000;
    const BUDGET: u32 = 200;
    let mut shard = shard(64 << 20);
    let ttl_millis = |number: u32| 1000 + number as u64 * 59_000 / ITEMS as u64;
    for number in 0..ITEMS {
        // Deadlines in a different order than stores.
        let number = (number as u64 * 7919 % ITEMS as u64) as u32;
        let deadline = Deadline::at(START.after(Duration::from_millis(ttl_millis(number))));
        set(&mut shard, &key(number, 20), b"v", deadline, START);
    }
    let mut now = START;
    for turn in 0..62_000 / 50 {
        now = START.after(Duration::from_millis(turn * 50));
        let mut more = true;
        while more {
            let before = shard.gauges().items;
            more = shard.maintain(now, BUDGET);
            assert!(before - shard.gauges().items <= BUDGET as u64, "a step is bounded");
        }
        let elapsed = turn * 50;
        let must_be_gone = (0..ITEMS).filter(|&n| ttl_millis(n) + 1000 <= elapsed).count();
        assert!(shard.gauges().items <= ITEMS as u64 - must_be_gone as u64, "at {elapsed} ms");
    }
    let gauges = shard.gauges();
    assert_eq!((gauges.items, gauges.chunk_bytes, gauges.slab_bytes), (0, 0, 0));
    assert_eq!(shard.counters().reclaimed, ITEMS as u64);
    assert_eq!(shard.next_deadline(), None);
    shard.check_invariants();
    assert!(!shard.maintain(now, 10));
}

#[test]
fn a_read_never_returns_an_expired_item_even_before_the_wheel_gets_there() {
    let mut shard = shard(1 << 20);
    let deadline = Deadline::at(START.after(Duration::from_millis(10)));
    set(&mut shard, b"k", b"v", deadline, START);
    let hash = KeyHash::of(b"k", &HashSecret::of_seed(3));
    let request = Request { key: b"k", hash, operation: Operation::Get(Get::default()) };
    let just_before = START.after(Duration::from_millis(9));
    assert!(matches!(shard.execute(&request, just_before), Response::Hit(_)));
    assert!(matches!(
        shard.execute(&request, Instant::from_millis(deadline.as_millis())),
        Response::Miss
    ));
    assert_eq!(shard.counters().get_expired, 1);
}

#[test]
fn a_flush_is_reclaimed_by_bounded_steps() {
    let mut shard = shard(16 << 20);
    for number in 0..50_000 {
        set(&mut shard, &key(number, 20), b"v", Deadline::NEVER, START);
    }
    shard.flush_all(START, START);
    assert_eq!(shard.gauges().items, 0);
    let mut steps = 0;
    while shard.maintain(START, 500) {
        steps += 1;
    }
    assert!(steps >= 50_000 / 500 - 1, "{steps}");
    assert_eq!(shard.gauges().chunk_bytes, 0);
}

#[test]
fn memory_follows_when_the_sizes_of_items_change() {
    let mut shard = shard(16 << 20);
    let limit = shard.gauges().memory_bytes_max;
    let mut now = START;
    for (round, value_bytes) in [30, 3000, 100, 60_000, 700_000, 12].into_iter().enumerate() {
        let value = vec![7; value_bytes];
        let count = (2 * limit / (value_bytes as u64 + 100)) as u32;
        for number in 0..count {
            now = now.after(Duration::from_millis(1));
            set(&mut shard, &key(number, 12 + round), &value, Deadline::NEVER, now);
            shard.maintain(now, 20);
        }
        let gauges = shard.gauges();
        assert!(gauges.pages_used <= gauges.pages_max);
        let (mut kept, mut cursor) = (0, ScanCursor::default());
        while shard.scan(&mut cursor, 1000, now, |hit| {
            if hit.value.len() == value_bytes {
                kept += hit.item_bytes as u64;
            }
        }) {}
        assert!(kept >= limit / 2, "{value_bytes} byte values: {kept} of {limit}");
        shard.check_invariants();
    }
}
