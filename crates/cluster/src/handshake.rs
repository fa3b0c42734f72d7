//! The handshake on a new connection: exchanges facts and proves that both sides hold the cluster's
//! key.
//!
//! The dialler states its identity and the requested core, the other side answers with its own
//! facts, and both prove the key by tags over everything exchanged so far, in which each side's
//! nonce is fresh. Two session keys are derived from the same bytes, one per direction (see
//! `frame`), so nothing recorded in one session is valid in another. Without a key the same
//! messages are exchanged and nothing is proved.
//!
//! ```text
//! dialler                                    acceptor
//!   hello:   facts, nonce, tag        ->
//!                                     <-     welcome: facts, nonce, tag over hello and welcome
//!   proof:   tag over all of it       ->
//!   frames                            <->    frames
//!
//! | magic u32 | kind u8 | length u16 | that many bytes |                  little-endian
//! facts    version u16 | cluster u64 | parameters u64 | keyed u8 | id, short | boot u64
//!          | core u16 | core count u16 | hash seed u64 | frame bytes max u32
//!          | client address | shard port base u16 | to u64 | to core u16 | pass u64
//! ```
//!
//! Without a key no side proves its identity. But gossip gives each member a cookie, at the address
//! at which it was seen to answer, and the dialler presents it as its *pass*: so the acceptor can
//! refuse a caller that is not a member, or that claims to be one whose datagrams it does not
//! receive.
//!
//! The hello's own tag proves no more than a recording could; it ensures that a node with the wrong
//! key gets a reason instead of a silent close. Every refusal states its reason, so that it appears
//! in both logs. Refused: TLS (nothing here is secret except the right to participate), and a Noise
//! handshake (its forward secrecy protects what we do not encrypt).
//!
//! Two nodes dial each other once: the one with the smaller key dials.

use core::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::frame::{AuthKey, BODY_BYTES_MAX, Opener, Sealer, TAG_BYTES};
use super::identity::{Boot, NodeKey};
use super::link::{ClientEndpoint, NODE_CORE, Peer, PeerFacts};
use super::membership::{self, Terms};
use ringlane_ring::NODE_ID_BYTES_MAX;
use ringlane_types::wire::{CodecError, Reader, Writer};

#[cfg(test)]
mod tests;

/// The version of this handshake, of frames and of all messages in them.
pub const VERSION: u16 = 4;

/// Bytes of a message before its length is known.
pub const HEAD_BYTES: usize = 7;

/// Longest message of a handshake in bytes, head included.
pub const MESSAGE_BYTES_MAX: usize = 512;

/// Bytes unique to each handshake, from an unpredictable source.
pub type Nonce = [u8; 16];

/// Maximum plausible cores of a node: there is a link to each.
const CORES_MAX: u16 = 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"RLh1");

/// The facts of a node for its handshakes.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its id.
    pub id: Arc<str>,
    /// Which start of its process.
    pub boot: Boot,
    /// Number of its cores.
    pub core_count: u16,
    /// Seed of its key hashes.
    pub hash_seed: u64,
    /// Longest frame body that it takes, in bytes.
    pub frame_bytes_max: u32,
    /// Where it takes clients.
    pub clients: ClientEndpoint,
    /// What both must have in common.
    pub terms: Terms,
    /// The cluster's key.
    pub key: Option<AuthKey>,
    /// With a static list: the ids that may be met.
    pub listed: Option<Arc<[Box<str>]>>,
}

/// Why a node is not linked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HandshakeRefusal {
    /// It names another cluster.
    Cluster = 1,
    /// It places or replicates keys differently.
    Parameters = 2,
    /// It has no key or another one, or has one where none is configured.
    Key = 3,
    /// Its proof is for another handshake.
    Replay = 4,
    /// Its id is not on the static list.
    NotListed = 5,
    /// It speaks another version.
    Version = 6,
    /// It is not the node that was called, or called another one.
    Node = 7,
    /// It wants a core that does not exist.
    Core = 8,
    /// It has the same id, or a greater key and should wait to be dialled.
    Order = 9,
    /// It is no living member, as far as gossip tells, or does not show what that member was told.
    Unknown = 10,
}

