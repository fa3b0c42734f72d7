//! Compares all policies on the same traces and checks their strengths.
//!
//! Read, and store on a miss; hit ratios over the second half. Identical on every machine, and
//! equal to the table in `docs/performance.md`.

use super::quality::Zipf;
use crate::Shard;
use crate::{Eviction, ShardConfig};
use ringlane_types::hash::{HashSecret, KeyHash};
use ringlane_types::request::{Get, Operation, Request, Response, Store};
use ringlane_types::time::Instant;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

const TABLE: &str = include_str!("../../../../docs/performance.md");

const KEYS: usize = 100_000;
const REQUESTS: usize = 400_000;
const POLICIES: [Eviction; 5] =
    [Eviction::Lru, Eviction::Lfu, Eviction::S3Fifo, Eviction::Fifo, Eviction::Random];

#[derive(Clone, Copy, Debug)]
enum Trace {
    /// Popularity by rank, to this power.
    Zipf(f64),
    /// The same at 0.99, with occasional scans of keys that are never requested again: a third of
    /// all requests.
    Scans,
    /// The same at 0.99, but every 40,000 requests other keys become popular; at this many requests
    /// per second.
    Shifts(u64),
}

impl Trace {
    /// The requested keys, in order.
    fn keys(self) -> Vec<u64> {
        let skew = if let Trace::Zipf(skew) = self { skew } else { 0.99 };
        let mut zipf = Zipf::new(KEYS, skew, 99);
        let mut keys = Vec::with_capacity(REQUESTS);
        let mut scanned = KEYS as u64;
        let mut drawn = 0u64;
        while keys.len() < REQUESTS {
            let rank = zipf.draw() as u64;
            drawn += 1;
            let shift = if matches!(self, Trace::Shifts(_)) { drawn / 40_000 * 5_000 } else { 0 };
            keys.push((rank + shift) % KEYS as u64);
            if matches!(self, Trace::Scans) && drawn.is_multiple_of(20_000) {
                keys.extend(scanned..scanned + 10_000);
                scanned += 10_000;
            }
        }
        keys
    }

    fn requests_per_second(self) -> u64 {
        if let Trace::Shifts(rate) = self { rate } else { 20_000 }
    }
}

/// Hits in per cent of the second half of `keys`, given whether each is one.
fn ratio(keys: &[u64], mut hits: impl FnMut(u64) -> bool) -> f64 {
    let mut count = 0;
    for (at, &key) in keys.iter().enumerate() {
        count += usize::from(hits(key) && at >= keys.len() / 2);
    }
    count as f64 * 200.0 / keys.len() as f64
}

/// The hit ratio of a shard, and how many items it turned out to hold.
fn measure(eviction: Eviction, keys: &[u64], requests_per_second: u64) -> (f64, usize) {
    let config = ShardConfig { memory_bytes: 2 << 20, eviction, ..ShardConfig::tiny() };
    let mut shard = Shard::new(&config, Rc::new(HashSecret::of_seed(5)), 0, 1);
    let mut micros = 1_700_000_000_000_000u64;
    let ratio = ratio(keys, |key| {
        micros += 1_000_000 / requests_per_second;
        let now = Instant::from_millis(micros / 1000);
        let name = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let hash = KeyHash::of(&name, &HashSecret::of_seed(5));
        let mut ask = |operation| {
            let request = Request { key: &name, hash, operation };
            matches!(shard.execute(&request, now), Response::Hit(_))
        };
        let hit = ask(Operation::Get(Get::default()));
        if !hit {
            ask(Operation::Store(Store::set(&[7; 48])));
        }
        shard.maintain(now, 4);
        hit
    });
    shard.check_invariants();
    (ratio, shard.gauges().items as usize)
}

/// S3-FIFO as its authors describe it.
struct ExactS3Fifo {
    capacity: usize,
    frequency: HashMap<u64, u8>,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghost: VecDeque<u64>,
    ghosts: HashSet<u64>,
}

impl ExactS3Fifo {
    fn read(&mut self, key: u64) -> bool {
        if let Some(frequency) = self.frequency.get_mut(&key) {
            *frequency = 3.min(*frequency + 1);
            return true;
        }
        while self.frequency.len() >= self.capacity {
            self.evict();
        }
        if self.ghosts.remove(&key) {
            self.main.push_front(key);
        } else {
            self.small.push_front(key);
        }
        self.frequency.insert(key, 0);
        false
    }

    fn evict(&mut self) {
        if self.small.len() >= self.capacity / 10 || self.main.is_empty() {
            let key = self.small.pop_back().expect("something is there");
            let frequency = self.frequency.get_mut(&key).expect("it is there");
            if *frequency > 0 {
                *frequency = 0;
                self.main.push_front(key);
                return;
            }
            self.frequency.remove(&key);
            self.ghost.push_front(key);
            self.ghosts.insert(key);
            if self.ghost.len() > self.capacity * 9 / 10 {
                let oldest = self.ghost.pop_back().expect("some are there");
                self.ghosts.remove(&oldest);
            }
        } else {
            let key = self.main.pop_back().expect("something is there");
            let frequency = self.frequency.get_mut(&key).expect("it is there");
            if *frequency == 0 {
                self.frequency.remove(&key);
            } else {
                *frequency -= 1;
                self.main.push_front(key);
            }
        }
    }
}

#[test]
fn contest_of_all_policies() {
    use Trace::{Scans, Shifts, Zipf};
    let traces = [Zipf(0.99), Zipf(0.8), Scans, Shifts(20_000), Shifts(100)];
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for trace in traces {
        let keys = trace.keys();
        let rate = trace.requests_per_second();
        let measured = POLICIES.map(|policy| measure(policy, &keys, rate));
        let capacity = measured[2].1;
        let mut exact = ExactS3Fifo {
            capacity,
            frequency: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            ghosts: HashSet::new(),
        };
        let exact = ratio(&keys, |key| exact.read(key));
        let ratios = measured.map(|(ratio, _)| ratio);
        let [lru, lfu, s3fifo, fifo, random] = ratios;
        let row =
            format!("| {lru:.2} | {lfu:.2} | {s3fifo:.2} | {exact:.2} | {fifo:.2} | {random:.2} |");
        if !TABLE.contains(&row) {
            missing.push(format!("{trace:?}: {row}"));
        }
        rows.push((ratios, exact));
    }
    assert!(missing.is_empty(), "docs/performance.md should have for {missing:#?}");
    let [zipf, flat, scans, shifts, slowly] = &rows[..] else { unreachable!("five traces") };
    for ([lru, lfu, s3fifo, fifo, random], exact) in [zipf, flat, scans] {
        assert!(lfu > lru && s3fifo > lru, "who counts keeps what is popular");
        assert!(lru > fifo && lru > random);
        assert!((s3fifo - exact).abs() < 1.0, "{s3fifo:.2} is far from {exact:.2}");
    }
    let ([lru, lfu, s3fifo, ..], _) = scans;
    assert!(*s3fifo > lru + 3.0 && *lfu > lru + 3.0, "a scan washes nothing out");
    let ([lru, lfu, s3fifo, ..], exact) = shifts;
    assert!(lru > s3fifo && s3fifo > lfu, "who counts is slow to let go of what was popular");
    assert!(*s3fifo > exact - 2.5, "{s3fifo:.2} is far from {exact:.2}");
    let ([_, lfu_in_time, ..], _) = slowly;
    assert!(*lfu_in_time > lfu + 3.0, "levels run down");
}
