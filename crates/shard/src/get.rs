//! Reads: get, touch, gat, and meta gets with leases.

use super::item::{self, FETCHED, HAS_TTL, Head, LARGE, NO_CHAIN, STALE, WON};
use super::store::{Content, Put};
use super::{Absent, Shard};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{Get, Purpose, Request, Response, Vivify};
use ringlane_types::time::{Deadline, Instant};

impl Shard {
    #[inline]
    pub(super) fn get(&mut self, request: &Request<'_>, get: &Get, now: Instant) -> Response<'_> {
        let (_, head) = match self.find(request, now) {
            Ok(found) => found,
            // Most misses: there is nothing to resolve, create or count separately.
            Err(Absent::Missing) if get.purpose == Purpose::Get && get.vivify.is_none() => {
                self.counters.cmd_get += 1;
                self.counters.get_misses += 1;
                return Response::Miss;
            }
            Err(absent) => return self.miss(request, get, absent, now),
        };
        if get.allowance.is_limited()
            && head.value_bytes(self.slab.memory()) > get.allowance.0 as usize
        {
            return self.over_allowance(&{ head });
        }
        let class = self.slab.class_of(head.item);
        self.count_hit(get, class);
        // Calls get a copy, so that the head itself stays in registers.
        if self.frequency_mask != 0 {
            return self.get_counted(request, get, &{ head }, now);
        }
        if !get.no_use {
            self.note_use(&head, item::stamp(now));
        }
        if get.touch.is_some() || get.lease || get.refresh_below_seconds.is_some() {
            return self.get_special(request, get, &{ head }, now);
        }
        Response::Hit(self.hit_in(class, &head, now))
    }

    /// The answer to a read whose value exceeds the allowance. Nothing is changed or counted.
    #[cold]
    fn over_allowance(&self, head: &Head) -> Response<'_> {
        let value_bytes = head.value_bytes(self.slab.memory()) as u32;
        Response::OverAllowance { value_bytes, request: &[] }
    }

