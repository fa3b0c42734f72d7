//! The layout of one item in its chunk, and views of its key and value.
//!
//! ```text
//!  0        8          12      13      14             16
//!  +--------+----------+-------+-------+--------------+
//!  |version | accessed | key   | marks | epoch:4      |   always, 16 bytes, one u64 and two u32
//!  |  u64   |   u32    | len u8|  u8   | value len:12 |
//!  +--------+----------+-------+-------+--------------+
//!  | deadline u32 | previous u32 | next u32 |             HAS_TTL, 12 bytes: code and TTL wheel links
//!  +--------------+--------------+----------+
//!  | client flags u32 |                                   HAS_FLAGS, 4 bytes
//!  +------------------+---------------+
//!  | full value length u32 | chain u32 |                  LARGE, 8 bytes
//!  +-----------------------+-----------+
//!  | key ...           | value ...                        value elsewhere when `chain` names a record
//! ```
//!
//! A small item without TTL and flags pays 16 bytes, one with a TTL 28: fields that most items do
//! not need are extensions, and their presence is three mark bits, so that the key's offset is one
//! table lookup. The TTL block comes first so that the wheel finds its links at a fixed offset.
//! Refused: a fixed header (40 bytes for every item) and variable-length integers (a branch per
//! byte on the hit path).
//!
//! `accessed` counts units of 8 ms and wraps after 397 days; an eviction policy that counts uses
//! owns its lowest bits (see `eviction`). The key length determines the kind of chunk: 0 free, 1 to
//! 250 an item, [`KEY_STAGED`] a staged item, [`KEY_PIECE`] a piece of a chained value. All numbers
//! are little-endian and need no alignment.

use ringlane_types::request::{ItemRef, Marks};
use ringlane_types::time::Instant;

/// Bytes of the part every item has.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of the TTL block.
pub(super) const TTL_BYTES: usize = 12;
const FLAGS_BYTES: usize = 4;
const LARGE_BYTES: usize = 8;

/// The item has a TTL block. It is in the wheel unless its deadline is never.
pub(super) const HAS_TTL: u8 = 1;
/// The item has client flags other than 0.
pub(super) const HAS_FLAGS: u8 = 2;
/// The value is longer than [`SHORT_VALUE_MAX`] or chained.
pub(super) const LARGE: u8 = 4;
/// Read since it was stored.
pub(super) const FETCHED: u8 = 16;
/// Invalidated, still served.
pub(super) const STALE: u8 = Marks::STALE_BIT;
/// A reader has won the right to refresh it.
pub(super) const WON: u8 = Marks::WON_BIT;
/// Its key came base64-encoded.
pub(super) const BINARY_KEY: u8 = Marks::BINARY_KEY_BIT;

/// Key length of a chunk that is being filled and not indexed.
pub(super) const KEY_STAGED: u8 = 254;
/// Key length of a chunk that holds a part of a chained value.
pub(super) const KEY_PIECE: u8 = 255;
/// Longest value whose length fits the header.
pub(super) const SHORT_VALUE_MAX: usize = 0xfff;
/// Chain record number of a value that is not chained.
pub(super) const NO_CHAIN: u32 = u32::MAX;

/// Offset of the key from the item's start, by the three extension bits.
const KEY_OFFSET: [u8; 8] = [16, 28, 20, 32, 24, 36, 28, 40];

const KEY_LEN_AT: usize = 12;
const MARKS_AT: usize = 13;

/// Byte offset of an item in memory.
#[inline(always)]
pub(super) const fn offset(item: ItemRef) -> usize {
    (item.0 as usize) << 3
}

/// The item that starts at `offset`, a multiple of 8.
#[inline(always)]
pub(super) const fn item_at(offset: usize) -> ItemRef {
    ItemRef((offset >> 3) as u32)
}

/// The access time for `now`.
#[inline(always)]
pub(super) const fn stamp(now: Instant) -> u32 {
    (now.as_millis() >> 3) as u32
}

/// Whole seconds between two access times.
#[inline]
pub(super) const fn seconds_between(earlier: u32, later: u32) -> u32 {
    later.wrapping_sub(earlier) / 125
}

