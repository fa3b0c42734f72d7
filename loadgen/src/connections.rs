//! A thread's connections and their traffic, without the clock: issues due requests, reads answers,
//! reopens connections.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::connection::{ClientConnection, PendingRequest};
use crate::errors::{Fault, Faults};
use crate::histogram::{LatencyClass, Recorder};
use crate::net::{Net, SocketEvent};
use crate::phase_state::{Shared, Totals};
use crate::plan::{LoadMode, Refill};
use crate::schedule::Schedule;
use crate::source::{Draft, RequestSource, endpoint_of};
use crate::wire::{AnswerOutcome, Trouble, WireRequest};
use crate::workload::mix::WorkloadCommand;
use crate::workload::{Wanted, Workload};
use ringlane_client::address::Address;
use ringlane_client::routes::Routes;

mod reroute;

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Closed; to be opened at this time.
    Down {
        /// When.
        retry_ns: u64,
    },
    /// Connecting.
    Connecting,
    /// In use.
    Open,
    /// Waiting for the kernel to release it.
    Closing {
        /// Closed for churn or rerouting: it is reopened at once and does not count as a fault.
        on_purpose: bool,
    },
}

struct Slot {
    connection: ClientConnection,
    state: State,
    /// The number of its endpoint.
    endpoint: usize,
    /// The address it is, or will be, connected to.
    address: Address,
    /// Whether its endpoint has changed: it closes when its answers have arrived.
    moving: bool,
    backoff: Duration,
    spare: Vec<u8>,
    /// When something was last received, or the first request was sent after a pause.
    progress_ns: u64,
    /// Whether it is among those with output.
    queued: bool,
    /// Whether it is among those that take requests.
    listed: bool,
}

/// The first pause before a connection is reopened; it doubles up to the last.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_LAST: Duration = Duration::from_secs(1);

/// Maximum due requests waiting for a connection to their endpoint, each with its due time.
const BACKLOG_MAX: usize = 1 << 20;

/// Connections and requests of one thread.
pub struct Connections<'a> {
    shared: &'a Shared,
    /// The routes, and their version.
    routes: Arc<Routes>,
    version: u64,
    slots: Vec<Slot>,
    /// Connections that take requests now, by endpoint. Closed loop: those to be refilled.
    takers: Vec<VecDeque<u32>>,
    /// Due requests by endpoint. Only with several endpoints: with one, due requests are simply not
    /// drawn yet.
    backlog: Vec<VecDeque<(u64, Draft)>>,
    backlog_count: usize,
    /// Connections with output to send.
    dirty: Vec<u32>,
    /// Connections to be closed after this turn's events.
    doomed: Vec<(u32, bool)>,
    /// Connections that are not open.
    down: usize,
    /// The requests to come.
    pub source: RequestSource,
    /// When they are due; `None` in the closed loop.
    pub schedule: Option<Schedule>,
    keys: Vec<Wanted>,
    /// Latencies.
    pub recorder: Recorder,
    /// Counts.
    pub totals: Totals,
    /// Faults.
    pub faults: Faults,
    /// Requests without an answer.
    pub waiting: usize,
    /// When load starts.
    pub start_ns: u64,
    /// When the last answer came.
    pub answered_ns: u64,
    /// Answers whose time (of the answer in the closed loop, due in the open loop) is within this
    /// range are recorded.
    pub window_ns: Range<u64>,
}

