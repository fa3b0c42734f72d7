//! The envelope of gossip datagrams: whose they are, and whether they may be believed.

use std::collections::HashMap;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::super::quorum::Replication;
use super::*;
use ringlane_ring::RingParameters;

const MAGIC: u32 = u32::from_le_bytes(*b"RLg2");
/// What datagrams of versions before this one begin with.
const MAGICS_BEFORE: [[u8; 4]; 1] = [*b"RLg1"];
/// Set in the kind when a tag follows the body.
const TAGGED: u8 = 0x80;
pub(super) const HEAD_BYTES: usize = 61;
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
    pub fn refuse(&self, other: &Terms) -> Option<GossipRefusal> {
        if self.cluster != other.cluster {
            Some(GossipRefusal::Cluster)
        } else if self.parameters != other.parameters {
            Some(GossipRefusal::Parameters)
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
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self { cluster: reader.u64()?, parameters: reader.u64()? })
    }
}

/// Why a node is not listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GossipRefusal {
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
    /// Another process runs under its id, and is alive.
    IdInUse = 6,
    /// It speaks another version.
    Version = 7,
}

impl GossipRefusal {
    /// The reason for the log, about the refused node.
    pub const fn sentence(self) -> &'static str {
        match self {
            GossipRefusal::Cluster => "it belongs to another cluster",
            GossipRefusal::Parameters => {
                "its ring hash, points, replicas or quorums differ from this cluster's"
            }
            GossipRefusal::Key => "its cluster key is missing or differs",
            GossipRefusal::Replay => "its message was replayed, or its clock is far off",
            GossipRefusal::NotListed => "its node id is not on the static list",
            GossipRefusal::IdInUse => "another process runs under its node id",
            GossipRefusal::Version => "its protocol version differs",
        }
    }

    /// The reason with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        use GossipRefusal::*;
        let all = [Cluster, Parameters, Key, Replay, NotListed, IdInUse, Version];
        all.into_iter().find(|reason| *reason as u8 == number)
    }
}

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// foca's own.
    Gossip = 0,
    /// Who are you? With a nonce and the asker's identity, and as long as the longest answer.
    JoinProbe = 1,
    /// The nonce of a probe and the identity of who was probed.
    JoinAck = 2,
    /// The nonce of a probe and the reason why it was refused.
    Refused = 3,
    /// Gossip came without the cookie that its sender's address was told: here it is, and the
    /// address that wants to see it.
    Cookie = 4,
}

/// What the head of a datagram says, apart from what all have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub sender: NodeKey,
    pub boot: Boot,
    /// What its sender was told to show, 0 for nothing.
    pub shown: u64,
    /// What its sender wants to see.
    pub cookie: u64,
}

/// What a datagram turned out to be.
pub(super) enum Opened<'b> {
    /// Nothing of ours.
    Noise,
    /// Not to be believed. `tell`: its sender asked to be let in and deserves an answer.
    Refused { reason: GossipRefusal, tell: bool },
    /// Its sender does not believe us, it says; whether it was asked tells the nonce.
    RefusedUs { reason: GossipRefusal, nonce: u64, other: Option<IdHolder> },
    /// Of the right cluster. What it proves beyond that tell its nonce, or the cookie it shows.
    Accepted { kind: Kind, head: Head, body: &'b [u8] },
}

/// The process that runs under our id, as somebody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdHolder {
    pub address: SocketAddr,
    pub boot: Boot,
}

/// Wraps and unwraps this node's datagrams.
pub(super) struct Envelope {
    terms: Terms,
    key: Option<AuthKey>,
    sender: NodeKey,
    boot: Boot,
    /// The last number used.
    sequence: u64,
    clocks_differ_max: Duration,
    /// By sender and boot: two processes that share an id by mistake must not silence each other.
    senders: HashMap<(NodeKey, Boot), Sender>,
    /// What cookies are made of.
    pub secret: Secret,
}

/// The numbers an authenticated sender has used.
struct Sender {
    /// Numbers up to this one are refused.
    floor: u64,
    recent: Vec<u64>,
}

impl Envelope {
    pub(super) fn new(
        settings: &MembershipSettings,
        sender: NodeKey,
        boot: Boot,
        secret: Secret,
    ) -> Self {
        Self {
            terms: settings.terms,
            key: settings.key.as_ref().map(|key| key.child(&[b"gossip"])),
            sender,
            boot,
            sequence: 0,
            clocks_differ_max: settings.clocks_differ_max,
            senders: HashMap::new(),
            secret,
        }
    }

