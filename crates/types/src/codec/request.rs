//! A request to the core that owns its key.

use super::CodecError;
use super::fields::{bit, optional};
use crate::hash::KeyHash;
use crate::request::{
    Allowance, Arithmetic, Body, Delete, Get, KEY_BYTES_MAX, Operation, Purpose, Request, Store,
    StoreMode, Vivify,
};
use crate::time::Deadline;
use crate::wire::{Reader, SliceWriter, Writer};

/// Bytes of a plain get excluding its key.
pub const PLAIN_GET_HEAD_BYTES: usize = 10;

/// The same with an allowance.
pub const LIMITED_GET_HEAD_BYTES: usize = PLAIN_GET_HEAD_BYTES + 4;

const HEAD_BYTES: usize = PLAIN_GET_HEAD_BYTES + 2;

/// Tags of requests.
pub(super) mod ask {
    pub(crate) const PLAIN_GET: u8 = 0x01;
    pub(crate) const GET: u8 = 0x02;
    pub(crate) const STORE: u8 = 0x03;
    pub(crate) const DELETE: u8 = 0x04;
    pub(crate) const ARITHMETIC: u8 = 0x05;
    /// A plain get with an allowance.
    pub(crate) const LIMITED_GET: u8 = 0x06;
}

/// Options of a get.
mod get {
    /// Two bits.
    pub(super) const PURPOSE: u16 = 0b11;
    pub(super) const NO_USE: u16 = 1 << 2;
    pub(super) const LEASE: u16 = 1 << 3;
    pub(super) const TOUCH: u16 = 1 << 4;
    pub(super) const VIVIFY: u16 = 1 << 5;
    pub(super) const VIVIFY_CAS: u16 = 1 << 6;
    pub(super) const VIVIFY_BINARY_KEY: u16 = 1 << 7;
    pub(super) const REFRESH: u16 = 1 << 8;
    pub(super) const REFRESH_FIRST: u16 = 1 << 9;
    pub(super) const ALLOWANCE: u16 = 1 << 10;
    pub(super) const KNOWN: u16 = (1 << 11) - 1;
}

/// Options of a store.
mod store {
    /// Three bits.
    pub(super) const MODE: u16 = 0b111;
    pub(super) const REFUSED: u16 = 1 << 3;
    pub(super) const FLAGS: u16 = 1 << 4;
    pub(super) const DEADLINE: u16 = 1 << 5;
    pub(super) const COMPARE: u16 = 1 << 6;
    pub(super) const CAS: u16 = 1 << 7;
    pub(super) const VIVIFY: u16 = 1 << 8;
    pub(super) const ACCEPT_OLDER: u16 = 1 << 9;
    pub(super) const REFUSAL_REMOVES: u16 = 1 << 10;
    pub(super) const BINARY_KEY: u16 = 1 << 11;
    pub(super) const KNOWN: u16 = (1 << 12) - 1;
}

/// Options of a delete.
mod delete {
    pub(super) const COMPARE: u16 = 1;
    pub(super) const DEADLINE: u16 = 1 << 1;
    pub(super) const EMPTY: u16 = 1 << 2;
    pub(super) const CAS: u16 = 1 << 3;
    pub(super) const INVALIDATE: u16 = 1 << 4;
    pub(super) const KNOWN: u16 = (1 << 5) - 1;
}

/// Options of an increment or decrement.
mod arithmetic {
    pub(super) const COMPARE: u16 = 1;
    pub(super) const CREATE: u16 = 1 << 1;
    pub(super) const TOUCH: u16 = 1 << 2;
    pub(super) const CAS: u16 = 1 << 3;
    pub(super) const DECREMENT: u16 = 1 << 4;
    pub(super) const BINARY_KEY: u16 = 1 << 5;
    pub(super) const KNOWN: u16 = (1 << 6) - 1;
}
/// Length of `request` as a message, in bytes.
#[inline]
pub fn encoded_request_bytes(request: &Request<'_>) -> usize {
    let key_bytes = request.key.len();
    match &request.operation {
        Operation::Get(get) if get.is_plain() => {
            PLAIN_GET_HEAD_BYTES + optional(get.allowance.is_limited(), 4) + key_bytes
        }
        operation => HEAD_BYTES + key_bytes + operation_bytes(operation),
    }
}

