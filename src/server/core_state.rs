//! What a core holds besides its rings: engine, connections and the lists by which a turn finds
//! those that need something.
//!
//! It is apart from the rings so that bytes borrowed from the net ring can be worked on in place.
//! Input goes through the engine here, answers of other cores come back here, long values begin and
//! end here; the worker performs what follows: sends, receives, sleep.

use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bumpalo::Bump;
use slab::Slab;

use super::cluster::links::Links;
use super::commands::{self, Query};
use super::connection::{Arriving, Connection, DEFERRALS_MAX, Place};
use super::listener::Listener;
use super::mesh::{self, Mesh, Return};
use super::net_ring::{Output, Token};
use super::node::Node;
use super::pace::Pace;
use crate::cluster::coordinator::Asker;
use crate::cluster::link::Peer;
use crate::cluster::quorum::Consistency;
use crate::engine::cluster::{self as engine, Taken};
use crate::engine::{BoundedOutput, Engine, Outbox, Stop};
use crate::protocol::pipeline::Completion;
use crate::protocol::{Context, Limits, Reply, relay};
use crate::request::{Body, Operation, Request, Response};
use crate::stats::{ConnectionCounters, ConnectionStats};
use crate::time::Instant;

/// Requests that one connection may have taken before the others get their turn. What one costs is
/// bounded by the limits of a buffer; most cost less than a tenth of a microsecond.
const QUANTUM: u32 = 1024;
/// The same while the turn has already taken [`TURN_REQUESTS`].
const QUANTUM_MIN: u32 = 128;
/// Requests after which a turn is long: what connections have beyond that waits for the next one.
const TURN_REQUESTS: u32 = 4096;
/// Room that an output buffer may keep between uses.
const OUTPUT_BYTES_KEPT: usize = 64 << 10;
/// Output buffers kept for reuse.
const OUTPUT_BUFFERS_KEPT: usize = 256;

/// All of a worker but its rings, so that bytes borrowed from the net ring can be worked on.
pub(super) struct Core {
    pub(super) engine: Engine,
    pub(super) node: Arc<Node>,
    pub(super) limits: Rc<Limits>,
    pub(super) scratch: Rc<Bump>,
    pub(super) connections: Vec<Slot>,
    pub(super) free: Vec<u32>,
    pub(super) open: u32,
    pub(super) now: Instant,
    /// What has happened to connections.
    pub(super) counters: ConnectionCounters,
    /// Node commands under way that came to this core.
    pub(super) queries: Slab<Query>,
    /// Dumps among them whose client has to read first.
    pub(super) dumps_waiting: Vec<u32>,
    /// This core's listeners, for `stats conns`.
    pub(super) listening: Vec<ConnectionStats>,
    pub(super) dirty: Vec<u32>,
    /// Connections whose answers wait for others of the same batch, still on other cores.
    pub(super) deferred: Vec<u32>,
    pub(super) held_back: Vec<u32>,
    /// Some of those could go on at once: they gave way to others.
    pub(super) has_backlog: bool,
    /// Requests that the turn may still take before it is long.
    turn_left: u32,
    pub(super) starved: Vec<u32>,
    pub(super) spare_outputs: Vec<Vec<u8>>,
    pub(super) pace: Pace,
    pub(super) output_bytes_max: usize,
}

/// Room for a connection.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) connection: Option<Box<Connection>>,
}

