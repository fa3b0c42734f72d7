#![no_main]
//! A client's bytes, of any protocol, to one core and to two, whole and in pieces.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    ringlane_fuzz::node::check(input);
});
