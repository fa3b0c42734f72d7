//! Measurements as plain data: the content of the JSON files, and the source of the reports.

pub mod comparison;
pub mod document;
pub mod summary;
