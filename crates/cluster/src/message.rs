//! Messages between nodes about keys and data.
//!
//! A frame's body is a sequence of length-prefixed messages, so the value of a record is simply the
//! rest of its message and is read without a copy. Decoders accept any bytes and return
//! [`CodecError`] instead of guessing. Requests carry the digest of the roster under which their
//! sender located the key (`stamp`): a replica with a different roster reports that instead of
//! acting, and both update their rosters before the operation is retried.
//!
//! ```text
//! body     length u32 | message | length u32 | message | ...
//! message  tag u8 | fields in the order of their declaration | key behind its length | the rest
//! record   version u64 | bits u8 | deadline u64? | flags u32? | marks u8? | value: the rest
//! ```

use super::record::{Content, Live, Record};
use super::version::Version;
use ringlane_ring::Point;
use ringlane_types::codec;
use ringlane_types::request::Consistency;
use ringlane_types::request::{KEY_BYTES_MAX, Value};
use ringlane_types::time::Deadline;
use ringlane_types::wire::{CodecError, Reader, Writer};

mod node;
#[cfg(test)]
mod tests;

pub use node::NodeMessage;

/// An operation in its coordinator's table, to route the answer. Never reused for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OperationId(pub u64);

/// The outcome of a write at one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The replica holds it, or had it already.
    Applied,
    /// The replica holds a newer write.
    Superseded(Version),
    /// The replica holds a write that the writer had not seen.
    Conflict(Version),
    /// The replica may not acknowledge writes of this key yet.
    NotReady,
    /// The replica knows another roster, with this digest.
    OtherView(u64),
    /// Larger than the replica stores.
    TooLarge,
    /// The replica has no memory for it.
    NoMemory,
    /// The version is too far in the replica's future.
    ClockAhead,
}

/// What a replica knows about a key.
#[derive(Clone, Copy, Debug)]
pub enum ReadOutcome<'b> {
    /// This.
    Record(Record<'b>),
    /// The version that the reader already knows.
    Same,
    /// An older version than the reader knows.
    Older(Version),
    /// Nothing.
    Nothing,
    /// The replica does not hold the key completely yet.
    NotReady,
    /// The replica knows another roster, with this digest.
    OtherView(u64),
    /// Another node has been promised this version, newer than the reader's.
    Promised(Version),
}

/// The outcome of a request that another node was asked to coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardOutcome {
    /// Done; the response follows.
    Answered,
    /// Too few replicas took part.
    QuorumNotReached {
        /// How many it needed.
        needed: u8,
        /// How many there were.
        reached: u8,
    },
    /// It may have been performed or not.
    Unknown,
    /// Not started, ask again: another view, or too much to do.
    NotBegun,
}

/// A request that another node is asked to coordinate.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'b> {
    /// The sender's operation.
    pub operation: OperationId,
    /// Digest of its roster.
    pub stamp: u64,
    /// How many replicas must take part.
    pub consistency: Consistency,
    /// Where the request's key is on the ring of that roster. The sender knows it already, and
    /// computing it again by MD5 would be a tenth of the cost of a forwarded get.
    pub point: Point,
    /// A version that the write must exceed: one under which the sender has started it, and which
    /// some replicas may hold.
    pub after: Version,
    /// The request as encoded by the codec.
    pub request: &'b [u8],
}

