//! The circuit breaker of one peer: decides whether requests to it are worth sending.
//!
//! ```text
//! closed --half of a window's requests failed--> open --30 s--> half-open --trial answered--> closed
//!                                                 ^----------------trial failed-----|
//! ```
//!
//! A peer that is slow or half dead costs every request to it a timeout. The breaker turns that
//! into an immediate refusal, which the coordinator handles like a dead replica: it asks another
//! one, or stores a hint. In the half-open state one request is sent as a trial; the others wait
//! for its outcome.

use std::time::Duration;

use ringlane_types::time::Instant;

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// Length of the window in which requests are counted.
    pub window: Duration,
    /// A window with fewer requests does not open the breaker.
    pub requests_min: u32,
    /// This percentage of failures opens it.
    pub failures_percent: u32,
    /// How long it stays open.
    pub open_for: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            requests_min: 10,
            failures_percent: 50,
            open_for: Duration::from_secs(30),
        }
    }
}

/// State of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// One request, to see.
    HalfOpen,
}

/// The breaker of one peer.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        since: Instant,
        requests: u32,
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// A trial without any outcome is abandoned at `until`, and another one sent.
    HalfOpen {
        until: Instant,
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: BreakerSettings, now: Instant) -> Self {
        Self { settings, state: State::Closed { since: now, requests: 0, failures: 0 } }
    }

    /// Whether a request may be sent. In the half-open state the first caller gets the trial, and
    /// must report its outcome.
    #[inline]
    pub fn admits(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } | State::HalfOpen { until } => {
                let trial = until <= now;
                if trial {
                    self.state = State::HalfOpen { until: now.after(self.settings.open_for) };
                }
                trial
            }
        }
    }

    /// A request admitted by [`Breaker::admits`] was not sent after all.
    pub fn not_sent(&mut self, now: Instant) {
        if let State::HalfOpen { .. } = self.state {
            self.state = State::Open { until: now };
        }
    }

    /// A request was answered. Returns whether that closes the breaker.
    #[inline]
    pub fn succeeded(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Closed { .. } => {
                self.count(0, now);
                false
            }
            // An answer to a request from before the breaker opened is old, but the peer did
            // answer; the trial that this saves would only confirm it.
            State::Open { .. } | State::HalfOpen { .. } => self.reset(now),
        }
    }

    /// A request got no answer. Returns whether that newly opens the breaker.
    pub fn failed(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Closed { .. } => {
                self.count(1, now);
                matches!(self.state, State::Open { .. })
            }
            State::Open { .. } => false,
            State::HalfOpen { .. } => {
                self.open(now);
                false
            }
        }
    }

    /// The peer is known to be back: resets the breaker. Returns whether it was not closed.
    pub fn reset(&mut self, now: Instant) -> bool {
        let closes = !matches!(self.state, State::Closed { .. });
        self.state = State::Closed { since: now, requests: 0, failures: 0 };
        closes
    }

    /// Its current state.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { until } if until > now => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    #[inline]
    fn count(&mut self, failure: u32, now: Instant) {
        let State::Closed { since, requests, failures } = &mut self.state else { return };
        if now.since(*since) >= self.settings.window {
            (*since, *requests, *failures) = (now, 0, 0);
        }
        *requests += 1;
        *failures += failure;
        let judged = *requests >= self.settings.requests_min;
        if judged && *failures * 100 >= *requests * self.settings.failures_percent {
            self.open(now);
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now.after(self.settings.open_for) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(BreakerSettings::default(), NOW);
        for _ in 0..10 {
            breaker.failed(NOW);
        }
        assert_eq!(breaker.state(NOW), BreakerState::Open);
        breaker
    }

    #[test]
    fn half_of_the_requests_failing_opens_it_and_fewer_do_not() {
        let mut breaker = Breaker::new(BreakerSettings::default(), NOW);
        for _ in 0..100 {
            breaker.succeeded(NOW);
            breaker.succeeded(NOW);
            breaker.failed(NOW);
        }
        assert_eq!(breaker.state(NOW), BreakerState::Closed);
        for _ in 0..100 {
            breaker.failed(NOW);
        }
        assert_eq!(breaker.state(NOW), BreakerState::Open);
    }

    #[test]
    fn a_handful_of_requests_proves_nothing() {
        let mut breaker = Breaker::new(BreakerSettings::default(), NOW);
        for _ in 0..9 {
            breaker.failed(NOW);
        }
        assert!(breaker.admits(NOW));
        // And what happened a window ago is forgotten.
        let later = NOW.after(11 * SECOND);
        breaker.failed(later);
        assert!(breaker.admits(later));
    }

    #[test]
    fn after_the_pause_one_trial_goes_out_and_decides() {
        let mut breaker = opened();
        assert!(!breaker.admits(NOW.after(29 * SECOND)));
        let later = NOW.after(30 * SECOND);
        assert!(breaker.admits(later));
        assert!(!breaker.admits(later), "one trial only");
        let mut failing = breaker.clone();
        failing.failed(later);
        assert!(!failing.admits(later.after(29 * SECOND)));
        assert!(failing.admits(later.after(30 * SECOND)));
        breaker.succeeded(later);
        assert_eq!(breaker.state(later), BreakerState::Closed);
        assert!(breaker.admits(later) && breaker.admits(later));
    }

    #[test]
    fn a_trial_that_was_not_sent_is_left_to_the_next() {
        let mut breaker = opened();
        let later = NOW.after(30 * SECOND);
        assert!(breaker.admits(later));
        breaker.not_sent(later);
        assert!(breaker.admits(later), "the next may try");
        assert!(!breaker.admits(later), "and only that one");
    }

    #[test]
    fn opening_and_closing_are_told_once() {
        let mut breaker = Breaker::new(BreakerSettings::default(), NOW);
        let told: Vec<bool> = (0..12).map(|_| breaker.failed(NOW)).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 1);
        assert!(told[9], "with the tenth");
        let later = NOW.after(30 * SECOND);
        assert!(breaker.admits(later) && !breaker.failed(later), "it stays open");
        assert!(breaker.succeeded(later) && !breaker.succeeded(later));
        assert!(!breaker.reset(later));
    }

    #[test]
    fn a_trial_without_any_outcome_is_not_waited_for_for_ever() {
        let mut breaker = opened();
        let later = NOW.after(30 * SECOND);
        assert!(breaker.admits(later));
        assert!(breaker.admits(later.after(30 * SECOND)));
    }
}
