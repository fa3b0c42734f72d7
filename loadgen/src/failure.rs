//! Why a command ends without a result.

use std::fmt;

use crate::wire::WrongAnswer;

/// Why a phase has no result.
#[derive(Debug)]
pub enum Failure {
    /// It could not be run; a sentence for the user.
    Impossible(String),
    /// The server answered wrongly.
    Wrong(WrongAnswer),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Impossible(words) => f.write_str(words),
            Failure::Wrong(wrong) => write!(
                f,
                "wrong answer for key {}: {}\n  expected \"{}\"\n  received \"{}\"",
                wrong.key, wrong.what, wrong.expected, wrong.received
            ),
        }
    }
}

impl std::error::Error for Failure {}
