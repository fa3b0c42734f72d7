//! Key hash to item: linear hashing over 64-byte buckets in pages of the slab.
//!
//! ```text
//!  0                     20                              60          64
//!  +---------------------+-------------------------------+-----------+
//!  | 10 tags of 16 bits  | 10 item positions of 32 bits  | overflow  |
//!  +---------------------+-------------------------------+-----------+
//! ```
//!
//! One bucket is one cache line: a lookup costs one line for the bucket and one for the item.
//! `overflow` is the line number of a further bucket, 0 for none. The table grows by one bucket at
//! a time (bucket `s` is split into `s` and `s + 2^level`), so no insertion pays for a full rehash,
//! and targets 8 items per bucket: about 10 bytes per item, including overflow.
//!
//! A chain, a bucket with its overflow, has at most [`CHAIN_BUCKETS_MAX`] lines, so that a lookup
//! is bounded whatever the keys are. Under the secret hash (see `hash`) chains stay far below that:
//! at twice the load, which a bucket has just before it is split, one in 10^20 holds that many
//! items. An item for a full chain replaces another one in it, chosen by the shard; until then
//! [`Index::has_room`] is false.
//!
//! Buckets are in pages of the slab, so index and items share one memory limit and one resident
//! set, and a page assigned to the index stays there. Refused: doubling (a pause, or two tables to
//! probe for long), and cuckoo or Robin Hood placement (they move items of other buckets, and need
//! spare room that costs more than the overflow lines).

use super::item::{read_u32, write_u32};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::ItemRef;

/// Bytes of one bucket.
pub(super) const BUCKET_BYTES: usize = 64;
const ENTRIES: usize = 10;
const REFS_AT: usize = 20;
const OVERFLOW_AT: usize = 60;
/// Items per bucket above which the table grows.
const LOAD: u64 = 8;
const BUCKETS_MIN: u32 = 16;
/// Lines of the longest chain.
pub(super) const CHAIN_BUCKETS_MAX: u32 = 8;

/// The byte offset in memory of the entry that holds an item's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(usize);

/// The index of one shard.
pub(super) struct Index {
    /// Byte offsets of the pages of buckets.
    segments: Vec<usize>,
    /// Where lines start, modulo their size.
    base: usize,
    segment_shift: u32,
    bucket_count: u32,
    /// 2^level - 1, where 2^level is the largest power of two not above the bucket count.
    low_mask: u32,
    items: u64,
    overflow_pages: Vec<usize>,
    /// Unused overflow buckets in the last overflow page.
    overflow_fresh: u32,
    /// Freed overflow buckets: a list through their overflow links.
    overflow_free: u32,
    overflow_free_count: u32,
    overflow_used: u64,
    /// Chains of [`CHAIN_BUCKETS_MAX`] lines.
    longest_chains: u32,
    scratch: Vec<(u16, ItemRef)>,
}

impl Index {
    /// An empty index whose first buckets lie in the page at `segment`, `page_bytes` long.
    pub(super) fn new(segment: usize, page_bytes: usize) -> Self {
        Self {
            segments: vec![segment],
            base: segment % BUCKET_BYTES,
            segment_shift: (page_bytes / BUCKET_BYTES).trailing_zeros(),
            bucket_count: BUCKETS_MIN,
            low_mask: BUCKETS_MIN - 1,
            items: 0,
            overflow_pages: Vec::new(),
            overflow_fresh: 0,
            overflow_free: 0,
            overflow_free_count: 0,
            overflow_used: 0,
            longest_chains: 0,
            scratch: Vec::with_capacity(CHAIN_BUCKETS_MAX as usize * ENTRIES),
        }
    }

    /// Removes all items. Take all pages beyond the first with [`Index::next_surplus_page`] before
    /// using it again.
    pub(super) fn clear(&mut self, memory: &mut [u8]) {
        self.bucket_count = BUCKETS_MIN;
        self.low_mask = BUCKETS_MIN - 1;
        self.items = 0;
        self.overflow_fresh = 0;
        self.overflow_free = 0;
        self.overflow_free_count = 0;
        self.overflow_used = 0;
        self.longest_chains = 0;
        let first = self.segments[0];
        // The others are zeroed as the index grows into them.
        memory[first..first + BUCKETS_MIN as usize * BUCKET_BYTES].fill(0);
    }

