//! flush_all: everything stored before a given time becomes a miss at once.
//!
//! Each item carries the *epoch* in which it was stored, four bits beside its value's length, and a
//! flush starts a new epoch: items of any other one are dead. Their memory is reclaimed by reads
//! that find them, by eviction, and by a background sweep over all pages. An epoch's number is
//! reused once none of its items is left. If flushes come faster than the sweep, no number is free:
//! then all pages are freed at once (see `clear`). Refused: comparing CAS tokens with the counter
//! at the flush (clients may choose tokens) and comparing times (items stored in the same
//! millisecond right after a flush must survive it).
//!
//! A shard of a replicated cluster (see `record`) is flushed up to a version instead, since the
//! flush and the writes around it reach the nodes in different orders. That also starts a new
//! epoch, but items of past ones are only suspect: an operation that finds one removes it if its
//! version is flushed, and otherwise moves it to the current epoch. While no epoch is left, items
//! of the current one are checked by version too. Epochs come in pairs there: the even one for
//! items, the odd one for tombstones, which no lookup therefore takes for an item.

use super::Shard;
use super::allocate::RemovalReason;
use super::item::{self, Head, Kind};
use super::slab::CLASS_INDEX;
use ringlane_types::time::Instant;

const EPOCHS: usize = 16;

/// Epochs and the sweep that reclaims items of past ones.
pub(super) struct Flush {
    /// The epoch of live items.
    pub(super) epoch: u8,
    /// 1, or 2 if epochs come in pairs.
    pub(super) step: u8,
    /// Items by epoch; those of past ones are not yet reclaimed.
    pub(super) items: [u64; EPOCHS],
    /// One bit per epoch without live items.
    condemned: u16,
    /// Outside the epoch of live items, nothing up to this version is alive.
    pub(super) upto: u64,
    /// Nothing below this version is alive, even in the epoch of live items: no epoch was left at
    /// the last flush. Otherwise 0, and always if clients may choose versions.
    pub(super) floor: u64,
    /// When the pending flush takes effect.
    pub(super) at: Option<Instant>,
    /// There may be items of past epochs.
    sweeps: bool,
    /// The next page and chunk of the sweep.
    page: u32,
    chunk: u32,
}

impl Flush {
    pub(super) fn new() -> Self {
        Self {
            epoch: 0,
            step: 1,
            items: [0; EPOCHS],
            condemned: u16::MAX,
            upto: 0,
            floor: 0,
            at: None,
            sweeps: false,
            page: 0,
            chunk: 0,
        }
    }

    /// Makes epochs come in pairs. The shard must be empty.
    pub(super) fn pair_epochs(&mut self) {
        debug_assert_eq!(self.items, [0; EPOCHS]);
        (self.epoch, self.step) = (0, 2);
        self.condemned = 0;
    }

    /// The epoch of valid tombstones; that of live items if there are none.
    pub(super) fn tombstone_epoch(&self) -> u8 {
        self.epoch | (self.step - 1)
    }

    /// Whether the item is a tombstone.
    pub(super) fn is_tombstone(&self, head: &Head) -> bool {
        head.epoch() & (self.step - 1) != 0
    }

    /// Whether the item was stored before a flush that covers it.
    pub(super) fn is_flushed(&self, head: &Head) -> bool {
        let epoch = head.epoch();
        let past = epoch != self.epoch;
        past && (self.condemned >> epoch & 1 != 0 || head.version <= self.upto)
            || head.version < self.floor
    }

    /// Whether the item is certainly not flushed. If false, it may still be alive.
    #[inline(always)]
    pub(super) fn is_present(&self, head: &Head) -> bool {
        head.epoch() == self.epoch && head.version >= self.floor
    }

    /// Resets the state of an emptied shard.
    pub(super) fn forget_all(&mut self) {
        let (step, upto, at) = (self.step, self.upto, self.at);
        let condemned = if step > 1 { !3 } else { u16::MAX };
        *self = Self { step, upto, at, condemned, ..Self::new() };
    }

    /// Valid tombstones.
    pub(super) fn tombstones(&self) -> u64 {
        if self.step == 1 { 0 } else { self.items[self.tombstone_epoch() as usize] }
    }