impl Core {
    /// A core without connections.
    pub(super) fn new(engine: Engine, node: Arc<Node>, listeners: &[Listener]) -> Self {
        let now = node.clock.now();
        Self {
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
            queries: Slab::new(),
            dumps_waiting: Vec::new(),
            listening: commands::listening(listeners),
            dirty: Vec::new(),
            deferred: Vec::new(),
            held_back: Vec::new(),
            has_backlog: false,
            turn_left: TURN_REQUESTS,
            starved: Vec::new(),
            spare_outputs: Vec::new(),
            pace: Pace::default(),
        }
    }

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
    pub(super) fn release_output(&mut self, output: Output) {
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
    pub(super) fn end_deferrals(&mut self) {
        for &index in &self.deferred {
            if let Some(connection) = self.connections[index as usize].connection.as_deref_mut() {
                connection.deferrals = DEFERRALS_MAX;
            }
        }
    }

    /// A turn begins.
    pub(super) fn begin_turn(&mut self, now: Instant) {
        self.now = now;
        self.turn_left = TURN_REQUESTS;
        self.has_backlog = false;
    }

    /// Takes bytes that arrived for a connection.
    pub(super) fn input(&mut self, index: u32, bytes: &[u8], ways: &mut Ways<'_>) {
        let connection = self.connections[index as usize].connection.as_deref_mut();
        let connection = connection.expect("input comes for open connections");
        if connection.closing || connection.broken {
            return;
        }
        if connection.pending.is_empty() && !connection.is_stalled() {
            let consumed = self.process(index, bytes, ways);
            let connection = self.connections[index as usize].connection.as_deref_mut();
            connection.expect("still open").pending.extend(&bytes[consumed..]);
        } else {
            connection.pending.extend(bytes);
            if !connection.is_stalled() {
                self.process_pending(index, ways);
            }
        }
        self.mark_dirty(index);
    }

    /// Goes on with input that was kept.
    fn process_pending(&mut self, index: u32, ways: &mut Ways<'_>) {
        let slot = &mut self.connections[index as usize];
        let Some(connection) = slot.connection.as_deref_mut() else { return };
        let mut pending = mem::take(&mut connection.pending);
        let consumed = self.process(index, pending.bytes(), ways);
        pending.consume(consumed);
        let connection = self.connections[index as usize].connection.as_deref_mut();
        connection.expect("still open").pending = pending;
        self.mark_dirty(index);
    }

    /// Lets those go on that were held back, as many as a turn can bear; the others have precedence
    /// in the next one.
    pub(super) fn release_held_back(&mut self, ways: &mut Ways<'_>) {
        self.turn_left = TURN_REQUESTS;
        let mut waiting = mem::take(&mut self.held_back);
        let mut count = 0;
        while let Some(&index) = waiting.get(count)
            && self.turn_left > 0
        {
            self.release(index, ways);
            count += 1;
        }
        self.has_backlog |= count < waiting.len();
        // Behind them come those that were held back again.
        waiting.drain(..count);
        waiting.append(&mut self.held_back);
        self.held_back = waiting;
    }

    /// Lets a connection that was held back go on.
    fn release(&mut self, index: u32, ways: &mut Ways<'_>) {
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
            self.process_pending(index, ways);
        }
    }

