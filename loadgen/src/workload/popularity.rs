//! Which key comes next: uniform, Zipf, a hot spot, or one after the other.
//!
//! Zipf numbers are drawn by rejection-inversion (W. Hörmann and G. Derflinger, 1996): exact for
//! any count and exponent, a constant number of steps, no table. The usual shortcut of a
//! precomputed zeta sum is exact only for the count it was computed for and excludes exponents
//! around 1.

use std::fmt;
use std::str::FromStr;

use crate::random::Random;

/// How requests spread over the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// Every key alike.
    Uniform,
    /// The key of rank r (from 1) is requested in proportion to 1 / r^exponent.
    Zipf {
        /// Greater than 0; web caches lie around 1.
        exponent: f64,
    },
    /// A share of the requests goes to a share of the keys, uniformly inside and outside.
    Hotspot {
        /// The part of all keys that is hot, 0 to 1.
        keys: f64,
        /// The part of all requests that go there, 0 to 1.
        requests: f64,
    },
    /// One key after the other, from the first again after the last.
    Sequential,
}

impl FromStr for Popularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, arguments) = text.split_once(':').unwrap_or((text, ""));
        let percent = |text: &str| match text.trim_end_matches('%').parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
            _ => Err(format!("{text:?} is not a percentage")),
        };
        match (name, arguments) {
            ("uniform", "") => Ok(Popularity::Uniform),
            ("sequential", "") => Ok(Popularity::Sequential),
            ("zipf", "") => Ok(Popularity::Zipf { exponent: 1.0 }),
            ("zipf", exponent) => match exponent.parse::<f64>() {
                Ok(exponent) if exponent > 0.0 && exponent <= 10.0 => {
                    Ok(Popularity::Zipf { exponent })
                }
                _ => Err(format!("the exponent {exponent:?} must be above 0 and at most 10")),
            },
            ("hotspot", "") => Ok(Popularity::Hotspot { keys: 0.1, requests: 0.9 }),
            ("hotspot", shares) => {
                let (keys, requests) = shares.split_once(':').ok_or("hotspot:KEYS%:REQUESTS%")?;
                Ok(Popularity::Hotspot { keys: percent(keys)?, requests: percent(requests)? })
            }
            _ => Err("uniform, zipf[:EXPONENT], hotspot[:KEYS%:REQUESTS%] or sequential".into()),
        }
    }
}

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Popularity::Uniform => write!(f, "uniform"),
            Popularity::Zipf { exponent } => write!(f, "zipf:{exponent}"),
            Popularity::Hotspot { keys, requests } => {
                write!(f, "hotspot:{}%:{}%", keys * 100.0, requests * 100.0)
            }
            Popularity::Sequential => write!(f, "sequential"),
        }
    }
}

/// Draws key numbers below a count.
#[derive(Clone, Debug)]
pub struct Draw {
    count: u64,
    kind: Kind,
    scatter: Scatter,
}

#[derive(Clone, Debug)]
enum Kind {
    Uniform,
    Zipf(Zipf),
    Hotspot { hot: u64, requests: f64 },
    Sequential { next: u64 },
}

impl Draw {
    /// Draws among `count` keys (at least 1). `stream` of `streams` tells the threads of a run
    /// apart: sequential ones begin at different places.
    pub fn new(popularity: Popularity, count: u64, stream: u64, streams: u64) -> Self {
        let kind = match popularity {
            Popularity::Uniform => Kind::Uniform,
            Popularity::Zipf { exponent } => Kind::Zipf(Zipf::new(count, exponent)),
            Popularity::Hotspot { keys, requests } => {
                let hot = ((count as f64 * keys).round() as u64).clamp(1, count);
                Kind::Hotspot { hot, requests }
            }
            Popularity::Sequential => {
                Kind::Sequential { next: (count as u128 * stream as u128 / streams as u128) as u64 }
            }
        };
        Self { count, kind, scatter: Scatter::new(count) }
    }

    /// The next key's number.
    #[inline]
    pub fn next(&mut self, random: &mut Random) -> u64 {
        match &mut self.kind {
            Kind::Uniform => random.below(self.count),
            Kind::Zipf(zipf) => self.scatter.place(zipf.rank(random) - 1),
            Kind::Hotspot { hot, requests } => {
                let rank = if *hot == self.count || random.unit() < *requests {
                    random.below(*hot)
                } else {
                    *hot + random.below(self.count - *hot)
                };
                self.scatter.place(rank)
            }
            Kind::Sequential { next } => {
                let key = *next;
                *next = if key + 1 == self.count { 0 } else { key + 1 };
                key
            }
        }
    }
}

/// Rank to key number: a fixed bijection, so that popular keys are not neighbours. They would
/// otherwise be populated one after the other and share the server's memory pages.
#[derive(Clone, Debug)]
struct Scatter {
    count: u64,
    factor: u64,
}

impl Scatter {
    fn new(count: u64) -> Self {
        // Around the golden section, which spreads consecutive ranks widest.
        let mut factor = ((count as f64 * 0.618_033_988_749_895) as u64).max(1);
        while gcd(factor, count) != 1 {
            factor += 1;
        }
        Self { count, factor }
    }

