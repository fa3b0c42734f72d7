//! Two hashes of a key: a public one that names the core, and a secret one for everything else.
//!
//! The *public* hash is XXH3-64 under a seed that HELLO publishes, so that a smart client finds the
//! core that owns a key ([`core_of`]). Anyone who knows the seed can construct any number of keys
//! with the same public hash, so it decides only the core: a client can overload one core with it,
//! as it can by requesting one key. A node with one core never computes it.
//!
//! The *secret* hash, [`KeyHash`], reads the key's bytes again under keys that never leave the
//! process ([`HashSecret`]). It selects the index's bucket and tag, and the slots in the tables of
//! the eviction policy and the coordinator. It is pair-multiply-shift (Dietzfelbinger 1996; Thorup,
//! *High speed hashing for integers and strings*), in arithmetic modulo 2^128:
//!
//! ```text
//! sum  = start + (k0 + w1 + 2^64 |key|)(k1 + w0) + (k2 + w3)(k3 + w2) + ...        w: 64-bit words
//! hash = mix(sum >> 72)                                              start, every k: 128 secret bits
//! ```
//!
//! `sum >> 72` is strongly universal: over the choice of the secret, the values of any two keys are
//! independent and uniform, because keys differ by less than 2^72 in some factor. So no set of
//! keys, however chosen, collides in one bucket more often than random keys do, unless its author
//! knows the secret. `mix` is a bijection and preserves this; it ensures that sequences, which a
//! linear function maps to sequences, also spread like random keys under a fixed secret. The
//! remaining attack is to measure the time of single requests to a nanosecond; against that chains
//! are bounded (see `shard/index`).
//!
//! Refused: a function of the public hash (equal public hashes stay equal); XXH3 with a secret seed
//! and other multiply-and-fold hashes (wyhash, rapidhash, foldhash, ahash without AES), for which
//! it is not proven that no keys collide under many seeds at once; AES rounds, which need hardware
//! support, and a second function for processors without it; SipHash-1-3, which also resists timing
//! attackers, but takes 84 instructions for a key of 16 bytes where this takes 32.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::request::KEY_BYTES_MAX;

/// The core, below `core_count`, that owns `key` in the process whose published seed is `seed`: the
/// upper 32 bits of the public hash scaled, so that any count divides the keys evenly without a
/// division.
#[inline]
pub fn core_of(key: &[u8], seed: u64, core_count: u32) -> u32 {
    if core_count == 1 { 0 } else { core_among(key, seed, core_count) }
}

/// Out of line: inlined, XXH3 prepares constants for keys of all lengths before a loop over
/// requests, also where none of them asks for a core.
#[inline(never)]
fn core_among(key: &[u8], seed: u64, core_count: u32) -> u32 {
    (((xxh3_64_with_seed(key, seed) >> 32) * u64::from(core_count)) >> 32) as u32
}

/// Bytes of a key that one product takes.
const BLOCK: usize = 16;
/// Products of the longest key.
const BLOCKS_MAX: usize = KEY_BYTES_MAX.div_ceil(BLOCK);

/// The keys of the secret hash, equal on all cores of a process and known to nobody else.
#[derive(Clone)]
pub struct HashSecret {
    start: u128,
    blocks: [[u128; 2]; BLOCKS_MAX],
}

impl HashSecret {
    /// A secret of what `draw` gives, which nobody else must be able to guess.
    pub fn drawn(mut draw: impl FnMut() -> u64) -> Self {
        let mut wide = || u128::from(draw()) << 64 | u128::from(draw());
        Self { start: wide(), blocks: std::array::from_fn(|_| [wide(), wide()]) }
    }

