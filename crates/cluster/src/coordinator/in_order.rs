//! The order of requests that one connection sends for one key.
//!
//! Clients send several requests without waiting, and expect each to find what the one before it
//! left: a `get` behind a `delete` without a reply must miss. Operations take their time, and some
//! longer than others, so a request is begun only when its connection's last one for the same key
//! has been answered. Requests for other keys and of other connections do not wait.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::Asker;
use crate::message::OperationId;
use ringlane_types::hash::KeyHash;

/// One connection and one key. Keys of equal hash share a line, which costs them a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    core: u32,
    connection: u32,
    generation: u32,
    key: u64,
}

impl Line {
    pub fn of(asker: Asker, key: KeyHash) -> Self {
        let Asker { core, connection, generation, sequence: _ } = asker;
        Self { core, connection, generation, key: key.to_bits() }
    }
}

/// All lines in which somebody is. As many as there are operations at most.
#[derive(Debug)]
pub(super) struct InOrder {
    /// Those behind the one that has been begun.
    lines: HashMap<Line, VecDeque<OperationId>, ahash::RandomState>,
    /// Those whose turn has come.
    ready: VecDeque<OperationId>,
}

impl InOrder {
    /// Nobody is in any line.
    pub fn new(hasher: ahash::RandomState) -> Self {
        Self { lines: HashMap::with_hasher(hasher), ready: VecDeque::new() }
    }

    /// Whether nobody is in any line.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Joins a line. True if it is this one's turn at once; else [`InOrder::take_ready`] names it later.
    pub fn enter(&mut self, line: Line, id: OperationId) -> bool {
        match self.lines.entry(line) {
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
    pub fn leave(&mut self, line: Line) {
        let Entry::Occupied(mut waiting) = self.lines.entry(line) else { return };
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
