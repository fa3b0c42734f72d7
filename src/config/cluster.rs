//! The configuration of a cluster member.
//!
//! It uses the types of `cluster` itself (replication, ring hash, key), which are valid by
//! construction, so that nothing is translated or checked twice. Settings that all nodes must share
//! go into [`ClusterConfig::terms`]; a node with different terms is refused.

use crate::hash::HashSecret;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use super::{Config, ConfigError, MIB, require};
use crate::cluster::coordinator::CoordinatorSettings;
use crate::cluster::frame::AuthKey;
use crate::cluster::hints::HintSettings;
use crate::cluster::hot_keys::HotKeySettings;
use crate::cluster::link::ClientEndpoint;
use crate::cluster::membership::{MembershipSettings, Terms};
use crate::cluster::quorum::Replication;
use crate::cluster::record::RetentionTimes;
use crate::ring::{
    NODE_ID_BYTES_MAX, NODES_MAX, POINTS_PER_WEIGHT, REPLICAS_MAX, RingHash, RingParameters,
    WEIGHT_MAX,
};

/// Default name of a cluster.
pub const CLUSTER_NAME: &str = "ringlane";
/// Maximum points of a node per unit of weight, so that the rings of large clusters stay small.
pub const POINTS_PER_WEIGHT_MAX: u32 = 4096;
/// Shortest and longest probe period.
pub const PROBE_PERIOD_RANGE: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(60));
/// Shortest and longest wait for answers from other nodes.
pub const OPERATION_TIMEOUT_RANGE: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(60));
/// Longest wait of a leaving node for others to copy its items.
pub const LEAVE_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Smallest queue of a link in bytes.
pub const LINK_QUEUE_BYTES_MIN: u64 = 64 << 10;
/// Largest queue of a link in bytes.
pub const LINK_QUEUE_BYTES_MAX: u64 = 1 << 30;
/// Longest age of a cached copy of a hot key.
pub const HOT_KEY_AGE_MAX: Duration = Duration::from_secs(1);

impl Config {
    /// The client address that this node announces: the one at which other nodes reach it if it
    /// listens there, else the first listen address. A standalone node that listens on all
    /// addresses announces none.
    pub fn client_endpoint(&self) -> ClientEndpoint {
        if self.listen.is_empty() {
            return ClientEndpoint::default();
        }
        let named = self.listen.iter().copied().find(|ip| !ip.is_unspecified());
        let reached = self.cluster.as_ref().map(|cluster| cluster.advertise.ip());
        let listens = |wanted: IpAddr| {
            self.listen.iter().any(|&ip| {
                ip == wanted || (ip.is_unspecified() && (ip.is_ipv6() || wanted.is_ipv4()))
            })
        };
        let ip = reached.filter(|&ip| listens(ip)).or(named);
        ClientEndpoint { ip, port: self.port, shard_ports: self.shard_ports }
    }
}

/// A node's cluster settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The cluster's name. Nodes with a different one are refused.
    pub name: String,
    /// This node's id, 1 to 64 bytes, unique in the cluster and stable across restarts: it
    /// determines the node's ring positions.
    pub node_id: String,
    /// This node's share of the keys relative to other nodes, 1 to 100.
    pub weight: u32,
    /// Address for gossip (UDP) and connections (TCP) from other nodes.
    pub listen: SocketAddr,
    /// Address announced to other nodes; it may differ from `listen`.
    pub advertise: SocketAddr,
    /// Cluster addresses of existing members. Empty for the first node.
    pub join: Vec<SocketAddr>,
    /// Static list of permitted members, including this node. Others are refused.
    pub members: Option<Vec<ListedMember>>,
    /// The secret shared by all nodes; `None` trusts anyone who can reach the port.
    pub key: Option<AuthKey>,
    /// Allows listening beyond loopback without a key.
    pub insecure: bool,
    /// Hash function of the ring. The same on all nodes.
    pub ring_hash: RingHash,
    /// Points of a node of weight 1. The same on all nodes.
    pub points_per_weight: u32,
    /// Number of replicas, write and read quorum. The same on all nodes.
    pub replication: Replication,
    /// Interval between probes of a member.
    pub probe_period: Duration,
    /// An unresponsive member is dead after this, at least two probe periods.
    pub dead_after: Duration,
    /// A dead member is forgotten after this, and its ranges are reassigned.
    pub forget_after: Duration,
    /// An operation fails if its replicas have not answered after this.
    pub operation_timeout: Duration,
    /// Bytes of hints stored for other nodes, all cores together; beyond, the oldest are dropped.
    pub hint_bytes_max: u64,
    /// A hint older than this is dropped.
    pub hint_age_max: Duration,
    /// Bytes queued or in flight to one core of another node, for short requests, long ones and
    /// long answers each; beyond, they wait until there is room.
    pub link_queue_bytes_max: u64,
    /// Bytes of long messages queued on all links of the node together, besides one per link, and
    /// as many partly received, besides what may arrive unasked; beyond, they wait at their sender.
    pub link_bytes_max: u64,
    /// Bytes of requests for other nodes, in flight or waiting, all cores together; beyond, long
    /// ones are refused.
    pub operation_bytes_max: u64,
    /// Bytes per second that the node receives for newly assigned ranges, all cores together.
    pub rebalance_bytes_per_second: u64,
    /// Longest wait of a stopping node for others to copy its items.
    pub leave_timeout: Duration,
    /// Hot key detection and caching.
    pub hot_keys: HotKeyConfig,
}

