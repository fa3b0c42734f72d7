//! What the kernel knows about this process.
#![allow(unsafe_code)]

use std::time::Duration;

use crate::stats::ProcessStats;

/// The process's figures.
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
