//! What the cluster needs of a core's store.
//!
//! The store keeps for each key its newest [`Record`], deletions and expired values included until
//! it is told to forget them. Everything that decides which record is newest is behind this trait,
//! in one place, so that no way into the store (a client's write, a repair, a hint, a range being
//! filled) can bypass it.

use super::record::Record;
use super::version::Version;
use ringlane_types::request::Request;
use ringlane_types::time::Instant;

mod map;

pub use map::MapStore;

/// What became of a record that was offered to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is the newest and was stored.
    Stored,
    /// It is what the store already held.
    Same,
    /// The store holds a newer one, with this version.
    Older(Version),
    /// It is the newest but larger than the store keeps. What was there is gone.
    TooLarge,
    /// It is the newest but there is no memory. What was there is gone.
    NoMemory,
}

/// One record as a scan finds it.
#[derive(Clone, Copy, Debug)]
pub struct Scanned<'s> {
    /// The key.
    pub key: &'s [u8],
    /// Its record.
    pub record: Record<'s>,
    /// When it was last used here, to within a second, or less recently if the store notes uses
    /// only now and then. For a deletion, when this store got it.
    pub used: Instant,
}

/// One core's store, as the cluster uses it.
///
/// A value whose deadline has passed is a tombstone of the same version from then on, whatever the
/// store does with its memory: see [`Record::at`].
pub trait ReplicaStore {
    /// The record of `key`, deletions included. Does not count as a use.
    fn read(&mut self, key: &[u8], now: Instant) -> Option<Record<'_>>;

    /// Keeps `record` if it is newer than what is there.
    fn merge(&mut self, key: &[u8], record: &Record<'_>, now: Instant) -> Merged;

    /// Puts `record` in the place of the one with version `attempt`, although it may be older;
    /// with any other version there, nothing happens. `None` removes. This takes back a write
    /// that its own coordinator gives up, and is of no use to anybody else.
    fn roll_back(
        &mut self,
        key: &[u8],
        attempt: Version,
        record: Option<&Record<'_>>,
        now: Instant,
    );

    /// Performs a client's request, whose hash is this node's, on the key's record and appends the
    /// response as the codec writes it. If the request changes the record, it gets `version`, which
    /// is newer than the one there and than every flush, whatever token the client asks for; a
    /// deletion leaves a tombstone, also one that a refused store or a deadline in the past brings.
    fn execute(
        &mut self,
        request: &Request<'_>,
        version: Version,
        now: Instant,
        response: &mut Vec<u8>,
    );

    /// Shows about `count` records from `cursor` on (0 begins) and says where to go on, which is
    /// below 2^63; `None` at the end. Every record that is there during the whole scan is shown at
    /// least once, and once unless the store has grown manifold meanwhile.
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

    /// Everything of a version up to `version` is gone, and stays gone whoever offers it again.
    fn flush(&mut self, version: Version);

    /// Whether a new record can be taken without evicting another.
    fn has_room(&self) -> bool {
        true
    }

    /// Forgets everything, as after a restart.
    fn clear(&mut self);
}
