//! A core's loop: one turn after the other, and sleep when there is nothing to do.
//!
//! A turn reads the clock once, takes what the net ring and the other cores bring, answers it,
//! expires a bounded number of items, publishes what goes to other cores and submits one send per
//! connection, all with one system call. Polling before sleep has to pay: it halves the latency of
//! a lone connection and only burns CPU between fifty, so a core polls while few connections are
//! active and arrivals come more closely than the polling would last.

#![allow(unsafe_code)]

use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bumpalo::Bump;
use glommio::io::BufferedFile;
use slab::Slab;

use super::adopt;
use super::commands::{self, Query};
use super::connection::{Arriving, Connection, DEFERRALS_MAX, Place};
use super::control::Control;
use super::listener::{Listener, Reach};
use super::mesh::{Mesh, Return};
use super::net_ring::{Event, NetRing, Output, Received, Token};
use super::node::Node;
use crate::engine::{BoundedOutput, Engine, Outbox, Stop};
use crate::protocol::pipeline::Completion;
use crate::protocol::{Context, Limits, Reply, relay};
use crate::request::{Body, Operation, Request, Response};
use crate::stats::{ConnectionCounters, ConnectionStats};
use crate::time::Instant;

/// How often an idle core wakes to expire items and look at its connections, in milliseconds.
/// Half a level of the TTL wheel's first ring, so that items go within a second of their deadline.
const HEARTBEAT_MILLIS: u32 = 250;
/// How long an idle core waits for other cores to complete a batch of answers before it sends what
/// is there. About what another core needs for a turn: one send instead of two.
const DEFERRAL: Duration = Duration::from_micros(20);
/// Most items expired, moved or reclaimed in one turn.
const MAINTENANCE_PER_TURN: u32 = 64;
/// Polling pays while at most this many connections were active in a millisecond.
const POLLING_CONNECTIONS_MAX: u32 = 4;
/// Unused input of a connection that may not go on, beyond which it is no longer received from.
const PENDING_BYTES_MAX: usize = 64 << 10;
/// Receives after a long value during which the next one is expected.
const BULK_TURNS: u8 = 16;
/// Bytes received at a time while a long value is expected: its line, and little of the value that
/// would have to be copied.
const BULK_HEAD_BYTES: u32 = 512;
/// Room that an idle connection's input buffer may keep.
const PENDING_BYTES_KEPT: usize = 4 << 10;
/// Room that an output buffer may keep between uses.
const OUTPUT_BYTES_KEPT: usize = 64 << 10;
/// Output buffers kept for reuse.
const OUTPUT_BUFFERS_KEPT: usize = 256;

/// One core.
pub struct Worker {
    net: NetRing,
    mesh: Mesh,
    core: Core,
    listeners: Vec<Listener>,
    events: Vec<Event>,
    doorbell: usize,
    heartbeat_armed: bool,
    gap: GapEstimate,
}

/// All of a worker but its rings, so that bytes borrowed from the net ring can be worked on.
pub(super) struct Core {
    pub(super) engine: Engine,
    pub(super) node: Arc<Node>,
    limits: Rc<Limits>,
    scratch: Rc<Bump>,
    pub(super) connections: Vec<Slot>,
    free: Vec<u32>,
    pub(super) open: u32,
    pub(super) now: Instant,
    /// What has happened to connections.
    pub(super) counters: ConnectionCounters,
    /// Time spent waiting for work.
    pub(super) idle: Duration,
    /// Node commands under way that came to this core.
    pub(super) queries: Slab<Query>,
    /// Dumps among them whose client has to read first.
    pub(super) dumps_waiting: Vec<u32>,
    /// This core's listeners, for `stats conns`.
    pub(super) listening: Vec<ConnectionStats>,
    dirty: Vec<u32>,
    /// Connections whose answers wait for others of the same batch, still on other cores.
    deferred: Vec<u32>,
    pub(super) held_back: Vec<u32>,
    starved: Vec<u32>,
    spare_outputs: Vec<Vec<u8>>,
    activity: Activity,
    output_bytes_max: usize,
}

