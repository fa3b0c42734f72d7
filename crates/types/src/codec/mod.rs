//! The encoding of a request to the core that owns its key, and of its answer.
//!
//! A message is as long as the slice that holds it: its carrier (a mesh slot, a frame between
//! nodes) already knows its length, so a value is simply the rest after the fixed part and the key.
//! The length is computed first and the caller passes a slice of exactly that length, so a message
//! is written once, directly into its slot.
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
//! Numbers are little-endian. Fields that most requests leave at their default (client flags,
//! deadlines, compare tokens) are omitted: a bit announces each field that is present. Decoders
//! accept any bytes and return [`CodecError`] instead of guessing, because the same messages cross
//! between nodes. Refused: a general serializer, which would copy every field of every plain get.
mod fields;
mod request;
mod response;

#[cfg(test)]
mod tests;

pub use crate::wire::CodecError;
pub use request::{
    LIMITED_GET_HEAD_BYTES, PLAIN_GET_HEAD_BYTES, decode_key, decode_plain_get, decode_request,
    encode_request, encoded_request_bytes,
};
pub use response::{decode_response, encode_response, encoded_response_bytes, over_allowance};
