//! Latencies: an HdrHistogram with three significant digits per command and outcome.
//!
//! Two durations are recorded per request in the open loop: its latency, from the intended send
//! time, and its service time, from the actual one. Answers of one turn to requests of one turn
//! have the same durations, so the recorder counts repetitions and updates a histogram once for all
//! of them; with deep pipelines that is most of the cost of recording.

use hdrhistogram::Histogram;

use crate::workload::mix::WorkloadCommand;

/// Longest duration distinguished, 100 s; longer ones count as this.
const SPAN_NS_MAX: u64 = 100_000_000_000;

/// A class of requests: command, and whether it hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LatencyClass {
    /// The command.
    pub command: WorkloadCommand,
    /// Whether the key was found (for a multiget: any of them).
    pub hit: bool,
}

impl LatencyClass {
    /// How many there are.
    pub const COUNT: usize = 2 * WorkloadCommand::ALL.len();

    /// All of them, in the order of reports.
    pub fn all() -> impl Iterator<Item = LatencyClass> {
        WorkloadCommand::ALL
            .into_iter()
            .flat_map(|command| [true, false].map(|hit| LatencyClass { command, hit }))
    }

    /// `get hit`, `set` and so on.
    pub fn name(self) -> String {
        match (self.command, self.hit) {
            (WorkloadCommand::Set, _) => "set".into(),
            (command, true) => format!("{} hit", command.name()),
            (command, false) => format!("{} miss", command.name()),
        }
    }

    const fn index(self) -> usize {
        2 * self.command as usize + !self.hit as usize
    }
}

/// An empty histogram of spans in nanoseconds.
pub fn spans() -> Histogram<u64> {
    Histogram::new_with_bounds(1, SPAN_NS_MAX, 3).expect("constant bounds are valid")
}

/// The spans of one class.
#[derive(Clone, Debug)]
pub struct Spans {
    /// From the intended send time to the answer.
    pub latency: Histogram<u64>,
    /// From the actual send time to the answer.
    pub service: Histogram<u64>,
}

/// Records spans per class, and per interval over all classes.
#[derive(Clone, Debug)]
pub struct Recorder {
    classes: [Option<Box<Spans>>; LatencyClass::COUNT],
    interval: Histogram<u64>,
    last: (usize, u64, u64),
    repeated: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            classes: [const { None }; LatencyClass::COUNT],
            interval: spans(),
            last: (0, 0, 0),
            repeated: 0,
        }
    }
}

impl Recorder {
    /// Records one request.
    #[inline]
    pub fn record(&mut self, class: LatencyClass, latency_ns: u64, service_ns: u64) {
        let this = (class.index(), latency_ns, service_ns);
        if this != self.last {
            self.settle();
            self.last = this;
        }
        self.repeated += 1;
    }

    /// The latencies since the last call, over all classes; begins a new interval.
    pub fn take_interval(&mut self) -> Histogram<u64> {
        self.settle();
        std::mem::replace(&mut self.interval, spans())
    }

    /// Adds another recorder's requests to this one's. Its current interval is left out.
    pub fn merge(&mut self, mut other: Recorder) {
        self.settle();
        other.settle();
        for (mine, theirs) in self.classes.iter_mut().zip(other.classes) {
            match (mine, theirs) {
                (_, None) => {}
                (Some(mine), Some(theirs)) => {
                    add(&mut mine.latency, &theirs.latency);
                    add(&mut mine.service, &theirs.service);
                }
                (mine, theirs) => *mine = theirs,
            }
        }
    }

    /// The spans of a class, `None` if it never occurred.
    pub fn class(&mut self, class: LatencyClass) -> Option<&Spans> {
        self.settle();
        self.classes[class.index()].as_deref()
    }

    /// The spans of several classes together.
    pub fn sum(&mut self, wanted: impl Fn(LatencyClass) -> bool) -> Spans {
        self.settle();
        let mut sum = Spans { latency: spans(), service: spans() };
        for class in LatencyClass::all().filter(|&class| wanted(class)) {
            if let Some(spans) = &self.classes[class.index()] {
                add(&mut sum.latency, &spans.latency);
                add(&mut sum.service, &spans.service);
            }
        }
        sum
    }

    fn settle(&mut self) {
        if self.repeated == 0 {
            return;
        }
        let (index, latency_ns, service_ns) = self.last;
        let spans = self.classes[index]
            .get_or_insert_with(|| Box::new(Spans { latency: spans(), service: spans() }));
        spans.latency.saturating_record_n(latency_ns.max(1), self.repeated);
        spans.service.saturating_record_n(service_ns.max(1), self.repeated);
        self.interval.saturating_record_n(latency_ns.max(1), self.repeated);
        self.repeated = 0;
    }
}

/// Adds one histogram to another of the same bounds.
pub fn add(to: &mut Histogram<u64>, from: &Histogram<u64>) {
    to.add(from).expect("all histograms have the same bounds");
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIT: LatencyClass = LatencyClass { command: WorkloadCommand::Get, hit: true };
    const MISS: LatencyClass = LatencyClass { command: WorkloadCommand::Get, hit: false };
    const SET: LatencyClass = LatencyClass { command: WorkloadCommand::Set, hit: true };

    #[test]
    fn repetitions_count_each() {
        let mut recorder = Recorder::default();
        for span in [5, 5, 5, 7, 5] {
            recorder.record(HIT, span, span);
        }
        recorder.record(MISS, 5, 5);
        let hits = recorder.class(HIT).unwrap();
        assert_eq!((hits.latency.len(), hits.latency.count_at(5)), (5, 4));
        assert_eq!(recorder.class(MISS).unwrap().latency.len(), 1);
        assert!(recorder.class(SET).is_none());
        assert_eq!(recorder.take_interval().len(), 6);
        assert_eq!(recorder.take_interval().len(), 0);
    }

    #[test]
    fn merging_is_the_same_as_recording_together() {
        let mut random = crate::random::Random::new(1, 0);
        let (mut one, mut two, mut both) =
            (Recorder::default(), Recorder::default(), Recorder::default());
        for i in 0..10_000 {
            let class = [HIT, MISS, SET][random.below(3) as usize];
            let (latency, service) = (random.below(1 << 30), random.below(1 << 20));
            if i % 3 == 0 { &mut one } else { &mut two }.record(class, latency, service);
            both.record(class, latency, service);
        }
        one.merge(two);
        for class in [HIT, MISS, SET] {
            assert_eq!(one.class(class).unwrap().latency, both.class(class).unwrap().latency);
            assert_eq!(one.class(class).unwrap().service, both.class(class).unwrap().service);
        }
        assert_eq!(one.sum(|_| true).latency.len(), 10_000);
        let gets = one.sum(|class| class.command == WorkloadCommand::Get).latency.len();
        assert_eq!(gets + one.class(SET).unwrap().latency.len(), 10_000);
    }

    #[test]
    fn a_span_over_the_limit_is_kept_at_the_limit() {
        let mut recorder = Recorder::default();
        recorder.record(SET, u64::MAX, 0);
        let spans = recorder.class(SET).unwrap();
        assert!(spans.latency.max() >= SPAN_NS_MAX);
        assert_eq!(spans.service.max(), 1);
    }
}
