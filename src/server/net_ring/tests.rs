//! The net ring against sockets of this host.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;

mod overflow;

const TOKEN: Token = Token { index: 5, generation: 77 };

fn ring(buffer_count: u16, buffer_bytes: u32) -> NetRing {
    let flags = rustix::event::EventfdFlags::CLOEXEC;
    let wakeup = rustix::event::eventfd(0, flags).expect("an eventfd");
    NetRing::new(NetRingConfig { entries: 8, buffer_count, buffer_bytes }, wakeup)
        .expect("this host has io_uring")
}

#[test]
fn a_ring_that_was_rung_and_not_looked_at_goes_away() {
    let (gone, going) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let net = ring(2, 64);
        rustix::io::write(&net.wakeup, &1u64.to_ne_bytes()).expect("the eventfd counts");
        drop(net);
        gone.send(()).expect("the test waits");
    });
    going.recv_timeout(Duration::from_secs(10)).expect("its bell is not listened to for ever");
}

/// Turns the ring until `enough` says so of the events so far.
fn events(net: &mut NetRing, mut enough: impl FnMut(&mut NetRing, &mut Vec<NetEvent>) -> bool) {
    let started = Instant::now();
    let mut events = Vec::new();
    loop {
        net.submit().expect("the ring works");
        net.reap(&mut events);
        if enough(net, &mut events) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "waited too long: {events:?}");
    }
}

#[test]
fn bytes_arrive_in_order_through_few_small_buffers() {
    let mut net = ring(2, 64);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let sent: Vec<u8> = (0..50_000u32).map(|i| i as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || theirs.write_all(&sent));
    net.receive(ours.as_raw_fd(), TOKEN);
    let (mut arrived, mut exhausted) = (Vec::new(), 0);
    events(&mut net, |net, events| {
        for event in events.drain(..) {
            match event {
                NetEvent::Received { token, buffer, ended } => {
                    assert_eq!(token, TOKEN);
                    arrived.extend_from_slice(net.bytes(&buffer));
                    net.recycle(buffer);
                    if ended {
                        net.receive(ours.as_raw_fd(), TOKEN);
                    }
                }
                NetEvent::ReceiveEnded { outcome: Err(libc::ENOBUFS), .. } => {
                    exhausted += 1;
                    net.receive(ours.as_raw_fd(), TOKEN);
                }
                event => panic!("unexpected {event:?}"),
            }
        }
        arrived.len() >= expected.len()
    });
    writer.join().unwrap().unwrap();
    assert_eq!(arrived, expected);
    assert!(exhausted > 0, "two buffers of 64 bytes must run out");
}

#[test]
fn the_end_of_the_stream_and_a_cancellation_end_the_receive() {
    let mut net = ring(4, 256);
    let (ours, theirs) = UnixStream::pair().unwrap();
    net.receive(ours.as_raw_fd(), TOKEN);
    net.submit().unwrap();
    net.cancel_receive(TOKEN);
    let ended = |outcome| {
        move |_: &mut NetRing, events: &mut Vec<NetEvent>| {
            events.drain(..).any(|event| match event {
                NetEvent::ReceiveEnded { outcome: found, .. } => {
                    assert_eq!(found, outcome);
                    true
                }
                _ => false,
            })
        }
    };
    events(&mut net, ended(Err(libc::ECANCELED)));
    net.receive(ours.as_raw_fd(), TOKEN);
    drop(theirs);
    events(&mut net, ended(Ok(())));
}

#[test]
fn a_send_of_several_pieces_keeps_their_order_and_comes_back_whole() {
    let mut net = ring(4, 256);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let value = vec![b'v'; 400_000];
    let mut output = SendBuffer { buffer: b"headtail".to_vec(), pinned: Vec::new() };
    // SAFETY: `value` outlives the send, which completes below.
    output.pinned.push(unsafe { Pinned::new(4, ItemRef(1), &value) });
    let bytes = output.len();
    assert_eq!(bytes, 400_008);
    net.send(ours.as_raw_fd(), TOKEN, output, 0);
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; bytes];
        theirs.read_exact(&mut read).map(|()| read)
    });
    events(&mut net, |_, events| match events.pop() {
        Some(NetEvent::Sent { token, output, outcome }) => {
            assert_eq!((token, outcome), (TOKEN, SendOutcome::Whole));
            assert_eq!(output.buffer, b"headtail");
            true
        }
        _ => false,
    });
    let read = reader.join().unwrap().unwrap();
    assert!(read.starts_with(b"headvvv") && read.ends_with(b"vvvtail"));
    assert!(read[4..400_004] == value[..]);
}

