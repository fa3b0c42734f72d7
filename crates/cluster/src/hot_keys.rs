//! Hot keys: detected by a sketch, and answered briefly from a cached copy.
//!
//! A single very popular key makes its node the bottleneck of the cluster, however many nodes there
//! are. So each core counts the keys it requests from other nodes, and caches the answers of the
//! hottest for at most a second. A copy may be stale by that much; in strict clusters keys are
//! counted but not cached.
//!
//! Counting is the space-saving sketch (Metwally, Agrawal, El Abbadi, 2005): a fixed number of keys
//! have counters, and a new key takes over the smallest one with its count. A key whose share of
//! requests is several times the reciprocal of that number is soon among them. A count taken over
//! from other keys does not make it hot. Counts are per window; a key is hot while its count of
//! this window or the previous one reached the threshold.

use std::collections::HashMap;
use std::time::Duration;

use ringlane_types::time::Instant;

mod sketch;

use sketch::Sketch;

/// Number of keys counted at a time.
pub const COUNTED_MAX: usize = 64;
/// One in this many requests for uncounted keys takes a slot, so that very many keys do not
/// constantly displace each other. A frequently requested key gets its slot soon.
const NEWCOMER_EVERY: u32 = 7;
/// Overhead of a copy in bytes, besides its key and answer.
const OVERHEAD_BYTES: usize = 96;

/// Settings of hot key detection and caching.
#[derive(Clone, Copy, Debug)]
pub struct HotKeySettings {
    /// Length of the window.
    pub window: Duration,
    /// Requests within the window that make a key hot.
    pub threshold: u32,
    /// Maximum bytes of copies; a further one is not stored.
    pub cache_bytes_max: usize,
    /// Longest use of a copy; zero disables caching.
    pub cache_age_max: Duration,
}

impl Default for HotKeySettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            threshold: 1000,
            cache_bytes_max: 1 << 20,
            cache_age_max: Duration::from_secs(1),
        }
    }
}

/// A key that is or recently was hot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotKey {
    /// The key.
    pub key: Box<[u8]>,
    /// Requests in this window or the previous one, whichever is more.
    pub requests: u32,
    /// Requests answered from a copy since it became hot.
    pub copied: u64,
}

/// The hot keys of one core.
#[derive(Debug)]
pub struct HotKeys {
    settings: HotKeySettings,
    sketch: Sketch,
    window_ends: Instant,
    /// Requests for uncounted keys.
    passed: u32,
    copies: HashMap<Box<[u8]>, Copy, ahash::RandomState>,
    bytes: usize,
}

#[derive(Debug)]
struct Copy {
    answer: Vec<u8>,
    until: Instant,
}

impl HotKeys {
    /// Creates an empty state.
    pub fn new(settings: HotKeySettings, hasher: ahash::RandomState) -> Self {
        Self {
            settings,
            sketch: Sketch::new(hasher.clone()),
            window_ends: Instant::default(),
            passed: 0,
            copies: HashMap::with_hasher(hasher),
            bytes: 0,
        }
    }

    /// Counts a request for `key`. Returns whether it is hot.
    pub fn count(&mut self, key: &[u8], now: Instant) -> bool {
        if now >= self.window_ends {
            self.begin_window(now);
        }
        let tag = self.sketch.tag(key);
        if let Some(index) = self.sketch.find_tagged(tag, key) {
            return self.sketch.count(index) >= self.settings.threshold;
        }
        if !self.sketch.is_full() {
            self.sketch.add(tag, key);
            return false;
        }
        self.passed = self.passed.wrapping_add(1);
        if self.passed.is_multiple_of(NEWCOMER_EVERY) {
            let smallest = self.sketch.smallest();
            if !self.copies.is_empty() {
                let key = self.sketch.counter(smallest).key.clone();
                self.forget(&key);
            }
            self.sketch.take_over(smallest, tag, key);
        }
        false
    }

    #[cold]
    fn begin_window(&mut self, now: Instant) {
        self.window_ends = now.after(self.settings.window);
        self.sketch.begin_window();
        let sketch = &self.sketch;
        self.copies.retain(|key, _| sketch.find(key).is_some());
        self.bytes = self.copies.iter().map(|(key, copy)| cost(key, &copy.answer)).sum();
    }

    /// Whether `key` is hot.
    fn is_hot(&self, key: &[u8]) -> bool {
        let index = self.sketch.find(key);
        index.is_some_and(|index| self.sketch.counter(index).requests() >= self.settings.threshold)
    }

    /// The cached answer to a plain read of `key`, while it is valid.
    pub fn copy(&mut self, key: &[u8], now: Instant) -> Option<&[u8]> {
        let copy = self.copies.get(key).filter(|copy| copy.until > now)?;
        if let Some(index) = self.sketch.find(key) {
            self.sketch.counter_mut(index).copied += 1;
        }
        Some(&copy.answer)
    }

