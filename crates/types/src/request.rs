//! The vocabulary shared by all layers: requests for one key, and the shard's responses.
//!
//! A [`Request`] borrows the bytes it was parsed from and a [`Response`] borrows the shard, so the
//! local path copies nothing and the compiler forbids touching the shard before the answer is
//! encoded. All protocols (text, meta, classic binary, compact binary) map to these few operations;
//! they differ only in how the answer is written, which is up to the protocol.

use crate::hash::KeyHash;
use crate::time::Deadline;

/// Longest key in bytes, in every protocol.
pub const KEY_BYTES_MAX: usize = 250;

/// One operation on one key.
#[derive(Clone, Copy, Debug)]
pub struct Request<'b> {
    /// The key, 1 to [`KEY_BYTES_MAX`] bytes, any byte values.
    pub key: &'b [u8],
    /// The key's hash under the process's secret.
    pub hash: KeyHash,
    /// What to do with it.
    pub operation: Operation<'b>,
}

impl Request<'_> {
    /// The same request; with this allowance, if it is a read.
    #[must_use]
    pub fn with_allowance(mut self, allowance: Allowance) -> Self {
        if let Operation::Get(get) = &mut self.operation {
            get.allowance = allowance;
        }
        self
    }
}

/// What to do with the key.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'b> {
    /// Read, and possibly touch, vivify or win a lease.
    Get(Get),
    /// Write a value under a condition.
    Store(Store<'b>),
    /// Remove, invalidate or empty.
    Delete(Delete),
    /// Add to or subtract from a decimal number.
    Arithmetic(Arithmetic),
}

impl Operation<'_> {
    /// Whether it can change the item, beyond the side effects of reading.
    pub fn may_change(&self) -> bool {
        match self {
            Operation::Get(get) => {
                get.lease
                    || get.touch.is_some()
                    || get.vivify.is_some()
                    || get.refresh_below_seconds.is_some()
            }
            Operation::Store(_) | Operation::Delete(_) | Operation::Arithmetic(_) => true,
        }
    }
}

/// Options of a read. `Get::default()` is memcached's plain `get`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Get {
    /// Which counters the read increments.
    pub purpose: Purpose,
    /// New deadline on a hit: touch, gat, meta T.
    pub touch: Option<Deadline>,
    /// Does not count as a use: no recency, no fetched mark, no access time (meta u, me, stats).
    pub no_use: bool,
    /// Handles stale marks and win tokens, as every meta get does.
    pub lease: bool,
    /// On a miss, create an empty item and let this reader win (meta N).
    pub vivify: Option<Vivify>,
    /// Let this reader win when fewer than this many seconds of TTL are left (meta R).
    pub refresh_below_seconds: Option<u32>,
    /// The remaining seconds are those before `touch` (R precedes T).
    pub refresh_first: bool,
    /// Longest value that the requester can accept now. For a longer one nothing is done or
    /// counted, and the answer is [`Response::OverAllowance`].
    pub allowance: Allowance,
}

impl Get {
    /// Whether it is memcached's plain `get`, whatever its allowance.
    #[inline]
    pub fn is_plain(&self) -> bool {
        Self { allowance: Allowance::FULL, ..*self } == Self::default()
    }
}

/// Maximum bytes of a value that may be returned now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowance(pub u32);

impl Allowance {
    /// Enough for every value.
    pub const FULL: Self = Self(u32::MAX);

    /// An allowance of `bytes`; unlimited from 4 GiB on.
    pub fn of(bytes: usize) -> Self {
        Self(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// Whether it is limited.
    #[inline]
    pub fn is_limited(self) -> bool {
        self != Self::FULL
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self::FULL
    }
}

/// How meta N creates the missing item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vivify {
    /// The empty item's deadline.
    pub deadline: Deadline,
    /// Its CAS token (meta E); `None` lets the shard choose.
    pub cas: Option<u64>,
    /// Whether its key came base64-encoded, for meta's `k` and `b` return flags.
    pub binary_key: bool,
}

/// Which of memcached's counters a read belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// cmd_get, get_hits, get_misses (and get_expired, get_flushed).
    #[default]
    Get,
    /// cmd_touch, touch_hits, touch_misses: touch, gat, and meta gets that hit with T.
    Touch,
    /// No counter: existence probes.
    Inspect,
    /// cmd_meta, whether it hits or not: `me`.
    Describe,
}

