//! The state of a core besides its rings: engine, connections, and the lists by which a turn finds
//! connections that need work.
//!
//! It is separate from the rings so that bytes borrowed from the net ring can be processed in
//! place. Input goes through the engine here, answers of other cores come back here, uploads start
//! and end here; the worker performs the resulting sends, receives and sleep.

use std::collections::VecDeque;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bumpalo::Bump;
use slab::Slab;

use super::cluster::links::LinkTable;
use super::commands::{self, PendingCommand};
use super::connection::{BodyTarget, Connection, DEFERRALS_MAX};
use super::connection_memory::{Charge, ConnectionMemory};
use super::listener::Listener;
use super::mesh::{self, Mesh, ReplyTo};
use super::net_ring::{SendBuffer, Token, loans};
use super::node::Node;
use super::poll_policy::PollPolicy;
use super::stalled::Watches;
use super::uploads::{self, Uploads};
use crate::cluster::coordinator::ClientRef;
use crate::cluster::flow::Class;
use crate::cluster::link::{Peer, PeerBuffer};
use crate::engine::cluster as engine;
use crate::engine::{Awaited, BoundedOutput, Engine, Outbox, Stop};
use crate::protocol::pipeline::{Claim, Completion};
use crate::protocol::{Context, Limits};
use crate::request::Consistency;
use crate::request::{Request, Response, Span};
use crate::stats::{ConnectionCounters, ConnectionStats, LinkCounters};
use crate::time::Instant;

/// Quantum of one connection: requests processed before the others get their turn. The cost of one
/// is bounded by the buffer limits; most cost less than a tenth of a microsecond.
const QUANTUM: u32 = 1024;
/// The same once the turn has already processed [`TURN_REQUESTS`].
const QUANTUM_MIN: u32 = 128;
/// Requests after which a turn is long: further requests of connections wait for the next one.
const TURN_REQUESTS: u32 = 4096;
/// Items evicted or moved per turn to make room for long values; each costs about half a
/// microsecond.
const ROOM_PER_TURN: u32 = 512;
/// How many requests a node command counts as, since all cores have to answer it.
const COMMAND_REQUESTS: u32 = 512;
/// How many bytes of input count as one request: of a value, which is copied, and of an incomplete
/// line, which is also scanned.
const VALUE_BYTES_PER_REQUEST: usize = 256;
const LINE_BYTES_PER_REQUEST: usize = 32;
/// Input up to this length is processed even if the turn is already long.
const SHORT_INPUT_BYTES: usize = 12 << 10;
/// A longer line counts as an upload while it arrives.
const LONG_LINE_BYTES: usize = 64 << 10;
/// Capacity that an output buffer may retain between uses.
const OUTPUT_BYTES_KEPT: usize = 64 << 10;
/// Output buffers kept for reuse.
const OUTPUT_BUFFERS_KEPT: usize = 256;

/// A worker without its rings, so that bytes borrowed from the net ring can be processed.
pub(super) struct CoreState {
    pub(super) engine: Engine,
    pub(super) node: Arc<Node>,
    pub(super) limits: Rc<Limits>,
    pub(super) scratch: Rc<Bump>,
    pub(super) connections: Vec<Slot>,
    pub(super) free: Vec<u32>,
    pub(super) open: u32,
    pub(super) now: Instant,
    /// Counters of connection events.
    pub(super) counters: ConnectionCounters,
    /// Node commands in progress that arrived at this core.
    pub(super) pending_commands: Slab<PendingCommand>,
    /// Dumps among them whose client must read first.
    pub(super) dumps_waiting: Vec<u32>,
    /// This core's listeners, for `stats conns`.
    pub(super) listening: Vec<ConnectionStats>,
    pub(super) dirty: Vec<u32>,
    /// Those of them whose answers must wait for the next turn.
    pub(super) postponed: Vec<u32>,
    /// Connections whose answers wait for others of the same batch, still on other cores.
    pub(super) deferred: Vec<u32>,
    /// Those that may be able to continue, because what they waited for is or may be available.
    pub(super) ready: Vec<u32>,
    /// Those waiting for connection memory, in order: first those that hold none themselves, then
    /// the others.
    pub(super) waiting: [VecDeque<u32>; 2],
    /// Those waiting for shard memory for a long value, in order.
    awaiting_items: VecDeque<u32>,
    /// Remaining budget of items to evict or move for them in this turn.
    room_left: u32,
    /// The memory account of the connections.
    pub(super) memory: Rc<ConnectionMemory>,
    /// Tracks stalled holders of it while others need some.
    pub(super) watches: Watches,
    /// Uploads collected in buffers.
    pub(super) uploads: Uploads,
    /// Some of the waiting connections could continue at once, but yielded to others.
    pub(super) has_backlog: bool,
    /// Requests that the turn may still process before it is long.
    turn_left: u32,
    pub(super) starved: Vec<u32>,
    pub(super) spare_outputs: Vec<Vec<u8>>,
    pub(super) poll_policy: PollPolicy,
    /// Bytes held by its links to other nodes at the last heartbeat, and their counters.
    pub(super) link_bytes: usize,
    pub(super) link_counters: LinkCounters,
    /// Completions ignored by its net ring up to the last heartbeat.
    pub(super) stale_completions: u64,
}

