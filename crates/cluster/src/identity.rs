//! A node's identity, and its encoding in gossip.
//!
//! A node's id never changes. Each start of its process is a new *boot*: the memory of the previous
//! boot is lost, so it counts as another replica. Within a boot a node that was declared dead by
//! mistake returns under the next *renewal*; its memory is still there.

use core::net::SocketAddr;
use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use ringlane_types::wire::{CodecError, Reader, Writer};

/// A node's id in 64 bits, for messages and tables. Two members never share one: the second is
/// not admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey(pub u64);

impl NodeKey {
    /// The key of the node called `id`.
    pub fn of(id: &str) -> Self {
        Self(xxh3_64(id.as_bytes()))
    }
}

/// Which start of a node's process this is: milliseconds of the clock at the start, or more, so
/// that a later boot is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot(pub u64);

/// Longest identity in a message, in bytes: the id behind its length, boot, renewal, two addresses
/// of IPv6.
pub const IDENTITY_BYTES_MAX: usize = 1 + ringlane_ring::NODE_ID_BYTES_MAX + 8 + 4 + 2 * 19;

/// A node as gossip knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node's id, 1 to 64 bytes.
    pub id: Arc<str>,
    /// The id's key.
    pub key: NodeKey,
    /// Where it receives gossip.
    pub gossip: SocketAddr,
    /// Where it accepts connections of other nodes.
    pub link: SocketAddr,
    /// Which start of the process.
    pub boot: Boot,
    /// How often it was declared dead by mistake in this boot.
    pub renewal: u32,
}

impl Identity {
    /// The node `id` before any renewal.
    pub fn new(id: &str, boot: Boot, gossip: SocketAddr, link: SocketAddr) -> Self {
        Self { id: id.into(), key: NodeKey::of(id), gossip, link, boot, renewal: 0 }
    }

    /// Appends the identity to a message.
    pub fn write(&self, out: &mut impl Writer) {
        out.put_short(self.id.as_bytes());
        out.put_u64(self.boot.0);
        out.put_u32(self.renewal);
        out.put_address(self.gossip);
        out.put_address(self.link);
    }

    /// Decodes one from a message.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let id = reader.text()?;
        if id.len() > ringlane_ring::NODE_ID_BYTES_MAX {
            return Err(CodecError::Unknown);
        }
        let (boot, renewal) = (Boot(reader.u64()?), reader.u32()?);
        let (gossip, link) = (reader.address()?, reader.address()?);
        Ok(Self { renewal, ..Self::new(id, boot, gossip, link) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{} at {}", self.id, self.boot.0, self.renewal, self.gossip)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeKey;

    fn renew(&self) -> Option<Self> {
        Some(Self { renewal: self.renewal.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> NodeKey {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.boot, self.renewal) > (adversary.boot, adversary.renewal)
    }
}

/// Encodes foca's messages. Our own codec instead of serde and a format crate: there are few
/// messages, and bytes from the network should meet no more code than necessary.
#[derive(Clone, Copy, Debug)]
pub struct IdentityCodec;

/// Why gossip could not be encoded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GossipCodecError {
    /// No room left in the datagram. Expected: foca fills datagrams until this happens.
    Full,
    /// The bytes are not a message.
    Malformed,
}

impl fmt::Display for GossipCodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GossipCodecError::Full => "the datagram is full",
            GossipCodecError::Malformed => "not a gossip message",
        })
    }
}

impl std::error::Error for GossipCodecError {}

impl From<CodecError> for GossipCodecError {
    fn from(_: CodecError) -> Self {
        GossipCodecError::Malformed
    }
}

impl foca::Codec<Identity> for IdentityCodec {
    type Error = GossipCodecError;

    fn encode_header(
        &mut self,
        header: &foca::Header<Identity>,
        buf: impl bytes::BufMut,
    ) -> Result<(), GossipCodecError> {
        let mut bytes = Vec::with_capacity(256);
        header.src.write(&mut bytes);
        bytes.put_u16(header.src_incarnation);
        header.dst.write(&mut bytes);
        write_message(&header.message, &mut bytes);
        put_whole(&bytes, buf)
    }

    fn decode_header(
        &mut self,
        mut buf: impl bytes::Buf,
    ) -> Result<foca::Header<Identity>, GossipCodecError> {
        let mut reader = Reader::new(buf.chunk());
        let header = foca::Header {
            src: Identity::read(&mut reader)?,
            src_incarnation: reader.u16()?,
            dst: Identity::read(&mut reader)?,
            message: read_message(&mut reader)?,
        };
        let used = buf.remaining() - reader.left();
        buf.advance(used);
        Ok(header)
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Identity>,
        buf: impl bytes::BufMut,
    ) -> Result<(), GossipCodecError> {
        let mut bytes = Vec::with_capacity(96);
        member.id().write(&mut bytes);
        bytes.put_u16(member.incarnation());
        bytes.put_u8(match member.state() {
            foca::State::Alive => 0,
            foca::State::Suspect => 1,
            foca::State::Down => 2,
        });
        put_whole(&bytes, buf)
    }

