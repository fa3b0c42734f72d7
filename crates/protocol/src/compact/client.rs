//! The client's side of the compact binary protocol, for the load generator, peers and tests.
//!
//! Requests are appended to a buffer that the caller reuses; responses borrow the bytes they were
//! read from. Nothing here allocates except to grow that buffer, and nothing waits: the caller owns
//! the socket.

use super::opcode::{
    HEADER_BYTES, REQUEST_FIELD_BYTES, RESPONSE_FIELD_BYTES, request_flags, response_flags,
};
use super::{Opcode, Status};
use ringlane_types::request::Consistency;

/// One request with its optional fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The command.
    pub opcode: Opcode,
    /// Returned in every answer to this request.
    pub opaque: u32,
    /// Any of [`request_flags`]' QUIET, ANY_ORDER and DETAILS; flags of fields are added.
    pub flags: u8,
    /// Client flags to store; 0 is not sent.
    pub client_flags: u32,
    /// Time to live in milliseconds; 0 means forever.
    pub ttl_millis: Option<u64>,
    /// The version to compare.
    pub version: Option<u64>,
    /// How many replicas must agree; the node's default is not sent.
    pub consistency: Consistency,
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A request without key, value and optional fields.
    pub const fn new(opcode: Opcode, opaque: u32) -> Self {
        Self {
            opcode,
            opaque,
            flags: 0,
            client_flags: 0,
            ttl_millis: None,
            version: None,
            consistency: Consistency::Configured,
            key: &[],
            value: &[],
        }
    }

    /// GET `key`.
    pub const fn get(key: &'a [u8], opaque: u32) -> Self {
        Self { key, ..Self::new(Opcode::Get, opaque) }
    }

    /// SET `key` to `value`.
    pub const fn set(key: &'a [u8], value: &'a [u8], opaque: u32) -> Self {
        Self { key, value, ..Self::new(Opcode::Set, opaque) }
    }

    /// Length of the frame in bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.head_bytes() + self.value.len()
    }

    /// Appends the whole frame.
    ///
    /// # Panics
    /// If the key is over 65,535 bytes or the value over 4 GiB. (The server's own limits are lower;
    /// it answers requests that exceed them.)
    pub fn encode(&self, out: &mut Vec<u8>) {
        let value_bytes = u32::try_from(self.value.len()).expect("a value is below 4 GiB");
        self.encode_head(value_bytes, out);
        out.extend_from_slice(self.value);
    }

    /// Appends everything before the value, which the caller sends itself; `self.value` is ignored.
    ///
    /// # Panics
    /// When the key is over 65,535 bytes.
    pub fn encode_head(&self, value_bytes: u32, out: &mut Vec<u8>) {
        let key_bytes = u16::try_from(self.key.len()).expect("a key is below 64 KiB");
        let mut header = [0; HEADER_BYTES];
        header[0] = self.opcode as u8;
        header[1] = self.flags | self.field_flags();
        header[2..4].copy_from_slice(&key_bytes.to_le_bytes());
        header[4..8].copy_from_slice(&value_bytes.to_le_bytes());
        header[8..].copy_from_slice(&self.opaque.to_le_bytes());
        out.reserve(self.head_bytes() + value_bytes as usize);
        out.extend_from_slice(&header);
        self.encode_fields(out);
        out.extend_from_slice(self.key);
    }

    fn encode_fields(&self, out: &mut Vec<u8>) {
        if self.client_flags != 0 {
            out.extend_from_slice(&self.client_flags.to_le_bytes());
        }
        if let Some(millis) = self.ttl_millis {
            out.extend_from_slice(&millis.to_le_bytes());
        }
        if let Some(version) = self.version {
            out.extend_from_slice(&version.to_le_bytes());
        }
        if self.consistency != Consistency::Configured {
            out.push(self.consistency as u8);
        }
    }

    fn field_flags(&self) -> u8 {
        let mut flags = 0;
        if self.client_flags != 0 {
            flags |= request_flags::CLIENT_FLAGS;
        }
        if self.ttl_millis.is_some() {
            flags |= request_flags::TTL;
        }
        if self.version.is_some() {
            flags |= request_flags::VERSION;
        }
        if self.consistency != Consistency::Configured {
            flags |= request_flags::CONSISTENCY;
        }
        flags
    }

    fn head_bytes(&self) -> usize {
        let fields = REQUEST_FIELD_BYTES[self.field_flags() as usize];
        HEADER_BYTES + usize::from(fields) + self.key.len()
    }
}

/// Writes a request of several entries: an MGET or MSET frame whose length is filled in at the
/// end.
#[derive(Debug)]
pub struct EntryWriter<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    entries_at: usize,
}

impl<'o> EntryWriter<'o> {
    /// Starts a frame from `frame`'s opcode, opaque, flags and consistency.
    pub fn new(frame: &Frame<'_>, out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        frame.encode_head(0, out);
        let entries_at = out.len();
        Self { out, start, entries_at }
    }