/// A slot for a connection.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) connection: Option<Box<Connection>>,
}

impl CoreState {
    /// A core without connections.
    pub(super) fn new(engine: Engine, node: Arc<Node>, listeners: &[Listener]) -> Self {
        let now = node.clock.now();
        Self {
            engine,
            limits: Rc::new(node.config.limits()),
            memory: ConnectionMemory::new(
                (node.config.connection_memory_bytes / node.config.core_count() as u64) as usize,
                node.config.queues.output_bytes_max as usize,
            ),
            node,
            scratch: Rc::new(Bump::new()),
            connections: Vec::new(),
            free: Vec::new(),
            open: 0,
            now,
            link_bytes: 0,
            link_counters: LinkCounters::default(),
            stale_completions: 0,
            counters: ConnectionCounters::default(),
            pending_commands: Slab::new(),
            dumps_waiting: Vec::new(),
            listening: commands::listening(listeners),
            dirty: Vec::new(),
            postponed: Vec::new(),
            deferred: Vec::new(),
            ready: Vec::new(),
            waiting: Default::default(),
            awaiting_items: VecDeque::new(),
            room_left: ROOM_PER_TURN,
            watches: Watches::default(),
            uploads: Uploads::default(),
            has_backlog: false,
            turn_left: TURN_REQUESTS,
            starved: Vec::new(),
            spare_outputs: Vec::new(),
            poll_policy: PollPolicy::default(),
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

    /// Unpins the values of an output that was sent or abandoned, and keeps its buffer.
    pub(super) fn release_output(&mut self, output: SendBuffer) {
        let SendBuffer { mut buffer, pinned } = output;
        if !pinned.is_empty() {
            self.memory.note_freed();
        }
        loans::assert_free(buffer.as_ptr(), buffer.capacity(), "a buffer is used again");
        for part in pinned {
            self.engine.shard.unpin(part.item);
            if cfg!(debug_assertions) && !self.engine.shard.is_pinned(part.item) {
                part.assert_free();
            }
        }
        if buffer.capacity() > 0 && self.spare_outputs.len() < OUTPUT_BUFFERS_KEPT {
            buffer.clear();
            buffer.shrink_to(OUTPUT_BYTES_KEPT);
            self.spare_outputs.push(buffer);
        }
    }

    /// Releases all output that waits for more of its batch.
    pub(super) fn end_deferrals(&mut self) {
        for &index in &self.deferred {
            if let Some(connection) = self.connections[index as usize].connection.as_deref_mut() {
                connection.deferrals = DEFERRALS_MAX;
            }
        }
    }

    /// Starts a turn.
    pub(super) fn begin_turn(&mut self, now: Instant) {
        self.now = now;
        self.turn_left = TURN_REQUESTS;
        self.room_left = ROOM_PER_TURN;
        self.has_backlog = false;
    }

    /// Handles bytes received for a connection.
    pub(super) fn input(&mut self, index: u32, bytes: &[u8], outbound: &mut Outbound<'_>) {
        let connection = self.connections[index as usize].connection.as_deref_mut();
        let connection = connection.expect("input comes for open connections");
        if connection.closing || connection.broken {
            return;
        }
        let is_first = connection.pending.is_empty();
        let can_wait = !is_first || bytes.len() > SHORT_INPUT_BYTES;
        if is_first && !connection.is_stalled() && !(can_wait && self.turn_left == 0) {
            let consumed = self.process(index, bytes, outbound);
            let connection = self.connections[index as usize].connection.as_deref_mut();
            connection.expect("still open").pending.extend(&bytes[consumed..]);
            self.charge_input(index, bytes.len());
        } else {
            // One line may be this long, but many together may not.
            let long = connection.pending.len() + bytes.len() > LONG_LINE_BYTES;
            if long && !connection.is_stalled() && !self.memory.admits(index, bytes.len()) {
                connection.broken = true;
                connection.shut_down();
                self.counters.uploads_refused += 1;
                return self.mark_dirty(index);
            }
            connection.pending.extend(bytes);
            if !connection.is_stalled() {
                if self.turn_left > 0 {
                    self.process_pending(index, outbound);
                    self.charge_input(index, bytes.len());
                } else {
                    connection.held_back = true;
                    self.list(index);
                    self.has_backlog = true;
                }
            }
        }
        self.mark_dirty(index);
    }

    /// Charges input of a connection that does not count as requests to the turn.
    fn charge_input(&mut self, index: u32, bytes: usize) {
        let connection = self.connection_at(index);
        let requests = if connection.streaming.is_some() {
            bytes / VALUE_BYTES_PER_REQUEST
        } else if connection.pending.is_empty() || connection.is_stalled() {
            // It consisted of requests.
            return;
        } else {
            bytes.min(connection.pending.len()) / LINE_BYTES_PER_REQUEST
        };
        self.turn_left = self.turn_left.saturating_sub(requests as u32);
    }

    /// Resumes with buffered input.
    fn process_pending(&mut self, index: u32, outbound: &mut Outbound<'_>) {
        let slot = &mut self.connections[index as usize];
        let Some(connection) = slot.connection.as_deref_mut() else { return };
        let mut pending = mem::take(&mut connection.pending);
        let consumed = self.process(index, pending.bytes(), outbound);
        pending.consume(consumed);
        let connection = self.connections[index as usize].connection.as_deref_mut();
        connection.expect("still open").pending = pending;
        self.mark_dirty(index);
    }

    /// Lists a connection among those to resume, if it has waiting work.
    pub(super) fn list(&mut self, index: u32) {
        let slot = &mut self.connections[index as usize];
        if let Some(connection) = slot.connection.as_deref_mut() {
            list(connection, &mut self.ready);
        }
    }

    /// Resumes connections that can continue, up to the turn's limit; the others come first in the
    /// next one.
    pub(super) fn resume_stalled(&mut self, outbound: &mut Outbound<'_>) {
        // These get their share even if others came first.
        self.turn_left = self.turn_left.max(TURN_REQUESTS / 4);
        if self.memory.is_wanted() {
            self.refuse_standing(None, self.memory.excess(), outbound);
        }
        if self.memory.take_freed() {
            self.admit_waiting(outbound);
        }
        self.make_room(outbound);
        let mut ready = mem::take(&mut self.ready);
        let mut count = 0;
        while let Some(&index) = ready.get(count)
            && self.turn_left > 0
            && !outbound.mesh.is_full()
        {
            self.release(index, outbound);
            count += 1;
        }
        self.has_backlog |= count < ready.len() && !outbound.mesh.is_full();
        // They are followed by those held back again.
        ready.drain(..count);
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    /// Continues allocating shard memory for long values, up to the turn's budget, and resumes
    /// their connections.
    fn make_room(&mut self, outbound: &mut Outbound<'_>) {
        while let Some(&index) = self.awaiting_items.front()
            && self.room_left > 0
        {
            if let Some(connection) = self.connections[index as usize].connection.as_deref_mut()
                && connection.awaits_item
            {
                connection.held_back = false;
                if !connection.is_stalled() {
                    self.process_pending(index, outbound);
                }
                let connection = self.connection_at(index);
                if connection.is_awaiting_item() && !connection.broken {
                    break;
                }
                connection.awaits_item = false;
            }
            self.awaiting_items.pop_front();
        }
        self.has_backlog |= !self.awaiting_items.is_empty();
    }

    /// Whether a connection waits for connection memory.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.iter().any(|queue| !queue.is_empty())
    }

    /// Whether some could continue at once.
    pub(super) fn has_ready(&self) -> bool {
        self.has_backlog
            || !self.ready.is_empty()
            || !self.dirty.is_empty()
            || (self.memory.is_freed() && self.has_waiting())
    }

    /// Resumes connections waiting for connection memory, while there is some.
    fn admit_waiting(&mut self, outbound: &mut Outbound<'_>) {
        while let Some(at) = self.waiting.iter().position(|queue| !queue.is_empty()) {
            let index = self.waiting[at][0];
            let slot = &mut self.connections[index as usize];
            if let Some(connection) = slot.connection.as_deref_mut()
                && connection.waits_for_room
                && !connection.broken
            {
                if self.resume(index, outbound) == Awaited::Room {
                    return;
                }
                self.connection_at(index).waits_for_room = false;
                self.list(index);
                self.mark_dirty(index);
            }
            self.waiting[at].pop_front();
        }
    }

    /// Issues a connection's deferred requests that need not wait any longer.
    fn resume(&mut self, index: u32, outbound: &mut Outbound<'_>) -> Awaited {
        let slot = &mut self.connections[index as usize];
        let connection = slot.connection.as_deref_mut().expect("an open connection goes on");
        connection.out.ensure_buffer(&mut self.spare_outputs);
        let (token, core, memory) = (connection.token, self.engine.config().core, &self.memory);
        let Connection { session, out, charge, .. } = connection;
        let mut outbox = ConnectionOutbox { outbound, token, core, memory, charge };
        self.engine.resume(session, self.now, out, &mut outbox)
    }

    /// The same, and lists the connection for what the rest waits for.
    fn resume_or_wait(&mut self, index: u32, outbound: &mut Outbound<'_>) {
        let awaited = self.resume(index, outbound);
        let connection = self.connection_at(index);
        match awaited {
            Awaited::Connection => {}
            Awaited::Room => {
                if !mem::replace(&mut connection.waits_for_room, true) {
                    let holds = usize::from(connection.charge.held() > 0);
                    self.waiting[holds].push_back(index);
                }
            }
            Awaited::Others => self.list(index),
        }
        self.mark_dirty(index);
    }

    /// Resumes a connection.
    fn release(&mut self, index: u32, outbound: &mut Outbound<'_>) {
        let Some(connection) = self.connections[index as usize].connection.as_deref_mut() else {
            return;
        };
        connection.listed = false;
        if connection.broken {
            return;
        }
        if connection.session.pipeline.has_deferred() && !connection.waits_for_room {
            self.resume_or_wait(index, outbound);
        }
        let connection = self.connection_at(index);
        if !connection.held_back || (connection.sending && connection.out.is_full()) {
            return;
        }
        connection.held_back = false;
        if !connection.is_stalled() {
            let bytes = connection.pending.len().min(LONG_LINE_BYTES);
            self.process_pending(index, outbound);
            self.charge_input(index, bytes);
        }
    }

    /// Answers or forwards the requests in `input`. Returns the number of consumed bytes.
    fn process(&mut self, index: u32, input: &[u8], outbound: &mut Outbound<'_>) -> usize {
        let (limits, scratch) = (self.limits.clone(), self.scratch.clone());
        let secret = self.engine.config().hash_secret.clone();
        let slot = &mut self.connections[index as usize];
        let mut connection = slot.connection.as_deref_mut().expect("input is for open connections");
        connection.out.ensure_buffer(&mut self.spare_outputs);
        let mut at = 0;
        connection.session.quantum = self.turn_left.clamp(QUANTUM_MIN, QUANTUM);
        loop {
            if !uploads::make_room(&mut self.engine, connection, &mut self.room_left, self.now) {
                connection.held_back = true;
                if !mem::replace(&mut connection.awaits_item, true) {
                    self.awaiting_items.push_back(index);
                    self.has_backlog = true;
                }
                return at;
            }
            if connection.streaming.is_some() {
                self.admit_upload(index, input.len() - at, outbound);
                let slot = &mut self.connections[index as usize];
                connection = slot.connection.as_deref_mut().expect("still open");
            }
            if let Some(streaming) = &mut connection.streaming {
                at += streaming.take(&input[at..], self.engine.shard.memory_mut());
                if !streaming.is_complete() {
                    return at;
                }
                let arrived = connection.streaming.take().expect("it is there");
                uploads::finish(&mut self.engine, connection, *arrived, self.now, outbound);
            }
            let context =
                Context { limits: &limits, now: self.now, hash_secret: &secret, scratch: &scratch };
            let (token, core, memory) = (connection.token, self.engine.config().core, &self.memory);
            let Connection { session, out, charge, .. } = connection;
            let quantum = session.quantum;
            let mut outbox = ConnectionOutbox { outbound, token, core, memory, charge };
            let fed = self.engine.feed(session, &input[at..], &context, out, &mut outbox);
            at += fed.consumed;
            let taken = quantum - session.quantum;
            self.turn_left = self.turn_left.saturating_sub(taken);
            let awaits_others = outbound.mesh.is_full() || self.engine.is_saturated();
            match fed.stop {
                Stop::QuantumUsed => {
                    connection.held_back = true;
                    self.list(index);
                    self.has_backlog = true;
                    return at;
                }
                Stop::NeedInput => {
                    self.list_if_deferred(index);
                    return at;
                }
                Stop::HeldBack => {
                    connection.held_back = true;
                    // Its own limits end with an answer or send of this connection.
                    if awaits_others {
                        self.list(index);
                    }
                    self.list_if_deferred(index);
                    return at;
                }
                Stop::StoreHeader { request, reply, value_bytes, trailer_bytes } => {
                    let body = (value_bytes, trailer_bytes);
                    uploads::begin(&self.engine, connection, &request, &reply, body);
                    self.uploads.note(index, &self.connections);
                    connection = self.connections[index as usize]
                        .connection
                        .as_deref_mut()
                        .expect("still open");
                }
                Stop::Admin { command, reply } => {
                    self.turn_left = self.turn_left.saturating_sub(COMMAND_REQUESTS);
                    self.begin_command(index, command, &reply, outbound.mesh);
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

    /// Lists a connection whose oldest request was deferred: no other event may arrive for it.
    fn list_if_deferred(&mut self, index: u32) {
        let connection = self.connection_at(index);
        if connection.session.pipeline.next_deferred(0) == Some(0) && !connection.waits_for_room {
            self.list(index);
            self.has_backlog = true;
        }
    }

    /// Handles an answer of another core.
    pub(super) fn complete(&mut self, to: ReplyTo, response: &Response<'_>) {
        let Self { connections, spare_outputs, dirty, ready, now, .. } = self;
        complete(connections, spare_outputs, (dirty, ready), to, response, *now);
    }

    /// Closes idle connections: those that send nothing, or read none of their answers.
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
        assert!(
            !connection.receiving && !connection.sending && !connection.filling,
            "the kernel has let go of a connection that is removed"
        );
        if let Some(streaming) = connection.streaming {
            match streaming.target {
                BodyTarget::Item(staged, spans) => {
                    assert_spans_free(&self.engine, &spans);
                    self.engine.shard.discard(staged);
                }
                BodyTarget::Awaited(mut staging) => self.engine.shard.abandon(&mut staging),
                BodyTarget::Buffer(_) => {}
            }
        }
        let mut charge = connection.charge;
        self.memory.settle(index, &mut charge, 0, 0);
        self.free.push(index);
        self.open -= 1;
        let core = self.engine.config().core as usize;
        self.node.cores[core].connections.fetch_sub(1, Ordering::Relaxed);
        self.node.dismiss();
    }
}

/// The outgoing paths from this core to other cores and nodes.
pub(super) struct Outbound<'w> {
    pub(super) mesh: &'w mut Mesh,
    pub(super) links: Option<&'w mut LinkTable>,
}

impl engine::PeerOutbox for Outbound<'_> {
    #[inline]
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        self.links.as_mut()?.buffer_for(to)
    }

    #[inline]
    fn request_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        match &mut self.links {
            Some(links) => links.request_buffer(to, Class::Request, bytes),
            None => PeerBuffer::Unlinked,
        }
    }

    #[inline]
    fn forward_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        match &mut self.links {
            Some(links) => links.request_buffer(to, Class::Forward, bytes),
            None => PeerBuffer::Unlinked,
        }
    }

