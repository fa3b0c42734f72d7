//! The result of one measured phase as plain data.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::histogram::LatencyClass;
use crate::phase::PhaseOutcome;
use crate::plan::{LoadMode, Plan, Refill};
use crate::source::Job;
use crate::workload::Workload;

/// One measured phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Its name: an address, or a server's name in a comparison.
    pub name: String,
    /// The row of a comparison; empty otherwise.
    #[serde(default)]
    pub group: String,
    /// The workload.
    pub workload: WorkloadFacts,
    /// The load.
    pub load: LoadFacts,
    /// Length of the recording in seconds.
    pub seconds: f64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered per second.
    pub requests_per_second: f64,
    /// Keys requested by gets and multigets, per second.
    pub keys_per_second: f64,
    /// Fraction of these keys that was found; `None` without any.
    pub hit_ratio: Option<f64>,
    /// All requests together, from the intended send time in the open loop.
    pub latency: Percentiles,
    /// The same from the actual send time.
    pub service_time: Percentiles,
    /// Split by command and outcome.
    pub classes: Vec<ClassSummary>,
    /// CPU time of the server, if its process is known.
    pub server_cpu: Option<CpuSummary>,
    /// CPU time of the generator.
    pub generator_cpu: CpuSummary,
    /// Fraction of the time the busiest generator thread was busy, 0 to 1.
    pub generator_busy: f64,
    /// Fraction of the time in which a generator thread was runnable while others used its CPU, 0
    /// to 1.
    #[serde(default)]
    pub generator_waited: f64,
    /// Why the generator rather than the server was the limit, if so: then no verdict is valid.
    pub generator_limit: Option<String>,
    /// Requests due in the window that were never sent.
    pub unsent: u64,
    /// Connections reopened for churn.
    pub connections_renewed: u64,
    /// What went wrong, by kind.
    pub faults: Vec<FaultSummary>,
    /// Second by second.
    pub timeline: Vec<SecondSummary>,
    /// The latency distribution: microseconds, and the fraction of requests at or below.
    pub distribution: Vec<(f64, f64)>,
    /// The histogram, needed only for `.hgrm` files.
    #[serde(skip)]
    pub histogram: Option<Histogram<u64>>,
}

/// The workload, in the words of the flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadFacts {
    /// Shares of commands.
    pub mix: String,
    /// Number of keys.
    pub keys: u64,
    /// Their length.
    pub key_bytes: usize,
    /// Distribution of requests over them.
    pub popularity: String,
    /// Lengths of values.
    pub value_bytes: String,
    /// Exptimes of sets in seconds.
    pub ttl: String,
    /// Keys in a multiget; `None` without multigets.
    pub multiget_keys: Option<usize>,
    /// Whether misses were filled.
    pub cache_aside: bool,
    /// How strictly answers were checked.
    pub verify: String,
    /// The seed.
    pub seed: u64,
}

/// The load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadFacts {
    /// The server's address.
    pub address: String,
    /// The protocol spoken.
    pub protocol: String,
    /// `open` or `closed`.
    pub r#loop: String,
    /// Requested rate in the open loop, per second.
    pub rate: Option<f64>,
    /// Distribution of send times in the open loop.
    pub arrival: Option<String>,
    /// Connections.
    pub connections: usize,
    /// Unanswered requests per connection.
    pub pipeline: usize,
    /// When a closed-loop connection sent again.
    pub refill: Option<String>,
    /// Requests after which connections were reopened; 0 means never.
    pub churn: u64,
    /// The generator's CPUs.
    pub cpus: Vec<usize>,
    /// Whether it polled instead of sleeping.
    pub spin: bool,
    /// Load before the recording, in seconds.
    pub warmup_seconds: f64,
}

/// Spans in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the requests.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
    /// 99.99 %.
    pub p99_99: f64,
    /// The longest.
    pub max: f64,
}

/// One command and outcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClassSummary {
    /// `get hit`, `set` and so on.
    pub name: String,
    /// Requests answered.
    pub requests: u64,
    /// Their latency.
    pub latency: Percentiles,
    /// Their service time.
    pub service_time: Percentiles,
}

/// CPU time in microseconds per request, and in total.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CpuSummary {
    /// User and system time per request.
    pub micros_per_request: f64,
    /// User time per request.
    pub user: f64,
    /// System time per request.
    pub system: f64,
    /// CPUs kept busy, 1 being one whole CPU.
    pub cpus: f64,
}

/// Faults of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FaultSummary {
    /// The kind.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// The first one, in words.
    pub first: String,
}

