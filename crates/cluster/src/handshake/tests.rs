use proptest::prelude::*;

use super::super::frame::Opened;
use super::super::quorum::Replication;
use super::*;
use ringlane_ring::RingParameters;

const NONCES: [Nonce; 2] = [[1; 16], [2; 16]];

fn terms(name: &str) -> Terms {
    Terms::new(name, RingParameters::default(), Replication::default())
}

fn clients() -> ClientEndpoint {
    ClientEndpoint { ip: Some([10, 0, 0, 1].into()), port: 11211, shard_ports: Some(21000) }
}

fn party(id: &str, key: Option<&[u8]>) -> Party {
    Party {
        id: id.into(),
        boot: Boot(id.len() as u64),
        core_count: 4,
        hash_seed: 77,
        frame_bytes_max: 1 << 20,
        clients: clients(),
        terms: terms("test"),
        key: key.map(AuthKey::from_file_contents),
        listed: None,
    }
}

/// Ids in the order of their keys: the first dials.
fn ordered(a: &'static str, b: &'static str) -> [&'static str; 2] {
    if NodeKey::of(a) < NodeKey::of(b) { [a, b] } else { [b, a] }
}

fn pair(key: Option<&[u8]>) -> [Party; 2] {
    ordered("a", "bb").map(|id| party(id, key))
}

fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some(head) = bytes.first_chunk() {
        let length = Handshake::message_bytes(head).expect("a message of ours");
        messages.push(bytes[..length].to_vec());
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty(), "whole messages only");
    messages
}

/// Both outcomes, and what the dialler and the acceptor said.
#[derive(Debug, Default)]
struct Met {
    sessions: [Option<Box<LinkSession>>; 2],
    failures: [Option<HandshakeError>; 2],
    said: [Vec<Vec<u8>>; 2],
}

/// Lets two nodes meet; `tamper` may change each message on its way from a side.
fn meet_with(
    parties: &[Party; 2],
    cores: [u16; 2],
    nonces: [Nonce; 2],
    mut tamper: impl FnMut(usize, usize, &mut Vec<u8>),
) -> Met {
    let [dialler, acceptor] = parties.clone().map(Arc::new);
    let peer = Peer { node: NodeKey::of(&acceptor.id), core: cores[1] };
    let mut out = Vec::new();
    let dialling = Handshake::dial(dialler, cores[0], peer, 0, nonces[0], &mut out);
    let mut sides = [dialling, Handshake::accept(acceptor, nonces[1])];
    let mut met = Met::default();
    let mut queue: Vec<(usize, Vec<u8>)> = split(&out).into_iter().map(|m| (0, m)).collect();
    while !queue.is_empty() {
        let (from, mut bytes) = queue.remove(0);
        tamper(from, met.said[from].len(), &mut bytes);
        met.said[from].push(bytes.clone());
        let mut out = Vec::new();
        match sides[1 - from].handle(&bytes, &mut out) {
            Ok(HandshakeStep::Await | HandshakeStep::Called(_)) => {}
            Ok(HandshakeStep::Done(session)) => met.sessions[1 - from] = Some(session),
            Err(failure) => met.failures[1 - from] = Some(failure),
        }
        queue.extend(split(&out).into_iter().map(|message| (1 - from, message)));
    }
    met
}

fn meet(parties: &[Party; 2]) -> Met {
    meet_with(parties, [2, 3], NONCES, |_, _, _| {})
}

fn assert_refused(met: &Met, by: usize, reason: HandshakeRefusal) {
    assert_eq!(met.failures[by], Some(HandshakeError::Refused(reason)), "{met:?}");
    assert_eq!(met.failures[1 - by], Some(HandshakeError::RefusedBy(reason)), "both know: {met:?}");
    assert!(met.sessions[by].is_none(), "{met:?}");
}

/// Sends a frame and returns it as it was on the wire.
fn carry(from: &mut LinkSession, to: &mut LinkSession, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = from.sealer.begin(&mut bytes);
    bytes.extend_from_slice(body);
    from.sealer.end(start, &mut bytes);
    let opened = to.opener.open(&bytes);
    assert_eq!(opened, Ok(Opened::Frame { consumed: bytes.len(), body }));
    bytes
}

#[test]
fn two_nodes_meet_and_know_each_other() {
    for key in [None, Some(&b"secret"[..])] {
        let parties = pair(key);
        let mut met = meet(&parties);
        assert_eq!(met.failures, [None, None]);
        let [Some(dialler), Some(acceptor)] = &mut met.sessions else { panic!("{met:?}") };
        for (session, other, core) in [(&dialler, &parties[1], 3), (&acceptor, &parties[0], 2)] {
            assert_eq!(session.peer, Peer { node: NodeKey::of(&other.id), core });
            assert_eq!(session.facts.boot, other.boot);
            assert_eq!((session.facts.core_count, session.facts.hash_seed), (4, 77));
            assert_eq!((session.frame_bytes_max, session.clients), (1 << 20, clients()));
        }
        assert_eq!((dialler.core, acceptor.core), (2, 3));
        carry(dialler, acceptor, b"question");
        carry(acceptor, dialler, b"answer");
    }
}

