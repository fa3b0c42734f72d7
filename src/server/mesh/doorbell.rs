//! Wakes a sleeping core.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

/// Wakes one core.
pub struct Doorbell {
    sleeping: AtomicBool,
    /// The owner's net ring, or -1 while it has none.
    ring: AtomicI32,
    bell: File,
}

impl Doorbell {
    /// A doorbell that rings by writing to `eventfd`.
    pub fn new(eventfd: OwnedFd) -> Self {
        Self {
            sleeping: AtomicBool::new(false),
            ring: AtomicI32::new(-1),
            bell: File::from(eventfd),
        }
    }

    /// Publishes the owner's net ring; -1 before it closes.
    pub fn set_ring(&self, ring: RawFd) {
        self.ring.store(ring, Ordering::Release);
    }

    /// Marks the owner as about to sleep. It must check for work once more afterwards.
    pub fn begin_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Marks the owner as awake.
    pub fn end_sleep(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// The net ring to send a message to, if the owner sleeps and no one else is waking it. The
    /// owner sees everything published before once it wakes up.
    pub fn take_sleeper(&self) -> Option<RawFd> {
        fence(Ordering::SeqCst);
        let asleep =
            self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed);
        asleep.then(|| self.ring.load(Ordering::Acquire)).filter(|&ring| ring >= 0)
    }

    /// Wakes the owner whether or not it is marked as asleep.
    pub fn ring(&self) {
        // Fails only if the counter is full, and then the owner is being woken anyway.
        let _ = (&self.bell).write(&1u64.to_ne_bytes());
    }

    /// The eventfd.
    pub fn eventfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
