//! Every setting as given on the command line or in the configuration file; each is optional.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::key_file::KeyFile;
use super::values::{
    CpuList, Delimiter, EvictionName, ItemSize, ListenAddress, LogName, Member, MemorySize, Micros,
    NodeId, Port, PositiveNumber, RingHashName, Seconds, SocketAddress, UnitDuration, UnixMode,
    list, text,
};

/// The settings from one source; `None` where it is silent.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Comma-separated addresses to listen on [default: 127.0.0.1]
    #[arg(short = 'l', long, value_name = "ADDR", value_delimiter = ',', help_heading = NETWORK)]
    #[serde(deserialize_with = "list")]
    pub listen: Option<Vec<ListenAddress>>,
    /// TCP port; 0 disables TCP if a unix socket is given [default: 11211]
    #[arg(short = 'p', long, value_name = "PORT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub port: Option<Port>,
    /// First of one extra port per core; each reaches only its own core
    #[arg(long, value_name = "BASE", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub shard_ports: Option<Port>,
    /// Unix socket to listen on; replaces TCP unless an address or port is given too
    #[arg(short = 's', long, value_name = "PATH", help_heading = NETWORK)]
    pub unix_socket: Option<PathBuf>,
    /// Permissions of the unix socket in octal [default: 700]
    #[arg(short = 'a', long, alias = "unix-mask", value_name = "MODE", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub unix_mode: Option<UnixMode>,
    /// Connections waiting to be accepted on each listener [default: 1024]
    #[arg(short = 'b', long, alias = "listen-backlog", value_name = "COUNT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub backlog: Option<PositiveNumber>,
    /// Maximum concurrent connections [default: 10000, or what the open file limit allows]
    #[arg(short = 'c', long, alias = "conn-limit", value_name = "COUNT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub max_connections: Option<PositiveNumber>,
    /// Memory for connection buffers [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub connection_memory: Option<MemorySize>,
    /// Close connections idle for this long [default: never]
    #[arg(long, value_name = "SECS", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub idle_timeout: Option<Seconds>,
    /// Serve /health, /metrics and /stats over HTTP
    #[arg(long, value_name = "ADDR:PORT", help_heading = NETWORK)]
    #[serde(deserialize_with = "text")]
    pub admin: Option<SocketAddress>,

    /// Number of cores, each owning one shard of the items [default: every allowed CPU]
    #[arg(short = 't', long, alias = "threads", value_name = "COUNT", help_heading = CORES)]
    #[serde(deserialize_with = "text")]
    pub cores: Option<PositiveNumber>,
    /// CPUs to pin the cores to, such as 2-5,8 [default: the allowed ones, in order]
    #[arg(long, value_name = "LIST", help_heading = CORES)]
    #[serde(deserialize_with = "text")]
    pub cpus: Option<CpuList>,
    /// Longest busy-poll before a core sleeps; 0 disables it [default: 50]
    #[arg(long, value_name = "MICROS", help_heading = CORES)]
    #[serde(deserialize_with = "text")]
    pub busy_poll: Option<Micros>,

    /// Memory for items: 64MiB, 1GiB, or a number of MiB [default: 1GiB, or a quarter of RAM]
    #[arg(short = 'm', long, alias = "memory-limit", value_name = "SIZE", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub memory: Option<MemorySize>,
    /// Allocate item memory at startup and lock it into RAM
    #[arg(short = 'k', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = ITEMS)]
    pub lock_memory: Option<bool>,
    /// Largest item: 1MiB, 512k, or a number of bytes [default: 1MiB]
    #[arg(short = 'I', long, value_name = "SIZE", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub max_item_size: Option<ItemSize>,
    /// Eviction policy when memory is full: lru, lfu, s3fifo, fifo, random, ttl or none
    /// [default: lru]
    #[arg(long, value_name = "POLICY", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub eviction: Option<EvictionName>,
    /// Return an error when memory is full; same as --eviction none
    #[arg(short = 'M', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = ITEMS)]
    pub disable_evictions: Option<bool>,
    /// TTL of items stored without one [default: none]
    #[arg(long, value_name = "SECS", help_heading = ITEMS)]
    #[serde(deserialize_with = "text")]
    pub default_ttl: Option<Seconds>,

    /// Disable CAS: tokens are neither returned nor compared
    #[arg(short = 'C', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub disable_cas: Option<bool>,
    /// Refuse flush_all
    #[arg(short = 'F', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub disable_flush_all: Option<bool>,
    /// Let clients stop the server with the shutdown command
    #[arg(short = 'A', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub enable_shutdown: Option<bool>,
    /// Refuse commands that list keys (lru_crawler metadump, stats cachedump)
    #[arg(short = 'X', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLIENTS)]
    pub disable_dumping: Option<bool>,

    /// Character that ends a key prefix; counts requests per prefix (stats detail)
    #[arg(short = 'D', long, value_name = "CHAR", help_heading = LOG)]
    #[serde(deserialize_with = "text")]
    pub prefix_delimiter: Option<Delimiter>,
    /// Write the process id to this file while the server runs
    #[arg(short = 'P', long, alias = "pidfile", value_name = "FILE", help_heading = LOG)]
    pub pid_file: Option<PathBuf>,
    /// Join or found a cluster: address for gossip (UDP) and links (TCP) [default: standalone]
    #[arg(long, value_name = "ADDR:PORT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub cluster_listen: Option<SocketAddress>,
    /// Address at which other nodes reach this one [default: the listen address]
    #[arg(long, value_name = "ADDR:PORT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub cluster_advertise: Option<SocketAddress>,
    /// Node id, unique in the cluster and stable across restarts [default: its cluster address]
    #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub node_id: Option<NodeId>,
    /// Comma-separated cluster addresses of existing members [default: none, the first node]
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', help_heading = CLUSTER)]
    #[serde(deserialize_with = "list")]
    pub join: Option<Vec<SocketAddress>>,
    /// Comma-separated static list of permitted members; other nodes are refused
    #[arg(long, value_name = "ID=ADDR:PORT", value_delimiter = ',', help_heading = CLUSTER)]
    #[serde(deserialize_with = "list")]
    pub members: Option<Vec<Member>>,
    /// Cluster name; nodes with a different one are refused [default: ringlane]
    #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
    pub cluster_name: Option<String>,
    /// File with the secret shared by all nodes [default: none]
    #[arg(long, value_name = "FILE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub cluster_key_file: Option<KeyFile>,
    /// Accept nodes beyond loopback without a key: anyone who reaches the port can join
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = CLUSTER)]
    pub cluster_insecure: Option<bool>,
    /// Replicas of each key, 1 to 8 [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub replicas: Option<PositiveNumber>,
    /// Replicas that must acknowledge a write [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub write_quorum: Option<PositiveNumber>,
    /// Replicas that must answer a read [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub read_quorum: Option<PositiveNumber>,
    /// Points on the ring per unit of weight [default: 150]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub vnodes: Option<PositiveNumber>,
    /// Hash function of the ring: md5 or xxh3 [default: md5]
    #[arg(long, value_name = "HASH", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub ring_hash: Option<RingHashName>,
    /// This node's share of the keys relative to other nodes, 1 to 100 [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub weight: Option<PositiveNumber>,
    /// Interval between probes of a member [default: 1s]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub probe_period: Option<UnitDuration>,
    /// Declare an unresponsive member dead after this long [default: 3s]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub dead_after: Option<UnitDuration>,
    /// Forget a dead member after this long [default: 10m]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub forget_after: Option<UnitDuration>,
    /// Longest wait of a request for other nodes [default: 5s]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub operation_timeout: Option<UnitDuration>,
    /// Memory for hints, the writes kept for absent nodes [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hint_memory: Option<MemorySize>,
    /// Drop hints older than this [default: 10m]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hint_age: Option<UnitDuration>,
    /// Bytes queued for one core of another node [default: 8MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub link_queue: Option<MemorySize>,
    /// Memory for long messages on all links, per direction [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub link_memory: Option<MemorySize>,
    /// Memory for requests waiting for other nodes [default: 128MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub operation_memory: Option<MemorySize>,
    /// Bytes per second this node receives while rebalancing [default: 32MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub rebalance_rate: Option<MemorySize>,
    /// Longest wait at shutdown for other nodes to copy this node's items [default: 3s]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub leave_timeout: Option<UnitDuration>,
    /// Time window for counting requests per key [default: 60s]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_window: Option<UnitDuration>,
    /// Requests to one core within the window that make a key hot [default: 1000]
    #[arg(long, value_name = "COUNT", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_threshold: Option<PositiveNumber>,
    /// Memory for cached copies of other nodes' hot keys [default: 4MiB]
    #[arg(long, value_name = "SIZE", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_memory: Option<MemorySize>,
    /// Longest use of a cached copy, at most 1s; 0 disables them [default: 1s]
    #[arg(long, value_name = "DURATION", help_heading = CLUSTER)]
    #[serde(deserialize_with = "text")]
    pub hot_key_age: Option<UnitDuration>,

    /// Log level: off, error, warn, info, debug or trace [default: info]
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
    /// These settings, completed from `other` where they are silent.
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
            dead_after forget_after operation_timeout hint_memory hint_age link_queue link_memory operation_memory
            rebalance_rate leave_timeout hot_key_window hot_key_threshold hot_key_memory hot_key_age log
        }
    }
}