fn operation_bytes(operation: &Operation<'_>) -> usize {
    match operation {
        Operation::Get(get) => {
            optional(get.touch.is_some(), 8)
                + get.vivify.map_or(0, |vivify| 8 + optional(vivify.cas.is_some(), 8))
                + optional(get.refresh_below_seconds.is_some(), 4)
                + optional(get.allowance.is_limited(), 4)
        }
        Operation::Store(store) => {
            optional(store.flags != 0, 4)
                + optional(!store.deadline.is_never(), 8)
                + optional(store.compare.is_some(), 8)
                + optional(store.cas.is_some(), 8)
                + optional(store.vivify.is_some(), 8)
                + match &store.value {
                    Body::Bytes(value) => value.len(),
                    Body::Refused(_) | Body::Staged(_) => 8,
                }
        }
        Operation::Delete(delete) => {
            optional(delete.compare.is_some(), 8)
                + optional(delete.deadline.is_some(), 8)
                + optional(delete.empty.is_some(), 4)
                + optional(delete.cas.is_some(), 8)
        }
        Operation::Arithmetic(arithmetic) => {
            8 + optional(arithmetic.compare.is_some(), 8)
                + optional(arithmetic.create.is_some(), 16)
                + optional(arithmetic.touch.is_some(), 8)
                + optional(arithmetic.cas.is_some(), 8)
        }
    }
}

/// Writes `request` into `out`, whose length must be [`encoded_request_bytes`] of it.
///
/// A staged body belongs to the shard that staged it and must not be sent to another; in release
/// builds such a store would arrive as refused rather than with a wrong value.
///
/// # Panics
/// If `out` has another length, or the key is longer than [`KEY_BYTES_MAX`].
#[inline]
pub fn encode_request(request: &Request<'_>, out: &mut [u8]) {
    assert!(request.key.len() <= KEY_BYTES_MAX, "key of {} bytes", request.key.len());
    let mut writer = SliceWriter::new(out);
    let plain = match &request.operation {
        Operation::Get(get) if get.is_plain() => Some(get.allowance),
        _ => None,
    };
    let tag = match &request.operation {
        Operation::Get(_) if plain.is_some_and(Allowance::is_limited) => ask::LIMITED_GET,
        Operation::Get(_) if plain.is_some() => ask::PLAIN_GET,
        Operation::Get(_) => ask::GET,
        Operation::Store(_) => ask::STORE,
        Operation::Delete(_) => ask::DELETE,
        Operation::Arithmetic(_) => ask::ARITHMETIC,
    };
    let mut head = [0; PLAIN_GET_HEAD_BYTES];
    head[0] = tag;
    head[1] = request.key.len() as u8;
    head[2..].copy_from_slice(&request.hash.to_bits().to_le_bytes());
    writer.put(&head);
    match plain {
        None => write_operation(&request.operation, &mut writer),
        Some(allowance) if allowance.is_limited() => writer.put_u32(allowance.0),
        Some(_) => {}
    }
    writer.put(request.key);
    if let Operation::Store(Store { value: Body::Bytes(value), .. }) = &request.operation {
        writer.put(value);
    }
    writer.finish();
}

