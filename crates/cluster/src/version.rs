//! Versions: the order of writes to a key between replicas, and the CAS token clients see.
//!
//! A version is a hybrid logical timestamp in one 64-bit number. Its upper bits follow the wall
//! clock, so "newest wins" means what people expect; its counter makes versions of one node unique
//! and increasing whatever the clock does; observing a version advances the clock, so a write that
//! knows of another is newer even if its node's clock is behind.
//!
//! ```text
//! | Unix milliseconds, 44 bits (until the year 2527) | counter, 10 bits | tie-break, 10 bits |
//! ```
//!
//! The tie-break is the slot of the node in the roster, which is unique. Two nodes can issue an
//! equal version only if one held the other's slot before it in the same millisecond; records of
//! equal version are ordered by their content (see [`Record`](super::record::Record)), so replicas
//! agree even then.
//!
//! Refused: vector clocks, which detect conflicts that a cache has no one to resolve, and plain
//! wall-clock timestamps, with which a node with a slow clock silently loses its writes.

use std::time::Duration;

use ringlane_types::time::Instant;

const TIE_BREAKER_BITS: u32 = 10;
const COUNTER_BITS: u32 = 10;
const LOGICAL_MAX: u64 = (1 << (64 - TIE_BREAKER_BITS)) - 1;

/// The position of a write in the order of all writes to its key. Greater is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// Older than every write: the answer of a replica without a record.
    pub const NONE: Version = Version(0);

    /// The first version of a moment.
    pub const fn at(moment: Instant) -> Self {
        Self(moment.as_millis() << (TIE_BREAKER_BITS + COUNTER_BITS))
    }

    /// When it was issued, in Unix milliseconds of the hybrid clock.
    pub const fn millis(self) -> u64 {
        self.0 >> (TIE_BREAKER_BITS + COUNTER_BITS)
    }

    /// When it was issued, by the hybrid clock.
    pub const fn instant(self) -> Instant {
        Instant::from_millis(self.millis())
    }

    /// The tie-break of the node that issued it.
    pub const fn tie_breaker(self) -> TieBreaker {
        TieBreaker(self.0 as u16 & ((1 << TIE_BREAKER_BITS) - 1))
    }

    /// Time and counter: the part that a clock advances.
    const fn logical(self) -> u64 {
        self.0 >> TIE_BREAKER_BITS
    }
}

/// Ten bits that distinguish versions of equal time and counter from different nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TieBreaker(u16);

impl TieBreaker {
    /// The tie-break of the member in `slot`, below [`TieBreaker::SLOTS`].
    pub const fn of_slot(slot: u16) -> Self {
        assert!(slot < Self::SLOTS);
        Self(slot)
    }

    /// Number of slots.
    pub const SLOTS: u16 = 1 << TIE_BREAKER_BITS;
}

/// A version so far in the future that following it would distort the clocks of all nodes. It was
/// not adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFarAhead {
    /// How far the version is ahead of the local clock.
    pub ahead: Duration,
}

/// Issues versions: strictly increasing, never behind the clock, never behind observed ones. Each
/// core has its own; versions of a key come from the one core of a node that owns the key, so cores
/// need no tie-break.
#[derive(Clone, Debug)]
pub struct VersionClock {
    /// The greatest time and counter issued or observed.
    last: u64,
    tie: TieBreaker,
    drift_max: Duration,
}

impl VersionClock {
    /// A clock of the node with `tie` that follows others at most `drift_max` ahead of its own
    /// time.
    pub fn new(tie: TieBreaker, drift_max: Duration) -> Self {
        Self { last: 0, tie, drift_max }
    }

    /// A version newer than any issued or observed so far. At a sustained rate above 1,024 per
    /// millisecond, versions run ahead of the clock.
    #[inline]
    pub fn next(&mut self, now: Instant) -> Version {
        let clock = (now.as_millis() << COUNTER_BITS).min(LOGICAL_MAX);
        // Saturation repeats versions in the year 2527; content still orders them.
        self.last = clock.max(self.last + 1).min(LOGICAL_MAX);
        Version(self.last << TIE_BREAKER_BITS | self.tie.0 as u64)
    }

