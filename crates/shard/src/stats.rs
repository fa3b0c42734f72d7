//! Statistics of a shard: gauges, figures per slab class, and a walk over all items.

use super::Shard;
use super::eviction::ChunkState;
use super::item::Kind;
use super::slab::CLASS_INDEX;
use ringlane_types::counters;
use ringlane_types::request::Hit;
use ringlane_types::time::Instant;

/// Number of items sampled to estimate a class's age.
const AGE_SAMPLES: usize = 64;

counters! {
    /// The state of a shard. All add up across cores.
    pub struct Gauges {
        /// Live items.
        items,
        /// Bytes of all items: headers, keys and values.
        item_bytes,
        /// The memory limit.
        memory_bytes_max,
        /// Bytes of pages that belong to slab classes.
        slab_bytes,
        /// Bytes of chunks in use.
        chunk_bytes,
        /// Bytes of pages that belong to the index.
        index_bytes,
        /// Bytes of index buckets in use, overflow included.
        bucket_bytes,
        /// Index buckets, without overflow.
        buckets,
        /// Index buckets in use for overflow.
        overflow_buckets,
        /// Pages the memory limit allows.
        pages_max,
        /// Pages that belong to a class or to the index.
        pages_used,
        /// Pages still available.
        pages_free,
        /// Bytes of pages ever used: the memory provided by the operating system.
        touched_bytes,
        /// Bytes reserved for values still being received.
        staged_bytes,
        /// Items with a deadline.
        ttl_items,
        /// Items from before a flush that are still to be reclaimed or checked again.
        flushed_items,
        /// Tombstones: deletions retained for the other replicas of the key.
        tombstones,
    }
}

counters! {
    /// Figures of one slab class. All but the sizes add up across cores.
    pub struct ClassStats {
        /// Class number, from 1.
        class,
        /// Bytes of one chunk.
        chunk_size,
        /// Chunks in one page.
        chunks_per_page,
        /// Pages the class has.
        total_pages,
        /// Chunks the class has.
        total_chunks,
        /// Chunks in use.
        used_chunks,
        /// Chunks not in use.
        free_chunks,
        /// Items.
        number,
        /// Bytes of items: headers, keys and values.
        mem_requested,
        /// Seconds since the last use of the oldest among some items.
        age,
        /// Items evicted.
        evicted,
        /// Items evicted that had a deadline.
        evicted_nonzero,
        /// Seconds since its last use of the item evicted last.
        evicted_time,
        /// Items evicted that were never read.
        evicted_unfetched,
        /// Failed allocations.
        outofmemory,
        /// Expired items whose memory was reclaimed.
        reclaimed,
        /// Expired items that were never read.
        expired_unfetched,
        /// Reads that found an item.
        get_hits,
        /// Touches that found an item.
        touch_hits,
        /// Stores.
        cmd_set,
        /// Deletes that found an item.
        delete_hits,
        /// Increments that found an item.
        incr_hits,
        /// Decrements that found an item.
        decr_hits,
        /// Compare-and-swaps that stored.
        cas_hits,
        /// Compare-and-swaps whose token differed.
        cas_badval,
    }
}

/// The number by which clients know a class: memcached's start at 1.
#[inline]
pub(super) const fn class_number(class: u8) -> u8 {
    class + 1
}

/// Counters per class.
#[derive(Clone, Debug, Default)]
pub(super) struct ClassCounters {
    pub(super) get_hits: u64,
    pub(super) items: u64,
    pub(super) item_bytes: u64,
    pub(super) touch_hits: u64,
    pub(super) cmd_set: u64,
    pub(super) delete_hits: u64,
    pub(super) incr_hits: u64,
    pub(super) decr_hits: u64,
    pub(super) cas_hits: u64,
    pub(super) cas_badval: u64,
    pub(super) evicted: u64,
    pub(super) evicted_nonzero: u64,
    pub(super) evicted_seconds: u64,
    pub(super) evicted_unfetched: u64,
    pub(super) outofmemory: u64,
    pub(super) reclaimed: u64,
    pub(super) expired_unfetched: u64,
    /// Evictions since the class was last compared with others.
    pub(super) evictions_to_balance: u32,
}

impl ClassCounters {
    /// Resets event counters; gauges stay.
    pub(super) fn reset(&mut self) {
        let Self { items, item_bytes, .. } = *self;
        *self = Self { items, item_bytes, ..Self::default() };
    }
}

/// The position of a walk over all items. `ScanCursor::default()` is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCursor {
    page: u32,
    chunk: u32,
}

impl Shard {
    /// Bytes of one slab page.
    pub fn page_bytes(&self) -> u64 {
        self.slab.page_bytes() as u64
    }

