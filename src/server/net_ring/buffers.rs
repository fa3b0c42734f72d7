//! Receive buffers that the ring lends to the kernel to fill.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::{BUFFER_GROUP, Received};

/// Receive buffers shared by all connections, lent to the kernel through a ring of descriptors.
pub(super) struct BufferRing {
    /// The ring of descriptors: page-aligned, `count` entries, the tail in the first one.
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    /// The buffers, `count` times `bytes`.
    memory: NonNull<u8>,
    memory_layout: Layout,
    count: u16,
    bytes: u32,
    tail: u16,
    /// Whether the kernel has each.
    #[cfg(debug_assertions)]
    lent: Vec<bool>,
}

impl BufferRing {
    pub(super) fn new(ring: &IoUring, count: u16, bytes: u32) -> io::Result<Self> {
        assert!(count.is_power_of_two() && bytes > 0, "buffer ring sizes come from valid config");
        let page = 4096;
        let layout = Layout::from_size_align(count as usize * size_of::<BufRingEntry>(), page)
            .expect("at most 512 KiB");
        let memory_layout =
            Layout::from_size_align(count as usize * bytes as usize, page).expect("bounded");
        // SAFETY: both layouts have a non-zero size.
        let (entries, memory) =
            unsafe { (std::alloc::alloc_zeroed(layout), std::alloc::alloc_zeroed(memory_layout)) };
        let entries =
            NonNull::new(entries.cast::<BufRingEntry>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = NonNull::new(memory).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `entries` is page-aligned, zeroed, has room for `count` entries and lives until
        // the ring is closed, see the field order and `Drop` of `NetRing`.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                count,
                BUFFER_GROUP,
                0,
            )?;
        }
        let mut buffers = Self {
            entries,
            layout,
            memory,
            memory_layout,
            count,
            bytes,
            tail: 0,
            #[cfg(debug_assertions)]
            lent: vec![false; count as usize],
        };
        for id in 0..count {
            buffers.recycle(id);
        }
        Ok(buffers)
    }

    pub(super) fn bytes(&self, received: &Received) -> &[u8] {
        assert!(received.id < self.count && received.bytes <= self.bytes);
        let offset = received.id as usize * self.bytes as usize;
        // SAFETY: in bounds by the assertion; the kernel filled these bytes and does not touch
        // the buffer again until `recycle`, which consumes the `Received` this borrows from.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().add(offset), received.bytes as usize)
        }
    }

    /// Records, in builds with debug assertions, that the kernel has filled a buffer.
    #[inline]
    pub(super) fn filled(&mut self, id: u16) {
        let _ = id;
        #[cfg(debug_assertions)]
        assert!(std::mem::take(&mut self.lent[id as usize]), "buffer {id} is filled twice");
    }

    pub(super) fn recycle(&mut self, id: u16) {
        #[cfg(debug_assertions)]
        assert!(!std::mem::replace(&mut self.lent[id as usize], true), "buffer {id} is lent twice");
        let slot = (self.tail & (self.count - 1)) as usize;
        // SAFETY: `slot` is below `count`. The kernel reads an entry only after the tail has
        // passed it, and this one is beyond the tail.
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        // SAFETY: `id` is below `count`, so the address is inside `memory`.
        let address = unsafe { self.memory.as_ptr().add(id as usize * self.bytes as usize) };
        entry.set_addr(address as u64);
        entry.set_len(self.bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry's reserved field, aligned for u16, and both
        // sides access it atomically.
        let tail = unsafe { &*(BufRingEntry::tail(self.entries.as_ptr()) as *const AtomicU16) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Frees all memory.
    ///
    /// # Safety
    /// The kernel no longer knows the ring, nothing is being received, and this is called once,
    /// last.
    pub(super) unsafe fn free(&mut self) {
        // SAFETY: both were allocated with these layouts.
        unsafe {
            std::alloc::dealloc(self.entries.as_ptr().cast(), self.layout);
            std::alloc::dealloc(self.memory.as_ptr(), self.memory_layout);
        }
    }
}
