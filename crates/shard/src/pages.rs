//! Background work: expiring items, emptying pages for classes that need one, reclaiming flushed
//! items.
//!
//! Pages change owners in steps. One page at a time is *drained*: it hands out no more chunks, its
//! old items are evicted, the others move to other chunks of the class (whose own oldest items are
//! evicted for them), and the empty page goes to its new owner. So a class that loses a page loses
//! its least recently used items, wherever they are.
//!
//! A page is drained if the reserve is low, if the index needs one, if the memory limit was
//! lowered, if an operator requests it, or to balance: a class that evicts items much younger than
//! another class's oldest takes a page from it. Balancing makes recency hold across classes:
//! without it memory would stay with the sizes that came first. Evicting stores pay for it in
//! proportion to their size, so that a page is ready about when a page's worth was stored.

use super::Shard;
use super::allocate::{RemovalReason, view};
use super::eviction::ChunkState;
use super::item::{self, HAS_TTL, Head, Kind};
use super::piece_at;
use ringlane_types::request::ItemRef;
use ringlane_types::time::Instant;

/// Chunks of a draining page handled per store while the reserve is short.
const DRAIN_PER_STORE: u32 = 16;
/// Maximum chunks of a draining page handled per eviction.
const DRAIN_PER_EVICTION_MAX: u32 = 1024;
/// A class requests a page after evicting this fraction of a page's worth.
const BALANCE_PAGE_PART: u32 = 2;
/// How much older, in halves, another class's oldest items must be for it to give up a page, and
/// its last one.
const BALANCE_HALVES: u64 = 3;
const BALANCE_LAST_HALVES: u64 = 8;
/// Age difference, in units of 8 ms, below which classes count as balanced.
const BALANCE_AGE_MIN: u64 = 64;

/// The page being emptied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) page: u32,
    chunk: u32,
    /// The class that gets the page; `None` for the common pool.
    to: Option<u8>,
    /// Items at least this old, in units of 8 ms, are evicted rather than moved.
    evict_age: u32,
}

/// The outcome of a request to move a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReassignOutcome {
    /// The page will be moved in the background.
    Started,
    /// Another page is being moved.
    Busy,
    /// There is no such class.
    BadClass,
    /// The source has no page to spare.
    NoSpare,
    /// Source and destination are the same.
    Same,
}

impl Shard {
    /// Does some background work, touching about `budget` items at most. Returns whether more could
    /// be done now.
    pub fn maintain(&mut self, now: Instant, budget: u32) -> bool {
        self.run_work_if_due(now);
        let mut budget = budget.max(1);
        while let Some(item) = self.wheel.next_expired(self.slab.memory_mut(), now, &mut budget) {
            let head = Head::read(self.slab.memory(), item);
            if self.tombstone_policy.is_some() {
                self.expire_to_tombstone(&head, now);
            } else {
                self.remove(&head, RemovalReason::Expired);
            }
        }
        if budget == 0 {
            return true;
        }
        self.split_buckets(budget.min(8));
        if self.drain.is_none() {
            self.plan_drain(now);
        }
        if self.drain.is_some() {
            self.drain_some(now, &mut budget);
        }
        let reclaiming = self.reclaim_flushed(&mut budget);
        reclaiming || budget == 0 || self.drain.is_some()
    }

    /// When [`Shard::maintain`] next has timed work.
    pub fn next_deadline(&self) -> Option<Instant> {
        let wheel = self.wheel.next_deadline();
        let flush = self.flush.at;
        wheel.into_iter().chain(flush).min()
    }

    /// Changes the memory limit; a lower one applies at once to new pages and gradually to pages in
    /// use. False if the limit is below 1 MiB or above the shard's initial memory.
    pub fn set_memory_limit(&mut self, bytes: u64) -> bool {
        let pages = bytes / self.slab.page_bytes() as u64;
        if bytes < super::MEMORY_BYTES_MIN || pages > self.slab.page_count() as u64 {
            return false;
        }
        self.slab.set_pages_max(pages as u32);
        true
    }

