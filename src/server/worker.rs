//! A core's loop: one turn after the other, and sleep when idle.
//!
//! A turn reads the clock once, handles events of the net ring and messages of other cores, expires
//! a bounded number of items, publishes messages to other cores and submits one send per
//! connection, all with one system call. Polling before sleep must pay off: it halves the latency
//! of a single connection but only burns CPU with fifty, so a core polls while few connections are
//! active and most arrivals come before the polling would end.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::Level;

use super::cluster::core::{CoreCluster, CoreUpdate};
use super::cluster::links::LinkTable;
use super::connection::Connection;
use super::connection_memory::Charge;
use super::core_message::CoreMessage;
use super::core_state::{CoreState, Outbound, Slot, complete, spare};
use super::listener::{Listener, Reach};
use super::mesh::{Mesh, ReplyTo};
use super::net_ring::{
    NetEvent, NetRing, Received, SEND_BYTES_MAX, SendBuffer, SendOutcome, Token, WaitLimit,
};
use super::node::Node;
use super::prefault::Prefaulter;
use super::process;
use crate::engine::Engine;
use crate::engine::cluster::NoPeers;
use crate::log_limiter::LogKind;
use crate::time::Instant;

/// Interval in milliseconds at which an idle core wakes up to expire items and check its
/// connections. Half a level of the TTL wheel's first ring, so that items expire within a second of
/// their deadline.
const HEARTBEAT_MILLIS: u32 = 250;
/// The same on a cluster node, which has deadlines for other nodes to meet.
const COORDINATION_MILLIS: u32 = 25;
/// How long an idle core waits for other cores to complete a batch of answers before it sends the
/// available ones. About one turn of a busy core: one send instead of two.
const DEFERRAL: Duration = Duration::from_micros(200);
/// Longest wait of a stopping node for a pause between requests.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Answers longer than this often do not fit into the socket buffer.
const SENT_AT_ONCE_BYTES_MAX: usize = 64 << 10;
/// Pause after accepting has failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Maximum bytes sent per turn: the kernel copies them before it does anything else, which takes a
/// good part of a millisecond. The rest is sent in the next turns.
const TURN_SEND_BYTES: usize = 1 << 20;
/// Answers up to this length are exempt from that limit.
const SENT_IN_ANY_TURN_BYTES: usize = 4 << 10;
/// Maximum items expired, moved or reclaimed per turn.
const MAINTENANCE_PER_TURN: u32 = 64;
/// Maximum node command messages, and connections from other cores, handled per turn: some make a
/// core list all its items.
const CONTROLS_PER_TURN: u32 = 8;
/// Output buffers kept for reuse after a quiet period.
const OUTPUT_BUFFERS_KEPT_LONG: usize = 16;
/// Number of receives after a long value during which another one is expected.
const BULK_TURNS: u8 = 16;
/// Bytes received at a time while a long value is expected: its line, and only little of the value,
/// which would have to be copied.
const BULK_HEAD_BYTES: u32 = 512;

/// One core.
pub struct Worker {
    net: NetRing,
    mesh: Mesh,
    core: CoreState,
    /// Its cluster I/O, on a cluster node.
    cluster: Option<Box<CoreCluster>>,
    listeners: Vec<Listener>,
    /// Listeners that could not accept, to be retried at the heartbeat.
    paused: Vec<u32>,
    /// When the last of them failed.
    paused_at: Instant,
    events: Vec<NetEvent>,
    /// Sends to continue, and their next byte: long output leaves in several sends.
    rests: VecDeque<(Token, SendBuffer, usize)>,
    /// Bytes that this turn may still send.
    send_bytes_left: usize,
    doorbell: usize,
    heartbeat_armed: bool,
    /// When the executor last had its turn.
    executor_yield_due: bool,
    prefaulter: Prefaulter,
}

/// The outcome of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TurnOutcome {
    /// There was nothing to do.
    Idle,
    /// All available work is done.
    Worked,
    /// More work is available at once.
    Busy,
}

