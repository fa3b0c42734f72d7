//! `stats cluster`: the members and the traffic between them.

use std::sync::Arc;

use super::{CoreStats, Emit, Snapshot};
use crate::cluster::breaker::BreakerState;
use crate::cluster::coordinator::CoordinatorCounters;
use crate::cluster::governor::MemberStatus;
use crate::cluster::hints::HintCounters;
use crate::cluster::hot_keys::HotKey;
use crate::cluster::identity::{Boot, NodeKey};
use crate::cluster::link::{ClientEndpoint, PeerFacts};
use crate::cluster::membership::Health;
use crate::cluster::peers::BreakerCounters;
use crate::ring::RingHash;

/// Cluster statistics of one core.
#[derive(Clone, Debug, Default)]
pub struct CoreClusterStats {
    /// Outcomes of operations.
    pub counters: CoordinatorCounters,
    /// Outcomes of hints.
    pub hint_counters: HintCounters,
    /// Stored hints.
    pub hints: u64,
    /// Bytes of stored hints.
    pub hint_bytes: u64,
    /// Operations in flight.
    pub operations: u64,
    /// Bytes of requests, responses and previous values held by them.
    pub operation_bytes: u64,
    /// Bytes queued on links or partly received.
    pub link_bytes: u64,
    /// Counters of its links.
    pub link_counters: LinkCounters,
    /// How often circuit breakers have opened and closed.
    pub breaker_counters: BreakerCounters,
    /// Share of the ring that is still being transferred here, 0 to 1.
    pub arriving: f64,
    /// Keys of other nodes that are hot here.
    pub hot_keys: Vec<HotKey>,
    /// States of the circuit breakers for other nodes.
    pub breakers: Vec<(NodeKey, BreakerState)>,
}

/// Counters of a core's links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Established links.
    pub up: u64,
    /// Links ever established.
    pub made: u64,
    /// Frames sent.
    pub frames_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Bytes sent, including frame overhead.
    pub bytes_sent: u64,
    /// Bytes received, including frame overhead.
    pub bytes_received: u64,
    /// Requests that had to wait for room.
    pub waited: u64,
    /// Messages dropped because they exceed the peer's limit.
    pub too_long: u64,
    /// Links closed because a frame was forged, replayed or too long.
    pub bad_frames: u64,
}

/// A node with points on the ring, and its client address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingNodeView {
    /// Its id.
    pub id: Arc<str>,
    /// The start of its process that has the points.
    pub boot: Boot,
    /// Its share of the points relative to others.
    pub weight: u32,
    /// Health of that start as seen from here; dead once another start has replaced it.
    pub health: Health,
    /// What it announced in the handshake; `None` before that.
    pub handshake_facts: Option<(PeerFacts, ClientEndpoint)>,
}

/// The members as seen by this node.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// Decisions since the cluster was founded.
    pub epoch: u64,
    /// All members including this node, by id.
    pub members: Vec<MemberStatus>,
    /// Each member's share of the circle, 0 to 1, in the order of `members`.
    pub shares: Vec<f64>,
    /// Those with points on the ring, by id.
    pub ring_nodes: Vec<RingNodeView>,
}

/// Renders the members, then the totals of all cores of this node.
pub fn render(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    let (Some(config), Some(view)) = (&snapshot.config.cluster, snapshot.cluster) else {
        return emit(format_args!("cluster_enabled"), format_args!("0"));
    };
    let replication = config.replication;
    emit(format_args!("cluster_enabled"), format_args!("1"));
    emit(format_args!("cluster_name"), format_args!("{}", config.name));
    emit(format_args!("node_id"), format_args!("{}", config.node_id));
    emit(format_args!("epoch"), format_args!("{}", view.epoch));
    let hash = RingHash::NAMES.iter().find(|(_, hash)| *hash == config.ring_hash);
    emit(format_args!("ring_hash"), format_args!("{}", hash.map_or("", |(name, _)| name)));
    emit(format_args!("vnodes"), format_args!("{}", config.points_per_weight));
    emit(format_args!("replicas"), format_args!("{}", replication.replicas()));
    emit(format_args!("write_quorum"), format_args!("{}", replication.write_quorum()));
    emit(format_args!("read_quorum"), format_args!("{}", replication.read_quorum()));
    emit(format_args!("members"), format_args!("{}", view.members.len()));
    let shares = view.shares.iter().copied().chain(std::iter::repeat(0.0));
    for (member, share) in view.members.iter().zip(shares) {
        let id = &member.id;
        let (health, settled) = (health(member.health), member.settled);
        emit(format_args!("member:{id}:state"), format_args!("{health}"));
        emit(format_args!("member:{id}:address"), format_args!("{}", member.link));
        emit(format_args!("member:{id}:boot"), format_args!("{}", member.boot.0));
        emit(format_args!("member:{id}:weight"), format_args!("{}", member.weight.unwrap_or(0)));
        emit(format_args!("member:{id}:share"), format_args!("{share:.4}"));
        emit(format_args!("member:{id}:epoch"), format_args!("{}", member.epoch));
        emit(format_args!("member:{id}:settled"), format_args!("{settled}"));
        if let Some(breaker) = breaker(snapshot.cores, member.key) {
            emit(format_args!("member:{id}:breaker"), format_args!("{breaker}"));
        }
    }
    sums(snapshot, emit);
}

