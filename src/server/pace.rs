//! How a core waits for work: what it has seen of late, and what that makes worth its while.
//!
//! Asleep, a core costs nothing and wakes late. Polling halves the latency of a lone connection and
//! only burns CPU between fifty. Gathering, sleeping on until several have arrived, saves a busy
//! core wakes and cold caches, and costs everybody latency. Each is done only while it is likely to
//! pay.

use std::time::Duration;

use super::clock::Clock;
use super::connection::Connection;
use super::process;
use crate::time::Instant;

/// Polling pays while at most this many connections were active in a millisecond.
const POLLING_CONNECTIONS_MAX: u32 = 4;
/// About what it takes to wake: polling would have seen that much earlier what ended a sleep.
const WAKING: Duration = Duration::from_micros(15);
/// How long a core that gathers waits for more to come before it wakes.
pub const GATHERING: Duration = Duration::from_micros(50);
/// Times that it may do so in a millisecond.
const GATHERINGS_PER_MILLI: u32 = 20;
/// Most arrivals that are waited for before a core wakes.
const GATHERED_MAX: u32 = 16;
/// A core gathers while its thread uses at least this part of its time, in percent. With less to do
/// the latency is worth more than the CPU time.
const GATHERING_LOAD_PERCENT: u32 = 75;
/// How often a core looks at how much of its time it uses, in milliseconds.
const LOAD_WINDOW_MILLIS: u64 = 8;
/// About how much of a long value comes at a time.
const PIECE_BYTES: usize = 32 << 10;

/// What a core has seen of late.
#[derive(Default)]
pub struct Pace {
    activity: Activity,
    load: Load,
    soon: Odds,
    /// Time spent looking for work without sleeping.
    polled: Duration,
}

impl Pace {
    /// Notes that `bytes` have come for a connection.
    pub fn arrived(&mut self, connection: &mut Connection, bytes: usize, now: Instant) {
        self.activity.note(connection, bytes, now);
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

    /// How many arrivals are worth being waited for before the core wakes: what a gathering's time
    /// brings at the rate of late. `None` when so little comes, or the core has so little to do,
    /// that waiting would only add latency.
    pub fn worth_gathering(&mut self, now: Instant, clock: &Clock) -> Option<u32> {
        let expected = self.activity.arrivals(now) / GATHERINGS_PER_MILLI;
        if expected < 2 || self.activity.few() {
            return None;
        }
        if self.load.is_due(now) {
            self.load.note(clock.uptime(), self.busy(), now);
        }
        (self.load.percent >= GATHERING_LOAD_PERCENT).then_some(expected.min(GATHERED_MAX))
    }
}

/// How many connections were active in the last whole millisecond, and how often.
#[derive(Default)]
struct Activity {
    current: u32,
    last: u32,
    arrivals_current: u32,
    arrivals_last: u32,
    since: Instant,
}

impl Activity {
    /// A long value comes in pieces each of which may have woken the core.
    fn note(&mut self, connection: &mut Connection, bytes: usize, now: Instant) {
        if now != self.since {
            self.last = self.current;
            self.current = 0;
            self.arrivals_last = self.arrivals_current;
            self.arrivals_current = 0;
            self.since = now;
        }
        self.arrivals_current += 1 + (bytes / PIECE_BYTES) as u32;
        if connection.last_active != now || self.current == 0 {
            connection.last_active = now;
            self.current += 1;
        }
    }

    fn few(&self) -> bool {
        self.current.max(self.last) <= POLLING_CONNECTIONS_MAX
    }

    /// Arrivals in a millisecond, lately.
    fn arrivals(&self, now: Instant) -> u32 {
        if now.since(self.since) > Duration::from_millis(1) {
            return 0;
        }
        self.arrivals_current.max(self.arrivals_last)
    }
}

/// How much of its time the core's thread uses.
#[derive(Default)]
struct Load {
    looked: Instant,
    at: Duration,
    busy: Duration,
    /// In the last window; of the time since before, if there was no such window.
    percent: u32,
}

impl Load {
    fn is_due(&self, now: Instant) -> bool {
        now.since(self.looked) >= Duration::from_millis(LOAD_WINDOW_MILLIS)
    }

    /// Notes that at `at`, counted from some beginning, the core had been busy for so long.
    fn note(&mut self, at: Duration, busy: Duration, now: Instant) {
        let (span, used) = (at.saturating_sub(self.at), busy.saturating_sub(self.busy));
        self.percent = (used.as_micros() * 100 / span.as_micros().max(1)) as u32;
        (self.looked, self.at, self.busy) = (now, at, busy);
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

    #[test]
    fn load_is_what_was_used_of_the_last_window() {
        let mut load = Load::default();
        let second = Duration::from_secs(1);
        load.note(second * 10, second, Instant::from_millis(10_000));
        assert_eq!(load.percent, 10);
        assert!(!load.is_due(Instant::from_millis(10_007)));
        assert!(load.is_due(Instant::from_millis(10_008)));
        load.note(second * 12, second * 5 / 2, Instant::from_millis(12_000));
        assert_eq!(load.percent, 75);
    }
}
