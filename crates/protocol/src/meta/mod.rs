//! The memcached meta commands: `mg`, `ms`, `md`, `ma`, `me`, `mn`.
//!
//! A meta command is a key and a few one-letter flags, and its answer repeats some of them in the
//! order of the request. So the flags are parsed twice: once to determine the operation (`decode`),
//! and once from left to right to write the answer, for which a [`Reply`] stores them as sent.
//! Refused: compiling the return flags into a list in the first pass, which would have to be stored
//! for every request to another core and saves nothing.
//!
//! [`Reply`]: super::Reply

pub(super) mod base64;
mod decode;
mod encode;
mod flags;

pub(super) use decode::decode;
pub use encode::encode;

/// Maximum bytes of flags that a [`Reply`](super::Reply) repeats.
pub const TAIL_BYTES_MAX: usize = 640;

/// The form of the answer to a meta command, besides its return flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaForm {
    /// mg: `HD`, `VA` or `EN`.
    Get {
        /// v: return the value.
        value: bool,
        /// C: omit the value if the item's CAS token is the given one.
        compares: bool,
        /// q: a miss is not answered.
        quiet: bool,
        /// b: the key came as base64.
        binary_key: bool,
    },
    /// ms: `HD`, `NS`, `EX` or `NF`.
    Set {
        /// q: success is not answered.
        quiet: bool,
        /// b: the key came as base64.
        binary_key: bool,
        /// Length of the value sent, for `s` when it is not stored.
        value_bytes: u32,
    },
    /// md: `HD`, `EX` or `NF`.
    Delete {
        /// q: success is not answered.
        quiet: bool,
        /// b: the key came as base64.
        binary_key: bool,
    },
    /// ma: `HD`, `VA`, `NF`, `EX` or `NS`.
    Arithmetic {
        /// v: return the number.
        value: bool,
        /// q: success is not answered.
        quiet: bool,
        /// b: the key came as base64.
        binary_key: bool,
    },
    /// me: `ME` or `EN`.
    Inspect,
}

#[cfg(test)]
mod tests;
