//! Messages between members while they decide on the next roster.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::identity::{Boot, NodeKey};
use super::super::roster::{Change, Roster};
use ringlane_types::wire::{CodecError, Reader, Writer};

/// Maximum rosters of one [`ConsensusMessage::Chain`].
pub const CHAIN_MAX: usize = 64;
/// Maximum members that a decision may exclude.
const WITHOUT_MAX: usize = ringlane_ring::NODES_MAX;

/// An attempt at one decision. A greater one overrides it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// Number of the attempt.
    pub round: u32,
    /// The proposer.
    pub proposer: NodeKey,
}

/// Identifies a decision: the successor of a roster, among its members except some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Digest of the preceding roster.
    pub parent: u64,
    /// Excluded members, if most of the members are permanently gone. Empty unless the majority is
    /// lost.
    pub without: Vec<(NodeKey, Boot)>,
}

impl Instance {
    /// A number unique to this decision.
    pub fn id(&self) -> u64 {
        let mut id = self.parent;
        for (key, boot) in &self.without {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&key.0.to_le_bytes());
            bytes[8..].copy_from_slice(&boot.0.to_le_bytes());
            id = xxh3_64_with_seed(&bytes, id);
        }
        id
    }
}

/// A message between members, or from a node that requests to become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsensusMessage {
    /// Promise to accept no lower ballot, and report what you have accepted.
    Prepare(Instance, Ballot),
    /// Promised.
    Promise {
        /// Which decision.
        instance: u64,
        /// Under which ballot.
        ballot: Ballot,
        /// The value accepted before, and its ballot.
        accepted: Option<(Ballot, Arc<Roster>)>,
    },
    /// Accept this roster.
    Accept(Instance, Ballot, Arc<Roster>),
    /// Accepted.
    Accepted {
        /// Which decision.
        instance: u64,
        /// Under which ballot.
        ballot: Ballot,
    },
    /// Rejected because of a promise to this ballot.
    Reject {
        /// Which decision.
        instance: u64,
        /// The promised ballot.
        promised: Ballot,
    },
    /// Decided rosters, each the parent of the next, oldest first.
    Chain(Vec<Arc<Roster>>),
    /// Send the chain from this roster on, or as much as you have.
    RequestChain {
        /// Digest of the last known roster; 0 for none.
        digest: u64,
    },
    /// A request to decide this change.
    RequestChange(Change),
}

impl ConsensusMessage {
    /// Appends the message.
    pub fn write(&self, out: &mut impl Writer) {
        match self {
            ConsensusMessage::Prepare(instance, ballot) => {
                out.put_u8(1);
                write_instance(instance, out);
                write_ballot(ballot, out);
            }
            ConsensusMessage::Promise { instance, ballot, accepted } => {
                out.put_u8(2);
                out.put_u64(*instance);
                write_ballot(ballot, out);
                out.put_u8(accepted.is_some() as u8);
                if let Some((ballot, roster)) = accepted {
                    write_ballot(ballot, out);
                    roster.write(out);
                }
            }
            ConsensusMessage::Accept(instance, ballot, roster) => {
                out.put_u8(3);
                write_instance(instance, out);
                write_ballot(ballot, out);
                roster.write(out);
            }
            ConsensusMessage::Accepted { instance, ballot } => {
                out.put_u8(4);
                out.put_u64(*instance);
                write_ballot(ballot, out);
            }
            ConsensusMessage::Reject { instance, promised } => {
                out.put_u8(5);
                out.put_u64(*instance);
                write_ballot(promised, out);
            }
            ConsensusMessage::Chain(rosters) => {
                out.put_u8(6);
                out.put_u8(rosters.len() as u8);
                rosters.iter().for_each(|roster| roster.write(out));
            }
            ConsensusMessage::RequestChain { digest } => {
                out.put_u8(7);
                out.put_u64(*digest);
            }
            ConsensusMessage::RequestChange(change) => {
                out.put_u8(8);
                change.write(out);
            }
        }
    }

    /// Reads one message.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match reader.u8()? {
            1 => ConsensusMessage::Prepare(read_instance(reader)?, read_ballot(reader)?),
            2 => {
                let (instance, ballot) = (reader.u64()?, read_ballot(reader)?);
                let accepted = match reader.u8()? {
                    0 => None,
                    1 => Some((read_ballot(reader)?, Arc::new(Roster::read(reader)?))),
                    _ => return Err(CodecError::Unknown),
                };
                ConsensusMessage::Promise { instance, ballot, accepted }
            }
            3 => {
                let (instance, ballot) = (read_instance(reader)?, read_ballot(reader)?);
                ConsensusMessage::Accept(instance, ballot, Arc::new(Roster::read(reader)?))
            }
            4 => {
                ConsensusMessage::Accepted { instance: reader.u64()?, ballot: read_ballot(reader)? }
            }
            5 => {
                ConsensusMessage::Reject { instance: reader.u64()?, promised: read_ballot(reader)? }
            }
            6 => {
                let count = reader.u8()? as usize;
                if count > CHAIN_MAX {
                    return Err(CodecError::Unknown);
                }
                let rosters = (0..count).map(|_| Roster::read(reader).map(Arc::new));
                ConsensusMessage::Chain(rosters.collect::<Result<_, _>>()?)
            }
            7 => ConsensusMessage::RequestChain { digest: reader.u64()? },
            8 => ConsensusMessage::RequestChange(Change::read(reader)?),
            _ => return Err(CodecError::Unknown),
        })
    }
}

fn write_ballot(ballot: &Ballot, out: &mut impl Writer) {
    out.put_u32(ballot.round);
    out.put_u64(ballot.proposer.0);
}

fn read_ballot(reader: &mut Reader<'_>) -> Result<Ballot, CodecError> {
    Ok(Ballot { round: reader.u32()?, proposer: NodeKey(reader.u64()?) })
}

fn write_instance(instance: &Instance, out: &mut impl Writer) {
    out.put_u64(instance.parent);
    out.put_u16(instance.without.len() as u16);
    for (key, boot) in &instance.without {
        out.put_u64(key.0);
        out.put_u64(boot.0);
    }
}

fn read_instance(reader: &mut Reader<'_>) -> Result<Instance, CodecError> {
    let (parent, count) = (reader.u64()?, reader.u16()? as usize);
    if count > WITHOUT_MAX {
        return Err(CodecError::Unknown);
    }
    let without = (0..count).map(|_| Ok((NodeKey(reader.u64()?), Boot(reader.u64()?))));
    Ok(Instance { parent, without: without.collect::<Result<_, _>>()? })
}
