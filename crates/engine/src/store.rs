//! The shard as the cluster's store: adapts one vocabulary to the other.

use ringlane_cluster::record::{Content, Live, Record, RetentionTimes};
use ringlane_cluster::store::{Merged, ReplicaStore, Scanned};
use ringlane_cluster::version::Version;
use ringlane_shard::{LiveRecord, PutRecordError, Shard, StoredRecord, TombstonePolicy};
use ringlane_types::codec;
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{Request, Response};
use ringlane_types::time::Instant;

/// Makes an empty shard store records for a cluster with these retention times.
///
/// # Panics
/// If it already has items.
pub fn enable_tombstones(shard: &mut Shard, retention: &RetentionTimes) {
    let written = |version| Version(version).instant();
    shard.enable_tombstones(TombstonePolicy { lifetime: retention.tombstone, written });
}

/// A shard with records, as used by the cluster. Free to create: borrow it for a turn.
///
/// It deviates from the contract of [`ReplicaStore`] in two ways. The shard is a cache: it may
/// evict any record, and then knows nothing of the key. And it drops a tombstone on its own once
/// [`RetentionTimes::forget_at`] has passed. Scans go in the order of hashes: the last use of each
/// item is known, but finding the latest would take two walks over all of them.
pub struct ShardStore<'s> {
    shard: &'s mut Shard,
}

impl<'s> ShardStore<'s> {
    /// The store of `shard`, for which [`enable_tombstones`] has been called.
    #[inline]
    pub fn new(shard: &'s mut Shard) -> Self {
        debug_assert!(shard.has_tombstones());
        Self { shard }
    }

    /// Like [`ReplicaStore::execute`], with an answer that borrows the shard: nothing is copied.
    /// The hash must be that of the request's key under this node's seed.
    ///
    /// A value that could not be staged is passed as a refused body, so that the item removed by
    /// its refusal also gets `version`.
    #[inline]
    pub fn execute_local(
        self,
        request: &Request<'_>,
        version: Version,
        now: Instant,
    ) -> Response<'s> {
        self.shard.execute_as(request, version.0, now)
    }

    /// Whether `request` would change the current record of its key: exact for reads, few of which
    /// do although they may; true for everything else. The hash must be this node's.
    pub fn would_change(&self, request: &Request<'_>, now: Instant) -> bool {
        self.shard.would_change(request, now)
    }

    fn hash(&self, key: &[u8]) -> KeyHash {
        self.shard.hash_key(key)
    }

    fn put(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Result<(), PutRecordError> {
        let hash = self.hash(key);
        let item = match record.content {
            Content::Deleted => None,
            Content::Live(Live { deadline, flags, marks, value }) => {
                Some(LiveRecord { deadline, flags, marks, value })
            }
        };
        self.shard.put_record(key, hash, record.version.0, item.as_ref(), now)
    }
}

impl ReplicaStore for ShardStore<'_> {
    fn read(&mut self, key: &[u8], now: Instant) -> Option<Record<'_>> {
        self.shard.record(key, self.hash(key), now).map(|kept| record_of(&kept))
    }

    fn merge(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Merged {
        let flushed = Version(self.shard.flushed_records());
        if record.version <= flushed {
            return Merged::Older(flushed);
        }
        let record = record.at(now);
        if let Some(there) = self.read(key, now) {
            match record.order(&there) {
                std::cmp::Ordering::Less => return Merged::Older(there.version),
                std::cmp::Ordering::Equal => return Merged::Same,
                std::cmp::Ordering::Greater => {}
            }
        }
        match self.put(key, &record, now) {
            Ok(()) => Merged::Stored,
            Err(PutRecordError::TooLarge) => Merged::TooLarge,
            Err(PutRecordError::OutOfMemory) => Merged::NoMemory,
        }
    }

    fn roll_back(
        &mut self,
        key: &[u8],
        attempt: Version,
        record: Option<&Record<'_>>,
        now: Instant,
    ) {
        if self.read(key, now).is_none_or(|there| there.version != attempt) {
            return;
        }
        let flushed = Version(self.shard.flushed_records());
        match record.filter(|record| record.version > flushed) {
            // Without room for the old record nothing stays, which a cache is free to do.
            Some(record) => drop(self.put(key, record, now)),
            None => self.shard.remove_record(key, self.hash(key)),
        }
    }

    fn execute(
        &mut self,
        request: &Request<'_>,
        version: Version,
        now: Instant,
        response: &mut Vec<u8>,
    ) {
        debug_assert_eq!(request.hash, self.hash(request.key), "another node has another seed");
        let answer = self.shard.execute_as(request, version.0, now);
        let start = response.len();
        response.resize(start + codec::encoded_response_bytes(&answer), 0);
        codec::encode_response(&answer, &mut response[start..]);
    }

    fn scan(
        &mut self,
        cursor: u64,
        count: usize,
        now: Instant,
        show: &mut dyn FnMut(Scanned<'_>),
    ) -> Option<u64> {
        self.shard.scan_records(cursor, count, now, |key, kept| {
            show(Scanned { key, record: record_of(&kept), used: kept.used });
        })
    }

    fn forget(&mut self, key: &[u8], version: Version) {
        let hash = self.hash(key);
        if self.shard.record_version(key, hash) == Some(version.0) {
            self.shard.remove_record(key, hash);
        }
    }

    fn flush(&mut self, version: Version) {
        self.shard.flush_records(version.0);
    }

    fn has_room(&self) -> bool {
        self.shard.has_free_pages()
    }

    fn clear(&mut self) {
        self.shard.clear_records();
    }
}

fn record_of<'s>(kept: &StoredRecord<'s>) -> Record<'s> {
    let content = match kept.item {
        None => Content::Deleted,
        Some(LiveRecord { deadline, flags, marks, value }) => {
            Content::Live(Live { deadline, flags, marks, value })
        }
    };
    Record { version: Version(kept.version), content }
}

#[cfg(test)]
mod tests;
