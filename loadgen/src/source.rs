//! Where a thread's requests come from: the mix of a workload, or all keys once.
//!
//! With several endpoints a connection takes only requests for its own. A request drawn for another
//! one is set aside for it, so that drawing is cheap and the popularity of keys is preserved.

use std::collections::VecDeque;
use std::ops::Range;

use crate::random::Random;
use crate::workload::keys::KEY_BYTES_MAX;
use crate::workload::mix::WorkloadCommand;
use crate::workload::popularity::Draw;
use crate::workload::sizes::Sizes;
use crate::workload::{Wanted, Workload};
use ringlane_client::routes::Routes;

/// The job of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The workload's mix, for a time.
    Mix,
    /// Writes every key once.
    Populate,
    /// Reads every key once.
    Verify,
    /// Reads about a thousand keys, evenly spaced.
    Sample,
}

/// A draft of a request: its command and its first key's number.
pub type Draft = (WorkloadCommand, u64);

/// The requests of one thread.
#[derive(Debug)]
pub struct RequestSource {
    random: Random,
    kind: Kind,
    /// Drafts drawn for other endpoints, by endpoint.
    aside: Vec<VecDeque<Draft>>,
    /// Keys drawn for multigets of other endpoints, by endpoint.
    keys_aside: Vec<VecDeque<u64>>,
}

#[derive(Debug)]
enum Kind {
    Mix(Draw),
    /// The keys not yet requested, preceded by requests whose answer was lost with a connection.
    Once {
        command: WorkloadCommand,
        keys: Range<u64>,
        step: u64,
        again: VecDeque<Draft>,
        /// Whether every key also has a counter to create.
        counters: bool,
    },
}

/// Maximum drafts set aside for one endpoint; further ones are dropped.
const ASIDE_MAX: usize = 4096;

/// Draws after which an endpoint is assumed to own none of the keys.
const DRAWS_MAX: usize = 100_000;

impl RequestSource {
    /// The requests of thread `thread` of `threads`, for the given number of endpoints.
    pub fn new(
        job: Job,
        workload: &Workload,
        thread: usize,
        threads: usize,
        endpoints: usize,
    ) -> Self {
        let (thread, threads) = (thread as u64, threads as u64);
        let count = workload.keys.count();
        let bound = |thread: u64| (count as u128 * thread as u128 / threads as u128) as u64;
        let once = |command, step: u64| Kind::Once {
            command,
            keys: bound(thread)..bound(thread + 1),
            step: step.max(1),
            counters: job == Job::Populate && workload.counts(),
            again: VecDeque::new(),
        };
        let kind = match job {
            Job::Mix => Kind::Mix(Draw::new(workload.popularity, count, thread, threads)),
            Job::Populate => once(WorkloadCommand::Set, 1),
            Job::Verify => once(WorkloadCommand::Get, 1),
            Job::Sample => once(WorkloadCommand::Get, count / 1000),
        };
        Self {
            random: Random::new(workload.seed, thread),
            kind,
            aside: vec![VecDeque::new(); endpoints],
            keys_aside: vec![VecDeque::new(); endpoints],
        }
    }

    /// The next request, whatever its endpoint. `None` when there are no more.
    #[inline]
    pub fn draw(&mut self, workload: &Workload) -> Option<Draft> {
        match &mut self.kind {
            Kind::Mix(draw) => {
                let command = workload.mix.pick(self.random.bits() as u32);
                Some((command, draw.next(&mut self.random)))
            }
            Kind::Once { command, keys, step, again, counters } => match again.pop_front() {
                Some(lost) => Some(lost),
                None if keys.is_empty() => None,
                None => {
                    let key = keys.start;
                    keys.start = (key + *step).min(keys.end);
                    if *counters {
                        again.push_back((WorkloadCommand::Create, key));
                    }
                    Some((*command, key))
                }
            },
        }
    }

