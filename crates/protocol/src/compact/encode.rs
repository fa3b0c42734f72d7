//! Answers to response frames.
//!
//! A response is written with one small copy for everything before the value, so that a plain hit
//! costs a header and the value.

use super::opcode::{HEADER_BYTES, Kind, request_flags, response_flags};
use super::{CompactForm, Entry, Opcode, Status, Topology};
use crate::{AdminAnswer, Output, Reply};
use ringlane_types::request::{Hit, ItemRef, KEY_BYTES_MAX, Response, Value};
use ringlane_types::time::{Deadline, Instant};

/// Longest header with all its fields.
const HEAD_BYTES_MAX: usize = HEADER_BYTES + 24;

/// The fields of an answer besides its status. Absent fields are not sent.
#[derive(Clone, Copy, Default)]
struct Facts<'s> {
    client_flags: u32,
    ttl_millis: Option<u64>,
    version: Option<u64>,
    key: &'s [u8],
    value: Option<Value<'s>>,
    item: Option<ItemRef>,
    more: bool,
}

/// Writes the answer to one request.
#[inline]
pub fn encode(
    form: CompactForm,
    _reply: &Reply<'_>,
    response: &Response<'_>,
    now: Instant,
    out: &mut impl Output,
) {
    let details = form.flags & request_flags::DETAILS != 0;
    match response {
        Response::Hit(hit) if sends_value(form.opcode) && !details => write_hit(form, hit, out),
        Response::Stored { .. } if form.entry == Entry::Only && !details => {
            if form.flags & request_flags::QUIET == 0 {
                out.bytes(&header(form, 0, Status::Ok, 0, 0));
            }
        }
        _ => encode_any(form, response, now, out),
    }
}

/// Whether a hit of this command carries the value.
#[inline]
fn sends_value(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Get | Opcode::Mget | Opcode::Gat)
}

/// Writes a hit without details: header, client flags, position and value.
#[inline]
fn write_hit(form: CompactForm, hit: &Hit<'_>, out: &mut impl Output) {
    let value_bytes = hit.value.len();
    if hit.flags == 0 && form.entry == Entry::Only {
        out.bytes(&header(form, 0, Status::Ok, 0, value_bytes));
    } else {
        let mut head = [0; HEADER_BYTES + 8];
        let (mut at, mut flags) = (HEADER_BYTES, 0);
        if hit.flags != 0 {
            flags |= response_flags::CLIENT_FLAGS;
            head[at..at + 4].copy_from_slice(&hit.flags.to_le_bytes());
            at += 4;
        }
        if form.entry != Entry::Only {
            flags |= entry_flags(form.entry);
            head[at..at + 4].copy_from_slice(&form.index.to_le_bytes());
            at += 4;
        }
        head[..HEADER_BYTES].copy_from_slice(&header(form, flags, Status::Ok, 0, value_bytes));
        out.bytes(&head[..at]);
    }
    out.value(&hit.value, hit.item);
}

/// The flags that give the position of the answered entry in its request.
#[inline]
fn entry_flags(entry: Entry) -> u8 {
    match entry {
        Entry::Only => 0,
        Entry::Inner => response_flags::INDEX | response_flags::MORE,
        Entry::Last => response_flags::INDEX,
    }
}

/// Writes any answer.
#[inline(never)]
fn encode_any(form: CompactForm, response: &Response<'_>, now: Instant, out: &mut impl Output) {
    let details = form.flags & request_flags::DETAILS != 0;
    let number;
    let sentence;
    let (status, facts) = match response {
        Response::Hit(hit) => {
            let with_value = sends_value(form.opcode);
            let with_ttl = details || form.opcode == Opcode::Ttl;
            let facts = Facts {
                client_flags: if with_value { hit.flags } else { 0 },
                ttl_millis: if with_ttl { millis_left(hit.deadline, now) } else { None },
                version: details.then_some(hit.cas),
                value: with_value.then_some(hit.value),
                item: hit.item,
                ..Facts::default()
            };
            (Status::Ok, facts)
        }
        Response::Miss | Response::NotFound => (Status::NotFound, Facts::default()),
        Response::Stored { cas, .. } => {
            (Status::Ok, Facts { version: details.then_some(*cas), ..Facts::default() })
        }
        Response::Number(arithmetic) => {
            number = arithmetic.value.to_le_bytes();
            let facts = Facts {
                ttl_millis: if details { millis_left(arithmetic.deadline, now) } else { None },
                version: details.then_some(arithmetic.cas),
                value: Some(Value::Whole(&number)),
                ..Facts::default()
            };
            (Status::Ok, facts)
        }
        Response::Deleted => (Status::Ok, Facts::default()),
        Response::NotStored | Response::NotCreated => (Status::NotStored, Facts::default()),
        Response::Exists => (Status::Exists, Facts::default()),
        Response::NonNumeric => (Status::NonNumeric, Facts::default()),
        Response::TooLarge => (Status::TooLarge, Facts::default()),
        Response::OutOfMemory => (Status::OutOfMemory, Facts::default()),
        Response::QuorumNotReached { needed, reached } => {
            sentence = format!("needed {needed}, reached {reached}");
            let value = Some(Value::Whole(sentence.as_bytes()));
            (Status::QuorumNotReached, Facts { value, ..Facts::default() })
        }
        Response::OverAllowance { .. } => unreachable!("the pipeline asks again"),
        Response::Uncertain => {
            let value = Some(Value::Whole(b"the node that keeps the key went away"));
            (Status::Unavailable, Facts { value, ..Facts::default() })
        }
        Response::Busy => {
            let value = Some(Value::Whole(b"too much waits for other nodes, not performed"));
            (Status::Unavailable, Facts { value, ..Facts::default() })
        }
    };
    if !is_silent(form, status) {
        write(form, status, &facts, out);
    }
}

