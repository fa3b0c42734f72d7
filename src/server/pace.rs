//! How a core waits for work: what it has seen of late, and what that makes worth its while.
//!
//! Asleep, a core costs nothing and wakes late. Polling halves the latency of a lone connection and
//! only burns CPU between fifty, so it is done only while it is likely to pay.

use std::time::Duration;

use super::connection::Connection;
use super::process;
use crate::time::Instant;

/// Polling pays while at most this many connections were active in a millisecond.
const POLLING_CONNECTIONS_MAX: u32 = 4;
/// About what it takes to wake: polling would have seen that much earlier what ended a sleep.
const WAKING: Duration = Duration::from_micros(15);

/// What a core has seen of late.
#[derive(Default)]
pub struct Pace {
    activity: Activity,
    soon: Odds,
    /// Time spent looking for work without sleeping.
    polled: Duration,
    /// CPU time of the longest turn since the counters were last reset, of those that were measured.
    pub longest_turn: Duration,
}

impl Pace {
    /// Notes that something has come for a connection.
    pub fn arrived(&mut self, connection: &mut Connection, now: Instant) {
        self.activity.note(connection, now);
    }

    /// Whether polling before sleep is likely to pay.
    pub fn may_poll(&self) -> bool {
        self.activity.few() && self.soon.are_good()
    }

    /// Notes how long the core has polled, and whether it met something.
    pub fn has_polled(&mut self, time: Duration, met: bool) {
        self.polled += time;
        self.soon.note(met);
    }

    /// Notes how long the core has slept, where it would have polled for as long as `limit` before.
    pub fn has_slept(&mut self, time: Duration, limit: Duration) {
        self.soon.note(time < limit + WAKING);
    }

    /// CPU time that the core's thread, the calling one, has used for work.
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

    fn few(&self) -> bool {
        self.current.max(self.last) <= POLLING_CONNECTIONS_MAX
    }
}

/// How often of late something came so soon that polling would have met it. Refused: the average
/// time between arrivals, for which one long pause outweighs many short ones, and a core that sleeps
/// sees longer ones: it did not come back to polling on a machine whose other work made pauses.
#[derive(Default)]
struct Odds {
    /// In 256ths.
    met: u32,
}

impl Odds {
    fn note(&mut self, met: bool) {
        self.met = (self.met * 7 + if met { 256 } else { 0 }) / 8;
    }

    fn are_good(&self) -> bool {
        self.met >= 128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn one_long_pause_among_short_ones_does_not_end_polling_and_long_ones_do() {
        let mut pace = Pace::default();
        assert!(!pace.may_poll(), "nothing is known yet");
        (0..10).for_each(|_| pace.has_slept(LIMIT, LIMIT));
        assert!(pace.may_poll());
        for _ in 0..10 {
            pace.has_polled(LIMIT, false);
            assert!(pace.may_poll());
            (0..10).for_each(|_| pace.has_polled(LIMIT / 2, true));
        }
        (0..10).for_each(|_| pace.has_polled(LIMIT, false));
        assert!(!pace.may_poll());
        assert_eq!(pace.polled, LIMIT * 70);
        (0..10).for_each(|_| pace.has_slept(LIMIT * 2, LIMIT));
        assert!(!pace.may_poll());
    }
}
