//! A deadline in four bytes.
//!
//! Up to 24.8 days ahead it is exact: milliseconds modulo 2^31. Beyond that it is whole seconds
//! modulo 2^31 with the top bit set, rounded down, which reaches 68 years ahead; later deadlines
//! are clamped to that. A code is decoded relative to a *base* that no stored deadline precedes:
//! the TTL wheel's own time, which never passes an item it still holds. That makes the wrapping
//! sound however late the wheel is. Refused: eight bytes for every item, and milliseconds since
//! process start, which would rule out long absolute deadlines.

use ringlane_types::time::{Deadline, Instant};

/// The code of [`Deadline::NEVER`].
pub(super) const NEVER: u32 = u32::MAX;

const SECONDS: u32 = 1 << 31;
const MASK: u32 = SECONDS - 1;

/// Replicas store deadlines further ahead than this in whole seconds: 20 days, so that a nearer one
/// stays exact even if the base of a replica lags by days.
const EXACT_MILLIS: u64 = 20 * 86_400_000;
/// Replicas clamp deadlines to this far ahead: 67 years.
const AHEAD_MILLIS_MAX: u64 = 67 * 365 * 86_400_000;

/// `deadline` rounded so that every shard with a replica of what was written at `written` stores
/// the same: the result of [`encode`] depends on each shard's base.
#[inline]
pub(super) fn rounded(deadline: Deadline, written: Instant) -> Deadline {
    let ahead = deadline.as_millis().saturating_sub(written.as_millis());
    if ahead <= EXACT_MILLIS || deadline.is_never() {
        return deadline;
    }
    let millis = written.as_millis() + ahead.min(AHEAD_MILLIS_MAX);
    Deadline::from_millis(millis / 1000 * 1000)
}

/// The code of `deadline`, which is at or after `base_millis`. Earlier ones are treated as the
/// base.
pub(super) fn encode(deadline: Deadline, base_millis: u64) -> u32 {
    if deadline.is_never() {
        return NEVER;
    }
    let millis = deadline.as_millis().max(base_millis);
    if millis - base_millis <= MASK as u64 {
        return millis as u32 & MASK;
    }
    let latest = base_millis / 1000 + MASK as u64 - 1;
    let seconds = (millis / 1000).min(latest);
    let code = seconds as u32 | SECONDS;
    if code == NEVER { code - 1 } else { code }
}

/// The deadline that `code` stands for, given that none precedes `base_millis`.
#[inline]
pub(super) fn decode(code: u32, base_millis: u64) -> Deadline {
    if code & SECONDS == 0 {
        let ahead = code.wrapping_sub(base_millis as u32) & MASK;
        Deadline::from_millis(base_millis + ahead as u64)
    } else if code == NEVER {
        Deadline::NEVER
    } else {
        let base = base_millis / 1000;
        let ahead = code.wrapping_sub(base as u32) & MASK;
        Deadline::from_millis((base + ahead as u64) * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn never_stays_never() {
        assert_eq!(decode(encode(Deadline::NEVER, 5), 5), Deadline::NEVER);
    }

    proptest! {
        #[test]
        fn a_near_deadline_is_exact_while_the_base_moves_towards_it(
            base in 0u64..4_000_000_000_000, ahead in 0u64..=MASK as u64, moved in 0u64..=MASK as u64,
        ) {
            let deadline = Deadline::from_millis(base + ahead);
            let code = encode(deadline, base);
            prop_assert_eq!(decode(code, base + moved.min(ahead)), deadline);
        }

        #[test]
        fn a_far_deadline_is_the_whole_second_below(
            base in 0u64..4_000_000_000_000, ahead in 1u64 << 31..1_000_000_000_000, moved in 0u64..1_000_000_000_000,
        ) {
            let deadline = base + ahead;
            let read = decode(encode(Deadline::from_millis(deadline), base), base + moved.min(ahead)).as_millis();
            prop_assert!(read <= deadline && read + 2000 > deadline, "{} {}", read, deadline);
        }
    }

    #[test]
    fn a_deadline_is_rounded_down_to_seconds_beyond_twenty_days_and_once_only() {
        let now = Instant::from_millis(1_700_000_000_123);
        for (ahead, kept) in [
            (EXACT_MILLIS, now.as_millis() + EXACT_MILLIS),
            (EXACT_MILLIS + 1000, (now.as_millis() + EXACT_MILLIS + 1000) / 1000 * 1000),
        ] {
            let read = rounded(Deadline::from_millis(now.as_millis() + ahead), now);
            assert_eq!(read.as_millis(), kept);
            assert_eq!(rounded(read, now), read);
        }
        assert!(rounded(Deadline::NEVER, now).is_never());
        let farthest = rounded(Deadline::from_millis(u64::MAX - 1), now);
        assert_eq!(rounded(farthest, now), farthest);
    }

    #[test]
    fn a_deadline_beyond_68_years_is_cut_but_not_passed() {
        let read = decode(
            encode(Deadline::from_millis(u64::MAX - 1), 1_700_000_000_000),
            1_700_000_000_000,
        );
        assert!(!read.is_never());
        assert!(read.as_millis() > 1_700_000_000_000 + 67 * 365 * 86_400_000);
    }
}
