//! A store in plain maps: what the rules mean, with no thought for memory or speed. The simulated
//! world and the cluster's tests run on it; the real one is the shard.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::super::record::{Record, RecordBuf};
use super::super::version::Version;
use super::{Merged, ReplicaStore, Scanned};
use ringlane_types::request::Request;
use ringlane_types::time::Instant;

mod act;

/// Records by the hash of their key, which is also the order of scans.
#[derive(Clone, Debug, Default)]
pub struct MapStore {
    records: BTreeMap<u64, Vec<Stored>>,
    flushed: Version,
}

#[derive(Clone, Debug)]
struct Stored {
    key: Box<[u8]>,
    record: RecordBuf,
    received: Instant,
}

impl MapStore {
    /// Number of records, tombstones included.
    pub fn len(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All records, in an order that depends on the keys alone.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Record<'_>)> {
        self.records.values().flatten().map(|stored| (&*stored.key, stored.record.get()))
    }

    fn find(&self, key: &[u8]) -> Option<&Stored> {
        self.records.get(&hash(key))?.iter().find(|stored| *stored.key == *key)
    }

    fn put(&mut self, key: &[u8], record: &Record<'_>, now: Instant) {
        let same_hash = self.records.entry(hash(key)).or_default();
        match same_hash.iter_mut().find(|stored| *stored.key == *key) {
            Some(stored) => {
                stored.record.set(record);
                stored.received = now;
            }
            None => same_hash.push(Stored {
                key: key.into(),
                record: RecordBuf::copied(record),
                received: now,
            }),
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let hash = hash(key);
        if let Some(same_hash) = self.records.get_mut(&hash) {
            same_hash.retain(|stored| *stored.key != *key);
            if same_hash.is_empty() {
                self.records.remove(&hash);
            }
        }
    }
}

/// Below 2^63, as cursors are.
fn hash(key: &[u8]) -> u64 {
    xxh3_64(key) >> 1
}

impl ReplicaStore for MapStore {
    fn read(&mut self, key: &[u8], now: Instant) -> Option<Record<'_>> {
        let flushed = self.flushed;
        let record = self.find(key)?.record.get().at(now);
        (record.version > flushed).then_some(record)
    }