    #[inline]
    fn place(&self, rank: u64) -> u64 {
        match rank.checked_mul(self.factor) {
            Some(product) => product % self.count,
            None => (rank as u128 * self.factor as u128 % self.count as u128) as u64,
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Ranks 1 to `count` with probability in proportion to 1 / rank^exponent.
///
/// h(x) = x^-exponent lies above the histogram of the probabilities when each bar is shifted half
/// to the left; drawing under h's integral H is inverting H; what falls between h and the bar is
/// rejected, a few draws in a hundred.
#[derive(Clone, Debug)]
struct Zipf {
    count: f64,
    exponent: f64,
    integral_first: f64,
    integral_last: f64,
    /// Draws this close to their rank are under the bar for certain.
    shortcut: f64,
}

impl Zipf {
    fn new(count: u64, exponent: f64) -> Self {
        let mut zipf = Self {
            count: count as f64,
            exponent,
            integral_first: 0.,
            integral_last: 0.,
            shortcut: 0.,
        };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(zipf.count + 0.5);
        zipf.shortcut = 2.0 - zipf.integral_inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    #[inline]
    fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let under =
                self.integral_last + random.unit() * (self.integral_first - self.integral_last);
            let x = self.integral_inverse(under);
            let rank = (x + 0.5).floor().clamp(1.0, self.count);
            if rank - x <= self.shortcut || under >= self.integral(rank + 0.5) - self.density(rank)
            {
                return rank as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// H(x) = (x^(1-s) - 1) / (1 - s), written so that s = 1, where it is ln x, is no special case.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_over((1.0 - self.exponent) * log) * log
    }

    fn integral_inverse(&self, y: f64) -> f64 {
        // Rounding may bring the argument of the logarithm below its bound.
        let t = (y * (1.0 - self.exponent)).max(-1.0);
        (ln1p_over(t) * y).exp()
    }
}

/// (e^x - 1) / x, 1 at 0.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 * (1.0 + x / 3.0) }
}

/// ln(1 + x) / x, 1 at 0.
fn ln1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x * (0.5 - x / 3.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-square of `draws` zipf ranks against the exact distribution, and the degrees of freedom
    /// (bins with an expectation below 10 are put together).
    fn chi_square(count: u64, exponent: f64, draws: u32) -> (f64, f64) {
        let zipf = Zipf::new(count, exponent);
        let mut random = Random::new(11, 0);
        let mut seen = vec![0u32; count as usize];
        for _ in 0..draws {
            seen[zipf.rank(&mut random) as usize - 1] += 1;
        }
        let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-exponent)).collect();
        let total: f64 = weights.iter().sum();
        let (mut sum, mut bins, mut expected, mut got) = (0.0, 0.0, 0.0, 0.0);
        for (weight, seen) in weights.iter().zip(seen) {
            expected += weight / total * f64::from(draws);
            got += f64::from(seen);
            if expected >= 10.0 {
                sum += (got - expected) * (got - expected) / expected;
                (bins, expected, got) = (bins + 1.0, 0.0, 0.0);
            }
        }
        (sum, bins - 1.0)
    }

    #[test]
    fn zipf_is_exact_for_small_and_large_counts_and_every_exponent() {
        for count in [2, 3, 10, 1_000, 100_000] {
            for exponent in [0.01, 0.5, 0.99, 1.0, 1.01, 1.5, 3.0] {
                let (sum, freedom) = chi_square(count, exponent, 200_000);
                // Five standard deviations: a seed is fixed, so this is a bound, not a gamble.
                let bound = freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0;
                assert!(sum < bound, "{count} keys, exponent {exponent}: {sum} over {bound}");
            }
        }
    }

    #[test]
    fn a_wrong_exponent_would_be_noticed() {
        let zipf = Zipf::new(1000, 1.0);
        let mut random = Random::new(11, 0);
        let first = (0..100_000).filter(|_| zipf.rank(&mut random) == 1).count() as f64;
        let due = 100_000.0 / (1..=1000).map(|rank| 1.0 / f64::from(rank)).sum::<f64>();
        assert!((first / due - 1.0).abs() < 0.03, "{first} of {due}");
    }

    #[test]
    fn zipf_of_one_key_and_of_very_many_stays_in_range() {
        let mut random = Random::new(1, 0);
        for count in [1, 1_000_000_000_000] {
            let zipf = Zipf::new(count, 0.99);
            assert!((0..10_000).all(|_| (1..=count).contains(&zipf.rank(&mut random))));
        }
    }

    #[test]
    fn scattering_keeps_every_key_once_and_parts_neighbours() {
        for count in [1, 2, 3, 10, 1_000, 1_024, 9_973] {
            let scatter = Scatter::new(count);
            let mut seen = vec![false; count as usize];
            (0..count).for_each(|rank| seen[scatter.place(rank) as usize] = true);
            assert!(seen.iter().all(|&seen| seen), "{count}");
        }
        let scatter = Scatter::new(1_000_000);
        assert!(scatter.place(1).abs_diff(scatter.place(2)) > 100_000);
    }

    #[test]
    fn a_hotspot_gets_its_share() {
        let popularity = "hotspot:1%:80%".parse().unwrap();
        let mut draw = Draw::new(popularity, 1000, 0, 1);
        let mut random = Random::new(5, 0);
        let mut seen = vec![0u32; 1000];
        (0..100_000).for_each(|_| seen[draw.next(&mut random) as usize] += 1);
        seen.sort_unstable();
        let hot: u32 = seen[990..].iter().sum();
        assert!((79_500..80_500).contains(&hot), "{hot}");
    }

    #[test]
    fn sequential_threads_cover_all_keys_from_their_own_places() {
        let mut random = Random::new(5, 0);
        let mut draw = Draw::new(Popularity::Sequential, 10, 1, 2);
        let keys: Vec<u64> = (0..12).map(|_| draw.next(&mut random)).collect();
        assert_eq!(keys, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn spellings_round_trip() {
        for text in ["uniform", "sequential", "zipf:0.99", "hotspot:10%:90%"] {
            assert_eq!(text.parse::<Popularity>().unwrap().to_string(), text);
        }
        for text in ["", "zipf:0", "zipf:x", "hotspot:5", "uniform:1", "hotspot:5:101"] {
            assert!(text.parse::<Popularity>().is_err(), "{text}");
        }
    }
}