fn write_operation(operation: &Operation<'_>, writer: &mut SliceWriter<'_>) {
    match operation {
        Operation::Get(get) => {
            let vivify_cas = get.vivify.and_then(|vivify| vivify.cas);
            let options = match get.purpose {
                Purpose::Get => 0,
                Purpose::Touch => 1,
                Purpose::Inspect => 2,
                Purpose::Describe => 3,
            } | bit(get.no_use, get::NO_USE)
                | bit(get.lease, get::LEASE)
                | bit(get.touch.is_some(), get::TOUCH)
                | bit(get.vivify.is_some(), get::VIVIFY)
                | bit(vivify_cas.is_some(), get::VIVIFY_CAS)
                | bit(get.vivify.is_some_and(|v| v.binary_key), get::VIVIFY_BINARY_KEY)
                | bit(get.refresh_below_seconds.is_some(), get::REFRESH)
                | bit(get.refresh_first, get::REFRESH_FIRST)
                | bit(get.allowance.is_limited(), get::ALLOWANCE);
            writer.put_u16(options);
            writer.optional_deadline(get.touch);
            writer.optional_deadline(get.vivify.map(|vivify| vivify.deadline));
            writer.optional_u64(vivify_cas);
            writer.optional_u32(get.refresh_below_seconds);
            writer.optional_u32(get.allowance.is_limited().then_some(get.allowance.0));
        }
        Operation::Store(store) => {
            let refused = match store.value {
                Body::Bytes(_) => None,
                Body::Refused(bytes) => Some(bytes),
                Body::Staged(staged) => {
                    debug_assert!(false, "a staged body cannot leave its shard");
                    Some(staged.value_bytes.into())
                }
            };
            let options = match store.mode {
                StoreMode::Set => 0,
                StoreMode::Add => 1,
                StoreMode::Replace => 2,
                StoreMode::Append => 3,
                StoreMode::Prepend => 4,
            } | bit(refused.is_some(), store::REFUSED)
                | bit(store.flags != 0, store::FLAGS)
                | bit(!store.deadline.is_never(), store::DEADLINE)
                | bit(store.compare.is_some(), store::COMPARE)
                | bit(store.cas.is_some(), store::CAS)
                | bit(store.vivify.is_some(), store::VIVIFY)
                | bit(store.accept_older, store::ACCEPT_OLDER)
                | bit(store.refusal_removes, store::REFUSAL_REMOVES)
                | bit(store.binary_key, store::BINARY_KEY);
            writer.put_u16(options);
            writer.optional_u64(refused);
            writer.optional_u32((store.flags != 0).then_some(store.flags));
            writer.optional_deadline((!store.deadline.is_never()).then_some(store.deadline));
            writer.optional_u64(store.compare);
            writer.optional_u64(store.cas);
            writer.optional_deadline(store.vivify);
        }
        Operation::Delete(delete) => {
            let options = bit(delete.compare.is_some(), delete::COMPARE)
                | bit(delete.deadline.is_some(), delete::DEADLINE)
                | bit(delete.empty.is_some(), delete::EMPTY)
                | bit(delete.cas.is_some(), delete::CAS)
                | bit(delete.invalidate, delete::INVALIDATE);
            writer.put_u16(options);
            writer.optional_u64(delete.compare);
            writer.optional_deadline(delete.deadline);
            writer.optional_u32(delete.empty);
            writer.optional_u64(delete.cas);
        }
        Operation::Arithmetic(arithmetic) => {
            let options = bit(arithmetic.compare.is_some(), arithmetic::COMPARE)
                | bit(arithmetic.create.is_some(), arithmetic::CREATE)
                | bit(arithmetic.touch.is_some(), arithmetic::TOUCH)
                | bit(arithmetic.cas.is_some(), arithmetic::CAS)
                | bit(arithmetic.decrement, arithmetic::DECREMENT)
                | bit(arithmetic.binary_key, arithmetic::BINARY_KEY);
            writer.put_u16(options);
            writer.put_u64(arithmetic.delta);
            writer.optional_u64(arithmetic.compare);
            writer.optional_u64(arithmetic.create.map(|(initial, _)| initial));
            writer.optional_deadline(arithmetic.create.map(|(_, deadline)| deadline));
            writer.optional_deadline(arithmetic.touch);
            writer.optional_u64(arithmetic.cas);
        }
    }
}

/// The key, hash and allowance of a plain get, the most common request; `None` for everything else.
/// The caller can assemble the request in place: moving a request as a whole right after writing it
/// field by field stalls on store-to-load forwarding.
#[inline]
pub fn decode_plain_get(message: &[u8]) -> Option<(&[u8], KeyHash, Allowance)> {
    let (head, rest) = message.split_first_chunk::<PLAIN_GET_HEAD_BYTES>()?;
    let (allowance, key) = match head[0] {
        ask::PLAIN_GET => (Allowance::FULL, rest),
        ask::LIMITED_GET => {
            let (allowance, key) = rest.split_first_chunk()?;
            (Allowance(u32::from_le_bytes(*allowance)), key)
        }
        _ => return None,
    };
    let is_whole = key.len() == head[1] as usize && (1..=KEY_BYTES_MAX).contains(&key.len());
    let hash = u64::from_le_bytes(*head[2..].first_chunk().expect("the head has eight more bytes"));
    is_whole.then_some((key, KeyHash::from_bits(hash), allowance))
}

/// The key and hash of a request, which suffice to prefetch its item.
#[inline]
pub fn decode_key(message: &[u8]) -> Result<(&[u8], KeyHash), CodecError> {
    match decode_plain_get(message) {
        Some((key, hash, _)) => Ok((key, hash)),
        None => decode_request(message).map(|request| (request.key, request.hash)),
    }
}

/// Decodes the request that [`encode_request`] wrote; `message` is exactly that message.
#[inline]
pub fn decode_request(message: &[u8]) -> Result<Request<'_>, CodecError> {
    let mut reader = Reader::new(message);
    let head: [u8; PLAIN_GET_HEAD_BYTES] = reader.array()?;
    let key_bytes = head[1] as usize;
    if key_bytes == 0 || key_bytes > KEY_BYTES_MAX {
        return Err(CodecError::Key);
    }
    let hash = u64::from_le_bytes(*head[2..].first_chunk().expect("the head has eight more bytes"));
    let hash = KeyHash::from_bits(hash);
    if matches!(head[0], ask::PLAIN_GET | ask::LIMITED_GET) {
        let limited = head[0] == ask::LIMITED_GET;
        let allowance = reader.optional_u32(limited)?.map_or(Allowance::FULL, Allowance);
        let key = reader.take(key_bytes)?;
        reader.end()?;
        let operation = Operation::Get(Get { allowance, ..Get::default() });
        return Ok(Request { key, hash, operation });
    }
    let (key, operation) = read_operation(head[0], key_bytes, &mut reader)?;
    reader.end()?;
    Ok(Request { key, hash, operation })
}

