use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::cluster::frame::AuthKey;
use crate::cluster::handshake::{Handshake, HandshakeStep, Party};
use crate::cluster::link::ClientEndpoint;
use crate::cluster::membership::Terms;
use crate::cluster::message::Message;
use crate::cluster::quorum::Replication;
use crate::ring::RingParameters;
use crate::server::net_ring::NetRingConfig;

const SETTINGS: LinkSettings =
    LinkSettings { queue_bytes_max: 4096, message_bytes_max: 1 << 20, bytes_max: 64 << 20 };

fn ids() -> [&'static str; 2] {
    if NodeKey::of("a") < NodeKey::of("b") { ["a", "b"] } else { ["b", "a"] }
}

/// Both ends of a session between core 0 of one node and core 1 of the other.
fn sessions(boot: u64, frame_bytes_max: u32) -> [Box<LinkSession>; 2] {
    let party = |id: &str| {
        Arc::new(Party {
            id: id.into(),
            boot: Boot(boot),
            core_count: 2,
            hash_seed: 7,
            frame_bytes_max,
            clients: ClientEndpoint::default(),
            terms: Terms::new("test", RingParameters::default(), Replication::default()),
            key: Some(AuthKey::from_file_contents(b"secret")),
            listed: None,
        })
    };
    let [dialler, acceptor] = ids().map(party);
    let peer = Peer { node: NodeKey::of(&acceptor.id), core: 1 };
    let [mut hello, mut welcome, mut proof] = [vec![], vec![], vec![]];
    let mut dialling = Handshake::dial(dialler, 0, peer, 0, [1; 16], &mut hello);
    let mut accepting = Handshake::accept(acceptor, [2; 16]);
    accepting.handle(&hello, &mut welcome).expect("a hello");
    let Ok(HandshakeStep::Done(ours)) = dialling.handle(&welcome, &mut proof) else {
        panic!("no session")
    };
    let mut none = Vec::new();
    let Ok(HandshakeStep::Done(theirs)) = accepting.handle(&proof, &mut none) else {
        panic!("no session")
    };
    [ours, theirs]
}

/// One core with its links.
struct Side {
    net: NetRing,
    links: LinkTable,
    frames: Vec<Vec<u8>>,
}

impl Side {
    fn new(settings: LinkSettings) -> Self {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let wakeup = rustix::event::eventfd(0, flags).expect("an eventfd");
        let config = NetRingConfig { entries: 8, buffer_count: 4, buffer_bytes: 256 };
        let net = NetRing::new(config, wakeup).expect("this host has io_uring");
        Self { net, links: LinkTable::new(settings), frames: Vec::new() }
    }

    fn add(&mut self, socket: UnixStream, session: Box<LinkSession>, serial: u64) {
        self.links.add(NewLink { socket: socket.into(), session, serial });
    }

    fn turn(&mut self) {
        let Self { net, links, frames } = self;
        net.submit().expect("the ring works");
        let mut events = Vec::new();
        net.reap(&mut events);
        for event in events {
            assert!(LinkTable::own(&event), "{event:?}");
            links.handle(event, net, |_, _, body| {
                if !body.is_empty() {
                    frames.push(body.to_vec());
                }
            });
        }
        links.flush(net);
        net.submit().expect("the ring works");
    }

    fn say(&mut self, peer: Peer, message: &[u8]) -> bool {
        let Some(room) = self.links.buffer_for(peer) else { return false };
        room.extend_from_slice(&(message.len() as u32).to_le_bytes());
        room.extend_from_slice(message);
        true
    }

    fn events(&mut self) -> Vec<LinkEvent> {
        std::iter::from_fn(|| self.links.next_event()).collect()
    }