#[test]
fn a_send_can_go_on_from_any_byte() {
    let value = vec![b'v'; 10];
    let mut output = SendBuffer { buffer: b"abcdef".to_vec(), pinned: Vec::new() };
    // SAFETY: never sent.
    output.pinned.push(unsafe { Pinned::new(3, ItemRef(1), &value) });
    for offset in 0..output.len() {
        let mut pieces = Vec::new();
        output.pieces(offset, &mut pieces);
        let rest: usize = pieces.iter().map(|piece| piece.iov_len).sum();
        assert_eq!(rest, output.len() - offset);
    }
}

#[test]
fn a_receive_straight_into_memory_waits_for_all_of_it() {
    let mut net = ring(4, 256);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut place = vec![0; 100_000];
    // SAFETY: `place` is not touched until the event below.
    unsafe { net.recv_into(ours.as_raw_fd(), TOKEN, &mut place) };
    net.submit().unwrap();
    let writer = std::thread::spawn(move || {
        for part in [b'a', b'b'] {
            theirs.write_all(&vec![part; 50_000]).unwrap();
        }
        theirs
    });
    events(&mut net, |_, events| match events.pop() {
        Some(NetEvent::ReceivedInto { outcome, .. }) => {
            assert_eq!(outcome, Ok(100_000));
            true
        }
        _ => false,
    });
    assert_eq!((place[0], place[99_999]), (b'a', b'b'));
    drop(writer.join());
}

#[test]
fn what_is_longer_than_a_send_leaves_in_several() {
    let mut net = ring(4, 256);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let value: Vec<u8> = (0..700_000u32).map(|i| (i / 7) as u8).collect();
    let expected = [b"head", &value[..], b"tail", &value].concat();
    let mut output = SendBuffer { buffer: b"headtail".to_vec(), pinned: Vec::new() };
    for at in [4, 8] {
        // SAFETY: `value` outlives the sends, which complete below.
        output.pinned.push(unsafe { Pinned::new(at, ItemRef(1), &value) });
    }
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; expected.len()];
        theirs.read_exact(&mut read).map(|()| read == expected)
    });
    net.send(ours.as_raw_fd(), TOKEN, output, 0);
    let mut rests = Vec::new();
    events(&mut net, |net, events| match events.pop() {
        Some(NetEvent::Sent { output, outcome: SendOutcome::Rest(from), .. }) => {
            rests.push(from);
            net.send(ours.as_raw_fd(), TOKEN, output, from);
            false
        }
        Some(NetEvent::Sent { outcome, .. }) => {
            assert_eq!(outcome, SendOutcome::Whole);
            true
        }
        _ => false,
    });
    assert_eq!(rests, [SEND_BYTES_MAX, 2 * SEND_BYTES_MAX]);
    assert!(reader.join().unwrap().unwrap(), "all of it, in order");
}

#[test]
fn dropping_the_ring_with_a_send_in_flight_frees_nothing_too_early() {
    let mut net = ring(4, 256);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = SendBuffer { buffer: vec![1; 8 << 20], pinned: Vec::new() };
    net.send(ours.as_raw_fd(), TOKEN, output, 0);
    net.receive(ours.as_raw_fd(), TOKEN);
    net.submit().unwrap();
    drop(net);
    drop(theirs);
}

#[test]
fn a_send_at_once_comes_back_without_ending_a_sleep() {
    let mut net = ring(4, 256);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    for (round, bytes) in [(0u8, 1), (1, 30_000)] {
        let output = SendBuffer { buffer: vec![round; bytes], pinned: Vec::new() };
        net.send_at_once(ours.as_raw_fd(), TOKEN, output);
        let mut events = Vec::new();
        net.reap(&mut events);
        assert!(events.is_empty(), "not submitted yet: {events:?}");
        let (started, limit) = (Instant::now(), Duration::from_millis(20));
        net.wait(WaitLimit::Until(limit)).unwrap();
        assert!(started.elapsed() >= limit);
        net.reap(&mut events);
        match &events[..] {
            [NetEvent::Sent { token: TOKEN, output, outcome }] => {
                assert_eq!((output.len(), *outcome), (bytes, SendOutcome::Whole));
            }
            events => panic!("unexpected {events:?}"),
        }
        let mut read = vec![9; bytes];
        theirs.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|&byte| byte == round));
        net.reap(&mut events);
        assert_eq!(events.len(), 1, "told once");
    }
}

