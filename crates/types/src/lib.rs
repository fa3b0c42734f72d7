//! The shared vocabulary: requests, responses, time, and the hashes of keys.
//!
//! All other crates use it, and it depends on none of them.

#![deny(missing_docs, unreachable_pub)]

pub mod codec;
mod counters;
pub mod hash;
pub mod log_limiter;
pub mod request;
pub mod time;
pub mod wire;
