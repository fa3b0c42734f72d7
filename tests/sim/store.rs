//! The stores of the simulated nodes: naive ones or real shards, either of which may break a rule on
//! purpose.

use ringlane::cluster::record::{Content, Live, Record, RetentionTimes};
use ringlane::cluster::store::{MapStore, Merged, ReplicaStore, Scanned};
use ringlane::cluster::version::Version;
use ringlane::engine::store::{ShardStore, enable_tombstones};
use ringlane::hash::HashSecret;
use ringlane::request::Request;
use ringlane::shard::ShardConfig;
use ringlane::shard::{LiveRecord, Shard, StoredRecord};
use ringlane::time::Instant;
use std::rc::Rc;

use crate::options::Sabotage;

pub struct SimStore {
    kind: Kind,
    sabotage: Option<Sabotage>,
}

enum Kind {
    Map(MapStore),
    Shard(Box<Shard>),
}

impl SimStore {
    /// A real shard for this hash secret, core and count of cores; a naive store without.
    pub fn new(shard: Option<(Rc<HashSecret>, u16, u16)>, sabotage: Option<Sabotage>) -> Self {
        let kind = match shard {
            None => Kind::Map(MapStore::default()),
            Some((secret, core, cores)) => {
                let config = ShardConfig::tiny();
                let mut shard = Shard::new(&config, secret, core.into(), cores.into());
                enable_tombstones(&mut shard, &RetentionTimes::default());
                Kind::Shard(Box::new(shard))
            }
        };
        Self { kind, sabotage }
    }

    fn with<R>(&mut self, call: impl FnOnce(&mut dyn ReplicaStore) -> R) -> R {
        match &mut self.kind {
            Kind::Map(map) => call(map),
            Kind::Shard(shard) => call(&mut ShardStore::new(shard)),
        }
    }

    /// All keys with a record.
    pub fn keys(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = self.scan(from, 1000, now, &mut |scanned| keys.push(scanned.key.to_vec()));
        }
        keys
    }

    fn drop_tombstone(&mut self, key: &[u8], now: Instant) {
        if self.sabotage == Some(Sabotage::DropTombstones)
            && let Some(record) = self.read(key, now)
            && record.visible(now).is_none()
        {
            let version = record.version;
            self.forget(key, version);
        }
    }
}

impl ReplicaStore for SimStore {
    fn read(&mut self, key: &[u8], now: Instant) -> Option<Record<'_>> {
        match &mut self.kind {
            Kind::Map(map) => map.read(key, now),
            Kind::Shard(shard) => shard.record(key, shard.hash_key(key), now).map(record_of),
        }
    }

    fn merge(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Merged {
        if self.sabotage == Some(Sabotage::AcknowledgeWithoutApplying)
            && record.version.0.is_multiple_of(3)
        {
            return Merged::Stored;
        }
        let merged = self.with(|store| store.merge(key, record, now));
        self.drop_tombstone(key, now);
        merged
    }

    fn roll_back(
        &mut self,
        key: &[u8],
        attempt: Version,
        record: Option<&Record<'_>>,
        now: Instant,
    ) {
        self.with(|store| store.roll_back(key, attempt, record, now));
    }

    fn execute(
        &mut self,
        request: &Request<'_>,
        version: Version,
        now: Instant,
        response: &mut Vec<u8>,
    ) {
        self.with(|store| store.execute(request, version, now, response));
    }

    fn scan(
        &mut self,
        cursor: u64,
        count: usize,
        now: Instant,
        show: &mut dyn FnMut(Scanned<'_>),
    ) -> Option<u64> {
        self.with(|store| store.scan(cursor, count, now, show))
    }

    fn forget(&mut self, key: &[u8], version: Version) {
        self.with(|store| store.forget(key, version));
    }

    fn flush(&mut self, version: Version) {
        self.with(|store| store.flush(version));
    }

    fn clear(&mut self) {
        self.with(|store| store.clear());
    }
}

fn record_of(kept: StoredRecord<'_>) -> Record<'_> {
    let content = match kept.item {
        None => Content::Deleted,
        Some(LiveRecord { deadline, flags, marks, value }) => {
            Content::Live(Live { deadline, flags, marks, value })
        }
    };
    Record { version: Version(kept.version), content }
}
