#![no_main]
//! A core of a cluster whose peers say anything.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    ringlane_fuzz::peers::check(input);
});
