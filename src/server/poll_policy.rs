//! Decides how a core waits for work, based on recent activity.
//!
//! A sleeping core costs nothing but wakes up late. Polling halves the latency of a single
//! connection and only burns CPU with fifty, so a core polls only while it is likely to pay off.

use std::time::Duration;

use super::connection::Connection;
use super::process;
use crate::time::Instant;

/// Polling pays off while at most this many connections were active in a millisecond.
const POLLING_CONNECTIONS_MAX: u32 = 4;
/// Approximate wake-up time: polling would have noticed the end of a sleep that much earlier.
const WAKE_LATENCY: Duration = Duration::from_micros(15);

/// Recent activity of a core.
#[derive(Default)]
pub struct PollPolicy {
    activity: Activity,
    hit_rate: HitRate,
    /// Time spent looking for work without sleeping.
    polled: Duration,
    /// CPU time of the longest measured turn since the counters were last reset.
    pub longest_turn: Duration,
}

impl PollPolicy {
    /// Records an arrival for a connection.
    pub fn note_arrival(&mut self, connection: &mut Connection, now: Instant) {
        self.activity.note(connection, now);
    }

    /// Whether polling before sleep is likely to pay off.
    pub fn may_poll(&self) -> bool {
        self.activity.is_low() && self.hit_rate.is_high()
    }

    /// Records how long the core polled, and whether something arrived.
    pub fn note_polled(&mut self, time: Duration, met: bool) {
        self.polled += time;
        self.hit_rate.note(met);
    }

    /// Records how long the core slept, where it would have polled for up to `limit` before.
    pub fn note_slept(&mut self, time: Duration, limit: Duration) {
        self.hit_rate.note(time < limit + WAKE_LATENCY);
    }

    /// CPU time that the calling thread, the core's, has used for work.
    pub fn busy(&self) -> Duration {
        process::thread_cpu_time().saturating_sub(self.polled)
    }
}

/// How many connections were active in the last whole millisecond.
#[derive(Default)]
struct Activity {
    current: u32,
    last: u32,
    since: Instant,
}

impl Activity {
    fn note(&mut self, connection: &mut Connection, now: Instant) {
        if now != self.since {
            self.last = self.current;
            self.current = 0;
            self.since = now;
        }
        if connection.last_active != now || self.current == 0 {
            connection.last_active = now;
            self.current += 1;
        }
    }

    fn is_low(&self) -> bool {
        self.current.max(self.last) <= POLLING_CONNECTIONS_MAX
    }
}

/// Recent share of arrivals soon enough that polling would have caught them. Refused: the average
/// time between arrivals, in which one long pause outweighs many short ones, and a sleeping core
/// sees longer ones: it never resumed polling on a machine where other work caused pauses.
#[derive(Default)]
struct HitRate {
    /// In 256ths.
    met: u32,
}

impl HitRate {
    fn note(&mut self, met: bool) {
        self.met = (self.met * 7 + if met { 256 } else { 0 }) / 8;
    }

    fn is_high(&self) -> bool {
        self.met >= 128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn one_long_pause_among_short_ones_does_not_end_polling_and_long_ones_do() {
        let mut poll_policy = PollPolicy::default();
        assert!(!poll_policy.may_poll(), "nothing is known yet");
        (0..10).for_each(|_| poll_policy.note_slept(LIMIT, LIMIT));
        assert!(poll_policy.may_poll());
        for _ in 0..10 {
            poll_policy.note_polled(LIMIT, false);
            assert!(poll_policy.may_poll());
            (0..10).for_each(|_| poll_policy.note_polled(LIMIT / 2, true));
        }
        (0..10).for_each(|_| poll_policy.note_polled(LIMIT, false));
        assert!(!poll_policy.may_poll());
        assert_eq!(poll_policy.polled, LIMIT * 70);
        (0..10).for_each(|_| poll_policy.note_slept(LIMIT * 2, LIMIT));
        assert!(!poll_policy.may_poll());
    }
}
