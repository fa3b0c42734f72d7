//! flush_all: everything stored before a moment becomes a miss at once.
//!
//! Each item carries the *epoch* it was stored in, four bits beside its value's length, and a flush
//! starts a new epoch: items of another one are dead. Their memory is taken back by the reads
//! that meet them, by eviction, and by a sweep over all pages that runs in the background. An
//! epoch's number is used again when none of its items is left. Refused: comparing CAS tokens with
//! the counter at the flush (clients may choose tokens) and comparing times (items stored in the
//! same millisecond right after a flush must survive it).

use super::Shard;
use super::eviction::Look;
use super::room::Leave;
use super::slab::CLASS_INDEX;
use crate::time::Instant;

const EPOCHS: usize = 16;

/// Epochs and the sweep that reclaims items of past ones.
pub(super) struct Flush {
    /// The epoch of live items.
    pub(super) epoch: u8,
    /// Items by epoch, those of past ones not yet reclaimed.
    pub(super) items: [u64; EPOCHS],
    /// When the pending flush happens.
    pub(super) at: Option<Instant>,
    /// Page and chunk the sweep looks at next.
    page: u32,
    chunk: u32,
}

impl Flush {
    pub(super) fn new() -> Self {
        Self { epoch: 0, items: [0; EPOCHS], at: None, page: 0, chunk: 0 }
    }

    /// Items that are still alive.
    pub(super) fn live(&self) -> u64 {
        self.items[self.epoch as usize]
    }

    /// Flushed items whose memory is still to be reclaimed.
    pub(super) fn dead(&self) -> u64 {
        self.items.iter().sum::<u64>() - self.live()
    }
}

impl Shard {
    /// Makes everything stored before `at` a miss from that moment on; at once when `at` is not in
    /// the future. There is one pending flush: a new one takes its place.
    pub fn flush_all(&mut self, at: Instant, now: Instant) {
        self.attend_if_due(now);
        if at <= now {
            self.flush.at = None;
            self.start_flush(now);
            self.attention_at = u64::MAX;
        } else {
            self.flush.at = Some(at);
            self.attention_at = at.as_millis();
        }
    }

    pub(super) fn start_flush(&mut self, now: Instant) {
        if self.flush.live() == 0 {
            return;
        }
        let unused = |flush: &Flush| flush.items.iter().position(|&items| items == 0);
        let epoch = unused(&self.flush).unwrap_or_else(|| {
            // Sixteen flushes within one sweep: this one pays for the rest of it.
            let mut unbounded = u32::MAX;
            self.reclaim_flushed(now, &mut unbounded);
            unused(&self.flush).expect("a whole sweep leaves only live items")
        });
        self.flush.epoch = epoch as u8;
        self.flush.page = 0;
        self.flush.chunk = 0;
    }

    /// Sweeps on. Each chunk looked at costs one of `budget`. True when more is to be done.
    pub(super) fn reclaim_flushed(&mut self, now: Instant, budget: &mut u32) -> bool {
        while self.flush.dead() > 0 {
            if *budget == 0 {
                return true;
            }
            *budget -= 1;
            let page = self.flush.page;
            if page >= self.slab.page_count() {
                // Only items that are kept by a pin or an operation were passed over.
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
            if let Look::Dead(head) = self.sight(now).look(chunk)
                && head.epoch() != self.flush.epoch
            {
                self.remove(&head, Leave::Flushed);
            }
        }
        false
    }
}
