//! One core's items: index, slab memory, eviction, TTL wheel, and the operations on them.
//!
//! A [`Shard`] is a state machine without I/O: it takes requests and the time, and returns answers.
//! Its memory is one block divided into pages (`slab`); items are found through the `index`, which
//! is stored in the same pages, so one limit covers both. Nothing here waits or locks; all work per
//! call is small, and long work (expiring, emptying pages, reclaiming flushed items) is done in
//! steps by [`Shard::maintain`].
//!
//! The operations are one file each: `get`, `store`, `delete`, `arithmetic`, `flush`.
//! They share `allocate` (where chunks come from) and `staging` (chunks that must stay).

#![deny(missing_docs, unreachable_pub)]

pub mod counters;

mod allocate;
mod arithmetic;
mod classes;
mod clear;
mod concat;
mod concat_chained;
mod config;
mod deadline;
mod delete;
mod eviction;
mod flush;
mod get;
mod index;
mod invariants;
mod item;
mod pages;
mod prefetch;
mod record;
mod slab;
mod staged_allocation;
mod staging;
mod stats;
mod store;
mod tombstone;
mod ttl_wheel;
mod value;

pub use config::{Eviction, ShardConfig};
pub use pages::ReassignOutcome;
pub use record::{LiveRecord, PutRecordError, StoredRecord};
pub use staged_allocation::Staging;
pub use staging::StageRefusal;
pub use stats::{ClassStats, Gauges, ScanCursor};
pub use tombstone::TombstonePolicy;

use std::rc::Rc;

use crate::prefetch::prefetch;
use allocate::{RESERVE_FROM_PAGES, RemovalReason};
use counters::Counters;
use eviction::Policy;
use flush::Flush;
use index::{Entry, Index};
use item::{BINARY_KEY, FETCHED, HAS_TTL, Head, STALE, Shape, WON};
use pages::Drain;
use ringlane_types::hash::{HashSecret, KeyHash};
use ringlane_types::request::{
    Chained, Hit, ItemRef, Marks, Operation, Request, Response, Span, Value,
};
use ringlane_types::time::{Deadline, Instant};
use slab::Slab;
use staging::Pins;
use stats::ClassCounters;
use ttl_wheel::TtlWheel;

/// Maximum memory of one shard: item positions are 32 bits in units of 8 bytes.
pub const MEMORY_BYTES_MAX: u64 = (32 << 30) - (1 << 20);
/// Minimum memory of one shard: 16 pages of 64 KiB.
pub const MEMORY_BYTES_MIN: u64 = 1 << 20;

/// Bytes before the value part in a piece of a chained value.
const PIECE_HEADER_BYTES: usize = 16;

/// The pieces of one chained value.
struct Chain {
    spans: Vec<Span>,
}

/// The chunk a piece of a chained value lies in.
fn piece_at(span: &Span) -> ItemRef {
    item::item_at(span.offset as usize - PIECE_HEADER_BYTES)
}

/// Why a lookup found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    Missing,
    Expired,
    Flushed,
    /// The item is of a past epoch: [`Shard::resolve_epoch`] decides its fate.
    StaleEpoch,
}

/// One core's items.
pub struct Shard {
    /// Unix milliseconds before which no work is due ahead of a request.
    work_due_at: u64,
    slab: Slab,
    index: Index,
    wheel: TtlWheel,
    flush: Flush,
    /// How long tombstones are retained for replicas; `None` without replication.
    tombstone_policy: Option<TombstonePolicy>,
    counters: Counters,
    class_counters: Vec<ClassCounters>,
    hash_secret: Rc<HashSecret>,
    next_cas: u64,
    cas_step: u64,
    item_bytes_max: u32,
    policy: Policy,
    /// The policy's bits of an item's access time.
    frequency_mask: u32,
    /// The item that an operation in progress still needs; `ItemRef(0)` for none.
    guard: ItemRef,
    chains: ::slab::Slab<Chain>,
    pins: Pins,
    staged_bytes: u64,
    /// An item removed by the last request, whose answer may still refer to it.
    deferred_free: Option<ItemRef>,
    /// The page being emptied in the background.
    drain: Option<Drain>,
    /// How much of the memory is ready for a value that can wait.
    ready_bytes: usize,
    awaits_memory: bool,
    /// Items evicted and chunks emptied so far; wraps.
    work: u32,
    /// Pages kept free for classes that have none, and for the index.
    reserve_pages: u32,
    page_cursor: u32,
}

