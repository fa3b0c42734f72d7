//! The bits of an item's access time that belong to the policy.
//!
//! A policy that counts uses keeps the count in the lowest bits of the access time, whose 8 ms are
//! finer than anything needs: the time is then exact to 256 ms, and the item grows by nothing. A
//! policy that goes by the time alone has all bits of it, and a hit then costs no more than before.

use crate::item;
use ringlane_types::time::Instant;

/// The bits a counting policy has, as many as it needs at most.
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
