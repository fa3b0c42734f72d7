//! The receiving side: pieces becoming messages, and which messages are admitted.
//!
//! A message that has begun to arrive takes its whole length of what the links of a core may hold
//! together. While there is not so much left, it gets no credit beyond what may come unasked, and
//! the messages admitted before it go on; when one of them is whole, those that wait are admitted
//! in the order in which they began. One is always admitted, however long.

use std::collections::VecDeque;
use std::mem;

use super::{
    BYTES_KEPT, CLASSES, CREDIT_STEP, Class, MalformedFrame, UNASKED_BYTES, UNASKED_STEP,
    WINDOW_BYTES,
};

/// What arrives on one link.
#[derive(Debug)]
pub struct Gathering {
    message_bytes_max: usize,
    long: [Gathered; CLASSES],
}

#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// Length of the message that is arriving.
    total: usize,
    taken: u64,
    /// What the peer was last allowed; 0 for what may come unasked at the beginning.
    told: u64,
    /// The message that is arriving was admitted.
    admitted: bool,
    /// It waits for that.
    waits: bool,
}

impl Gathering {
    /// Takes messages of up to `message_bytes_max`, their length included.
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, long: Default::default() }
    }

    /// Takes a piece. The message that it completes, behind its length; give it back.
    ///
    /// # Errors
    /// When it belongs to no message that is taken here, or came without credit.
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

    /// The length of the message that is arriving, if it has neither been admitted nor waits for
    /// that.
    pub fn wants_in(&mut self, class: Class) -> Option<usize> {
        let Gathered { bytes, total, admitted, waits, .. } = &mut self.long[class as usize];
        let wants = !bytes.is_empty() && !*admitted && !*waits;
        wants.then_some(*total)
    }

    /// The message that is arriving is admitted, or waits for that.
    pub fn admit(&mut self, class: Class, admitted: bool) {
        let gathered = &mut self.long[class as usize];
        (gathered.admitted, gathered.waits) = (admitted, !admitted);
        if admitted {
            gathered.bytes.reserve_exact(gathered.total - gathered.bytes.len());
        }
    }

    /// The buffer of a message that [`Gathering::piece`] completed. Its length, if it was admitted.
    pub fn give_back(&mut self, class: Class, mut buffer: Vec<u8>) -> usize {
        buffer.clear();
        buffer.shrink_to(BYTES_KEPT);
        let gathered = &mut self.long[class as usize];
        gathered.bytes = buffer;
        gathered.waits = false;
        if mem::take(&mut gathered.admitted) { gathered.total } else { 0 }
    }

    /// The credit that the peer is to be told of, if it is time to; while messages of the class are
    /// `refused`, only what belongs to one that was admitted.
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

    /// Forgets what has not arrived whole: the link is gone. Calls `left` for each message that was
    /// let in, with its length.
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

    /// Bytes held of messages that have not arrived whole.
    pub fn held_bytes(&self) -> usize {
        self.long.iter().map(|long| long.bytes.len()).sum()
    }
}

/// Which messages are admitted, of all links of a core. `L` names a link.
#[derive(Debug)]
pub struct Arrivals<L> {
    bytes_max: usize,
    /// Bytes of messages that were admitted and are not whole, and of those to be coordinated.
    bytes: usize,
    forward_bytes: usize,
    /// Bytes of requests that other nodes may hand on now.
    forward_bytes_max: usize,
    waiting: VecDeque<(L, Class, usize)>,
}

impl<L: Copy + PartialEq> Arrivals<L> {
    /// Messages of together at most `bytes_max` are admitted, or one.
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
    /// names it later.
    pub fn begins(&mut self, link: L, class: Class, total: usize) -> bool {
        let first = self.waiting.iter().all(|(_, other, _)| !waits_behind(class, *other));
        if first && self.has_room(class, total) {
            self.take(class, total);
            return true;
        }
        self.waiting.push_back((link, class, total));
        false
    }

    /// A message that was admitted is whole, or its link is gone.
    pub fn ends(&mut self, class: Class, total: usize) {
        self.bytes -= total;
        if class == Class::Forward {
            self.forward_bytes -= total;
            // It is with the coordinator now.
            self.forward_bytes_max = self.forward_bytes_max.saturating_sub(total);
        }
    }

    /// A link is gone.
    pub fn forget(&mut self, link: L) {
        self.waiting.retain(|(waiting, ..)| *waiting != link);
    }

    /// A message that began while there was no room was completed without having been admitted.
    pub fn forget_one(&mut self, link: L, class: Class) {
        self.waiting.retain(|(waiting, of, _)| (*waiting, *of) != (link, class));
    }

    /// Requests of so many bytes may be handed on by other nodes now.
    pub fn set_forward_room(&mut self, bytes: usize) {
        self.forward_bytes_max = bytes;
    }

    /// Whether no more requests may be handed on at present.
    pub fn refuses_forwards(&self) -> bool {
        self.forward_bytes_max == 0
    }

    /// A message that waited and is admitted now.
    pub fn next_admitted(&mut self) -> Option<(L, Class)> {
        let mut behind = false;
        let found = self.waiting.iter().position(|(_, class, total)| {
            // What is to be coordinated may be passed, since what passes it makes room for it.
            let may = !behind && self.has_room(*class, *total);
            behind |= !may && *class != Class::Forward;
            may
        })?;
        let (link, class, total) = self.waiting.remove(found).expect("just found");
        self.take(class, total);
        Some((link, class))
    }

    /// Bytes of messages that were admitted and are not whole yet.
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