impl HandshakeRefusal {
    const ALL: [HandshakeRefusal; 10] = [
        HandshakeRefusal::Cluster,
        HandshakeRefusal::Parameters,
        HandshakeRefusal::Key,
        HandshakeRefusal::Replay,
        HandshakeRefusal::NotListed,
        HandshakeRefusal::Version,
        HandshakeRefusal::Node,
        HandshakeRefusal::Core,
        HandshakeRefusal::Order,
        HandshakeRefusal::Unknown,
    ];

    /// The reason for the log, about the refused node.
    pub const fn sentence(self) -> &'static str {
        match self {
            HandshakeRefusal::Cluster => membership::GossipRefusal::Cluster.sentence(),
            HandshakeRefusal::Parameters => membership::GossipRefusal::Parameters.sentence(),
            HandshakeRefusal::Key => membership::GossipRefusal::Key.sentence(),
            HandshakeRefusal::Replay => "its proof was replayed",
            HandshakeRefusal::NotListed => membership::GossipRefusal::NotListed.sentence(),
            HandshakeRefusal::Version => membership::GossipRefusal::Version.sentence(),
            HandshakeRefusal::Node => "it is not the node that was dialled",
            HandshakeRefusal::Core => "it requested a core that does not exist",
            HandshakeRefusal::Order => {
                "it uses this node's id, or should have waited to be dialled"
            }
            HandshakeRefusal::Unknown => "it is not a live member according to gossip",
        }
    }
}

/// How a handshake failed. The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// What arrived is no handshake, or none of its messages was due.
    Malformed,
    /// The other side is refused; it has been told if bytes to send were left.
    Refused(HandshakeRefusal),
    /// The other side refuses us.
    RefusedBy(HandshakeRefusal),
}

/// What came out of a handshake: a link that both sides believe in.
#[derive(Debug)]
pub struct LinkSession {
    /// The other side.
    pub peer: Peer,
    /// Its id.
    pub id: Arc<str>,
    /// What is known of it.
    pub facts: PeerFacts,
    /// Where it takes clients.
    pub clients: ClientEndpoint,
    /// Longest frame body that it takes, in bytes.
    pub frame_bytes_max: u32,
    /// This side's core, or [`NODE_CORE`].
    pub core: u16,
    /// Makes the frames to it.
    pub sealer: Sealer,
    /// Takes the frames from it.
    pub opener: Opener,
}

/// Who asks for a link, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node.
    pub node: NodeKey,
    /// In which boot.
    pub boot: Boot,
    /// What it was told by gossip; 0 for nothing.
    pub pass: u64,
}

/// Where a handshake stands after a message.
#[derive(Debug)]
pub enum HandshakeStep {
    /// Another message is due.
    Await,
    /// The hello of this caller was in order. If it may be linked with, another message is due;
    /// else [`Handshake::refuse`] it.
    Called(Caller),
    /// Done.
    Done(Box<LinkSession>),
}

/// One side of one handshake.
#[derive(Debug)]
pub struct Handshake {
    party: Arc<Party>,
    nonce: Nonce,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Dialled; the welcome is due.
    Dialled { peer: Peer, core: u16, hello: Vec<u8> },
    /// Accepted; the hello is due.
    Accepted,
    /// The hello was answered; the proof is due. Everything said so far.
    Welcomed { other: PeerHello, said: Vec<u8> },
    /// Nothing is due.
    Over,
}

/// What the other side said of itself.
#[derive(Debug)]
struct PeerHello {
    terms: Terms,
    keyed: bool,
    id: Arc<str>,
    boot: Boot,
    core: u16,
    core_count: u16,
    hash_seed: u64,
    frame_bytes_max: u32,
    clients: ClientEndpoint,
    to: NodeKey,
    to_core: u16,
    pass: u64,
}

#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Kind {
    Hello = 1,
    Welcome = 2,
    Proof = 3,
    Refused = 4,
}

impl Handshake {
    /// Begins the handshake of `party`'s core `core` with `peer`, which was dialled and by gossip
    /// told this node `pass`. The first message is appended to `out`.
    pub fn dial(
        party: Arc<Party>,
        core: u16,
        peer: Peer,
        pass: u64,
        nonce: Nonce,
        out: &mut Vec<u8>,
    ) -> Self {
        let start = out.len();
        message(out, Kind::Hello, |out| {
            write_facts(&party, core, peer, pass, &nonce, out);
        });
        append_tag(&party, "hello", start, &[], out);
        let hello = out[start..].to_vec();
        Self { party, nonce, state: State::Dialled { peer, core, hello } }
    }

