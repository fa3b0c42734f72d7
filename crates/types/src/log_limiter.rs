//! Limits log lines that remote parties can trigger, and counts the suppressed ones.
//!
//! Anyone who reaches a port could otherwise fill a disk, or hide an important line among a million
//! others. Lines are limited by kind and source: each source has a few lines per window, and each
//! kind a few more over all sources, since addresses can be forged. Suppressed lines are counted
//! and reported once the window is over.
//!
//! ```text
//! line -> source's window (PER_SOURCE) -> kind's window (PER_KIND) -> written
//!              '--------- full -----------------'---- full -----> counted, told by `summaries`
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::time::Instant;

/// Length of a window.
pub const SPAN: Duration = Duration::from_secs(60);
/// Maximum lines of one kind and source in a window.
pub const PER_SOURCE: u32 = 4;
/// Maximum lines of one kind in a window, all sources together.
pub const PER_KIND: u32 = 64;
/// Maximum sources tracked, all kinds together. Further ones are limited only by kind.
const SOURCES_MAX: usize = 1024;

/// The subject of a log line that remote parties can trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogKind {
    /// A datagram was refused.
    Refused,
    /// Another node has refused this one.
    RefusedBy,
    /// A member came, left or was declared dead; a roster was decided.
    Members,
    /// A datagram could not be sent or received.
    Gossip,
    /// A link could not be established.
    Link,
    /// A link was closed because the peer violated the framing.
    BadFrame,
    /// A circuit breaker opened or closed.
    Breaker,
    /// Connections of clients could not be accepted.
    Accept,
    /// Connections of other nodes could not be accepted.
    AcceptNode,
    /// Connections to the admin pages could not be accepted.
    AcceptAdmin,
}

impl LogKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [LogKind; 10] = [
        LogKind::Refused,
        LogKind::RefusedBy,
        LogKind::Members,
        LogKind::Gossip,
        LogKind::Link,
        LogKind::BadFrame,
        LogKind::Breaker,
        LogKind::Accept,
        LogKind::AcceptNode,
        LogKind::AcceptAdmin,
    ];

    /// The subject of the lines, for the line that counts them.
    pub const fn what(self) -> &'static str {
        match self {
            LogKind::Refused => "refused datagrams",
            LogKind::RefusedBy => "refusals by other nodes",
            LogKind::Members => "members",
            LogKind::Gossip => "datagrams that could not be sent or received",
            LogKind::Link => "links that could not be established",
            LogKind::BadFrame => "links that were closed",
            LogKind::Breaker => "paused and resumed nodes",
            LogKind::Accept => "connections that could not be accepted",
            LogKind::AcceptNode => "node connections that could not be accepted",
            LogKind::AcceptAdmin => "admin connections that could not be accepted",
        }
    }
}