    /// The start of a page that a just cleared index does not need.
    pub(super) fn next_surplus_page(&mut self) -> Option<usize> {
        debug_assert_eq!(self.items, 0);
        let overflow = self.overflow_pages.pop();
        overflow.or_else(|| if self.segments.len() > 1 { self.segments.pop() } else { None })
    }

    pub(super) fn len(&self) -> u64 {
        self.items
    }

    pub(super) fn bucket_count(&self) -> u32 {
        self.bucket_count
    }

    pub(super) fn overflow_used(&self) -> u64 {
        self.overflow_used
    }

    /// Number of pages of the index.
    pub(super) fn page_count(&self) -> usize {
        self.segments.len() + self.overflow_pages.len()
    }

    #[inline(always)]
    fn bucket_number(&self, hash: KeyHash) -> u32 {
        let bits = hash.bucket_bits();
        let number = bits & (self.low_mask << 1 | 1);
        if number < self.bucket_count { number } else { bits & self.low_mask }
    }

    #[inline(always)]
    fn bucket_offset(&self, number: u32) -> usize {
        let within = number & ((1 << self.segment_shift) - 1);
        self.segments[(number >> self.segment_shift) as usize] + within as usize * BUCKET_BYTES
    }

    /// The start of the bucket of `hash`.
    #[inline(always)]
    pub(super) fn bucket(&self, hash: KeyHash) -> usize {
        self.bucket_offset(self.bucket_number(hash))
    }

    /// The first item with a matching tag in the first bucket of `hash`.
    #[inline]
    pub(super) fn candidate(&self, memory: &[u8], hash: KeyHash) -> Option<ItemRef> {
        let bytes = bucket_bytes(memory, self.bucket(hash));
        let mut matches = matching_tags(bytes, hash.tag());
        while matches != 0 {
            let item = read_ref(bytes, entry_of(matches));
            if item != 0 {
                return Some(ItemRef(item));
            }
            matches &= matches - 1;
        }
        None
    }

    /// The item under `hash` accepted by `is_it`, which is called for each item with a matching
    /// tag.
    #[inline(always)]
    pub(super) fn find(
        &self,
        memory: &[u8],
        hash: KeyHash,
        mut is_it: impl FnMut(ItemRef) -> bool,
    ) -> Option<(Entry, ItemRef)> {
        let tag = hash.tag();
        let mut bucket = self.bucket(hash);
        loop {
            let bytes = bucket_bytes(memory, bucket);
            let mut matches = matching_tags(bytes, tag);
            while matches != 0 {
                let entry = entry_of(matches);
                let item = read_ref(bytes, entry);
                if item != 0 && is_it(ItemRef(item)) {
                    return Some((Entry(bucket + REFS_AT + 4 * entry), ItemRef(item)));
                }
                matches &= matches - 1;
            }
            bucket = self.overflow_of(bytes)?;
        }
    }

    /// The entry of `item`, which is in the index under `hash`.
    pub(super) fn entry_of(&self, memory: &[u8], hash: KeyHash, item: ItemRef) -> Option<Entry> {
        self.find(memory, hash, |other| other == item).map(|(entry, _)| entry)
    }

    /// Makes `entry` refer to another item with the same key.
    #[inline]
    pub(super) fn replace(&self, memory: &mut [u8], entry: Entry, item: ItemRef) {
        write_u32(memory, entry.0, item.0);
    }

    /// Calls `visit` for the items of bucket number `number`, below [`Index::bucket_count`].
    #[inline]
    pub(super) fn visit_bucket(&self, memory: &[u8], number: u32, mut visit: impl FnMut(ItemRef)) {
        let mut bucket = Some(self.bucket_offset(number));
        while let Some(at) = bucket {
            let bytes = bucket_bytes(memory, at);
            (0..ENTRIES)
                .map(|entry| read_ref(bytes, entry))
                .filter(|&item| item != 0)
                .for_each(|item| visit(ItemRef(item)));
            bucket = self.overflow_of(bytes);
        }
    }

