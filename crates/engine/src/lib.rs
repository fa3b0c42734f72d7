//! The pure engine of one core: takes a connection's bytes, answers requests for its own shard, and
//! routes the rest to the cores that must answer them.
//!
//! Requests are processed in small batches. While a batch is parsed, the index buckets of its keys
//! are prefetched; before it is executed, the items are. Execution then runs strictly in request
//! order, so batching changes the cost but never the answers.
//!
//! The engine owns no socket and no io_uring: answers go to an [`Output`], requests for other cores
//! to an [`Outbox`], and anything it cannot decide is returned as a [`Stop`].

#![deny(missing_docs, unreachable_pub)]

use std::rc::Rc;
use std::time::Duration;

use arrayvec::ArrayVec;

use cluster::PeerOutbox;

use ringlane_cluster::coordinator::ClientRef;
use ringlane_protocol::pipeline::{Claim, Pipeline};
use ringlane_protocol::{AdminCommand, Answer, Context, Decoder, Output, Reply, Step, encode};
use ringlane_shard::ShardConfig;
use ringlane_shard::{Shard, StageRefusal};
use ringlane_types::hash::{HashSecret, KeyHash, core_of};
use ringlane_types::request::Consistency;
use ringlane_types::request::{ItemRef, Operation, Request, Response};
use ringlane_types::time::{Deadline, Instant};

/// Requests parsed and prefetched together. Enough to hide memory latency, few enough that the
/// prefetched lines are still in the first-level cache when they are used.
const BATCH: usize = 24;
/// How many requests an item evicted or moved by a store counts as.
pub const WORK_WEIGHT: u32 = 2;

pub mod cluster;
mod defer;
mod perform;
mod prefixes;
pub mod store;

pub use defer::Awaited;
use defer::defer;
pub use perform::Outcome;
use perform::{CLUSTERED, Demand, STANDALONE};
pub use prefixes::{PREFIX_DELIMITER, PREFIXES_MAX, PrefixCounters};

/// Accepts requests for other cores.
pub trait Outbox: PeerOutbox {
    /// Sends `request` with a consistency to core `core`; its answer comes back under `sequence` to
    /// the connection being fed. Always accepted: one batch may exceed the limit of
    /// [`Outbox::is_full`].
    fn send(&mut self, core: u32, sequence: u32, consistency: Consistency, request: &Request<'_>);

    /// Identifies the client of the request with `sequence`, for answers from other nodes.
    fn asker(&self, sequence: u32) -> ClientRef {
        ClientRef { sequence, ..ClientRef::default() }
    }

    /// Whether connections should hold their input until other cores have taken some requests.
    fn is_full(&self) -> bool;

    /// Reserves `bytes` of connection memory for an answer in transit to this connection. False if
    /// there is not enough.
    #[inline]
    fn reserve(&mut self, _bytes: usize, _claim: Claim) -> bool {
        true
    }

    /// Memory pressure of all connections: the share of each is halved this many times.
    #[inline]
    fn restraint(&self) -> u32 {
        0
    }
}

/// The state of one connection's stream of requests.
#[derive(Debug)]
pub struct Session {
    /// Splits the bytes into requests.
    pub decoder: Decoder,
    /// Answers awaiting other cores.
    pub pipeline: Pipeline,
    /// Input bytes still to be dropped: the data of a refused store.
    pub skip: u64,
    /// Requests that the connection may still issue before others get their turn. The caller resets
    /// it for each turn.
    pub quantum: u32,
}

impl Default for Session {
    /// A new session with an unlimited quantum.
    fn default() -> Self {
        Self {
            decoder: Decoder::default(),
            pipeline: Pipeline::default(),
            skip: 0,
            quantum: u32::MAX,
        }
    }
}

/// Why [`Engine::feed`] returned.
#[derive(Debug)]
pub enum Stop<'b> {
    /// All whole requests have been processed; more input may contain more.
    NeedInput,
    /// Output, pipeline or another core's inbox is at its limit. Feed the rest again once there is
    /// room.
    HeldBack,
    /// [`Session::quantum`] is used up. Feed the rest again after others had their turn.
    QuantumUsed,
    /// A long data block follows; see [`Step::StoreHeader`]. The consumed input ends before it.
    StoreHeader {
        /// The store, its value still empty.
        request: Request<'b>,
        /// How to write its answer.
        reply: Reply<'b>,
        /// Length of the data block.
        value_bytes: u32,
        /// Bytes after the block, to be checked with [`Decoder::trailer_is_valid`].
        trailer_bytes: u8,
    },
    /// A command for the node. All earlier requests of the connection have been answered.
    Admin {
        /// The command.
        command: AdminCommand<'b>,
        /// How to write its answer.
        reply: Reply<'b>,
    },
    /// Close once all answers are sent.
    Close,
}

