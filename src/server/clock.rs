//! The only reader of OS time, once per turn of a core.
//!
//! Instants are Unix milliseconds that advance with the monotonic clock, so that setting the wall
//! clock back never revives expired items. All cores share one anchor and agree on the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::time::Instant;

/// The node's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: std::time::Instant,
    unix_at_start: Duration,
}

impl Clock {
    /// A clock anchored to the wall clock now.
    pub fn start() -> Self {
        let unix_at_start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: std::time::Instant::now(), unix_at_start }
    }

    /// The current time.
    #[inline]
    pub fn now(&self) -> Instant {
        self.at(std::time::Instant::now())
    }

    /// The time at `moment`.
    #[inline]
    pub fn at(&self, moment: std::time::Instant) -> Instant {
        let unix = self.unix_at_start + moment.duration_since(self.started);
        Instant::from_millis(unix.as_millis() as u64)
    }

    /// Time since the node started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
