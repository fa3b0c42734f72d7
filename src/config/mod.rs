//! All settings and limits, as valid values that are checked once and passed down.
//!
//! A [`Config`] is the complete configuration of one node: command line, configuration file and
//! host facts are merged before it exists (the server's command line does that), so no code that
//! uses it queries the host again or has defaults of its own. It is plain data; [`Config::check`]
//! states the relations between its fields. Refused: a struct with private fields and a builder,
//! since tests want `Config { port, ..Config::tiny() }` and all fields are read everywhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub mod cluster;
pub mod size;

use crate::protocol::Limits;
use crate::shard::{Eviction, ShardConfig};
pub use cluster::ClusterConfig;
use size::Size;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// memcached's port.
pub const PORT: u16 = 11211;
/// Default memory for items in bytes, on a host with at least four times as much.
pub const MEMORY_BYTES: u64 = GIB;
/// Minimum memory of one core in bytes: two slab pages.
pub const CORE_MEMORY_BYTES_MIN: u64 = 2 * MIB;
/// Maximum memory of one core in bytes: the reach of 32-bit chunk positions in units of 8 bytes.
pub const CORE_MEMORY_BYTES_MAX: u64 = 32 * GIB;
/// Smallest and largest item size limit in bytes.
pub const ITEM_BYTES_MAX_RANGE: (u64, u64) = (KIB, GIB);
/// Default maximum of concurrent connections, as far as the open file limit allows.
pub const CONNECTIONS_MAX: u32 = 10_000;
/// Default memory for connection buffers in bytes.
pub const CONNECTION_MEMORY_BYTES: u64 = 64 * MIB;
/// Minimum of it per core in bytes: one answer of the default item size limit.
pub const CORE_CONNECTION_MEMORY_BYTES_MIN: u64 = MIB;
/// Maximum number of cores of one node.
pub const CORES_MAX: usize = 256;
/// Maximum connections of a node: half of the slots that the net ring's 24 bits can number; the
/// other half is for links to other nodes.
pub const CONNECTION_SLOTS: u32 = 1 << 23;

/// Longest busy-poll, so that a typo does not burn a CPU forever.
pub const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

/// The complete configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Listen addresses for TCP clients, all with [`Config::port`]. May be empty if there is a
    /// [`Config::unix_socket`].
    pub listen: Vec<IpAddr>,
    /// TCP port of the listen addresses. Never 0.
    pub port: u16,
    /// First of one extra TCP port per core that reaches only that core: core `i` has this + `i`.
    pub shard_ports: Option<u16>,
    /// Unix socket for clients on the same host.
    pub unix_socket: Option<UnixSocket>,
    /// Connections waiting to be accepted on each listener; the kernel caps it at
    /// `net.core.somaxconn`.
    pub backlog: u32,
    /// The CPU of each core, in core order. A CPU listed twice runs two cores.
    pub cpus: Vec<usize>,
    /// Memory in bytes for items and index, all cores together.
    pub memory_bytes: u64,
    /// Allocate all of that memory at startup and lock it into RAM.
    pub lock_memory: bool,
    /// Size limit of one item as memcached counts it: key, value and about 50 bytes. A store of a
    /// larger one is answered as too large.
    pub item_bytes_max: u32,
    /// Which item is evicted when memory is full.
    pub eviction: Eviction,
    /// TTL of items stored without one. `None` keeps them forever.
    pub default_ttl: Option<Duration>,
    /// Concurrent connections of the whole node. One more gets an error and is closed.
    pub connections_max: u32,
    /// Memory in bytes for connection buffers: unsent answers, values in transit from other cores,
    /// values being received for them, buffered input. Each core has an equal share. When it is
    /// used up, long answers wait, long values are refused, and connections that hold some but make
    /// no progress for a second are closed.
    pub connection_memory_bytes: u64,
    /// A connection that has sent nothing for this long is closed. `None` disables it.
    pub idle_timeout: Option<Duration>,
    /// Longest busy-poll of a core after its last work before it sleeps; zero sleeps at once. An
    /// upper bound: a core polls only while requests arrive often enough for it to pay off.
    pub busy_poll: Duration,
    /// Address that serves statistics and health over HTTP.
    pub admin: Option<SocketAddr>,
    /// Log level.
    pub log: LogLevel,
    /// memcached's verbosity, 0 to 2, as `stats settings` shows it.
    pub verbosity: u8,
    /// What clients may do besides reading and writing items.
    pub permissions: Permissions,
    /// Requests are counted per key prefix, which ends at this byte, from startup. `None` counts
    /// them by `:` once a client enables it.
    pub prefix_delimiter: Option<u8>,
    /// File that holds the process id while the node runs.
    pub pid_file: Option<PathBuf>,
    /// Bounds of every queue and buffer.
    pub queues: Queues,
    /// Cluster settings. `None` for a standalone node.
    pub cluster: Option<ClusterConfig>,
}

