//! Hints: writes stored for unreachable replicas, and their handoff.
//!
//! A hint never counts towards a quorum; it only saves a returning replica the wait for
//! anti-entropy. So it may be lost: with its node, by age, or at the limit in bytes, when the
//! oldest hint for the same replica is dropped. Every loss is counted. A newer write to a key
//! replaces the older hint, so a hot key costs one hint however long its replica is absent.
//!
//! Hints are delivered in the order in which they were created, a window at a time, and dropped
//! when the replica confirms them. Unconfirmed ones are sent again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::identity::NodeKey;
use super::record::{Record, RecordBuf};
use ringlane_types::time::Instant;

/// Overhead of a hint in bytes, besides its key and value.
const OVERHEAD_BYTES: usize = 128;
/// An unconfirmed window is sent again after this.
const RESEND_AFTER: Duration = Duration::from_secs(2);

/// Bounds of the hints of one core.
#[derive(Clone, Copy, Debug)]
pub struct HintSettings {
    /// Maximum bytes of all hints together.
    pub bytes_max: usize,
    /// A hint older than this is dropped.
    pub age_max: Duration,
    /// Window size: maximum hints in flight to one replica.
    pub window: usize,
}

impl Default for HintSettings {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, age_max: Duration::from_secs(600), window: 64 }
    }
}

/// Outcomes of hints since startup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintCounters {
    /// Stored.
    pub kept: u64,
    /// Confirmed by the replica they were for.
    pub handed_over: u64,
    /// Replaced by a newer write to the same key.
    pub replaced: u64,
    /// Dropped for lack of room.
    pub dropped_for_room: u64,
    /// Dropped for age, or because their replica is permanently gone.
    pub dropped_for_age: u64,
}

/// The hints stored by one core.
#[derive(Debug)]
pub struct Hints {
    settings: HintSettings,
    queues: BTreeMap<NodeKey, Queue>,
    bytes: usize,
    /// The last ticket issued. Tickets are in the order in which hints were created.
    last_ticket: u64,
    counters: HintCounters,
}

#[derive(Debug, Default)]
struct Queue {
    hints: BTreeMap<u64, Hint>,
    newest: HashMap<Box<[u8]>, u64>,
    /// Hints up to this ticket were sent; those still stored await confirmation.
    sent: u64,
    /// When the window is sent again.
    resend_at: Option<Instant>,
}

#[derive(Debug)]
struct Hint {
    key: Box<[u8]>,
    record: RecordBuf,
    made: Instant,
}

impl Hint {
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + 2 * self.key.len() + self.record.value_bytes()
    }
}

impl Hints {
    /// Creates an empty store with these bounds.
    pub fn new(settings: HintSettings) -> Self {
        let counters = HintCounters::default();
        Self { settings, queues: BTreeMap::new(), bytes: 0, last_ticket: 0, counters }
    }

    /// Stores `record` for the replica `node`.
    pub fn keep(&mut self, node: NodeKey, key: &[u8], record: &Record<'_>, now: Instant) {
        let hint = Hint { key: key.into(), record: RecordBuf::copied(record), made: now };
        let queue = self.queues.entry(node).or_default();
        if let Some(older) = queue.newest.get(key).copied() {
            let there = queue.hints.get(&older).expect("named by its key");
            if there.record.version() >= record.version {
                return;
            }
            let there = queue.hints.remove(&older).expect("just looked at");
            self.bytes -= there.bytes();
            self.counters.replaced += 1;
        }
        while self.bytes + hint.bytes() > self.settings.bytes_max {
            let Some((_, oldest)) = queue.hints.pop_first() else {
                self.counters.dropped_for_room += 1;
                queue.newest.remove(key);
                return;
            };
            queue.newest.remove(&oldest.key);
            self.bytes -= oldest.bytes();
            self.counters.dropped_for_room += 1;
        }
        self.last_ticket += 1;
        self.bytes += hint.bytes();
        queue.newest.insert(hint.key.clone(), self.last_ticket);
        queue.hints.insert(self.last_ticket, hint);
        self.counters.kept += 1;
    }

