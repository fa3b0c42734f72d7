//! How a core that sleeps is woken.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

/// How a core is woken.
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

    /// Tells others the owner's net ring; -1 before it closes.
    pub fn set_ring(&self, ring: RawFd) {
        self.ring.store(ring, Ordering::Release);
    }

    /// Says that the owner is about to sleep. It must look for work once more afterwards.
    pub fn lie_down(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Says that the owner is awake.
    pub fn get_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// The net ring that has to be sent a message if the owner sleeps and nobody else is waking it.
    /// What was published before is seen by the owner once it wakes.
    pub fn to_wake(&self) -> Option<RawFd> {
        fence(Ordering::SeqCst);
        let asleep =
            self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed);
        asleep.then(|| self.ring.load(Ordering::Acquire)).filter(|&ring| ring >= 0)
    }

    /// Wakes the owner whether or not it says it sleeps.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the owner is being woken anyway.
        let _ = (&self.bell).write(&1u64.to_ne_bytes());
    }

    /// The eventfd.
    pub fn eventfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
