//! Chunks that must not move: staged items, and items being sent.
//!
//! A *staged* item is a chunk (or a chain of them) allocated before its value has arrived, so that
//! the value can be received directly into it. It is not indexed and not evictable until it is
//! stored or discarded. A *pinned* item may be deleted or replaced while its bytes are being sent:
//! its memory stays until the last unpin. Both kinds are rare, so pins are in a side table that is
//! consulted only if a page's `held` count is not zero.

use super::item::{self, HAS_FLAGS, HAS_TTL, Head, KEY_STAGED, NO_CHAIN, Shape};
use super::{Shard, Staging};
use ahash::RandomState;
use ringlane_types::request::{ItemRef, Span, Staged, Value};
use ringlane_types::time::{Deadline, Instant};
use std::collections::HashMap;

/// Why an item was not staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageRefusal {
    /// The item would exceed the item size limit.
    TooLarge,
    /// No memory: nothing can be evicted, or too much is already staged.
    OutOfMemory,
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    count: u32,
    /// Deleted meanwhile: freed at the last unpin.
    dead: bool,
    /// Length of its value when it was pinned.
    value_bytes: u32,
}

/// Items whose memory must not be reused.
pub(super) struct Pins {
    pins: HashMap<ItemRef, Pin, RandomState>,
    /// Value bytes of all of them.
    value_bytes: u64,
}

impl Pins {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self { pins: HashMap::with_hasher(hasher), value_bytes: 0 }
    }

    #[inline]
    pub(super) fn is_pinned(&self, item: ItemRef) -> bool {
        self.pins.contains_key(&item)
    }

    /// Records that a pinned item was removed; false if it is not pinned.
    pub(super) fn mark_dead(&mut self, item: ItemRef) -> bool {
        match self.pins.get_mut(&item) {
            Some(pin) => {
                pin.dead = true;
                true
            }
            None => false,
        }
    }

    /// Marks all pinned items as removed. Returns those that were not yet.
    pub(super) fn mark_all_dead(&mut self) -> impl Iterator<Item = ItemRef> {
        let alive = self.pins.iter_mut().filter(|(_, pin)| !pin.dead);
        alive.map(|(&item, pin)| {
            pin.dead = true;
            item
        })
    }

    /// Whether the item at `item` is staged or pinned, and so survives a clear.
    pub(super) fn stays(&self, memory: &[u8], item: ItemRef) -> bool {
        item::kind(memory, item) == item::Kind::Staged || self.is_pinned(item)
    }

    /// Whether `item` was removed while pinned.
    pub(super) fn is_dead(&self, item: ItemRef) -> bool {
        self.pins.get(&item).is_some_and(|pin| pin.dead)
    }
}

impl Shard {
    /// Allocates memory for an item whose value is still to arrive. The value's bytes go to
    /// [`Shard::staged_spans`]; then the item is stored with `Body::Staged` under a key of
    /// `key_bytes` bytes, or discarded.
    pub fn stage(
        &mut self,
        key_bytes: usize,
        flags: u32,
        deadline: Deadline,
        value_bytes: u32,
        now: Instant,
    ) -> Result<Staged, StageRefusal> {
        let mut staging = Staging::new(key_bytes, flags, deadline, value_bytes);
        let ready_bytes = std::mem::replace(&mut self.ready_bytes, usize::MAX);
        let staged = loop {
            if let Some(staged) = self.make_room(&mut staging, u32::MAX, now).transpose() {
                break staged;
            }
        };
        self.ready_bytes = ready_bytes;
        staged
    }