    #[inline]
    fn takes_long_answer(&mut self, to: Peer) -> bool {
        self.links.as_mut().is_none_or(|links| links.takes_long_answer(to))
    }
}

/// Sends a connection's requests to other cores.
struct ConnectionOutbox<'s, 'w> {
    outbound: &'s mut Outbound<'w>,
    token: Token,
    core: u32,
    memory: &'s ConnectionMemory,
    charge: &'s mut Charge,
}

impl engine::PeerOutbox for ConnectionOutbox<'_, '_> {
    #[inline]
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        self.outbound.buffer_for(to)
    }

    #[inline]
    fn request_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        self.outbound.request_buffer(to, bytes)
    }

    #[inline]
    fn forward_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        self.outbound.forward_buffer(to, bytes)
    }

    #[inline]
    fn takes_long_answer(&mut self, to: Peer) -> bool {
        self.outbound.takes_long_answer(to)
    }
}

impl Outbox for ConnectionOutbox<'_, '_> {
    #[inline]
    fn send(&mut self, core: u32, sequence: u32, consistency: Consistency, request: &Request<'_>) {
        let mut to = ReplyTo { token: self.token, sequence };
        // A standalone node does not strip it.
        if self.outbound.links.is_some() {
            to = mesh::with_consistency(to, consistency);
        }
        self.outbound.mesh.request(core, to, request);
    }

