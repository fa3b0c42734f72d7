//! The flags of a meta command: single letters, some with an argument attached.
//!
//! All commands share one alphabet, and a letter that a command does not use is accepted. So the
//! flags are parsed once into [`Flags`] for any command, and each command uses what it needs.
//! Return flags are not recorded here: the encoder walks the tokens again when the answer is known.

use super::base64;
use crate::Context;
use crate::text::TextError;
use crate::text::line::Tokens;
use crate::text::numbers::{strict_i32, strict_u32, strict_u64};
use ringlane_types::request::KEY_BYTES_MAX;
use ringlane_types::time::{Deadline, EXPTIME_RELATIVE_MAX_SECONDS, Instant};

/// Maximum tokens of a meta command, including name and key.
const TOKENS_MAX: usize = 20;

/// Longest opaque token, in bytes, its letter included.
const OPAQUE_BYTES_MAX: usize = 32;

/// The parsed flags of one command.
#[derive(Clone, Debug)]
pub(super) struct Flags<'b> {
    /// The key, decoded.
    pub key: &'b [u8],
    /// b: the key came as base64.
    pub binary_key: bool,
    /// v
    pub value: bool,
    /// q
    pub quiet: bool,
    /// u
    pub no_use: bool,
    /// x
    pub empty: bool,
    /// I
    pub invalidate: bool,
    /// F
    pub client_flags: u32,
    /// T
    pub deadline: Option<Deadline>,
    /// N
    pub vivify: Option<Deadline>,
    /// A vivified item's deadline after all flags have been applied from left to right.
    pub vivified_deadline: Deadline,
    /// R, in seconds from now.
    pub refresh_below_seconds: Option<u32>,
    /// R precedes T, so it uses the TTL before T changes it.
    pub refresh_first: bool,
    /// C
    pub compare: Option<u64>,
    /// E; 0 counts as absent except for an item created by N.
    pub cas: Option<u64>,
    /// M: its first character, or 0 if it has none.
    pub mode: Option<u8>,
    /// J
    pub initial: u64,
    /// D
    pub delta: u64,
    /// An opaque is longer than allowed. Separate, because it is validated last.
    pub opaque_too_long: bool,
}

impl<'b> Flags<'b> {
    /// Parses the flags of a command on `key`, after `token_count` tokens that are not flags, into
    /// `self`, which is [`Flags::none`] of that key. In place, because the struct is large and most
    /// commands have few flags.
    pub(super) fn read(
        &mut self,
        tokens: Tokens<'b>,
        token_count: usize,
        context: &Context<'b>,
    ) -> Result<(), TextError> {
        if self.key.len() > KEY_BYTES_MAX {
            return Err(TextError::CommandLine);
        }
        let mut seen = 0u128;
        let mut pending = None;
        let mut count = token_count;
        for token in tokens {
            count += 1;
            let read = if count > TOKENS_MAX {
                Err(TextError::MetaTokens)
            } else {
                self.take(token, &mut seen, &mut pending, context)
            };
            if let Err(error) = read {
                return Err(most_specific(error, tokens, token_count));
            }
        }
        match pending {
            Some(error) => Err(most_specific(error, tokens, token_count)),
            None => Ok(()),
        }
    }

    /// The flags of a command without any.
    pub(super) fn none(key: &'b [u8]) -> Self {
        Self {
            key,
            binary_key: false,
            value: false,
            quiet: false,
            no_use: false,
            empty: false,
            invalidate: false,
            client_flags: 0,
            deadline: None,
            vivify: None,
            vivified_deadline: Deadline::NEVER,
            refresh_below_seconds: None,
            refresh_first: false,
            compare: None,
            cas: None,
            mode: None,
            initial: 0,
            delta: 1,
            opaque_too_long: false,
        }
    }