    /// Adds an entry to MGET.
    ///
    /// # Panics
    /// When the key is over 65,535 bytes.
    pub fn get(&mut self, key: &[u8]) {
        let key_bytes = u16::try_from(key.len()).expect("a key is below 64 KiB");
        self.out.extend_from_slice(&key_bytes.to_le_bytes());
        self.out.extend_from_slice(key);
    }

    /// Adds an entry to MSET: `entry`'s key, value, client flags, TTL and version.
    ///
    /// # Panics
    /// When the key is over 65,535 bytes or the value over 4 GiB.
    pub fn set(&mut self, entry: &Frame<'_>) {
        let entry = Frame { consistency: Consistency::Configured, flags: 0, ..*entry };
        let key_bytes = u16::try_from(entry.key.len()).expect("a key is below 64 KiB");
        let value_bytes = u32::try_from(entry.value.len()).expect("a value is below 4 GiB");
        self.out.extend_from_slice(&[0, entry.field_flags()]);
        self.out.extend_from_slice(&key_bytes.to_le_bytes());
        self.out.extend_from_slice(&value_bytes.to_le_bytes());
        entry.encode_fields(self.out);
        self.out.extend_from_slice(entry.key);
        self.out.extend_from_slice(entry.value);
    }

    /// Completes the frame.
    ///
    /// # Panics
    /// When the entries are over 4 GiB together.
    pub fn finish(self) {
        let bytes = u32::try_from(self.out.len() - self.entries_at).expect("a frame below 4 GiB");
        self.out[self.start + 4..self.start + 8].copy_from_slice(&bytes.to_le_bytes());
    }
}

/// One response, or the part of it before its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFrame<'a> {
    /// The command it answers.
    pub opcode: Opcode,
    /// The outcome.
    pub status: Status,
    /// The request's opaque.
    pub opaque: u32,
    /// The request has further answers.
    pub more: bool,
    /// Which entry of an MGET or MSET it answers.
    pub index: Option<u32>,
    /// Client flags of the item.
    pub client_flags: u32,
    /// Milliseconds left; `None` if it never expires, or if they were not requested.
    pub ttl_millis: Option<u64>,
    /// The version, if it was requested.
    pub version: Option<u64>,
    /// The key; only statistics have one, their name.
    pub key: &'a [u8],
    /// The value. Empty when the response came from [`ResponseFrame::decode_head`].
    pub value: &'a [u8],
}

/// Bytes that cannot be a response. The stream is out of step; the connection cannot be used any
/// longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// An opcode unknown to this build.
    Opcode(u8),
    /// A status unknown to this build.
    Status(u8),
}

impl<'a> ResponseFrame<'a> {
    /// Decodes one whole response from the front of `input` and returns its length; `None` until it
    /// has wholly arrived.
    #[inline]
    pub fn decode(input: &'a [u8]) -> Result<Option<(Self, usize)>, ResponseError> {
        let Some((mut response, value_at, value_bytes)) = Self::decode_head(input)? else {
            return Ok(None);
        };
        let Some(value) = input[value_at..].get(..value_bytes as usize) else { return Ok(None) };
        response.value = value;
        Ok(Some((response, value_at + value.len())))
    }

    /// Like [`ResponseFrame::decode`], but does not wait for the value: also returns its start and
    /// length, so that a long one can be received elsewhere.
    #[inline]
    pub fn decode_head(input: &'a [u8]) -> Result<Option<(Self, usize, u32)>, ResponseError> {
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [code, flags, status, key_bytes, v0, v1, v2, v3, o0, o1, o2, o3] = *header;
        let opcode = Opcode::from_code(code).ok_or(ResponseError::Opcode(code))?;
        let status = Status::from_code(status).ok_or(ResponseError::Status(status))?;
        let fields = RESPONSE_FIELD_BYTES[(flags & response_flags::FIELDS) as usize] as usize;
        let key_at = HEADER_BYTES + fields;
        let value_at = key_at + key_bytes as usize;
        let Some(key) = input.get(key_at..value_at) else { return Ok(None) };
        let mut response = Self {
            opcode,
            status,
            opaque: u32::from_le_bytes([o0, o1, o2, o3]),
            more: flags & response_flags::MORE != 0,
            index: None,
            client_flags: 0,
            ttl_millis: None,
            version: None,
            key,
            value: &[],
        };
        let mut rest = &input[HEADER_BYTES..key_at];
        if flags & response_flags::CLIENT_FLAGS != 0 {
            response.client_flags = u32::from_le_bytes(take(&mut rest));
        }
        if flags & response_flags::TTL != 0 {
            response.ttl_millis = Some(u64::from_le_bytes(take(&mut rest)));
        }
        if flags & response_flags::VERSION != 0 {
            response.version = Some(u64::from_le_bytes(take(&mut rest)));
        }
        if flags & response_flags::INDEX != 0 {
            response.index = Some(u32::from_le_bytes(take(&mut rest)));
        }
        Ok(Some((response, value_at, u32::from_le_bytes([v0, v1, v2, v3]))))
    }

    /// The number returned by an INCR or DECR.
    pub fn number(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_le_bytes)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (front, rest) = bytes.split_first_chunk().expect("the flags say how long the fields are");
    *bytes = rest;
    *front
}
