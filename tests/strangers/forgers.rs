//! Datagrams and connections of somebody who knows the protocol, but is no member.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ringlane::cluster::handshake::{
    HEAD_BYTES, Handshake, HandshakeError, HandshakeRefusal, Party,
};
use ringlane::cluster::identity::{Boot, Identity, NodeKey};
use ringlane::cluster::link::{ClientEndpoint, Peer};
use ringlane::config::ClusterConfig;
use ringlane::wire::{Reader, Writer};

use crate::alone;
use crate::live::Client;
use crate::nodes::Node;

const KNOCK: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;
/// Bytes of a datagram before its body.
const DATAGRAM_HEAD_BYTES: usize = 61;

/// A stranger at its own address.
struct Stranger {
    socket: UdpSocket,
    to: SocketAddr,
    /// Cluster and parameters, as any datagram shows them.
    terms: [u8; 16],
    sent: usize,
}

impl Stranger {
    /// Learns the terms from being refused.
    fn of(node: &Node) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let to = node.cluster_address();
        let mut stranger = Self { socket, to, terms: [0; 16], sent: 0 };
        stranger.send(KNOCK, "stranger", |out| out.resize(400, 0));
        let refusal = stranger.receive().expect("a refusal");
        assert_eq!(refusal[4], REFUSED);
        stranger.terms.copy_from_slice(&refusal[5..21]);
        stranger
    }

    fn identity(&self, id: &str, boot: u64) -> Identity {
        let address = self.socket.local_addr().expect("it is bound");
        Identity::new(id, Boot(boot), address, address)
    }

    fn send(&mut self, kind: u8, as_whom: &str, body: impl Fn(&mut Vec<u8>)) {
        let mut bytes = b"RLg2".to_vec();
        bytes.put_u8(kind);
        bytes.put(&self.terms);
        bytes.put_u64(NodeKey::of(as_whom).0);
        // Its boot, its number, what it shows and what it wants to see.
        [1, 1 << 60, 0, 7].into_iter().for_each(|field| bytes.put_u64(field));
        body(&mut bytes);
        self.sent += bytes.len();
        self.socket.send_to(&bytes, self.to).expect("loopback takes datagrams");
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 2048];
        let length = self.socket.recv(&mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }

    /// Bytes that are received until nothing comes any more.
    fn drain(&self) -> usize {
        self.socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        std::iter::from_fn(|| self.receive()).map(|bytes| bytes.len()).sum()
    }

    /// Who the node says that it is.
    fn knock(&mut self) -> Identity {
        let me = self.identity("stranger", 1);
        self.send(KNOCK, "stranger", |out| {
            out.put_u64(99);
            me.write(out);
            out.resize(400, 0);
        });
        let welcome = self.receive().expect("a welcome");
        assert_eq!(welcome[4], WELCOME);
        let mut reader = Reader::new(&welcome[DATAGRAM_HEAD_BYTES..]);
        assert_eq!(reader.u64(), Ok(99), "the nonce comes back");
        Identity::read(&mut reader).expect("an identity")
    }
}

#[test]
fn answers_that_were_not_asked_for_end_nobody() {
    let Some(mut node) = alone("forged", &[]) else { return };
    let mut client = node.client();
    client.store("key", b"value");
    let mut stranger = Stranger::of(&node);
    let victim = stranger.knock();
    assert_eq!(&*victim.id, "forged");
    let me = stranger.identity("stranger", 1);
    let later = Identity { boot: Boot(u64::MAX / 2), ..victim.clone() };
    for nonce in (0..200).chain([u64::MAX, 99]) {
        stranger.send(WELCOME, "stranger", |out| {
            out.put_u64(nonce);
            me.write(out);
            later.write(out);
        });
        stranger.send(REFUSED, "stranger", |out| {
            out.put_u64(nonce);
            // The place is taken, says whoever is at our address.
            out.put_u8(6);
            out.put_address(me.gossip);
            out.put_u64(u64::MAX / 2);
        });
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.exit_code(), None, "{}", node.said());
    assert_eq!(client.fetch("key").as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_stranger_is_told_little_and_nobody_is_called_because_of_him() {
    let Some(node) = alone("quiet", &[]) else { return };
    let third = TcpListener::bind("127.0.0.1:0").expect("a free port");
    third.set_nonblocking(true).expect("a listener may be asked");
    let named = third.local_addr().expect("it is bound");
    let mut stranger = Stranger::of(&node);
    let listener = stranger.knock();
    stranger.drain();
    stranger.sent = 0;
    for number in 0..300u16 {
        let me = stranger.identity("stranger", 1);
        stranger.send(0, "stranger", |out| {
            me.write(out);
            out.put_u16(number);
            listener.write(out);
            // Gossip of two more members.
            out.extend([8, 0, 0, 2]);
            for name in ["one", "two"] {
                Identity::new(name, Boot(1), named, named).write(out);
                out.extend([0, 0, 0]);
            }
        });
    }
    let answered = stranger.drain();
    assert!(answered <= stranger.sent, "{answered} bytes for {}", stranger.sent);
    std::thread::sleep(Duration::from_secs(2));
    assert!(third.accept().is_err(), "somebody was called");
    assert_eq!(node.client().ask("get a"), "END");
}

#[test]
fn a_stranger_has_no_link_with_a_node_without_a_key() {
    let Some(node) = alone("linked", &[]) else { return };
    let me = NodeKey::of("linked");
    let id = (0..).map(|n| format!("s{n}")).find(|id| NodeKey::of(id) < me).expect("a smaller key");
    let party = Arc::new(Party {
        id: id.into(),
        boot: Boot(1),
        core_count: 1,
        hash_seed: 1,
        frame_bytes_max: 9 << 20,
        clients: ClientEndpoint::default(),
        terms: ClusterConfig::new(node.cluster_address()).terms(),
        key: None,
        listed: None,
    });
    let knows_member = Stranger::of(&node).knock();
    for pass in [0, 1, knows_member.boot.0] {
        let mut stream = TcpStream::connect(node.cluster_address()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut out = Vec::new();
        let peer = Peer { node: me, core: 0 };
        let mut handshake = Handshake::dial(party.clone(), 0, peer, pass, [9; 16], &mut out);
        stream.write_all(&out).expect("it reads");
        let mut message = vec![0; HEAD_BYTES];
        stream.read_exact(&mut message).expect("an answer");
        let head = message.first_chunk().expect("a head");
        message.resize(Handshake::message_bytes(head).expect("a message"), 0);
        stream.read_exact(&mut message[HEAD_BYTES..]).expect("the rest of it");
        out.clear();
        let outcome = handshake.handle(&message, &mut out);
        assert!(
            matches!(outcome, Err(HandshakeError::RefusedBy(HandshakeRefusal::Unknown))),
            "{outcome:?} with pass {pass}"
        );
        assert_eq!(stream.read(&mut [0; 64]).expect("an end"), 0, "the connection is closed");
    }
}

#[test]
fn one_host_cannot_have_all_handshakes_nor_hold_them() {
    let Some(node) = alone("shaken", &[]) else { return };
    let idle: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(node.cluster_address()).expect("the backlog takes it"))
        .collect();
    for mut stream in idle {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)), "nothing is said to silence");
    }
    let mut client: Client = node.client();
    assert_eq!(client.ask("get a"), "END");
}