    fn decode_member(
        &mut self,
        mut buf: impl bytes::Buf,
    ) -> Result<foca::Member<Identity>, GossipCodecError> {
        let mut reader = Reader::new(buf.chunk());
        let id = Identity::read(&mut reader)?;
        let incarnation = reader.u16()?;
        let state = match reader.u8()? {
            0 => foca::State::Alive,
            1 => foca::State::Suspect,
            2 => foca::State::Down,
            _ => return Err(GossipCodecError::Malformed),
        };
        let used = buf.remaining() - reader.left();
        buf.advance(used);
        Ok(foca::Member::new(id, incarnation, state))
    }
}

/// All bytes or, if there is no room, none.
fn put_whole(bytes: &[u8], mut buf: impl bytes::BufMut) -> Result<(), GossipCodecError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(GossipCodecError::Full);
    }
    buf.put_slice(bytes);
    Ok(())
}

fn write_message(message: &foca::Message<Identity>, out: &mut Vec<u8>) {
    use foca::Message::*;
    let (tag, number, other) = match message {
        Ping(number) => (0, *number, None),
        Ack(number) => (1, *number, None),
        PingReq { target, probe_number } => (2, *probe_number, Some(target)),
        IndirectPing { origin, probe_number } => (3, *probe_number, Some(origin)),
        IndirectAck { target, probe_number } => (4, *probe_number, Some(target)),
        ForwardedAck { origin, probe_number } => (5, *probe_number, Some(origin)),
        Announce => (6, 0, None),
        Feed => (7, 0, None),
        Gossip => (8, 0, None),
        Broadcast => (9, 0, None),
        TurnUndead => (10, 0, None),
    };
    out.put_u8(tag);
    out.put_u8(number);
    if let Some(identity) = other {
        identity.write(out);
    }
}

fn read_message(reader: &mut Reader<'_>) -> Result<foca::Message<Identity>, CodecError> {
    use foca::Message::*;
    let (tag, probe_number) = (reader.u8()?, reader.u8()?);
    Ok(match tag {
        0 => Ping(probe_number),
        1 => Ack(probe_number),
        2 => PingReq { target: Identity::read(reader)?, probe_number },
        3 => IndirectPing { origin: Identity::read(reader)?, probe_number },
        4 => IndirectAck { target: Identity::read(reader)?, probe_number },
        5 => ForwardedAck { origin: Identity::read(reader)?, probe_number },
        6 => Announce,
        7 => Feed,
        8 => Gossip,
        9 => Broadcast,
        10 => TurnUndead,
        _ => return Err(CodecError::Unknown),
    })
}

#[cfg(test)]
mod tests {
    use foca::{Codec, Header, Identity as _, Member, Message, State};
    use proptest::prelude::*;

    use super::*;

    fn node(id: &str, boot: u64) -> Identity {
        let address = |port| SocketAddr::new([127, 0, 0, 1].into(), port);
        Identity::new(id, Boot(boot), address(1), address(2))
    }

    #[test]
    fn a_later_boot_wins_and_within_a_boot_a_later_renewal() {
        let first = node("a", 5);
        let renewed = first.renew().unwrap();
        let restarted = node("a", 6);
        assert!(renewed.win_addr_conflict(&first) && !first.win_addr_conflict(&renewed));
        assert!(restarted.win_addr_conflict(&renewed) && !renewed.win_addr_conflict(&restarted));
    }

    #[test]
    fn every_message_survives_the_wire() {
        let (a, b, c) = (node("a", 1), node("b", 2), node("c", 3));
        let messages = [
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq { target: c.clone(), probe_number: 3 },
            Message::IndirectPing { origin: c.clone(), probe_number: 4 },
            Message::IndirectAck { target: c.clone(), probe_number: 5 },
            Message::ForwardedAck { origin: c.clone(), probe_number: 6 },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ];
        for message in messages {
            let header = Header { src: a.clone(), src_incarnation: 7, dst: b.clone(), message };
            let mut bytes = Vec::new();
            IdentityCodec.encode_header(&header, &mut bytes).unwrap();
            bytes.push(0xaa);
            let mut rest = &bytes[..];
            assert_eq!(IdentityCodec.decode_header(&mut rest), Ok(header));
            assert_eq!(rest, [0xaa], "reads no further than its own end");
        }
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = Member::new(a.clone(), 9, state);
            let mut bytes = Vec::new();
            IdentityCodec.encode_member(&member, &mut bytes).unwrap();
            assert_eq!(IdentityCodec.decode_member(&mut &bytes[..]), Ok(member));
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_datagram_as_it_was() {
        let member = Member::alive(node("a", 1));
        let mut small = bytes::BufMut::limit(Vec::new(), 10);
        assert_eq!(IdentityCodec.encode_member(&member, &mut small), Err(GossipCodecError::Full));
        assert!(small.get_ref().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes: Vec<u8>) {
            let _ = IdentityCodec.decode_header(&bytes[..]);
            let _ = IdentityCodec.decode_member(&bytes[..]);
        }
    }
}