impl Shard {
    /// An empty shard for core `core` of `core_count`, which makes its CAS tokens differ from those
    /// of other cores. `hash_secret` is the one used for the hashes of requests.
    ///
    /// # Panics
    /// If the memory is outside [`MEMORY_BYTES_MIN`] to [`MEMORY_BYTES_MAX`]. An item size limit
    /// above half of the memory is treated as half of the memory.
    pub fn new(
        config: &ShardConfig,
        hash_secret: Rc<HashSecret>,
        core: u32,
        core_count: u32,
    ) -> Shard {
        let memory_bytes = config.memory_bytes;
        assert!(
            (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&memory_bytes),
            "a shard takes 1 MiB to 32 GiB of memory, not {memory_bytes} bytes"
        );
        assert!(core < core_count);
        let mut slab = Slab::new(memory_bytes);
        let first = slab.assign_to_index().expect("there are at least 16 pages");
        let class_count = slab.classes.len();
        let policy = Policy::new(config.eviction, class_count, hash_secret.seed(core.into()));
        let keeps_reserve = policy.evicts() && slab.page_count() >= RESERVE_FROM_PAGES;
        Shard {
            work_due_at: u64::MAX,
            index: Index::new(first, slab.page_bytes()),
            wheel: TtlWheel::new(),
            flush: Flush::new(),
            tombstone_policy: None,
            counters: Counters::default(),
            class_counters: vec![ClassCounters::default(); class_count],
            next_cas: core as u64 + 1,
            cas_step: core_count as u64,
            item_bytes_max: (config.item_bytes_max as u64).min(memory_bytes / 2) as u32,
            frequency_mask: policy.frequency_mask(),
            policy,
            guard: ItemRef(0),
            chains: ::slab::Slab::new(),
            pins: Pins::new(hash_secret.table_hasher()),
            hash_secret,
            staged_bytes: 0,
            deferred_free: None,
            drain: None,
            ready_bytes: usize::MAX,
            awaits_memory: false,
            work: 0,
            reserve_pages: if keeps_reserve { 1 + slab.page_count() / 512 } else { 0 },
            page_cursor: 0,
            slab,
        }
    }

