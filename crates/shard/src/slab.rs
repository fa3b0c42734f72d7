//! The memory of one shard: pages, chunks, and their owners.
//!
//! One contiguous allocation, zeroed by the operating system and therefore resident only where
//! touched, is divided into pages. A page belongs to one slab class, to the index, or is free. A
//! class divides its pages into equal chunks. Each page has its own list of free chunks and hands
//! out unused ones in order, so that a fresh page is touched chunk by chunk and a page can be taken
//! from its class without searching any list. Pages with room are linked per class.
//!
//! Refused: one free list per class (taking a page away would have to walk it) and one allocation
//! per page (positions would need a table lookup per access).

use super::classes::ClassTable;
use super::item::{self, item_at, offset};
use ringlane_types::request::ItemRef;

/// `Page::class` of a free page.
pub(super) const CLASS_FREE: u8 = 255;
/// `Page::class` of a page that holds index buckets.
pub(super) const CLASS_INDEX: u8 = 254;

const NONE: u32 = u32::MAX;
const LINE_BYTES: usize = 64;

/// The state of one page.
#[derive(Clone, Debug)]
pub(super) struct Page {
    /// Chunks in use, including staged and pinned ones.
    pub(super) used: u32,
    /// Chunks handed out at least once; the rest holds no headers.
    pub(super) fresh: u32,
    free_head: u32,
    previous_open: u32,
    next_open: u32,
    /// Position in its class's list of pages.
    position: u32,
    /// Staged and pinned chunks: while there are any, the page stays in its class.
    pub(super) held: u32,
    /// In its class's list of pages with room.
    open: bool,
    /// Being emptied: hands out no chunks.
    pub(super) draining: bool,
}

const UNUSED_PAGE: Page = Page {
    used: 0,
    fresh: 0,
    free_head: 0,
    previous_open: NONE,
    next_open: NONE,
    position: 0,
    held: 0,
    open: false,
    draining: false,
};

/// One slab class.
pub(super) struct Class {
    pub(super) chunk_bytes: u32,
    pub(super) chunks_per_page: u32,
    /// Pages it owns, excluding the one being drained.
    pub(super) pages: Vec<u32>,
    open_head: u32,
    /// Chunks in use.
    pub(super) used: u64,
}

/// The memory of one shard.
pub(super) struct Slab {
    memory: Box<[u8]>,
    /// Offset of page 0, so that pages begin on a cache line; below [`LINE_BYTES`].
    base: usize,
    page_shift: u32,
    page_class: Box<[u8]>,
    pages: Box<[Page]>,
    /// Freed pages, most recently used last.
    free_pages: Vec<u32>,
    /// First unused page.
    untouched: u32,
    /// Maximum pages in use.
    pages_max: u32,
    pages_in_use: u32,
    pub(super) classes: Vec<Class>,
    table: ClassTable,
}

impl Slab {
    /// Memory of `memory_bytes`, rounded down to whole pages.
    pub(super) fn new(memory_bytes: u64) -> Self {
        let page_bytes = page_bytes_for(memory_bytes);
        let page_count = (memory_bytes / page_bytes as u64) as usize;
        let table = ClassTable::new(page_bytes, page_count < 256);
        let classes = (0..table.count())
            .map(|class| {
                let chunk_bytes = table.chunk_bytes(class as u8) as u32;
                Class {
                    chunk_bytes,
                    chunks_per_page: page_bytes / chunk_bytes,
                    pages: Vec::new(),
                    open_head: NONE,
                    used: 0,
                }
            })
            .collect();
        // `vec!` of zeros requests zeroed memory from the allocator and writes nothing.
        let memory = vec![0; page_count * page_bytes as usize + LINE_BYTES].into_boxed_slice();
        let base = memory.as_ptr().align_offset(LINE_BYTES);
        assert!(base < LINE_BYTES && base.is_multiple_of(8), "the allocator aligns to 8 bytes");
        Self {
            memory,
            base,
            page_shift: page_bytes.trailing_zeros(),
            page_class: vec![CLASS_FREE; page_count].into_boxed_slice(),
            pages: vec![UNUSED_PAGE; page_count].into_boxed_slice(),
            free_pages: Vec::with_capacity(page_count),
            untouched: 0,
            pages_max: page_count as u32,
            pages_in_use: 0,
            classes,
            table,
        }
    }

    #[inline(always)]
    pub(super) fn memory(&self) -> &[u8] {
        &self.memory
    }

    #[inline(always)]
    pub(super) fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    pub(super) fn page_bytes(&self) -> usize {
        1 << self.page_shift
    }

    /// Length of the prefix of the memory that was ever used.
    #[inline]
    pub(super) fn touched_bytes(&self) -> usize {
        if self.untouched == 0 { 0 } else { self.page_start(self.untouched) }
    }

