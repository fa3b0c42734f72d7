//! Errors of a frame, and how they are reported to the client.

use super::super::Status;
use crate::Context;

/// An error in a frame. Each is answered with [`FrameError::status`] and a message, after which the
/// frame is dropped and the connection stays open, except where noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The first byte cannot start a frame. The connection is closed after the answer, since the
    /// start of the next frame is unknown.
    NoFrame,
    /// No command has this opcode.
    UnknownOpcode,
    /// A flag that the opcode does not allow.
    FlagNotAllowed,
    /// A field that the opcode requires is not announced.
    FieldMissing,
    /// Key shorter or longer than the opcode allows: a missing or unexpected key, or more than
    /// [`KEY_BYTES_MAX`](ringlane_types::request::KEY_BYTES_MAX) bytes.
    KeyLength,
    /// Value shorter or longer than the opcode allows.
    ValueLength,
    /// A consistency other than 0 to 3.
    Consistency,
    /// EXPIRE with a TTL of 0, which elsewhere means forever.
    ExpireNever,
    /// An entry that violates the rules or does not end within its frame. The rest of the frame is
    /// dropped; entries before it have been executed.
    Entry,
    /// A faulty frame longer than the server is willing to drop. The connection is closed.
    TooLong,
}

impl FrameError {
    /// The status that reports it.
    pub const fn status(self) -> Status {
        match self {
            Self::UnknownOpcode => Status::UnknownOpcode,
            _ => Status::Invalid,
        }
    }

    /// The message for people.
    pub const fn message(self) -> &'static str {
        match self {
            Self::NoFrame => "no opcode: closing, the stream is out of step",
            Self::UnknownOpcode => "unknown opcode",
            Self::FlagNotAllowed => "a flag this opcode does not take",
            Self::FieldMissing => "a field this opcode needs is missing",
            Self::KeyLength => "key length out of bounds for this opcode",
            Self::ValueLength => "value length out of bounds for this opcode",
            Self::Consistency => "no such consistency",
            Self::ExpireNever => "a TTL of 0 does not expire: use PERSIST",
            Self::Entry => "entry broken: it and the rest of the frame are dropped",
            Self::TooLong => "faulty frame too long to skip: closing",
        }
    }
}

/// The response that reports `error`, in the turn's scratch memory.
#[cold]
pub(super) fn error_frame<'b>(
    error: FrameError,
    [code, flags]: [u8; 2],
    opaque: u32,
    index: Option<u32>,
    context: &Context<'b>,
) -> &'b [u8] {
    let message = error.message().as_bytes();
    let mut header = [code, flags, error.status() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&(message.len() as u32).to_le_bytes());
    header[8..].copy_from_slice(&opaque.to_le_bytes());
    let index = index.map(u32::to_le_bytes);
    let parts = [&header[..], index.as_ref().map_or(&[], |index| &index[..]), message];
    let length = parts.iter().map(|part| part.len()).sum();
    let mut bytes = parts.into_iter().flatten().copied();
    context.scratch.alloc_slice_fill_with(length, |_| bytes.next().expect("as many as counted"))
}