/// A unix domain socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Path in the file system.
    pub path: PathBuf,
    /// Its permission bits: 0o700 admits only the server's user, as memcached does.
    pub mode: u32,
}

/// What clients may do besides reading and writing items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// CAS tokens are returned and compared (memcached's `-C` disables it).
    pub cas: bool,
    /// `flush_all` (`-F` disables it).
    pub flush: bool,
    /// `shutdown` (`-A` enables it).
    pub shutdown: bool,
    /// Listing keys: `lru_crawler metadump`, `mgdump`, `stats cachedump` (`-X` disables it).
    pub dump: bool,
}

impl Default for Permissions {
    fn default() -> Self {
        Self { cas: true, flush: true, shutdown: false, dump: true }
    }
}

/// Bounds of every queue and buffer of one core, each with what happens when it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Bytes of the ring from one core to another, a power of two; there are cores x (cores - 1)
    /// of them. When it is full, the sender holds back the connection that wants to send.
    pub mesh_ring_bytes: u32,
    /// Receive buffers of a core, a power of two, at most 32,768. When all are in use, receiving
    /// pauses until one is returned.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer. Longer bodies are received straight into their item.
    pub receive_buffer_bytes: u32,
    /// Unsent answer bytes of one connection; beyond, nothing more is read from it.
    pub output_bytes_max: u32,
    /// Bytes of one connection's answers that wait for earlier ones or are in transit from other
    /// cores; beyond, no more of its input is parsed. The answer to its oldest request comes on
    /// top.
    pub pipeline_bytes_max: u32,
    /// Requests of one connection that other cores have not answered yet; beyond, no more of its
    /// input is parsed.
    pub pipeline_depth_max: u32,
    /// Longest line in bytes; a longer one closes the connection.
    pub line_bytes_max: u32,
    /// Longest `get` or `gets` line in bytes; a longer one closes the connection.
    pub multiget_line_bytes_max: u32,
    /// Data blocks of at least this many bytes are received straight into their item.
    pub body_bytes_streamed: u32,
}

impl Default for Queues {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            mesh_ring_bytes: 256 << 10,
            receive_buffers: 256,
            receive_buffer_bytes: 16 << 10,
            output_bytes_max: 256 << 10,
            pipeline_bytes_max: 1 << 20,
            pipeline_depth_max: 1024,
            line_bytes_max: limits.line_bytes_max as u32,
            multiget_line_bytes_max: limits.multiget_line_bytes_max as u32,
            body_bytes_streamed: limits.body_bytes_streamed,
        }
    }
}

impl Queues {
    /// The default bounds for `core_count` cores: the number of rings between cores grows with the
    /// square of it, so each ring shrinks, down to 32 KiB, to keep their total below 64 MiB.
    pub fn for_cores(core_count: usize) -> Self {
        let pairs = (core_count * core_count.saturating_sub(1)).max(1) as u64;
        let fair = (64 * MIB / pairs).clamp(32 * KIB, 256 * KIB);
        let mesh_ring_bytes = 1 << fair.ilog2();
        Self { mesh_ring_bytes, ..Self::default() }
    }
}

