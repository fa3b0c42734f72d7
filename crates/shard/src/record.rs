//! Records: what a shard holds of a key beside the other copies of it, deletions included.
//!
//! Everything that clients do goes through `execute`; here is what serves the copies. A shard that
//! keeps records lets somebody else choose all versions: each change comes with its own, larger
//! than that of the item it changes, and clients see it as the CAS token.

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

/// Marks that belong to the record. Whether an item was read here does not.
const RECORD_MARKS: u8 = STALE | WON | BINARY_KEY;
/// A scan follows the splits of buckets until there are this many times as many.
const SPLITS_FOLLOWED: u32 = 4;
/// Buckets that a scan looks at, at most, per record it should show.
const BUCKETS_PER_RECORD: usize = 4;

/// The record of a key.
#[derive(Clone, Copy, Debug)]
pub struct StoredRecord<'s> {
    /// When it was written, among all writes to the key.
    pub version: u64,
    /// What was written; `None` for a deletion, and from the deadline on.
    pub item: Option<LiveRecord<'s>>,
    /// When it was last used, which is noted now and then only. For a deletion, when it came here, or
    /// was written if that was later.
    pub used: Instant,
}

/// The value of a record and what goes with it.
#[derive(Clone, Copy, Debug)]
pub struct LiveRecord<'s> {
    /// When it stops existing.
    pub deadline: Deadline,
    /// Client flags.
    pub flags: u32,
    /// Stale and won marks, in the shard's encoding; others are ignored.
    pub marks: u8,
    /// The value.
    pub value: Value<'s>,
}

/// Why a record was not stored. Nothing is under the key then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutRecordError {
    /// It is larger than an item may be.
    TooLarge,
    /// No memory, and nothing may be evicted.
    OutOfMemory,
}

impl Shard {
    /// Performs a client's operation. If it changes the record, that gets `version`, which is newer
    /// than the record's and than every flush; tokens that the client asks for are ignored. For
    /// shards that keep records.
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

    /// Whether `request` would change the record of its key as it is now. Of what is not a read,
    /// only that it may.
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

    /// A deadline as all copies of a record of `version` can keep it, where there are any.
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

    /// The version of what stands under a key, flushed and forgotten or not.
    pub fn record_version(&self, key: &[u8], hash: KeyHash) -> Option<u64> {
        self.find_any(key, hash).map(|(_, head)| head.version)
    }

    /// The record of a key. Does not count as a use.
    pub fn record(&self, key: &[u8], hash: KeyHash, now: Instant) -> Option<StoredRecord<'_>> {
        let (_, head) = self.find_any(key, hash)?;
        self.stored_record(&head, now)
    }

    /// Puts a record under a key whatever is there: the value, or a deletion for `None` and for a
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

    /// Removes whatever is under a key, without a trace.
    pub fn remove_record(&mut self, key: &[u8], hash: KeyHash) {
        if let Some((entry, head)) = self.find_any(key, hash) {
            self.index.remove(self.slab.memory_mut(), hash, entry);
            self.release(&head, RemovalReason::Removed);
        }
    }

    /// Removes every record of a version up to `version`, at once for whoever looks, and piecewise
    /// from memory.
    pub fn flush_records(&mut self, version: u64) {
        if version > self.flush.upto {
            self.run_deferred_free();
            self.flush.upto = version;
            self.start_flush(false);
        }
    }

    /// Whether any record can be taken without evicting another: pages are left that no class has,
    /// beyond those kept free for the next class and the index.
    pub fn has_free_pages(&self) -> bool {
        self.slab.pages_free() > self.reserve_pages
    }

    /// Nothing of a version up to this one is there.
    pub fn flushed_records(&self) -> u64 {
        self.flush.upto
    }

    /// Forgets every record and every flush, as after a restart.
    pub fn clear_records(&mut self) {
        self.run_deferred_free();
        self.start_flush(true);
        self.flush.at = None;
        self.flush.upto = 0;
    }

    /// Shows about `count` records from `cursor` on, 0 for the beginning, and returns where to go
    /// on; `None` at the end. Looks at a bounded number of items.
    ///
    /// Goes through the index in the order of its buckets as they were at the beginning: an item
    /// that moves in memory stays in its bucket, and one whose bucket is split meanwhile is found
    /// where the bucket's items went. So each record that stays is shown once; only when the index
    /// grows to more than four times its size within one scan, some are shown again.
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

    /// What an item or tombstone is as a record; `None` when it is flushed or may be forgotten.
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
            // The tombstone that the wheel will make of it.
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

/// Where a scan stands: the bucket it comes to next, of as many as there were when it began. As a
/// number, 31 bits each.
#[derive(Clone, Copy, Debug)]
struct Walk {
    buckets: u32,
    bucket: u32,
}

impl Walk {
    fn from_cursor(cursor: u64, buckets_now: u32) -> Self {
        let began = (cursor >> 31) as u32;
        // Buckets may have been split so often that following them is too much work. From here on
        // the present ones are gone through: what is left lies in none before this. There are never
        // fewer than there were, whatever a cursor from elsewhere says.
        let followed = buckets_now / SPLITS_FOLLOWED < began && began <= buckets_now;
        let buckets = if followed { began } else { buckets_now };
        Self { buckets, bucket: cursor as u32 & (u32::MAX >> 1) }
    }

    fn to_cursor(self) -> u64 {
        (self.buckets as u64) << 31 | self.bucket as u64
    }

    /// The present buckets of what was in the bucket at the beginning.
    fn where_now(self, buckets_now: u32) -> impl Iterator<Item = u32> {
        let round = 1 << self.buckets.ilog2();
        (self.bucket..buckets_now)
            .step_by(round)
            .filter(move |&bucket| bucket_among(self.buckets, bucket) == self.bucket)
    }
}