    /// The destination of a staged value's bytes, in order.
    pub fn staged_spans(&self, staged: &Staged) -> impl Iterator<Item = Span> + '_ {
        let (shape, chain) = self.staged_shape(staged);
        let whole = (chain == NO_CHAIN).then(|| Span {
            offset: (item::offset(staged.item) + shape.key_offset() + shape.key_bytes) as u64,
            bytes: staged.value_bytes,
        });
        let spans = self.chains.get(chain as usize).map_or(&[][..], |chain| &chain.spans);
        whole.into_iter().chain(spans.iter().copied())
    }

    /// All item memory, for reading spans.
    pub fn memory(&self) -> &[u8] {
        self.slab.memory()
    }

    /// All item memory, for writing a staged value. Writing anywhere else corrupts items.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        self.slab.memory_mut()
    }

    /// Length of the prefix of [`Shard::memory_mut`] that was ever used.
    #[inline]
    pub fn touched_bytes(&self) -> usize {
        self.slab.touched_bytes()
    }

    /// The memory after [`Shard::touched_bytes`]: zeroes, which may be returned to the operating
    /// system while this borrow lasts. The shard may use it later.
    pub fn untouched_mut(&mut self) -> &mut [u8] {
        self.slab.untouched_mut()
    }

    /// Frees a staged item that will not be stored.
    pub fn discard(&mut self, staged: Staged) {
        let (_, chain) = self.unstage(&staged);
        self.free_item(staged.item, chain);
    }

    /// Maximum staged bytes, and likewise pinned bytes, before more has to wait.
    pub(super) fn held_bytes_max(&self) -> u64 {
        self.slab.page_bytes() as u64 * self.slab.pages_max() as u64 / 2
    }

    /// Whether an item may be pinned: values being sent have a bounded share of the memory, so that
    /// clients that do not read cannot occupy all of it. One item may exceed the limit.
    #[inline]
    pub fn may_pin(&self) -> bool {
        self.pins.value_bytes == 0 || self.pins.value_bytes < self.held_bytes_max()
    }

    /// Keeps the memory of `item` until the matching [`Shard::unpin`], even if the item is deleted
    /// or replaced. Pins are counted.
    pub fn pin(&mut self, item: ItemRef) {
        if let Some(pin) = self.pins.pins.get_mut(&item) {
            pin.count += 1;
            return;
        }
        let head = Head::read(self.slab.memory(), item);
        debug_assert!(head.is_item());
        let chain = head.chain(self.slab.memory()).unwrap_or(NO_CHAIN);
        self.hold(item, chain);
        // A removed item awaiting its deferred free is kept by the pin instead.
        let dead = self.deferred_free == Some(item);
        if dead {
            self.deferred_free = None;
        }
        let value_bytes = head.value_bytes(self.slab.memory()) as u32;
        self.pins.value_bytes += u64::from(value_bytes);
        self.pins.pins.insert(item, Pin { count: 1, dead, value_bytes });
    }

    /// Ends one [`Shard::pin`] of `item`.
    ///
    /// # Panics
    /// If the item is not pinned.
    pub fn unpin(&mut self, item: ItemRef) {
        let pin = self.pins.pins.get_mut(&item).expect("unpin follows pin");
        pin.count -= 1;
        if pin.count > 0 {
            return;
        }
        let dead = pin.dead;
        self.pins.value_bytes -= u64::from(pin.value_bytes);
        self.pins.pins.remove(&item);
        let head = Head::read(self.slab.memory(), item);
        let chain = head.chain(self.slab.memory()).unwrap_or(NO_CHAIN);
        self.unhold(item, chain);
        if dead {
            self.free_item(item, chain);
        }
    }

    /// The key and value of a pinned item, which may be deleted by now.
    pub fn pinned_value(&self, item: ItemRef) -> Value<'_> {
        debug_assert!(self.pins.is_pinned(item));
        self.value_of(&Head::read(self.slab.memory(), item))
    }

    /// Ends the special status of a staged item and returns its layout and chain record.
    pub(super) fn unstage(&mut self, staged: &Staged) -> (Shape, u32) {
        let (shape, chain) = self.staged_shape(staged);
        self.unhold(staged.item, chain);
        self.staged_bytes -= staged.value_bytes as u64;
        (shape, chain)
    }

    pub(super) fn staged_shape(&self, staged: &Staged) -> (Shape, u32) {
        let memory = self.slab.memory();
        let head = Head::read(memory, staged.item);
        assert_eq!(head.key_len, KEY_STAGED, "staged items are stored or discarded once");
        let chain = head.chain(memory).unwrap_or(NO_CHAIN);
        let shape = Shape {
            key_bytes: head.version as usize,
            value_bytes: staged.value_bytes as usize,
            ttl: head.has(HAS_TTL),
            flags: head.has(HAS_FLAGS),
            chained: chain != NO_CHAIN,
        };
        (shape, chain)
    }

    /// Protects an item that an operation in progress still needs from eviction, and its pages
    /// from being emptied, until [`Shard::unguard`].
    pub(super) fn guard(&mut self, head: &Head) {
        self.guard = head.item;
        let chain = head.chain(self.slab.memory()).unwrap_or(NO_CHAIN);
        self.hold(head.item, chain);
    }

    pub(super) fn unguard(&mut self, head: &Head) {
        self.guard = ItemRef(0);
        let chain = head.chain(self.slab.memory()).unwrap_or(NO_CHAIN);
        self.unhold(head.item, chain);
    }

    pub(super) fn hold(&mut self, item: ItemRef, chain: u32) {
        self.slab.hold(item);
        if let Some(chain) = self.chains.get(chain as usize) {
            chain.spans.iter().for_each(|span| self.slab.hold(super::piece_at(span)));
        }
    }

    fn unhold(&mut self, item: ItemRef, chain: u32) {
        self.slab.unhold(item);
        if let Some(chain) = self.chains.get(chain as usize) {
            chain.spans.iter().for_each(|span| self.slab.unhold(super::piece_at(span)));
        }
    }
}
