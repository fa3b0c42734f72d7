//! More than a client would ask for: the smallest commands, the longest lines, nothing but silence,
//! chosen keys, and queues between cores filled to the brim.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::live::Noise;
use crate::scene::{Attack, Scene, Setup, reset};
use crate::traffic::{at_once, classic, exchange, pour, push};

pub const ATTACKS: [Attack; 12] = [
    Attack { name: "the smallest commands", setup: Setup::Plain, run: smallest },
    Attack { name: "silent stores of text", setup: Setup::Plain, run: silent_text },
    Attack { name: "silent requests of binary", setup: Setup::Plain, run: silent_binary },
    Attack { name: "the longest lines", setup: Setup::Plain, run: longest_lines },
    Attack {
        name: "a long line with long values",
        setup: Setup::Plain,
        run: long_line_long_values,
    },
    Attack { name: "everything forgotten again and again", setup: Setup::Plain, run: flushes },
    Attack { name: "everything to be forgotten later", setup: Setup::Plain, run: later_flushes },
    Attack { name: "statistics without end", setup: Setup::Plain, run: statistics },
    Attack { name: "nothing but connections", setup: Setup::Plain, run: connections },
    Attack { name: "keys of one hash", setup: Setup::Plain, run: colliding_keys },
    Attack { name: "pipelines of long values", setup: Setup::Plain, run: long_pipelines },
    Attack { name: "long stores for the other core", setup: Setup::Plain, run: foreign_stores },
];

/// How long a flood lasts.
const SPAN: Duration = Duration::from_millis(1200);

fn smallest(scene: &Scene, _: &mut Noise) {
    let floods: [Vec<u8>; 4] = [
        b"mn\r\n".repeat(10_000),
        b"\r\n".repeat(10_000),
        b"get a\r\n".repeat(10_000),
        classic(0x0a, b"", &[], b"").repeat(5000),
    ];
    at_once(floods.len(), |i| {
        pour(&mut scene.connect(i % 2), &floods[i], SPAN);
    });
}

fn silent_text(scene: &Scene, _: &mut Noise) {
    let stores: String =
        (0..2000).map(|i| format!("set flood:{i} 0 0 3 noreply\r\nabc\r\n")).collect();
    let deletes: String = (0..2000).map(|i| format!("delete flood:{i} noreply\r\n")).collect();
    let metas: String = (0..2000).map(|i| format!("mg flood:{i} q v\r\n")).collect();
    let floods = [stores, deletes, metas];
    at_once(floods.len(), |i| {
        let mut stream = scene.connect(i % 2);
        pour(&mut stream, floods[i].as_bytes(), SPAN);
    });
}

fn silent_binary(scene: &Scene, _: &mut Noise) {
    let key = |i: u32| format!("quiet:{i}").into_bytes();
    let stores: Vec<u8> = (0..2000).flat_map(|i| classic(0x11, &key(i), &[0; 8], b"abc")).collect();
    let misses: Vec<u8> = (0..2000).flat_map(|i| classic(0x09, &key(i + 9000), &[], b"")).collect();
    let compact: Vec<u8> = (0..2000)
        .flat_map(|i| {
            let mut frame = vec![0x88, 0x80, key(i).len() as u8, 0, 0, 0, 0, 0, 7, 0, 0, 0];
            frame.extend(key(i));
            frame
        })
        .collect();
    let floods = [stores, misses, compact];
    at_once(floods.len(), |i| {
        pour(&mut scene.connect(i % 2), &floods[i], SPAN);
    });
}

/// Eight megabytes of keys that nobody has, all of one core, asked on both.
fn longest_lines(scene: &Scene, _: &mut Noise) {
    let letters = [b'a', b'b', b'c', b'd', b'e', b'f', b'g', b'h'];
    for core in 0..2 {
        for letter in &letters[..2] {
            let line = [&b"get "[..], &[*letter, b' '].repeat((4 << 20) - 64), b"z\r\n"].concat();
            exchange(&mut scene.connect(core), &line, b"END\r\n");
        }
    }
    let line = [&b"get "[..], &letters.map(|it| [it, b' ']).concat().repeat(500_000), b"z\r\n"];
    exchange(&mut scene.connect(0), &line.concat(), b"END\r\n");
}