#[test]
fn a_send_at_once_to_a_full_socket_tells_what_is_missing() {
    let mut net = ring(4, 256);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let bytes: Vec<u8> = (0..400_000u32).map(|i| (i / 7) as u8).collect();
    let expected = bytes.clone();
    net.send_at_once(ours.as_raw_fd(), TOKEN, SendBuffer { buffer: bytes, pinned: Vec::new() });
    let mut events = Vec::new();
    net.wait(WaitLimit::Endless).unwrap();
    net.reap(&mut events);
    let Some(NetEvent::Sent { output, outcome: SendOutcome::Rest(sent), .. }) = events.pop() else {
        panic!("unexpected {events:?}");
    };
    assert!(events.is_empty() && sent > 0 && sent < output.len(), "{sent} bytes found room");
    net.send_at_once(
        ours.as_raw_fd(),
        TOKEN,
        SendBuffer { buffer: vec![0; 9], pinned: Vec::new() },
    );
    net.submit().unwrap();
    net.reap(&mut events);
    let Some(NetEvent::Sent { outcome: SendOutcome::Rest(0), .. }) = events.pop() else {
        panic!("unexpected {events:?}");
    };
    net.send(ours.as_raw_fd(), TOKEN, output, sent);
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; expected.len()];
        theirs.read_exact(&mut read).map(|()| read == expected)
    });
    self::events(&mut net, |_, events| matches!(events.pop(), Some(NetEvent::Sent { .. })));
    assert!(reader.join().unwrap().unwrap(), "all of it, in order");
}

#[test]
fn sends_at_once_beyond_the_submission_queue_are_all_told() {
    let mut net = ring(4, 256);
    let pairs: Vec<_> = (0..20u32).map(|_| UnixStream::pair().unwrap()).collect();
    for (index, (ours, _)) in (0..).zip(&pairs) {
        let output = SendBuffer { buffer: vec![7; 100], pinned: Vec::new() };
        net.send_at_once(ours.as_raw_fd(), Token { index, generation: 1 }, output);
    }
    let mut events = Vec::new();
    net.submit().unwrap();
    net.reap(&mut events);
    let mut told: Vec<u32> = events
        .iter()
        .map(|event| match event {
            NetEvent::Sent { token, .. } => token.index,
            event => panic!("unexpected {event:?}"),
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, Vec::from_iter(0..20));
}

/// Waits until a ring has a message; asserts that it slept for it.
fn woken(net: &mut NetRing) {
    let mut events = Vec::new();
    net.submit().unwrap();
    net.reap(&mut events);
    assert!(events.is_empty(), "nothing has happened yet: {events:?}");
    net.wait(WaitLimit::Endless).unwrap();
    net.reap(&mut events);
    assert!(matches!(events[..], [NetEvent::Woken]), "{events:?}");
}

#[test]
fn another_ring_and_a_bell_end_the_sleep() {
    let (tell, told) = std::sync::mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        let mut net = ring(4, 256);
        tell.send((net.fd(), net.wakeup.try_clone().unwrap())).unwrap();
        woken(&mut net);
        woken(&mut net);
        woken(&mut net);
    });
    let (fd, bell) = told.recv().unwrap();
    let mut net = ring(4, 256);
    for way in 0..3 {
        std::thread::sleep(Duration::from_millis(20));
        if way == 0 {
            net.wake(fd);
            net.submit().unwrap();
        } else {
            rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
        }
    }
    sleeper.join().unwrap();
    // To a ring that is gone: no harm, and nothing that would be taken for an event.
    net.wake(fd);
    let mut events = Vec::new();
    net.submit().unwrap();
    net.reap(&mut events);
    assert!(events.is_empty(), "{events:?}");
}

/// What arrives while the kernel takes what arrived before raises its flag for nothing. That is a
/// matter of nanoseconds, so this tries it thousands of times.
#[test]
fn a_flag_that_stays_up_for_nothing_is_not_followed_for_long() {
    let mut net = ring(64, 256);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (pairs, ends): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
    for (index, ours) in (0..).zip(&pairs) {
        net.receive(ours.as_raw_fd(), Token { index, generation: 1 });
    }
    let (mut events, mut in_vain, mut most) = (Vec::new(), 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let spin_for = |time: Duration| {
                let begun = Instant::now();
                while begun.elapsed() < time {}
            };
            let mut nanos = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                nanos = (nanos * 75 + 74) % 65_537;
                (&ends[0]).write_all(&[7]).expect("it is read");
                spin_for(Duration::from_nanos(u64::from(nanos % 16_384)));
                (&ends[1]).write_all(&[7]).expect("it is read");
                spin_for(Duration::from_micros(80));
            }
        });
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(700) {
            let called = net.has_work();
            if called {
                net.submit().unwrap();
            } else {
                net.wait(WaitLimit::Until(Duration::from_millis(5))).unwrap();
            }
            net.reap(&mut events);
            in_vain = if called && events.is_empty() { in_vain + 1 } else { 0 };
            most = most.max(in_vain);
            for event in events.drain(..) {
                if let NetEvent::Received { token, buffer, ended } = event {
                    net.recycle(buffer);
                    if ended {
                        net.receive(pairs[token.index as usize].as_raw_fd(), token);
                    }
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(most <= 4, "{most} calls in a row found nothing");
}