    /// Observes a version from elsewhere: versions issued later are newer.
    #[inline]
    pub fn observe(&mut self, version: Version, now: Instant) -> Result<(), TooFarAhead> {
        self.check(version, now)?;
        self.last = self.last.max(version.logical());
        Ok(())
    }

    /// Whether a version from elsewhere is acceptable, without observing it.
    #[inline]
    pub fn check(&self, version: Version, now: Instant) -> Result<(), TooFarAhead> {
        if version.instant() > now.after(self.drift_max) {
            return Err(TooFarAhead { ahead: version.instant().since(now) });
        }
        Ok(())
    }

    /// The node's tie-break.
    pub fn tie_breaker(&self) -> TieBreaker {
        self.tie
    }

    /// Issues versions as the member in another slot from now on.
    pub fn set_tie_breaker(&mut self, tie: TieBreaker) {
        self.tie = tie;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRIFT: Duration = Duration::from_secs(30);
    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn clock(slot: u16) -> VersionClock {
        VersionClock::new(TieBreaker::of_slot(slot), DRIFT)
    }

    #[test]
    fn a_version_tells_its_time_and_its_node() {
        let version = clock(0).next(NOW);
        assert_eq!(version.instant(), NOW);
        assert_eq!(version.tie_breaker(), TieBreaker::of_slot(0));
        assert!(version > Version::NONE);
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_still_gives_newer_versions() {
        let mut clock = clock(0);
        let first = clock.next(NOW);
        let second = clock.next(NOW);
        let third = clock.next(Instant::from_millis(NOW.as_millis() - 5_000));
        assert!(first < second && second < third);
    }

    #[test]
    fn a_write_that_heard_of_another_is_newer_though_its_clock_is_behind() {
        let ahead = clock(0).next(NOW.after(Duration::from_secs(5)));
        let mut behind = clock(1);
        behind.observe(ahead, NOW).unwrap();
        assert!(behind.next(NOW) > ahead);
    }

    #[test]
    fn a_version_beyond_the_drift_is_refused_and_changes_nothing() {
        let mut clock = clock(0);
        let edge = VersionClock::new(TieBreaker::of_slot(1), DRIFT).next(NOW.after(DRIFT));
        let beyond = Version(edge.0 + (1 << (TIE_BREAKER_BITS + COUNTER_BITS)));
        let error = clock.observe(beyond, NOW).unwrap_err();
        assert_eq!(error.ahead, DRIFT + Duration::from_millis(1));
        assert_eq!(clock.next(NOW).instant(), NOW);
        assert_eq!(clock.observe(edge, NOW), Ok(()));
    }

    #[test]
    fn more_versions_than_the_counter_holds_borrow_from_the_next_millisecond() {
        let mut clock = clock(0);
        let versions: Vec<Version> = (0..3000).map(|_| clock.next(NOW)).collect();
        assert!(versions.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(versions[2999].millis() - NOW.as_millis(), 2999 / 1024);
    }

    #[test]
    fn the_last_representable_time_does_not_overflow() {
        let mut clock = clock(0);
        let end = Instant::from_millis(u64::MAX);
        assert_eq!(clock.next(end).millis(), (1 << 44) - 1);
        clock.next(end);
    }

    proptest! {
        /// However clocks are set and messages cross, each node's versions increase, exceed what
        /// it heard of, and no two nodes with different tie-breaks give an equal one.
        #[test]
        fn versions_respect_what_their_node_knew(
            steps in proptest::collection::vec((0usize..3, 0u64..20_000, proptest::option::of(0usize..3)), 1..200),
        ) {
            let mut clocks = [clock(0), clock(1), clock(2)];
            let mut latest = [Version::NONE; 3];
            let mut given = std::collections::HashSet::new();
            for (node, offset, heard) in steps {
                let now = NOW.after(Duration::from_millis(offset));
                let mut floor = latest[node];
                if let Some(other) = heard
                    && clocks[node].observe(latest[other], now).is_ok() {
                    floor = floor.max(latest[other]);
                }
                let version = clocks[node].next(now);
                prop_assert!(version > floor);
                prop_assert!(version.instant() >= now);
                prop_assert!(given.insert(version));
                latest[node] = version;
            }
        }
    }
}
