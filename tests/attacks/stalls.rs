//! Clients that do not go on: they send and never read, or leave off in the middle.

use std::io::Write;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::live::Noise;
use crate::scene::{Attack, Scene, Setup, judges};
use crate::traffic::{classic, exchange, push};

pub const ATTACKS: [Attack; 9] = [
    Attack { name: "unread answers of the other core", setup: Setup::Plain, run: unread_foreign },
    Attack { name: "unread answers of the own core", setup: Setup::Plain, run: unread_own },
    Attack { name: "one unread value each", setup: Setup::Plain, run: slow_readers },
    Attack { name: "unfinished uploads", setup: Setup::Plain, run: unfinished_uploads },
    Attack { name: "halves of requests", setup: Setup::Plain, run: half_requests },
    Attack { name: "long lines without an end", setup: Setup::Plain, run: endless_lines },
    Attack { name: "lists of keys that nobody reads", setup: Setup::Plain, run: unread_dumps },
    Attack { name: "a byte at a time", setup: Setup::Plain, run: trickle },
    Attack { name: "the price of the stalled", setup: Setup::Plain, run: price },
];

/// A connection that has had short answers so often that many requests are let go at once.
fn trusted(scene: &Scene, core: usize) -> TcpStream {
    let mut stream = scene.connect(core);
    for _ in 0..4 {
        let misses = b"get nobody\r\nget noone\r\n".repeat(200);
        exchange(&mut stream, &[&misses[..], b"mn\r\n"].concat(), b"MN\r\n");
    }
    stream
}

fn unread(scene: &Scene, key_core: usize) {
    let mut deaf: Vec<TcpStream> = (0..16).map(|_| trusted(scene, 0)).collect();
    let requests = format!("get {}\r\n", scene.large(key_core)).repeat(1024);
    for stream in &mut deaf {
        push(stream, requests.as_bytes());
    }
    sleep(Duration::from_millis(1500));
}

fn unread_foreign(scene: &Scene, _: &mut Noise) {
    unread(scene, 1);
}

fn unread_own(scene: &Scene, _: &mut Noise) {
    unread(scene, 0);
}

fn slow_readers(scene: &Scene, _: &mut Noise) {
    let mut readers = scene.connect_many(600);
    for (i, stream) in readers.iter_mut().enumerate() {
        // Of both cores, over both.
        let request = format!("get {}\r\n", scene.half(i / 2 % 2));
        push(stream, request.as_bytes());
    }
    sleep(Duration::from_millis(1000));
}

fn unfinished_uploads(scene: &Scene, _: &mut Noise) {
    let mut uploads: Vec<(TcpStream, Vec<u8>, usize)> = Vec::new();
    for (i, stream) in scene.connect_many(300).into_iter().enumerate() {
        let mut bytes = format!("set upload:{} 0 0 1000000\r\n", i % 50).into_bytes();
        bytes.resize(900_000, b'u');
        uploads.push((stream, bytes, 0));
    }
    for _ in 0..6 {
        for (stream, bytes, sent) in &mut uploads {
            *sent += push(stream, &bytes[*sent..]);
        }
        sleep(Duration::from_millis(150));
    }
}

fn half_requests(scene: &Scene, noise: &mut Noise) {
    let set = [&b"set half 0 0 2000\r\n"[..], &[b'v'; 1000]].concat();
    let frame = classic(0x01, b"half", &[0; 8], &[b'v'; 2000]);
    let requests: [&[u8]; 8] = [
        b"get somebo",
        &set,
        b"ms half 2000\r\nvvvv",
        b"mg half v f t k",
        &frame,
        &frame[..20],
        &[0x88, 0, 4, 0, 0],
        &[0x90, 0, 4, 0, 0, 1, 0, 0, 9, 9, 9, 9, b'h', b'a', b'l', b'f', b'v'],
    ];
    let mut halves = scene.connect_many(400);
    for (i, stream) in halves.iter_mut().enumerate() {
        let request = requests[i % requests.len()];
        let end = 1 + noise.below(request.len() as u64) as usize;
        push(stream, &request[..end]);
    }
    sleep(Duration::from_millis(500));
}

fn endless_lines(scene: &Scene, _: &mut Noise) {
    let line = [&b"get "[..], &b"nobody ".repeat(1 << 20)].concat();
    let mut streams: Vec<(TcpStream, usize)> =
        scene.connect_many(16).into_iter().map(|stream| (stream, 0)).collect();
    for _ in 0..20 {
        for (stream, sent) in &mut streams {
            *sent += push(stream, &line[*sent..]);
        }
        sleep(Duration::from_millis(50));
    }
}

fn unread_dumps(scene: &Scene, _: &mut Noise) {
    let mut writer = scene.connect(0);
    let sets: String =
        (0..50_000).map(|i| format!("set dump:{i} 0 0 1 noreply\r\nx\r\n")).collect();
    exchange(&mut writer, format!("{sets}mn\r\n").as_bytes(), b"MN\r\n");
    let mut deaf = scene.connect_many(24);
    for stream in &mut deaf {
        push(stream, &b"lru_crawler metadump all\r\n".repeat(50));
        push(stream, &b"stats\r\nstats items\r\nstats slabs\r\nstats conns\r\n".repeat(200));
    }
    sleep(Duration::from_millis(1500));
}

fn trickle(scene: &Scene, _: &mut Noise) {
    let frame = classic(0x01, b"slow", &[0; 8], &[b'v'; 300]);
    let text = [&b"set slow 0 0 300\r\n"[..], &[b'v'; 300], b"\r\n"].concat();
    let mut streams = scene.connect_many(60);
    let begun = Instant::now();
    for at in 0..text.len().min(frame.len()) {
        for (i, stream) in streams.iter_mut().enumerate() {
            let bytes = if i % 2 == 0 { &frame } else { &text };
            stream.write_all(&bytes[at..=at]).expect("the server goes on");
        }
        sleep(Duration::from_millis(2));
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
}

/// Connections that cannot go on cost nothing while they wait.
fn price(scene: &Scene, _: &mut Noise) {
    const SPAN: Duration = Duration::from_secs(1);
    let used = || {
        let before = scene.server.cpu_time();
        sleep(SPAN);
        scene.server.cpu_time() - before
    };
    // With the bystander's part.
    let without = used();
    let mut deaf = scene.connect_many(300);
    for (i, stream) in deaf.iter_mut().enumerate() {
        push(stream, format!("get {}\r\n", scene.half(i / 2 % 2)).repeat(20).as_bytes());
    }
    let mut mute = scene.connect_many(300);
    for (i, stream) in mute.iter_mut().enumerate() {
        push(stream, format!("set mute:{} 0 0 100000\r\nhalf", i % 30).as_bytes());
    }
    // Until sockets are full and who holds memory that others want has been closed.
    let limit = without + SPAN / 10;
    let mut with: Vec<Duration> = Vec::new();
    while with.last().is_none_or(|with| *with > limit) {
        assert!(
            with.len() < 10 || !judges(),
            "{with:?} of CPU in {SPAN:?} each for the stalled, {without:?} without them"
        );
        if with.len() == 10 {
            break;
        }
        with.push(used());
    }
}
