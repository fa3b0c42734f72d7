//! Compares the policies with their exact versions on Zipf traces.
//!
//! The exact cache gets the shard's observed capacity in items; both then serve the same trace
//! (read, and store on a miss), and hit ratios are taken over its second half.

use crate::Shard;
use crate::{Eviction, ShardConfig};
use ringlane_types::hash::{HashSecret, KeyHash};
use ringlane_types::request::{Get, Operation, Request, Response, Store};
use ringlane_types::time::{Deadline, Instant};
use std::rc::Rc;

/// Keys in order of use or of arrival, exactly.
struct Exact {
    /// A read that hits moves its key to the front.
    by_use: bool,
    /// Neighbours of each key in the list; the last slot is the list's head.
    previous: Vec<u32>,
    next: Vec<u32>,
    present: Vec<bool>,
    len: usize,
    capacity: usize,
}

impl Exact {
    fn new(by_use: bool, keys: usize, capacity: usize) -> Self {
        let mut this = Self {
            by_use,
            previous: vec![0; keys + 1],
            next: vec![0; keys + 1],
            present: vec![false; keys],
            len: 0,
            capacity,
        };
        this.previous[keys] = keys as u32;
        this.next[keys] = keys as u32;
        this
    }

    fn unlink(&mut self, key: usize) {
        let (previous, next) = (self.previous[key], self.next[key]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
    }

    fn link_first(&mut self, key: usize) {
        let head = self.present.len();
        let first = std::mem::replace(&mut self.next[head], key as u32);
        self.previous[first as usize] = key as u32;
        self.next[key] = first;
        self.previous[key] = head as u32;
    }

    /// Reads `key`, storing it on a miss; returns whether it hit.
    fn read(&mut self, key: usize) -> bool {
        let hit = self.present[key];
        if hit && !self.by_use {
            return true;
        }
        if hit {
            self.unlink(key);
        } else {
            if self.len == self.capacity {
                let last = self.previous[self.present.len()] as usize;
                self.unlink(last);
                self.present[last] = false;
                self.len -= 1;
            }
            self.present[key] = true;
            self.len += 1;
        }
        self.link_first(key);
        hit
    }
}

/// Keys of which any may go.
struct ExactRandom {
    /// Place of each key among those present.
    places: Vec<Option<usize>>,
    keys: Vec<usize>,
    capacity: usize,
    random: u64,
}

impl ExactRandom {
    fn new(keys: usize, capacity: usize) -> Self {
        Self { places: vec![None; keys], keys: Vec::new(), capacity, random: 77 }
    }

    /// Reads `key`, storing it on a miss; returns whether it hit.
    fn read(&mut self, key: usize) -> bool {
        if self.places[key].is_some() {
            return true;
        }
        let place = if self.keys.len() < self.capacity {
            self.keys.push(key);
            self.keys.len() - 1
        } else {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let place = (self.random >> 32) as usize % self.capacity;
            self.places[self.keys[place]] = None;
            self.keys[place] = key;
            place
        };
        self.places[key] = Some(place);
        false
    }
}

/// Draws keys 0 to `keys` - 1 with probability proportional to 1 / rank^skew.
pub(super) struct Zipf {
    cumulative: Vec<f64>,
    random: u64,
}

impl Zipf {
    pub(super) fn new(keys: usize, skew: f64, seed: u64) -> Self {
        let mut total = 0.0;
        let cumulative = (1..=keys).map(|rank| {
            total += (rank as f64).powf(-skew);
            total
        });
        Self { cumulative: cumulative.collect(), random: seed }
    }

