//! The one table of opcodes, flags and statuses of the compact binary protocol.
//!
//! Decoder, encoder and client use it; a test compares `docs/protocol.md` with it row by row. To
//! add a command, add a line here and its operation in `operation` of the decoder.

use ringlane_types::request::KEY_BYTES_MAX;

/// Version of the protocol that HELLO announces. Changes that an old client would misinterpret
/// raise it; new opcodes, statuses and HELLO tags do not.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of the fixed header of requests and responses.
pub const HEADER_BYTES: usize = 12;

/// Bytes of the head of an MSET entry.
pub const ENTRY_HEAD_BYTES: usize = 8;

/// Longest HELLO request value, in bytes; a longer one is INVALID.
pub const HELLO_BYTES_MAX: u32 = 4096;

/// Codes reserved for messages between nodes.
pub const NODE_TO_NODE: std::ops::RangeInclusive<u8> = 0xe0..=0xef;

/// Flags of a request. The lower four announce fields, in this order; the upper four never do, so a
/// server knows the length of a frame even if it does not know all flags.
pub mod request_flags {
    /// Client flags follow, u32.
    pub const CLIENT_FLAGS: u8 = 0x01;
    /// A time to live follows, in milliseconds, u64; 0 means forever.
    pub const TTL: u8 = 0x02;
    /// A version (CAS token) to compare follows, u64.
    pub const VERSION: u8 = 0x04;
    /// A consistency follows, u8.
    pub const CONSISTENCY: u8 = 0x08;
    /// All flags that announce fields.
    pub const FIELDS: u8 = 0x0f;
    /// Also return the version and the TTL.
    pub const DETAILS: u8 = 0x10;
    /// Unassigned; INVALID if set.
    pub const RESERVED: u8 = 0x20;
    /// The answer may be sent before those of earlier requests.
    pub const ANY_ORDER: u8 = 0x40;
    /// No answer to a read that misses or a write that succeeds.
    pub const QUIET: u8 = 0x80;
}

/// Flags of a response. The lower four announce fields, in this order.
pub mod response_flags {
    /// Client flags follow, u32. Omitted if they are 0.
    pub const CLIENT_FLAGS: u8 = 0x01;
    /// The remaining time follows, in milliseconds, u64. Omitted for items that never expire.
    pub const TTL: u8 = 0x02;
    /// The version (CAS token) follows, u64.
    pub const VERSION: u8 = 0x04;
    /// The position in the request's entries follows, from 0, u32.
    pub const INDEX: u8 = 0x08;
    /// All flags that announce fields.
    pub const FIELDS: u8 = 0x0f;
    /// The request has further answers.
    pub const MORE: u8 = 0x10;
}

/// Bytes of the fields that the lower four flags of a request announce.
pub(super) const REQUEST_FIELD_BYTES: [u8; 16] = field_bytes([4, 8, 8, 1]);

/// Bytes of the fields that the lower four flags of a response announce.
pub(super) const RESPONSE_FIELD_BYTES: [u8; 16] = field_bytes([4, 8, 8, 4]);

const fn field_bytes(sizes: [u8; 4]) -> [u8; 16] {
    let mut table = [0; 16];
    let mut flags = 0;
    while flags < 16 {
        let mut field = 0;
        while field < 4 {
            if flags >> field & 1 == 1 {
                table[flags] += sizes[field];
            }
            field += 1;
        }
        flags += 1;
    }
    table
}

/// The rules for frames of one opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpcodeSpec {
    /// The opcode.
    pub opcode: Opcode,
    /// Its name in the specification.
    pub name: &'static str,
    /// Shortest key in bytes.
    pub key_bytes_min: u16,
    /// Longest key in bytes; 0 if it takes none.
    pub key_bytes_max: u16,
    /// Shortest value in bytes.
    pub value_bytes_min: u32,
    /// Longest value in bytes; 0 if it takes none. Stores also have the item size limit.
    pub value_bytes_max: u32,
    /// Request flags that are accepted.
    pub flags_allowed: u8,
    /// Request flags that must be set.
    pub flags_needed: u8,
    /// Which outcomes a quiet request suppresses.
    pub kind: Kind,
}

/// The category of a command, which determines what its quiet form suppresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads an item: a quiet miss is not answered.
    Read,
    /// Changes an item without carrying a value for it: quiet success is not answered.
    Write,
    /// A write that carries the value to be stored.
    Store,
    /// Entries that are reads.
    ReadMany,
    /// Entries that are stores.
    StoreMany,
    /// Concerns the connection or the node.
    Node,
}

use Kind::{Node, Read, ReadMany, Store, StoreMany, Write};
use request_flags::{ANY_ORDER, CLIENT_FLAGS, CONSISTENCY, DETAILS, QUIET, TTL, VERSION};

