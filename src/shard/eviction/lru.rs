//! Least recently used, without a list.
//!
//! A hand sweeps the pages of a class in order and evicts items whose last use lies before a
//! *cutoff*; the cutoff is a quantile of the ages of randomly sampled items, renewed as evictions
//! go on. A sweep that finds nothing beyond the cutoff within [`SCAN_MAX`] items takes the oldest
//! it saw. So a victim comes from the oldest sixteenth or so of its class, and between two visits
//! of the hand every item has time to grow old: ages at eviction spread by a few per cent around
//! the age exact LRU would evict at, which costs hit ratio only to second order.
//!
//! Refused: linked lists (8 bytes an item and three cache lines written per hit), and sampling a
//! few random items per eviction (as many cache misses, and its victims spread wider). The cutoff
//! is not fed back from the sweep itself: after a bulk load neighbours in memory have equal ages,
//! and the local picture would mislead.

use super::{Look, Sight};
use crate::request::ItemRef;
use crate::shard::item::{self, Head};

/// Most items looked at for one victim.
const SCAN_MAX: u32 = 32;
/// Ages remembered per class.
const SAMPLES: usize = 128;
/// The cutoff is the age of this many of [`SAMPLES`] oldest.
const CUTOFF_RANK: usize = 8;
/// Evictions between two computations of the cutoff.
const RENEW_EVERY: u32 = 32;

/// Recency per slab class.
pub(in crate::shard) struct Lru {
    classes: Vec<Class>,
    random: u64,
}

#[derive(Default)]
struct Class {
    /// Position in the class's page list, and chunk number there, that is looked at next.
    page: usize,
    chunk: u32,
    /// Access times of sampled items; empty until the first eviction.
    samples: Vec<u32>,
    next_sample: usize,
    evictions: u32,
    /// Items last used at or before this go.
    cutoff: u32,
}

impl Lru {
    pub(super) fn new(class_count: usize, seed: u64) -> Self {
        Self { classes: (0..class_count).map(|_| Class::default()).collect(), random: seed | 1 }
    }

    pub(super) fn victim(&mut self, sight: &Sight<'_>, class: u8) -> Option<Head> {
        if sight.slab.classes[class as usize].pages.is_empty() {
            return None;
        }
        self.sample(sight, class);
        let state = &mut self.classes[class as usize];
        let now = item::stamp(sight.now);
        let cutoff_age = now.wrapping_sub(state.cutoff);
        let mut oldest: Option<Head> = None;
        // Free chunks and held items cost a look too, so that a victim is found in bounded time
        // unless there is none: then the whole class is looked at once.
        let chunks = chunks_of(sight, class);
        let mut seen = 0;
        for _ in 0..chunks {
            match sight.look(state.advance(sight, class)) {
                Look::Nothing => continue,
                Look::Dead(head) => return Some(head),
                Look::Live(head) => {
                    let age = sight.age(&head);
                    if age >= cutoff_age {
                        return Some(head);
                    }
                    if oldest.is_none_or(|oldest| age > sight.age(&oldest)) {
                        oldest = Some(head);
                    }
                }
            }
            seen += 1;
            if seen >= SCAN_MAX {
                break;
            }
        }
        oldest
    }

    pub(super) fn eviction_age(&mut self, sight: &Sight<'_>, class: u8) -> u32 {
        self.sample(sight, class);
        item::stamp(sight.now).wrapping_sub(self.classes[class as usize].cutoff)
    }

    /// Looks at one random item of `class` (at many the first time) and now and then renews the
    /// cutoff.
    fn sample(&mut self, sight: &Sight<'_>, class: u8) {
        let state = &mut self.classes[class as usize];
        let first = state.samples.is_empty();
        if first {
            state.samples = vec![item::stamp(sight.now); SAMPLES];
        }
        for _ in 0..if first { SAMPLES } else { 1 } {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let pages = &sight.slab.classes[class as usize].pages;
            if pages.is_empty() {
                return;
            }
            let page = pages[(self.random >> 32) as usize % pages.len()];
            let fresh = sight.slab.page(page).fresh;
            let chunk = ((self.random as u32 as u64 * fresh as u64) >> 32) as u32;
            if let Look::Live(head) = sight.look(sight.slab.chunk(page, chunk)) {
                state.samples[state.next_sample] = head.accessed;
                state.next_sample = (state.next_sample + 1) % SAMPLES;
            }
        }
        if first || state.evictions.is_multiple_of(RENEW_EVERY) {
            let now = item::stamp(sight.now);
            let mut ages = [0; SAMPLES];
            for (age, &sample) in ages.iter_mut().zip(&state.samples) {
                *age = now.wrapping_sub(sample);
            }
            let (_, age, _) = ages.select_nth_unstable_by(CUTOFF_RANK, |a, b| b.cmp(a));
            state.cutoff = now.wrapping_sub(*age);
        }
        state.evictions = state.evictions.wrapping_add(1);
    }
}

impl Class {
    /// The chunk under the hand; the hand moves on.
    fn advance(&mut self, sight: &Sight<'_>, class: u8) -> ItemRef {
        let pages = &sight.slab.classes[class as usize].pages;
        if self.page >= pages.len() || self.chunk >= sight.slab.page(pages[self.page]).fresh {
            self.chunk = 0;
            self.page += 1;
            if self.page >= pages.len() {
                self.page = 0;
            }
        }
        self.chunk += 1;
        sight.slab.chunk(pages[self.page], self.chunk - 1)
    }
}

/// Chunks of `class` that were ever handed out, one more per page for good measure.
fn chunks_of(sight: &Sight<'_>, class: u8) -> u64 {
    let class = &sight.slab.classes[class as usize];
    class.pages.len() as u64 * class.chunks_per_page as u64
}