    /// Caches the answer to a plain read of a hot key, if there is room.
    pub fn keep(&mut self, key: &[u8], answer: &[u8], now: Instant) {
        self.forget(key);
        let hot = self.is_hot(key);
        let bytes = cost(key, answer);
        let Self { settings, copies, .. } = self;
        if !hot || settings.cache_age_max.is_zero() || self.bytes + bytes > settings.cache_bytes_max
        {
            return;
        }
        let until = now.after(settings.cache_age_max);
        copies.insert(key.into(), Copy { answer: answer.to_vec(), until });
        self.bytes += bytes;
    }

    /// The key was changed through this core: invalidates its copy.
    #[inline]
    pub fn forget(&mut self, key: &[u8]) {
        if !self.copies.is_empty()
            && let Some(copy) = self.copies.remove(key)
        {
            self.bytes -= cost(key, &copy.answer);
        }
    }

    /// Everything was changed: invalidates all copies.
    pub fn forget_all(&mut self) {
        self.copies.clear();
        self.bytes = 0;
    }

    /// The hot keys, the hottest first.
    pub fn list(&self) -> Vec<HotKey> {
        let mut hot: Vec<HotKey> = self
            .sketch
            .counters()
            .map(|counter| HotKey {
                key: counter.key[..].into(),
                requests: counter.requests(),
                copied: counter.copied,
            })
            .filter(|hot| hot.requests >= self.settings.threshold)
            .collect();
        hot.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.key.cmp(&b.key)));
        hot
    }
}

fn cost(key: &[u8], answer: &[u8]) -> usize {
    OVERHEAD_BYTES + key.len() + answer.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlane_types::hash::HashSecret;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn hot_keys(threshold: u32) -> HotKeys {
        let settings = HotKeySettings { threshold, ..HotKeySettings::default() };
        HotKeys::new(settings, HashSecret::of_seed(1).table_hasher())
    }

    fn later(seconds: u64) -> Instant {
        NOW.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_key_is_hot_from_the_threshold_on_until_a_window_without_it_is_over() {
        let mut keys = hot_keys(3);
        assert!(!keys.count(b"k", NOW) && !keys.count(b"k", NOW));
        assert!(keys.count(b"k", NOW));
        assert!(keys.count(b"k", later(61)), "hot in the window before");
        assert!(!keys.count(b"k", later(122)), "not hot in the window before");
    }

    #[test]
    fn a_copy_serves_for_its_time_and_not_after_a_change() {
        let mut keys = hot_keys(1);
        keys.keep(b"k", b"answer", NOW);
        assert!(keys.copy(b"k", NOW).is_none(), "not counted, not hot");
        keys.count(b"k", NOW);
        keys.keep(b"k", b"answer", NOW);
        assert_eq!(keys.copy(b"k", NOW), Some(&b"answer"[..]));
        assert!(keys.copy(b"k", later(1)).is_none());
        keys.keep(b"k", b"answer", NOW);
        keys.forget(b"k");
        assert!(keys.copy(b"k", NOW).is_none());
    }

    #[test]
    fn no_copy_serves_after_everything_was_forgotten() {
        let mut keys = hot_keys(1);
        keys.count(b"k", NOW);
        keys.keep(b"k", b"answer", NOW);
        keys.forget_all();
        assert!(keys.copy(b"k", NOW).is_none() && keys.bytes == 0);
        assert!(keys.count(b"k", NOW), "it is as hot as before");
    }

    #[test]
    fn copies_stay_within_their_bytes() {
        let settings =
            HotKeySettings { threshold: 1, cache_bytes_max: 300, ..HotKeySettings::default() };
        let mut keys = HotKeys::new(settings, HashSecret::of_seed(1).table_hasher());
        for key in [b"a", b"b", b"c"] {
            keys.count(key, NOW);
            keys.count(key, NOW);
            keys.keep(key, b"some answer", NOW);
        }
        assert!(keys.copy(b"a", NOW).is_some() && keys.copy(b"b", NOW).is_some());
        assert!(keys.copy(b"c", NOW).is_none() && keys.bytes <= 300);
    }

    #[test]
    fn no_key_is_hot_because_of_others() {
        let mut keys = hot_keys(100);
        let hot = (0..100_000u32).any(|round| keys.count(&(round % 5000).to_le_bytes(), NOW));
        assert!(!hot && keys.list().is_empty());
    }

    #[test]
    fn a_truly_hot_key_is_found_among_very_many_others() {
        let mut keys = hot_keys(100);
        for round in 0..3000u32 {
            keys.count(&round.to_le_bytes(), NOW);
            if round % 10 == 0 {
                keys.count(b"hot", NOW);
            }
        }
        assert!(keys.sketch.counters().count() <= COUNTED_MAX);
        assert_eq!(&*keys.list()[0].key, b"hot");
    }
}
