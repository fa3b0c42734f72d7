//! Invariants between any two calls. Slow: for tests, the model and the simulation.

use super::Shard;
use super::item::{self, HAS_TTL, Head, Kind};
use super::slab::CLASS_INDEX;
use super::{KeyHash, piece_at};
use ringlane_types::request::ItemRef;
use std::collections::{HashMap, HashSet};

impl Shard {
    /// Panics with the broken relation unless: every live item and every tombstone is in the index
    /// once, in one wheel slot exactly if it has a deadline; every chunk in use holds an item, a
    /// piece of one, or something staged or pinned; every page has one owner; counts and bytes add
    /// up.
    pub fn check_invariants(&self) {
        self.slab.check_invariants();
        assert!(
            self.slab.pages_in_use() <= self.slab.page_count(),
            "pages in use are within the memory"
        );
        let memory = self.slab.memory();
        let hash_of = |item| KeyHash::of(Head::read(memory, item).key(memory), &self.hash_secret);

        let mut indexed = HashSet::new();
        self.index.check_invariants(memory, hash_of, |item| {
            assert_eq!(item::kind(memory, item), Kind::Item, "the index names items");
            assert!(indexed.insert(item), "an item is in the index once");
        });
        let mut waiting = HashSet::new();
        self.wheel.check_invariants(memory, |item| {
            assert!(indexed.contains(&item), "only indexed items wait for their deadline");
            waiting.insert(item);
        });

        let mut by_epoch = [0; 16];
        let mut by_class: HashMap<u8, (u64, u64)> = HashMap::new();
        let mut pieces = HashSet::new();
        for &item in &indexed {
            let head = Head::read(memory, item);
            let shape = head.shape(memory);
            assert!(shape.chunk_bytes() <= self.slab.chunk_bytes_of(item), "the item fits");
            let waits = head.has(HAS_TTL) && !self.deadline_of(&head).is_never();
            assert_eq!(waits, waiting.contains(&item), "in the wheel exactly with a deadline");
            if self.flush.is_tombstone(&head) {
                let empty = shape.value_bytes == 0 && !shape.flags && !shape.chained;
                assert!(waits && empty, "a tombstone waits to be forgotten and holds nothing");
            }
            by_epoch[head.epoch() as usize] += 1;
            let class = by_class.entry(self.slab.class_of(item)).or_default();
            class.0 += 1;
            class.1 += shape.item_bytes() as u64;
            self.check_chain(&head, &mut pieces);
        }
        assert_eq!(by_epoch, self.flush.items, "items by epoch");
        for (class, counted) in self.class_counters.iter().enumerate() {
            let (items, bytes) = by_class.get(&(class as u8)).copied().unwrap_or_default();
            assert_eq!((counted.items, counted.item_bytes), (items, bytes), "class {class}");
        }
        self.check_chunks(&indexed, &mut pieces);
        assert!(
            self.tombstone_policy.is_some() || self.flush.tombstones() == 0,
            "tombstones are wanted"
        );
        assert_eq!(self.guard, ItemRef(0), "no operation is in progress");
    }

    fn check_chain(&self, head: &Head, pieces: &mut HashSet<ItemRef>) {
        let memory = self.slab.memory();
        let Some(chain) = head.chain(memory) else { return };
        let spans = &self.chains[chain as usize].spans;
        let bytes: usize = spans.iter().map(|span| span.bytes as usize).sum();
        assert_eq!(bytes, head.value_bytes(memory), "pieces make up the value");
        for span in spans {
            let piece = piece_at(span);
            assert_eq!(item::kind(memory, piece), Kind::Piece);
            assert_eq!(item::piece_head(memory, piece), head.item, "a piece knows its item");
            assert!(pieces.insert(piece), "a piece belongs to one item");
        }
    }

    /// Accounts for every chunk in use.
    fn check_chunks(&self, indexed: &HashSet<ItemRef>, pieces: &mut HashSet<ItemRef>) {
        let memory = self.slab.memory();
        let mut staged_bytes = 0;
        let mut chunks = Vec::new();
        for page in 0..self.slab.page_count() {
            if self.slab.page_class(page) < CLASS_INDEX {
                chunks.extend((0..self.slab.page(page).fresh).map(|c| self.slab.chunk(page, c)));
            }
        }
        for &chunk in &chunks {
            let head = Head::read(memory, chunk);
            match item::kind(memory, chunk) {
                Kind::Free | Kind::Piece => {}
                Kind::Item => {
                    let lingers = self.deferred_free == Some(chunk) || self.pins.is_dead(chunk);
                    assert!(indexed.contains(&chunk) != lingers, "an item is indexed or lingers");
                    if lingers {
                        self.check_chain(&head, pieces);
                    }
                }
                Kind::Staged => {
                    staged_bytes += head.value_bytes(memory) as u64;
                    if let Some(chain) = head.chain(memory) {
                        // Allocation of the rest may still be in progress.
                        let spans = &self.chains[chain as usize].spans;
                        let bytes: usize = spans.iter().map(|span| span.bytes as usize).sum();
                        assert!(bytes <= head.value_bytes(memory), "no more pieces than announced");
                        pieces.extend(spans.iter().map(piece_at));
                    }
                }
            }
        }
        for &chunk in &chunks {
            if item::kind(memory, chunk) == Kind::Piece {
                assert!(pieces.contains(&chunk), "a piece belongs to an item");
            }
        }
        assert_eq!(staged_bytes, self.staged_bytes, "bytes set aside");
    }
}
