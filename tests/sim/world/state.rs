//! How the world stands: whether it is whole, what is still wrong, and what has been counted.

use ringlane::cluster::membership::Health;
use ringlane::cluster::store::ReplicaStore;

use super::World;
use crate::node::Node;

impl World {
    /// Whether all members are here, agree, and have what is theirs.
    pub(super) fn is_healthy(&self) -> bool {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| !node.leaving).collect();
        running.iter().all(|node| {
            node.running
                && node.stopped_until <= self.now
                && node.governor.roster().is_some_and(|roster| {
                    roster.members().len() == running.len()
                        && running.iter().all(|other| roster.has(other.key(), other.boot))
                        && node
                            .governor
                            .members()
                            .iter()
                            .filter(|member| member.weight.is_some())
                            .all(|m| m.settled >= roster.epoch && m.health == Health::Alive)
                })
        })
    }

    /// What is not yet as it should be when nothing disturbs any more.
    pub(super) fn differences(&mut self) -> Option<String> {
        if !self.is_healthy() {
            let stand: Vec<String> = self
                .nodes
                .iter()
                .map(|node| {
                    let epoch = node.governor.roster().map_or(0, |roster| roster.epoch);
                    let settled: Vec<(u64, Health)> = node
                        .governor
                        .members()
                        .iter()
                        .map(|member| (member.settled, member.health))
                        .collect();
                    format!(
                        "{} running {} epoch {epoch} settled {settled:?}",
                        node.id, node.running
                    )
                })
                .collect();
            return Some(format!("the members do not agree: {}", stand.join("; ")));
        }
        let view = self.nodes.iter().find(|node| node.running)?.view.clone()?;
        for node in self.nodes.iter().filter(|node| node.running) {
            for core in &node.cores {
                let (_, count, _) = core.coordinator.hints();
                if count > 0 {
                    return Some(format!("{} keeps {count} hints", node.id));
                }
                if core.coordinator.operations() > 0 {
                    return Some(format!("{} has operations under way", node.id));
                }
            }
        }
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let now = self.now;
        for node in self.nodes.iter_mut().filter(|node| node.running) {
            for core in &mut node.cores {
                keys.extend(core.store.keys(now));
            }
        }
        keys.sort();
        keys.dedup();
        for key in keys {
            let replicas = view.ring().replicas(view.ring().point_of(&key));
            let mut held = Vec::new();
            for index in replicas.iter() {
                let member = view.member(*index).key;
                let node = self.nodes.iter_mut().find(|node| node.key() == member)?;
                let core = usize::from(node.facts().core_of(&key));
                let record = node.cores[core].store.read(&key, now);
                held.push(record.map_or(0, |record| record.version.0));
            }
            if held.iter().any(|version| *version != held[0]) {
                let key = String::from_utf8_lossy(&key).into_owned();
                return Some(format!("the replicas of {key} hold versions {held:?}"));
            }
        }
        None
    }

    pub(super) fn count(&mut self, at: usize) {
        for core in &self.nodes[at].cores {
            let counters = core.coordinator.counters();
            self.figures.repairs += counters.read_repairs;
            self.figures.retries += counters.write_retries;
            self.figures.filled += counters.filled_records;
            self.figures.forwarded += counters.forwarded;
            self.figures.congested += counters.congested;
            self.figures.hints += core.coordinator.hints().0.handed_over;
        }
    }

    pub(super) fn gather(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].running {
                self.count(at);
            }
        }
        self.figures.acknowledged = self.workload.acknowledged;
        self.figures.unclear = self.workload.unclear;
        self.figures.lost = self.network.lost;
        self.figures.duplicated = self.network.duplicated;
    }
}