    pub(super) fn draw(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let total = self.cumulative[self.cumulative.len() - 1];
        let point = (self.random >> 11) as f64 / (1u64 << 53) as f64 * total;
        self.cumulative.partition_point(|&sum| sum < point)
    }
}

struct Trace {
    eviction: Eviction,
    memory_bytes: u64,
    keys: usize,
    skew: f64,
    requests: usize,
    requests_per_second: u64,
    /// All keys are stored in order first, as a bulk load does.
    bulk_load: bool,
}

/// Hit ratios in per cent: of the shard, and of its exact policy.
fn measure(trace: &Trace) -> (f64, f64) {
    let config = ShardConfig {
        memory_bytes: trace.memory_bytes,
        eviction: trace.eviction,
        ..ShardConfig::tiny()
    };
    let mut shard = Shard::new(&config, Rc::new(HashSecret::of_seed(5)), 0, 1);
    let mut micros = 1_700_000_000_000_000u64;
    let step = 1_000_000 / trace.requests_per_second;
    let mut run = |key: usize, operation: fn(&'static [u8]) -> Operation<'static>| {
        micros += step;
        let now = Instant::from_millis(micros / 1000);
        // Ranks and addresses must not correlate.
        let name = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let request = Request {
            key: &name,
            hash: KeyHash::of(&name, &HashSecret::of_seed(5)),
            operation: operation(&[7; 48]),
        };
        let hit = matches!(shard.execute(&request, now), Response::Hit(_));
        shard.maintain(now, 4);
        hit
    };
    let set = |value: &'static [u8]| Operation::Store(Store::set(value));
    let get = |_: &'static [u8]| Operation::Get(Get::default());
    if trace.bulk_load {
        (0..trace.keys).for_each(|key| assert!(!run(key, set)));
    }
    let mut hits = 0;
    let mut zipf = Zipf::new(trace.keys, trace.skew, 99);
    for request in 0..trace.requests {
        let key = zipf.draw();
        let hit = run(key, get);
        if !hit {
            run(key, set);
        }
        hits += usize::from(hit && request >= trace.requests / 2);
    }
    let capacity = shard.gauges().items as usize;
    assert!(capacity < trace.keys / 2, "the trace does not fit");
    assert!(shard.counters().evictions > capacity as u64 / 8, "the cache turned over");

    let mut list = Exact::new(trace.eviction == Eviction::Lru, trace.keys, capacity);
    let mut any = ExactRandom::new(trace.keys, capacity);
    let mut exact = |key: usize| match trace.eviction {
        Eviction::Random => any.read(key),
        _ => list.read(key),
    };
    if trace.bulk_load {
        (0..trace.keys).for_each(|key| assert!(!exact(key)));
    }
    let mut exact_hits = 0;
    let mut zipf = Zipf::new(trace.keys, trace.skew, 99);
    for request in 0..trace.requests {
        let hit = exact(zipf.draw());
        exact_hits += usize::from(hit && request >= trace.requests / 2);
    }
    let per_cent = |hits: usize| hits as f64 * 200.0 / trace.requests as f64;
    (per_cent(hits), per_cent(exact_hits))
}

fn assert_close(trace: &Trace) {
    let (lazy, exact) = measure(trace);
    assert!(lazy > exact - 0.2, "lazy {lazy:.3} %, exact {exact:.3} %");
}

const BASE: Trace = Trace {
    eviction: Eviction::Lru,
    memory_bytes: 4 << 20,
    keys: 200_000,
    skew: 0.99,
    requests: 1_000_000,
    requests_per_second: 50_000,
    bulk_load: false,
};

#[test]
fn hit_ratio_is_within_a_fifth_of_a_point_of_exact_lru_at_any_skew() {
    for skew in [0.6, 0.8, 0.99, 1.2] {
        assert_close(&Trace { skew, ..BASE });
    }
}

#[test]
fn a_bulk_load_in_address_order_does_not_mislead_eviction() {
    assert_close(&Trace { bulk_load: true, ..BASE });
    assert_close(&Trace { bulk_load: true, skew: 0.8, requests_per_second: 1_000_000, ..BASE });
}

#[test]
fn a_larger_cache_is_as_close() {
    assert_close(&Trace { memory_bytes: 16 << 20, keys: 600_000, requests: 2_000_000, ..BASE });
}

#[test]
fn a_tiny_cache_is_as_close() {
    assert_close(&Trace { memory_bytes: 1 << 20, keys: 100_000, requests: 600_000, ..BASE });
}

#[test]
fn fifo_and_random_hit_as_often_as_exact_ones_and_less_often_than_lru() {
    let (lru, _) = measure(&BASE);
    for eviction in [Eviction::Fifo, Eviction::Random] {
        let (lazy, exact) = measure(&Trace { eviction, ..BASE });
        assert!((lazy - exact).abs() < 0.5, "{eviction:?}: {lazy:.3} %, exact {exact:.3} %");
        assert!(lazy < lru && lazy > lru - 8.0, "{eviction:?}: {lazy:.3} %, LRU {lru:.3} %");
    }
}

#[test]
fn the_nearest_deadlines_go_first_and_items_without_one_last() {
    let config =
        ShardConfig { memory_bytes: 4 << 20, eviction: Eviction::Ttl, ..ShardConfig::tiny() };
    let mut shard = Shard::new(&config, Rc::new(HashSecret::of_seed(5)), 0, 1);
    let now = Instant::from_millis(1_700_000_000_000);
    let name = |key: u64| key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    // Of every 64 items one lives forever, the others for 1 to 100,000 seconds. Long values, so
    // that items with and without a deadline are in one slab class.
    let ttl =
        |key: u64| (!key.is_multiple_of(64)).then(|| 1 + name(key)[3] as u64 * 390 + key % 390);
    let keys = 30_000;
    for key in 0..keys {
        let deadline = match ttl(key) {
            None => Deadline::NEVER,
            Some(seconds) => Deadline::at(now.after(std::time::Duration::from_secs(seconds))),
        };
        let store = Store { deadline, ..Store::set(&[7; 500]) };
        let (name, operation) = (name(key), Operation::Store(store));
        let request =
            Request { key: &name, hash: KeyHash::of(&name, &HashSecret::of_seed(5)), operation };
        assert!(matches!(shard.execute(&request, now), Response::Stored { .. }));
    }
    let mut kept = |key: u64| {
        let name = name(key);
        let operation = Operation::Get(Get::default());
        let request =
            Request { key: &name, hash: KeyHash::of(&name, &HashSecret::of_seed(5)), operation };
        matches!(shard.execute(&request, now), Response::Hit(_))
    };
    let (mut for_ever, mut late, mut early) = (0, 0, 0);
    for key in 0..keys {
        if kept(key) {
            match ttl(key) {
                None => for_ever += 1,
                Some(seconds) if seconds > 50_000 => late += 1,
                Some(_) => early += 1,
            }
        }
    }
    let share = 100.0 * f64::from(early) / f64::from(late + early);
    assert!(for_ever > keys / 64 * 95 / 100, "{for_ever} without a deadline, {late} late, {early}");
    assert!(
        share < 20.0,
        "{share:.1} % of the items kept expire early: {late} late, {early} early"
    );
}
