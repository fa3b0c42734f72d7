//! What a server must answer, as far as its acknowledgements say.
//!
//! A key has a set of candidates: the states it may be in. Mostly there is one. There are more when a
//! deadline is near, when something may have been evicted, or when a connection was reset with
//! requests on their way. Each answer leaves those candidates that explain it; an answer that none
//! explains is the server's fault.

use std::time::{Duration, Instant};

/// How far the server's deadline may be from what the client can tell. Far more than it should, for
/// machines that let a process wait.
const SLACK: Duration = Duration::from_millis(1500);
/// Candidates of one key beyond which something is wrong with the test itself.
const CANDIDATES_MAX: usize = 300;

/// The server's limit for an item, and values that stay below it whatever their keys.
const ITEM_BYTES_MAX: usize = 1 << 20;
pub const VALUE_BYTES_MAX: usize = ITEM_BYTES_MAX - 1024;

/// A part of a value: so many bytes of the stream of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub version: u32,
    pub bytes: u32,
}

/// A value that can be made again, and so need not be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Pieces(Vec<Piece>),
    Number(u64),
}

/// Bytes of a stream's unit.
const UNIT: usize = 16;
/// Odd, so that each offset looks different; and never zeros.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// One unit of a stream: who it belongs to, and where in it it stands.
fn unit(key: u32, version: u32, number: u64) -> [u8; UNIT] {
    let owner = u64::from(key) << 32 | u64::from(version);
    let mut bytes = [0; UNIT];
    bytes[..8].copy_from_slice(&(owner ^ SPREAD).to_le_bytes());
    bytes[8..].copy_from_slice(&(number + 1).wrapping_mul(SPREAD).to_le_bytes());
    bytes
}

impl Piece {
    pub fn append_to(self, key: u32, out: &mut Vec<u8>) {
        let end = out.len() + self.bytes as usize;
        let units = (self.bytes as usize).div_ceil(UNIT);
        out.reserve(units * UNIT);
        for number in 0..units {
            out.extend_from_slice(&unit(key, self.version, number as u64));
        }
        out.truncate(end);
    }
}

impl Value {
    pub fn len(&self) -> usize {
        match self {
            Value::Pieces(pieces) => pieces.iter().map(|piece| piece.bytes as usize).sum(),
            Value::Number(number) => number.to_string().len(),
        }
    }

    pub fn bytes(&self, key: u32) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Value::Pieces(pieces) => pieces.iter().for_each(|piece| piece.append_to(key, &mut out)),
            Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        }
        out
    }
}

/// An item as the server must hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub value: Value,
    pub flags: u32,
    /// It lives until the first moment for certain, and not beyond the second.
    pub life: Option<(Instant, Instant)>,
}

/// What is asked for. Times to live are in seconds; 0 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    /// With the CAS token.
    Gets,
    GetAndTouch(u32),
    Set(Piece, u32),
    Add(Piece, u32),
    Replace(Piece, u32),
    Append(Piece),
    Prepend(Piece),
    Cas(u64, Piece, u32),
    SetNumber(u32, u32),
    Increment(u32),
    Decrement(u32),
    Touch(u32),
    Delete,
}

/// One request for one key.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Its place in the worker's table.
    pub index: u32,
    pub kind: Kind,
    /// The client does not want to be answered.
    pub quiet: bool,
}

/// What the server said.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    Found {
        flags: u32,
        token: Option<u64>,
        value: Vec<u8>,
    },
    Missed,
    Stored,
    NotStored,
    Exists,
    NotFound,
    Done,
    Number(u64),
    /// Nothing was to be said.
    Silent,
    /// Anything else, for people.
    Refused(String),
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Found { flags, token, value } => {
                write!(f, "Found {} bytes, flags {flags}, token {token:?}", value.len())
            }
            Outcome::Missed => f.write_str("Missed"),
            Outcome::Number(number) => write!(f, "Number {number}"),
            Outcome::Refused(why) => write!(f, "Refused: {why}"),
            Outcome::Stored => f.write_str("Stored"),
            Outcome::NotStored => f.write_str("NotStored"),
            Outcome::Exists => f.write_str("Exists"),
            Outcome::NotFound => f.write_str("NotFound"),
            Outcome::Done => f.write_str("Done"),
            Outcome::Silent => f.write_str("Silent"),
        }
    }
}

