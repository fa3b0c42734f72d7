//! Allocation: chunks for items, victims for chunks.
//!
//! A chunk comes from, in this order: a page of its class with room; a free page beyond the
//! reserve; a victim of its own class; the reserve; and if the class has no page, a larger chunk of
//! a class that has one, or the cheapest page of another class, emptied at once. Only the last step
//! is not small, and the reserve (refilled in the background by `pages`) keeps it rare.

use super::eviction::{ChunkState, EvictionView};
use super::item::{self, HAS_TTL, Head, NO_CHAIN, Shape};
use super::slab::CLASS_INDEX;
use super::{Chain, PIECE_HEADER_BYTES, Shard, piece_at};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{ItemRef, Span};
use ringlane_types::time::Instant;

/// Number of larger classes tried if an item's own has no page.
const LARGER_CLASSES: u8 = 12;
/// Shards with at least this many pages keep a reserve.
pub(super) const RESERVE_FROM_PAGES: u32 = 64;
/// Number of pages examined to find the cheapest.
const CANDIDATE_PAGES: u32 = 64;

/// Why an item is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemovalReason {
    /// Deleted, replaced or moved: counted by the caller.
    Removed,
    /// Evicted for room.
    Evicted,
    /// Its deadline passed.
    Expired,
    /// Stored before a flush.
    Flushed,
}

/// The parts of a shard that policies examine.
macro_rules! view {
    ($shard:ident, $now:expr) => {
        $crate::eviction::EvictionView {
            slab: &$shard.slab,
            wheel: &$shard.wheel,
            pins: &$shard.pins,
            guard: $shard.guard,
            flush: &$shard.flush,
            hash_secret: &$shard.hash_secret,
            frequency_mask: $shard.frequency_mask,
            items: $shard.index.len(),
            now: $now,
        }
    };
}
pub(super) use view;