/// Room for a connection.
#[derive(Default)]
pub(super) struct Slot {
    generation: u32,
    pub(super) connection: Option<Box<Connection>>,
}

/// How many connections were active in the last whole millisecond.
#[derive(Default)]
struct Activity {
    current: u32,
    last: u32,
    since: Instant,
}

impl Activity {
    fn note(&mut self, connection: &mut Connection, now: Instant) {
        if now != self.since {
            self.last = self.current;
            self.current = 0;
            self.since = now;
        }
        if connection.last_active != now || self.current == 0 {
            connection.last_active = now;
            self.current += 1;
        }
    }

    fn few(&self) -> bool {
        self.current.max(self.last) <= POLLING_CONNECTIONS_MAX
    }
}

/// A moving average of how long the core was idle between arrivals.
#[derive(Default)]
struct GapEstimate {
    average: Duration,
}

impl GapEstimate {
    fn note(&mut self, gap: Duration) {
        let gap = gap.min(Duration::from_millis(10));
        self.average = (self.average * 7 + gap) / 8;
    }
}

/// What a worker is made of.
pub struct WorkerParts {
    /// Its net ring.
    pub net: NetRing,
    /// Its ends of the rings between cores.
    pub mesh: Mesh,
    /// Its shard and rules.
    pub engine: Engine,
    /// What all cores of the node share.
    pub node: Arc<Node>,
    /// Where it accepts connections.
    pub listeners: Vec<Listener>,
}

impl Worker {
    /// A worker that has not started.
    pub fn new(parts: WorkerParts) -> Self {
        let WorkerParts { net, mesh, engine, node, listeners } = parts;
        let now = node.clock.now();
        let doorbell = engine.config().core as usize;
        let core = Core {
            engine,
            limits: Rc::new(Limits::from(&node.config)),
            output_bytes_max: node.config.queues.output_bytes_max as usize,
            node,
            scratch: Rc::new(Bump::new()),
            connections: Vec::new(),
            free: Vec::new(),
            open: 0,
            now,
            counters: ConnectionCounters::default(),
            idle: Duration::ZERO,
            queries: Slab::new(),
            dumps_waiting: Vec::new(),
            listening: commands::listening(&listeners),
            dirty: Vec::new(),
            deferred: Vec::new(),
            held_back: Vec::new(),
            starved: Vec::new(),
            spare_outputs: Vec::new(),
            activity: Activity::default(),
        };
        Self {
            net,
            mesh,
            core,
            listeners,
            events: Vec::with_capacity(256),
            doorbell,
            heartbeat_armed: false,
            gap: GapEstimate::default(),
        }
    }

    /// Works until the node shuts down and everything due has been sent.
    pub async fn run(mut self) {
        let wakeup = self.net.wakeup().try_clone_to_owned();
        let bell = adopt::bell(wakeup.expect("one more file descriptor per core"));
        for listener in &self.listeners {
            self.net.accept(listener.fd(), listener.number);
        }
        let mut turns = 0u32;
        loop {
            if self.turn() {
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(256) {
                    glommio::executor().yield_task_queue_now().await;
                }
                continue;
            }
            if self.core.node.is_stopping() && self.wind_down() {
                break;
            }
            let idle_since = std::time::Instant::now();
            if !self.poll(idle_since) {
                self.sleep(&bell).await;
            }
            let idle = idle_since.elapsed();
            self.gap.note(idle);
            self.core.idle += idle;
        }
        bell.close().await.ok();
    }

