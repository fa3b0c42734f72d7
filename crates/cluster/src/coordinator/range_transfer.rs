//! Range transfers: ranges that this core gained through a new view are copied in the background.
//!
//! They are requested from each former holder part by part, core by core, at a bounded rate, the
//! most recently used records first (`newest`). A holder answers only once it is in the new view
//! itself and has completed its earlier transfers, so that it sends everything it has acknowledged.
//! A transfer is complete when every point has been copied from enough holders; the others are not
//! needed.

use std::sync::Arc;

use super::newest::Divisions;
use super::*;
use crate::message::Messages;
use crate::record::Record;
use crate::store::Scanned;

/// Approximate bytes requested at a time. Clients wait while a holder collects them and a core
/// stores them: about 20 us each, and as much again in the kernel.
const PULL_BYTES: u32 = 32 << 10;
/// How far arrivals may be ahead of the rate. An idle core sleeps longer than a part takes, and
/// catches up this way.
const AHEAD_MAX: Duration = Duration::from_millis(50);
/// A part that has not arrived after this is requested again.
const PULL_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Records examined for one answer, wanted or not.
const SCAN_RECORDS_MAX: usize = 4096;
/// Records examined between checks whether they suffice for an answer. Few, since all of them may
/// be wanted, and large.
const LOOK_STEP: usize = 16;
/// Records examined per call in search of those that this node no longer owns.
const SWEEP_STEP: usize = 128;
/// Records sampled to estimate when records were used.
const SAMPLE: usize = 256;

/// What is being copied.
#[derive(Debug, Default)]
pub(super) struct RangeTransfers {
    pulls: Vec<Pull>,
    bucket: TokenBucket,
    /// The epoch that was last reported as settled.
    settled: u64,
    /// Where the search for records that this node no longer owns continues.
    sweep: Option<u64>,
    /// When a holder that is waited for will have been dead for too long.
    look_at: Option<Instant>,
    /// What is sent to others first.
    divisions: Divisions,
}

/// The progress of copying from one holder.
#[derive(Debug)]
struct Pull {
    epoch: u64,
    node: NodeKey,
    boot: Boot,
    core: u16,
    cursor: u64,
    /// When to request the next part, or this one again.
    due: Instant,
    under_way: bool,
}

/// How much of the rate all holders together have used.
#[derive(Debug, Default)]
struct TokenBucket {
    /// The time at which the rate would have allowed everything that has arrived.
    earned: Instant,
    /// The remainder below the clock's unit, in bytes.
    rest: u64,
}

impl TokenBucket {
    /// Records that `bytes` have arrived; returns when more may be requested.
    fn arrived(&mut self, bytes: usize, bytes_per_second: u64, now: Instant) -> Instant {
        let bytes = self.rest + bytes as u64;
        let millis = bytes * 1000 / bytes_per_second.max(1);
        self.rest = bytes - millis * bytes_per_second.max(1) / 1000;
        self.earned = self.earned.max(now).after(Duration::from_millis(millis));
        now.after(self.earned.since(now).saturating_sub(AHEAD_MAX))
    }
}

impl RangeTransfers {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        // A sweep goes on in every call; there is always one soon.
        let sweep = self.sweep.map(|_| Instant::default());
        self.pulls.iter().map(|pull| pull.due).chain(sweep).chain(self.look_at).min()
    }

    pub(super) fn stop_sweeping(&mut self) {
        self.sweep = None;
    }

    pub(super) fn sweep_from_the_beginning(&mut self) {
        self.sweep = Some(0);
    }
}

impl Coordinator {
    /// How much of the circle is still being copied, from 0 to 1, and records and bytes so far.
    pub fn transfer_progress(&self) -> (f64, u64, u64) {
        let transfers = self.placement.iter().flat_map(|placement| &placement.transfers);
        let share =
            transfers.map(|transfer| transfer.share(self.me, self.boot)).fold(0.0, f64::max);
        (share, self.counters.filled_records, self.counters.filled_bytes)
    }

