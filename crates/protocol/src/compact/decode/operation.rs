//! Maps opcode, fields and value of a command to an operation.

use super::super::opcode::request_flags;
use super::super::{CompactForm, Opcode};
use super::FrameError;
use crate::{Context, Reply, ReplyForm};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Operation, Purpose, Request, Store, StoreMode,
};
use ringlane_types::time::Deadline;

/// The fields that a request's flags announce.
#[derive(Clone, Copy, Default)]
pub(super) struct Fields {
    pub client_flags: u32,
    pub ttl_millis: Option<u64>,
    pub version: Option<u64>,
    pub consistency: u8,
}

impl Fields {
    /// Reads the announced fields from exactly their bytes.
    #[inline]
    pub(super) fn read(flags: u8, mut bytes: &[u8]) -> Self {
        let mut fields = Self::default();
        if flags & request_flags::FIELDS == 0 {
            return fields;
        }
        if flags & request_flags::CLIENT_FLAGS != 0 {
            fields.client_flags = u32::from_le_bytes(take(&mut bytes));
        }
        if flags & request_flags::TTL != 0 {
            fields.ttl_millis = Some(u64::from_le_bytes(take(&mut bytes)));
        }
        if flags & request_flags::VERSION != 0 {
            fields.version = Some(u64::from_le_bytes(take(&mut bytes)));
        }
        if flags & request_flags::CONSISTENCY != 0 {
            [fields.consistency] = take(&mut bytes);
        }
        fields
    }

    pub(super) fn deadline(&self, context: &Context<'_>) -> Option<Deadline> {
        self.ttl_millis.map(|millis| Deadline::from_ttl_millis(millis, context.now))
    }
}

/// The first `N` bytes of the fields.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (front, rest) = bytes.split_first_chunk().expect("the flags say how long the fields are");
    *bytes = rest;
    *front
}

/// The operation of a store of `value`.
pub(super) fn store<'b>(
    opcode: Opcode,
    fields: &Fields,
    value: Body<'b>,
    context: &Context<'b>,
) -> Operation<'b> {
    let mode = match opcode {
        Opcode::Add => StoreMode::Add,
        Opcode::Replace => StoreMode::Replace,
        Opcode::Append => StoreMode::Append,
        Opcode::Prepend => StoreMode::Prepend,
        _ => StoreMode::Set,
    };
    Operation::Store(Store {
        mode,
        value,
        flags: fields.client_flags,
        deadline: fields.deadline(context).unwrap_or(Deadline::NEVER),
        compare: fields.version,
        refusal_removes: matches!(opcode, Opcode::Set | Opcode::Mset) && fields.version.is_none(),
        ..Store::set(b"")
    })
}

/// The operation of a command on one key other than a store.
#[inline]
pub(super) fn operation<'b>(
    opcode: Opcode,
    fields: &Fields,
    value: &[u8],
    context: &Context<'b>,
) -> Result<Operation<'b>, FrameError> {
    let deadline = fields.deadline(context);
    let unused = Get { purpose: Purpose::Inspect, no_use: true, ..Get::default() };
    let get = match opcode {
        Opcode::Get => Get::default(),
        Opcode::Gat | Opcode::Touch => {
            Get { purpose: Purpose::Touch, touch: deadline, ..Get::default() }
        }
        Opcode::Expire if fields.ttl_millis == Some(0) => return Err(FrameError::ExpireNever),
        Opcode::Expire => Get { touch: deadline, ..unused },
        Opcode::Persist => Get { touch: Some(Deadline::NEVER), ..unused },
        Opcode::Delete => {
            let delete = Delete { compare: fields.version, ..Delete::default() };
            return Ok(Operation::Delete(delete));
        }
        Opcode::Incr | Opcode::Decr => {
            let (delta, initial) = match value.len() {
                0 => (1, None),
                8 => (number(value), None),
                16 => (number(value), Some(number(&value[8..]))),
                _ => return Err(FrameError::ValueLength),
            };
            let or_never = deadline.unwrap_or(Deadline::NEVER);
            return Ok(Operation::Arithmetic(Arithmetic {
                compare: fields.version,
                create: initial.map(|initial| (initial, or_never)),
                touch: if initial.is_none() { deadline } else { None },
                ..Arithmetic::by(delta, opcode == Opcode::Decr)
            }));
        }
        _ => unused,
    };
    Ok(Operation::Get(get))
}

/// The first eight bytes of `value` as a number.
fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(*value.first_chunk().expect("the length was checked"))
}

/// No answer repeats the key, so it is not stored for one.
#[inline]
pub(super) fn reply<'b>(form: CompactForm) -> Reply<'b> {
    Reply { form: ReplyForm::Compact(form), key: &[], tail: &[] }
}

#[inline]
pub(super) fn request<'b>(
    key: &'b [u8],
    operation: Operation<'b>,
    context: &Context<'b>,
) -> Request<'b> {
    Request { key, hash: KeyHash::of(key, context.hash_secret), operation }
}
