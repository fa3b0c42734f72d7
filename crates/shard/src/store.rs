//! Writes: set, add, replace, append, prepend, cas.

use super::allocate::RemovalReason;
use super::item::{self, BINARY_KEY, Head, NO_CHAIN, STALE, Shape, WON};
use super::{Absent, Entry, Shard, StageRefusal};
use ringlane_types::request::{
    Body, ItemRef, Operation, Request, Response, Staged, Store, StoreMode,
};
use ringlane_types::time::{Deadline, Instant};

/// A new value with its metadata.
pub(super) struct Put<'a> {
    pub(super) flags: u32,
    /// Not in the past.
    pub(super) deadline: Deadline,
    pub(super) marks: u8,
    pub(super) version: u64,
    pub(super) content: Content<'a>,
}

/// The source of a new value.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    /// Outside the shard.
    Bytes(&'a [u8]),
    /// A staged item.
    Staged(Staged),
}

impl Content<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Content::Bytes(bytes) => bytes.len(),
            Content::Staged(staged) => staged.value_bytes as usize,
        }
    }
}

/// The verdict of a store's conditions.
enum Decision {
    Refuse(Response<'static>),
    Put { deadline: Deadline, marks: u8 },
    Join(Head),
}

impl Shard {
    pub(super) fn store(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        now: Instant,
    ) -> Response<'_> {
        match store.value {
            Body::Bytes(bytes) => self.store_content(request, store, Content::Bytes(bytes), now),
            Body::Staged(staged) => self.store_staged(request, store, staged, now),
            Body::Refused(bytes) => {
                let fits = self.fits(request.key.len(), store.flags, bytes);
                self.refuse(request, store, fits, now)
            }
        }
    }

