//! Allocates memory for long values in slices.
//!
//! A value of many pages displaces hundreds of thousands of small items, and even a single page may
//! hold tens of thousands. Such a value is staged in slices, so that other requests are served in
//! between: each slice evicts and empties up to its budget, and allocates the resulting chunks. The
//! item's own chunk comes first; pieces are added to its chain, held from the beginning, until the
//! value fits. Refused: freeing everything before allocating any of it, since others would take the
//! freed memory meanwhile.

use super::item::{self, KEY_STAGED, NO_CHAIN, Shape};
use super::{Chain, PIECE_HEADER_BYTES, Shard, StageRefusal};
use ringlane_types::request::{ItemRef, Span, Staged};
use ringlane_types::time::{Deadline, Instant};

/// An item to be staged whose memory is being allocated.
#[derive(Debug)]
pub struct Staging {
    key_bytes: usize,
    flags: u32,
    deadline: Deadline,
    value_bytes: u32,
    /// Its own chunk is allocated; pieces may still be missing.
    begun: Option<Staged>,
}

impl Staging {
    /// An item of this size, not allocated yet: see [`Shard::stage`].
    pub fn new(key_bytes: usize, flags: u32, deadline: Deadline, value_bytes: u32) -> Self {
        Self { key_bytes, flags, deadline, value_bytes, begun: None }
    }
}

impl Shard {
    /// Like [`Shard::stage`], but evicts and moves about `budget` items at most. `None` if that was
    /// not enough: call it again, or give up with [`Shard::abandon`]. A refused item keeps no
    /// memory.
    pub fn make_room(
        &mut self,
        staging: &mut Staging,
        budget: u32,
        now: Instant,
    ) -> Result<Option<Staged>, StageRefusal> {
        self.run_work_if_due(now);
        let mut slice = Slice { begun_at: self.work, budget: budget.max(1), steps: 0 };
        let staged = match staging.begun {
            Some(staged) => staged,
            None => match self.begin_staged(staging, &mut slice, now)? {
                Some(staged) => staged,
                None => return Ok(None),
            },
        };
        staging.begun = Some(staged);
        let (_, chain) = self.staged_shape(&staged);
        if chain != NO_CHAIN {
            match self.lengthen(&staged, chain, &mut slice, now) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(refusal) => {
                    self.abandon(staging);
                    return Err(refusal);
                }
            }
        }
        staging.begun = None;
        Ok(Some(staged))
    }

    /// Sets the length of the prefix of the memory that is already faulted in. [`Shard::make_room`]
    /// waits for more rather than use memory beyond.
    #[inline]
    pub fn set_ready_bytes(&mut self, bytes: usize) {
        self.ready_bytes = bytes;
    }

    /// Whether [`Shard::make_room`] has waited for memory to become ready since the last call.
    #[inline]
    pub fn take_memory_request(&mut self) -> bool {
        std::mem::take(&mut self.awaits_memory)
    }

    /// Frees the memory of an item that will not be staged.
    pub fn abandon(&mut self, staging: &mut Staging) {
        if let Some(staged) = staging.begun.take() {
            self.discard(staged);
        }
    }

    /// Items evicted and chunks emptied so far, by any call; wraps. The unit of slices.
    #[inline]
    pub fn work(&self) -> u32 {
        self.work
    }

    /// Allocates the item's own chunk.
    fn begin_staged(
        &mut self,
        staging: &Staging,
        slice: &mut Slice,
        now: Instant,
    ) -> Result<Option<Staged>, StageRefusal> {
        let &Staging { key_bytes, flags, deadline, value_bytes, .. } = staging;
        if !self.fits(key_bytes, flags, value_bytes as u64) {
            return Err(StageRefusal::TooLarge);
        }
        if self.staged_bytes > 0 && self.staged_bytes + value_bytes as u64 > self.held_bytes_max() {
            return Err(StageRefusal::OutOfMemory);
        }
        let shape: Shape = self.shape(key_bytes, value_bytes as usize, flags, deadline);
        let class = self.slab.class_for(shape.chunk_bytes());
        let Some(item) = self.allocate_in_slices(class, slice, now)? else { return Ok(None) };
        let chain = if shape.chained {
            self.chains.insert(Chain { spans: Vec::new() }) as u32
        } else {
            NO_CHAIN
        };
        let memory = self.slab.memory_mut();
        // The version field is unused so far and stores the key's length.
        shape.write(memory, item, key_bytes as u64, 0, KEY_STAGED, 0, 0, 0, 0, chain);
        self.hold(item, chain);
        self.staged_bytes += value_bytes as u64;
        Ok(Some(Staged { item, value_bytes }))
    }

    /// Adds pieces until the value fits; true once it does.
    fn lengthen(
        &mut self,
        staged: &Staged,
        chain: u32,
        slice: &mut Slice,
        now: Instant,
    ) -> Result<bool, StageRefusal> {
        let spans = &self.chains[chain as usize].spans;
        let there: usize = spans.iter().map(|span| span.bytes as usize).sum();
        let mut left = staged.value_bytes as usize - there;
        while left > 0 {
            let wanted = (left + PIECE_HEADER_BYTES).min(self.slab.chunk_bytes_max());
            let class = self.slab.class_for(wanted);
            let Some(piece) = self.allocate_in_slices(class, slice, now)? else {
                return Ok(false);
            };
            item::write_piece(self.slab.memory_mut(), piece, staged.item);
            self.slab.hold(piece);
            let bytes = left.min(self.slab.chunk_bytes_of(piece) - PIECE_HEADER_BYTES);
            let offset = (item::offset(piece) + PIECE_HEADER_BYTES) as u64;
            self.chains[chain as usize].spans.push(Span { offset, bytes: bytes as u32 });
            left -= bytes;
        }
        Ok(true)
    }

    /// Like [`Shard::allocate_chunk`], within the slice: `None` when that is used up.
    fn allocate_in_slices(
        &mut self,
        class: u8,
        slice: &mut Slice,
        now: Instant,
    ) -> Result<Option<ItemRef>, StageRefusal> {
        let chunk = loop {
            if let Some(chunk) = self.slab.allocate(class) {
                break chunk;
            }
            let left = slice.left(self.work);
            if left == 0 {
                return Ok(None);
            }
            let takes_page = self.slab.pages_free() > self.reserve_pages;
            if takes_page && !self.slab.is_next_page_within(self.ready_bytes) {
                self.awaits_memory = true;
                return Ok(None);
            } else if takes_page {
                self.slab.assign(class);
            } else if self.evict_from(class, now) {
                self.balance(class, now);
            } else if self.slab.assign(class).is_some() {
                // As for other items, the reserve is for classes without a page.
            } else if let Some(chunk) = self.allocate_larger(class, now) {
                break chunk;
            } else if self.start_emptying(class) {
                self.drain_some(now, &mut { left });
            } else {
                self.class_counters[class as usize].outofmemory += 1;
                return Err(StageRefusal::OutOfMemory);
            }
        };
        item::set_key_len(self.slab.memory_mut(), chunk, KEY_STAGED);
        Ok(Some(chunk))
    }
}

