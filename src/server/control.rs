//! What cores say to each other besides requests for items.
//!
//! A command for the node is carried out by the core whose client sent it: it asks every core,
//! itself included, collects what they tell and answers once all have. The connection's later
//! input waits behind it, so a client sees its commands in order.

use std::os::fd::OwnedFd;

use crate::engine::PrefixCounters;
use crate::protocol::node::Classes;
use crate::protocol::text::Dump;
use crate::shard::{ReassignOutcome, ScanCursor};
use crate::stats::{ConnectionStats, CoreStats};
use crate::time::Instant;

/// A message from one core to another.
#[derive(Debug)]
pub enum Control {
    /// A connection that the sender accepted and the receiver, having fewer, shall serve.
    Connection(OwnedFd),
    /// A question, to be answered with [`Control::Tell`] under the same number.
    Ask(u32, Question),
    /// The answer to a question of the receiver's.
    Tell(u32, Tell),
}

/// What a core is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Its figures.
    Figures,
    /// Its connections.
    Connections,
    /// What it counted by prefix.
    Prefixes,
    /// Start or stop counting by prefix.
    CountPrefixes(bool),
    /// Set its counters to zero.
    ResetCounters,
    /// Make everything stored before this moment a miss, at that moment.
    FlushAll(Instant),
    /// Use at most this much memory, in bytes.
    MemoryLimit(u64),
    /// Move a page between slab classes.
    ReassignPage(i32, i32),
    /// List items, from a position on.
    Items(ItemsQuestion),
}

/// Which items are listed and how.
#[derive(Clone, Debug)]
pub struct ItemsQuestion {
    /// The form of a line.
    pub dump: Dump,
    /// Slab classes that are listed.
    pub classes: Classes,
    /// Where to go on.
    pub cursor: ScanCursor,
    /// Most items to list.
    pub limit: u32,
}

/// What it answers.
#[derive(Debug)]
pub enum Tell {
    /// Done.
    Done,
    /// Its figures.
    Figures(Box<CoreStats>),
    /// Its connections.
    Connections(Vec<ConnectionStats>),
    /// What it counted by prefix.
    Prefixes(Box<PrefixCounters>),
    /// Whether it can use that much memory.
    MemoryLimit(bool),
    /// Whether a page moves.
    Reassigned(ReassignOutcome),
    /// Lines for some items, and where to go on unless those were all.
    Items {
        /// The lines.
        lines: Vec<u8>,
        /// How many.
        count: u32,
        /// Where to go on.
        next: Option<ScanCursor>,
    },
}
