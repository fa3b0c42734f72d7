//! What the connections of one core hold outside of its shard, against its share of the node's limit.
//!
//! Answers that were not taken yet, values that are on their way from other cores or arrive for
//! them, and input that has to wait are not item memory, so `--memory` does not bound them; this
//! does. The first few KiB of each connection are not counted: short answers never notice any of it.
//!
//! What is held and what is set aside for answers on their way stay below the share, but for one
//! answer at a time that is let go although it does not fit, so that one longer than the whole share
//! gets through, and clients that stall cannot stop the others altogether. The more is held, the
//! less each connection may hold: see [`ConnectionMemory::restraint`]. Who has to be closed when
//! nothing else helps is found by `stalled`.

use std::cell::Cell;
use std::rc::Rc;

use crate::protocol::pipeline::Claim;

/// Bytes of each connection that are not counted.
pub const UNCOUNTED_BYTES: usize = 8 << 10;
/// How much one may be in arrears of reading input that waits, at most.
const PENDING_BYTES_MAX: usize = 64 << 10;

/// One core's account. Its connections share it.
#[derive(Debug)]
pub struct ConnectionMemory {
    /// Bytes that may be held and set aside.
    share: usize,
    /// Unsent answer bytes of one connection, as configured.
    output_bytes_max: usize,
    held: Cell<usize>,
    reserved: Cell<usize>,
    peak: Cell<usize>,
    restraint: Cell<u32>,
    /// The connection whose answer was let go although it did not fit.
    exempt: Cell<Option<u32>>,
    /// Something was given back since somebody last waited in vain.
    freed: Cell<bool>,
    /// Somebody was refused something since the last look for who has stalled.
    wanted: Cell<bool>,
}

/// One connection's part in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    held: u32,
    reserved: u32,
}

impl Charge {
    /// Bytes counted as held.
    pub fn held(&self) -> usize {
        self.held as usize
    }
}

impl ConnectionMemory {
    /// An account of `share` bytes for connections that may have `output_bytes_max` unsent each.
    pub fn new(share: usize, output_bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            share,
            output_bytes_max,
            held: Cell::new(0),
            reserved: Cell::new(0),
            peak: Cell::new(0),
            restraint: Cell::new(0),
            exempt: Cell::new(None),
            freed: Cell::new(false),
            wanted: Cell::new(false),
        })
    }

    /// Bytes held now, and the most that ever were.
    pub fn figures(&self) -> (usize, usize) {
        (self.held.get(), self.peak.get())
    }

    /// How often what one connection may hold is halved, because all together hold much.
    #[inline]
    pub fn restraint(&self) -> u32 {
        self.restraint.get()
    }

    /// Unsent answer bytes of one connection, beyond which it gets no more answers for now.
    #[inline]
    pub fn output_bytes_max(&self) -> usize {
        self.output_bytes_max >> self.restraint.get()
    }

    /// Input bytes that may wait for a connection that may not go on.
    pub fn pending_bytes_max(&self) -> usize {
        PENDING_BYTES_MAX >> self.restraint.get()
    }

    /// Whether connection `index` may hold `bytes` more of a value that is arriving.
    pub fn admits(&self, index: u32, bytes: usize) -> bool {
        self.held.get() + bytes <= self.share || self.exempts(index)
    }

    /// Sets `bytes` aside for an answer on its way to connection `index`, if there is room.
    #[inline]
    pub fn reserve(&self, index: u32, charge: &mut Charge, bytes: usize, claim: Claim) -> bool {
        if bytes <= UNCOUNTED_BYTES && *charge == Charge::default() && claim != Claim::Generous {
            return true;
        }
        let used = self.held.get() + self.reserved.get() + bytes;
        let fits = match claim {
            Claim::Generous => used <= self.share / 2,
            Claim::Usual => used <= self.share,
            Claim::Known => used <= self.share || self.exempts(index),
        };
        if fits {
            self.reserved.set(self.reserved.get() + bytes);
            charge.reserved += bytes as u32;
        }
        fits
    }

    #[cold]
    fn exempts(&self, index: u32) -> bool {
        // It may have gone on to its next answer, with the one before sent.
        if self.exempt.get().is_some_and(|other| other != index) {
            self.wanted.set(true);
            return false;
        }
        self.exempt.set(Some(index));
        true
    }

    /// Notes what connection `index` holds now in all, and what is still set aside for it.
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
        let eighths = held * 8 / self.share.max(1);
        self.restraint.set(match eighths {
            0..=3 => 0,
            4..=5 => 3,
            6..=7 => 5,
            _ => 8,
        });
        if now == Charge::default() && self.exempt.get() == Some(index) {
            self.exempt.set(None);
            self.freed.set(true);
        }
        if now.held < before.held || now.reserved < before.reserved {
            self.freed.set(true);
        }
    }

    /// Notes that something else was given back that may have been waited for.
    pub fn note_freed(&self) {
        self.freed.set(true);
    }

    /// Whether it is worth asking again for what could not be had.
    pub fn take_freed(&self) -> bool {
        self.freed.take()
    }

    /// Whether somebody has to go without because others hold so much. Once true, false again until
    /// it happens anew.
    pub fn take_wanted(&self) -> bool {
        self.wanted.take() || self.held.get() > self.share
    }

    /// Whether something was given back that nobody has asked for since.
    pub fn is_freed(&self) -> bool {
        self.freed.get()
    }

    /// Bytes to be given back until there is some room again.
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
    fn generous_allowances_leave_half_for_those_that_are_needed() {
        let (memory, mut charges) = account();
        let mut granted = |claim| {
            (0..100).filter(|&i| memory.reserve(i, &mut charges[i as usize], MIB, claim)).count()
        };
        assert_eq!(granted(Claim::Generous), 4);
        assert_eq!(granted(Claim::Usual), 4);
        assert_eq!(memory.restraint(), 0, "what may come restrains nobody");
    }
}