/// Options of a write.
#[derive(Clone, Copy, Debug)]
pub struct Store<'b> {
    /// The condition and what happens to an existing value.
    pub mode: StoreMode,
    /// The value, whole.
    pub value: Body<'b>,
    /// Opaque client flags, stored with the value. Append and prepend keep the old ones.
    pub flags: u32,
    /// When the item expires. Append and prepend keep the old deadline.
    pub deadline: Deadline,
    /// Store only if the item's CAS token equals this. A missing item is `NotFound` for Set and
    /// Replace and `NotStored` for Append and Prepend; ignored for Add.
    pub compare: Option<u64>,
    /// With `compare`: a token lower than the item's is accepted and the new value is marked
    /// stale, keeping deadline and win mark (meta I).
    pub accept_older: bool,
    /// The new CAS token (meta E, and replication); `None` lets the shard choose.
    pub cas: Option<u64>,
    /// Append or Prepend to a missing key creates it with this deadline (meta N).
    pub vivify: Option<Deadline>,
    /// Whether a value refused as too large, or for lack of memory, also removes the old item so
    /// that no stale value survives: `set` and every `ms`.
    pub refusal_removes: bool,
    /// Whether the key came base64-encoded, remembered for meta's `k` and `b` return flags.
    pub binary_key: bool,
}

impl<'b> Store<'b> {
    /// A plain `set` of `value`, without flags or deadline.
    pub const fn set(value: &'b [u8]) -> Self {
        Self {
            mode: StoreMode::Set,
            value: Body::Bytes(value),
            flags: 0,
            deadline: Deadline::NEVER,
            compare: None,
            accept_older: false,
            cas: None,
            vivify: None,
            refusal_removes: true,
            binary_key: false,
        }
    }
}

/// The condition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMode {
    /// Always.
    Set,
    /// Only if the key is missing. Finding it counts as a use of it.
    Add,
    /// Only if the key is present.
    Replace,
    /// Append to the existing value.
    Append,
    /// Prepend to the existing value.
    Prepend,
}

/// Where the value of a [`Store`] is.
#[derive(Clone, Copy, Debug)]
pub enum Body<'b> {
    /// In the read buffer, to be copied into the item.
    Bytes(&'b [u8]),
    /// Already received into a chunk that the owning shard reserved.
    Staged(Staged),
    /// Only a length: the body was refused and dropped before it was received. The store is
    /// answered as too large, including the removal of the old value.
    Refused(u64),
}

/// Memory for one item's value, reserved in a shard while its bytes arrive. Created by the shard
/// and returned to it exactly once: in a [`Store`], or to be discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The item under construction.
    pub item: ItemRef,
    /// Its value's length in bytes.
    pub value_bytes: u32,
}

/// Options of a delete. `Delete::default()` is the plain `delete`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delete {
    /// Only if the item's CAS token equals this; 0 never matches.
    pub compare: Option<u64>,
    /// Mark stale, give a new CAS token and allow a new win instead of removing (meta I).
    pub invalidate: bool,
    /// With `invalidate` or `empty`: the new deadline (meta T).
    pub deadline: Option<Deadline>,
    /// Keep the item but empty its value; its client flags become these (meta x, F). The deadline
    /// becomes `deadline` or never; the CAS token stays unless `cas` or `invalidate` is given.
    pub empty: Option<u32>,
    /// The CAS token to give with `invalidate` or `empty` (meta E).
    pub cas: Option<u64>,
}

