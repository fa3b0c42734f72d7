//! Append and prepend to chained values, without copying the existing value.
//!
//! The item stays in place and its chain grows at one end. A short addition is merged with the
//! piece at that end, so that two neighbours together are always longer than the longest piece and
//! a chain has at most twice as many pieces as it needs; a long one gets its own pieces, and a
//! staged value simply contributes its pieces. An item that is being sent must not change: then the
//! value is copied.

use super::item::{self, Head};
use super::value::SpanList;
use super::{Chain, PIECE_HEADER_BYTES, Shard, piece_at};
use crate::store::Content;
use ringlane_types::request::{ItemRef, Span, Staged};
use ringlane_types::time::Instant;

impl Shard {
    /// Joins `content` to the chained value of `old`, at the front or the end. False if that is
    /// impossible without copying; then nothing has changed.
    pub(super) fn concat_chained(
        &mut self,
        old: &Head,
        content: Content<'_>,
        front: bool,
        now: Instant,
    ) -> bool {
        let Some(chain) = old.chain(self.slab.memory()) else { return false };
        if self.is_pinned(old.item) {
            return false;
        }
        self.guard(old);
        let joined = self.pieces_joined(chain, content, front, now);
        self.unguard(old);
        let Some(JoinedPieces { pieces, instead_of_edge }) = joined else { return false };
        for span in &pieces {
            item::write_piece(self.slab.memory_mut(), piece_at(span), old.item);
        }
        let spans = &mut self.chains[chain as usize].spans;
        let edge = match (instead_of_edge, front) {
            (false, _) => None,
            (true, true) => Some(spans.remove(0)),
            (true, false) => spans.pop(),
        };
        match front {
            true => drop(spans.splice(0..0, pieces.iter().copied())),
            false => spans.extend_from_slice(&pieces),
        }
        if let Some(edge) = edge.filter(|edge| !pieces.iter().any(|new| new.offset == edge.offset))
        {
            self.slab.free(piece_at(&edge));
        }
        true
    }

    /// Creates a chain of a short value and the long staged one joined to it. `None` without
    /// memory; then nothing has changed. The chain belongs to `head` from then on.
    pub(super) fn chain_of_both(
        &mut self,
        old: &Head,
        staged: Staged,
        (front, head): (bool, ItemRef),
        now: Instant,
    ) -> Option<u32> {
        let from = self.value_list(old);
        let bytes = old.value_bytes(self.slab.memory());
        let mut pieces = if bytes == 0 { Vec::new() } else { self.allocate_pieces(bytes, now)? };
        self.copy_spans(from.as_slice(), &pieces);
        let staged = self.take_pieces(staged);
        match front {
            true => pieces.splice(0..0, staged).for_each(drop),
            false => pieces.extend(staged),
        }
        let chain = self.chains.insert(Chain { spans: pieces }) as u32;
        self.adopt_pieces(chain, head);
        Some(chain)
    }

    /// The filled pieces to add. `None` without memory.
    fn pieces_joined(
        &mut self,
        chain: u32,
        content: Content<'_>,
        front: bool,
        now: Instant,
    ) -> Option<JoinedPieces> {
        if let Content::Staged(staged) = content
            && self.staged_shape(&staged).0.chained
        {
            return Some(JoinedPieces { pieces: self.take_pieces(staged), instead_of_edge: false });
        }
        let spans = &self.chains[chain as usize].spans;
        let edge = *if front { spans.first() } else { spans.last() }.expect("a chain has pieces");
        let both = edge.bytes as usize + content.len();
        let instead_of_edge = both <= self.piece_bytes_max();
        let pieces = if !instead_of_edge {
            self.allocate_pieces(content.len(), now)?
        } else if both + PIECE_HEADER_BYTES <= self.slab.chunk_bytes_of(piece_at(&edge)) {
            vec![Span { bytes: both as u32, ..edge }]
        } else {
            self.allocate_pieces(both, now)?
        };
        if instead_of_edge {
            let (at, start) = (pieces[0].offset as usize, edge.offset as usize);
            let edge_at = if front { at + content.len() } else { at };
            self.slab.memory_mut().copy_within(start..start + edge.bytes as usize, edge_at);
            let content_at = if front { at } else { at + edge.bytes as usize };
            let place = Span { offset: content_at as u64, bytes: content.len() as u32 };
            self.copy_content(content, &[place]);
        } else {
            self.copy_content(content, &pieces);
        }
        Some(JoinedPieces { pieces, instead_of_edge })
    }