    /// One turn. Returns whether there was anything to do.
    fn turn(&mut self) -> bool {
        let core = &mut self.core;
        core.now = core.node.clock.now();
        Rc::get_mut(&mut core.scratch).expect("borrowed within a turn only").reset();
        let mut events = mem::take(&mut self.events);
        self.net.reap(&mut events);
        let mut worked = !events.is_empty();
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;

        let core = &mut self.core;
        let now = core.now;
        worked |= self.mesh.answers(|to, response| core.complete(to, response)) > 0;
        worked |= self.mesh.serve(&mut core.engine, now) > 0;
        while let Some((from, message)) = self.mesh.next_control() {
            worked = true;
            self.control(from, message);
        }
        self.go_on();
        worked |= self.core.engine.shard.maintain(now, MAINTENANCE_PER_TURN);
        // Before the sends, which take a while: other cores can work on it meanwhile.
        worked |= self.mesh.publish();
        self.send();
        if let Some(wish) = self.core.node.cores[self.doorbell].inquiry.wish() {
            self.core.tell_outside(wish);
        }
        if !self.heartbeat_armed {
            self.net.heartbeat(HEARTBEAT_MILLIS);
            self.heartbeat_armed = true;
        }
        if (worked || self.net.has_submissions() || self.net.has_work())
            && let Err(error) = self.net.submit()
        {
            panic!("io_uring_enter failed for good: {error}");
        }
        worked
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received { token, buffer, ended } => self.received(token, buffer, ended),
            Event::Sent { token, output, outcome } => self.sent(token, output, outcome),
            Event::ReceiveEnded { token, outcome } => {
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
            Event::Filled { token, outcome } => self.filled(token, outcome),
            Event::Accepted { listener, socket } => self.accepted(listener, socket),
            Event::AcceptEnded { listener, error } => {
                if self.core.node.is_stopping() {
                    return;
                }
                if let Some(error) = error {
                    self.core.node.note_accept_error(&error);
                }
                let listener = &self.listeners[listener as usize];
                self.net.accept(listener.fd(), listener.number);
            }
            Event::Heartbeat => {
                self.heartbeat_armed = false;
                self.core.close_idle();
            }
        }
    }

    fn received(&mut self, token: Token, buffer: Received, ended: bool) {
        let core = &mut self.core;
        if let Some(connection) = core.connection(token) {
            if ended {
                connection.receiving = false;
                connection.cancelling = false;
            }
            let now = core.now;
            let slot = &mut core.connections[token.index as usize];
            core.activity.note(slot.connection.as_mut().expect("looked up above"), now);
            let bytes = self.net.bytes(&buffer);
            core.counters.bytes_read += bytes.len() as u64;
            core.input(token.index, bytes, &mut self.mesh);
            if ended {
                core.starved.push(token.index);
            }
        }
        self.net.recycle(buffer);
    }

