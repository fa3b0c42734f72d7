//! Meta lines to requests.

use arrayvec::ArrayVec;

use super::flags::{self, Flags};
use super::{MetaForm, TAIL_BYTES_MAX};
use crate::text::line::{Line, Tokens};
use crate::text::{TextError, answer, refuse, storage};
use crate::{Context, Reply, ReplyForm, Step};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{
    Allowance, Arithmetic, Delete, Get, Operation, Purpose, Request, Store, StoreMode, Vivify,
};
use ringlane_types::time::Deadline;

/// Decodes a line whose name is `m` and `letter`; `None` if there is no such command.
pub(crate) fn decode<'b>(
    letter: u8,
    tokens: Tokens<'b>,
    line: Line<'b>,
    input: &'b [u8],
    context: &Context<'b>,
) -> Option<Step<'b>> {
    let decoded = match letter {
        b'g' => get(tokens, context),
        b's' => return Some(set(tokens, line, input, context)),
        b'd' => delete(tokens, context),
        b'a' => arithmetic(tokens, context),
        b'e' => inspect(tokens, context),
        b'n' => return Some(answer(line, b"MN\r\n")),
        _ => return None,
    };
    Some(match decoded {
        Err(error) => refuse(line, error),
        Ok((operation, reply)) => Step::Request {
            consumed: line.bytes,
            request: Request {
                key: reply.key,
                hash: KeyHash::of(reply.key, context.hash_secret),
                operation,
            },
            reply,
            skip: 0,
        },
    })
}

type Decoded<'b> = Result<(Operation<'b>, Reply<'b>), TextError>;

/// `mg <key> <flag>*`
fn get<'b>(mut tokens: Tokens<'b>, context: &Context<'b>) -> Decoded<'b> {
    let key = tokens.next().ok_or(TextError::CommandLine)?;
    let mut flags = Flags::none(key);
    flags.read(tokens, 2, context)?;
    refuse_long_opaque(&flags)?;
    let get = Get {
        purpose: Purpose::Get,
        touch: flags.deadline,
        no_use: flags.no_use,
        lease: true,
        vivify: flags.vivify.map(|_| Vivify {
            deadline: flags.vivified_deadline,
            cas: flags.cas,
            binary_key: vivified_as_binary(&flags),
        }),
        refresh_below_seconds: flags.refresh_below_seconds,
        refresh_first: flags.refresh_first && flags.deadline.is_some(),
        allowance: Allowance::FULL,
    };
    let form = MetaForm::Get {
        value: flags.value,
        compares: flags.compare.is_some(),
        quiet: flags.quiet,
        binary_key: flags.binary_key,
    };
    Ok((Operation::Get(get), reply(form, &flags, tokens, context)))
}

/// `ms <key> <bytes> <flag>*` and the data.
fn set<'b>(
    mut tokens: Tokens<'b>,
    line: Line<'b>,
    input: &'b [u8],
    context: &Context<'b>,
) -> Step<'b> {
    let key = tokens.next();
    let value_bytes = tokens.next().and_then(storage::data_length);
    let (Some(key), Some(value_bytes)) = (key, value_bytes) else {
        return refuse(line, TextError::CommandLine);
    };
    let store = || {
        let mut flags = Flags::none(key);
        flags.read(tokens, 3, context)?;
        let mode = match flags.mode {
            None | Some(b'S') => StoreMode::Set,
            Some(b'E') => StoreMode::Add,
            Some(b'A') => StoreMode::Append,
            Some(b'P') => StoreMode::Prepend,
            Some(b'R') => StoreMode::Replace,
            Some(_) => return Err(TextError::MetaStoreMode),
        };
        refuse_long_opaque(&flags)?;
        let (compare, vivify) = match mode {
            StoreMode::Set | StoreMode::Replace => (flags.compare, None),
            StoreMode::Add => (None, None),
            StoreMode::Append | StoreMode::Prepend => {
                (flags.compare.filter(|&cas| cas != 0), flags.vivify)
            }
        };
        let store = Store {
            mode,
            flags: flags.client_flags,
            deadline: flags.deadline.unwrap_or(Deadline::NEVER),
            compare,
            accept_older: flags.invalidate
                && compare.is_some()
                && matches!(mode, StoreMode::Set | StoreMode::Replace),
            cas: flags.cas,
            vivify,
            refusal_removes: true,
            binary_key: flags.binary_key,
            ..Store::set(b"")
        };
        let form = MetaForm::Set { quiet: flags.quiet, binary_key: flags.binary_key, value_bytes };
        Ok((store, reply(form, &flags, tokens, context)))
    };
    match store() {
        Ok((store, reply)) => storage::with_data(store, reply, value_bytes, line, input, context),
        // A malformed line announces no data.
        Err(error) if !flags::are_letters(tokens) => refuse(line, error),
        Err(error) => storage::refuse_data(error, value_bytes, line),
    }
}

