//! The workload: keys, values, commands and their shares.

pub mod keys;
pub mod mix;
pub mod popularity;
pub mod sizes;
pub mod values;
pub mod versions;

use std::sync::Arc;

use keys::Keys;
use mix::{Mix, WorkloadCommand};
use popularity::Popularity;
use sizes::Sizes;
use values::{Stamp, Values};
use versions::Versions;

/// A workload, shared by all threads of a run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The keys.
    pub keys: Keys,
    /// Their values.
    pub values: Values,
    /// Which command comes next.
    pub mix: Mix,
    /// Which key comes next.
    pub popularity: Popularity,
    /// Keys per multiget.
    pub multiget_keys: usize,
    /// The exptime of sets in seconds, drawn for each; 0 means never.
    pub ttl_seconds: Sizes,
    /// How strictly answers are checked.
    pub verify: Verify,
    /// Distinguishes this run's values from those of others.
    pub writer: u32,
    /// What reads may return; `None` without [`Verify::Full`], or if nothing is written.
    pub versions: Option<Arc<Versions>>,
    /// A get that misses is followed by a set of the same key.
    pub cache_aside: bool,
    /// Seed of everything random.
    pub seed: u64,
}

impl Workload {
    /// The stamp of this run's `version`-th write of a key.
    #[inline]
    pub fn stamp(&self, version: u64) -> Stamp {
        Stamp { writer: self.writer, version: version as u32 }
    }

    /// Whether `incr` occurs, so that there are counters.
    pub fn counts(&self) -> bool {
        self.mix.weight(WorkloadCommand::Incr) > 0
    }

    /// A request for `key` is about to be sent: what its answer will be checked against.
    #[inline]
    pub fn wanted(&self, command: WorkloadCommand, key: u64) -> Wanted {
        let Some(versions) = &self.versions else { return Wanted { key, version: 0 } };
        let version = match command {
            WorkloadCommand::Get | WorkloadCommand::Multiget => u64::from(versions.floor(key)),
            WorkloadCommand::Set | WorkloadCommand::Delete => u64::from(versions.begin_write(key)),
            WorkloadCommand::Incr => versions.counter_floor(key),
            WorkloadCommand::Create => 0,
        };
        Wanted { key, version }
    }

    /// A set or delete was answered.
    #[inline]
    pub fn written(&self, key: u64) {
        if let Some(versions) = &self.versions {
            versions.end_write(key);
        }
    }

    /// An increment was answered: with a value above `wanted`, or not.
    pub fn counted(&self, wanted: &Wanted, value: u64) -> bool {
        match &self.versions {
            Some(versions) => {
                versions.counted(wanted.key, value);
                value > wanted.version
            }
            None => true,
        }
    }

    /// An increment has missed.
    pub fn counter_lost(&self, counter: u64) {
        if let Some(versions) = &self.versions {
            versions.counter_lost(counter);
        }
    }

    /// What is wrong with a value of this stamp in answer to `wanted`, if anything.
    #[inline]
    pub fn stale(&self, wanted: &Wanted, stamp: Stamp) -> Option<String> {
        let versions = self.versions.as_ref()?;
        let own = stamp.writer == self.writer;
        let (version, floor) = (u64::from(stamp.version), wanted.version);
        let words = if own && version < floor {
            format!(
                "stale: version {version}, overwritten by version {floor} before it was requested"
            )
        } else if !own && floor > 0 {
            format!("stale: from before this run, which has since written version {floor}")
        } else if own && stamp.version > versions.last(wanted.key) {
            format!("version {version} was never written")
        } else {
            return None;
        };
        Some(words)
    }
}

/// A key of a request. `version` is what a write writes, the oldest that a read may see, or what
/// an increment must exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The key's number.
    pub key: u64,
    /// The version, by command.
    pub version: u64,
}

/// How strictly answers are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Verify {
    /// Values must be the key's, and not older than the last write that was acknowledged before the
    /// request. No one else may write the keys.
    Full,
    /// Values must be the key's.
    Content,
    /// Only the syntax of answers is checked.
    Off,
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A small workload for tests.
    pub fn workload(keys: u64) -> Workload {
        Workload {
            keys: Keys::new(keys, "key:", 16).expect("short"),
            values: Values::new(Sizes::Fixed(32)),
            mix: "get=9,set=1".parse().expect("valid"),
            popularity: Popularity::Uniform,
            multiget_keys: 3,
            ttl_seconds: Sizes::Fixed(0),
            verify: Verify::Content,
            writer: 7,
            versions: None,
            cache_aside: false,
            seed: 1,
        }
    }
}