/// The parts of a worker.
pub struct WorkerParts {
    /// Its net ring.
    pub net: NetRing,
    /// Its ends of the rings between cores.
    pub mesh: Mesh,
    /// Its engine.
    pub engine: Engine,
    /// State shared by all cores of the node.
    pub node: Arc<Node>,
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Prefaults its memory.
    pub prefaulter: Prefaulter,
}

impl Worker {
    /// A worker that has not started.
    pub fn new(parts: WorkerParts) -> Self {
        let WorkerParts { net, mesh, engine, node, listeners, prefaulter } = parts;
        let doorbell = engine.config().core as usize;
        let cluster = CoreCluster::new(doorbell as u16, &node).map(Box::new);
        let core = CoreState::new(engine, node, &listeners);
        Self {
            net,
            mesh,
            core,
            cluster,
            listeners,
            paused: Vec::new(),
            paused_at: Instant::default(),
            events: Vec::with_capacity(256),
            rests: VecDeque::new(),
            send_bytes_left: 0,
            doorbell,
            heartbeat_armed: false,
            executor_yield_due: false,
            prefaulter,
        }
    }

    /// Runs until the node shuts down and everything due has been sent.
    pub async fn run(mut self) {
        self.core.node.doorbells[self.doorbell].set_ring(self.net.fd());
        for listener in &self.listeners {
            self.net.accept(listener.fd(), listener.number);
        }
        let mut turns = 0u32;
        loop {
            let outlook = self.measured_turn();
            // Clients that never pause must not prevent the node from stopping.
            if self.core.node.is_stopping()
                && (outlook == TurnOutcome::Idle || self.core.node.stopping_for() > PAUSE_MAX)
                && self.wind_down()
            {
                break;
            }
            if outlook == TurnOutcome::Busy || self.mesh.has_arrivals() {
                self.submit();
            } else {
                self.wait_for_work();
            }
            // The executor has hardly anything else to do: it gets its turn at the heartbeat.
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(256) || mem::take(&mut self.executor_yield_due) {
                glommio::executor().yield_task_queue_now().await;
            }
        }
        self.core.node.doorbells[self.doorbell].set_ring(-1);
    }

    /// Runs a turn, measuring its CPU time if that is worth a system call or two.
    fn measured_turn(&mut self) -> TurnOutcome {
        if log::max_level() < log::LevelFilter::Debug {
            return self.turn();
        }
        let begun = process::thread_cpu_time();
        let outlook = self.turn();
        let poll_policy = &mut self.core.poll_policy;
        poll_policy.longest_turn = poll_policy.longest_turn.max(process::thread_cpu_time() - begun);
        outlook
    }

