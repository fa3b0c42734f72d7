//! The wire protocols: bytes to requests, and responses to bytes.
//!
//! A decoder reads a connection's received bytes one [`Step`] at a time; the caller advances its
//! input by `consumed` and calls it again. Decoders never wait, never copy what they can borrow and
//! accept any bytes. The form of the answer travels beside the request as a [`Reply`], which is
//! small, can be stored while another core works, and is all an encoder needs besides the
//! [`Response`].
//!
//! The protocol is chosen by a connection's first byte, see [`Decoder`].

#![deny(missing_docs, unreachable_pub)]

use bumpalo::Bump;

use ringlane_types::hash::HashSecret;
use ringlane_types::request::{Consistency, ItemRef, Request, Response, Value};
use ringlane_types::time::Instant;

pub mod admin_command;
pub mod compact;
pub mod memcached_binary;
pub mod meta;
pub mod pipeline;
pub mod text;

#[cfg(test)]
mod pieces;

pub use admin_command::{AdminAnswer, AdminCommand};

/// The version reported by memcached's protocols and statistics: that of the memcached release that
/// Ringlane follows, as three numbers and nothing else, because clients parse it in different ways:
///
/// | client | parses |
/// | --- | --- |
/// | libmemcached (pylibmc, php-memcached) | three numbers from the start; below 1.6 its test suite expects the rules of 1.4, and 0 is no version |
/// | memcache-plus | digits and points from the start |
/// | `memcached` of Node.js | three numbers at the end; throws where there are none |
/// | emcache | the second of exactly two words; throws where there are more |
/// | Dalli | the last word |
/// | pymemcache, aiomcache, memcache-client, memjs | the rest of the line |
///
/// HELLO and `/metrics` report Ringlane's own version.
pub const VERSION: &str = "1.6.45";

/// What a decoder may use besides its input.
#[derive(Clone, Copy)]
pub struct Context<'b> {
    /// Limits from the configuration.
    pub limits: &'b Limits,
    /// The turn's time, against which exptimes are resolved.
    pub now: Instant,
    /// The keys of key hashes.
    pub hash_secret: &'b HashSecret,
    /// Scratch memory for data that cannot be borrowed, such as decoded base64 keys. Reset once per
    /// turn, after all requests of the turn are done.
    pub scratch: &'b Bump,
}

/// Limits of the decoders.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest accepted item: key, value and memcached's own per-item overhead of about 50 bytes.
    /// A larger store is answered as too large and its data skipped.
    pub item_bytes_max: u32,
    /// A line that has no end after this many bytes closes the connection (memcached: 2048),
    /// except `get` and `gets`, which `multiget_line_bytes_max` bounds.
    pub line_bytes_max: usize,
    /// Longest accepted `get` or `gets` line, in bytes; a longer one closes the connection.
    pub multiget_line_bytes_max: usize,
    /// A store whose data block is at least this long is returned before its data has arrived, as
    /// [`Step::StoreHeader`].
    pub body_bytes_streamed: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            item_bytes_max: 1 << 20,
            line_bytes_max: 2048,
            multiget_line_bytes_max: 8 << 20,
            body_bytes_streamed: 16 << 10,
        }
    }
}

impl Limits {
    /// Whether an item of these lengths is within [`Limits::item_bytes_max`], counted as in
    /// memcached, regardless of its cost here: header 48, CAS token 8, the byte that ends the key,
    /// 4 for non-zero client flags, and the value's `\r\n`.
    #[inline]
    pub fn item_fits(&self, key_bytes: usize, flags: u32, value_bytes: u64) -> bool {
        let overhead = 48 + 8 + 1 + 2 + if flags == 0 { 0 } else { 4 };
        value_bytes.saturating_add(key_bytes as u64 + overhead) <= self.item_bytes_max.into()
    }
}