    /// The other side of a handshake that somebody begins.
    pub fn accept(party: Arc<Party>, nonce: Nonce) -> Self {
        Self { party, nonce, state: State::Accepted }
    }

    /// Length of the message that `head` begins, head included. Exactly that many bytes are to be
    /// read and given to [`Handshake::handle`]; what follows the last message are frames already.
    ///
    /// # Errors
    /// When it is none of a handshake, or too long for one.
    pub fn message_bytes(head: &[u8; HEAD_BYTES]) -> Result<usize, HandshakeError> {
        let length = HEAD_BYTES + u16::from_le_bytes([head[5], head[6]]) as usize;
        if head[..4] != MAGIC.to_le_bytes() || length > MESSAGE_BYTES_MAX {
            return Err(HandshakeError::Malformed);
        }
        Ok(length)
    }

    /// Takes one whole message; what is to be sent is appended to `out`, also when this fails.
    ///
    /// # Errors
    /// When the connection is to be closed, after sending `out`.
    pub fn handle(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<HandshakeStep, HandshakeError> {
        let outcome = self.message(bytes, out);
        if let Err(HandshakeError::Refused(reason)) = outcome {
            message(out, Kind::Refused, |out| out.put_u8(reason as u8));
        }
        outcome
    }

    /// Refuses a caller after its hello; `out` gets what is to be sent, in place of what it had.
    pub fn refuse(&mut self, reason: HandshakeRefusal, out: &mut Vec<u8>) -> HandshakeError {
        self.state = State::Over;
        out.clear();
        message(out, Kind::Refused, |out| out.put_u8(reason as u8));
        HandshakeError::Refused(reason)
    }

    fn message(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<HandshakeStep, HandshakeError> {
        let head = bytes.first_chunk().ok_or(HandshakeError::Malformed)?;
        if Self::message_bytes(head)? != bytes.len() {
            return Err(HandshakeError::Malformed);
        }
        let kind = head[4];
        if kind == Kind::Refused as u8 {
            let reason =
                HandshakeRefusal::ALL.into_iter().find(|r| bytes[HEAD_BYTES..] == [*r as u8]);
            self.state = State::Over;
            return Err(reason.map_or(HandshakeError::Malformed, HandshakeError::RefusedBy));
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Accepted if kind == Kind::Hello as u8 => self.hello(bytes, out),
            State::Dialled { peer, core, hello } if kind == Kind::Welcome as u8 => {
                self.welcome(peer, core, hello, bytes, out)
            }
            State::Welcomed { other, said } if kind == Kind::Proof as u8 => {
                self.proof(other, said, bytes)
            }
            _ => Err(HandshakeError::Malformed),
        }
    }

    fn hello(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<HandshakeStep, HandshakeError> {
        let (other, tag) = self.read(bytes)?;
        self.check_eligible(&other)?;
        self.verify("hello", &[bytes, tag], HandshakeRefusal::Key)?;
        let me = NodeKey::of(&self.party.id);
        if other.to != me {
            return Err(HandshakeError::Refused(HandshakeRefusal::Node));
        }
        if NodeKey::of(&other.id) >= me {
            return Err(HandshakeError::Refused(HandshakeRefusal::Order));
        }
        let core_exists = other.to_core < self.party.core_count;
        // The executors beside the cores speak with each other only.
        if (other.to_core == NODE_CORE) != (other.core == NODE_CORE)
            || !(core_exists || other.to_core == NODE_CORE)
        {
            return Err(HandshakeError::Refused(HandshakeRefusal::Core));
        }
        let start = out.len();
        let peer = Peer { node: NodeKey::of(&other.id), core: other.core };
        message(out, Kind::Welcome, |out| {
            write_facts(&self.party, other.to_core, peer, 0, &self.nonce, out);
        });
        append_tag(&self.party, "welcome", start, bytes, out);
        let said = [bytes, &out[start..]].concat();
        let caller = Caller { node: peer.node, boot: other.boot, pass: other.pass };
        self.state = State::Welcomed { other, said };
        Ok(HandshakeStep::Called(caller))
    }

    fn welcome(
        &mut self,
        peer: Peer,
        core: u16,
        hello: Vec<u8>,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<HandshakeStep, HandshakeError> {
        let (other, tag) = self.read(bytes)?;
        self.check_eligible(&other)?;
        // A recorded welcome was for another nonce of ours, and fails here.
        self.verify("welcome", &[&hello, bytes, tag], HandshakeRefusal::Key)?;
        let me = Peer { node: NodeKey::of(&self.party.id), core };
        let found = Peer { node: NodeKey::of(&other.id), core: other.core };
        if found != peer || (Peer { node: other.to, core: other.to_core }) != me {
            return Err(HandshakeError::Refused(HandshakeRefusal::Node));
        }
        let said = [&hello, bytes].concat();
        let start = out.len();
        message(out, Kind::Proof, |_| {});
        append_tag(&self.party, "proof", start, &said, out);
        Ok(HandshakeStep::Done(self.session(other, core, &said, Direction::Dialler)))
    }

    fn proof(
        &mut self,
        other: PeerHello,
        said: Vec<u8>,
        bytes: &[u8],
    ) -> Result<HandshakeStep, HandshakeError> {
        let (message, tag) = self.split_tag(bytes)?;
        if message.len() != HEAD_BYTES {
            return Err(HandshakeError::Malformed);
        }
        // The hello was right, so its sender's key is; only a recording fails here.
        self.verify("proof", &[&said, bytes, tag], HandshakeRefusal::Replay)?;
        let core = other.to_core;
        Ok(HandshakeStep::Done(self.session(other, core, &said, Direction::Acceptor)))
    }

    /// Facts and tag of a hello or welcome.
    fn read<'b>(&self, bytes: &'b [u8]) -> Result<(PeerHello, &'b [u8]), HandshakeError> {
        let mut reader = Reader::new(&bytes[HEAD_BYTES..]);
        // Everything behind the version belongs to it.
        let version = reader.u16().map_err(|_| HandshakeError::Malformed)?;
        if version != VERSION {
            return Err(HandshakeError::Refused(HandshakeRefusal::Version));
        }
        let other = read_facts(&mut reader).map_err(|_| HandshakeError::Malformed)?;
        let tag = reader.rest();
        if tag.len() != if other.keyed { TAG_BYTES } else { 0 } {
            return Err(HandshakeError::Malformed);
        }
        Ok((other, tag))
    }

    /// Message and tag of a proof.
    fn split_tag<'b>(&self, bytes: &'b [u8]) -> Result<(&'b [u8], &'b [u8]), HandshakeError> {
        let tag_bytes = if self.party.key.is_some() { TAG_BYTES } else { 0 };
        let end = bytes.len().checked_sub(tag_bytes).ok_or(HandshakeError::Malformed)?;
        Ok(bytes.split_at(end))
    }

    /// Refuses who does not belong here.
    fn check_eligible(&self, other: &PeerHello) -> Result<(), HandshakeError> {
        let listed = &self.party.listed;
        let reason = match self.party.terms.refuse(&other.terms) {
            Some(membership::GossipRefusal::Cluster) => HandshakeRefusal::Cluster,
            Some(_) => HandshakeRefusal::Parameters,
            None if other.keyed != self.party.key.is_some() => HandshakeRefusal::Key,
            None if !listed.as_ref().is_none_or(|ids| ids.iter().any(|id| **id == *other.id)) => {
                HandshakeRefusal::NotListed
            }
            None => return Ok(()),
        };
        Err(HandshakeError::Refused(reason))
    }

    /// Verifies the tag that ends the last but one of `parts` and is the last of them.
    fn verify(
        &self,
        purpose: &str,
        parts: &[&[u8]],
        reason: HandshakeRefusal,
    ) -> Result<(), HandshakeError> {
        let Some(key) = &self.party.key else { return Ok(()) };
        let [said @ .., message, tag] = parts else { unreachable!("a message and its tag") };
        let mut signed = said.to_vec();
        signed.push(&message[..message.len() - tag.len()]);
        if key.child(&[b"handshake", purpose.as_bytes()]).verifies(&signed, tag) {
            Ok(())
        } else {
            Err(HandshakeError::Refused(reason))
        }
    }

    fn session(
        &self,
        other: PeerHello,
        core: u16,
        said: &[u8],
        direction: Direction,
    ) -> Box<LinkSession> {
        let key = |name: &[u8]| Some(self.party.key.as_ref()?.child(&[b"link", name, said]));
        let (forth, back) = (key(b"from the dialler"), key(b"to the dialler"));
        let (ours, theirs) = match direction {
            Direction::Dialler => (forth, back),
            Direction::Acceptor => (back, forth),
        };
        Box::new(LinkSession {
            peer: Peer { node: NodeKey::of(&other.id), core: other.core },
            id: other.id,
            facts: PeerFacts {
                boot: other.boot,
                core_count: other.core_count,
                hash_seed: other.hash_seed,
            },
            clients: other.clients,
            frame_bytes_max: other.frame_bytes_max.min(BODY_BYTES_MAX as u32),
            core,
            sealer: Sealer::new(ours),
            opener: Opener::new(theirs),
        })
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Dialler,
    Acceptor,
}

/// Appends a message whose fields `write` appends.
fn message(out: &mut Vec<u8>, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(MAGIC);
    out.put_u8(kind as u8);
    out.put_u16(0);
    write(out);
    set_length(start, out);
}

fn set_length(start: usize, out: &mut [u8]) {
    let length = (out.len() - start - HEAD_BYTES) as u16;
    out[start + 5..start + HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// Appends the tag of `said` and the message at `start`, if there is a key. The message's length
/// counts it, and is covered by it.
fn append_tag(party: &Party, purpose: &str, start: usize, said: &[u8], out: &mut Vec<u8>) {
    let Some(key) = &party.key else { return };
    let end = out.len();
    out.extend_from_slice(&[0; TAG_BYTES]);
    set_length(start, out);
    let key = key.child(&[b"handshake", purpose.as_bytes()]);
    let tag = key.tag(&[said, &out[start..end]]);
    out[end..].copy_from_slice(&tag);
}

fn write_facts(party: &Party, core: u16, to: Peer, pass: u64, nonce: &Nonce, out: &mut Vec<u8>) {
    out.put_u16(VERSION);
    party.terms.write(out);
    out.put_u8(party.key.is_some() as u8);
    out.put_short(party.id.as_bytes());
    out.put_u64(party.boot.0);
    out.put_u16(core);
    out.put_u16(party.core_count);
    out.put_u64(party.hash_seed);
    out.put_u32(party.frame_bytes_max);
    let ClientEndpoint { ip, port, shard_ports } = party.clients;
    // Without an address of its own the one of no host, which is no one's.
    out.put_address((ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port).into());
    out.put_u16(shard_ports.unwrap_or(0));
    out.put_u64(to.node.0);
    out.put_u16(to.core);
    out.put_u64(pass);
    out.put(nonce);
}

fn read_facts(reader: &mut Reader<'_>) -> Result<PeerHello, CodecError> {
    let terms = Terms::read(reader)?;
    let keyed = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return Err(CodecError::Unknown),
    };
    let id = reader.text()?;
    if id.len() > NODE_ID_BYTES_MAX {
        return Err(CodecError::Unknown);
    }
    let other = PeerHello {
        terms,
        keyed,
        id: id.into(),
        boot: Boot(reader.u64()?),
        core: reader.u16()?,
        core_count: reader.u16()?,
        hash_seed: reader.u64()?,
        frame_bytes_max: reader.u32()?,
        clients: read_client_endpoint(reader)?,
        to: NodeKey(reader.u64()?),
        to_core: reader.u16()?,
        pass: reader.u64()?,
    };
    reader.take(size_of::<Nonce>())?;
    if !(1..=CORES_MAX).contains(&other.core_count)
        || (other.core != NODE_CORE && other.core >= other.core_count)
    {
        return Err(CodecError::Unknown);
    }
    Ok(other)
}

fn read_client_endpoint(reader: &mut Reader<'_>) -> Result<ClientEndpoint, CodecError> {
    let (address, base) = (reader.address()?, reader.u16()?);
    Ok(ClientEndpoint {
        ip: Some(address.ip()).filter(|ip| !ip.is_unspecified()),
        port: address.port(),
        shard_ports: Some(base).filter(|&base| base != 0),
    })
}
