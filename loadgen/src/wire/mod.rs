//! Encodes requests and decodes answers.
//!
//! The server's decoders parse requests; a client parses answers, so it has its own decoders. They
//! know the request, which makes them strict: an answer that is well-formed but does not belong to
//! this request is an error too. Values are checked in place and in pieces as their bytes arrive,
//! so that a long value is never assembled.

pub mod binary;
pub mod meta;
#[cfg(test)]
mod tests;
pub mod text;

use crate::workload::mix::WorkloadCommand;
use crate::workload::values::{Check, HEAD_BYTES, Mismatch, shown};
use crate::workload::{Verify, Wanted, Workload};

/// A protocol a server may be loaded through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// memcached's classic text commands.
    Text,
    /// memcached's meta commands.
    Meta,
    /// Ringlane's compact binary protocol.
    Binary,
}

impl Protocol {
    /// The name used in flags and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Text => "text",
            Protocol::Meta => "meta",
            Protocol::Binary => "binary",
        }
    }
}

/// One request to be written.
#[derive(Clone, Copy, Debug)]
pub struct WireRequest<'a> {
    /// What to do.
    pub command: WorkloadCommand,
    /// The key; the keys of a multiget.
    pub keys: &'a [Wanted],
    /// Exptime of a set in seconds.
    pub ttl_seconds: u32,
}

/// What came back for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerOutcome {
    /// The server did what was asked. For reads: this many keys were there.
    Hit(u32),
    /// A key was not there: get, delete, incr.
    Miss,
    /// The server refused, in these words: an error line.
    Refused(String),
}

/// What the bytes at hand yielded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The answer is not complete. `consumed` bytes are done with; the others must be shown again,
    /// with more behind them.
    More {
        /// Bytes used up.
        consumed: usize,
    },
    /// The answer ended after `consumed` bytes.
    Done {
        /// Bytes used up.
        consumed: usize,
        /// The answer.
        outcome: AnswerOutcome,
    },
}

/// An answer that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The other side does not speak the protocol, or lost its place in it.
    Unspoken {
        /// What was expected.
        expected: &'static str,
        /// What came, shortened and escaped.
        received: String,
    },
    /// A well-formed answer that is wrong.
    Wrong(WrongAnswer),
}

/// A wrong answer with its evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongAnswer {
    /// The key that was asked for.
    pub key: String,
    /// What is wrong, in a few words.
    pub what: String,
    /// What was due.
    pub expected: String,
    /// What came.
    pub received: String,
}

/// The reader of one connection's answers: where it stands inside one.
#[derive(Clone, Debug, Default)]
pub struct AnswerDecoder {
    stage: Stage,
    check: Option<Check>,
    /// Bytes of the value that have not arrived.
    remaining: usize,
    /// Values seen in this answer.
    hits: u32,
    /// How far into the keys of a multiget the answer is.
    position: usize,
    /// Binary: whether the answer goes on after the value.
    more: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Line,
    Value,
    AfterValue,
}

/// The answer a decoder reads: to which request.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What was asked.
    pub command: WorkloadCommand,
    /// Of these keys.
    pub keys: &'a [Wanted],
}

/// Longest line an answer may have; far above what any of the commands used brings.
const LINE_BYTES_MAX: usize = 2048;

/// Appends a request to `out`.
#[inline]
pub fn encode(
    protocol: Protocol,
    workload: &Workload,
    request: &WireRequest<'_>,
    out: &mut Vec<u8>,
) {
    match protocol {
        Protocol::Text => text::encode(workload, request, out),
        Protocol::Meta => meta::encode(workload, request, out),
        Protocol::Binary => binary::encode(workload, request, out),
    }
}

impl AnswerDecoder {
    /// Reads the answer to `asked` from `input`, which begins where the last call left off.
    #[inline]
    pub fn next(
        &mut self,
        protocol: Protocol,
        workload: &Workload,
        asked: &Asked<'_>,
        input: &[u8],
    ) -> Result<Decoded, Trouble> {
        match protocol {
            Protocol::Text => text::decode(self, workload, asked, input),
            Protocol::Meta => meta::decode(self, workload, asked, input),
            Protocol::Binary => binary::decode(self, workload, asked, input),
        }
    }

    /// Begins a value of `wanted`, `value_bytes` long, whose first bytes are in `input`. `None`
    /// asks for more input; otherwise the number of bytes taken.
    #[inline]
    fn begin_value(
        &mut self,
        workload: &Workload,
        wanted: &Wanted,
        value_bytes: usize,
        input: &[u8],
    ) -> Result<Option<usize>, Trouble> {
        let at_hand = input.len().min(value_bytes);
        self.check = None;
        if workload.verify != Verify::Off {
            let key = wanted.key;
            if at_hand < value_bytes.min(HEAD_BYTES) {
                return Ok(None);
            }
            let check = workload.values.begin(key, value_bytes, &input[..at_hand]);
            let check = check.map_err(|mismatch| wrong_value(workload, key, mismatch))?;
            if let Some(what) = check.stamp.and_then(|stamp| workload.stale(wanted, stamp)) {
                return Err(stale(workload, wanted, what, &input[..at_hand]));
            }
            self.check = Some(check);
        }
        self.hits += 1;
        self.remaining = value_bytes - at_hand;
        self.stage = if self.remaining == 0 { Stage::AfterValue } else { Stage::Value };
        Ok(Some(at_hand))
    }

