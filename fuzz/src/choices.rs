//! Arbitrary bytes as choices; zeros at the end.

use std::time::Duration;

use ringlane::time::{Deadline, Instant};

/// What is left of the input.
pub struct Choices<'b>(pub &'b [u8]);

impl<'b> Choices<'b> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// A number below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        self.byte() as usize % count
    }

    /// One of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number of eight bytes, usually a small one.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            0..=199 => self.byte() as u64,
            200..=229 => u64::MAX - self.byte() as u64,
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    /// At most 255 bytes of the input as they are.
    pub fn bytes(&mut self) -> &'b [u8] {
        let count = (self.byte() as usize).min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'b [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn deadline(&mut self, now: Instant) -> Deadline {
        let amount = self.byte() as u64;
        let millis = match self.byte() % 6 {
            0..=2 => return Deadline::NEVER,
            3 => amount * 7,
            4 => amount * 1000,
            _ => amount * 3_600_000,
        };
        Deadline::at(now.after(Duration::from_millis(millis)))
    }

    /// Changes `bytes` at one place, or cuts or lengthens them. Whether they differ now.
    pub fn tamper(&mut self, bytes: &mut Vec<u8>) -> bool {
        let place = |choices: &mut Self, bytes: &[u8]| {
            (choices.byte() as usize | (choices.byte() as usize) << 8) % bytes.len().max(1)
        };
        match self.byte() % 8 {
            0 if !bytes.is_empty() => {
                let (at, by) = (place(self, bytes), self.byte());
                bytes[at] ^= by;
                by != 0
            }
            1 if !bytes.is_empty() => {
                let at = place(self, bytes);
                bytes.truncate(at);
                true
            }
            2 => {
                let more = self.bytes();
                bytes.extend_from_slice(more);
                !more.is_empty()
            }
            _ => false,
        }
    }
}
