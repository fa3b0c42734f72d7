//! Uploads: long values received in pieces, and their destinations.
//!
//! A value for this core's shard is received into its item, once memory for all of it is allocated,
//! which may take several turns. One for another core, or in a cluster, is collected in a buffer
//! that grows as its bytes arrive and counts against connection memory. When that is used up, a
//! stalled upload is refused in favour of one that makes progress; if there is none, the latter is
//! refused. Either is refused as if its core had no memory: the rest of it is dropped, and the
//! store is executed as refused, so that the old value is removed where a refusal removes it.

use std::collections::VecDeque;
use std::time::Duration;

use super::connection::{BodyTarget, Connection, StreamingBody};
use super::connection_memory::UNCOUNTED_BYTES;
use super::core_state::{CoreState, Outbound, Slot, assert_spans_free};
use super::mesh::{self, ReplyTo};
use super::net_ring::Token;
use crate::codec;
use crate::engine::Engine;
use crate::protocol::Reply;
use crate::protocol::pipeline::Completion;
use crate::request::Consistency;
use crate::request::{Body, Operation, Request};
use crate::server::core_state::asker;
use crate::shard::Staging;
use crate::time::Instant;

/// Prepares for a long value that follows: see [`make_room`].
pub fn begin(
    engine: &Engine,
    connection: &mut Connection,
    request: &Request<'_>,
    reply: &Reply<'_>,
    (value_bytes, trailer_bytes): (u32, u8),
) {
    let Operation::Store(store) = &request.operation else {
        unreachable!("only stores have a body");
    };
    let sequence = connection.session.pipeline.reserve(reply);
    // In a cluster a value may belong elsewhere, so it is not received into the shard.
    let target = if engine.owner(request) == engine.config().core && engine.coordinator().is_none()
    {
        let key_bytes = request.key.len();
        BodyTarget::Awaited(Staging::new(key_bytes, store.flags, store.deadline, value_bytes))
    } else {
        BodyTarget::Buffer(Vec::new())
    };
    let mut head = vec![0; codec::encoded_request_bytes(request)];
    codec::encode_request(request, &mut head);
    connection.streaming = Some(Box::new(StreamingBody {
        request: head,
        sequence,
        target,
        arrived: 0,
        value_bytes: value_bytes as usize,
        trailer: Vec::new(),
        trailer_bytes: trailer_bytes as usize,
        consistency: reply.form.consistency(),
    }));
}

/// Allocates memory for the incoming value in this core's shard, if it still needs some, with at
/// most `budget` items' worth of work, which is deducted. False if that was not enough.
pub fn make_room(
    engine: &mut Engine,
    connection: &mut Connection,
    budget: &mut u32,
    now: Instant,
) -> bool {
    let Some(streaming) = &mut connection.streaming else { return true };
    let BodyTarget::Awaited(staging) = &mut streaming.target else { return true };
    if *budget == 0 {
        return false;
    }
    let before = engine.shard.work();
    let made = engine.shard.make_room(staging, *budget, now);
    *budget = budget.saturating_sub(1 + engine.shard.work().wrapping_sub(before));
    match made {
        Ok(None) => return false,
        Ok(Some(staged)) => {
            streaming.target =
                BodyTarget::Item(staged, engine.shard.staged_spans(&staged).collect());
        }
        Err(refusal) => {
            let Connection { session, out, streaming, .. } = connection;
            let refused = streaming.take().expect("looked at above");
            let request = codec::decode_request(&refused.request).expect(OWN);
            let response = engine.refuse_stage(&request, refusal, now);
            session.skip = (refused.value_bytes + refused.trailer_bytes) as u64;
            let completion = Completion::Response(&response);
            session.pipeline.complete(refused.sequence, completion, now, out);
        }
    }
    true
}

/// Completes an upload: stores the value here or passes it to its owner.
pub fn finish(
    engine: &mut Engine,
    connection: &mut Connection,
    arrived: StreamingBody,
    now: Instant,
    outbound: &mut Outbound<'_>,
) {
    let Connection { session, out, .. } = connection;
    let StreamingBody { sequence, trailer, target, .. } = &arrived;
    if !session.decoder.trailer_is_valid(trailer) {
        if let BodyTarget::Item(staged, spans) = target {
            assert_spans_free(engine, spans);
            engine.shard.discard(*staged);
        }
        session.pipeline.complete(*sequence, Completion::BadDataChunk, now, out);
        return;
    }
    match &arrived.target {
        BodyTarget::Item(staged, spans) => {
            assert_spans_free(engine, spans);
            let mut request = codec::decode_request(&arrived.request).expect(OWN);
            let Operation::Store(store) = &mut request.operation else { unreachable!("{OWN}") };
            store.value = Body::Staged(*staged);
            engine.store_staged(&request, now, |response| {
                session.pipeline.complete(*sequence, Completion::Response(response), now, out);
            });
        }
        BodyTarget::Awaited(_) => unreachable!("nothing arrives before there is room for it"),
        BodyTarget::Buffer(value) => {
            hand_over(engine, connection, &arrived, Body::Bytes(value), now, outbound);
        }
    }
}

const OWN: &str = "a store, encoded by this core";

/// An upload without progress for this long is refused in favour of others.
const STANDING_AFTER: Duration = Duration::from_millis(100);
/// Maximum uploads examined to find a stalled one.
const LOOKS_MAX: usize = 16;

/// Uploads collected in buffers, in the order in which they were last examined. Some entries are
/// stale.
#[derive(Default)]
pub struct Uploads(VecDeque<Upload>);

/// One of them.
struct Upload {
    token: Token,
    sequence: u32,
}