#[inline(always)]
pub(super) fn read_u32(memory: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(memory[at..at + 4].try_into().expect("four bytes"))
}

#[inline(always)]
pub(super) fn write_u32(memory: &mut [u8], at: usize, value: u32) {
    memory[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The kind of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Free,
    Item,
    Staged,
    Piece,
}

/// The kind of the chunk at `item`.
#[inline]
pub(super) fn kind(memory: &[u8], item: ItemRef) -> Kind {
    match memory[offset(item) + KEY_LEN_AT] {
        0 => Kind::Free,
        KEY_STAGED => Kind::Staged,
        KEY_PIECE => Kind::Piece,
        _ => Kind::Item,
    }
}

/// The fixed part of an item, loaded at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) item: ItemRef,
    pub(super) version: u64,
    pub(super) accessed: u32,
    pub(super) key_len: u8,
    pub(super) marks: u8,
    length_word: u16,
}

impl Head {
    /// Reads the header of the item at `item`.
    #[inline(always)]
    pub(super) fn read(memory: &[u8], item: ItemRef) -> Self {
        let at = offset(item);
        let bytes: &[u8; 16] = memory[at..at + 16].try_into().expect("sixteen bytes");
        let low = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let high = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        Self {
            item,
            version: low,
            accessed: high as u32,
            key_len: (high >> 32) as u8,
            marks: (high >> 40) as u8,
            length_word: (high >> 48) as u16,
        }
    }

    /// Flush epoch in which the item was stored.
    #[inline(always)]
    pub(super) const fn epoch(&self) -> u8 {
        (self.length_word >> 12) as u8
    }

    #[inline(always)]
    pub(super) const fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    #[inline(always)]
    pub(super) const fn is_item(&self) -> bool {
        self.key_len != 0 && self.key_len < KEY_STAGED
    }

    #[inline(always)]
    pub(super) const fn key_offset(&self) -> usize {
        offset(self.item) + KEY_OFFSET[(self.marks & 7) as usize] as usize
    }

    #[inline(always)]
    pub(super) fn key<'m>(&self, memory: &'m [u8]) -> &'m [u8] {
        let at = self.key_offset();
        &memory[at..at + self.key_len as usize]
    }

    const fn large_at(&self) -> usize {
        offset(self.item) + KEY_OFFSET[(self.marks & 3) as usize] as usize
    }

    /// Length of the whole value.
    #[inline(always)]
    pub(super) fn value_bytes(&self, memory: &[u8]) -> usize {
        if self.has(LARGE) {
            read_u32(memory, self.large_at()) as usize
        } else {
            self.length_word as usize & SHORT_VALUE_MAX
        }
    }

    /// Number of the record that lists a chained value's pieces.
    #[inline(always)]
    pub(super) fn chain(&self, memory: &[u8]) -> Option<u32> {
        if !self.has(LARGE) {
            return None;
        }
        let chain = read_u32(memory, self.large_at() + 4);
        (chain != NO_CHAIN).then_some(chain)
    }

    /// Client flags.
    #[inline(always)]
    pub(super) fn flags(&self, memory: &[u8]) -> u32 {
        if !self.has(HAS_FLAGS) {
            return 0;
        }
        let ttl = if self.has(HAS_TTL) { TTL_BYTES } else { 0 };
        read_u32(memory, offset(self.item) + HEADER_BYTES + ttl)
    }

    /// The deadline's code; only with [`HAS_TTL`].
    #[inline(always)]
    pub(super) fn deadline_code(&self, memory: &[u8]) -> u32 {
        read_u32(memory, offset(self.item) + HEADER_BYTES)
    }

    /// Which extensions the item has and how long its parts are.
    pub(super) fn shape(&self, memory: &[u8]) -> Shape {
        Shape {
            key_bytes: self.key_len as usize,
            value_bytes: self.value_bytes(memory),
            ttl: self.has(HAS_TTL),
            flags: self.has(HAS_FLAGS),
            chained: self.chain(memory).is_some(),
        }
    }
}