/// What is known of the item's CAS token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// It is this one.
    Valid(u64),
    /// It was this one before a change.
    Stale(u64),
    Unknown,
}

/// When a request was sent and its answer was there.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub sent: Instant,
    pub received: Instant,
}

/// What is known of one key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `None` is: there is no item.
    candidates: Vec<Option<Held>>,
    pub token: Token,
    /// Requests of a connection that was reset may still take effect until then.
    pub rests_until: Option<Instant>,
    history: Vec<String>,
}

/// Requests of a key that are kept for the report.
const HISTORY: usize = 6;

impl Default for Entry {
    fn default() -> Self {
        Self {
            candidates: vec![None],
            token: Token::Unknown,
            rests_until: None,
            history: Vec::new(),
        }
    }
}

impl Entry {
    /// The item if it is certain that there is one, and that it does not expire.
    pub fn held_for_good(&self) -> Option<&Held> {
        match &self.candidates[..] {
            [Some(held)] if held.life.is_none() => Some(held),
            _ => None,
        }
    }

    /// The item if there may be one.
    pub fn may_hold(&self) -> Option<&Held> {
        self.candidates.iter().flatten().next()
    }

    /// Nothing may be left of it, unless requests are still on their way.
    pub fn flush(&mut self) {
        match self.rests_until {
            Some(_) => self.add(None),
            None => self.candidates = vec![None],
        }
        self.token = Token::Unknown;
        self.note(|| "flush_all".to_owned());
    }

    fn add(&mut self, candidate: Option<Held>) {
        if !self.candidates.contains(&candidate) {
            self.candidates.push(candidate);
        }
        assert!(self.candidates.len() <= CANDIDATES_MAX, "the model does not know much");
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(what());
    }

    /// The request may have been performed, and may yet be until the end of `span`.
    pub fn lose(&mut self, key: u32, kind: Kind, span: Span, evicts: bool) {
        for candidate in self.possible(span, evicts) {
            for (_, next) in outcomes(key, kind, &candidate, Token::Unknown, span) {
                self.add(next);
            }
        }
        self.token = Token::Unknown;
        self.rests_until = Some(span.received);
        self.note(|| format!("{kind:?} lost by a reset"));
    }

    /// The states that a request of this span may have met.
    fn possible(&self, span: Span, evicts: bool) -> Vec<Option<Held>> {
        let mut possible = Vec::new();
        let mut push = |candidate: Option<Held>| {
            if !possible.contains(&candidate) {
                possible.push(candidate);
            }
        };
        for candidate in &self.candidates {
            let Some(held) = candidate else {
                push(None);
                continue;
            };
            let (lives, ends) = held
                .life
                .map_or((true, false), |(from, to)| (span.sent <= to, span.received >= from));
            if lives {
                push(Some(held.clone()));
            }
            if ends || evicts {
                push(None);
            }
        }
        possible
    }

    /// Takes in an answer; what is wrong with it if nothing explains it. With `evicts` any item may
    /// have gone before.
    pub fn answered(
        &mut self,
        key: u32,
        kind: Kind,
        outcome: &Outcome,
        span: Span,
        evicts: bool,
    ) -> Result<(), String> {
        let before = self.possible(span, evicts);
        let mut after: Vec<Option<Held>> = Vec::new();
        for candidate in &before {
            for (expected, next) in outcomes(key, kind, candidate, self.token, span) {
                if agrees(&expected, outcome) && !after.contains(&next) {
                    after.push(next);
                }
            }
        }
        if after.is_empty() {
            return Err(format!(
                "{kind:?} was answered {outcome:?}{}; possible before: {before:?}; token {:?}; last: {:#?}",
                differs(key, outcome, &before),
                self.token,
                self.history
            ));
        }
        self.candidates = after;
        self.token = match (kind, outcome) {
            (_, Outcome::Found { token: Some(token), .. }) => Token::Valid(*token),
            (Kind::Get | Kind::Gets, _) => self.token,
            // These may or may not have changed it.
            (Kind::Touch(_) | Kind::GetAndTouch(_), _) | (_, Outcome::Silent) => Token::Unknown,
            (_, Outcome::NotStored | Outcome::Exists | Outcome::NotFound) => self.token,
            _ => match self.token {
                Token::Valid(token) | Token::Stale(token) => Token::Stale(token),
                Token::Unknown => Token::Unknown,
            },
        };
        self.note(|| format!("{kind:?}: {outcome:?}"));
        Ok(())
    }
}

