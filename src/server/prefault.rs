//! The next piece of a shard's memory, made ready before the shard needs it.
//!
//! The first touch of memory is when the kernel finds and zeroes it. For a huge page that took 5 ms
//! on a virtual machine whose host had to find it first (0.1 ms where it has not), and the core that
//! touches it serves nobody meanwhile: one request in a hundred waited while a node filled up. So a
//! thread that is bound to no CPU touches memory a little ahead of each shard that grows. What it has
//! touched for nothing goes back when the shard has stopped growing.
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

/// Size of a huge page, in which memory is made ready: on x86-64, and on aarch64 with small pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// At least so much is ready beyond what the shard has used.
const READY_BYTES: usize = 1 << 20;
/// What the kernel's calls are in units of.
const PAGE_BYTES: usize = 4096;
/// A shard that has not grown for so long is not expected to.
const GROWTH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where ranges of addresses are sent to be touched.
pub type PrefaultSender = Sender<PrefaultRequest>;

/// A range of addresses to be touched.
#[derive(Debug)]
pub struct PrefaultRequest {
    range: Range<usize>,
    /// Up to where it has been done, for whoever asked.
    done: Arc<AtomicUsize>,
}

/// Starts the thread that touches memory. It ends when the last of its senders is gone.
pub fn start() -> io::Result<(PrefaultSender, JoinHandle<()>)> {
    let (sender, requests) = mpsc::channel::<PrefaultRequest>();
    let thread = thread::Builder::new().name("populate".into()).spawn(move || {
        use_batch_scheduling();
        for PrefaultRequest { range, done } in requests {
            for start in range.clone().step_by(HUGE_PAGE_BYTES) {
                let end = (start + HUGE_PAGE_BYTES).min(range.end);
                populate(&(start..end));
                // Nothing else is read for it: the memory is the kernel's business.
                done.store(end, Ordering::Relaxed);
            }
        }
    })?;
    Ok((sender, thread))
}

/// The memory of one shard, in addresses.
pub struct Prefaulter {
    prefault_sender: PrefaultSender,
    start: usize,
    end: usize,
    /// How much the shard has used, and when that was last more than before.
    used: usize,
    grown_at: Instant,
    /// Up to where memory is ready or asked for.
    ready: usize,
    /// Up to where it is ready.
    done: Arc<AtomicUsize>,
}

impl Prefaulter {
    /// All of `memory` is to come; the shard takes it from its beginning.
    pub fn new(memory: &mut [u8], prefault_sender: PrefaultSender) -> Self {
        let start = memory.as_ptr().addr();
        let ready = start.next_multiple_of(PAGE_BYTES);
        let end = start + memory.len();
        let done = Arc::new(AtomicUsize::new(ready));
        Self { prefault_sender, start, end, used: 0, grown_at: Instant::default(), ready, done }
    }

    /// Takes all of the memory now, and keeps it from being swapped out. Takes as long as to zero
    /// it.
    ///
    /// # Errors
    /// When so much must not be locked, or is not there.
    pub fn lock_all(&mut self) -> io::Result<()> {
        let start = std::ptr::without_provenance(self.start);
        // SAFETY: to lock memory changes neither contents nor access.
        if unsafe { libc::mlock(start, self.end - self.start) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // As if the shard had used it: there is nothing to make ready, and nothing to give back.
        (self.ready, self.used) = (self.end, self.end - self.start);
        self.done.store(self.end, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes of the memory, from its beginning, that are there already.
    #[inline]
    pub fn ready_bytes(&self) -> usize {
        self.done.load(Ordering::Relaxed).min(self.ready).saturating_sub(self.start)
    }

    /// Notes that the shard has used this many bytes. To be called often.
    #[inline]
    pub fn note_used(&mut self, bytes: usize, now: Instant) {
        if bytes > self.used {
            self.grow(bytes, now);
        }
    }

    /// Notes that the shard waits for its next piece to be ready.
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
            let request = PrefaultRequest { range: self.ready..wanted, done: self.done.clone() };
            self.ready = wanted;
            if self.prefault_sender.send(request).is_err() {
                // Without the thread the shard touches its memory itself.
                self.done.store(self.end, Ordering::Relaxed);
            }
        }
    }

    /// Gives back what is ready for a shard that has stopped growing. To be called now and then,
    /// with the memory that the shard has not used.
    ///
    /// What was noted earlier of how much it has used does not decide here: a store of the same
    /// turn may have used more. The borrow does, which the shard cannot outgrow while it lasts.
    ///
    /// # Panics
    /// When `untouched` is not the end of the memory that this was made for.
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

/// Takes no CPU away from whoever has it. What is woken by a core is often put on that core's CPU, and
/// must not push it aside.
///
/// It must get its share, though: it works under a lock of the whole process's memory. In the class
/// below all others (SCHED_IDLE) it waited for seconds on a machine without an idle CPU, and so did
/// each core that wanted memory.
fn use_batch_scheduling() {
    // SAFETY: all-zero bytes are a valid parameter, which the call only reads. Whatever it answers,
    // the thread goes on.
    unsafe {
        let parameter: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameter);
    }
}

/// Touches the whole pages of a range of this process's memory, which may be gone by now or belong
/// to something else.
fn populate(range: &Range<usize>) {
    let end = range.end / PAGE_BYTES * PAGE_BYTES;
    let Some(bytes) = end.checked_sub(range.start) else { return };
    let start = std::ptr::without_provenance_mut(range.start);
    // SAFETY: to populate changes no contents, whatever is mapped there by now. A kernel that
    // refuses says so, which changes nothing.
    unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_WRITE) };
}

/// Gives the whole pages of `memory`, which is of the heap, back to the kernel: they read as zeroes
/// from now on, and are there again when they are touched.
fn discard(memory: &mut [u8]) {
    let skip = memory.as_ptr().align_offset(PAGE_BYTES).min(memory.len());
    let pages = &mut memory[skip..];
    let bytes = pages.len() / PAGE_BYTES * PAGE_BYTES;
    // SAFETY: the range is borrowed for writing, so nobody else reads, writes or has it while it
    // becomes zeroes, as which any bytes may be; the compiler sees to it. The kernel does not use it
    // either: receives and sends go to and from items, and no item is in what a shard has never
    // taken into use, which is what its owner lends for this (`Shard::untouched_mut`). Memory of the
    // heap is private and of no file, so that zeroes are what comes back.
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
