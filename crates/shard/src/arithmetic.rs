//! Increment and decrement of decimal numbers.

use super::Shard;
use super::item::{self, BINARY_KEY, FETCHED, Head, STALE, WON};
use super::store::{Content, Put};
use ringlane_types::request::{Arithmetic, Number, Request, Response, Value};
use ringlane_types::time::{Deadline, Instant};

impl Shard {
    pub(super) fn arithmetic(
        &mut self,
        request: &Request<'_>,
        arithmetic: &Arithmetic,
        now: Instant,
    ) -> Response<'_> {
        if !self.make_index_room(request.hash, now) {
            return Response::OutOfMemory;
        }
        let Ok((entry, head)) = self.find_settled(request, now) else {
            return match arithmetic.create {
                Some((value, deadline)) => self.create(request, arithmetic, value, deadline, now),
                None => {
                    match arithmetic.decrement {
                        true => self.counters.decr_misses += 1,
                        false => self.counters.incr_misses += 1,
                    }
                    Response::NotFound
                }
            };
        };
        let Value::Whole(text) = self.value_of(&head) else { return Response::NonNumeric };
        if text.is_empty() {
            return Response::NonNumeric;
        }
        let text_bytes = text.len();
        let number = parse_number(text);
        if arithmetic.compare.is_some_and(|cas| cas != 0 && cas != head.version) {
            return Response::Exists;
        }
        let Some(number) = number else { return Response::NonNumeric };
        let class = self.slab.class_of(head.item) as usize;
        let number = if arithmetic.decrement {
            self.counters.decr_hits += 1;
            self.class_counters[class].decr_hits += 1;
            number.saturating_sub(arithmetic.delta)
        } else {
            self.counters.incr_hits += 1;
            self.class_counters[class].incr_hits += 1;
            number.wrapping_add(arithmetic.delta)
        };
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(number).as_bytes();
        let deadline_before = self.deadline_of(&head);
        let version = self.cas_or_next(arithmetic.cas);

        let mut at = head;
        if digits.len() <= text_bytes && !self.is_pinned(head.item) {
            let start = head.key_offset() + head.key_len as usize;
            let accessed = self.access_time_used(&head, now);
            let memory = self.slab.memory_mut();
            memory[start..start + digits.len()].copy_from_slice(digits);
            memory[start + digits.len()..start + text_bytes].fill(b' ');
            item::set_version(memory, head.item, version);
            item::set_accessed(memory, head.item, accessed);
        } else {
            // A longer number is a new item. An item being sent moves, without padding.
            let grows = digits.len() > text_bytes;
            let kept = if grows { BINARY_KEY } else { BINARY_KEY | FETCHED | STALE | WON };
            let put = Put {
                flags: head.flags(self.slab.memory()),
                deadline: deadline_before,
                marks: head.marks & kept,
                version,
                content: Content::Bytes(digits),
            };
            match self.put_over(request, Some((entry, head)), &put, false, now) {
                Some(grown) => at = grown,
                None => return Response::OutOfMemory,
            }
        }
        let mut deadline = deadline_before;
        let mut gone = false;
        match arithmetic.touch {
            Some(touch) if touch.is_past(now) => {
                deadline = touch;
                gone = true;
            }
            Some(touch) => {
                at = Head::read(self.slab.memory(), at.item);
                at = self.set_deadline(request.hash, &at, touch, now);
                deadline = self.deadline_of(&at);
            }
            None => {}
        }
        at = Head::read(self.slab.memory(), at.item);
        if gone {
            self.send_to_limbo(request.hash, &at, now);
        }
        Response::Number(Number {
            value: number,
            key: at.key(self.slab.memory()),
            cas: version,
            deadline,
            deadline_before,
            created: false,
            binary_key: at.has(BINARY_KEY),
        })
    }

    /// Stores the initial value under a missing key.
    fn create(
        &mut self,
        request: &Request<'_>,
        arithmetic: &Arithmetic,
        value: u64,
        deadline: Deadline,
        now: Instant,
    ) -> Response<'_> {
        let gone = deadline.is_past(now);
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(value).as_bytes();
        if !self.fits(request.key.len(), 0, digits.len() as u64) {
            return Response::NotCreated;
        }
        let version = self.first_cas(arithmetic.cas);
        let put = Put {
            flags: 0,
            deadline: if gone { Deadline::NEVER } else { self.rounded_deadline(deadline, version) },
            marks: if arithmetic.binary_key { BINARY_KEY } else { 0 },
            version,
            content: Content::Bytes(digits),
        };
        let Some(head) = self.put_over(request, None, &put, true, now) else {
            return Response::OutOfMemory;
        };
        let head = Head::read(self.slab.memory(), head.item);
        let mut stored = self.deadline_of(&head);
        if gone {
            self.send_to_limbo(request.hash, &head, now);
            stored = deadline;
        }
        Response::Number(Number {
            value,
            key: head.key(self.slab.memory()),
            cas: version,
            deadline: stored,
            deadline_before: Deadline::NEVER,
            created: true,
            binary_key: arithmetic.binary_key,
        })
    }
}

/// The leading number of `text` as parsed by C's `strtoull` and memcached: optional white space, an
/// optional `+`, digits, then white space or the end; within 64 bits.
fn parse_number(text: &[u8]) -> Option<u64> {
    const fn is_blank(byte: u8) -> bool {
        matches!(byte, b' ' | b'\t'..=b'\r')
    }
    let start = text.iter().position(|&byte| !is_blank(byte))?;
    let text = &text[start..];
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 || text.get(end).is_some_and(|&byte| !is_blank(byte)) {
        return None;
    }
    text[..end]
        .iter()
        .try_fold(0u64, |number, &digit| number.checked_mul(10)?.checked_add((digit - b'0') as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_means_blanks_plus_digits_then_blank_or_end() {
        for (text, number) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("  +12", Some(12)),
            ("7  ", Some(7)),
            ("7 x", Some(7)),
            ("00000000000000000000000012", Some(12)),
            ("-10", None),
            ("10x", None),
            ("", None),
            (" ", None),
            ("+", None),
            ("++1", None),
        ] {
            assert_eq!(parse_number(text.as_bytes()), number, "{text:?}");
        }
    }
}