    /// Whether an insertion is certain to find room for any hash.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.has_overflow() && self.longest_chains == 0
    }

    /// Whether a chain can get a further bucket; if not, [`Index::add_overflow_page`] first.
    #[inline]
    pub(super) fn has_overflow(&self) -> bool {
        self.overflow_free != 0 || self.overflow_left() > 0
    }

    /// Whether the chain of `hash` is full.
    #[cold]
    pub(super) fn is_chain_full(&self, memory: &[u8], hash: KeyHash) -> bool {
        let mut lines = 0;
        let mut bucket = Some(self.bucket(hash));
        while let Some(at) = bucket {
            lines += 1;
            bucket = self.overflow_of(bucket_bytes(memory, at));
        }
        lines >= CHAIN_BUCKETS_MAX && !self.has_hole(memory, hash)
    }

    /// Calls `visit` for the items of the chain of `hash`.
    #[cold]
    pub(super) fn visit_chain(&self, memory: &[u8], hash: KeyHash, visit: impl FnMut(ItemRef)) {
        self.visit_bucket(memory, self.bucket_number(hash), visit);
    }

    /// Whether `hash` can be inserted without a further bucket.
    #[cold]
    pub(super) fn has_hole(&self, memory: &[u8], hash: KeyHash) -> bool {
        let mut bucket = Some(self.bucket(hash));
        while let Some(at) = bucket {
            let bytes = bucket_bytes(memory, at);
            if first_empty(bytes).is_some() {
                return true;
            }
            bucket = self.overflow_of(bytes);
        }
        false
    }

    /// Whether few overflow buckets are left, so that a page should be found soon.
    pub(super) fn is_short(&self) -> bool {
        let per_page = 1 << self.segment_shift;
        self.overflow_free_count + self.overflow_left() < per_page / 16
    }

    fn overflow_left(&self) -> u32 {
        match self.overflow_pages.is_empty() {
            true => 0,
            false => (1 << self.segment_shift) - self.overflow_fresh,
        }
    }

    /// Adds a page of overflow buckets.
    pub(super) fn add_overflow_page(&mut self, memory: &mut [u8], page: usize) {
        // The remainder of the last page stays usable.
        for _ in 0..self.overflow_left() {
            let bucket = self.fresh_overflow(memory);
            self.free_overflow(memory, bucket);
        }
        self.overflow_pages.push(page);
        self.overflow_fresh = 0;
    }

    /// Adds `item` under `hash`. There must be room, and the key must not be in the index.
    pub(super) fn insert(&mut self, memory: &mut [u8], hash: KeyHash, item: ItemRef) {
        let bucket = self.bucket(hash);
        self.insert_into(memory, bucket, hash.tag(), item);
        self.items += 1;
    }

    fn insert_into(&mut self, memory: &mut [u8], mut bucket: usize, tag: u16, item: ItemRef) {
        let mut lines = 1;
        loop {
            let bytes = bucket_bytes(memory, bucket);
            if let Some(entry) = first_empty(bytes) {
                write_tag(memory, bucket, entry, tag);
                write_u32(memory, bucket + REFS_AT + 4 * entry, item.0);
                return;
            }
            bucket = match self.overflow_of(bytes) {
                Some(next) => next,
                None => {
                    assert!(lines < CHAIN_BUCKETS_MAX, "room was made in the chain");
                    self.longest_chains += u32::from(lines + 1 == CHAIN_BUCKETS_MAX);
                    let added = self.take_overflow(memory);
                    self.set_overflow(memory, bucket, added);
                    added
                }
            };
            lines += 1;
        }
    }

    /// Removes the item at `entry`, which was found under `hash`.
    pub(super) fn remove(&mut self, memory: &mut [u8], hash: KeyHash, entry: Entry) {
        write_u32(memory, entry.0, 0);
        self.items -= 1;
        // Keep chains compact: the hole takes an item of the last overflow bucket.
        let first = self.bucket(hash);
        let Some(mut last) = self.overflow_of(bucket_bytes(memory, first)) else { return };
        let mut before = first;
        let mut lines = 2;
        while let Some(next) = self.overflow_of(bucket_bytes(memory, last)) {
            before = last;
            last = next;
            lines += 1;
        }
        let hole = ((entry.0 - self.base) & !(BUCKET_BYTES - 1)) + self.base;
        if hole != last {
            let bytes = bucket_bytes(memory, last);
            let moved = (0..ENTRIES).rev().find(|&entry| read_ref(bytes, entry) != 0);
            let moved = moved.expect("an overflow bucket is never empty");
            let (tag, item) = (read_tag(bytes, moved), read_ref(bytes, moved));
            write_tag(memory, hole, (entry.0 - hole - REFS_AT) / 4, tag);
            write_u32(memory, entry.0, item);
            write_u32(memory, last + REFS_AT + 4 * moved, 0);
        }
        let bytes = bucket_bytes(memory, last);
        if (0..ENTRIES).all(|entry| read_ref(bytes, entry) == 0) {
            clear_overflow(memory, before);
            self.free_overflow(memory, last);
            self.overflow_used -= 1;
            self.longest_chains -= u32::from(lines == CHAIN_BUCKETS_MAX);
        }
    }

    /// Whether there are more items than the target load.
    #[inline]
    pub(super) fn wants_split(&self) -> bool {
        self.items > self.bucket_count as u64 * LOAD && self.bucket_count < 1 << 31
    }

    /// Whether the next split needs [`Index::add_segment`] first.
    #[inline]
    pub(super) fn needs_segment(&self) -> bool {
        (self.bucket_count >> self.segment_shift) as usize >= self.segments.len()
    }

    /// Adds a page of buckets.
    pub(super) fn add_segment(&mut self, page: usize) {
        self.segments.push(page);
    }

    /// Divides one bucket's items between it and a new bucket. `hash_of` recomputes an item's
    /// hash; `prefetch` is called for all of them first.
    pub(super) fn split(
        &mut self,
        memory: &mut [u8],
        hash_of: impl Fn(&[u8], ItemRef) -> KeyHash,
        prefetch: impl Fn(&[u8], ItemRef),
    ) {
        let low = self.bucket_offset(self.bucket_count & self.low_mask);
        let high = self.bucket_offset(self.bucket_count);
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut bucket = Some(low);
        let mut lines = 0;
        while let Some(at) = bucket {
            lines += 1;
            let bytes = *bucket_bytes(memory, at);
            for entry in 0..ENTRIES {
                let item = read_ref(&bytes, entry);
                if item != 0 {
                    prefetch(memory, ItemRef(item));
                    scratch.push((read_tag(&bytes, entry), ItemRef(item)));
                }
            }
            bucket = self.overflow_of(&bytes);
            if at != low {
                self.free_overflow(memory, at);
                self.overflow_used -= 1;
            }
        }
        self.longest_chains -= u32::from(lines == CHAIN_BUCKETS_MAX);
        memory[low..low + BUCKET_BYTES].fill(0);
        memory[high..high + BUCKET_BYTES].fill(0);
        let round = self.low_mask + 1;
        for (tag, item) in scratch.drain(..) {
            let goes_high = hash_of(memory, item).bucket_bits() & round != 0;
            self.insert_into(memory, if goes_high { high } else { low }, tag, item);
        }
        self.scratch = scratch;
        self.bucket_count += 1;
        if self.bucket_count == round << 1 {
            self.low_mask = self.low_mask << 1 | 1;
        }
    }

    #[inline(always)]
    fn overflow_of(&self, bytes: &[u8; BUCKET_BYTES]) -> Option<usize> {
        let line = read_u32(bytes, OVERFLOW_AT);
        (line != 0).then_some(line as usize * BUCKET_BYTES + self.base)
    }

    fn set_overflow(&self, memory: &mut [u8], bucket: usize, overflow: usize) {
        write_u32(memory, bucket + OVERFLOW_AT, (overflow / BUCKET_BYTES) as u32);
    }

    fn take_overflow(&mut self, memory: &mut [u8]) -> usize {
        self.overflow_used += 1;
        if self.overflow_free == 0 {
            return self.fresh_overflow(memory);
        }
        let bucket = self.overflow_free as usize * BUCKET_BYTES + self.base;
        self.overflow_free = read_u32(memory, bucket + OVERFLOW_AT);
        self.overflow_free_count -= 1;
        clear_overflow(memory, bucket);
        bucket
    }

    fn fresh_overflow(&mut self, memory: &mut [u8]) -> usize {
        debug_assert!(self.overflow_left() > 0, "room was checked");
        let page = *self.overflow_pages.last().expect("room was checked");
        let bucket = page + self.overflow_fresh as usize * BUCKET_BYTES;
        self.overflow_fresh += 1;
        memory[bucket..bucket + BUCKET_BYTES].fill(0);
        bucket
    }

    fn free_overflow(&mut self, memory: &mut [u8], bucket: usize) {
        memory[bucket..bucket + BUCKET_BYTES].fill(0);
        write_u32(memory, bucket + OVERFLOW_AT, self.overflow_free);
        self.overflow_free = (bucket / BUCKET_BYTES) as u32;
        self.overflow_free_count += 1;
    }

    /// Panics unless every item lies in the bucket of its hash and counts agree. Calls `visit`
    /// for every item.
    pub(super) fn check_invariants(
        &self,
        memory: &[u8],
        hash_of: impl Fn(ItemRef) -> KeyHash,
        mut visit: impl FnMut(ItemRef),
    ) {
        let (mut items, mut overflow, mut longest) = (0, 0, 0);
        for number in 0..self.bucket_count {
            let mut bucket = Some(self.bucket_offset(number));
            let mut lines = 0;
            while let Some(at) = bucket {
                let bytes = bucket_bytes(memory, at);
                let here = (0..ENTRIES).filter(|&entry| read_ref(bytes, entry) != 0);
                for entry in here.clone() {
                    let item = ItemRef(read_ref(bytes, entry));
                    assert_eq!(self.bucket_number(hash_of(item)), number, "item in its bucket");
                    assert_eq!(hash_of(item).tag(), read_tag(bytes, entry));
                    visit(item);
                    items += 1;
                }
                assert!(lines == 0 || here.count() > 0, "no empty overflow bucket");
                overflow += u64::from(lines > 0);
                lines += 1;
                bucket = self.overflow_of(bytes);
            }
            assert!(lines <= CHAIN_BUCKETS_MAX, "a chain of {lines} lines");
            longest += u32::from(lines == CHAIN_BUCKETS_MAX);
        }
        assert_eq!(items, self.items);
        assert_eq!(overflow, self.overflow_used);
        assert_eq!(longest, self.longest_chains);
    }
}

