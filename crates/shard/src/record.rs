//! Records: a shard's replica of a key, including deletions.
//!
//! Client operations go through `execute`; this module serves replication. In a shard with records
//! the caller chooses all versions: each change comes with its own, larger than that of the item it
//! changes, and clients see it as the CAS token.

use super::allocate::RemovalReason;
use super::index::bucket_among;
use super::item::{BINARY_KEY, Head, STALE, WON};
use super::store::{Content, Put};
use super::{Shard, deadline, item};
use crate::prefetch::prefetch;
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{Get, Operation, Request, Response, Value};
use ringlane_types::time::{Deadline, Instant};
use std::borrow::Cow;

/// Marks that belong to the record. Whether an item was read here is not one of them.
const RECORD_MARKS: u8 = STALE | WON | BINARY_KEY;
/// A scan follows the splits of buckets until there are this many times as many.
const SPLITS_FOLLOWED: u32 = 4;
/// Maximum buckets that a scan visits per requested record.
const BUCKETS_PER_RECORD: usize = 4;

/// The record of a key.
#[derive(Clone, Copy, Debug)]
pub struct StoredRecord<'s> {
    /// Its position in the order of writes to the key.
    pub version: u64,
    /// The value; `None` for a deletion, and from the deadline on.
    pub item: Option<LiveRecord<'s>>,
    /// When it was last used, which is recorded only occasionally. For a deletion, when it arrived
    /// here, or was written if that was later.
    pub used: Instant,
}

/// The value of a record with its metadata.
#[derive(Clone, Copy, Debug)]
pub struct LiveRecord<'s> {
    /// When it expires.
    pub deadline: Deadline,
    /// Client flags.
    pub flags: u32,
    /// Stale and won marks, in the shard's encoding; others are ignored.
    pub marks: u8,
    /// The value.
    pub value: Value<'s>,
}

/// Why a record was not stored. Then nothing is stored under the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutRecordError {
    /// It exceeds the item size limit.
    TooLarge,
    /// No free memory, and nothing can be evicted.
    OutOfMemory,
}

