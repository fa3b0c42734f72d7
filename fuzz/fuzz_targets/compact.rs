#![no_main]
//! Bytes to the compact decoder, whole and in pieces.

use libfuzzer_sys::fuzz_target;
use ringlane::protocol::Decoder;

fuzz_target!(|input: &[u8]| {
    ringlane_fuzz::check(|| Decoder::Compact(Default::default()), input);
});
