//! No request holds a core for long: the CPU time of the longest turn, for commands at their largest.
//!
//! What is measured is the time that the core's thread had, the least of a few tries, since other
//! work on the machine empties its caches. The bounds are those of a build for tests, several times
//! as slow as a release.

mod live;

use std::io::Read;
use std::time::Duration;

use live::{Client, Server};

const TRIES: usize = 3;

/// Judges a row of the table: by the time given in microseconds in `RINGLANE_TURN_MICROS`, for a
/// release build on an idle machine, or by one that a build for tests keeps on a busy one.
fn judge(row: &str, longest: Duration) {
    let micros = std::env::var("RINGLANE_TURN_MICROS").ok();
    let micros = micros.map_or(20_000, |micros| micros.parse().expect("microseconds"));
    println!("{row:60} {:>8} us", longest.as_micros());
    assert!(longest <= Duration::from_micros(micros), "{row}: {longest:?}");
}

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
    judge("get of 8 MiB of keys", longest);
    let longest = longest_turn(&server, |client| {
        let line = format!("get{}a\r\n", " ".repeat(8_380_000));
        client.send(line.as_bytes());
        assert_eq!(client.line(), "END");
    });
    judge("get of 8 MiB of spaces", longest);
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
        judge(&format!("flood of {line:?}"), longest);
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
    judge("set of 25 MiB among small items", longest);
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
    judge("replace, append to, prepend to and delete 80 MiB", longest);
}

/// Reads up to and with the line `last`, which nothing follows.
fn read_to(client: &Client, last: &str) {
    let (mut socket, mut buffer, mut tail) = (client.socket(), vec![0; 64 << 10], Vec::new());
    let last = format!("{last}\r\n");
    while !tail.ends_with(last.as_bytes()) {
        let count = socket.read(&mut buffer).expect("an answer");
        assert!(count > 0, "the answer ends with {last:?}");
        tail.extend_from_slice(&buffer[..count]);
        tail.drain(..tail.len().saturating_sub(last.len()));
    }
}

#[test]
fn what_lists_or_changes_the_whole_node_is_short_turns() {
    let server = measured(&["-m", "256"]);
    fill(&mut server.connect(), 200_000);
    for (command, last) in [
        ("stats", "END"),
        ("stats settings", "END"),
        ("stats items", "END"),
        ("stats slabs", "END"),
        ("stats sizes", "END"),
        ("stats conns", "END"),
        ("stats cores", "END"),
        ("lru_crawler metadump all", "END"),
        ("lru_crawler mgdump all", "EN"),
        // Of a class that has nothing: all is looked at, and nothing is listed.
        ("stats cachedump 30 0", "END"),
        ("lru_crawler crawl all", "OK"),
        ("slabs reassign -1 8", "OK"),
        ("flush_all 1", "OK"),
        ("flush_all", "OK"),
    ] {
        let longest = longest_turn(&server, |client| {
            client.send(format!("{command}\r\n").as_bytes());
            if command.starts_with("slabs") {
                client.line();
            } else {
                read_to(client, last);
            }
        });
        judge(command, longest);
    }
}

#[test]
fn prefixes_counted_apart_are_listed_in_a_short_turn() {
    let server = measured(&["-m", "64"]);
    let mut client = server.connect();
    assert_eq!(client.ask("stats detail on"), "OK");
    let longest = longest_turn(&server, |client| {
        let sets = (0..2000).map(|prefix| format!("set {prefix}:key 0 0 1 noreply\r\nx\r\n"));
        client.send(sets.collect::<String>().as_bytes());
        assert_eq!(client.ask("mn"), "MN");
        client.send(b"stats detail dump\r\n");
        read_to(client, "END");
    });
    judge("stats detail dump", longest);
}

#[test]
fn many_items_that_expire_at_once_go_in_short_turns() {
    let server = measured(&["-m", "256"]);
    let longest = longest_turn(&server, |client| {
        for first in (0..200_000).step_by(1000) {
            let sets: String = (first..first + 1000)
                .map(|n| format!("set key:{n} 0 1 1 noreply\r\nx\r\n"))
                .collect();
            client.send(sets.as_bytes());
            assert_eq!(client.ask("mn"), "MN");
        }
        server.wait_for("all items to have expired", |server| server.stat("curr_items") == 0);
    });
    judge("expiry of 200,000 items", longest);
}

#[test]
fn floods_of_sets_of_any_length_into_a_full_node_are_short_turns() {
    let server = measured(&["-m", "64"]);
    fill(&mut server.connect(), 1_200_000);
    for value_bytes in [1, 300, 700, 2000, 5000, 20_000, 60_000, 300_000] {
        let longest = longest_turn(&server, |client| {
            let value = "v".repeat(value_bytes);
            for number in 0..(10 << 20) / (value_bytes + 200) {
                let line = format!("set s{value_bytes}:{number} 0 0 {value_bytes} noreply\r\n");
                client.send((line + &value + "\r\n").as_bytes());
            }
            assert_eq!(client.ask("mn"), "MN");
        });
        judge(&format!("sets of {value_bytes} bytes into a full node"), longest);
    }
}
