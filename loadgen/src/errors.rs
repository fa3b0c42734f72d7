//! Faults during a run: counted by kind, with a description of the first case of each.

use std::io;

/// A kind of fault that a run survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing listens at the address.
    Refused,
    /// The connection could not be opened for another reason.
    Unreachable,
    /// The other side reset the connection.
    Reset,
    /// The other side closed the connection while answers were due.
    Closed,
    /// No answer, or no connection, within the time limit.
    TimedOut,
    /// The received bytes are not the protocol.
    Protocol,
    /// The server answered with an error line.
    ErrorAnswer,
    /// A request was in flight when its connection was lost.
    Lost,
}

impl Fault {
    const ALL: [Fault; 8] = [
        Fault::Refused,
        Fault::Unreachable,
        Fault::Reset,
        Fault::Closed,
        Fault::TimedOut,
        Fault::Protocol,
        Fault::ErrorAnswer,
        Fault::Lost,
    ];

    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::Refused => "connection refused",
            Fault::Unreachable => "connection failed",
            Fault::Reset => "connection reset",
            Fault::Closed => "connection closed by the server",
            Fault::TimedOut => "timed out",
            Fault::Protocol => "not the protocol",
            Fault::ErrorAnswer => "error answer",
            Fault::Lost => "request lost with its connection",
        }
    }

    /// The kind of a socket error; none means the other side closed the connection.
    pub fn of(error: Option<&io::Error>) -> Self {
        match error.map(io::Error::kind) {
            None => Fault::Closed,
            Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Fault::Refused,
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Fault::Reset,
            Some(io::ErrorKind::TimedOut) => Fault::TimedOut,
            Some(_) => Fault::Unreachable,
        }
    }
}

/// Faults counted by kind.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    kinds: [(u64, Option<String>); Fault::ALL.len()],
}

impl Faults {
    /// Counts `count` faults; `words` describes the first of its kind.
    pub fn count(&mut self, fault: Fault, count: u64, words: impl FnOnce() -> String) {
        let (total, first) = &mut self.kinds[fault as usize];
        *total += count;
        if count > 0 && first.is_none() {
            *first = Some(words());
        }
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: Faults) {
        for ((total, first), (more, words)) in self.kinds.iter_mut().zip(other.kinds) {
            *total += more;
            *first = first.take().or(words);
        }
    }

    /// How many of one kind.
    pub fn of(&self, fault: Fault) -> u64 {
        self.kinds[fault as usize].0
    }

    /// Kinds counted here beyond what `earlier` had.
    pub fn since(&self, earlier: &Faults) -> Vec<(&'static str, u64)> {
        let counts = self.kinds.iter().zip(&earlier.kinds).map(|((now, _), (then, _))| now - then);
        Fault::ALL
            .into_iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(fault, count)| (fault.name(), count))
            .collect()
    }

    /// All counted together.
    pub fn total(&self) -> u64 {
        self.kinds.iter().map(|(count, _)| count).sum()
    }

    /// The kinds that occurred: kind, count and first case.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64, &str)> {
        Fault::ALL
            .into_iter()
            .zip(&self.kinds)
            .filter(|(_, (count, _))| *count > 0)
            .map(|(fault, (count, first))| (fault, *count, first.as_deref().unwrap_or_default()))
    }

    /// The case that explains most: another protocol rather than the connections it cost.
    pub fn telling(&self) -> Option<&str> {
        let foreign = self.iter().find(|(fault, ..)| *fault == Fault::Protocol);
        foreign.or_else(|| self.iter().next()).map(|(_, _, words)| words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_add_up_and_keep_the_first_words() {
        let mut faults = Faults::default();
        faults.count(Fault::Reset, 1, || "first".into());
        faults.count(Fault::Reset, 2, || "second".into());
        faults.count(Fault::Lost, 0, || "never".into());
        let mut sum = Faults::default();
        sum.count(Fault::Refused, 1, || "before".into());
        sum.merge(faults);
        let seen: Vec<_> = sum.iter().collect();
        assert_eq!(seen, [(Fault::Refused, 1, "before"), (Fault::Reset, 3, "first")]);
        assert_eq!((sum.total(), sum.of(Fault::Reset), sum.telling()), (4, 3, Some("before")));
        sum.count(Fault::Protocol, 1, || "foreign".into());
        assert_eq!(sum.telling(), Some("foreign"));
    }
}
