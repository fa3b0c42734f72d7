//! The description of this node and its cluster in HELLO.

use super::node::Node;
use crate::cluster::link::ClientEndpoint;
use crate::cluster::membership::Health;
use crate::config::{ClusterConfig, Config};
use crate::protocol::compact::topology::{self, NodeState, RingFacts, Topology, TopologyNode};
use crate::ring::{self, RingHash};
use crate::stats::{ClusterView, RingNodeView};

const _: () = assert!(topology::NODES_MAX >= ring::NODES_MAX, "all nodes fit into the answer");
const _: () = assert!(topology::NODE_ID_BYTES_MAX >= ring::NODE_ID_BYTES_MAX);

/// Passes the topology as seen by core `core` to `tell`.
pub fn tell(node: &Node, core: u16, hash_seed: u64, tell: impl FnOnce(&Topology<'_>)) {
    let config = &node.config;
    let core_count = config.core_count() as u16;
    let members = node.members();
    let alone = Topology {
        server: concat!("ringlane ", env!("CARGO_PKG_VERSION")),
        hash_seed,
        core_count,
        core,
        port: config.client_endpoint().port,
        shard_ports: config.shard_ports,
        item_bytes_max: config.item_bytes_max,
        ..Topology::default()
    };
    tell(&match &config.cluster {
        None => Topology { nodes: vec![itself(node, core_count, hash_seed)], ..alone },
        Some(cluster) => clustered(cluster, members.as_deref(), alone),
    });
}

/// A standalone node as the only one.
fn itself(node: &Node, core_count: u16, hash_seed: u64) -> TopologyNode<'static> {
    let config: &Config = &node.config;
    let ClientEndpoint { ip, port, shard_ports } = config.client_endpoint();
    let boot = node.boot.0;
    let state = NodeState::Alive;
    TopologyNode { id: "", state, weight: 1, boot, core_count, hash_seed, ip, port, shard_ports }
}

/// `alone` extended by the cluster as described by `members`.
fn clustered<'a>(
    config: &'a ClusterConfig,
    members: Option<&'a ClusterView>,
    alone: Topology<'a>,
) -> Topology<'a> {
    let hash = RingHash::NAMES.iter().find(|(_, hash)| *hash == config.ring_hash);
    Topology {
        ring: Some(RingFacts {
            points_per_weight: config.points_per_weight,
            replicas: config.replication.replicas(),
            hash: hash.map_or("", |(name, _)| name),
        }),
        epoch: members.map_or(0, |view| view.epoch),
        this_node: &config.node_id,
        nodes: members
            .map_or(Vec::new(), |view| view.ring_nodes.iter().map(topology_node).collect()),
        ..alone
    }
}

fn topology_node(ring_node: &RingNodeView) -> TopologyNode<'_> {
    let state = match ring_node.health {
        Health::Alive => NodeState::Alive,
        Health::Suspect => NodeState::Suspect,
        Health::Dead => NodeState::Dead,
    };
    let unmet = TopologyNode {
        id: &ring_node.id,
        state,
        weight: ring_node.weight as u16,
        boot: ring_node.boot.0,
        ..TopologyNode::default()
    };
    let Some((facts, ClientEndpoint { ip, port, shard_ports })) = ring_node.handshake_facts else {
        return unmet;
    };
    let (core_count, hash_seed) = (facts.core_count, facts.hash_seed);
    TopologyNode { core_count, hash_seed, ip, port, shard_ports, ..unmet }
}
