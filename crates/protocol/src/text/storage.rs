//! set, add, replace, append, prepend, cas, and the data block after a line, shared with `ms`.
//!
//! A data block is used in place if it has wholly arrived. A long incomplete one is returned as
//! [`Step::StoreHeader`], so that its bytes are received directly into their item. For any error in
//! a line with a readable length, its block is dropped and the next line is a command again.

use super::line::{Line, Tokens, first_low};
use super::numbers::{lenient_exptime, lenient_flags, strict_i32, strict_u64};
use super::{TextError, TextForm, bad_data_chunk, checked_key, refuse};
use crate::{Answer, Context, Reply, ReplyForm, Step};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{Body, KEY_BYTES_MAX, Operation, Request, Store, StoreMode};
use ringlane_types::time::Deadline;

/// Longest data block that a line may announce, in bytes.
const DATA_BYTES_MAX: i32 = i32::MAX - 2;

/// The trailer of every data block.
const DATA_ENDING: &[u8] = b"\r\n";

/// Bytes that memcached counts for an item besides key, flags and value: its header, a CAS token,
/// the byte that ends the key and the value's `\r\n`. Used so that the same sizes are refused,
/// regardless of an item's cost here.
const ITEM_OVERHEAD_BYTES: u64 = 48 + 8 + 1 + 2;

/// Bytes that memcached adds for non-zero client flags.
const ITEM_FLAGS_BYTES: u64 = 4;

/// One of the classic storage commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StorageCommand {
    mode: StoreMode,
    cas: bool,
}

impl StorageCommand {
    /// The storage command of this name.
    #[inline]
    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        let (mode, cas) = match name {
            b"set" => (StoreMode::Set, false),
            b"add" => (StoreMode::Add, false),
            b"replace" => (StoreMode::Replace, false),
            b"append" => (StoreMode::Append, false),
            b"prepend" => (StoreMode::Prepend, false),
            b"cas" => (StoreMode::Set, true),
            _ => return None,
        };
        Some(Self { mode, cas })
    }
}

/// A `set` whose line consists of a key and three short numbers, and whose data has arrived.
#[derive(Clone, Copy)]
pub(crate) struct PlainSet<'b> {
    key: &'b [u8],
    flags: u32,
    exptime: u32,
    value: &'b [u8],
    consumed: usize,
}

/// Parses a plain `set` from `input`, which begins with `set `. `None` means undetermined: the
/// request may be incomplete, unusual or invalid.
#[inline(always)]
pub(crate) fn plain_set<'b>(input: &'b [u8], context: &Context<'b>) -> Option<PlainSet<'b>> {
    const KEY_AT: usize = b"set ".len();
    // The longest key and a space: searching further would be repeated at every arrival.
    let rest = input.get(KEY_AT..input.len().min(KEY_AT + KEY_BYTES_MAX + 1))?;
    let key = &rest[..first_low(rest)?];
    let mut at = KEY_AT + key.len();
    if key.is_empty() || input[at] != b' ' {
        return None;
    }
    at += 1;
    let flags = short_number(input, &mut at, b' ')?;
    let exptime = short_number(input, &mut at, b' ')?;
    let value_bytes = short_number(input, &mut at, b'\r')?;
    let [b'\n', data @ ..] = input.get(at..)? else { return None };
    let (value, [b'\r', b'\n', ..]) = data.split_at_checked(value_bytes as usize)? else {
        return None;
    };
    let consumed = at + 1 + block_bytes(value_bytes);
    fits(key, flags, value_bytes, context).then_some(PlainSet {
        key,
        flags,
        exptime,
        value,
        consumed,
    })
}

/// The step for a plain `set`.
#[inline(always)]
pub(crate) fn set<'b>(set: PlainSet<'b>, context: &Context<'b>) -> Step<'b> {
    let store = Store {
        flags: set.flags,
        deadline: Deadline::from_exptime(set.exptime.into(), context.now),
        ..Store::set(set.value)
    };
    let hash = KeyHash::of(set.key, context.hash_secret);
    let form = ReplyForm::Text(TextForm::Storage { noreply: false });
    Step::Request {
        consumed: set.consumed,
        request: Request { key: set.key, hash, operation: Operation::Store(store) },
        reply: Reply { form, key: set.key, tail: b"" },
        skip: 0,
    }
}

/// A number of one to nine digits that begins at `at` and is followed by `end`; `at` moves past it.
#[inline]
fn short_number(bytes: &[u8], at: &mut usize, end: u8) -> Option<u32> {
    const DIGITS_MAX: usize = 9;
    if let Some(&[digit @ b'0'..=b'9', byte]) = bytes.get(*at..*at + 2)
        && byte == end
    {
        *at += 2;
        return Some(u32::from(digit - b'0'));
    }
    let mut number = 0u32;
    for digits in 0..=DIGITS_MAX {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (byte == end && digits > 0).then_some(number);
        }
        number = number.wrapping_mul(10).wrapping_add(u32::from(digit));
    }
    None
}

