//! Hierarchical timing wheel: finds expired items without sampling or scanning.
//!
//! Five levels of 256 slots. A tick is 256 ms; a slot of level 0 is one tick, a slot of each
//! further level 256 slots of the one below. An item waits at the level of the highest base-256
//! digit in which its tick differs from the wheel's, in the slot of that digit; when the wheel
//! arrives there, the slot's items move down (*cascade*). Slots are lists linked through the
//! items' TTL blocks.
//!
//! The wheel's tick advances only when its work is done, so work can stop after any item and no
//! linked item's deadline ever precedes the wheel's time, the base of the deadline codes. If a
//! deadline moves later, its item stays in place: when the slot is due, the item is moved to its
//! proper slot. That makes refreshing a TTL free.
//!
//! Links are item positions. Small numbers are not items, because the first page of every shard
//! belongs to the index: link `slot + 1` names the head of a list. Refused: a heap or a tree
//! (logarithmic, and pointers to maintain) and lists without backward links (deleting an item would
//! have to leave a placeholder).

use super::deadline;
use super::item;
use ringlane_types::request::ItemRef;
use ringlane_types::time::{Deadline, Instant};

const LEVELS: usize = 5;
const SLOTS: usize = 256;
/// Milliseconds per tick.
pub(super) const TICK_MILLIS: u64 = 256;
/// Links below this are list heads, never items.
const FIRST_ITEM: u32 = 8192;
const _: () = assert!(LEVELS * SLOTS < FIRST_ITEM as usize);
const _: () = assert!(FIRST_ITEM as usize * 8 <= 64 << 10, "page 0 covers all head links");

/// The deadlines of one shard's items.
pub(super) struct TtlWheel {
    /// First item of each slot's list, 0 for none.
    heads: Box<[u32; LEVELS * SLOTS]>,
    occupied: [[u64; SLOTS / 64]; LEVELS],
    /// All ticks before this one are done.
    tick: u64,
    linked: u64,
}

impl TtlWheel {
    pub(super) fn new() -> Self {
        Self {
            heads: Box::new([0; LEVELS * SLOTS]),
            occupied: [[0; SLOTS / 64]; LEVELS],
            tick: 0,
            linked: 0,
        }
    }

    /// Drops all items, whose links are then garbage. Its time stays.
    pub(super) fn clear(&mut self) {
        self.heads.fill(0);
        self.occupied = [[0; SLOTS / 64]; LEVELS];
        self.linked = 0;
    }

    /// Number of linked items.
    pub(super) fn len(&self) -> u64 {
        self.linked
    }

    /// The deadline of an item whose TTL block holds `code`.
    #[inline]
    pub(super) fn deadline(&self, code: u32) -> Deadline {
        deadline::decode(code, self.base_millis())
    }

    /// The code for `deadline`. An idle wheel is first advanced to `now`.
    #[inline]
    pub(super) fn code(&mut self, deadline: Deadline, now: Instant) -> u32 {
        if self.linked == 0 {
            self.tick = self.tick.max(now.as_millis() / TICK_MILLIS);
        }
        deadline::encode(deadline, self.base_millis())
    }

    fn base_millis(&self) -> u64 {
        self.tick * TICK_MILLIS
    }

    /// Links `item`, whose TTL block holds its code, into its slot.
    pub(super) fn link(&mut self, memory: &mut [u8], item: ItemRef) {
        debug_assert!(item.0 >= FIRST_ITEM);
        let code = item::deadline_code(memory, item);
        let due = (self.deadline(code).as_millis() / TICK_MILLIS).max(self.tick);
        let slot = self.slot_for(due);
        let first = std::mem::replace(&mut self.heads[slot], item.0);
        item::set_previous(memory, item, slot as u32 + 1);
        item::set_next(memory, item, first);
        if first != 0 {
            item::set_previous(memory, ItemRef(first), item.0);
        } else {
            self.occupied[slot / SLOTS][slot % SLOTS / 64] |= 1 << (slot % 64);
        }
        self.linked += 1;
    }

    /// Unlinks `item` from its slot.
    pub(super) fn unlink(&mut self, memory: &mut [u8], item: ItemRef) {
        let previous = item::previous(memory, item);
        let next = item::next(memory, item);
        debug_assert!(previous != 0, "the item is linked");
        if previous < FIRST_ITEM {
            let slot = previous as usize - 1;
            self.heads[slot] = next;
            if next == 0 {
                self.occupied[slot / SLOTS][slot % SLOTS / 64] &= !(1 << (slot % 64));
            }
        } else {
            item::set_next(memory, ItemRef(previous), next);
        }
        if next != 0 {
            item::set_previous(memory, ItemRef(next), previous);
        }
        item::set_previous(memory, item, 0);
        item::set_next(memory, item, 0);
        self.linked -= 1;
    }