/// The remaining budget of a slice.
struct Slice {
    /// [`Shard::work`] when it began.
    begun_at: u32,
    budget: u32,
    /// Attempts, which have a cost even if nothing is evicted.
    steps: u32,
}

impl Slice {
    /// Counts an attempt.
    fn left(&mut self, work: u32) -> u32 {
        let done = work.wrapping_sub(self.begun_at).saturating_add(self.steps);
        self.steps += 1;
        self.budget.saturating_sub(done)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{Eviction, ShardConfig};
    use ringlane_types::hash::HashSecret;
    use ringlane_types::request::{Body, Get, Operation, Request, Response, Store};

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);
    /// When the memory is full: what is stored from then on is younger.
    const LATER: Instant = Instant::from_millis(1_700_000_060_000);
    const BUDGET: u32 = 64;

    fn shard(eviction: Eviction) -> Shard {
        let config = ShardConfig { memory_bytes: 16 << 20, item_bytes_max: 8 << 20, eviction };
        Shard::new(&config, Rc::new(HashSecret::of_seed(7)), 0, 1)
    }

    fn execute<'s>(shard: &'s mut Shard, key: &str, operation: Operation<'_>) -> Response<'s> {
        let key = key.as_bytes();
        let hash = shard.hash_key(key);
        let now = if shard.counters().evictions > 0 { LATER } else { NOW };
        shard.execute(&Request { key, hash, operation }, now)
    }

    fn set(shard: &mut Shard, number: u32) {
        let store = Store::set(&[b'v'; 20]);
        execute(shard, &format!("key {number}"), Operation::Store(store));
    }

