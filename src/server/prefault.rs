//! Prefaults the next piece of a shard's memory before the shard needs it.
//!
//! The kernel allocates and zeroes memory at its first touch. For a huge page that took 5 ms on a
//! virtual machine whose host had to provide it first (0.1 ms otherwise), and the core that touches
//! it serves no request meanwhile: one request in a hundred waited while a node filled up. So an
//! unpinned thread touches memory slightly ahead of each growing shard. Memory touched needlessly
//! is returned once the shard has stopped growing.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::net_ring::loans;
use crate::time::Instant;

/// Size of a huge page, the unit of prefaulting: on x86-64, and on aarch64 with small pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Minimum of memory kept ready beyond what the shard has used.
const READY_BYTES: usize = 1 << 20;
/// The unit of the kernel's calls.
const PAGE_BYTES: usize = 4096;
/// A shard that has not grown for this long is assumed to have stopped growing.
const GROWTH_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends address ranges to the prefault thread.
pub type PrefaultSender = Sender<PrefaultRequest>;

/// What the prefault thread is to do.
#[derive(Debug)]
pub enum PrefaultRequest {
    /// Prefault a range of addresses.
    Touch {
        /// The range.
        range: Range<usize>,
        /// The end of the part done so far, for the requester.
        done: Arc<AtomicUsize>,
    },
    /// Return what the allocator keeps of freed memory.
    TrimHeap,
}

/// Starts the prefault thread. It ends when its last sender is dropped.
pub fn start() -> io::Result<(PrefaultSender, JoinHandle<()>)> {
    let (sender, requests) = mpsc::channel::<PrefaultRequest>();
    let thread = thread::Builder::new().name("populate".into()).spawn(move || {
        use_batch_scheduling();
        for request in requests {
            let PrefaultRequest::Touch { range, done } = request else {
                trim_heap();
                continue;
            };
            for start in range.clone().step_by(HUGE_PAGE_BYTES) {
                let end = (start + HUGE_PAGE_BYTES).min(range.end);
                populate(&(start..end));
                // Relaxed: no other data depends on it, since the kernel manages the memory.
                done.store(end, Ordering::Relaxed);
            }
        }
    })?;
    Ok((sender, thread))
}

/// Prefaults the memory of one shard.
pub struct Prefaulter {
    prefault_sender: PrefaultSender,
    start: usize,
    end: usize,
    /// Bytes the shard has used, and when that last increased.
    used: usize,
    grown_at: Instant,
    /// The end of the memory that is ready or requested.
    ready: usize,
    /// The end of the memory that is ready.
    done: Arc<AtomicUsize>,
}

impl Prefaulter {
    /// Prepares for `memory`, none of it used yet; the shard uses it from its beginning.
    pub fn new(memory: &mut [u8], prefault_sender: PrefaultSender) -> Self {
        let start = memory.as_ptr().addr();
        let ready = start.next_multiple_of(PAGE_BYTES);
        let end = start + memory.len();
        let done = Arc::new(AtomicUsize::new(ready));
        Self { prefault_sender, start, end, used: 0, grown_at: Instant::default(), ready, done }
    }