impl Shard {
    /// The view for policies.
    pub(super) fn view(&self, now: Instant) -> EvictionView<'_> {
        view!(self, now)
    }

    /// The access time of an item after a use at `now`.
    #[inline(always)]
    pub(super) fn access_time_used(&mut self, head: &Head, now: Instant) -> u32 {
        match self.frequency_mask {
            0 => item::stamp(now),
            _ => self.policy.used(head.accessed, now),
        }
    }

    /// The access time of a new item about to be written at `item`.
    #[inline(always)]
    pub(super) fn access_time_new(&mut self, item: ItemRef, key: &[u8], now: Instant) -> u32 {
        match self.frequency_mask {
            0 => item::stamp(now),
            _ => self.enter_policy(item, key, now),
        }
    }

    #[inline(never)]
    fn enter_policy(&mut self, item: ItemRef, key: &[u8], now: Instant) -> u32 {
        let accessed = self.policy.entered(&view!(self, now), item, key);
        self.write_frequencies();
        accessed
    }

    /// Writes the access times that a policy has changed.
    #[inline]
    fn write_frequencies(&mut self) {
        let memory = self.slab.memory_mut();
        self.policy.write_changes(|(item, accessed)| item::set_accessed(memory, item, accessed));
    }

    /// Lets the item at `item` inherit the frequency of `old`, which it replaces.
    #[inline(always)]
    pub(super) fn inherit_frequency(&mut self, item: ItemRef, old: &Head, now: Instant) {
        if self.frequency_mask != 0 {
            self.replace_frequency(item, old, now);
        }
    }

    #[inline(never)]
    fn replace_frequency(&mut self, item: ItemRef, old: &Head, now: Instant) {
        let new = Head::read(self.slab.memory(), item);
        let accessed = self.policy.replaced(new.accessed, old.accessed, now);
        item::set_accessed(self.slab.memory_mut(), item, accessed);
    }

    /// When an item was last used, without the policy's bits.
    #[inline(always)]
    pub(super) fn used_at(&self, head: &Head) -> u32 {
        head.accessed & !self.frequency_mask
    }

    /// Allocates chunks for an item of `shape`, evicting where needed. Writes only the pieces'
    /// marks. Returns the item and its chain record.
    pub(super) fn allocate_item(&mut self, shape: &Shape, now: Instant) -> Option<(ItemRef, u32)> {
        let class = self.slab.class_for(shape.chunk_bytes());
        if !shape.chained {
            return Some((self.allocate_chunk(class, now)?, NO_CHAIN));
        }
        let mut spans = Vec::new();
        let complete = self.fill_up(&mut spans, shape.value_bytes, now);
        let head = if complete { self.allocate_chunk(class, now) } else { None };
        spans.iter().for_each(|span| self.slab.unhold(piece_at(span)));
        let Some(head) = head else {
            for span in &spans {
                self.slab.free(piece_at(span));
            }
            return None;
        };
        for span in &spans {
            item::write_piece(self.slab.memory_mut(), piece_at(span), head);
        }
        Some((head, self.chains.insert(Chain { spans }) as u32))
    }

    /// Allocates and holds pieces until `bytes` bytes fit. False without memory.
    pub(super) fn fill_up(&mut self, spans: &mut Vec<Span>, bytes: usize, now: Instant) -> bool {
        let mut left = bytes;
        while left > 0 {
            let wanted = (left + PIECE_HEADER_BYTES).min(self.slab.chunk_bytes_max());
            let class = self.slab.class_for(wanted);
            let Some(piece) = self.allocate_chunk(class, now) else { return false };
            item::write_piece(self.slab.memory_mut(), piece, ItemRef(0));
            self.slab.hold(piece);
            let bytes = left.min(self.slab.chunk_bytes_of(piece) - PIECE_HEADER_BYTES);
            let offset = (item::offset(piece) + PIECE_HEADER_BYTES) as u64;
            spans.push(Span { offset, bytes: bytes as u32 });
            left -= bytes;
        }
        true
    }

    /// Frees the chunks of an item that is in neither the index nor the wheel.
    pub(super) fn free_item(&mut self, item: ItemRef, chain: u32) {
        if chain != NO_CHAIN {
            let chain = self.chains.remove(chain as usize);
            for span in &chain.spans {
                self.slab.free(piece_at(span));
            }
        }
        self.slab.free(item);
    }

    /// Allocates a chunk of `class` or a larger one. Its header is garbage until written.
    #[inline]
    pub(super) fn allocate_chunk(&mut self, class: u8, now: Instant) -> Option<ItemRef> {
        let chunk = match self.slab.allocate(class) {
            Some(chunk) => chunk,
            None => self.allocate_slow(class, now)?,
        };
        // Until its item is written the chunk must look unevictable.
        item::set_key_len(self.slab.memory_mut(), chunk, item::KEY_STAGED);
        Some(chunk)
    }

    #[inline(never)]
    fn allocate_slow(&mut self, class: u8, now: Instant) -> Option<ItemRef> {
        loop {
            if self.slab.pages_free() > self.reserve_pages {
                self.slab.assign(class);
            } else if self.evict_from(class, now) {
                // The victim's chunk may be in another class: the next round tries again.
                self.balance(class, now);
            } else if self.slab.assign(class).is_some() {
                // The reserve exists for classes without a page.
            } else if let Some(chunk) = self.allocate_larger(class, now) {
                return Some(chunk);
            } else if !self.take_page(now) {
                self.class_counters[class as usize].outofmemory += 1;
                return None;
            }
            if let Some(chunk) = self.slab.allocate(class) {
                return Some(chunk);
            }
        }
    }

    /// Allocates a chunk of a larger class that has pages. Only shards with a reserve do that: for
    /// small ones emptying a page is as fast.
    pub(super) fn allocate_larger(&mut self, class: u8, now: Instant) -> Option<ItemRef> {
        if self.reserve_pages == 0 {
            return None;
        }
        let last = (class + LARGER_CLASSES).min(self.slab.classes.len() as u8 - 1);
        (class + 1..=last).find_map(|larger| {
            self.slab.allocate(larger).or_else(|| {
                self.evict_from(larger, now).then(|| self.slab.allocate(larger)).flatten()
            })
        })
    }

    /// Evicts one item of `class`. False if none is evictable.
    pub(super) fn evict_from(&mut self, class: u8, now: Instant) -> bool {
        let victim = self.policy.victim(&view!(self, now), class);
        self.write_frequencies();
        match victim {
            Some(head) => {
                self.evict(&head, now);
                true
            }
            None => false,
        }
    }

    /// Evicts an item, or removes one that is dead anyway.
    pub(super) fn evict(&mut self, head: &Head, now: Instant) {
        self.work = self.work.wrapping_add(1);
        let reason = if self.flush.is_flushed(head) {
            RemovalReason::Flushed
        } else if self.flush.is_tombstone(head) {
            RemovalReason::Removed
        } else if head.has(HAS_TTL) && self.deadline_of(head).is_past(now) {
            RemovalReason::Expired
        } else {
            RemovalReason::Evicted
        };
        if reason == RemovalReason::Evicted {
            let used = self.used_at(head);
            let class = &mut self.class_counters[self.slab.class_of(head.item) as usize];
            class.evicted += 1;
            class.evicted_nonzero += u64::from(head.has(HAS_TTL));
            class.evicted_seconds = item::seconds_between(used, item::stamp(now)) as u64;
            class.evicted_unfetched += u64::from(!head.has(item::FETCHED));
        }
        self.remove(head, reason);
    }

    /// Removes an item that is in the index, and counts the reason.
    pub(super) fn remove(&mut self, head: &Head, reason: RemovalReason) {
        let hash = self.hash_of(head);
        let memory = self.slab.memory();
        let entry = self.index.entry_of(memory, hash, head.item).expect("a live item is indexed");
        self.index.remove(self.slab.memory_mut(), hash, entry);
        self.release(head, reason);
    }

    /// Completes an item's removal from the index: wheel, accounting, memory.
    pub(super) fn release(&mut self, head: &Head, reason: RemovalReason) {
        self.detach(head, reason);
        let chain = head.chain(self.slab.memory()).unwrap_or(NO_CHAIN);
        if self.is_pinned(head.item) {
            self.pins.mark_dead(head.item);
        } else {
            self.free_item(head.item, chain);
        }
    }

    /// Removes an item that has left the index from the wheel and the accounting; its memory stays.
    pub(super) fn detach(&mut self, head: &Head, reason: RemovalReason) {
        if head.has(HAS_TTL) && item::previous(self.slab.memory(), head.item) != 0 {
            self.wheel.unlink(self.slab.memory_mut(), head.item);
        }
        self.account_out(head);
        let unfetched = u64::from(!head.has(item::FETCHED));
        match reason {
            RemovalReason::Removed | RemovalReason::Flushed => {}
            RemovalReason::Evicted => {
                self.counters.evictions += 1;
                self.counters.evicted_unfetched += unfetched;
            }
            RemovalReason::Expired => {
                self.counters.reclaimed += 1;
                self.counters.expired_unfetched += unfetched;
                let class = &mut self.class_counters[self.slab.class_of(head.item) as usize];
                class.reclaimed += 1;
                class.expired_unfetched += unfetched;
            }
        }
    }

    pub(super) fn account_in(&mut self, item: ItemRef, item_bytes: usize) {
        self.flush.items[self.flush.epoch as usize] += 1;
        let class = &mut self.class_counters[self.slab.class_of(item) as usize];
        class.items += 1;
        class.item_bytes += item_bytes as u64;
    }

    pub(super) fn account_out(&mut self, head: &Head) {
        self.flush.items[head.epoch() as usize] -= 1;
        let item_bytes = head.shape(self.slab.memory()).item_bytes();
        let class = &mut self.class_counters[self.slab.class_of(head.item) as usize];
        class.items -= 1;
        class.item_bytes -= item_bytes as u64;
    }

    /// Whether a [`Shard::pin`] keeps the memory of `item`.
    #[inline]
    pub fn is_pinned(&self, item: ItemRef) -> bool {
        self.slab.page(self.slab.page_of(item)).held > 0 && self.pins.is_pinned(item)
    }

    pub(super) fn hash_of(&self, head: &Head) -> KeyHash {
        KeyHash::of(head.key(self.slab.memory()), &self.hash_secret)
    }

    /// Ensures that the index has room for an item under `hash`. False without memory.
    #[inline]
    pub(super) fn make_index_room(&mut self, hash: KeyHash, now: Instant) -> bool {
        self.index.has_room() || self.find_index_room(hash, now)
    }

    #[inline(never)]
    fn find_index_room(&mut self, hash: KeyHash, now: Instant) -> bool {
        while !self.index.has_overflow() {
            match self.slab.assign_to_index() {
                Some(page) => self.index.add_overflow_page(self.slab.memory_mut(), page),
                None if self.index.has_hole(self.slab.memory(), hash) => return true,
                None if self.take_page(now) => {}
                None => return false,
            }
        }
        !self.index.is_chain_full(self.slab.memory(), hash) || self.evict_from_chain(hash, now)
    }

    /// Removes an item from the full chain of `hash`: a dead one, or the least recently used one.
    /// Independent of the policy, since the choice is among one chain's items only. False if none
    /// is evictable.
    #[cold]
    fn evict_from_chain(&mut self, hash: KeyHash, now: Instant) -> bool {
        let (view, evicts) = (self.view(now), self.policy.evicts());
        let mut victim: Option<(u32, Head)> = None;
        self.index.visit_chain(view.slab.memory(), hash, |item| {
            let (age, head) = match view.classify(Head::read(view.slab.memory(), item)) {
                ChunkState::Dead(head) => (u32::MAX, head),
                ChunkState::Live(head) if evicts => (view.age(&head), head),
                ChunkState::Live(_) | ChunkState::Unevictable => return,
            };
            if victim.is_none_or(|(oldest, _)| age > oldest) {
                victim = Some((age, head));
            }
        });
        let Some((_, head)) = victim else { return false };
        self.counters.chain_evictions += 1;
        self.evict(&head, now);
        true
    }

    /// Grows the index towards its target load, at most two buckets at a time, so that every
    /// insertion does bounded work.
    #[inline]
    pub(super) fn grow_index(&mut self) {
        if self.index.wants_split() {
            self.split_buckets(2);
        }
    }

    #[inline(never)]
    pub(super) fn split_buckets(&mut self, count: u32) {
        for _ in 0..count {
            if !self.index.wants_split() {
                return;
            }
            if self.index.needs_segment() {
                let Some(page) = self.slab.assign_to_index() else {
                    // Chains grow meanwhile; background work finds a page.
                    return;
                };
                self.index.add_segment(page);
            }
            let secret = &*self.hash_secret;
            self.index.split(
                self.slab.memory_mut(),
                |memory, item| KeyHash::of(Head::read(memory, item).key(memory), secret),
                |memory, item| crate::prefetch::prefetch(&memory[item::offset(item)]),
            );
        }
    }

    /// Frees a page at once by removing all its items. False if no page can be freed.
    pub(super) fn take_page(&mut self, now: Instant) -> bool {
        if !self.policy.evicts() {
            return false;
        }
        // A page being drained is closest to being free.
        if let Some(drain) = self.drain.take()
            && self.slab.page(drain.page).draining
        {
            if self.slab.page(drain.page).held == 0 {
                self.empty_page(drain.page, now);
                return true;
            }
            self.slab.stop_drain(drain.page);
        }
        let Some(page) = self.cheapest_page() else { return false };
        self.slab.start_drain(page);
        self.empty_page(page, now);
        true
    }

    /// Removes all items of a page that is being drained and holds nothing staged or pinned.
    fn empty_page(&mut self, page: u32, now: Instant) {
        if self.slab.page_class(page) >= CLASS_INDEX {
            return;
        }
        let fresh = self.slab.page(page).fresh;
        for chunk in 0..fresh {
            let chunk = self.slab.chunk(page, chunk);
            if let ChunkState::Dead(head) | ChunkState::Live(head) =
                self.view(now).chunk_state(chunk)
            {
                self.evict(&head, now);
            }
            if self.slab.page_class(page) >= CLASS_INDEX {
                self.counters.slabs_moved += 1;
                return;
            }
        }
        unreachable!("a page that holds nothing that must stay becomes empty");
    }

    /// Among some pages, the one whose removal costs the fewest items.
    pub(super) fn cheapest_page(&mut self) -> Option<u32> {
        let count = self.slab.page_count();
        let mut best: Option<(u32, u32)> = None;
        let mut looked_at = 0;
        for _ in 0..count {
            self.page_cursor = (self.page_cursor + 1) % count;
            let number = self.page_cursor;
            let page = self.slab.page(number);
            if self.slab.page_class(number) >= CLASS_INDEX || page.held > 0 || page.draining {
                continue;
            }
            if best.is_none_or(|(used, _)| page.used < used) {
                best = Some((page.used, number));
            }
            looked_at += 1;
            if looked_at == CANDIDATE_PAGES {
                break;
            }
        }
        best.map(|(_, number)| number)
    }
}