    fn filled(&mut self, token: Token, outcome: Result<usize, i32>) {
        let core = &mut self.core;
        let now = core.now;
        let connection = core.connection(token).expect("a connection outlives its receives");
        connection.filling = false;
        match outcome {
            Ok(0) => connection.ended = true,
            Ok(bytes) => {
                let arriving = connection.arriving.as_mut().expect("its item was being filled");
                arriving.arrived += bytes;
                connection.last_active = now;
                core.counters.bytes_read += bytes as u64;
                core.input(token.index, &[], &mut self.mesh);
            }
            Err(libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {}
            Err(_) => connection.broken = true,
        }
        core.mark_dirty(token.index);
    }

    fn sent(&mut self, token: Token, output: Output, outcome: Result<usize, i32>) {
        let core = &mut self.core;
        let connection = core.connection(token).expect("a connection outlives its sends");
        let fd = connection.fd();
        match outcome {
            Ok(bytes) if bytes < output.len() => return self.net.send(fd, token, output, bytes),
            Ok(_) => {}
            Err(libc::EINTR | libc::EAGAIN) if output.pinned.is_empty() => {
                return self.net.send(fd, token, output, 0);
            }
            Err(_) => connection.broken = true,
        }
        connection.sending = false;
        core.counters.bytes_written += output.len() as u64;
        core.release_output(output);
        core.mark_dirty(token.index);
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
            self.mesh.control(core as u32, Control::Connection(socket));
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
        let mut connection = Connection::new(socket, token, core.output_bytes_max, core.now);
        connection.receiving = true;
        self.net.receive(connection.fd(), token);
        slot.connection = Some(Box::new(connection));
        core.open += 1;
    }

    fn control(&mut self, from: u32, message: Control) {
        match message {
            Control::Connection(socket) => self.open(socket),
            Control::Ask(number, question) => {
                let tell = self.core.tell(question);
                self.mesh.control_or_here(from, Control::Tell(number, tell));
            }
            Control::Tell(number, tell) => self.core.told(from, number, tell, &mut self.mesh),
        }
    }

    /// Lets connections go on that were held back or starved of buffers.
    fn go_on(&mut self) {
        let core = &mut self.core;
        if !core.held_back.is_empty() && !self.mesh.is_full() {
            let mut held_back = mem::take(&mut core.held_back);
            for index in held_back.drain(..) {
                core.release(index, &mut self.mesh);
            }
            // Those held back again are in the new list; keep its room and the old one's.
            if core.held_back.is_empty() {
                core.held_back = held_back;
            }
        }
        if !core.dumps_waiting.is_empty() {
            core.resume_dumps(&mut self.mesh);
        }
        while let Some(index) = core.starved.pop() {
            core.mark_dirty(index);
        }
    }

    /// Sends what is due, arms receives, closes what is finished.
    fn send(&mut self) {
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
                // Lent for this turn and not needed.
                core.spare_outputs.extend(spare(&mut connection.out.output.buffer));
            } else if connection.is_soon_fuller() {
                core.deferred.push(index);
            } else if !connection.sending {
                connection.deferrals = 0;
                connection.sending = true;
                let output = connection.out.take();
                self.net.send(connection.fd(), connection.token, output, 0);
            }
            if let Some(output) = given_up {
                core.release_output(output);
            }
            let Some(connection) = core.connections[index as usize].connection.as_deref_mut()
            else {
                continue;
            };
            if connection.is_finished() {
                if connection.receiving {
                    connection.broken = true;
                    connection.shut_down();
                } else {
                    core.remove(index);
                }
                continue;
            }
            self.net.arm(connection, &mut core.engine);
        }
        core.dirty = dirty;
    }

    /// Waits for work without sleeping, as long as that is likely to pay.
    fn poll(&mut self, since: std::time::Instant) -> bool {
        if !self.core.deferred.is_empty() {
            let arrived = self.poll_until(since, DEFERRAL);
            if !arrived {
                self.core.end_deferrals();
            }
            return true;
        }
        let limit = self.core.node.config.busy_poll;
        if limit.is_zero() || self.gap.average >= limit || !self.core.activity.few() {
            return false;
        }
        self.poll_until(since, limit)
    }

    fn poll_until(&mut self, since: std::time::Instant, limit: Duration) -> bool {
        loop {
            for _ in 0..16 {
                if self.net.has_work() || self.mesh.has_arrivals() {
                    if self.net.has_work() {
                        let _ = self.net.submit();
                    }
                    return true;
                }
                std::hint::spin_loop();
            }
            if since.elapsed() >= limit {
                return false;
            }
        }
    }

    /// Sleeps until the net ring, another core or the heartbeat has something to do.
    async fn sleep(&mut self, bell: &BufferedFile) {
        let node = self.core.node.clone();
        let doorbell = &node.doorbells[self.doorbell];
        doorbell.lie_down();
        self.net.notify(true);
        if !self.net.has_work() && !self.mesh.has_arrivals() {
            let _ = bell.read_at(0, 8).await;
        }
        self.net.notify(false);
        doorbell.get_up();
        let _ = self.net.submit();
    }

    /// Shutting down: accepts nothing, answers what was read, closes. True when all is done.
    fn wind_down(&mut self) -> bool {
        self.core.close_all(self.core.node.stopping_for() > Duration::from_secs(3));
        self.send();
        let _ = self.net.submit();
        self.core.open == 0 || self.core.node.stopping_for() > Duration::from_secs(4)
    }
}

