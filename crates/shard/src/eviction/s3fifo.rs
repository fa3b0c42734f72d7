//! Three first-in-first-out queues (S3-FIFO): new items wait in a small one, and only those read
//! again there, or stored again soon after they left it, get into the main one.
//!
//! Most keys of real traces are requested once before they would be evicted anyway; passing them
//! through a tenth of the memory leaves the rest to the others, and a scan cannot flush it.
//! Each item has two bits of frequency, raised by reads, and one bit for membership in the main
//! part. The parts are stored so that an item needs no links:
//!
//! - *Main* is not a list but a hand over the class's chunks: it lowers the frequency of each item it
//!   passes and evicts the first without any. That is equivalent to a queue that reinserts hot items
//!   at its end.
//! - *Small* is a queue of positions, 8 bytes per item. Entries whose item is gone are dropped when
//!   they come up; a tag of the key shows whether it is still the same item.
//! - *Ghost* remembers 16 bits of the keys that left small unread, in a table with half to all the
//!   number of items; each bucket drops its oldest first.
//!
//! While there is free memory, new items go directly to the main part.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use super::frequency;
use super::sweep::{Hand, Random, SCAN_MAX, chunks_of};
use super::{ChunkState, EvictionView, Head};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::ItemRef;
use ringlane_types::time::Instant;

/// The frequency, in the lowest bits.
const DEGREE_MAX: u32 = 3;
/// The item belongs to the main part.
const MAIN: u32 = 4;
/// Small's target share: one in this many of a class's items.
const SMALL_PART: u64 = 10;
/// An item that leaves small with this frequency goes to main.
const PROMOTED_FROM: u32 = 1;
/// Entries of small per block.
const BLOCK: usize = 512;
/// Keys that share a bucket of the ghost table.
const BUCKET: usize = 8;

/// The parts of each slab class.
pub(crate) struct S3Fifo {
    classes: Vec<Parts>,
    ghost: Ghost,
    /// Items with a new access time, for the shard to write: one per item examined.
    changes: ArrayVec<(ItemRef, u32), { 3 * SCAN_MAX as usize }>,
    random: Random,
}

#[derive(Default)]
struct Parts {
    small: Queue,
    hand: Hand,
    /// Whether the class has had to evict.
    full: bool,
}

impl S3Fifo {
    pub(super) fn new(class_count: usize, seed: u64) -> Self {
        Self {
            classes: (0..class_count).map(|_| Parts::default()).collect(),
            ghost: Ghost::default(),
            changes: ArrayVec::new(),
            random: Random::new(!seed),
        }
    }

    /// Access times changed by the last call.
    pub(super) fn take_changes(&mut self) -> impl Iterator<Item = (ItemRef, u32)> + use<> {
        std::mem::take(&mut self.changes).into_iter()
    }

    pub(super) fn eviction_age(&mut self, view: &EvictionView<'_>, class: u8) -> u32 {
        self.random.old_age(view, class)
    }

    /// The access time after a use of an item.
    pub(super) fn used(accessed: u32, now: Instant) -> u32 {
        let degree = (accessed & DEGREE_MAX) + 1;
        frequency::with(now, accessed & MAIN | degree.min(DEGREE_MAX))
    }

    /// The access time of an item that moves in memory: its entry is lost.
    pub(super) fn moved(accessed: u32) -> u32 {
        accessed | MAIN
    }

    /// The access time of the item that replaces one with `before`.
    pub(super) fn replaced(accessed: u32, before: u32, now: Instant) -> u32 {
        Self::used(before, now) | accessed & MAIN
    }