/// The result of [`Engine::feed`].
#[derive(Debug)]
pub struct Progress<'b> {
    /// Consumed bytes of the input.
    pub consumed: usize,
    /// Why it stopped.
    pub stop: Stop<'b>,
}

/// Settings of an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This core's number, below `core_count`.
    pub core: u32,
    /// Cores of this node.
    pub core_count: u32,
    /// Seed of the public hash, which determines the core of a key; equal on all cores.
    pub hash_seed: u64,
    /// Keys of the secret hash, equal on all cores.
    pub hash_secret: Rc<HashSecret>,
    /// Settings of the shard.
    pub shard: ShardConfig,
    /// TTL of items stored without one.
    pub default_ttl: Option<Duration>,
    /// Maximum unanswered requests of one connection.
    pub pipeline_requests_max: usize,
    /// Maximum bytes of answers that one connection's pipeline may hold and await in total. The
    /// answer to its oldest request comes on top.
    pub pipeline_bytes_max: usize,
}

/// Requests of this core, by where they were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Answered by this core's own shard for its own connections.
    pub local: u64,
    /// Forwarded to other cores.
    pub forwarded: u64,
    /// Answered for other cores.
    pub served: u64,
}

/// The final stage of every answer before it leaves the core that executed its request, for any
/// requester: the one place where options act on answers.
#[derive(Default)]
pub struct Finishing {
    /// Counts by key prefix, once `stats detail` has been on.
    pub prefixes: Option<PrefixCounters>,
    /// Whether clients get 0 for every CAS token.
    pub hides_cas: bool,
}

impl Finishing {
    /// Counts the request and hides parts of its answer that are disabled.
    #[inline]
    pub fn finish(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        if self.hides_cas {
            response.hide_cas();
        }
        if let Some(prefixes) = &mut self.prefixes {
            count_prefix(prefixes, request, response);
        }
    }
}

/// One core's shard, and the routing of its connections' requests to it and the other cores.
pub struct Engine {
    /// The items of this core.
    pub shard: Shard,
    /// Counts of requests by where they were answered.
    pub traffic: Traffic,
    /// The final stage of every answer.
    pub finishing: Finishing,
    config: EngineConfig,
    /// The additional state in cluster mode.
    cluster_part: Option<Box<cluster::ClusterPart>>,
}

impl Engine {
    /// An engine with an empty shard.
    pub fn new(config: EngineConfig) -> Self {
        let secret = config.hash_secret.clone();
        let shard = Shard::new(&config.shard, secret, config.core, config.core_count);
        Self {
            shard,
            traffic: Traffic::default(),
            finishing: Finishing::default(),
            config,
            cluster_part: None,
        }
    }

    /// The settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The core that owns a request's key.
    #[inline]
    pub fn owner(&self, request: &Request<'_>) -> u32 {
        core_of(request.key, self.config.hash_seed, self.config.core_count)
    }

