//! The compact binary protocol: frames with a 12-byte header, numbers little-endian.
//!
//! ```text
//! request   opcode u8 | flags u8 | key length u16               | value length u32 | opaque u32
//!           | fields the flags announce | key | value
//! response  opcode u8 | flags u8 | status u8 | key length u8    | value length u32 | opaque u32
//!           | fields the flags announce | key | value
//! ```
//!
//! A plain GET is its header and its key, and a hit is its header and its value; everything else is
//! announced by a flag and costs nothing if absent. `docs/protocol.md` specifies the protocol for
//! client authors, with golden frames that a test reads; [`opcode`] is the one table of commands.
//! Refused: big-endian numbers (all supported hosts are little-endian, and so are the clients), and
//! a general list of tagged fields per request, which would make the decoder loop where it now
//! tests a bit. HELLO is the exception: its answer is read once per connection and must be
//! extensible.

mod decode;
mod encode;

pub mod client;
pub mod opcode;
pub mod topology;

#[cfg(test)]
mod tests;

pub use decode::{CompactDecoder, FrameError};
pub use encode::{encode, encode_admin, encode_stat, encode_stats_end, encode_topology};
use ringlane_types::request::Consistency;

pub use opcode::{Kind, OPCODES, Opcode, OpcodeSpec, STATUSES, Status};
pub use topology::{NodeState, RingFacts, Topology, TopologyNode};

use opcode::request_flags;

/// Fixed part of a reply: the parts of the request that its answer must repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactForm {
    /// The command.
    pub opcode: Opcode,
    /// The client's correlation number, returned unchanged.
    pub opaque: u32,
    /// The answered entry, if the request has entries.
    index: u32,
    /// Quiet, any order and details as in the request's flags.
    flags: u8,
    consistency: Consistency,
    entry: Entry,
}

/// Position of the answered entry in its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The request has no entries.
    Only,
    /// Others follow.
    Inner,
    /// The last one. It is answered even if quiet and overtakes nothing, so that its answer shows
    /// the client that the request is done.
    Last,
}

impl CompactForm {
    /// Whether the client accepts this answer before those of its earlier requests.
    #[inline]
    pub fn may_overtake(self) -> bool {
        self.flags & request_flags::ANY_ORDER != 0 && self.entry != Entry::Last
    }

    /// The requested consistency.
    pub fn consistency(self) -> Consistency {
        self.consistency
    }
}