    /// Whether the next page to be used ends within the first `bytes` bytes, or was used before.
    pub(super) fn is_next_page_within(&self, bytes: usize) -> bool {
        let used_before = !self.free_pages.is_empty() || self.untouched == self.page_count();
        used_before || self.page_start(self.untouched + 1) <= bytes
    }

    /// The memory after [`Slab::touched_bytes`], which contains no chunk and no bucket.
    pub(super) fn untouched_mut(&mut self) -> &mut [u8] {
        let touched = self.touched_bytes();
        &mut self.memory[touched..]
    }

    /// Total number of pages.
    pub(super) fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    pub(super) fn pages_in_use(&self) -> u32 {
        self.pages_in_use
    }

    pub(super) fn pages_max(&self) -> u32 {
        self.pages_max
    }

    /// Changes the maximum pages in use; pages beyond it have to be drained.
    pub(super) fn set_pages_max(&mut self, pages_max: u32) {
        self.pages_max = pages_max.min(self.page_count());
    }

    /// Pages available now.
    #[inline]
    pub(super) fn pages_free(&self) -> u32 {
        self.pages_max.saturating_sub(self.pages_in_use)
    }

    #[inline]
    pub(super) fn class_for(&self, bytes: usize) -> u8 {
        self.table.class_for(bytes)
    }

    /// Largest chunk in bytes.
    pub(super) fn chunk_bytes_max(&self) -> usize {
        self.table.chunk_bytes_max()
    }

    #[inline]
    pub(super) fn page_of(&self, item: ItemRef) -> u32 {
        ((offset(item) - self.base) >> self.page_shift) as u32
    }

    /// The class of the page that holds `item`.
    #[inline]
    pub(super) fn class_of(&self, item: ItemRef) -> u8 {
        self.page_class[self.page_of(item) as usize]
    }

    pub(super) fn page_class(&self, page: u32) -> u8 {
        self.page_class[page as usize]
    }

    pub(super) fn page(&self, page: u32) -> &Page {
        &self.pages[page as usize]
    }

    /// Bytes of the chunk that holds `item`.
    #[inline]
    pub(super) fn chunk_bytes_of(&self, item: ItemRef) -> usize {
        self.classes[self.class_of(item) as usize].chunk_bytes as usize
    }

    /// Chunk number `chunk` of `page`, whose class is known.
    #[inline]
    pub(super) fn chunk(&self, page: u32, chunk: u32) -> ItemRef {
        let class = &self.classes[self.page_class[page as usize] as usize];
        item_at(self.page_start(page) + chunk as usize * class.chunk_bytes as usize)
    }

    /// Whether a handed-out chunk of `class` starts at `item`, which is or was a chunk of some
    /// class.
    pub(super) fn is_chunk_of(&self, class: u8, item: ItemRef) -> bool {
        let page = self.page_of(item);
        let start = offset(item) - self.page_start(page);
        let chunk_bytes = self.classes[class as usize].chunk_bytes as usize;
        self.page_class(page) == class
            && start.is_multiple_of(chunk_bytes)
            && start / chunk_bytes < self.page(page).fresh as usize
    }

    fn page_start(&self, page: u32) -> usize {
        self.base + ((page as usize) << self.page_shift)
    }

    /// Allocates a chunk of `class` from a page with room. Its header is not written.
    #[inline]
    pub(super) fn allocate(&mut self, class: u8) -> Option<ItemRef> {
        let owner = &mut self.classes[class as usize];
        let number = owner.open_head;
        if number == NONE {
            return None;
        }
        let page = &mut self.pages[number as usize];
        let chunk = if page.free_head != 0 {
            let chunk = ItemRef(page.free_head);
            page.free_head = item::next_free(&self.memory, chunk);
            chunk
        } else {
            let start = self.base + ((number as usize) << self.page_shift);
            page.fresh += 1;
            item_at(start + (page.fresh - 1) as usize * owner.chunk_bytes as usize)
        };
        page.used += 1;
        owner.used += 1;
        if page.used == owner.chunks_per_page {
            self.close(number, class);
        }
        Some(chunk)
    }

    /// Frees a chunk. Returns true if its page became empty and was freed.
    pub(super) fn free(&mut self, chunk: ItemRef) -> bool {
        let number = self.page_of(chunk);
        let class = self.page_class[number as usize];
        let page = &mut self.pages[number as usize];
        debug_assert!(page.used > 0 && class < CLASS_INDEX);
        debug_assert!(item::kind(&self.memory, chunk) != item::Kind::Free, "freed twice");
        item::write_free(&mut self.memory, chunk, page.free_head);
        page.free_head = chunk.0;
        page.used -= 1;
        self.classes[class as usize].used -= 1;
        if page.used == 0 {
            self.release(number);
            return true;
        }
        if !page.open && !page.draining {
            self.open(number, class);
        }
        false
    }