impl<'a> Connections<'a> {
    /// The connections of thread `thread`, none of them made yet.
    pub fn new(shared: &'a Shared, thread: usize, count: usize) -> Self {
        let (plan, workload) = (&shared.plan, &shared.workload);
        let (version, routes) = (plan.directory.version(), plan.directory.current());
        let (threads, endpoints) = (plan.cpus.len(), routes.endpoints().len());
        let schedule = match plan.pace {
            LoadMode::Closed => None,
            LoadMode::Open { rate, arrival } => {
                Some(Schedule::new(arrival, rate, thread, threads, workload.seed))
            }
        };
        let entry = |slot: usize| Slot {
            connection: ClientConnection::new(plan.protocol, workload, plan.pipeline),
            state: State::Down { retry_ns: 0 },
            endpoint: slot % endpoints,
            address: routes.endpoints()[slot % endpoints].clone(),
            moving: false,
            backoff: BACKOFF_FIRST,
            spare: Vec::new(),
            progress_ns: 0,
            queued: false,
            listed: false,
        };
        Self {
            shared,
            version,
            slots: (0..count).map(entry).collect(),
            routes,
            takers: vec![VecDeque::new(); endpoints],
            backlog: vec![VecDeque::new(); endpoints],
            backlog_count: 0,
            dirty: Vec::new(),
            doomed: Vec::new(),
            down: count,
            source: RequestSource::new(plan.job, workload, thread, threads, endpoints),
            schedule,
            keys: vec![Wanted::default(); workload.multiget_keys.max(1)],
            recorder: Recorder::default(),
            totals: Totals::default(),
            faults: Faults::default(),
            waiting: 0,
            start_ns: 0,
            answered_ns: 0,
            window_ns: 0..0,
        }
    }

    /// How many connections are in a state.
    pub fn count(&self, wanted: impl Fn(State) -> bool) -> usize {
        self.slots.iter().filter(|entry| wanted(entry.state)).count()
    }

    /// Whether no connection is open and none could be reopened.
    pub fn are_gone(&self) -> bool {
        // A loss alone doubles the pause once; each attempt that fails does so again.
        let is_gone = |slot: &Slot| slot.state != State::Open && slot.backoff > BACKOFF_FIRST * 2;
        self.slots.iter().all(is_gone)
    }

    /// Whether some connection is not open.
    pub fn any_down(&self) -> bool {
        self.down > 0
    }

    /// Whether every request was made and answered.
    pub fn is_done(&self) -> bool {
        self.source.is_empty() && self.waiting == 0
    }

    /// When the next request can be issued, if that does not depend on an answer.
    pub fn next_due_ns(&self) -> Option<u64> {
        let schedule = self.schedule.as_ref()?;
        let taken = self.routes.is_single() && self.takers[0].is_empty();
        (!taken).then(|| self.start_ns + schedule.due_ns())
    }

    /// Requests that were due before the end of the window and never sent.
    pub fn unsent(&self) -> u64 {
        let end_ns = self.window_ns.end - self.start_ns;
        let undrawn = self.schedule.as_ref().map_or(0, |schedule| schedule.left_before(end_ns));
        undrawn + self.backlog_count as u64
    }

    /// Writes the requests that are due.
    pub fn issue(&mut self, now_ns: u64) {
        self.follow_directory();
        let routes = self.routes.clone();
        // After a change of routes a single endpoint may have a backlog too.
        match (self.schedule.is_some(), routes.is_single() && self.backlog_count == 0) {
            (false, _) => self.refill(&routes, now_ns),
            (true, true) => self.issue_due(&routes, now_ns),
            (true, false) => self.issue_due_by_endpoint(&routes, now_ns),
        }
    }

    /// Closed loop: fills the connections that take requests.
    fn refill(&mut self, routes: &Routes, now_ns: u64) {
        let workload = &self.shared.workload;
        for endpoint in 0..self.takers.len() {
            while let Some(slot) = self.next_taker(endpoint) {
                while self.slots[slot as usize].connection.has_room() {
                    let Some(draft) = self.source.draw_for(workload, routes, endpoint) else {
                        break;
                    };
                    self.issue_one(routes, slot, draft, now_ns, now_ns);
                }
            }
        }
    }

    /// Open loop, one endpoint: any connection with room takes the next request.
    fn issue_due(&mut self, routes: &Routes, now_ns: u64) {
        while let Some(due_ns) = self.due(now_ns) {
            let Some(slot) = self.next_taker(0) else { return };
            let Some(draft) = self.source.draw(&self.shared.workload) else { return };
            self.advance();
            self.issue_one(routes, slot, draft, due_ns, now_ns);
            self.list(slot);
        }
    }

