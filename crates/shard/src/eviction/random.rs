//! Any item, each as likely as the others.

use super::sweep::{Hand, Random, SCAN_MAX};
use super::{ChunkState, EvictionView};
use crate::item::Head;

/// No order at all.
pub(crate) struct Any {
    random: Random,
    /// Where to search if random samples find only free chunks and unevictable items.
    hand: Hand,
}

impl Any {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), hand: Hand::default() }
    }

    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        for _ in 0..SCAN_MAX {
            match self.random.item(view, class)? {
                ChunkState::Unevictable => {}
                ChunkState::Dead(head) | ChunkState::Live(head) => return Some(head),
            }
        }
        self.hand.next_item(view, class)
    }

    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        self.random.old_age(view, class)
    }
}