    /// Executes one operation at `now`, which never goes back.
    #[inline]
    pub fn execute(&mut self, request: &Request<'_>, now: Instant) -> Response<'_> {
        self.run_work_if_due(now);
        match &request.operation {
            Operation::Get(get) => self.get(request, get, now),
            Operation::Store(store) => self.store(request, store, now),
            Operation::Delete(delete) => self.delete(request, delete, now),
            Operation::Arithmetic(arithmetic) => self.arithmetic(request, arithmetic, now),
        }
    }

    /// Bits of an access time, in units of 8 ms, used by the eviction policy: idle times are
    /// coarser by that much.
    pub fn frequency_mask(&self) -> u32 {
        self.frequency_mask
    }

    /// Starts loading the index bucket of `hash`.
    #[inline]
    pub fn prefetch_bucket(&self, hash: KeyHash) {
        prefetch(&self.slab.memory()[self.index.bucket(hash)]);
    }

    /// Starts loading the first two cache lines of the probable item of `hash`. Reads the bucket,
    /// which [`Shard::prefetch_bucket`] should have loaded by now.
    #[inline]
    pub fn prefetch_item(&self, hash: KeyHash) {
        let memory = self.slab.memory();
        if let Some(item) = self.index.candidate(memory, hash) {
            let at = item::offset(item);
            prefetch(&memory[at]);
            prefetch(&memory[(at + 64).min(memory.len() - 1)]);
        }
    }

    /// The counters since startup or the last reset.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sets all counters to zero. Gauges stay.
    pub fn reset_counters(&mut self) {
        self.counters = Counters::default();
        self.class_counters.iter_mut().for_each(ClassCounters::reset);
    }

    #[inline(always)]
    fn run_work_if_due(&mut self, now: Instant) {
        if now.as_millis() >= self.work_due_at {
            self.run_due_work(now);
        }
    }

    /// Does the work that must precede any operation at `now`: frees the item that the last answer
    /// may have referred to, and starts a flush that is due.
    #[cold]
    fn run_due_work(&mut self, now: Instant) {
        self.run_deferred_free();
        if self.flush.at.is_some_and(|at| at <= now) {
            self.flush.at = None;
            self.start_flush(true);
        }
        self.work_due_at = self.flush.at.map_or(u64::MAX, Instant::as_millis);
    }

    fn run_deferred_free(&mut self) {
        if let Some(item) = self.deferred_free.take() {
            let head = Head::read(self.slab.memory(), item);
            let chain = head.chain(self.slab.memory()).unwrap_or(item::NO_CHAIN);
            self.free_item(item, chain);
        }
    }

    /// The live item under the request's key. An expired one is removed; one of a past epoch is
    /// left to [`Shard::resolve_epoch`], so that this rare case stays out of the common path.
    #[inline(always)]
    fn find(&mut self, request: &Request<'_>, now: Instant) -> Result<(Entry, Head), Absent> {
        let memory = self.slab.memory();
        let key = request.key;
        let mut head = Head::read(memory, ItemRef(0x2000));
        let found = self.index.find(memory, request.hash, |item| {
            head = Head::read(memory, item);
            head.key_len as usize == key.len() && head.key(memory) == key
        });
        let Some((entry, _)) = found else { return Err(Absent::Missing) };
        if !self.flush.is_present(&head) {
            return Err(Absent::StaleEpoch);
        }
        if head.has(HAS_TTL) && self.deadline_of(&head).is_past(now) {
            return Err(self.retire(request.hash, entry, &{ head }, RemovalReason::Expired));
        }
        Ok((entry, head))
    }

    /// Finds a live item again after an allocation, which may have moved its entry.
    fn find_again(&self, hash: KeyHash, item: ItemRef) -> Entry {
        self.index.entry_of(self.slab.memory(), hash, item).expect("a guarded item stays indexed")
    }

    /// Like [`Shard::find`], but resolves items of past epochs.
    #[inline(never)]
    fn find_settled(
        &mut self,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<(Entry, Head), Absent> {
        match self.find(request, now) {
            Err(Absent::StaleEpoch) => match self.resolve_epoch(request) {
                Some(absent) => Err(absent),
                None => self.find(request, now),
            },
            found => found,
        }
    }

    /// Resolves the item of a past epoch under the request's key; `None` if it is alive, now in the
    /// current epoch.
    #[cold]
    #[inline(never)]
    fn resolve_epoch(&mut self, request: &Request<'_>) -> Option<Absent> {
        let found = self.find_any(request.key, request.hash);
        let (entry, head) = found.expect("it was found a moment ago");
        if self.flush.is_flushed(&head) {
            return Some(self.retire(request.hash, entry, &head, RemovalReason::Flushed));
        }
        self.migrate_epoch(&head);
        self.flush.is_tombstone(&head).then_some(Absent::Missing)
    }

    #[cold]
    fn retire(
        &mut self,
        hash: KeyHash,
        entry: Entry,
        head: &Head,
        reason: RemovalReason,
    ) -> Absent {
        if reason == RemovalReason::Expired && self.tombstone_policy.is_some() {
            // It hides older records until the wheel turns it into a tombstone.
            return Absent::Expired;
        }
        self.index.remove(self.slab.memory_mut(), hash, entry);
        self.release(head, reason);
        if reason == RemovalReason::Flushed { Absent::Flushed } else { Absent::Expired }
    }

    /// Removes an item that the answer still refers to: it leaves the index and the wheel, and the
    /// next request frees its memory. With replication a tombstone of the given version remains.
    #[cold]
    fn send_to_limbo(&mut self, hash: KeyHash, head: &Head, now: Instant) {
        let tombstone = match self.tombstone_policy {
            Some(_) => self.place_beside(head, self.next_cas, now),
            None => None,
        };
        let entry = self.find_again(hash, head.item);
        self.index.remove(self.slab.memory_mut(), hash, entry);
        self.detach(head, RemovalReason::Removed);
        if !(self.is_pinned(head.item) && self.pins.mark_dead(head.item)) {
            debug_assert!(self.deferred_free.is_none());
            self.deferred_free = Some(head.item);
            self.work_due_at = 0;
        }
        if let Some(tombstone) = tombstone {
            self.link_tombstone(hash, tombstone);
        }
    }

    #[inline(always)]
    fn deadline_of(&self, head: &Head) -> Deadline {
        if head.has(HAS_TTL) {
            self.wheel.deadline(head.deadline_code(self.slab.memory()))
        } else {
            Deadline::NEVER
        }
    }

    fn take_cas(&mut self) -> u64 {
        let cas = self.next_cas;
        self.next_cas += self.cas_step;
        cas
    }

    /// The token requested by a client, or the next one. Clients cannot choose what orders
    /// replicas.
    fn cas_or_next(&mut self, asked: Option<u64>) -> u64 {
        match asked {
            Some(cas) if cas != 0 && self.tombstone_policy.is_none() => cas,
            _ => self.take_cas(),
        }
    }

    /// Like [`Shard::cas_or_next`] for an item created by a read or arithmetic: it may request 0.
    fn first_cas(&mut self, asked: Option<u64>) -> u64 {
        match asked {
            Some(0) if self.tombstone_policy.is_none() => 0,
            asked => self.cas_or_next(asked),
        }
    }

    /// Whether an item is within the size limit as memcached counts it.
    fn fits(&self, key_bytes: usize, flags: u32, value_bytes: u64) -> bool {
        let overhead = 48 + 8 + key_bytes as u64 + 1 + if flags != 0 { 4 } else { 0 } + 2;
        overhead + value_bytes <= self.item_bytes_max as u64
    }

    /// The layout of an item. If eviction is disabled every item has a TTL block, so that a touch
    /// never needs memory; a chained item too, so that its head never moves.
    fn shape(&self, key_bytes: usize, value_bytes: usize, flags: u32, deadline: Deadline) -> Shape {
        let ttl = !deadline.is_never() || !self.policy.evicts();
        let whole = Shape { key_bytes, value_bytes, ttl, flags: flags != 0, chained: false };
        // An unchained item must stay unchained when it gets a TTL block.
        if (Shape { ttl: true, ..whole }).chunk_bytes() <= self.slab.chunk_bytes_max() {
            whole
        } else {
            Shape { ttl: true, chained: true, ..whole }
        }
    }

    #[inline(always)]
    fn value_of(&self, head: &Head) -> Value<'_> {
        let memory = self.slab.memory();
        match head.chain(memory) {
            None => {
                let at = head.key_offset() + head.key_len as usize;
                Value::Whole(&memory[at..at + head.value_bytes(memory)])
            }
            Some(chain) => {
                Value::Chained(Chained { memory, spans: &self.chains[chain as usize].spans })
            }
        }
    }

    /// The answer that shows an item unchanged by the request.
    fn hit(&self, head: &Head, now: Instant) -> Hit<'_> {
        self.hit_in(self.slab.class_of(head.item), head, now)
    }

    /// The same for an item of `class`.
    #[inline(always)]
    fn hit_in(&self, class: u8, head: &Head, now: Instant) -> Hit<'_> {
        let memory = self.slab.memory();
        let deadline = self.deadline_of(head);
        let value = self.value_of(head);
        Hit {
            item: Some(head.item),
            key: head.key(memory),
            flags: head.flags(memory),
            cas: head.version,
            deadline,
            deadline_before: deadline,
            idle_seconds: item::seconds_between(self.used_at(head), item::stamp(now)),
            marks: Marks {
                fetched: head.has(FETCHED),
                stale: head.has(STALE),
                won: false,
                win_sent: head.has(WON),
                binary_key: head.has(BINARY_KEY),
            },
            class: stats::class_number(class),
            item_bytes: (head.key_offset() - item::offset(head.item)) as u32
                + head.key_len as u32
                + head.value_bytes(memory) as u32,
            value,
        }
    }
}

#[cfg(test)]
mod budget;
#[cfg(test)]
mod tests;
