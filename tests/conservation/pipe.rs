//! A connection that writes and reads at once, so that long pipelines cannot block both sides.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

/// Longest wait for an answer: whoever meets it has found a hang.
const PATIENCE: Duration = Duration::from_secs(40);

/// One connection.
pub struct Pipe {
    stream: TcpStream,
    outgoing: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
    taken: usize,
}

impl Pipe {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_nonblocking(true).expect("a socket");
        Self { stream, outgoing: Vec::new(), sent: 0, incoming: Vec::new(), taken: 0 }
    }

    /// Bytes to be sent while answers are waited for.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.drain(..self.sent);
        self.sent = 0;
        self.outgoing.extend_from_slice(bytes);
    }

    /// Sends as much as the socket takes.
    pub fn push(&mut self) {
        while self.sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the server takes no more: {error}"),
            }
        }
    }

    /// Waits until `count` bytes are there that were not taken yet; shows them.
    fn await_bytes(&mut self, count: usize) -> &[u8] {
        let begun = Instant::now();
        while self.incoming.len() - self.taken < count {
            self.more(begun);
        }
        &self.incoming[self.taken..]
    }

    /// All that has arrived and was not taken.
    pub fn arrived(&self) -> &[u8] {
        &self.incoming[self.taken..]
    }

    /// Waits for at least one more byte, while what is queued goes out.
    pub fn await_more(&mut self) {
        let held = self.arrived().len();
        self.await_bytes(held + 1);
    }

    /// These bytes have been understood.
    pub fn consume(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.incoming.len() {
            self.incoming.clear();
            self.taken = 0;
        } else if self.taken > 1 << 20 {
            self.incoming.drain(..self.taken);
            self.taken = 0;
        }
    }

    fn more(&mut self, begun: Instant) {
        self.push();
        let mut events = PollFlags::IN;
        if self.sent < self.outgoing.len() {
            events |= PollFlags::OUT;
        }
        let mut polled = [PollFd::new(&self.stream, events)];
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut polled, Some(&second));
        assert!(begun.elapsed() < PATIENCE, "no answer in {PATIENCE:?}");
        let mut chunk = [0; 64 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => panic!("the server has closed the connection"),
            Ok(bytes) => self.incoming.extend_from_slice(&chunk[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the connection is lost: {error}"),
        }
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> String {
        let mut looked_at = 0;
        loop {
            let arrived = self.arrived();
            if let Some(at) = arrived[looked_at..].windows(2).position(|two| two == b"\r\n") {
                let at = looked_at + at;
                let line = String::from_utf8_lossy(&arrived[..at]).into_owned();
                self.consume(at + 2);
                return line;
            }
            looked_at = arrived.len().saturating_sub(1);
            self.await_more();
        }
    }

    /// Exactly so many bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.await_bytes(count)[..count].to_vec();
        self.consume(count);
        bytes
    }

    /// Closes with a reset: nothing that is on its way arrives for certain, on either side.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
}