/// `<command> <key> <flags> <exptime> <bytes> [<cas>] [noreply]` and the data.
pub(crate) fn decode<'b>(
    command: StorageCommand,
    mut tokens: Tokens<'b>,
    line: Line<'b>,
    input: &'b [u8],
    context: &Context<'b>,
) -> Step<'b> {
    let (Some(key), Some(flags), Some(exptime), Some(length)) =
        (tokens.next(), tokens.next(), tokens.next(), tokens.next())
    else {
        return refuse(line, TextError::CommandLine);
    };
    let Some(value_bytes) = data_length(length) else {
        return refuse(line, TextError::CommandLine);
    };
    let noreply = tokens.end_in_noreply();
    let form = ReplyForm::Text(TextForm::Storage { noreply });
    let store = || {
        let key = checked_key(key)?;
        let flags = lenient_flags(flags).ok_or(TextError::CommandLine)?;
        let exptime = lenient_exptime(exptime).ok_or(TextError::CommandLine)?;
        let compare = if command.cas {
            let token = tokens.clone().next().and_then(strict_u64);
            Some(token.ok_or(TextError::CommandLine)?)
        } else {
            None
        };
        let store = Store {
            mode: command.mode,
            flags,
            deadline: Deadline::from_exptime(exptime.into(), context.now),
            compare,
            refusal_removes: command.mode == StoreMode::Set && !command.cas,
            ..Store::set(b"")
        };
        Ok((key, store))
    };
    match store() {
        Ok((key, store)) => {
            let reply = Reply { form, key, tail: b"" };
            with_data(store, reply, value_bytes, line, input, context)
        }
        Err(_) if noreply => drop_data(Answer::Silence, value_bytes, line),
        Err(error) => refuse_data(error, value_bytes, line),
    }
}

/// The length of a data block as announced by its line.
pub(crate) fn data_length(token: &[u8]) -> Option<u32> {
    strict_i32(token).filter(|bytes| (0..=DATA_BYTES_MAX).contains(bytes)).map(|bytes| bytes as u32)
}

/// A line that is answered with `error`, and whose data block is dropped.
pub(crate) fn refuse_data<'b>(error: TextError, value_bytes: u32, line: Line<'b>) -> Step<'b> {
    drop_data(Answer::Bytes(error.line()), value_bytes, line)
}

fn drop_data<'b>(answer: Answer<'b>, value_bytes: u32, line: Line<'b>) -> Step<'b> {
    Step::Answer { consumed: line.bytes, answer, skip: block_bytes(value_bytes) as u64 }
}

/// The step for a `store` whose line has been parsed: `value_bytes` of data follow it.
pub(crate) fn with_data<'b>(
    store: Store<'b>,
    reply: Reply<'b>,
    value_bytes: u32,
    line: Line<'b>,
    input: &'b [u8],
    context: &Context<'b>,
) -> Step<'b> {
    let request = |store| Request {
        key: reply.key,
        hash: KeyHash::of(reply.key, context.hash_secret),
        operation: Operation::Store(store),
    };
    if !fits(reply.key, store.flags, value_bytes, context) {
        let store = Store { value: Body::Refused(value_bytes.into()), ..store };
        let skip = block_bytes(value_bytes) as u64;
        return Step::Request { consumed: line.bytes, request: request(store), reply, skip };
    }
    let arrived = &input[line.bytes..];
    if let Some(block) = arrived.get(..block_bytes(value_bytes)) {
        let consumed = line.bytes + block.len();
        return match block.strip_suffix(DATA_ENDING) {
            Some(value) => {
                let store = Store { value: Body::Bytes(value), ..store };
                Step::Request { consumed, request: request(store), reply, skip: 0 }
            }
            None => Step::Answer { consumed, answer: bad_data_chunk(&reply), skip: 0 },
        };
    }
    if value_bytes >= context.limits.body_bytes_streamed {
        return Step::StoreHeader {
            consumed: line.bytes,
            request: request(store),
            reply,
            value_bytes,
            trailer_bytes: DATA_ENDING.len() as u8,
        };
    }
    Step::Incomplete
}

/// Length of a data block with its trailer in bytes.
fn block_bytes(value_bytes: u32) -> usize {
    value_bytes as usize + DATA_ENDING.len()
}

/// Whether an item is within the size limit, as memcached counts it.
#[inline]
fn fits(key: &[u8], flags: u32, value_bytes: u32, context: &Context<'_>) -> bool {
    let flags_bytes = if flags == 0 { 0 } else { ITEM_FLAGS_BYTES };
    let bytes = ITEM_OVERHEAD_BYTES + key.len() as u64 + flags_bytes + u64::from(value_bytes);
    bytes <= context.limits.item_bytes_max.into()
}
