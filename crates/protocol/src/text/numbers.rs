//! The two ways memcached parses a number.
//!
//! Most places are strict: digits, the whole token, nothing else. The flags and the exptime of the
//! classic storage commands are lenient, because they have always gone through C's `strtoul` and
//! `strtol`: leading white space and anything after white space are ignored, `+` is accepted, and
//! larger numbers are truncated to 32 bits. Clients rely on both, so both exist side by side.

/// Longest token in bytes that the strict 32-bit parsers accept; a longer one is refused even if it
/// has only leading zeros.
const STRICT_32_BYTES_MAX: usize = 11;

/// The same for the strict 64-bit parsers.
const STRICT_64_BYTES_MAX: usize = 22;

/// A strict unsigned 64-bit number. `None` for anything but 1 to 22 digits within range.
pub(crate) fn strict_u64(token: &[u8]) -> Option<u64> {
    if token.len() > STRICT_64_BYTES_MAX {
        return None;
    }
    digits(token)
}

/// A strict unsigned 32-bit number. `None` for anything but 1 to 11 digits within range.
pub(crate) fn strict_u32(token: &[u8]) -> Option<u32> {
    if token.len() > STRICT_32_BYTES_MAX {
        return None;
    }
    u32::try_from(digits(token)?).ok()
}

/// A strict signed 32-bit number: as [`strict_u32`], with an optional `-` before the digits.
pub(crate) fn strict_i32(token: &[u8]) -> Option<i32> {
    if token.len() > STRICT_32_BYTES_MAX {
        return None;
    }
    let (negative, rest) = sign(token);
    // Eleven digits fit an i64 with room to spare.
    let magnitude = digits(rest)? as i64;
    i32::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Client flags of a classic storage command. Beyond 32 bits only the low 32 count; `None` for a
/// negative number, for more than 64 bits and without a leading number.
pub(crate) fn lenient_flags(token: &[u8]) -> Option<u32> {
    // One digit is by far the most frequent.
    if let [digit @ b'0'..=b'9'] = token {
        return Some(u32::from(digit - b'0'));
    }
    let (negative, magnitude) = lenient(token)?;
    if negative && magnitude != 0 { None } else { Some(magnitude as u32) }
}

/// Exptime of a classic storage command. Beyond 32 bits only the low 32 count, as a signed number;
/// `None` beyond 64 bits and without a leading number.
pub(crate) fn lenient_exptime(token: &[u8]) -> Option<i32> {
    if let [digit @ b'0'..=b'9'] = token {
        return Some(i32::from(digit - b'0'));
    }
    let (negative, magnitude) = lenient(token)?;
    let signed = if negative {
        0i64.checked_sub_unsigned(magnitude)?
    } else {
        i64::try_from(magnitude).ok()?
    };
    Some(signed as i32)
}

/// Splits off one leading `-`.
fn sign(token: &[u8]) -> (bool, &[u8]) {
    match token {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, token),
    }
}

/// One or more digits and nothing else, within 64 bits.
#[inline]
fn digits(token: &[u8]) -> Option<u64> {
    if token.is_empty() {
        return None;
    }
    let mut number = 0u64;
    for &byte in token {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(number)
}

/// C's `strtoul` on a token: blanks, a sign, digits, and then the end or a blank.
fn lenient(token: &[u8]) -> Option<(bool, u64)> {
    let start = token.iter().position(|&byte| !is_blank(byte))?;
    let (negative, rest) = match &token[start..] {
        [b'+', rest @ ..] => (false, rest),
        rest => sign(rest),
    };
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    if rest.get(end).is_some_and(|&byte| !is_blank(byte)) {
        return None;
    }
    Some((negative, digits(&rest[..end])?))
}

/// C's `isspace`.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_numbers_are_digits_only() {
        assert_eq!(strict_u64(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(strict_u64(b"18446744073709551616"), None);
        assert_eq!(strict_u32(b"4294967295"), Some(u32::MAX));
        assert_eq!(strict_u32(b"4294967296"), None);
        for bad in [&b""[..], b"+1", b" 1", b"1 ", b"1a", b"-1", b"-", b"0x1", b"1.0", b"\t1"] {
            assert_eq!(strict_u64(bad), None, "{bad:?}");
            assert_eq!(strict_u32(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn strict_signed_numbers_take_one_minus() {
        assert_eq!(strict_i32(b"-2147483648"), Some(i32::MIN));
        assert_eq!(strict_i32(b"2147483647"), Some(i32::MAX));
        assert_eq!(strict_i32(b"2147483648"), None);
        assert_eq!(strict_i32(b"-0"), Some(0));
        assert_eq!(strict_i32(b"--1"), None);
        assert_eq!(strict_i32(b"-"), None);
        assert_eq!(strict_i32(b"+1"), None);
    }

    #[test]
    fn leading_zeros_are_fine_up_to_the_longest_token() {
        assert_eq!(strict_u32(b"00000000007"), Some(7));
        assert_eq!(strict_u32(b"000000000007"), None);
        assert_eq!(strict_u64(b"0000000000000000000007"), Some(7));
        assert_eq!(strict_u64(b"00000000000000000000007"), None);
    }

    #[test]
    fn lenient_flags_are_cut_to_32_bits_and_never_negative() {
        assert_eq!(lenient_flags(b"0"), Some(0));
        assert_eq!(lenient_flags(b"4294967295"), Some(u32::MAX));
        assert_eq!(lenient_flags(b"4294967296"), Some(0));
        assert_eq!(lenient_flags(b"18446744073709551615"), Some(u32::MAX));
        assert_eq!(lenient_flags(b"18446744073709551616"), None);
        assert_eq!(lenient_flags(b"+12"), Some(12));
        assert_eq!(lenient_flags(b"\t12"), Some(12));
        assert_eq!(lenient_flags(b"12\tx"), Some(12));
        assert_eq!(lenient_flags(b"-0"), Some(0));
        for bad in [&b"-1"[..], b"", b"abc", b"12x", b"\t", b"+", b"-", b"+-1"] {
            assert_eq!(lenient_flags(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lenient_exptime_is_cut_to_32_bits() {
        assert_eq!(lenient_exptime(b"-1"), Some(-1));
        assert_eq!(lenient_exptime(b"4294967295"), Some(-1));
        assert_eq!(lenient_exptime(b"9223372036854775807"), Some(-1));
        assert_eq!(lenient_exptime(b"-9223372036854775808"), Some(0));
        assert_eq!(lenient_exptime(b"9223372036854775808"), None);
        assert_eq!(lenient_exptime(b"+60"), Some(60));
        assert_eq!(lenient_exptime(b"6o"), None);
    }
}
