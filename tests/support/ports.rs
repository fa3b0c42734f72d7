//! Free ports for servers of tests.

// Not every test wants ports in a row.
#![allow(dead_code)]

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that the kernel gives to outgoing connections, of which tests make thousands.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A port of 127.0.0.1 that nobody listens on, and that no other test of this process is given.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of so many in a row.
pub fn free_ports(count: u32) -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Other processes begin elsewhere.
    let begin = std::process::id().wrapping_mul(97) % COUNT;
    loop {
        let given = GIVEN.fetch_add(count, Ordering::Relaxed);
        assert!(given < COUNT, "no free ports");
        let first = FIRST + (begin + given) % COUNT;
        let is_free = |port: u32| TcpListener::bind(("127.0.0.1", port as u16)).is_ok();
        if (first..first + count).all(is_free) {
            return first as u16;
        }
    }
}
