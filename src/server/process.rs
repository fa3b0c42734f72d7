//! Facts about this process from the kernel.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::stats::ProcessStats;

/// The process's statistics.
pub fn stats(uptime: Duration) -> ProcessStats {
    // SAFETY: all-zero bytes are a valid rusage, and getrusage only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let span = |time: libc::timeval| {
        Duration::new(time.tv_sec.max(0) as u64, time.tv_usec.max(0) as u32 * 1000)
    };
    ProcessStats {
        pid: std::process::id(),
        uptime,
        user: span(usage.ru_utime),
        system: span(usage.ru_stime),
    }
}

/// CPU time used by the calling thread.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes into `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

/// Progress of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Bytes acknowledged by the peer.
    pub acked: u64,
    /// Bytes received.
    pub received: u64,
}

/// Progress of a TCP connection: distinguishes a slow one from a stalled one while the kernel works
/// on a long receive or send. `None` for other sockets.
pub fn bytes_moved(socket: BorrowedFd<'_>) -> Option<Moved> {
    /// Offsets of `tcpi_bytes_acked` and `tcpi_bytes_received` in the kernel's `struct tcp_info`,
    /// which only grows at its end; the C library's definition stops before them.
    const ACKED: usize = 120;
    const RECEIVED: usize = 128;
    const END: usize = 136;
    let mut info = [0; END];
    let mut length = END as libc::socklen_t;
    // SAFETY: the descriptor is open, and the call writes no more than `length` bytes into `info`.
    let outcome = unsafe {
        let start = info.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, start, &mut length)
    };
    if outcome != 0 || (length as usize) < END {
        return None;
    }
    let number = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().expect("8 bytes"));
    Some(Moved { acked: number(ACKED), received: number(RECEIVED) })
}

/// Asks the kernel to back `memory` with huge pages where possible. Lookups access it randomly, and
/// each 4 KiB page would need a TLB entry.
pub fn prefer_huge_pages(memory: &mut [u8]) {
    const PAGE: usize = 4096;
    let skip = memory.as_ptr().align_offset(PAGE);
    let Some(bytes) = memory.len().checked_sub(skip) else { return };
    // SAFETY: the range lies in `memory`, and this advice changes neither contents nor access. A
    // kernel that does not know it or does not want to says so, which changes nothing.
    unsafe {
        libc::madvise(memory[skip..].as_mut_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
    }
}
