//! Keys that a client chose by the seed that HELLO publishes, so that all have one public hash.
//!
//! They meet on one core, as the public hash says, and nowhere else: the index spreads them like
//! any keys, so that none of its chains comes to its limit and no look-up takes longer.

mod live;

use std::io::{Read, Write};

use live::{Client, Server};

/// Keys stored. Chains hold 80.
const KEYS: u64 = 20_000;

/// The seed that the server tells whoever asks.
fn published_seed(server: &Server) -> u64 {
    let mut stream = server.connect().socket().try_clone().expect("a socket can be cloned");
    stream.write_all(&[0x82, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).expect("the server reads");
    let mut head = [0; 12];
    stream.read_exact(&mut head).expect("HELLO is answered");
    let length = u32::from_le_bytes(head[4..8].try_into().expect("four bytes"));
    let mut fields = vec![0; length as usize];
    stream.read_exact(&mut fields).expect("the answer is whole");
    let mut rest = &fields[..];
    loop {
        let number = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        let (tag, content) = (number(0), &rest[4..4 + usize::from(number(2))]);
        if tag == 4 {
            return u64::from_le_bytes(content.try_into().expect("a seed is eight bytes"));
        }
        rest = &rest[4 + content.len()..];
    }
}

/// Key `number` of those with one XXH3-64 under `seed`: the first word makes one factor of the first
/// product zero, whatever the second one is. In the classic binary protocol any byte may be in a key.
fn chosen_key(seed: u64, number: u64) -> Vec<u8> {
    let first = 0xbe4b_a423_396c_feb8_u64.wrapping_add(seed);
    let mut key = first.to_le_bytes().to_vec();
    key.extend_from_slice(&number.to_le_bytes());
    key.extend_from_slice(b"0123456789abcdef");
    key
}

/// A classic binary request.
fn packet(opcode: u8, key: &[u8], extras: &[u8], value: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x80, opcode];
    packet.extend_from_slice(&(key.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    packet.extend_from_slice(&((key.len() + extras.len() + value.len()) as u32).to_be_bytes());
    packet.extend_from_slice(&[0; 12]);
    [&packet, extras, key, value].concat()
}

const SETQ: u8 = 0x11;
const GETQ: u8 = 0x09;
const NOOP: u8 = 0x0a;
const HEADER_BYTES: usize = 24;

/// Sends quiet requests and a NOOP, and counts the answers before the NOOP's.
fn answers(client: &mut Client, requests: &[u8]) -> usize {
    client.send(&[requests, &packet(NOOP, b"", b"", b"")].concat());
    for count in 0.. {
        let head = client.take(HEADER_BYTES);
        let body = u32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
        client.take(body as usize);
        if head[1] == NOOP {
            return count;
        }
    }
    unreachable!("a NOOP is answered")
}

#[test]
fn keys_chosen_by_the_published_seed_meet_on_one_core_and_in_no_chain() {
    let server = Server::start(&["-m", "64", "--cpus", "0,0"]);
    let seed = published_seed(&server);
    let mut client = server.connect();
    let keys: Vec<_> = (0..KEYS).map(|number| chosen_key(seed, number)).collect();
    for keys in keys.chunks(500) {
        let sets: Vec<u8> = keys.iter().flat_map(|key| packet(SETQ, key, &[0; 8], b"v")).collect();
        assert_eq!(answers(&mut client, &sets), 0, "a quiet set that fails is answered");
    }
    for keys in keys.chunks(500) {
        let gets: Vec<u8> = keys.iter().flat_map(|key| packet(GETQ, key, b"", b"")).collect();
        assert_eq!(answers(&mut client, &gets), keys.len(), "each key has its value");
    }
    let stats = server.connect().stats_of("cores");
    let of_core = |core: u32, name: &str| stats[&format!("core:{core}:{name}")].clone();
    let mut items = [0, 1].map(|core| of_core(core, "items").parse::<u64>().expect("a number"));
    items.sort_unstable();
    assert_eq!(items, [0, KEYS], "the keys do have one public hash");
    for core in [0, 1] {
        assert_eq!(of_core(core, "chain_evictions"), "0");
    }
}
