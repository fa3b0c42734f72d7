//! The classic memcached binary protocol, as memcached 1.6 serves it.
//!
//! Deprecated and frozen upstream, but several widely used clients speak nothing else. Numbers are
//! big-endian:
//!
//! ```text
//! magic u8 | opcode u8 | key length u16 | extras length u8 | data type u8 | status u16
//! | body length u32 | opaque u32 | cas u64 | extras | key | value
//! ```
//!
//! The magic is 0x80 in requests and 0x81 in responses; a request has a reserved field where a
//! response has its status, and the body is extras, key and value together. A quiet command leaves
//! a miss unanswered if it reads and success if it writes; its errors are answered.
//!
//! memcached's bugs are not copied: it drops too many bytes after an unknown command that has a
//! key, and reads an unexpected value of `stat` or `touch` as the next header. VERBOSITY, which the
//! protocol defines and memcached lacks, is supported.

mod decode;
mod encode;

#[cfg(test)]
mod tests;

pub use decode::{MemcachedBinaryDecoder, MemcachedBinaryError};
pub use encode::{encode, encode_admin, encode_stat, encode_stats_end};

/// First byte of a request.
pub const REQUEST_MAGIC: u8 = 0x80;

/// First byte of a response.
pub const RESPONSE_MAGIC: u8 = 0x81;

/// Bytes of the header of requests and responses.
pub const HEADER_BYTES: usize = 24;

/// Fixed part of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemcachedBinaryForm {
    /// The opcode as sent, quiet or not.
    opcode: u8,
    /// The client's correlation bytes, returned unchanged.
    opaque: [u8; 4],
}

/// Opcodes. Those with a Q are quiet, those with a K repeat the key.
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub mod opcode {
    pub const GET: u8 = 0x00;
    pub const SET: u8 = 0x01;
    pub const ADD: u8 = 0x02;
    pub const REPLACE: u8 = 0x03;
    pub const DELETE: u8 = 0x04;
    pub const INCREMENT: u8 = 0x05;
    pub const DECREMENT: u8 = 0x06;
    pub const QUIT: u8 = 0x07;
    pub const FLUSH: u8 = 0x08;
    pub const GETQ: u8 = 0x09;
    pub const NOOP: u8 = 0x0a;
    pub const VERSION: u8 = 0x0b;
    pub const GETK: u8 = 0x0c;
    pub const GETKQ: u8 = 0x0d;
    pub const APPEND: u8 = 0x0e;
    pub const PREPEND: u8 = 0x0f;
    pub const STAT: u8 = 0x10;
    pub const SETQ: u8 = 0x11;
    pub const ADDQ: u8 = 0x12;
    pub const REPLACEQ: u8 = 0x13;
    pub const DELETEQ: u8 = 0x14;
    pub const INCREMENTQ: u8 = 0x15;
    pub const DECREMENTQ: u8 = 0x16;
    pub const QUITQ: u8 = 0x17;
    pub const FLUSHQ: u8 = 0x18;
    pub const APPENDQ: u8 = 0x19;
    pub const PREPENDQ: u8 = 0x1a;
    pub const VERBOSITY: u8 = 0x1b;
    pub const TOUCH: u8 = 0x1c;
    pub const GAT: u8 = 0x1d;
    pub const GATQ: u8 = 0x1e;
    pub const SASL_LIST: u8 = 0x20;
    pub const SASL_AUTH: u8 = 0x21;
    pub const SASL_STEP: u8 = 0x22;
    pub const GATK: u8 = 0x23;
    pub const GATKQ: u8 = 0x24;
}

/// The operation of a command, regardless of its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Get,
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    Delete,
    Increment,
    Decrement,
    Touch,
    GetAndTouch,
    Quit,
    Flush,
    Noop,
    Version,
    Stat,
    Verbosity,
}

impl MemcachedBinaryForm {
    /// `None` for an unsupported command; SASL commands are among them as long as there is no
    /// authentication, as in memcached.
    #[inline]
    fn verb(self) -> Option<Verb> {
        Some(match self.opcode {
            opcode::GET | opcode::GETQ | opcode::GETK | opcode::GETKQ => Verb::Get,
            opcode::SET | opcode::SETQ => Verb::Set,
            opcode::ADD | opcode::ADDQ => Verb::Add,
            opcode::REPLACE | opcode::REPLACEQ => Verb::Replace,
            opcode::APPEND | opcode::APPENDQ => Verb::Append,
            opcode::PREPEND | opcode::PREPENDQ => Verb::Prepend,
            opcode::DELETE | opcode::DELETEQ => Verb::Delete,
            opcode::INCREMENT | opcode::INCREMENTQ => Verb::Increment,
            opcode::DECREMENT | opcode::DECREMENTQ => Verb::Decrement,
            opcode::TOUCH => Verb::Touch,
            opcode::GAT | opcode::GATQ | opcode::GATK | opcode::GATKQ => Verb::GetAndTouch,
            opcode::QUIT | opcode::QUITQ => Verb::Quit,
            opcode::FLUSH | opcode::FLUSHQ => Verb::Flush,
            opcode::NOOP => Verb::Noop,
            opcode::VERSION => Verb::Version,
            opcode::STAT => Verb::Stat,
            opcode::VERBOSITY => Verb::Verbosity,
            _ => return None,
        })
    }

    /// Whether a miss (of a read) or success (of a write) goes unanswered.
    #[inline]
    fn is_quiet(self) -> bool {
        matches!(
            self.opcode,
            opcode::GETQ | opcode::GETKQ | opcode::GATQ | opcode::GATKQ | opcode::SETQ
                ..=opcode::PREPENDQ
        )
    }

    /// Whether the answer repeats the key.
    #[inline]
    fn repeats_key(self) -> bool {
        matches!(self.opcode, opcode::GETK | opcode::GETKQ | opcode::GATK | opcode::GATKQ)
    }

    /// The header of a response. The opcode sent, quiet or not, is repeated.
    #[inline]
    fn header(
        self,
        status: Status,
        extras_bytes: usize,
        key_bytes: usize,
        body_bytes: usize,
        cas: u64,
    ) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[0] = RESPONSE_MAGIC;
        header[1] = self.opcode;
        header[2..4].copy_from_slice(&(key_bytes as u16).to_be_bytes());
        header[4] = extras_bytes as u8;
        header[6..8].copy_from_slice(&(status as u16).to_be_bytes());
        header[8..12].copy_from_slice(&(body_bytes as u32).to_be_bytes());
        header[12..16].copy_from_slice(&self.opaque);
        header[16..].copy_from_slice(&cas.to_be_bytes());
        header
    }
}

/// The outcome a response reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Status {
    Success = 0x00,
    NotFound = 0x01,
    Exists = 0x02,
    TooLarge = 0x03,
    InvalidArguments = 0x04,
    NotStored = 0x05,
    NonNumeric = 0x06,
    AuthError = 0x20,
    UnknownCommand = 0x81,
    OutOfMemory = 0x82,
    Temporary = 0x86,
}

impl Status {
    /// Its text in memcached.
    const fn text(self) -> &'static str {
        match self {
            Status::Success => "",
            Status::NotFound => "Not found",
            Status::Exists => "Data exists for key.",
            Status::TooLarge => "Too large.",
            Status::InvalidArguments => "Invalid arguments",
            Status::NotStored => "Not stored.",
            Status::NonNumeric => "Non-numeric server-side value for incr or decr",
            Status::AuthError => "Auth failure.",
            Status::UnknownCommand => "Unknown command",
            Status::OutOfMemory => "Out of memory allocating item",
            Status::Temporary => "Temporary failure",
        }
    }
}
