//! Every setting as it may be given: on the command line, in the file, or not at all.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::key_file::KeyFile;
use super::values::{
    CpuList, Delimiter, EvictionName, ItemSize, ListenAddress, LogName, Member, MemorySize, Micros,
    NodeId, Number, Port, RingHashName, Seconds, SocketAddress, Span, UnixMode, list, text,
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
    /// Memory for what connections hold besides items [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub connection_memory: Option<MemorySize>,
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
    /// Take all of it at the start and keep it from being swapped out
    #[arg(short = 'k', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = ITEMS)]
    pub lock_memory: Option<bool>,
    /// Largest item: 1MiB, 512k, or a plain number of bytes [default: 1MiB]
    #[arg(short = 'I', long, value_name = "SIZE", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub max_item_size: Option<ItemSize>,
    /// Which item makes room when memory is full: lru, lfu, s3fifo, fifo, random, ttl or none
    /// [default: lru]
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
    /// Take part in a cluster: UDP gossip and TCP links of other nodes
    #[arg(long, value_name = "ADDR:PORT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub cluster_listen: Option<SocketAddress>,
    /// The address other nodes reach it by [default: the one listened on]
    #[arg(long, value_name = "ADDR:PORT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub cluster_advertise: Option<SocketAddress>,
    /// The node's id, the same after a restart [default: its cluster address]
    #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub node_id: Option<NodeId>,
    /// Where some members may be found, separated by commas
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', help_heading = CLUSTER)]
    #[serde(deserialize_with = "list")]
    pub join: Option<Vec<SocketAddress>>,
    /// All nodes that may be members, separated by commas; others are refused
    #[arg(long, value_name = "ID=ADDR:PORT", value_delimiter = ',', help_heading = CLUSTER)]
    #[serde(deserialize_with = "list")]
    pub members: Option<Vec<Member>>,
    /// Name of the cluster; nodes of another one are refused [default: ringlane]
    #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
    pub cluster_name: Option<String>,
    /// File with the secret that all nodes share [default: none]
    #[arg(long, value_name = "FILE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub cluster_key_file: Option<KeyFile>,
    /// Listen for nodes beyond loopback without a key: whoever reaches the port is believed
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLUSTER)]
    pub cluster_insecure: Option<bool>,
    /// Copies of each key, 1 to 8 [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub replicas: Option<Number>,
    /// Copies that must have applied a write [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub write_quorum: Option<Number>,
    /// Copies that must have answered a read [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub read_quorum: Option<Number>,
    /// Points on the ring per unit of weight [default: 150]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub vnodes: Option<Number>,
    /// How keys are placed on the ring: md5 or xxh3 [default: md5]
    #[arg(long, value_name = "HASH", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub ring_hash: Option<RingHashName>,
    /// The node's share of the keys relative to others, 1 to 100 [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub weight: Option<Number>,
    /// How often a member is probed [default: 1s]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub probe_period: Option<Span>,
    /// Silence after which a member is dead [default: 3s]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub dead_after: Option<Span>,
    /// A dead member is forgotten after this [default: 10m]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub forget_after: Option<Span>,
    /// Longest wait for other nodes in a request [default: 5s]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub operation_timeout: Option<Span>,
    /// Memory for writes kept for absent nodes [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hint_memory: Option<MemorySize>,
    /// Such writes are dropped after this [default: 10m]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hint_age: Option<Span>,
    /// Bytes waiting for one core of another node [default: 8MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub link_queue: Option<MemorySize>,
    /// Memory for requests that wait for other nodes [default: 128MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub operation_memory: Option<MemorySize>,
    /// Bytes per second taken in when ranges become its own [default: 32MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub rebalance_rate: Option<MemorySize>,
    /// Longest wait, when it ends, for others to copy what it holds [default: 3s]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub leave_timeout: Option<Span>,
    /// Span over which requests for a key are counted [default: 60s]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_window: Option<Span>,
    /// Requests to one core in it that make a key hot [default: 1000]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_threshold: Option<Number>,
    /// Memory for copies of hot keys of other nodes [default: 4MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_memory: Option<MemorySize>,
    /// Such a copy is used for so long, 1s at most; 0 for none [default: 1s]
    #[arg(long, value_name = "SPAN", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_age: Option<Span>,

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
const CLUSTER: &str = "Cluster";
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
            listen port shard_ports unix_socket unix_mode backlog max_connections connection_memory idle_timeout
            admin cores cpus busy_poll memory lock_memory max_item_size eviction
            disable_evictions default_ttl disable_cas disable_flush_all enable_shutdown
            disable_dumping prefix_delimiter pid_file cluster_listen cluster_advertise node_id join members cluster_name
            cluster_key_file cluster_insecure replicas write_quorum read_quorum vnodes ring_hash weight probe_period
            dead_after forget_after operation_timeout hint_memory hint_age link_queue operation_memory
            rebalance_rate leave_timeout hot_key_window hot_key_threshold hot_key_memory hot_key_age log
        }
    }
}
