//! Deferred requests of a connection: reads whose value exceeds the current allowance, and requests
//! that must not overtake them.

use super::perform::Demand;
use super::{BoundedOutput, Engine, Outbox, Session, write_answer};
use ringlane_protocol::pipeline::{
    ALLOWANCE_BYTES_MIN, Allowed, Claim, Completion, Deferred, Pipeline,
};
use ringlane_protocol::{Output, Reply};
use ringlane_types::codec;
use ringlane_types::request::{Allowance, ItemRef, Operation, Request, Response, Value};
use ringlane_types::time::Instant;

/// Longest value that is copied to wait behind unanswered requests. A longer one of this core is
/// read when its answer is due, so that it need not be copied at all.
pub(super) const COPIED_BYTES_MAX: u32 = (8 << 10) - 1;

/// Number of keys of this core whose replicas are determined at a time.
const LOOKED_UP_MAX: u32 = 32;

/// Longest value that is copied if its answer is due but no item may be pinned because slow readers
/// have too many pinned. A longer one waits for them.
const COPIED_UNPINNED_BYTES_MAX: u32 = 64 << 10;

/// Why requests remain deferred after [`Engine::resume`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// No reason, or answers and sends of the connection itself.
    Connection,
    /// Lack of connection memory.
    Room,
    /// Other cores, which are busy.
    Others,
}

impl Engine {
    /// Adds a request answered by another core or node to the pipeline, and sets its allowance if
    /// it is a read. The returned number identifies it to [`Pipeline::complete`].
    #[inline]
    pub(super) fn wait(
        &self,
        request: &mut Request<'_>,
        reply: &Reply<'_>,
        pipeline: &mut Pipeline,
        outbox: &mut impl Outbox,
    ) -> u32 {
        let changes = request.operation.may_change();
        let Operation::Get(get) = &mut request.operation else { return pipeline.reserve(reply) };
        let bytes_max = self.pipeline_bytes_max(outbox);
        let allowed = pipeline.allowance(bytes_max, |bytes, claim| outbox.reserve(bytes, claim));
        if allowed.bytes >= self.config.shard.item_bytes_max {
            return pipeline.reserve_allowed(reply, allowed);
        }
        get.allowance = Allowance(allowed.bytes);
        pipeline.reserve_limited(reply, allowed, (request.hash, changes))
    }

    /// Executes a request for a key with this node as the sole replica, whose answer cannot be
    /// written at once, or not directly from the item.
    #[inline(never)]
    pub(super) fn perform_limited(
        &mut self,
        request: &Request<'_>,
        reply: &Reply<'_>,
        pipeline: &mut Pipeline,
        now: Instant,
        out: &mut impl BoundedOutput,
    ) {
        let limited = request.with_allowance(Allowance(COPIED_BYTES_MAX));
        self.perform_alone(&limited, now, |response| match response {
            Response::OverAllowance { value_bytes, .. } => {
                defer(request, reply, Some(*value_bytes), pipeline);
            }
            response => write_answer(reply, response, pipeline, now, out),
        });
        self.pin_written(out);
    }