/// Writes the outcome of a command for the node.
pub fn encode_admin(form: CompactForm, answer: AdminAnswer, out: &mut impl Output) {
    let (status, sentence) = match answer {
        AdminAnswer::Done | AdminAnswer::StatsReset => (Status::Ok, ""),
        AdminAnswer::FlushNotAllowed => (Status::NotAllowed, "flush is switched off"),
        AdminAnswer::DetailNotAllowed | AdminAnswer::CacheDumpNotAllowed => {
            (Status::NotAllowed, "listing keys is switched off")
        }
        AdminAnswer::Unknown => (Status::Invalid, "no such statistics"),
        // Only text commands have other outcomes.
        _ => (Status::Invalid, "not possible"),
    };
    if !is_silent(form, status) {
        let value = (!sentence.is_empty()).then_some(Value::Whole(sentence.as_bytes()));
        write(form, status, &Facts { value, ..Facts::default() }, out);
    }
}

/// Writes one statistic, its name as the key. After the last comes [`encode_stats_end`].
pub fn encode_stat(form: CompactForm, name: &[u8], value: &[u8], out: &mut impl Output) {
    // Names are the server's own, but some end with text chosen by an operator.
    let key = &name[..name.len().min(KEY_BYTES_MAX)];
    let value = Some(Value::Whole(value));
    write(form, Status::Ok, &Facts { key, value, more: true, ..Facts::default() }, out);
}

/// Writes the answer that follows the last statistic.
pub fn encode_stats_end(form: CompactForm, out: &mut impl Output) {
    write(form, Status::Ok, &Facts::default(), out);
}

/// Writes the answer to HELLO.
pub fn encode_topology(form: CompactForm, topology: &Topology<'_>, out: &mut impl Output) {
    let list = topology.to_bytes();
    let value = Some(Value::Whole(&list));
    write(form, Status::Ok, &Facts { value, ..Facts::default() }, out);
}

/// Whether a quiet request suppresses this answer.
#[inline]
fn is_silent(form: CompactForm, status: Status) -> bool {
    if form.flags & request_flags::QUIET == 0 || form.entry == Entry::Last {
        return false;
    }
    match form.opcode.spec().kind {
        Kind::Read | Kind::ReadMany => status == Status::NotFound,
        _ => status == Status::Ok,
    }
}

/// Milliseconds until `deadline`; `None` for never.
fn millis_left(deadline: Deadline, now: Instant) -> Option<u64> {
    (!deadline.is_never()).then(|| deadline.as_millis().saturating_sub(now.as_millis()))
}

/// The fixed part of a response.
#[inline]
fn header(
    form: CompactForm,
    flags: u8,
    status: Status,
    key_bytes: usize,
    value_bytes: usize,
) -> [u8; HEADER_BYTES] {
    let [v0, v1, v2, v3] = (value_bytes as u32).to_le_bytes();
    let [o0, o1, o2, o3] = form.opaque.to_le_bytes();
    let (code, status, key_bytes) = (form.opcode as u8, status as u8, key_bytes as u8);
    [code, flags, status, key_bytes, v0, v1, v2, v3, o0, o1, o2, o3]
}

fn write(form: CompactForm, status: Status, facts: &Facts<'_>, out: &mut impl Output) {
    let mut head = [0; HEAD_BYTES_MAX];
    let mut flags = if facts.more { response_flags::MORE } else { 0 };
    let mut at = HEADER_BYTES;
    let mut field = |flag: u8, bytes: &[u8]| {
        flags |= flag;
        head[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    if facts.client_flags != 0 {
        field(response_flags::CLIENT_FLAGS, &facts.client_flags.to_le_bytes());
    }
    if let Some(millis) = facts.ttl_millis {
        field(response_flags::TTL, &millis.to_le_bytes());
    }
    if let Some(version) = facts.version {
        field(response_flags::VERSION, &version.to_le_bytes());
    }
    if form.entry != Entry::Only {
        field(entry_flags(form.entry), &form.index.to_le_bytes());
    }
    let value_bytes = facts.value.map_or(0, |value| value.len());
    head[..HEADER_BYTES].copy_from_slice(&header(
        form,
        flags,
        status,
        facts.key.len(),
        value_bytes,
    ));
    out.bytes(&head[..at]);
    if !facts.key.is_empty() {
        out.bytes(facts.key);
    }
    if let Some(value) = &facts.value
        && value_bytes > 0
    {
        out.value(value, facts.item);
    }
}