/// Options of an increment or decrement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// Subtract, stopping at 0, instead of adding, wrapping at 2^64.
    pub decrement: bool,
    /// The amount.
    pub delta: u64,
    /// Only if the item's CAS token equals this.
    pub compare: Option<u64>,
    /// On a miss, create the item with this value and deadline; the amount is not applied.
    pub create: Option<(u64, Deadline)>,
    /// New deadline of an existing item (meta T).
    pub touch: Option<Deadline>,
    /// The CAS token afterwards (meta E).
    pub cas: Option<u64>,
    /// Whether a created item's key came base64-encoded.
    pub binary_key: bool,
}

impl Arithmetic {
    /// `incr` (or, with `decrement`, `decr`) by `delta`.
    pub const fn by(delta: u64, decrement: bool) -> Self {
        Self {
            decrement,
            delta,
            compare: None,
            create: None,
            touch: None,
            cas: None,
            binary_key: false,
        }
    }
}

/// Compact position of an item in its shard's slab memory, in units of 8 bytes. Only that shard can
/// interpret it; it is valid while the item lives or is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemRef(pub u32);

/// The shard's response.
#[derive(Clone, Copy, Debug)]
pub enum Response<'s> {
    /// Get: the item, even if it was just vivified.
    Hit(Hit<'s>),
    /// Get: no such item.
    Miss,
    /// Get: the value exceeds the allowance. The request was not executed; repeat it once there is
    /// enough room.
    OverAllowance {
        /// Current length of the value in bytes.
        value_bytes: u32,
        /// The request as encoded by the codec, so that the requester need not store it. Empty if
        /// the requester still has it.
        request: &'s [u8],
    },
    /// Store: done. The CAS token given and the whole value's length afterwards.
    Stored {
        /// CAS token of the item as stored.
        cas: u64,
        /// Length of the whole value afterwards, in bytes.
        value_bytes: u32,
    },
    /// Store: the mode's condition failed, or an append would pass the item size limit.
    NotStored,
    /// Any operation with `compare`: the token differs.
    Exists,
    /// Store with `compare`, delete or arithmetic: no such item.
    NotFound,
    /// Delete: removed, invalidated or emptied.
    Deleted,
    /// Arithmetic: the result.
    Number(Number<'s>),
    /// Arithmetic: the stored value is not an unsigned 64-bit decimal.
    NonNumeric,
    /// Store: larger than the item size limit. For `refusal_removes` the old value is gone.
    TooLarge,
    /// Store or arithmetic: no free memory, and nothing can be evicted.
    OutOfMemory,
    /// Arithmetic with `create`: the item could not be created.
    NotCreated,
    /// Any operation on a replicated key: too few replicas participated. Its changes on those that
    /// did may persist.
    QuorumNotReached {
        /// Number of replicas needed.
        needed: u8,
        /// Number of replicas reached.
        reached: u8,
    },
    /// Any operation on a key of other nodes: its node went away before it answered, so it may or
    /// may not have been executed.
    Uncertain,
    /// Any operation on a key of other nodes: too much waits for them. It has not been executed.
    Busy,
}

impl Response<'_> {
    /// Whether the request was executed: one over its allowance was not, and is repeated.
    #[inline]
    pub fn is_performed(&self) -> bool {
        !matches!(self, Response::OverAllowance { .. })
    }

    /// Sets every CAS token to 0, for nodes with CAS disabled.
    pub fn hide_cas(&mut self) {
        match self {
            Response::Hit(hit) => hit.cas = 0,
            Response::Stored { cas, .. } => *cas = 0,
            Response::Number(number) => number.cas = 0,
            _ => {}
        }
    }
}

