//! At the limits: of connections, of files, of the admin pages, and with a log that nobody reads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::live::Noise;
use crate::scene::{Attack, Scene, Setup, judges};
use crate::traffic::push;

pub const ATTACKS: [Attack; 4] = [
    Attack { name: "more connections than allowed", setup: Setup::FewConnections, run: crowd },
    Attack { name: "more connections than files", setup: Setup::FewFiles, run: out_of_files },
    Attack { name: "the same, and a full log", setup: Setup::DeafLog, run: out_of_files },
    Attack { name: "slow admin connections", setup: Setup::Plain, run: slow_admin },
];

fn crowd(scene: &Scene, _: &mut Noise) {
    for _ in 0..3 {
        let mut streams = scene.connect_many(300);
        for stream in &mut streams {
            push(stream, b"get witness:1\r\n");
        }
        sleep(Duration::from_millis(200));
        // Each is served or told why not.
        let (mut served, mut refused) = (0, 0);
        for stream in &mut streams {
            let mut answer = [0; 256];
            match stream.read(&mut answer) {
                Ok(bytes) if answer[..bytes].starts_with(b"VALUE") => served += 1,
                _ => refused += 1,
            }
        }
        assert!(served > 0 && refused >= 250, "{served} of 300 are served, {refused} are not");
    }
}

/// Accepting fails: those that are connected are served, the others wait, and the core does not spin.
fn out_of_files(scene: &Scene, _: &mut Noise) {
    let before = scene.server.cpu_time();
    let begun = Instant::now();
    let mut streams = scene.connect_many(300);
    for stream in &mut streams {
        push(stream, b"get witness:1\r\n");
    }
    sleep(Duration::from_millis(1500));
    let (used, took) = (scene.server.cpu_time() - before, begun.elapsed());
    assert!(used < took / 2 || !judges(), "{used:?} of CPU in {took:?} while no file is free");
    drop(streams);
    // There is room again.
    let answered = || {
        let mut stream = scene.connect(0);
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        let _ = stream.write_all(b"mn\r\n");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).is_ok() && &answer == b"MN\r\n"
    };
    let begun = Instant::now();
    while !answered() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody is accepted any more");
    }
}

/// Health checks are answered while others hold as many admin connections as they can.
fn slow_admin(scene: &Scene, _: &mut Noise) {
    let mut slow: Vec<TcpStream> =
        (0..100).filter_map(|_| TcpStream::connect(scene.admin).ok()).collect();
    for (i, stream) in slow.iter_mut().enumerate() {
        if i % 2 == 0 {
            push(stream, b"GET /health HTTP/1.1\r\nX: ");
        }
    }
    sleep(Duration::from_millis(300));
    let healthy = || {
        let mut stream = TcpStream::connect(scene.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    let checks = 50;
    let answered = (0..checks).filter(|_| healthy().is_some()).count();
    assert!(answered * 100 >= checks * 98, "{answered} of {checks} health checks are answered");
}