/// One second of a run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SecondSummary {
    /// Its number, from 1.
    pub second: u64,
    /// Requests answered.
    pub requests: u64,
    /// Latency, microseconds.
    pub p50: f64,
    /// Latency, microseconds.
    pub p99: f64,
    /// Latency, microseconds.
    pub p99_9: f64,
    /// Latency, microseconds.
    pub max: f64,
    /// Fraction of the keys that was found.
    pub hit_ratio: Option<f64>,
    /// Faults.
    pub faults: u64,
}

/// A busier thread counts as saturated.
const BUSY: f64 = 0.95;
/// A thread that waits for its CPU for more than this fraction of the time counts as delayed.
const WAITED: f64 = 0.1;

impl Summary {
    /// Summarizes an outcome.
    pub fn of(name: &str, plan: &Plan, workload: &Workload, outcome: &mut PhaseOutcome) -> Self {
        let seconds = outcome.window.as_secs_f64();
        let totals = outcome.totals;
        let all = outcome.recorder.sum(|_| true);
        let mut classes = Vec::new();
        for class in LatencyClass::all() {
            if let Some(spans) = outcome.recorder.class(class) {
                classes.push(ClassSummary {
                    name: class.name(),
                    requests: spans.latency.len(),
                    latency: Percentiles::of(&spans.latency),
                    service_time: Percentiles::of(&spans.service),
                });
            }
        }
        let cpu = |cpu: crate::process::CpuUse| CpuSummary {
            micros_per_request: cpu.total_ns / 1e3 / totals.answers as f64,
            user: cpu.user_ns / 1e3 / totals.answers as f64,
            system: cpu.system_ns / 1e3 / totals.answers as f64,
            cpus: cpu.total_ns / 1e9 / seconds,
        };
        let mut generator = crate::process::CpuUse::default();
        outcome.generator_cpu.iter().for_each(|&cpu| generator += cpu);
        let generator_busy = outcome.generator_busy.iter().copied().fold(0.0, f64::max);
        Self {
            name: name.into(),
            group: String::new(),
            workload: WorkloadFacts::of(plan.job, workload),
            load: LoadFacts::of(plan),
            seconds,
            requests: totals.answers,
            requests_per_second: totals.answers as f64 / seconds,
            keys_per_second: totals.keys_asked as f64 / seconds,
            hit_ratio: ratio(totals.keys_hit, totals.keys_asked),
            latency: Percentiles::of(&all.latency),
            service_time: Percentiles::of(&all.service),
            classes,
            server_cpu: outcome.server_cpu.map(cpu),
            generator_cpu: cpu(generator),
            generator_busy,
            generator_waited: outcome.generator_waited,
            generator_limit: generator_limit(
                generator_busy,
                outcome.generator_waited,
                outcome.server_busiest,
            ),
            unsent: outcome.unsent,
            connections_renewed: totals.renewed,
            faults: outcome
                .faults
                .iter()
                .map(|(fault, count, first)| FaultSummary {
                    kind: fault.name().into(),
                    count,
                    first: first.into(),
                })
                .collect(),
            timeline: outcome.timeline.iter().map(SecondSummary::of).collect(),
            distribution: distribution(&all.latency),
            histogram: Some(all.latency),
        }
    }

    /// CPU time of the server per key in microseconds, if all requests were multigets.
    pub fn cpu_micros_per_key(&self) -> Option<f64> {
        let only = self.classes.iter().all(|class| class.name.starts_with("multiget"));
        let cpu = self.server_cpu?;
        (only && self.keys_per_second > 0.0).then(|| cpu.cpus * 1e6 / self.keys_per_second)
    }

    /// Its name in charts.
    pub fn label(&self) -> String {
        match self.load.rate {
            Some(rate) if !self.name.ends_with("/s") => format!("{} at {rate:.0}/s", self.name),
            _ => self.name.clone(),
        }
    }

    /// A latency at a percentile that [`Percentiles`] names, in microseconds.
    pub fn percentile(&self, percentile: f64) -> Option<f64> {
        self.latency.at(percentile)
    }
}

