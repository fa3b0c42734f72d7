//! The memcached text protocol: lines in, lines out.
//!
//! A request is one line, followed by a data block for storage commands. [`TextDecoder`] takes one
//! step at a time and stores between requests only how far it has searched for a line's end, and
//! the rest of a multiget: such a line is validated as a whole (one overlong key invalidates all of
//! it) and then answered key by key, so that a connection may pause between two keys. The meta
//! commands share lines, tokens and data blocks with the classic ones and live in `meta`.
//!
//! Refused: tokenising every line into an array first. Nearly all requests are a `get` of one key
//! or a `set` with three plain numbers. They are recognised by their first four bytes, parsed in
//! one pass, and left to the general path as soon as anything about them is unusual.

use std::mem;

use super::{Answer, Context, Reply, ReplyForm, Step, meta};
use ringlane_types::request::{Get, KEY_BYTES_MAX};

mod admin;
mod dump;
pub(super) mod encode;
mod error;
mod keyed;
pub(super) mod line;
pub(super) mod numbers;
mod retrieval;
pub(super) mod storage;

pub use admin::encode_admin;
pub use dump::Dump;
pub use encode::encode;
pub use error::TextError;
use line::{Line, Tokens};
use retrieval::{Checked, Multiget};

/// The form of the answer to a classic text command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm {
    /// get, gets, gat, gats: `VALUE` lines and a closing `END`.
    Retrieval {
        /// Whether each hit carries its CAS token: gets, gats.
        cas: bool,
        /// Whether this is the last key of its line, so that `END` follows.
        last: bool,
    },
    /// touch: `TOUCHED` or `NOT_FOUND`.
    Touch {
        /// Whether nothing is answered at all.
        noreply: bool,
    },
    /// set, add, replace, append, prepend, cas.
    Storage {
        /// Whether nothing is answered at all, errors included.
        noreply: bool,
    },
    /// delete: `DELETED` or `NOT_FOUND`.
    Delete {
        /// Whether nothing is answered at all.
        noreply: bool,
    },
    /// incr, decr: the number, or `NOT_FOUND`.
    Arithmetic {
        /// Whether nothing is answered at all, errors included.
        noreply: bool,
    },
    /// A command for the node.
    Node {
        /// Whether nothing is answered at all, errors included.
        noreply: bool,
    },
}

/// The text decoder of one connection.
#[derive(Debug, Default)]
pub struct TextDecoder {
    /// Bytes at the start of the input known to contain no newline.
    scanned: u32,
    /// The validation state of the keys among them, if the line is a long `get`.
    checked: Checked,
    /// The rest of a `get` line that is being answered key by key.
    multiget: Option<Multiget>,
}

