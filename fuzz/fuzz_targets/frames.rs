#![no_main]
//! What nodes send each other: handshakes, frames, messages, gossip.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    ringlane_fuzz::frames::check(input);
});