    /// Assigns an available page to `class`. `None` if there is none.
    pub(super) fn assign(&mut self, class: u8) -> Option<u32> {
        let number = self.take_page(class)?;
        let owner = &mut self.classes[class as usize];
        self.pages[number as usize].position = owner.pages.len() as u32;
        owner.pages.push(number);
        self.open(number, class);
        Some(number)
    }

    /// Assigns an available page to the index and returns its start.
    pub(super) fn assign_to_index(&mut self) -> Option<usize> {
        let number = self.take_page(CLASS_INDEX)?;
        Some(self.page_start(number))
    }

    /// Frees the index's page that starts at `start`.
    pub(super) fn give_back_index_page(&mut self, start: usize) {
        let number = ((start - self.base) >> self.page_shift) as u32;
        assert_eq!(self.page_class(number), CLASS_INDEX, "a page of the index");
        self.give_back(number);
    }

    /// Takes a page from its class with everything in it.
    ///
    /// # Panics
    /// If it holds staged or pinned chunks.
    pub(super) fn drop_page(&mut self, number: u32) {
        let class = self.page_class(number);
        let page = &mut self.pages[number as usize];
        assert!(page.held == 0 && !page.draining, "nothing in the page must stay");
        self.classes[class as usize].used -= u64::from(page.used);
        page.used = 0;
        self.release(number);
    }

    /// Stops handing out chunks of a page and hides it from its class, so that it can be emptied.
    /// An empty one is freed at once.
    pub(super) fn start_drain(&mut self, number: u32) {
        if self.pages[number as usize].used == 0 {
            return self.release(number);
        }
        let class = self.page_class[number as usize];
        if self.pages[number as usize].open {
            self.close(number, class);
        }
        self.hide(number, class);
        self.pages[number as usize].draining = true;
    }

    /// Returns `page` to its class after all.
    pub(super) fn stop_drain(&mut self, number: u32) {
        let class = self.page_class[number as usize];
        let owner = &mut self.classes[class as usize];
        let page = &mut self.pages[number as usize];
        page.draining = false;
        page.position = owner.pages.len() as u32;
        owner.pages.push(number);
        if page.used < owner.chunks_per_page {
            self.open(number, class);
        }
    }

    /// Keeps the page of `chunk` in its class until [`Slab::unhold`].
    pub(super) fn hold(&mut self, chunk: ItemRef) {
        let page = self.page_of(chunk);
        self.pages[page as usize].held += 1;
    }

    pub(super) fn unhold(&mut self, chunk: ItemRef) {
        let page = self.page_of(chunk);
        self.pages[page as usize].held -= 1;
    }

    fn take_page(&mut self, class: u8) -> Option<u32> {
        if self.pages_free() == 0 {
            return None;
        }
        let number = self.free_pages.pop().or_else(|| {
            (self.untouched < self.page_count()).then(|| {
                self.untouched += 1;
                self.untouched - 1
            })
        })?;
        self.pages_in_use += 1;
        self.page_class[number as usize] = class;
        self.pages[number as usize] = UNUSED_PAGE;
        Some(number)
    }

    fn release(&mut self, number: u32) {
        let class = self.page_class[number as usize];
        let page = &self.pages[number as usize];
        debug_assert_eq!(page.held, 0);
        if page.open {
            self.close(number, class);
        }
        if !self.pages[number as usize].draining {
            self.hide(number, class);
        }
        self.give_back(number);
    }

    /// Frees a page that is in no list.
    fn give_back(&mut self, number: u32) {
        self.page_class[number as usize] = CLASS_FREE;
        self.pages[number as usize] = UNUSED_PAGE;
        self.pages_in_use -= 1;
        self.free_pages.push(number);
    }

    fn hide(&mut self, number: u32, class: u8) {
        let owner = &mut self.classes[class as usize];
        let position = self.pages[number as usize].position as usize;
        owner.pages.swap_remove(position);
        if let Some(&moved) = owner.pages.get(position) {
            self.pages[moved as usize].position = position as u32;
        }
    }

    fn open(&mut self, number: u32, class: u8) {
        let owner = &mut self.classes[class as usize];
        let head = std::mem::replace(&mut owner.open_head, number);
        if head != NONE {
            self.pages[head as usize].previous_open = number;
        }
        let page = &mut self.pages[number as usize];
        page.open = true;
        page.previous_open = NONE;
        page.next_open = head;
    }

    fn close(&mut self, number: u32, class: u8) {
        let page = &mut self.pages[number as usize];
        page.open = false;
        let (previous, next) = (page.previous_open, page.next_open);
        if previous == NONE {
            self.classes[class as usize].open_head = next;
        } else {
            self.pages[previous as usize].next_open = next;
        }
        if next != NONE {
            self.pages[next as usize].previous_open = previous;
        }
    }

