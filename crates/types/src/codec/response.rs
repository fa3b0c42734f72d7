//! The answer of the core that owned the key.

use super::CodecError;
use super::fields::{bit8, optional};
use crate::request::{Hit, KEY_BYTES_MAX, Marks, Number, Response, Value};
use crate::wire::{Reader, SliceWriter, Writer};

const HIT_HEAD_BYTES: usize = 16;
const NUMBER_HEAD_BYTES: usize = 19;

/// Tags of responses, in the lower four bits. The upper four announce fields of a hit or a number.
pub(super) mod answer {
    pub(crate) const KIND: u8 = 0x0f;
    pub(crate) const HIT: u8 = 0x01;
    pub(crate) const MISS: u8 = 0x02;
    pub(crate) const STORED: u8 = 0x03;
    pub(crate) const NOT_STORED: u8 = 0x04;
    pub(crate) const EXISTS: u8 = 0x05;
    pub(crate) const NOT_FOUND: u8 = 0x06;
    pub(crate) const DELETED: u8 = 0x07;
    pub(crate) const NUMBER: u8 = 0x08;
    pub(crate) const NON_NUMERIC: u8 = 0x09;
    pub(crate) const TOO_LARGE: u8 = 0x0a;
    pub(crate) const OUT_OF_MEMORY: u8 = 0x0b;
    pub(crate) const NOT_CREATED: u8 = 0x0c;
    pub(crate) const QUORUM_NOT_REACHED: u8 = 0x0d;
    pub(crate) const UNCERTAIN: u8 = 0x0e;
    pub(crate) const OVER_ALLOWANCE: u8 = 0x0f;
    pub(crate) const BUSY: u8 = 0x00;

    pub(crate) const FLAGS: u8 = 0x10;
    pub(crate) const DEADLINE: u8 = 0x20;
    /// The deadline before the request, if it differs from the one after it.
    pub(crate) const DEADLINE_BEFORE: u8 = 0x40;
    pub(crate) const IDLE: u8 = 0x80;
}

/// Bits of a hit's marks and a number's.
mod mark {
    pub(super) const FETCHED: u8 = 1;
    pub(super) const STALE: u8 = 1 << 1;
    pub(super) const WON: u8 = 1 << 2;
    pub(super) const WIN_SENT: u8 = 1 << 3;
    pub(super) const BINARY_KEY: u8 = 1 << 4;
    pub(super) const HIT_KNOWN: u8 = (1 << 5) - 1;
    pub(super) const CREATED: u8 = 1 << 5;
    pub(super) const NUMBER_KNOWN: u8 = BINARY_KEY | CREATED;
}
/// Length of `response` as a message, in bytes. It grows with the value of a hit: a caller that
/// does not want to copy a long value must check it first.
#[inline]
pub fn encoded_response_bytes(response: &Response<'_>) -> usize {
    match response {
        Response::Hit(hit) => {
            HIT_HEAD_BYTES
                + optional(hit.flags != 0, 4)
                + optional(!hit.deadline.is_never(), 8)
                + optional(hit.deadline_before != hit.deadline, 8)
                + optional(hit.idle_seconds != 0, 4)
                + hit.key.len()
                + hit.value.len()
        }
        Response::Number(number) => {
            NUMBER_HEAD_BYTES
                + optional(!number.deadline.is_never(), 8)
                + optional(number.deadline_before != number.deadline, 8)
                + number.key.len()
        }
        Response::Stored { .. } => 13,
        Response::QuorumNotReached { .. } => 3,
        Response::OverAllowance { request, .. } => 5 + request.len(),
        _ => 1,
    }
}