    /// Parses one flag. A returned error ends parsing at once; a `pending` one still lets later
    /// tokens be validated.
    #[inline]
    fn take(
        &mut self,
        token: &'b [u8],
        seen: &mut u128,
        pending: &mut Option<TextError>,
        context: &Context<'b>,
    ) -> Result<(), TextError> {
        let (&letter, argument) = token.split_first().expect("tokens are not empty");
        if letter >= 127 || *seen >> letter & 1 == 1 {
            return Err(TextError::MetaDuplicate);
        }
        *seen |= 1 << letter;
        match letter {
            b'v' => self.value = true,
            b'q' => self.quiet = true,
            b'c' | b'f' | b'h' | b'k' | b'l' | b's' | b't' | b'L' | b'P' => {}
            b'O' => self.opaque_too_long = token.len() > OPAQUE_BYTES_MAX,
            b'u' => self.no_use = true,
            b'x' => self.empty = true,
            b'I' => self.invalidate = true,
            b'b' => match base64::decode(self.key) {
                Some(key) => {
                    self.key = context.scratch.alloc_slice_copy(&key);
                    self.binary_key = true;
                }
                None => *pending = Some(TextError::MetaKey),
            },
            b'T' => match deadline(argument, context.now) {
                Some(deadline) => {
                    self.deadline = Some(deadline);
                    self.vivified_deadline = deadline;
                }
                None => *pending = Some(TextError::MetaNumber),
            },
            b'N' => match deadline(argument, context.now) {
                Some(deadline) => {
                    self.vivify = Some(deadline);
                    self.vivified_deadline = deadline;
                }
                None => *pending = Some(TextError::MetaNumber),
            },
            b'R' => match strict_i32(argument) {
                Some(seconds) => {
                    self.refresh_below_seconds = relative(seconds, context.now);
                    self.refresh_first = self.deadline.is_none();
                }
                None => *pending = Some(TextError::MetaNumber),
            },
            b'C' => match strict_u64(argument) {
                Some(cas) => self.compare = Some(cas),
                None => *pending = Some(TextError::MetaNumber),
            },
            b'E' => match strict_u64(argument) {
                Some(cas) => self.cas = Some(cas),
                None => *pending = Some(TextError::MetaNumber),
            },
            b'F' => match strict_u32(argument) {
                Some(client_flags) => self.client_flags = client_flags,
                None => *pending = pending.or(Some(TextError::CommandLine)),
            },
            b'M' => self.mode = Some(argument.first().copied().unwrap_or(0)),
            b'J' => match strict_u64(argument) {
                Some(initial) => self.initial = initial,
                None => *pending = Some(TextError::MetaInitial),
            },
            b'D' => match strict_u64(argument) {
                Some(delta) => self.delta = delta,
                None => *pending = Some(TextError::MetaDelta),
            },
            _ => return Err(TextError::MetaFlag),
        }
        Ok(())
    }
}

/// A deadline as given by T and N.
pub(super) fn deadline(argument: &[u8], now: Instant) -> Option<Deadline> {
    Some(Deadline::from_exptime(strict_i32(argument)?.into(), now))
}

/// The value that R compares the remaining seconds with: an exptime, so it may be an absolute time.
/// `None` if nothing can be below it.
fn relative(seconds: i32, now: Instant) -> Option<u32> {
    let seconds = i64::from(seconds);
    let relative = if seconds > EXPTIME_RELATIVE_MAX_SECONDS {
        seconds.saturating_sub_unsigned(now.as_secs())
    } else {
        seconds
    };
    u32::try_from(relative).ok().filter(|&seconds| seconds > 0)
}

/// Which of several errors in the tokens is reported: errors of the line's form take precedence
/// over errors of single flags.
#[cold]
fn most_specific(found: TextError, tokens: Tokens<'_>, token_count: usize) -> TextError {
    if !are_letters(tokens) {
        TextError::CommandLine
    } else if token_count + tokens.count() > TOKENS_MAX {
        TextError::MetaTokens
    } else {
        found
    }
}

/// Whether every token starts with a letter, known flag or not.
pub(super) fn are_letters(mut tokens: Tokens<'_>) -> bool {
    tokens.all(|token| token[0].is_ascii_digit() || matches!(token[0], b'A'..=b'z'))
}