/// The next step of a connection's input. It uses up `consumed` bytes of the input.
#[derive(Debug)]
pub enum Step<'b> {
    /// No complete request yet. Call again with more input; nothing was consumed.
    Incomplete,
    /// One operation on one key. A multiget yields one per key.
    Request {
        /// Bytes used up.
        consumed: usize,
        /// The operation.
        request: Request<'b>,
        /// How to write its answer.
        reply: Reply<'b>,
        /// Bytes of the connection, received or not, to drop after `consumed`: the data block of a
        /// store that is refused for its length ([`Body::Refused`](ringlane_types::request::Body)).
        /// The request is still executed, so that the shard counts it and removes the old value.
        /// Zero for everything else.
        skip: u64,
    },
    /// A store whose long data block has not wholly arrived. `consumed` ends right before the
    /// block; `store.value` is empty. After the block come `trailer` bytes that must be checked
    /// with [`Decoder::trailer_is_valid`] before the store is executed.
    StoreHeader {
        /// Bytes used up: the line or header, and the key.
        consumed: usize,
        /// The store, with an empty value.
        request: Request<'b>,
        /// How to write its answer.
        reply: Reply<'b>,
        /// Length of the data block in bytes.
        value_bytes: u32,
        /// Bytes that follow the block: 2 for text (`\r\n`), 0 for binary.
        trailer_bytes: u8,
    },
    /// An answer that needs no shard, including errors. The following `skip` bytes of the
    /// connection, received or not, are dropped.
    Answer {
        /// Bytes used up.
        consumed: usize,
        /// The bytes to send; may be empty.
        answer: Answer<'b>,
        /// Bytes to drop after `consumed`.
        skip: u64,
    },
    /// A command for the node rather than for a key.
    Admin {
        /// Bytes used up.
        consumed: usize,
        /// The command.
        command: AdminCommand<'b>,
        /// How to write its answer.
        reply: Reply<'b>,
    },
    /// Send queued answers, then close; the rest of the input is not read.
    Close,
}

/// Bytes that answer a request at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'b> {
    /// Nothing: a suppressed error.
    Silence,
    /// These bytes.
    Bytes(&'b [u8]),
}

/// How to write the answer to one request: the protocol's form, and the parts of the request to
/// repeat. The borrowed parts are copied if the answer comes from another core.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'b> {
    /// The protocol and its fixed fields.
    pub form: ReplyForm,
    /// The key of the request (decoded if it came as base64).
    pub key: &'b [u8],
    /// Other parts to repeat: the flags of a meta command, as sent. Empty otherwise.
    pub tail: &'b [u8],
}

/// The fixed part of a [`Reply`]. Each protocol module defines and reads its own variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyForm {
    /// memcached classic text commands.
    Text(text::TextForm),
    /// memcached meta commands.
    Meta(meta::MetaForm),
    /// The compact binary protocol.
    Compact(compact::CompactForm),
    /// memcached classic binary protocol.
    MemcachedBinary(memcached_binary::MemcachedBinaryForm),
}

impl ReplyForm {
    /// Whether the client accepts this answer before those of its earlier requests.
    #[inline]
    pub fn may_overtake(self) -> bool {
        match self {
            ReplyForm::Compact(form) => form.may_overtake(),
            _ => false,
        }
    }

    /// The requested consistency; only the compact binary protocol can specify it.
    pub fn consistency(self) -> Consistency {
        match self {
            ReplyForm::Compact(form) => form.consistency(),
            _ => Consistency::Configured,
        }
    }
}

/// Output of the encoders. Short data is copied; a long value may be sent directly from its item,
/// which the implementation then pins.
pub trait Output {
    /// Appends bytes.
    fn bytes(&mut self, bytes: &[u8]);

    /// Appends a value. `item` names the item that holds it, when it is of this core's shard.
    fn value(&mut self, value: &Value<'_>, item: Option<ItemRef>);
}

impl Output for Vec<u8> {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline]
    fn value(&mut self, value: &Value<'_>, _item: Option<ItemRef>) {
        match value {
            Value::Whole(bytes) => self.extend_from_slice(bytes),
            chained => chained.parts().for_each(|part| self.extend_from_slice(part)),
        }
    }
}

impl<O: Output + ?Sized> Output for &mut O {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        (**self).bytes(bytes);
    }

    #[inline]
    fn value(&mut self, value: &Value<'_>, item: Option<ItemRef>) {
        (**self).value(value, item);
    }
}