/// What a server may answer to a request that meets `before`, and what is there then.
fn outcomes(
    key: u32,
    kind: Kind,
    before: &Option<Held>,
    token: Token,
    span: Span,
) -> Vec<(Outcome, Option<Held>)> {
    let life = |ttl: u32| {
        let ttl = Duration::from_secs(ttl.into());
        (!ttl.is_zero()).then(|| {
            ((span.sent + ttl).checked_sub(SLACK).unwrap_or(span.sent), span.received + ttl + SLACK)
        })
    };
    let put = |piece: Piece, ttl| {
        let value = Value::Pieces(vec![piece]);
        Some(Held { value, flags: flags_of(piece.version), life: life(ttl) })
    };
    let grown = |piece: Piece, at_end: bool| {
        before.clone().map(|mut held| {
            if let Value::Pieces(pieces) = &mut held.value {
                pieces.insert(if at_end { pieces.len() } else { 0 }, piece);
            }
            held
        })
    };
    let counted = |change: &dyn Fn(u64) -> u64| match before {
        None => vec![(Outcome::NotFound, None)],
        Some(Held { value: Value::Number(number), flags, life }) => {
            let number = change(*number);
            let held = Held { value: Value::Number(number), flags: *flags, life: *life };
            vec![(Outcome::Number(number), Some(held))]
        }
        Some(_) => unreachable!("only numbers are counted"),
    };
    let found = |held: &Held| {
        let value = held.value.bytes(key);
        Outcome::Found { flags: held.flags, token: None, value }
    };
    let is_there = before.is_some();
    match kind {
        Kind::Get | Kind::Gets => match before {
            None => vec![(Outcome::Missed, None)],
            Some(held) => vec![(found(held), before.clone())],
        },
        Kind::GetAndTouch(ttl) => match before {
            None => vec![(Outcome::Missed, None)],
            Some(held) => {
                vec![(found(held), Some(Held { life: life(ttl), ..held.clone() }))]
            }
        },
        Kind::Set(piece, ttl) => vec![(Outcome::Stored, put(piece, ttl))],
        Kind::SetNumber(number, ttl) => {
            let value = Value::Number(number.into());
            vec![(Outcome::Stored, Some(Held { value, flags: 0, life: life(ttl) }))]
        }
        Kind::Add(_, _) if is_there => vec![(Outcome::NotStored, before.clone())],
        Kind::Add(piece, ttl) => vec![(Outcome::Stored, put(piece, ttl))],
        Kind::Replace(piece, ttl) if is_there => vec![(Outcome::Stored, put(piece, ttl))],
        Kind::Append(piece) | Kind::Prepend(piece) if is_there => {
            let after = grown(piece, matches!(kind, Kind::Append(_)));
            let bytes = after.as_ref().map_or(0, |held| held.value.len());
            // Near the limit it depends on the length of the key.
            let stored = (bytes <= ITEM_BYTES_MAX).then_some((Outcome::Stored, after));
            let refused = (bytes > VALUE_BYTES_MAX).then_some((Outcome::NotStored, before.clone()));
            stored.into_iter().chain(refused).collect()
        }
        Kind::Replace(..) | Kind::Append(_) | Kind::Prepend(_) => {
            vec![(Outcome::NotStored, None)]
        }
        Kind::Cas(..) if !is_there => vec![(Outcome::NotFound, None)],
        Kind::Cas(asked, piece, ttl) => {
            let stored = (Outcome::Stored, put(piece, ttl));
            let exists = (Outcome::Exists, before.clone());
            match token {
                Token::Valid(valid) if valid == asked => vec![stored],
                Token::Valid(_) | Token::Stale(_) => vec![exists],
                Token::Unknown => vec![stored, exists],
            }
        }
        Kind::Increment(by) => counted(&|number| number + u64::from(by)),
        Kind::Decrement(by) => counted(&|number| number.saturating_sub(by.into())),
        Kind::Touch(ttl) => match before {
            None => vec![(Outcome::NotFound, None)],
            Some(held) => vec![(Outcome::Done, Some(Held { life: life(ttl), ..held.clone() }))],
        },
        Kind::Delete if is_there => vec![(Outcome::Done, None)],
        Kind::Delete => vec![(Outcome::NotFound, None)],
    }
}

