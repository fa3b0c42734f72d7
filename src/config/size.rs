//! Sizes as people write them: `64MiB`, `1GiB`, `512k`, or a plain number in the setting's own unit
//! (memcached's `-m` counts MiB, its `-I` bytes).
//!
//! Every suffix is a power of 1024, including `kB` and `MB`, as memory sizes are and memcached
//! parses them.

use std::fmt;

/// A number of bytes, displayed in the largest unit that divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Parses a size. `plain_unit` is the number of bytes that a number without suffix stands for.
    /// `None` if it is not a size or exceeds 64 bits.
    pub fn parse(text: &str, plain_unit: u64) -> Option<Size> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let unit = match suffix.trim_start().to_ascii_lowercase().as_str() {
            "" => plain_unit,
            "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(unit).map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, name) in units {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{name}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_suffix_is_a_power_of_1024_in_any_case() {
        for text in ["64MiB", "64mb", "64 M", "65536k", "65536KiB", "67108864B"] {
            assert_eq!(Size::parse(text, 1), Some(Size(64 << 20)), "{text}");
        }
        assert_eq!(Size::parse("2TiB", 1), Some(Size(2 << 40)));
    }

    #[test]
    fn a_plain_number_counts_in_the_settings_own_unit() {
        assert_eq!(Size::parse("64", 1 << 20), Some(Size(64 << 20)));
        assert_eq!(Size::parse("64", 1), Some(Size(64)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MiB", "-1", "1.5g", "12 34", "1x", "0x10", "99999999999999999999", "1e9"]
        {
            assert_eq!(Size::parse(text, 1), None, "{text}");
        }
        assert_eq!(Size::parse("17179869184GiB", 1), None, "must not wrap around");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(bytes: u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string(), 1), Some(Size(bytes)));
        }
    }
}
