#![no_main]
//! Bytes as calls of a cluster, performed on a shard and on the naive store.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    ringlane_testing::store_differential::run(bytes);
});