impl Shard {
    /// Executes a client's operation. If it changes the record, that gets `version`, which is newer
    /// than the record's and than every flush; tokens requested by the client are ignored. For
    /// shards with records.
    #[inline]
    pub fn execute_as(
        &mut self,
        request: &Request<'_>,
        version: u64,
        now: Instant,
    ) -> Response<'_> {
        debug_assert!(self.tombstone_policy.is_some());
        self.next_cas = version;
        self.execute(request, now)
    }

    /// Whether `request` would change the current record of its key. For requests other than reads,
    /// whether it may.
    pub fn would_change(&self, request: &Request<'_>, now: Instant) -> bool {
        let Operation::Get(get) = &request.operation else { return true };
        if !request.operation.may_change() {
            return false;
        }
        let standing = self.find_any(request.key, request.hash);
        let Some(kept) = standing.and_then(|(_, head)| self.stored_record(&head, now)?.item) else {
            return get.vivify.is_some();
        };
        let touch = get.touch.map(|touch| deadline::rounded(touch, now));
        let deadline = touch.unwrap_or(kept.deadline);
        let judged = if get.refresh_first { kept.deadline } else { deadline };
        let soon = get
            .refresh_below_seconds
            .zip(judged.seconds_left(now))
            .is_some_and(|(below, left)| left < below as u64);
        let wins = kept.marks & WON == 0 && (get.lease && kept.marks & STALE != 0 || soon);
        wins || deadline != kept.deadline
    }

    /// A deadline rounded so that all replicas of a record of `version` store the same, if there
    /// are any.
    #[inline]
    pub(super) fn rounded_deadline(&self, deadline: Deadline, version: u64) -> Deadline {
        match self.tombstone_policy {
            Some(tombstone_policy) => {
                deadline::rounded(deadline, (tombstone_policy.written)(version))
            }
            None => deadline,
        }
    }

    /// The hash of `key` under this process's secret.
    #[inline]
    pub fn hash_key(&self, key: &[u8]) -> KeyHash {
        KeyHash::of(key, &self.hash_secret)
    }

    /// The version stored under a key, even if flushed or due to be dropped.
    pub fn record_version(&self, key: &[u8], hash: KeyHash) -> Option<u64> {
        self.find_any(key, hash).map(|(_, head)| head.version)
    }

    /// The record of a key. Does not count as a use.
    pub fn record(&self, key: &[u8], hash: KeyHash, now: Instant) -> Option<StoredRecord<'_>> {
        let (_, head) = self.find_any(key, hash)?;
        self.stored_record(&head, now)
    }

    /// Stores a record under a key unconditionally: the value, or a deletion for `None` and for a
    /// value whose deadline has passed.
    pub fn put_record(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        version: u64,
        item: Option<&LiveRecord<'_>>,
        now: Instant,
    ) -> Result<(), PutRecordError> {
        self.run_work_if_due(now);
        let Some(item) = item.filter(|item| !item.deadline.is_past(now)) else {
            let kept = self.put_tombstone(key, hash, version, now);
            return if kept { Ok(()) } else { Err(PutRecordError::OutOfMemory) };
        };
        if !self.fits(key.len(), item.flags, item.value.len() as u64) {
            self.remove_record(key, hash);
            return Err(PutRecordError::TooLarge);
        }
        if !self.make_index_room(hash, now) {
            self.remove_record(key, hash);
            return Err(PutRecordError::OutOfMemory);
        }
        let value = match item.value {
            Value::Whole(value) => Cow::Borrowed(value),
            Value::Chained(_) => Cow::Owned(item.value.to_vec()),
        };
        let put = Put {
            flags: item.flags,
            deadline: self.rounded_deadline(item.deadline, version),
            marks: item.marks & RECORD_MARKS,
            version,
            content: Content::Bytes(&value),
        };
        let request = Request { key, hash, operation: Operation::Get(Get::default()) };
        let placed = self.put_over(&request, None, &put, true, now);
        self.drain_inline(now);
        if placed.is_some() { Ok(()) } else { Err(PutRecordError::OutOfMemory) }
    }

    /// Removes whatever is stored under a key, without a tombstone.
    pub fn remove_record(&mut self, key: &[u8], hash: KeyHash) {
        if let Some((entry, head)) = self.find_any(key, hash) {
            self.index.remove(self.slab.memory_mut(), hash, entry);
            self.release(&head, RemovalReason::Removed);
        }
    }

    /// Removes every record up to `version`, at once for readers, and gradually from memory.
    pub fn flush_records(&mut self, version: u64) {
        if version > self.flush.upto {
            self.run_deferred_free();
            self.flush.upto = version;
            self.start_flush(false);
        }
    }

    /// Whether any record can be stored without evicting another: free pages remain beyond those
    /// reserved for the next class and the index.
    pub fn has_free_pages(&self) -> bool {
        self.slab.pages_free() > self.reserve_pages
    }

    /// Nothing up to this version is stored.
    pub fn flushed_records(&self) -> u64 {
        self.flush.upto
    }

    /// Drops every record and every flush, as after a restart.
    pub fn clear_records(&mut self) {
        self.run_deferred_free();
        self.start_flush(true);
        self.flush.at = None;
        self.flush.upto = 0;
    }

    /// Visits about `count` records from `cursor` on, 0 for the beginning, and returns the cursor
    /// to continue from; `None` at the end. Examines a bounded number of items.
    ///
    /// Walks the index in the order of its buckets at the beginning: an item that moves in memory
    /// stays in its bucket, and one whose bucket is split meanwhile is found in the resulting
    /// buckets. So each record that stays is visited once; only if the index grows to more than
    /// four times its size within one scan, some are visited again.
    pub fn scan_records(
        &self,
        cursor: u64,
        count: usize,
        now: Instant,
        mut show: impl FnMut(&[u8], StoredRecord<'_>),
    ) -> Option<u64> {
        let buckets = self.index.bucket_count();
        let mut walk = Walk::from_cursor(cursor, buckets);
        let memory = self.slab.memory();
        let mut shown = 0;
        for _ in 0..count.max(1) * BUCKETS_PER_RECORD {
            if shown >= count || walk.bucket >= walk.buckets {
                break;
            }
            for bucket in walk.where_now(buckets) {
                self.index.visit_bucket(memory, bucket, |item| {
                    prefetch(&memory[item::offset(item)]);
                });
                self.index.visit_bucket(memory, bucket, |item| {
                    let head = Head::read(memory, item);
                    if let Some(kept) = self.stored_record(&head, now) {
                        show(head.key(memory), kept);
                        shown += 1;
                    }
                });
            }
            walk.bucket += 1;
        }
        (walk.bucket < walk.buckets).then(|| walk.to_cursor())
    }

    /// An item or tombstone as a record; `None` if it is flushed or may be dropped.
    fn stored_record(&self, head: &Head, now: Instant) -> Option<StoredRecord<'_>> {
        if self.flush.is_flushed(head) {
            return None;
        }
        let (version, deadline) = (head.version, self.deadline_of(head));
        if self.flush.is_tombstone(head) {
            let used = self
                .tombstone_policy
                .map_or(now, |tombstone_policy| tombstone_policy.received(deadline));
            return (!deadline.is_past(now)).then_some(StoredRecord { version, item: None, used });
        }
        let used = self.last_used(head, now);
        if deadline.is_past(now) {
            // The tombstone that the wheel will turn it into.
            let forgotten = self.forget_at(version, used) <= now;
            return (!forgotten).then_some(StoredRecord { version, item: None, used });
        }
        let item = LiveRecord {
            deadline,
            flags: head.flags(self.slab.memory()),
            marks: head.marks & RECORD_MARKS,
            value: self.value_of(head),
        };
        Some(StoredRecord { version, item: Some(item), used })
    }
}

/// The position of a scan: the next bucket, and the number of buckets at its start. As a number, 31
/// bits each.
#[derive(Clone, Copy, Debug)]
struct Walk {
    buckets: u32,
    bucket: u32,
}

impl Walk {
    fn from_cursor(cursor: u64, buckets_now: u32) -> Self {
        let began = (cursor >> 31) as u32;
        // Buckets may have been split so often that following them is too much work. From here on
        // walk the current ones: the remaining items are in none before this. Their number never
        // decreases, whatever an untrusted cursor claims.
        let followed = buckets_now / SPLITS_FOLLOWED < began && began <= buckets_now;
        let buckets = if followed { began } else { buckets_now };
        Self { buckets, bucket: cursor as u32 & (u32::MAX >> 1) }
    }

    fn to_cursor(self) -> u64 {
        (self.buckets as u64) << 31 | self.bucket as u64
    }

    /// The current buckets of the items in the initial bucket.
    fn where_now(self, buckets_now: u32) -> impl Iterator<Item = u32> {
        let round = 1 << self.buckets.ilog2();
        (self.bucket..buckets_now)
            .step_by(round)
            .filter(move |&bucket| bucket_among(self.buckets, bucket) == self.bucket)
    }
}