    /// Issues deferred requests as far as there is room for their answers: those of other cores and
    /// nodes are sent, those of this one executed when they are due. Call it whenever something
    /// arrived for the connection or was sent, and when a resource it waits for is available.
    pub fn resume(
        &mut self,
        session: &mut Session,
        now: Instant,
        out: &mut impl BoundedOutput,
        outbox: &mut impl Outbox,
    ) -> Awaited {
        let pipeline = &mut session.pipeline;
        let mut from = 0;
        let mut left = LOOKED_UP_MAX;
        while let Some(position) = pipeline.next_deferred(from) {
            if out.is_full() {
                break;
            }
            let deferred = pipeline.deferred(position);
            let request = codec::decode_request(&deferred.request).expect("encoded by a core");
            if pipeline.is_behind(position) {
                from = position + 1;
                continue;
            }
            let owner = self.owner(&request);
            let mut point = None;
            if owner == self.config.core && self.cluster_part.is_some() {
                if left == 0 {
                    break;
                }
                left -= 1;
                point = self.point(request.key).filter(|at| !self.is_sole_replica(at));
            }
            let is_read = matches!(request.operation, Operation::Get(_));
            let is_due = position == 0 || deferred.form().may_overtake();
            let in_place = owner == self.config.core && point.is_none();
            if in_place && !is_due {
                from = position + 1;
                continue;
            }
            if in_place {
                let is_modest =
                    deferred.value_bytes.is_some_and(|bytes| bytes <= COPIED_UNPINNED_BYTES_MAX);
                if is_read && !is_modest && !self.shard.may_pin() {
                    return Awaited::Room;
                }
                let (sequence, deferred) = pipeline.undefer(position, Allowed::default(), false);
                self.perform_deferred(sequence, &deferred, pipeline, now, out);
                from = 0;
                continue;
            }
            if outbox.is_full() || (point.is_some() && self.is_saturated()) {
                return Awaited::Others;
            }
            let mut allowed = Allowed::default();
            if is_read {
                let bytes_max = self.pipeline_bytes_max(outbox);
                let known = deferred.value_bytes.map(|bytes| bytes as usize);
                let bytes = known.unwrap_or_else(|| pipeline.usual_allowance(bytes_max));
                if !pipeline.may_have(position, bytes, bytes_max) {
                    break;
                }
                allowed.alone = position == 0;
                allowed.bytes = bytes.max(ALLOWANCE_BYTES_MIN) as u32;
                if bytes > ALLOWANCE_BYTES_MIN {
                    if !outbox.reserve(bytes, Claim::Known) {
                        return Awaited::Room;
                    }
                    allowed.reserved = bytes as u32;
                }
            }
            let limited = is_read && allowed.bytes < self.config.shard.item_bytes_max;
            let (sequence, deferred) = pipeline.undefer(position, allowed, limited);
            let request = codec::decode_request(&deferred.request).expect("decoded above");
            let allowance = if limited { Allowance(allowed.bytes) } else { Allowance::FULL };
            let consistency = deferred.form().consistency();
            let request = &request.with_allowance(allowance);
            from = position + 1;
            match point {
                None => outbox.send(owner, sequence, consistency, request),
                Some(point) => {
                    let asker = outbox.asker(sequence);
                    let demand = Demand { request, consistency, point };
                    self.ask_replicas(asker, demand, now, outbox);
                }
            }
        }
        Awaited::Connection
    }

    /// Executes a deferred request for a key with this node as the sole replica, whose answer is
    /// due.
    fn perform_deferred(
        &mut self,
        sequence: u32,
        deferred: &Deferred,
        pipeline: &mut Pipeline,
        now: Instant,
        out: &mut impl BoundedOutput,
    ) {
        let request = codec::decode_request(&deferred.request).expect("encoded by this core");
        let request = &request.with_allowance(Allowance::FULL);
        let may_pin = self.shard.may_pin();
        self.perform_alone(request, now, |response| {
            let completion = Completion::Response(response);
            if may_pin {
                pipeline.complete(sequence, completion, now, out);
            } else {
                pipeline.complete(sequence, completion, now, &mut Copied(out));
            }
        });
        self.pin_written(out);
    }
}

/// An output that copies all values.
struct Copied<'o, O>(&'o mut O);

impl<O: Output> Output for Copied<'_, O> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.bytes(bytes);
    }

    fn value(&mut self, value: &Value<'_>, _item: Option<ItemRef>) {
        self.0.value(value, None);
    }
}

/// Defers a request: a read whose value has `value_bytes` bytes, or one whose order matters.
#[cold]
pub(super) fn defer(
    request: &Request<'_>,
    reply: &Reply<'_>,
    value_bytes: Option<u32>,
    pipeline: &mut Pipeline,
) {
    let mut message = vec![0; codec::encoded_request_bytes(request)];
    codec::encode_request(request, &mut message);
    let changes = request.operation.may_change();
    pipeline.defer(reply, (request.hash, changes), value_bytes, message);
}
