//! A replica's record of a key: the newest write it knows of, a value or a deletion.
//!
//! Replicas agree by one rule: of two records of a key the newer wins. The rule is a total order,
//! so it does not matter in which order, how often or by which route records arrive; replicas that
//! have merged the same set of records hold the same one. Records of equal version but different
//! content exist only by accident (see [`Version`]); then the content decides, the same way
//! everywhere.
//!
//! A deletion is a record too, the *tombstone*: if the key were simply removed, the next replica
//! that missed the deletion would restore the old value. The same holds for an expired value, which
//! hides older ones. Both may be dropped once nothing older can arrive any more, see
//! [`RetentionTimes`].

use std::cmp::Ordering;
use std::time::Duration;

use super::version::Version;
use ringlane_types::request::Value;
use ringlane_types::time::{Deadline, Instant};

/// The newest write to a key, as one replica knows it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'r> {
    /// Its position in the order of writes to the key. Clients see it as the CAS token.
    pub version: Version,
    /// What was written.
    pub content: Content<'r>,
}

/// The content of a record.
#[derive(Clone, Copy, Debug)]
pub enum Content<'r> {
    /// A value.
    Live(Live<'r>),
    /// Nothing: a tombstone.
    Deleted,
}

/// A value with its metadata, which replicas pass on unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Live<'r> {
    /// When it expires, by each node's own clock.
    pub deadline: Deadline,
    /// Opaque client flags.
    pub flags: u32,
    /// Stored marks of the item: the bits of [`Marks`](ringlane_types::request::Marks).
    pub marks: u8,
    /// The value.
    pub value: Value<'r>,
}

impl<'r> Record<'r> {
    /// A value in one piece, without flags or marks.
    pub fn live(version: Version, value: &'r [u8], deadline: Deadline) -> Self {
        let live = Live { deadline, flags: 0, marks: 0, value: Value::Whole(value) };
        Self { version, content: Content::Live(live) }
    }

    /// A tombstone.
    pub fn deleted(version: Version) -> Self {
        Self { version, content: Content::Deleted }
    }

    /// The value, unless it was deleted or has expired.
    pub fn visible(&self, now: Instant) -> Option<&Live<'r>> {
        match &self.content {
            Content::Live(live) if !live.deadline.is_past(now) => Some(live),
            _ => None,
        }
    }

    /// Length of its value in bytes; 0 for a tombstone.
    pub fn value_bytes(&self) -> usize {
        match &self.content {
            Content::Live(live) => live.value.len(),
            Content::Deleted => 0,
        }
    }

    /// The record as stored at `now`: a value whose deadline has passed is a tombstone, which the
    /// store turns it into when it reclaims its memory.
    pub fn at(&self, now: Instant) -> Record<'r> {
        match self.visible(now) {
            Some(_) => *self,
            None => Record::deleted(self.version),
        }
    }

    /// The order of records of one key: the greater one wins. Total, and equal only for equal
    /// records.
    pub fn order(&self, other: &Record<'_>) -> Ordering {
        self.version.cmp(&other.version).then_with(|| match (&self.content, &other.content) {
            (Content::Deleted, Content::Deleted) => Ordering::Equal,
            (Content::Deleted, Content::Live(_)) => Ordering::Greater,
            (Content::Live(_), Content::Deleted) => Ordering::Less,
            (Content::Live(one), Content::Live(other)) => one.order(other),
        })
    }
}

impl Live<'_> {
    fn order(&self, other: &Live<'_>) -> Ordering {
        let beside = |live: &Live<'_>| (live.deadline, live.flags, live.marks);
        let bytes = |value: &Value<'_>| value.to_vec();
        beside(self)
            .cmp(&beside(other))
            .then_with(|| self.value.len().cmp(&other.value.len()))
            .then_with(|| bytes(&self.value).cmp(&bytes(&other.value)))
    }
}

/// A record that owns its value. Reusable: setting it keeps its allocated memory.
#[derive(Clone, Debug, Default)]
pub struct RecordBuf {
    version: Version,
    live: Option<Beside>,
    value: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Beside {
    deadline: Deadline,
    flags: u32,
    marks: u8,
}

impl RecordBuf {
    /// A copy of `record`.
    pub fn copied(record: &Record<'_>) -> Self {
        let mut copy = Self::default();
        copy.set(record);
        copy
    }

    /// Becomes a copy of `record`.
    pub fn set(&mut self, record: &Record<'_>) {
        self.clear();
        self.version = record.version;
        if let Content::Live(live) = record.content {
            let Live { deadline, flags, marks, value } = live;
            self.live = Some(Beside { deadline, flags, marks });
            value.parts().for_each(|part| self.value.extend_from_slice(part));
        }
    }

    /// Becomes the record of a key never written: a tombstone of [`Version::NONE`].
    pub fn clear(&mut self) {
        self.version = Version::NONE;
        self.live = None;
        self.value.clear();
    }

    /// Releases memory above `bytes`, so that one large value does not reserve it forever.
    pub fn shrink_to(&mut self, bytes: usize) {
        if self.value.capacity() > bytes {
            self.value.clear();
            self.value.shrink_to(bytes);
        }
    }

    /// The record, borrowed.
    pub fn get(&self) -> Record<'_> {
        let content = match self.live {
            None => Content::Deleted,
            Some(Beside { deadline, flags, marks }) => {
                Content::Live(Live { deadline, flags, marks, value: Value::Whole(&self.value) })
            }
        };
        Record { version: self.version, content }
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its value's length in bytes; 0 for a tombstone.
    pub fn value_bytes(&self) -> usize {
        self.value.len()
    }

