//! Nodes whose link was lost although gossip holds them for alive.
//!
//! When a process ends, its host closes its links at once and refuses new connections. That tells
//! its death from a hung process and from a cut network, both of which are silent, long before
//! gossip does. So a node whose link was lost is called a few times: the host may close the listener
//! a moment after the links.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::identity::NodeKey;
use ringlane_types::time::Instant;

/// Pauses before the first and each further call; after the last one it is left to gossip.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Who is to be called, and when.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    calls: BTreeMap<NodeKey, Call>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    at: Instant,
    made: usize,
}

impl Doubts {
    /// The link with `node` was lost.
    pub fn begin(&mut self, node: NodeKey, now: Instant) {
        self.calls.insert(node, Call { at: now.after(PAUSES[0]), made: 0 });
    }

    /// It is known by now how `node` is.
    pub fn end(&mut self, node: NodeKey) {
        self.calls.remove(&node);
    }

    /// When [`Doubts::next`] has something.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.calls.values().map(|call| call.at).min()
    }

    /// The next node to call, if it is time; to be asked until there is none.
    pub fn next(&mut self, now: Instant) -> Option<NodeKey> {
        let (&node, call) = self.calls.iter_mut().find(|(_, call)| call.at <= now)?;
        call.made += 1;
        match PAUSES.get(call.made) {
            Some(pause) => call.at = now.after(*pause),
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
        let mut doubts = Doubts::default();
        doubts.begin(one, start);
        doubts.begin(other, start);
        assert_eq!((doubts.next(start), doubts.next(start)), (Some(one), Some(other)));
        assert_eq!(doubts.next(start), None);
        doubts.end(other);
        let mut called = Vec::new();
        while let Some(at) = doubts.next_deadline() {
            assert_eq!(doubts.next(at), Some(one));
            called.push(at.since(start).as_millis());
        }
        assert_eq!(called, [50, 150, 350, 750, 1550]);
    }
}
