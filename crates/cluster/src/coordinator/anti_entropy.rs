//! Anti-entropy: in the background, two replicas find out what one of them lacks.
//!
//! Hints and repairs are kept only in memory and are bounded, so some writes reach a replica by
//! neither. With one other node after another, and pausing in between, a core compares what both
//! should hold: the circle is cut into segments, each side sums digests of the records in each, and
//! only segments whose digests differ are listed, key by key with versions. What is newer here is
//! sent; what is newer there is requested.
//!
//! ```text
//! A: Compare (digests) -> B: Compared, or Listing -> A: Merge ..., Want -> B: Merge ...
//! ```
//!
//! Of two nodes the one with the smaller key begins. All scans proceed in steps. The newest writes
//! are left out, since they may be in progress, and so are deletions that are about to be
//! forgotten: replicas forget them at different times and would send them back and forth.

use std::collections::HashMap;

use super::*;
use crate::store::Scanned;
use ringlane_types::wire::{Reader, Writer};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Segments of the circle.
const SEGMENTS: usize = 64;
const SEGMENT_SHIFT: u32 = 32 - SEGMENTS.trailing_zeros();
/// Writes younger than this are left out.
const SETTLE_FOR: Duration = Duration::from_secs(3);
/// A round without an answer for this long is given up.
const ROUND_FOR: Duration = Duration::from_secs(20);
/// Records examined in one step, and the time until the next.
const STEP_RECORDS: usize = 256;
const STEP_EVERY: Duration = Duration::from_millis(2);
/// Bytes of keys and versions in one listing, and of requested keys.
const LISTING_BYTES: usize = 256 << 10;
/// Bytes of records sent in one step.
const SEND_BYTES: usize = 256 << 10;
/// Rounds of others answered at a time; further ones are ignored and will be started again later.
const ANSWERS_MAX: usize = 8;

/// Which records a round covers.
#[derive(Clone, Copy, Debug)]
struct Scope {
    with: Peer,
    boot: Boot,
    stamp: u64,
    cutoff: Version,
    horizon: Version,
}

/// A round started by this core.
#[derive(Debug)]
struct Round {
    number: u64,
    scope: Scope,
    phase: Phase,
    until: Instant,
}

#[derive(Debug)]
enum Phase {
    /// Sums digests.
    Adding { cursor: u64, segments: Box<[u64; SEGMENTS]> },
    /// The other side has the digests.
    Waiting,
    /// Compares with the other side's listing.
    AntiEntropy { cursor: u64, listed: Listed },
}

/// What the other side holds in some segments.
#[derive(Debug)]
struct Listed {
    segments: u64,
    versions: HashMap<Box<[u8]>, Version, ahash::RandomState>,
}

/// A round started by another core.
#[derive(Debug)]
struct AnswerRound {
    number: u64,
    scope: Scope,
    theirs: [u64; SEGMENTS],
    ours: [u64; SEGMENTS],
    cursor: u64,
    /// The differing segments, once known; they are then being listed.
    differing: Option<u64>,
    entries: Vec<u8>,
    until: Instant,
}

/// What is being compared.
#[derive(Debug, Default)]
pub(super) struct AntiEntropy {
    round: Option<Round>,
    answers: Vec<AnswerRound>,
    rounds: u64,
    /// Whom the last round was with, to continue with the next.
    last: Option<Peer>,
    next_at: Instant,
    step_at: Instant,
}

impl AntiEntropy {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let adds = |round: &Round| !matches!(round.phase, Phase::Waiting);
        let busy = !self.answers.is_empty() || self.round.as_ref().is_some_and(adds);
        let until = self.round.as_ref().map(|round| round.until);
        Some(if busy { self.step_at } else { until.unwrap_or(self.next_at) })
    }

    pub(super) fn stop(&mut self) {
        self.round = None;
        self.answers.clear();
    }
}

fn segment(point: Point) -> usize {
    (point.0 >> SEGMENT_SHIFT) as usize
}