impl NetRing {
    /// Receives what the connection can take next: the rest of a long value into its item, or
    /// anything into provided buffers, or nothing while too much input waits.
    fn arm(&mut self, connection: &mut Connection, engine: &mut Engine) {
        if connection.filling || connection.ended || connection.closing || connection.broken {
            return;
        }
        let stalled = connection.is_stalled() && connection.pending.len() > PENDING_BYTES_MAX;
        let place = match &connection.arriving {
            Some(arriving) if !stalled => arriving.place(engine.shard.memory_mut()),
            _ => None,
        };
        if connection.receiving {
            if (stalled || place.is_some()) && !connection.cancelling {
                connection.cancelling = true;
                self.cancel_receive(connection.token);
            }
        } else if let Some(place) = place {
            connection.filling = true;
            connection.bulk = BULK_TURNS;
            // SAFETY: the place is inside an item that is staged, so the shard neither reads,
            // moves nor reuses it; it is discarded only with the connection, which stays while
            // `filling`, and the net ring is dropped before the shard.
            unsafe { self.fill(connection.fd(), connection.token, place) }
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

impl Core {
    pub(super) fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        let slot = self.connections.get_mut(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        slot.connection.as_deref_mut()
    }

    /// The connection in slot `index`, which must be open.
    pub(super) fn connection_at(&mut self, index: u32) -> &mut Connection {
        let connection = self.connections[index as usize].connection.as_deref_mut();
        connection.expect("the slot of an open connection")
    }

    /// Lists a connection for the end of the turn: to send, receive or close.
    pub(super) fn mark_dirty(&mut self, index: u32) {
        if let Some(connection) = self.connections[index as usize].connection.as_deref_mut()
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Unpins the values of an output that was sent or given up, and keeps its buffer.
    fn release_output(&mut self, output: Output) {
        let Output { mut buffer, pinned } = output;
        for part in pinned {
            self.engine.shard.unpin(part.item);
        }
        if buffer.capacity() > 0 && self.spare_outputs.len() < OUTPUT_BUFFERS_KEPT {
            buffer.clear();
            buffer.shrink_to(OUTPUT_BYTES_KEPT);
            self.spare_outputs.push(buffer);
        }
    }

    /// Lets everything go that waits for more of its batch.
    fn end_deferrals(&mut self) {
        for &index in &self.deferred {
            if let Some(connection) = self.connections[index as usize].connection.as_deref_mut() {
                connection.deferrals = DEFERRALS_MAX;
            }
        }
    }

    /// Takes bytes that arrived for a connection.
    fn input(&mut self, index: u32, bytes: &[u8], mesh: &mut Mesh) {
        let connection = self.connections[index as usize].connection.as_deref_mut();
        let connection = connection.expect("input comes for open connections");
        if connection.closing || connection.broken {
            return;
        }
        if connection.pending.is_empty() && !connection.is_stalled() {
            let consumed = self.process(index, bytes, mesh);
            let connection = self.connections[index as usize].connection.as_deref_mut();
            connection.expect("still open").pending.extend_from_slice(&bytes[consumed..]);
        } else {
            connection.pending.extend_from_slice(bytes);
            if !connection.is_stalled() {
                self.process_pending(index, mesh);
            }
        }
        self.mark_dirty(index);
    }

    /// Goes on with input that was kept.
    fn process_pending(&mut self, index: u32, mesh: &mut Mesh) {
        let slot = &mut self.connections[index as usize];
        let Some(connection) = slot.connection.as_deref_mut() else { return };
        let mut pending = mem::take(&mut connection.pending);
        let consumed = self.process(index, &pending, mesh);
        pending.drain(..consumed);
        if pending.is_empty() {
            pending.shrink_to(PENDING_BYTES_KEPT);
        }
        let connection = self.connections[index as usize].connection.as_deref_mut();
        connection.expect("still open").pending = pending;
        self.mark_dirty(index);
    }

    /// Lets a connection that was held back go on.
    fn release(&mut self, index: u32, mesh: &mut Mesh) {
        let Some(connection) = self.connections[index as usize].connection.as_deref_mut() else {
            return;
        };
        if !connection.held_back {
            return;
        }
        connection.held_back = false;
        if connection.sending && connection.out.is_full() {
            connection.held_back = true;
            self.held_back.push(index);
            return;
        }
        if !connection.is_stalled() {
            self.process_pending(index, mesh);
        }
    }

    /// Answers or hands on what `input` asks for. Returns how much of it is used up.
    fn process(&mut self, index: u32, input: &[u8], mesh: &mut Mesh) -> usize {
        let (limits, scratch) = (self.limits.clone(), self.scratch.clone());
        let slot = &mut self.connections[index as usize];
        let mut connection = slot.connection.as_deref_mut().expect("input is for open connections");
        let out = &mut connection.out.output.buffer;
        if out.capacity() == 0
            && let Some(spare) = self.spare_outputs.pop()
        {
            *out = spare;
        }
        let mut at = 0;
        loop {
            if let Some(arriving) = &mut connection.arriving {
                at += arriving.take(&input[at..], self.engine.shard.memory_mut());
                if !arriving.is_complete() {
                    return at;
                }
                let arrived = connection.arriving.take().expect("it is there");
                finish_body(&mut self.engine, connection, *arrived, self.now, mesh);
            }
            let context = Context {
                limits: &limits,
                now: self.now,
                hash_seed: self.engine.config().hash_seed,
                scratch: &scratch,
            };
            let token = connection.token;
            let fed = self.engine.feed(
                &mut connection.session,
                &input[at..],
                &context,
                &mut connection.out,
                &mut Sender { mesh, token },
            );
            at += fed.consumed;
            match fed.stop {
                Stop::NeedInput => return at,
                Stop::HeldBack => {
                    connection.held_back = true;
                    self.held_back.push(index);
                    return at;
                }
                Stop::Body { request, reply, value_bytes, trailer_bytes } => {
                    let body = (value_bytes, trailer_bytes);
                    begin_body(&mut self.engine, connection, &request, &reply, body, self.now);
                }
                Stop::Node { command, reply } => {
                    self.begin_command(index, command, &reply, mesh);
                    let slot = &mut self.connections[index as usize];
                    connection = slot.connection.as_deref_mut().expect("still open");
                    if connection.is_stalled() {
                        return if connection.closing { input.len() } else { at };
                    }
                }
                Stop::Close => {
                    connection.closing = true;
                    return input.len();
                }
            }
        }
    }

    /// Takes an answer of another core.
    fn complete(&mut self, to: Return, response: &Response<'_>) {
        let now = self.now;
        let Some(connection) = self.connection(to.token) else { return };
        let completion = Completion::Response(response);
        connection.session.pipeline.complete(to.sequence, completion, now, &mut connection.out);
        self.mark_dirty(to.token.index);
    }

    /// Closes connections that have been silent for too long.
    fn close_idle(&mut self) {
        let Some(timeout) = self.node.config.idle_timeout else { return };
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connections[index].connection.as_deref_mut()
                && self.now.since(connection.last_active) > timeout
                && !connection.broken
            {
                connection.broken = true;
                connection.shut_down();
                self.counters.idle_kicks += 1;
                self.mark_dirty(index as u32);
            }
        }
    }

    /// Closes all connections, after their answers unless `hurry`.
    fn close_all(&mut self, hurry: bool) {
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connections[index].connection.as_deref_mut() {
                connection.closing = true;
                connection.broken |= hurry;
                self.mark_dirty(index as u32);
            }
        }
    }

    fn remove(&mut self, index: u32) {
        let slot = &mut self.connections[index as usize];
        let connection = slot.connection.take().expect("removed once");
        if let Some(arriving) = connection.arriving
            && let Place::Item(staged, _) = arriving.place
        {
            self.engine.shard.discard(staged);
        }
        self.free.push(index);
        self.open -= 1;
        let core = self.engine.config().core as usize;
        self.node.cores[core].connections.fetch_sub(1, Ordering::Relaxed);
        self.node.dismiss();
    }
}

/// Sends a connection's requests to other cores.
struct Sender<'m> {
    mesh: &'m mut Mesh,
    token: Token,
}

impl Outbox for Sender<'_> {
    #[inline]
    fn send(&mut self, core: u32, sequence: u32, request: &Request<'_>) {
        self.mesh.request(core, Return { token: self.token, sequence }, request);
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.mesh.is_full()
    }
}

