//! Messages between whole nodes: consensus, status, and data movement.

use super::super::roster_consensus;
use super::super::version::Version;
use ringlane_types::wire::{CodecError, Reader, Writer};

/// Tags from here on belong to [`NodeMessage`], so that a receiver can tell the kinds apart.
const NODE_TAGS: u8 = 64;

/// Messages between nodes as a whole: on core 0, and rare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeMessage<'b> {
    /// About the next roster.
    Consensus(roster_consensus::ConsensusMessage),
    /// The sender's status.
    Status {
        /// Digest of its roster.
        stamp: u64,
        /// The roster's epoch.
        epoch: u64,
        /// It has everything it gained up to this epoch.
        settled: u64,
        /// Everything up to this version is flushed.
        flushed: Version,
    },
    /// Send what I gained from you with the roster of this epoch.
    Pull {
        /// The epoch.
        epoch: u64,
        /// Where to continue; 0 to begin.
        cursor: u64,
        /// Approximate number of bytes.
        bytes_max: u32,
    },
    /// Answer to [`NodeMessage::Pull`].
    Pulled {
        /// The epoch.
        epoch: u64,
        /// The cursor asked for.
        cursor: u64,
        /// Where to continue; `None` at the end.
        next: Option<u64>,
        /// `Message::Merge`s without tickets.
        merges: &'b [u8],
    },
    /// Compare: digests of what both of us should hold, by segment of the circle.
    Compare {
        /// Chosen by the sender, to tell rounds apart.
        round: u64,
        /// Digest of the sender's roster.
        stamp: u64,
        /// Writes after this are left out.
        cutoff: Version,
        /// Deletions before this are left out.
        horizon: Version,
        /// One u64 for each segment.
        segments: &'b [u8],
    },
    /// The receiver's part of the differing segments, for the sender to compare with.
    Listing {
        /// The round.
        round: u64,
        /// The differing segments, u16 each; those that did not fit are left for another round.
        segments: &'b [u8],
        /// Whether all differing segments are listed.
        complete: bool,
        /// Keys with versions: length u8, key, version u64, each.
        entries: &'b [u8],
    },
    /// The sender of [`NodeMessage::Compare`] lacks these, or has older versions.
    Want {
        /// The round.
        round: u64,
        /// Keys: length u8, key, each.
        keys: &'b [u8],
    },
    /// Both sides hold the same records, as far as this round went.
    Compared {
        /// The round.
        round: u64,
    },
    /// Everything older than this version is gone.
    Flush {
        /// The version.
        version: Version,
    },
}

impl<'b> NodeMessage<'b> {
    /// Whether `message` is one of these rather than a `Message`.
    pub fn is_one(message: &[u8]) -> bool {
        message.first().is_some_and(|tag| *tag >= NODE_TAGS)
    }

    /// Appends the message, behind its length.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u32(0);
        self.write_fields(out);
        let bytes = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    fn write_fields(&self, out: &mut Vec<u8>) {
        match self {
            NodeMessage::Consensus(message) => {
                out.put_u8(NODE_TAGS);
                message.write(out);
            }
            NodeMessage::Status { stamp, epoch, settled, flushed } => {
                out.put_u8(NODE_TAGS + 1);
                let numbers = [*stamp, *epoch, *settled, flushed.0];
                numbers.into_iter().for_each(|number| out.put_u64(number));
            }
            NodeMessage::Pull { epoch, cursor, bytes_max } => {
                out.put_u8(NODE_TAGS + 2);
                out.put_u64(*epoch);
                out.put_u64(*cursor);
                out.put_u32(*bytes_max);
            }
            NodeMessage::Pulled { epoch, cursor, next, merges } => {
                out.put_u8(NODE_TAGS + 3);
                out.put_u64(*epoch);
                out.put_u64(*cursor);
                out.put_u8(next.is_some() as u8);
                out.put_u64(next.unwrap_or(0));
                out.put(merges);
            }
            NodeMessage::Compare { round, stamp, cutoff, horizon, segments } => {
                out.put_u8(NODE_TAGS + 4);
                let numbers = [*round, *stamp, cutoff.0, horizon.0];
                numbers.into_iter().for_each(|number| out.put_u64(number));
                out.put(segments);
            }
            NodeMessage::Listing { round, segments, complete, entries } => {
                out.put_u8(NODE_TAGS + 5);
                out.put_u64(*round);
                out.put_u8(*complete as u8);
                out.put_long(segments);
                out.put(entries);
            }
            NodeMessage::Want { round, keys } => {
                out.put_u8(NODE_TAGS + 6);
                out.put_u64(*round);
                out.put(keys);
            }
            NodeMessage::Compared { round } => {
                out.put_u8(NODE_TAGS + 7);
                out.put_u64(*round);
            }
            NodeMessage::Flush { version } => {
                out.put_u8(NODE_TAGS + 8);
                out.put_u64(version.0);
            }
        }
    }

    /// Decodes the message `bytes`, which must have no rest.
    pub fn read(bytes: &'b [u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()?.checked_sub(NODE_TAGS).ok_or(CodecError::Unknown)? {
            0 => NodeMessage::Consensus(roster_consensus::ConsensusMessage::read(&mut reader)?),
            1 => {
                let (stamp, epoch, settled) = (reader.u64()?, reader.u64()?, reader.u64()?);
                let flushed = Version(reader.u64()?);
                NodeMessage::Status { stamp, epoch, settled, flushed }
            }
            2 => {
                let (epoch, cursor, bytes_max) = (reader.u64()?, reader.u64()?, reader.u32()?);
                NodeMessage::Pull { epoch, cursor, bytes_max }
            }
            3 => {
                let (epoch, cursor) = (reader.u64()?, reader.u64()?);
                let more = reader.u8()?;
                let next = reader.u64()?;
                let next = (more == 1).then_some(next);
                NodeMessage::Pulled { epoch, cursor, next, merges: reader.rest() }
            }
            4 => {
                let (round, stamp) = (reader.u64()?, reader.u64()?);
                let (cutoff, horizon) = (Version(reader.u64()?), Version(reader.u64()?));
                NodeMessage::Compare { round, stamp, cutoff, horizon, segments: reader.rest() }
            }
            5 => {
                let (round, complete) = (reader.u64()?, reader.u8()? == 1);
                let (segments, entries) = (reader.long()?, reader.rest());
                NodeMessage::Listing { round, segments, complete, entries }
            }
            6 => NodeMessage::Want { round: reader.u64()?, keys: reader.rest() },
            7 => NodeMessage::Compared { round: reader.u64()? },
            8 => NodeMessage::Flush { version: Version(reader.u64()?) },
            _ => return Err(CodecError::Unknown),
        };
        reader.end()?;
        Ok(message)
    }
}
