//! The user data that the net ring attaches to each operation and gets back with its completion.
//!
//! A kind, a slot and the slot's generation, in 8, 24 and 32 bits. A slot is reused as soon as its
//! operation has completed; the generation distinguishes its users, so that a completion that is
//! late, duplicate or bogus can be recognized.

/// The kind of an operation.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Cancel = 4,
    Heartbeat = 5,
    ReceiveInto = 6,
    /// A read of the eventfd.
    Bell = 7,
    /// A message to another ring, which completes here only if it fails.
    Wake = 8,
    /// A message from another ring.
    Woken = 9,
    /// A non-blocking send, which completes only if it fails.
    SendAtOnce = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Accept,
        Self::Receive,
        Self::Send,
        Self::Cancel,
        Self::Heartbeat,
        Self::ReceiveInto,
        Self::Bell,
        Self::Wake,
        Self::Woken,
        Self::SendAtOnce,
    ];

    fn parse(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Largest slot number.
pub(super) const INDEX_MAX: u32 = (1 << 24) - 1;

/// The id of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UserData {
    pub(super) kind: Kind,
    /// The slot, at most [`INDEX_MAX`].
    pub(super) index: u32,
    /// Counts the users of the slot; wraps.
    pub(super) generation: u32,
}

impl UserData {
    pub(super) const fn new(kind: Kind, index: u32, generation: u32) -> Self {
        Self { kind, index, generation }
    }

    #[inline]
    pub(super) const fn encode(self) -> u64 {
        debug_assert!(self.index <= INDEX_MAX);
        ((self.kind as u64) << 56) | ((self.index as u64) << 32) | self.generation as u64
    }

    /// `None` if this ring gives no operation such an id.
    #[inline]
    pub(super) fn decode(word: u64) -> Option<Self> {
        let kind = Kind::parse((word >> 56) as u8)?;
        Some(Self::new(kind, (word >> 32) as u32 & INDEX_MAX, word as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were_given() {
        for kind in Kind::ALL {
            for index in [0, 1, INDEX_MAX] {
                for generation in [0, 1, u32::MAX] {
                    let name = UserData::new(kind, index, generation);
                    assert_eq!(UserData::decode(name.encode()), Some(name));
                }
            }
        }
        for number in [0u64, 11, 255] {
            assert_eq!(UserData::decode(number << 56 | 7), None);
        }
    }
}