/// A node of a static list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMember {
    /// Its id.
    pub id: String,
    /// Its cluster address.
    pub address: SocketAddr,
}

/// Hot keys: requested so often that a node that does not own them caches a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotKeyConfig {
    /// Time window over which requests are counted.
    pub window: Duration,
    /// Requests to one core within the window that make a key hot.
    pub threshold: u32,
    /// Bytes of cached copies, all cores together; beyond, the coldest are evicted.
    pub cache_bytes_max: u64,
    /// Longest use of a copy; zero disables caching.
    pub cache_age_max: Duration,
}

impl Default for HotKeyConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            threshold: 1000,
            cache_bytes_max: 4 * MIB,
            cache_age_max: HOT_KEY_AGE_MAX,
        }
    }
}

impl ClusterConfig {
    /// The first node of a cluster with the documented defaults. Its id is its address, which is
    /// unique in the cluster.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            name: CLUSTER_NAME.into(),
            node_id: listen.to_string(),
            weight: 1,
            listen,
            advertise: listen,
            join: Vec::new(),
            members: None,
            key: None,
            insecure: false,
            ring_hash: RingHash::default(),
            points_per_weight: POINTS_PER_WEIGHT,
            replication: Replication::default(),
            probe_period: Duration::from_secs(1),
            dead_after: Duration::from_secs(3),
            forget_after: Duration::from_secs(600),
            operation_timeout: Duration::from_secs(5),
            hint_bytes_max: 64 * MIB,
            hint_age_max: Duration::from_secs(600),
            link_queue_bytes_max: 8 * MIB,
            link_bytes_max: 64 * MIB,
            operation_bytes_max: 128 * MIB,
            rebalance_bytes_per_second: 32 * MIB,
            leave_timeout: Duration::from_secs(3),
            hot_keys: HotKeyConfig::default(),
        }
    }

    /// The given replica count and quorums.
    ///
    /// # Errors
    /// For an impossible combination: a sentence that names the setting and the fix.
    pub fn replication(replicas: u32, write: u32, read: u32) -> Result<Replication, ConfigError> {
        require((1..=REPLICAS_MAX as u32).contains(&replicas), || {
            format!("{replicas} replicas are not possible: use 1 to {REPLICAS_MAX}")
        })?;
        for (quorum, name) in [(write, "write"), (read, "read")] {
            require((1..=replicas).contains(&quorum), || {
                format!(
                    "a {name} quorum of {quorum} is not between 1 and the number of replicas \
                     ({replicas}): change it or raise --replicas"
                )
            })?;
        }
        let made = Replication::new(replicas as u8, write as u8, read as u8);
        Ok(made.expect("its preconditions were just checked"))
    }

    /// What all nodes must share to map keys to the same nodes.
    pub fn ring(&self) -> RingParameters {
        RingParameters {
            hash: self.ring_hash,
            points_per_weight: self.points_per_weight,
            replicas: self.replication.replicas(),
        }
    }

    /// How long traces of a write may arrive.
    pub fn retention(&self) -> RetentionTimes {
        let drift = RetentionTimes::default().drift;
        let (operation, hint) = (self.operation_timeout, self.hint_age_max);
        RetentionTimes { operation, hint, drift, tombstone: hint + operation + 4 * drift }
    }

    /// Settings of the coordinator of one of `core_count` cores.
    pub fn coordinator(
        &self,
        core: usize,
        core_count: usize,
        hash_secret: Rc<HashSecret>,
    ) -> CoordinatorSettings {
        let cores = core_count as u64;
        CoordinatorSettings {
            retention: self.retention(),
            hints: HintSettings {
                bytes_max: (self.hint_bytes_max / cores) as usize,
                age_max: self.hint_age_max,
                ..HintSettings::default()
            },
            hot_keys: HotKeySettings {
                window: self.hot_keys.window,
                threshold: self.hot_keys.threshold,
                cache_bytes_max: (self.hot_keys.cache_bytes_max / cores) as usize,
                cache_age_max: self.hot_keys.cache_age_max,
            },
            forget_after: self.forget_after,
            operation_bytes_max: (self.operation_bytes_max / cores) as usize,
            fill_bytes_per_second: (self.rebalance_bytes_per_second / cores).max(1),
            core: core as u16,
            ring_hash: self.ring_hash,
            ..CoordinatorSettings::new(self.replication, hash_secret)
        }
    }

    /// The settings that all nodes of the cluster must share.
    pub fn terms(&self) -> Terms {
        Terms::new(&self.name, self.ring(), self.replication)
    }

    /// Settings of failure detection.
    pub fn membership(&self) -> MembershipSettings {
        let periods = self.dead_after.as_millis().div_ceil(self.probe_period.as_millis());
        let listed = self.members.iter().flatten();
        let mut join = self.join.clone();
        join.extend(listed.clone().map(|member| member.address));
        MembershipSettings {
            key: self.key.clone(),
            probe_period: self.probe_period,
            missed_max: (periods as u32).max(2),
            forget_after: self.forget_after,
            listed: self.listed(),
            join,
            ..MembershipSettings::new(self.terms())
        }
    }

    /// The ids that may join; `None` admits any.
    pub fn listed(&self) -> Option<std::sync::Arc<[Box<str>]>> {
        let members = self.members.as_ref()?;
        Some(members.iter().map(|member| member.id.as_str().into()).collect())
    }

    /// Rejects the first unusable setting.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        require(!self.name.is_empty(), || {
            "an empty cluster name could match any cluster: give it a name".into()
        })?;
        require(is_node_id(&self.node_id), || {
            format!(
                "{:?} is not a node id: use 1 to {NODE_ID_BYTES_MAX} bytes without spaces",
                self.node_id
            )
        })?;
        require((1..=WEIGHT_MAX).contains(&self.weight), || {
            format!("a weight of {} is not possible: use 1 to {WEIGHT_MAX}", self.weight)
        })?;
        require((1..=POINTS_PER_WEIGHT_MAX).contains(&self.points_per_weight), || {
            format!(
                "{} vnodes are not possible: use 1 to {POINTS_PER_WEIGHT_MAX}",
                self.points_per_weight
            )
        })?;
        require(self.listen.port() != 0 && self.advertise.port() != 0, || {
            "other nodes cannot reach cluster port 0: use one from 1 to 65535".into()
        })?;
        require(!self.advertise.ip().is_unspecified(), || {
            format!(
                "other nodes cannot reach {}: give a reachable address with --cluster-advertise",
                self.advertise
            )
        })?;
        require(self.key.is_some() || self.insecure || is_loopback(self.listen), || {
            format!(
                "without a key anyone who reaches {} could join the cluster and change its items: \
                 give --cluster-key-file FILE, or --cluster-insecure on a trusted network",
                self.listen
            )
        })?;
        require(self.join.len() <= NODES_MAX, || {
            format!(
                "{} addresses to join are too many: give at most {NODES_MAX}; a few suffice",
                self.join.len()
            )
        })?;
        self.check_members()?;
        self.check_spans()?;
        let queue = self.link_queue_bytes_max;
        require((LINK_QUEUE_BYTES_MIN..=LINK_QUEUE_BYTES_MAX).contains(&queue), || {
            format!("a link queue of {queue} bytes is not possible: use 64KiB to 1GiB")
        })?;
        require(self.link_bytes_max >= MIB, || {
            "a link memory below 1MiB has no room for values in flight: use 1MiB or more".into()
        })?;
        require(self.operation_bytes_max >= MIB, || {
            "an operation memory below 1MiB has no room for values in flight: use 1MiB or more"
                .into()
        })?;
        require(self.rebalance_bytes_per_second >= MIB, || {
            "rebalancing below 1MiB per second might never finish: use 1MiB or more".into()
        })
    }

    fn check_members(&self) -> Result<(), ConfigError> {
        let Some(members) = &self.members else { return Ok(()) };
        require(members.len() <= NODES_MAX, || {
            format!("{} members are too many: a cluster has at most {NODES_MAX}", members.len())
        })?;
        for (number, member) in members.iter().enumerate() {
            let twice = members[..number]
                .iter()
                .any(|other| other.id == member.id || other.address == member.address);
            require(!twice, || {
                format!(
                    "the member {}={} is listed twice: ids and addresses must be unique",
                    member.id, member.address
                )
            })?;
        }
        require(members.iter().any(|member| member.id == self.node_id), || {
            format!(
                "this node, {}, is not among the listed members: add it, or use a --node-id from \
                 the list",
                self.node_id
            )
        })
    }

    fn check_spans(&self) -> Result<(), ConfigError> {
        let within = |span: Duration, (least, most): (Duration, Duration), name: &str| {
            require((least..=most).contains(&span), || {
                let (span, least) = (shown(span), shown(least));
                format!("{name} of {span} is not possible: use {least} to {most:?}")
            })
        };
        within(self.probe_period, PROBE_PERIOD_RANGE, "a probe period")?;
        within(self.operation_timeout, OPERATION_TIMEOUT_RANGE, "an operation timeout")?;
        within(self.leave_timeout, (Duration::ZERO, LEAVE_TIMEOUT_MAX), "a leave timeout")?;
        require(self.dead_after >= self.probe_period * 2, || {
            format!(
                "--dead-after {} is too short for probes every {:?}: allow at least two probes",
                shown(self.dead_after),
                self.probe_period
            )
        })?;
        require(self.forget_after > self.dead_after, || {
            format!(
                "a member cannot be forgotten after {} if it is dead only after {:?}: raise \
                 --forget-after",
                shown(self.forget_after),
                self.dead_after
            )
        })?;
        require(self.hot_keys.cache_age_max <= HOT_KEY_AGE_MAX, || {
            format!(
                "copies of hot keys older than {HOT_KEY_AGE_MAX:?} are too stale: lower \
                 --hot-key-age"
            )
        })
    }
}

