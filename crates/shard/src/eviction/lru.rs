//! Least recently used, without a list: a sweep in the order of the last use.
//!
//! Ages at eviction spread by a few per cent around the age exact LRU would evict at, which costs
//! hit ratio only to second order.

use super::Sight;
use super::sweep::{LAST, Order, Sweep};
use crate::item::{self, Head};

/// Recency per slab class.
pub(crate) type Lru = Sweep<LastUse>;

/// In the order of the last use.
pub(crate) struct LastUse;

impl Order for LastUse {
    #[inline]
    fn place(sight: &Sight<'_>, head: &Head) -> u64 {
        (sight.now.as_millis() >> 3) - u64::from(sight.age(head))
    }
}

impl Lru {
    pub(super) fn eviction_age(&mut self, sight: &Sight<'_>, class: u8) -> u32 {
        match self.cutoff(sight, class) {
            // It was looked at while all that it had was still arriving, or being sent.
            LAST => 0,
            cutoff => item::stamp(sight.now).wrapping_sub(cutoff as u32),
        }
    }
}