    /// Stops waiting for holders that will never answer: another boot replaces them on the roster,
    /// or they have left the roster and are dead.
    ///
    /// If the quorums guarantee that nothing is lost, a dead node that has left the roster is
    /// waited for until it would be forgotten: it may have been cut off, and have left at the
    /// moment of its return, with the only copy of writes it acknowledged meanwhile.
    pub(super) fn note_gone_sources(&mut self, now: Instant) {
        self.transfers.look_at = None;
        let Some(placement) = &mut self.placement else { return };
        let roster = placement.view.roster().clone();
        let patience = match self.settings.replication.is_strict() {
            true => self.settings.forget_after,
            false => Duration::ZERO,
        };
        for transfer in &mut placement.transfers {
            let before = transfer.before.clone();
            for (member, at) in before.roster().members().iter().zip(0..) {
                if transfer.sources[at] != Source::Missing || roster.has(member.key, member.boot) {
                    continue;
                }
                let replaced = roster.member(member.key).is_some();
                let dead_since = self.peers.dead_since(member.key, member.boot);
                let gone_at = dead_since.map(|since| since.after(patience));
                if replaced || gone_at.is_some_and(|at| at <= now) {
                    Arc::make_mut(transfer).sources[at] = Source::Gone;
                } else if let Some(at) = gone_at {
                    let earliest = self.transfers.look_at.unwrap_or(at).min(at);
                    self.transfers.look_at = Some(earliest);
                }
            }
        }
    }

    /// Drops completed transfers, and reports what that settles.
    pub(super) fn finish_transfers<S: ReplicaStore, O: Effects>(
        &mut self,
        turn: &mut Turn<'_, S, O>,
    ) {
        let Some(placement) = &mut self.placement else { return };
        let (me, boot, replication) = (self.me, self.boot, self.settings.replication);
        placement.transfers.retain(|transfer| !transfer.is_complete(me, boot, replication));
        let settled = match placement.transfers.first() {
            Some(transfer) => transfer.epoch() - 1,
            None => placement.view.epoch(),
        };
        let wanted = |pull: &Pull| {
            placement.transfers.iter().any(|transfer| {
                transfer.epoch() == pull.epoch && {
                    let members = transfer.before.roster().members().iter().zip(&transfer.sources);
                    let mut missing = members.filter(|(_, source)| **source == Source::Missing);
                    missing.any(|(member, _)| member.key == pull.node && member.boot == pull.boot)
                }
            })
        };
        self.transfers.pulls.retain(wanted);
        for transfer in &placement.transfers {
            for (member, source) in transfer.before.roster().members().iter().zip(&transfer.sources)
            {
                let (epoch, node) = (transfer.epoch(), member.key);
                let known = self.transfers.pulls.iter().any(|p| p.epoch == epoch && p.node == node);
                if *source == Source::Missing && !known && node != me {
                    self.transfers.pulls.push(Pull {
                        epoch,
                        node,
                        boot: member.boot,
                        core: 0,
                        cursor: 0,
                        due: turn.now,
                        under_way: false,
                    });
                }
            }
        }
        if placement.transfers.is_empty() {
            self.fetched.clear();
        }
        if settled != self.transfers.settled {
            self.transfers.settled = settled;
            turn.effects.ranges_complete(settled);
        }
    }

    /// Gives up holders that will not answer any more.
    pub(super) fn give_up_sources<S: ReplicaStore, O: Effects>(
        &mut self,
        turn: &mut Turn<'_, S, O>,
    ) {
        if self.transfers.look_at.is_some_and(|at| at <= turn.now) {
            self.note_gone_sources(turn.now);
            self.finish_transfers(turn);
        }
    }