/// The client flags that go with a version.
pub fn flags_of(version: u32) -> u32 {
    version & 0xffff
}

fn agrees(expected: &Outcome, outcome: &Outcome) -> bool {
    match (expected, outcome) {
        (_, Outcome::Silent) => true,
        (Outcome::Found { flags, value, .. }, Outcome::Found { flags: told, value: got, .. }) => {
            flags == told && (value == got || is_number(value) && trimmed(got) == &value[..])
        }
        _ => expected == outcome,
    }
}

fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.len() <= 20 && value.iter().all(u8::is_ascii_digit)
}

/// A number that has become shorter is padded with blanks.
fn trimmed(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|&byte| byte != b' ').map_or(0, |at| at + 1);
    &value[..end]
}

/// Where and how a value differs from what is expected, and whose it is.
fn differs(key: u32, outcome: &Outcome, expected: &[Option<Held>]) -> String {
    let Outcome::Found { value, .. } = outcome else { return String::new() };
    let Some(held) = expected.iter().flatten().next() else {
        return format!(", which says {}", whose(value));
    };
    let wanted = held.value.bytes(key);
    let Some(at) = (0..wanted.len().min(value.len())).find(|&at| wanted[at] != value[at]) else {
        return format!(", {} bytes instead of {}", value.len(), wanted.len());
    };
    let wrong = (at..wanted.len().min(value.len())).filter(|&at| wanted[at] != value[at]).count();
    let zeros = value[at..].iter().take_while(|&&byte| byte == 0).count();
    let from = at / UNIT * UNIT;
    format!(
        ", {wrong} of {} bytes differ, from {at} on, where {zeros} zeros begin and {}",
        value.len(),
        whose(&value[from..])
    )
}

