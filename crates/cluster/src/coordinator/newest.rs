//! Newest first: what was used last is sent before the rest.
//!
//! A store is scanned in the order of its hashes. So it is scanned twice: the first scan includes
//! only what was used since some time, about the newest quarter; the second includes the others,
//! and what was used since the first scan began. A record that stays throughout is included in one
//! of them whenever it is used: one that was too old for the first scan, and was used after that
//! had passed it, is new enough for the second. Stores report the time of a use coarsely, and not
//! always identically, so the second scan overlaps the first a little. Some records are included
//! twice, which is harmless.
//!
//! Rejected alternative: following the store's recency lists. They change during the scan, so
//! records that move from the remaining part to the finished part would be missed.

use std::collections::VecDeque;
use std::time::Duration;

use super::HISTORY_MAX;
use ringlane_types::time::Instant;

/// Set in the cursors of the second scan. The store's own cursors are below.
const SECOND: u64 = 1 << 63;
/// How far the store's report of the time of a use may be off.
const COARSENESS: Duration = Duration::from_secs(1);

/// Where the store is divided, by the epoch of the roster for which it is scanned.
#[derive(Debug, Default)]
pub(super) struct Divisions {
    known: VecDeque<Division>,
}

/// What is included in which scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    epoch: u64,
    /// What was used since then comes first.
    since: Instant,
    /// When the first scan of this epoch began.
    begun: Instant,
}

/// The progress of a pair of scans.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// Where the store continues.
    pub cursor: u64,
    second: bool,
    division: Option<Division>,
}

impl Divisions {
    /// The position `cursor` of a pair of scans for the roster of `epoch`. A new pair is divided
    /// according to `sample`, the times at which some records were used.
    pub(super) fn position(
        &mut self,
        epoch: u64,
        cursor: u64,
        now: Instant,
        sample: impl FnOnce() -> Vec<Instant>,
    ) -> Position {
        let second = cursor & SECOND != 0;
        let mut division = self.known.iter().find(|division| division.epoch == epoch).copied();
        if division.is_none() && !second {
            let mut used = sample();
            used.sort_unstable();
            let since = used.get(used.len() * 3 / 4).copied().unwrap_or(now);
            division = Some(Division { epoch, since, begun: now });
            self.known.extend(division);
            if self.known.len() > HISTORY_MAX {
                self.known.pop_front();
            }
        }
        Position { cursor: cursor & !SECOND, second, division }
    }
}

impl Position {
    /// Whether a record used at `used` is included. Without the division of its first scan, the
    /// second includes everything.
    pub(super) fn shows(&self, used: Instant) -> bool {
        self.division.is_none_or(|Division { since, begun, .. }| match self.second {
            false => used >= since,
            true => used < since.after(COARSENESS) || used.after(COARSENESS) >= begun,
        })
    }

    /// The cursor after the store has reached `at`; `None` when both scans are done.
    pub(super) fn after(&self, at: Option<u64>) -> Option<u64> {
        let mark = if self.second { SECOND } else { 0 };
        match at {
            Some(at) => Some(at | mark),
            None if self.second => None,
            None => Some(SECOND),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    // Such that what is at the division is told older in the first scan than in the second.
    const START: u64 = 1_700_000_000_100;

    /// Scans `used` in parts for the roster of `epoch` while `meddle` changes it; what was shown,
    /// in order.
    fn scan(
        divisions: &mut Divisions,
        used: &mut [Instant],
        mut meddle: impl FnMut(&mut [Instant], Instant),
    ) -> Vec<usize> {
        let (mut shown, mut cursor) = (Vec::new(), Some(0));
        let mut now = Instant::from_millis(START);
        while let Some(at) = cursor {
            let sample = used.to_vec();
            let position = divisions.position(7, at, now, || sample);
            let next = position.cursor as usize + 10;
            let part = position.cursor as usize..next.min(used.len());
            // A store that counts steps of 300 ms back from now.
            let told = |used: Instant| used.before(Duration::from_millis(now.as_millis() % 300));
            shown.extend(part.filter(|record| position.shows(told(used[*record]))));
            cursor = position.after((next < used.len()).then_some(next as u64));
            now = now.after(Duration::from_millis(100));
            meddle(used, now);
        }
        shown
    }

    fn ages(count: u64) -> Vec<Instant> {
        // In no order, so that a scan meets old and new ones everywhere.
        (0..count).map(|at| Instant::from_millis(START - 1000 * (2 + at * 37 % count))).collect()
    }

    #[test]
    fn the_newest_quarter_comes_first_and_hardly_anything_twice() {
        let mut used = ages(400);
        let shown = scan(&mut Divisions::default(), &mut used, |_, _| {});
        assert!(shown.len() <= 402, "{} of 400 were shown", shown.len());
        let (first, rest) = shown.split_at(99);
        let all: std::collections::BTreeSet<usize> = shown.iter().copied().collect();
        assert_eq!(all.len(), 400);
        let oldest = first.iter().map(|record| used[*record]).min();
        let later = rest.iter().filter(|record| used[**record] >= oldest.expect("some"));
        assert!(later.count() <= 3, "the newest quarter was among the first hundred");
    }

    #[test]
    fn nothing_is_missed_whatever_is_used_meanwhile() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        for round in 0..200 {
            let mut used = ages(200);
            let mut divisions = Divisions::default();
            // A pair of scans that came before, for another node.
            divisions.position(7, 0, Instant::from_millis(START - 5000 * round), || used.clone());
            let shown = scan(&mut divisions, &mut used, |used, now| {
                for _ in 0..random.random_range(0..20) {
                    let record = random.random_range(0..used.len());
                    used[record] = Instant::from_millis(now.as_millis() / 1000 * 1000);
                }
            });
            let missed = (0..200).find(|record| !shown.contains(record));
            assert_eq!(missed, None, "round {round}");
        }
    }

    #[test]
    fn a_second_scan_whose_division_is_forgotten_shows_everything() {
        let mut divisions = Divisions::default();
        let now = Instant::from_millis(START);
        let position = divisions.position(7, SECOND | 5, now, || unreachable!("not a new one"));
        assert!(position.shows(now) && position.shows(Instant::default()));
        assert_eq!((position.cursor, position.after(None)), (5, None));
        assert_eq!(position.after(Some(6)), Some(SECOND | 6));
    }
}
