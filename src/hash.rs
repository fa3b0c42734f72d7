//! Key to [`KeyHash`], computed once per request and reused by everything that places a key.
//!
//! XXH3 with 64 bits and a seed per process: the binary HELLO publishes the seed so that a smart
//! client can find the core that owns a key. The bits are divided so that the uses stay
//! independent: the core comes from the top, the tag from the middle, the bucket from the bottom.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The hash of one key. Equal keys have equal hashes within one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// Hashes `key` under the process's `seed`.
    #[inline]
    pub fn of(key: &[u8], seed: u64) -> Self {
        Self(xxh3_64_with_seed(key, seed))
    }

    /// The raw 64 bits, for the wire between cores.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`KeyHash::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The core that owns the key, below `core_count`: the upper 32 bits scaled, so that any
    /// count divides the keys evenly without a division.
    #[inline]
    pub const fn core(self, core_count: u32) -> u32 {
        (((self.0 >> 32) * core_count as u64) >> 32) as u32
    }

    /// Sixteen bits that tell apart keys that share a bucket. Independent of [`KeyHash::core`]
    /// for up to 65,536 cores and of the bucket for up to 2^32 buckets.
    #[inline]
    pub const fn tag(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The lower 32 bits, from which the index takes as many as it has buckets.
    #[inline]
    pub const fn bucket_bits(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_gets_a_fair_share_of_keys() {
        for cores in [1, 2, 3, 7, 64] {
            let mut owned = vec![0u32; cores as usize];
            for i in 0..64_000u32 {
                owned[KeyHash::of(&i.to_le_bytes(), 7).core(cores) as usize] += 1;
            }
            let fair = 64_000 / cores;
            assert!(owned.iter().all(|&n| n > fair * 8 / 10 && n < fair * 12 / 10), "{owned:?}");
        }
    }

    #[test]
    fn the_seed_changes_the_placement() {
        assert_ne!(KeyHash::of(b"key", 1), KeyHash::of(b"key", 2));
    }
}