    /// A hit under a policy that counts uses: out of line, so that it costs other policies nothing.
    #[inline(never)]
    fn get_counted(
        &mut self,
        request: &Request<'_>,
        get: &Get,
        head: &Head,
        now: Instant,
    ) -> Response<'_> {
        if !get.no_use {
            self.use_item(head, now);
        }
        if get.touch.is_some() || get.lease || get.refresh_below_seconds.is_some() {
            return self.get_special(request, get, head, now);
        }
        Response::Hit(self.hit(head, now))
    }

    /// Records that an item was read.
    #[inline(never)]
    pub(super) fn use_item(&mut self, head: &Head, now: Instant) {
        let accessed = self.access_time_used(head, now);
        self.note_use(head, accessed);
    }

    /// Records that an item was read, with its new access time.
    #[inline(always)]
    fn note_use(&mut self, head: &Head, accessed: u32) {
        if head.accessed != accessed {
            item::set_accessed(self.slab.memory_mut(), head.item, accessed);
        }
        if !head.has(FETCHED) {
            item::set_marks(self.slab.memory_mut(), head.item, head.marks | FETCHED);
        }
    }

    #[inline]
    fn count_hit(&mut self, get: &Get, class: u8) {
        let class = &mut self.class_counters[class as usize];
        match get.purpose {
            Purpose::Get if get.touch.is_none() => {
                self.counters.cmd_get += 1;
                self.counters.get_hits += 1;
                class.get_hits += 1;
            }
            Purpose::Get | Purpose::Touch => {
                self.counters.cmd_touch += 1;
                self.counters.touch_hits += 1;
                class.touch_hits += 1;
            }
            Purpose::Inspect => {}
            Purpose::Describe => self.counters.cmd_meta += 1,
        }
    }

    /// A hit of a read that changes the deadline or uses leases.
    #[inline(never)]
    fn get_special(
        &mut self,
        request: &Request<'_>,
        get: &Get,
        head: &Head,
        now: Instant,
    ) -> Response<'_> {
        if get.touch.is_none() && get.refresh_below_seconds.is_none() && !head.has(STALE) {
            // Every meta get may take a lease: only a stale item grants one.
            return Response::Hit(self.hit(head, now));
        }
        let deadline_before = self.deadline_of(head);
        let mut deadline = deadline_before;
        let mut at = *head;
        let mut gone = false;
        if let Some(touch) = get.touch {
            if touch.is_past(now) {
                gone = true;
                deadline = touch;
            } else {
                at = self.set_deadline(request.hash, head, touch, now);
                deadline = self.deadline_of(&at);
            }
        }
        let win_sent = head.has(WON);
        let judged = if get.refresh_first { deadline_before } else { deadline };
        let refresh = get
            .refresh_below_seconds
            .zip(judged.seconds_left(now))
            .is_some_and(|(below, left)| left < below as u64);
        let won = !win_sent && (get.lease && head.has(STALE) || refresh);
        if won {
            let marks = Head::read(self.slab.memory(), at.item).marks;
            item::set_marks(self.slab.memory_mut(), at.item, marks | WON);
        }
        if self.tombstone_policy.is_some() && (won || deadline != deadline_before) {
            // A replicated change gets its own version.
            at.version = self.take_cas();
            item::set_version(self.slab.memory_mut(), at.item, at.version);
        }
        if gone {
            self.send_to_limbo(request.hash, &at, now);
        }
        let mut hit = self.hit(&at, now);
        hit.deadline = deadline;
        hit.deadline_before = deadline_before;
        hit.idle_seconds = item::seconds_between(self.used_at(head), item::stamp(now));
        hit.marks.fetched = head.has(FETCHED);
        hit.marks.won = won;
        hit.marks.win_sent = win_sent;
        Response::Hit(hit)
    }

    #[cold]
    #[inline(never)]
    fn miss(
        &mut self,
        request: &Request<'_>,
        get: &Get,
        absent: Absent,
        now: Instant,
    ) -> Response<'_> {
        let absent = match absent {
            Absent::StaleEpoch => match self.resolve_epoch(request) {
                Some(absent) => absent,
                None => return self.get(request, get, now),
            },
            absent => absent,
        };
        if let Some(vivify) = get.vivify
            && let Some(head) = self.vivify(request, &vivify, get.no_use, now)
        {
            let class = self.slab.class_of(head.item);
            self.count_hit(&Get { touch: None, ..*get }, class);
            let mut hit = self.hit(&head, now);
            if vivify.deadline.is_past(now) {
                hit.deadline = vivify.deadline;
            }
            hit.deadline_before = Deadline::NEVER;
            hit.marks.fetched = false;
            hit.marks.won = true;
            hit.marks.win_sent = false;
            return Response::Hit(hit);
        }
        match get.purpose {
            // A meta get counts as a touch only when it hits.
            Purpose::Touch if !get.lease => {
                self.counters.cmd_touch += 1;
                self.counters.touch_misses += 1;
            }
            Purpose::Touch | Purpose::Get => {
                self.counters.cmd_get += 1;
                self.counters.get_misses += 1;
                self.counters.get_expired += u64::from(absent == Absent::Expired);
                self.counters.get_flushed += u64::from(absent == Absent::Flushed);
            }
            Purpose::Inspect => {}
            Purpose::Describe => self.counters.cmd_meta += 1,
        }
        Response::Miss
    }

    /// Creates the missing item, empty, with its win handed out. `None` without memory.
    fn vivify(
        &mut self,
        request: &Request<'_>,
        vivify: &Vivify,
        no_use: bool,
        now: Instant,
    ) -> Option<Head> {
        if !self.fits(request.key.len(), 0, 0) || !self.make_index_room(request.hash, now) {
            return None;
        }
        let gone = vivify.deadline.is_past(now);
        let version = self.first_cas(vivify.cas);
        let put = Put {
            flags: 0,
            deadline: if gone {
                Deadline::NEVER
            } else {
                self.rounded_deadline(vivify.deadline, version)
            },
            marks: WON
                | if vivify.binary_key { item::BINARY_KEY } else { 0 }
                | if no_use { 0 } else { FETCHED },
            version,
            content: Content::Bytes(b""),
        };
        let head = self.put_over(request, None, &put, true, now)?;
        let head = Head::read(self.slab.memory(), head.item);
        if gone {
            self.send_to_limbo(request.hash, &head, now);
        }
        Some(head)
    }

    /// Sets a deadline in the future on a live item. The item may move to a larger chunk to make
    /// room for its TTL block; returns the resulting item. Without such a chunk the deadline is
    /// unchanged: if eviction is disabled, every item already has the block.
    pub(super) fn set_deadline(
        &mut self,
        hash: KeyHash,
        head: &Head,
        deadline: Deadline,
        now: Instant,
    ) -> Head {
        let mut item = head.item;
        let deadline = self.rounded_deadline(deadline, self.next_cas);
        if head.has(HAS_TTL) {
            let old = self.deadline_of(head);
            let linked = item::previous(self.slab.memory(), item) != 0;
            // An item that expires later than its slot is moved when the slot is due.
            let stays = linked && deadline >= old && !deadline.is_never();
            if linked && !stays {
                self.wheel.unlink(self.slab.memory_mut(), item);
            }
            let code = self.wheel.code(deadline, now);
            item::set_deadline_code(self.slab.memory_mut(), item, code);
            if !stays && !deadline.is_never() {
                self.wheel.link(self.slab.memory_mut(), item);
            }
        } else if !deadline.is_never() {
            match self.add_ttl_block(hash, head, now) {
                Some(moved) => item = moved,
                None => return Head::read(self.slab.memory(), item),
            }
            let code = self.wheel.code(deadline, now);
            item::set_deadline_code(self.slab.memory_mut(), item, code);
            self.wheel.link(self.slab.memory_mut(), item);
        }
        Head::read(self.slab.memory(), item)
    }

    /// Makes room for a TTL block in an item without one, in place or in a larger chunk.
    fn add_ttl_block(
        &mut self,
        hash: KeyHash,
        head: &Head,
        now: Instant,
    ) -> Option<super::ItemRef> {
        let old = head.item;
        let shape = head.shape(self.slab.memory());
        let wider = super::Shape { ttl: true, ..shape };
        let in_place = wider.chunk_bytes() <= self.slab.chunk_bytes_of(old) && !self.is_pinned(old);
        let new = if in_place {
            old
        } else {
            self.guard(head);
            let class = self.slab.class_for(wider.chunk_bytes());
            let chunk = self.allocate_chunk(class, now);
            self.unguard(head);
            chunk?
        };
        // The marks may have changed since `head` was read.
        let head = Head::read(self.slab.memory(), old);
        self.account_out(&head);
        let (from, to) = (item::offset(old), item::offset(new));
        let memory = self.slab.memory_mut();
        let behind = from + item::HEADER_BYTES..from + shape.chunk_bytes();
        memory.copy_within(behind, to + item::HEADER_BYTES + item::TTL_BYTES);
        memory.copy_within(from..from + item::HEADER_BYTES, to);
        item::set_marks(memory, new, head.marks | HAS_TTL);
        item::set_previous(memory, new, 0);
        item::set_next(memory, new, 0);
        debug_assert!(!head.has(LARGE) || Head::read(memory, new).chain(memory).is_none());
        self.account_in(new, wider.item_bytes());
        if new != old {
            let accessed = self.policy.moved(head.accessed);
            item::set_accessed(self.slab.memory_mut(), new, accessed);
            let entry = self.find_again(hash, old);
            self.index.replace(self.slab.memory_mut(), entry, new);
            if !(self.is_pinned(old) && self.pins.mark_dead(old)) {
                self.free_item(old, NO_CHAIN);
            }
        }
        Some(new)
    }
}