    fn fill(shard: &mut Shard) {
        (0..300_000).for_each(|number| set(shard, number));
        assert!(shard.counters().evictions > 0, "the memory is full");
    }

    /// Makes room in slices while others store; returns how many slices that took.
    fn stage(shard: &mut Shard, value_bytes: u32) -> (Staged, u32) {
        let mut staging = Staging::new(4, 0, Deadline::NEVER, value_bytes);
        for slices in 1.. {
            let before = shard.work();
            let staged = shard.make_room(&mut staging, BUDGET, LATER).expect("there is room");
            let work = shard.work() - before;
            // What one eviction can bring with it for the balance of classes comes on top.
            assert!(work <= 1200, "a slice of {BUDGET} was {work}");
            if let Some(staged) = staged {
                return (staged, slices);
            }
            (0..100).for_each(|number| set(shard, 2_000_000 + slices * 100 + number));
        }
        unreachable!("it ends within four billion slices");
    }

    #[test]
    fn room_for_a_long_value_among_small_items_is_made_in_slices_while_others_store() {
        for eviction in [Eviction::Lru, Eviction::Fifo] {
            let mut shard = shard(eviction);
            fill(&mut shard);
            let (staged, slices) = stage(&mut shard, 4 << 20);
            shard.check_invariants();
            assert!(slices > 10, "{slices} with {eviction:?}");
            for span in shard.staged_spans(&staged).collect::<Vec<_>>() {
                let (start, bytes) = (span.offset as usize, span.bytes as usize);
                shard.memory_mut()[start..start + bytes].fill(b'l');
            }
            let store = Store { value: Body::Staged(staged), ..Store::set(b"") };
            let stored = execute(&mut shard, "long", Operation::Store(store));
            assert!(matches!(stored, Response::Stored { .. }), "{stored:?}");
            let Response::Hit(hit) = execute(&mut shard, "long", Operation::Get(Get::default()))
            else {
                panic!("it was stored, with {eviction:?}");
            };
            assert!(hit.value.len() == 4 << 20);
            assert!(hit.value.parts().all(|part| part.iter().all(|&byte| byte == b'l')));
            shard.check_invariants();
        }
    }

    #[test]
    fn what_is_given_up_or_refused_halfway_leaves_nothing() {
        let mut shard = shard(Eviction::Lru);
        fill(&mut shard);
        let (whole, _) = stage(&mut shard, 2 << 20);
        let mut staging = Staging::new(4, 0, Deadline::NEVER, 4 << 20);
        for _ in 0..20 {
            assert!(matches!(shard.make_room(&mut staging, BUDGET, LATER), Ok(None)));
        }
        shard.check_invariants();
        // A flush while room is being made takes neither what is there nor what is announced.
        for _ in 0..20 {
            set(&mut shard, 1);
            shard.flush_all(LATER, LATER);
        }
        shard.check_invariants();
        shard.abandon(&mut staging);
        shard.abandon(&mut staging);
        shard.discard(whole);
        shard.check_invariants();
        while shard.maintain(LATER, 1000) {}
        assert_eq!(shard.gauges().chunk_bytes, 0);
        let mut staging = Staging::new(4, 0, Deadline::NEVER, 10 << 20);
        let refusal = shard.make_room(&mut staging, BUDGET, LATER).expect_err("above the limit");
        assert_eq!(refusal, StageRefusal::TooLarge);
    }

    #[test]
    fn without_eviction_a_value_that_finds_no_room_is_refused_and_its_pieces_are_free() {
        let mut shard = shard(Eviction::None);
        (0..80_000).for_each(|number| set(&mut shard, number));
        let chunk_bytes = shard.gauges().chunk_bytes;
        (0..8).for_each(|_| {
            let mut staging = Staging::new(4, 0, Deadline::NEVER, 7 << 20);
            while let Ok(None) = shard.make_room(&mut staging, BUDGET, LATER) {}
        });
        let mut staging = Staging::new(4, 0, Deadline::NEVER, 7 << 20);
        let refusal = loop {
            match shard.make_room(&mut staging, BUDGET, LATER) {
                Ok(None) => {}
                outcome => break outcome,
            }
        };
        assert!(matches!(refusal, Err(StageRefusal::OutOfMemory)), "{refusal:?}");
        shard.check_invariants();
        assert!(shard.gauges().chunk_bytes >= chunk_bytes);
    }
}