impl Uploads {
    /// Lists a new upload, if it is collected in a buffer.
    pub fn note(&mut self, index: u32, connections: &[Slot]) {
        let connection = connections[index as usize].connection.as_deref().expect("it is open");
        let Some(streaming) = &connection.streaming else { return };
        if let BodyTarget::Buffer(_) = streaming.target {
            // More are removed than added, so that the list stays as short as the active uploads.
            for _ in 0..2 {
                let Some(upload) = self.0.pop_front() else { break };
                if upload.find(connections).is_some() {
                    self.0.push_back(upload);
                }
            }
            let (token, sequence) = (connection.token, streaming.sequence);
            self.0.push_back(Upload { token, sequence });
        }
    }
}

impl Upload {
    /// Its connection, if the upload is still active.
    fn find<'c>(&self, connections: &'c [Slot]) -> Option<&'c Connection> {
        let slot = &connections[self.token.index as usize];
        let connection = slot.connection.as_deref()?;
        let streaming = connection.streaming.as_deref()?;
        let same = (connection.token, streaming.sequence) == (self.token, self.sequence);
        (same && !connection.broken).then_some(connection)
    }
}

impl CoreState {
    /// Ensures that a connection may hold `more` bytes, most of them of its upload, or refuses the
    /// upload.
    pub(super) fn admit_upload(&mut self, index: u32, more: usize, outbound: &mut Outbound<'_>) {
        let connection = self.connection_at(index);
        let Some(streaming) = &connection.streaming else { return };
        let whole = streaming.value_bytes;
        if !is_counted(streaming, more)
            || self.memory.admits_upload(index, more, whole)
            || (self.refuse_standing(Some(index), more, outbound) >= more
                && self.memory.admits_upload(index, more, whole))
        {
            return;
        }
        self.refuse_upload(index, outbound);
    }

    /// Refuses stalled uploads until they have released `bytes` bytes, as far as one check reaches.
    /// Returns the number of released bytes.
    pub(super) fn refuse_standing(
        &mut self,
        but: Option<u32>,
        bytes: usize,
        outbound: &mut Outbound<'_>,
    ) -> usize {
        let mut freed = 0;
        for _ in 0..self.uploads.0.len().min(LOOKS_MAX) {
            if freed >= bytes {
                break;
            }
            let upload = self.uploads.0.pop_front().expect("counted above");
            let Some(connection) = upload.find(&self.connections) else { continue };
            let index = upload.token.index;
            let stands = self.now.since(connection.last_active) >= STANDING_AFTER;
            if stands && but != Some(index) {
                let held = connection.charge.held();
                self.refuse_upload(index, outbound);
                freed += held - self.connection_at(index).charge.held();
                continue;
            }
            self.uploads.0.push_back(upload);
        }
        freed
    }

    /// Refuses an upload for lack of memory: drops received and future bytes of it, and executes
    /// the store as refused.
    fn refuse_upload(&mut self, index: u32, outbound: &mut Outbound<'_>) {
        let Self { engine, connections, counters, memory, now, .. } = self;
        let connection = connections[index as usize].connection.as_deref_mut();
        let connection = connection.expect("values arrive at open connections");
        let streaming = connection.streaming.take().expect("a value is arriving");
        counters.uploads_refused += 1;
        connection.out.ensure_buffer(&mut self.spare_outputs);
        refuse(engine, connection, &streaming, *now, outbound);
        drop(streaming);
        let (held, reserved) =
            (connection.bytes_held(), connection.session.pipeline.bytes_reserved());
        memory.settle(index, &mut connection.charge, held, reserved);
        self.mark_dirty(index);
    }
}

/// Whether `more` bytes, most of them of the value, exceed the uncounted allowance of a connection
/// whose upload is collected in a buffer.
fn is_counted(streaming: &StreamingBody, more: usize) -> bool {
    match &streaming.target {
        BodyTarget::Buffer(buffer) => {
            buffer.len() + more > UNCOUNTED_BYTES && !streaming.is_complete()
        }
        BodyTarget::Awaited(_) | BodyTarget::Item(..) => false,
    }
}

fn refuse(
    engine: &mut Engine,
    connection: &mut Connection,
    streaming: &StreamingBody,
    now: Instant,
    outbound: &mut Outbound<'_>,
) {
    let StreamingBody { value_bytes, arrived, trailer, trailer_bytes, .. } = streaming;
    let left = value_bytes - arrived + trailer_bytes - trailer.len();
    connection.session.skip = left as u64;
    let refused = Body::Refused(*value_bytes as u64);
    hand_over(engine, connection, streaming, refused, now, outbound);
}

/// Passes a store to the core or node that executes it.
fn hand_over(
    engine: &mut Engine,
    connection: &mut Connection,
    arrived: &StreamingBody,
    value: Body<'_>,
    now: Instant,
    outbound: &mut Outbound<'_>,
) {
    let Connection { session, out, token, .. } = connection;
    let StreamingBody { request, sequence, consistency, .. } = arrived;
    let mut request = codec::decode_request(request).expect(OWN);
    let Operation::Store(store) = &mut request.operation else { unreachable!("{OWN}") };
    store.value = value;
    let (owner, core) = (engine.owner(&request), engine.config().core);
    let to = ReplyTo { token: *token, sequence: *sequence };
    if owner != core {
        engine.traffic.forwarded += 1;
        // A standalone node does not strip it.
        let wanted = engine.coordinator().map_or(Consistency::Configured, |_| *consistency);
        let to = mesh::with_consistency(to, wanted);
        return outbound.mesh.request(owner, to, &request);
    }
    engine.traffic.local += 1;
    let asker = || asker(core, to);
    let placed = (engine.point(request.key), &request);
    engine.perform(asker, *consistency, placed, now, outbound, |response| {
        session.pipeline.complete(*sequence, Completion::Response(response), now, out);
    });
}
