//! The memcached meta commands: `mg`, `ms`, `md`, `ma`, `me`, `mn`.
//!
//! A meta command is a key and a handful of one-letter flags, and its answer repeats some of them
//! in the order they were asked for. So the flags are read twice: once to decide what to do
//! (`decode`), and once from left to right to write the answer, for which a [`Reply`] keeps them
//! as they were sent. Refused: compiling the return flags into a list at the first reading, which
//! would have to be stored for every request on its way to another core, and saves nothing.
//!
//! [`Reply`]: super::Reply

pub(super) mod base64;
mod decode;
mod encode;
mod flags;

pub(super) use decode::decode;
pub use encode::encode;

/// Most bytes of flags that a [`Reply`](super::Reply) repeats.
pub const TAIL_BYTES_MAX: usize = 640;

/// How the answer to a meta command is written, besides its return flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaForm {
    /// mg: `HD`, `VA` or `EN`.
    Get {
        /// v: the value is wanted.
        value: bool,
        /// C: the value is withheld when the item's CAS token is the one given.
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
        /// v: the number is wanted.
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