    /// The secret of `seed`, for runs that must be repeatable: SplitMix64. Who knows the seed, or
    /// can try 2^64 of them, knows the secret.
    pub fn of_seed(mut seed: u64) -> Self {
        Self::drawn(|| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        })
    }

    /// A number that follows from the secret and `purpose`, for generators and other hashes.
    pub fn seed(&self, purpose: u64) -> u64 {
        KeyHash::of(&purpose.to_le_bytes(), self).0
    }

    /// Hashes for tables whose keys are chosen by clients or peers: no random state of their own,
    /// because the order of a map must not differ between runs under one secret.
    pub fn table_hasher(&self) -> ahash::RandomState {
        let [a, b, c, d] = [1, 2, 3, 4].map(|part| self.seed(u64::MAX - part));
        ahash::RandomState::with_seeds(a, b, c, d)
    }
}

/// Shows nothing of the secret.
impl std::fmt::Debug for HashSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashSecret")
    }
}

/// The secret hash of one key, computed once per request and reused by everything that places the
/// key within its core. Equal keys have equal hashes within one process; between processes it means
/// nothing, and it is told to nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// Hashes `key`, of at most [`KEY_BYTES_MAX`] bytes, under the process's secret.
    ///
    /// # Panics
    /// When the key is longer.
    #[inline]
    pub fn of(key: &[u8], secret: &HashSecret) -> Self {
        let len = key.len();
        // Of keys of one length, different ones differ in some word: words may overlap.
        let (first, second) = match len {
            17.. => return Self(long(key, secret)),
            8.. => (word(key, 0), word(key, len - 8)),
            4.. => (half(key, 0), half(key, len - 4)),
            0 => (0, 0),
            _ => {
                let ends = u64::from(key[0]) | u64::from(key[len - 1]) << 8;
                (ends | u64::from(key[len / 2]) << 16, 0)
            }
        };
        Self(finish(head(secret, first, second, len)))
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

    /// Sixteen bits that tell apart keys that share a bucket. Independent of the bucket for up to
    /// 2^32 buckets.
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

/// Whole blocks from the front, and the last 16 bytes. Out of line, so that short keys need few
/// registers.
#[inline(never)]
fn long(key: &[u8], secret: &HashSecret) -> u64 {
    assert!(key.len() <= KEY_BYTES_MAX, "a key is at most {KEY_BYTES_MAX} bytes long");
    let mut sum = head(secret, word(key, 0), word(key, 8), key.len());
    let whole = (key.len() - 1) / BLOCK;
    for (bytes, keys) in key[BLOCK..].chunks_exact(BLOCK).zip(&secret.blocks[1..whole]) {
        sum = sum.wrapping_add(product(keys, word(bytes, 0), word(bytes, 8), 0));
    }
    let last = &key[key.len() - BLOCK..];
    finish(sum.wrapping_add(product(&secret.blocks[whole], word(last, 0), word(last, 8), 0)))
}

/// The sum over the first block of a key.
#[inline(always)]
fn head(secret: &HashSecret, first: u64, second: u64, len: usize) -> u128 {
    secret.start.wrapping_add(product(&secret.blocks[0], first, second, len as u64))
}

#[inline(always)]
fn product(keys: &[u128; 2], first: u64, second: u64, len: u64) -> u128 {
    let left = keys[0].wrapping_add(u128::from(len) << 64 | u128::from(second));
    let right = keys[1].wrapping_add(u128::from(first));
    left.wrapping_mul(right)
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
}

/// The bits of a sum that are strongly universal, through a bijection without linear structure.
#[inline(always)]
const fn finish(sum: u128) -> u64 {
    let value = (sum >> 72) as u64;
    let value = (value ^ value >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ value >> 32
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn every_core_gets_a_fair_share_of_keys() {
        for cores in [1, 2, 3, 7, 64] {
            let mut owned = vec![0u32; cores as usize];
            for i in 0..64_000u32 {
                owned[core_of(&i.to_le_bytes(), 7, cores) as usize] += 1;
            }
            let fair = 64_000 / cores;
            assert!(owned.iter().all(|&n| n > fair * 8 / 10 && n < fair * 12 / 10), "{owned:?}");
        }
    }

    #[test]
    fn the_seed_changes_the_core_and_the_secret_the_hash() {
        let cores = |seed| (0..64u8).map(|i| core_of(&[i], seed, 1 << 16)).collect::<Vec<_>>();
        assert_ne!(cores(1), cores(2));
        let hash = |seed| KeyHash::of(b"key", &HashSecret::of_seed(seed));
        assert_ne!(hash(1), hash(2));
    }

    #[test]
    fn keys_of_one_public_hash_have_secret_hashes_of_their_own() {
        let secret = HashSecret::of_seed(3);
        let keys = || (0..100_000).map(|number| colliding_key(77, number));
        let public = xxh3_64_with_seed(&colliding_key(77, 0), 77);
        assert!(keys().all(|key| xxh3_64_with_seed(&key, 77) == public));
        let hashes: HashSet<u64> = keys().map(|key| KeyHash::of(&key, &secret).to_bits()).collect();
        assert_eq!(hashes.len(), 100_000);
    }

    /// Key `number` of 2^64 whose public hash under `seed` is the same, 32 bytes long: its first
    /// word makes one factor of XXH3's first product zero, whatever the other one is.
    pub(crate) fn colliding_key(seed: u64, number: u64) -> [u8; 32] {
        let mut key = *b"................0123456789abcdef";
        key[..8].copy_from_slice(&0xbe4b_a423_396c_feb8_u64.wrapping_add(seed).to_le_bytes());
        key[8..16].copy_from_slice(&number.to_le_bytes());
        key
    }

    /// The chi-squared statistic of the keys over 2^12 buckets, in standard deviations above what
    /// random keys have.
    fn excess(
        keys: impl Iterator<Item = Vec<u8>>,
        bits: impl Fn(KeyHash) -> u32,
        seed: u64,
    ) -> f64 {
        const BUCKETS: usize = 1 << 12;
        let secret = HashSecret::of_seed(seed);
        let mut counts = vec![0u32; BUCKETS];
        let mut total = 0u32;
        for key in keys {
            counts[bits(KeyHash::of(&key, &secret)) as usize % BUCKETS] += 1;
            total += 1;
        }
        let mean = f64::from(total) / BUCKETS as f64;
        let chi: f64 = counts.iter().map(|&n| (f64::from(n) - mean).powi(2) / mean).sum();
        (chi - BUCKETS as f64) / (2.0 * BUCKETS as f64).sqrt()
    }

    #[test]
    fn sequences_of_keys_spread_like_random_keys_under_every_secret() {
        let shapes: [fn(u64) -> Vec<u8>; 6] = [
            |i| i.to_le_bytes().to_vec(),
            |i| (i << 40).to_be_bytes().to_vec(),
            |i| format!("user:{i:08}").into_bytes(),
            |i| format!("{i}").into_bytes(),
            |i| format!("session/{i:x}/of/a/rather/long/key/with/{}/inside", i % 97).into_bytes(),
            |i| colliding_key(7, i).to_vec(),
        ];
        for (number, shape) in shapes.into_iter().enumerate() {
            for seed in 0..40 {
                let keys = || (0..20_000).map(shape);
                let bucket = excess(keys(), |hash| hash.bucket_bits(), seed);
                let tag = excess(keys(), |hash| hash.tag().into(), seed);
                assert!(bucket < 6.0 && tag < 6.0, "shape {number}, {seed}: {bucket} {tag}");
            }
        }
    }

    proptest! {
        #[test]
        fn different_keys_have_different_hashes(
            one in prop::collection::vec(0u8..3, 0..=KEY_BYTES_MAX),
            other in prop::collection::vec(0u8..3, 0..=KEY_BYTES_MAX),
            flip in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let secret = HashSecret::of_seed(seed);
            let hash = |key: &[u8]| KeyHash::of(key, &secret);
            prop_assert_eq!(hash(&one) == hash(&other), one == other);
            // Every byte counts, and so does the length.
            let mut near = one.clone();
            if !near.is_empty() {
                let at = flip.index(near.len());
                near[at] ^= 1;
                prop_assert_ne!(hash(&one), hash(&near));
                near[at] ^= 1;
                near.pop();
                prop_assert_ne!(hash(&one), hash(&near));
            }
        }
    }
}