/// One message about keys and data.
#[derive(Clone, Copy, Debug)]
pub enum Message<'b> {
    /// Apply this record and report the outcome.
    Write {
        /// The writer's operation.
        operation: OperationId,
        /// Digest of its roster.
        stamp: u64,
        /// The version that the write was computed from: the replica must hold nothing newer.
        guard: Option<Version>,
        /// The key.
        key: &'b [u8],
        /// What to apply.
        record: Record<'b>,
    },
    /// Answer to [`Message::Write`].
    WriteReply {
        /// The writer's operation.
        operation: OperationId,
        /// What became of it.
        outcome: WriteOutcome,
    },
    /// Report what you know about a key.
    Read {
        /// The reader's operation.
        operation: OperationId,
        /// Digest of its roster.
        stamp: u64,
        /// What the reader knows already; an equal version is not sent.
        known: Version,
        /// The version under which the reader will write what it computes from the answer, and for
        /// which it wants a promise; [`Version::NONE`] if it only reads.
        promise: Version,
        /// The key.
        key: &'b [u8],
    },
    /// Answer to [`Message::Read`] and [`Message::Fetch`].
    ReadReply {
        /// The reader's operation.
        operation: OperationId,
        /// What the replica knows.
        outcome: ReadOutcome<'b>,
    },
    /// Report your record of a key that the sender gained with the roster of this epoch.
    Fetch {
        /// The reader's operation.
        operation: OperationId,
        /// The epoch.
        epoch: u64,
        /// The key.
        key: &'b [u8],
    },
    /// Store this record if it is newer: a repair, a hint, or part of a range transfer.
    Merge {
        /// Returned in the answer; 0 for no answer.
        ticket: u64,
        /// The key.
        key: &'b [u8],
        /// The record.
        record: Record<'b>,
    },
    /// Answer to [`Message::Merge`]: the replica holds this or something newer.
    Merged {
        /// The ticket.
        ticket: u64,
    },
    /// Coordinate this request, and do not forward it.
    Forward(Forward<'b>),
    /// Answer to [`Message::Forward`].
    ForwardReply {
        /// The sender's operation.
        operation: OperationId,
        /// What became of it.
        outcome: ForwardOutcome,
        /// The version it wrote or found.
        version: Version,
        /// The response as encoded by the codec.
        response: &'b [u8],
    },
}

mod tag {
    pub(super) const WRITE: u8 = 1;
    pub(super) const WRITE_GUARDED: u8 = 2;
    pub(super) const WRITE_REPLY: u8 = 3;
    pub(super) const READ: u8 = 4;
    pub(super) const READ_REPLY: u8 = 5;
    pub(super) const FETCH: u8 = 6;
    pub(super) const MERGE: u8 = 7;
    pub(super) const MERGED: u8 = 8;
    pub(super) const FORWARD: u8 = 9;
    pub(super) const FORWARD_REPLY: u8 = 10;
}

/// Bytes of a [`Message::Forward`] before its request.
const FORWARD_HEAD_BYTES: usize = 1 + 8 + 8 + 1 + 4 + 8;

/// Bits of a record: which fields are present.
mod bit {
    pub(super) const LIVE: u8 = 1;
    pub(super) const DEADLINE: u8 = 2;
    pub(super) const FLAGS: u8 = 4;
    pub(super) const MARKS: u8 = 8;
    pub(super) const KNOWN: u8 = LIVE | DEADLINE | FLAGS | MARKS;
}

impl<'b> Message<'b> {
    /// Appends the message, behind its length.
    pub fn write(&self, out: &mut Vec<u8>) {
        behind_length(out, |out| self.write_fields(out));
    }

    /// Appends the answer to a forwarded request; `respond` appends its encoded response, directly
    /// from where the value is.
    #[inline]
    pub fn write_answer(
        operation: OperationId,
        version: Version,
        out: &mut Vec<u8>,
        respond: impl FnOnce(&mut Vec<u8>),
    ) {
        behind_length(out, |out| {
            let outcome = ForwardOutcome::Answered;
            Message::ForwardReply { operation, outcome, version, response: b"" }.write_fields(out);
            respond(out);
        });
    }

