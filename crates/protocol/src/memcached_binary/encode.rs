//! Answers to response packets.

use super::{HEADER_BYTES, MemcachedBinaryForm, Status, Verb, opcode};
use crate::{AdminAnswer, Output, Reply};
use ringlane_types::request::{Hit, Response};

/// Bytes of a hit's extras: the client flags.
const FLAGS_BYTES: usize = 4;

/// Writes the answer to one request.
#[inline]
pub fn encode(
    form: MemcachedBinaryForm,
    reply: &Reply<'_>,
    response: &Response<'_>,
    out: &mut impl Output,
) {
    let verb = form.verb();
    let status = match response {
        Response::Hit(hit) => return write_hit(form, hit, reply.key, out),
        Response::Miss => return write_miss(form, reply.key, out),
        Response::Stored { cas, .. } => return write_success(form, *cas, b"", out),
        Response::Deleted => return write_success(form, 0, b"", out),
        Response::Number(number) => {
            return write_success(form, number.cas, &number.value.to_be_bytes(), out);
        }
        // memcached's words for a condition that does not hold depend on the condition.
        Response::NotStored => match verb {
            Some(Verb::Add) => Status::Exists,
            Some(Verb::Replace) => Status::NotFound,
            _ => Status::NotStored,
        },
        Response::Exists => Status::Exists,
        Response::NotFound => Status::NotFound,
        Response::NonNumeric => Status::NonNumeric,
        Response::QuorumNotReached { .. } | Response::Uncertain | Response::Busy => {
            Status::Temporary
        }
        Response::OverAllowance { .. } => unreachable!("the pipeline asks again"),
        Response::TooLarge => Status::TooLarge,
        Response::OutOfMemory if matches!(verb, Some(Verb::Increment | Verb::Decrement)) => {
            return write_error(form, Status::OutOfMemory, "Out of memory incrementing value", out);
        }
        Response::OutOfMemory => Status::OutOfMemory,
        Response::NotCreated => {
            return write_error(
                form,
                Status::OutOfMemory,
                "Out of memory allocating new item",
                out,
            );
        }
    };
    write_error(form, status, status.text(), out);
}

/// Writes the outcome of a command for the node.
pub fn encode_admin(form: MemcachedBinaryForm, answer: AdminAnswer, out: &mut impl Output) {
    let status = match answer {
        AdminAnswer::Done | AdminAnswer::StatsReset => return write_success(form, 0, b"", out),
        AdminAnswer::FlushNotAllowed
        | AdminAnswer::DetailNotAllowed
        | AdminAnswer::CacheDumpNotAllowed => Status::AuthError,
        // Only `stat` has other outcomes here.
        _ => Status::NotFound,
    };
    write_error(form, status, status.text(), out);
}

/// Writes one statistic. After the last comes [`encode_stats_end`].
pub fn encode_stat(form: MemcachedBinaryForm, name: &[u8], value: &[u8], out: &mut impl Output) {
    // A packet without a name would be taken as the end.
    debug_assert!(!name.is_empty(), "a statistic without a name");
    let name = &name[..name.len().min(u16::MAX.into())];
    out.bytes(&form.header(Status::Success, 0, name.len(), name.len() + value.len(), 0));
    out.bytes(name);
    out.bytes(value);
}

/// Writes the packet that follows the last statistic.
pub fn encode_stats_end(form: MemcachedBinaryForm, out: &mut impl Output) {
    out.bytes(&form.header(Status::Success, 0, 0, 0, 0));
}

#[inline]
fn write_hit(form: MemcachedBinaryForm, hit: &Hit<'_>, key: &[u8], out: &mut impl Output) {
    let value_bytes = if form.opcode == opcode::TOUCH { 0 } else { hit.value.len() };
    let body_bytes = FLAGS_BYTES + key.len() + value_bytes;
    let mut head = [0; HEADER_BYTES + FLAGS_BYTES];
    head[..HEADER_BYTES].copy_from_slice(&form.header(
        Status::Success,
        FLAGS_BYTES,
        key.len(),
        body_bytes,
        hit.cas,
    ));
    head[HEADER_BYTES..].copy_from_slice(&hit.flags.to_be_bytes());
    out.bytes(&head);
    if !key.is_empty() {
        out.bytes(key);
    }
    if value_bytes > 0 {
        out.value(&hit.value, hit.item);
    }
}

/// A miss repeats the key instead of a text where a hit would repeat it.
fn write_miss(form: MemcachedBinaryForm, key: &[u8], out: &mut impl Output) {
    if form.is_quiet() {
        return;
    }
    if !form.repeats_key() {
        return write_error(form, Status::NotFound, Status::NotFound.text(), out);
    }
    out.bytes(&form.header(Status::NotFound, 0, key.len(), key.len(), 0));
    out.bytes(key);
}

fn write_success(form: MemcachedBinaryForm, cas: u64, body: &[u8], out: &mut impl Output) {
    if !form.is_quiet() {
        out.bytes(&form.header(Status::Success, 0, 0, body.len(), cas));
        if !body.is_empty() {
            out.bytes(body);
        }
    }
}

fn write_error(form: MemcachedBinaryForm, status: Status, text: &str, out: &mut impl Output) {
    out.bytes(&form.header(status, 0, 0, text.len(), 0));
    out.bytes(text.as_bytes());
}