    /// Runs a turn. Its kernel operations are queued when it returns, not submitted yet.
    fn turn(&mut self) -> TurnOutcome {
        let core = &mut self.core;
        core.begin_turn(core.node.clock.now());
        Rc::get_mut(&mut core.scratch).expect("borrowed within a turn only").reset();
        let mut events = mem::take(&mut self.events);
        self.net.reap(&mut events);
        let mut worked = !events.is_empty();
        worked |= self.handle_cluster_updates();
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;

        let core = &mut self.core;
        let now = core.now;
        let answered = self.mesh.answers(|to, response| core.complete(to, response)) > 0;
        let served = match &mut self.cluster {
            None => self.mesh.serve(&mut core.engine, now) > 0,
            Some(cluster) => {
                self.mesh.serve_clustered(&mut core.engine, now, &mut cluster.links) > 0
            }
        };
        worked |= answered || served;
        for _ in 0..CONTROLS_PER_TURN {
            let Some((from, message)) = self.mesh.next_control() else { break };
            worked = true;
            self.control(from, message);
        }
        self.resume_stalled();
        worked |= self.coordinate();
        let mut more = self.core.engine.shard.maintain(now, MAINTENANCE_PER_TURN);
        self.prefaulter.note_used(self.core.engine.shard.touched_bytes(), now);
        if self.core.engine.shard.take_memory_request() {
            self.prefaulter.note_waiting(now);
        }
        self.core.engine.shard.set_ready_bytes(self.prefaulter.ready_bytes());
        // Before the sends, which take a while: other cores can process it meanwhile.
        more |= self.mesh.publish();
        while let Some(ring) = self.mesh.next_sleeper() {
            self.net.wake(ring);
        }
        self.send();
        if let Some(cluster) = &mut self.cluster {
            cluster.links.set_forward_room(self.core.engine.forward_room());
            more |= cluster.flush(&mut self.net);
        }
        more |= self.core.has_ready() || !self.rests.is_empty();
        if let Some(request) = self.core.node.cores[self.doorbell].stats_slot.take_request() {
            self.core.publish_stats(request);
        }
        if !self.heartbeat_armed {
            self.net.heartbeat(self.heartbeat_millis());
            self.heartbeat_armed = true;
        }
        match (more, worked) {
            (true, _) => TurnOutcome::Busy,
            (false, true) => TurnOutcome::Worked,
            (false, false) => TurnOutcome::Idle,
        }
    }

    /// How long an idle core may sleep: until the coordinator has work, at most until items are
    /// due. In a cluster not for long, since new deadlines may appear meanwhile.
    fn heartbeat_millis(&self) -> u32 {
        match self.core.engine.next_deadline() {
            Some(at) => (at.since(self.core.now).as_millis() as u32).clamp(2, COORDINATION_MILLIS),
            None => HEARTBEAT_MILLIS,
        }
    }

    fn submit(&mut self) {
        let wanted = self.net.has_submissions() || self.net.is_flagged() || self.net.has_work();
        if wanted && let Err(error) = self.net.submit() {
            panic!("io_uring_enter failed for good: {error}");
        }
    }

    /// Handles the control executor's messages about the cluster. True if there were any.
    fn handle_cluster_updates(&mut self) -> bool {
        let Some(cluster) = &mut self.cluster else { return false };
        let (engine, now) = (&mut self.core.engine, self.core.now);
        let mut any = false;
        while let Some(update) = cluster.next_update() {
            any = true;
            log::debug!("core {}: {update:?}", self.doorbell);
            engine.coordinate(now, &mut cluster.links, |coordinator, turn| match update {
                CoreUpdate::Link(event) => coordinator.link(event, turn),
                CoreUpdate::Notice(notice) => coordinator.notice(notice, turn),
            });
        }
        any
    }

    /// Runs the coordinator's due work, and distributes answers of other nodes. True if there were
    /// any.
    fn coordinate(&mut self) -> bool {
        let Some(cluster) = &mut self.cluster else { return false };
        let core = &mut self.core;
        let now = core.now;
        if core.engine.next_deadline().is_some_and(|at| at <= now) {
            if let Some(version) = core.engine.due_flush(now, &mut cluster.links) {
                cluster.flush_everywhere(version);
            }
            core.engine.coordinate(now, &mut cluster.links, |coordinator, turn| {
                coordinator.tick(turn);
            });
        }
        while let Some(peer) = cluster.links.next_roomy() {
            core.engine.coordinate(now, &mut cluster.links, |coordinator, turn| {
                coordinator.on_buffer_available(peer, turn);
            });
        }
        if !core.engine.has_answers() {
            return false;
        }
        let CoreState { engine, connections, spare_outputs, dirty, ready, .. } = core;
        let (own, mesh) = (engine.config().core, &mut self.mesh);
        let settled = engine.take_answers(|asker, response| {
            let token = Token { index: asker.connection, generation: asker.generation };
            let to = ReplyTo { token, sequence: asker.sequence };
            if asker.core == own {
                complete(connections, spare_outputs, (dirty, ready), to, response, now);
            } else {
                mesh.answer(asker.core, to, response);
            }
        });
        if let Some(epoch) = settled {
            cluster.settled(epoch);
        }
        true
    }

