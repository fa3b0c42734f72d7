//! Unprocessed input of one connection.
//!
//! Consumed bytes are only counted, and their memory is reclaimed once they exceed the rest: a
//! client may send megabytes at once that are consumed piece by piece, and moving the rest forward
//! each time would be quadratic.

/// Capacity that an idle connection's input may retain.
const BYTES_KEPT: usize = 4 << 10;
/// Consumed bytes not worth reclaiming.
const USED_BYTES_KEPT: usize = 16 << 10;
/// From here on capacity for the longest line is reserved at once, since each growth would copy
/// megabytes. The kernel provides memory only for the used part.
const LONG_BYTES: usize = 512 << 10;
const LONG_ROOM_BYTES: usize = (8 << 20) + (512 << 10);

/// An incomplete request, or whole ones that were held back.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: Vec<u8>,
    /// Number of consumed bytes.
    used: usize,
}

impl Pending {
    /// The unconsumed bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// Number of unconsumed bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// Whether everything is consumed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.used == self.bytes.len()
    }

    /// Appends received bytes.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.make_room(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Consumes the first `count` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "more was used than there is");
        self.used += count;
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(BYTES_KEPT);
            self.used = 0;
        } else if self.used > USED_BYTES_KEPT && self.used > self.bytes.len() / 2 {
            self.forget_used();
        }
    }

    #[cold]
    fn forget_used(&mut self) {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.shrink_to(2 * self.bytes.len());
    }

    #[cold]
    fn make_room(&mut self, bytes: usize) {
        self.bytes.drain(..self.used);
        self.used = 0;
        let wanted = self.bytes.len() + bytes;
        if (LONG_BYTES..LONG_ROOM_BYTES).contains(&wanted) {
            self.bytes.reserve_exact(LONG_ROOM_BYTES - self.bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_left_is_what_came_without_what_was_used(
            steps in prop::collection::vec((0usize..40_000, 0.0f64..1.0), 1..60),
        ) {
            let (mut pending, mut model) = (Pending::default(), Vec::new());
            let mut next = 0u32;
            for (arrives, part) in steps {
                let bytes: Vec<u8> = (0..arrives).map(|i| (next as usize + i) as u8).collect();
                next = next.wrapping_add(arrives as u32);
                pending.extend(&bytes);
                model.extend_from_slice(&bytes);
                let used = (model.len() as f64 * part) as usize;
                pending.consume(used);
                model.drain(..used);
                prop_assert_eq!(pending.bytes(), &model[..]);
                prop_assert_eq!(pending.len(), model.len());
                prop_assert_eq!(pending.is_empty(), model.is_empty());
                let dead = pending.bytes.len() - pending.len();
                prop_assert!(dead <= USED_BYTES_KEPT.max(pending.len()));
            }
        }
    }

    #[test]
    fn small_steps_through_much_input_move_little_of_it() {
        let mut pending = Pending::default();
        pending.extend(&vec![b'x'; 8 << 20]);
        let mut moves = 0;
        while !pending.is_empty() {
            let used = pending.used;
            pending.consume(pending.len().min(100));
            moves += usize::from(pending.used < used);
        }
        assert!(moves < 20, "{moves}");
        assert!(pending.bytes.capacity() <= BYTES_KEPT);
    }
}
