//! Ways of attackers to send and to read.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Sends as much of `bytes` as the socket takes at once; how much that was.
pub fn push(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            // Full, or closed by the server.
            Err(_) => break,
        }
    }
    stream.set_nonblocking(false).expect("a socket");
    sent
}

/// Sends `bytes` again and again for so long, and throws answers away as they come. Then goes on to
/// read until all that was sent as a whole is answered, which `answer_ends` counts in a chunk; how
/// many answers there were.
pub fn pour(stream: &mut TcpStream, bytes: &[u8], span: Duration) -> u64 {
    stream.set_nonblocking(true).expect("a socket");
    let begun = Instant::now();
    let mut at = 0;
    let mut received = 0;
    let mut chunk = vec![0; 256 << 10];
    while begun.elapsed() < span {
        match stream.write(&bytes[at..]) {
            Ok(count) => at = (at + count) % bytes.len(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => received += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut polled = [PollFd::new(&*stream, PollFlags::IN | PollFlags::OUT)];
                let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
            }
            Err(_) => break,
        }
    }
    stream.set_nonblocking(false).expect("a socket");
    received
}

/// Sends all of it, while answers are thrown away; then reads until `end` has come.
pub fn exchange(stream: &mut TcpStream, bytes: &[u8], end: &[u8]) {
    const PATIENCE: Duration = Duration::from_secs(120);
    stream.set_nonblocking(true).expect("a socket");
    let begun = Instant::now();
    let (mut sent, mut tail, mut chunk) = (0, Vec::new(), vec![0; 256 << 10]);
    while sent < bytes.len() || !tail.ends_with(end) {
        assert!(begun.elapsed() < PATIENCE, "no answer in {PATIENCE:?}");
        let mut idle = true;
        if sent < bytes.len() {
            match stream.write(&bytes[sent..]) {
                Ok(count) => (sent, idle) = (sent + count, false),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("the server takes no more: {error}"),
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) => panic!("the server has closed"),
            Ok(count) => {
                tail.extend_from_slice(&chunk[..count]);
                tail.drain(..tail.len().saturating_sub(end.len()));
                idle = false;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the connection is lost: {error}"),
        }
        if idle {
            let wanted = if sent < bytes.len() { PollFlags::OUT } else { PollFlags::empty() };
            let mut polled = [PollFd::new(&*stream, PollFlags::IN | wanted)];
            let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
        }
    }
    stream.set_nonblocking(false).expect("a socket");
}

/// Several attackers at once.
pub fn at_once(count: usize, attack: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for number in 0..count {
            let attack = &attack;
            scope.spawn(move || attack(number));
        }
    });
}

/// One frame of memcached's binary protocol.
pub fn classic(opcode: u8, key: &[u8], extras: &[u8], value: &[u8]) -> Vec<u8> {
    let body = (extras.len() + key.len() + value.len()) as u32;
    let mut frame = vec![0x80, opcode];
    frame.extend((key.len() as u16).to_be_bytes());
    frame.extend([extras.len() as u8, 0, 0, 0]);
    frame.extend(body.to_be_bytes());
    frame.extend([0; 12]);
    frame.extend([extras, key, value].concat());
    frame
}
