//! Clears the whole shard at once: the fallback of a flush when no epoch is left.
//!
//! Pages are freed whole, without visiting their items: a node with millions of items has a few
//! thousand pages. Only pages that hold something staged or pinned are processed chunk by chunk.
//! What remains is in neither the index nor the wheel. Refused: sweeping the rest of past epochs
//! first, which blocked a core for seconds, and a wider epoch, which would cost each item bytes and
//! only take longer to exhaust.

use super::item::{self, HAS_TTL, Head, Kind};
use super::slab::CLASS_INDEX;
use super::{Shard, piece_at};
use ringlane_types::request::ItemRef;

impl Shard {
    /// Removes all items, including pinned ones, whose memory stays until they are unpinned. Staged
    /// items stay. Costs a step per page, per chained value, and per chunk of pages with staged or
    /// pinned chunks.
    ///
    /// # Panics
    /// If an operation is in progress, or the last answer may still be in use.
    pub(super) fn clear(&mut self) {
        assert!(
            self.guard == ItemRef(0) && self.deferred_free.is_none(),
            "nothing is being worked on"
        );
        if let Some(drain) = self.drain.take()
            && self.slab.page(drain.page).draining
        {
            self.slab.stop_drain(drain.page);
        }
        self.wheel.clear();
        self.index.clear(self.slab.memory_mut());
        while let Some(page) = self.index.next_surplus_page() {
            self.slab.give_back_index_page(page);
        }
        for class in &mut self.class_counters {
            (class.items, class.item_bytes) = (0, 0);
        }
        self.flush.forget_all();
        self.mark_pinned_dead();
        self.drop_chains();
        for page in 0..self.slab.page_count() {
            if self.slab.page_class(page) >= CLASS_INDEX {
                continue;
            }
            if self.slab.page(page).held > 0 {
                self.clear_held_page(page);
            } else {
                self.slab.drop_page(page);
            }
        }
    }

    /// Leaves pinned items to their last unpin.
    fn mark_pinned_dead(&mut self) {
        let memory = self.slab.memory_mut();
        for item in self.pins.mark_all_dead() {
            // The wheel's lists no longer exist.
            if Head::read(memory, item).has(HAS_TTL) {
                item::set_previous(memory, item, 0);
                item::set_next(memory, item, 0);
            }
        }
    }

    fn drop_chains(&mut self) {
        let (memory, pins) = (self.slab.memory(), &self.pins);
        self.chains.retain(|_, chain| {
            let piece = chain.spans.first().map(piece_at);
            piece.is_some_and(|piece| pins.stays(memory, item::piece_head(memory, piece)))
        });
    }

