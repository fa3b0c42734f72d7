//! Eviction policies: one interface, one file per policy.
//!
//! A policy selects a victim of one slab class; the shard removes it. A policy keeps no list of
//! items: it examines the items themselves through [`EvictionView`], so an item pays nothing for
//! being evictable and a hit writes at most its access time, whose lowest bits belong to the policy
//! if it counts uses (`frequency`).

mod fifo;
mod frequency;
mod lfu;
mod lru;
mod random;
mod s3fifo;
mod sweep;
mod ttl;

use fifo::Fifo;
use lfu::Lfu;
use lru::Lru;
use random::Any;
use s3fifo::S3Fifo;
use ttl::Ttl;

use super::flush::Flush;
use super::item::{self, Head, Kind};
use super::slab::Slab;
use super::staging::Pins;
use super::ttl_wheel::TtlWheel;
use crate::Eviction;
use ringlane_types::hash::HashSecret;
use ringlane_types::request::ItemRef;
use ringlane_types::time::Instant;

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
    /// Least frequently used.
    Lfu(Lfu),
    /// Three queues.
    S3Fifo(Box<S3Fifo>),
}

impl Policy {
    /// The policy named by `eviction`, for `class_count` slab classes.
    pub(super) fn new(eviction: Eviction, class_count: usize, seed: u64) -> Self {
        match eviction {
            Eviction::Lru => Policy::Lru(Lru::new(class_count, seed)),
            Eviction::None => Policy::None,
            Eviction::Fifo => Policy::Fifo(Fifo::new(class_count, seed)),
            Eviction::Random => Policy::Random(Any::new(seed)),
            Eviction::Ttl => Policy::Ttl(Ttl::new(class_count, seed)),
            Eviction::Lfu => Policy::Lfu(Lfu::new(class_count, seed)),
            Eviction::S3Fifo => Policy::S3Fifo(Box::new(S3Fifo::new(class_count, seed))),
        }
    }

    /// Whether items may be evicted at all.
    #[inline]
    pub(super) fn evicts(&self) -> bool {
        !matches!(self, Policy::None)
    }

    /// An item of `class` to evict, dead ones first. `None` if the class has no evictable item.
    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        match self {
            Policy::Lru(lru) => lru.victim(view, class),
            Policy::None => None,
            Policy::Fifo(fifo) => fifo.victim(view, class),
            Policy::Random(any) => any.victim(view, class),
            Policy::Ttl(ttl) => ttl.victim(view, class),
            Policy::Lfu(lfu) => lfu.victim(view, class),
            Policy::S3Fifo(s3fifo) => s3fifo.victim(view, class),
        }
    }

    /// How long ago, in units of 8 ms, the next victims of `class` were used; for a policy not
    /// based on age, how long ago some of its older items were.
    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        match self {
            Policy::Lru(lru) => lru.eviction_age(view, class),
            Policy::None => 0,
            Policy::Fifo(fifo) => fifo.eviction_age(view, class),
            Policy::Random(any) => any.eviction_age(view, class),
            Policy::Ttl(ttl) => ttl.eviction_age(view, class),
            Policy::Lfu(lfu) => lfu.eviction_age(view, class),
            Policy::S3Fifo(s3fifo) => s3fifo.eviction_age(view, class),
        }
    }

    /// The bits of an item's access time that belong to the policy; 0 for most.
    pub(super) fn frequency_mask(&self) -> u32 {
        match self {
            Policy::Lfu(_) | Policy::S3Fifo(_) => frequency::FREQUENCY_MASK,
            _ => 0,
        }
    }

    /// The access time after a use of an item, for a policy with bits in it.
    #[inline(never)]
    pub(super) fn used(&mut self, accessed: u32, now: Instant) -> u32 {
        match self {
            Policy::Lfu(lfu) => lfu.used(accessed, now),
            Policy::S3Fifo(_) => S3Fifo::used(accessed, now),
            _ => item::stamp(now),
        }
    }

    /// The access time of a new item about to be written at `item`.
    pub(super) fn entered(&mut self, view: &EvictionView<'_>, item: ItemRef, key: &[u8]) -> u32 {
        match self {
            Policy::Lfu(_) => frequency::with(view.now, 0),
            Policy::S3Fifo(s3fifo) => s3fifo.entered(view, item, key),
            _ => item::stamp(view.now),
        }
    }

    /// The access time of an item that replaces one with `before`.
    pub(super) fn replaced(&mut self, accessed: u32, before: u32, now: Instant) -> u32 {
        match self {
            Policy::Lfu(lfu) => lfu.used(before, now),
            Policy::S3Fifo(_) => S3Fifo::replaced(accessed, before, now),
            _ => accessed,
        }
    }

    /// The access time of an item that moves in memory.
    pub(super) fn moved(&self, accessed: u32) -> u32 {
        match self {
            Policy::S3Fifo(_) => S3Fifo::moved(accessed),
            _ => accessed,
        }
    }

    /// Takes the access times changed by the search for a victim, or by a new item.
    #[inline]
    pub(super) fn write_changes(&mut self, write: impl FnMut((ItemRef, u32))) {
        if let Policy::S3Fifo(s3fifo) = self {
            s3fifo.take_changes().for_each(write);
        }
    }
}

/// The content of a chunk for eviction.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChunkState {
    /// Nothing evictable.
    Unevictable,
    /// An expired or flushed item.
    Dead(Head),
    /// An item.
    Live(Head),
}

/// A view of a shard's chunks at one moment.
pub(super) struct EvictionView<'a> {
    pub(super) slab: &'a Slab,
    pub(super) wheel: &'a TtlWheel,
    pub(super) pins: &'a Pins,
    /// The item that an operation in progress still needs; `ItemRef(0)` for none.
    pub(super) guard: ItemRef,
    pub(super) flush: &'a Flush,
    pub(super) hash_secret: &'a HashSecret,
    /// See [`Policy::frequency_mask`].
    pub(super) frequency_mask: u32,
    /// Number of items.
    pub(super) items: u64,
    pub(super) now: Instant,
}

impl EvictionView<'_> {
    /// Examines the chunk at `chunk`; for a piece, the item it belongs to.
    #[inline]
    pub(super) fn chunk_state(&self, chunk: ItemRef) -> ChunkState {
        let memory = self.slab.memory();
        let mut head = Head::read(memory, chunk);
        if !head.is_item() {
            if item::kind(memory, chunk) != Kind::Piece {
                return ChunkState::Unevictable;
            }
            let owner = item::piece_head(memory, chunk);
            if owner.0 == 0 {
                return ChunkState::Unevictable;
            }
            head = Head::read(memory, owner);
        }
        self.classify(head)
    }

    /// Classifies an item: dead, alive, or not evictable.
    #[inline]
    pub(super) fn classify(&self, head: Head) -> ChunkState {
        let held = self.slab.page(self.slab.page_of(head.item)).held > 0;
        if head.item == self.guard || !head.is_item() || held && self.pins.is_pinned(head.item) {
            return ChunkState::Unevictable;
        }
        if self.is_dead(&head) { ChunkState::Dead(head) } else { ChunkState::Live(head) }
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
        item::stamp(self.now).wrapping_sub(head.accessed & !self.frequency_mask)
    }
}

#[cfg(test)]
mod contest;
#[cfg(test)]
mod quality;
