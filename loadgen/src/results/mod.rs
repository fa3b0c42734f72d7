//! What was measured, as plain data: what the JSON files hold, and what is rendered from them.

pub mod comparison;
pub mod document;
pub mod summary;