    /// Allocates all of the memory now and locks it into RAM. Takes as long as zeroing it.
    ///
    /// # Errors
    /// If that much cannot be locked or is not available.
    pub fn lock_all(&mut self) -> io::Result<()> {
        let start = std::ptr::without_provenance(self.start);
        // SAFETY: locking memory changes neither contents nor access.
        if unsafe { libc::mlock(start, self.end - self.start) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // As if the shard had used it: there is nothing to prefault and nothing to return.
        (self.ready, self.used) = (self.end, self.end - self.start);
        self.done.store(self.end, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes from the beginning of the memory that are ready.
    #[inline]
    pub fn ready_bytes(&self) -> usize {
        self.done.load(Ordering::Relaxed).min(self.ready).saturating_sub(self.start)
    }

    /// Records that the shard has used this many bytes. Call it often.
    #[inline]
    pub fn note_used(&mut self, bytes: usize, now: Instant) {
        if bytes > self.used {
            self.grow(bytes, now);
        }
    }

    /// Has what the allocator keeps of freed memory given back, by a thread that is bound to no
    /// core: it takes as long as the kernel needs to take the pages. Until then a core waits only
    /// if it wants memory of the allocator.
    pub fn trim_heap(&self) {
        let _ = self.prefault_sender.send(PrefaultRequest::TrimHeap);
    }

    /// Records that the shard waits for its next piece to be ready.
    #[cold]
    pub fn note_waiting(&mut self, now: Instant) {
        self.grow(self.used, now);
    }

    #[cold]
    fn grow(&mut self, bytes: usize, now: Instant) {
        (self.used, self.grown_at) = (bytes, now);
        let wanted =
            (self.start + bytes + READY_BYTES).next_multiple_of(HUGE_PAGE_BYTES).min(self.end);
        if wanted > self.ready {
            let request =
                PrefaultRequest::Touch { range: self.ready..wanted, done: self.done.clone() };
            self.ready = wanted;
            if self.prefault_sender.send(request).is_err() {
                // Without the thread the shard touches its memory itself.
                self.done.store(self.end, Ordering::Relaxed);
            }
        }
    }

    /// Returns prefaulted memory of a shard that has stopped growing. Call it periodically with the
    /// memory that the shard has not used.
    ///
    /// The recorded usage does not count here, since a store of the same turn may have used more;
    /// the borrow does, which the shard cannot outgrow while it lasts.
    ///
    /// # Panics
    /// If `untouched` is not the end of this prefaulter's memory.
    pub fn trim(&mut self, untouched: &mut [u8], now: Instant) {
        let Range { start, end } = untouched.as_ptr_range();
        let (start, end) = (start.addr(), end.addr());
        assert!(self.start <= start && end == self.end, "the end of another memory");
        self.note_used(start - self.start, now);
        if self.used > start - self.start || now.since(self.grown_at) < GROWTH_TIMEOUT {
            return;
        }
        let needed = start.next_multiple_of(HUGE_PAGE_BYTES);
        if needed < self.ready {
            let bytes = self.ready - needed;
            loans::assert_free(std::ptr::without_provenance(needed), bytes, "memory is given back");
            discard(&mut untouched[needed - start..self.ready - start]);
            self.ready = needed;
        }
    }
}

/// Yields to any thread that is already running: a thread woken by a core is often scheduled on
/// that core's CPU, and must not preempt it.
///
/// It must get its share, though: it works under a lock of the whole process's memory. In the
/// lowest class (SCHED_IDLE) it waited for seconds on a machine without an idle CPU, and so did
/// each core that needed memory.
fn use_batch_scheduling() {
    // SAFETY: all-zero bytes are a valid parameter, which the call only reads. Its result does not
    // matter to the thread.
    unsafe {
        let parameter: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameter);
    }
}

/// Touches the whole pages of a range of this process's memory, which may be unmapped or reused by
/// now.
fn populate(range: &Range<usize>) {
    let end = range.end / PAGE_BYTES * PAGE_BYTES;
    let Some(bytes) = end.checked_sub(range.start) else { return };
    let start = std::ptr::without_provenance_mut(range.start);
    // SAFETY: populating changes no contents, whatever is mapped there by now. An error of the
    // kernel changes nothing.
    unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_WRITE) };
}

