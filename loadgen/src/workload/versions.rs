//! Tracks which values of a key a read may still return: catches stale answers.
//!
//! Every write of a key takes the next version. Writes of one key that overlap in time may take
//! effect in any order, so they form a cluster, from the first that is sent while none is in flight
//! to the moment when none is in flight again. Any of a cluster's writes may be the last to take
//! effect; all earlier ones were certainly overwritten. So once a cluster is over, a read that is
//! sent afterwards must see its first version or a later one: that is the key's floor. A delete is
//! a write without a value. A write whose answer never arrived may take effect at any time later;
//! its cluster never ends, and the floor of its key stays where it is.
//!
//! This holds for a server that executes one command after the other on a key. Reads from replicas
//! that may lag need [`Verify::Content`](super::Verify::Content).
//!
//! A counter has a floor too: increments only grow it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Versions of all keys and values of all counters, shared by all threads. Sixteen bytes per key.
#[derive(Debug)]
pub struct Versions {
    keys: Box<[AtomicU64]>,
    counters: Box<[AtomicU64]>,
}

/// A key's versions in one word, so that threads agree without a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word {
    /// The last version taken; 0 is none.
    last: u32,
    /// Distance from the floor to it. At the limit the floor is unknown, which is 0.
    lag: u16,
    /// Writes in flight. At the limit the count is lost, and the cluster never ends.
    under_way: u8,
    /// Writes of the current cluster, up to the limit.
    cluster: u8,
}

/// The counter was recreated at some point, so its values are meaningless.
const COUNTER_LOST: u64 = u64::MAX;

impl Versions {
    /// For keys and counters without known writes.
    pub fn new(keys: u64, counters: u64) -> Self {
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { keys: zeros(keys), counters: zeros(counters) }
    }

    /// A write of `key` is about to be sent; its version.
    pub fn begin_write(&self, key: u64) -> u32 {
        let before = self.update(key, |word| {
            let cluster = if word.under_way == 0 { 0 } else { word.cluster };
            Word {
                last: word.last.wrapping_add(1),
                lag: word.lag.saturating_add(1),
                under_way: word.under_way.saturating_add(1),
                cluster: cluster.saturating_add(1),
            }
        });
        before.last.wrapping_add(1)
    }

    /// A write of `key` was answered.
    pub fn end_write(&self, key: u64) {
        self.update(key, |mut word| {
            if word.under_way == u8::MAX {
                return word;
            }
            word.under_way = word.under_way.saturating_sub(1);
            if word.under_way == 0 && word.cluster < u8::MAX {
                word.lag = u16::from(word.cluster.saturating_sub(1));
            }
            word
        });
    }

    /// The oldest version that a read of `key` sent now may return; 0 if any value is possible.
    #[inline]
    pub fn floor(&self, key: u64) -> u32 {
        let word = Word::from_bits(self.keys[key as usize].load(Ordering::Relaxed));
        if word.lag == u16::MAX { 0 } else { word.last.saturating_sub(u32::from(word.lag)) }
    }

    /// The newest possible version of `key`.
    #[inline]
    pub fn last(&self, key: u64) -> u32 {
        Word::from_bits(self.keys[key as usize].load(Ordering::Relaxed)).last
    }

    /// The value that an increment of the counter sent now must exceed.
    pub fn counter_floor(&self, counter: u64) -> u64 {
        match self.counters[counter as usize].load(Ordering::Relaxed) {
            COUNTER_LOST => 0,
            floor => floor,
        }
    }

    /// An increment was answered with `value`.
    pub fn counted(&self, counter: u64, value: u64) {
        // "Lost" is the largest value and stays.
        self.counters[counter as usize].fetch_max(value.min(COUNTER_LOST - 1), Ordering::Relaxed);
    }

    /// The counter was missing: it will restart.
    pub fn counter_lost(&self, counter: u64) {
        self.counters[counter as usize].store(COUNTER_LOST, Ordering::Relaxed);
    }

    fn update(&self, key: u64, change: impl Fn(Word) -> Word) -> Word {
        let word = &self.keys[key as usize];
        let before = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some(change(Word::from_bits(bits)).bits())
        });
        Word::from_bits(before.expect("the change is never refused"))
    }
}

