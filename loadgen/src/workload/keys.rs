//! Key number to key bytes: a prefix, then the number in zero-padded decimal.
//!
//! Keys have one length, so a reply's key can be compared with one fixed-size look, and they are
//! plain decimal, so a person can type one. Writing a key is on the path of every request sent and
//! every value checked; eight digits at a time are made with a handful of multiplications.

use std::fmt;

/// Longest key in bytes, memcached's limit.
pub const KEY_BYTES_MAX: usize = 250;

/// How many digits are ever written; numbers stay below 10^16.
const DIGITS_MAX: usize = 16;

/// The keys of a workload: numbers 0 to `count` - 1 with their spelling.
#[derive(Clone, Debug)]
pub struct Keys {
    count: u64,
    /// The key of number 0.
    template: Vec<u8>,
    /// The template of counters, which live apart from the keys that hold values.
    counter_template: Vec<u8>,
    digits: usize,
}

/// Why a set of keys cannot be spelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysError {
    /// No key at all, or more than can be numbered.
    Count(u64),
    /// Prefix and digits do not fit into the asked length.
    TooShort {
        /// Bytes the prefix and the digits need.
        needed: usize,
    },
    /// Longer than any server accepts.
    TooLong,
    /// A blank or control byte in the prefix would end the key on the wire.
    Prefix,
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeysError::Count(count) => {
                write!(f, "{count} keys are not possible: use 1 to 10^15")
            }
            KeysError::TooShort { needed } => {
                write!(f, "keys of this prefix and count need at least {needed} bytes")
            }
            KeysError::TooLong => write!(f, "a key has at most {KEY_BYTES_MAX} bytes"),
            KeysError::Prefix => write!(f, "a key prefix cannot contain spaces or control bytes"),
        }
    }
}

impl Keys {
    /// `count` keys of exactly `key_bytes` bytes that begin with `prefix`.
    pub fn new(count: u64, prefix: &str, key_bytes: usize) -> Result<Self, KeysError> {
        if count == 0 || count > 1_000_000_000_000_000 {
            return Err(KeysError::Count(count));
        }
        if prefix.bytes().any(|byte| byte <= b' ' || byte == 0x7F) {
            return Err(KeysError::Prefix);
        }
        let needed = prefix.len() + (count - 1).max(1).ilog10() as usize + 1;
        // One more byte tells counters from values.
        if key_bytes < needed + 1 {
            return Err(KeysError::TooShort { needed: needed + 1 });
        }
        if key_bytes > KEY_BYTES_MAX {
            return Err(KeysError::TooLong);
        }
        let mut template = prefix.as_bytes().to_vec();
        template.resize(key_bytes, b'0');
        let mut counter_template = template.clone();
        counter_template[prefix.len()] = b'n';
        let digits = (key_bytes - prefix.len() - 1).min(DIGITS_MAX);
        Ok(Self { count, template, counter_template, digits })
    }

    /// How many keys there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The length of every key in bytes.
    #[inline]
    pub fn key_bytes(&self) -> usize {
        self.template.len()
    }