fn read_operation<'b>(
    tag: u8,
    key_bytes: usize,
    reader: &mut Reader<'b>,
) -> Result<(&'b [u8], Operation<'b>), CodecError> {
    let options = reader.u16()?;
    let has = |bit: u16| options & bit != 0;
    let known = match tag {
        ask::GET => get::KNOWN,
        ask::STORE => store::KNOWN,
        ask::DELETE => delete::KNOWN,
        ask::ARITHMETIC => arithmetic::KNOWN,
        _ => return Err(CodecError::Unknown),
    };
    if options & !known != 0 {
        return Err(CodecError::Unknown);
    }
    let operation = match tag {
        ask::GET => {
            let touch = reader.optional_deadline(has(get::TOUCH))?;
            let vivify_deadline = reader.optional_deadline(has(get::VIVIFY))?;
            let cas = reader.optional_u64(has(get::VIVIFY_CAS))?;
            let binary_key = has(get::VIVIFY_BINARY_KEY);
            let vivify = vivify_deadline.map(|deadline| Vivify { deadline, cas, binary_key });
            if vivify.is_none() && (cas.is_some() || binary_key) {
                return Err(CodecError::Unknown);
            }
            Operation::Get(Get {
                purpose: match options & get::PURPOSE {
                    0 => Purpose::Get,
                    1 => Purpose::Touch,
                    2 => Purpose::Inspect,
                    3 => Purpose::Describe,
                    _ => return Err(CodecError::Unknown),
                },
                touch,
                no_use: has(get::NO_USE),
                lease: has(get::LEASE),
                vivify,
                refresh_below_seconds: reader.optional_u32(has(get::REFRESH))?,
                refresh_first: has(get::REFRESH_FIRST),
                allowance: reader
                    .optional_u32(has(get::ALLOWANCE))?
                    .map_or(Allowance::FULL, Allowance),
            })
        }
        ask::STORE => {
            let mode = match options & store::MODE {
                0 => StoreMode::Set,
                1 => StoreMode::Add,
                2 => StoreMode::Replace,
                3 => StoreMode::Append,
                4 => StoreMode::Prepend,
                _ => return Err(CodecError::Unknown),
            };
            let refused = reader.optional_u64(has(store::REFUSED))?;
            let flags = reader.optional_u32(has(store::FLAGS))?.unwrap_or(0);
            let deadline =
                reader.optional_deadline(has(store::DEADLINE))?.unwrap_or(Deadline::NEVER);
            let compare = reader.optional_u64(has(store::COMPARE))?;
            let cas = reader.optional_u64(has(store::CAS))?;
            let vivify = reader.optional_deadline(has(store::VIVIFY))?;
            // The value follows the key, so a store reads its key itself.
            let key = reader.take(key_bytes)?;
            let value = refused.map_or_else(|| Body::Bytes(reader.rest()), Body::Refused);
            let store = Store {
                mode,
                value,
                flags,
                deadline,
                compare,
                accept_older: has(store::ACCEPT_OLDER),
                cas,
                vivify,
                refusal_removes: has(store::REFUSAL_REMOVES),
                binary_key: has(store::BINARY_KEY),
            };
            return Ok((key, Operation::Store(store)));
        }
        ask::DELETE => Operation::Delete(Delete {
            compare: reader.optional_u64(has(delete::COMPARE))?,
            deadline: reader.optional_deadline(has(delete::DEADLINE))?,
            empty: reader.optional_u32(has(delete::EMPTY))?,
            cas: reader.optional_u64(has(delete::CAS))?,
            invalidate: has(delete::INVALIDATE),
        }),
        _ => {
            let delta = reader.u64()?;
            let compare = reader.optional_u64(has(arithmetic::COMPARE))?;
            let initial = reader.optional_u64(has(arithmetic::CREATE))?;
            let deadline = reader.optional_deadline(has(arithmetic::CREATE))?;
            Operation::Arithmetic(Arithmetic {
                decrement: has(arithmetic::DECREMENT),
                delta,
                compare,
                create: initial.zip(deadline),
                touch: reader.optional_deadline(has(arithmetic::TOUCH))?,
                cas: reader.optional_u64(has(arithmetic::CAS))?,
                binary_key: has(arithmetic::BINARY_KEY),
            })
        }
    };
    Ok((reader.take(key_bytes)?, operation))
}
