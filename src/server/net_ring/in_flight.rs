//! Operations in flight: the memory the kernel holds for each, and which completion ends it.

use std::os::fd::RawFd;

use super::loans::{self, Access};
use super::user_data::{INDEX_MAX, Kind, UserData};
use super::{SendBuffer, Token};

/// A send that the kernel may be reading from.
pub(super) struct InFlight {
    pub(super) token: Token,
    pub(super) output: SendBuffer,
    pub(super) offset: usize,
    /// For sends of several pieces; boxed, since the kernel holds its address.
    #[allow(dead_code)]
    pub(super) message: Option<Box<Message>>,
}

pub(super) struct Message {
    pub(super) header: libc::msghdr,
    /// What the header points to.
    #[allow(dead_code)]
    pub(super) pieces: Vec<libc::iovec>,
}

/// Identifies one send: the slot and the generation of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Records the memory of a send.
#[inline(always)]
fn lend(ring: RawFd, key: Key, output: &SendBuffer) {
    let SendBuffer { buffer, pinned } = output;
    loans::lend(ring, key.tag(), buffer.as_ptr(), buffer.len(), Access::Sole);
    for part in pinned {
        loans::lend(ring, key.tag(), part.memory.as_ptr(), part.bytes, Access::Read);
    }
}

impl Key {
    /// The send's id among the owners of memory, for either kind of send.
    fn tag(self) -> u64 {
        UserData::new(Kind::Send, self.index, self.generation).encode()
    }
}

/// Sends in flight. A key is valid for one removal: the slot's next user has another one.
pub(super) struct Sends {
    /// Whose they are.
    ring: RawFd,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    send: Option<InFlight>,
}

impl Sends {
    /// An empty table for the ring with this descriptor.
    pub(super) fn of(ring: RawFd) -> Self {
        Self { ring, slots: Vec::new(), free: Vec::new() }
    }

    #[inline]
    pub(super) fn insert(&mut self, send: InFlight) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        assert!(index <= INDEX_MAX, "fewer sends than connections are under way");
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.send.is_none(), "a free slot is empty");
        slot.generation = slot.generation.wrapping_add(1);
        let key = Key { index, generation: slot.generation };
        lend(self.ring, key, &send.output);
        slot.send = Some(send);
        key
    }

    /// Ends a send. `None` if it has ended before.
    #[inline]
    pub(super) fn remove(&mut self, key: Key) -> Option<InFlight> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let send = slot.send.take()?;
        self.free.push(key.index);
        loans::end(self.ring, key.tag());
        Some(send)
    }

    /// The remaining sends, from which the kernel may still read.
    pub(super) fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.slots.iter().filter_map(|slot| slot.send.as_ref())
    }
}

/// An operation that is in flight at most once, such as the accept of a listener.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lone {
    generation: u32,
    armed: bool,
}

impl Lone {
    /// Begins the operation; returns its generation.
    ///
    /// # Panics
    /// If it is already in flight.
    pub(super) fn arm(&mut self) -> u32 {
        assert!(!self.armed, "one at a time");
        self.armed = true;
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Records a completion, after which more of the same operation may follow. False if it does
    /// not belong to the operation in flight.
    pub(super) fn completes(&mut self, generation: u32, more: bool) -> bool {
        let own = self.armed && self.generation == generation;
        self.armed &= !own || more;
        own
    }
}

/// How a send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// All of the output was sent.
    Whole,
    /// The output before this byte was sent; the rest is to be sent from there.
    Rest(usize),
    /// Nothing more can be sent; the error number.
    Failed(i32),
}

impl SendOutcome {
    /// Interprets `result`, the kernel's result of a send from byte `offset` of `bytes` bytes.
    pub(super) fn of(result: i32, offset: usize, bytes: usize) -> Self {
        match result {
            // Interrupted or out of room before a byte of this send was sent: bytes sent by earlier
            // ones remain sent.
            _ if result == -libc::EINTR || result == -libc::EAGAIN => Self::Rest(offset),
            ..0 => Self::Failed(-result),
            _ if offset + result as usize >= bytes => Self::Whole,
            // Retrying would loop forever.
            0 => Self::Failed(libc::EPIPE),
            _ => Self::Rest(offset + result as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(number: u32) -> InFlight {
        let token = Token { index: number, generation: 1 };
        InFlight { token, output: SendBuffer::default(), offset: 0, message: None }
    }

    #[test]
    fn a_key_ends_its_own_send_and_once() {
        let mut sends = Sends::of(-1);
        let keys: Vec<Key> = (0..3).map(|number| sends.insert(send(number))).collect();
        assert_eq!(sends.remove(keys[1]).map(|send| send.token.index), Some(1));
        assert!(sends.remove(keys[1]).is_none(), "ended before");
        let again = sends.insert(send(9));
        assert_eq!((again.index, again.generation), (keys[1].index, keys[1].generation + 1));
        assert!(sends.remove(keys[1]).is_none(), "another's send");
        assert!(sends.remove(Key { index: 77, generation: 1 }).is_none());
        assert_eq!(sends.iter().count(), 3);
        for (key, number) in [(keys[0], 0), (keys[2], 2), (again, 9)] {
            assert_eq!(sends.remove(key).map(|send| send.token.index), Some(number));
        }
        assert_eq!(sends.iter().count(), 0);
    }

    #[test]
    fn a_completion_of_an_operation_before_is_not_this_ones() {
        let mut lone = Lone::default();
        assert!(!lone.completes(0, false), "nothing is under way");
        let first = lone.arm();
        assert!(lone.completes(first, true) && lone.completes(first, false));
        assert!(!lone.completes(first, false), "told twice");
        let second = lone.arm();
        assert!(!lone.completes(first, false), "told late");
        assert!(lone.completes(second, false));
    }

    #[test]
    fn a_send_goes_on_from_where_it_came_to() {
        use SendOutcome::*;
        for (result, offset, outcome) in [
            (100, 0, Whole),
            (40, 60, Whole),
            (40, 0, Rest(40)),
            (40, 10, Rest(50)),
            (-libc::EINTR, 0, Rest(0)),
            (-libc::EAGAIN, 0, Rest(0)),
            (-libc::EINTR, 60, Rest(60)),
            (-libc::EAGAIN, 60, Rest(60)),
            (-libc::EPIPE, 60, Failed(libc::EPIPE)),
            (-libc::ECANCELED, 0, Failed(libc::ECANCELED)),
            (0, 60, Failed(libc::EPIPE)),
        ] {
            assert_eq!(SendOutcome::of(result, offset, 100), outcome, "{result} from {offset}");
        }
    }
}
