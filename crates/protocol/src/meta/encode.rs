//! Answers of the meta commands.

use super::base64;
use super::{MetaForm, flags};
use crate::text::encode::{
    BUSY, LineBuffer, OUT_OF_MEMORY, OUT_OF_MEMORY_STORING, TOO_LARGE, UNCERTAIN,
    quorum_not_reached,
};
use crate::text::line::Tokens;
use crate::text::numbers::strict_u64;
use crate::{Output, Reply};
use ringlane_types::request::{Hit, Number, Response};
use ringlane_types::time::{Deadline, Instant};

/// A line that holds the longest answer: eighteen flags, one of them a key in base64.
type AnswerLine = LineBuffer<768>;

/// Writes the answer to one request.
pub fn encode(
    form: MetaForm,
    reply: &Reply<'_>,
    response: &Response<'_>,
    now: Instant,
    out: &mut impl Output,
) {
    match *response {
        Response::QuorumNotReached { needed, reached } => {
            return quorum_not_reached(needed, reached, out);
        }
        Response::Uncertain => return out.bytes(UNCERTAIN),
        Response::OverAllowance { .. } => unreachable!("the pipeline asks again"),
        Response::Busy => return out.bytes(BUSY),
        _ => {}
    }
    match form {
        MetaForm::Get { value, compares, quiet, binary_key } => match response {
            Response::Hit(hit) => {
                let withheld = compares && compared(reply.tail) == Some(hit.cas);
                get_hit(hit, value && !withheld, reply.tail, now, out);
            }
            _ if quiet => {}
            _ => code_and_key(b"EN", reply, binary_key, out),
        },
        MetaForm::Set { quiet, binary_key, value_bytes } => {
            let value_bytes_sent = value_bytes;
            let (code, cas, value_bytes) = match *response {
                Response::Stored { .. } if quiet => return,
                Response::Stored { cas, value_bytes } => (b"HD", cas, value_bytes),
                Response::NotStored => (b"NS", 0, value_bytes_sent),
                Response::Exists => (b"EX", 0, value_bytes_sent),
                Response::NotFound => (b"NF", 0, value_bytes_sent),
                Response::TooLarge => return out.bytes(TOO_LARGE),
                _ => return out.bytes(OUT_OF_MEMORY_STORING),
            };
            set(code, cas, value_bytes, reply, binary_key, out);
        }
        MetaForm::Delete { quiet, binary_key } => {
            let code = match response {
                Response::Deleted if quiet => return,
                Response::Deleted => b"HD",
                Response::NotFound => b"NF",
                Response::Exists => b"EX",
                _ => return out.bytes(OUT_OF_MEMORY),
            };
            code_and_key(code, reply, binary_key, out);
        }
        MetaForm::Arithmetic { value, quiet, binary_key } => {
            let code = match response {
                Response::Number(_) if quiet => return,
                Response::Number(result) => {
                    return number(result, value, reply, binary_key, now, out);
                }
                Response::NotFound => b"NF",
                Response::Exists => b"EX",
                Response::NotCreated => b"NS",
                Response::NonNumeric => return out.bytes(NON_NUMERIC),
                _ => return out.bytes(OUT_OF_MEMORY),
            };
            code_and_key(code, reply, binary_key, out);
        }
        MetaForm::Inspect => match response {
            Response::Hit(hit) => inspect(hit, now, out),
            _ => out.bytes(b"EN\r\n"),
        },
    }
}

const NON_NUMERIC: &[u8] = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";

/// The CAS token that C compares with.
fn compared(tail: &[u8]) -> Option<u64> {
    Tokens::new(tail).find_map(|token| token.strip_prefix(b"C")).and_then(strict_u64)
}

/// mg with a hit. The marks come last, in the order Z, X, W.
fn get_hit(hit: &Hit<'_>, value: bool, tail: &[u8], now: Instant, out: &mut impl Output) {
    let mut line = AnswerLine::new();
    let value_bytes = hit.value.len() as u64;
    if value {
        line.push(b"VA ");
        line.number(value_bytes);
    } else {
        line.push(b"HD");
    }
    // Flags take effect from left to right: flags after T (or N, for an item created by N) show its
    // result. Only such an item is won without being stale or close to expiry.
    let created = hit.marks.won && !hit.marks.stale && hit.deadline_before.is_never();
    let mut deadline = hit.deadline_before;
    for token in Tokens::new(tail) {
        match token[0] {
            b'T' | b'N' if created => deadline = given(token, hit.deadline, now),
            b'T' => deadline = hit.deadline,
            b's' => tagged(&mut line, b" s", value_bytes),
            b't' => ttl(&mut line, b" t", deadline, now),
            b'c' => tagged(&mut line, b" c", hit.cas),
            b'f' => tagged(&mut line, b" f", hit.flags),
            b'h' => line.push(if hit.marks.fetched { b" h1" } else { b" h0" }),
            b'l' => tagged(&mut line, b" l", hit.idle_seconds),
            b'O' => opaque(&mut line, token),
            b'k' => key(&mut line, hit.key, hit.marks.binary_key),
            _ => {}
        }
    }
    if hit.marks.win_sent {
        line.push(b" Z");
    }
    if hit.marks.stale {
        line.push(b" X");
    }
    if hit.marks.won {
        line.push(b" W");
    }
    line.push(b"\r\n");
    out.bytes(line.as_bytes());
    if value {
        out.value(&hit.value, hit.item);
        out.bytes(b"\r\n");
    }
}

