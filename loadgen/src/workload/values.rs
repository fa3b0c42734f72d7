//! Values derived from their keys, so that each reply can be verified on its own.
//!
//! ```text
//! 0        8                16                                    length
//! | key id | writer, version | pattern at an offset drawn from both ...
//! ```
//!
//! The first word identifies the key, the second the run that wrote the value and the number of
//! that write of the key; the rest is taken from a fixed random pattern at an offset that depends
//! on the first two. A swapped value shows in the first word, a stale one in the second, a torn or
//! damaged one in the rest. Checking is two words and a memory comparison, a few nanoseconds for a
//! short value; a hash over the value would cost more and reveal less. Values under 16 bytes have
//! no room for a version: they are the key's id, repeated.

use std::fmt::Write;

use crate::random::mix;
use crate::workload::sizes::Sizes;

/// Bytes of a value that must be available before its check can start.
pub const HEAD_BYTES: usize = 16;

const WINDOW: usize = 4096;
static PATTERN: [u8; 2 * WINDOW] = pattern();

const fn pattern() -> [u8; 2 * WINDOW] {
    let mut bytes = [0; 2 * WINDOW];
    let mut at = 0;
    while at < bytes.len() {
        let word = mix(at as u64 ^ 0x5249_4E47_4C4F_4144).to_le_bytes();
        let mut i = 0;
        while i < 8 {
            bytes[at + i] = word[i];
            i += 1;
        }
        at += 8;
    }
    bytes
}

/// Who wrote a value: a number per run, and the version, which counts the writes of one key in
/// that run from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The writing run.
    pub writer: u32,
    /// The write of that key within the run.
    pub version: u32,
}

impl Stamp {
    const fn bits(self) -> u64 {
        self.writer as u64 | (self.version as u64) << 32
    }

    const fn from_bits(bits: u64) -> Self {
        Self { writer: bits as u32, version: (bits >> 32) as u32 }
    }
}

/// The values of a workload.
#[derive(Clone, Debug)]
pub struct Values {
    sizes: Sizes,
}

/// A check in progress, for a value that arrives in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    key: u64,
    checked: usize,
    start: usize,
    /// The writer of the value according to its head; `None` for values that are too short.
    pub stamp: Option<Stamp>,
}

/// A value that does not match its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What is wrong, in a few words.
    pub what: String,
    /// The expected value from the difference on, shortened and escaped.
    pub expected: String,
    /// The received value from the same position.
    pub received: String,
}

impl Values {
    /// Values with these sizes; a key's size depends on the key alone.
    pub fn new(sizes: Sizes) -> Self {
        Self { sizes }
    }

    /// The distribution of sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The length of `key`'s value in bytes.
    #[inline]
    pub fn value_bytes(&self, key: u64) -> usize {
        match self.sizes {
            Sizes::Fixed(size) => size as usize,
            ref sizes => sizes.pick(mix(!key)) as usize,
        }
    }

    /// Appends the value of `key` as `stamp` writes it.
    #[inline]
    pub fn write(&self, key: u64, stamp: Stamp, out: &mut Vec<u8>) {
        let value_bytes = self.value_bytes(key);
        out.reserve(value_bytes);
        let head = head(key, stamp, value_bytes);
        out.extend_from_slice(&head[..value_bytes.min(HEAD_BYTES)]);
        let start = pattern_start(key, stamp);
        let mut at = HEAD_BYTES;
        while at < value_bytes {
            let piece = pattern_piece(start, at - HEAD_BYTES, value_bytes - at);
            out.extend_from_slice(piece);
            at += piece.len();
        }
    }

    /// Begins the check of a value that claims to be `key`'s and `value_bytes` long. `bytes` holds
    /// its beginning: all of it, or at least [`HEAD_BYTES`]. Everything in `bytes` is checked.
    #[inline]
    pub fn begin(&self, key: u64, value_bytes: usize, bytes: &[u8]) -> Result<Check, Mismatch> {
        if value_bytes != self.value_bytes(key) {
            return Err(self.wrong_length(key, value_bytes, bytes));
        }
        if value_bytes < HEAD_BYTES {
            let stamp = Stamp { writer: 0, version: 0 };
            let check = Check { key, checked: value_bytes, start: 0, stamp: None };
            return match bytes[..value_bytes] == head(key, stamp, value_bytes)[..value_bytes] {
                true => Ok(check),
                false => Err(self.wrong_bytes(&check, 0, bytes)),
            };
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let stamp = Stamp::from_bits(word(8));
        let start = pattern_start(key, stamp);
        let mut check = Check { key, checked: HEAD_BYTES, start, stamp: Some(stamp) };
        if word(0) != mix(key) {
            return Err(self.wrong_bytes(&check, 0, bytes));
        }
        self.proceed(&mut check, &bytes[HEAD_BYTES..])?;
        Ok(check)
    }

    /// Checks the next piece of the value.
    #[inline]
    pub fn proceed(&self, check: &mut Check, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = pattern_piece(check.start, check.checked - HEAD_BYTES, rest.len());
            if rest[..piece.len()] != *piece {
                return Err(self.wrong_bytes(check, check.checked, rest));
            }
            check.checked += piece.len();
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    #[cold]
    fn wrong_length(&self, key: u64, value_bytes: usize, bytes: &[u8]) -> Mismatch {
        let mut expected = Vec::new();
        self.write(key, Stamp { writer: 0, version: 0 }, &mut expected);
        Mismatch {
            what: format!("{value_bytes} bytes instead of {}", expected.len()),
            expected: shown(&expected),
            received: shown(&bytes[..value_bytes.min(bytes.len())]),
        }
    }

    #[cold]
    fn wrong_bytes(&self, check: &Check, from: usize, received: &[u8]) -> Mismatch {
        let stamp = check.stamp.unwrap_or(Stamp { writer: 0, version: 0 });
        let mut expected = Vec::new();
        self.write(check.key, stamp, &mut expected);
        let due = &expected[from..];
        let received = &received[..received.len().min(due.len())];
        let same = due.iter().zip(received).take_while(|(a, b)| a == b).count();
        Mismatch {
            what: match received.first_chunk() {
                Some(word) if from == 0 && same < 8 && received.len() >= HEAD_BYTES => {
                    match unmix(u64::from_le_bytes(*word)) {
                        other if other < 1 << 50 => format!("the value of key number {other}"),
                        _ => "a value this tool did not write".into(),
                    }
                }
                _ => format!("differs from byte {} on", from + same),
            },
            expected: shown(due),
            received: shown(received),
        }
    }
}

/// A wrong answer's bytes as one line of text: at most 48 bytes, escaped, with a mark if cut.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().take(48) {
        let _ = write!(text, "{}", byte.escape_ascii());
    }
    if bytes.len() > 48 {
        let _ = write!(text, "... ({} bytes)", bytes.len());
    }
    text
}