    fn handle(&mut self, event: NetEvent) {
        if let Some(cluster) = &mut self.cluster
            && LinkTable::own(&event)
        {
            let (engine, now) = (&mut self.core.engine, self.core.now);
            return cluster.handle(event, &mut self.net, |links, from, body| {
                engine.frame(from, body, now, links);
            });
        }
        match event {
            NetEvent::Received { token, buffer, ended } => self.received(token, buffer, ended),
            NetEvent::Sent { token, output, outcome } => self.sent(token, output, outcome),
            NetEvent::ReceiveEnded { token, outcome } => {
                let Some(connection) = self.core.connection(token) else { return };
                connection.receiving = false;
                connection.cancelling = false;
                match outcome {
                    Ok(()) => connection.ended = true,
                    Err(libc::ENOBUFS) => {
                        self.core.counters.read_buf_oom += 1;
                        self.core.starved.push(token.index);
                    }
                    Err(libc::ECANCELED) => {}
                    Err(_) => connection.broken = true,
                }
                self.core.mark_dirty(token.index);
            }
            NetEvent::ReceivedInto { token, outcome } => self.filled(token, outcome),
            NetEvent::Accepted { listener, socket } => self.accepted(listener, socket),
            NetEvent::AcceptEnded { listener, error } => {
                if self.core.node.is_stopping() {
                    return;
                }
                if let Some(error) = error.filter(lasts) {
                    self.core.node.log(
                        Level::Warn,
                        LogKind::Accept,
                        listener,
                        format_args!("accepting connections pauses: {error}"),
                    );
                    self.paused_at = self.core.now;
                    return self.paused.push(listener);
                }
                let listener = &self.listeners[listener as usize];
                self.net.accept(listener.fd(), listener.number);
            }
            NetEvent::Woken => {}
            NetEvent::Heartbeat => {
                self.heartbeat_armed = false;
                self.executor_yield_due = true;
                self.core.close_idle();
                self.core.close_stalled();
                if self.core.memory.has_ebbed(self.core.now) {
                    self.core.spare_outputs.truncate(OUTPUT_BUFFERS_KEPT_LONG);
                    self.prefaulter.trim_heap();
                }
                self.accept_again();
                if self.doorbell == 0 {
                    self.core.node.log_withheld();
                }
                let core = &mut self.core;
                core.stale_completions = self.net.stale_completions();
                self.prefaulter.trim(core.engine.shard.untouched_mut(), core.now);
                self.look_at_links();
            }
        }
    }

    /// Records the memory of links, and logs nodes whose breaker changed.
    fn look_at_links(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        let core = &mut self.core;
        core.link_bytes = cluster.links.held_bytes();
        core.link_counters = cluster.links.counters();
        core.engine.coordinate(core.now, &mut NoPeers, |coordinator, _| {
            while let Some(change) = coordinator.next_breaker_change() {
                cluster.log_breaker_change(change);
            }
        });
    }

    fn received(&mut self, token: Token, buffer: Received, ended: bool) {
        let core = &mut self.core;
        if let Some(connection) = core.connection(token) {
            if ended {
                connection.receiving = false;
                connection.cancelling = false;
            }
            let now = core.now;
            let bytes = self.net.bytes(&buffer);
            let slot = &mut core.connections[token.index as usize];
            let connection = slot.connection.as_mut().expect("looked up above");
            core.poll_policy.note_arrival(connection, now);
            core.counters.bytes_read += bytes.len() as u64;
            core.input(token.index, bytes, &mut outbound(&mut self.mesh, &mut self.cluster));
            if ended {
                core.starved.push(token.index);
            }
        } else {
            self.net.note_stale();
        }
        self.net.recycle(buffer);
    }