/// Writes `response` into `out`, whose length must be [`encoded_response_bytes`] of it. A chained
/// value is written in one piece, and a hit's item position is omitted: it is meaningless to
/// another core.
///
/// # Panics
/// If `out` has another length, or a key is longer than [`KEY_BYTES_MAX`].
#[inline]
pub fn encode_response(response: &Response<'_>, out: &mut [u8]) {
    let mut writer = SliceWriter::new(out);
    match response {
        Response::Hit(hit) => write_hit(hit, &mut writer),
        Response::Number(number) => write_number(number, &mut writer),
        Response::Stored { cas, value_bytes } => {
            writer.put(&[answer::STORED]);
            writer.put_u32(*value_bytes);
            writer.put_u64(*cas);
        }
        Response::Miss => writer.put(&[answer::MISS]),
        Response::NotStored => writer.put(&[answer::NOT_STORED]),
        Response::Exists => writer.put(&[answer::EXISTS]),
        Response::NotFound => writer.put(&[answer::NOT_FOUND]),
        Response::Deleted => writer.put(&[answer::DELETED]),
        Response::NonNumeric => writer.put(&[answer::NON_NUMERIC]),
        Response::TooLarge => writer.put(&[answer::TOO_LARGE]),
        Response::OutOfMemory => writer.put(&[answer::OUT_OF_MEMORY]),
        Response::NotCreated => writer.put(&[answer::NOT_CREATED]),
        Response::QuorumNotReached { needed, reached } => {
            writer.put(&[answer::QUORUM_NOT_REACHED, *needed, *reached]);
        }
        Response::Uncertain => writer.put(&[answer::UNCERTAIN]),
        Response::OverAllowance { value_bytes, request } => {
            writer.put(&[answer::OVER_ALLOWANCE]);
            writer.put_u32(*value_bytes);
            writer.put(request);
        }
        Response::Busy => writer.put(&[answer::BUSY]),
    }
    writer.finish();
}

/// The length of the value if `message` says that it exceeds the allowance; a cheap check.
#[inline]
pub fn over_allowance(message: &[u8]) -> Option<u32> {
    let (tag, rest) = message.split_first()?;
    if tag & answer::KIND != answer::OVER_ALLOWANCE {
        return None;
    }
    rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[inline]
fn write_hit(hit: &Hit<'_>, writer: &mut SliceWriter<'_>) {
    assert!(hit.key.len() <= KEY_BYTES_MAX, "key of {} bytes", hit.key.len());
    let marks = &hit.marks;
    let mut head = [0; HIT_HEAD_BYTES];
    head[0] = answer::HIT
        | bit8(hit.flags != 0, answer::FLAGS)
        | bit8(!hit.deadline.is_never(), answer::DEADLINE)
        | bit8(hit.deadline_before != hit.deadline, answer::DEADLINE_BEFORE)
        | bit8(hit.idle_seconds != 0, answer::IDLE);
    head[1] = bit8(marks.fetched, mark::FETCHED)
        | bit8(marks.stale, mark::STALE)
        | bit8(marks.won, mark::WON)
        | bit8(marks.win_sent, mark::WIN_SENT)
        | bit8(marks.binary_key, mark::BINARY_KEY);
    head[2] = hit.key.len() as u8;
    head[3] = hit.class;
    head[4..8].copy_from_slice(&hit.item_bytes.to_le_bytes());
    head[8..].copy_from_slice(&hit.cas.to_le_bytes());
    writer.put(&head);
    writer.optional_u32((hit.flags != 0).then_some(hit.flags));
    writer.deadlines(hit.deadline, hit.deadline_before);
    writer.optional_u32((hit.idle_seconds != 0).then_some(hit.idle_seconds));
    writer.put(hit.key);
    match &hit.value {
        Value::Whole(value) => writer.put(value),
        chained => chained.parts().for_each(|part| writer.put(part)),
    }
}

fn write_number(number: &Number<'_>, writer: &mut SliceWriter<'_>) {
    assert!(number.key.len() <= KEY_BYTES_MAX, "key of {} bytes", number.key.len());
    writer.put(&[
        answer::NUMBER
            | bit8(!number.deadline.is_never(), answer::DEADLINE)
            | bit8(number.deadline_before != number.deadline, answer::DEADLINE_BEFORE),
        bit8(number.created, mark::CREATED) | bit8(number.binary_key, mark::BINARY_KEY),
        number.key.len() as u8,
    ]);
    writer.put_u64(number.value);
    writer.put_u64(number.cas);
    writer.deadlines(number.deadline, number.deadline_before);
    writer.put(number.key);
}

/// Decodes the response that [`encode_response`] wrote; `message` is exactly that message.
#[inline]
pub fn decode_response(message: &[u8]) -> Result<Response<'_>, CodecError> {
    let mut reader = Reader::new(message);
    let [tag] = reader.array()?;
    let kind = tag & answer::KIND;
    if kind == answer::HIT {
        return Ok(Response::Hit(read_hit(tag, &mut reader)?));
    }
    if kind == answer::NUMBER {
        let number = read_number(tag, &mut reader)?;
        reader.end()?;
        return Ok(Response::Number(number));
    }
    let response = match tag {
        answer::STORED => Response::Stored { value_bytes: reader.u32()?, cas: reader.u64()? },
        answer::MISS => Response::Miss,
        answer::NOT_STORED => Response::NotStored,
        answer::EXISTS => Response::Exists,
        answer::NOT_FOUND => Response::NotFound,
        answer::DELETED => Response::Deleted,
        answer::NON_NUMERIC => Response::NonNumeric,
        answer::TOO_LARGE => Response::TooLarge,
        answer::OUT_OF_MEMORY => Response::OutOfMemory,
        answer::NOT_CREATED => Response::NotCreated,
        answer::QUORUM_NOT_REACHED => {
            let [needed, reached] = reader.array()?;
            Response::QuorumNotReached { needed, reached }
        }
        answer::UNCERTAIN => Response::Uncertain,
        answer::OVER_ALLOWANCE => {
            let value_bytes = reader.u32()?;
            Response::OverAllowance { value_bytes, request: reader.rest() }
        }
        answer::BUSY => Response::Busy,
        _ => return Err(CodecError::Unknown),
    };
    reader.end()?;
    Ok(response)
}