    /// The next request for one endpoint. `None` when there are no more, or none of its keys
    /// occurs.
    #[inline]
    pub fn draw_for(
        &mut self,
        workload: &Workload,
        routes: &Routes,
        endpoint: usize,
    ) -> Option<Draft> {
        if routes.is_single() {
            return self.aside[0].pop_front().or_else(|| self.draw(workload));
        }
        for _ in 0..DRAWS_MAX {
            if let Some(draft) = self.aside[endpoint].pop_front() {
                return Some(draft);
            }
            let draft = self.draw(workload)?;
            let owner = endpoint_of(workload, routes, draft);
            // A job over all keys must not drop any.
            let keep = self.aside[owner].len() < ASIDE_MAX || !matches!(self.kind, Kind::Mix(_));
            if keep {
                self.aside[owner].push_back(draft);
            }
        }
        None
    }

    /// Turns a draft into a request: writes its keys to `keys`, whose length is that of a multiget,
    /// and returns the number of keys. The request must be sent: its write counts as in flight.
    #[inline]
    pub fn complete(
        &mut self,
        workload: &Workload,
        routes: &Routes,
        (command, key): Draft,
        keys: &mut [Wanted],
    ) -> usize {
        keys[0] = workload.wanted(command, key);
        if command != WorkloadCommand::Multiget {
            return 1;
        }
        let endpoint = match routes.is_single() {
            true => 0,
            false => endpoint_of(workload, routes, (command, key)),
        };
        for place in &mut keys[1..] {
            // If the endpoint has no other key, the first one is used again.
            let key = self.key_for(workload, routes, endpoint).unwrap_or(key);
            *place = workload.wanted(command, key);
        }
        keys.len()
    }

    fn key_for(&mut self, workload: &Workload, routes: &Routes, endpoint: usize) -> Option<u64> {
        let Kind::Mix(draw) = &mut self.kind else { return None };
        if routes.is_single() {
            return Some(draw.next(&mut self.random));
        }
        for _ in 0..DRAWS_MAX {
            if let Some(key) = self.keys_aside[endpoint].pop_front() {
                return Some(key);
            }
            let key = draw.next(&mut self.random);
            let aside =
                &mut self.keys_aside[endpoint_of(workload, routes, (WorkloadCommand::Get, key))];
            if aside.len() < ASIDE_MAX {
                aside.push_back(key);
            }
        }
        None
    }

    /// Moves drafts to the new endpoints of their keys.
    pub fn reroute(&mut self, workload: &Workload, routes: &Routes) {
        let count = routes.endpoints().len();
        let drafts = std::mem::replace(&mut self.aside, vec![VecDeque::new(); count]);
        for draft in drafts.into_iter().flatten() {
            self.aside[endpoint_of(workload, routes, draft)].push_back(draft);
        }
        let keys = std::mem::replace(&mut self.keys_aside, vec![VecDeque::new(); count]);
        for key in keys.into_iter().flatten() {
            self.keys_aside[endpoint_of(workload, routes, (WorkloadCommand::Get, key))]
                .push_back(key);
        }
    }

    /// Repeats a lost request if this job must be complete.
    pub fn lost(&mut self, command: WorkloadCommand, key: u64) {
        if let Kind::Once { again, .. } = &mut self.kind {
            again.push_back((command, key));
        }
    }

    /// Whether [`RequestSource::draw`] would yield nothing and nothing is set aside.
    pub fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Mix(_) => false,
            Kind::Once { keys, again, .. } => {
                keys.is_empty() && again.is_empty() && self.aside.iter().all(VecDeque::is_empty)
            }
        }
    }

    /// The exptime of the next set, in seconds.
    #[inline]
    pub fn ttl_seconds(&mut self, workload: &Workload) -> u32 {
        match workload.ttl_seconds {
            Sizes::Fixed(seconds) => seconds as u32,
            ref seconds => seconds.pick(self.random.bits()) as u32,
        }
    }
}