#[test]
fn a_wrong_or_missing_key_is_refused_and_both_know_why() {
    for (first, second) in
        [(Some(&b"one"[..]), Some(&b"two"[..])), (Some(b"one"), None), (None, Some(b"two"))]
    {
        let mut parties = pair(None);
        parties[0].key = first.map(AuthKey::from_file_contents);
        parties[1].key = second.map(AuthKey::from_file_contents);
        assert_refused(&meet(&parties), 1, HandshakeRefusal::Key);
    }
}

#[test]
fn other_terms_and_unlisted_nodes_are_refused() {
    let mut parties = pair(Some(b"secret"));
    parties[0].terms = terms("elsewhere");
    assert_refused(&meet(&parties), 1, HandshakeRefusal::Cluster);
    let ring = RingParameters { points_per_weight: 7, ..RingParameters::default() };
    parties[0].terms = Terms::new("test", ring, Replication::default());
    assert_refused(&meet(&parties), 1, HandshakeRefusal::Parameters);
    let mut parties = pair(Some(b"secret"));
    parties[1].listed = Some(vec!["c".into()].into());
    assert_refused(&meet(&parties), 1, HandshakeRefusal::NotListed);
    let mut parties = pair(Some(b"secret"));
    parties[0].listed = Some(vec!["c".into()].into());
    assert_refused(&meet(&parties), 0, HandshakeRefusal::NotListed);
}

#[test]
fn who_should_have_waited_or_wants_what_is_not_there_is_refused() {
    let [a, b] = pair(None);
    assert_refused(&meet(&[b.clone(), a.clone()]), 1, HandshakeRefusal::Order);
    assert_refused(&meet(&[a.clone(), a.clone()]), 1, HandshakeRefusal::Order);
    let cores = |cores| meet_with(&[a.clone(), b.clone()], cores, NONCES, |_, _, _| {});
    assert_refused(&cores([2, 4]), 1, HandshakeRefusal::Core);
    assert_refused(&cores([2, NODE_CORE]), 1, HandshakeRefusal::Core);
    assert_refused(&cores([NODE_CORE, 2]), 1, HandshakeRefusal::Core);
    assert!(cores([NODE_CORE, NODE_CORE]).sessions.iter().all(Option::is_some));
}

#[test]
fn a_node_that_took_over_an_address_is_not_taken_for_the_one_before() {
    let [dialler, acceptor] = pair(None);
    let (dialler, stranger) = (Arc::new(dialler), Arc::new(party("c", None)));
    let peer = Peer { node: NodeKey::of(&acceptor.id), core: 0 };
    let mut hello = Vec::new();
    Handshake::dial(dialler, 0, peer, 0, NONCES[0], &mut hello);
    let mut out = Vec::new();
    let outcome = Handshake::accept(stranger, NONCES[1]).handle(&hello, &mut out);
    assert!(matches!(outcome, Err(HandshakeError::Refused(HandshakeRefusal::Node))));
}

#[test]
fn a_recorded_handshake_opens_nothing() {
    let parties = pair(Some(b"secret"));
    let mut recorded = meet(&parties);
    let [Some(dialler), Some(acceptor)] = &mut recorded.sessions else { panic!("{recorded:?}") };
    let frame = carry(dialler, acceptor, b"delete everything");

    // The whole of the dialler's part again, to an acceptor with a nonce of its own.
    let replay = |from: usize, at: usize, bytes: &mut Vec<u8>| {
        if from == 0 && at < recorded.said[0].len() {
            bytes.clone_from(&recorded.said[0][at]);
        }
    };
    let met = meet_with(&parties, [2, 3], [[9; 16], [8; 16]], replay);
    assert!(met.sessions[1].is_none(), "{met:?}");
    let mut acceptor = Handshake::accept(Arc::new(parties[1].clone()), [8; 16]);
    let mut out = Vec::new();
    assert!(matches!(
        acceptor.handle(&recorded.said[0][0], &mut out),
        Ok(HandshakeStep::Called(_))
    ));
    let outcome = acceptor.handle(&recorded.said[0][1], &mut out);
    assert!(matches!(outcome, Err(HandshakeError::Refused(HandshakeRefusal::Replay))));

    // The acceptor's part again, to a dialler with another nonce.
    let replay = |from: usize, _: usize, bytes: &mut Vec<u8>| {
        if from == 1 {
            bytes.clone_from(&recorded.said[1][0]);
        }
    };
    let met = meet_with(&parties, [2, 3], [[9; 16], [2; 16]], replay);
    assert!(met.sessions[0].is_none(), "{met:?}");

    // A frame of that session in another one between the same two, either way.
    let mut met = meet_with(&parties, [2, 3], [[9; 16], [8; 16]], |_, _, _| {});
    for session in met.sessions.iter_mut().flatten() {
        assert!(session.opener.open(&frame).is_err());
    }
}