    /// Open loop, several endpoints: what is due is drawn, and waits if its endpoint has no room.
    fn issue_due_by_endpoint(&mut self, routes: &Routes, now_ns: u64) {
        let workload = &self.shared.workload;
        for endpoint in 0..self.takers.len() {
            while !self.backlog[endpoint].is_empty() {
                let Some(slot) = self.next_taker(endpoint) else { break };
                let (due_ns, draft) = self.backlog[endpoint].pop_front().expect("seen above");
                self.backlog_count -= 1;
                self.issue_one(routes, slot, draft, due_ns, now_ns);
                self.list(slot);
            }
        }
        while let Some(due_ns) = self.due(now_ns) {
            if self.backlog_count >= BACKLOG_MAX {
                return;
            }
            let Some(draft) = self.source.draw(workload) else { return };
            self.advance();
            let endpoint = endpoint_of(workload, routes, draft);
            match self.next_taker(endpoint) {
                Some(slot) => {
                    self.issue_one(routes, slot, draft, due_ns, now_ns);
                    self.list(slot);
                }
                None => {
                    self.backlog[endpoint].push_back((due_ns, draft));
                    self.backlog_count += 1;
                }
            }
        }
    }

    /// When the next request is due, if it is.
    #[inline]
    fn due(&self, now_ns: u64) -> Option<u64> {
        let due_ns = self.start_ns + self.schedule.as_ref()?.due_ns();
        (due_ns <= now_ns && due_ns < self.window_ns.end).then_some(due_ns)
    }

    fn advance(&mut self) {
        if let Some(schedule) = &mut self.schedule {
            schedule.advance();
        }
    }

    /// Removes a connection from the list of those that accept requests.
    #[inline]
    fn next_taker(&mut self, endpoint: usize) -> Option<u32> {
        while let Some(slot) = self.takers[endpoint].pop_front() {
            let entry = &mut self.slots[slot as usize];
            entry.listed = false;
            if entry.state == State::Open && entry.connection.has_room() {
                return Some(slot);
            }
        }
        None
    }

    #[inline]
    fn issue_one(&mut self, routes: &Routes, slot: u32, draft: Draft, due_ns: u64, now_ns: u64) {
        let workload = &self.shared.workload;
        let count = self.source.complete(workload, routes, draft, &mut self.keys);
        let (command, _) = draft;
        let ttl_seconds =
            if command == WorkloadCommand::Set { self.source.ttl_seconds(workload) } else { 0 };
        let request = WireRequest { command, keys: &self.keys[..count], ttl_seconds };
        let entry = &mut self.slots[slot as usize];
        if entry.connection.waiting() == 0 {
            entry.progress_ns = now_ns;
        }
        entry.connection.push(workload, &request, due_ns, now_ns);
        self.waiting += 1;
        if !entry.queued {
            entry.queued = true;
            self.dirty.push(slot);
        }
    }

    /// Lists a connection if it accepts requests; closes it if its churn limit is reached.
    #[inline]
    fn list(&mut self, slot: u32) {
        let plan = &self.shared.plan;
        let entry = &mut self.slots[slot as usize];
        if entry.state != State::Open {
            return;
        }
        if entry.moving || (plan.churn > 0 && entry.connection.pushed() >= plan.churn) {
            if entry.connection.waiting() == 0 {
                entry.state = State::Closing { on_purpose: true };
                self.down += 1;
                self.doomed.push((slot, true));
            }
            return;
        }
        let takes = match plan.pace {
            LoadMode::Closed if plan.refill == Refill::Batch => entry.connection.waiting() == 0,
            _ => entry.connection.has_room(),
        };
        if takes && !entry.listed {
            entry.listed = true;
            self.takers[entry.endpoint].push_back(slot);
        }
    }

