//! The commands `sweep` and `saturate`: latency against rate, and the highest rate that holds an
//! objective.

use std::fmt;
use std::str::FromStr;

use crate::args;
use crate::failure::Failure;
use crate::plan::{Pace, Plan};
use crate::report::summary::{Document, Percentiles, Summary};
use crate::report::{self, text};
use crate::run;
use crate::workload::Workload;

/// Fewer answers than this part of what was due means that the server did not keep up.
const REACHED: f64 = 0.99;

/// Runs `sweep`: a list of rates, or tenths of the peak.
pub fn sweep(sweep: &args::Sweep) -> Result<(), Failure> {
    let mut document = Document::new("sweep");
    report::check(sweep.common.output.files())?;
    let common = &sweep.common;
    let (workload, plan) = prepared(common)?;
    let rates = match sweep.rates.is_empty() {
        false => sweep.rates.iter().map(|&rate| rate as f64).collect(),
        true => {
            let peak = run::peak(&plan, &workload)?;
            eprintln!("closed loop reaches {peak:.0} requests/s; in tenths of it:");
            (1..=10).map(|tenth| peak * f64::from(tenth) / 10.0).collect::<Vec<f64>>()
        }
    };
    println!("{}", header());
    for rate in rates {
        let summary = trial(common, &plan, &workload, rate)?;
        println!("{}", line(&summary));
        document.runs.push(summary);
        report::write(&common.output, &document)?;
    }
    Ok(())
}

/// Runs `saturate`: climbs until the objective breaks, then bisects.
pub fn saturate(saturate: &args::Saturate) -> Result<(), Failure> {
    let mut document = Document::new("saturate");
    report::check(saturate.common.output.files())?;
    let common = &saturate.common;
    let (workload, plan) = prepared(common)?;
    let peak = run::peak(&plan, &workload)?;
    eprintln!("closed loop reaches {peak:.0} requests/s; climbing from a sixteenth of it:");
    println!("{}", header());
    let mut search = Search::new(peak / 16.0, saturate.precision / 100.0);
    let mut broken_by = None;
    while let Some(rate) = search.next() {
        let summary = trial(common, &plan, &workload, rate)?;
        let held = broken(&summary, &saturate.slo);
        println!("{}  {}", line(&summary), held.as_deref().unwrap_or("held"));
        search.tell(held.is_none());
        if held.is_some() {
            broken_by = Some((held, summary.generator_limit.clone()));
        }
        document.runs.push(summary);
        report::write(&common.output, &document)?;
    }
    let objectives: Vec<String> = saturate.slo.iter().map(Objective::to_string).collect();
    let objectives = objectives.join(" and ");
    let sentence = match (search.best(), broken_by) {
        // What broke it may have been the generator's own lateness.
        (_, Some((_, Some(limit)))) => format!("no verdict on {objectives}: {limit}"),
        (Some(rate), _) => format!("{objectives} holds up to {rate:.0} requests/s"),
        (None, Some((Some(words), _))) => {
            format!("{objectives} does not hold even at the lowest rate tried: {words}")
        }
        (None, _) => format!("no verdict on {objectives}"),
    };
    println!("{sentence}");
    document.verdict.push(sentence);
    report::write(&common.output, &document)
}

fn prepared(common: &args::Common) -> Result<(Workload, Plan), Failure> {
    let workload = run::workload(&common.workload)?;
    let plan = run::plan(&common.target, &common.load)?;
    run::prepare(&plan, &workload, common.load.populate)?;
    Ok((workload, plan))
}

fn trial(
    common: &args::Common,
    plan: &Plan,
    workload: &Workload,
    rate: f64,
) -> Result<Summary, Failure> {
    let pace = Pace::Open { rate, arrival: common.load.arrival };
    let name = format!("{rate:.0}/s");
    run::measure(&name, &Plan { pace, ..plan.clone() }, workload, true)
}

