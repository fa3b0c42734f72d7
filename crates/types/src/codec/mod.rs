//! The form in which one core hands a request to the core that owns its key, and gets its answer.
//!
//! A message is as long as the slice that holds it: whoever carries messages (a mesh slot, a frame
//! between nodes) already knows their lengths, so a value is simply what is left after the fixed
//! part and the key. Lengths are computed first and the caller hands in a slice of exactly that
//! length, so a message is written once, straight into its slot.
//!
//! ```text
//! request    tag u8 | key length u8 | hash u64 | options u16 | announced fields | key | value
//! plain get  tag u8 | key length u8 | hash u64 | key
//! limited    tag u8 | key length u8 | hash u64 | allowance u32 | key
//! hit        tag u8 | marks u8 | key length u8 | class u8 | item bytes u32 | cas u64
//!            | announced fields | key | value
//! number     tag u8 | marks u8 | key length u8 | value u64 | cas u64 | announced fields | key
//! stored     tag u8 | value bytes u32 | cas u64
//! over       tag u8 | value bytes u32 | the request
//! others     tag u8
//! ```
//!
//! Numbers are little-endian. What most requests leave at its default (client flags, deadlines,
//! compare tokens) is not sent: a bit announces each field that is. Decoders accept any bytes and
//! say [`CodecError`] instead of guessing, because the same messages will cross between nodes.
//! Refused: a general serializer, which would copy every field of every plain get.
mod bytes;
mod request;
mod response;

#[cfg(test)]
mod tests;

pub use request::{
    LIMITED_GET_HEAD_BYTES, PLAIN_GET_HEAD_BYTES, decode_key, decode_plain_get, decode_request,
    encode_request, encoded_request_bytes,
};
pub use response::{decode_response, encode_response, encoded_response_bytes, over_allowance};

/// Why bytes are no message of this form. None of them was acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// The message ends inside a field.
    Truncated,
    /// Bytes follow a message that has no value.
    Trailing,
    /// A tag, option bit or enumerated field that this build does not know.
    Unknown,
    /// A key that is empty or longer than [`KEY_BYTES_MAX`](crate::request::KEY_BYTES_MAX).
    Key,
}