#[inline]
fn head(key: u64, stamp: Stamp, value_bytes: usize) -> [u8; HEAD_BYTES] {
    let id = mix(key).to_le_bytes();
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&id);
    head[8..].copy_from_slice(&if value_bytes < HEAD_BYTES {
        id
    } else {
        stamp.bits().to_le_bytes()
    });
    head
}

#[inline]
fn pattern_start(key: u64, stamp: Stamp) -> usize {
    mix(key ^ mix(stamp.bits())) as usize % WINDOW
}

/// The piece of the body that begins `at` bytes into it: to the end of its window's share, and at
/// most `most` bytes. Each window's share begins elsewhere in the pattern, so that a long value
/// does not repeat itself and a shifted one is noticed.
#[inline]
fn pattern_piece(start: usize, at: usize, most: usize) -> &'static [u8] {
    let (window, into) = (at / WINDOW, at % WINDOW);
    let begin = (start + window * 1_031) % WINDOW + into;
    &PATTERN[begin..begin + most.min(WINDOW - into)]
}

/// The inverse of [`mix`], to identify the key of a received value.
fn unmix(word: u64) -> u64 {
    let word = word ^ (word >> 31) ^ (word >> 62);
    let word = word.wrapping_mul(0x3196_42B2_D24D_8EC3);
    let word = word ^ (word >> 27) ^ (word >> 54);
    let word = word.wrapping_mul(0x96DE_1B17_3F11_9089);
    word ^ (word >> 30) ^ (word >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { writer: 9, version: 3 };

    fn written(sizes: &str, key: u64) -> (Values, Vec<u8>) {
        let values = Values::new(sizes.parse().unwrap());
        let mut value = Vec::new();
        values.write(key, STAMP, &mut value);
        (values, value)
    }

    #[test]
    fn a_value_checks_whole_and_in_pieces() {
        for size in [0, 1, 7, 8, 15, 16, 17, 32, 4095, 4112, 4113, 100_000] {
            let (values, value) = written(&size.to_string(), 77);
            assert_eq!(value.len(), size);
            let check = values.begin(77, size, &value).unwrap();
            assert_eq!(check.stamp, (size >= 16).then_some(STAMP));
            for piece in [1, 13, 4096, 5000] {
                let first = size.min(HEAD_BYTES);
                let mut check = values.begin(77, size, &value[..first]).unwrap();
                for bytes in value[first..].chunks(piece) {
                    values.proceed(&mut check, bytes).unwrap();
                }
                assert_eq!(check.checked, size);
            }
        }
    }

    #[test]
    fn another_keys_value_is_named() {
        let (values, value) = written("32", 5);
        let mismatch = values.begin(6, 32, &value).unwrap_err();
        assert_eq!(mismatch.what, "the value of key number 5");
        assert_ne!(mismatch.expected, mismatch.received);
        let (values, value) = written("3", 5);
        assert!(values.begin(6, 3, &value).is_err());
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        for size in [1, 9, 16, 40, 9_000] {
            let (values, value) = written(&size.to_string(), 5);
            for at in (0..size).step_by(if size > 100 { 97 } else { 1 }) {
                let mut damaged = value.clone();
                damaged[at] ^= 1;
                let caught = values.begin(5, size, &damaged);
                // A changed stamp is a different writer's claim; only its body betrays it.
                let head_only = size == 16 && at >= 8;
                assert_eq!(caught.is_err(), !head_only, "size {size}, byte {at}");
            }
        }
    }

    #[test]
    fn a_shifted_window_is_noticed() {
        let (values, value) = written("20000", 5);
        let mut shifted = value.clone();
        shifted.copy_within(16 + 4096..16 + 8192, 16);
        assert!(values.begin(5, 20_000, &shifted).is_err());
    }

    #[test]
    fn sizes_come_from_keys_alone() {
        let values = Values::new("10-1000".parse().unwrap());
        let sizes: Vec<_> = (0..1000).map(|key| values.value_bytes(key)).collect();
        assert_eq!(sizes, (0..1000).map(|key| values.value_bytes(key)).collect::<Vec<_>>());
        assert!(sizes.iter().any(|&s| s < 60) && sizes.iter().any(|&s| s > 950));
        assert!(values.begin(3, values.value_bytes(3) + 1, &[0; 2000]).is_err());
    }

    #[test]
    fn unmix_inverts_mix() {
        for word in [0, 1, 77, u64::MAX, 1 << 40] {
            assert_eq!(unmix(mix(word)), word);
        }
    }
}
