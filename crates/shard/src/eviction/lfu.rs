//! Least frequently used, with aging: a sweep in the order of the last use, with each item advanced
//! by the logarithm of its number of uses.
//!
//! An item's *level* is a Morris counter: a use raises it with a probability that falls by a third
//! with each level, so five bits distinguish one use from half a million. Every period lowers it by
//! one, else once-popular items would stay forever. Redis uses the same two ideas in eight and
//! sixteen bits. Here a level is simply worth one period of the time of the last use: an item's
//! rank is the time at which its level will have run down, which does not change as time passes, so
//! that items can be compared over time as the sweep requires. Unused items are evicted first,
//! oldest first, so new ones have a while to prove themselves.

use super::frequency::{self, FREQUENCY_MASK};
use super::sweep::{Order, Random, Sweep};
use super::{EvictionView, Head};
use crate::item;
use ringlane_types::time::Instant;

/// A level is lost after 2^14 units of 8 ms, 131 s.
const PERIOD_BITS: u32 = 14;

/// The probability of going from each level to the next: (2/3)^level, in units of 2^-32.
const RISES: [u32; FREQUENCY_MASK as usize + 1] = rises();

const fn rises() -> [u32; FREQUENCY_MASK as usize + 1] {
    let mut chances = [u32::MAX; FREQUENCY_MASK as usize + 1];
    let mut level = 1;
    while level < FREQUENCY_MASK as usize {
        chances[level] = (chances[level - 1] as u64 * 2 / 3) as u32;
        level += 1;
    }
    // There is no level above the last.
    chances[FREQUENCY_MASK as usize] = 0;
    chances
}

/// The order in which levels run down.
pub(crate) struct LevelRunsDown;

impl Order for LevelRunsDown {
    #[inline]
    fn place(view: &EvictionView<'_>, head: &Head) -> u64 {
        let used = (view.now.as_millis() >> 3) - u64::from(view.age(head));
        used + (u64::from(frequency::of(head.accessed)) << PERIOD_BITS)
    }
}

/// Frequency per slab class.
pub(crate) struct Lfu {
    sweep: Sweep<LevelRunsDown>,
    random: Random,
}

impl Lfu {
    pub(super) fn new(class_count: usize, seed: u64) -> Self {
        Self { sweep: Sweep::new(class_count, seed), random: Random::new(!seed) }
    }

    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        self.sweep.victim(view, class)
    }

    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        self.random.old_age(view, class)
    }

    /// The access time after a use of an item.
    pub(super) fn used(&mut self, accessed: u32, now: Instant) -> u32 {
        let periods = (item::stamp(now) >> PERIOD_BITS).wrapping_sub(accessed >> PERIOD_BITS);
        let periods = periods & (u32::MAX >> PERIOD_BITS);
        let level = frequency::of(accessed).saturating_sub(periods);
        let rises = self.random.next() < RISES[level as usize];
        frequency::with(now, level + u32::from(rises))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const START: Instant = Instant::from_millis(1_700_000_000_000);

    fn level_after(uses: u32) -> f64 {
        let runs = 200;
        let sum: u32 = (0..runs)
            .map(|run| {
                let mut lfu = Lfu::new(1, run * 7919);
                let used =
                    (0..uses).fold(frequency::with(START, 0), |seen, _| lfu.used(seen, START));
                frequency::of(used)
            })
            .sum();
        f64::from(sum) / runs as f64
    }

    #[test]
    fn levels_tell_apart_what_differs_by_half_and_reach_half_a_million_uses() {
        let levels: Vec<f64> = [1, 4, 16, 64, 256, 1024, 4096].map(level_after).to_vec();
        assert_eq!(levels[0], 1.0, "the first use counts for certain");
        // Fourfold use is about log 4 / log 1.5 = 3.4 levels more.
        for pair in levels.windows(2).skip(2) {
            assert!((2.8..3.9).contains(&(pair[1] - pair[0])), "{levels:?}");
        }
        assert!(RISES[30] > 0 && RISES[31] == 0, "the last level is reached and not left");
    }

    #[test]
    fn an_item_that_is_not_used_any_more_loses_a_level_in_131_seconds() {
        let mut lfu = Lfu::new(1, 3);
        let hot = frequency::with(START, 20);
        let later = |seconds| START.after(Duration::from_secs(seconds));
        let level = |lfu: &mut Lfu, seconds| frequency::of(lfu.used(hot, later(seconds)));
        assert!((20..=21).contains(&level(&mut lfu, 0)));
        assert!((9..=12).contains(&level(&mut lfu, 10 * 131)));
        assert_eq!(level(&mut lfu, 30 * 131), 1, "it begins anew");
    }
}