    /// Panics unless pages, lists and counts agree.
    pub(super) fn check_invariants(&self) {
        let mut used_by_class = vec![0; self.classes.len()];
        let mut in_use = 0;
        for (number, page) in self.pages.iter().enumerate() {
            let class = self.page_class[number];
            in_use += u32::from(class != CLASS_FREE);
            if class >= CLASS_INDEX {
                continue;
            }
            let owner = &self.classes[class as usize];
            used_by_class[class as usize] += page.used as u64;
            let mut free = 0;
            let mut next = page.free_head;
            while next != 0 {
                assert_eq!(item::kind(&self.memory, ItemRef(next)), item::Kind::Free);
                assert_eq!(self.page_of(ItemRef(next)), number as u32);
                next = item::next_free(&self.memory, ItemRef(next));
                free += 1;
            }
            assert_eq!(page.used + free, page.fresh, "page {number}: every chunk is used or free");
            assert_eq!(page.open, !page.draining && page.used < owner.chunks_per_page);
            if !page.draining {
                assert_eq!(owner.pages[page.position as usize], number as u32);
            }
        }
        assert_eq!(in_use, self.pages_in_use);
        for (class, owner) in self.classes.iter().enumerate() {
            assert_eq!(owner.used, used_by_class[class], "chunks in use of class {class}");
            let mut number = owner.open_head;
            while number != NONE {
                let page = &self.pages[number as usize];
                assert!(page.open && self.page_class[number as usize] as usize == class);
                number = page.next_open;
            }
        }
    }
}

/// Page size for a shard: a 256th of its memory as a power of two, 64 KiB to 1 MiB.
pub(super) fn page_bytes_for(memory_bytes: u64) -> u32 {
    let wanted = (memory_bytes / 256).max(1);
    (1u64 << wanted.ilog2()).clamp(64 << 10, 1 << 20) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allocate(slab: &mut Slab, class: u8) -> Option<ItemRef> {
        let chunk = slab.allocate(class).or_else(|| {
            slab.assign(class)?;
            slab.allocate(class)
        })?;
        item::write_piece(slab.memory_mut(), chunk, ItemRef(1));
        Some(chunk)
    }

    #[test]
    fn pages_in_use_never_exceed_the_limit() {
        let mut slab = Slab::new(1 << 20);
        slab.set_pages_max(3);
        let class = slab.class_for(30_000);
        let chunks: Vec<_> = std::iter::from_fn(|| allocate(&mut slab, class)).collect();
        assert_eq!(chunks.len(), 3 * slab.classes[class as usize].chunks_per_page as usize);
        slab.check_invariants();
    }

    #[test]
    fn an_emptied_page_can_serve_another_class() {
        let mut slab = Slab::new(1 << 20);
        slab.set_pages_max(1);
        let small = slab.class_for(24);
        let large = slab.class_for(5000);
        let chunk = allocate(&mut slab, small).unwrap();
        assert_eq!(allocate(&mut slab, large), None);
        assert!(slab.free(chunk));
        assert!(allocate(&mut slab, large).is_some());
        slab.check_invariants();
    }

    #[test]
    fn a_draining_page_hands_out_nothing() {
        let mut slab = Slab::new(1 << 20);
        let class = slab.class_for(100);
        let chunk = allocate(&mut slab, class).unwrap();
        slab.start_drain(slab.page_of(chunk));
        let other = allocate(&mut slab, class).unwrap();
        assert_ne!(slab.page_of(other), slab.page_of(chunk));
        slab.check_invariants();
        slab.stop_drain(slab.page_of(chunk));
        slab.check_invariants();
    }

    proptest! {
        #[test]
        fn chunks_in_use_never_overlap(steps in prop::collection::vec((any::<u16>(), 17usize..32768), 1..300)) {
            let mut slab = Slab::new(1 << 20);
            slab.assign_to_index().unwrap();
            let mut live: Vec<(ItemRef, usize)> = Vec::new();
            for (pick, bytes) in steps {
                if pick & 1 == 0 && !live.is_empty() {
                    let (chunk, _) = live.swap_remove(pick as usize % live.len());
                    slab.free(chunk);
                    continue;
                }
                let class = slab.class_for(bytes);
                if let Some(chunk) = allocate(&mut slab, class) {
                    prop_assert!(slab.chunk_bytes_of(chunk) >= bytes);
                    for &(other, length) in &live {
                        let (a, b) = (offset(chunk), offset(other));
                        prop_assert!(a + bytes <= b || b + length <= a);
                    }
                    live.push((chunk, bytes));
                }
            }
            slab.check_invariants();
        }
    }
}