    /// Processes whole requests from `input` until it ends or something stops it, and writes the
    /// answers that are due to `out`.
    #[inline]
    pub fn feed<'b>(
        &mut self,
        session: &mut Session,
        input: &'b [u8],
        context: &Context<'b>,
        out: &mut impl BoundedOutput,
        outbox: &mut impl Outbox,
    ) -> Progress<'b> {
        let mut at = session.skip.min(input.len() as u64) as usize;
        session.skip -= at as u64;
        loop {
            if at == input.len() {
                return Progress { consumed: at, stop: Stop::NeedInput };
            }
            let room = self.pipeline_room(&session.pipeline, outbox).min(session.quantum as usize);
            if room == 0 || out.is_full() || outbox.is_full() {
                let stop = if session.quantum == 0 { Stop::QuantumUsed } else { Stop::HeldBack };
                return Progress { consumed: at, stop };
            }
            let mut batch = Batch::new();
            let beyond = self.parse(session, input, &mut at, room, context, &mut batch);
            let before = self.shard.work();
            // A step other than a request counts as one, whether there is one or not.
            let mut taken = batch.len() as u32 + 1;
            if self.cluster_part.is_none() {
                let pipeline = &mut session.pipeline;
                self.execute::<STANDALONE>(&mut batch, pipeline, context.now, out, outbox);
            } else {
                self.execute_clustered(&mut batch, session, context.now, out, outbox);
            }
            taken += WORK_WEIGHT * self.shard.work().wrapping_sub(before);
            session.quantum = session.quantum.saturating_sub(taken);
            match beyond {
                None => {}
                Some(Step::Request { .. }) => unreachable!("requests go into the batch"),
                Some(Step::Incomplete) => return Progress { consumed: at, stop: Stop::NeedInput },
                Some(Step::Close) => return Progress { consumed: at, stop: Stop::Close },
                Some(Step::Answer { consumed, answer, skip }) => {
                    at += consumed;
                    if let Answer::Bytes(bytes) = answer {
                        self.answer(&mut session.pipeline, out, |out| out.bytes(bytes));
                    }
                    let dropped = skip.min((input.len() - at) as u64);
                    at += dropped as usize;
                    session.skip = skip - dropped;
                }
                Some(Step::Admin { consumed, command, reply }) => {
                    if !session.pipeline.is_empty() {
                        return Progress { consumed: at, stop: Stop::HeldBack };
                    }
                    at += consumed;
                    return Progress { consumed: at, stop: Stop::Admin { command, reply } };
                }
                Some(Step::StoreHeader {
                    consumed,
                    mut request,
                    reply,
                    value_bytes,
                    trailer_bytes,
                }) => {
                    if session.pipeline.conflicts(request.hash, true) {
                        return Progress { consumed: at, stop: Stop::HeldBack };
                    }
                    at += consumed;
                    if let Some(ttl) = self.config.default_ttl {
                        apply_default_ttl(&mut request, context.now, ttl);
                    }
                    let stop = Stop::StoreHeader { request, reply, value_bytes, trailer_bytes };
                    return Progress { consumed: at, stop };
                }
            }
        }
    }

    /// Parses at most `room` requests into `batch` until it is full or a step is not a request;
    /// that step is returned unconsumed. Prefetches the data of the batch.
    #[inline]
    fn parse<'b>(
        &mut self,
        session: &mut Session,
        input: &'b [u8],
        at: &mut usize,
        room: usize,
        context: &Context<'b>,
        batch: &mut Batch<'b>,
    ) -> Option<Step<'b>> {
        let beyond = loop {
            match session.decoder.next(&input[*at..], context) {
                Step::Request { consumed, mut request, reply, skip } => {
                    *at += consumed;
                    if skip > 0 {
                        let dropped = skip.min((input.len() - *at) as u64);
                        *at += dropped as usize;
                        session.skip = skip - dropped;
                    }
                    if let Some(ttl) = self.config.default_ttl {
                        apply_default_ttl(&mut request, context.now, ttl);
                    }
                    let owner = self.owner(&request);
                    if owner == self.config.core {
                        self.shard.prefetch_bucket(request.hash);
                    }
                    batch.push(Asked { request, reply, owner });
                    if batch.is_full() || batch.len() == room || *at == input.len() {
                        break None;
                    }
                }
                step => break Some(step),
            }
        };
        if batch.len() > 1 {
            for Asked { request, owner, .. } in batch.iter() {
                if *owner == self.config.core {
                    self.shard.prefetch_item(request.hash);
                }
            }
        }
        beyond
    }

    #[cold]
    #[inline(never)]
    fn execute_clustered(
        &mut self,
        batch: &mut Batch<'_>,
        session: &mut Session,
        now: Instant,
        out: &mut impl BoundedOutput,
        outbox: &mut impl Outbox,
    ) {
        self.execute::<CLUSTERED>(batch, &mut session.pipeline, now, out, outbox);
    }

    /// Answers the batch's requests in order, or forwards them.
    #[inline]
    fn execute<const IS_CLUSTERED: bool>(
        &mut self,
        batch: &mut Batch<'_>,
        pipeline: &mut Pipeline,
        now: Instant,
        out: &mut impl BoundedOutput,
        outbox: &mut impl Outbox,
    ) {
        let points = if IS_CLUSTERED { self.points_of(batch) } else { ArrayVec::new() };
        let mut points = points.iter();
        for Asked { request, reply, owner } in batch {
            let owner = *owner;
            let is_own = owner == self.config.core;
            let point = if IS_CLUSTERED && is_own { points.next() } else { None };
            let is_here = is_own && point.is_none_or(|point| self.is_sole_replica(point));
            if is_own {
                self.traffic.local += 1;
            } else {
                self.traffic.forwarded += 1;
            }
            if is_here && pipeline.is_empty() && self.shard.may_pin() {
                let answer = |response: &Response<'_>| encode(reply, response, now, out);
                self.perform_here::<IS_CLUSTERED>(request, now, answer);
                self.pin_written(out);
            } else if pipeline.conflicts(request.hash, request.operation.may_change()) {
                defer(request, reply, None, pipeline);
            } else if is_here {
                self.perform_limited(request, reply, pipeline, now, out);
            } else {
                let sequence = self.wait(request, reply, pipeline, outbox);
                let consistency = reply.form.consistency();
                match point {
                    None => outbox.send(owner, sequence, consistency, request),
                    Some(&point) => {
                        let asker = outbox.asker(sequence);
                        let demand = Demand { request, consistency, point };
                        self.ask_replicas(asker, demand, now, outbox);
                    }
                }
            }
        }
    }

    /// Prefetches the data of requests for keys with these hashes: the buckets of all, then their
    /// items.
    #[inline]
    pub fn prefetch(&self, hashes: impl Iterator<Item = KeyHash> + Clone) {
        hashes.clone().for_each(|hash| self.shard.prefetch_bucket(hash));
        hashes.for_each(|hash| self.shard.prefetch_item(hash));
    }

    /// Answers other cores' requests. Calls `answer` once for each, in order; it returns whether to
    /// continue with the next.
    pub fn serve<'b, T: Copy>(
        &mut self,
        requests: &[(T, Request<'b>)],
        now: Instant,
        mut answer: impl FnMut(T, &Response<'_>) -> bool,
    ) {
        self.prefetch(requests.iter().map(|(_, request)| request.hash));
        for (token, request) in requests {
            let (mut is_performed, mut goes_on) = (true, true);
            self.perform_alone(request, now, |response| {
                goes_on = answer(*token, response);
                is_performed = response.is_performed();
            });
            self.traffic.served += u64::from(is_performed);
            if !goes_on {
                break;
            }
        }
    }

    /// Executes a store whose value has been received into its item, for a connection of this core.
    pub fn store_staged(
        &mut self,
        request: &Request<'_>,
        now: Instant,
        answer: impl FnOnce(&Response<'_>),
    ) {
        self.traffic.local += 1;
        self.perform_alone(request, now, answer);
    }

    /// Answers a store whose value could not be staged.
    pub fn refuse_stage(
        &mut self,
        request: &Request<'_>,
        refusal: StageRefusal,
        now: Instant,
    ) -> Response<'_> {
        self.traffic.local += 1;
        let mut response = self.shard.refuse_stage(request, refusal, now);
        self.finishing.finish(request, &mut response);
        response
    }

    /// Pins the items whose values were written by reference.
    #[inline]
    fn pin_written(&mut self, out: &mut impl BoundedOutput) {
        while let Some(item) = out.next_unpinned() {
            self.shard.pin(item);
        }
    }

    /// Writes an answer that needs no shard after all that are still due.
    pub fn answer<O: Output>(
        &self,
        pipeline: &mut Pipeline,
        out: &mut O,
        write: impl FnOnce(&mut dyn Output),
    ) {
        if pipeline.is_empty() { write(out) } else { pipeline.push_ready(|bytes| write(bytes)) }
    }

    /// How many requests the pipeline can accept.
    fn pipeline_room(&self, pipeline: &Pipeline, outbox: &impl Outbox) -> usize {
        if self.is_saturated() {
            return 0;
        }
        let bytes_max = self.pipeline_bytes_max(outbox);
        // A batch can exceed the limits, so batches are small where that is not allowed.
        let restrained = BATCH >> (2 * outbox.restraint()).min(4);
        pipeline.room(self.config.pipeline_requests_max, bytes_max).min(restrained)
    }

    #[inline]
    fn pipeline_bytes_max(&self, outbox: &impl Outbox) -> usize {
        self.config.pipeline_bytes_max >> outbox.restraint()
    }
}

type Batch<'b> = ArrayVec<Asked<'b>, BATCH>;

/// A parsed request.
struct Asked<'b> {
    request: Request<'b>,
    reply: Reply<'b>,
    /// The core that owns the key: its hash is computed only once.
    owner: u32,
}