    /// Frees the chunks of a page with staged or pinned chunks. Other pages are unchanged, or hold
    /// nothing that is referenced here.
    fn clear_held_page(&mut self, page: u32) {
        for chunk in 0..self.slab.page(page).fresh {
            let chunk = self.slab.chunk(page, chunk);
            let memory = self.slab.memory();
            let stays = match item::kind(memory, chunk) {
                Kind::Free => continue,
                Kind::Staged | Kind::Item => self.pins.stays(memory, chunk),
                Kind::Piece => self.pins.stays(memory, item::piece_head(memory, chunk)),
            };
            if !stays {
                self.slab.free(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::{Eviction, ShardConfig};
    use ringlane_types::hash::HashSecret;
    use ringlane_types::request::{Body, Get, Operation, Request, Response, Store};
    use ringlane_types::time::{Deadline, Instant};

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn shard() -> Shard {
        let config =
            ShardConfig { memory_bytes: 8 << 20, item_bytes_max: 2 << 20, eviction: Eviction::Lru };
        Shard::new(&config, Rc::new(HashSecret::of_seed(7)), 0, 1)
    }

    fn run<'s>(shard: &'s mut Shard, key: &str, operation: Operation<'_>) -> Response<'s> {
        let key = key.as_bytes();
        let hash = shard.hash_key(key);
        shard.execute(&Request { key, hash, operation }, NOW)
    }

    fn set(shard: &mut Shard, key: &str, value: &[u8], deadline: Deadline) {
        let store = Store { deadline, ..Store::set(value) };
        assert!(matches!(run(shard, key, Operation::Store(store)), Response::Stored { .. }));
    }

    fn find(shard: &mut Shard, key: &str) -> Option<(ItemRef, Vec<u8>)> {
        match run(shard, key, Operation::Get(Get::default())) {
            Response::Hit(hit) => Some((hit.item.expect("it is here"), hit.value.to_vec())),
            _ => None,
        }
    }

    #[test]
    fn everything_goes_but_what_is_on_its_way_in_or_out() {
        let mut shard = shard();
        let hour = Deadline::at(NOW.after(Duration::from_secs(3600)));
        for number in 0..3000 {
            let deadline = if number % 2 == 0 { hour } else { Deadline::NEVER };
            set(&mut shard, &format!("key {number}"), &[b'v'; 100], deadline);
        }
        let (short, long) = (vec![b's'; 9000], vec![b'l'; 1 << 20]);
        for (key, value) in [("short", &short), ("long", &long), ("other long", &long)] {
            set(&mut shard, key, value, hour);
        }
        let pinned = [("short", &short), ("long", &long)].map(|(key, value)| {
            let (item, found) = find(&mut shard, key).expect("just stored");
            assert_eq!(&found, value);
            shard.pin(item);
            (item, value)
        });
        let staged = shard.stage(6, 0, hour, 1 << 20, NOW).expect("there is room");
        let page_count = shard.gauges().pages_used;
        shard.clear();
        shard.check_invariants();
        let gauges = shard.gauges();
        assert_eq!((gauges.items, gauges.item_bytes, gauges.ttl_items), (0, 0, 0));
        assert!(gauges.pages_used < page_count, "{} of {page_count}", gauges.pages_used);
        assert!(
            ["key 1", "key 2", "short", "long", "other long"]
                .iter()
                .all(|key| find(&mut shard, key).is_none())
        );
        // What comes then takes nothing from what stayed.
        for number in 0..60_000 {
            set(&mut shard, &format!("new {number}"), &[b'n'; 100], hour);
        }
        for span in shard.staged_spans(&staged).collect::<Vec<_>>() {
            let (start, bytes) = (span.offset as usize, span.bytes as usize);
            shard.memory_mut()[start..start + bytes].fill(b't');
        }
        let store = Store { value: Body::Staged(staged), deadline: hour, ..Store::set(b"") };
        assert!(matches!(
            run(&mut shard, "staged", Operation::Store(store)),
            Response::Stored { .. }
        ));
        assert_eq!(find(&mut shard, "staged").map(|(_, value)| value), Some(vec![b't'; 1 << 20]));
        for (item, value) in pinned {
            assert_eq!(&shard.pinned_value(item).to_vec(), value);
            shard.unpin(item);
        }
        shard.check_invariants();
        shard.flush_all(NOW, NOW);
        while shard.maintain(NOW, 1000) {}
        assert_eq!(shard.gauges().chunk_bytes, 0);
    }

    #[test]
    fn flushes_faster_than_the_sweep_hide_everything_and_free_memory_in_the_end() {
        let mut shard = shard();
        for number in 0..20_000 {
            set(&mut shard, &format!("key {number}"), b"v", Deadline::NEVER);
        }
        for round in 0..40 {
            set(&mut shard, &format!("round {round}"), b"v", Deadline::NEVER);
            // Never met by a look-up, so that the epoch stays in use.
            set(&mut shard, &format!("left {round}"), b"v", Deadline::NEVER);
            shard.flush_all(NOW, NOW);
            assert_eq!(shard.gauges().items, 0);
            for key in ["key 7".into(), format!("round {round}"), format!("round {}", round / 2)] {
                assert!(find(&mut shard, &key).is_none(), "{key} after {round}");
            }
            set(&mut shard, "stays", b"v", Deadline::NEVER);
            assert!(find(&mut shard, "stays").is_some());
        }
        shard.check_invariants();
        let gauges = shard.gauges();
        assert!(gauges.items + gauges.flushed_items < 100, "{} are left", gauges.flushed_items);
    }
}