impl Default for Config {
    /// The documented defaults as far as they do not depend on the host: one core on CPU 0.
    fn default() -> Self {
        Self {
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            port: PORT,
            shard_ports: None,
            unix_socket: None,
            backlog: 1024,
            cpus: vec![0],
            memory_bytes: MEMORY_BYTES,
            lock_memory: false,
            item_bytes_max: Limits::default().item_bytes_max,
            eviction: Eviction::Lru,
            default_ttl: None,
            connections_max: CONNECTIONS_MAX,
            connection_memory_bytes: CONNECTION_MEMORY_BYTES,
            idle_timeout: None,
            busy_poll: Duration::from_micros(50),
            admin: None,
            log: LogLevel::Info,
            verbosity: 0,
            permissions: Permissions::default(),
            prefix_delimiter: None,
            pid_file: None,
            queues: Queues::default(),
            cluster: None,
        }
    }
}

impl Config {
    /// The smallest sensible node, which reaches every limit soon. For tests.
    pub fn tiny() -> Self {
        Self {
            memory_bytes: CORE_MEMORY_BYTES_MIN,
            item_bytes_max: 64 << 10,
            connections_max: 16,
            queues: Queues {
                mesh_ring_bytes: 4 << 10,
                receive_buffers: 4,
                receive_buffer_bytes: 512,
                output_bytes_max: 4 << 10,
                pipeline_bytes_max: 16 << 10,
                pipeline_depth_max: 8,
                multiget_line_bytes_max: 8 << 10,
                body_bytes_streamed: 1 << 10,
                ..Queues::default()
            },
            ..Self::default()
        }
    }

    /// Number of cores, at least one.
    pub fn core_count(&self) -> usize {
        self.cpus.len()
    }

    /// The settings of each core's shard: an equal part of the memory.
    pub fn shard(&self) -> ShardConfig {
        ShardConfig {
            memory_bytes: self.memory_bytes / self.core_count() as u64,
            item_bytes_max: self.item_bytes_max,
            eviction: self.eviction,
        }
    }

    /// The limits of the protocol decoders.
    pub fn limits(&self) -> Limits {
        Limits {
            item_bytes_max: self.item_bytes_max,
            line_bytes_max: self.queues.line_bytes_max as usize,
            multiget_line_bytes_max: self.queues.multiget_line_bytes_max as usize,
            body_bytes_streamed: self.queues.body_bytes_streamed,
        }
    }

    /// The port that reaches only core `core`, if shard ports are configured.
    pub fn shard_port(&self, core: usize) -> Option<u16> {
        self.shard_ports.map(|base| base + core as u16)
    }

    /// Rejects the first unusable setting. A configuration that passes needs no further checks,
    /// except against the host.
    pub fn check(&self) -> Result<(), ConfigError> {
        let core_count = self.core_count();
        require(core_count > 0, || "no cores: name at least one CPU or one core".into())?;
        require(core_count <= CORES_MAX, || {
            format!("{core_count} cores are too many: a node has at most {CORES_MAX}")
        })?;
        require(!self.listen.is_empty() || self.unix_socket.is_some(), || {
            "nothing to listen on: give an address and port or a unix socket path".into()
        })?;
        require(self.port != 0 || self.listen.is_empty(), || {
            "port 0 cannot be listened on: use one from 1 to 65535".into()
        })?;
        if let Some(base) = self.shard_ports {
            let last = base as usize + core_count - 1;
            require(base != 0 && last <= u16::MAX as usize, || {
                format!(
                    "shard ports {base} to {last} are not all between 1 and 65535: use another \
                     base than {base}"
                )
            })?;
            require(self.port < base || self.port as usize > last, || {
                format!(
                    "port {} is also one of the shard ports {base} to {last}: use another base \
                     than {base}",
                    self.port
                )
            })?;
        }
        if let Some(admin) = self.admin {
            let mut clients = std::iter::once(self.port)
                .chain((0..core_count).filter_map(|core| self.shard_port(core)));
            let shared = |ip: &IpAddr| *ip == admin.ip() || ip.is_unspecified();
            let taken = (self.listen.iter().any(shared)
                || (admin.ip().is_unspecified() && !self.listen.is_empty()))
                && clients.any(|port| port == admin.port());
            require(!taken, || {
                format!(
                    "the admin address {admin} is also a client address: use another port than {}",
                    admin.port()
                )
            })?;
        }
        self.check_memory()?;
        require(self.connections_max > 0, || {
            "0 connections would serve no client: allow at least 1".into()
        })?;
        require(self.connections_max <= CONNECTION_SLOTS, || {
            format!(
                "{} connections are too many: a node has at most {CONNECTION_SLOTS}",
                self.connections_max
            )
        })?;
        let least = CORE_CONNECTION_MEMORY_BYTES_MIN * self.core_count() as u64;
        require(self.connection_memory_bytes >= least, || {
            format!(
                "{} of connection memory is too little: give at least {} per core, {} in total",
                Size(self.connection_memory_bytes),
                Size(CORE_CONNECTION_MEMORY_BYTES_MIN),
                Size(least)
            )
        })?;
        require(self.backlog > 0, || "a backlog of 0 accepts no client: use at least 1".into())?;
        require(self.busy_poll <= BUSY_POLL_MAX, || {
            format!(
                "busy polling for {} µs wastes CPU time: use at most {} µs",
                self.busy_poll.as_micros(),
                BUSY_POLL_MAX.as_micros()
            )
        })?;
        require(self.default_ttl != Some(Duration::ZERO), || {
            "a default TTL of 0 would expire every item at once: omit it for no TTL".into()
        })?;
        require(self.idle_timeout != Some(Duration::ZERO), || {
            "an idle timeout of 0 would close every connection at once: omit it for none".into()
        })?;
        if let Some(cluster) = &self.cluster {
            self.check_cluster(cluster)?;
        }
        self.queues.check()
    }

