//! All results of one invocation: the content of the JSON file, and the source of text and HTML.

use serde::{Deserialize, Serialize};

use super::comparison::Comparison;
use super::summary::Summary;
use crate::host::{self, Host};

/// Version of the JSON. It increases when a field changes its meaning or is removed; new fields do
/// not count.
pub const SCHEMA_VERSION: u32 = 1;

/// All results of one invocation of the tool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The sub-command: `run`, `sweep`, `saturate`, `compare`.
    pub kind: String,
    /// The exact command.
    pub command: String,
    /// Version of the tool.
    pub version: String,
    /// When it started, UTC.
    pub date: String,
    /// The host.
    pub host: Host,
    /// Its runs, in order.
    pub runs: Vec<Summary>,
    /// Conclusions in sentences; empty if none are possible.
    pub verdict: Vec<String>,
    /// The comparison of servers, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

impl Document {
    /// A document of this process, without runs.
    pub fn new(kind: &str) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            kind: kind.into(),
            command: host::command_line(),
            version: env!("CARGO_PKG_VERSION").into(),
            date: host::date(),
            host: Host::observe(),
            runs: Vec::new(),
            verdict: Vec::new(),
            comparison: None,
        }
    }
}
