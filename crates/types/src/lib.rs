//! The vocabulary: what can be asked of a shard and answered, when, and how keys are hashed.
//!
//! All other crates speak it and it knows none of them.

pub mod codec;
mod counters;
pub mod hash;
pub mod log_limiter;
pub mod request;
pub mod time;
