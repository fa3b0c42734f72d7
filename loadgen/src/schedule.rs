//! When requests are due.
//!
//! In the open loop every request has an intended send time, independent of answers; after a stall
//! the server finds the requests of the stall waiting, each with its own lateness. In the closed
//! loop a request is due when an earlier answer makes room, so a stall also delays the requests and
//! hides its own length. A schedule is arithmetic on a counter: a backlog of any length costs no
//! memory.

use crate::random::Random;

/// Distribution of intended send times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrival {
    /// Evenly.
    Constant,
    /// Like independent users: exponential gaps.
    Poisson,
}

/// The intended send times of one thread, in nanoseconds since the start of the load.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrival: Arrival,
    gap_ns: f64,
    offset_ns: f64,
    sent: u64,
    due_ns: f64,
    random: Random,
}

impl Schedule {
    /// The share of thread `thread` of `threads` in `rate` requests per second (above 0). Evenly
    /// spaced threads interleave; the sum of Poisson threads is Poisson again.
    pub fn new(arrival: Arrival, rate: f64, thread: usize, threads: usize, seed: u64) -> Self {
        let gap_ns = 1e9 * threads as f64 / rate;
        let random = Random::new(seed, 0x5C4E_D000 + thread as u64);
        let offset_ns = gap_ns * thread as f64 / threads as f64;
        let mut schedule = Self { arrival, gap_ns, offset_ns, sent: 0, due_ns: 0.0, random };
        schedule.due_ns = match arrival {
            Arrival::Constant => offset_ns,
            Arrival::Poisson => schedule.exponential(),
        };
        schedule
    }

    /// When the next request is due.
    #[inline]
    pub fn due_ns(&self) -> u64 {
        self.due_ns as u64
    }

    /// Advances to the next request.
    #[inline]
    pub fn advance(&mut self) {
        self.sent += 1;
        self.due_ns = match self.arrival {
            // Computed from the counter, not by summing gaps: no drift over long runs.
            Arrival::Constant => self.offset_ns + self.sent as f64 * self.gap_ns,
            Arrival::Poisson => self.due_ns + self.exponential(),
        };
    }

    /// Approximate number of requests due from now until before `end_ns`: those that remain unsent.
    pub fn left_before(&self, end_ns: u64) -> u64 {
        ((end_ns as f64 - self.due_ns) / self.gap_ns).max(0.0).ceil() as u64
    }

    #[inline]
    fn exponential(&mut self) -> f64 {
        // 1 - unit lies in (0, 1], where the logarithm is finite.
        -(1.0 - self.random.unit()).ln() * self.gap_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(mut schedule: Schedule, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| {
                let due = schedule.due_ns();
                schedule.advance();
                due
            })
            .collect()
    }

    #[test]
    fn constant_threads_interleave_evenly() {
        let first = times(Schedule::new(Arrival::Constant, 1e6, 0, 2, 1), 3);
        let second = times(Schedule::new(Arrival::Constant, 1e6, 1, 2, 1), 3);
        assert_eq!(first, [0, 2000, 4000]);
        assert_eq!(second, [1000, 3000, 5000]);
    }

    #[test]
    fn a_long_constant_schedule_does_not_drift() {
        let mut schedule = Schedule::new(Arrival::Constant, 3.0, 0, 1, 1);
        (0..3_000_000).for_each(|_| schedule.advance());
        assert_eq!(schedule.due_ns(), 1_000_000_000_000_000);
    }

    #[test]
    fn poisson_gaps_have_the_right_mean_and_spread() {
        let due = times(Schedule::new(Arrival::Poisson, 1e6, 0, 1, 1), 100_001);
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1000.0 - 1.0).abs() < 0.02, "{mean}");
        // The standard deviation of an exponential distribution equals its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn what_is_left_is_counted() {
        let mut schedule = Schedule::new(Arrival::Constant, 1000.0, 0, 1, 1);
        assert_eq!(schedule.left_before(1_000_000_000), 1000);
        (0..400).for_each(|_| schedule.advance());
        assert_eq!(schedule.left_before(1_000_000_000), 600);
        assert_eq!(schedule.left_before(1_000_000), 0);
    }
}