fn sums(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    let cores = || snapshot.cores.iter().filter_map(|core| core.cluster.as_deref());
    let mut figure = |name: &str, value: &dyn Fn(&CoreClusterStats) -> u64| {
        let sum: u64 = cores().map(value).sum();
        emit(format_args!("{name}"), format_args!("{sum}"));
    };
    figure("operations", &|core| core.operations);
    figure("coordinated", &|core| core.counters.coordinated);
    figure("forwarded", &|core| core.counters.forwarded);
    figure("served", &|core| core.counters.served);
    figure("quorum_failures", &|core| core.counters.quorum_failures);
    figure("uncertain", &|core| core.counters.uncertain);
    figure("busy", &|core| core.counters.busy);
    figure("congested", &|core| core.counters.congested);
    figure("operation_bytes", &|core| core.operation_bytes);
    figure("link_bytes", &|core| core.link_bytes);
    figure("links", &|core| core.link_counters.up);
    figure("links_made", &|core| core.link_counters.made);
    figure("link_frames_sent", &|core| core.link_counters.frames_sent);
    figure("link_frames_received", &|core| core.link_counters.frames_received);
    figure("link_bytes_sent", &|core| core.link_counters.bytes_sent);
    figure("link_bytes_received", &|core| core.link_counters.bytes_received);
    figure("link_waits", &|core| core.link_counters.waited);
    figure("link_messages_too_long", &|core| core.link_counters.too_long);
    figure("link_bad_frames", &|core| core.link_counters.bad_frames);
    figure("breakers_opened", &|core| core.breaker_counters.opened);
    figure("breakers_closed", &|core| core.breaker_counters.closed);
    figure("write_retries", &|core| core.counters.write_retries);
    figure("read_repairs", &|core| core.counters.read_repairs);
    figure("compared_records", &|core| core.counters.compared_records);
    figure("malformed", &|core| core.counters.malformed);
    figure("hints", &|core| core.hints);
    figure("hint_bytes", &|core| core.hint_bytes);
    figure("hints_kept", &|core| core.hint_counters.kept);
    figure("hints_handed_over", &|core| core.hint_counters.handed_over);
    figure("hints_replaced", &|core| core.hint_counters.replaced);
    figure("hints_dropped_for_room", &|core| core.hint_counters.dropped_for_room);
    figure("hints_dropped_for_age", &|core| core.hint_counters.dropped_for_age);
    figure("filled_records", &|core| core.counters.filled_records);
    figure("filled_bytes", &|core| core.counters.filled_bytes);
    figure("handed_records", &|core| core.counters.handed_records);
    figure("handed_bytes", &|core| core.counters.handed_bytes);
    let arriving = cores().map(|core| core.arriving).fold(0.0, f64::max);
    emit(format_args!("arriving_share"), format_args!("{arriving:.4}"));
}

/// Renders the hot keys of all cores, the hottest first: `hotkey:NUMBER:key`, url-encoded as in
/// dumps, the requests of its window and how many were answered from a copy.
pub fn render_hot_keys(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    let cores = snapshot.cores.iter().filter_map(|core| core.cluster.as_deref());
    let mut hot: Vec<&HotKey> = cores.flat_map(|core| &core.hot_keys).collect();
    hot.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.key.cmp(&b.key)));
    for (number, HotKey { key, requests, copied }) in hot.into_iter().enumerate() {
        let shown: String = key
            .iter()
            .map(|byte| match byte {
                b'!'..=b'~' if *byte != b'%' => char::from(*byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        emit(format_args!("hotkey:{number}:key"), format_args!("{shown}"));
        emit(format_args!("hotkey:{number}:requests"), format_args!("{requests}"));
        emit(format_args!("hotkey:{number}:copied"), format_args!("{copied}"));
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Alive => "alive",
        Health::Suspect => "suspect",
        Health::Dead => "dead",
    }
}

/// The worst state of all cores' breakers for a node.
fn breaker(cores: &[CoreStats], node: NodeKey) -> Option<&'static str> {
    let states = cores.iter().filter_map(|core| core.cluster.as_deref());
    let mut states = states.flat_map(|core| &core.breakers).filter(|(key, _)| *key == node);
    let first = states.next()?.1;
    let rank = |state| match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    };
    let worst = states.map(|(_, state)| *state).fold(first, |a, b| match rank(a) < rank(b) {
        true => b,
        false => a,
    });
    Some(match worst {
        BreakerState::Closed => "closed",
        BreakerState::HalfOpen => "half-open",
        BreakerState::Open => "open",
    })
}