/// The endpoint of a draft's key. Counters have separate keys.
#[inline]
pub fn endpoint_of(workload: &Workload, routes: &Routes, (command, key): Draft) -> usize {
    let mut spelled = [0; KEY_BYTES_MAX];
    routes.endpoint(match command {
        WorkloadCommand::Incr | WorkloadCommand::Create => {
            workload.keys.spell_counter(key, &mut spelled)
        }
        _ => workload.keys.spell(key, &mut spelled),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::workload;
    use ringlane_client::routes::Layout;
    use ringlane_ring::RingParameters;

    fn two_nodes() -> Routes {
        let nodes = ["a=127.0.0.1:1", "b=127.0.0.1:2"].map(|text| text.parse().expect("a node"));
        Routes::new(Layout::named(&nodes, RingParameters::default())).expect("a ring of two")
    }

    #[test]
    fn populating_threads_write_every_key_once_and_lost_ones_again() {
        let workload = workload(10);
        let mut seen = [0; 10];
        for thread in 0..3 {
            let mut source = RequestSource::new(Job::Populate, &workload, thread, 3, 1);
            let mut lost = false;
            while let Some((command, key)) = source.draw(&workload) {
                assert_eq!(command, WorkloadCommand::Set);
                seen[key as usize] += 1;
                if !lost {
                    source.lost(command, key);
                    lost = true;
                }
            }
            assert!(source.is_empty());
        }
        assert_eq!(seen.iter().sum::<u32>(), 13);
        assert!(seen.iter().all(|&times| times >= 1));
    }

    #[test]
    fn every_endpoint_gets_its_own_keys_and_no_key_is_left_out() {
        let (workload, routes) = (workload(20_000), two_nodes());
        let mut source = RequestSource::new(Job::Populate, &workload, 0, 1, 2);
        let mut seen = vec![0; 20_000];
        let mut done = [false; 2];
        for turn in 0.. {
            let endpoint = turn % 2;
            // One endpoint asks three times as often as the other.
            for _ in 0..1 + 2 * endpoint {
                match source.draw_for(&workload, &routes, endpoint) {
                    Some(draft) => {
                        assert_eq!(endpoint_of(&workload, &routes, draft), endpoint);
                        seen[draft.1 as usize] += 1;
                    }
                    None => done[endpoint] = true,
                }
            }
            if done == [true; 2] {
                break;
            }
        }
        assert!(source.is_empty());
        assert!(seen.iter().all(|&times| times == 1));
    }

    #[test]
    fn a_job_over_all_keys_is_complete_though_endpoints_come_and_go() {
        let (workload, two) = (workload(20_000), two_nodes());
        let one = Routes::new(two.layout().clone().within(1)).expect("one node");
        let mut source = RequestSource::new(Job::Populate, &workload, 0, 1, 2);
        let mut seen = vec![0; 20_000];
        let mut draw = |source: &mut RequestSource, routes: &Routes, endpoint, count| {
            for _ in 0..count {
                let Some((_, key)) = source.draw_for(&workload, routes, endpoint) else { return };
                seen[key as usize] += 1;
            }
        };
        draw(&mut source, &two, 1, 2000);
        source.reroute(&workload, &one);
        draw(&mut source, &one, 0, 5000);
        source.reroute(&workload, &two);
        draw(&mut source, &two, 0, usize::MAX);
        draw(&mut source, &two, 1, usize::MAX);
        assert!(source.is_empty());
        assert!(seen.iter().all(|&times| times == 1));
    }

    #[test]
    fn a_multiget_asks_one_endpoint_for_all_its_keys() {
        let (mut workload, routes) = (workload(1000), two_nodes());
        workload.mix = "multiget=1".parse().expect("valid");
        let mut source = RequestSource::new(Job::Mix, &workload, 0, 1, 2);
        let mut keys = [Wanted::default(); 20];
        for endpoint in [0, 1, 0, 0, 1] {
            let draft = source.draw_for(&workload, &routes, endpoint).expect("a mix has no end");
            assert_eq!(source.complete(&workload, &routes, draft, &mut keys), 20);
            for wanted in keys {
                let draft = (WorkloadCommand::Get, wanted.key);
                assert_eq!(endpoint_of(&workload, &routes, draft), endpoint);
            }
        }
    }

    #[test]
    fn an_endpoint_without_keys_is_not_waited_for() {
        let (workload, routes) = (workload(1), two_nodes());
        let mut source = RequestSource::new(Job::Mix, &workload, 0, 1, 2);
        let owner = endpoint_of(&workload, &routes, (WorkloadCommand::Get, 0));
        assert!(source.draw_for(&workload, &routes, owner).is_some());
        assert!(source.draw_for(&workload, &routes, 1 - owner).is_none());
    }
}