/// An [`Output`] with a limit.
pub trait BoundedOutput: Output {
    /// True if the connection should write no more answers until some bytes are sent. One batch of
    /// answers may exceed the limit.
    fn is_full(&self) -> bool;

    /// Takes an item whose value was written by reference and that must be pinned before the shard
    /// is used again, until the output has been sent. `None` for outputs that copy.
    #[inline]
    fn next_unpinned(&mut self) -> Option<ItemRef> {
        None
    }
}

/// Writes an answer to `out`, or after all that are still due.
#[inline]
fn write_answer(
    reply: &Reply<'_>,
    response: &Response<'_>,
    pipeline: &mut Pipeline,
    now: Instant,
    out: &mut impl BoundedOutput,
) {
    if pipeline.is_empty() || reply.form.may_overtake() {
        encode(reply, response, now, out);
    } else {
        pipeline.push_ready(|bytes| encode(reply, response, now, bytes));
    }
}

/// Gives an item stored without a TTL the node's default.
fn apply_default_ttl(request: &mut Request<'_>, now: Instant, ttl: Duration) {
    if let Operation::Store(store) = &mut request.operation
        && store.deadline.is_never()
    {
        store.deadline = Deadline::at(now.after(ttl));
    }
}

#[cold]
fn count_prefix(prefixes: &mut PrefixCounters, request: &Request<'_>, response: &Response<'_>) {
    match request.operation {
        Operation::Get(_) if matches!(response, Response::OverAllowance { .. }) => {}
        Operation::Get(_) => prefixes.get(request.key, matches!(response, Response::Hit(_))),
        Operation::Store(_) => prefixes.set(request.key),
        Operation::Delete(_) => prefixes.delete(request.key),
        Operation::Arithmetic(_) => {}
    }
}
