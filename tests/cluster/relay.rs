//! A slow network between nodes of one host: what a node sends to another passes a relay that
//! holds it back for a time that differs from packet to packet.
//!
//! Each node has a front, the address it tells others; there the relay takes connections and
//! datagrams and passes them on. The order of a connection's bytes is kept, that of datagrams is
//! not. Clients reach the nodes directly.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::live::Noise;
use crate::nodes::CLUSTER_PORT;

/// How often is looked whether something is due, or whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The relay; it ends when dropped, and with the nodes.
pub struct Relay {
    end: Arc<AtomicBool>,
}

/// A datagram on its way: which front it comes from, and whom it is for.
type Held = (usize, SocketAddr, Vec<u8>);

/// How long things are held back, differently each time.
struct Delays {
    millis: Range<u64>,
    noise: Noise,
}

impl Delays {
    fn new(millis: &Range<u64>, seed: usize) -> Self {
        Self { millis: millis.clone(), noise: Noise::new(0x2545_f491 + seed as u64) }
    }

    fn next(&mut self) -> Duration {
        let span = self.millis.end - self.millis.start;
        Duration::from_millis(self.millis.start + self.noise.below(span))
    }
}

impl Relay {
    /// Relays between nodes, each with its front and its own address, and holds everything back for
    /// some of `millis` in each direction.
    pub fn start(nodes: &[(Ipv4Addr, Ipv4Addr)], millis: Range<u64>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let bind = |(front, _): &(Ipv4Addr, Ipv4Addr)| {
            let socket = UdpSocket::bind((*front, CLUSTER_PORT)).expect("an address of our own");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("above zero");
            socket
        };
        let fronts: Arc<[UdpSocket]> = nodes.iter().map(bind).collect();
        let held: Arc<Mutex<BTreeMap<(Instant, usize), Held>>> = Arc::default();
        for (number, (front, own)) in nodes.iter().copied().enumerate() {
            let (ended, fronts, held) = (end.clone(), fronts.clone(), held.clone());
            let owns: Vec<Ipv4Addr> = nodes.iter().map(|(_, own)| *own).collect();
            let mut delays = Delays::new(&millis, number);
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                let mut count = number;
                while !ended.load(Ordering::Relaxed) {
                    let Ok((bytes, from)) = fronts[number].recv_from(&mut buffer) else { continue };
                    let Some(from) = owns.iter().position(|own| *own == from.ip()) else {
                        continue;
                    };
                    let due = Instant::now() + delays.next();
                    count += owns.len();
                    let to = (own, CLUSTER_PORT).into();
                    let datagram = (from, to, buffer[..bytes].to_vec());
                    held.lock().expect("no panic while it is held").insert((due, count), datagram);
                }
            });
            let listener = TcpListener::bind((front, CLUSTER_PORT)).expect("an address of our own");
            listener.set_nonblocking(true).expect("a listener");
            let (ended, millis) = (end.clone(), millis.clone());
            std::thread::spawn(move || accept(&listener, own, &millis, &ended));
        }
        let ended = end.clone();
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK_EVERY);
                let mut held = held.lock().expect("no panic while it is held");
                while let Some(first) = held.first_entry()
                    && first.key().0 <= Instant::now()
                {
                    let (from, to, bytes) = first.remove();
                    let _ = fronts[from].send_to(&bytes, to);
                }
            }
        });
        Self { end }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, own: Ipv4Addr, millis: &Range<u64>, end: &AtomicBool) {
    let mut count = 0;
    while !end.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((near, _)) => {
                // Who is not there is not there behind the relay either.
                let Ok(far) = TcpStream::connect((own, CLUSTER_PORT)) else { continue };
                near.set_nonblocking(false).expect("a connection");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    count += 1;
                    let _ = from.set_nodelay(true);
                    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                    pass_on(clone(from), clone(to), Delays::new(millis, count));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(LOOK_EVERY * 5);
            }
            Err(error) => panic!("the relay takes no connections: {error}"),
        }
    }
}

/// Passes bytes on in their order, each piece when its time has come.
fn pass_on(mut from: TcpStream, mut to: TcpStream, mut delays: Delays) {
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + delays.next();
            if sender.send((due, buffer[..bytes].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
