//! Tombstones: the remains of deleted and expired items that may have replicas elsewhere.
//!
//! If a deleted key simply disappeared, the next replica that missed the deletion would restore the
//! old value. So a shard with records replaces a deleted item with one without a value. It has the
//! deletion's version, and a deadline after which nothing older can arrive any more; it is found,
//! moved and evicted like any item, and the wheel removes it. An item that expires also leaves one,
//! with its own version.
//!
//! Clients never see a tombstone: it is in the odd epoch of the current pair (see `flush`), so a
//! lookup that compares epochs, as it must anyway, does not take it for an item. A shard without
//! records pays nothing. Refused: a mark bit, which every hit would have to test, and a separate
//! table of deletions, which would need its own memory and limit.

use super::allocate::RemovalReason;
use super::item::{self, Head, NO_CHAIN, Shape};
use super::store::{Content, Put};
use super::{Entry, Shard};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{ItemRef, KEY_BYTES_MAX, Request};
use ringlane_types::time::{Deadline, Instant};
use std::time::Duration;

/// How tombstones are retained.
#[derive(Clone, Copy, Debug)]
pub struct TombstonePolicy {
    /// At least this long after they were written and after they arrived here.
    pub lifetime: Duration,
    /// The time of a version.
    pub written: fn(u64) -> Instant,
}

impl TombstonePolicy {
    /// When a deletion of `version` that arrived at `received` may be dropped.
    fn forget_at(&self, version: u64, received: Instant) -> Instant {
        (self.written)(version).max(received).after(self.lifetime)
    }

    /// When a tombstone with this `deadline` arrived, or was written if that was later.
    pub(super) fn received(&self, deadline: Deadline) -> Instant {
        Instant::from_millis(deadline.as_millis()).before(self.lifetime)
    }
}

impl Shard {
    /// Makes the shard retain tombstones, and use the version passed with every change: see
    /// [`Shard::execute_as`]. For shards whose items have replicas.
    ///
    /// # Panics
    /// If the shard already has items.
    pub fn enable_tombstones(&mut self, tombstone_policy: TombstonePolicy) {
        assert_eq!(self.index.len(), 0, "records are kept from the first on");
        self.flush.pair_epochs();
        self.tombstone_policy = Some(tombstone_policy);
        self.cas_step = 0;
    }

    /// Whether tombstones are retained.
    pub fn has_tombstones(&self) -> bool {
        self.tombstone_policy.is_some()
    }

    /// Whatever is stored under a key: an item dead or alive, or a tombstone.
    pub(super) fn find_any(&self, key: &[u8], hash: KeyHash) -> Option<(Entry, Head)> {
        let memory = self.slab.memory();
        let mut head = None;
        let (entry, _) = self.index.find(memory, hash, |item| {
            let candidate = Head::read(memory, item);
            let same = candidate.key(memory) == key;
            if same {
                head = Some(candidate);
            }
            same
        })?;
        Some((entry, head?))
    }

    /// Deletes a key for a client; `found` is its live item. If tombstones are retained, one of the
    /// given version replaces it, even if nothing was stored.
    pub(super) fn remove_or_bury(
        &mut self,
        request: &Request<'_>,
        found: Option<(Entry, Head)>,
        now: Instant,
    ) {
        if self.tombstone_policy.is_some() {
            self.put_tombstone(request.key, request.hash, self.next_cas, now);
        } else if let Some((entry, head)) = found {
            self.remove_found(request, entry, &head);
        }
    }

    /// Replaces whatever is stored under a key with a tombstone. False without memory; then nothing
    /// is stored there.
    #[inline(never)]
    pub(super) fn put_tombstone(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        version: u64,
        now: Instant,
    ) -> bool {
        // Allocate first, since that may evict the existing item.
        let has_room = self.make_index_room(hash, now);
        let old = self.find_any(key, hash);
        let old_class = old.map(|(_, head)| self.slab.class_of(head.item));
        if let Some((entry, head)) = old {
            self.index.remove(self.slab.memory_mut(), hash, entry);
            self.release(&head, RemovalReason::Removed);
        }
        // The removed item left room in the index.
        if !has_room && old.is_none() {
            return false;
        }
        let stamp = item::stamp(now);
        match self.place_tombstone(key, version, now, stamp, old_class, now) {
            Some(tombstone) => self.link_tombstone(hash, tombstone),
            None => return false,
        }
        true
    }

