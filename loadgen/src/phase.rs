//! Runs one phase on all threads and merges their results.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, mpsc};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::error::Error;
use crate::errors::Faults;
use crate::histogram::{self, Recorder};
use crate::phase_state::{Note, SecondCounts, Shared, ThreadResult, Totals};
use crate::plan::Plan;
use crate::process::CpuUse;
use crate::worker;
use crate::workload::Workload;
use ringlane_client::discovery::Directory;

/// The outcome of a phase.
pub struct PhaseOutcome {
    /// Latencies.
    pub recorder: Recorder,
    /// Counts.
    pub totals: Totals,
    /// Faults.
    pub faults: Faults,
    /// Length of the recording.
    pub window: Duration,
    /// CPU time of each generator thread.
    pub generator_cpu: Vec<CpuUse>,
    /// Fraction of the window each generator thread was busy, 0 to 1.
    pub generator_busy: Vec<f64>,
    /// Fraction of the window in which other processes used the CPU of the most affected generator
    /// thread.
    pub generator_waited: f64,
    /// CPU time of the server.
    pub server_cpu: Option<CpuUse>,
    /// Fraction of the window the server's busiest thread was busy, 0 to 1.
    pub server_busiest: Option<f64>,
    /// Requests due that were never sent.
    pub unsent: u64,
    /// Whether the server was gone at the end: no connection was open or could be reopened.
    pub gone: bool,
    /// The phase second by second.
    pub timeline: Vec<Moment>,
}

/// One second of a phase, over all threads.
#[derive(Clone)]
pub struct Moment {
    /// Its number, from 1.
    pub second: u64,
    /// Requests answered in it.
    pub answers: u64,
    /// Their latencies.
    pub latency: Histogram<u64>,
    /// Faults in it, by kind.
    pub faults: Vec<(&'static str, u64)>,
    /// Keys requested in it.
    pub keys_asked: u64,
    /// Keys found among these.
    pub keys_hit: u64,
}

/// Runs a phase; `live` gets every complete second.
pub fn run(
    plan: Plan,
    workload: Workload,
    mut live: impl FnMut(&Moment),
) -> Result<PhaseOutcome, Error> {
    let threads = plan.cpus.len();
    let shared = Shared {
        plan,
        workload,
        epoch: Instant::now(),
        start_ns: AtomicU64::new(0),
        gate: Barrier::new(threads + 1),
        stop: AtomicBool::new(false),
        wrong: Mutex::new(None),
    };
    let mut timeline = Timeline::new(threads);
    let directory = shared.plan.directory.clone();
    let results = std::thread::scope(|scope| {
        scope.spawn(|| directory.watch());
        // However this closure ends, the scope waits for the watching thread.
        let _end = EndWatch(&directory);
        let (sender, notes) = mpsc::channel();
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (shared, sender) = (&shared, sender.clone());
                std::thread::Builder::new()
                    .name(format!("load {thread}"))
                    .spawn_scoped(scope, move || worker::run(shared, thread, &sender))
                    .expect("a few threads can be started")
            })
            .collect();
        drop(sender);
        let (mut up, mut faults) = (0, Faults::default());
        for _ in 0..threads {
            if let Ok(Note::Ready(connected, seen)) = notes.recv() {
                up += connected;
                faults.merge(seen);
            }
        }
        if up == 0 {
            shared.stop.store(true, Ordering::Relaxed);
        }
        // Slightly in the future, so that all threads start together.
        let start = shared.epoch.elapsed() + Duration::from_millis(1);
        shared.start_ns.store(start.as_nanos() as u64, Ordering::Release);
        shared.gate.wait();
        for note in notes {
            if let Note::Second(second) = note {
                timeline.add(second, &mut live);
            }
        }
        let results: Vec<_> = handles
            .into_iter()
            .map(|handle| handle.join().expect("threads do not panic"))
            .collect();
        if up == 0 { (Some(faults), results) } else { (None, results) }
    });
    let (down, results) = results;
    let results: Vec<ThreadResult> = results
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Setup(format!("the generator's io_uring failed: {error}")))?;
    if let Some(faults) = down {
        let words = faults.telling().unwrap_or("no connection").to_owned();
        return Err(Error::Setup(format!("cannot connect: {words}")));
    }
    if let Some(wrong) = shared.wrong.into_inner().expect("no thread panics with it") {
        return Err(Error::WrongAnswer(wrong));
    }
    let stopped = shared.stop.load(Ordering::Relaxed);
    let outcome = gather(results, timeline.moments);
    if outcome.totals.answers == 0 || (stopped && shared.plan.window.is_none()) {
        let what = if stopped { "gave up" } else { "no request was answered" };
        return Err(Error::Setup(match outcome.faults.telling() {
            Some(words) => format!("{what}: {words}"),
            // Some were answered before the recording.
            None if outcome.unsent > 0 => format!(
                "nothing was recorded: the server fell so far behind that none of the {} requests \
                 due in that time was sent; lower the rate or raise the number of connections",
                outcome.unsent
            ),
            None => format!("{what}: no request was answered in time"),
        }));
    }
    Ok(outcome)
}

impl PhaseOutcome {
    /// Why the figures do not cover the whole phase: the server died during it.
    pub fn failure(&self) -> Option<Error> {
        self.gone.then(|| {
            let words = self.faults.telling().unwrap_or("no connection");
            Error::ServerGone(format!(
                "the server went away before the end; the figures cover its answers until then: \
                 {words}"
            ))
        })
    }
}

/// Ends the watch thread when dropped.
struct EndWatch<'d>(&'d Directory);

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.end_watch();
    }
}