    /// Sends the output of every connection that has some and is not sending.
    pub fn flush(&mut self, net: &mut Net) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&slot| {
            let entry = &mut self.slots[slot as usize];
            if entry.state == State::Open && !entry.connection.output.is_empty() {
                if net.is_sending(slot as usize) {
                    return true;
                }
                let spare = std::mem::take(&mut entry.spare);
                net.send(slot as usize, std::mem::replace(&mut entry.connection.output, spare));
            }
            entry.queued = false;
            false
        });
        self.dirty = dirty;
    }

    /// Handles everything that happened; whether anything did.
    pub fn events(&mut self, net: &mut Net, now_ns: u64) -> bool {
        let mut any = false;
        while let Some(event) = net.next() {
            any = true;
            match event {
                SocketEvent::Received { slot, bytes } => self.received(slot as u32, bytes, now_ns),
                SocketEvent::Sent { slot, buffer } => self.slots[slot].spare = buffer,
                SocketEvent::Connected { slot } => {
                    let entry = &mut self.slots[slot];
                    (entry.state, entry.backoff) = (State::Open, BACKOFF_FIRST);
                    entry.progress_ns = now_ns;
                    self.down -= 1;
                    self.list(slot as u32);
                }
                SocketEvent::Lost { slot, error } => {
                    let address = &self.slots[slot].address;
                    self.faults.count(Fault::of(error.as_ref()), 1, || match error {
                        Some(error) => format!("{address}: {error}"),
                        None => format!("{address} closed the connection"),
                    });
                    self.shared.plan.directory.note_lost();
                    self.doom(slot as u32);
                }
                SocketEvent::Closed { slot } => {
                    let entry = &mut self.slots[slot];
                    let on_purpose = entry.state == State::Closing { on_purpose: true };
                    let pause = if on_purpose { Duration::ZERO } else { entry.back_off() };
                    entry.state = State::Down { retry_ns: now_ns + pause.as_nanos() as u64 };
                    if std::mem::take(&mut entry.moving) {
                        entry.address = self.routes.endpoints()[entry.endpoint].clone();
                    }
                }
            }
        }
        while let Some((slot, on_purpose)) = self.doomed.pop() {
            self.close(net, slot, on_purpose);
        }
        any
    }

    /// Schedules a connection to be closed after this turn's events, because of a fault.
    fn doom(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if !matches!(entry.state, State::Closing { .. }) {
            self.down += usize::from(entry.state == State::Open);
            entry.state = State::Closing { on_purpose: false };
            self.doomed.push((slot, false));
        }
    }

    fn close(&mut self, net: &mut Net, slot: u32, on_purpose: bool) {
        let entry = &mut self.slots[slot as usize];
        for pending in entry.connection.unanswered() {
            self.source.lost(pending.command, pending.wanted.key);
        }
        let lost = entry.connection.reset();
        self.waiting -= lost;
        self.totals.renewed += u64::from(on_purpose && !entry.moving);
        let address = &entry.address;
        self.faults.count(Fault::Lost, lost as u64, || {
            format!("{lost} requests were in flight when a connection to {address} went")
        });
        net.close(slot as usize);
        if lost > 0 && !self.source.is_empty() {
            // Idle connections may have work now.
            (0..self.slots.len() as u32).for_each(|slot| self.list(slot));
        }
    }

    fn received(&mut self, slot: u32, bytes: &[u8], now_ns: u64) {
        let Self { shared, slots, recorder, totals, faults, waiting, window_ns, .. } = self;
        let (plan, workload) = (&shared.plan, &shared.workload);
        let entry = &mut slots[slot as usize];
        if entry.state != State::Open {
            return;
        }
        entry.progress_ns = now_ns;
        let before = *waiting;
        let closed = plan.pace == LoadMode::Closed;
        // Fill a miss: with the value, or the counter.
        let mut followers = Vec::new();
        let address = &entry.address;
        let result = entry.connection.receive(workload, bytes, |pending, outcome| {
            *waiting -= 1;
            let (hit, hits) = match outcome {
                AnswerOutcome::Hit(hits) => (true, hits),
                AnswerOutcome::Miss => (false, 0),
                AnswerOutcome::Refused(words) => {
                    faults.count(Fault::ErrorAnswer, 1, || {
                        format!("{address} answered a {}: {words}", pending.command.name())
                    });
                    return;
                }
            };
            followers.extend(settle(workload, pending, hit));
            if !window_ns.contains(if closed { &now_ns } else { &pending.due_ns }) {
                return;
            }
            totals.count(workload, pending.command, hits);
            let class = LatencyClass { command: pending.command, hit };
            recorder.record(class, now_ns - pending.due_ns, now_ns - pending.sent_ns);
        });
        if *waiting < before {
            self.answered_ns = now_ns;
        }
        match result {
            Ok(()) => {
                if !followers.is_empty() {
                    let routes = self.routes.clone();
                    for draft in followers {
                        self.issue_one(&routes, slot, draft, now_ns, now_ns);
                    }
                }
                self.list(slot);
            }
            Err(Trouble::Wrong(wrong)) => {
                self.shared.wrong.lock().expect("no thread panics with it").get_or_insert(wrong);
                self.shared.stop.store(true, Ordering::Relaxed);
            }
            Err(Trouble::Unspoken { expected, received }) => {
                self.faults.count(Fault::Protocol, 1, || {
                    let name = plan.protocol.name();
                    format!(
                        "{address} does not speak the {name} protocol: expected {expected}, got \
                         \"{received}\""
                    )
                });
                self.doom(slot);
            }
        }
    }

    /// Starts opening the connections that are due.
    pub fn reconnect(&mut self, net: &mut Net, now_ns: u64) {
        for slot in 0..self.slots.len() {
            let State::Down { retry_ns } = self.slots[slot].state else { continue };
            if retry_ns > now_ns {
                continue;
            }
            let entry = &mut self.slots[slot];
            let address = &entry.address;
            match net.open(slot, address.socket()) {
                Ok(()) => entry.state = State::Connecting,
                Err(error) => {
                    self.faults.count(Fault::Unreachable, 1, || format!("{address}: {error}"));
                    let pause = entry.back_off();
                    entry.state = State::Down { retry_ns: now_ns + pause.as_nanos() as u64 };
                }
            }
        }
    }

    /// Abandons connections that owe an answer for too long, and the whole phase if it is hopeless:
    /// only another protocol was received, or a job that must be complete gets no answer.
    pub fn check_timeouts(&mut self, now_ns: u64) {
        let timeout_ns = self.shared.plan.timeout.as_nanos() as u64;
        let quiet_ns = now_ns.saturating_sub(self.answered_ns.max(self.start_ns));
        let must_end = self.shared.plan.window.is_none() && !self.is_done();
        let foreign = self.answered_ns == 0 && self.faults.of(Fault::Protocol) > 0;
        if foreign || (must_end && quiet_ns > 2 * timeout_ns) {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        for slot in 0..self.slots.len() {
            let entry = &self.slots[slot];
            let since_ns = now_ns.saturating_sub(entry.progress_ns);
            if entry.state == State::Open && entry.connection.waiting() > 0 && since_ns > timeout_ns
            {
                let plan = &self.shared.plan;
                self.faults.count(Fault::TimedOut, 1, || {
                    format!("no answer from {} for {:?}", entry.address, plan.timeout)
                });
                plan.directory.note_lost();
                self.doom(slot as u32);
            }
        }
    }
}

impl Slot {
    /// The pause before the next attempt; the one after that is longer.
    fn back_off(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (pause * 2).min(BACKOFF_LAST);
        pause
    }
}

/// Reports an answer to the workload, and returns the request that must follow it.
#[inline]
fn settle(workload: &Workload, pending: &PendingRequest, hit: bool) -> Option<Draft> {
    let key = pending.wanted.key;
    match pending.command {
        // A refused write never gets here: it may or may not have had an effect.
        WorkloadCommand::Set | WorkloadCommand::Delete => workload.written(key),
        WorkloadCommand::Get if !hit && workload.cache_aside => {
            return Some((WorkloadCommand::Set, key));
        }
        WorkloadCommand::Incr if !hit => {
            workload.counter_lost(key);
            return Some((WorkloadCommand::Create, key));
        }
        _ => {}
    }
    None
}
