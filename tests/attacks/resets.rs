//! Clients that reset their connections in every state, and that close only one half.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use crate::live::Noise;
use crate::scene::{Attack, Scene, Setup, reset};
use crate::traffic::{classic, push};

pub const ATTACKS: [Attack; 4] = [
    Attack { name: "resets in every state", setup: Setup::Plain, run: resets },
    Attack { name: "resets among long answers", setup: Setup::Plain, run: resets_of_readers },
    Attack { name: "half-closed in every state", setup: Setup::Plain, run: half_closed },
    Attack { name: "half-closed and deaf", setup: Setup::Plain, run: half_closed_and_deaf },
];

/// What a connection has sent when it ends, in all protocols and at all points of a request.
fn states(scene: &Scene) -> Vec<Vec<u8>> {
    let mut value = b"set victim 0 0 200000\r\n".to_vec();
    value.resize(100_000, b'v');
    let mut states: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"g".to_vec(),
        b"get witness:1 witness:2 wit".to_vec(),
        b"get witness:1 witness:2\r\n".repeat(50),
        b"set victim 0 0 10\r\n01234".to_vec(),
        b"set victim 0 0 10\r\n0123456789\r\n".repeat(20),
        b"ms victim 10 T99\r\n012".to_vec(),
        b"mg witness:5 v t f\r\nmg witness:6 v\r\n".repeat(30),
        b"incr victim 1\r\ntouch victim 5\r\ndelete victim\r\nquit\r\n".to_vec(),
        b"stats\r\nstats items\r\nstats conns\r\n".to_vec(),
        b"lru_crawler metadump all\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        classic(0x00, b"witness:7", &[], b"").repeat(30),
        classic(0x01, b"victim", &[0; 8], &[b'v'; 50_000])[..30_000].to_vec(),
        classic(0x10, b"", &[], b""),
        [0x88, 0, 9, 0, 0, 0, 0, 0, 1, 1, 1, 1].iter().chain(b"witness:7").copied().collect(),
        vec![0x91, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 1, 1, 1, 0, 0, 1, 0, 3, 0, 0, 0, b'v', 1, 2, 3],
        value,
    ];
    for core in 0..2 {
        states.push(format!("get {}\r\n", scene.large(core)).repeat(20).into_bytes());
        states.push(format!("get witness:1 {} witness:2\r\n", scene.half(core)).into_bytes());
    }
    states
}

fn resets(scene: &Scene, noise: &mut Noise) {
    for (number, state) in states(scene).iter().enumerate() {
        for i in 0..40 {
            let mut stream = scene.connect(i % 2);
            push(&mut stream, state);
            match noise.below(4) {
                0 => sleep(Duration::from_micros(noise.below(2000))),
                1 if number > 3 => {
                    stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
                    let _ = stream.read(&mut [0; 10]);
                }
                _ => {}
            }
            reset(stream);
        }
    }
}

fn resets_of_readers(scene: &Scene, noise: &mut Noise) {
    for round in 0..12 {
        let mut readers = scene.connect_many(32);
        for (i, stream) in readers.iter_mut().enumerate() {
            let key = if i % 3 == 0 { scene.large(round % 2) } else { scene.half(i % 2) };
            push(stream, format!("get {key}\r\nget witness:9\r\n").repeat(30).as_bytes());
        }
        for mut stream in readers {
            let bytes = noise.below(60_000) as usize;
            let mut part = vec![0; bytes + 1];
            let _ = stream.read(&mut part);
            reset(stream);
        }
    }
}

/// Those that send no more get their answers, and the end.
fn half_closed(scene: &Scene, _: &mut Noise) {
    for state in states(scene) {
        let mut streams: Vec<TcpStream> = scene.connect_many(6);
        for stream in &mut streams {
            push(stream, &state);
            let _ = stream.shutdown(Shutdown::Write);
        }
        for mut stream in streams {
            let mut chunk = vec![0; 256 << 10];
            // A reset is an end as well; a timeout is none.
            loop {
                match stream.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                    Err(error) => panic!("neither answers nor an end: {error}"),
                }
            }
        }
    }
}

fn half_closed_and_deaf(scene: &Scene, _: &mut Noise) {
    let mut streams = Vec::new();
    for state in states(scene) {
        for mut stream in scene.connect_many(10) {
            push(&mut stream, &state);
            let half = if streams.len() % 2 == 0 { Shutdown::Write } else { Shutdown::Read };
            let _ = stream.shutdown(half);
            streams.push(stream);
        }
    }
    sleep(Duration::from_secs(1));
    for (i, stream) in streams.into_iter().enumerate() {
        if i % 2 == 0 {
            reset(stream);
        }
    }
}
