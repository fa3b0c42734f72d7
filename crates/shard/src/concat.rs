//! Append and prepend.

use super::item::{self, BINARY_KEY, Head, SHORT_VALUE_MAX};
use super::store::{Content, Put};
use super::value::gather;
use super::{Shape, Shard};
use ringlane_types::request::{ItemRef, Request, Response, Staged, Store, StoreMode};
use ringlane_types::time::Instant;
use std::borrow::Cow;

impl Shard {
    /// Joins a value to the one of `old`, which is live. `Err` without memory; then the old item is
    /// unchanged.
    pub(super) fn concat(
        &mut self,
        request: &Request<'_>,
        store: &Store<'_>,
        old: &Head,
        content: Content<'_>,
        now: Instant,
    ) -> Result<Response<'static>, ()> {
        let memory = self.slab.memory();
        let flags = old.flags(memory);
        let old_bytes = old.value_bytes(memory);
        let value_bytes = old_bytes + content.len();
        if !self.fits(request.key.len(), flags, value_bytes as u64) {
            self.drop_content(content);
            return Ok(Response::NotStored);
        }
        let version = self.cas_or_next(store.cas);
        let marks = if store.binary_key { BINARY_KEY } else { 0 };
        let front = store.mode == StoreMode::Prepend;
        let answer = Response::Stored { cas: version, value_bytes: value_bytes as u32 };
        let joined = (value_bytes, version, marks);
        if self.join_in_place(old, content, front, joined, now) {
            return Ok(answer);
        }
        let deadline = self.deadline_of(old);
        let put = Put { flags, deadline, marks, version, content: Content::Bytes(b"") };
        let shape = self.shape(request.key.len(), value_bytes, flags, deadline);
        if let Content::Staged(staged) = content
            && self.staged_shape(&staged).0.chained
            && let Some(item) = self.join_to_short(request, old, staged, (&shape, &put, front), now)
        {
            self.link(request, item, &shape, deadline);
            self.count_set(item);
            return Ok(answer);
        }
        let (old_at, new_at) = if front { (content.len(), 0) } else { (0, old_bytes) };

        self.guard(old);
        let room = self.allocate_item(&shape, now);
        self.unguard(old);
        let item = if let Some((item, chain)) = room {
            self.write_item(item, &shape, request.key, &put, chain, now);
            self.inherit_frequency(item, old, now);
            let from = self.value_list(old);
            self.copy_value(&from, item, old_at);
            let entry = self.find_again(request.hash, old.item);
            self.remove_found(request, entry, old);
            item
        } else if self.policy.evicts() {
            // Not all parts fit into memory at once: copy them outside.
            let kept = self.value_of(old).to_vec();
            let entry = self.find_again(request.hash, old.item);
            self.remove_found(request, entry, old);
            let part = match content {
                Content::Bytes(bytes) => Cow::Borrowed(bytes),
                Content::Staged(staged) => {
                    let part = gather(self.slab.memory(), &self.staged_list(&staged));
                    self.discard(staged);
                    Cow::Owned(part)
                }
            };
            let (item, chain) = self.allocate_item(&shape, now).ok_or(())?;
            self.write_item(item, &shape, request.key, &put, chain, now);
            self.inherit_frequency(item, old, now);
            self.write_value(item, old_at, &kept);
            self.write_value(item, new_at, &part);
            self.link(request, item, &shape, deadline);
            self.count_set(item);
            return Ok(answer);
        } else {
            self.drop_content(content);
            return Err(());
        };
        self.fill(item, new_at, content);
        self.link(request, item, &shape, deadline);
        self.count_set(item);
        Ok(answer)
    }

    /// Joins a long staged value to a value within its chunk. `None` without memory; then nothing
    /// has changed.
    fn join_to_short(
        &mut self,
        request: &Request<'_>,
        old: &Head,
        staged: Staged,
        (shape, put, front): (&Shape, &Put<'_>, bool),
        now: Instant,
    ) -> Option<ItemRef> {
        self.guard(old);
        let class = self.slab.class_for(shape.chunk_bytes());
        let item = self.allocate_chunk(class, now);
        let chain = item.and_then(|item| {
            self.slab.hold(item);
            let chain = self.chain_of_both(old, staged, (front, item), now);
            self.slab.unhold(item);
            chain
        });
        self.unguard(old);
        let (item, chain) = match (item, chain) {
            (Some(item), Some(chain)) => (item, chain),
            (Some(item), None) => {
                self.slab.free(item);
                return None;
            }
            (None, _) => return None,
        };
        self.write_item(item, shape, request.key, put, chain, now);
        self.inherit_frequency(item, old, now);
        let entry = self.find_again(request.hash, old.item);
        self.remove_found(request, entry, old);
        Some(item)
    }

    /// Joins within the chunk, if it has room and is not being read, or by extending a chain.
    fn join_in_place(
        &mut self,
        old: &Head,
        content: Content<'_>,
        front: bool,
        (value_bytes, version, marks): (usize, u64, u8),
        now: Instant,
    ) -> bool {
        let shape = old.shape(self.slab.memory());
        let joined = Shape { value_bytes, ..shape };
        if shape.chained {
            if !self.concat_chained(old, content, front, now) {
                return false;
            }
            self.account_out(old);
            item::set_value_bytes(self.slab.memory_mut(), old.item, value_bytes);
        } else {
            if !self.fits_in_chunk(old, &shape, &joined) {
                return false;
            }
            self.account_out(old);
            let value_at = old.key_offset() + old.key_len as usize;
            let memory = self.slab.memory_mut();
            if front {
                let end = value_at + shape.value_bytes;
                memory.copy_within(value_at..end, value_at + content.len());
            }
            item::set_value_bytes(memory, old.item, value_bytes);
            self.fill(old.item, if front { 0 } else { shape.value_bytes }, content);
        }
        let accessed = self.access_time_used(old, now);
        let memory = self.slab.memory_mut();
        item::set_version(memory, old.item, version);
        item::set_accessed(memory, old.item, accessed);
        let extensions = old.marks & (item::HAS_TTL | item::HAS_FLAGS | item::LARGE);
        item::set_marks(memory, old.item, extensions | marks);
        self.account_in(old.item, joined.item_bytes());
        self.counters.total_items += 1;
        self.count_set(old.item);
        true
    }

    /// Whether an item's chunk has room for the joined value, and it is not being read.
    fn fits_in_chunk(&self, old: &Head, shape: &Shape, joined: &Shape) -> bool {
        let with_ttl = Shape { ttl: true, ..*joined };
        with_ttl.chunk_bytes() <= self.slab.chunk_bytes_max()
            && joined.chunk_bytes() <= self.slab.chunk_bytes_of(old.item)
            && (shape.value_bytes > SHORT_VALUE_MAX) == (joined.value_bytes > SHORT_VALUE_MAX)
            && !self.is_pinned(old.item)
    }

    /// Writes `content` to position `at` of an item's value; a staged one is freed.
    fn fill(&mut self, item: ItemRef, at: usize, content: Content<'_>) {
        match content {
            Content::Bytes(bytes) => self.write_value(item, at, bytes),
            Content::Staged(staged) => {
                let from = self.staged_list(&staged);
                self.copy_value(&from, item, at);
                self.discard(staged);
            }
        }
    }
}
