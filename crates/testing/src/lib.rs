//! Naive models of what the product does, for property tests and fuzzing. No part of the product.

#![deny(missing_docs, unreachable_pub)]

pub mod shard_model;
pub mod store_differential;
