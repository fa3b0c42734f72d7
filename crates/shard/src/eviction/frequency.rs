//! The bits of an item's access time that belong to the policy.
//!
//! A policy that counts uses stores the count in the lowest bits of the access time, whose
//! resolution of 8 ms is finer than needed: the time is then exact to 256 ms, and the item does not
//! grow. A policy based on time alone uses all bits, and its hits cost no more than before.

use crate::item;
use ringlane_types::time::Instant;

/// The bits available to a counting policy.
pub(crate) const FREQUENCY_MASK: u32 = 31;

/// `accessed` with another time and another frequency.
#[inline]
pub(super) fn with(now: Instant, frequency: u32) -> u32 {
    debug_assert!(frequency <= FREQUENCY_MASK);
    item::stamp(now) & !FREQUENCY_MASK | frequency
}

/// The frequency in an access time.
#[inline]
pub(super) fn of(accessed: u32) -> u32 {
    accessed & FREQUENCY_MASK
}