fn gather(results: Vec<ThreadResult>, timeline: Vec<Moment>) -> PhaseOutcome {
    let mut outcome = PhaseOutcome {
        recorder: Recorder::default(),
        totals: Totals::default(),
        faults: Faults::default(),
        window: Duration::ZERO,
        generator_cpu: Vec::new(),
        generator_busy: Vec::new(),
        generator_waited: 0.0,
        server_cpu: None,
        server_busiest: None,
        unsent: 0,
        gone: true,
        timeline,
    };
    for result in results {
        outcome.recorder.merge(result.recorder);
        outcome.totals.add(result.totals);
        outcome.faults.merge(result.faults);
        outcome.window = outcome.window.max(Duration::from_nanos(result.window_ns));
        outcome.generator_cpu.push(result.cpu);
        outcome.generator_busy.push(result.busy);
        outcome.generator_waited = outcome.generator_waited.max(result.waited);
        outcome.server_cpu = outcome.server_cpu.or(result.server_cpu);
        outcome.unsent += result.unsent;
        outcome.gone &= result.gone;
    }
    outcome.server_busiest =
        outcome.server_cpu.map(|cpu| cpu.busiest_ns / outcome.window.as_nanos().max(1) as f64);
    outcome
}

/// Merges the threads' seconds, which they may report at different times.
struct Timeline {
    threads: usize,
    moments: Vec<Moment>,
    /// Seconds reported by some threads but not all: how many threads, and the sum.
    open: Vec<(usize, Moment, Totals, Faults)>,
    totals: Totals,
    faults: Faults,
    /// The last second, if nothing happened in it.
    silent: Option<Moment>,
}

impl Timeline {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            moments: Vec::new(),
            open: Vec::new(),
            totals: Totals::default(),
            faults: Faults::default(),
            silent: None,
        }
    }

    fn add(&mut self, second: SecondCounts, live: &mut impl FnMut(&Moment)) {
        let at = self.open.iter().position(|(_, moment, ..)| moment.second == second.number);
        let at = at.unwrap_or_else(|| {
            let moment = Moment {
                second: second.number,
                answers: 0,
                latency: histogram::spans(),
                faults: Vec::new(),
                keys_asked: 0,
                keys_hit: 0,
            };
            self.open.push((0, moment, Totals::default(), Faults::default()));
            self.open.len() - 1
        });
        let (told, moment, totals, faults) = &mut self.open[at];
        *told += 1;
        histogram::add(&mut moment.latency, &second.latency);
        totals.add(second.totals);
        faults.merge(second.faults);
        if *told == self.threads {
            let (_, mut moment, totals, faults) = self.open.remove(at);
            moment.answers = totals.answers - self.totals.answers;
            moment.keys_asked = totals.keys_asked - self.totals.keys_asked;
            moment.keys_hit = totals.keys_hit - self.totals.keys_hit;
            moment.faults = faults.since(&self.faults);
            (self.totals, self.faults) = (totals, faults);
            // An empty second is shown only if another one follows: the remainder after the last
            // whole second is mostly empty.
            let nothing = moment.answers == 0 && moment.faults.is_empty();
            for moment in self.silent.take().into_iter().chain((!nothing).then(|| moment.clone())) {
                live(&moment);
                self.moments.push(moment);
            }
            self.silent = nothing.then_some(moment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::Fault;

    /// What a thread tells of a second: totals and faults so far, and one latency.
    fn second(number: u64, answers: u64, faults: u64, latency_ns: u64) -> SecondCounts {
        let mut latency = histogram::spans();
        latency.record(latency_ns).expect("in range");
        let mut counted = Faults::default();
        counted.count(Fault::Reset, faults, String::new);
        let totals = Totals { answers, ..Totals::default() };
        SecondCounts { number, latency, totals, faults: counted }
    }

    #[test]
    fn a_second_is_shown_when_every_thread_has_told_of_it() {
        let mut timeline = Timeline::new(2);
        let mut shown = Vec::new();
        let mut live = |moment: &Moment| shown.push((moment.second, moment.answers));
        timeline.add(second(1, 10, 0, 5), &mut live);
        timeline.add(second(2, 30, 0, 5), &mut live);
        timeline.add(second(1, 7, 1, 9), &mut live);
        timeline.add(second(2, 8, 3, 9), &mut live);
        assert_eq!(shown, [(1, 17), (2, 21)]);
        let faults: Vec<_> = timeline.moments.iter().map(|moment| moment.faults.clone()).collect();
        assert_eq!(faults, [[("connection reset", 1)], [("connection reset", 2)]]);
        assert_eq!(timeline.moments[0].latency.max(), 9);
        assert_eq!(timeline.moments[0].latency.len(), 2);
    }

    #[test]
    fn a_second_in_which_nothing_happens_is_no_gap() {
        let mut timeline = Timeline::new(1);
        for (number, answers) in [(1, 10), (2, 10), (3, 10), (4, 12)] {
            timeline.add(second(number, answers, 0, 5), &mut |_| {});
        }
        let seen: Vec<_> = timeline.moments.iter().map(|m| (m.second, m.answers)).collect();
        assert_eq!(seen, [(1, 10), (2, 0), (3, 0), (4, 2)]);
    }

    #[test]
    fn a_last_second_without_anything_is_left_out() {
        let mut timeline = Timeline::new(1);
        timeline.add(second(1, 10, 0, 5), &mut |_| {});
        timeline.add(second(2, 10, 0, 5), &mut |_| {});
        assert_eq!(timeline.moments.len(), 1);
    }
}