/// The extensions of an item and the lengths of its parts: enough to compute all offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    pub(super) ttl: bool,
    pub(super) flags: bool,
    pub(super) chained: bool,
}

impl Shape {
    const fn large(&self) -> bool {
        self.chained || self.value_bytes > SHORT_VALUE_MAX
    }

    const fn extension_marks(&self) -> u8 {
        (if self.ttl { HAS_TTL } else { 0 })
            | (if self.flags { HAS_FLAGS } else { 0 })
            | (if self.large() { LARGE } else { 0 })
    }

    /// Offset of the key from the item's start.
    pub(super) const fn key_offset(&self) -> usize {
        KEY_OFFSET[self.extension_marks() as usize] as usize
    }

    /// Bytes of the item in its own chunk: all of it, or for a chained item all except the value.
    pub(super) const fn chunk_bytes(&self) -> usize {
        self.key_offset() + self.key_bytes + if self.chained { 0 } else { self.value_bytes }
    }

    /// Bytes of the whole item.
    pub(super) const fn item_bytes(&self) -> usize {
        self.key_offset() + self.key_bytes + self.value_bytes
    }

    /// Writes everything except key and value into the chunk at `item`. The TTL block starts
    /// unlinked with `code`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn write(
        &self,
        memory: &mut [u8],
        item: ItemRef,
        version: u64,
        accessed: u32,
        key_len: u8,
        marks: u8,
        epoch: u8,
        flags: u32,
        code: u32,
        chain: u32,
    ) {
        let at = offset(item);
        let marks = marks & !(HAS_TTL | HAS_FLAGS | LARGE) | self.extension_marks();
        let short = if self.large() { 0 } else { self.value_bytes as u64 };
        let high = accessed as u64
            | (key_len as u64) << 32
            | (marks as u64) << 40
            | (short | (epoch as u64) << 12) << 48;
        memory[at..at + 8].copy_from_slice(&version.to_le_bytes());
        memory[at + 8..at + 16].copy_from_slice(&high.to_le_bytes());
        let mut next = at + HEADER_BYTES;
        if self.ttl {
            write_u32(memory, next, code);
            write_u32(memory, next + 4, 0);
            write_u32(memory, next + 8, 0);
            next += TTL_BYTES;
        }
        if self.flags {
            write_u32(memory, next, flags);
            next += FLAGS_BYTES;
        }
        if self.large() {
            write_u32(memory, next, self.value_bytes as u32);
            write_u32(memory, next + 4, chain);
            next += LARGE_BYTES;
        }
        debug_assert_eq!(next - at, self.key_offset());
    }
}