/// What the first whole unit of some bytes says of their origin.
fn whose(bytes: &[u8]) -> String {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let Some(unit) = bytes.first_chunk::<UNIT>() else { return format!("{bytes:?}") };
    let owner = word(&unit[..8]) ^ SPREAD;
    format!("key {:#x}, version {}", owner >> 32, owner as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u32 = 7;
    const FIRST: Piece = Piece { version: 1, bytes: 100 };
    const SECOND: Piece = Piece { version: 2, bytes: 100 };

    fn bytes(key: u32, piece: Piece) -> Vec<u8> {
        Value::Pieces(vec![piece]).bytes(key)
    }

    fn found(piece: Piece, value: Vec<u8>) -> Outcome {
        Outcome::Found { flags: flags_of(piece.version), token: None, value }
    }

    fn span(begin: Instant, seconds: u64) -> Span {
        let sent = begin + Duration::from_secs(seconds);
        Span { sent, received: sent + Duration::from_millis(1) }
    }

    /// An entry that holds the second value after the first.
    fn rewritten(ttl: u32, begin: Instant) -> Entry {
        let mut entry = Entry::default();
        for piece in [FIRST, SECOND] {
            let stored = (Kind::Set(piece, ttl), Outcome::Stored);
            entry.answered(KEY, stored.0, &stored.1, span(begin, 0), false).expect("a store");
        }
        entry
    }

    #[test]
    fn only_the_last_acknowledged_value_is_right() {
        let begin = Instant::now();
        let asked = span(begin, 1);
        let told = |outcome: Outcome, evicts| {
            rewritten(0, begin).answered(KEY, Kind::Get, &outcome, asked, evicts)
        };
        for evicts in [false, true] {
            assert_eq!(told(found(SECOND, bytes(KEY, SECOND)), evicts), Ok(()));
            let stale = told(found(FIRST, bytes(KEY, FIRST)), evicts);
            assert!(stale.is_err_and(|why| why.contains("key 0x7, version 1")));
            let foreign = told(found(SECOND, bytes(9, SECOND)), evicts);
            assert!(foreign.is_err_and(|why| why.contains("key 0x9, version 2")));
            let mut zeroed = bytes(KEY, SECOND);
            zeroed[40..].fill(0);
            let zeroed = told(found(SECOND, zeroed), evicts);
            assert!(zeroed.is_err_and(|why| why.contains("from 40 on, where 60 zeros")));
            let cut = told(found(SECOND, bytes(KEY, SECOND)[..99].to_vec()), evicts);
            assert!(cut.is_err_and(|why| why.contains("99 bytes instead of 100")));
        }
        assert!(told(Outcome::Missed, false).is_err());
        assert_eq!(told(Outcome::Missed, true), Ok(()));
    }

    #[test]
    fn what_was_evicted_does_not_come_back() {
        let begin = Instant::now();
        let mut entry = rewritten(0, begin);
        entry.answered(KEY, Kind::Get, &Outcome::Missed, span(begin, 1), true).expect("evicted");
        let back = found(SECOND, bytes(KEY, SECOND));
        assert!(entry.answered(KEY, Kind::Get, &back, span(begin, 2), true).is_err());
    }

    #[test]
    fn a_deadline_is_kept_as_well_as_it_can_be_told() {
        let begin = Instant::now();
        let told = |outcome: &Outcome, seconds| {
            rewritten(10, begin).answered(KEY, Kind::Get, outcome, span(begin, seconds), false)
        };
        let value = found(SECOND, bytes(KEY, SECOND));
        assert!(told(&value, 8).is_ok() && told(&Outcome::Missed, 8).is_err());
        assert!(told(&value, 10).is_ok() && told(&Outcome::Missed, 10).is_ok());
        assert!(told(&value, 12).is_err() && told(&Outcome::Missed, 12).is_ok());
    }

    #[test]
    fn a_lost_request_has_been_performed_or_not() {
        let begin = Instant::now();
        for (outcome, fine) in [
            (found(FIRST, bytes(KEY, FIRST)), false),
            (found(SECOND, bytes(KEY, SECOND)), true),
            (Outcome::Missed, true),
        ] {
            let mut entry = rewritten(0, begin);
            entry.lose(KEY, Kind::Delete, span(begin, 1), false);
            let answered = entry.answered(KEY, Kind::Get, &outcome, span(begin, 5), false);
            assert_eq!(answered.is_ok(), fine, "{outcome:?}");
        }
    }

    #[test]
    fn a_token_is_good_until_the_next_change() {
        let begin = Instant::now();
        let mut entry = rewritten(0, begin);
        let mut value = found(SECOND, bytes(KEY, SECOND));
        if let Outcome::Found { token, .. } = &mut value {
            *token = Some(5);
        }
        entry.answered(KEY, Kind::Gets, &value, span(begin, 1), false).expect("the value");
        let exists = entry.clone().answered(
            KEY,
            Kind::Cas(5, FIRST, 0),
            &Outcome::Exists,
            span(begin, 2),
            false,
        );
        assert!(exists.is_err(), "nothing has changed since");
        let swap = Kind::Cas(5, FIRST, 0);
        entry.answered(KEY, swap, &Outcome::Stored, span(begin, 2), false).expect("it is valid");
        assert!(entry.answered(KEY, swap, &Outcome::Stored, span(begin, 3), false).is_err());
        entry.answered(KEY, swap, &Outcome::Exists, span(begin, 3), false).expect("it is stale");
    }
}