/// Flags that every command on keys allows.
const KEYED: u8 = CONSISTENCY | DETAILS | ANY_ORDER | QUIET;
const ANY_VALUE: u32 = u32::MAX;

macro_rules! opcodes {
    ($($(#[$doc:meta])* $variant:ident $name:literal = $code:literal, $kind:expr,
        key $key:expr, value $value:expr, allowed $allowed:expr, needed $needed:expr;)*) => {
        /// A command of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Opcode { $($(#[$doc])* $variant = $code,)* }

        /// All commands, by ascending code.
        pub const OPCODES: &[OpcodeSpec] = &[$(OpcodeSpec {
            opcode: Opcode::$variant,
            name: $name,
            key_bytes_min: $key.0,
            key_bytes_max: $key.1,
            value_bytes_min: $value.0,
            value_bytes_max: $value.1,
            flags_allowed: $allowed | $needed,
            flags_needed: $needed,
            kind: $kind,
        },)*];
    };
}

const NO_KEY: (u16, u16) = (0, 0);
const KEY: (u16, u16) = (1, KEY_BYTES_MAX as u16);
const KEY_IF_ANY: (u16, u16) = (0, KEY_BYTES_MAX as u16);
const NO_VALUE: (u32, u32) = (0, 0);
const VALUE: (u32, u32) = (0, ANY_VALUE);
const ENTRIES: (u32, u32) = (1, ANY_VALUE);
/// Nothing, an amount, or an amount and an initial number.
const NUMBERS: (u32, u32) = (0, 16);

opcodes! {
    /// Describes the server, for clients that route keys to cores.
    Hello "HELLO" = 0x82, Node, key NO_KEY, value (0, HELLO_BYTES_MAX), allowed 0, needed 0;
    /// Nothing; its answer follows those of all earlier requests.
    Noop "NOOP" = 0x83, Node, key NO_KEY, value NO_VALUE, allowed 0, needed 0;
    /// Read a value.
    Get "GET" = 0x88, Read, key KEY, value NO_VALUE, allowed KEYED, needed 0;
    /// Read several values.
    Mget "MGET" = 0x89, ReadMany, key NO_KEY, value ENTRIES, allowed KEYED, needed 0;
    /// Read a value and give it a new deadline.
    Gat "GAT" = 0x8a, Read, key KEY, value NO_VALUE, allowed KEYED, needed TTL;
    /// Whether the item exists; not a use of it.
    Exists "EXISTS" = 0x8b, Read, key KEY, value NO_VALUE, allowed KEYED, needed 0;
    /// The remaining time of an item; not a use of it.
    Ttl "TTL" = 0x8c, Read, key KEY, value NO_VALUE, allowed KEYED, needed 0;
    /// Store a value.
    Set "SET" = 0x90, Store, key KEY, value VALUE,
        allowed KEYED | CLIENT_FLAGS | TTL | VERSION, needed 0;
    /// Store several values.
    Mset "MSET" = 0x91, StoreMany, key NO_KEY, value ENTRIES, allowed KEYED, needed 0;
    /// Store a value if there is none.
    Add "ADD" = 0x92, Store, key KEY, value VALUE, allowed KEYED | CLIENT_FLAGS | TTL, needed 0;
    /// Store a value if there is one.
    Replace "REPLACE" = 0x93, Store, key KEY, value VALUE,
        allowed KEYED | CLIENT_FLAGS | TTL | VERSION, needed 0;
    /// Append to a value.
    Append "APPEND" = 0x94, Store, key KEY, value VALUE, allowed KEYED | VERSION, needed 0;
    /// Prepend to a value.
    Prepend "PREPEND" = 0x95, Store, key KEY, value VALUE, allowed KEYED | VERSION, needed 0;
    /// Store a value if the item still has the given version.
    Cas "CAS" = 0x96, Store, key KEY, value VALUE,
        allowed KEYED | CLIENT_FLAGS | TTL, needed VERSION;
    /// Remove an item.
    Delete "DELETE" = 0x98, Write, key KEY, value NO_VALUE, allowed KEYED | VERSION, needed 0;
    /// Add to a decimal number.
    Incr "INCR" = 0x99, Write, key KEY, value NUMBERS, allowed KEYED | TTL | VERSION, needed 0;
    /// Subtract from a decimal number, down to 0.
    Decr "DECR" = 0x9a, Write, key KEY, value NUMBERS, allowed KEYED | TTL | VERSION, needed 0;
    /// Give an item a new deadline; counts as a use of it.
    Touch "TOUCH" = 0x9b, Write, key KEY, value NO_VALUE, allowed KEYED, needed TTL;
    /// Give an item a new deadline; not a use of it.
    Expire "EXPIRE" = 0x9c, Write, key KEY, value NO_VALUE, allowed KEYED, needed TTL;
    /// Remove an item's deadline; not a use of it.
    Persist "PERSIST" = 0x9d, Write, key KEY, value NO_VALUE, allowed KEYED, needed 0;
    /// Invalidate everything, now or later.
    Flush "FLUSH" = 0xa0, Node, key NO_KEY, value NO_VALUE, allowed TTL | QUIET, needed 0;
    /// Statistics, one answer each.
    Stats "STATS" = 0xa1, Node, key KEY_IF_ANY, value NO_VALUE, allowed 0, needed 0;
}

const BY_CODE: [u8; 128] = {
    let mut table = [u8::MAX; 128];
    let mut position = 0;
    while position < OPCODES.len() {
        table[OPCODES[position].opcode as usize - 128] = position as u8;
        position += 1;
    }
    table
};

impl Opcode {
    /// The command with this code.
    pub fn from_code(code: u8) -> Option<Opcode> {
        OpcodeSpec::of_code(code).map(|spec| spec.opcode)
    }

    /// The rules for its frame.
    pub fn spec(self) -> &'static OpcodeSpec {
        &OPCODES[BY_CODE[self as usize - 128] as usize]
    }
}