    /// The access time of a new item in the chunk at `item`.
    pub(super) fn entered(&mut self, view: &EvictionView<'_>, item: ItemRef, key: &[u8]) -> u32 {
        let hash = KeyHash::of(key, view.hash_secret);
        let class = view.slab.class_of(item);
        let parts = &mut self.classes[class as usize];
        if !parts.full || self.ghost.take(hash) {
            return frequency::with(view.now, MAIN);
        }
        // If items come and go without eviction, most entries no longer have an item.
        if parts.small.len >= chunks_of(view, class) / (SMALL_PART / 2)
            && let Some(entry) = parts.small.pop()
            && let Some(head) = entry.find(view, class)
        {
            self.changes.push((head.item, head.accessed | MAIN));
        }
        parts.small.push(Entry { item, tag: hash.bucket_bits() });
        frequency::with(view.now, 0)
    }

    pub(super) fn victim(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        self.classes[class as usize].full = true;
        if view.slab.classes[class as usize].pages.is_empty() {
            return None;
        }
        let share = view.slab.classes[class as usize].used / SMALL_PART;
        self.leave_small(view, class, share)
            .or_else(|| self.leave_main(view, class))
            .or_else(|| self.leave_small(view, class, 0))
            .or_else(|| {
                // Pieces of chained values, whose heads are entries of other classes.
                let hand = &mut self.classes[class as usize].hand;
                hand.next_item(view, class)
            })
    }

    /// The first unread item in small, if small has more than `share`.
    fn leave_small(&mut self, view: &EvictionView<'_>, class: u8, share: u64) -> Option<Head> {
        let small = &mut self.classes[class as usize].small;
        for _ in 0..SCAN_MAX {
            if small.len <= share {
                return None;
            }
            let entry = small.pop()?;
            let Some(head) = entry.find(view, class) else { continue };
            match view.classify(head) {
                ChunkState::Unevictable => small.push(entry),
                ChunkState::Dead(head) => return Some(head),
                ChunkState::Live(head) if head.accessed & DEGREE_MAX >= PROMOTED_FROM => {
                    let accessed = head.accessed & !DEGREE_MAX | MAIN;
                    self.changes.push((head.item, accessed));
                }
                ChunkState::Live(head) => {
                    let hash = KeyHash::of(head.key(view.slab.memory()), view.hash_secret);
                    self.ghost.insert(hash, view.items);
                    return Some(head);
                }
            }
        }
        None
    }

    /// The first item in main without frequency, or the coldest of some.
    fn leave_main(&mut self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        let hand = &mut self.classes[class as usize].hand;
        let mut coolest: Option<Head> = None;
        let mut seen = 0;
        for _ in 0..chunks_of(view, class) {
            let head = match view.chunk_state(hand.advance(view, class)) {
                ChunkState::Unevictable => continue,
                ChunkState::Dead(head) => return Some(head),
                ChunkState::Live(head) => head,
            };
            if head.accessed & MAIN != 0 {
                if head.accessed & DEGREE_MAX == 0 {
                    return Some(head);
                }
                self.changes.push((head.item, head.accessed - 1));
                if coolest.is_none_or(|c| head.accessed & DEGREE_MAX < c.accessed & DEGREE_MAX) {
                    coolest = Some(head);
                }
            }
            seen += 1;
            if seen >= SCAN_MAX {
                break;
            }
        }
        coolest
    }
}

/// An item in small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    item: ItemRef,
    /// 32 bits of its key's hash.
    tag: u32,
}

impl Entry {
    /// The item, if it is still at its position and in small.
    fn find(self, view: &EvictionView<'_>, class: u8) -> Option<Head> {
        let memory = view.slab.memory();
        if !view.slab.is_chunk_of(class, self.item) {
            return None;
        }
        let head = Head::read(memory, self.item);
        let is = head.is_item()
            && head.accessed & MAIN == 0
            && KeyHash::of(head.key(memory), view.hash_secret).bucket_bits() == self.tag;
        is.then_some(head)
    }
}

/// A FIFO queue in blocks, so that growing copies nothing.
#[derive(Default)]
struct Queue {
    blocks: VecDeque<Vec<Entry>>,
    /// Number of consumed entries of the first block.
    gone: usize,
    len: u64,
    /// A block for reuse.
    spare: Option<Vec<Entry>>,
}

