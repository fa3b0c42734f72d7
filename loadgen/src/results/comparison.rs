//! The result of a comparison as plain data: medians over rounds, ratios within rounds, goals.

use serde::{Deserialize, Serialize};

use super::summary::Summary;

/// The result: a table of workloads by servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Rounds measured.
    pub rounds: usize,
    /// The servers, the one of interest first: name, and address or command.
    pub servers: Vec<(String, String)>,
    /// One workload each.
    pub rows: Vec<RowResult>,
}

/// One workload on all servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowResult {
    /// The workload's name.
    pub name: String,
    /// Each server's figures.
    pub servers: Vec<Figures>,
    /// The first server against each other one.
    pub ratios: Vec<Ratios>,
    /// Why no verdict is possible for part of it.
    pub withheld: Option<String>,
    /// The goals and their outcomes.
    pub goals: Vec<GoalResult>,
}

/// Figures of one server in one workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// The server.
    pub server: String,
    /// Requests per second.
    pub requests_per_second: Spread,
    /// CPU time of the server per request in microseconds.
    pub cpu_micros: Option<Spread>,
    /// The same per key, for multigets.
    pub cpu_micros_per_key: Option<Spread>,
    /// Latency in microseconds.
    pub p50: Spread,
    /// Latency in microseconds.
    pub p99: Spread,
    /// Latency in microseconds.
    pub p99_9: Spread,
}

/// The first server's figures divided by another's, round by round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ratios {
    /// The other server.
    pub against: String,
    /// Requests per second: more is better.
    pub rate: Spread,
    /// CPU time per request: less is better.
    pub cpu: Option<Spread>,
    /// Latency: less is better.
    pub p50: Spread,
    /// Latency: less is better.
    pub p99: Spread,
    /// Latency: less is better.
    pub p99_9: Spread,
}

/// A median over rounds with its extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one (the mean of the middle two).
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

/// A goal and its outcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GoalResult {
    /// The goal as written.
    pub goal: String,
    /// The ratio that counts.
    pub ratio: f64,
    /// `reached`, `missed` or `withheld`.
    pub verdict: String,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Self { median, low, high })
    }

    /// Of one figure, which every round has.
    pub fn each<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> Self {
        Self::of(rounds.iter().map(figure)).expect("there is at least one round")
    }
}

impl Figures {
    /// Of the rounds of one server.
    pub fn of(rounds: &[Summary]) -> Self {
        let cpu = rounds.iter().filter_map(|run| run.server_cpu);
        let per_key = rounds.iter().filter_map(Summary::cpu_micros_per_key);
        Self {
            server: rounds[0].name.clone(),
            requests_per_second: Spread::each(rounds, |run| run.requests_per_second),
            cpu_micros: Spread::of(cpu.map(|cpu| cpu.micros_per_request)),
            cpu_micros_per_key: Spread::of(per_key),
            p50: Spread::each(rounds, |run| run.latency.p50),
            p99: Spread::each(rounds, |run| run.latency.p99),
            p99_9: Spread::each(rounds, |run| run.latency.p99_9),
        }
    }
}

impl Ratios {
    /// Of the rounds of two servers, in pairs.
    pub fn of(ours: &[Summary], theirs: &[Summary]) -> Self {
        let pairs: Vec<(&Summary, &Summary)> = ours.iter().zip(theirs).collect();
        let each = |figure: &dyn Fn(&Summary) -> f64| {
            Spread::each(&pairs, |(ours, theirs)| figure(ours) / figure(theirs))
        };
        let cpu = pairs.iter().filter_map(|(ours, theirs)| {
            let (ours, theirs) = (ours.server_cpu?, theirs.server_cpu?);
            Some(ours.micros_per_request / theirs.micros_per_request)
        });
        Self {
            against: theirs[0].name.clone(),
            rate: each(&|run| run.requests_per_second),
            cpu: Spread::of(cpu),
            p50: each(&|run| run.latency.p50),
            p99: each(&|run| run.latency.p99),
            p99_9: each(&|run| run.latency.p99_9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_and_extremes() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, low: 1.0, high: 4.0 }));
        assert_eq!(spread(&[]), None);
    }
}