fn long_line_long_values(scene: &Scene, _: &mut Noise) {
    for core in 0..2 {
        // One of five hundred keys has a value.
        let keys = format!("{} {}", scene.half(core), "a ".repeat(499)).repeat(200);
        exchange(&mut scene.connect(0), format!("get {keys}z\r\n").as_bytes(), b"END\r\n");
    }
}

/// Those that are to come into force in three weeks change nothing.
fn later_flushes(scene: &Scene, _: &mut Noise) {
    at_once(2, |core| {
        pour(&mut scene.connect(core), &b"flush_all 2000000\r\n".repeat(200), SPAN);
    });
}

/// The items of many flushes wait to be swept, while more of them come.
fn flushes(scene: &Scene, _: &mut Noise) {
    scene.forget();
    let mut stream = scene.connect(0);
    for round in 0..40 {
        let stores: String = (0..5000)
            .map(|i| format!("set flush:{round}:{i} 0 0 1 noreply\r\nx\r\n"))
            .chain(["flush_all\r\n".to_owned()])
            .collect();
        exchange(&mut stream, stores.as_bytes(), b"OK\r\n");
    }
    at_once(2, |core| {
        pour(&mut scene.connect(core), &b"flush_all\r\n".repeat(200), SPAN / 2);
    });
}

fn statistics(scene: &Scene, _: &mut Noise) {
    at_once(4, |i| {
        let topics = b"stats\r\nstats items\r\nstats slabs\r\nstats sizes\r\nstats conns\r\n\
            stats settings\r\nstats cores\r\nlru_crawler metadump all\r\n";
        pour(&mut scene.connect(i % 2), topics, SPAN);
    });
}

fn connections(scene: &Scene, noise: &mut Noise) {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < SPAN && count < 6000 {
        let mut stream = scene.connect(count % 2);
        if noise.below(2) == 0 {
            let _ = stream.write_all(b"get witness:1\r\n");
        }
        if noise.below(2) == 0 {
            reset(stream);
        }
        count += 1;
    }
}

/// Keys that have one hash under the seed that the node tells: XXH3 of 17 to 128 bytes multiplies
/// each half with a secret, to which the seed is added, and nothing is left of the other half where
/// that is zero.
fn colliding_keys(scene: &Scene, _: &mut Noise) {
    const SECRET: u64 = u64::from_le_bytes([0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe]);
    const STORED: u64 = 12_000;
    let front = SECRET.wrapping_add(scene.hash_seed()).to_le_bytes();
    let key = |i: u64| [&front[..], &i.to_le_bytes(), b"0123456789abcdef"].concat();
    let barrier = classic(0x0a, b"", &[], b"");
    let ends = [&[0x81, 0x0a][..], &[0; 22]].concat();
    for core in 0..2 {
        let mut stream = scene.connect(core);
        let stores: Vec<u8> =
            (0..STORED).flat_map(|i| classic(0x11, &key(i), &[0; 8], b"")).collect();
        exchange(&mut stream, &[&stores[..], &barrier].concat(), &ends);
        let misses: Vec<u8> =
            (0..2000).flat_map(|i| classic(0x09, &key(i + (1 << 40)), &[], b"")).collect();
        exchange(&mut stream, &[&misses[..], &barrier].concat(), &ends);
        let deletes: Vec<u8> = (0..STORED).flat_map(|i| classic(0x14, &key(i), &[], b"")).collect();
        exchange(&mut stream, &[&deletes[..], &barrier].concat(), &ends);
    }
}

fn long_pipelines(scene: &Scene, _: &mut Noise) {
    at_once(4, |i| {
        let mut streams: Vec<TcpStream> = (0..4).map(|_| scene.connect(0)).collect();
        let requests = format!("get {}\r\nincr nobody 1\r\n", scene.half(i % 2)).repeat(2000);
        for stream in &mut streams {
            push(stream, requests.as_bytes());
        }
        // Some of it is read, in large pieces.
        let begun = Instant::now();
        let mut chunk = vec![0; 1 << 20];
        while begun.elapsed() < SPAN {
            for stream in &mut streams {
                let _ = stream.read(&mut chunk);
            }
        }
    });
}

fn foreign_stores(scene: &Scene, _: &mut Noise) {
    at_once(4, |i| {
        let value = "v".repeat(20_000);
        let stores: String = (0..200)
            .map(|k| format!("set store:{}:{k} 0 0 20000 noreply\r\n{value}\r\n", i % 2))
            .collect();
        let mut stream = scene.connect(i % 2);
        pour(&mut stream, stores.as_bytes(), SPAN);
    });
}
