//! What a run is like, and what it has exercised.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringlane::cluster::quorum::Replication;

/// A rule broken on purpose, to see that it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A replica says that it holds what it does not.
    AcknowledgeWithoutApplying,
    /// Deletions are not remembered.
    DropTombstones,
    /// Repairs and hints do not arrive.
    SkipRepair,
}

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Options {
    pub replication: Replication,
    pub nodes: usize,
    pub cores: u16,
    pub skew_max: i64,
    pub faults: bool,
    /// Whether the nodes keep their records in real shards.
    pub shards: bool,
    /// Of a thousand frames, so many leave their link without room for a while.
    pub congested_per_mille: u32,
    /// Values longer than this count as long.
    pub long_bytes: usize,
    /// Whether every other read is allowed no value at first.
    pub limited_reads: bool,
    pub sabotage: Option<Sabotage>,
    pub trace: bool,
}

impl Options {
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x0b5e55ed);
        let quorums = [(3, 2, 2), (3, 2, 2), (3, 2, 2), (3, 3, 1), (3, 1, 3), (2, 2, 1), (5, 3, 3)];
        let (n, w, r) = quorums[random.random_range(0..quorums.len())];
        Self {
            replication: Replication::new(n, w, r).expect("valid"),
            nodes: n as usize + random.random_range(0..3),
            cores: random.random_range(1..3),
            skew_max: random.random_range(0..3) * 1500,
            faults: random.random_range(0..20) != 0,
            shards: random.random_range(0..3) == 0,
            congested_per_mille: [0, 5, 50][random.random_range(0..3)],
            long_bytes: [0, 1 << 14][random.random_range(0..2)],
            limited_reads: random.random_range(0..2) == 0,
            sabotage: None,
            trace: false,
        }
    }
}

/// What a run has exercised.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub acknowledged: u64,
    pub unclear: u64,
    pub crashes: u64,
    pub partitions: u64,
    pub pauses: u64,
    pub resets: u64,
    pub refused: u64,
    pub joins: u64,
    pub leaves: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub hints: u64,
    pub repairs: u64,
    pub retries: u64,
    pub filled: u64,
    pub forwarded: u64,
    pub congested: u64,
    pub put_off: u64,
    pub events: u64,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.acknowledged += other.acknowledged;
        self.unclear += other.unclear;
        self.crashes += other.crashes;
        self.partitions += other.partitions;
        self.pauses += other.pauses;
        self.resets += other.resets;
        self.refused += other.refused;
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.hints += other.hints;
        self.repairs += other.repairs;
        self.retries += other.retries;
        self.filled += other.filled;
        self.forwarded += other.forwarded;
        self.congested += other.congested;
        self.put_off += other.put_off;
        self.events += other.events;
    }
}