impl OpcodeSpec {
    /// The rules of the command with this code.
    #[inline]
    pub(super) fn of_code(code: u8) -> Option<&'static OpcodeSpec> {
        let position = *BY_CODE.get((code as usize).wrapping_sub(128))?;
        OPCODES.get(position as usize)
    }
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident $name:literal = $code:literal;)*) => {
        /// The outcome a response reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Status { $($(#[$doc])* $variant = $code,)* }

        /// All statuses with their names, by ascending code.
        pub const STATUSES: &[(Status, &str)] = &[$((Status::$variant, $name),)*];

        impl Status {
            /// The status with this code.
            pub fn from_code(code: u8) -> Option<Status> {
                match code {
                    $($code => Some(Status::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Done, or found.
    Ok "OK" = 0x00;
    /// No such item.
    NotFound "NOT_FOUND" = 0x01;
    /// The item has a version other than the given one.
    Exists "EXISTS" = 0x02;
    /// The condition of the store does not hold.
    NotStored "NOT_STORED" = 0x03;
    /// The value is not an unsigned 64-bit decimal number.
    NonNumeric "NON_NUMERIC" = 0x04;
    /// Larger than the item size limit; a SET or MSET has removed the old value.
    TooLarge "TOO_LARGE" = 0x05;
    /// No free memory, and nothing can be evicted.
    OutOfMemory "OUT_OF_MEMORY" = 0x06;
    /// The server does not know the opcode. From here on the value is a message for people.
    UnknownOpcode "UNKNOWN_OPCODE" = 0x40;
    /// The frame violates a rule of its opcode.
    Invalid "INVALID" = 0x41;
    /// The configuration does not allow it.
    NotAllowed "NOT_ALLOWED" = 0x42;
    /// Too few replicas answered in time for the requested consistency.
    QuorumNotReached "QUORUM_NOT_REACHED" = 0x50;
    /// The owner of the key cannot be reached or does not answer in time.
    Unavailable "UNAVAILABLE" = 0x51;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_have_the_high_bit_and_leave_the_other_protocols_their_first_byte() {
        for spec in OPCODES {
            let code = spec.opcode as u8;
            assert!(code >= 0x82, "{} would start another protocol", spec.name);
            assert!(!NODE_TO_NODE.contains(&code), "{} is a code between nodes", spec.name);
            assert_eq!(Opcode::from_code(code), Some(spec.opcode));
            assert_eq!(spec.opcode.spec(), spec);
        }
        assert!(OPCODES.windows(2).all(|pair| pair[0].opcode < pair[1].opcode));
        for code in 0..=u8::MAX {
            let known = OPCODES.iter().any(|spec| spec.opcode as u8 == code);
            assert_eq!(Opcode::from_code(code).is_some(), known, "{code:#x}");
        }
    }

    #[test]
    fn no_opcode_accepts_the_reserved_flag_and_flags_needed_are_allowed() {
        for spec in OPCODES {
            assert_eq!(spec.flags_allowed & request_flags::RESERVED, 0, "{}", spec.name);
            assert_eq!(spec.flags_needed & !spec.flags_allowed, 0, "{}", spec.name);
        }
    }

    #[test]
    fn announced_fields_add_up() {
        assert_eq!(REQUEST_FIELD_BYTES[0], 0);
        assert_eq!(REQUEST_FIELD_BYTES[0b0101], 12);
        assert_eq!(REQUEST_FIELD_BYTES[0b1111], 21);
        assert_eq!(RESPONSE_FIELD_BYTES[0b1111], 24);
    }
}