    fn piece_bytes_max(&self) -> usize {
        self.slab.chunk_bytes_max() - PIECE_HEADER_BYTES
    }

    /// Allocates pieces for `bytes` bytes that belong to no item yet. `None` without memory.
    fn allocate_pieces(&mut self, bytes: usize, now: Instant) -> Option<Vec<Span>> {
        let mut pieces = Vec::new();
        let complete = self.fill_up(&mut pieces, bytes, now);
        pieces.iter().for_each(|span| self.slab.unhold(piece_at(span)));
        if !complete {
            pieces.iter().for_each(|span| {
                self.slab.free(piece_at(span));
            });
            return None;
        }
        Some(pieces)
    }

    /// Takes over the pieces of a staged value, which ceases to exist.
    fn take_pieces(&mut self, staged: Staged) -> Vec<Span> {
        let (_, chain) = self.unstage(&staged);
        let pieces = self.chains.remove(chain as usize).spans;
        self.slab.free(staged.item);
        pieces
    }

    /// Copies a value to its destination; a staged one is freed.
    fn copy_content(&mut self, content: Content<'_>, to: &[Span]) {
        match content {
            Content::Bytes(bytes) => {
                let mut rest = bytes;
                for span in to {
                    let (part, more) = rest.split_at(span.bytes as usize);
                    let start = span.offset as usize;
                    self.slab.memory_mut()[start..start + part.len()].copy_from_slice(part);
                    rest = more;
                }
            }
            Content::Staged(staged) => {
                let from: SpanList = self.staged_list(&staged);
                self.copy_spans(from.as_slice(), to);
                self.discard(staged);
            }
        }
    }
}

/// The addition to a chain.
struct JoinedPieces {
    pieces: Vec<Span>,
    /// A single piece that replaces the one at the end and includes its bytes.
    instead_of_edge: bool,
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{Eviction, ShardConfig};
    use ringlane_types::hash::HashSecret;
    use ringlane_types::request::{Body, Get, Operation, Request, Response, Store, StoreMode};
    use ringlane_types::time::Deadline;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    struct Bench {
        shard: Shard,
        /// What the value should be.
        value: Vec<u8>,
    }

    impl Bench {
        /// A shard with one item of `value_bytes` bytes.
        fn new(value_bytes: usize) -> Self {
            let config = ShardConfig {
                memory_bytes: 64 << 20,
                item_bytes_max: 32 << 20,
                eviction: Eviction::Lru,
            };
            let shard = Shard::new(&config, Rc::new(HashSecret::of_seed(7)), 0, 1);
            let mut bench = Bench { shard, value: Vec::new() };
            let value: Vec<u8> = (0..value_bytes).map(|at| (at % 251) as u8).collect();
            bench.execute(Store::set(&value));
            bench.value = value;
            bench
        }

        fn execute(&mut self, store: Store<'_>) {
            let hash = self.shard.hash_key(b"k");
            let request = Request { key: b"k", hash, operation: Operation::Store(store) };
            let response = self.shard.execute(&request, NOW);
            assert!(matches!(response, Response::Stored { .. }), "{response:?}");
        }

        /// Joins `part`, staged or not.
        fn join(&mut self, mode: StoreMode, part: &[u8], staged: bool) {
            let mut store = Store { mode, ..Store::set(part) };
            if staged {
                let bytes = part.len() as u32;
                let staged = self.shard.stage(1, 9, Deadline::NEVER, bytes, NOW).expect("room");
                let mut rest = part;
                for span in self.shard.staged_spans(&staged).collect::<Vec<_>>() {
                    let (part, more) = rest.split_at(span.bytes as usize);
                    let start = span.offset as usize;
                    self.shard.memory_mut()[start..start + part.len()].copy_from_slice(part);
                    rest = more;
                }
                store.value = Body::Staged(staged);
            }
            self.execute(store);
            match mode {
                StoreMode::Append => self.value.extend_from_slice(part),
                _ => drop(self.value.splice(0..0, part.iter().copied())),
            }
        }

