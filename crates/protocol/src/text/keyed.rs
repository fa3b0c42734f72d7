//! delete, incr, decr, touch: one key, a few arguments, no data.

use super::line::{Line, Tokens};
use super::numbers::{strict_i32, strict_u64};
use super::{TextError, TextForm, checked_key, refuse, refuse_unless};
use crate::{Context, Reply, ReplyForm, Step};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{Arithmetic, Delete, Get, Operation, Purpose, Request};
use ringlane_types::time::Deadline;

/// `delete <key> [0] [noreply]`. Old clients send a delay of 0; any other argument is an error,
/// silenced by a closing `noreply`.
pub(super) fn delete<'b>(
    mut tokens: Tokens<'b>,
    line: Line<'b>,
    context: &Context<'b>,
) -> Step<'b> {
    // The key itself may be the closing token: `delete noreply` is silent.
    let noreply = tokens.end_in_noreply();
    let Some(key) = tokens.next() else { return refuse(line, TextError::CommandLine) };
    let key = match checked_key(key) {
        Ok(key) => key,
        Err(error) => return refuse_unless(noreply, line, error),
    };
    if !noreply && !matches!(tokens.rest(), b"" | b"0") {
        return refuse(line, TextError::DeleteUsage);
    }
    let operation = Operation::Delete(Delete::default());
    request(key, operation, TextForm::Delete { noreply }, line, context)
}

/// `incr|decr <key> <amount> [noreply]`.
pub(super) fn arithmetic<'b>(
    mut tokens: Tokens<'b>,
    line: Line<'b>,
    decrement: bool,
    context: &Context<'b>,
) -> Step<'b> {
    let noreply = tokens.end_in_noreply();
    let (Some(key), Some(delta)) = (tokens.next(), tokens.next()) else {
        return refuse(line, TextError::CommandLine);
    };
    let parsed =
        checked_key(key).and_then(|key| Ok((key, strict_u64(delta).ok_or(TextError::Delta)?)));
    match parsed {
        Err(error) => refuse_unless(noreply, line, error),
        Ok((key, delta)) => {
            let operation = Operation::Arithmetic(Arithmetic::by(delta, decrement));
            request(key, operation, TextForm::Arithmetic { noreply }, line, context)
        }
    }
}

/// `touch <key> <exptime> [noreply]`.
pub(super) fn touch<'b>(mut tokens: Tokens<'b>, line: Line<'b>, context: &Context<'b>) -> Step<'b> {
    let noreply = tokens.end_in_noreply();
    let (Some(key), Some(exptime)) = (tokens.next(), tokens.next()) else {
        return refuse(line, TextError::CommandLine);
    };
    let parsed =
        checked_key(key).and_then(|key| Ok((key, strict_i32(exptime).ok_or(TextError::Exptime)?)));
    match parsed {
        Err(error) => refuse_unless(noreply, line, error),
        Ok((key, exptime)) => {
            let touch = Some(Deadline::from_exptime(exptime.into(), context.now));
            let operation =
                Operation::Get(Get { purpose: Purpose::Touch, touch, ..Get::default() });
            request(key, operation, TextForm::Touch { noreply }, line, context)
        }
    }
}

/// The step for a whole line that requests `operation` on `key`.
fn request<'b>(
    key: &'b [u8],
    operation: Operation<'b>,
    form: TextForm,
    line: Line<'b>,
    context: &Context<'b>,
) -> Step<'b> {
    Step::Request {
        consumed: line.bytes,
        request: Request { key, hash: KeyHash::of(key, context.hash_secret), operation },
        reply: Reply { form: ReplyForm::Text(form), key, tail: b"" },
        skip: 0,
    }
}