/// Makes room for a long value that follows.
fn begin_body(
    engine: &mut Engine,
    connection: &mut Connection,
    request: &Request<'_>,
    reply: &Reply<'_>,
    (value_bytes, trailer_bytes): (u32, u8),
    now: Instant,
) {
    let Operation::Store(store) = &request.operation else {
        unreachable!("only stores have a body");
    };
    let sequence = connection.session.pipeline.wait(reply);
    let place = if engine.owner(request) == engine.config().core {
        let key_bytes = request.key.len();
        let staged = engine.shard.stage(key_bytes, store.flags, store.deadline, value_bytes, now);
        match staged {
            Ok(staged) => Place::Item(staged, engine.shard.staged_spans(&staged).collect()),
            Err(refusal) => {
                let response = engine.shard.refuse_stage(request, refusal, now);
                let completion = Completion::Response(&response);
                let Connection { session, out, .. } = connection;
                session.pipeline.complete(sequence, completion, now, out);
                session.skip = u64::from(value_bytes) + u64::from(trailer_bytes);
                return;
            }
        }
    } else {
        Place::Buffer(Vec::with_capacity(value_bytes as usize))
    };
    let mut head = vec![0; relay::encoded_request_bytes(request)];
    relay::encode_request(request, &mut head);
    connection.arriving = Some(Box::new(Arriving {
        request: head,
        sequence,
        place,
        arrived: 0,
        value_bytes: value_bytes as usize,
        trailer: Vec::new(),
        trailer_bytes: trailer_bytes as usize,
    }));
}