    fn messages(&self) -> Vec<&[u8]> {
        let mut messages = Vec::new();
        for mut frame in self.frames.iter().map(Vec::as_slice) {
            while let Some((length, rest)) = frame.split_first_chunk() {
                let (message, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
                messages.push(message);
                frame = rest;
            }
        }
        messages
    }
}

/// Turns both sides until `enough` says so.
fn until(sides: &mut [Side; 2], enough: impl Fn(&[Side; 2]) -> bool) {
    let started = Instant::now();
    while !enough(sides) {
        sides.iter_mut().for_each(Side::turn);
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
    }
}

fn linked(settings: LinkSettings, frame_bytes_max: u32) -> ([Side; 2], [Peer; 2]) {
    let mut sides = [Side::new(settings), Side::new(settings)];
    let (ours, theirs) = UnixStream::pair().unwrap();
    let [first, second] = sessions(1, frame_bytes_max);
    let peers = [first.peer, second.peer];
    sides[0].add(ours, first, 5);
    sides[1].add(theirs, second, 0);
    (sides, peers)
}

#[test]
fn a_link_announces_itself_and_carries_messages_both_ways() {
    let (mut sides, peers) = linked(SETTINGS, 1 << 20);
    for (side, peer) in sides.iter_mut().zip(peers) {
        let events = side.events();
        let [LinkEvent::Up { peer: up, facts }] = events[..] else { panic!("{events:?}") };
        assert_eq!((up, facts.core_count, facts.hash_seed), (peer, 2, 7));
        assert!(side.say(peer, b"one") && side.say(peer, b"two"));
    }
    until(&mut sides, |sides| sides.iter().all(|side| side.messages().len() == 2));
    for side in &sides {
        assert_eq!(side.messages(), [b"one", b"two"]);
        assert_eq!(side.frames.len(), 1, "a turn's messages leave as one frame");
        let counters = side.links.counters();
        assert_eq!((counters.up, counters.frames_sent, counters.frames_received), (1, 1, 1));
    }
}

#[test]
fn long_and_many_frames_arrive_in_order_through_small_buffers() {
    let settings = LinkSettings { queue_bytes_max: 1 << 20, ..SETTINGS };
    let (mut sides, peers) = linked(settings, 1 << 20);
    let mut expected = Vec::new();
    for number in 0..60u32 {
        let message = vec![number as u8; (number as usize * 997) % 5000];
        assert!(sides[0].say(peers[0], &message));
        expected.push(message);
        if number % 3 == 0 {
            sides.iter_mut().for_each(Side::turn);
        }
    }
    until(&mut sides, |sides| sides[1].messages().len() == expected.len());
    assert_eq!(sides[1].messages(), expected);
}

/// Says requests of `bytes` until there is no room, and counts them. Nobody turns the other side;
/// the kernel's buffers fill up.
fn say_until_full(side: &mut Side, peer: Peer, bytes: usize) -> usize {
    let mut said = 0;
    while let PeerBuffer::Open(room) = side.links.request_buffer(peer, Class::Request, bytes) {
        room.extend_from_slice(&(bytes as u32).to_le_bytes());
        room.resize(room.len() + bytes, 7);
        said += 1;
        side.turn();
        assert!(said < 100_000, "no bound");
    }
    said
}

#[test]
fn there_is_no_room_for_a_peer_that_does_not_read_until_it_reads_again() {
    let (mut sides, peers) = linked(SETTINGS, 1 << 20);
    let short = say_until_full(&mut sides[0], peers[0], 1000);
    let long = say_until_full(&mut sides[0], peers[0], 100_000);
    assert!(long > 0, "they have a queue of their own");
    assert_eq!(sides[0].links.counters().waited, 2);
    assert!(sides[0].links.held_bytes() < 2 * (4096 + 200_000), "what waits is bounded");
    assert!(sides[0].links.next_roomy().is_none());
    assert!(sides[0].say(peers[0], b"an answer is always taken"));
    until(&mut sides, |sides| sides[1].messages().len() == short + long + 1);
    assert_eq!(sides[0].links.next_roomy(), Some(peers[0]), "told once");
    assert!(sides[0].links.next_roomy().is_none());
    assert_eq!(sides[0].links.held_bytes() + sides[1].links.held_bytes(), 0);
}

#[test]
fn a_long_message_leaves_in_pieces_and_short_ones_pass_it() {
    let settings = LinkSettings { message_bytes_max: 8 << 20, ..SETTINGS };
    let (mut sides, peers) = linked(settings, 8 << 20);
    let long = vec![1; 4 << 20];
    assert!(sides[0].say(peers[0], &long));
    sides[0].turn();
    assert!(sides[0].say(peers[0], b"short"));
    until(&mut sides, |sides| !sides[1].messages().is_empty());
    assert_eq!(sides[1].messages(), [b"short"]);
    until(&mut sides, |sides| sides[1].messages().len() == 2);
    assert!(sides[1].messages()[1] == long);
}

/// A long message that is done as soon as it comes, and one that is to be coordinated.
fn long_messages() -> [Vec<u8>; 2] {
    let mut request = vec![0; 2 << 20];
    request[0] = 6;
    let mut forward = vec![0; 2 << 20];
    forward[0] = 9;
    assert!(Message::is_forward(&forward) && !Message::is_answer(&request));
    [request, forward]
}

#[test]
fn what_arrives_in_part_is_bounded_for_all_links_together() {
    let settings =
        LinkSettings { queue_bytes_max: 8 << 20, message_bytes_max: 8 << 20, bytes_max: 1 << 20 };
    let (mut sides, peers) = linked(settings, 8 << 20);
    let messages = long_messages();
    for message in &messages {
        assert!(sides[0].say(peers[0], message));
    }
    let started = Instant::now();
    while sides[1].messages().len() < 2 {
        sides.iter_mut().for_each(Side::turn);
        // One message, and of the other what may come unasked; and the beginning of a frame.
        let held = sides[1].links.held_bytes();
        assert!(held <= (2 << 20) + (128 << 10) + (130 << 10), "{held} bytes");
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
    }
    assert_eq!(sides[1].links.held_bytes() + sides[0].links.held_bytes(), 0);
}

#[test]
fn requests_to_be_coordinated_wait_until_there_is_memory_for_them() {
    let settings = LinkSettings { message_bytes_max: 8 << 20, ..SETTINGS };
    let (mut sides, peers) = linked(settings, 8 << 20);
    sides[1].links.set_forward_room(0);
    let [request, forward] = long_messages();
    assert!(sides[0].say(peers[0], &forward) && sides[0].say(peers[0], &request));
    until(&mut sides, |sides| sides[1].messages().len() == 1);
    for _ in 0..100 {
        sides.iter_mut().for_each(Side::turn);
    }
    assert!(sides[1].messages() == [&request[..]], "it passes");
    assert!(sides[1].links.held_bytes() <= 128 << 10);
    sides[1].links.set_forward_room(1 << 20);
    until(&mut sides, |sides| sides[1].messages().len() == 2);
    assert!(sides[1].messages()[1] == forward);
}

#[test]
fn a_link_whose_peer_is_gone_is_reported_and_forgotten() {
    let (mut sides, peers) = linked(SETTINGS, 1 << 20);
    sides.iter_mut().for_each(Side::turn);
    let [mut ours, theirs] = sides;
    drop(theirs);
    let started = Instant::now();
    assert_eq!(ours.events().len(), 1);
    while ours.links.counters().up > 0 {
        ours.turn();
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
    }
    assert_eq!(ours.events(), [LinkEvent::Down { peer: peers[0], boot: Boot(1) }]);
    let lost: Vec<LostLink> = ours.links.take_lost().collect();
    assert_eq!(lost, [LostLink { peer: peers[0], serial: 5 }]);
    assert!(ours.links.buffer_for(peers[0]).is_none());
    assert!(matches!(ours.links.request_buffer(peers[0], Class::Request, 1), PeerBuffer::Unlinked));
    ours.turn();
    assert!(ours.links.slots[0].link.is_none(), "its descriptor is closed");
}

#[test]
fn a_new_link_replaces_the_old_one_unless_it_reaches_an_earlier_start() {
    let (mut sides, peers) = linked(SETTINGS, 1 << 20);
    let (again, _other) = UnixStream::pair().unwrap();
    let [later, _] = sessions(2, 1 << 20);
    sides[0].add(again, later, 6);
    let events = sides[0].events();
    assert!(matches!(
        events[..],
        [LinkEvent::Up { .. }, LinkEvent::Down { .. }, LinkEvent::Up { .. }]
    ));
    assert_eq!(sides[0].links.take_lost().map(|lost| lost.serial).collect::<Vec<_>>(), [5]);
    let (stale, _other) = UnixStream::pair().unwrap();
    let [earlier, _] = sessions(1, 1 << 20);
    sides[0].add(stale, earlier, 7);
    assert!(sides[0].events().is_empty());
    assert_eq!(sides[0].links.take_lost().map(|lost| lost.serial).collect::<Vec<_>>(), [7]);
    assert!(sides[0].say(peers[0], b"to the later one"));
    sides[0].links.end_node(peers[0].node, Boot(1));
    assert!(sides[0].events().is_empty(), "an earlier life is meant");
    sides[0].links.end_node(peers[0].node, Boot(2));
    assert_eq!(sides[0].events(), [LinkEvent::Down { peer: peers[0], boot: Boot(2) }]);
    assert!(!sides[0].say(peers[0], b"to nobody"));
}

#[test]
fn a_peer_that_breaks_the_rules_of_frames_is_cut_off() {
    use std::io::Write;
    let mut side = Side::new(SETTINGS);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let [session, _] = sessions(1, 1 << 20);
    side.add(ours, session, 1);
    side.turn();
    theirs.write_all(&[0; 64]).unwrap();
    let started = Instant::now();
    while side.links.counters().bad_frames == 0 {
        side.turn();
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
    }
    assert!(matches!(side.events()[..], [LinkEvent::Up { .. }, LinkEvent::Down { .. }]));
    // A length beyond the bound is refused from the head, before anything is waited for.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let [session, _] = sessions(1, 1 << 20);
    side.add(ours, session, 2);
    side.turn();
    theirs.write_all(&(2u32 << 20).to_le_bytes()).unwrap();
    theirs.write_all(&[0; HEAD_BYTES - 4]).unwrap();
    while side.links.counters().bad_frames == 1 {
        side.turn();
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
    }
}

#[test]
fn what_is_too_long_for_the_peer_is_dropped() {
    let (mut sides, peers) = linked(SETTINGS, 20_000);
    assert!(sides[0].say(peers[0], &[9; 30_000]), "too long for the peer, and dropped");
    assert!(sides[0].say(peers[0], b"last"));
    until(&mut sides, |sides| sides[1].messages().len() == 1);
    assert_eq!(sides[1].messages(), [b"last"]);
    assert_eq!(sides[0].links.counters().too_long, 1);
}

#[test]
fn closing_waits_until_the_kernel_has_let_go() {
    let (mut sides, peers) = linked(SETTINGS, 1 << 20);
    sides[0].say(peers[0], b"on its way");
    sides[0].turn();
    let started = Instant::now();
    let [side, _] = &mut sides;
    while !side.links.close(&mut side.net) {
        side.turn();
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long");
    }
}