/// Counts lines and decides which are written.
#[derive(Debug)]
pub struct LogLimiter {
    kinds: [Window; LogKind::ALL.len()],
    sources: HashMap<u64, Window, ahash::RandomState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// When it began; meaningless while nothing is counted.
    since: Instant,
    written: u32,
    withheld: u64,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.since(self.since) >= SPAN
    }

    /// Restarts the window if it is over. The suppressed count remains, to be reported.
    fn renew(&mut self, now: Instant) {
        if self.is_over(now) {
            (self.since, self.written) = (now, 0);
        }
    }
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimiter {
    /// Creates an empty limiter.
    pub fn new() -> Self {
        Self {
            kinds: [Window::default(); LogKind::ALL.len()],
            sources: HashMap::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4)),
        }
    }

    /// Whether to write a line of this kind about `source` now; otherwise it is counted.
    pub fn admits(&mut self, kind: LogKind, source: impl Hash, now: Instant) -> bool {
        let known = self.sources.hasher().hash_one((kind, source));
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&known) {
            self.sources.retain(|_, window| !window.is_over(now));
        }
        let is_room = self.sources.len() < SOURCES_MAX || self.sources.contains_key(&known);
        let of_kind = &mut self.kinds[kind as usize];
        of_kind.renew(now);
        let mut admitted = of_kind.written < PER_KIND;
        if is_room && admitted {
            let of_source = self.sources.entry(known).or_default();
            of_source.renew(now);
            admitted = of_source.written < PER_SOURCE;
            of_source.written += u32::from(admitted);
        }
        if admitted {
            of_kind.written += 1;
        } else {
            of_kind.withheld = of_kind.withheld.saturating_add(1);
        }
        admitted
    }

    /// Reports per kind how many lines were suppressed in windows that are over. Call it
    /// periodically.
    pub fn summaries(&mut self, now: Instant, mut tell: impl FnMut(LogKind, u64)) {
        for kind in LogKind::ALL {
            let window = &mut self.kinds[kind as usize];
            if window.withheld > 0 && window.is_over(now) {
                tell(kind, window.withheld);
                *window = Window { since: now, ..Window::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_millis(1_700_000_000_000);

    fn told(limiter: &mut LogLimiter, now: Instant) -> Vec<(LogKind, u64)> {
        let mut told = Vec::new();
        limiter.summaries(now, |kind, count| told.push((kind, count)));
        told
    }

    #[test]
    fn the_numbers_of_kinds_are_their_places() {
        for (place, kind) in LogKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }

    #[test]
    fn a_source_has_its_lines_and_the_rest_is_counted_once() {
        let mut limiter = LogLimiter::new();
        let written = (0..1000).filter(|_| limiter.admits(LogKind::Refused, 1, START)).count();
        assert_eq!(written, PER_SOURCE as usize);
        assert!(limiter.admits(LogKind::Refused, 2, START), "another source has its own");
        assert!(limiter.admits(LogKind::Link, 1, START), "another kind has its own");
        assert_eq!(told(&mut limiter, START), [], "the window is not over");
        let later = START.after(SPAN);
        let withheld = 1000 - u64::from(PER_SOURCE);
        assert_eq!(told(&mut limiter, later), [(LogKind::Refused, withheld)]);
        assert_eq!(told(&mut limiter, later.after(SPAN)), [], "told once");
        assert!(limiter.admits(LogKind::Refused, 1, later.after(SPAN)));
    }

    #[test]
    fn forged_sources_have_no_more_lines_than_the_kind() {
        let mut limiter = LogLimiter::new();
        let written =
            (0..100_000).filter(|source| limiter.admits(LogKind::Refused, source, START)).count();
        assert_eq!(written, PER_KIND as usize);
        assert!(limiter.sources.len() <= SOURCES_MAX);
        // Nor do they use up what others have.
        assert!(limiter.admits(LogKind::Accept, 0, START));
    }

    #[test]
    fn what_was_withheld_is_told_though_lines_go_on() {
        let mut limiter = LogLimiter::new();
        let mut now = START;
        let (mut lines, mut written, mut counted) = (0u64, 0u64, 0u64);
        for _ in 0..600 {
            now = now.after(Duration::from_secs(1));
            for source in 0..50 {
                lines += 1;
                written += u64::from(limiter.admits(LogKind::Members, source, now));
            }
            limiter.summaries(now, |_, count| counted += count);
        }
        limiter.summaries(now.after(SPAN), |_, count| counted += count);
        assert_eq!(lines, written + counted, "every line is written or counted");
        assert!(written <= 11 * u64::from(PER_KIND), "{written} in ten windows");
    }

    #[test]
    fn many_sources_do_not_cost_memory() {
        let mut limiter = LogLimiter::new();
        let mut now = START;
        for source in 0..20_000 {
            now = now.after(Duration::from_secs(1));
            limiter.admits(LogKind::Link, source, now);
            assert!(limiter.sources.len() <= SOURCES_MAX);
        }
    }
}
