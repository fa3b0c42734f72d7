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
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::time::Instant;

/// Size of a huge page, in which memory is made ready: on x86-64, and on aarch64 with small pages.
const HUGE_BYTES: usize = 2 << 20;
/// At least so much is ready beyond what the shard has taken.
const READY_BYTES: usize = 1 << 20;
/// What the kernel's calls are in units of.
const PAGE_BYTES: usize = 4096;
/// A shard that has not grown for so long is not expected to.
const GROWING: Duration = Duration::from_secs(1);

/// Where ranges of addresses are sent to be touched.
pub type Populator = Sender<Range<usize>>;

/// Starts the thread that touches memory. It ends when the last of its senders is gone.
pub fn start() -> io::Result<(Populator, JoinHandle<()>)> {
    let (sender, ranges) = mpsc::channel::<Range<usize>>();
    let thread = thread::Builder::new().name("populate".into()).spawn(move || {
        give_way();
        for range in ranges {
            advise(&range, libc::MADV_POPULATE_WRITE);
        }
    })?;
    Ok((sender, thread))
}

/// The memory of one shard, in addresses.
pub struct Ahead {
    populator: Populator,
    start: usize,
    end: usize,
    /// How much the shard has taken, and when that was last more than before.
    taken: usize,
    grown_at: Instant,
    /// Up to where memory is ready or asked for.
    ready: usize,
}

impl Ahead {
    /// All of `memory` is to come; the shard takes it from its beginning.
    pub fn new(memory: &mut [u8], populator: Populator) -> Self {
        let start = memory.as_ptr().addr();
        let ready = start.next_multiple_of(PAGE_BYTES);
        let end = start + memory.len();
        Self { populator, start, end, taken: 0, grown_at: Instant::default(), ready }
    }

    /// Takes all of the memory now, and keeps it from being swapped out. Takes as long as to zero
    /// it.
    ///
    /// # Errors
    /// When so much must not be locked, or is not there.
    pub fn hold_all(&mut self) -> io::Result<()> {
        let start = std::ptr::without_provenance(self.start);
        // SAFETY: to lock memory changes neither contents nor access.
        if unsafe { libc::mlock(start, self.end - self.start) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // As if the shard had taken it: there is nothing to make ready, and nothing to give back.
        (self.ready, self.taken) = (self.end, self.end - self.start);
        Ok(())
    }

    /// Notes that the shard has taken this many bytes. To be told often.
    #[inline]
    pub fn taken(&mut self, bytes: usize, now: Instant) {
        if bytes > self.taken {
            self.grow(bytes, now);
        }
    }

    #[cold]
    fn grow(&mut self, bytes: usize, now: Instant) {
        (self.taken, self.grown_at) = (bytes, now);
        let wanted = (self.start + bytes + READY_BYTES).next_multiple_of(HUGE_BYTES).min(self.end);
        if wanted > self.ready {
            // Without the thread the shard touches its memory itself.
            let _ = self.populator.send(self.ready..wanted);
            self.ready = wanted;
        }
    }

    /// Gives back what is ready for a shard that has stopped growing. To be called now and then.
    pub fn settle(&mut self, now: Instant) {
        let needed = (self.start + self.taken).next_multiple_of(HUGE_BYTES);
        if needed < self.ready && now.since(self.grown_at) >= GROWING {
            advise(&(needed..self.ready), libc::MADV_DONTNEED);
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
fn give_way() {
    // SAFETY: all-zero bytes are a valid parameter, which the call only reads. Whatever it answers,
    // the thread goes on.
    unsafe {
        let parameter: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameter);
    }
}

/// Gives the kernel an advice on the whole pages of a range of this process's memory.
fn advise(range: &Range<usize>, advice: libc::c_int) {
    let end = range.end / PAGE_BYTES * PAGE_BYTES;
    let Some(bytes) = end.checked_sub(range.start) else { return };
    // SAFETY: to populate changes no contents, whatever is mapped there by now. What is given back
    // belongs to the caller's shard, which has not taken it: it holds zeroes, and reads as zeroes
    // when it is touched again. A kernel that refuses says so, which changes nothing.
    unsafe {
        libc::madvise(std::ptr::without_provenance_mut(range.start), bytes, advice);
    }
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
        let (populator, ranges) = mpsc::channel();
        let mut ahead = Ahead::new(&mut memory, populator);
        ahead.hold_all().expect("so little may be locked");
        // The memory begins and ends within pages.
        assert!(resident(&memory) >= memory.len() / PAGE_BYTES - 1);
        let begin = Instant::from_millis(1_700_000_000_000);
        ahead.taken(PAGE_BYTES, begin);
        ahead.taken(memory.len(), begin);
        ahead.settle(begin.after(GROWING));
        assert!(ranges.try_recv().is_err(), "nothing is left to make ready");
        assert!(resident(&memory) >= memory.len() / PAGE_BYTES - 1);
    }

    #[test]
    fn memory_is_ready_before_it_is_taken_and_goes_back_when_it_is_not() {
        const MIB: usize = 1 << 20;
        let mut memory = vec![0u8; 32 * MIB];
        let (populator, thread) = start().expect("a thread");
        let mut ahead = Ahead::new(&mut memory, populator);
        let begin = Instant::from_millis(1_700_000_000_000);
        ahead.taken(0, begin);
        assert_eq!(resident(&memory), 0, "a shard that holds nothing needs nothing");
        ahead.taken(10 * MIB, begin);
        ahead.settle(begin);
        let Ahead { populator, taken, ready, .. } = ahead;
        drop(populator);
        thread.join().expect("no panic");
        let pages = resident(&memory) * PAGE_BYTES;
        assert!((11 * MIB..15 * MIB).contains(&pages), "{pages} bytes");

        let (populator, _) = mpsc::channel();
        let start = memory.as_ptr().addr();
        let end = start + memory.len();
        let mut ahead = Ahead { populator, start, end, taken, grown_at: begin, ready };
        ahead.settle(begin.after(GROWING));
        let pages = resident(&memory) * PAGE_BYTES;
        assert!((10 * MIB - PAGE_BYTES..12 * MIB).contains(&pages), "{pages} bytes");
    }
}