    /// The shard's gauges.
    pub fn gauges(&self) -> Gauges {
        let page_bytes = self.slab.page_bytes() as u64;
        let index_pages = self.index.page_count() as u64;
        let buckets = self.index.bucket_count() as u64;
        Gauges {
            items: self.flush.live(),
            item_bytes: self.class_counters.iter().map(|class| class.item_bytes).sum(),
            memory_bytes_max: self.slab.pages_max() as u64 * page_bytes,
            slab_bytes: (self.slab.pages_in_use() as u64 - index_pages) * page_bytes,
            chunk_bytes: self
                .slab
                .classes
                .iter()
                .map(|class| class.used * class.chunk_bytes as u64)
                .sum(),
            index_bytes: index_pages * page_bytes,
            bucket_bytes: (buckets + self.index.overflow_used())
                * super::index::BUCKET_BYTES as u64,
            buckets,
            overflow_buckets: self.index.overflow_used(),
            pages_max: self.slab.pages_max() as u64,
            pages_used: self.slab.pages_in_use() as u64,
            pages_free: self.slab.pages_free() as u64,
            touched_bytes: self.slab.touched_bytes() as u64,
            staged_bytes: self.staged_bytes,
            ttl_items: self.wheel.len().saturating_sub(self.flush.tombstones()),
            flushed_items: self.flush.dead(),
            tombstones: self.flush.tombstones(),
        }
    }

    /// Figures of all slab classes, including those without pages.
    pub fn class_stats(&self, now: Instant) -> Vec<ClassStats> {
        (0..self.slab.classes.len() as u8).map(|class| self.stats_of(class, now)).collect()
    }

    fn stats_of(&self, class: u8, now: Instant) -> ClassStats {
        let counted = &self.class_counters[class as usize];
        let age = self.oldest_age(class, now);
        let owner = &self.slab.classes[class as usize];
        let pages = owner.pages.len() as u64 + u64::from(self.drains_from(class));
        let chunks = pages * owner.chunks_per_page as u64;
        ClassStats {
            class: class_number(class).into(),
            chunk_size: owner.chunk_bytes as u64,
            chunks_per_page: owner.chunks_per_page as u64,
            total_pages: pages,
            total_chunks: chunks,
            used_chunks: owner.used,
            free_chunks: chunks - owner.used,
            number: counted.items,
            mem_requested: counted.item_bytes,
            age,
            evicted: counted.evicted,
            evicted_nonzero: counted.evicted_nonzero,
            evicted_time: counted.evicted_seconds,
            evicted_unfetched: counted.evicted_unfetched,
            outofmemory: counted.outofmemory,
            reclaimed: counted.reclaimed,
            expired_unfetched: counted.expired_unfetched,
            get_hits: counted.get_hits,
            touch_hits: counted.touch_hits,
            cmd_set: counted.cmd_set,
            delete_hits: counted.delete_hits,
            incr_hits: counted.incr_hits,
            decr_hits: counted.decr_hits,
            cas_hits: counted.cas_hits,
            cas_badval: counted.cas_badval,
        }
    }

    /// Seconds since the last use of the oldest of [`AGE_SAMPLES`] items of `class`.
    fn oldest_age(&self, class: u8, now: Instant) -> u64 {
        let owner = &self.slab.classes[class as usize];
        let view = self.view(now);
        let ages = (0..AGE_SAMPLES).filter_map(|sample| {
            let page = *owner.pages.get(sample % owner.pages.len().max(1))?;
            let fresh = self.slab.page(page).fresh;
            if fresh == 0 {
                return None;
            }
            let chunk = (sample as u64 * fresh as u64 / AGE_SAMPLES as u64) as u32;
            match view.chunk_state(self.slab.chunk(page, chunk)) {
                ChunkState::Live(head) => Some(view.age(&head) as u64 / 125),
                _ => None,
            }
        });
        ages.max().unwrap_or(0)
    }

    /// Whether a page of `class` is being emptied.
    pub(super) fn drains_from(&self, class: u8) -> bool {
        self.drain.is_some_and(|drain| {
            self.slab.page(drain.page).draining && self.slab.page_class(drain.page) == class
        })
    }

    /// Visits the live items in the next `limit` chunks after `cursor`; true unless the walk is
    /// done. Over a whole walk an item that does not move is visited once; one that moves meanwhile
    /// may be missed or visited twice. Does not count as a use.
    pub fn scan(
        &self,
        cursor: &mut ScanCursor,
        limit: u32,
        now: Instant,
        mut visit: impl FnMut(&Hit<'_>),
    ) -> bool {
        let view = self.view(now);
        for _ in 0..limit {
            if cursor.page >= self.slab.page_count() {
                return false;
            }
            if self.slab.page_class(cursor.page) >= CLASS_INDEX
                || cursor.chunk >= self.slab.page(cursor.page).fresh
            {
                cursor.page += 1;
                cursor.chunk = 0;
                continue;
            }
            let chunk = self.slab.chunk(cursor.page, cursor.chunk);
            cursor.chunk += 1;
            if super::item::kind(self.slab.memory(), chunk) != Kind::Item
                || self.deferred_free == Some(chunk)
                || self.pins.is_dead(chunk)
            {
                continue;
            }
            // A pinned item is invisible to eviction, but exists.
            match view.chunk_state(chunk) {
                ChunkState::Dead(_) => {}
                ChunkState::Live(head) if self.flush.is_tombstone(&head) => {}
                ChunkState::Live(head) => visit(&self.hit(&head, now)),
                ChunkState::Unevictable if self.is_pinned(chunk) => {
                    let head = super::Head::read(self.slab.memory(), chunk);
                    if !view.is_dead(&head) && !self.flush.is_tombstone(&head) {
                        visit(&self.hit(&head, now));
                    }
                }
                ChunkState::Unevictable => {}
            }
        }
        cursor.page < self.slab.page_count()
    }
}