    fn asker(&self, sequence: u32) -> ClientRef {
        asker(self.core, ReplyTo { token: self.token, sequence })
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.outbound.mesh.is_full()
    }

    #[inline]
    fn reserve(&mut self, bytes: usize, claim: Claim) -> bool {
        self.memory.reserve(self.token.index, self.charge, bytes, claim)
    }

    #[inline]
    fn restraint(&self) -> u32 {
        self.memory.restraint()
    }
}

/// Identifies a request of core `core` to the coordinator.
pub(super) fn asker(core: u32, to: ReplyTo) -> ClientRef {
    let Token { index, generation } = to.token;
    ClientRef { core, connection: index, generation, sequence: to.sequence }
}

/// Checks, in builds with debug assertions, that no receive into a staged value is in flight.
#[inline(always)]
pub(super) fn assert_spans_free(engine: &Engine, spans: &[Span]) {
    if cfg!(debug_assertions) {
        for span in spans {
            let start = engine.shard.memory()[span.offset as usize..].as_ptr();
            loans::assert_free(start, span.bytes as usize, "a staged value is stored or discarded");
        }
    }
}

/// A spare buffer, if there is one.
pub(super) fn spare(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    (buffer.capacity() > 0).then(|| mem::take(buffer))
}

/// Lists a connection that may be able to continue, if it has waiting work.
#[inline]
fn list(connection: &mut Connection, ready: &mut Vec<u32>) {
    if connection.wants_to_go_on() {
        connection.listed = true;
        ready.push(connection.token.index);
    }
}

/// Handles an answer for one of `connections`, if it is still open.
pub(super) fn complete(
    connections: &mut [Slot],
    spare_outputs: &mut Vec<Vec<u8>>,
    (dirty, ready): (&mut Vec<u32>, &mut Vec<u32>),
    to: ReplyTo,
    response: &Response<'_>,
    now: Instant,
) {
    let Some(slot) = connections.get_mut(to.token.index as usize) else { return };
    if slot.generation != to.token.generation {
        return;
    }
    let Some(connection) = slot.connection.as_deref_mut() else { return };
    connection.out.ensure_buffer(spare_outputs);
    let completion = Completion::Response(response);
    connection.session.pipeline.complete(to.sequence, completion, now, &mut connection.out);
    list(connection, ready);
    if !connection.dirty {
        connection.dirty = true;
        dirty.push(to.token.index);
    }
}
