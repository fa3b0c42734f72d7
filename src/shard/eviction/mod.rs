//! Which item makes room: one interface, one file per policy.
//!
//! A policy is asked for a victim of one slab class and names an item; the shard removes it. A
//! policy keeps no list of items: it looks at the items themselves through [`Sight`], so an item
//! pays nothing for being evictable and a hit writes at most its access time.

mod fifo;
mod lru;
mod random;
mod sweep;
mod ttl;

use fifo::Fifo;
use lru::Lru;
use random::Any;
use ttl::Ttl;

use super::flush::Flush;
use super::item::{self, Head, Kind};
use super::slab::Slab;
use super::staging::Pins;
use super::ttl_wheel::TtlWheel;
use crate::config::Eviction;
use crate::request::ItemRef;
use crate::time::Instant;

/// The chosen policy.
pub(super) enum Policy {
    /// Least recently used.
    Lru(Lru),
    /// Nothing is evicted.
    None,
    /// First in, first out.
    Fifo(Fifo),
    /// Any.
    Random(Any),
    /// Nearest deadline first.
    Ttl(Ttl),
}

impl Policy {
    /// The policy `eviction` names, for `class_count` slab classes.
    pub(super) fn new(eviction: Eviction, class_count: usize, seed: u64) -> Self {
        match eviction {
            Eviction::Lru => Policy::Lru(Lru::new(class_count, seed)),
            Eviction::None => Policy::None,
            Eviction::Fifo => Policy::Fifo(Fifo::new(class_count, seed)),
            Eviction::Random => Policy::Random(Any::new(seed)),
            Eviction::Ttl => Policy::Ttl(Ttl::new(class_count, seed)),
        }
    }

    /// Whether items may be evicted at all.
    #[inline]
    pub(super) fn evicts(&self) -> bool {
        !matches!(self, Policy::None)
    }

    /// An item of `class` to remove for room, dead ones first. `None` when the class has no item
    /// that may go.
    pub(super) fn victim(&mut self, sight: &Sight<'_>, class: u8) -> Option<Head> {
        match self {
            Policy::Lru(lru) => lru.victim(sight, class),
            Policy::None => None,
            Policy::Fifo(fifo) => fifo.victim(sight, class),
            Policy::Random(any) => any.victim(sight, class),
            Policy::Ttl(ttl) => ttl.victim(sight, class),
        }
    }

    /// How long ago, in units of 8 ms, the items that `class` would evict next were used; for a
    /// policy that does not go by age, how long ago some of its older ones were.
    pub(super) fn eviction_age(&mut self, sight: &Sight<'_>, class: u8) -> u32 {
        match self {
            Policy::Lru(lru) => lru.eviction_age(sight, class),
            Policy::None => 0,
            Policy::Fifo(fifo) => fifo.eviction_age(sight, class),
            Policy::Random(any) => any.eviction_age(sight, class),
            Policy::Ttl(ttl) => ttl.eviction_age(sight, class),
        }
    }
}

/// What is found in a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// Nothing, or something that must stay.
    Nothing,
    /// An expired or flushed item.
    Dead(Head),
    /// An item.
    Live(Head),
}

/// A view of a shard's chunks at one moment.
pub(super) struct Sight<'a> {
    pub(super) slab: &'a Slab,
    pub(super) wheel: &'a TtlWheel,
    pub(super) pins: &'a Pins,
    /// The item that an operation in progress still needs; `ItemRef(0)` for none.
    pub(super) guard: ItemRef,
    pub(super) flush: &'a Flush,
    pub(super) now: Instant,
}

impl Sight<'_> {
    /// Looks at the chunk at `chunk`; for a piece, at the item it belongs to.
    #[inline]
    pub(super) fn look(&self, chunk: ItemRef) -> Look {
        let memory = self.slab.memory();
        let mut head = Head::read(memory, chunk);
        if !head.is_item() {
            if item::kind(memory, chunk) != Kind::Piece {
                return Look::Nothing;
            }
            let owner = item::piece_head(memory, chunk);
            if owner.0 == 0 {
                return Look::Nothing;
            }
            head = Head::read(memory, owner);
        }
        let held = self.slab.page(self.slab.page_of(head.item)).held > 0;
        if head.item == self.guard || !head.is_item() || held && self.pins.is_pinned(head.item) {
            return Look::Nothing;
        }
        if self.is_dead(&head) { Look::Dead(head) } else { Look::Live(head) }
    }

    #[inline]
    pub(super) fn is_dead(&self, head: &Head) -> bool {
        self.flush.is_flushed(head)
            || head.has(item::HAS_TTL)
                && self.wheel.deadline(head.deadline_code(self.slab.memory())).is_past(self.now)
    }

    /// How long ago the item was used, in units of 8 ms.
    #[inline]
    pub(super) fn age(&self, head: &Head) -> u32 {
        item::stamp(self.now).wrapping_sub(head.accessed)
    }
}

#[cfg(test)]
mod quality;