/// An item as a read found it.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'s> {
    /// The item's position, for pinning while its value is being sent. `None` if the answer came
    /// from another core.
    pub item: Option<ItemRef>,
    /// The key as stored.
    pub key: &'s [u8],
    /// The value.
    pub value: Value<'s>,
    /// Client flags.
    pub flags: u32,
    /// CAS token.
    pub cas: u64,
    /// Deadline after this request.
    pub deadline: Deadline,
    /// Deadline before it; differs when the request touched the item.
    pub deadline_before: Deadline,
    /// Whole seconds since the last use before this request.
    pub idle_seconds: u32,
    /// Marks, see [`Marks`].
    pub marks: Marks,
    /// Slab class number, from 1.
    pub class: u8,
    /// Bytes of the whole item: header, key and value.
    pub item_bytes: u32,
}

/// The result of an arithmetic operation.
#[derive(Clone, Copy, Debug)]
pub struct Number<'s> {
    /// The number.
    pub value: u64,
    /// The key as stored.
    pub key: &'s [u8],
    /// CAS token afterwards.
    pub cas: u64,
    /// Deadline afterwards.
    pub deadline: Deadline,
    /// Deadline before this request.
    pub deadline_before: Deadline,
    /// The item did not exist and was created.
    pub created: bool,
    /// The item's key came base64-encoded when it was stored.
    pub binary_key: bool,
}

/// Facts about an item that a read reports, as of before the request where that matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Read before this request.
    pub fetched: bool,
    /// Marked stale by an invalidation (meta X).
    pub stale: bool,
    /// This reader has won the right to refresh the item (meta W).
    pub won: bool,
    /// Another reader had already won (meta Z).
    pub win_sent: bool,
    /// The key came base64-encoded when it was stored.
    pub binary_key: bool,
}

impl Marks {
    /// [`Marks::stale`] as a stored bit, in an item and its copies.
    pub const STALE_BIT: u8 = 32;
    /// The win mark as a stored bit: a reader has won.
    pub const WON_BIT: u8 = 64;
    /// [`Marks::binary_key`] as a stored bit.
    pub const BINARY_KEY_BIT: u8 = 128;
}

/// A value in memory: in one piece, or in chunks of one memory.
#[derive(Clone, Copy, Debug)]
pub enum Value<'s> {
    /// One piece.
    Whole(&'s [u8]),
    /// Several pieces, in order.
    Chained(Chained<'s>),
}

/// Pieces of one memory that make up a value.
#[derive(Clone, Copy, Debug)]
pub struct Chained<'s> {
    /// The memory the spans point into.
    pub memory: &'s [u8],
    /// The pieces, in order.
    pub spans: &'s [Span],
}

/// A piece of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub bytes: u32,
}

impl<'s> Value<'s> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Value::Whole(bytes) => bytes.len(),
            Value::Chained(chained) => chained.spans.iter().map(|s| s.bytes as usize).sum(),
        }
    }

    /// True when it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces, in order.
    pub fn parts(&self) -> impl Iterator<Item = &'s [u8]> + use<'s> {
        let (whole, chained) = match *self {
            Value::Whole(bytes) => (Some(bytes), None),
            Value::Chained(chained) => (None, Some(chained)),
        };
        let spans = chained.into_iter().flat_map(|chained| {
            chained.spans.iter().map(move |span| {
                &chained.memory[span.offset as usize..span.offset as usize + span.bytes as usize]
            })
        });
        whole.into_iter().chain(spans)
    }

    /// The value in one owned piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        self.parts().for_each(|part| bytes.extend_from_slice(part));
        bytes
    }
}

/// How many replicas must agree before a request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Consistency {
    /// As configured for the cluster.
    #[default]
    Configured = 0,
    /// One replica.
    One = 1,
    /// More than half of them.
    Quorum = 2,
    /// All of them.
    All = 3,
}

impl Consistency {
    /// The consistency with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Configured),
            1 => Some(Self::One),
            2 => Some(Self::Quorum),
            3 => Some(Self::All),
            _ => None,
        }
    }
}