/// In words, why the generator was the limit, if it was: others used its CPU, so that it sent and
/// received late; or it was saturated while the server's busiest thread, if known, was not.
fn generator_limit(
    generator_busy: f64,
    generator_waited: f64,
    server_busiest: Option<f64>,
) -> Option<String> {
    if generator_waited > WAITED {
        return Some(format!(
            "the generator was delayed: for {:.0} % of the time one of its threads was runnable \
             while others used its CPU",
            generator_waited * 100.0
        ));
    }
    if generator_busy < BUSY || server_busiest.is_some_and(|busy| busy >= BUSY) {
        return None;
    }
    let server = match server_busiest {
        Some(busy) => format!("the server's busiest thread only {:.0} %", busy * 100.0),
        None => "the server's load is unknown".into(),
    };
    Some(format!(
        "the generator was the limit: its busiest thread was busy {:.0} % of the time, {server}",
        generator_busy * 100.0
    ))
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// At most about 200 points, closer towards the tail.
fn distribution(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for value in latency.iter_quantiles(8) {
        let point = (micros(value.value_iterated_to()), value.quantile());
        if points.last().is_none_or(|last| last.0 < point.0) {
            points.push(point);
        }
    }
    points
}

impl Percentiles {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| micros(histogram.value_at_quantile(quantile));
        Self {
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: micros(histogram.max()),
        }
    }

    /// The span at a percentile that is among the fields.
    pub fn at(&self, percentile: f64) -> Option<f64> {
        [
            (50.0, self.p50),
            (90.0, self.p90),
            (99.0, self.p99),
            (99.9, self.p99_9),
            (99.99, self.p99_99),
            (100.0, self.max),
        ]
        .into_iter()
        .find(|(named, _)| (named - percentile).abs() < 1e-9)
        .map(|(_, span)| span)
    }
}

impl SecondSummary {
    /// Of a moment of a phase.
    pub fn of(moment: &crate::phase::Moment) -> Self {
        let at = |quantile| micros(moment.latency.value_at_quantile(quantile));
        Self {
            second: moment.second,
            requests: moment.answers,
            p50: at(0.5),
            p99: at(0.99),
            p99_9: at(0.999),
            max: micros(moment.latency.max()),
            hit_ratio: ratio(moment.keys_hit, moment.keys_asked),
            faults: moment.faults.iter().map(|(_, count)| count).sum(),
        }
    }
}

impl WorkloadFacts {
    fn of(job: Job, workload: &Workload) -> Self {
        let multigets = workload.mix.weight(crate::workload::mix::WorkloadCommand::Multiget) > 0;
        Self {
            mix: match job {
                Job::Mix => workload.mix.to_string(),
                Job::Populate => "every key set once".into(),
                Job::Verify | Job::Sample => "every key read once".into(),
            },
            keys: workload.keys.count(),
            key_bytes: workload.keys.key_bytes(),
            popularity: workload.popularity.to_string(),
            value_bytes: workload.values.sizes().to_string(),
            ttl: workload.ttl_seconds.to_string(),
            multiget_keys: multigets.then_some(workload.multiget_keys),
            cache_aside: workload.cache_aside,
            verify: format!("{:?}", workload.verify).to_lowercase(),
            seed: workload.seed,
        }
    }
}

impl LoadFacts {
    fn of(plan: &Plan) -> Self {
        let (rate, arrival) = match plan.pace {
            LoadMode::Closed => (None, None),
            LoadMode::Open { rate, arrival } => {
                (Some(rate), Some(format!("{arrival:?}").to_lowercase()))
            }
        };
        let refill = match plan.refill {
            Refill::Batch => "batch",
            Refill::Sliding => "sliding",
        };
        Self {
            address: plan.address.to_string(),
            protocol: plan.protocol.name().into(),
            r#loop: if rate.is_some() { "open".into() } else { "closed".into() },
            rate,
            arrival,
            connections: plan.connections,
            pipeline: plan.pipeline,
            refill: rate.is_none().then(|| refill.into()),
            churn: plan.churn,
            cpus: plan.cpus.clone(),
            spin: plan.spin,
            warmup_seconds: plan.warmup.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_limit_only_if_it_alone_is_busy() {
        assert!(generator_limit(0.5, 0.01, None).is_none());
        assert!(generator_limit(0.99, 0.0, Some(0.99)).is_none());
        assert!(generator_limit(0.99, 0.0, Some(0.7)).unwrap().contains("70 %"));
        assert!(generator_limit(0.99, 0.0, None).unwrap().contains("unknown"));
    }

    #[test]
    fn a_generator_without_its_cpu_is_the_limit_too() {
        assert!(generator_limit(0.5, 0.3, Some(0.99)).unwrap().contains("30 % of the time"));
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut histogram = crate::histogram::spans();
        (1..=1000).for_each(|ns| histogram.record(ns * 1000).unwrap());
        let percentiles = Percentiles::of(&histogram);
        assert!((percentiles.p50 - 500.0).abs() < 1.0, "{percentiles:?}");
        assert!((percentiles.at(99.9).unwrap() - 999.0).abs() < 1.0);
        assert_eq!(percentiles.at(12.0), None);
    }

    #[test]
    fn a_distribution_climbs_to_all_requests() {
        let mut histogram = crate::histogram::spans();
        (1..=100_000).for_each(|ns| histogram.record(ns * 10).unwrap());
        let points = distribution(&histogram);
        assert!(points.len() > 20 && points.len() < 400, "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        assert_eq!(points.last().unwrap().1, 1.0);
    }
}
