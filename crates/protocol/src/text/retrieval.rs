//! get, gets, gat, gats: a line of keys, answered one by one.

use super::line::{Line, Tokens, first_low, leading_spaces, token_end};
use super::numbers::strict_i32;
use super::{TextError, TextForm, checked_key};
use crate::{Context, Reply, ReplyForm, Step};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{Get, KEY_BYTES_MAX, Operation, Purpose, Request};
use ringlane_types::time::Deadline;

/// The key of a line with exactly one key after its name, which is `key_at` bytes long with its
/// space, and the line's length. `None` means undetermined: the line may be incomplete, longer or
/// invalid.
#[inline(always)]
pub(super) fn sole_key(input: &[u8], key_at: usize) -> Option<(&[u8], usize)> {
    // The longest key, `\r` and `\n`: searching further would be repeated at every arrival.
    let rest = input.get(key_at..input.len().min(key_at + KEY_BYTES_MAX + 2))?;
    let end = first_low(rest)?;
    let ending_bytes = match rest[end..] {
        [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        _ => return None,
    };
    let is_key = (1..=KEY_BYTES_MAX).contains(&end);
    is_key.then(|| (&rest[..end], key_at + end + ending_bytes))
}

/// The step for one key.
#[inline(always)]
pub(super) fn get<'b>(
    key: &'b [u8],
    get: Get,
    form: TextForm,
    consumed: usize,
    context: &Context<'b>,
) -> Step<'b> {
    Step::Request {
        consumed,
        request: Request {
            key,
            hash: KeyHash::of(key, context.hash_secret),
            operation: Operation::Get(get),
        },
        reply: Reply { form: ReplyForm::Text(form), key, tail: b"" },
        skip: 0,
    }
}

/// The remaining keys of one line, which has been validated as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Multiget {
    /// Whether hits carry their CAS token.
    cas: bool,
    /// The deadline set by gat and gats.
    touch: Option<Deadline>,
    /// Remaining bytes of keys and spaces, from the start of the input.
    text_bytes: usize,
    /// Length of the line's ending: `\n` or `\r\n`.
    ending_bytes: u8,
}

impl Multiget {
    /// Validates the `tokens` of a whole line and returns the start of its keys.
    pub(super) fn new<'b>(
        name: &[u8],
        tokens: Tokens<'b>,
        line: Line<'b>,
        checked: Checked,
        context: &Context<'b>,
    ) -> Result<(Self, usize), TextError> {
        let mut tokens = tokens;
        let touch = if name.starts_with(b"gat") { tokens.next() } else { None };
        let keys = tokens.rest();
        if keys.is_empty() {
            return Err(TextError::CommandLine);
        }
        let touch = match touch {
            None => None,
            Some(token) => {
                let exptime = strict_i32(token).ok_or(TextError::Exptime)?;
                Some(Deadline::from_exptime(exptime.into(), context.now))
            }
        };
        if keys.len() > KEY_BYTES_MAX {
            if checked.is_spoiled() {
                return Err(TextError::CommandLine);
            }
            let checked_bytes = (checked.token_at as usize).min(line.text.len());
            let to_check = tokens.len().min(line.text.len() - checked_bytes);
            for key in Tokens::new(&line.text[line.text.len() - to_check..]) {
                checked_key(key)?;
            }
        }
        let start = line.text.len() - tokens.len();
        let multiget = Self {
            cas: name.ends_with(b"s"),
            touch,
            text_bytes: tokens.len(),
            ending_bytes: (line.bytes - line.text.len()) as u8,
        };
        Ok((multiget, start))
    }

    /// The step for the next key, which begins at or soon after `from` in `input`.
    pub(super) fn next_key<'b>(
        &mut self,
        input: &'b [u8],
        from: usize,
        context: &Context<'b>,
    ) -> Step<'b> {
        let Some(text) = input.get(from..from + self.text_bytes) else { return Step::Incomplete };
        let start = leading_spaces(text);
        let end = start + token_end(&text[start..]).unwrap_or(text.len() - start);
        let next = end + leading_spaces(&text[end..]);
        self.text_bytes -= next;
        let last = self.is_finished();
        let ending_bytes = if last { usize::from(self.ending_bytes) } else { 0 };
        let purpose = if self.touch.is_some() { Purpose::Touch } else { Purpose::Get };
        get(
            &text[start..end],
            Get { purpose, touch: self.touch, ..Get::default() },
            TextForm::Retrieval { cas: self.cas, last },
            from + next + ending_bytes,
            context,
        )
    }

    /// Whether all keys have been requested.
    pub(super) fn is_finished(&self) -> bool {
        self.text_bytes == 0
    }
}

/// The validation state of the keys of a long line before it has wholly arrived. Validating all of
/// them at the end would take as long as answering them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// Start of the last token, which may be incomplete; [`Checked::SPOILED`] if one before it is
    /// too long for a key.
    token_at: u32,
}

impl Checked {
    const SPOILED: u32 = u32::MAX;

    /// Validates newly arrived input. `input` contains no end of a line.
    pub(super) fn look(&mut self, input: &[u8]) {
        if self.is_spoiled() {
            return;
        }
        let mut at = self.token_at as usize;
        loop {
            let token = &input[at..];
            let end = token_end(token);
            // The last byte of an unfinished one may be the line's `\r`.
            let bytes = end.unwrap_or_else(|| token.len().saturating_sub(1));
            if bytes > KEY_BYTES_MAX {
                self.token_at = Self::SPOILED;
                return;
            }
            let Some(end) = end else { break };
            at += end + leading_spaces(&token[end..]);
        }
        self.token_at = at as u32;
    }

    fn is_spoiled(self) -> bool {
        self.token_at == Self::SPOILED
    }
}
