//! Accounts for the memory that the connections of one core hold outside its shard, against its
//! share of the node's limit.
//!
//! Unsent answers, values in transit from other cores or being received for them, and waiting input
//! are not item memory, so `--memory` does not bound them; this does. The first few KiB of each
//! connection are not counted: short answers are not affected.
//!
//! Held memory plus memory reserved for answers in transit stays below the share, except for one
//! answer at a time that is admitted although it does not fit, so that one longer than the whole
//! share gets through, and stalled clients cannot block the others completely. The more is held,
//! the less each connection may hold: see [`ConnectionMemory::restraint`]. If nothing else helps,
//! `stalled` selects the connections to close.
//!
//! Not every use may exhaust it: uploads leave a quarter to answers, and long answers leave an
//! eighth to those of a few KiB, so that large transfers cannot block small ones. Only a few MiB of
//! long answers are in transit at a time: more would only delay the short ones behind them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::protocol::pipeline::Claim;
use crate::time::Instant;

/// Uncounted bytes per connection.
pub const UNCOUNTED_BYTES: usize = 8 << 10;
/// Longest answer that may use the last eighth of the share.
const SHORT_BYTES: usize = 32 << 10;
/// Maximum bytes of long answers in transit to one core.
const UNDER_WAY_BYTES: usize = 4 << 20;
/// Minimum peak, and time below it, after which returning memory pays off.
const MUCH_BYTES: usize = 1 << 20;
const EBB: Duration = Duration::from_secs(2);
/// How much one may be in arrears of reading input that waits, at most.
const PENDING_BYTES_MAX: usize = 64 << 10;

/// One core's account. Its connections share it.
#[derive(Debug)]
pub struct ConnectionMemory {
    /// Limit of held and reserved bytes.
    share: usize,
    /// Configured limit of unsent answer bytes per connection.
    output_bytes_max: usize,
    held: Cell<usize>,
    reserved: Cell<usize>,
    peak: Cell<usize>,
    restraint: Cell<u32>,
    /// The connection whose answer was admitted although it did not fit.
    exempt: Cell<Option<u32>>,
    /// The connection whose answer was admitted although too many were in transit.
    first: Cell<Option<u32>>,
    /// Peak since [`ConnectionMemory::has_ebbed`] was last called, and when usage was last high.
    recent_peak: Cell<usize>,
    much_at: Cell<Option<Instant>>,
    /// Memory was released since a connection last failed to get some.
    freed: Cell<bool>,
    /// A request for memory was denied since the last search for stalled connections.
    wanted: Cell<bool>,
}

/// One connection's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    held: u32,
    reserved: u32,
}

impl Charge {
    /// Counted held bytes.
    pub fn held(&self) -> usize {
        self.held as usize
    }
}