    /// Visits the due hints for `node`: the rest of its window, or all of it again if it was not
    /// confirmed in time. Call only while `node` is reachable.
    pub fn hand_over(
        &mut self,
        node: NodeKey,
        now: Instant,
        mut show: impl FnMut(u64, &[u8], &Record<'_>),
    ) {
        let Some(queue) = self.queues.get_mut(&node) else { return };
        if queue.resend_at.is_some_and(|at| at <= now) {
            queue.sent = 0;
        }
        let waiting = queue.hints.range(..=queue.sent).count();
        let free = self.settings.window.saturating_sub(waiting);
        let mut sent = queue.sent;
        for (ticket, hint) in queue.hints.range(queue.sent + 1..).take(free) {
            show(*ticket, &hint.key, &hint.record.get());
            sent = *ticket;
        }
        if sent != queue.sent {
            queue.sent = sent;
            queue.resend_at = Some(now.after(RESEND_AFTER));
        }
    }

    /// The replica `node` has confirmed the hint with this ticket. Returns whether there was such a
    /// hint.
    pub fn confirmed(&mut self, node: NodeKey, ticket: u64) -> bool {
        let Some(queue) = self.queues.get_mut(&node) else { return false };
        let Some(hint) = queue.hints.remove(&ticket) else { return false };
        queue.newest.remove(&hint.key);
        self.bytes -= hint.bytes();
        self.counters.handed_over += 1;
        if queue.hints.is_empty() {
            self.queues.remove(&node);
        }
        true
    }

    /// Drops expired hints, and all hints for nodes that `still_wanted` rejects.
    pub fn expire(&mut self, now: Instant, still_wanted: impl Fn(NodeKey) -> bool) {
        let age_max = self.settings.age_max;
        for (node, queue) in &mut self.queues {
            let wanted = still_wanted(*node);
            let old = |hint: &Hint| !wanted || now.since(hint.made) > age_max;
            while queue.hints.first_key_value().is_some_and(|(_, hint)| old(hint)) {
                let (_, hint) = queue.hints.pop_first().expect("just looked at");
                queue.newest.remove(&hint.key);
                self.bytes -= hint.bytes();
                self.counters.dropped_for_age += 1;
            }
        }
        self.queues.retain(|_, queue| !queue.hints.is_empty());
    }

    /// Replicas with stored hints.
    pub fn nodes(&self) -> impl Iterator<Item = NodeKey> {
        self.queues.keys().copied()
    }

    /// When hints for a reachable replica are due to be sent again.
    pub fn next_deadline(&self, reachable: impl Fn(NodeKey) -> bool) -> Option<Instant> {
        let queues = self.queues.iter().filter(|(node, _)| reachable(**node));
        queues.filter_map(|(_, queue)| queue.resend_at).min()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Number and bytes of stored hints.
    pub fn size(&self) -> (usize, usize) {
        (self.queues.values().map(|queue| queue.hints.len()).sum(), self.bytes)
    }

    /// Outcomes since startup.
    pub fn counters(&self) -> HintCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::super::version::Version;
    use super::*;
    use ringlane_types::time::Deadline;

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);
    const NODE: NodeKey = NodeKey(7);

    fn hints(bytes_max: usize, window: usize) -> Hints {
        Hints::new(HintSettings { bytes_max, window, ..Default::default() })
    }

    fn keep(hints: &mut Hints, key: &str, version: u64, now: Instant) {
        let record = Record::live(Version(version), b"0123456789", Deadline::NEVER);
        hints.keep(NODE, key.as_bytes(), &record, now);
    }

    fn due(hints: &mut Hints, now: Instant) -> Vec<(u64, String, u64)> {
        let mut shown = Vec::new();
        hints.hand_over(NODE, now, |ticket, key, record| {
            let key = String::from_utf8(key.to_vec()).unwrap();
            shown.push((ticket, key, record.version.0));
        });
        shown
    }

    fn keys(shown: &[(u64, String, u64)]) -> Vec<&str> {
        shown.iter().map(|(_, key, _)| &**key).collect()
    }

    #[test]
    fn hints_are_handed_over_in_order_a_window_at_a_time() {
        let mut hints = hints(1 << 20, 2);
        for (version, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            keep(&mut hints, key, version as u64 + 1, NOW);
        }
        let first = due(&mut hints, NOW);
        assert_eq!(keys(&first), ["a", "b"]);
        assert!(due(&mut hints, NOW).is_empty());
        assert!(hints.confirmed(NODE, first[0].0));
        assert!(!hints.confirmed(NODE, first[0].0), "once");
        assert_eq!(keys(&due(&mut hints, NOW)), ["c"]);
    }

    #[test]
    fn what_is_not_confirmed_is_sent_again() {
        let mut hints = hints(1 << 20, 2);
        keep(&mut hints, "a", 1, NOW);
        keep(&mut hints, "b", 2, NOW);
        due(&mut hints, NOW);
        assert_eq!(hints.next_deadline(|_| true), Some(NOW.after(RESEND_AFTER)));
        assert_eq!(keys(&due(&mut hints, NOW.after(RESEND_AFTER))), ["a", "b"]);
    }

    #[test]
    fn a_newer_write_takes_the_place_of_the_older_hint() {
        let mut hints = hints(1 << 20, 10);
        keep(&mut hints, "a", 1, NOW);
        keep(&mut hints, "b", 2, NOW);
        keep(&mut hints, "a", 3, NOW);
        keep(&mut hints, "a", 2, NOW);
        let shown = due(&mut hints, NOW);
        assert_eq!(keys(&shown), ["b", "a"]);
        assert_eq!(shown[1].2, 3);
        assert_eq!((hints.size().0, hints.counters().replaced), (2, 1));
    }

    #[test]
    fn a_full_store_drops_the_oldest_and_counts_it() {
        let room_for_three = 3 * (OVERHEAD_BYTES + 2 + 10);
        let mut hints = hints(room_for_three, 10);
        for (version, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            keep(&mut hints, key, version as u64 + 1, NOW);
        }
        assert_eq!(keys(&due(&mut hints, NOW)), ["c", "d", "e"]);
        assert_eq!(hints.counters().dropped_for_room, 2);
        assert!(hints.size().1 <= room_for_three);
        let other = Record::live(Version(9), b"0123456789", Deadline::NEVER);
        hints.keep(NodeKey(8), b"x", &other, NOW);
        assert_eq!(hints.counters().dropped_for_room, 3, "others' hints are left alone");
    }

    #[test]
    fn an_old_hint_is_dropped_and_so_is_one_for_a_node_that_is_gone() {
        let mut hints = hints(1 << 20, 10);
        keep(&mut hints, "a", 1, NOW);
        let later = NOW.after(Duration::from_secs(300));
        keep(&mut hints, "b", 2, later);
        hints.expire(NOW.after(Duration::from_secs(601)), |_| true);
        assert_eq!(keys(&due(&mut hints, later)), ["b"]);
        hints.expire(later, |_| false);
        assert!(hints.is_empty());
        assert_eq!((hints.size(), hints.counters().dropped_for_age), ((0, 0), 2));
    }

    #[test]
    fn the_same_events_leave_no_bytes_behind() {
        let mut hints = hints(4096, 10);
        for version in 1..500u64 {
            keep(&mut hints, &format!("key-{}", version % 37), version, NOW);
            if version % 3 == 0 {
                for (ticket, ..) in due(&mut hints, NOW) {
                    hints.confirmed(NODE, ticket);
                }
            }
        }
        hints.expire(NOW.after(Duration::from_secs(3600)), |_| true);
        assert_eq!(hints.size(), (0, 0));
    }
}