/// Whether `address` is reachable only from this host.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Whether `text` can be a node's id, which appears in lists and log lines.
pub fn is_node_id(text: &str) -> bool {
    (1..=NODE_ID_BYTES_MAX).contains(&text.len())
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '=' | ','))
}

/// A duration as people write it; `Debug` would print zero as 0ns.
fn shown(span: Duration) -> String {
    if span.is_zero() { "0s".into() } else { format!("{span:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn node() -> ClusterConfig {
        ClusterConfig::new(address("127.0.0.2:7000"))
    }

    fn complaint(cluster: ClusterConfig) -> String {
        let config = Config { cluster: Some(cluster), ..Config::tiny() };
        config.check().expect_err("must be refused").to_string()
    }

    #[test]
    fn the_defaults_are_a_valid_single_member() {
        let config = Config { cluster: Some(node()), ..Config::tiny() };
        assert_eq!(config.check(), Ok(()));
        let membership = node().membership();
        assert_eq!((membership.missed_max, membership.listed), (3, None));
        assert!(membership.join.is_empty());
    }

    #[test]
    fn beyond_loopback_a_key_is_needed_or_its_lack_confessed() {
        for far in ["10.0.0.1:7000", "[::]:7000", "[2001:db8::1]:7000", "[::ffff:10.0.0.1]:7000"] {
            let mut open = ClusterConfig::new(address(far));
            open.advertise = address("10.0.0.1:7000");
            let sentence = complaint(open.clone());
            assert!(sentence.contains("--cluster-key-file FILE, or --cluster-insecure"));
            let keyed =
                ClusterConfig { key: Some(AuthKey::from_file_contents(b"k")), ..open.clone() };
            assert_eq!(keyed.check(), Ok(()));
            assert_eq!(ClusterConfig { insecure: true, ..open }.check(), Ok(()));
        }
        for near in ["127.0.0.1:7000", "127.9.9.9:7000", "[::1]:7000", "[::ffff:127.0.0.1]:7000"] {
            assert_eq!(ClusterConfig::new(address(near)).check(), Ok(()), "{near}");
        }
    }

    #[test]
    fn quorums_lie_between_one_and_the_replicas() {
        let refused = |n, w, r| ClusterConfig::replication(n, w, r).expect_err("refused").0;
        assert!(ClusterConfig::replication(3, 2, 2).is_ok());
        assert!(refused(3, 4, 1).contains("write quorum of 4"));
        assert!(refused(3, 1, 4).contains("read quorum of 4"));
        assert!(refused(3, 0, 1).contains("write quorum of 0"));
        assert!(refused(9, 1, 1).contains("9 replicas"));
    }

    #[test]
    fn an_address_that_nobody_can_reach_must_be_replaced() {
        let everywhere = ClusterConfig::new(address("0.0.0.0:7000"));
        assert!(complaint(everywhere.clone()).contains("--cluster-advertise"));
        let told =
            ClusterConfig { advertise: address("10.0.0.1:7000"), insecure: true, ..everywhere };
        assert_eq!(told.check(), Ok(()));
    }

    #[test]
    fn clients_are_sent_where_other_nodes_reach_this_one_if_it_listens_there() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let end = |listen: &[&str], advertise: Option<&str>| {
            let listen = listen.iter().map(|text| ip(text)).collect();
            let advertise = advertise.map(|text| SocketAddr::new(ip(text), 7000));
            let cluster = advertise.map(|advertise| ClusterConfig { advertise, ..node() });
            Config { listen, cluster, shard_ports: Some(300), ..Config::tiny() }.client_endpoint()
        };
        let found = |listen: &[&str], advertise| end(listen, advertise).ip.map(|ip| ip.to_string());
        let far = Some("10.0.0.1");
        assert_eq!(found(&["127.0.0.1", "10.0.0.1"], far).as_deref(), far);
        assert_eq!(found(&["127.0.0.1", "0.0.0.0"], far).as_deref(), far);
        assert_eq!(found(&["::"], far).as_deref(), far);
        assert_eq!(found(&["0.0.0.0"], Some("fd00::1")), None, "no IPv6 there");
        assert_eq!(found(&["127.0.0.1"], far).as_deref(), Some("127.0.0.1"));
        assert_eq!(found(&["0.0.0.0", "127.0.0.1"], None).as_deref(), Some("127.0.0.1"));
        assert_eq!(found(&["0.0.0.0"], None), None);
        assert_eq!(end(&["0.0.0.0"], None).shard_ports, Some(300));
        assert_eq!(end(&[], far), ClientEndpoint::default());
    }

    #[test]
    fn a_static_list_names_this_node_and_nobody_twice() {
        let member = |id: &str, at: &str| ListedMember { id: id.into(), address: address(at) };
        let (a, b) = (member("a", "127.0.0.2:7000"), member("b", "127.0.0.3:7000"));
        let list = |id: &str, members: Vec<ListedMember>| ClusterConfig {
            node_id: id.into(),
            members: Some(members),
            ..node()
        };
        let valid = list("a", vec![a.clone(), b.clone()]);
        assert_eq!(valid.check(), Ok(()));
        // Including itself: the first node of all founds the cluster.
        assert_eq!(valid.membership().join, [a.address, b.address]);
        assert!(complaint(list("c", vec![a.clone(), b.clone()])).contains("this node, c"));
        assert!(complaint(list("a", vec![a.clone(), b, a])).contains("listed twice"));
    }

    #[test]
    fn spans_must_leave_room_for_each_other() {
        let second = Duration::from_secs(1);
        assert!(complaint(ClusterConfig { dead_after: second, ..node() }).contains("two probes"));
        let forgetful = ClusterConfig { forget_after: second, ..node() };
        assert!(complaint(forgetful).contains("--forget-after"));
        let lasting = ClusterConfig { leave_timeout: LEAVE_TIMEOUT_MAX * 2, ..node() };
        assert!(complaint(lasting).contains("leave timeout"));
        let hasty = ClusterConfig { probe_period: Duration::from_millis(1), ..node() };
        assert!(complaint(hasty).contains("probe period of 1ms"));
    }

    #[test]
    fn the_cluster_port_is_not_also_one_for_clients() {
        let cluster = ClusterConfig::new(address("127.0.0.1:11211"));
        assert!(complaint(cluster).contains("11211"));
    }

    #[test]
    fn ids_can_stand_in_lists() {
        for id in ["a", "127.0.0.2:7000", "größe"] {
            assert!(is_node_id(id), "{id}");
        }
        for id in ["", "a b", "a=b", "a,b", "a\n", &"x".repeat(65)] {
            assert!(!is_node_id(id), "{id}");
        }
    }
}