    fn check_cluster(&self, cluster: &ClusterConfig) -> Result<(), ConfigError> {
        cluster.check()?;
        let (ip, port) = (cluster.listen.ip(), cluster.listen.port());
        let shared = |other: &IpAddr| *other == ip || ip.is_unspecified() || other.is_unspecified();
        let shard_ports = (0..self.core_count()).filter_map(|core| self.shard_port(core));
        let taken = std::iter::once(self.port).chain(shard_ports).any(|client| client == port);
        require(!(taken && self.listen.iter().any(shared)), || {
            format!("cluster port {port} is also a client port: use another")
        })
    }

    fn check_memory(&self) -> Result<(), ConfigError> {
        let (least, most) = ITEM_BYTES_MAX_RANGE;
        let item = self.item_bytes_max as u64;
        require((least..=most).contains(&item), || {
            format!(
                "an item size limit of {} is out of range: use {} to {}",
                Size(item),
                Size(least),
                Size(most)
            )
        })?;
        let core_count = self.core_count() as u64;
        let cores = if core_count == 1 { "1 core".into() } else { format!("{core_count} cores") };
        let per_core = self.memory_bytes / core_count;
        require(per_core >= CORE_MEMORY_BYTES_MIN, || {
            format!(
                "{} of memory is too little for {cores}: give at least {} or use fewer cores",
                Size(self.memory_bytes),
                Size(CORE_MEMORY_BYTES_MIN * core_count)
            )
        })?;
        require(per_core <= CORE_MEMORY_BYTES_MAX, || {
            format!(
                "{} of memory is too much for {cores}: give at most {} or use more cores",
                Size(self.memory_bytes),
                Size(CORE_MEMORY_BYTES_MAX * core_count)
            )
        })?;
        require(item <= per_core / 2, || {
            format!(
                "an item size limit of {} needs twice that memory per core: give at least {} of \
                 memory for {cores}, or use fewer cores",
                Size(item),
                Size(item * 2 * core_count)
            )
        })
    }
}

impl Queues {
    fn check(&self) -> Result<(), ConfigError> {
        require(self.mesh_ring_bytes.is_power_of_two() && self.mesh_ring_bytes >= 1024, || {
            format!("a mesh ring of {} bytes is not a power of two from 1024", self.mesh_ring_bytes)
        })?;
        let buffers = self.receive_buffers;
        require(buffers.is_power_of_two() && buffers <= 32_768, || {
            format!("{buffers} receive buffers are not a power of two up to 32768")
        })?;
        require(self.receive_buffer_bytes >= 256, || {
            format!("receive buffers of {} bytes are below 256", self.receive_buffer_bytes)
        })?;
        require(self.pipeline_depth_max > 0, || {
            "a pipeline depth of 0 admits no request: allow at least 1".into()
        })
    }
}

/// Why a configuration cannot be used: one sentence that names the value and the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

fn require(holds: bool, sentence: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError(sentence())) }
}