    /// Items that are still alive.
    pub(super) fn live(&self) -> u64 {
        self.items[self.epoch as usize]
    }

    /// Flushed items whose memory is still to be reclaimed.
    pub(super) fn dead(&self) -> u64 {
        self.items.iter().sum::<u64>() - self.live() - self.tombstones()
    }

    /// An epoch without items.
    fn unused(&self) -> Option<u8> {
        let pairs = self.items.chunks(self.step as usize);
        let at = pairs.into_iter().position(|pair| pair.iter().all(|&items| items == 0))?;
        Some(at as u8 * self.step)
    }
}

impl Shard {
    /// Makes everything stored before `at` a miss from that time on; at once if `at` is not in the
    /// future. There is one pending flush: a new one replaces it.
    pub fn flush_all(&mut self, at: Instant, now: Instant) {
        self.run_work_if_due(now);
        if at <= now {
            self.flush.at = None;
            self.start_flush(true);
            self.work_due_at = u64::MAX;
        } else {
            self.flush.at = Some(at);
            self.work_due_at = at.as_millis();
        }
    }

    /// Starts a new epoch. Items of past ones are dead, or with `condemns` false those with a
    /// flushed version.
    pub(super) fn start_flush(&mut self, condemns: bool) {
        let flush = &mut self.flush;
        if flush.live() == 0 && !(condemns && flush.step > 1) {
            if flush.floor > 0 {
                flush.floor = flush.upto.saturating_add(1);
            }
            return;
        }
        let Some(epoch) = flush.unused() else {
            // That many flushes occurred within one sweep.
            if condemns {
                self.clear();
            } else {
                flush.floor = flush.upto.saturating_add(1);
                (flush.sweeps, flush.page, flush.chunk) = (true, 0, 0);
            }
            return;
        };
        self.begin_epoch(epoch, condemns);
    }

    /// Makes all epochs except the unused `epoch` past ones.
    fn begin_epoch(&mut self, epoch: u8, condemns: bool) {
        let flush = &mut self.flush;
        flush.floor = 0;
        if condemns {
            flush.condemned = u16::MAX;
        }
        if flush.step > 1 {
            flush.condemned &= !(3 << epoch);
        }
        flush.epoch = epoch;
        flush.sweeps = true;
        flush.page = 0;
        flush.chunk = 0;
    }

    /// Continues the sweep. Each chunk examined costs one of `budget`. True if work remains.
    pub(super) fn reclaim_flushed(&mut self, budget: &mut u32) -> bool {
        while self.flush.sweeps {
            if self.flush.floor > 0
                && let Some(epoch) = self.flush.unused()
            {
                // The one that the last flush would have started.
                self.begin_epoch(epoch, false);
            }
            if self.flush.dead() == 0 {
                self.flush.sweeps = false;
                break;
            }
            if *budget == 0 {
                return true;
            }
            *budget -= 1;
            let page = self.flush.page;
            if page >= self.slab.page_count() {
                // Items that moved meanwhile may have been missed.
                self.flush.page = 0;
                return false;
            }
            if self.slab.page_class(page) >= CLASS_INDEX
                || self.flush.chunk >= self.slab.page(page).fresh
            {
                self.flush.page += 1;
                self.flush.chunk = 0;
                continue;
            }
            let chunk = self.slab.chunk(page, self.flush.chunk);
            self.flush.chunk += 1;
            if item::kind(self.slab.memory(), chunk) != Kind::Item || self.pins.is_dead(chunk) {
                continue;
            }
            // Pinned items too: nothing else would ever find them.
            let head = Head::read(self.slab.memory(), chunk);
            if self.flush.is_flushed(&head) {
                self.remove(&head, RemovalReason::Flushed);
            } else {
                self.migrate_epoch(&head);
            }
        }
        false
    }

    /// Moves an item that survived a flush to the current epoch.
    pub(super) fn migrate_epoch(&mut self, head: &Head) {
        let (from, bit) = (head.epoch(), head.epoch() & (self.flush.step - 1));
        let to = self.flush.epoch | bit;
        if from != to {
            item::set_epoch(self.slab.memory_mut(), head.item, to);
            self.flush.items[from as usize] -= 1;
            self.flush.items[to as usize] += 1;
        }
    }
}
