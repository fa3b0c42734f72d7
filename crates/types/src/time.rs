//! Time as the cores see it: a value passed in, never read from a clock.
//!
//! One turn of a core uses one [`Instant`], so everything decided in that turn agrees about what
//! has expired. Instants count Unix milliseconds: absolute expiry times of the wire need no second
//! clock, and a deadline means the same on every node (up to their clock skew).

use std::time::Duration;

/// Relative exptimes up to this many seconds (30 days) count from now; larger ones are absolute
/// Unix times. The rule and the number are memcached's.
pub const EXPTIME_RELATIVE_MAX_SECONDS: i64 = 60 * 60 * 24 * 30;

/// A moment, in Unix milliseconds. The edge advances it monotonically, once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The moment `span` later; saturates at the end of time.
    pub const fn after(self, span: Duration) -> Self {
        let millis = span.as_millis();
        let millis = if millis > u64::MAX as u128 { u64::MAX } else { millis as u64 };
        Self(self.0.saturating_add(millis))
    }

    /// The moment `span` earlier; stops at the epoch.
    pub const fn before(self, span: Duration) -> Self {
        let millis = span.as_millis();
        let millis = if millis > u64::MAX as u128 { u64::MAX } else { millis as u64 };
        Self(self.0.saturating_sub(millis))
    }

    /// The span from `earlier` to here; zero when `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// When an item stops existing: at an [`Instant`] or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(u64);

impl Deadline {
    /// The item does not expire.
    pub const NEVER: Deadline = Deadline(u64::MAX);

    /// A deadline that every instant has passed: the meaning of a negative exptime.
    pub const PAST: Deadline = Deadline(0);

    /// Expires at `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(instant.0)
    }

    /// The wire's exptime in seconds: 0 never, negative already expired, up to 30 days relative
    /// to `now`, above that an absolute Unix time.
    pub const fn from_exptime(seconds: i64, now: Instant) -> Self {
        if seconds == 0 {
            Self::NEVER
        } else if seconds < 0 {
            Self::PAST
        } else if seconds <= EXPTIME_RELATIVE_MAX_SECONDS {
            Self(now.0.saturating_add(seconds as u64 * 1000))
        } else {
            Self((seconds as u64).saturating_mul(1000))
        }
    }

    /// `millis` milliseconds from `now`; the binary protocol's TTL. 0 means never.
    pub const fn from_ttl_millis(millis: u64, now: Instant) -> Self {
        if millis == 0 { Self::NEVER } else { Self(now.0.saturating_add(millis)) }
    }

    /// True for [`Deadline::NEVER`].
    pub const fn is_never(self) -> bool {
        self.0 == u64::MAX
    }

    /// True from the deadline on: an item is gone when its time is at or before `now`.
    pub const fn is_past(self, now: Instant) -> bool {
        self.0 <= now.0
    }

    /// Unix milliseconds; `u64::MAX` for never.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The inverse of [`Deadline::as_millis`].
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Whole seconds left, rounded up to the next second as a countdown shows them; `None` for
    /// never, zero once past.
    pub const fn seconds_left(self, now: Instant) -> Option<u64> {
        if self.is_never() { None } else { Some(self.0.saturating_sub(now.0).div_ceil(1000)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1_700_000_000_500);

    #[test]
    fn exptime_of_thirty_days_is_relative_and_one_second_more_is_absolute() {
        let month = EXPTIME_RELATIVE_MAX_SECONDS;
        assert_eq!(Deadline::from_exptime(month, NOW).as_millis(), NOW.as_millis() + 2_592_000_000);
        assert!(Deadline::from_exptime(month + 1, NOW).is_past(NOW));
        assert!(!Deadline::from_exptime(1_700_000_002, NOW).is_past(NOW));
    }

    #[test]
    fn zero_never_expires_and_negative_already_has() {
        assert!(Deadline::from_exptime(0, NOW).is_never());
        assert!(Deadline::from_exptime(-1, NOW).is_past(NOW));
    }

    #[test]
    fn an_item_is_gone_at_its_deadline_exactly() {
        let deadline = Deadline::at(NOW);
        assert!(deadline.is_past(NOW));
        assert!(!deadline.is_past(Instant::from_millis(NOW.as_millis() - 1)));
    }

    #[test]
    fn seconds_left_counts_down_in_whole_seconds() {
        let deadline = Deadline::from_exptime(30, NOW);
        assert_eq!(deadline.seconds_left(NOW), Some(30));
        assert_eq!(deadline.seconds_left(Instant::from_millis(NOW.as_millis() + 1)), Some(30));
        assert_eq!(deadline.seconds_left(Instant::from_millis(NOW.as_millis() + 30_000)), Some(0));
        assert_eq!(Deadline::NEVER.seconds_left(NOW), None);
    }
}
