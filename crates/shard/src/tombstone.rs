//! Tombstones: what stays of deleted and expired items where copies of them may lie elsewhere.
//!
//! Were a deleted key simply gone, the next copy that missed the deletion would bring the old value
//! back. So a shard that is told to keep records lets an item without value stand in the place of a
//! deleted one. It has the deletion's version, and a deadline at which nothing older can turn up
//! any more; it is found, moved and evicted like any item, and the wheel takes it away. An item
//! that expires leaves one too, of its own version.
//!
//! Clients never see a tombstone: it lies in the odd epoch of the present pair (see `flush`), so a
//! look-up that compares epochs, as it must anyway, takes it for no item. A shard that keeps no
//! records pays nothing. Refused: a mark bit, which every hit would have to test, and a table of
//! deletions on the side, which would need memory and a limit of its own.

use super::allocate::RemovalReason;
use super::item::{self, Head, NO_CHAIN, Shape};
use super::store::{Content, Put};
use super::{Entry, Shard};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{ItemRef, KEY_BYTES_MAX, Request};
use ringlane_types::time::{Deadline, Instant};
use std::time::Duration;

/// How deletions are kept.
#[derive(Clone, Copy, Debug)]
pub struct TombstonePolicy {
    /// At least this long, from when they were written and from when they came here.
    pub lifetime: Duration,
    /// When a version was given.
    pub written: fn(u64) -> Instant,
}

impl TombstonePolicy {
    /// When a deletion of `version` that came at `received` may be forgotten.
    fn forget_at(&self, version: u64, received: Instant) -> Instant {
        (self.written)(version).max(received).after(self.lifetime)
    }

    /// When a tombstone that is forgotten at `deadline` came, or was written if that was later.
    pub(super) fn received(&self, deadline: Deadline) -> Instant {
        Instant::from_millis(deadline.as_millis()).before(self.lifetime)
    }
}

impl Shard {
    /// Lets the shard keep deletions, and give every change the version that comes with it: see
    /// [`Shard::execute_as`]. For shards whose items have copies elsewhere.
    ///
    /// # Panics
    /// When the shard has items already.
    pub fn enable_tombstones(&mut self, tombstone_policy: TombstonePolicy) {
        assert_eq!(self.index.len(), 0, "records are kept from the first on");
        self.flush.pair_epochs();
        self.tombstone_policy = Some(tombstone_policy);
        self.cas_step = 0;
    }

    /// Whether deletions are kept.
    pub fn has_tombstones(&self) -> bool {
        self.tombstone_policy.is_some()
    }

    /// What stands under a key: an item dead or alive, or a tombstone.
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

    /// Removes for a client what is under a key, `found` if it is alive. Where deletions are kept a
    /// tombstone of the version given takes its place, also if nothing was there.
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

    /// Puts a tombstone in the place of whatever stands under a key. False without memory; then
    /// nothing stands there.
    #[inline(never)]
    pub(super) fn put_tombstone(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        version: u64,
        now: Instant,
    ) -> bool {
        // Room first, for it may take away what stands there.
        let has_room = self.make_index_room(hash, now);
        let old = self.find_any(key, hash);
        let old_class = old.map(|(_, head)| self.slab.class_of(head.item));
        if let Some((entry, head)) = old {
            self.index.remove(self.slab.memory_mut(), hash, entry);
            self.release(&head, RemovalReason::Removed);
        }
        // What left also left room in the index.
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

    /// Handles an item or tombstone whose deadline has passed and that the wheel has let go.
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

    /// When an item was last used, which is not before it came.
    pub(super) fn last_used(&self, head: &Head, now: Instant) -> Instant {
        // Rounded up where the policy has the lowest bits: what is kept is kept long enough.
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

    /// Makes a written tombstone findable and mortal. The index has room.
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