    /// Handles an item or tombstone whose deadline has passed and that has left the wheel.
    #[cold]
    #[inline(never)]
    pub(super) fn expire_to_tombstone(&mut self, head: &Head, now: Instant) {
        if self.flush.is_tombstone(head) || self.flush.is_flushed(head) {
            return self.remove(head, RemovalReason::Removed);
        }
        let used = self.last_used(head, now);
        let forgotten = self.forget_at(head.version, used) <= now;
        let mut key = [0; KEY_BYTES_MAX];
        let key = &mut key[..head.key_len as usize];
        key.copy_from_slice(head.key(self.slab.memory()));
        let class = self.slab.class_of(head.item);
        self.remove(head, RemovalReason::Expired);
        if !forgotten
            && let Some(tombstone) =
                self.place_tombstone(key, head.version, used, head.accessed, Some(class), now)
        {
            self.link_tombstone(KeyHash::of(key, &self.hash_secret), tombstone);
        }
    }

    /// When an item was last used, at the earliest when it arrived.
    pub(super) fn last_used(&self, head: &Head, now: Instant) -> Instant {
        // Rounded up if the policy owns the lowest bits, so that retention is long enough.
        let units = item::stamp(now).wrapping_sub(self.used_at(head)) & !self.frequency_mask;
        now.before(Duration::from_millis(u64::from(units) << 3))
    }

    pub(super) fn forget_at(&self, version: u64, received: Instant) -> Instant {
        self.tombstone_policy
            .map_or(received, |tombstone_policy| tombstone_policy.forget_at(version, received))
    }

    /// Writes a tombstone for an item that stays readable until the next request. `None` without
    /// memory.
    pub(super) fn place_beside(
        &mut self,
        head: &Head,
        version: u64,
        now: Instant,
    ) -> Option<ItemRef> {
        let mut key = [0; KEY_BYTES_MAX];
        let key = &mut key[..head.key_len as usize];
        key.copy_from_slice(head.key(self.slab.memory()));
        self.guard(head);
        let tombstone = self.place_tombstone(key, version, now, item::stamp(now), None, now);
        self.unguard(head);
        tombstone
    }

    /// Writes a tombstone that is in no index yet, into a chunk of its own size or else of
    /// `other_class`. `None` without memory.
    fn place_tombstone(
        &mut self,
        key: &[u8],
        version: u64,
        received: Instant,
        accessed: u32,
        other_class: Option<u8>,
        now: Instant,
    ) -> Option<ItemRef> {
        let shape = tombstone_shape(key.len());
        let class = self.slab.class_for(shape.chunk_bytes());
        let item = self.allocate_chunk(class, now).or_else(|| {
            let class = other_class?;
            let room = self.slab.classes[class as usize].chunk_bytes as usize;
            if room >= shape.chunk_bytes() { self.allocate_chunk(class, now) } else { None }
        })?;
        let deadline = Deadline::at(self.forget_at(version, received));
        let put = Put { flags: 0, deadline, marks: 0, version, content: Content::Bytes(b"") };
        self.write_item(item, &shape, key, &put, NO_CHAIN, now);
        let frequency = Head::read(self.slab.memory(), item).accessed & self.frequency_mask;
        let accessed = accessed & !self.frequency_mask | frequency;
        item::set_accessed(self.slab.memory_mut(), item, accessed);
        Some(item)
    }

    /// Links a written tombstone into the index and the wheel. The index has room.
    pub(super) fn link_tombstone(&mut self, hash: KeyHash, item: ItemRef) {
        let head = Head::read(self.slab.memory(), item);
        self.index.insert(self.slab.memory_mut(), hash, item);
        self.wheel.link(self.slab.memory_mut(), item);
        self.account_in(item, tombstone_shape(head.key_len as usize).item_bytes());
        let (epoch, to) = (head.epoch(), self.flush.tombstone_epoch());
        item::set_epoch(self.slab.memory_mut(), item, to);
        self.flush.items[epoch as usize] -= 1;
        self.flush.items[to as usize] += 1;
        self.grow_index();
    }
}

fn tombstone_shape(key_bytes: usize) -> Shape {
    Shape { key_bytes, value_bytes: 0, ttl: true, flags: false, chained: false }
}