/// ms with a code.
fn set(
    code: &[u8],
    cas: u64,
    value_bytes: u32,
    reply: &Reply<'_>,
    binary_key: bool,
    out: &mut impl Output,
) {
    let mut line = AnswerLine::new();
    line.push(code);
    for token in Tokens::new(reply.tail) {
        match token[0] {
            b'O' => opaque(&mut line, token),
            b'k' => key(&mut line, reply.key, binary_key),
            b'c' => tagged(&mut line, b" c", cas),
            b's' => tagged(&mut line, b" s", value_bytes),
            _ => {}
        }
    }
    line.push(b"\r\n");
    out.bytes(line.as_bytes());
}

/// ma with a number.
fn number(
    number: &Number<'_>,
    value: bool,
    reply: &Reply<'_>,
    binary_key: bool,
    now: Instant,
    out: &mut impl Output,
) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number.value).as_bytes();
    let mut line = AnswerLine::new();
    if value {
        line.push(b"VA ");
        line.number(digits.len());
    } else {
        line.push(b"HD");
    }
    let mut deadline = number.deadline_before;
    for token in Tokens::new(reply.tail) {
        match token[0] {
            b'T' | b'N' if number.created => deadline = given(token, number.deadline, now),
            b'T' => deadline = number.deadline,
            b't' => ttl(&mut line, b" t", deadline, now),
            b'c' => tagged(&mut line, b" c", number.cas),
            b'O' => opaque(&mut line, token),
            b'k' => key(&mut line, reply.key, binary_key),
            _ => {}
        }
    }
    line.push(b"\r\n");
    if value {
        line.push(digits);
        line.push(b"\r\n");
    }
    out.bytes(line.as_bytes());
}

/// me with a hit.
fn inspect(hit: &Hit<'_>, now: Instant, out: &mut impl Output) {
    let mut line = AnswerLine::new();
    line.push(b"ME ");
    if hit.marks.binary_key {
        base64::encode(hit.key, |bytes| line.push(bytes));
    } else {
        line.push(hit.key);
    }
    ttl(&mut line, b" exp=", hit.deadline, now);
    tagged(&mut line, b" la=", hit.idle_seconds);
    tagged(&mut line, b" cas=", hit.cas);
    line.push(if hit.marks.fetched { b" fetch=yes" } else { b" fetch=no" });
    tagged(&mut line, b" cls=", hit.class);
    tagged(&mut line, b" size=", hit.item_bytes);
    line.push(b"\r\n");
    out.bytes(line.as_bytes());
}

/// An answer that only repeats parts of the request.
fn code_and_key(code: &[u8], reply: &Reply<'_>, binary_key: bool, out: &mut impl Output) {
    let mut line = AnswerLine::new();
    line.push(code);
    for token in Tokens::new(reply.tail) {
        match token[0] {
            b'O' => opaque(&mut line, token),
            b'k' => key(&mut line, reply.key, binary_key),
            _ => {}
        }
    }
    line.push(b"\r\n");
    out.bytes(line.as_bytes());
}

fn tagged(line: &mut AnswerLine, tag: &[u8], number: impl itoa::Integer) {
    line.push(tag);
    line.number(number);
}

/// Whole seconds left, or -1 for never.
fn ttl(line: &mut AnswerLine, tag: &[u8], deadline: Deadline, now: Instant) {
    match deadline.seconds_left(now) {
        Some(seconds) => tagged(line, tag, seconds),
        None => tagged(line, tag, -1),
    }
}

/// The deadline that a T or N gives an item created by the request: the other of the two may follow
/// and override it, so the item's own deadline is not conclusive.
fn given(token: &[u8], made: Deadline, now: Instant) -> Deadline {
    flags::deadline(&token[1..], now).unwrap_or(made)
}

fn opaque(line: &mut AnswerLine, token: &[u8]) {
    line.push(b" ");
    line.push(token);
}

fn key(line: &mut AnswerLine, key: &[u8], binary: bool) {
    line.push(b" k");
    if binary {
        base64::encode(key, |bytes| line.push(bytes));
        line.push(b" b");
    } else {
        line.push(key);
    }
}
