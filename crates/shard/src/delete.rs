//! Delete, and meta delete's invalidation and emptying.

use super::item::{self, BINARY_KEY, Head, STALE, WON};
use super::store::{Content, Put};
use super::{Entry, Shard};
use ringlane_types::request::{Delete, Request, Response};
use ringlane_types::time::{Deadline, Instant};

impl Shard {
    pub(super) fn delete(
        &mut self,
        request: &Request<'_>,
        delete: &Delete,
        now: Instant,
    ) -> Response<'_> {
        // Emptying stores an item: allocate first, since that may evict the one found.
        let has_room = delete.empty.is_none() || self.make_index_room(request.hash, now);
        let Ok((entry, head)) = self.find_settled(request, now) else {
            self.counters.delete_misses += 1;
            return Response::NotFound;
        };
        if delete.compare.is_some_and(|cas| cas != head.version || cas == 0) {
            self.counters.delete_misses += 1;
            return Response::Exists;
        }
        if !delete.invalidate {
            self.counters.delete_hits += 1;
            self.class_counters[self.slab.class_of(head.item) as usize].delete_hits += 1;
        }
        match delete.empty {
            // As without memory for the emptied item: the old value does not stay.
            Some(_) if !has_room => {
                self.remove_or_bury(request, Some((entry, head)), now);
                Response::OutOfMemory
            }
            Some(flags) => self.empty(request, delete, flags, (entry, head), now),
            None if delete.invalidate => self.invalidate(request, delete, entry, &head, now),
            None => {
                self.remove_or_bury(request, Some((entry, head)), now);
                Response::Deleted
            }
        }
    }

    /// Marks an item stale and lets the next reader win.
    fn invalidate(
        &mut self,
        request: &Request<'_>,
        delete: &Delete,
        entry: Entry,
        head: &Head,
        now: Instant,
    ) -> Response<'_> {
        let mut item = head.item;
        match delete.deadline {
            Some(deadline) if deadline.is_past(now) => {
                self.remove_or_bury(request, Some((entry, *head)), now);
                return Response::Deleted;
            }
            Some(deadline) => item = self.set_deadline(request.hash, head, deadline, now).item,
            None => {}
        }
        let version = self.cas_or_next(delete.cas);
        let memory = self.slab.memory_mut();
        let marks = Head::read(memory, item).marks;
        item::set_marks(memory, item, marks & !WON | STALE);
        item::set_version(memory, item, version);
        Response::Deleted
    }

    /// Keeps an item but empties its value.
    fn empty(
        &mut self,
        request: &Request<'_>,
        delete: &Delete,
        flags: u32,
        (entry, head): (Entry, Head),
        now: Instant,
    ) -> Response<'_> {
        let deadline = delete.deadline.unwrap_or(Deadline::NEVER);
        if deadline.is_past(now) {
            self.remove_or_bury(request, Some((entry, head)), now);
            return Response::Deleted;
        }
        let asked = delete.cas.filter(|&cas| cas != 0);
        let version = if asked.is_some() || delete.invalidate || self.tombstone_policy.is_some() {
            self.cas_or_next(asked)
        } else {
            head.version
        };
        let stale = if delete.invalidate { STALE } else { 0 };
        let deadline = self.rounded_deadline(deadline, version);
        let marks = head.marks & BINARY_KEY | stale;
        let put = Put { flags, deadline, marks, version, content: Content::Bytes(b"") };
        match self.put_over(request, Some((entry, head)), &put, true, now) {
            Some(_) => Response::Deleted,
            None => Response::OutOfMemory,
        }
    }
}