/// The bucket of `bits` in an index of `bucket_count` buckets. With the number of a later bucket as
/// bits: the one whose items were split into it.
pub(super) const fn bucket_among(bucket_count: u32, bits: u32) -> u32 {
    let low_mask = (1 << bucket_count.ilog2()) - 1;
    let number = bits & (low_mask << 1 | 1);
    if number < bucket_count { number } else { bits & low_mask }
}

#[inline(always)]
fn bucket_bytes(memory: &[u8], bucket: usize) -> &[u8; BUCKET_BYTES] {
    memory[bucket..bucket + BUCKET_BYTES].try_into().expect("a whole bucket")
}

/// One bit for each entry whose tag may be `tag`; [`entry_of`] reads it. Empty entries may match,
/// and rarely another one: the caller compares keys anyway.
///
/// Compares four tags at a time in a plain word: subtracting 1 from a lane that became zero sets
/// its top bit. Three instructions per word more than SSE2, but portable.
#[inline(always)]
fn matching_tags(bytes: &[u8; BUCKET_BYTES], tag: u16) -> u64 {
    const ONES: u64 = 0x0001_0001_0001_0001;
    let wanted = ONES * tag as u64;
    let zero_lanes = |word: u64| {
        let differing = word ^ wanted;
        differing.wrapping_sub(ONES) & !differing & (ONES << 15)
    };
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    // The third word holds tags 8 and 9 and item positions.
    let last = zero_lanes(word(16)) & 0x8000_8000;
    zero_lanes(word(0)) >> 15 | zero_lanes(word(8)) >> 14 | last >> 13
}