/// The heads of the columns.
pub fn header() -> String {
    format!(
        "{:>12}{:>12}{:>10}{:>10}{:>10}{:>10}{:>20}{:>8}",
        "asked/s", "reached/s", "p50", "p99", "p99.9", "max", "server CPU µs/req", "errors"
    )
}

/// A run at one rate.
pub fn line(run: &Summary) -> String {
    let cpu = run.server_cpu.map_or("-".into(), |cpu| format!("{:.3}", cpu.micros_per_request));
    let mut line = format!(
        "{:>12.0}{:>12.0}{:>10}{:>10}{:>10}{:>10}{cpu:>20}{:>8}",
        run.load.rate.unwrap_or_default(),
        run.requests_per_second,
        text::span(run.latency.p50),
        text::span(run.latency.p99),
        text::span(run.latency.p99_9),
        text::span(run.latency.max),
        run.faults.iter().map(|fault| fault.count).sum::<u64>(),
    );
    if let Some(limit) = &run.generator_limit {
        line = format!("{line}  WARNING {limit}");
    }
    line
}

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
        Ok(Self { percentile, micros: args::span(limit)?.as_secs_f64() * 1e6 })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of at most {}", percentile(self.percentile), text::span(self.micros))
    }
}

fn percentile(percentile: f64) -> String {
    if percentile < 100.0 { format!("p{percentile}") } else { "max".into() }
}

/// Why a run does not hold the objectives, `None` if it does.
fn broken(run: &Summary, objectives: &[Objective]) -> Option<String> {
    // Against what was due, not the nominal rate: Poisson arrivals vary.
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
            .then(|| format!("{} is {}", percentile(objective.percentile), text::span(span)))
    })
}

/// Climbs by doubling until a rate breaks, then halves the gap between the best that held and the
/// lowest that broke until it is a small part of the rate.
#[derive(Clone, Debug)]
struct Search {
    held: Option<f64>,
    broke: Option<f64>,
    trying: f64,
    precision: f64,
    trials: u32,
}

/// Trials after which a search ends in any case.
const TRIALS_MAX: u32 = 40;

impl Search {
    fn new(first: f64, precision: f64) -> Self {
        Self { held: None, broke: None, trying: first.max(1.0), precision, trials: 0 }
    }

    /// The next rate to try.
    fn next(&mut self) -> Option<f64> {
        self.trials += 1;
        if self.trials > TRIALS_MAX {
            return None;
        }
        self.trying = match (self.held, self.broke) {
            (None, None) => self.trying,
            (Some(held), None) => held * 2.0,
            // It may be that no rate holds: then the search ends at a low one.
            (None, Some(broke)) if broke < 10.0 => return None,
            (None, Some(broke)) => broke / 4.0,
            (Some(held), Some(broke)) if broke - held <= held * self.precision => return None,
            (Some(held), Some(broke)) => (held + broke) / 2.0,
        };
        Some(self.trying)
    }

    fn tell(&mut self, held: bool) {
        if held {
            self.held = Some(self.trying);
        } else {
            self.broke = Some(self.trying);
        }
    }

    fn best(&self) -> Option<f64> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(limit: f64, first: f64) -> (Option<f64>, u32) {
        let mut search = Search::new(first, 0.02);
        while let Some(rate) = search.next() {
            search.tell(rate <= limit);
        }
        (search.best(), search.trials)
    }

    #[test]
    fn a_search_comes_within_its_precision_of_the_limit() {
        for (limit, first) in [(100_000.0, 6_000.0), (5_000.0, 90_000.0), (1e6, 1.0)] {
            let (best, trials) = found(limit, first);
            let best = best.unwrap();
            assert!(best <= limit && best >= limit * 0.97, "{best} of {limit}");
            assert!(trials < 35, "{trials}");
        }
    }

    #[test]
    fn a_search_ends_when_nothing_holds_or_everything_does() {
        assert_eq!(found(0.0, 1e6).0, None);
        assert!(found(f64::INFINITY, 1e3).1 <= TRIALS_MAX + 1);
    }

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
