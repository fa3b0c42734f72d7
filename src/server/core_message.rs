//! Messages between cores other than requests for items.
//!
//! A node command is executed by the core whose client sent it: it queries every core including
//! itself, collects the replies and answers once all have arrived. The connection's later input
//! waits, so a client sees its commands executed in order.

use std::os::fd::OwnedFd;

use crate::engine::PrefixCounters;
use crate::protocol::admin_command::Classes;
use crate::protocol::text::Dump;
use crate::shard::{ReassignOutcome, ScanCursor};
use crate::stats::{ConnectionStats, CoreStats};
use crate::time::Instant;

/// A message from one core to another.
#[derive(Debug)]
pub enum CoreMessage {
    /// A connection that the sender accepted and hands to the receiver, which has fewer.
    Connection(OwnedFd),
    /// A query, to be answered by [`CoreMessage::Reply`] with the same number.
    Query(u32, CoreQuery),
    /// The reply to a query of the receiver.
    Reply(u32, CoreReply),
}

/// A query to a core.
#[derive(Clone, Debug)]
pub enum CoreQuery {
    /// Its statistics.
    Stats,
    /// Its connections.
    Connections,
    /// Its counters by key prefix.
    Prefixes,
    /// Start or stop counting by prefix.
    CountPrefixes(bool),
    /// Set its counters to zero.
    ResetCounters,
    /// At this time, invalidate everything stored before it.
    FlushAll(Instant),
    /// Use at most this much memory, in bytes.
    MemoryLimit(u64),
    /// Move a page between slab classes.
    ReassignPage(i32, i32),
    /// List items from a position.
    Items(ItemsQuery),
}

/// Which items to list, and how.
#[derive(Clone, Debug)]
pub struct ItemsQuery {
    /// The form of a line.
    pub dump: Dump,
    /// Slab classes to list.
    pub classes: Classes,
    /// Position to continue from.
    pub cursor: ScanCursor,
    /// Maximum number of items to list.
    pub limit: u32,
}

/// A reply.
#[derive(Debug)]
pub enum CoreReply {
    /// Done.
    Done,
    /// Its statistics.
    Stats(Box<CoreStats>),
    /// Its connections.
    Connections(Vec<ConnectionStats>),
    /// Its counters by key prefix.
    Prefixes(Box<PrefixCounters>),
    /// Whether it accepts the memory limit.
    MemoryLimit(bool),
    /// Whether a page moves.
    Reassigned(ReassignOutcome),
    /// Lines for some items, and the position to continue from unless those were all.
    Items {
        /// The lines.
        lines: Vec<u8>,
        /// How many.
        count: u32,
        /// Position to continue from.
        next: Option<ScanCursor>,
    },
}