/// Changes the length of a value that stays on its side of [`SHORT_VALUE_MAX`].
pub(super) fn set_value_bytes(memory: &mut [u8], item: ItemRef, value_bytes: usize) {
    let head = Head::read(memory, item);
    debug_assert_eq!(head.has(LARGE), value_bytes > SHORT_VALUE_MAX);
    if head.has(LARGE) {
        write_u32(memory, head.large_at(), value_bytes as u32);
    } else {
        let word = head.length_word & !(SHORT_VALUE_MAX as u16) | value_bytes as u16;
        let at = offset(item) + 14;
        memory[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
}

/// Changes the flush epoch.
pub(super) fn set_epoch(memory: &mut [u8], item: ItemRef, epoch: u8) {
    let at = offset(item) + 15;
    memory[at] = memory[at] & 0x0f | epoch << 4;
}

pub(super) fn set_version(memory: &mut [u8], item: ItemRef, version: u64) {
    let at = offset(item);
    memory[at..at + 8].copy_from_slice(&version.to_le_bytes());
}

#[inline(always)]
pub(super) fn set_accessed(memory: &mut [u8], item: ItemRef, accessed: u32) {
    write_u32(memory, offset(item) + 8, accessed);
}

#[inline(always)]
pub(super) fn set_marks(memory: &mut [u8], item: ItemRef, marks: u8) {
    memory[offset(item) + MARKS_AT] = marks;
}

pub(super) fn set_key_len(memory: &mut [u8], item: ItemRef, key_len: u8) {
    memory[offset(item) + KEY_LEN_AT] = key_len;
}

/// The deadline's code; only with [`HAS_TTL`].
pub(super) fn deadline_code(memory: &[u8], item: ItemRef) -> u32 {
    read_u32(memory, offset(item) + HEADER_BYTES)
}

pub(super) fn set_deadline_code(memory: &mut [u8], item: ItemRef, code: u32) {
    write_u32(memory, offset(item) + HEADER_BYTES, code);
}

/// The wheel link before the item; only with [`HAS_TTL`].
pub(super) fn previous(memory: &[u8], item: ItemRef) -> u32 {
    read_u32(memory, offset(item) + HEADER_BYTES + 4)
}

/// The wheel link after the item; only with [`HAS_TTL`].
pub(super) fn next(memory: &[u8], item: ItemRef) -> u32 {
    read_u32(memory, offset(item) + HEADER_BYTES + 8)
}

pub(super) fn set_previous(memory: &mut [u8], item: ItemRef, link: u32) {
    write_u32(memory, offset(item) + HEADER_BYTES + 4, link);
}

pub(super) fn set_next(memory: &mut [u8], item: ItemRef, link: u32) {
    write_u32(memory, offset(item) + HEADER_BYTES + 8, link);
}

/// Marks a chunk as free and links it to the next free one of its page.
pub(super) fn write_free(memory: &mut [u8], chunk: ItemRef, next_free: u32) {
    write_u32(memory, offset(chunk), next_free);
    memory[offset(chunk) + KEY_LEN_AT] = 0;
}

/// The next free chunk after a free one; 0 for none.
pub(super) fn next_free(memory: &[u8], chunk: ItemRef) -> u32 {
    read_u32(memory, offset(chunk))
}

/// Marks a chunk as part of the value of the item at `head`; `ItemRef(0)` while that item is under
/// construction.
pub(super) fn write_piece(memory: &mut [u8], chunk: ItemRef, head: ItemRef) {
    write_u32(memory, offset(chunk), head.0);
    memory[offset(chunk) + KEY_LEN_AT] = KEY_PIECE;
}

/// The item a piece belongs to.
pub(super) fn piece_head(memory: &[u8], chunk: ItemRef) -> ItemRef {
    ItemRef(read_u32(memory, offset(chunk)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_extensions_reads_back() {
        for bits in 0..16 {
            let shape = Shape {
                key_bytes: 5,
                value_bytes: if bits & 4 != 0 { 5000 } else { 32 },
                ttl: bits & 1 != 0,
                flags: bits & 2 != 0,
                chained: bits & 8 != 0,
            };
            let mut memory = vec![0xaa; 8192];
            let item = ItemRef(3);
            shape.write(&mut memory, item, 77, 9, 5, STALE | WON, 13, 0xdead, 42, 7);
            let head = Head::read(&memory, item);
            assert_eq!((head.version, head.accessed, head.key_len), (77, 9, 5));
            assert_eq!(head.epoch(), 13);
            set_epoch(&mut memory, item, 6);
            assert_eq!(Head::read(&memory, item).epoch(), 6);
            assert!(head.has(STALE) && head.has(WON) && !head.has(FETCHED));
            assert_eq!(head.value_bytes(&memory), shape.value_bytes);
            assert_eq!(head.flags(&memory), if shape.flags { 0xdead } else { 0 });
            if shape.ttl {
                assert_eq!(head.deadline_code(&memory), 42);
                assert_eq!((previous(&memory, item), next(&memory, item)), (0, 0));
            }
            if shape.large() {
                assert_eq!(head.chain(&memory), Some(7));
            }
            assert_eq!(head.key_offset() - 24, shape.key_offset());
        }
    }

    #[test]
    fn the_header_of_a_small_item_is_sixteen_bytes_and_twenty_eight_with_a_ttl() {
        let shape =
            Shape { key_bytes: 20, value_bytes: 32, ttl: false, flags: false, chained: false };
        assert_eq!(shape.item_bytes(), 20 + 32 + 16);
        assert_eq!(Shape { ttl: true, ..shape }.item_bytes(), 20 + 32 + 28);
    }
}