/// Log level, from nothing to everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Failures of the server.
    Error,
    /// Conditions an operator should look at.
    Warn,
    /// Start, stop and rare events.
    #[default]
    Info,
    /// Connections opened and closed.
    Debug,
    /// Single requests.
    Trace,
}

impl LogLevel {
    /// Every level with its name, in order.
    pub const NAMES: [(&str, LogLevel); 6] = [
        ("off", LogLevel::Off),
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(config: Config) -> String {
        config.check().expect_err("must be refused").to_string()
    }

    #[test]
    fn the_defaults_and_the_tiny_configuration_are_valid() {
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(Config::tiny().check(), Ok(()));
    }

    #[test]
    fn a_refusal_names_the_value_and_the_fix() {
        let text = complaint(Config { item_bytes_max: 512, ..Config::default() });
        assert!(text.contains("512B") && text.contains("1KiB"), "{text}");
        let text = complaint(Config { memory_bytes: 5 * MIB, cpus: vec![0; 3], ..Config::tiny() });
        assert!(text.contains("5MiB") && text.contains("6MiB"), "{text}");
        let text = complaint(Config { memory_bytes: 100 * GIB, ..Config::default() });
        assert!(text.contains("100GiB") && text.contains("32GiB"), "{text}");
    }

    #[test]
    fn an_item_may_take_half_a_cores_memory_at_most() {
        let config = Config { memory_bytes: 8 * MIB, item_bytes_max: 2 << 20, ..Config::default() };
        let two_cores = Config { cpus: vec![0, 1], ..config.clone() };
        assert_eq!(two_cores.check(), Ok(()));
        let text = complaint(Config { cpus: vec![0, 1, 2], ..config });
        assert!(text.contains("2MiB") && text.contains("12MiB"), "{text}");
    }

    #[test]
    fn shard_ports_must_fit_and_leave_the_main_port_alone() {
        let cores =
            |base| Config { cpus: vec![0, 1, 2, 3], shard_ports: Some(base), ..Config::default() };
        assert_eq!(cores(12000).check(), Ok(()));
        assert_eq!(cores(65532).check(), Ok(()));
        assert!(complaint(cores(65533)).contains("65536"));
        assert!(complaint(cores(11210)).contains("11211"));
        assert_eq!(cores(12000).shard_port(3), Some(12003));
    }

    #[test]
    fn the_admin_address_must_not_be_one_of_the_clients() {
        let admin = |address: &str| Config {
            admin: Some(address.parse().expect("an address")),
            shard_ports: Some(12000),
            ..Config::default()
        };
        assert_eq!(admin("127.0.0.1:9000").check(), Ok(()));
        assert_eq!(admin("127.0.0.2:11211").check(), Ok(()));
        for taken in ["127.0.0.1:11211", "0.0.0.0:11211", "127.0.0.1:12000"] {
            assert!(complaint(admin(taken)).contains(taken), "{taken}");
        }
    }

    #[test]
    fn something_must_be_listened_on() {
        let deaf = Config { listen: vec![], ..Config::default() };
        assert!(complaint(deaf.clone()).contains("nothing to listen on"));
        let unix_socket = Some(UnixSocket { path: "/tmp/r".into(), mode: 0o700 });
        assert_eq!(Config { unix_socket, ..deaf }.check(), Ok(()));
    }

    #[test]
    fn mesh_rings_stay_below_their_total_until_they_reach_the_least_size() {
        assert_eq!(Queues::for_cores(1).mesh_ring_bytes, 256 << 10);
        for cores in [2usize, 16, 17, 32, 45] {
            let ring = Queues::for_cores(cores).mesh_ring_bytes as u64;
            assert!(ring * (cores * (cores - 1)) as u64 <= 64 * MIB, "{cores} cores: {ring}");
            assert_eq!(Queues::for_cores(cores).check(), Ok(()));
        }
        assert_eq!(Queues::for_cores(CORES_MAX).mesh_ring_bytes, 32 << 10);
    }

    #[test]
    fn names_stand_in_the_order_of_the_variants() {
        assert!(LogLevel::NAMES.iter().all(|&(name, level)| level.name() == name));
        assert!(Eviction::NAMES.iter().all(|&(name, policy)| policy.name() == name));
    }
}
