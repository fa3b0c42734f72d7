//! The envelope of gossip datagrams: whose they are, and whether they may be believed.

use std::collections::HashMap;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::super::quorum::Replication;
use super::super::ring::RingParameters;
use super::*;

const MAGIC: u32 = u32::from_le_bytes(*b"RLg1");
/// Set in the kind when a tag follows the body.
const TAGGED: u8 = 0x80;
const HEAD_BYTES: usize = 45;
/// Numbers of one sender that are told apart; older ones are refused.
const RECENT_MAX: usize = 64;
/// Senders whose numbers are remembered. Only holders of the key get that far.
const SENDERS_MAX: usize = 4096;
/// Bits of a sequence number below its milliseconds.
const COUNTER_BITS: u32 = 20;

/// What all members of a cluster must have in common, as digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    cluster: u64,
    parameters: u64,
}

impl Terms {
    /// The terms of the cluster called `name`, which places and replicates keys like this.
    pub fn new(name: &str, ring: RingParameters, replication: Replication) -> Self {
        let (write, read) = (replication.write_quorum(), replication.read_quorum());
        let RingParameters { hash, points_per_weight, replicas } = ring;
        let text = format!("{hash:?} {points_per_weight} {replicas} {write} {read}");
        Self { cluster: xxh3_64(name.as_bytes()), parameters: xxh3_64(text.as_bytes()) }
    }

    /// Why a node with the terms `other` does not belong here; `None` if it does.
    pub fn refuse(&self, other: &Terms) -> Option<Refusal> {
        if self.cluster != other.cluster {
            Some(Refusal::Cluster)
        } else if self.parameters != other.parameters {
            Some(Refusal::Parameters)
        } else {
            None
        }
    }

    /// Appends the terms to a message.
    pub fn write(&self, out: &mut impl Writer) {
        out.put_u64(self.cluster);
        out.put_u64(self.parameters);
    }

    /// Reads them from a message.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, super::super::wire::Malformed> {
        Ok(Self { cluster: reader.u64()?, parameters: reader.u64()? })
    }
}

/// Why a node is not listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// It names another cluster.
    Cluster = 1,
    /// It places or replicates keys differently.
    Parameters = 2,
    /// It has no key or another one, or has one where none is configured.
    Key = 3,
    /// The message was recorded earlier, or the node's clock is far off.
    Replay = 4,
    /// Its id is not on the static list.
    NotListed = 5,
}

impl Refusal {
    /// The sentence for the log, as said about the refused.
    pub const fn sentence(self) -> &'static str {
        match self {
            Refusal::Cluster => "it names another cluster",
            Refusal::Parameters => {
                "its ring hash, points, replicas or quorums differ from this cluster's"
            }
            Refusal::Key => "its cluster key is missing or differs",
            Refusal::Replay => "its message is a recording, or its clock is far off",
            Refusal::NotListed => "its node id is not on the static list",
        }
    }

    /// The reason with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        use Refusal::*;
        [Cluster, Parameters, Key, Replay, NotListed].into_iter().find(|r| *r as u8 == number)
    }
}

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// foca's own.
    Gossip = 0,
    /// Who are you? With the asker's identity.
    Knock = 1,
    /// The identity of a member that was knocked at.
    Welcome = 2,
    /// The reason why a knock was refused.
    Refused = 3,
}

/// What a datagram turned out to be.
pub(super) enum Opened<'b> {
    /// Nothing of ours.
    Noise,
    /// Not to be believed. `tell`: its sender asked to be let in and deserves an answer.
    Refused { reason: Refusal, tell: bool },
    /// Its sender does not believe us.
    RefusedUs(Refusal),
    /// To be believed.
    Accepted { kind: Kind, body: &'b [u8] },
}

/// Wraps and unwraps this node's datagrams.
pub(super) struct Envelope {
    terms: Terms,
    key: Option<Key>,
    sender: NodeKey,
    boot: Boot,
    /// The last number used.
    sequence: u64,
    clocks_differ_max: Duration,
    senders: HashMap<NodeKey, Sender>,
}

/// The numbers an authenticated sender has used.
struct Sender {
    boot: Boot,
    /// Numbers up to this one are refused.
    floor: u64,
    recent: Vec<u64>,
}