    fn write_fields(&self, out: &mut Vec<u8>) {
        match *self {
            Message::Write { operation, stamp, guard, key, record } => {
                out.put_u8(if guard.is_some() { tag::WRITE_GUARDED } else { tag::WRITE });
                out.put_u64(operation.0);
                out.put_u64(stamp);
                if let Some(base) = guard {
                    out.put_u64(base.0);
                }
                out.put_short(key);
                write_record(&record, out);
            }
            Message::WriteReply { operation, outcome } => {
                out.put_u8(tag::WRITE_REPLY);
                out.put_u64(operation.0);
                let (code, number) = match outcome {
                    WriteOutcome::Applied => (0, 0),
                    WriteOutcome::Superseded(version) => (1, version.0),
                    WriteOutcome::Conflict(version) => (2, version.0),
                    WriteOutcome::NotReady => (3, 0),
                    WriteOutcome::OtherView(digest) => (4, digest),
                    WriteOutcome::TooLarge => (5, 0),
                    WriteOutcome::NoMemory => (6, 0),
                    WriteOutcome::ClockAhead => (7, 0),
                };
                out.put_u8(code);
                if matches!(code, 1 | 2 | 4) {
                    out.put_u64(number);
                }
            }
            Message::Read { operation, stamp, known, promise, key } => {
                out.put_u8(tag::READ);
                out.put_u64(operation.0);
                out.put_u64(stamp);
                out.put_u64(known.0);
                out.put_u64(promise.0);
                out.put_short(key);
            }
            Message::ReadReply { operation, outcome } => {
                out.put_u8(tag::READ_REPLY);
                out.put_u64(operation.0);
                match outcome {
                    ReadOutcome::Record(record) => {
                        out.put_u8(0);
                        write_record(&record, out);
                    }
                    ReadOutcome::Same => out.put_u8(1),
                    ReadOutcome::Older(version) => {
                        out.put_u8(2);
                        out.put_u64(version.0);
                    }
                    ReadOutcome::Nothing => out.put_u8(3),
                    ReadOutcome::NotReady => out.put_u8(4),
                    ReadOutcome::OtherView(digest) => {
                        out.put_u8(5);
                        out.put_u64(digest);
                    }
                    ReadOutcome::Promised(version) => {
                        out.put_u8(6);
                        out.put_u64(version.0);
                    }
                }
            }
            Message::Fetch { operation, epoch, key } => {
                out.put_u8(tag::FETCH);
                out.put_u64(operation.0);
                out.put_u64(epoch);
                out.put_short(key);
            }
            Message::Merge { ticket, key, record } => {
                out.put_u8(tag::MERGE);
                out.put_u64(ticket);
                out.put_short(key);
                write_record(&record, out);
            }
            Message::Merged { ticket } => {
                out.put_u8(tag::MERGED);
                out.put_u64(ticket);
            }
            Message::Forward(forward) => {
                let Forward { operation, stamp, consistency, point, after, request } = forward;
                out.put_u8(tag::FORWARD);
                out.put_u64(operation.0);
                out.put_u64(stamp);
                out.put_u8(consistency as u8);
                out.put_u32(point.0);
                out.put_u64(after.0);
                out.put(request);
            }
            Message::ForwardReply { operation, outcome, version, response } => {
                out.put_u8(tag::FORWARD_REPLY);
                out.put_u64(operation.0);
                let (code, needed, reached) = match outcome {
                    ForwardOutcome::Answered => (0, 0, 0),
                    ForwardOutcome::QuorumNotReached { needed, reached } => (1, needed, reached),
                    ForwardOutcome::Unknown => (2, 0, 0),
                    ForwardOutcome::NotBegun => (3, 0, 0),
                };
                out.put(&[code, needed, reached]);
                out.put_u64(version.0);
                out.put(response);
            }
        }
    }

