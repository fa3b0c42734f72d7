//! Promises of a replica to nodes that are about to write a computed value.
//!
//! A node that computes a write from the current value first asks a read quorum, and announces the
//! version that the write will have. A replica that answers promises to refuse writes of other
//! nodes to the key under an older version. So of two nodes that compute from the same record at
//! most one is acknowledged, even if the other was paused in between or its clock is ahead: its
//! version shows when it began, and a write in the meantime was either refused by one of the quorum
//! or has a newer version. This is the first phase of Paxos, with versions as ballots, as in
//! CASPaxos (Rystsov, 2018), run per key.
//!
//! Promises are stored per slot of keys, not per key, so that their memory is constant and they
//! need not be revoked. Keys that share a slot may be refused unnecessarily, but only once: the
//! refusal carries the version, and the writer retries with a newer one.

use super::version::Version;

/// Slots of one core. At 10,000 promises per second, and replicas that learn each other's versions
/// within a millisecond, 1 in 400 writes meets a promise for another key.
const SLOTS: usize = 4096;

/// The promises of one core.
#[derive(Debug, Default)]
pub struct Promises {
    /// Empty, or all slots.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The newest version promised to any node.
    newest: Version,
    /// The newest version promised to a different node.
    others: Version,
}

impl Slot {
    /// The newest version promised to another node than the one that gave `version`.
    fn barrier(&self, version: Version) -> Version {
        if self.newest.tie_breaker() == version.tie_breaker() { self.others } else { self.newest }
    }
}

impl Promises {
    /// Promises the node that issued `version` to refuse writes of others to keys of this hash
    /// under an older one.
    ///
    /// # Errors
    /// If another node has been promised a newer version; it is returned, and nothing is promised.
    pub fn make(&mut self, hash: u64, version: Version) -> Result<(), Version> {
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); SLOTS];
        }
        let slot = &mut self.slots[hash as usize % SLOTS];
        let barrier = slot.barrier(version);
        if barrier > version {
            return Err(barrier);
        }
        if slot.newest.tie_breaker() != version.tie_breaker() {
            slot.others = slot.newest;
        }
        slot.newest = slot.newest.max(version);
        Ok(())
    }

    /// The promise that forbids a write under `version`, if one does.
    #[inline]
    pub fn against(&self, hash: u64, version: Version) -> Option<Version> {
        let slot = self.slots.get(hash as usize % SLOTS)?;
        Some(slot.barrier(version)).filter(|barrier| *barrier > version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version number `time` of node `node`.
    fn of(node: u64, time: u64) -> Version {
        Version(time << 20 | node)
    }

    #[test]
    fn what_is_older_than_a_promise_is_refused_to_others_only() {
        let mut promises = Promises::default();
        assert_eq!(promises.against(7, of(1, 1)), None);
        promises.make(7, of(1, 5)).unwrap();
        assert_eq!(promises.against(7, of(2, 4)), Some(of(1, 5)));
        assert_eq!(promises.against(7, of(2, 6)), None);
        assert_eq!(promises.against(7, of(1, 4)), None, "a node knows what it does");
        assert_eq!(promises.against(8, of(2, 4)), None, "another slot");
        assert_eq!(promises.make(7, of(2, 4)), Err(of(1, 5)));
        assert_eq!(promises.against(7, of(1, 3)), None, "nothing was promised");
    }

    #[test]
    fn a_newer_promise_to_one_node_hides_none_to_another() {
        let mut promises = Promises::default();
        promises.make(7, of(2, 5)).unwrap();
        promises.make(7, of(1, 8)).unwrap();
        promises.make(7, of(1, 9)).unwrap();
        assert_eq!(promises.against(7, of(1, 4)), Some(of(2, 5)));
        assert_eq!(promises.against(7, of(1, 6)), None);
        assert_eq!(promises.against(7, of(2, 6)), Some(of(1, 9)));
        assert_eq!(promises.against(7, of(3, 6)), Some(of(1, 9)));
        promises.make(7, of(1, 7)).unwrap();
        assert_eq!(promises.against(7, of(2, 8)), Some(of(1, 9)), "the newest stands");
    }
}
