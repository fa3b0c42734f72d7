//! What nodes send each other, as bytes from a network that may change them: handshakes, frames,
//! the messages in them, and gossip.

use std::net::SocketAddr;
use std::sync::Arc;

use ringlane::cluster::frame::{AuthKey, LinkFrameError, Opened};
use ringlane::cluster::handshake::{
    HEAD_BYTES, Handshake, HandshakeError, HandshakeStep, LinkSession, MESSAGE_BYTES_MAX, Party,
};
use ringlane::cluster::identity::{Boot, Identity, NodeKey};
use ringlane::cluster::link::{ClientEndpoint, NODE_CORE, Peer};
use ringlane::cluster::membership::{
    Membership, MembershipEffect, MembershipEvent, MembershipSettings, Terms,
};
use ringlane::cluster::message::{Forward, Message, Messages, NodeMessage};
use ringlane::cluster::quorum::Replication;
use ringlane::codec::decode_request;
use ringlane::ring::RingParameters;
use ringlane::wire::{Reader, Writer};

use crate::NOW;
use crate::choices::Choices;

/// Takes `input` as what one of them sends.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    match choices.byte() % 4 {
        0 => meet(&mut choices),
        1 => overhear(&mut choices),
        2 => read(choices.rest()),
        _ => gossip(&mut choices),
    }
}

fn terms() -> Terms {
    Terms::new("test", RingParameters::default(), Replication::default())
}

/// Two parties, the one that dials first.
fn parties(keys: [Option<AuthKey>; 2]) -> [Arc<Party>; 2] {
    let mut ids = ["a", "bb"];
    ids.sort_by_key(|id| NodeKey::of(id));
    let mut keys = keys.into_iter();
    ids.map(|id| {
        Arc::new(Party {
            id: id.into(),
            boot: Boot(9),
            core_count: 2,
            hash_seed: 77,
            frame_bytes_max: 1 << 20,
            clients: ClientEndpoint { ip: None, port: 11211, shard_ports: None },
            terms: terms(),
            key: keys.next().expect("one for each"),
            listed: None,
        })
    })
}

fn key(choice: u8) -> Option<AuthKey> {
    (choice != 0).then(|| AuthKey::from_file_contents(&[choice]))
}

/// Two nodes shake hands over a network that may change what they say, then send frames.
fn meet(choices: &mut Choices<'_>) {
    let (ours, theirs) = (choices.byte() % 3, choices.byte() % 3);
    let [dialler, acceptor] = parties([key(ours), key(theirs)]);
    let core = choices.pick(&[0, 1, 0, NODE_CORE]);
    let peer = Peer { node: NodeKey::of(&acceptor.id), core: choices.pick(&[0, 1, core, 2]) };
    let mut wire = Vec::new();
    let mut sides = [
        Handshake::dial(dialler, core, peer, 0, [1; 16], &mut wire),
        Handshake::accept(acceptor, [2; 16]),
    ];
    let mut sessions: [Option<Box<LinkSession>>; 2] = [None, None];
    let mut tampered = false;
    // Hello, welcome, proof: to the acceptor, to the dialler, to the acceptor.
    for to in [1, 0, 1] {
        assert!(wire.len() <= MESSAGE_BYTES_MAX);
        tampered |= choices.tamper(&mut wire);
        let message = std::mem::take(&mut wire);
        match sides[to].handle(&message, &mut wire) {
            Ok(HandshakeStep::Await | HandshakeStep::Called(_)) => {}
            Ok(HandshakeStep::Done(session)) => sessions[to] = Some(session),
            Err(_) => return,
        }
    }
    let [Some(here), Some(there)] = sessions else { return };
    assert!(ours == theirs, "nodes with different keys have met");
    assert!(ours == 0 || !tampered, "a changed handshake was believed");
    frames(*here, *there, ours != 0, choices);
}

/// Frames arrive whole and once, or are refused.
fn frames(mut from: LinkSession, mut to: LinkSession, keyed: bool, choices: &mut Choices<'_>) {
    let mut sent: Vec<Vec<u8>> = Vec::new();
    // Whether a changed frame has been believed, as without a key it may be: its number may be any.
    let mut misled = false;
    while !choices.is_empty() {
        let body = choices.bytes();
        let mut wire = Vec::new();
        let start = from.sealer.begin(&mut wire);
        wire.extend_from_slice(body);
        from.sealer.end(start, &mut wire);
        if choices.byte().is_multiple_of(4) && !sent.is_empty() {
            let again = &sent[choices.below(sent.len())];
            assert_eq!(to.opener.open(again), Err(LinkFrameError::Replayed));
        }
        let tampered = choices.tamper(&mut wire);
        match to.opener.open(&wire) {
            Ok(Opened::Frame { consumed, body: got }) => {
                assert!(consumed <= wire.len());
                assert!(tampered || got == body, "a frame is another than was sent");
                // What was added behind a frame is not part of it.
                assert!(!keyed || got == body, "a changed frame was believed");
                misled |= tampered;
                read(got);
            }
            Ok(Opened::Incomplete { bytes }) => assert!(tampered && bytes > wire.len()),
            Err(_) => {
                assert!(tampered || misled, "a good frame was refused");
                // The session is not worth keeping.
                return;
            }
        }
        if !tampered {
            sent.push(wire);
        }
    }
}

