//! Strangers at the ports that are for other nodes: garbage, forgeries, and floods of both.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::live::Noise;
use crate::scene::{Attack, Scene, Setup};
use crate::traffic::push;

pub const ATTACKS: [Attack; 8] = [
    Attack { name: "garbage as datagrams", setup: Setup::Cluster, run: datagrams },
    Attack { name: "garbage as datagrams, with a key", setup: Setup::KeyedCluster, run: datagrams },
    Attack { name: "garbage as streams", setup: Setup::Cluster, run: streams },
    Attack { name: "garbage as streams, with a key", setup: Setup::KeyedCluster, run: streams },
    Attack { name: "handshakes that stop", setup: Setup::Cluster, run: handshakes },
    Attack {
        name: "handshakes that stop, with a key",
        setup: Setup::KeyedCluster,
        run: handshakes,
    },
    Attack { name: "a forged welcome", setup: Setup::Cluster, run: forged_welcome },
    Attack {
        name: "a forged welcome, with a key",
        setup: Setup::KeyedCluster,
        run: forged_welcome,
    },
];

/// An envelope of gossip: what it is, what the sender takes for the cluster's terms, and a body.
fn envelope(kind: u8, terms: [u64; 2], sender: u64, sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"RLg1".to_vec();
    bytes.push(kind);
    for word in [terms[0], terms[1], sender, 1, sequence] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

fn socket(scene: &Scene) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.connect(scene.cluster).expect("an address");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    socket
}

/// Refused quietly: without a line of log each, and without answers longer than what was sent.
fn datagrams(scene: &Scene, noise: &mut Noise) {
    let socket = socket(scene);
    socket.set_nonblocking(true).expect("a socket");
    let (mut sent, mut answered) = (0, 0);
    let mut chunk = [0; 65536];
    let begun = Instant::now();
    for round in 0..20_000u64 {
        let length = noise.below(1400) as usize;
        let garbage = noise.bytes(if round % 8 == 0 { length } else { length % 64 });
        let bytes = match round % 4 {
            0 => garbage,
            1 => envelope(noise.below(8) as u8, [0, 0], noise.next(), round, &garbage),
            2 => [&b"RLg1"[..], &garbage].concat(),
            _ => envelope(1, [0, 0], 1, round, b""),
        };
        sent += socket.send(&bytes).unwrap_or(0);
        while let Ok(length) = socket.recv(&mut chunk) {
            answered += length;
        }
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    sleep(Duration::from_millis(200));
    while let Ok(length) = socket.recv(&mut chunk) {
        answered += length;
    }
    assert!(answered <= sent, "{answered} bytes answer {sent}");
}

fn streams(scene: &Scene, noise: &mut Noise) {
    for round in 0..300 {
        let Ok(mut stream) = TcpStream::connect(scene.cluster) else { continue };
        let length = noise.below(5000) as usize;
        let mut bytes = noise.bytes(length);
        if round % 2 == 0 {
            let kind = noise.below(5) as u8;
            bytes = [&b"RLh1"[..], &[kind, 0xff, noise.below(9) as u8], &bytes].concat();
        }
        push(&mut stream, &bytes);
        if round % 3 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
            let _ = stream.read(&mut [0; 1000]);
        }
    }
}

/// Many who begin to shake hands and leave it at that.
fn handshakes(scene: &Scene, _: &mut Noise) {
    let mut streams: Vec<TcpStream> =
        (0..400).filter_map(|_| TcpStream::connect(scene.cluster).ok()).collect();
    for (i, stream) in streams.iter_mut().enumerate() {
        let announced: &[u8] = &[b'R', b'L', b'h', b'1', 1, 0xff, 0x01, 3, 0];
        push(stream, &announced[..i % (announced.len() + 1)]);
    }
    sleep(Duration::from_secs(1));
    // The others are still heard: a datagram is answered, or silently refused, but the node lives.
    for stream in &mut streams {
        let _ = stream.write(b"x");
    }
}

/// "Another process runs as you, and it is younger": believed from anybody, it ends the node.
fn forged_welcome(scene: &Scene, _: &mut Noise) {
    let socket = socket(scene);
    let mut chunk = [0; 4096];
    let identity = |id: &[u8], boot: u64, port: u16| {
        let mut address = vec![4, 127, 0, 0, 1];
        address.extend(port.to_le_bytes());
        let mut bytes = vec![id.len() as u8];
        bytes.extend_from_slice(id);
        bytes.extend(boot.to_le_bytes());
        bytes.extend([0; 4]);
        [bytes, address.clone(), address].concat()
    };
    // Asked with wrong terms, a node may tell the right ones.
    socket.send(&envelope(1, [0, 0], 1, 1, b"")).expect("it is sent");
    let mut terms = [0; 2];
    if let Ok(length) = socket.recv(&mut chunk)
        && length >= 21
    {
        let word = |at: usize| u64::from_le_bytes(chunk[at..at + 8].try_into().expect("eight"));
        terms = [word(5), word(13)];
    }
    let me = identity(b"evil", 1, socket.local_addr().expect("an address").port());
    socket.send(&envelope(1, terms, 12_345, 2, &me)).expect("it is sent");
    let mut id = scene.cluster.to_string().into_bytes();
    if let Ok(length) = socket.recv(&mut chunk)
        && length > 46
        && length > 46 + chunk[45] as usize
    {
        id = chunk[46..46 + chunk[45] as usize].to_vec();
    }
    for boot in [1 << 63, u64::MAX - 1, 2] {
        let itself = identity(&id, boot, scene.cluster.port());
        let body = [&me[..], &itself].concat();
        let _ = socket.send(&envelope(2, terms, 12_345, 3 + boot % 7, &body));
    }
    sleep(Duration::from_millis(1500));
}
