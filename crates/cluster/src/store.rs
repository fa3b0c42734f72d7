//! What the cluster requires of a core's store.
//!
//! The store keeps the newest [`Record`] of each key, including deletions and expired values until
//! it is told to forget them. Everything that decides which record is newest is behind this trait,
//! in one place, so that no way into the store (a client's write, a repair, a hint, a range
//! transfer) can bypass it.

use super::record::Record;
use super::version::Version;
use ringlane_types::request::Request;
use ringlane_types::time::Instant;

mod map;

pub use map::MapStore;

/// The outcome of offering a record to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is the newest and was stored.
    Stored,
    /// The store already held it.
    Same,
    /// The store holds a newer one, with this version.
    Older(Version),
    /// It is the newest but larger than the store accepts. The previous record was removed.
    TooLarge,
    /// It is the newest but there is no memory. The previous record was removed.
    NoMemory,
}

/// A record found by a scan.
#[derive(Clone, Copy, Debug)]
pub struct Scanned<'s> {
    /// The key.
    pub key: &'s [u8],
    /// Its record.
    pub record: Record<'s>,
    /// When it was last used here, to within a second, or an earlier time if the store records uses
    /// only occasionally. For a deletion, when this store received it.
    pub used: Instant,
}

/// One core's store, as the cluster uses it.
///
/// A value whose deadline has passed is a tombstone of the same version from then on, whatever the
/// store does with its memory: see [`Record::at`].
pub trait ReplicaStore {
    /// The record of `key`, deletions included. Does not count as a use.
    fn read(&mut self, key: &[u8], now: Instant) -> Option<Record<'_>>;

    /// Stores `record` if it is newer than the current one.
    fn merge(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Merged;

    /// Replaces the record with version `attempt` by `record`, although that may be older; with any
    /// other current version, nothing happens. `None` removes. This undoes a write that its own
    /// coordinator gives up, and has no other use.
    fn roll_back(
        &mut self,
        key: &[u8],
        attempt: Version,
        record: Option<&Record<'_>>,
        now: Instant,
    );

    /// Performs a client's request, whose hash is this node's, on the key's record and appends the
    /// response as encoded by the codec. If the request changes the record, it gets `version`,
    /// which is newer than the current one and than every flush, whatever token the client asks
    /// for; a deletion leaves a tombstone, even one caused by a refused store or a deadline in the
    /// past.
    fn execute(
        &mut self,
        request: &Request<'_>,
        version: Version,
        now: Instant,
        response: &mut Vec<u8>,
    );

    /// Visits about `count` records from `cursor` on (0 begins) and returns where to continue,
    /// which is below 2^63; `None` at the end. Every record that exists during the whole scan is
    /// visited at least once, and exactly once unless the store has grown manifold meanwhile.
    fn scan(
        &mut self,
        cursor: u64,
        count: usize,
        now: Instant,
        show: &mut dyn FnMut(Scanned<'_>),
    ) -> Option<u64>;

    /// Removes the record of `key` if it has this version: a tombstone that may be forgotten, or a
    /// key that belongs to other nodes now.
    fn forget(&mut self, key: &[u8], version: Version);

    /// Removes everything up to `version`, for good: it is refused if offered again.
    fn flush(&mut self, version: Version);

    /// Whether a new record can be stored without evicting another.
    fn has_room(&self) -> bool {
        true
    }

    /// Removes everything, as after a restart.
    fn clear(&mut self);
}