/// `md <key> <flag>*`
fn delete<'b>(mut tokens: Tokens<'b>, context: &Context<'b>) -> Decoded<'b> {
    let key = tokens.next().ok_or(TextError::CommandLine)?;
    let mut flags = Flags::none(key);
    flags.read(tokens, 2, context)?;
    refuse_long_opaque(&flags)?;
    let delete = Delete {
        compare: flags.compare,
        invalidate: flags.invalidate,
        deadline: flags.deadline,
        empty: flags.empty.then_some(flags.client_flags),
        cas: flags.cas,
    };
    let form = MetaForm::Delete { quiet: flags.quiet, binary_key: flags.binary_key };
    Ok((Operation::Delete(delete), reply(form, &flags, tokens, context)))
}

/// `ma <key> <flag>*`
fn arithmetic<'b>(mut tokens: Tokens<'b>, context: &Context<'b>) -> Decoded<'b> {
    let key = tokens.next().ok_or(TextError::CommandLine)?;
    let mut flags = Flags::none(key);
    flags.read(tokens, 2, context).map_err(|_| {
        if flags::are_letters(tokens) {
            TextError::MetaArithmeticFlag
        } else {
            TextError::CommandLine
        }
    })?;
    let decrement = match flags.mode {
        None | Some(b'I' | b'+') => false,
        Some(b'D' | b'-') => true,
        Some(_) => return Err(TextError::MetaArithmeticMode),
    };
    refuse_long_opaque(&flags)?;
    let arithmetic = Arithmetic {
        compare: flags.compare.filter(|&cas| cas != 0),
        create: flags.vivify.map(|_| (flags.initial, flags.vivified_deadline)),
        touch: flags.deadline,
        cas: flags.cas,
        binary_key: vivified_as_binary(&flags),
        ..Arithmetic::by(flags.delta, decrement)
    };
    let form = MetaForm::Arithmetic {
        value: flags.value,
        quiet: flags.quiet,
        binary_key: flags.binary_key,
    };
    Ok((Operation::Arithmetic(arithmetic), reply(form, &flags, tokens, context)))
}

/// `me <key> [b]`
fn inspect<'b>(mut tokens: Tokens<'b>, context: &Context<'b>) -> Decoded<'b> {
    let key = tokens.next().ok_or(TextError::CommandLine)?;
    let mut base64_only = Tokens::new(b"");
    if tokens.clone().next() == Some(b"b") {
        base64_only = Tokens::new(b"b");
    }
    let mut flags = Flags::none(key);
    flags.read(base64_only, 2, context).map_err(|_| TextError::CommandLine)?;
    let get = Get { purpose: Purpose::Describe, no_use: true, ..Get::default() };
    Ok((Operation::Get(get), reply(MetaForm::Inspect, &flags, base64_only, context)))
}

/// Whether an item created by N shows its key in base64 from then on. memcached does not record the
/// form of such a key and shows it plain; here a key that would break the line is not shown plain.
fn vivified_as_binary(flags: &Flags<'_>) -> bool {
    flags.binary_key && flags.key.iter().any(|byte| *byte <= b' ' || *byte == 0x7f)
}

fn refuse_long_opaque(flags: &Flags<'_>) -> Result<(), TextError> {
    if flags.opaque_too_long { Err(TextError::MetaOpaque) } else { Ok(()) }
}

fn reply<'b>(
    form: MetaForm,
    flags: &Flags<'b>,
    tokens: Tokens<'b>,
    context: &Context<'b>,
) -> Reply<'b> {
    Reply { form: ReplyForm::Meta(form), key: flags.key, tail: tail(tokens, context) }
}

/// The flags that the encoder needs: the tokens as sent. Unused arguments may make them very long;
/// then they are copied with each argument truncated to its relevant length, so that a pending
/// answer never holds more than [`TAIL_BYTES_MAX`].
fn tail<'b>(tokens: Tokens<'b>, context: &Context<'b>) -> &'b [u8] {
    /// The longest argument that is read again: an opaque.
    const TOKEN_BYTES_MAX: usize = 32;
    let rest = tokens.rest();
    if rest.len() <= TAIL_BYTES_MAX {
        return rest;
    }
    let mut tail = ArrayVec::<u8, TAIL_BYTES_MAX>::new();
    for token in tokens {
        let token = &token[..token.len().min(TOKEN_BYTES_MAX)];
        let fits = tail.try_extend_from_slice(token).is_ok() && tail.try_push(b' ').is_ok();
        assert!(fits, "no letter comes twice, so there are at most 18 flags");
    }
    context.scratch.alloc_slice_copy(&tail)
}
