//! The receiving side: assembles pieces into messages and decides which messages are admitted.
//!
//! A message that has begun to arrive counts with its whole length against the limit of all links
//! of a core. If it does not fit, it gets no credit beyond what may be sent without admission, and
//! the messages admitted before it continue; when one of them is complete, waiting ones are
//! admitted in the order in which they began. One is always admitted, however long.

use std::collections::VecDeque;
use std::mem;

use super::{
    BYTES_KEPT, CLASSES, CREDIT_STEP, Class, MalformedFrame, UNASKED_BYTES, UNASKED_STEP,
    WINDOW_BYTES,
};

/// Messages being received on one link.
#[derive(Debug)]
pub struct Gathering {
    message_bytes_max: usize,
    long: [Gathered; CLASSES],
}

#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// Length of the message being received.
    total: usize,
    taken: u64,
    /// The credit last sent to the peer; 0 for the initial one without admission.
    told: u64,
    /// The message being received was admitted.
    admitted: bool,
    /// It waits for admission.
    waits: bool,
}

impl Gathering {
    /// Accepts messages of up to `message_bytes_max`, including their length field.
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, long: Default::default() }
    }

    /// Handles a piece. Returns the message that it completes, after its length; to be returned
    /// with [`Gathering::give_back`].
    ///
    /// # Errors
    /// If it does not belong to an acceptable message, or exceeds the credit.
    pub fn piece(
        &mut self,
        class: Class,
        total: usize,
        piece: &[u8],
    ) -> Result<Option<Vec<u8>>, MalformedFrame> {
        let Self { message_bytes_max, long } = self;
        let Gathered { bytes, total: begun, taken, told, .. } = &mut long[class as usize];
        if bytes.is_empty() {
            if total > *message_bytes_max {
                return Err(MalformedFrame);
            }
            *begun = total;
        }
        *taken += piece.len() as u64;
        let without_credit = *taken > (*told).max(UNASKED_BYTES);
        if without_credit || *begun != total || bytes.len() + piece.len() > total {
            return Err(MalformedFrame);
        }
        bytes.extend_from_slice(piece);
        Ok((bytes.len() == total).then(|| mem::take(bytes)))
    }

    /// The length of the message being received, if it has neither been admitted nor waits for
    /// admission.
    pub fn wants_in(&mut self, class: Class) -> Option<usize> {
        let Gathered { bytes, total, admitted, waits, .. } = &mut self.long[class as usize];
        let wants = !bytes.is_empty() && !*admitted && !*waits;
        wants.then_some(*total)
    }

    /// The message being received is admitted, or waits for admission.
    pub fn admit(&mut self, class: Class, admitted: bool) {
        let gathered = &mut self.long[class as usize];
        (gathered.admitted, gathered.waits) = (admitted, !admitted);
        if admitted {
            gathered.bytes.reserve_exact(gathered.total - gathered.bytes.len());
        }
    }

    /// Takes back the buffer of a message that [`Gathering::piece`] completed. Returns the
    /// message's length if it was admitted.
    pub fn give_back(&mut self, class: Class, mut buffer: Vec<u8>) -> usize {
        buffer.clear();
        buffer.shrink_to(BYTES_KEPT);
        let gathered = &mut self.long[class as usize];
        gathered.bytes = buffer;
        gathered.waits = false;
        if mem::take(&mut gathered.admitted) { gathered.total } else { 0 }
    }

    /// The credit to send to the peer, if it is time to; while messages of the class are `refused`,
    /// only credit for one that was admitted.
    pub fn due_credit(&mut self, class: Class, refused: bool) -> Option<u64> {
        let Gathered { bytes, total, taken, told, admitted, .. } = &mut self.long[class as usize];
        let missing = if bytes.is_empty() { 0 } else { (*total - bytes.len()) as u64 };
        if !*admitted && (missing > 0 || refused) {
            return None;
        }
        let (end, window) = (*taken + missing + UNASKED_BYTES, *taken + WINDOW_BYTES);
        let (up_to, step) = if end <= window { (end, UNASKED_STEP) } else { (window, CREDIT_STEP) };
        let due = up_to >= (*told).max(UNASKED_BYTES) + step;
        due.then(|| {
            *told = up_to;
            up_to
        })
    }

    /// Drops incomplete messages: the link is gone. Calls `left` for each admitted message, with
    /// its length.
    pub fn clear(&mut self, mut left: impl FnMut(Class, usize)) {
        for class in Class::ALL {
            let gathered = &mut self.long[class as usize];
            gathered.bytes = Vec::new();
            gathered.waits = false;
            if mem::take(&mut gathered.admitted) {
                left(class, gathered.total);
            }
        }
    }

    /// Bytes held of incomplete messages.
    pub fn held_bytes(&self) -> usize {
        self.long.iter().map(|long| long.bytes.len()).sum()
    }
}

