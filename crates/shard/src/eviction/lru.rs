//! Least recently used, without a list: a sweep in the order of the last use.
//!
//! Ages at eviction spread by a few per cent around the age at which exact LRU would evict, which
//! affects the hit ratio only to second order.

use super::EvictionView;
use super::sweep::{LAST, Order, Sweep};
use crate::item::{self, Head};

/// Recency per slab class.
pub(crate) type Lru = Sweep<LastUse>;

/// The order of the last use.
pub(crate) struct LastUse;

impl Order for LastUse {
    #[inline]
    fn place(view: &EvictionView<'_>, head: &Head) -> u64 {
        (view.now.as_millis() >> 3) - u64::from(view.age(head))
    }
}

impl Lru {
    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        match self.cutoff(view, class) {
            // It was examined while all of its chunks were staged or pinned.
            LAST => 0,
            cutoff => item::stamp(view.now).wrapping_sub(cutoff as u32),
        }
    }
}
