//! Completions for which there is no room, and completions that name nothing.
#![allow(unsafe_code)]

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::*;

/// More receives than the completion queue of [`ring`] has entries, which is 32.
const RECEIVES: u32 = 40;

/// A ring whose completion queue has overflowed, with what fills it: one byte for each of
/// [`RECEIVES`] tokens.
struct Overflowed {
    net: NetRing,
    pairs: Vec<(UnixStream, UnixStream)>,
    received: Vec<u32>,
}

impl Overflowed {
    fn new() -> Self {
        let mut net = ring(64, 64);
        let pairs: Vec<_> = (0..RECEIVES).map(|_| UnixStream::pair().unwrap()).collect();
        for ((ours, _), index) in pairs.iter().zip(0..) {
            net.receive(ours.as_raw_fd(), Token { index, generation: 3 });
        }
        net.submit().unwrap();
        let mut overflowed = Self { net, pairs, received: Vec::new() };
        overflowed.overflow();
        overflowed
    }

    /// Brings about more completions than there is room for.
    fn overflow(&mut self) {
        self.pairs.iter().for_each(|(_, theirs)| {
            let mut theirs = theirs;
            theirs.write_all(b"x").unwrap();
        });
        // Each call does some of the work.
        for _ in 0..10 {
            self.net.submit().unwrap();
        }
        assert!(self.net.ring.submission().cq_overflow(), "the queue has no room for all");
    }

    /// Turns the ring until all receives and whatever `other` waits for have been told. `other`
    /// says of each other event whether it was the last one it waits for.
    fn tell(mut self, mut other: impl FnMut(&mut NetRing, NetEvent) -> bool) {
        let (mut done, mut events) = (false, Vec::new());
        let started = Instant::now();
        while self.received.len() < RECEIVES as usize || !done {
            assert!(started.elapsed() < Duration::from_secs(10), "{} told", self.received.len());
            self.net.reap(&mut events);
            for event in events.drain(..) {
                match event {
                    NetEvent::Received { token, buffer, .. } if token.generation == 3 => {
                        self.received.push(token.index);
                        self.net.recycle(buffer);
                    }
                    event => done |= other(&mut self.net, event),
                }
            }
            self.net.submit().unwrap();
        }
        self.received.sort_unstable();
        assert_eq!(self.received, Vec::from_iter(0..RECEIVES), "each once");
        assert_eq!(self.net.stale_completions(), 0);
    }
}

fn output(bytes: usize) -> SendBuffer {
    SendBuffer { buffer: vec![1; bytes], pinned: Vec::new() }
}

/// Waits for `count` events.
fn count_to(count: u32) -> impl FnMut(&mut NetRing, NetEvent) -> bool {
    let mut found = 0;
    move |_, _| {
        found += 1;
        assert!(found <= count, "told too often");
        found == count
    }
}

#[test]
fn accepts_are_told_beyond_the_room_for_completions() {
    let mut full = Overflowed::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let clients: Vec<_> =
        (0..20).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
    full.net.accept(listener.as_raw_fd(), 2);
    full.net.submit().unwrap();
    let mut accepted = 0;
    full.tell(|net, event| {
        match event {
            NetEvent::Accepted { listener: 2, socket: _ } => accepted += 1,
            // Without room for more completions the kernel ends it.
            NetEvent::AcceptEnded { listener: 2, error: None } => {
                net.accept(listener.as_raw_fd(), 2)
            }
            event => panic!("unexpected {event:?}"),
        }
        accepted == clients.len()
    });
}

#[test]
fn single_receives_and_fills_are_told_beyond_the_room_for_completions() {
    let mut full = Overflowed::new();
    let pairs: Vec<_> = (0..6u32).map(|_| UnixStream::pair().unwrap()).collect();
    let mut places = vec![[0u8; 8]; 3];
    for (number, (ours, theirs)) in (0..).zip(&pairs) {
        let mut theirs = theirs;
        theirs.write_all(b"12345678").unwrap();
        let token = Token { index: number, generation: 4 };
        match places.get_mut(number as usize) {
            // SAFETY: the places are looked at when all have been told.
            Some(place) => unsafe { full.net.recv_into(ours.as_raw_fd(), token, place) },
            None => full.net.receive_once(ours.as_raw_fd(), token, 8),
        }
    }
    full.net.submit().unwrap();
    let mut told = 0;
    full.tell(|net, event| {
        match event {
            NetEvent::ReceivedInto { token, outcome } => {
                assert!(token.index < 3 && outcome == Ok(8))
            }
            NetEvent::Received { token, buffer, ended: true } if token.index >= 3 => {
                assert_eq!(net.bytes(&buffer), b"12345678");
                net.recycle(buffer);
            }
            event => panic!("unexpected {event:?}"),
        }
        told += 1;
        told == 6
    });
    assert_eq!(places, [*b"12345678"; 3]);
}

#[test]
fn sends_are_told_beyond_the_room_for_completions() {
    let mut full = Overflowed::new();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    for index in 0..5 {
        full.net.send(ours.as_raw_fd(), Token { index, generation: 4 }, output(10), 0);
    }
    full.net.submit().unwrap();
    full.tell(count_to(5));
}

