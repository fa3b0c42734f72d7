//! Distributions of sizes and spans: fixed, a range, or a weighted list.

use std::fmt;
use std::str::FromStr;

/// A distribution of numbers, spelled `32`, `10-1000` or `32:50,1KiB:30,100KiB:20`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Always this.
    Fixed(u64),
    /// Uniform between the two, both included.
    Range(u64, u64),
    /// Each number with its share out of `total`; shares are kept summed up.
    Weighted {
        /// Number and the sum of shares up to and including its own.
        sums: Vec<(u64, u64)>,
        /// The sum of all shares, at least 1.
        total: u64,
    },
}

impl Sizes {
    /// The number that `bits`, 64 random ones, picks. Equal bits pick equal numbers.
    #[inline]
    pub fn pick(&self, bits: u64) -> u64 {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Range(low, high) => low + scale(bits, high - low + 1),
            Sizes::Weighted { sums, total } => {
                let at = scale(bits, *total);
                sums.iter().find(|(_, sum)| at < *sum).expect("the last sum is the total").0
            }
        }
    }

    /// The largest number that can come out.
    pub fn max(&self) -> u64 {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Range(_, high) => *high,
            Sizes::Weighted { sums, .. } => sums.iter().map(|(size, _)| *size).max().unwrap_or(0),
        }
    }
}

fn scale(bits: u64, bound: u64) -> u64 {
    ((bits as u128 * bound as u128) >> 64) as u64
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(',') || text.contains(':') {
            let mut sums = Vec::new();
            let mut total = 0u64;
            for part in text.split(',') {
                let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
                let weight =
                    weight.parse::<u32>().map_err(|_| format!("{weight:?} is not a weight"))?;
                total += u64::from(weight);
                if weight > 0 {
                    sums.push((amount(size)?, total));
                }
            }
            return match total {
                0 => Err("all weights are 0".into()),
                _ => Ok(Sizes::Weighted { sums, total }),
            };
        }
        match text.split_once('-') {
            None => Ok(Sizes::Fixed(amount(text)?)),
            Some((low, high)) => {
                let (low, high) = (amount(low)?, amount(high)?);
                if low > high {
                    Err(format!("empty range {text}"))
                } else {
                    Ok(Sizes::Range(low, high))
                }
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(size) => write!(f, "{size}"),
            Sizes::Range(low, high) => write!(f, "{low}-{high}"),
            Sizes::Weighted { sums, .. } => {
                let mut before = 0;
                for (i, (size, sum)) in sums.iter().enumerate() {
                    write!(f, "{}{size}:{}", if i > 0 { "," } else { "" }, sum - before)?;
                    before = *sum;
                }
                Ok(())
            }
        }
    }
}

/// A number with an optional unit: `1000`, `1k`, `1M`, `1KiB`, `1MiB`, `1GiB`. At most 2^40.
pub fn amount(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "k" | "K" | "kB" | "KB" => 1_000,
        "m" | "M" | "MB" => 1_000_000,
        "g" | "G" | "GB" => 1_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => return Err(format!("{text:?} is not a number")),
    };
    let number = number.parse::<u64>().map_err(|_| format!("{text:?} is not a number"))?;
    match number.checked_mul(unit) {
        Some(amount) if amount <= 1 << 40 => Ok(amount),
        _ => Err(format!("{text} is too large")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn spellings_round_trip() {
        for text in ["32", "10-1000", "32:50,1024:30,102400:20"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        assert_eq!("1KiB".parse::<Sizes>().unwrap(), Sizes::Fixed(1024));
        for text in ["", "x", "9-3", "1:0", "1:x", "5TiB", "99999999999999999999"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_reaches_both_ends() {
        let sizes = Sizes::Range(3, 5);
        let mut random = Random::new(1, 0);
        let mut seen = [0; 6];
        for _ in 0..3_000 {
            seen[sizes.pick(random.bits()) as usize] += 1;
        }
        assert_eq!(seen[..3], [0, 0, 0]);
        assert!(seen[3..].iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
        assert_eq!((sizes.pick(0), sizes.pick(u64::MAX)), (3, 5));
    }

    #[test]
    fn weights_are_kept() {
        let sizes: Sizes = "1:50,2:30,3:0,4:20".parse().unwrap();
        let mut random = Random::new(1, 0);
        let mut seen = [0; 5];
        for _ in 0..10_000 {
            seen[sizes.pick(random.bits()) as usize] += 1;
        }
        assert_eq!(seen[3], 0);
        assert!((4800..5200).contains(&seen[1]), "{seen:?}");
        assert!((1850..2150).contains(&seen[4]), "{seen:?}");
        assert_eq!(sizes.max(), 4);
    }
}