    fn merge(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Merged {
        if record.version <= self.flushed {
            return Merged::Older(self.flushed);
        }
        let record = &record.at(now);
        if let Some(there) = self.read(key, now) {
            match record.order(&there) {
                std::cmp::Ordering::Less => return Merged::Older(there.version),
                std::cmp::Ordering::Equal => return Merged::Same,
                std::cmp::Ordering::Greater => {}
            }
        }
        self.put(key, record, now);
        Merged::Stored
    }

    fn roll_back(
        &mut self,
        key: &[u8],
        attempt: Version,
        record: Option<&Record<'_>>,
        now: Instant,
    ) {
        if self.read(key, now).is_some_and(|there| there.version == attempt) {
            match record {
                Some(record) => self.put(key, record, now),
                None => self.remove(key),
            }
        }
    }

    fn execute(
        &mut self,
        request: &Request<'_>,
        version: Version,
        now: Instant,
        response: &mut Vec<u8>,
    ) {
        let there = self.read(request.key, now);
        let changed = act::perform(request, there.as_ref(), version, now, response);
        if let Some(changed) = changed {
            self.put(request.key, &changed.get(), now);
        }
    }

    fn scan(
        &mut self,
        cursor: u64,
        count: usize,
        now: Instant,
        show: &mut dyn FnMut(Scanned<'_>),
    ) -> Option<u64> {
        let mut shown = 0;
        for (hash, same_hash) in self.records.range(cursor..) {
            if shown >= count {
                return Some(*hash);
            }
            for stored in same_hash.iter().filter(|s| s.record.version() > self.flushed) {
                let Stored { key, record, received } = stored;
                show(Scanned { key, record: record.get().at(now), used: *received });
                shown += 1;
            }
        }
        None
    }

    fn forget(&mut self, key: &[u8], version: Version) {
        if self.find(key).is_some_and(|stored| stored.record.version() == version) {
            self.remove(key);
        }
    }

    fn flush(&mut self, version: Version) {
        self.flushed = self.flushed.max(version);
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlane_types::request::{Arithmetic, Delete, Operation, StoreMode};
    use ringlane_types::time::Deadline;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn live(version: u64, value: &[u8]) -> Record<'_> {
        Record::live(Version(version), value, Deadline::NEVER)
    }

    fn run(store: &mut MapStore, operation: Operation<'_>, version: u64) -> Vec<u8> {
        let request = Request { key: b"k", hash: Default::default(), operation };
        let mut response = Vec::new();
        store.execute(&request, Version(version), NOW, &mut response);
        response
    }

    fn value(store: &mut MapStore) -> Option<Vec<u8>> {
        let record = store.read(b"k", NOW)?;
        record.visible(NOW).map(|live| live.value.to_vec())
    }

    #[test]
    fn only_a_newer_record_is_taken() {
        let mut store = MapStore::default();
        assert_eq!(store.merge(b"k", &live(5, b"five"), NOW), Merged::Stored);
        assert_eq!(store.merge(b"k", &live(5, b"five"), NOW), Merged::Same);
        assert_eq!(store.merge(b"k", &live(4, b"four"), NOW), Merged::Older(Version(5)));
        assert_eq!(store.merge(b"k", &Record::deleted(Version(6)), NOW), Merged::Stored);
        assert_eq!(value(&mut store), None);
        assert_eq!(store.len(), 1, "a deletion is remembered");
    }

    #[test]
    fn a_change_takes_the_given_version_and_a_refusal_changes_nothing() {
        let mut store = MapStore::default();
        store.merge(b"k", &live(5, b"7"), NOW);
        run(&mut store, Operation::Arithmetic(Arithmetic::by(3, false)), 6);
        assert_eq!(value(&mut store).unwrap(), b"10");
        assert_eq!(store.read(b"k", NOW).unwrap().version, Version(6));
        let add = ringlane_types::request::Store {
            mode: StoreMode::Add,
            ..ringlane_types::request::Store::set(b"added")
        };
        run(&mut store, Operation::Store(add), 7);
        assert_eq!(store.read(b"k", NOW).unwrap().version, Version(6));
        run(&mut store, Operation::Delete(Delete::default()), 8);
        assert_eq!(store.read(b"k", NOW).unwrap().version, Version(8));
        assert_eq!(value(&mut store), None);
    }

    #[test]
    fn only_the_attempt_itself_can_be_taken_back() {
        let mut store = MapStore::default();
        store.merge(b"k", &live(5, b"base"), NOW);
        store.merge(b"k", &live(9, b"attempt"), NOW);
        store.roll_back(b"k", Version(8), Some(&live(5, b"base")), NOW);
        assert_eq!(value(&mut store).unwrap(), b"attempt");
        store.roll_back(b"k", Version(9), Some(&live(5, b"base")), NOW);
        assert_eq!(value(&mut store).unwrap(), b"base");
    }

    #[test]
    fn a_flush_keeps_older_records_away_for_good() {
        let mut store = MapStore::default();
        store.merge(b"k", &live(5, b"old"), NOW);
        store.flush(Version(7));
        assert_eq!(value(&mut store), None);
        assert_eq!(store.merge(b"k", &live(7, b"late"), NOW), Merged::Older(Version(7)));
        assert_eq!(store.merge(b"k", &live(8, b"new"), NOW), Merged::Stored);
    }

    #[test]
    fn a_scan_in_pieces_shows_every_record_once() {
        let mut store = MapStore::default();
        for n in 1..=100u64 {
            store.merge(&n.to_le_bytes(), &live(n, b"x"), NOW);
        }
        let (mut seen, mut cursor) = (Vec::new(), Some(0));
        while let Some(from) = cursor {
            cursor = store.scan(from, 7, NOW, &mut |found| seen.push(found.record.version.0));
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=100).collect::<Vec<u64>>());
    }
}
