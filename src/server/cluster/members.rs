//! The members and their client addresses, compiled for the cores.
//!
//! Gossip and the roster name the members; a node announces its client address and cores in
//! handshakes rather than in gossip, whose datagrams are short and repeat everything to all nodes.

use std::collections::HashMap;

use crate::cluster::governor::{Governor, MemberStatus};
use crate::cluster::handshake::Party;
use crate::cluster::identity::{Boot, NodeKey};
use crate::cluster::link::{ClientEndpoint, PeerFacts};
use crate::cluster::membership::Health;
use crate::cluster::roster::RosterMember;
use crate::ring::NODES_MAX;
use crate::stats::{ClusterView, RingNodeView};

/// The members as seen by the governor of node `me`. A node may shake hands before gossip reports
/// it, so the `handshake_facts` are retained; beyond the size of a ring only those of members are.
pub fn view(
    governor: &Governor,
    me: &Party,
    handshake_facts: &mut HashMap<NodeKey, (PeerFacts, ClientEndpoint)>,
) -> ClusterView {
    let members = governor.members();
    if handshake_facts.len() > NODES_MAX {
        handshake_facts.retain(|key, _| members.iter().any(|member| member.key == *key));
    }
    let Some(view) = governor.view() else {
        let shares = vec![0.0; members.len()];
        return ClusterView { epoch: 0, shares, members, ring_nodes: Vec::new() };
    };
    let shares = view.ring().shares();
    let share = |key, boot| {
        view.index_of(key, boot)
            .map_or(0.0, |at| shares[at.0 as usize] as f64 / (1u64 << 32) as f64)
    };
    let ours = PeerFacts { boot: me.boot, core_count: me.core_count, hash_seed: me.hash_seed };
    let facts = |key| match key == NodeKey::of(&me.id) {
        true => Some((ours, me.clients)),
        false => handshake_facts.get(&key).copied(),
    };
    let ring_members = view.roster().members().iter();
    ClusterView {
        epoch: view.epoch(),
        shares: members.iter().map(|member| share(member.key, member.boot)).collect(),
        ring_nodes: ring_members
            .map(|member| ring_node_view(member, &members, facts(member.key)))
            .collect(),
        members,
    }
}

fn ring_node_view(
    member: &RosterMember,
    members: &[MemberStatus],
    handshake_facts: Option<(PeerFacts, ClientEndpoint)>,
) -> RingNodeView {
    let is_it = |status: &&MemberStatus| status.key == member.key && status.boot == member.boot;
    let this_boot = |boot: Boot| boot == member.boot;
    RingNodeView {
        id: member.id.clone(),
        boot: member.boot,
        weight: member.weight,
        health: members.iter().find(is_it).map_or(Health::Dead, |status| status.health),
        handshake_facts: handshake_facts.filter(|(facts, _)| this_boot(facts.boot)),
    }
}
