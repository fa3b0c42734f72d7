//! Keys that a text line cannot hold, as base64 (RFC 4648, with padding).

use arrayvec::ArrayVec;

use ringlane_types::request::KEY_BYTES_MAX;

/// A decoded key.
pub(crate) type DecodedKey = ArrayVec<u8, KEY_BYTES_MAX>;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Not a digit.
const NONE: u8 = 0xff;

/// The value of each byte.
const DIGITS: [u8; 256] = {
    let mut digits = [NONE; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        digits[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    digits
};

/// Decodes `text`; `None` if it is empty, not base64 or longer than a key.
pub(crate) fn decode(text: &[u8]) -> Option<DecodedKey> {
    let (quads, []) = text.as_chunks::<4>() else { return None };
    let (last, whole) = quads.split_last()?;
    let mut key = DecodedKey::new();
    for quad in whole {
        key.try_extend_from_slice(&bytes(*quad)?).ok()?;
    }
    let (quad, padding) = match *last {
        [a, b, b'=', b'='] => ([a, b, b'A', b'A'], 2),
        [a, b, c, b'='] => ([a, b, c, b'A'], 1),
        quad => (quad, 0),
    };
    key.try_extend_from_slice(&bytes(quad)?[..3 - padding]).ok()?;
    Some(key)
}

/// Appends `key` in base64.
pub(crate) fn encode(key: &[u8], mut push: impl FnMut(&[u8])) {
    for group in key.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|i| group.get(i).copied().unwrap_or(0));
        let digit = |bits: u8| ALPHABET[usize::from(bits & 63)];
        let quad = [digit(a >> 2), digit(a << 4 | b >> 4), digit(b << 2 | c >> 6), digit(c)];
        push(&quad[..group.len() + 1]);
        push(&b"=="[..3 - group.len()]);
    }
}

/// Three bytes from four digits.
fn bytes(quad: [u8; 4]) -> Option<[u8; 3]> {
    let digits = quad.map(|byte| DIGITS[usize::from(byte)]);
    if digits.contains(&NONE) {
        return None;
    }
    let [a, b, c, d] = digits;
    Some([a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(key: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        encode(key, |bytes| text.extend_from_slice(bytes));
        text
    }

    #[test]
    fn the_vectors_of_the_standard_hold() {
        for (key, text) in [
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encoded(key.as_bytes()), text.as_bytes());
            assert_eq!(decode(text.as_bytes()).unwrap().as_slice(), key.as_bytes());
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in ["", "Zm9", "Zm9v!", "Zm9=Zm9v", "Z===", "====", "Zm 9", "Zm9v="] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(key in prop::collection::vec(any::<u8>(), 1..=250)) {
            let decoded = decode(&encoded(&key)).unwrap();
            prop_assert_eq!(decoded.as_slice(), &key[..]);
        }
    }
}