        fn check(&mut self) -> ItemRef {
            self.shard.check_invariants();
            let hash = self.shard.hash_key(b"k");
            let operation = Operation::Get(Get::default());
            let request = Request { key: b"k", hash, operation };
            let Response::Hit(hit) = self.shard.execute(&request, NOW) else {
                panic!("it is there")
            };
            assert!(hit.value.to_vec() == self.value, "{} bytes", self.value.len());
            hit.item.expect("in this shard")
        }

        fn pieces(&self, item: ItemRef) -> usize {
            let head = Head::read(self.shard.memory(), item);
            self.shard.chains[head.chain(self.shard.memory()).expect("chained") as usize]
                .spans
                .len()
        }
    }

    #[test]
    fn values_of_all_lengths_join_at_both_ends_and_chains_stay_short() {
        for before in [10, 5000, 60_000, 200_000, 300_000] {
            let mut bench = Bench::new(before);
            let piece_bytes = bench.shard.piece_bytes_max();
            for (round, bytes) in
                [1, 0, 30_000, 5 << 20, 1, 3, 200_000, 90_000, 1 << 20, 7].into_iter().enumerate()
            {
                let part = vec![b'a' + round as u8; bytes];
                for (mode, staged) in [
                    (StoreMode::Append, false),
                    (StoreMode::Prepend, false),
                    (StoreMode::Append, true),
                    (StoreMode::Prepend, true),
                ] {
                    // More than this would not fit into the limit any more.
                    if bench.value.len() + bytes < 31 << 20 {
                        bench.join(mode, &part, staged);
                    }
                }
                let item = bench.check();
                if bench.value.len() > 2 * piece_bytes {
                    let fewest = bench.value.len() / piece_bytes;
                    assert!(bench.pieces(item) <= 2 * fewest + 3, "{}", bench.pieces(item));
                }
            }
        }
    }

    #[test]
    fn many_short_parts_do_not_make_many_pieces() {
        let mut bench = Bench::new(1 << 20);
        let fewest = bench.value.len() / bench.shard.piece_bytes_max();
        for round in 0..3000 {
            let mode = if round % 2 == 0 { StoreMode::Append } else { StoreMode::Prepend };
            bench.join(mode, &[round as u8; 50], round % 7 == 0);
        }
        let item = bench.check();
        assert!(bench.pieces(item) <= 2 * fewest + 3, "{}", bench.pieces(item));
    }

    #[test]
    fn what_is_being_sent_stays_as_it_was_while_its_item_grows() {
        let mut bench = Bench::new(1 << 20);
        let item = bench.check();
        bench.shard.pin(item);
        let sent: Vec<_> = match bench.shard.pinned_value(item) {
            ringlane_types::request::Value::Chained(chained) => chained.spans.to_vec(),
            ringlane_types::request::Value::Whole(_) => unreachable!("it is long"),
        };
        let before = bench.value.clone();
        for round in 0..30 {
            let mode = if round % 3 == 0 { StoreMode::Append } else { StoreMode::Prepend };
            bench.join(mode, &[round as u8; 50], round % 7 == 0);
        }
        bench.join(StoreMode::Append, &vec![7; 1 << 20], true);
        bench.check();
        let memory = bench.shard.memory();
        let still: Vec<u8> = sent
            .iter()
            .flat_map(|span| &memory[span.offset as usize..][..span.bytes as usize])
            .copied()
            .collect();
        assert!(still == before, "the client reads what it asked for");
        bench.shard.unpin(item);
        bench.check();
        bench.shard.flush_all(NOW, NOW);
        while bench.shard.maintain(NOW, 1000) {}
        bench.shard.check_invariants();
        assert_eq!(bench.shard.gauges().chunk_bytes, 0);
    }
}
