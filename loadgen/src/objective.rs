//! Objectives of a rate: latencies that must not be exceeded.

use std::fmt;
use std::str::FromStr;

use crate::results::summary::{Percentiles, Summary};
use crate::units;

/// Fewer answers than this fraction of due requests means that the server did not keep up.
const REACHED: f64 = 0.99;

/// A latency that must not be exceeded, spelled `p99.9=1ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    percentile: f64,
    micros: f64,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not PERCENTILE=TIME, as in p99.9=1ms");
        let (percentile, limit) = text.split_once('=').ok_or_else(wrong)?;
        let percentile = match percentile {
            "max" => 100.0,
            name => name.strip_prefix('p').and_then(|p| p.parse().ok()).ok_or_else(wrong)?,
        };
        if Percentiles::default().at(percentile).is_none() {
            return Err("percentiles are p50, p90, p99, p99.9, p99.99 and max".into());
        }
        Ok(Self { percentile, micros: units::parse_span(limit)?.as_secs_f64() * 1e6 })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of at most {}", percentile(self.percentile), units::span(self.micros))
    }
}

fn percentile(percentile: f64) -> String {
    if percentile < 100.0 { format!("p{percentile}") } else { "max".into() }
}

/// Why a run does not meet the objectives, `None` if it does.
pub fn broken(run: &Summary, objectives: &[Objective]) -> Option<String> {
    // Compared with the requests due, not the nominal rate: Poisson arrivals vary.
    let due = run.requests + run.unsent;
    if (run.requests as f64) < due as f64 * REACHED {
        return Some(format!("only {:.0} requests/s", run.requests_per_second));
    }
    if let Some(fault) = run.faults.first() {
        return Some(format!("{} x {}", fault.count, fault.kind));
    }
    objectives.iter().find_map(|objective| {
        let span = run.percentile(objective.percentile)?;
        (span > objective.micros)
            .then(|| format!("{} is {}", percentile(objective.percentile), units::span(span)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read() {
        let objective: Objective = "p99.9=1ms".parse().unwrap();
        assert_eq!(objective, Objective { percentile: 99.9, micros: 1000.0 });
        assert_eq!(objective.to_string(), "p99.9 of at most 1.00ms");
        let objective = "max=2s".parse::<Objective>().unwrap();
        assert_eq!(objective.to_string(), "max of at most 2.00s");
        for text in ["p99", "p98=1ms", "99=1ms", "p99=1"] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
    }
}