impl Word {
    const fn bits(self) -> u64 {
        self.last as u64
            | (self.lag as u64) << 32
            | (self.under_way as u64) << 48
            | (self.cluster as u64) << 56
    }

    const fn from_bits(bits: u64) -> Self {
        Self {
            last: bits as u32,
            lag: (bits >> 32) as u16,
            under_way: (bits >> 48) as u8,
            cluster: (bits >> 56) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_finished_write_is_the_floor() {
        let versions = Versions::new(2, 0);
        assert_eq!(versions.floor(1), 0);
        assert_eq!(versions.begin_write(1), 1);
        assert_eq!(versions.floor(1), 0, "a read may still see what was there before");
        versions.end_write(1);
        assert_eq!(versions.floor(1), 1);
        assert_eq!((versions.begin_write(1), versions.floor(1), versions.last(1)), (2, 1, 2));
        assert_eq!(versions.floor(0), 0);
    }

    #[test]
    fn of_overlapping_writes_any_may_last() {
        let versions = Versions::new(1, 0);
        versions.begin_write(0);
        versions.end_write(0);
        versions.begin_write(0); // 2
        versions.begin_write(0); // 3
        versions.end_write(0);
        versions.begin_write(0); // 4, overlaps with the one left
        versions.end_write(0);
        assert_eq!(versions.floor(0), 1);
        versions.end_write(0);
        assert_eq!(versions.floor(0), 2, "2, 3 and 4 overlapped in a chain");
    }

    #[test]
    fn an_unanswered_write_holds_the_floor_for_ever() {
        let versions = Versions::new(1, 0);
        versions.begin_write(0);
        versions.end_write(0);
        versions.begin_write(0); // never answered
        for _ in 0..1_000 {
            versions.begin_write(0);
            versions.end_write(0);
        }
        assert_eq!(versions.floor(0), 1);
    }

    #[test]
    fn limits_make_the_check_weaker_not_wrong() {
        let versions = Versions::new(1, 0);
        (0..300).for_each(|_| _ = versions.begin_write(0));
        (0..300).for_each(|_| versions.end_write(0));
        assert_eq!(versions.floor(0), 0, "the count of writes under way was lost");

        let versions = Versions::new(1, 0);
        versions.begin_write(0);
        (0..299).for_each(|_| {
            versions.begin_write(0);
            versions.end_write(0);
        });
        versions.end_write(0);
        assert_eq!(versions.floor(0), 0, "a long cluster has no known beginning");
        versions.begin_write(0);
        versions.end_write(0);
        assert_eq!(versions.floor(0), 301, "the next one has");
    }

    /// A key that takes one of the writes under way at a time never goes below the floor that was
    /// known when a read was sent.
    #[test]
    fn no_order_of_a_correct_server_is_taken_for_stale() {
        for seed in 0..200 {
            let mut random = Random::new(seed, 0);
            let versions = Versions::new(1, 0);
            let (mut stored, mut sent, mut applied) = (0, Vec::new(), 0u32);
            let mut reads = Vec::new();
            for _ in 0..500 {
                match random.below(5) {
                    0 => sent.push(versions.begin_write(0)),
                    1 if !sent.is_empty() => {
                        stored = sent.swap_remove(random.below(sent.len() as u64) as usize);
                        applied += 1;
                    }
                    2 if applied > 0 => {
                        versions.end_write(0);
                        applied -= 1;
                    }
                    3 => reads.push(versions.floor(0)),
                    _ if !reads.is_empty() => {
                        let floor = reads.swap_remove(random.below(reads.len() as u64) as usize);
                        assert!(stored >= floor, "seed {seed}: {stored} below {floor}");
                        assert!(stored <= versions.last(0));
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn counters_grow_until_they_are_lost() {
        let versions = Versions::new(1, 1);
        versions.counted(0, 5);
        versions.counted(0, 3);
        assert_eq!(versions.counter_floor(0), 5);
        versions.counter_lost(0);
        versions.counted(0, 9);
        assert_eq!(versions.counter_floor(0), 0);
    }
}