/// The decoder of one connection. The first byte selects the protocol for the life of the
/// connection.
#[derive(Debug, Default)]
pub enum Decoder {
    /// No byte has arrived yet.
    #[default]
    Undecided,
    /// memcached text and meta: a first byte below 0x80.
    Text(text::TextDecoder),
    /// Classic binary: 0x80.
    MemcachedBinary(memcached_binary::MemcachedBinaryDecoder),
    /// Compact binary: 0x82 and above.
    Compact(compact::CompactDecoder),
}

impl Decoder {
    /// Takes the next step from `input`, which begins where the last step's `consumed` (and
    /// `skip`, or data block and trailer) ended.
    #[inline]
    pub fn next<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        loop {
            match self {
                Decoder::Text(decoder) => return decoder.next(input, context),
                Decoder::Compact(decoder) => return decoder.next(input, context),
                Decoder::MemcachedBinary(decoder) => return decoder.next(input, context),
                Decoder::Undecided => match input.first() {
                    None => return Step::Incomplete,
                    Some(&memcached_binary::REQUEST_MAGIC) => {
                        *self = Decoder::MemcachedBinary(Default::default())
                    }
                    Some(0x82..) => *self = Decoder::Compact(Default::default()),
                    Some(_) => *self = Decoder::Text(Default::default()),
                },
            }
        }
    }

    /// Whether the bytes after a streamed data block are the trailer required by the protocol.
    pub fn trailer_is_valid(&self, trailer: &[u8]) -> bool {
        match self {
            Decoder::Text(_) => trailer == b"\r\n",
            _ => trailer.is_empty(),
        }
    }
}

/// Writes the answer to one request.
#[inline]
pub fn encode(reply: &Reply<'_>, response: &Response<'_>, now: Instant, out: &mut impl Output) {
    match reply.form {
        ReplyForm::Text(form) => text::encode(form, reply, response, out),
        ReplyForm::Meta(form) => meta::encode(form, reply, response, now, out),
        ReplyForm::Compact(form) => compact::encode(form, reply, response, now, out),
        ReplyForm::MemcachedBinary(form) => memcached_binary::encode(form, reply, response, out),
    }
}

/// Writes the outcome of a [`AdminCommand`] that is not answered with data.
pub fn encode_admin(reply: &Reply<'_>, answer: AdminAnswer, out: &mut impl Output) {
    match reply.form {
        ReplyForm::Compact(form) => compact::encode_admin(form, answer, out),
        ReplyForm::MemcachedBinary(form) => memcached_binary::encode_admin(form, answer, out),
        ReplyForm::Text(_) | ReplyForm::Meta(_) => text::encode_admin(reply, answer, out),
    }
}

/// Writes one statistic. After the last comes [`encode_stats_end`].
pub fn encode_stat(reply: &Reply<'_>, name: &[u8], value: &[u8], out: &mut impl Output) {
    match reply.form {
        ReplyForm::Compact(form) => compact::encode_stat(form, name, value, out),
        ReplyForm::MemcachedBinary(form) => memcached_binary::encode_stat(form, name, value, out),
        ReplyForm::Text(_) | ReplyForm::Meta(_) => {
            for part in [b"STAT ", name, b" ", value, b"\r\n"] {
                out.bytes(part);
            }
        }
    }
}

/// Writes the end of the statistics, even if there are none.
pub fn encode_stats_end(reply: &Reply<'_>, out: &mut impl Output) {
    match reply.form {
        ReplyForm::Compact(form) => compact::encode_stats_end(form, out),
        ReplyForm::MemcachedBinary(form) => memcached_binary::encode_stats_end(form, out),
        ReplyForm::Text(_) | ReplyForm::Meta(_) => out.bytes(b"END\r\n"),
    }
}

/// Writes an answer to `stats` that does not consist of names and values, such as `stats detail
/// dump`. In a binary protocol it is the value of one statistic, called "detailed" by memcached.
pub fn encode_stats_text(reply: &Reply<'_>, text: &[u8], out: &mut impl Output) {
    match reply.form {
        ReplyForm::Compact(_) | ReplyForm::MemcachedBinary(_) => {
            encode_stat(reply, b"detailed", text, out);
            encode_stats_end(reply, out);
        }
        ReplyForm::Text(_) | ReplyForm::Meta(_) => out.bytes(text),
    }
}
