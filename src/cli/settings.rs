//! Every setting as it may be given: on the command line, in the file, or not at all.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::values::{
    CpuList, Delimiter, EvictionName, ItemSize, ListenAddress, LogName, MemorySize, Micros, Number,
    Port, Seconds, SocketAddress, UnixMode, list, text,
};

/// One source of settings; what it does not say is `None`.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Addresses to listen on, separated by commas [default: 127.0.0.1]
    #[arg(short = 'l', long, value_name = "ADDR", value_delimiter = ',', help_heading = NETWORK)]
    #[serde(deserialize_with = "list")]
    pub listen: Option<Vec<ListenAddress>>,
    /// TCP port; 0 for none if there is a unix socket [default: 11211]
    #[arg(short = 'p', long, value_name = "PORT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub port: Option<Port>,
    /// One more port per core, from BASE on, that reaches just that core
    #[arg(long, value_name = "BASE", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub shard_ports: Option<Port>,
    /// Unix socket to listen on, instead of TCP unless an address or port is given too
    #[arg(short = 's', long, value_name = "PATH", help_heading = NETWORK)]
    pub unix_socket: Option<PathBuf>,
    /// Permissions of the unix socket, octal [default: 700]
    #[arg(short = 'a', long, alias = "unix-mask", value_name = "MODE", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub unix_mode: Option<UnixMode>,
    /// Connections waiting to be accepted, per listener [default: 1024]
    #[arg(short = 'b', long, alias = "listen-backlog", value_name = "COUNT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub backlog: Option<Number>,
    /// Connections at once [default: 10000, or as many as the file limit allows]
    #[arg(short = 'c', long, alias = "conn-limit", value_name = "COUNT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub max_connections: Option<Number>,
    /// Close a connection that has been silent for so long [default: never]
    #[arg(long, value_name = "SECS", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub idle_timeout: Option<Seconds>,
    /// Serve /health, /metrics and /stats over HTTP
    #[arg(long, value_name = "ADDR:PORT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub admin: Option<SocketAddress>,

    /// How many cores, each with its own part of the items [default: every allowed CPU]
    #[arg(short = 't', long, alias = "threads", value_name = "COUNT", help_heading = CORES)]
    #[serde(deserialize_with = "text")]
    pub cores: Option<Number>,
    /// CPUs to run the cores on, such as 2-5,8 [default: the allowed ones, in order]
    #[arg(long, value_name = "LIST", help_heading = CORES)]
    #[serde(deserialize_with = "text")]
    pub cpus: Option<CpuList>,
    /// Poll for so long at most before a core sleeps; 0 for not at all [default: 50]
    #[arg(long, value_name = "MICROS", help_heading = CORES)]
    #[serde(deserialize_with = "text")]
    pub busy_poll: Option<Micros>,

    /// Memory for items: 64MiB, 1GiB, or a plain number of MiB [default: 1GiB, or a quarter of RAM]
    #[arg(short = 'm', long, alias = "memory-limit", value_name = "SIZE", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub memory: Option<MemorySize>,
    /// Largest item: 1MiB, 512k, or a plain number of bytes [default: 1MiB]
    #[arg(short = 'I', long, value_name = "SIZE", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub max_item_size: Option<ItemSize>,
    /// Which item makes room when memory is full: lru or none [default: lru]
    #[arg(long, value_name = "POLICY", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub eviction: Option<EvictionName>,
    /// Answer with an error when memory is full: the same as --eviction none
    #[arg(short = 'M', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = ITEMS)]
    pub disable_evictions: Option<bool>,
    /// TTL of items that are stored without one [default: none]
    #[arg(long, value_name = "SECS", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub default_ttl: Option<Seconds>,

    /// Neither show nor compare CAS tokens
    #[arg(short = 'C', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub disable_cas: Option<bool>,
    /// Refuse flush_all
    #[arg(short = 'F', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub disable_flush_all: Option<bool>,
    /// Let clients stop the server with the command shutdown
    #[arg(short = 'A', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub enable_shutdown: Option<bool>,
    /// Refuse to list keys (lru_crawler metadump, stats cachedump)
    #[arg(short = 'X', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub disable_dumping: Option<bool>,

    /// Count requests by key prefix, which ends at this character (stats detail)
    #[arg(short = 'D', long, value_name = "CHAR", help_heading = LOG)]
    #[serde(deserialize_with = "text")]
    pub prefix_delimiter: Option<Delimiter>,
    /// Write the process id to this file while the server runs
    #[arg(short = 'P', long, alias = "pidfile", value_name = "FILE", help_heading = LOG)]
    pub pid_file: Option<PathBuf>,
    /// What reaches the log: off, error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = LOG)]
    #[serde(deserialize_with = "text")]
    pub log: Option<LogName>,
    /// Log more: -v for debug, -vv for trace
    #[arg(short = 'v', action = clap::ArgAction::Count, help_heading = LOG)]
    pub verbose: u8,
}

const NETWORK: &str = "Network";
const CORES: &str = "Cores";
const ITEMS: &str = "Items";
const CLIENTS: &str = "What clients may do";
const LOG: &str = "Log and statistics";

impl Settings {
    /// These settings, and where they say nothing, the other ones.
    pub fn or(self, other: Settings) -> Settings {
        // No `..`: a setting that this forgets would not compile.
        macro_rules! first {
            ($($field:ident)*) => {
                Settings {
                    $($field: self.$field.or(other.$field),)*
                    verbose: if self.verbose > 0 { self.verbose } else { other.verbose },
                }
            };
        }
        first! {
            listen port shard_ports unix_socket unix_mode backlog max_connections idle_timeout
            admin cores cpus busy_poll memory max_item_size eviction
            disable_evictions default_ttl disable_cas disable_flush_all enable_shutdown
            disable_dumping prefix_delimiter pid_file log
        }
    }
}