/// Gives back whole pages that are free in the heaps of all threads. Left to itself, the allocator
/// keeps what lies below anything in use, and after long buffers were freed all of it.
fn trim_heap() {
    // SAFETY: it takes the allocator's own locks and changes nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Returns the whole pages of `memory`, which is on the heap, to the kernel: they read as zeroes
/// from now on, and are allocated again when touched.
fn discard(memory: &mut [u8]) {
    let skip = memory.as_ptr().align_offset(PAGE_BYTES).min(memory.len());
    let pages = &mut memory[skip..];
    let bytes = pages.len() / PAGE_BYTES * PAGE_BYTES;
    // SAFETY: the range is mutably borrowed, so the compiler guarantees that no one else accesses
    // it while it becomes zeroes, a valid value of any byte. The kernel does not use it either:
    // receives and sends go to and from items, and there is no item in memory that a shard has
    // never used, which is what its owner lends for this (`Shard::untouched_mut`). Heap memory is
    // private and not backed by a file, so it reads as zeroes afterwards.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), bytes, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pages of `memory` the kernel has given this process.
    fn resident(memory: &[u8]) -> usize {
        let start = memory.as_ptr().addr().next_multiple_of(PAGE_BYTES);
        let count = (memory.as_ptr().addr() + memory.len() - start) / PAGE_BYTES;
        let mut pages = vec![0u8; count];
        // SAFETY: the call writes one byte for each page of a range that `memory` holds.
        let outcome = unsafe {
            let start = std::ptr::without_provenance_mut(start);
            libc::mincore(start, count * PAGE_BYTES, pages.as_mut_ptr())
        };
        assert_eq!(outcome, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn held_memory_is_there_at_once_and_stays() {
        // Less than io_uring must be allowed to lock.
        let mut memory = vec![0u8; 64 * PAGE_BYTES];
        let (prefault_sender, ranges) = mpsc::channel();
        let mut prefaulter = Prefaulter::new(&mut memory, prefault_sender);
        prefaulter.lock_all().expect("so little may be locked");
        // The memory begins and ends within pages.
        assert!(resident(&memory) >= memory.len() / PAGE_BYTES - 1);
        let begin = Instant::from_millis(1_700_000_000_000);
        prefaulter.note_used(PAGE_BYTES, begin);
        prefaulter.note_used(memory.len(), begin);
        let end = memory.len();
        prefaulter.trim(&mut memory[end..], begin.after(GROWTH_TIMEOUT));
        assert!(ranges.try_recv().is_err(), "nothing is left to make ready");
        assert!(resident(&memory) >= memory.len() / PAGE_BYTES - 1);
    }

    #[test]
    fn memory_is_ready_before_it_is_taken_and_goes_back_when_it_is_not() {
        const MIB: usize = 1 << 20;
        let mut memory = vec![0u8; 32 * MIB];
        let (prefault_sender, thread) = start().expect("a thread");
        let mut prefaulter = Prefaulter::new(&mut memory, prefault_sender);
        let begin = Instant::from_millis(1_700_000_000_000);
        prefaulter.note_used(0, begin);
        assert_eq!(resident(&memory), 0, "a shard that holds nothing needs nothing");
        prefaulter.note_used(10 * MIB, begin);
        prefaulter.trim(&mut memory[10 * MIB..], begin);
        let Prefaulter { prefault_sender, used, ready, done, .. } = prefaulter;
        drop(prefault_sender);
        thread.join().expect("no panic");
        let pages = resident(&memory) * PAGE_BYTES;
        assert!((11 * MIB..15 * MIB).contains(&pages), "{pages} bytes");

        let (prefault_sender, _) = mpsc::channel();
        let start = memory.as_ptr().addr();
        let end = start + memory.len();
        assert!(done.load(Ordering::Relaxed) == ready, "all that was asked for is ready");
        let mut prefaulter =
            Prefaulter { prefault_sender, start, end, used, grown_at: begin, ready, done };
        prefaulter.trim(&mut memory[10 * MIB..], begin.after(GROWTH_TIMEOUT));
        let pages = resident(&memory) * PAGE_BYTES;
        assert!((10 * MIB - PAGE_BYTES..12 * MIB).contains(&pages), "{pages} bytes");
    }

    #[test]
    fn what_a_shard_has_taken_since_it_was_last_asked_stays() {
        const MIB: usize = 1 << 20;
        let mut memory = vec![0u8; 32 * MIB];
        let (prefault_sender, ranges) = mpsc::channel();
        let mut prefaulter = Prefaulter::new(&mut memory, prefault_sender);
        let begin = Instant::from_millis(1_700_000_000_000);
        prefaulter.note_used(MIB, begin);
        assert!(ranges.try_recv().is_ok(), "the next piece is asked for");
        // Nothing has been noted for long, then a store takes memory, and then it is given back.
        memory[..20 * MIB].fill(7);
        let later = begin.after(4 * GROWTH_TIMEOUT);
        for now in [later, later.after(GROWTH_TIMEOUT)] {
            prefaulter.trim(&mut memory[20 * MIB..], now);
            assert!(memory[..20 * MIB].iter().all(|&byte| byte == 7), "live memory was given back");
        }
        assert!(memory[20 * MIB..].iter().all(|&byte| byte == 0));
        assert_eq!(prefaulter.used, 20 * MIB);
        // All of it, so that there is nothing to give back.
        memory.fill(7);
        for now in [later, later.after(2 * GROWTH_TIMEOUT), later.after(4 * GROWTH_TIMEOUT)] {
            prefaulter.trim(&mut memory[32 * MIB..], now);
            assert!(memory.iter().all(|&byte| byte == 7), "live memory was given back");
        }
    }

    #[test]
    #[should_panic(expected = "the end of another memory")]
    fn the_memory_of_another_shard_is_not_given_back() {
        let (mut memory, mut other) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
        let mut prefaulter = Prefaulter::new(&mut memory, mpsc::channel().0);
        prefaulter.trim(&mut other, Instant::from_millis(1_700_000_000_000));
    }
}
