//! The order of requests that one connection sends for one key.
//!
//! Clients pipeline requests and expect each to see the effect of the one before it: a `get` after
//! a `delete` without a reply must miss. Operations take different amounts of time, so a request
//! starts only when its connection's previous one for the same key has been answered. Requests for
//! other keys and of other connections do not wait.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::ClientRef;
use crate::message::OperationId;
use ringlane_types::hash::KeyHash;

/// One connection and one key. Keys of equal hash share a queue, which only costs them a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    core: u32,
    connection: u32,
    generation: u32,
    key: u64,
}

impl QueueKey {
    pub(super) fn of(asker: ClientRef, key: KeyHash) -> Self {
        let ClientRef { core, connection, generation, sequence: _ } = asker;
        Self { core, connection, generation, key: key.to_bits() }
    }
}

/// All queues with a started operation. At most as many as there are operations.
#[derive(Debug)]
pub(super) struct KeyQueues {
    /// Operations behind the one that was started.
    queues: HashMap<QueueKey, VecDeque<OperationId>, ahash::RandomState>,
    /// Operations whose turn has come.
    ready: VecDeque<OperationId>,
}

impl KeyQueues {
    /// No queues.
    pub(super) fn new(hasher: ahash::RandomState) -> Self {
        Self { queues: HashMap::with_hasher(hasher), ready: VecDeque::new() }
    }

    /// Whether there are no queues.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Joins the queue of a key. True if it is this operation's turn at once; otherwise
    /// [`KeyQueues::take_ready`] returns it later.
    pub(super) fn enter(&mut self, key: QueueKey, id: OperationId) -> bool {
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

    /// The operation whose turn it was has been answered.
    pub(super) fn leave(&mut self, key: QueueKey) {
        let Entry::Occupied(mut waiting) = self.queues.entry(key) else { return };
        match waiting.get_mut().pop_front() {
            Some(id) => self.ready.push_back(id),
            None => drop(waiting.remove()),
        }
    }

    /// The next operation whose turn has come.
    #[inline]
    pub(super) fn take_ready(&mut self) -> Option<OperationId> {
        self.ready.pop_front()
    }
}
