//! Writing and copying values, whole or chained.

use super::item::{self, Head};
use super::{Shard, piece_at};
use ringlane_types::request::{ItemRef, Span, Staged};

/// The location of a value: a list that borrows nothing, so that memory can be written along it.
pub(super) enum SpanList {
    One([Span; 1]),
    /// Chained values are long; copying their list is nothing beside copying them.
    Many(Vec<Span>),
}

impl SpanList {
    pub(super) fn as_slice(&self) -> &[Span] {
        match self {
            SpanList::One(span) => span,
            SpanList::Many(spans) => spans,
        }
    }
}

impl Shard {
    /// Makes the pieces of a chain belong to the item at `head`.
    pub(super) fn adopt_pieces(&mut self, chain: u32, head: ItemRef) {
        for span in &self.chains[chain as usize].spans {
            item::write_piece(self.slab.memory_mut(), piece_at(span), head);
        }
    }

    /// The location of an item's value.
    pub(super) fn value_list(&self, head: &Head) -> SpanList {
        let memory = self.slab.memory();
        match head.chain(memory) {
            Some(chain) => SpanList::Many(self.chains[chain as usize].spans.clone()),
            None => {
                let offset = (head.key_offset() + head.key_len as usize) as u64;
                SpanList::One([Span { offset, bytes: head.value_bytes(memory) as u32 }])
            }
        }
    }

    /// The location of a staged item's value.
    pub(super) fn staged_list(&self, staged: &Staged) -> SpanList {
        let mut spans = self.staged_spans(staged);
        match (spans.next(), spans.next()) {
            (Some(only), None) => SpanList::One([only]),
            _ => SpanList::Many(self.staged_spans(staged).collect()),
        }
    }

    /// Copies `bytes` to position `at` of the value of a written item.
    #[inline]
    pub(super) fn write_value(&mut self, item: ItemRef, at: usize, bytes: &[u8]) {
        let head = Head::read(self.slab.memory(), item);
        if !head.has(item::LARGE) {
            let start = head.key_offset() + head.key_len as usize + at;
            self.slab.memory_mut()[start..start + bytes.len()].copy_from_slice(bytes);
            return;
        }
        let list = self.value_list(&head);
        let mut rest = bytes;
        for span in behind(list.as_slice(), at) {
            let (part, more) = rest.split_at(rest.len().min(span.bytes as usize));
            let start = span.offset as usize;
            self.slab.memory_mut()[start..start + part.len()].copy_from_slice(part);
            rest = more;
        }
        debug_assert!(rest.is_empty());
    }

    /// Copies the content of `from` to position `at` of the value of a written item.
    pub(super) fn copy_value(&mut self, from: &SpanList, item: ItemRef, at: usize) {
        let list = self.value_list(&Head::read(self.slab.memory(), item));
        let to: Vec<Span> = behind(list.as_slice(), at).collect();
        self.copy_spans(from.as_slice(), &to);
    }

    /// Copies the content of `from` to `to`, which is at least as long.
    pub(super) fn copy_spans(&mut self, from: &[Span], to: &[Span]) {
        let mut to = to.iter().copied();
        let mut room = Span { offset: 0, bytes: 0 };
        for span in from {
            let mut rest = *span;
            while rest.bytes > 0 {
                if room.bytes == 0 {
                    room = to.next().expect("the item has room for the value");
                    continue;
                }
                let bytes = rest.bytes.min(room.bytes);
                let start = rest.offset as usize;
                let memory = self.slab.memory_mut();
                memory.copy_within(start..start + bytes as usize, room.offset as usize);
                rest = after(rest, bytes);
                room = after(room, bytes);
            }
        }
    }
}

/// A copy of the bytes of a list of spans, outside the shard.
pub(super) fn gather(memory: &[u8], spans: &SpanList) -> Vec<u8> {
    let part = |span: &Span| &memory[span.offset as usize..][..span.bytes as usize];
    spans.as_slice().iter().flat_map(|span| part(span).iter().copied()).collect()
}

fn after(span: Span, bytes: u32) -> Span {
    Span { offset: span.offset + bytes as u64, bytes: span.bytes - bytes }
}

/// The spans after the first `skip` bytes.
fn behind(spans: &[Span], mut skip: usize) -> impl Iterator<Item = Span> + '_ {
    spans.iter().filter_map(move |span| {
        let skipped = skip.min(span.bytes as usize);
        skip -= skipped;
        let rest = after(*span, skipped as u32);
        (rest.bytes > 0).then_some(rest)
    })
}