    fn filled(&mut self, token: Token, outcome: Result<usize, i32>) {
        let core = &mut self.core;
        let now = core.now;
        let Some(connection) = core.connection(token).filter(|connection| connection.filling)
        else {
            return self.net.note_stale();
        };
        connection.filling = false;
        match outcome {
            Ok(0) => connection.ended = true,
            Ok(bytes) => {
                let streaming = connection.streaming.as_mut().expect("its item was being filled");
                streaming.arrived += bytes;
                let slot = &mut core.connections[token.index as usize];
                core.poll_policy.note_arrival(slot.connection.as_mut().expect("seen above"), now);
                core.counters.bytes_read += bytes as u64;
                core.input(token.index, &[], &mut outbound(&mut self.mesh, &mut self.cluster));
            }
            Err(libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {}
            Err(_) => connection.broken = true,
        }
        core.mark_dirty(token.index);
    }

    fn sent(&mut self, token: Token, output: SendBuffer, outcome: SendOutcome) {
        let core = &mut self.core;
        let now = core.now;
        let connection = core.connection(token).expect("a connection outlives its sends");
        match outcome {
            SendOutcome::Rest(from) => return self.rests.push_back((token, output, from)),
            SendOutcome::Whole => {}
            SendOutcome::Failed(_) => connection.broken = true,
        }
        connection.sending = false;
        connection.sends = connection.sends.wrapping_add(1);
        connection.out.sent();
        // A client that waited long for an answer, or took long to read it, has only now become
        // idle. Not recorded as an arrival, since the poll policy counts connections with arrivals
        // per millisecond.
        if now.since(connection.last_active) >= Duration::from_secs(1) {
            connection.last_active = now;
        }
        let waits = connection.waits_for_send();
        let holds = connection.charge != Charge::default();
        core.counters.bytes_written += output.len() as u64;
        core.release_output(output);
        if waits || holds {
            core.list(token.index);
            core.mark_dirty(token.index);
        }
    }

    fn accepted(&mut self, listener: u32, socket: OwnedFd) {
        let reach = self.listeners[listener as usize].reach;
        let node = self.core.node.clone();
        if !node.admit() {
            self.core.counters.rejected_connections += 1;
            super::listener::refuse(&socket);
            return;
        }
        self.core.counters.total_connections += 1;
        let here = self.doorbell;
        let core = match reach {
            Reach::Core => here,
            Reach::Node => node.least_loaded_core(here),
        };
        node.cores[core].connections.fetch_add(1, Ordering::Relaxed);
        if core == here {
            self.open(socket);
        } else {
            self.mesh.control(core as u32, CoreMessage::Connection(socket));
        }
    }

    /// Rearms listeners that could not accept, after a pause: doing so at once would spin as long
    /// as no descriptor is available.
    fn accept_again(&mut self) {
        if self.core.now.since(self.paused_at) < ACCEPT_PAUSE {
            return;
        }
        for listener in self.paused.drain(..) {
            let listener = &self.listeners[listener as usize];
            self.net.accept(listener.fd(), listener.number);
        }
    }

    fn open(&mut self, socket: OwnedFd) {
        let core = &mut self.core;
        let index = core.free.pop().unwrap_or_else(|| {
            core.connections.push(Slot::default());
            core.connections.len() as u32 - 1
        });
        let slot = &mut core.connections[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let token = Token { index, generation: slot.generation };
        let mut connection = Connection::new(socket, token, core.memory.clone(), core.now);
        connection.receiving = true;
        self.net.receive(connection.fd(), token);
        slot.connection = Some(Box::new(connection));
        core.open += 1;
    }

    fn control(&mut self, from: u32, message: CoreMessage) {
        match message {
            CoreMessage::Connection(socket) => self.open(socket),
            CoreMessage::Query(number, query) => {
                let reply = self.core.answer_query(query);
                self.mesh.control_or_here(from, CoreMessage::Reply(number, reply));
            }
            CoreMessage::Reply(number, reply) => {
                self.core.on_reply(from, number, reply, &mut self.mesh)
            }
        }
    }

    /// Resumes connections that were held back or lacked buffers.
    fn resume_stalled(&mut self) {
        let core = &mut self.core;
        core.resume_stalled(&mut outbound(&mut self.mesh, &mut self.cluster));
        if !core.dumps_waiting.is_empty() {
            core.resume_dumps(&mut self.mesh);
        }
        while let Some(index) = core.starved.pop() {
            core.mark_dirty(index);
        }
    }

    /// Sends what is due, arms receives, closes what is finished.
    fn send(&mut self) {
        self.send_bytes_left = TURN_SEND_BYTES;
        self.send_rests();
        let core = &mut self.core;
        while let Some(index) = core.deferred.pop() {
            core.mark_dirty(index);
        }
        let mut dirty = mem::take(&mut core.dirty);
        for index in dirty.drain(..) {
            let Some(connection) = core.connections[index as usize].connection.as_deref_mut()
            else {
                continue;
            };
            connection.dirty = false;
            let given_up = connection.broken.then(|| connection.out.take());
            if connection.out.output.is_empty() {
                // Allocated for this turn and not needed.
                core.spare_outputs.extend(spare(&mut connection.out.output.buffer));
            } else if connection.should_defer_send() {
                core.deferred.push(index);
            } else if !connection.sending {
                let bytes = connection.out.bytes_to_send();
                if self.send_bytes_left == 0 && bytes > SENT_IN_ANY_TURN_BYTES {
                    connection.dirty = true;
                    core.postponed.push(index);
                    continue;
                }
                self.send_bytes_left =
                    self.send_bytes_left.saturating_sub(bytes.min(SEND_BYTES_MAX));
                connection.deferrals = 0;
                connection.sending = true;
                let output = connection.out.take_to_send();
                let (fd, token) = (connection.fd(), connection.token);
                let long = bytes > SENT_AT_ONCE_BYTES_MAX || !output.pinned.is_empty();
                if long || connection.waits_for_send() {
                    self.net.send(fd, token, output, 0);
                } else {
                    self.net.send_at_once(fd, token, output);
                }
            }
            if let Some(output) = given_up {
                core.release_output(output);
            }
            let Some(connection) = core.connections[index as usize].connection.as_deref_mut()
            else {
                continue;
            };
            let (bytes, reserved) =
                (connection.bytes_held(), connection.session.pipeline.bytes_reserved());
            core.memory.settle(index, &mut connection.charge, bytes, reserved);
            if connection.is_finished() {
                if connection.receiving {
                    connection.broken = true;
                    connection.shut_down();
                } else {
                    core.remove(index);
                }
                continue;
            }
            self.net.arm(connection, &mut core.engine, core.memory.pending_bytes_max());
        }
        // Those with output left come first in the next turn.
        mem::swap(&mut dirty, &mut core.postponed);
        core.dirty = dirty;
    }

    /// Continues sends that were too long for one.
    fn send_rests(&mut self) {
        while self.send_bytes_left > 0
            && let Some((token, output, from)) = self.rests.pop_front()
        {
            let bytes = (output.len() - from).min(SEND_BYTES_MAX);
            self.send_bytes_left = self.send_bytes_left.saturating_sub(bytes);
            let connection = self.core.connection(token).expect("a connection outlives its sends");
            self.net.send(connection.fd(), token, output, from);
        }
    }

    /// Submits the turn's queued operations and waits for work, polling if that is likely to pay
    /// off.
    fn wait_for_work(&mut self) {
        if self.net.has_work() {
            return self.submit();
        }
        if !self.core.deferred.is_empty() {
            self.sleep(WaitLimit::Until(DEFERRAL));
            if !self.net.has_work() && !self.mesh.has_arrivals() {
                self.core.end_deferrals();
            }
            return;
        }
        let limit = self.core.node.config.busy_poll;
        if !limit.is_zero()
            && self.core.poll_policy.may_poll()
            && !self.net.taskrun_flag_unreliable()
        {
            if self.net.has_submissions() {
                // Remaining deferred work is done before the next request arrives, not after it.
                return self.submit();
            }
            if !self.poll(limit) {
                self.sleep(WaitLimit::Endless);
            }
            return;
        }
        let since = std::time::Instant::now();
        self.sleep(WaitLimit::Endless);
        self.core.poll_policy.note_slept(since.elapsed(), limit);
    }

    /// Polls for work for up to `limit`. True if some has arrived.
    fn poll(&mut self, limit: Duration) -> bool {
        let since = std::time::Instant::now();
        let mut polled = Duration::ZERO;
        let mut arrived = false;
        while !arrived && polled < limit {
            for _ in 0..16 {
                arrived = self.net.has_work() || self.mesh.has_arrivals();
                if arrived {
                    self.submit();
                    break;
                }
                std::hint::spin_loop();
            }
            polled = since.elapsed();
        }
        self.core.poll_policy.note_polled(polled, arrived);
        arrived
    }

    /// Submits queued operations and sleeps until the net ring, another core or the heartbeat has
    /// work, or the wait limit is reached.
    fn sleep(&mut self, patience: WaitLimit) {
        let doorbell = &self.core.node.doorbells[self.doorbell];
        doorbell.begin_sleep();
        // Check for messages published before the other core could see that this one sleeps.
        let outcome =
            if self.mesh.has_arrivals() { self.net.submit() } else { self.net.wait(patience) };
        doorbell.end_sleep();
        if let Err(error) = outcome {
            panic!("io_uring_enter failed for good: {error}");
        }
    }

    /// Shuts down: accepts nothing, answers received requests, closes. True once everything is
    /// done.
    fn wind_down(&mut self) -> bool {
        self.core.close_all(self.core.node.stopping_for() > Duration::from_secs(3));
        self.send();
        self.core.open == 0 || self.core.node.stopping_for() > Duration::from_secs(4)
    }
}

impl NetRing {
    /// Starts the connection's next receive: the rest of a long value into its item, or anything
    /// into provided buffers, or none while too much input waits.
    fn arm(&mut self, connection: &mut Connection, engine: &mut Engine, pending_bytes_max: usize) {
        if connection.filling || connection.ended || connection.closing || connection.broken {
            return;
        }
        let stalled = connection.is_stalled() && connection.pending.len() > pending_bytes_max;
        let target = match &connection.streaming {
            Some(streaming) if !stalled => streaming.receive_target(engine.shard.memory_mut()),
            _ => None,
        };
        if connection.receiving {
            if (stalled || target.is_some()) && !connection.cancelling {
                connection.cancelling = true;
                self.cancel_receive(connection.token);
            }
        } else if let Some(target) = target {
            assert!(connection.pending.is_empty(), "what came before it is in its place");
            connection.filling = true;
            connection.bulk = BULK_TURNS;
            // SAFETY: the destination is inside a staged item, so the shard neither reads, moves
            // nor reuses it; it is discarded only with the connection, which stays while `filling`,
            // and the net ring is dropped before the shard.
            unsafe { self.recv_into(connection.fd(), connection.token, target) }
        } else if !stalled {
            connection.receiving = true;
            if connection.bulk > 0 {
                connection.bulk -= 1;
                self.receive_once(connection.fd(), connection.token, BULK_HEAD_BYTES);
            } else {
                self.receive(connection.fd(), connection.token);
            }
        }
    }
}

/// Whether accepting would fail again at once, as it does without free descriptors or memory,
/// rather than for a single connection that is already gone.
fn lasts(error: &std::io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN))
}

/// The outgoing paths from a core to others.
fn outbound<'w>(mesh: &'w mut Mesh, cluster: &'w mut Option<Box<CoreCluster>>) -> Outbound<'w> {
    Outbound { mesh, links: cluster.as_deref_mut().map(|cluster| &mut cluster.links) }
}
