#![no_main]
//! Bytes as a configuration and operations, performed on a shard and on the naive model of it.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    ringlane_testing::shard_model::run(bytes);
});