    /// Stores a value that is already in the shard: out of line, so that most stores need no tag to
    /// distinguish their values from these.
    #[inline(never)]
    fn store_staged(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        staged: Staged,
        now: Instant,
    ) -> Response<'_> {
        self.store_content(request, store, Content::Staged(staged), now)
    }

    #[inline(always)]
    fn store_content(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        content: Content<'_>,
        now: Instant,
    ) -> Response<'_> {
        if !self.fits(request.key.len(), store.flags, content.len() as u64) {
            self.drop_content(content);
            return self.refuse(request, store, false, now);
        }
        if !self.make_index_room(request.hash, now) {
            self.drop_content(content);
            return self.refuse(request, store, true, now);
        }
        match self.find(request, now) {
            Err(Absent::StaleEpoch) => self.store_resolved(request, store, content, now),
            found => self.store_over(request, store, content, found.ok(), now),
        }
    }

    /// Like [`Shard::store_over`] for the resolved item of a past epoch.
    #[cold]
    #[inline(never)]
    fn store_resolved(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        content: Content<'_>,
        now: Instant,
    ) -> Response<'_> {
        let found = self.find_settled(request, now).ok();
        self.store_over(request, store, content, found, now)
    }

    /// Stores a value that fits, with room in the index, where `found` is alive.
    #[inline(always)]
    fn store_over(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        content: Content<'_>,
        found: Option<(Entry, Head)>,
        now: Instant,
    ) -> Response<'_> {
        let decision = if store.mode == StoreMode::Set && store.compare.is_none() {
            Decision::Put { deadline: store.deadline, marks: 0 }
        } else {
            self.decide(store, found.map(|(_, head)| head), now)
        };
        let answer = match decision {
            Decision::Refuse(answer) => {
                self.drop_content(content);
                Ok(answer)
            }
            Decision::Join(head) => self.concat(request, store, &head, content, now),
            Decision::Put { deadline, .. } if deadline.is_past(now) => {
                // Stored and expired at once.
                self.drop_content(content);
                self.remove_or_bury(request, found, now);
                let cas = self.cas_or_next(store.cas);
                self.counters.total_items += 1;
                Ok(Response::Stored { cas, value_bytes: content.len() as u32 })
            }
            Decision::Put { deadline, marks } => {
                let version = self.cas_or_next(store.cas);
                let deadline = self.rounded_deadline(deadline, version);
                let marks = marks | if store.binary_key { BINARY_KEY } else { 0 };
                let put = Put { flags: store.flags, deadline, marks, version, content };
                let value_bytes = content.len() as u32;
                let placed = self.put_over(request, found, &put, store.refusal_removes, now);
                if let Some(head) = placed {
                    // The most common outcome: answered here, without moving the response.
                    self.count_set(head.item);
                    self.drain_inline(now);
                    self.counters.cmd_set += 1;
                    return Response::Stored { cas: version, value_bytes };
                }
                Err(())
            }
        };
        self.drain_inline(now);
        match answer {
            Ok(answer) => {
                self.counters.cmd_set += 1;
                answer
            }
            Err(()) => self.refuse(request, store, true, now),
        }
    }

    pub(super) fn count_set(&mut self, item: ItemRef) {
        self.class_counters[self.slab.class_of(item) as usize].cmd_set += 1;
    }

    #[inline(always)]
    pub(super) fn drop_content(&mut self, content: Content<'_>) {
        if let Content::Staged(staged) = content {
            self.discard(staged);
        }
    }

    /// Answers a store whose value could not be staged.
    pub fn refuse_stage(
        &mut self,
        request: &Request<'_>,
        refusal: StageRefusal,
        now: Instant,
    ) -> Response<'_> {
        match request.operation {
            Operation::Store(store) => {
                self.refuse(request, &store, refusal == StageRefusal::OutOfMemory, now)
            }
            _ => Response::NotStored,
        }
    }

    /// Answers a store that was too large, or found no memory although it `fits`.
    #[cold]
    fn refuse(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        fits: bool,
        now: Instant,
    ) -> Response<'_> {
        if store.refusal_removes
            && let Ok(found) = self.find_settled(request, now)
        {
            self.remove_or_bury(request, Some(found), now);
        }
        if fits {
            self.counters.store_no_memory += 1;
            Response::OutOfMemory
        } else {
            self.counters.store_too_large += 1;
            Response::TooLarge
        }
    }

    /// Applies the conditions of a store to the existing item, and counts comparisons.
    #[inline(never)]
    fn decide(&mut self, store: &Store<'_>, old: Option<Head>, now: Instant) -> Decision {
        let joins = matches!(store.mode, StoreMode::Append | StoreMode::Prepend);
        let put = Decision::Put { deadline: store.deadline, marks: 0 };
        // Token 0 is no condition for append and prepend.
        let compare = match store.mode {
            StoreMode::Add => None,
            _ if joins => store.compare.filter(|&cas| cas != 0),
            _ => store.compare,
        };
        let Some(old) = old else {
            if compare.is_some() {
                self.counters.cas_misses += 1;
            }
            return match store.mode {
                StoreMode::Add => put,
                StoreMode::Append | StoreMode::Prepend => match store.vivify {
                    Some(deadline) => Decision::Put { deadline, marks: 0 },
                    None => Decision::Refuse(Response::NotStored),
                },
                StoreMode::Set | StoreMode::Replace if compare.is_some() => {
                    Decision::Refuse(Response::NotFound)
                }
                StoreMode::Set => put,
                StoreMode::Replace => Decision::Refuse(Response::NotStored),
            };
        };
        if store.mode == StoreMode::Add {
            self.use_item(&old, now);
            return Decision::Refuse(Response::NotStored);
        }
        let mut stale = false;
        if let Some(cas) = compare {
            let class = self.slab.class_of(old.item) as usize;
            stale = cas != old.version && store.accept_older && !joins && cas < old.version;
            if cas != old.version && !stale {
                self.counters.cas_badval += 1;
                self.class_counters[class].cas_badval += 1;
                return Decision::Refuse(Response::Exists);
            }
            self.counters.cas_hits += 1;
            self.class_counters[class].cas_hits += 1;
        }
        if joins {
            Decision::Join(old)
        } else if stale {
            Decision::Put { deadline: self.deadline_of(&old), marks: STALE | old.marks & WON }
        } else {
            put
        }
    }

    /// Stores over the existing item. `None` without memory: then `old` remains unless
    /// `may_remove`.
    pub(super) fn put_over(
        &mut self,
        request: &Request<'_>,
        old: Option<(Entry, Head)>,
        put: &Put<'_>,
        may_remove: bool,
        now: Instant,
    ) -> Option<Head> {
        match &old {
            Some(old) => self.put_in_place(request, old, put, may_remove, now),
            None if self.tombstone_policy.is_some() => {
                self.put_over_any(request, put, may_remove, now)
            }
            None => self.put(request, None, put, now),
        }
    }

    /// Stores over a tombstone or an expired item that is still indexed.
    #[inline(never)]
    fn put_over_any(
        &mut self,
        request: &Request<'_>,
        put: &Put<'_>,
        may_remove: bool,
        now: Instant,
    ) -> Option<Head> {
        match self.find_any(request.key, request.hash) {
            Some(old) => self.put_in_place(request, &old, put, may_remove, now),
            None => self.put(request, None, put, now),
        }
    }

    #[inline(always)]
    fn put_in_place(
        &mut self,
        request: &Request<'_>,
        (entry, old): &(Entry, Head),
        put: &Put<'_>,
        may_remove: bool,
        now: Instant,
    ) -> Option<Head> {
        if let Content::Bytes(value) = put.content
            && self.overwrite(old, request.key, value, put, now)
        {
            return Some(*old);
        }
        let placed = if may_remove || self.policy.evicts() {
            // Its memory may be just what is needed.
            self.remove_found(request, *entry, old);
            self.put(request, None, put, now)
        } else {
            self.put(request, Some(old), put, now)
        };
        if let Some(placed) = &placed {
            self.inherit_frequency(placed.item, old, now);
        }
        placed
    }

    /// Writes a new value into the chunk of the old one if it fits there.
    fn overwrite(
        &mut self,
        old: &Head,
        key: &[u8],
        value: &[u8],
        put: &Put<'_>,
        now: Instant,
    ) -> bool {
        let shape = self.shape(key.len(), value.len(), put.flags, put.deadline);
        let memory = self.slab.memory();
        let old_shape = old.shape(memory);
        let class = self.slab.class_of(old.item);
        if shape.chained
            || old_shape.chained
            || self.slab.class_for(shape.chunk_bytes()) != class
            || self.is_pinned(old.item)
        {
            return false;
        }
        let linked = old_shape.ttl && item::previous(memory, old.item) != 0;
        let keeps_slot =
            linked && !put.deadline.is_never() && put.deadline >= self.deadline_of(old);
        let links =
            keeps_slot.then(|| (item::previous(memory, old.item), item::next(memory, old.item)));
        if linked && !keeps_slot {
            self.wheel.unlink(self.slab.memory_mut(), old.item);
        }
        let accessed = self.access_time_used(old, now);
        self.write_head(old.item, &shape, put, NO_CHAIN, accessed, now);
        let memory = self.slab.memory_mut();
        let at = item::offset(old.item) + shape.key_offset();
        if shape.key_offset() != old_shape.key_offset() {
            memory[at..at + key.len()].copy_from_slice(key);
        }
        let at = at + key.len();
        memory[at..at + value.len()].copy_from_slice(value);
        match links {
            Some((previous, next)) => {
                item::set_previous(memory, old.item, previous);
                item::set_next(memory, old.item, next);
            }
            None if !put.deadline.is_never() => self.wheel.link(memory, old.item),
            None => {}
        }
        // One is removed and one is added.
        self.flush.items[old.epoch() as usize] -= 1;
        self.flush.items[self.flush.epoch as usize] += 1;
        let class = &mut self.class_counters[class as usize];
        class.item_bytes -= old_shape.item_bytes() as u64;
        class.item_bytes += shape.item_bytes() as u64;
        self.counters.total_items += 1;
        true
    }

    /// Stores a new item, which replaces `old` in the index if there is one. The index must have
    /// room. `None` without memory; then nothing has changed.
    pub(super) fn put(
        &mut self,
        request: &Request<'_>,
        old: Option<&Head>,
        put: &Put<'_>,
        now: Instant,
    ) -> Option<Head> {
        if let Some(old) = old {
            self.guard(old);
        }
        let placed = self.place(request.key, put, now);
        if let Some(old) = old {
            self.unguard(old);
        }
        if placed.is_none() {
            self.drop_content(put.content);
        }
        let (item, shape) = placed?;
        if let Some(old) = old {
            let entry = self.find_again(request.hash, old.item);
            self.index.remove(self.slab.memory_mut(), request.hash, entry);
            self.release(old, RemovalReason::Removed);
        }
        self.link(request, item, &shape, put.deadline);
        Some(Head::read(self.slab.memory(), item))
    }

    /// Links a written item into the index and the wheel.
    pub(super) fn link(
        &mut self,
        request: &Request<'_>,
        item: ItemRef,
        shape: &Shape,
        deadline: Deadline,
    ) {
        self.index.insert(self.slab.memory_mut(), request.hash, item);
        if !deadline.is_never() {
            self.wheel.link(self.slab.memory_mut(), item);
        }
        self.account_in(item, shape.item_bytes());
        self.counters.total_items += 1;
        self.grow_index();
    }

    /// Allocates chunks for a new item and writes it, not linked yet.
    fn place(&mut self, key: &[u8], put: &Put<'_>, now: Instant) -> Option<(ItemRef, Shape)> {
        let mut shape = self.shape(key.len(), put.content.len(), put.flags, put.deadline);
        let (item, chain) = match put.content {
            Content::Bytes(value) => {
                let (item, chain) = self.allocate_item(&shape, now)?;
                self.write_item(item, &shape, key, put, chain, now);
                self.write_value(item, 0, value);
                return Some((item, shape));
            }
            Content::Staged(staged) => {
                let (staged_shape, chain) = self.staged_shape(&staged);
                let fits = staged_shape.key_bytes == shape.key_bytes
                    && staged_shape.flags == shape.flags
                    && (staged_shape.ttl || !shape.ttl);
                if fits {
                    self.unstage(&staged);
                    shape = staged_shape;
                    (staged.item, chain)
                } else if staged_shape.chained && shape.chained {
                    // Staged with a different layout than stored: the pieces get another head.
                    let class = self.slab.class_for(shape.chunk_bytes());
                    let head = self.allocate_chunk(class, now)?;
                    self.unstage(&staged);
                    self.slab.free(staged.item);
                    self.adopt_pieces(chain, head);
                    (head, chain)
                } else {
                    // The value is copied once more.
                    let (item, chain) = self.allocate_item(&shape, now)?;
                    self.write_item(item, &shape, key, put, chain, now);
                    let spans = self.staged_list(&staged);
                    self.copy_value(&spans, item, 0);
                    self.discard(staged);
                    return Some((item, shape));
                }
            }
        };
        self.write_item(item, &shape, key, put, chain, now);
        Some((item, shape))
    }

    /// Writes header, extensions and key of an item.
    pub(super) fn write_item(
        &mut self,
        item: ItemRef,
        shape: &Shape,
        key: &[u8],
        put: &Put<'_>,
        chain: u32,
        now: Instant,
    ) {
        let accessed = self.access_time_new(item, key, now);
        self.write_head(item, shape, put, chain, accessed, now);
        let at = item::offset(item) + shape.key_offset();
        self.slab.memory_mut()[at..at + key.len()].copy_from_slice(key);
    }

    /// Writes header and extensions of an item.
    #[inline]
    fn write_head(
        &mut self,
        item: ItemRef,
        shape: &Shape,
        put: &Put<'_>,
        chain: u32,
        accessed: u32,
        now: Instant,
    ) {
        let code = if shape.ttl { self.wheel.code(put.deadline, now) } else { 0 };
        let memory = self.slab.memory_mut();
        shape.write(
            memory,
            item,
            put.version,
            accessed,
            shape.key_bytes as u8,
            put.marks,
            self.flush.epoch,
            put.flags,
            code,
            chain,
        );
    }

    /// Removes an item that was just found.
    pub(super) fn remove_found(&mut self, request: &Request<'_>, entry: Entry, head: &Head) {
        self.index.remove(self.slab.memory_mut(), request.hash, entry);
        self.release(head, RemovalReason::Removed);
    }
}
