//! A hand that sweeps the pages of a slab class and selects victims from one end of an order.
//!
//! The hand visits the chunks of a class in address order and evicts items that precede a *cutoff*
//! in the order of a policy, [`Order`]; the cutoff is a quantile of randomly sampled items, updated
//! as evictions proceed. A sweep that finds nothing before the cutoff within [`SCAN_MAX`] items
//! takes the first in the order that it saw. So a victim comes from about the first sixteenth of
//! its class, and between two visits of the hand every item has time to move in the order.
//!
//! Refused: linked lists (8 bytes per item and three cache lines written per hit), and sampling a
//! few random items per eviction (as many cache misses, with a wider spread of victims). The cutoff
//! is not derived from the sweep itself: after a bulk load neighbours in memory are alike, and the
//! local sample would be misleading.

use std::marker::PhantomData;

use super::{ChunkState, EvictionView};
use crate::item::Head;
use ringlane_types::request::ItemRef;

/// Maximum items examined for one victim.
pub(super) const SCAN_MAX: u32 = 32;
/// Items remembered per class.
const SAMPLES: usize = 128;
/// The cutoff is the rank of this many-th of [`SAMPLES`].
const CUTOFF_RANK: usize = 8;
/// One in this many evictions also samples a random item, at the cost of a cache miss.
const SAMPLE_EVERY: u32 = 2;
/// Evictions between two updates of the cutoff.
const RENEW_EVERY: u32 = 64;

/// The rank of items evicted last.
pub(super) const LAST: u64 = u64::MAX;

/// The order of eviction.
pub(crate) trait Order {
    /// The item's rank: the lowest is evicted first. It must not depend on the current time, so
    /// that ranks of different times can be compared. [`LAST`] is evicted only if nothing else is
    /// found.
    fn place(view: &EvictionView<'_>, head: &Head) -> u64;
}

/// Evicts from the lower end of an order, per slab class.
pub(crate) struct Sweep<O> {
    classes: Vec<Class>,
    random: Random,
    order: PhantomData<O>,
}

#[derive(Default)]
struct Class {
    hand: Hand,
    /// Ranks of sampled items; empty until the first eviction.
    samples: Vec<u64>,
    next_sample: usize,
    evictions: u32,
    /// Items at or before this rank are evicted.
    cutoff: u64,
}

impl<O: Order> Sweep<O> {
    pub(super) fn new(class_count: usize, seed: u64) -> Self {
        Self {
            classes: (0..class_count).map(|_| Class::default()).collect(),
            random: Random::new(seed),
            order: PhantomData,
        }
    }

    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        if view.slab.classes[class as usize].pages.is_empty() {
            return None;
        }
        self.sample(view, class);
        let state = &mut self.classes[class as usize];
        let mut first: Option<(u64, Head)> = None;
        // Free chunks and held items count too, so that a victim is found in bounded time unless
        // there is none: then the whole class is visited once.
        let mut seen = 0;
        for _ in 0..chunks_of(view, class) {
            match view.chunk_state(state.hand.advance(view, class)) {
                ChunkState::Unevictable => continue,
                ChunkState::Dead(head) => return Some(head),
                ChunkState::Live(head) => {
                    let place = O::place(view, &head);
                    if place <= state.cutoff && place != LAST {
                        return Some(head);
                    }
                    if first.is_none_or(|(lowest, _)| place < lowest) {
                        first = Some((place, head));
                    }
                }
            }
            seen += 1;
            if seen >= SCAN_MAX {
                break;
            }
        }
        first.map(|(_, head)| head)
    }

    /// The current cutoff of `class`.
    pub(super) fn cutoff(&mut self, view: &EvictionView<'_>, class: u8) -> u64 {
        self.sample(view, class);
        self.classes[class as usize].cutoff
    }

    /// Occasionally samples a random item of `class` (many the first time) and updates the cutoff.
    fn sample(&mut self, view: &EvictionView<'_>, class: u8) {
        let state = &mut self.classes[class as usize];
        let first = state.samples.is_empty();
        state.evictions = state.evictions.wrapping_add(1);
        if !first && !state.evictions.is_multiple_of(SAMPLE_EVERY) {
            return;
        }
        if first {
            state.samples = vec![LAST; SAMPLES];
        }
        for _ in 0..if first { SAMPLES } else { 1 } {
            match self.random.item(view, class) {
                None => return,
                Some(ChunkState::Live(head)) => {
                    state.samples[state.next_sample] = O::place(view, &head);
                    state.next_sample = (state.next_sample + 1) % SAMPLES;
                }
                Some(_) => {}
            }
        }
        if first || state.evictions.is_multiple_of(RENEW_EVERY) {
            let mut places = [0; SAMPLES];
            places.copy_from_slice(&state.samples);
            let (_, place, _) = places.select_nth_unstable(CUTOFF_RANK);
            state.cutoff = *place;
        }
    }
}

/// The position of a sweep over a class.
#[derive(Clone, Copy, Default)]
pub(super) struct Hand {
    /// Position in the class's page list, and the next chunk number there.
    page: usize,
    chunk: u32,
}

impl Hand {
    /// The chunk under the hand; the hand moves on. The class has pages.
    pub(super) fn advance(&mut self, view: &EvictionView<'_>, class: u8) -> ItemRef {
        let pages = &view.slab.classes[class as usize].pages;
        if self.page >= pages.len() || self.chunk >= view.slab.page(pages[self.page]).fresh {
            self.chunk = 0;
            self.page += 1;
            if self.page >= pages.len() {
                self.page = 0;
            }
        }
        self.chunk += 1;
        view.slab.chunk(pages[self.page], self.chunk - 1)
    }

    /// The next evictable item; `None` if a whole round finds none.
    pub(super) fn next_item(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        (0..chunks_of(view, class)).find_map(|_| {
            match view.chunk_state(self.advance(view, class)) {
                ChunkState::Unevictable => None,
                ChunkState::Dead(head) | ChunkState::Live(head) => Some(head),
            }
        })
    }
}

/// Chunks of `class` ever handed out, plus one per page as a margin.
pub(super) fn chunks_of(view: &EvictionView<'_>, class: u8) -> u64 {
    let class = &view.slab.classes[class as usize];
    class.pages.len() as u64 * class.chunks_per_page as u64
}

/// Random chunks (xorshift).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn step(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
    }

    /// 32 random bits.
    pub(super) fn next(&mut self) -> u32 {
        self.step();
        (self.0 >> 32) as u32
    }

    /// The content of a random chunk of `class`; `None` if the class has no page.
    pub(super) fn item(&mut self, view: &EvictionView<'_>, class: u8) -> Option<ChunkState> {
        self.step();
        let pages = &view.slab.classes[class as usize].pages;
        if pages.is_empty() {
            return None;
        }
        let page = pages[(self.0 >> 32) as usize % pages.len()];
        let fresh = view.slab.page(page).fresh;
        let chunk = ((self.0 as u32 as u64 * fresh as u64) >> 32) as u32;
        Some(view.chunk_state(view.slab.chunk(page, chunk)))
    }

    /// How long ago, in units of 8 ms, an older one of a few sampled items of `class` was used: for
    /// policies not based on age, to compare classes.
    pub(super) fn old_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        const FEW: u32 = 16;
        let mut age = 0;
        for _ in 0..FEW {
            if let Some(ChunkState::Live(head)) = self.item(view, class) {
                age = age.max(view.age(&head));
            }
        }
        age
    }
}
