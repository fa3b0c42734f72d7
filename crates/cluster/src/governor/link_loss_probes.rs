//! Nodes whose link was lost although gossip considers them alive.
//!
//! When a process ends, its host closes its links at once and refuses new connections. That
//! distinguishes its death from a hung process and from a partition, both of which are silent, long
//! before gossip does. So this node tries to connect to a node whose link was lost a few times: the
//! host may close the listener a moment after the links.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::identity::NodeKey;
use ringlane_types::time::Instant;

/// Pauses before the first and each further probe; after the last one, gossip decides.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Nodes to probe, and when.
#[derive(Debug, Default)]
pub(super) struct LinkLossProbes {
    probes: BTreeMap<NodeKey, Probe>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    at: Instant,
    made: usize,
}

impl LinkLossProbes {
    /// The link with `node` was lost.
    pub(super) fn begin(&mut self, node: NodeKey, now: Instant) {
        self.probes.insert(node, Probe { at: now.after(PAUSES[0]), made: 0 });
    }

    /// The state of `node` is known by now.
    pub(super) fn end(&mut self, node: NodeKey) {
        self.probes.remove(&node);
    }

    /// When [`LinkLossProbes::next`] has something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.probes.values().map(|probe| probe.at).min()
    }

    /// The next node to probe, if one is due; to be called until there is none.
    pub(super) fn next(&mut self, now: Instant) -> Option<NodeKey> {
        let (&node, probe) = self.probes.iter_mut().find(|(_, probe)| probe.at <= now)?;
        probe.made += 1;
        match PAUSES.get(probe.made) {
            Some(pause) => probe.at = now.after(*pause),
            None => self.end(node),
        }
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_called_a_few_times_and_not_any_more_once_it_is_known_how_it_is() {
        let (one, other) = (NodeKey(1), NodeKey(2));
        let start = Instant::from_millis(1000);
        let mut link_loss_probes = LinkLossProbes::default();
        link_loss_probes.begin(one, start);
        link_loss_probes.begin(other, start);
        assert_eq!(
            (link_loss_probes.next(start), link_loss_probes.next(start)),
            (Some(one), Some(other))
        );
        assert_eq!(link_loss_probes.next(start), None);
        link_loss_probes.end(other);
        let mut called = Vec::new();
        while let Some(at) = link_loss_probes.next_deadline() {
            assert_eq!(link_loss_probes.next(at), Some(one));
            called.push(at.since(start).as_millis());
        }
        assert_eq!(called, [50, 150, 350, 750, 1550]);
    }
}