    /// Replaces the item at `from` with its copy at `to`.
    pub(super) fn relocate(&mut self, memory: &mut [u8], to: ItemRef) {
        let previous = item::previous(memory, to);
        let next = item::next(memory, to);
        if previous == 0 {
            return;
        }
        if previous < FIRST_ITEM {
            self.heads[previous as usize - 1] = to.0;
        } else {
            item::set_next(memory, ItemRef(previous), to.0);
        }
        if next != 0 {
            item::set_previous(memory, ItemRef(next), to.0);
        }
    }

    /// Unlinks and returns the next item whose deadline has passed. Each item examined costs one of
    /// `budget`. `None` if nothing is due or the budget is spent.
    pub(super) fn next_expired(
        &mut self,
        memory: &mut [u8],
        now: Instant,
        budget: &mut u32,
    ) -> Option<ItemRef> {
        let target = now.as_millis() / TICK_MILLIS;
        loop {
            if self.linked == 0 {
                self.tick = self.tick.max(target);
                return None;
            }
            if self.tick >= target {
                return None;
            }
            if *budget == 0 {
                return None;
            }
            if let Some(slot) = self.pending_cascade() {
                *budget -= 1;
                let item = ItemRef(self.heads[slot]);
                self.unlink(memory, item);
                self.link(memory, item);
                continue;
            }
            let first = self.heads[self.tick as usize % SLOTS];
            if first != 0 {
                *budget -= 1;
                let item = ItemRef(first);
                let due = self.deadline(item::deadline_code(memory, item));
                self.unlink(memory, item);
                if due.as_millis() / TICK_MILLIS <= self.tick {
                    return Some(item);
                }
                // Its deadline was moved later since it was linked here.
                self.link(memory, item);
                continue;
            }
            self.tick = self.next_event().map_or(target, |event| event.min(target));
        }
    }

    /// When [`TtlWheel::next_expired`] next has work.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.linked == 0 {
            return None;
        }
        let here = self.heads[self.tick as usize % SLOTS] != 0 || self.pending_cascade().is_some();
        let tick = if here { self.tick } else { self.next_event()? };
        Some(Instant::from_millis((tick + 1) * TICK_MILLIS))
    }

    fn slot_for(&self, due: u64) -> usize {
        let differing = due ^ self.tick;
        let level = if differing == 0 { 0 } else { differing.ilog2() as usize / 8 };
        // Deadlines reach 68 years: 2^33 ticks. The top level covers 2^40.
        let level = level.min(LEVELS - 1);
        level * SLOTS + digit(due, level)
    }

    /// A due slot above level 0 that still holds items.
    fn pending_cascade(&self) -> Option<usize> {
        (1..LEVELS)
            .map(|level| level * SLOTS + digit(self.tick, level))
            .find(|&slot| self.heads[slot] != 0)
    }

    /// The next tick after the current one at which a slot is occupied.
    fn next_event(&self) -> Option<u64> {
        (0..LEVELS).find_map(|level| {
            let slot = next_set_bit(&self.occupied[level], digit(self.tick, level) + 1)?;
            let shift = 8 * level;
            Some((self.tick >> (shift + 8) << 8 | slot as u64) << shift)
        })
    }

    /// Panics unless every list is well linked and no item waits beyond its deadline. Calls
    /// `visit` for every linked item.
    pub(super) fn check_invariants(&self, memory: &[u8], mut visit: impl FnMut(ItemRef)) {
        let mut count = 0;
        for slot in 0..LEVELS * SLOTS {
            let bit = self.occupied[slot / SLOTS][slot % SLOTS / 64] >> (slot % 64) & 1;
            assert_eq!(bit == 1, self.heads[slot] != 0, "occupied bit of slot {slot}");
            let mut previous = slot as u32 + 1;
            let mut next = self.heads[slot];
            while next != 0 {
                let item = ItemRef(next);
                assert_eq!(item::previous(memory, item), previous);
                let due =
                    self.deadline(item::deadline_code(memory, item)).as_millis() / TICK_MILLIS;
                let level = slot / SLOTS;
                let slot_start =
                    (self.tick >> (8 * level + 8) << 8 | (slot % SLOTS) as u64) << (8 * level);
                assert!(slot_start <= due.max(self.tick), "slot {slot} is after the deadline");
                visit(item);
                count += 1;
                previous = next;
                next = item::next(memory, item);
            }
        }
        assert_eq!(count, self.linked);
    }
}