    /// Requests the parts that are due.
    pub(super) fn transfer<S: ReplicaStore, O: Effects>(&mut self, turn: &mut Turn<'_, S, O>) {
        let now = turn.now;
        for pull in &mut self.transfers.pulls {
            if pull.due > now {
                continue;
            }
            pull.due = now.after(PULL_AGAIN_AFTER);
            let reach = self.reach.get(&pull.node).filter(|reach| reach.facts.boot == pull.boot);
            if reach.is_none() || !self.peers.is_present(pull.node) {
                continue;
            }
            let to = Peer { node: pull.node, core: pull.core };
            let Some(out) = turn.effects.request_buffer(to, 0).open() else { continue };
            let (epoch, cursor) = (pull.epoch, pull.cursor);
            NodeMessage::Pull { epoch, cursor, bytes_max: PULL_BYTES }.write(out);
            pull.under_way = true;
        }
    }

    /// Removes some of the records that this node no longer owns.
    pub(super) fn sweep<S: ReplicaStore, O: Effects>(&mut self, turn: &mut Turn<'_, S, O>) {
        let (Some(cursor), Some(placement)) = (self.transfers.sweep, &self.placement) else {
            return;
        };
        let view = &placement.view;
        let mut others = Vec::new();
        let next = turn.store.scan(cursor, SWEEP_STEP, turn.now, &mut |scanned: Scanned<'_>| {
            let point = view.ring().point_of(scanned.key);
            // A key that this node stands in for is kept while its own nodes are away.
            let theirs = !view.holds(self.me, self.boot, point)
                && view.ring().replicas(point).iter().all(|node| {
                    let member = view.member(*node);
                    self.peers.is_alive(member.key, member.boot)
                });
            if theirs {
                others.push((scanned.key.to_vec(), scanned.record.version));
            }
        });
        for (key, version) in others {
            turn.store.forget(&key, version);
        }
        self.transfers.sweep = next;
    }

    /// Handles a message that is not about a single key.
    pub(super) fn node_message<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        message: &NodeMessage<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        match *message {
            NodeMessage::Pull { epoch, cursor, bytes_max } => {
                self.pulled_from(from, epoch, cursor, bytes_max, turn);
            }
            NodeMessage::Pulled { epoch, cursor, next, merges } => {
                self.pulled(from, epoch, cursor, next, merges, turn);
            }
            NodeMessage::Compare { .. } => self.compare_asked(from, message, turn),
            NodeMessage::Listing { .. } => self.listing_came(from, message),
            NodeMessage::Compared { round } => self.compared(from, round),
            NodeMessage::Want { keys, .. } => self.wanted(from, keys, turn),
            NodeMessage::Flush { version } => self.flush(version, turn),
            _ => self.counters.malformed += 1,
        }
    }

    /// A part has arrived.
    fn pulled<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        epoch: u64,
        cursor: u64,
        next: Option<u64>,
        merges: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        let expected = |pull: &Pull| {
            let part = (pull.epoch, pull.node, pull.core, pull.cursor);
            pull.under_way && part == (epoch, from.node, from.core, cursor)
        };
        let Some(at) = self.transfers.pulls.iter().position(expected) else { return };
        for message in Messages::new(merges) {
            let Ok(Ok(Message::Merge { key, record, .. })) = message.map(Message::read) else {
                self.counters.malformed += 1;
                return;
            };
            self.take_merge(key, &record, turn);
            self.counters.filled_records += 1;
        }
        self.counters.filled_bytes += merges.len() as u64;
        let rate = self.settings.fill_bytes_per_second;
        let due = self.transfers.bucket.arrived(merges.len(), rate, turn.now);
        let pull = &mut self.transfers.pulls[at];
        pull.under_way = false;
        pull.due = due;
        match next {
            Some(next) => pull.cursor = next,
            None => {
                pull.cursor = 0;
                pull.core += 1;
                let cores = self.reach.get(&from.node).map_or(0, |reach| reach.facts.core_count);
                if pull.core >= cores {
                    let (node, boot) = (pull.node, pull.boot);
                    self.copied_from(node, boot, epoch, turn);
                }
            }
        }
        self.transfer(turn);
    }

    /// Everything has been copied from one holder.
    pub(super) fn copied_from<S: ReplicaStore, O: Effects>(
        &mut self,
        node: NodeKey,
        boot: Boot,
        epoch: u64,
        turn: &mut Turn<'_, S, O>,
    ) {
        let Some(placement) = &mut self.placement else { return };
        for transfer in placement.transfers.iter_mut().filter(|transfer| transfer.epoch() == epoch)
        {
            if let Some(index) = transfer.before.index_of(node, boot) {
                Arc::make_mut(transfer).sources[index.0 as usize] = Source::Copied;
            }
        }
        self.finish_transfers(turn);
    }

    /// Another node copies from this core what it gained with the roster of `epoch`.
    fn pulled_from<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        epoch: u64,
        cursor: u64,
        bytes_max: u32,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.mark_all_exposed();
        let Some(placement) = &self.placement else { return };
        let incomplete = placement.transfers.iter().any(|transfer| transfer.epoch() < epoch);
        let Some(reach) = self.reach.get(&from.node).copied() else { return };
        if placement.view.epoch() < epoch || incomplete {
            return;
        }
        let after = self.history.iter().position(|view| view.epoch() == epoch);
        let pair = after.filter(|at| *at > 0).map(|at| (&self.history[at - 1], &self.history[at]));
        let boot = reach.facts.boot;
        let wants = |key: &[u8]| {
            if reach.facts.core_of(key) != from.core {
                return false;
            }
            let point = placement.view.ring().point_of(key);
            match pair {
                Some((before, after)) => {
                    after.holds(from.node, boot, point) && !before.holds(from.node, boot, point)
                }
                None => placement.view.holds(from.node, boot, point),
            }
        };
        let Some(out) = turn.effects.buffer_for(from) else { return };
        let (store, now) = (&mut *turn.store, turn.now);
        let position = self.transfers.divisions.position(epoch, cursor, now, || {
            let mut used = Vec::with_capacity(SAMPLE);
            store.scan(0, SAMPLE, now, &mut |scanned: Scanned<'_>| used.push(scanned.used));
            used
        });
        let mut merges = Vec::new();
        let mut wanted = 0;
        let bytes_max = bytes_max.min(PULL_BYTES) as usize;
        let mut at = Some(position.cursor);
        // Bounds steps rather than records: a store may have more slots than records.
        for _ in 0..SCAN_RECORDS_MAX / LOOK_STEP {
            let Some(from_here) = at.filter(|_| merges.len() < bytes_max) else { break };
            at = turn.store.scan(from_here, LOOK_STEP, turn.now, &mut |scanned: Scanned<'_>| {
                if position.shows(scanned.used) && wants(scanned.key) {
                    wanted += 1;
                    let record: Record<'_> = scanned.record;
                    Message::Merge { ticket: 0, key: scanned.key, record }.write(&mut merges);
                }
            });
        }
        NodeMessage::Pulled { epoch, cursor, next: position.after(at), merges: &merges }.write(out);
        self.counters.handed_records += wanted;
        self.counters.handed_bytes += merges.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_share_the_rate_and_little_comes_ahead_of_it() {
        let begin = Instant::from_millis(1_700_000_000_000);
        let (mut bucket, mut due) = (TokenBucket::default(), [begin; 3]);
        let (mut arrived, rate, part) = (0, 32 << 20, 60_000);
        for millis in 0..2000 {
            let now = begin.after(Duration::from_millis(millis));
            for due in due.iter_mut().filter(|due| **due <= now) {
                *due = bucket.arrived(part, rate, now);
                arrived += part as u64;
            }
            // What may come ahead, the clock's unit, and a part of each.
            let most = rate * (millis + 50 + 1) / 1000 + 3 * part as u64;
            assert!(arrived <= most, "{arrived} bytes after {millis} ms");
        }
        assert!(arrived >= rate * 2 - rate / 100, "{arrived} bytes in 2 s");
    }
}