impl Coordinator {
    /// Continues the comparisons in progress.
    pub(super) fn compare<S: ReplicaStore, O: Effects>(&mut self, turn: &mut Turn<'_, S, O>) {
        if self.settings.replication.replicas() == 1 || turn.now < self.anti_entropy.step_at {
            return;
        }
        self.anti_entropy.step_at = turn.now.after(STEP_EVERY);
        match self.anti_entropy.round.take() {
            Some(round) if round.until > turn.now => self.continue_round(round, turn),
            Some(_) => self.anti_entropy.next_at = turn.now.after(self.settings.compare_every),
            None if self.anti_entropy.next_at <= turn.now => self.begin_round(turn),
            None => {}
        }
        for mut answer in std::mem::take(&mut self.anti_entropy.answers) {
            if answer.until > turn.now && !self.continue_answering(&mut answer, turn) {
                self.anti_entropy.answers.push(answer);
            }
        }
    }

    /// Chooses the next core of another node, in turn.
    fn begin_round<S: ReplicaStore, O: Effects>(&mut self, turn: &mut Turn<'_, S, O>) {
        self.anti_entropy.next_at = turn.now.after(self.settings.compare_every);
        let Some(placement) = &self.placement else { return };
        if !placement.transfers.is_empty() {
            return;
        }
        let mut peers: Vec<Peer> = Vec::new();
        for member in placement.view.roster().members() {
            if member.key > self.me && self.is_present(member.key, member.boot) {
                let cores = self.reach[&member.key].facts.core_count;
                peers.extend((0..cores).map(|core| Peer { node: member.key, core }));
            }
        }
        peers.sort_unstable();
        let next =
            peers.iter().find(|peer| self.anti_entropy.last.is_none_or(|last| **peer > last));
        let Some(with) = next.or(peers.first()).copied() else { return };
        let tombstone = self.settings.retention.tombstone;
        let version = |back: Duration| {
            let millis = turn.now.as_millis().saturating_sub(back.as_millis() as u64);
            Version::at(Instant::from_millis(millis))
        };
        let scope = Scope {
            with,
            boot: self.reach[&with.node].facts.boot,
            stamp: placement.view.stamp(),
            cutoff: version(SETTLE_FOR),
            horizon: version(tombstone),
        };
        self.anti_entropy.last = Some(with);
        self.anti_entropy.rounds += 1;
        self.anti_entropy.round = Some(Round {
            number: self.anti_entropy.rounds,
            scope,
            phase: Phase::Adding { cursor: 0, segments: Box::new([0; SEGMENTS]) },
            until: turn.now.after(ROUND_FOR),
        });
    }

    fn continue_round<S: ReplicaStore, O: Effects>(
        &mut self,
        mut round: Round,
        turn: &mut Turn<'_, S, O>,
    ) {
        let scope = round.scope;
        match &mut round.phase {
            Phase::Waiting => {}
            Phase::Adding { cursor, segments } => {
                round.until = turn.now.after(ROUND_FOR);
                match self.add_up(&scope, *cursor, segments, turn) {
                    Some(next) => *cursor = next,
                    None => {
                        let Some(out) = turn.effects.buffer_for(scope.with) else { return };
                        let mut bytes = Vec::with_capacity(SEGMENTS * 8);
                        segments.iter().for_each(|digest| bytes.put_u64(*digest));
                        let Scope { stamp, cutoff, horizon, .. } = scope;
                        let round = round.number;
                        NodeMessage::Compare { round, stamp, cutoff, horizon, segments: &bytes }
                            .write(out);
                        round_waits(&mut self.anti_entropy, round, scope, turn.now);
                        return;
                    }
                }
            }
            Phase::AntiEntropy { cursor, listed } => {
                round.until = turn.now.after(ROUND_FOR);
                match self.reconcile(&scope, *cursor, listed, round.number, turn) {
                    Some(next) => *cursor = next,
                    None => return,
                }
            }
        }
        self.anti_entropy.round = Some(round);
    }

    /// Adds the records of one step to the digests.
    fn add_up<S: ReplicaStore, O: Effects>(
        &self,
        scope: &Scope,
        cursor: u64,
        segments: &mut [u64; SEGMENTS],
        turn: &mut Turn<'_, S, O>,
    ) -> Option<u64> {
        let now = turn.now;
        turn.store.scan(cursor, STEP_RECORDS, now, &mut |scanned| {
            if let Some(point) = self.shared(scope, scanned.key)
                && is_compared(scope, &scanned, now)
            {
                let digest = xxh3_64_with_seed(scanned.key, scanned.record.version.0);
                let sum = &mut segments[segment(point)];
                *sum = sum.wrapping_add(digest);
            }
        })
    }