#[test]
fn every_changed_bit_is_found_out() {
    let parties = pair(Some(b"secret"));
    let lengths = meet(&parties).said.map(|said| said.iter().map(Vec::len).collect::<Vec<_>>());
    for (from, at) in [(0, 0), (1, 0), (0, 1)] {
        for bit in 0..lengths[from][at] * 8 {
            let met = meet_with(&parties, [2, 3], NONCES, |side, number, bytes| {
                if (side, number) == (from, at) {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            });
            // Who sent the last message believes in the link until its first frame is refused.
            assert!(met.sessions[1 - from].is_none(), "{from} {at} {bit}: {met:?}");
        }
    }
}

#[test]
fn another_version_is_told_so_whatever_follows_it() {
    let mut hello = Vec::new();
    message(&mut hello, Kind::Hello, |out| {
        out.put_u16(VERSION + 1);
        out.put(b"of a form not known yet");
    });
    let mut out = Vec::new();
    let mut acceptor = Handshake::accept(Arc::new(party("a", None)), NONCES[1]);
    let outcome = acceptor.handle(&hello, &mut out);
    assert!(matches!(outcome, Err(HandshakeError::Refused(HandshakeRefusal::Version))));
    assert_eq!(out[HEAD_BYTES..], [HandshakeRefusal::Version as u8]);
}

#[test]
fn messages_are_short() {
    let longest = "x".repeat(NODE_ID_BYTES_MAX);
    let mut out = Vec::new();
    let peer = Peer { node: NodeKey(1), core: 0 };
    let party = Arc::new(party(&longest, Some(b"secret")));
    Handshake::dial(party, 0, peer, 0, NONCES[0], &mut out);
    assert!(out.len() <= MESSAGE_BYTES_MAX, "{}", out.len());
}

proptest! {
    #[test]
    fn any_bytes_are_taken_without_panic(
        kind in 0u8..6,
        version in 0u16..3,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        dialled: bool,
        keyed: bool,
    ) {
        let [dialler, acceptor] = pair(keyed.then_some(&b"secret"[..])).map(Arc::new);
        let mut out = Vec::new();
        let peer = Peer { node: NodeKey::of(&acceptor.id), core: 0 };
        let mut side = match dialled {
            true => Handshake::dial(dialler, 0, peer, 0, NONCES[0], &mut out),
            false => Handshake::accept(acceptor, NONCES[1]),
        };
        let _ = side.handle(&bytes, &mut out);
        let mut message = MAGIC.to_le_bytes().to_vec();
        message.push(kind);
        message.put_u16(bytes.len() as u16 + 2);
        message.put_u16(version);
        message.extend_from_slice(&bytes);
        let established = matches!(side.handle(&message, &mut out), Ok(HandshakeStep::Done(_)));
        prop_assert!(!established);
    }
}

#[test]
fn whoever_is_asked_learns_what_the_caller_shows_and_may_refuse_it() {
    let [dialler, acceptor] = ["a", "b"].map(|id| Arc::new(party(id, None)));
    let (dialler, acceptor) = match NodeKey::of("a") < NodeKey::of("b") {
        true => (dialler, acceptor),
        false => (acceptor, dialler),
    };
    let peer = Peer { node: NodeKey::of(&acceptor.id), core: 0 };
    let expected = Caller { node: NodeKey::of(&dialler.id), boot: dialler.boot, pass: 77 };
    let (mut hello, mut out) = (Vec::new(), Vec::new());
    let mut dialling = Handshake::dial(dialler, 0, peer, 77, NONCES[0], &mut hello);
    let mut asked = Handshake::accept(acceptor, NONCES[1]);
    let Ok(HandshakeStep::Called(caller)) = asked.handle(&hello, &mut out) else {
        panic!("no caller")
    };
    assert_eq!(caller, expected);
    assert_eq!(
        asked.refuse(HandshakeRefusal::Unknown, &mut out),
        HandshakeError::Refused(HandshakeRefusal::Unknown)
    );
    let mut none = Vec::new();
    let learnt = dialling.handle(&out, &mut none);
    assert_eq!(learnt.unwrap_err(), HandshakeError::RefusedBy(HandshakeRefusal::Unknown));
    // It is over: a proof comes too late.
    let mut proof = Vec::new();
    message(&mut proof, Kind::Proof, |_| {});
    assert_eq!(asked.handle(&proof, &mut none).unwrap_err(), HandshakeError::Malformed);
}