    /// Takes `record` if it is the greater one; true if it did.
    pub fn merge(&mut self, record: &Record<'_>) -> bool {
        let newer = record.order(&self.get()) == Ordering::Greater;
        if newer {
            self.set(record);
        }
        newer
    }
}

/// How long traces of a write may arrive, and so how long its deletion must be retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionTimes {
    /// A replicated write is abandoned after this long, and its messages with it.
    pub operation: Duration,
    /// A hint older than this is dropped.
    pub hint: Duration,
    /// Maximum difference between clocks; versions further ahead are refused.
    pub drift: Duration,
    /// A tombstone, or an expired value, is retained at least this long.
    pub tombstone: Duration,
}

impl Default for RetentionTimes {
    fn default() -> Self {
        Self {
            operation: Duration::from_secs(5),
            hint: Duration::from_secs(10 * 60),
            drift: Duration::from_secs(30),
            tombstone: Duration::from_secs(15 * 60),
        }
    }
}

impl RetentionTimes {
    /// Whether a tombstone outlives every hint it must beat: one written just before the deletion
    /// by a clock ahead, and replayed at the last moment by a clock behind.
    pub fn tombstones_outlive_hints(&self) -> bool {
        self.tombstone >= self.hint + self.operation + 2 * self.drift
    }

    /// The earliest time at which a record that hides older ones may be dropped, for a replica that
    /// got it at `received`. Being the later of two times, it also holds for a record that arrived
    /// long after it was written. Time alone does not suffice: see the anti-entropy module.
    pub fn forget_at(&self, version: Version, received: Instant) -> Instant {
        version.instant().max(received).after(self.tombstone)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn same(one: &RecordBuf, other: &RecordBuf) -> bool {
        one.get().order(&other.get()) == Ordering::Equal
    }

    #[test]
    fn the_newer_write_stays_whichever_comes_first() {
        let old = Record::live(Version(10), b"old", Deadline::NEVER);
        let new = Record::live(Version(11), b"new", Deadline::NEVER);
        for (first, second) in [(old, new), (new, old)] {
            let mut record = RecordBuf::copied(&first);
            record.merge(&second);
            assert_eq!(record.version(), Version(11));
            assert_eq!(record.value, b"new");
        }
    }

    #[test]
    fn a_tombstone_hides_what_is_older_and_yields_to_what_is_newer() {
        let mut record = RecordBuf::copied(&Record::deleted(Version(10)));
        assert!(!record.merge(&Record::live(Version(9), b"late", Deadline::NEVER)));
        assert!(record.get().visible(NOW).is_none());
        assert!(record.merge(&Record::live(Version(11), b"again", Deadline::NEVER)));
        assert!(record.get().visible(NOW).is_some());
    }

    #[test]
    fn an_expired_value_is_invisible_and_still_hides_what_is_older() {
        let mut record = RecordBuf::copied(&Record::live(Version(10), b"x", Deadline::at(NOW)));
        assert!(record.get().visible(NOW).is_none());
        assert!(!record.merge(&Record::live(Version(9), b"older", Deadline::NEVER)));
    }

    #[test]
    fn the_default_tombstone_outlives_hints_and_a_shorter_one_is_found_out() {
        let retention = RetentionTimes::default();
        assert!(retention.tombstones_outlive_hints());
        assert!(
            !RetentionTimes { tombstone: retention.hint, ..retention }.tombstones_outlive_hints()
        );
    }

    #[test]
    fn a_tombstone_that_arrived_late_is_remembered_from_its_arrival() {
        let retention = RetentionTimes::default();
        let version = Version(NOW.as_millis() << 20);
        let late = NOW.after(retention.tombstone * 2);
        assert_eq!(retention.forget_at(version, NOW), NOW.after(retention.tombstone));
        assert_eq!(retention.forget_at(version, late), late.after(retention.tombstone));
    }

    fn records() -> impl Strategy<Value = RecordBuf> {
        // Few versions and values, so that equal versions with different content are common.
        (1u64..4, 0u64..3, 0u32..2, proptest::option::of(proptest::collection::vec(0u8..2, 0..3)))
            .prop_map(|(version, deadline, flags, value)| {
                let mut record = RecordBuf { version: Version(version), ..Default::default() };
                if let Some(value) = value {
                    let deadline = Deadline::from_millis(deadline);
                    record.live = Some(Beside { deadline, flags, marks: 0 });
                    record.value = value;
                }
                record
            })
    }

    proptest! {
        #[test]
        fn merge_is_idempotent_commutative_and_associative(
            a in records(), b in records(), c in records(),
        ) {
            let merged = |one: &RecordBuf, other: &RecordBuf| {
                let mut one = one.clone();
                one.merge(&other.get());
                one
            };
            prop_assert!(same(&merged(&a, &a), &a));
            prop_assert!(same(&merged(&a, &b), &merged(&b, &a)));
            prop_assert!(same(&merged(&merged(&a, &b), &c), &merged(&a, &merged(&b, &c))));
        }

        #[test]
        fn replicas_that_saw_the_same_records_agree(
            records in proptest::collection::vec(records(), 1..12),
            shuffled in any::<proptest::sample::Index>(),
        ) {
            let mut one = RecordBuf::default();
            let mut other = RecordBuf::default();
            records.iter().for_each(|record| { one.merge(&record.get()); });
            let start = shuffled.index(records.len());
            for record in records[start..].iter().chain(&records).rev() {
                other.merge(&record.get());
            }
            prop_assert!(same(&one, &other));
            let newest = records.iter().map(|record| record.version()).max().unwrap();
            prop_assert_eq!(one.version(), newest);
        }
    }
}