/// Which messages are admitted, over all links of a core. `L` identifies a link.
#[derive(Debug)]
pub struct Arrivals<L> {
    bytes_max: usize,
    /// Bytes of admitted messages that are incomplete, and of those to be coordinated.
    bytes: usize,
    forward_bytes: usize,
    /// Bytes of requests that other nodes may forward now.
    forward_bytes_max: usize,
    waiting: VecDeque<(L, Class, usize)>,
}

impl<L: Copy + PartialEq> Arrivals<L> {
    /// Admits messages of at most `bytes_max` in total, or one.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            forward_bytes: 0,
            forward_bytes_max: usize::MAX,
            waiting: VecDeque::new(),
        }
    }

    /// Whether a message that has begun to arrive is admitted; if not, [`Arrivals::next_admitted`]
    /// returns it later.
    pub fn begins(&mut self, link: L, class: Class, total: usize) -> bool {
        let first = self.waiting.iter().all(|(_, other, _)| !waits_behind(class, *other));
        if first && self.has_room(class, total) {
            self.take(class, total);
            return true;
        }
        self.waiting.push_back((link, class, total));
        false
    }

    /// An admitted message is complete, or its link is gone.
    pub fn ends(&mut self, class: Class, total: usize) {
        self.bytes -= total;
        if class == Class::Forward {
            self.forward_bytes -= total;
            // The coordinator has it now.
            self.forward_bytes_max = self.forward_bytes_max.saturating_sub(total);
        }
    }

    /// A link is gone.
    pub fn forget(&mut self, link: L) {
        self.waiting.retain(|(waiting, ..)| *waiting != link);
    }

    /// A waiting message was completed without having been admitted.
    pub fn forget_one(&mut self, link: L, class: Class) {
        self.waiting.retain(|(waiting, of, _)| (*waiting, *of) != (link, class));
    }

    /// Other nodes may now forward requests of `bytes` bytes.
    pub fn set_forward_room(&mut self, bytes: usize) {
        self.forward_bytes_max = bytes;
    }

    /// Whether no more requests may be forwarded at present.
    pub fn refuses_forwards(&self) -> bool {
        self.forward_bytes_max == 0
    }

    /// The next waiting message that is now admitted.
    pub fn next_admitted(&mut self) -> Option<(L, Class)> {
        let mut behind = false;
        let found = self.waiting.iter().position(|(_, class, total)| {
            // Others may overtake requests to coordinate, since these free room for them.
            let may = !behind && self.has_room(*class, *total);
            behind |= !may && *class != Class::Forward;
            may
        })?;
        let (link, class, total) = self.waiting.remove(found).expect("just found");
        self.take(class, total);
        Some((link, class))
    }

    /// Bytes of admitted messages that are incomplete.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn has_room(&self, class: Class, total: usize) -> bool {
        let forward = class != Class::Forward
            || self.forward_bytes_max > 0
                && (self.forward_bytes == 0
                    || self.forward_bytes + total <= self.forward_bytes_max);
        forward && (self.bytes == 0 || self.bytes + total <= self.bytes_max)
    }

    fn take(&mut self, class: Class, total: usize) {
        self.bytes += total;
        if class == Class::Forward {
            self.forward_bytes += total;
        }
    }
}

/// Whether a message of `class` has to wait while one of class `other` does.
fn waits_behind(class: Class, other: Class) -> bool {
    class == Class::Forward || other != Class::Forward
}
