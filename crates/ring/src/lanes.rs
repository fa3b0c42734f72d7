//! MD5 of several keys at once.
//!
//! Each of MD5's 64 steps waits for the one before it, so one key leaves a core idle for most of
//! its time, and no implementation can do much about that. Eight keys side by side, each in a lane
//! of vector registers, take hardly longer than one. Only what the ring needs is kept, the first
//! word of the digest.
//!
//! SSE2 and NEON are part of their architectures: no detection at run time is needed.

use wide::u32x8;

use super::Point;

/// Number of keys hashed together.
pub(crate) const LANES: usize = 8;

const BLOCK_BYTES: usize = 64;

/// One word of each key's block.
type Words = [u32x8; 16];

/// The state of each key.
type State = [u32x8; 4];

/// The first state of RFC 1321, section 3.3.
const INIT: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// What each step adds: the integer part of 2^32 |sin(step)|, RFC 1321, section 3.4.
#[rustfmt::skip]
const SINES: [[u32; 16]; 4] = [
    [
        0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a,
        0xa830_4613, 0xfd46_9501, 0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be,
        0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    ],
    [
        0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453,
        0xd8a1_e681, 0xe7d3_fbc8, 0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed,
        0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    ],
    [
        0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9,
        0xf6bb_4b60, 0xbebf_bc70, 0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05,
        0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    ],
    [
        0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92,
        0xffef_f47d, 0x8584_5dd1, 0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1,
        0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
    ],
];

/// The points of up to [`LANES`] keys, in order; the remaining lanes are meaningless.
///
/// # Panics
/// If there are more keys.
#[inline(never)]
pub(crate) fn points_of(keys: &[&[u8]]) -> [Point; LANES] {
    assert!(keys.len() <= LANES, "{} keys", keys.len());
    let mut state = INIT.map(u32x8::splat);
    let most = keys.iter().map(|key| blocks(key)).max().unwrap_or(0);
    for block in 0..most {
        let mut words = [u32x8::ZERO; 16];
        for (lane, key) in keys.iter().enumerate() {
            fill(&mut words, lane, key, block);
        }
        let next = compress(&state, &words);
        if block == 0 {
            state = next;
            continue;
        }
        for (lane, _) in keys.iter().enumerate().filter(|(_, key)| block < blocks(key)) {
            for (word, next) in state.iter_mut().zip(&next) {
                word.as_mut_array()[lane] = next.as_array()[lane];
            }
        }
    }
    // The ring reads the digest's bytes as a big-endian number.
    state[0].to_array().map(|word| Point(word.swap_bytes()))
}

/// Blocks of a key with its padding: a bit, and eight bytes for its length.
#[inline(always)]
fn blocks(key: &[u8]) -> usize {
    (key.len() + 8) / BLOCK_BYTES + 1
}

/// Writes a block of `key` into its lane, which is zero: RFC 1321, sections 3.1 and 3.2.
#[inline(always)]
fn fill(words: &mut Words, lane: usize, key: &[u8], block: usize) {
    let begin = block * BLOCK_BYTES;
    if let Some(part) = key.get(begin..) {
        let (whole, rest) = part[..part.len().min(BLOCK_BYTES)].as_chunks::<4>();
        for (word, bytes) in words.iter_mut().zip(whole) {
            word.as_mut_array()[lane] = u32::from_le_bytes(*bytes);
        }
        if let Some(word) = words.get_mut(whole.len()) {
            // The bit that ends the key follows its last byte.
            word.as_mut_array()[lane] =
                rest.iter().rev().fold(0x80, |last, byte| last << 8 | u32::from(*byte));
        }
    }
    if block + 1 == blocks(key) {
        words[14].as_mut_array()[lane] = 8 * key.len() as u32;
    }
}

/// The state after a block: RFC 1321, section 3.4.
#[inline(always)]
fn compress(before: &State, words: &Words) -> State {
    let mut state = *before;
    round::<7, 12, 17, 22, 1, 0>(&mut state, words, &SINES[0], |b, c, d| d ^ (b & (c ^ d)));
    round::<5, 9, 14, 20, 5, 1>(&mut state, words, &SINES[1], |b, c, d| c ^ (d & (b ^ c)));
    round::<4, 11, 16, 23, 3, 5>(&mut state, words, &SINES[2], |b, c, d| b ^ c ^ d);
    round::<6, 10, 15, 21, 7, 0>(&mut state, words, &SINES[3], |b, c, d| c ^ (b | !d));
    core::array::from_fn(|word| before[word] + state[word])
}

/// Sixteen steps. They rotate by R0 to R3 in turn, and take word FACTOR * step + OFFSET, modulo 16.
#[inline(always)]
fn round<
    const R0: u32,
    const R1: u32,
    const R2: u32,
    const R3: u32,
    const FACTOR: usize,
    const OFFSET: usize,
>(
    state: &mut State,
    words: &Words,
    added: &[u32; 16],
    mix: impl Fn(u32x8, u32x8, u32x8) -> u32x8,
) {
    let [mut a, mut b, mut c, mut d] = *state;
    let more = |step: usize| words[(FACTOR * step + OFFSET) % 16] + u32x8::splat(added[step]);
    for four in (0..16).step_by(4) {
        a = b + rotated::<R0>(a + mix(b, c, d) + more(four));
        d = a + rotated::<R1>(d + mix(a, b, c) + more(four + 1));
        c = d + rotated::<R2>(c + mix(d, a, b) + more(four + 2));
        b = c + rotated::<R3>(b + mix(c, d, a) + more(four + 3));
    }
    *state = [a, b, c, d];
}

#[inline(always)]
fn rotated<const BITS: u32>(lanes: u32x8) -> u32x8 {
    lanes.unbounded_shl_scalar(BITS) | lanes.unbounded_shr_scalar(32 - BITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RingHash;
    use super::*;

    #[test]
    fn every_length_gives_the_place_of_the_whole_digest() {
        let bytes: Vec<u8> = (0..=255u8).map(|n| n.wrapping_mul(37) ^ 0xa5).collect();
        for length in 0..=bytes.len() {
            let key = &bytes[..length];
            assert_eq!(points_of(&[key])[0], RingHash::Md5.point_of(key), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn lanes_do_not_mix(
            keys in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..=250),
                0..=LANES,
            ),
        ) {
            let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            for (key, point) in keys.iter().zip(points_of(&keys)) {
                prop_assert_eq!(point, RingHash::Md5.point_of(key));
            }
        }
    }
}