    /// The key whose record the receiver of the message `bytes` will access. Answers have none, and
    /// are not examined.
    #[inline]
    pub fn key_of(bytes: &'b [u8]) -> Option<&'b [u8]> {
        match *bytes.first()? {
            tag::FORWARD => {
                let (key, _) = codec::decode_key(bytes.get(FORWARD_HEAD_BYTES..)?).ok()?;
                Some(key)
            }
            tag::WRITE | tag::WRITE_GUARDED | tag::READ | tag::FETCH | tag::MERGE => {
                match Message::read(bytes).ok()? {
                    Message::Write { key, .. }
                    | Message::Read { key, .. }
                    | Message::Fetch { key, .. }
                    | Message::Merge { key, .. } => Some(key),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether the message `bytes` is a request to coordinate.
    #[inline]
    pub fn is_forward(bytes: &[u8]) -> bool {
        bytes.first() == Some(&tag::FORWARD)
    }

    /// Whether the message `bytes` answers one of the receiver's.
    #[inline]
    pub fn is_answer(bytes: &[u8]) -> bool {
        let answers = [tag::WRITE_REPLY, tag::READ_REPLY, tag::MERGED, tag::FORWARD_REPLY];
        bytes.first().is_some_and(|tag| answers.contains(tag))
    }

    /// The operation whose record the receiver will access, if `bytes` is an answer to
    /// [`Message::Read`] or [`Message::Fetch`].
    #[inline]
    pub fn answered_read(bytes: &[u8]) -> Option<OperationId> {
        let mut reader = Reader::new(bytes);
        let tag = reader.u8().ok()?;
        (tag == tag::READ_REPLY).then_some(OperationId(reader.u64().ok()?))
    }

    /// Decodes the message `bytes`, which must have no rest.
    pub fn read(bytes: &'b [u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()? {
            written @ (tag::WRITE | tag::WRITE_GUARDED) => {
                let (operation, stamp) = (OperationId(reader.u64()?), reader.u64()?);
                let guard = match written {
                    tag::WRITE_GUARDED => Some(Version(reader.u64()?)),
                    _ => None,
                };
                let (key, record) = (read_key(&mut reader)?, read_record(&mut reader)?);
                Message::Write { operation, stamp, guard, key, record }
            }
            tag::WRITE_REPLY => {
                let operation = OperationId(reader.u64()?);
                let outcome = match reader.u8()? {
                    0 => WriteOutcome::Applied,
                    1 => WriteOutcome::Superseded(Version(reader.u64()?)),
                    2 => WriteOutcome::Conflict(Version(reader.u64()?)),
                    3 => WriteOutcome::NotReady,
                    4 => WriteOutcome::OtherView(reader.u64()?),
                    5 => WriteOutcome::TooLarge,
                    6 => WriteOutcome::NoMemory,
                    7 => WriteOutcome::ClockAhead,
                    _ => return Err(CodecError::Unknown),
                };
                Message::WriteReply { operation, outcome }
            }
            tag::READ => {
                let (operation, stamp) = (OperationId(reader.u64()?), reader.u64()?);
                let (known, promise) = (Version(reader.u64()?), Version(reader.u64()?));
                let key = read_key(&mut reader)?;
                Message::Read { operation, stamp, known, promise, key }
            }
            tag::READ_REPLY => {
                let operation = OperationId(reader.u64()?);
                let outcome = match reader.u8()? {
                    0 => ReadOutcome::Record(read_record(&mut reader)?),
                    1 => ReadOutcome::Same,
                    2 => ReadOutcome::Older(Version(reader.u64()?)),
                    3 => ReadOutcome::Nothing,
                    4 => ReadOutcome::NotReady,
                    5 => ReadOutcome::OtherView(reader.u64()?),
                    6 => ReadOutcome::Promised(Version(reader.u64()?)),
                    _ => return Err(CodecError::Unknown),
                };
                Message::ReadReply { operation, outcome }
            }
            tag::FETCH => {
                let (operation, epoch) = (OperationId(reader.u64()?), reader.u64()?);
                Message::Fetch { operation, epoch, key: read_key(&mut reader)? }
            }
            tag::MERGE => {
                let ticket = reader.u64()?;
                let (key, record) = (read_key(&mut reader)?, read_record(&mut reader)?);
                Message::Merge { ticket, key, record }
            }
            tag::MERGED => Message::Merged { ticket: reader.u64()? },
            tag::FORWARD => {
                let (operation, stamp) = (OperationId(reader.u64()?), reader.u64()?);
                let consistency = read_consistency(&mut reader)?;
                let (point, after) = (Point(reader.u32()?), Version(reader.u64()?));
                Message::Forward(Forward {
                    operation,
                    stamp,
                    consistency,
                    point,
                    after,
                    request: reader.rest(),
                })
            }
            tag::FORWARD_REPLY => {
                let operation = OperationId(reader.u64()?);
                let (code, needed, reached) = (reader.u8()?, reader.u8()?, reader.u8()?);
                let outcome = match code {
                    0 => ForwardOutcome::Answered,
                    1 => ForwardOutcome::QuorumNotReached { needed, reached },
                    2 => ForwardOutcome::Unknown,
                    3 => ForwardOutcome::NotBegun,
                    _ => return Err(CodecError::Unknown),
                };
                let (version, response) = (Version(reader.u64()?), reader.rest());
                Message::ForwardReply { operation, outcome, version, response }
            }
            _ => return Err(CodecError::Unknown),
        };
        reader.end()?;
        Ok(message)
    }
}

/// Appends what `write` appends, with its length before it.
#[inline]
fn behind_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(0);
    write(out);
    let bytes = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
}

/// Appends a record, which extends to the end of its message.
pub fn write_record(record: &Record<'_>, out: &mut Vec<u8>) {
    out.put_u64(record.version.0);
    let Content::Live(live) = &record.content else {
        return out.put_u8(0);
    };
    let set = |condition: bool, bit: u8| if condition { bit } else { 0 };
    out.put_u8(
        bit::LIVE
            | set(!live.deadline.is_never(), bit::DEADLINE)
            | set(live.flags != 0, bit::FLAGS)
            | set(live.marks != 0, bit::MARKS),
    );
    if !live.deadline.is_never() {
        out.put_u64(live.deadline.as_millis());
    }
    if live.flags != 0 {
        out.put_u32(live.flags);
    }
    if live.marks != 0 {
        out.put_u8(live.marks);
    }
    live.value.parts().for_each(|part| out.put(part));
}

/// Decodes the whole rest as a record.
pub fn read_record<'b>(reader: &mut Reader<'b>) -> Result<Record<'b>, CodecError> {
    let (version, bits) = (Version(reader.u64()?), reader.u8()?);
    let has = |bit| bits & bit != 0;
    if bits & !bit::KNOWN != 0 || (bits != 0 && !has(bit::LIVE)) {
        return Err(CodecError::Unknown);
    }
    if bits == 0 {
        return Ok(Record::deleted(version));
    }
    let deadline = if has(bit::DEADLINE) { reader.u64()? } else { Deadline::NEVER.as_millis() };
    let live = Live {
        deadline: Deadline::from_millis(deadline),
        flags: if has(bit::FLAGS) { reader.u32()? } else { 0 },
        marks: if has(bit::MARKS) { reader.u8()? } else { 0 },
        value: Value::Whole(reader.rest()),
    };
    Ok(Record { version, content: Content::Live(live) })
}

fn read_key<'b>(reader: &mut Reader<'b>) -> Result<&'b [u8], CodecError> {
    let key = reader.short()?;
    if (1..=KEY_BYTES_MAX).contains(&key.len()) { Ok(key) } else { Err(CodecError::Unknown) }
}

fn read_consistency(reader: &mut Reader<'_>) -> Result<Consistency, CodecError> {
    use Consistency::*;
    let code = reader.u8()?;
    [Configured, One, Quorum, All]
        .into_iter()
        .find(|known| *known as u8 == code)
        .ok_or(CodecError::Unknown)
}

/// The messages of a frame's body, one by one. Ends at the first truncated one.
pub struct Messages<'b> {
    rest: Reader<'b>,
}

impl<'b> Messages<'b> {
    /// Those in `body`.
    pub fn new(body: &'b [u8]) -> Self {
        Self { rest: Reader::new(body) }
    }
}

impl<'b> Iterator for Messages<'b> {
    /// The bytes of one message, or what follows is no message.
    type Item = Result<&'b [u8], CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.left() == 0 {
            return None;
        }
        let message = self.rest.long();
        if message.is_err() {
            self.rest.rest();
        }
        Some(message)
    }
}
