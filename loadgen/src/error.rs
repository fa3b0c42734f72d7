//! Why a command ends without a result.

use std::fmt;

use crate::wire::WrongAnswer;

/// Why a command ends without a result.
#[derive(Debug)]
pub enum Error {
    /// It could not be run; a sentence for the user.
    Setup(String),
    /// The server died in the middle of it; a sentence for the user.
    ServerGone(String),
    /// The server answered wrongly.
    WrongAnswer(WrongAnswer),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Setup(words) | Error::ServerGone(words) => f.write_str(words),
            Error::WrongAnswer(wrong) => write!(
                f,
                "wrong answer for key {}: {}\n  expected \"{}\"\n  received \"{}\"",
                wrong.key, wrong.what, wrong.expected, wrong.received
            ),
        }
    }
}

impl std::error::Error for Error {}
