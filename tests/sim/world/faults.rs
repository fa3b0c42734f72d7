//! What is done to the nodes: cuts, crashes, pauses, joins, leaves, weights and lost links.

use std::time::Duration;

use rand::RngExt;
use ringlane::cluster::governor::GovernorEvent;

use super::World;
use crate::agenda::Happening;
use crate::node::Node;

impl World {
    /// One fault, and when the next one is due.
    pub(super) fn fault(&mut self) {
        let pause = self.random.random_range(500..5000);
        self.fault_at = self.now.after(Duration::from_millis(pause));
        if !self.options.faults {
            return;
        }
        let replication = self.options.replication;
        // A write is acknowledged when so many hold it; one of them may be lost, but not all.
        let spare = replication.write_quorum() - 1;
        let count = self.nodes.len();
        let at = self.random.random_range(0..count);
        match self.random.random_range(0..13) {
            0..3 => {
                let inside = self.random.random_range(1..=count.div_ceil(2));
                let apart: Vec<usize> = (0..inside).map(|step| (at + step) % count).collect();
                let one_way = self.random.random_range(0..3) == 0;
                self.trace(|| format!("{apart:?} are cut off, one way: {one_way}"));
                self.network.partition(&apart, count, one_way);
                self.figures.partitions += 1;
                self.network.refusing = self.random.random_range(0..4) == 0;
                if self.network.refusing {
                    self.trace(|| "which is told by refusals".into());
                    for one in 0..count {
                        for other in 0..one {
                            if apart.contains(&one) != apart.contains(&other) {
                                self.reset_links(one, other);
                            }
                        }
                    }
                }
            }
            3..6 => {
                self.trace(|| "the network is whole".into());
                self.network.heal();
            }
            6..8 if spare > 0 && self.is_healthy() => {
                self.trace(|| format!("n{at} crashes"));
                self.figures.crashes += 1;
                self.end(at);
                let after = Duration::from_millis(self.random.random_range(100..15_000));
                self.schedule(at, after, Happening::Restart);
            }
            8 => {
                let millis = self.random.random_range(100..12_000);
                self.trace(|| format!("n{at} stops for {millis} ms"));
                self.figures.pauses += 1;
                self.nodes[at].stopped_until = self.now.after(Duration::from_millis(millis));
            }
            9 if count < self.options.nodes + 2 && self.is_healthy() => {
                self.figures.joins += 1;
                self.start_node(count);
            }
            10 if self.is_healthy() => {
                // As many as there are copies stay, of those that have not been told to go.
                let stays = |node: &Node| node.running && !node.told_to_leave;
                let staying = self.nodes.iter().filter(|node| stays(node)).count();
                if staying > replication.replicas() as usize && stays(&self.nodes[at]) {
                    self.trace(|| format!("n{at} leaves"));
                    self.nodes[at].told_to_leave = true;
                    self.on(at, |node, now, linked, wants| {
                        node.on_governor(GovernorEvent::Leave, now, linked, wants);
                    });
                }
            }
            11 if self.is_healthy() => {
                let weight = self.random.random_range(1..4);
                self.on(at, |node, now, linked, wants| {
                    node.on_governor(GovernorEvent::SetWeight(weight), now, linked, wants);
                });
            }
            12 => {
                let other = self.random.random_range(0..count);
                self.trace(|| format!("n{at} and n{other} lose their links"));
                self.reset_links(at, other);
            }
            _ => {}
        }
    }

    /// A process ends. Others hear of it at once, or only when it does not answer.
    pub(super) fn end(&mut self, at: usize) {
        self.count(at);
        self.nodes[at].running = false;
        let gone = (self.nodes[at].key(), self.nodes[at].boot);
        for other in 0..self.nodes.len() {
            let hears = self.random.random_range(0..2) == 0 && self.network.reaches(at, other);
            if hears && self.links[other].remove(&gone) {
                self.schedule(
                    other,
                    Duration::from_millis(1),
                    Happening::LinkDown { node: gone.0, boot: gone.1, lost: true },
                );
            }
        }
    }

    /// The links of two nodes with each other are lost. They are made again when that can be.
    fn reset_links(&mut self, one: usize, other: usize) {
        for (at, to) in [(one, other), (other, one)] {
            let (node, boot) = (self.nodes[to].key(), self.nodes[to].boot);
            if self.nodes[at].running && self.links[at].remove(&(node, boot)) {
                let delay = Duration::from_millis(self.random.random_range(1..20));
                self.schedule(at, delay, Happening::LinkDown { node, boot, lost: true });
                let delay = Duration::from_millis(self.random.random_range(50..1000));
                self.schedule(at, delay, Happening::LinkUp { node, boot });
                self.figures.resets += 1;
            }
        }
    }
}