    /// Requests that a page of class number `from` (-1 for any) be given to class number `to`. As
    /// in memcached, numbers start at 1 and 0 means free pages.
    pub fn reassign_page(&mut self, from: i32, to: i32) -> ReassignOutcome {
        let classes = self.slab.classes.len() as i32;
        if !(-1..=classes).contains(&from) || !(0..=classes).contains(&to) {
            return ReassignOutcome::BadClass;
        }
        if from == to {
            return ReassignOutcome::Same;
        }
        if self.drain.is_some() {
            return ReassignOutcome::Busy;
        }
        let spare = |class: &u8| self.slab.classes[*class as usize].pages.len() > 1;
        let to = (to as u8).checked_sub(1);
        let donor = match from {
            -1 => (0..classes as u8)
                .filter(|&class| Some(class) != to)
                .max_by_key(|&class| self.slab.classes[class as usize].pages.len()),
            from => (from as u8).checked_sub(1),
        };
        match donor.filter(spare) {
            Some(donor) if self.start_drain_of(donor, to, u32::MAX) => ReassignOutcome::Started,
            _ => ReassignOutcome::NoSpare,
        }
    }

    /// Drains a little during a store, so that the reserve is refilled even if there is no time for
    /// [`Shard::maintain`].
    #[inline]
    pub(super) fn drain_inline(&mut self, now: Instant) {
        if self.slab.pages_free() < self.reserve_pages {
            self.drain_for_reserve(now);
        }
    }

    #[inline(never)]
    fn drain_for_reserve(&mut self, now: Instant) {
        if self.drain.is_none() {
            self.plan_drain(now);
        }
        self.drain_some(now, &mut { DRAIN_PER_STORE });
    }

    /// Starts draining a page if one is needed.
    fn plan_drain(&mut self, now: Instant) {
        let over_limit = self.slab.pages_in_use() > self.slab.pages_max();
        let index_needs = self.index.wants_split() && self.index.needs_segment()
            || self.index.is_short() && self.index.len() > 0 && self.index.overflow_used() > 0;
        let free = self.slab.pages_free();
        if (over_limit || free < self.reserve_pages || index_needs && free == 0)
            && let Some((class, age)) = self.donor(None, now)
        {
            self.start_drain_of(class, None, age);
        }
    }

    /// Called after each eviction of `class`: occasionally compares the class with the others, and
    /// works on the page that it is to get.
    #[inline]
    pub(super) fn balance(&mut self, class: u8, now: Instant) {
        if let Some(drain) = self.drain {
            if drain.to == Some(class) {
                let owner = self.slab.page_class(drain.page);
                if let Some(giver) = self.slab.classes.get(owner as usize) {
                    let pace =
                        2 * self.slab.classes[class as usize].chunk_bytes / giver.chunk_bytes;
                    self.drain_some(now, &mut (1 + pace).min(DRAIN_PER_EVICTION_MAX));
                }
            }
            return;
        }
        let counters = &mut self.class_counters[class as usize];
        counters.evictions_to_balance += 1;
        let page_worth = self.slab.classes[class as usize].chunks_per_page / BALANCE_PAGE_PART;
        if counters.evictions_to_balance >= page_worth {
            counters.evictions_to_balance = 0;
            let age = self.class_age(class, now);
            if let Some((donor, _)) = self.donor(Some((class, age)), now) {
                self.start_drain_of(donor, Some(class), age);
            }
        }
    }

    /// The class that can best spare a page, and the age of its oldest items. For a class `needing`
    /// one, whose own items are evicted at the given age, only a class with much older items is a
    /// donor.
    fn donor(&mut self, needing: Option<(u8, u32)>, now: Instant) -> Option<(u8, u32)> {
        let mut best: Option<(u8, u32)> = None;
        for class in 0..self.slab.classes.len() as u8 {
            let owner = &self.slab.classes[class as usize];
            let pages = owner.pages.len();
            if pages == 0 || needing.is_some_and(|(needing, _)| needing == class) {
                continue;
            }
            let chunks = pages as u64 * owner.chunks_per_page as u64;
            if pages > 1 && chunks.saturating_sub(owner.used) >= owner.chunks_per_page as u64 {
                // Its items fit into the other pages.
                return Some((class, u32::MAX));
            }
            if !self.policy.evicts() {
                continue;
            }
            let age = self.class_age(class, now);
            let halves = if pages == 1 { BALANCE_LAST_HALVES } else { BALANCE_HALVES };
            let gives = needing.is_none_or(|(_, needs)| {
                age as u64 * 2 > needs as u64 * halves && (age - needs) as u64 > BALANCE_AGE_MIN
            });
            if gives && best.is_none_or(|(_, oldest)| age > oldest) {
                best = Some((class, age));
            }
        }
        best
    }

    fn class_age(&mut self, class: u8, now: Instant) -> u32 {
        self.policy.eviction_age(&view!(self, now), class)
    }