impl ConnectionMemory {
    /// An account of `share` bytes for connections with at most `output_bytes_max` unsent bytes
    /// each.
    pub fn new(share: usize, output_bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            share,
            output_bytes_max,
            held: Cell::new(0),
            reserved: Cell::new(0),
            peak: Cell::new(0),
            restraint: Cell::new(0),
            exempt: Cell::new(None),
            first: Cell::new(None),
            recent_peak: Cell::new(0),
            much_at: Cell::new(None),
            freed: Cell::new(false),
            wanted: Cell::new(false),
        })
    }

    /// Bytes held, and their peak.
    pub fn figures(&self) -> (usize, usize) {
        (self.held.get(), self.peak.get())
    }

    /// How often the share of each connection is halved because of total usage.
    #[inline]
    pub fn restraint(&self) -> u32 {
        self.restraint.get()
    }

    /// Unsent answer bytes of one connection beyond which it gets no more answers for now.
    #[inline]
    pub fn output_bytes_max(&self) -> usize {
        self.output_bytes_max >> self.restraint.get()
    }

    /// Maximum input bytes buffered for a blocked connection.
    pub fn pending_bytes_max(&self) -> usize {
        PENDING_BYTES_MAX >> self.restraint.get()
    }

    /// Whether connection `index` may hold `bytes` more of an incomplete line. Lines leave some memory
    /// to answers of modest length, which would otherwise wait for clients that send nothing more.
    pub fn admits(&self, index: u32, bytes: usize) -> bool {
        self.held.get() + bytes <= self.share - self.share / 32 || self.exempts(index)
    }

    /// Whether connection `index` may hold `bytes` more of an incoming value. One whose `whole`
    /// length exceeds the share for all uploads gets through alone.
    pub fn admits_upload(&self, index: u32, bytes: usize, whole: usize) -> bool {
        let limit = self.share - self.share / 4;
        let fits = self.held.get() + bytes <= limit;
        if !fits && whole <= limit {
            self.wanted.set(true);
            return false;
        }
        fits || self.exempts(index)
    }

    /// Reserves `bytes` for an answer in transit to connection `index`, if there is room.
    #[inline]
    pub fn reserve(&self, index: u32, charge: &mut Charge, bytes: usize, claim: Claim) -> bool {
        if bytes <= UNCOUNTED_BYTES && *charge == Charge::default() && claim != Claim::Generous {
            return true;
        }
        let under_way = self.reserved.get() + bytes;
        let used = self.held.get() + under_way;
        let most = self.share - self.share / 8;
        let is_short = bytes <= SHORT_BYTES;
        let fits = match claim {
            Claim::Generous => used <= self.share / 2 && under_way <= UNDER_WAY_BYTES / 2,
            Claim::Usual => used <= most && (is_short || under_way <= UNDER_WAY_BYTES),
            Claim::Known if is_short => used <= self.share || self.exempts(index),
            Claim::Known if used > most => self.exempts(index),
            Claim::Known => under_way <= UNDER_WAY_BYTES || self.goes_first(index),
        };
        if fits {
            self.reserved.set(self.reserved.get() + bytes);
            charge.reserved += bytes as u32;
        }
        fits
    }

    #[cold]
    fn exempts(&self, index: u32) -> bool {
        // It may have advanced to its next answer, with the previous one sent.
        if self.exempt.get().is_some_and(|other| other != index) {
            self.wanted.set(true);
            return false;
        }
        self.exempt.set(Some(index));
        true
    }

    /// Whether connection `index` is the one whose long answer is admitted although many are in
    /// transit.
    fn goes_first(&self, index: u32) -> bool {
        let first = self.first.get().unwrap_or(index);
        self.first.set(Some(first));
        first == index
    }

    /// Records the total held by connection `index`, and what is still reserved for it.
    #[inline]
    pub fn settle(&self, index: u32, charge: &mut Charge, bytes: usize, reserved: usize) {
        let counted = |bytes: usize| bytes.saturating_sub(UNCOUNTED_BYTES).min(u32::MAX as usize);
        let held = counted(bytes) as u32;
        let now = Charge { held, reserved: counted(bytes + reserved) as u32 - held };
        if now != *charge || self.exempt.get() == Some(index) {
            self.change(index, *charge, now);
            *charge = now;
        }
    }

    fn change(&self, index: u32, before: Charge, now: Charge) {
        let held = self.held.get() - before.held as usize + now.held as usize;
        self.held.set(held);
        self.reserved.set(self.reserved.get() - before.reserved as usize + now.reserved as usize);
        self.peak.set(self.peak.get().max(held));
        self.recent_peak.set(self.recent_peak.get().max(held));
        let eighths = held * 8 / self.share.max(1);
        self.restraint.set(match eighths {
            0..=3 => 0,
            4..=5 => 3,
            6..=7 => 5,
            _ => 8,
        });
        if now.reserved == 0 && self.first.get() == Some(index) {
            self.first.set(None);
            self.freed.set(true);
        }
        if now == Charge::default() && self.exempt.get() == Some(index) {
            self.exempt.set(None);
            self.freed.set(true);
        }
        if now.held < before.held || now.reserved < before.reserved {
            self.freed.set(true);
        }
    }

    /// Whether usage has been low for a while after a peak: the time to return memory to the
    /// operating system. Call it periodically; true once per peak.
    pub fn has_ebbed(&self, now: Instant) -> bool {
        if self.recent_peak.replace(self.held.get()) >= MUCH_BYTES {
            self.much_at.set(Some(now));
            return false;
        }
        let ebbed = self.much_at.get().is_some_and(|at| now.since(at) >= EBB);
        if ebbed {
            self.much_at.set(None);
        }
        ebbed
    }

    /// Records that another resource was released that connections may wait for.
    pub fn note_freed(&self) {
        self.freed.set(true);
    }

    /// Whether it is worth retrying denied requests.
    pub fn take_freed(&self) -> bool {
        self.freed.take()
    }

    /// Whether a request was denied since [`ConnectionMemory::take_wanted`].
    pub fn is_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// Whether a request was denied because others hold too much. Once true, false until it happens
    /// again.
    pub fn take_wanted(&self) -> bool {
        self.wanted.take() || self.held.get() > self.share
    }

    /// Whether released memory has not been requested since.
    pub fn is_freed(&self) -> bool {
        self.freed.get()
    }

    /// Bytes to release until there is some room again.
    pub fn excess(&self) -> usize {
        (self.held.get() + self.reserved.get() + self.share / 8).saturating_sub(self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn account() -> (Rc<ConnectionMemory>, Vec<Charge>) {
        (ConnectionMemory::new(8 * MIB, 256 << 10), vec![Charge::default(); 100])
    }

    #[test]
    fn what_is_short_is_not_counted() {
        let (memory, mut charges) = account();
        for (charge, index) in charges.iter_mut().zip(0..) {
            memory.settle(index, charge, UNCOUNTED_BYTES, 0);
        }
        assert_eq!((memory.figures(), memory.restraint()), ((0, 0), 0));
    }

    #[test]
    fn the_more_is_held_the_less_each_may_hold() {
        let (memory, mut charges) = account();
        let mut limits = Vec::new();
        for (charge, index) in charges.iter_mut().zip(0..) {
            memory.settle(index, charge, 100 << 10, 0);
            limits.push(memory.output_bytes_max());
        }
        assert!(limits.is_sorted_by(|earlier, later| earlier >= later), "{limits:?}");
        assert_eq!((limits[0], limits[99]), (256 << 10, 1 << 10));
        for (charge, index) in charges.iter_mut().zip(0..) {
            memory.settle(index, charge, 0, 0);
        }
        assert_eq!((memory.figures().0, memory.restraint()), (0, 0));
        assert!(memory.figures().1 > 8 * MIB && memory.take_freed());
    }

    #[test]
    fn one_answer_is_let_go_although_it_does_not_fit() {
        let (memory, mut charges) = account();
        memory.settle(0, &mut charges[0], 9 * MIB, 0);
        assert!(!memory.reserve(1, &mut charges[1], MIB, Claim::Usual));
        assert!(memory.reserve(1, &mut charges[1], MIB, Claim::Known));
        assert!(!memory.reserve(2, &mut charges[2], MIB, Claim::Known), "one at a time");
        assert!(memory.take_wanted());
        assert!(memory.reserve(1, &mut charges[1], MIB, Claim::Known), "but for its next one");
        memory.take_freed();
        memory.settle(1, &mut charges[1], MIB, 0);
        assert!(memory.reserve(3, &mut charges[3], UNCOUNTED_BYTES, Claim::Usual), "short ones go");
        assert!(!memory.reserve(2, &mut charges[2], MIB, Claim::Known), "it is not sent yet");
        memory.settle(1, &mut charges[1], 0, 0);
        assert!(memory.take_freed());
        assert!(memory.reserve(2, &mut charges[2], MIB, Claim::Known));
    }

    #[test]
    fn uploads_leave_room_for_answers_and_long_answers_for_short_ones() {
        let (memory, mut charges) = account();
        memory.settle(0, &mut charges[0], 6 * MIB, 0);
        assert!(!memory.admits_upload(1, MIB, MIB), "a quarter is left to answers");
        assert!(memory.take_wanted());
        assert!(memory.reserve(2, &mut charges[2], MIB, Claim::Known));
        memory.settle(2, &mut charges[2], 3 * MIB / 2, 0);
        assert!(!memory.reserve(3, &mut charges[3], 2 * SHORT_BYTES, Claim::Usual));
        assert!(memory.reserve(4, &mut charges[4], SHORT_BYTES, Claim::Known));
        assert_eq!(memory.exempt.get(), None, "all that fitted");
    }

    #[test]
    fn an_upload_beyond_the_share_gets_through_alone() {
        let (memory, mut charges) = account();
        memory.settle(0, &mut charges[0], 6 * MIB, 0);
        assert!(memory.admits_upload(1, MIB, 100 * MIB));
        assert!(!memory.admits_upload(2, MIB, 100 * MIB));
    }

    #[test]
    fn memory_has_ebbed_once_when_little_was_held_for_a_while_after_much() {
        let (memory, mut charges) = account();
        let start = Instant::from_millis(1_700_000_000_000);
        assert!(!memory.has_ebbed(start));
        memory.settle(0, &mut charges[0], 2 * MIB, 0);
        memory.settle(0, &mut charges[0], 0, 0);
        assert!(!memory.has_ebbed(start), "it was much in between");
        assert!(!memory.has_ebbed(start.after(EBB / 2)));
        memory.settle(0, &mut charges[0], 2 * MIB, 0);
        assert!(!memory.has_ebbed(start.after(EBB)), "it is again");
        memory.settle(0, &mut charges[0], 0, 0);
        assert!(!memory.has_ebbed(start.after(EBB)));
        assert!(!memory.has_ebbed(start.after(EBB + EBB / 2)));
        assert!(memory.has_ebbed(start.after(EBB * 2)));
        assert!(!memory.has_ebbed(start.after(EBB * 9)), "once");
    }

    #[test]
    fn few_long_answers_are_under_way_at_a_time() {
        let memory = ConnectionMemory::new(80 * MIB, 256 << 10);
        let mut charges = vec![Charge::default(); 100];
        let mut let_go = 0;
        for (charge, index) in charges.iter_mut().zip(0..) {
            let_go += usize::from(memory.reserve(index, charge, MIB, Claim::Known));
        }
        let first = UNDER_WAY_BYTES / MIB;
        assert_eq!(let_go, first + 1, "one goes in any case");
        memory.settle(first as u32, &mut charges[first], MIB, 0);
        assert!(memory.take_freed() && !memory.take_wanted(), "its value is there");
        assert!(memory.reserve(99, &mut charges[99], 9 * MIB, Claim::Known));
        assert!(!memory.reserve(98, &mut charges[98], MIB, Claim::Known));
    }

    #[test]
    fn generous_allowances_leave_half_for_those_that_are_needed() {
        let (memory, mut charges) = account();
        let mut granted = |claim| {
            (0..100).filter(|&i| memory.reserve(i, &mut charges[i as usize], MIB, claim)).count()
        };
        assert_eq!(granted(Claim::Generous), 2);
        assert_eq!(granted(Claim::Usual), 2);
        assert_eq!(memory.restraint(), 0, "what may come restrains nobody");
    }
}