impl Queue {
    fn push(&mut self, entry: Entry) {
        if self.blocks.back().is_none_or(|block| block.len() == BLOCK) {
            let block = self.spare.take().unwrap_or_else(|| Vec::with_capacity(BLOCK));
            self.blocks.push_back(block);
        }
        self.blocks.back_mut().expect("just made").push(entry);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Entry> {
        let first = self.blocks.front()?;
        let entry = *first.get(self.gone)?;
        self.gone += 1;
        self.len -= 1;
        if self.gone == first.len() {
            self.gone = 0;
            let mut block = self.blocks.pop_front().expect("it was there");
            block.clear();
            self.spare = Some(block);
        }
        Some(entry)
    }
}

/// Keys that left small unread, by 16 bits of their hashes.
#[derive(Default)]
struct Ghost {
    /// A power of two of them; in each the latest first, 0 for none.
    buckets: Vec<[u16; BUCKET]>,
}

impl Ghost {
    /// Remembers a key, among `items`. The table grows with them, and then begins empty.
    fn insert(&mut self, hash: KeyHash, items: u64) {
        let wanted = (items as usize / BUCKET).max(1);
        if self.buckets.len() * 2 <= wanted {
            self.buckets = vec![[0; BUCKET]; 1 << wanted.ilog2()];
        }
        let bucket = self.bucket(hash);
        bucket.copy_within(..BUCKET - 1, 1);
        bucket[0] = mark(hash);
    }

    /// Whether a key is remembered; it is forgotten.
    fn take(&mut self, hash: KeyHash) -> bool {
        if self.buckets.is_empty() {
            return false;
        }
        let bucket = self.bucket(hash);
        match bucket.iter().position(|&there| there == mark(hash)) {
            Some(at) => {
                bucket[at] = 0;
                true
            }
            None => false,
        }
    }

    fn bucket(&mut self, hash: KeyHash) -> &mut [u16; BUCKET] {
        let at = hash.bucket_bits() as usize & (self.buckets.len() - 1);
        &mut self.buckets[at]
    }
}

fn mark(hash: KeyHash) -> u16 {
    hash.tag().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlane_types::hash::HashSecret;

    #[test]
    fn the_queue_gives_back_what_it_was_given_in_order() {
        let mut queue = Queue::default();
        let (mut next, mut first) = (0, 0);
        for round in 0..2000u32 {
            for _ in 0..round % 7 {
                queue.push(Entry { item: ItemRef(next), tag: !next });
                next += 1;
            }
            for _ in 0..round % 6 {
                let entry = (first < next).then_some(Entry { item: ItemRef(first), tag: !first });
                assert_eq!(queue.pop(), entry);
                first += u32::from(entry.is_some());
            }
            assert_eq!(queue.len, u64::from(next - first));
        }
        assert!(queue.blocks.len() as u64 <= queue.len / BLOCK as u64 + 2);
    }

    #[test]
    fn the_ghost_forgets_the_oldest_and_grows_with_the_items() {
        let mut ghost = Ghost::default();
        let secret = HashSecret::of_seed(9);
        let hash = |key: u32| KeyHash::of(&key.to_le_bytes(), &secret);
        assert!(!ghost.take(hash(1)));
        for key in 0..100_000 {
            ghost.insert(hash(key), 10_000);
        }
        assert_eq!(ghost.buckets.len() * BUCKET, 8192);
        let remembered = |ghost: &mut Ghost, keys: std::ops::Range<u32>| {
            keys.filter(|&key| ghost.take(hash(key))).count()
        };
        assert!(remembered(&mut ghost, 0..50_000) < 50, "by chance only");
        let latest = remembered(&mut ghost, 96_000..100_000);
        assert!(latest > 3800, "{latest} of the last 4000");
        assert!(remembered(&mut ghost, 96_000..100_000) < 5, "each comes back once");
    }
}