impl TextDecoder {
    /// Takes the next step from `input`. After [`Step::Incomplete`] the caller passes the same
    /// bytes followed by more.
    #[inline]
    pub fn next<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        if self.multiget.is_none()
            && let Some((name, rest)) = input.split_first_chunk::<4>()
        {
            let cas = name == b"gets";
            if (name == b"get " || cas && rest.first() == Some(&b' '))
                && let Some((key, consumed)) = retrieval::sole_key(input, 4 + usize::from(cas))
            {
                self.scanned = 0;
                let form = TextForm::Retrieval { cas, last: true };
                return retrieval::get(key, Get::default(), form, consumed, context);
            }
            if name == b"set "
                && let Some(set) = storage::plain_set(input, context)
            {
                self.scanned = 0;
                return storage::set(set, context);
            }
        }
        self.next_slow(input, context)
    }

    /// Handles all but the plainest lines.
    #[inline(never)]
    fn next_slow<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        if let Some(multiget) = &mut self.multiget {
            let step = multiget.next_key(input, 0, context);
            if multiget.is_finished() {
                self.multiget = None;
            }
            return step;
        }
        let from = input.len().min(self.scanned as usize);
        let Some(newline) = memchr::memchr(b'\n', &input[from..]).map(|at| from + at) else {
            return self.look_ahead(input, context);
        };
        self.scanned = 0;
        self.line(Line::new(input, newline), input, context)
    }

    /// Records the state of an incomplete line.
    fn look_ahead<'b>(&mut self, input: &[u8], context: &Context<'b>) -> Step<'b> {
        if line_is_too_long(input, context) {
            return Step::Close;
        }
        self.scanned = input.len() as u32;
        if input.len() > context.limits.line_bytes_max && input.starts_with(b"get") {
            self.checked.look(input);
        }
        Step::Incomplete
    }

    /// Decodes one whole line.
    fn line<'b>(&mut self, line: Line<'b>, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        // The shortest valid line is two letters and `\r\n`.
        if line.bytes < 4 {
            return refuse(line, TextError::CommandLine);
        }
        let name_bytes = line::token_end(line.text).unwrap_or(line.text.len());
        let (name, rest) = line.text.split_at(name_bytes);
        let tokens = Tokens::new(rest);
        if let [b'm', letter] = name {
            return meta::decode(*letter, tokens, line, input, context)
                .unwrap_or_else(|| unknown(tokens, line));
        }
        if let Some(command) = storage::StorageCommand::named(name) {
            return storage::decode(command, tokens, line, input, context);
        }
        match name {
            b"get" | b"gets" | b"gat" | b"gats" => {
                let checked = mem::take(&mut self.checked);
                match Multiget::new(name, tokens, line, checked, context) {
                    Ok((mut multiget, keys_at)) => {
                        let step = multiget.next_key(input, keys_at, context);
                        if !multiget.is_finished() {
                            self.multiget = Some(multiget);
                        }
                        step
                    }
                    Err(error) => refuse(line, error),
                }
            }
            b"delete" => keyed::delete(tokens, line, context),
            b"incr" => keyed::arithmetic(tokens, line, false, context),
            b"decr" => keyed::arithmetic(tokens, line, true, context),
            b"touch" => keyed::touch(tokens, line, context),
            _ => admin::decode(line, context),
        }
    }
}

/// The answer to a streamed data block that was not followed by `\r\n`: an error, suppressed by
/// `noreply` but not by meta's `q`.
pub fn bad_data_chunk(reply: &Reply<'_>) -> Answer<'static> {
    match reply.form {
        ReplyForm::Text(TextForm::Storage { noreply: true }) => Answer::Silence,
        _ => Answer::Bytes(TextError::DataChunk.line()),
    }
}

/// Whether too much has arrived without the end of a line.
fn line_is_too_long(input: &[u8], context: &Context<'_>) -> bool {
    /// Spaces allowed before a long `get`.
    const LEADING_SPACES_MAX: usize = 100;
    if input.len() <= context.limits.line_bytes_max {
        return false;
    }
    let spaces = input.iter().take_while(|&&byte| byte == b' ').count();
    let command = &input[spaces..];
    let multiget = spaces <= LEADING_SPACES_MAX
        && (command.starts_with(b"get ") || command.starts_with(b"gets "));
    !multiget || input.len() > context.limits.multiget_line_bytes_max
}

/// An unknown command. `noreply` suppresses even this error, and an HTTP client is disconnected.
fn unknown<'b>(tokens: Tokens<'b>, line: Line<'b>) -> Step<'b> {
    match tokens.last() {
        Some(b"noreply") => silence(line),
        Some(last) if last.starts_with(b"HTTP/") => Step::Close,
        _ => refuse(line, TextError::Unknown),
    }
}

/// The key, if its length is acceptable.
fn checked_key(key: &[u8]) -> Result<&[u8], TextError> {
    if key.len() <= KEY_BYTES_MAX { Ok(key) } else { Err(TextError::CommandLine) }
}

/// A line that is answered with `error`.
pub(super) fn refuse<'b>(line: Line<'b>, error: TextError) -> Step<'b> {
    answer(line, error.line())
}

/// A line that is answered with `error` unless the client suppressed replies.
fn refuse_unless<'b>(noreply: bool, line: Line<'b>, error: TextError) -> Step<'b> {
    if noreply { silence(line) } else { refuse(line, error) }
}

/// A line that is answered with `bytes`.
pub(super) fn answer<'b>(line: Line<'b>, bytes: &'b [u8]) -> Step<'b> {
    Step::Answer { consumed: line.bytes, answer: Answer::Bytes(bytes), skip: 0 }
}

/// A line that is not answered.
fn silence(line: Line<'_>) -> Step<'_> {
    Step::Answer { consumed: line.bytes, answer: Answer::Silence, skip: 0 }
}

#[cfg(test)]
mod tests;
