//! Evicts the nearest deadline of a slab class first; items without one last, in no particular
//! order.

use super::EvictionView;
use super::sweep::{LAST, Order, Random, Sweep};
use crate::item::{HAS_TTL, Head};

/// The order of the deadline.
pub(crate) struct NearestDeadline;

impl Order for NearestDeadline {
    #[inline]
    fn place(view: &EvictionView<'_>, head: &Head) -> u64 {
        if !head.has(HAS_TTL) {
            return LAST;
        }
        view.wheel.deadline(head.deadline_code(view.slab.memory())).as_millis()
    }
}

/// Deadlines per slab class.
pub(crate) struct Ttl {
    sweep: Sweep<NearestDeadline>,
    random: Random,
}

impl Ttl {
    pub(super) fn new(class_count: usize, seed: u64) -> Self {
        Self { sweep: Sweep::new(class_count, seed), random: Random::new(!seed) }
    }

    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        self.sweep.victim(view, class)
    }

    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        self.random.old_age(view, class)
    }
}