/// A long value has arrived: stores it here or hands it to its owner.
fn finish_body(
    engine: &mut Engine,
    connection: &mut Connection,
    arrived: Arriving,
    now: Instant,
    mesh: &mut Mesh,
) {
    let Connection { session, out, token, .. } = connection;
    let Arriving { request, sequence, place, trailer, .. } = arrived;
    if !session.decoder.trailer_is_valid(&trailer) {
        if let Place::Item(staged, _) = place {
            engine.shard.discard(staged);
        }
        session.pipeline.complete(sequence, Completion::BadDataChunk, now, out);
        return;
    }
    let mut request = relay::decode_request(&request).expect("encoded by this core");
    let owner = engine.owner(&request);
    let Operation::Store(store) = &mut request.operation else {
        unreachable!("only stores have a body");
    };
    match place {
        Place::Item(staged, _) => {
            store.value = Body::Staged(staged);
            let response = engine.shard.execute(&request, now);
            session.pipeline.complete(sequence, Completion::Response(&response), now, out);
        }
        Place::Buffer(value) => {
            store.value = Body::Bytes(&value);
            mesh.request(owner, Return { token: *token, sequence }, &request);
        }
    }
}

/// An empty buffer's room, if it has any.
fn spare(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    (buffer.capacity() > 0).then(|| mem::take(buffer))
}
