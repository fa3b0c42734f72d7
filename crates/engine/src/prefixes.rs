//! `stats detail`: counts requests by the prefix of their key before the first `:`, or another
//! byte.

use ahash::HashMap;

/// Maximum prefixes tracked; requests for further ones are not counted.
pub const PREFIXES_MAX: usize = 1000;

/// The default delimiter between a prefix and the rest of a key.
pub const PREFIX_DELIMITER: u8 = b':';

/// One core's counts by prefix. Keys without a delimiter are not counted. Nothing is counted until
/// enabled; when disabled, the counts stay.
#[derive(Clone, Debug)]
pub struct PrefixCounters {
    on: bool,
    delimiter: u8,
    prefixes: HashMap<Box<[u8]>, Counts>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    gets: u64,
    hits: u64,
    sets: u64,
    deletes: u64,
}

impl Default for PrefixCounters {
    fn default() -> Self {
        Self::new(PREFIX_DELIMITER)
    }
}

impl PrefixCounters {
    /// No counts yet; prefixes end at `delimiter`.
    pub fn new(delimiter: u8) -> Self {
        Self { on: false, delimiter, prefixes: HashMap::default() }
    }

    /// Starts or stops counting.
    pub fn switch(&mut self, on: bool) {
        self.on = on;
    }

    /// Counts a read.
    pub fn get(&mut self, key: &[u8], hit: bool) {
        if let Some(counts) = self.of(key) {
            counts.gets += 1;
            counts.hits += u64::from(hit);
        }
    }

    /// Counts the hit of a read that was counted before its outcome was known.
    pub fn hit(&mut self, key: &[u8]) {
        if let Some(counts) = self.of(key) {
            counts.hits += 1;
        }
    }

    /// Uncounts a deferred read, which is counted again when it is repeated.
    pub fn put_off(&mut self, key: &[u8]) {
        if let Some(counts) = self.of(key) {
            counts.gets = counts.gets.saturating_sub(1);
        }
    }

    /// Counts a store, regardless of its outcome.
    pub fn set(&mut self, key: &[u8]) {
        if let Some(counts) = self.of(key) {
            counts.sets += 1;
        }
    }

    /// Counts a delete, whether or not there was an item.
    pub fn delete(&mut self, key: &[u8]) {
        if let Some(counts) = self.of(key) {
            counts.deletes += 1;
        }
    }

    /// Adds another core's counts.
    pub fn add(&mut self, other: &PrefixCounters) {
        for (prefix, counts) in &other.prefixes {
            if let Some(sum) = self.entry(prefix) {
                sum.gets += counts.gets;
                sum.hits += counts.hits;
                sum.sets += counts.sets;
                sum.deletes += counts.deletes;
            }
        }
    }

    /// Resets all counts: `stats reset`.
    pub fn clear(&mut self) {
        self.prefixes.clear();
    }

    /// The answer to `stats detail dump`, including `END`; prefixes in byte order.
    pub fn dump(&self) -> Vec<u8> {
        let mut prefixes: Vec<_> = self.prefixes.iter().collect();
        prefixes.sort_unstable_by_key(|(prefix, _)| *prefix);
        let mut text = Vec::new();
        for (prefix, Counts { gets, hits, sets, deletes }) in prefixes {
            text.extend_from_slice(b"PREFIX ");
            text.extend_from_slice(prefix);
            let counts = format!(" get {gets} hit {hits} set {sets} del {deletes}\r\n");
            text.extend_from_slice(counts.as_bytes());
        }
        text.extend_from_slice(b"END\r\n");
        text
    }

    fn of(&mut self, key: &[u8]) -> Option<&mut Counts> {
        if !self.on {
            return None;
        }
        let end = memchr::memchr(self.delimiter, key)?;
        self.entry(&key[..end])
    }

    fn entry(&mut self, prefix: &[u8]) -> Option<&mut Counts> {
        if !self.prefixes.contains_key(prefix) {
            if self.prefixes.len() >= PREFIXES_MAX {
                return None;
            }
            self.prefixes.insert(prefix.into(), Counts::default());
        }
        self.prefixes.get_mut(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_by_what_precedes_the_first_colon() {
        let mut counters = PrefixCounters { on: true, ..PrefixCounters::default() };
        counters.set(b"foo:1");
        counters.get(b"foo:1:2", true);
        counters.get(b"foo:", false);
        counters.delete(b"bar:x");
        counters.get(b"plain", true);
        assert_eq!(
            counters.dump(),
            b"PREFIX bar get 0 hit 0 set 0 del 1\r\nPREFIX foo get 2 hit 1 set 1 del 0\r\nEND\r\n"
        );
        counters.switch(false);
        counters.set(b"foo:2");
        let mut sum = counters.clone();
        sum.add(&counters);
        assert!(sum.dump().starts_with(b"PREFIX bar get 0 hit 0 set 0 del 2\r\nPREFIX foo get 4"));
        sum.clear();
        assert_eq!(sum.dump(), b"END\r\n");
    }

    #[test]
    fn prefixes_may_end_at_another_byte() {
        let mut counters = PrefixCounters::new(b'/');
        counters.switch(true);
        counters.set(b"a:b/c");
        assert_eq!(counters.dump(), b"PREFIX a:b get 0 hit 0 set 1 del 0\r\nEND\r\n");
    }

    #[test]
    fn further_prefixes_are_not_counted() {
        let mut counters = PrefixCounters { on: true, ..PrefixCounters::default() };
        for i in 0..PREFIXES_MAX + 5 {
            counters.set(format!("{i}:").as_bytes());
        }
        assert_eq!(counters.prefixes.len(), PREFIXES_MAX);
        counters.set(b"0:");
        assert_eq!(counters.prefixes[&b"0"[..]].sets, 2);
    }
}