    /// Takes the next bytes of a value that has begun; the number taken.
    #[inline]
    fn proceed_value(
        &mut self,
        workload: &Workload,
        key: u64,
        input: &[u8],
    ) -> Result<usize, Trouble> {
        let taken = input.len().min(self.remaining);
        if let Some(check) = &mut self.check {
            let checked = workload.values.proceed(check, &input[..taken]);
            checked.map_err(|mismatch| wrong_value(workload, key, mismatch))?;
        }
        self.remaining -= taken;
        if self.remaining == 0 {
            self.stage = Stage::AfterValue;
        }
        Ok(taken)
    }

    /// Ends the answer: ready for the next.
    #[inline]
    fn finish(&mut self, consumed: usize) -> Decoded {
        let outcome =
            if self.hits > 0 { AnswerOutcome::Hit(self.hits) } else { AnswerOutcome::Miss };
        self.done(consumed, outcome)
    }

    #[inline]
    fn done(&mut self, consumed: usize, outcome: AnswerOutcome) -> Decoded {
        (self.hits, self.position, self.stage) = (0, 0, Stage::Line);
        Decoded::Done { consumed, outcome }
    }

    /// The place of `key` among the asked ones, behind those already answered. Servers answer a
    /// multiget in its order and leave out what is missing.
    #[inline]
    fn find_key(
        &mut self,
        workload: &Workload,
        asked: &Asked<'_>,
        key: &[u8],
    ) -> Result<Wanted, Trouble> {
        while let Some(wanted) = asked.keys.get(self.position) {
            self.position += 1;
            if workload.keys.is(wanted.key, key) {
                return Ok(*wanted);
            }
        }
        Err(Trouble::Wrong(WrongAnswer {
            key: workload.keys.name(asked.keys[0].key),
            what: "the answer is for a key that was not requested, or out of order".into(),
            expected: workload.keys.name(asked.keys[0].key),
            received: shown(key),
        }))
    }
}

#[cold]
fn wrong_value(workload: &Workload, key: u64, mismatch: Mismatch) -> Trouble {
    Trouble::Wrong(WrongAnswer {
        key: workload.keys.name(key),
        what: mismatch.what,
        expected: mismatch.expected,
        received: mismatch.received,
    })
}

#[cold]
fn stale(workload: &Workload, wanted: &Wanted, what: String, received: &[u8]) -> Trouble {
    let mut expected = Vec::new();
    workload.values.write(wanted.key, workload.stamp(wanted.version), &mut expected);
    Trouble::Wrong(WrongAnswer {
        key: workload.keys.name(wanted.key),
        what,
        expected: shown(&expected),
        received: shown(received),
    })
}

/// An increment that did not grow its counter.
#[cold]
fn shrunk(workload: &Workload, wanted: &Wanted, value: u64) -> Trouble {
    Trouble::Wrong(WrongAnswer {
        key: workload.keys.counter_name(wanted.key),
        what: "an increment did not grow the counter".into(),
        expected: format!("above {}", wanted.version),
        received: value.to_string(),
    })
}

#[cold]
fn unspoken(expected: &'static str, input: &[u8]) -> Trouble {
    let line = input.split(|&byte| byte == b'\n').next().unwrap_or(input);
    Trouble::Unspoken { expected, received: shown(line.trim_ascii_end()) }
}

/// The length of the first line without its ending, `None` if it has not arrived.
#[inline]
fn line_bytes(input: &[u8], expected: &'static str) -> Result<Option<usize>, Trouble> {
    match memchr::memchr(b'\n', &input[..input.len().min(LINE_BYTES_MAX)]) {
        Some(at) if at > 0 && input[at - 1] == b'\r' => Ok(Some(at - 1)),
        Some(_) => Err(unspoken(expected, input)),
        None if input.len() >= LINE_BYTES_MAX => Err(unspoken(expected, input)),
        None => Ok(None),
    }
}

/// An error line every memcached protocol has.
fn is_error_line(line: &[u8]) -> bool {
    line == b"ERROR"
        || [&b"ERROR "[..], b"CLIENT_ERROR ", b"SERVER_ERROR "].iter().any(|p| line.starts_with(p))
}

/// Appends `number` in decimal.
#[inline]
fn write_decimal(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Reads the decimal number that is all of `digits`.
#[inline]
fn read_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    let mut number = 0u64;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(number)
}
