//! No request holds a core for long: the CPU time of the longest turn, for commands at their largest.
//!
//! What is measured is the time that the core's thread had, the least of a few tries, since other
//! work on the machine empties its caches. The bounds are those of a build for tests, several times
//! as slow as a release.

mod live;

use std::time::Duration;

use live::{Client, Server};

const TRIES: usize = 3;

/// A server whose turns are measured, with one core that does all the work.
fn measured(flags: &[&str]) -> Server {
    let server = Server::start(&[&["-t", "1"], flags].concat());
    assert_eq!(server.connect().ask("verbosity 2"), "OK");
    server
}

/// The longest turn while `work` is done, in the best of the tries.
fn longest_turn(server: &Server, mut work: impl FnMut(&mut Client)) -> Duration {
    let mut client = server.connect();
    let tries = (0..TRIES).map(|_| {
        let mut observer = server.connect();
        assert_eq!(observer.ask("stats reset"), "RESET");
        work(&mut client);
        let micros =
            observer.stats_of("cores")["core:0:longest_turn_us"].parse().expect("a number");
        Duration::from_micros(micros)
    });
    let longest = tries.min().expect("there are some");
    assert!(longest > Duration::ZERO, "turns are measured");
    longest
}

/// Sends whole lines and waits until the last of them is answered.
fn flood(client: &mut Client, line: &str, bytes: usize) {
    let lines = line.repeat(bytes / line.len());
    client.send(lines.as_bytes());
    client.send(b"delete nothing\r\n");
    while client.line() != "NOT_FOUND" {}
}

#[test]
fn a_multiget_of_eight_mebibytes_is_many_short_turns() {
    let server = measured(&["-m", "64"]);
    let longest = longest_turn(&server, |client| {
        let line = format!("get {}\r\n", "a ".repeat(4_190_000));
        client.send(line.as_bytes());
        assert_eq!(client.line(), "END");
    });
    assert!(longest < Duration::from_millis(10), "{longest:?}");
    let longest = longest_turn(&server, |client| {
        let line = format!("get{}a\r\n", " ".repeat(8_380_000));
        client.send(line.as_bytes());
        assert_eq!(client.line(), "END");
    });
    assert!(longest < Duration::from_millis(30), "{longest:?}");
}

#[test]
fn floods_of_small_commands_are_many_short_turns() {
    let server = measured(&["-m", "64"]);
    for line in
        ["mg a q\r\n", "get a\r\n", "xx\r\n", "set a 0 0 1 noreply\r\nx\r\n", "touch a 0\r\n"]
    {
        let longest = longest_turn(&server, |client| {
            // In pieces whose answers a client that does not read meanwhile still gets.
            (0..40).for_each(|_| flood(client, line, 64 << 10));
        });
        assert!(longest < Duration::from_millis(10), "{line:?}: {longest:?}");
    }
}

fn fill(client: &mut Client, items: usize) {
    for first in (0..items).step_by(1000) {
        let sets: String =
            (first..first + 1000).map(|n| format!("set key:{n} 0 0 1 noreply\r\nx\r\n")).collect();
        client.send(sets.as_bytes());
        assert_eq!(client.ask("mn"), "MN");
    }
}

#[test]
fn room_for_a_long_value_among_small_items_is_made_in_many_short_turns() {
    let server = measured(&["-m", "64", "-I", "30m"]);
    let value = vec![b'v'; 25 << 20];
    let longest = longest_turn(&server, |client| {
        fill(client, 1_200_000);
        client.store("long", &value);
    });
    assert!(longest < Duration::from_millis(10), "{longest:?}");
}

#[test]
fn what_is_long_is_replaced_joined_and_deleted_in_short_turns() {
    let server = measured(&["-m", "256", "-I", "100m"]);
    let value = vec![b'v'; 80 << 20];
    let longest = longest_turn(&server, |client| {
        client.store("long", &value);
        client.store("long", &value);
        client.send(b"append long 0 0 1\r\nx\r\nprepend long 0 0 1\r\nx\r\n");
        assert_eq!((client.line(), client.line()), ("STORED".into(), "STORED".into()));
        assert_eq!(client.ask("delete long"), "DELETED");
    });
    assert!(longest < Duration::from_millis(10), "{longest:?}");
}
