//! The counted keys, in the slots of a small table.
//!
//! Nearly every request is for a key without a slot, so the tags that reveal this are contiguous
//! and compared as a whole; so are the counts, of which the smallest is searched. A key that takes
//! over a slot reuses the memory of the key before it: nothing is allocated.

use super::COUNTED_MAX;

/// Keys and their counts.
#[derive(Debug)]
pub(super) struct Sketch {
    hasher: ahash::RandomState,
    /// Per slot: part of its key's hash.
    tags: [u32; COUNTED_MAX],
    /// Per slot: the greater of its counts of this window and the previous one.
    busiest: [u32; COUNTED_MAX],
    counters: Vec<Counter>,
}

/// One slot.
#[derive(Debug, Default)]
pub(super) struct Counter {
    /// The key.
    pub key: Vec<u8>,
    /// Requests answered from a copy.
    pub copied: u64,
    /// Requests in this window, including possible ones of previous keys.
    now: u32,
    /// How many of them may belong to previous keys.
    inherited: u32,
    /// Requests in the previous window.
    before: u32,
}

impl Counter {
    /// Lower bound of the requests in the busier of both windows.
    pub(super) fn requests(&self) -> u32 {
        (self.now - self.inherited).max(self.before)
    }
}

impl Sketch {
    /// Creates an empty sketch.
    pub(super) fn new(hasher: ahash::RandomState) -> Self {
        Self {
            hasher,
            tags: [0; COUNTED_MAX],
            busiest: [0; COUNTED_MAX],
            counters: Vec::with_capacity(COUNTED_MAX),
        }
    }

    /// What the place of a key is found by, for [`Sketch::find_tagged`].
    #[inline]
    pub(super) fn tag(&self, key: &[u8]) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    /// The place of `key`.
    #[inline]
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        self.find_tagged(self.tag(key), key)
    }

    /// The place of `key`, whose tag is known.
    #[inline]
    pub(super) fn find_tagged(&self, tag: u32, key: &[u8]) -> Option<usize> {
        // Without a way out of the loop it becomes a few vector instructions.
        let is_there = self.tags.iter().fold(false, |found, there| found | (*there == tag));
        if !is_there {
            return None;
        }
        let mut places = self.counters.iter().zip(&self.tags);
        places.position(|(counter, there)| *there == tag && counter.key == key)
    }

    /// Counts a request for the key of a place; how many there have been, at least.
    pub(super) fn count(&mut self, index: usize) -> u32 {
        let counter = &mut self.counters[index];
        counter.now = counter.now.saturating_add(1);
        self.busiest[index] = counter.now.max(counter.before);
        counter.requests()
    }

    /// Whether every place has a key.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.counters.len() >= COUNTED_MAX
    }

    /// Gives a free place to `key`, with one request. There must be one.
    pub(super) fn add(&mut self, tag: u32, key: &[u8]) {
        let index = self.counters.len();
        (self.tags[index], self.busiest[index]) = (tag, 1);
        self.counters.push(Counter { key: key.to_vec(), now: 1, ..Counter::default() });
    }

    /// The place with the smallest count, if all have a key.
    pub(super) fn smallest(&self) -> usize {
        let least = self.busiest.iter().fold(u32::MAX, |least, count| least.min(*count));
        self.busiest.iter().position(|count| *count == least).expect("the least is among them")
    }

    /// Gives a place to `key`, with the count of the key before and one more.
    pub(super) fn take_over(&mut self, index: usize, tag: u32, key: &[u8]) {
        let counter = &mut self.counters[index];
        counter.key.clear();
        counter.key.extend_from_slice(key);
        (counter.inherited, counter.before, counter.copied) = (counter.now, 0, 0);
        counter.now = counter.now.saturating_add(1);
        (self.tags[index], self.busiest[index]) = (tag, counter.now);
    }

    /// Begins a window. Keys without a request in the one that is over lose their places.
    pub(super) fn begin_window(&mut self) {
        self.counters.retain(|counter| counter.now > 0);
        for index in 0..self.counters.len() {
            let counter = &mut self.counters[index];
            counter.before = counter.now - counter.inherited;
            (counter.now, counter.inherited) = (0, 0);
            self.busiest[index] = counter.before;
            self.tags[index] = self.tag(&self.counters[index].key);
        }
    }

    /// The counter of a place.
    pub(super) fn counter(&self, index: usize) -> &Counter {
        &self.counters[index]
    }

    /// The counter of a place, for what is counted besides requests.
    pub(super) fn counter_mut(&mut self, index: usize) -> &mut Counter {
        &mut self.counters[index]
    }

    /// All that have a key.
    pub(super) fn counters(&self) -> impl Iterator<Item = &Counter> {
        self.counters.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlane_types::hash::HashSecret;

    fn add(sketch: &mut Sketch, key: &[u8]) {
        sketch.add(sketch.tag(key), key);
    }

    #[test]
    fn keys_with_one_tag_have_places_of_their_own() {
        let mut sketch = Sketch::new(HashSecret::of_seed(1).table_hasher());
        sketch.add(7, b"a");
        sketch.add(7, b"b");
        assert_eq!((sketch.find_tagged(7, b"a"), sketch.find_tagged(7, b"b")), (Some(0), Some(1)));
        assert_eq!((sketch.find_tagged(7, b"c"), sketch.find_tagged(0, b"")), (None, None));
    }

    #[test]
    fn the_smallest_place_is_taken_over_with_its_count() {
        let mut sketch = Sketch::new(HashSecret::of_seed(1).table_hasher());
        for number in 0..COUNTED_MAX as u8 {
            add(&mut sketch, &[number]);
            (0..9 + u32::from(number != 40)).for_each(|_| {
                sketch.count(usize::from(number));
            });
        }
        assert!(sketch.is_full());
        let smallest = sketch.smallest();
        assert_eq!(smallest, 40);
        sketch.take_over(smallest, sketch.tag(b"new"), b"new");
        assert_eq!((sketch.find(&[40]), sketch.find(b"new")), (None, Some(40)));
        assert_eq!(sketch.count(40), 2, "what was inherited is not its own");
        assert_ne!(sketch.smallest(), 40);
    }

    #[test]
    fn a_window_later_only_keys_with_requests_keep_their_places() {
        let mut sketch = Sketch::new(HashSecret::of_seed(1).table_hasher());
        for key in [b"a", b"b", b"c"] {
            add(&mut sketch, key);
        }
        sketch.begin_window();
        sketch.count(sketch.find(b"a").unwrap());
        sketch.count(sketch.find(b"c").unwrap());
        sketch.begin_window();
        assert_eq!(sketch.find(b"b"), None);
        assert_eq!((sketch.find(b"a"), sketch.find(b"c")), (Some(0), Some(1)));
        assert_eq!(sketch.counters().count(), 2);
    }
}