    /// The datagram to `to`, which wants to see `shown`.
    pub(super) fn seal(
        &mut self,
        kind: Kind,
        to: SocketAddr,
        shown: u64,
        body: &[u8],
        now: Instant,
    ) -> Vec<u8> {
        self.sequence = (now.as_millis() << COUNTER_BITS).max(self.sequence + 1);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + TAG_BYTES);
        bytes.put_u32(MAGIC);
        bytes.put_u8(kind as u8 | if self.key.is_some() { TAGGED } else { 0 });
        self.terms.write(&mut bytes);
        bytes.put_u64(self.sender.0);
        bytes.put_u64(self.boot.0);
        bytes.put_u64(self.sequence);
        bytes.put_u64(shown);
        bytes.put_u64(self.secret.cookie(to));
        bytes.extend_from_slice(body);
        if let Some(key) = &self.key {
            let tag = key.tag(&[&bytes]);
            bytes.extend_from_slice(&tag);
        }
        bytes
    }

    pub(super) fn open<'b>(&mut self, bytes: &'b [u8], now: Instant) -> Opened<'b> {
        if bytes.first_chunk::<4>().is_some_and(|magic| MAGICS_BEFORE.contains(magic)) {
            // Its sender would not understand why.
            return Opened::Refused { reason: GossipRefusal::Version, tell: false };
        }
        if bytes.len() < HEAD_BYTES || bytes[..4] != MAGIC.to_le_bytes() {
            return Opened::Noise;
        }
        let mut reader = Reader::new(&bytes[4..HEAD_BYTES]);
        let (Ok(kind), Ok(terms), Ok(sender), Ok(boot), Ok(sequence)) =
            (reader.u8(), Terms::read(&mut reader), reader.u64(), reader.u64(), reader.u64())
        else {
            return Opened::Noise;
        };
        let (Ok(shown), Ok(cookie)) = (reader.u64(), reader.u64()) else {
            return Opened::Noise;
        };
        let (sender, boot) = (NodeKey(sender), Boot(boot));
        let head = Head { sender, boot, shown, cookie };
        let (tagged, kind) = (kind & TAGGED != 0, kind & !TAGGED);
        let kinds = [Kind::Gossip, Kind::JoinProbe, Kind::JoinAck, Kind::Refused, Kind::Cookie];
        let Some(&kind) = kinds.iter().find(|known| **known as u8 == kind) else {
            return Opened::Noise;
        };
        let end = bytes.len() - if tagged { TAG_BYTES } else { 0 };
        let Some(body) = bytes.get(HEAD_BYTES..end) else {
            return Opened::Noise;
        };
        // Only a join probe is answered: an answer to every forged datagram would multiply traffic.
        let refused = |reason| Opened::Refused { reason, tell: kind == Kind::JoinProbe };
        let authentic = match &self.key {
            Some(key) => tagged && key.verifies(&[&bytes[..end]], &bytes[end..]),
            None => !tagged,
        };
        if kind == Kind::Refused {
            return refusal(body, authentic).unwrap_or(Opened::Noise);
        }
        if let Some(reason) = self.terms.refuse(&terms) {
            return refused(reason);
        }
        if !authentic {
            return refused(GossipRefusal::Key);
        }
        // Our own, by another of our addresses; or of another process that runs under our id, and
        // is to be told so.
        if sender == self.sender && (boot == self.boot || kind != Kind::JoinProbe) {
            return Opened::Noise;
        }
        if self.key.is_some() && !self.first_time(sender, boot, sequence, now) {
            return Opened::Refused { reason: GossipRefusal::Replay, tell: false };
        }
        Opened::Accepted { kind, head, body }
    }

    fn first_time(&mut self, sender: NodeKey, boot: Boot, sequence: u64, now: Instant) -> bool {
        let sent = Instant::from_millis(sequence >> COUNTER_BITS);
        if sent.since(now).max(now.since(sent)) > self.clocks_differ_max {
            return false;
        }
        let whose = (sender, boot);
        if self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(&whose) {
            // Whoever sent nothing for so long: all its numbers are refused for their time.
            let span = self.clocks_differ_max;
            self.senders.retain(|_, sender| {
                let last = sender.recent.last().map_or(0, |number| number >> COUNTER_BITS);
                now.since(Instant::from_millis(last)) <= span
            });
            if self.senders.len() >= SENDERS_MAX {
                return false;
            }
        }
        let unused = Sender { floor: 0, recent: Vec::new() };
        let numbers = self.senders.entry(whose).or_insert(unused);
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

/// What a refusal says. Its reason is believed from whoever was asked, also without the key: who
/// has another one cannot prove that it does, and nothing but a line in the log follows. That our
/// id is taken ends the process, so that must be `authentic`.
fn refusal(body: &[u8], authentic: bool) -> Option<Opened<'static>> {
    let mut reader = Reader::new(body);
    let nonce = reader.u64().ok()?;
    let reason = GossipRefusal::from_wire(reader.u8().ok()?)?;
    let other = match reason {
        GossipRefusal::IdInUse if !authentic => return None,
        GossipRefusal::IdInUse => {
            Some(IdHolder { address: reader.address().ok()?, boot: Boot(reader.u64().ok()?) })
        }
        _ => None,
    };
    Some(Opened::RefusedUs { reason, nonce, other })
}
