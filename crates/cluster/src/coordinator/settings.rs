//! A coordinator's settings and counters.

use std::rc::Rc;
use std::time::Duration;

use super::super::breaker::BreakerSettings;
use super::super::flow::LONG_BYTES;
use super::super::hints::HintSettings;
use super::super::hot_keys::HotKeySettings;
use super::super::quorum::Replication;
use super::super::record::RetentionTimes;
use ringlane_ring::RingHash;
use ringlane_types::hash::HashSecret;

/// Settings of one core's coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorSettings {
    /// Copies and quorums.
    pub replication: Replication,
    /// How long traces of a write may turn up.
    pub retention: RetentionTimes,
    /// Maximum operations in progress; a request beyond that is answered as if no replica could be
    /// reached.
    pub operations_max: usize,
    /// Bytes of requests in progress beyond which a long one is refused: at most this and one value
    /// are held.
    pub operation_bytes_max: usize,
    /// Values longer than this leave in pieces, and wait for room where they are read.
    pub long_bytes: usize,
    /// Bounds of the hints.
    pub hints: HintSettings,
    /// When a key of other nodes is hot. Nothing is copied if quorums promise more.
    pub hot_keys: HotKeySettings,
    /// When a peer is no longer asked.
    pub breaker: BreakerSettings,
    /// A node that has been dead for this long will not return with its data.
    pub forget_after: Duration,
    /// Bytes per second of range transfers to each core; at least 1.
    pub fill_bytes_per_second: u64,
    /// How long a core pauses between two comparisons with others.
    pub compare_every: Duration,
    /// This core's number.
    pub core: u16,
    /// Keys of this node's key hashes, equal on all its cores.
    pub hash_secret: Rc<HashSecret>,
    /// How keys are placed on the ring.
    pub ring_hash: RingHash,
}

impl CoordinatorSettings {
    /// The defaults for a cluster that replicates like this, in a process with this secret.
    pub fn new(replication: Replication, hash_secret: Rc<HashSecret>) -> Self {
        Self {
            replication,
            retention: RetentionTimes::default(),
            operations_max: 1 << 16,
            operation_bytes_max: 64 << 20,
            long_bytes: LONG_BYTES,
            hints: HintSettings::default(),
            hot_keys: HotKeySettings::default(),
            breaker: BreakerSettings::default(),
            forget_after: Duration::from_secs(600),
            fill_bytes_per_second: 64 << 20,
            compare_every: Duration::from_secs(10),
            core: 0,
            hash_secret,
            ring_hash: RingHash::default(),
        }
    }
}

/// Outcomes of operations since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoordinatorCounters {
    /// Requests forwarded to another node.
    pub forwarded: u64,
    /// Requests of other nodes coordinated here.
    pub served: u64,
    /// Requests coordinated for this node's own clients.
    pub coordinated: u64,
    /// Replicas that were sent a newer record than they answered with.
    pub read_repairs: u64,
    /// Writes retried under a newer version.
    pub write_retries: u64,
    /// Requests that found too few replicas.
    pub quorum_failures: u64,
    /// Requests whose outcome is not known.
    pub uncertain: u64,
    /// Times that an operation had to wait for room on a link.
    pub congested: u64,
    /// Requests refused since those in progress held too much, or since no room was found until
    /// their deadline.
    pub busy: u64,
    /// Malformed messages.
    pub malformed: u64,
    /// Records received because this node gained a range.
    pub filled_records: u64,
    /// Bytes of those.
    pub filled_bytes: u64,
    /// Records sent because another node gained a range.
    pub handed_records: u64,
    /// Bytes of those.
    pub handed_bytes: u64,
    /// Records sent because a comparison found them newer here.
    pub compared_records: u64,
}