/// The entry of the lowest bit of [`matching_tags`]: bits 0 to 2 of each lane are the words.
#[inline(always)]
const fn entry_of(matches: u64) -> usize {
    let bit = matches.trailing_zeros() as usize;
    (bit & 15) * 4 + (bit >> 4)
}

#[inline(always)]
fn read_ref(bytes: &[u8; BUCKET_BYTES], entry: usize) -> u32 {
    read_u32(bytes, REFS_AT + 4 * entry)
}

fn first_empty(bytes: &[u8; BUCKET_BYTES]) -> Option<usize> {
    (0..ENTRIES).find(|&entry| read_ref(bytes, entry) == 0)
}

fn read_tag(bytes: &[u8; BUCKET_BYTES], entry: usize) -> u16 {
    u16::from_le_bytes(bytes[2 * entry..2 * entry + 2].try_into().expect("two bytes"))
}

fn write_tag(memory: &mut [u8], bucket: usize, entry: usize, tag: u16) {
    let at = bucket + 2 * entry;
    memory[at..at + 2].copy_from_slice(&tag.to_le_bytes());
}

fn clear_overflow(memory: &mut [u8], bucket: usize) {
    write_u32(memory, bucket + OVERFLOW_AT, 0);
}

#[cfg(test)]
mod tests;
