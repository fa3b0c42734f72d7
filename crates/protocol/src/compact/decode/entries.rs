//! The entries of MGET and MSET.

use super::super::opcode::{ENTRY_HEAD_BYTES, REQUEST_FIELD_BYTES, request_flags};
use super::super::{CompactForm, Entry, Opcode};
use super::Head;
use super::operation::{Fields, reply, request};
use crate::{Context, Step};
use ringlane_types::request::{Consistency, Get, KEY_BYTES_MAX, Operation};

/// A frame of several entries, so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    pub opcode: Opcode,
    pub flags: u8,
    pub consistency: Consistency,
    pub opaque: u32,
    /// Bytes of the frame from here on; never 0.
    pub bytes_left: u64,
    /// The entry that starts here.
    pub index: u32,
}

impl Entries {
    /// How to answer the entry that starts here.
    #[inline]
    pub(super) fn form(&self, entry: Entry) -> CompactForm {
        CompactForm {
            opcode: self.opcode,
            opaque: self.opaque,
            index: self.index,
            flags: self.flags,
            consistency: self.consistency,
            entry,
        }
    }
}

/// A whole entry of MGET that is not the last. `None` means undetermined.
#[inline]
pub(super) fn inner_key<'b>(
    entries: &mut Entries,
    input: &'b [u8],
    context: &Context<'b>,
) -> Option<Step<'b>> {
    let &[k0, k1] = input.first_chunk()?;
    let key_bytes = u16::from_le_bytes([k0, k1]) as usize;
    let consumed = 2 + key_bytes;
    if entries.opcode != Opcode::Mget
        || key_bytes.wrapping_sub(1) >= KEY_BYTES_MAX
        || consumed as u64 >= entries.bytes_left
    {
        return None;
    }
    let key = input.get(2..consumed)?;
    let form = entries.form(Entry::Inner);
    entries.bytes_left -= consumed as u64;
    entries.index += 1;
    Some(Step::Request {
        consumed,
        request: request(key, Operation::Get(Get::default()), context),
        reply: reply(form),
        skip: 0,
    })
}

/// An entry of MGET: `key length u16 | key`. No head means incomplete, or with `true` faulty.
pub(super) fn read_mget_entry<'b>(entries: &Entries, input: &'b [u8]) -> (Option<Head<'b>>, bool) {
    let Some(&[k0, k1]) = input.first_chunk() else { return (None, entries.bytes_left < 2) };
    let key_bytes = u16::from_le_bytes([k0, k1]) as usize;
    let value_at = 2 + key_bytes;
    if key_bytes == 0 || key_bytes > KEY_BYTES_MAX || value_at as u64 > entries.bytes_left {
        return (None, true);
    }
    let Some(key) = input.get(2..value_at) else { return (None, false) };
    (Some(Head { value_at, value_bytes: 0, key, fields: Fields::default() }), false)
}

/// An entry of MSET: `0 u8 | flags u8 | key length u16 | value length u32 | fields | key | value`.
pub(super) fn read_mset_entry<'b>(entries: &Entries, input: &'b [u8]) -> (Option<Head<'b>>, bool) {
    let allowed = request_flags::CLIENT_FLAGS | request_flags::TTL | request_flags::VERSION;
    let Some(&[zero, flags, k0, k1, v0, v1, v2, v3]) = input.first_chunk::<ENTRY_HEAD_BYTES>()
    else {
        return (None, entries.bytes_left < ENTRY_HEAD_BYTES as u64);
    };
    let key_bytes = u16::from_le_bytes([k0, k1]) as usize;
    let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]);
    let key_at =
        ENTRY_HEAD_BYTES + REQUEST_FIELD_BYTES[(flags & request_flags::FIELDS) as usize] as usize;
    let value_at = key_at + key_bytes;
    if zero != 0
        || flags & !allowed != 0
        || key_bytes == 0
        || key_bytes > KEY_BYTES_MAX
        || value_at as u64 + u64::from(value_bytes) > entries.bytes_left
    {
        return (None, true);
    }
    let Some(key) = input.get(key_at..value_at) else { return (None, false) };
    let fields = Fields::read(flags, &input[ENTRY_HEAD_BYTES..key_at]);
    (Some(Head { value_at, value_bytes, key, fields }), false)
}