    /// Appends the key of `number`.
    #[inline]
    pub fn write(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.template);
        self.patch(number, out);
    }

    /// Appends the counter key of `number`.
    #[inline]
    pub fn write_counter(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.counter_template);
        self.patch(number, out);
    }

    /// The key of `number`, written into `room`.
    #[inline]
    pub fn spell<'r>(&self, number: u64, room: &'r mut [u8; KEY_BYTES_MAX]) -> &'r [u8] {
        let key = &mut room[..self.template.len()];
        key.copy_from_slice(&self.template);
        self.patch(number, key);
        key
    }

    /// The counter key of `number`, written into `room`.
    #[inline]
    pub fn spell_counter<'r>(&self, number: u64, room: &'r mut [u8; KEY_BYTES_MAX]) -> &'r [u8] {
        let key = &mut room[..self.counter_template.len()];
        key.copy_from_slice(&self.counter_template);
        self.patch(number, key);
        key
    }

    /// Whether `bytes` is the key of `number`.
    #[inline]
    pub fn is(&self, number: u64, bytes: &[u8]) -> bool {
        let split = self.template.len() - self.digits;
        bytes.len() == self.template.len()
            && bytes[split..] == sixteen_digits(number)[DIGITS_MAX - self.digits..]
            && bytes[..split] == self.template[..split]
    }

    /// The key as text, for messages.
    pub fn name(&self, number: u64) -> String {
        let mut key = Vec::new();
        self.write(number, &mut key);
        String::from_utf8_lossy(&key).into_owned()
    }

    /// The counter key as text, for messages.
    pub fn counter_name(&self, number: u64) -> String {
        let mut key = Vec::new();
        self.write_counter(number, &mut key);
        String::from_utf8_lossy(&key).into_owned()
    }

    #[inline]
    fn patch(&self, number: u64, out: &mut [u8]) {
        let split = out.len() - self.digits;
        out[split..].copy_from_slice(&sixteen_digits(number)[DIGITS_MAX - self.digits..]);
    }
}

#[inline]
fn sixteen_digits(number: u64) -> [u8; DIGITS_MAX] {
    let mut digits = [0; DIGITS_MAX];
    digits[..8].copy_from_slice(&eight_digits((number / 100_000_000) as u32));
    digits[8..].copy_from_slice(&eight_digits((number % 100_000_000) as u32));
    digits
}

/// The eight decimal digits of a number below 10^8: halves, then quarters, then digits, all lanes
/// of a word at once. The divisions by 100 and 10 are multiplications that are exact in range.
#[inline]
fn eight_digits(number: u32) -> [u8; 8] {
    let halves = (number / 10_000) as u64 | ((number % 10_000) as u64) << 32;
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007F_0000_007F;
    let quarters = hundreds | (halves - 100 * hundreds) << 16;
    let tens = ((quarters * 103) >> 10) & 0x000F_000F_000F_000F;
    let digits = tens | (quarters - 10 * tens) << 8;
    (digits | 0x3030_3030_3030_3030).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_digits_agree_with_the_standard_library() {
        for number in (0..100_000_000u32).step_by(9_973).chain([99_999_999, 9_999, 10_000, 1]) {
            assert_eq!(eight_digits(number).to_vec(), format!("{number:08}").into_bytes());
        }
    }

    #[test]
    fn keys_have_one_length_and_say_their_number() {
        let keys = Keys::new(1_000_000, "key:", 20).unwrap();
        assert_eq!(keys.name(42), "key:0000000000000042");
        assert_eq!(keys.name(999_999), "key:0000000000999999");
        assert_eq!(keys.counter_name(7), "key:n000000000000007");
        assert!(keys.is(42, b"key:0000000000000042"));
        assert!(!keys.is(43, b"key:0000000000000042"));
        assert!(!keys.is(42, b"kez:0000000000000042"));
        assert!(!keys.is(42, b"key:000000000000042"));
        let mut room = [0; KEY_BYTES_MAX];
        assert_eq!(keys.spell(42, &mut room), b"key:0000000000000042");
        assert_eq!(keys.spell_counter(7, &mut room), b"key:n000000000000007");
    }

    #[test]
    fn long_and_short_keys_are_spelled_in_full() {
        let keys = Keys::new(10, "p", 250).unwrap();
        assert_eq!(keys.name(9), format!("p{:0249}", 9));
        let keys = Keys::new(100, "", 3).unwrap();
        assert_eq!((keys.name(99), keys.counter_name(5)), ("099".into(), "n05".into()));
    }

    #[test]
    fn impossible_keys_are_refused() {
        assert_eq!(Keys::new(0, "k", 16).unwrap_err(), KeysError::Count(0));
        assert_eq!(Keys::new(1000, "key:", 7).unwrap_err(), KeysError::TooShort { needed: 8 });
        assert_eq!(Keys::new(10, "key:", 251).unwrap_err(), KeysError::TooLong);
        assert_eq!(Keys::new(10, "a b", 20).unwrap_err(), KeysError::Prefix);
    }
}