    /// The point of a key that both sides of a round hold; `None` for others.
    fn shared(&self, scope: &Scope, key: &[u8]) -> Option<Point> {
        let reach = self.reach.get(&scope.with.node)?;
        if reach.facts.core_of(key) != scope.with.core {
            return None;
        }
        let view = &self.placement.as_ref()?.view;
        let point = view.ring().point_of(key);
        let both =
            view.holds(self.me, self.boot, point) && view.holds(scope.with.node, scope.boot, point);
        both.then_some(point)
    }

    /// Another core wants to compare.
    pub(super) fn compare_asked<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        message: &NodeMessage<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        let NodeMessage::Compare { round, stamp, cutoff, horizon, segments } = *message else {
            return;
        };
        let agrees = self.placement.as_ref().is_some_and(|placement| {
            placement.view.stamp() == stamp && placement.transfers.is_empty()
        });
        let Some(reach) = self.reach.get(&from.node) else { return };
        let (mut theirs, mut reader) = ([0; SEGMENTS], Reader::new(segments));
        let whole = theirs.iter_mut().all(|digest| reader.u64().map(|n| *digest = n).is_ok());
        let answers = &mut self.anti_entropy.answers;
        answers.retain(|answer| answer.scope.with != from);
        if !agrees || !whole || answers.len() >= ANSWERS_MAX {
            return;
        }
        answers.push(AnswerRound {
            number: round,
            scope: Scope { with: from, boot: reach.facts.boot, stamp, cutoff, horizon },
            theirs,
            ours: [0; SEGMENTS],
            cursor: 0,
            differing: None,
            entries: Vec::new(),
            until: turn.now.after(ROUND_FOR),
        });
    }

    /// Continues answering; true when that is done.
    fn continue_answering<S: ReplicaStore, O: Effects>(
        &mut self,
        answer: &mut AnswerRound,
        turn: &mut Turn<'_, S, O>,
    ) -> bool {
        let scope = answer.scope;
        if self.view().is_none_or(|view| view.stamp() != scope.stamp) {
            return true;
        }
        answer.until = turn.now.after(ROUND_FOR);
        let Some(differing) = answer.differing else {
            if let Some(next) = self.add_up(&scope, answer.cursor, &mut answer.ours, turn) {
                answer.cursor = next;
                return false;
            }
            let pairs = answer.theirs.iter().zip(&answer.ours).zip(0..);
            let differing =
                pairs.filter(|((a, b), _)| a != b).fold(0u64, |all, (_, at)| all | 1 << at);
            if differing == 0 {
                if let Some(out) = turn.effects.buffer_for(scope.with) {
                    NodeMessage::Compared { round: answer.number }.write(out);
                }
                return true;
            }
            (answer.differing, answer.cursor) = (Some(differing), 0);
            return false;
        };
        let (now, entries) = (turn.now, &mut answer.entries);
        let next = turn.store.scan(answer.cursor, STEP_RECORDS, now, &mut |scanned| {
            if let Some(point) = self.shared(&scope, scanned.key)
                && differing >> segment(point) & 1 == 1
                && is_compared(&scope, &scanned, now)
            {
                entries.put_short(scanned.key);
                entries.put_u64(scanned.record.version.0);
            }
        });
        if entries.len() > LISTING_BYTES && differing.count_ones() > 1 {
            // Too much for one round: half of the segments now, the rest in a later one.
            let kept = lower_half(differing);
            (answer.differing, answer.cursor) = (Some(kept), 0);
            answer.entries.clear();
            return false;
        }
        if let Some(next) = next.filter(|_| answer.entries.len() <= 4 * LISTING_BYTES) {
            answer.cursor = next;
            return false;
        }
        if let Some(out) = turn.effects.buffer_for(scope.with) {
            let segments = differing.to_le_bytes();
            let (round, complete) = (answer.number, next.is_none());
            let entries = &answer.entries[..];
            NodeMessage::Listing { round, segments: &segments, complete, entries }.write(out);
        }
        true
    }

    /// The other side has listed what it holds in the differing segments.
    pub(super) fn listing_came(&mut self, from: Peer, message: &NodeMessage<'_>) {
        let NodeMessage::Listing { round, segments, complete, entries } = *message else { return };
        let expected = |ours: &&mut Round| ours.number == round && ours.scope.with == from;
        let Some(ours) = self.anti_entropy.round.as_mut().filter(expected) else { return };
        let Ok(segments) = <[u8; 8]>::try_from(segments) else { return };
        let hasher = self.settings.hash_secret.table_hasher();
        let mut versions = HashMap::with_hasher(hasher);
        let mut reader = Reader::new(entries);
        while reader.left() > 0 {
            let (Ok(key), Ok(version)) = (reader.short(), reader.u64()) else { break };
            versions.insert(key.into(), Version(version));
        }
        // A truncated listing proves nothing about keys it does not name.
        let segments = if complete { u64::from_le_bytes(segments) } else { 0 };
        let listed = Listed { segments, versions };
        ours.phase = Phase::AntiEntropy { cursor: 0, listed };
    }

    /// Both sides hold the same records.
    pub(super) fn compared(&mut self, from: Peer, round: u64) {
        if self
            .anti_entropy
            .round
            .as_ref()
            .is_some_and(|r| r.number == round && r.scope.with == from)
        {
            self.anti_entropy.round = None;
        }
    }

    /// Sends what is newer here, step by step, and requests the rest at the end.
    fn reconcile<S: ReplicaStore, O: Effects>(
        &mut self,
        scope: &Scope,
        cursor: u64,
        listed: &mut Listed,
        round: u64,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<u64> {
        let now = turn.now;
        let mut newer_here: Vec<Box<[u8]>> = Vec::new();
        let next = turn.store.scan(cursor, STEP_RECORDS, now, &mut |scanned| {
            let ours = scanned.record.version;
            match listed.versions.get(scanned.key) {
                Some(theirs) if *theirs > ours => {}
                Some(theirs) => {
                    if *theirs < ours {
                        newer_here.push(scanned.key.into());
                    }
                    listed.versions.remove(scanned.key);
                }
                None => {
                    if let Some(point) = self.shared(scope, scanned.key)
                        && listed.segments >> segment(point) & 1 == 1
                        && is_compared(scope, &scanned, now)
                    {
                        newer_here.push(scanned.key.into());
                    }
                }
            }
        });
        for key in newer_here {
            if self.send_record(scope.with.node, &key, 0, turn) {
                self.counters.compared_records += 1;
            }
        }
        if next.is_none() && !listed.versions.is_empty() {
            let mut keys = Vec::new();
            for key in listed.versions.keys() {
                // A full store would only exchange one loss for another.
                if turn.store.has_room() || turn.store.read(key, now).is_some() {
                    keys.put_short(key);
                }
            }
            if let Some(out) = turn.effects.buffer_for(scope.with) {
                NodeMessage::Want { round, keys: &keys }.write(out);
            }
        }
        next
    }

    /// The other side lacks these, or has older versions.
    pub(super) fn wanted<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        keys: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        let mut reader = Reader::new(keys);
        let mut sent = 0;
        while let (true, Ok(key)) = (sent < SEND_BYTES, reader.short()) {
            let bytes = turn.store.read(key, turn.now).map_or(0, |record| record.value_bytes());
            if self.send_record(from.node, key, 0, turn) {
                self.counters.compared_records += 1;
            }
            sent += bytes + key.len();
        }
    }
}