#[test]
fn sends_at_once_are_told_beyond_the_room_for_completions_and_not_before() {
    let mut full = Overflowed::new();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (dead, _) = UnixStream::pair().unwrap();
    for index in 0..6 {
        let socket = if index % 2 == 0 { &ours } else { &dead };
        let token = Token { index, generation: 4 };
        full.net.send_at_once(socket.as_raw_fd(), token, output(10));
    }
    full.net.submit().unwrap();
    let mut events = Vec::new();
    full.net.reap(&mut events);
    for event in events.drain(..) {
        match event {
            NetEvent::Received { token, buffer, .. } => {
                full.received.push(token.index);
                full.net.recycle(buffer);
            }
            event => panic!("the kernel has more to tell, so nothing is certain: {event:?}"),
        }
    }
    full.net.submit().unwrap();
    let mut told = 0;
    full.tell(|_, event| {
        let NetEvent::Sent { token, outcome, .. } = event else { panic!("unexpected {event:?}") };
        let failed = outcome == SendOutcome::Failed(libc::EPIPE);
        assert_eq!(failed, token.index % 2 == 1, "{token:?}: {outcome:?}");
        told += 1;
        told == 6
    });
}

#[test]
fn failures_of_sends_at_once_beyond_the_room_end_no_other_send() {
    let mut full = Overflowed::new();
    let (dead, _) = UnixStream::pair().unwrap();
    for index in 0..5 {
        full.net.send_at_once(dead.as_raw_fd(), Token { index, generation: 4 }, output(10));
    }
    full.net.submit().unwrap();
    // The first ones are told here while others are not, and their slots are free again.
    let mut events = Vec::new();
    full.net.reap(&mut events);
    full.net.submit().unwrap();
    full.overflow();
    full.net.reap(&mut events);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let victim = Token { index: 500, generation: 9 };
    full.net.send(ours.as_raw_fd(), victim, output(SEND_BYTES_MAX), 0);
    for _ in 0..5 {
        full.net.submit().unwrap();
        full.net.reap(&mut events);
    }
    let of_victim =
        |event: &NetEvent| matches!(event, NetEvent::Sent { token, .. } if *token == victim);
    assert!(!events.iter().any(of_victim), "nobody has read it");
    let reader = std::thread::spawn(move || theirs.read_exact(&mut vec![0; SEND_BYTES_MAX]));
    super::events(&mut full.net, |_, events| events.iter().any(of_victim));
    reader.join().unwrap().unwrap();
    assert_eq!(full.net.stale_completions(), 0);
}

#[test]
fn cancellations_heartbeats_bells_and_wakes_are_told_beyond_the_room_for_completions() {
    let mut full = Overflowed::new();
    full.net.cancel_receive(Token { index: 7, generation: 99 });
    full.net.wake(-1);
    full.net.submit().unwrap();
    full.net.heartbeat(1);
    rustix::io::write(&full.net.wakeup, &1u64.to_ne_bytes()).unwrap();
    let own = full.net.fd();
    full.net.wake(own);
    full.net.submit().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    full.net.submit().unwrap();
    assert!(full.net.ring.submission().cq_overflow());
    let (mut woken, mut beaten) = (0, 0);
    full.tell(|_, event| {
        match event {
            NetEvent::Woken => woken += 1,
            NetEvent::Heartbeat => beaten += 1,
            event => panic!("unexpected {event:?}"),
        }
        assert!(woken <= 2 && beaten <= 1);
        woken == 2 && beaten == 1
    });
}

#[test]
fn a_full_submission_queue_is_submitted_whatever_has_overflowed() {
    let mut full = Overflowed::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || theirs.read_exact(&mut [0; 1600]));
    // 200 times the submission queue.
    for index in 0..1600 {
        full.net.send(ours.as_raw_fd(), Token { index, generation: 4 }, output(1), 0);
    }
    assert!(full.net.has_work(), "what was taken out on the way");
    full.tell(count_to(1600));
    reader.join().unwrap().unwrap();
}

#[test]
fn completions_that_name_nothing_under_way_are_ignored_and_counted() {
    let mut net = ring(4, 64);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    net.accept(listener.as_raw_fd(), 0);
    net.heartbeat(100_000);
    net.send(ours.as_raw_fd(), TOKEN, output(4 << 20), 0);
    net.submit().unwrap();
    let armed = net.armed;
    // A ring can be told to complete what never was an operation, with a message to itself.
    let kinds = [Kind::Accept, Kind::Send, Kind::Heartbeat, Kind::ReceiveInto, Kind::SendAtOnce];
    let names = kinds.map(|kind| UserData::new(kind, 0, 77).encode());
    let names = names.into_iter().chain([UserData::new(Kind::Send, 9, 1).encode(), 0, u64::MAX]);
    let count = names.clone().count() as u64;
    for name in names {
        let entry = opcode::MsgRingData::new(Fd(net.fd()), -libc::EIO, name, None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(UserData::new(Kind::Wake, 0, 0).encode());
        // SAFETY: the entry points to no memory.
        unsafe { net.push(&entry) }
        net.armed -= 1;
    }
    let mut events = Vec::new();
    let started = Instant::now();
    while net.stale_completions() < count {
        net.submit().unwrap();
        net.reap(&mut events);
        assert!(started.elapsed() < Duration::from_secs(10), "{}", net.stale_completions());
    }
    assert!(events.is_empty(), "{events:?}");
    assert_eq!((net.stale_completions(), net.armed), (count, armed));
    drop(theirs);
    self::events(&mut net, |_, events| matches!(events.pop(), Some(NetEvent::Sent { .. })));
}