    /// Evicts all items of the page being drained, for `class`; if there is none, of the page with
    /// the fewest. False if there is no such page, or eviction is disabled.
    pub(super) fn start_emptying(&mut self, class: u8) -> bool {
        if !self.policy.evicts() {
            return false;
        }
        let (page, chunk) = match self.drain {
            Some(drain) => (drain.page, drain.chunk),
            None => {
                let Some(page) = self.cheapest_page() else { return false };
                self.slab.start_drain(page);
                (page, 0)
            }
        };
        self.drain = Some(Drain { page, chunk, to: Some(class), evict_age: 0 });
        true
    }

    /// Starts draining the page of `class` with the fewest items and nothing held.
    fn start_drain_of(&mut self, class: u8, to: Option<u8>, evict_age: u32) -> bool {
        let pages = self.slab.classes[class as usize].pages.iter();
        let page = pages
            .copied()
            .filter(|&page| self.slab.page(page).held == 0)
            .min_by_key(|&page| self.slab.page(page).used);
        let Some(page) = page else { return false };
        self.slab.start_drain(page);
        self.drain = Some(Drain { page, chunk: 0, to, evict_age });
        true
    }

    /// Empties part of the page being drained, at most `budget` chunks.
    pub(super) fn drain_some(&mut self, now: Instant, budget: &mut u32) {
        while let Some(mut drain) = self.drain {
            if *budget == 0 {
                return;
            }
            if !self.slab.page(drain.page).draining {
                // Empty and freed: it may already have a new owner.
                self.counters.slabs_moved += 1;
                self.drain = None;
                if let Some(class) = drain.to {
                    self.slab.assign(class);
                }
                return;
            }
            let page = self.slab.page(drain.page);
            if page.held > 0 || drain.chunk >= page.fresh {
                // Something here must stay: try another page later.
                self.slab.stop_drain(drain.page);
                self.drain = None;
                return;
            }
            *budget -= 1;
            self.work = self.work.wrapping_add(1);
            let chunk = self.slab.chunk(drain.page, drain.chunk);
            drain.chunk += 1;
            self.drain = Some(drain);
            self.clear_chunk(chunk, drain.evict_age, now);
        }
    }

    /// Empties one chunk of the draining page.
    fn clear_chunk(&mut self, chunk: ItemRef, evict_age: u32, now: Instant) {
        let head = match self.view(now).chunk_state(chunk) {
            ChunkState::Unevictable => return,
            ChunkState::Dead(head) => return self.evict(&head, now),
            ChunkState::Live(head) => head,
        };
        if self.policy.evicts() && self.view(now).age(&head) >= evict_age {
            return self.evict(&head, now);
        }
        let class = self.slab.class_of(chunk);
        let mut moved_to = self.slab.allocate(class);
        if moved_to.is_none() && self.policy.evicts() {
            // Evict the class's oldest item, wherever it is.
            let chained = item::kind(self.slab.memory(), chunk) == Kind::Piece
                || head.chain(self.slab.memory()).is_some();
            if !chained && self.evict_from(class, now) {
                if matches!(self.view(now).chunk_state(chunk), ChunkState::Unevictable) {
                    // It was this item.
                    return;
                }
                moved_to = self.slab.allocate(class);
            }
            if moved_to.is_none() {
                return self.evict(&head, now);
            }
        }
        if let Some(to) = moved_to {
            self.move_chunk(chunk, to, &head);
        }
    }

    /// Moves the content of a chunk, an item or a piece of one, to another chunk of the class.
    fn move_chunk(&mut self, from: ItemRef, to: ItemRef, head: &Head) {
        let (start, bytes) = (item::offset(from), self.slab.chunk_bytes_of(from));
        self.slab.memory_mut().copy_within(start..start + bytes, item::offset(to));
        if from == head.item {
            let accessed = self.policy.moved(head.accessed);
            item::set_accessed(self.slab.memory_mut(), to, accessed);
            if let Some(chain) = head.chain(self.slab.memory()) {
                self.adopt_pieces(chain, to);
            }
            let entry = self.find_again(self.hash_of(head), from);
            self.index.replace(self.slab.memory_mut(), entry, to);
            if head.has(HAS_TTL) {
                self.wheel.relocate(self.slab.memory_mut(), to);
            }
        } else {
            let chain = head.chain(self.slab.memory()).expect("a piece belongs to a chain");
            let spans = &mut self.chains[chain as usize].spans;
            let span = spans.iter_mut().find(|span| piece_at(span) == from);
            span.expect("the chain lists its pieces").offset =
                (item::offset(to) + super::PIECE_HEADER_BYTES) as u64;
        }
        self.slab.free(from);
    }
}