fn round_waits(anti_entropy: &mut AntiEntropy, number: u64, scope: Scope, now: Instant) {
    let until = now.after(ROUND_FOR);
    anti_entropy.round = Some(Round { number, scope, phase: Phase::Waiting, until });
}

/// Whether a record takes part: it is settled, and not a deletion about to be forgotten.
fn is_compared(scope: &Scope, scanned: &Scanned<'_>, now: Instant) -> bool {
    let version = scanned.record.version;
    version <= scope.cutoff && (version >= scope.horizon || scanned.record.visible(now).is_some())
}

/// The lower half of the set bits.
fn lower_half(bits: u64) -> u64 {
    let (mut left, mut kept) = (bits, 0);
    for _ in 0..bits.count_ones().div_ceil(2) {
        let lowest = left & left.wrapping_neg();
        kept |= lowest;
        left &= !lowest;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_segments_are_kept_and_one_stays() {
        assert_eq!(lower_half(0b1011_0100), 0b0001_0100);
        assert_eq!(lower_half(u64::MAX), u64::from(u32::MAX));
        assert_eq!(lower_half(1 << 63), 1 << 63);
    }

    #[test]
    fn every_place_has_a_segment() {
        assert_eq!((segment(Point(0)), segment(Point(u32::MAX))), (0, SEGMENTS - 1));
    }
}
