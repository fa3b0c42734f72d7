//! A store in plain maps: what the rules mean, with no thought for memory or speed. The simulated
//! world and the cluster's tests run on it; the real one is the shard.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::super::record::{Content, Live, Record, RecordBuf};
use super::super::version::Version;
use super::{Merged, Scanned, Store};
use crate::protocol::relay;
use crate::request::{
    Arithmetic, Body, Delete, Get, Hit, Marks, Number, Operation, Request, Response, StoreMode,
    Value,
};
use crate::time::Instant;

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
        self.records.get(&xxh3_64(key))?.iter().find(|stored| *stored.key == *key)
    }

    fn put(&mut self, key: &[u8], record: &Record<'_>, now: Instant) {
        let same_hash = self.records.entry(xxh3_64(key)).or_default();
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
        let hash = xxh3_64(key);
        if let Some(same_hash) = self.records.get_mut(&hash) {
            same_hash.retain(|stored| *stored.key != *key);
            if same_hash.is_empty() {
                self.records.remove(&hash);
            }
        }
    }
}

impl Store for MapStore {
    fn read(&mut self, key: &[u8], _now: Instant) -> Option<Record<'_>> {
        let flushed = self.flushed;
        let record = self.find(key)?.record.get();
        (record.version > flushed).then_some(record)
    }

    fn merge(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Merged {
        if record.version <= self.flushed {
            return Merged::Older(self.flushed);
        }
        if let Some(there) = self.read(key, now) {
            match record.order(&there) {
                std::cmp::Ordering::Less => return Merged::Older(there.version),
                std::cmp::Ordering::Equal => return Merged::Same,
                std::cmp::Ordering::Greater => {}
            }
        }
        self.put(key, record, now);
        Merged::Taken
    }

    fn take_back(
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
        let (changed, key) = (RecordBuf::default(), request.key);
        let there = self.read(key, now);
        let live = there.as_ref().and_then(|record| record.visible(now).copied());
        let cas = there.map_or(0, |record| record.version.0);
        let mut act = Act { key, cas, live, version, response, changed };
        match &request.operation {
            Operation::Get(get) => act.get(get),
            Operation::Store(store) => act.store(store),
            Operation::Delete(delete) => act.delete(delete),
            Operation::Arithmetic(arithmetic) => act.arithmetic(arithmetic),
        }
        let changed = act.changed;
        if changed.version() != Version::NONE {
            self.put(key, &changed.get(), now);
        }
    }

    fn scan(
        &mut self,
        cursor: u64,
        count: usize,
        _now: Instant,
        show: &mut dyn FnMut(Scanned<'_>),
    ) -> Option<u64> {
        let mut shown = 0;
        for (hash, same_hash) in self.records.range(cursor..) {
            if shown >= count {
                return Some(*hash);
            }
            for stored in same_hash.iter().filter(|s| s.record.version() > self.flushed) {
                let Stored { key, record, received } = stored;
                show(Scanned { key, record: record.get(), received: *received });
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

/// One request on one record.
struct Act<'a> {
    key: &'a [u8],
    cas: u64,
    live: Option<Live<'a>>,
    version: Version,
    response: &'a mut Vec<u8>,
    /// The new record; of no version while nothing changed.
    changed: RecordBuf,
}

impl Act<'_> {
    fn answer(&mut self, response: &Response<'_>) {
        let start = self.response.len();
        self.response.resize(start + relay::encoded_response_bytes(response), 0);
        relay::encode_response(response, &mut self.response[start..]);
    }

    fn change(&mut self, live: Live<'_>) {
        self.changed.set(&Record { version: self.version, content: Content::Live(live) });
    }

    /// Whether the token asked for is another than the record's.
    fn differs(&self, compare: Option<u64>) -> bool {
        compare.is_some_and(|token| token != self.cas)
    }

    fn get(&mut self, get: &Get) {
        let Some(live) = self.live else { return self.answer(&Response::Miss) };
        let deadline = get.touch.unwrap_or(live.deadline);
        let mut cas = self.cas;
        if deadline != live.deadline {
            self.change(Live { deadline, ..live });
            cas = self.version.0;
        }
        let hit = Hit {
            item: None,
            key: self.key,
            value: live.value,
            flags: live.flags,
            cas,
            deadline,
            deadline_before: live.deadline,
            idle_seconds: 0,
            marks: Marks::default(),
            class: 0,
            item_bytes: (self.key.len() + live.value.len()) as u32,
        };
        self.answer(&Response::Hit(hit));
    }

    fn store(&mut self, store: &crate::request::Store<'_>) {
        let Body::Bytes(body) = store.value else { return self.answer(&Response::TooLarge) };
        let joins = matches!(store.mode, StoreMode::Append | StoreMode::Prepend);
        let refusal = match (store.mode, self.live) {
            (StoreMode::Add, Some(_)) => Some(Response::NotStored),
            (StoreMode::Add, None) => None,
            (_, Some(_)) if self.differs(store.compare) => Some(Response::Exists),
            (StoreMode::Set, None) if store.compare.is_some() => Some(Response::NotFound),
            (StoreMode::Set, _) | (_, Some(_)) => None,
            (StoreMode::Replace, None) if store.compare.is_some() => Some(Response::NotFound),
            (_, None) if joins && store.vivify.is_some() => None,
            (_, None) => Some(Response::NotStored),
        };
        if let Some(refusal) = refusal {
            return self.answer(&refusal);
        }
        let old = self.live.filter(|_| joins);
        let old_value = old.map_or(Vec::new(), |live| live.value.to_vec());
        let value = match store.mode {
            StoreMode::Append => [&old_value[..], body].concat(),
            StoreMode::Prepend => [body, &old_value[..]].concat(),
            _ => body.to_vec(),
        };
        let deadline = old.map_or(store.vivify.filter(|_| joins), |live| Some(live.deadline));
        self.change(Live {
            deadline: deadline.unwrap_or(store.deadline),
            flags: old.map_or(store.flags, |live| live.flags),
            marks: 0,
            value: Value::Whole(&value),
        });
        let value_bytes = value.len() as u32;
        self.answer(&Response::Stored { cas: self.version.0, value_bytes });
    }

    fn delete(&mut self, delete: &Delete) {
        if self.live.is_none() {
            return self.answer(&Response::NotFound);
        }
        if self.differs(delete.compare) {
            return self.answer(&Response::Exists);
        }
        self.changed.set(&Record::deleted(self.version));
        self.answer(&Response::Deleted);
    }

    fn arithmetic(&mut self, arithmetic: &Arithmetic) {
        let (number, deadline_before, created) = match self.live {
            None => match arithmetic.create {
                None => return self.answer(&Response::NotFound),
                Some((initial, deadline)) => (initial, deadline, true),
            },
            Some(_) if self.differs(arithmetic.compare) => {
                return self.answer(&Response::Exists);
            }
            Some(live) => {
                let digits = live.value.to_vec();
                let text = core::str::from_utf8(&digits).ok();
                let Some(old) = text.and_then(|text| text.trim_end().parse::<u64>().ok()) else {
                    return self.answer(&Response::NonNumeric);
                };
                let number = if arithmetic.decrement {
                    old.saturating_sub(arithmetic.delta)
                } else {
                    old.wrapping_add(arithmetic.delta)
                };
                (number, live.deadline, false)
            }
        };
        let deadline = arithmetic.touch.filter(|_| !created).unwrap_or(deadline_before);
        let digits = number.to_string();
        self.change(Live {
            deadline,
            flags: self.live.map_or(0, |live| live.flags),
            marks: 0,
            value: Value::Whole(digits.as_bytes()),
        });
        let number = Number {
            value: number,
            key: self.key,
            cas: self.version.0,
            deadline,
            deadline_before,
            created,
            binary_key: false,
        };
        self.answer(&Response::Number(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Deadline;

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
        assert_eq!(store.merge(b"k", &live(5, b"five"), NOW), Merged::Taken);
        assert_eq!(store.merge(b"k", &live(5, b"five"), NOW), Merged::Same);
        assert_eq!(store.merge(b"k", &live(4, b"four"), NOW), Merged::Older(Version(5)));
        assert_eq!(store.merge(b"k", &Record::deleted(Version(6)), NOW), Merged::Taken);
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
        let add =
            crate::request::Store { mode: StoreMode::Add, ..crate::request::Store::set(b"added") };
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
        store.take_back(b"k", Version(8), Some(&live(5, b"base")), NOW);
        assert_eq!(value(&mut store).unwrap(), b"attempt");
        store.take_back(b"k", Version(9), Some(&live(5, b"base")), NOW);
        assert_eq!(value(&mut store).unwrap(), b"base");
    }

    #[test]
    fn a_flush_keeps_older_records_away_for_good() {
        let mut store = MapStore::default();
        store.merge(b"k", &live(5, b"old"), NOW);
        store.flush(Version(7));
        assert_eq!(value(&mut store), None);
        assert_eq!(store.merge(b"k", &live(7, b"late"), NOW), Merged::Older(Version(7)));
        assert_eq!(store.merge(b"k", &live(8, b"new"), NOW), Merged::Taken);
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