const fn digit(tick: u64, level: usize) -> usize {
    (tick >> (8 * level)) as usize % SLOTS
}

fn next_set_bit(words: &[u64; SLOTS / 64], from: usize) -> Option<usize> {
    let mut word = from / 64;
    let mut bits = words.get(word)? & (u64::MAX << (from % 64));
    loop {
        if bits != 0 {
            return Some(word * 64 + bits.trailing_zeros() as usize);
        }
        word += 1;
        bits = *words.get(word)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: u64 = 1_700_000_000_123;

    /// Items of 32 bytes behind the first page.
    fn at(index: usize) -> ItemRef {
        ItemRef(FIRST_ITEM + 4 * index as u32)
    }

    fn add(wheel: &mut TtlWheel, memory: &mut [u8], index: usize, due: u64, now: u64) {
        let code = wheel.code(Deadline::from_millis(due), Instant::from_millis(now));
        item::set_deadline_code(memory, at(index), code);
        wheel.link(memory, at(index));
    }

    proptest! {
        #[test]
        fn every_item_expires_within_two_ticks_of_its_deadline_and_never_before(
            dues in prop::collection::vec(prop_oneof![0u64..2_000, 0u64..100_000, 0u64..40_000_000, 0u64..9_000_000_000], 1..60),
            step in 1u64..400_000, budget in 1u32..20,
        ) {
            let mut memory = vec![0; 70_000 + 40 * dues.len()];
            let mut wheel = TtlWheel::new();
            // Far deadlines are kept in whole seconds: take them so.
            let exact = |due: u64| if due - START < 1 << 31 { due } else { due / 1000 * 1000 };
            let dues: Vec<u64> = dues.into_iter().map(|ahead| exact(START + ahead)).collect();
            for (index, &due) in dues.iter().enumerate() {
                add(&mut wheel, &mut memory, index, due, START);
            }
            wheel.check_invariants(&memory, |_| ());
            let mut pending = dues.clone();
            while wheel.len() > 0 {
                let event = wheel.next_deadline().unwrap();
                let now = Instant::from_millis(event.as_millis() + step % 1000);
                loop {
                    let mut left = budget;
                    while let Some(item) = wheel.next_expired(&mut memory, now, &mut left) {
                        let index = (item.0 - FIRST_ITEM) as usize / 4;
                        prop_assert!(pending[index] <= now.as_millis());
                        pending[index] = u64::MAX;
                    }
                    wheel.check_invariants(&memory, |_| ());
                    if left > 0 { break; }
                }
                for &due in &pending {
                    prop_assert!(due > now.as_millis().saturating_sub(2 * TICK_MILLIS));
                }
            }
            prop_assert!(pending.iter().all(|&due| due == u64::MAX));
        }
    }

    #[test]
    fn an_unlinked_item_never_expires() {
        let mut memory = vec![0; 70_000];
        let mut wheel = TtlWheel::new();
        (0..3).for_each(|index| add(&mut wheel, &mut memory, index, START + 500, START));
        wheel.unlink(&mut memory, at(1));
        wheel.check_invariants(&memory, |_| ());
        let now = Instant::from_millis(START + 5_000);
        let mut expired = Vec::new();
        while let Some(item) = wheel.next_expired(&mut memory, now, &mut 10) {
            expired.push(item);
        }
        expired.sort();
        assert_eq!(expired, [at(0), at(2)]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_deadline_that_moved_later_expires_at_the_later_time() {
        let mut memory = vec![0; 70_000];
        let mut wheel = TtlWheel::new();
        add(&mut wheel, &mut memory, 0, START + 1_000, START);
        let code = wheel.code(Deadline::from_millis(START + 90_000), Instant::from_millis(START));
        item::set_deadline_code(&mut memory, at(0), code);
        let before = Instant::from_millis(START + 89_000);
        assert_eq!(wheel.next_expired(&mut memory, before, &mut 10), None);
        assert_eq!(wheel.len(), 1);
        let after = Instant::from_millis(START + 91_000);
        assert_eq!(wheel.next_expired(&mut memory, after, &mut 10), Some(at(0)));
    }

    #[test]
    fn an_idle_wheel_needs_no_waking() {
        assert_eq!(TtlWheel::new().next_deadline(), None);
    }
}