#[inline(always)]
fn read_hit<'b>(tag: u8, reader: &mut Reader<'b>) -> Result<Hit<'b>, CodecError> {
    let [marks, key_bytes, class] = reader.array()?;
    let item_bytes = reader.u32()?;
    let cas = reader.u64()?;
    let flags = reader.optional_u32(tag & answer::FLAGS != 0)?.unwrap_or(0);
    let (deadline, deadline_before) = reader.deadlines(tag)?;
    let idle_seconds = reader.optional_u32(tag & answer::IDLE != 0)?.unwrap_or(0);
    if marks & !mark::HIT_KNOWN != 0 {
        return Err(CodecError::Unknown);
    }
    if key_bytes as usize > KEY_BYTES_MAX {
        return Err(CodecError::Key);
    }
    let key = reader.take(key_bytes.into())?;
    Ok(Hit {
        item: None,
        key,
        value: Value::Whole(reader.rest()),
        flags,
        cas,
        deadline,
        deadline_before,
        idle_seconds,
        marks: Marks {
            fetched: marks & mark::FETCHED != 0,
            stale: marks & mark::STALE != 0,
            won: marks & mark::WON != 0,
            win_sent: marks & mark::WIN_SENT != 0,
            binary_key: marks & mark::BINARY_KEY != 0,
        },
        class,
        item_bytes,
    })
}

fn read_number<'b>(tag: u8, reader: &mut Reader<'b>) -> Result<Number<'b>, CodecError> {
    let [marks, key_bytes] = reader.array()?;
    let value = reader.u64()?;
    let cas = reader.u64()?;
    let (deadline, deadline_before) = reader.deadlines(tag)?;
    if marks & !mark::NUMBER_KNOWN != 0 || tag & (answer::FLAGS | answer::IDLE) != 0 {
        return Err(CodecError::Unknown);
    }
    if key_bytes as usize > KEY_BYTES_MAX {
        return Err(CodecError::Key);
    }
    Ok(Number {
        value,
        key: reader.take(key_bytes.into())?,
        cas,
        deadline,
        deadline_before,
        created: marks & mark::CREATED != 0,
        binary_key: marks & mark::BINARY_KEY != 0,
    })
}
