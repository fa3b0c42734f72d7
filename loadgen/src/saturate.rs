//! The command `saturate`: the highest rate that meets an objective.

use crate::args;
use crate::error::Error;
use crate::objective::{self, Objective};
use crate::report::{self, text};
use crate::results::document::Document;
use crate::run;
use crate::sweep::{prepared, trial};

/// Runs `saturate`: climbs until the objective is missed, then bisects.
pub fn run(saturate: &args::Saturate) -> Result<(), Error> {
    let mut document = Document::new("saturate");
    report::check(saturate.common.output.files())?;
    let common = &saturate.common;
    let (workload, plan) = prepared(common)?;
    let peak = run::peak(&plan, &workload)?;
    eprintln!("closed loop reaches {peak:.0} requests/s; climbing from a sixteenth of that:");
    println!("{}", text::sweep_header());
    let mut search = Search::new(peak / 16.0, saturate.precision / 100.0);
    let mut broken_by = None;
    while let Some(rate) = search.next() {
        let summary = trial(common, &plan, &workload, rate)?.whole()?;
        let held = objective::broken(&summary, &saturate.slo);
        println!("{}  {}", text::sweep_line(&summary), held.as_deref().unwrap_or("held"));
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
        // The miss may be caused by the generator's own lateness.
        (_, Some((_, Some(limit)))) => format!("no verdict on {objectives}: {limit}"),
        (Some(rate), _) => format!("{objectives} is met up to {rate:.0} requests/s"),
        (None, Some((Some(words), _))) => {
            format!("{objectives} is not met even at the lowest rate tried: {words}")
        }
        (None, _) => format!("no verdict on {objectives}"),
    };
    println!("{sentence}");
    document.verdict.push(sentence);
    report::write(&common.output, &document)
}

/// Climbs by doubling until a rate misses, then halves the gap between the highest that met the
/// objective and the lowest that missed it until the gap is a small fraction of the rate.
#[derive(Clone, Debug)]
struct Search {
    held: Option<f64>,
    broke: Option<f64>,
    trying: f64,
    precision: f64,
    trials: u32,
}

/// Maximum number of trials of a search.
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
            // If no rate meets the objective, the search ends at a low one.
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
}