/// One side of a handshake hears anything.
fn overhear(choices: &mut Choices<'_>) {
    let choice = choices.byte();
    let [dialler, acceptor] = parties([key(choice & 1), key(choice & 1)]);
    let mut out = Vec::new();
    let mut side = if choice & 2 == 0 {
        let peer = Peer { node: NodeKey::of(&acceptor.id), core: 0 };
        Handshake::dial(dialler, 0, peer, 0, [1; 16], &mut out)
    } else {
        Handshake::accept(acceptor, [2; 16])
    };
    while !choices.is_empty() {
        let mut message = b"RLh1".to_vec();
        message.push(choices.byte() % 6);
        let fields = choices.bytes();
        message.put_u16(fields.len() as u16);
        message.extend_from_slice(fields);
        let head = message.first_chunk::<HEAD_BYTES>().expect("a head");
        assert_eq!(Handshake::message_bytes(head), Ok(message.len()));
        out.clear();
        match side.handle(&message, &mut out) {
            Ok(HandshakeStep::Await | HandshakeStep::Called(_)) => {}
            Ok(HandshakeStep::Done(_)) => assert!(choice & 1 == 0, "nobody has proved anything"),
            Err(HandshakeError::Refused(_)) => {
                return assert!(!out.is_empty(), "whoever is refused is told");
            }
            Err(_) => return,
        }
    }
}

/// Bytes as the body of a frame: what is understood means one thing, however often it is passed on.
fn read(body: &[u8]) {
    for message in Messages::new(body) {
        let Ok(bytes) = message else { return };
        let mut again = Vec::new();
        if NodeMessage::is_one(bytes) {
            let Ok(message) = NodeMessage::read(bytes) else { continue };
            message.write(&mut again);
            assert_eq!(NodeMessage::read(&again[4..]), Ok(message));
        } else {
            let Ok(message) = Message::read(bytes) else { continue };
            message.write(&mut again);
            let arrived = Message::read(&again[4..]).expect("own encoding");
            assert_eq!(format!("{arrived:?}"), format!("{message:?}"));
            if let Message::Forward(Forward { request, .. }) = message {
                let _ = decode_request(request);
            }
        }
    }
}

/// Members hear anything in datagrams that carry the right terms.
fn gossip(choices: &mut Choices<'_>) {
    let address = |number: u8| ([127, 0, 0, number], 7946).into();
    let identity = |number: u8, boot| {
        Identity::new(&format!("n{number}"), Boot(boot), address(number), address(number))
    };
    let mut settings = MembershipSettings::new(terms());
    settings.join = vec![address(2)];
    let mut member = Membership::new(identity(1, 5), &settings, 3);
    let mut now = NOW;
    let mut effects = Vec::new();
    // What it wants to see from whom, and the nonces of its knocks, as those learn who receive them.
    let (mut cookies, mut nonces) = ([0u64; 5], vec![0u64]);
    member.handle(MembershipEvent::Start, now, &mut effects);
    while !choices.is_empty() {
        for effect in effects.drain(..) {
            let MembershipEffect::Send { to, bytes } = effect else { continue };
            let number = |at: usize| {
                let number = bytes[at..].first_chunk().expect("a head and a nonce");
                u64::from_le_bytes(*number)
            };
            if let SocketAddr::V4(to) = to
                && let Some(cookie) = cookies.get_mut(to.ip().octets()[3] as usize)
            {
                *cookie = number(53);
            }
            if bytes[4] == 1 {
                nonces.push(number(61));
            }
        }
        let choice = choices.byte();
        match choice % 8 {
            0 => {
                now = now.after(std::time::Duration::from_millis(choices.byte() as u64 * 20));
                member.handle(MembershipEvent::Tick, now, &mut effects);
            }
            1 if choices.byte() < 8 => member.handle(MembershipEvent::Leave, now, &mut effects),
            _ => {
                let mut bytes = b"RLg2".to_vec();
                let kind = choices.byte() % 6;
                bytes.put_u8(kind);
                terms().write(&mut bytes);
                let sender = 1 + choices.byte() % 4;
                bytes.put_u64(identity(sender, 0).key.0);
                bytes.put_u64(choices.byte() as u64);
                bytes.put_u64(now.as_millis() << 20);
                let shown = cookies[sender as usize];
                bytes.put_u64(if choices.byte() < 240 { shown } else { choices.number() });
                bytes.put_u64(choices.byte() as u64);
                if (1..=3).contains(&kind) {
                    bytes.put_u64(nonces[choices.below(nonces.len())]);
                }
                // What foca's datagrams and knocks begin with.
                for _ in 0..choice >> 6 {
                    identity(1 + choices.byte() % 4, 4 + choices.byte() as u64 % 3)
                        .write(&mut bytes);
                    if choice & 32 != 0 {
                        bytes.put_u16(choices.byte() as u16 % 4);
                    }
                }
                bytes.extend_from_slice(choices.bytes());
                let event = MembershipEvent::Datagram { from: address(sender), bytes: &bytes };
                member.handle(event, now, &mut effects);
            }
        }
        assert!(effects.len() < 1000, "one event has {} effects", effects.len());
        for effect in &effects {
            if let MembershipEffect::Send { bytes, .. } = effect {
                assert!(bytes.len() <= 1500, "a datagram of {} bytes", bytes.len());
            }
        }
        assert!(member.members().len() < 2000);
        for (identity, _) in member.members() {
            let mut bytes = Vec::new();
            identity.write(&mut bytes);
            assert_eq!(Identity::read(&mut Reader::new(&bytes)), Ok(identity));
        }
    }
}
