//! The order of requests that one connection sends for one key.
//!
//! Clients send several requests without waiting, and expect each to find what the one before it
//! left: a `get` behind a `delete` without a reply must miss. Operations take their time, and some
//! longer than others, so a request is begun only when its connection's last one for the same key
//! has been answered. Requests for other keys and of other connections do not wait.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::ClientRef;
use crate::message::OperationId;
use ringlane_types::hash::KeyHash;

/// One connection and one key. Keys of equal hash share a line, which costs them a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    core: u32,
    connection: u32,
    generation: u32,
    key: u64,
}

impl QueueKey {
    pub fn of(asker: ClientRef, key: KeyHash) -> Self {
        let ClientRef { core, connection, generation, sequence: _ } = asker;
        Self { core, connection, generation, key: key.to_bits() }
    }
}

/// All lines in which somebody is. As many as there are operations at most.
#[derive(Debug)]
pub(super) struct KeyQueues {
    /// Those behind the one that has been begun.
    queues: HashMap<QueueKey, VecDeque<OperationId>, ahash::RandomState>,
    /// Those whose turn has come.
    ready: VecDeque<OperationId>,
}

impl KeyQueues {
    /// Nobody is in any line.
    pub fn new(hasher: ahash::RandomState) -> Self {
        Self { queues: HashMap::with_hasher(hasher), ready: VecDeque::new() }
    }

    /// Whether nobody is in any line.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Joins the queue of a key. True if it is this one's turn at once; else [`KeyQueues::take_ready`] names it later.
    pub fn enter(&mut self, key: QueueKey, id: OperationId) -> bool {
        match self.queues.entry(key) {
            Entry::Vacant(empty) => {
                empty.insert(VecDeque::new());
                true
            }
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back(id);
                false
            }
        }
    }

    /// Whoever's turn it was in a line has been answered.
    pub fn leave(&mut self, key: QueueKey) {
        let Entry::Occupied(mut waiting) = self.queues.entry(key) else { return };
        match waiting.get_mut().pop_front() {
            Some(id) => self.ready.push_back(id),
            None => drop(waiting.remove()),
        }
    }

    /// The next one whose turn has come.
    #[inline]
    pub fn take_ready(&mut self) -> Option<OperationId> {
        self.ready.pop_front()
    }
}