    /// Answers or hands on what `input` asks for. Returns how much of it is used up.
    fn process(&mut self, index: u32, input: &[u8], ways: &mut Ways<'_>) -> usize {
        let (limits, scratch) = (self.limits.clone(), self.scratch.clone());
        let secret = self.engine.config().hash_secret.clone();
        let slot = &mut self.connections[index as usize];
        let mut connection = slot.connection.as_deref_mut().expect("input is for open connections");
        connection.out.borrow_room(&mut self.spare_outputs);
        let mut at = 0;
        connection.session.quantum = self.turn_left.clamp(QUANTUM_MIN, QUANTUM);
        loop {
            if let Some(arriving) = &mut connection.arriving {
                at += arriving.take(&input[at..], self.engine.shard.memory_mut());
                if !arriving.is_complete() {
                    return at;
                }
                let arrived = connection.arriving.take().expect("it is there");
                finish_body(&mut self.engine, connection, *arrived, self.now, ways);
            }
            let context =
                Context { limits: &limits, now: self.now, hash_secret: &secret, scratch: &scratch };
            let (token, core) = (connection.token, self.engine.config().core);
            let quantum = connection.session.quantum;
            let fed = self.engine.feed(
                &mut connection.session,
                &input[at..],
                &context,
                &mut connection.out,
                &mut Sender { ways, token, core },
            );
            at += fed.consumed;
            let taken = quantum - connection.session.quantum;
            self.turn_left = self.turn_left.saturating_sub(taken);
            match fed.stop {
                Stop::QuantumUsed => {
                    connection.held_back = true;
                    self.held_back.push(index);
                    self.has_backlog = true;
                    return at;
                }
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
                    self.begin_command(index, command, &reply, ways.mesh);
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
    pub(super) fn complete(&mut self, to: Return, response: &Response<'_>) {
        let Self { connections, spare_outputs, dirty, now, .. } = self;
        complete(connections, spare_outputs, dirty, to, response, *now);
    }

    /// Closes connections that have been silent for too long: those that send nothing, or read
    /// nothing of what they have asked for.
    pub(super) fn close_idle(&mut self) {
        let Some(timeout) = self.node.config.idle_timeout else { return };
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connections[index].connection.as_deref_mut()
                && !connection.broken
                && connection.is_silent(timeout, self.now)
            {
                connection.broken = true;
                connection.shut_down();
                self.counters.idle_kicks += 1;
                self.mark_dirty(index as u32);
            }
        }
    }

    /// Closes all connections, after their answers unless `hurry`.
    pub(super) fn close_all(&mut self, hurry: bool) {
        for index in 0..self.connections.len() {
            if let Some(connection) = self.connections[index].connection.as_deref_mut() {
                connection.closing = true;
                connection.broken |= hurry;
                self.mark_dirty(index as u32);
            }
        }
    }

    pub(super) fn remove(&mut self, index: u32) {
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

/// The ways from this core to others: of this node, and of other nodes.
pub(super) struct Ways<'w> {
    pub(super) mesh: &'w mut Mesh,
    pub(super) links: Option<&'w mut Links>,
}

impl engine::Links for Ways<'_> {
    #[inline]
    fn room(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        self.links.as_mut()?.room(to)
    }
}

/// Sends a connection's requests to other cores.
struct Sender<'s, 'w> {
    ways: &'s mut Ways<'w>,
    token: Token,
    core: u32,
}

impl engine::Links for Sender<'_, '_> {
    #[inline]
    fn room(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        self.ways.room(to)
    }
}

impl Outbox for Sender<'_, '_> {
    #[inline]
    fn send(&mut self, core: u32, sequence: u32, request: &Request<'_>) {
        self.ways.mesh.request(core, Return { token: self.token, sequence }, request);
    }

    fn send_with(
        &mut self,
        core: u32,
        sequence: u32,
        consistency: Consistency,
        request: &Request<'_>,
    ) {
        let to = Return { token: self.token, sequence };
        self.ways.mesh.request(core, mesh::with_consistency(to, consistency), request);
    }

    fn asker(&self, sequence: u32) -> Asker {
        asker(self.core, Return { token: self.token, sequence })
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.ways.mesh.is_full()
    }
}

/// How a request of core `core` is known to the coordinator.
pub(super) fn asker(core: u32, to: Return) -> Asker {
    let Token { index, generation } = to.token;
    Asker { core, connection: index, generation, sequence: to.sequence }
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
    // In a cluster a value may have to go elsewhere, so it is not received into the shard.
    let place = if engine.owner(request) == engine.config().core && engine.coordinator().is_none() {
        let key_bytes = request.key.len();
        let staged = engine.shard.stage(key_bytes, store.flags, store.deadline, value_bytes, now);
        match staged {
            Ok(staged) => Place::Item(staged, engine.shard.staged_spans(&staged).collect()),
            Err(refusal) => {
                let response = engine.refuse_stage(request, refusal, now);
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
        consistency: reply.form.consistency().into(),
    }));
}

/// A long value has arrived: stores it here or hands it to its owner.
fn finish_body(
    engine: &mut Engine,
    connection: &mut Connection,
    arrived: Arriving,
    now: Instant,
    ways: &mut Ways<'_>,
) {
    let Connection { session, out, token, .. } = connection;
    let Arriving { request, sequence, place, trailer, consistency, .. } = arrived;
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
            let response = engine.store_staged(&request, now);
            session.pipeline.complete(sequence, Completion::Response(&response), now, out);
        }
        Place::Buffer(value) => {
            store.value = Body::Bytes(&value);
            let to = Return { token: *token, sequence };
            let core = engine.config().core;
            if owner != core {
                engine.traffic.forwarded += 1;
                // A node of its own neither needs it nor takes it off again.
                let wanted = engine.coordinator().map_or(Consistency::Configured, |_| consistency);
                let to = mesh::with_consistency(to, wanted);
                return ways.mesh.request(owner, to, &request);
            }
            engine.traffic.local += 1;
            let asker = || asker(core, to);
            let placed = (engine.place(request.key), &request);
            if let Taken::Answered(response) = engine.request(asker, consistency, placed, now, ways)
            {
                session.pipeline.complete(sequence, Completion::Response(&response), now, out);
            }
        }
    }
}

/// An empty buffer's room, if it has any.
pub(super) fn spare(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    (buffer.capacity() > 0).then(|| mem::take(buffer))
}

/// Takes an answer for one of `connections`, if it is still there.
pub(super) fn complete(
    connections: &mut [Slot],
    spare_outputs: &mut Vec<Vec<u8>>,
    dirty: &mut Vec<u32>,
    to: Return,
    response: &Response<'_>,
    now: Instant,
) {
    let Some(slot) = connections.get_mut(to.token.index as usize) else { return };
    if slot.generation != to.token.generation {
        return;
    }
    let Some(connection) = slot.connection.as_deref_mut() else { return };
    connection.out.borrow_room(spare_outputs);
    let completion = Completion::Response(response);
    connection.session.pipeline.complete(to.sequence, completion, now, &mut connection.out);
    if !connection.dirty {
        connection.dirty = true;
        dirty.push(to.token.index);
    }
}
