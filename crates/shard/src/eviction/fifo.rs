//! First in, first out: the hand evicts whatever comes next.
//!
//! An evicted chunk is the next one to be filled, so address order from the hand on is the order of
//! arrival. Chunks freed otherwise, by deletes and expiry, are filled out of turn; their items are
//! evicted when the hand passes.

use super::EvictionView;
use super::sweep::{Hand, Random};
use crate::item::Head;

/// Arrival per slab class.
pub(crate) struct Fifo {
    hands: Vec<Hand>,
    random: Random,
}

impl Fifo {
    pub(super) fn new(class_count: usize, seed: u64) -> Self {
        Self { hands: vec![Hand::default(); class_count], random: Random::new(seed) }
    }

    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        self.hands[class as usize].next_item(view, class)
    }

    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        self.random.old_age(view, class)
    }
}