impl Envelope {
    pub fn new(settings: &MembershipSettings, sender: NodeKey, boot: Boot) -> Self {
        Self {
            terms: settings.terms,
            key: settings.key.as_ref().map(|key| key.child(&[b"gossip"])),
            sender,
            boot,
            sequence: 0,
            clocks_differ_max: settings.clocks_differ_max,
            senders: HashMap::new(),
        }
    }

    pub fn seal(&mut self, kind: Kind, body: &[u8], now: Instant) -> Vec<u8> {
        self.sequence = (now.as_millis() << COUNTER_BITS).max(self.sequence + 1);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + TAG_BYTES);
        bytes.put_u32(MAGIC);
        bytes.put_u8(kind as u8 | if self.key.is_some() { TAGGED } else { 0 });
        self.terms.write(&mut bytes);
        bytes.put_u64(self.sender.0);
        bytes.put_u64(self.boot.0);
        bytes.put_u64(self.sequence);
        bytes.extend_from_slice(body);
        if let Some(key) = &self.key {
            let tag = key.tag(&[&bytes]);
            bytes.extend_from_slice(&tag);
        }
        bytes
    }

    pub fn open<'b>(&mut self, bytes: &'b [u8], now: Instant) -> Opened<'b> {
        if bytes.len() < HEAD_BYTES || bytes[..4] != MAGIC.to_le_bytes() {
            return Opened::Noise;
        }
        let mut reader = Reader::new(&bytes[4..HEAD_BYTES]);
        let (Ok(kind), Ok(terms), Ok(sender), Ok(boot), Ok(sequence)) =
            (reader.u8(), Terms::read(&mut reader), reader.u64(), reader.u64(), reader.u64())
        else {
            return Opened::Noise;
        };
        let (tagged, kind) = (kind & TAGGED != 0, kind & !TAGGED);
        let kinds = [Kind::Gossip, Kind::Knock, Kind::Welcome, Kind::Refused];
        let Some(&kind) = kinds.iter().find(|known| **known as u8 == kind) else {
            return Opened::Noise;
        };
        let end = bytes.len() - if tagged { TAG_BYTES } else { 0 };
        let Some(body) = bytes.get(HEAD_BYTES..end) else {
            return Opened::Noise;
        };
        if kind == Kind::Refused {
            // Believed from anybody: who has another key cannot prove it, and nothing but a line
            // in the log follows.
            return match body {
                [number] => Refusal::from_wire(*number).map_or(Opened::Noise, Opened::RefusedUs),
                _ => Opened::Noise,
            };
        }
        // Only a knock is answered: an answer to every forged datagram would multiply traffic.
        let refused = |reason| Opened::Refused { reason, tell: kind == Kind::Knock };
        let authentic = match &self.key {
            Some(key) => tagged && key.verifies(&[&bytes[..end]], &bytes[end..]),
            None => !tagged,
        };
        if let Some(reason) = self.terms.refuse(&terms) {
            return refused(reason);
        }
        if !authentic {
            return refused(Refusal::Key);
        }
        let (sender, boot) = (NodeKey(sender), Boot(boot));
        if sender == self.sender {
            return Opened::Noise;
        }
        if self.key.is_some() && !self.first_time(sender, boot, sequence, now) {
            return Opened::Refused { reason: Refusal::Replay, tell: false };
        }
        Opened::Accepted { kind, body }
    }

    fn first_time(&mut self, sender: NodeKey, boot: Boot, sequence: u64, now: Instant) -> bool {
        let sent = Instant::from_millis(sequence >> COUNTER_BITS);
        if sent.since(now).max(now.since(sent)) > self.clocks_differ_max {
            return false;
        }
        if self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(&sender) {
            return false;
        }
        let unused = Sender { boot, floor: 0, recent: Vec::new() };
        let numbers = self.senders.entry(sender).or_insert(unused);
        if boot < numbers.boot {
            return false;
        }
        if boot > numbers.boot {
            *numbers = Sender { boot, floor: 0, recent: Vec::new() };
        }
        let Err(place) = numbers.recent.binary_search(&sequence) else {
            return false;
        };
        if sequence <= numbers.floor {
            return false;
        }
        numbers.recent.insert(place, sequence);
        if numbers.recent.len() > RECENT_MAX {
            numbers.floor = numbers.recent.remove(0);
        }
        true
    }
}
