//! One core's part in the cluster: it answers requests for keys that other nodes hold, or hold too.
//!
//! A request comes here from the core's engine, from a client of this node, or forwarded by
//! another node. A node that is no replica of the key forwards the request to one that is, and that
//! is the only hop. A replica coordinates: it brings its own record up to date by a read quorum
//! where the request depends on what is there, performs the request on its own store, and hands the
//! outcome to the other replicas until a write quorum has it.
//!
//! ```text
//!            no replica -> Forwarded ------------------------------------------> answer
//! request -> replica, range still arriving -> Fetching --.
//!            replica ------------------------------------+-> Reading -> Writing -> answer
//! ```
//!
//! What makes this safe, in the order of the arguments:
//! - Replicas act only on messages stamped with the view they are in themselves, so both sides
//!   agree on who the replicas are.
//! - A node that became a replica through a new view takes part for a key only after it has copied
//!   the key from enough of the former holders, all of which have left the old view for good by
//!   then ([`RangeTransfer`]).
//! - A write is acknowledged by a replica only if it is the newest there. A write that meets a newer
//!   one is retried with a newer version; so an acknowledged write is newer than every one
//!   acknowledged before it, whatever the clocks say.
//! - A write computed from the current record (`incr`, `cas`, `append`, `delete`) is *guarded*:
//!   replicas refuse it when they hold something that its coordinator had not seen.
//!
//! Requests of one connection for one key are performed one after the other (`KeyQueues`).
//!
//! If a link is congested, an operation keeps its request until there is room (`congested`). This
//! does not count as a failure.
//!
//! Nothing here blocks: operations in progress are in a table, replies find them by id, and a check
//! every [`CHECK_EVERY`] resends what was lost, asks further replicas or gives up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::breaker::BreakerState;
use super::governor_notice::GovernorNotice;
use super::hints::{HintCounters, Hints};
use super::hot_keys::{HotKey, HotKeys};
use super::identity::{Boot, NodeKey};
use super::link::{LinkEvent, Peer, PeerBuffer, PeerFacts};
use super::message::{Forward, ForwardOutcome, Message, NodeMessage, OperationId};
use super::peers::{BreakerChange, BreakerCounters, Peers};
use super::promises::Promises;
use super::roster::RosterMember;
use super::store::ReplicaStore;
use super::version::{TieBreaker, Version, VersionClock};
use super::view::{Placement, RangeTransfer, Source, View};
use ringlane_ring::{Point, REPLICAS_MAX};
use ringlane_types::codec;
use ringlane_types::hash::KeyHash;
use ringlane_types::request::Consistency;
use ringlane_types::request::{Request, Response};
use ringlane_types::time::Instant;

mod anti_entropy;
mod completion;
mod congested;
mod key_queue;
mod newest;
mod on_demand_transfer;
mod operation;
mod range_transfer;
mod reading;
mod replica;
mod routing;
mod settings;
#[cfg(test)]
mod tests;
mod writing;

use anti_entropy::AntiEntropy;
use congested::{Congested, Sent};
use key_queue::{KeyQueues, QueueKey};
use operation::{Kind, Operation, Operations, Origin, Replica, Stage, State};
use range_transfer::RangeTransfers;
pub use settings::{CoordinatorCounters, CoordinatorSettings};

/// How often an operation in progress is checked.
pub const CHECK_EVERY: Duration = Duration::from_millis(50);
/// A peer that is silent for this long, or for this part of the operation timeout if that is more,
/// while it owes an answer counts as a failure for its circuit breaker.
const SILENT_AFTER: Duration = Duration::from_secs(1);
const SILENT_PART: u32 = 5;
/// Views remembered, for nodes that are still copying ranges they gained with one of them.
const HISTORY_MAX: usize = 16;
/// Keys remembered as fetched while a range is being copied; beyond that they are fetched again.
const FETCHED_MAX: usize = 1 << 16;

/// Where a client's request came from, to route the answer. Opaque to the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientRef {
    /// The core that has the connection.
    pub core: u32,
    /// The connection.
    pub connection: u32,
    /// Tells it apart from earlier connections of this number.
    pub generation: u32,
    /// The request's place in its pipeline.
    pub sequence: u32,
}

/// What the coordinator needs done outside.
pub trait Effects {
    /// Where messages for `to` are collected; `None` when there is no link. What is written here is
    /// sent, however much is queued: it is for answers, which somebody waits for.
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>>;

    /// Where a request of about `bytes` for `to` is collected. If it does not fit,
    /// [`Coordinator::on_buffer_available`] is called as soon as there is room.
    fn request_buffer(&mut self, to: Peer, _bytes: usize) -> PeerBuffer<'_> {
        self.buffer_for(to).map_or(PeerBuffer::Unlinked, PeerBuffer::Open)
    }

    /// Like `request_buffer`, for a request that `to` is to coordinate.
    fn forward_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        self.request_buffer(to, bytes)
    }

    /// Whether a long answer to `to` should be made now. If not,
    /// [`Coordinator::on_buffer_available`] is called when it should.
    fn takes_long_answer(&mut self, _to: Peer) -> bool {
        true
    }

    /// Answers a client's request.
    fn answer(&mut self, asker: ClientRef, response: &Response<'_>);

    /// Answers a client's request with a response encoded by the codec, which must be complete.
    fn pass_on(&mut self, asker: ClientRef, response: &[u8]) {
        self.answer(asker, &codec::decode_response(response).expect("whole"));
    }

    /// Everything this core gained up to the roster of this epoch has been copied.
    fn ranges_complete(&mut self, epoch: u64);
}

/// The context of a call.
pub struct Turn<'t, S, O> {
    /// The time.
    pub now: Instant,
    /// The core's store.
    pub store: &'t mut S,
    /// The world outside.
    pub effects: &'t mut O,
}

/// One core's part in the cluster.
#[derive(Debug)]
pub struct Coordinator {
    me: NodeKey,
    boot: Boot,
    settings: CoordinatorSettings,
    placement: Option<Placement>,
    /// The latest views; the last one is in effect.
    history: VecDeque<Arc<View>>,
    clock: VersionClock,
    peers: Peers,
    reach: HashMap<NodeKey, Reach, ahash::RandomState>,
    operations: Operations,
    key_queues: KeyQueues,
    congested: Congested,
    /// When operations are to be checked, in order.
    checks: VecDeque<(Instant, OperationId)>,
    hints: Hints,
    /// Keys, by their hash, that were copied from enough former holders while their range is still
    /// being copied.
    fetched: HashSet<u64, ahash::RandomState>,
    /// Guarded writes that no other replica has confirmed, by the hash of their key. One that
    /// nobody has seen can be undone.
    attempts: HashMap<u64, Attempt, ahash::RandomState>,
    promises: Promises,
    hot_keys: HotKeys,
    transfers: RangeTransfers,
    anti_entropy: AntiEntropy,
    counters: CoordinatorCounters,
}

/// How another node can be reached.
#[derive(Clone, Copy, Debug)]
struct Reach {
    facts: PeerFacts,
    /// How many of its cores have a link with this one.
    links: u16,
}

/// A guarded write that only this core is known to hold.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    version: Version,
    /// The first of the chain of unconfirmed writes from which it was computed.
    since: Version,
    /// Somebody has seen it, or computed from it.
    exposed: bool,
}

type Members = ArrayVec<(NodeKey, Boot), REPLICAS_MAX>;

impl Coordinator {
    /// The coordinator of core `settings.core` of the node `me` in `boot`.
    pub fn new(me: NodeKey, boot: Boot, settings: CoordinatorSettings) -> Self {
        assert!(settings.retention.tombstones_outlive_hints(), "a hint would undo a deletion");
        let hasher = || settings.hash_secret.table_hasher();
        Self {
            me,
            boot,
            placement: None,
            history: VecDeque::new(),
            clock: VersionClock::new(TieBreaker::of_slot(0), settings.retention.drift),
            peers: Peers::new(settings.breaker, hasher()),
            reach: HashMap::with_hasher(hasher()),
            operations: Operations::new(settings.operations_max),
            key_queues: KeyQueues::new(hasher()),
            congested: Congested::new(hasher()),
            checks: VecDeque::new(),
            hints: Hints::new(settings.hints),
            fetched: HashSet::with_hasher(hasher()),
            attempts: HashMap::with_hasher(hasher()),
            promises: Promises::default(),
            hot_keys: HotKeys::new(settings.hot_keys, hasher()),
            transfers: RangeTransfers::default(),
            anti_entropy: AntiEntropy::default(),
            counters: CoordinatorCounters::default(),
            settings,
        }
    }

    /// Outcomes of operations since the start.
    pub fn counters(&self) -> CoordinatorCounters {
        self.counters
    }

    /// Outcomes of hints since the start, how many there are, and their bytes.
    pub fn hints(&self) -> (HintCounters, usize, usize) {
        let (count, bytes) = self.hints.size();
        (self.hints.counters(), count, bytes)
    }

    /// The keys of other nodes that are hot here, hottest first.
    pub fn hot_keys(&self) -> Vec<HotKey> {
        self.hot_keys.list()
    }

    /// Operations in progress.
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// Bytes of requests, responses and former values held by operations in progress.
    pub fn operation_bytes(&self) -> usize {
        self.operations.held_bytes()
    }

    /// Bytes of requests that other nodes may forward now. They have a limit of their own, since
    /// requests of this node's clients may be waiting for those that other nodes forward.
    pub fn forward_room(&self) -> usize {
        if self.operations.is_full() {
            return 0;
        }
        self.settings.operation_bytes_max.saturating_sub(self.operations.forwarded_bytes())
    }

    /// How often circuit breakers have opened and closed.
    pub fn breaker_counters(&self) -> BreakerCounters {
        self.peers.counters()
    }

    /// The next circuit breaker that opened or closed, oldest first.
    pub fn next_breaker_change(&mut self) -> Option<BreakerChange> {
        self.peers.next_change()
    }

    /// Whether no request should be started now, because the table of operations is full.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.operations.is_full()
    }

    /// The states of the circuit breakers of the other members, as this core sees them.
    pub fn breakers(&self, now: Instant) -> Vec<(NodeKey, BreakerState)> {
        let members = self.view().map_or(&[][..], |view| view.roster().members());
        let state =
            |member: &RosterMember| Some((member.key, self.peers.breaker(member.key, now)?));
        members.iter().filter_map(state).collect()
    }

    /// The view in effect.
    pub fn view(&self) -> Option<&Arc<View>> {
        self.placement.as_ref().map(|placement| &placement.view)
    }

    /// Where `key` is on the ring. With MD5 this is a tenth of a request's cost here, so it is
    /// computed once and passed on.
    #[inline]
    pub fn point_of(&self, key: &[u8]) -> Point {
        self.settings.ring_hash.point_of(key)
    }

    /// Like [`Coordinator::point_of`] for each of `keys`, but cheaper.
    #[inline]
    pub fn points_of<const N: usize>(&self, keys: &[&[u8]]) -> ArrayVec<Point, N> {
        self.settings.ring_hash.points_of(keys)
    }

    /// Whether this node alone holds the keys at `point`, all of them have been copied, and no
    /// other replica needs to know of a change: the request can be answered from the store at once.
    #[inline]
    pub fn is_sole_replica(&self, point: Point) -> bool {
        let Some(placement) = &self.placement else { return false };
        if self.settings.replication.replicas() != 1 || !placement.transfers.is_empty() {
            return false;
        }
        let view = &placement.view;
        let member = view.member(view.ring().owner(point));
        member.key == self.me && member.boot == self.boot
    }

    /// A version newer than any this core has seen, for a write answered from the store.
    #[inline]
    pub fn next_version(&mut self, now: Instant) -> Version {
        self.clock.next(now)
    }

    /// Handles a client's request, whose key is at `point`. It is answered through `turn.effects`,
    /// now or later.
    pub fn request<S: ReplicaStore, O: Effects>(
        &mut self,
        asker: ClientRef,
        consistency: Consistency,
        point: Point,
        request: &Request<'_>,
        turn: &mut Turn<'_, S, O>,
    ) {
        let bytes = codec::encoded_request_bytes(request);
        if self.holds_too_much(Origin::Client(asker), bytes) {
            self.counters.busy += 1;
            return turn.effects.answer(asker, &Response::Busy);
        }
        let Some((id, mut operation)) = self.operations.begin(self.until(turn.now)) else {
            self.counters.quorum_failures += 1;
            let needed = self.needed(Kind::of(&request.operation), consistency);
            return turn.effects.answer(asker, &Response::QuorumNotReached { needed, reached: 0 });
        };
        operation.origin = Origin::Client(asker);
        operation.consistency = consistency;
        operation.point = point;
        operation.kind = Kind::of(&request.operation);
        operation.key.extend_from_slice(request.key);
        operation.request.resize(bytes, 0);
        // Other nodes hash under their own secrets and must not learn this one's.
        let untold = Request { hash: KeyHash::default(), ..*request };
        codec::encode_request(&untold, &mut operation.request);
        if self.settings.replication.replicas() > 1
            && !self.key_queues.enter(QueueKey::of(asker, self.hash(request.key)), id)
        {
            operation.stage = Stage::Queued;
            return self.operations.keep(id, operation);
        }
        self.begin(id, operation, turn);
        self.begin_queued(turn);
    }

    /// When an operation that starts now is given up.
    fn until(&self, now: Instant) -> Instant {
        now.after(self.settings.retention.operation)
    }

    /// How many replicas must take part in a request.
    fn needed(&self, kind: Kind, consistency: Consistency) -> u8 {
        let replication = self.settings.replication;
        match kind.may_change() {
            true => replication.writes_for(consistency),
            false => replication.reads_for(consistency),
        }
    }

    /// Starts requests that waited for an earlier answer, which has been given. One that has waited
    /// until its deadline ends without an attempt: otherwise each of many requests for one silent
    /// replica would make the next one wait for a whole timeout.
    fn begin_queued<S: ReplicaStore, O: Effects>(&mut self, turn: &mut Turn<'_, S, O>) {
        while let Some(id) = self.key_queues.take_ready() {
            let mut operation = self.operations.take(id).expect("kept until it is its turn");
            if operation.until > turn.now {
                self.begin(id, operation, turn);
            } else {
                operation.needed = self.needed(operation.kind, operation.consistency);
                self.finish_short(id, operation, 0, turn);
            }
        }
    }

    fn begin<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) {
        if let Some(operation) = self.route(id, operation, turn) {
            self.checks.push_back((turn.now.after(CHECK_EVERY), id));
            self.operations.keep(id, operation);
        }
    }

    /// The key whose record will be accessed when the message `bytes` is handled, if that can be
    /// determined quickly.
    #[inline]
    pub fn key_of<'b>(&'b self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        match Message::answered_read(bytes) {
            Some(id) => Some(&self.operations.get(id)?.key),
            None => Message::key_of(bytes),
        }
    }

    /// Handles a message from another node's core. It may be anything.
    pub fn message<S: ReplicaStore, O: Effects>(
        &mut self,
        from: Peer,
        bytes: &[u8],
        turn: &mut Turn<'_, S, O>,
    ) {
        // By reference: moving a message right after writing it field by field would stall on store
        // forwarding.
        if NodeMessage::is_one(bytes) {
            match &NodeMessage::read(bytes) {
                Ok(message) => self.node_message(from, message, turn),
                Err(_) => self.counters.malformed += 1,
            }
        } else {
            match &Message::read(bytes) {
                Ok(message) => self.data_message(from, bytes, message, turn),
                Err(_) => self.counters.malformed += 1,
            }
        }
        self.begin_queued(turn);
    }

    /// Handles what the governor tells all cores of the node.
    pub fn notice<S: ReplicaStore, O: Effects>(
        &mut self,
        notice: GovernorNotice,
        turn: &mut Turn<'_, S, O>,
    ) {
        match notice {
            GovernorNotice::ViewChanged(view) => self.view_changed(view, turn),
            GovernorNotice::Liveness { node, boot, alive } => {
                self.liveness(node, boot, alive, turn)
            }
            GovernorNotice::Rebalanced(epoch) => self.rebalanced(epoch),
            GovernorNotice::Flushed(version) => self.flush(version, turn),
            GovernorNotice::RestartedEmpty(boot) => self.restart_empty(boot, turn),
        }
    }

    /// A new view is in effect. Views come in order, including all earlier ones since this node
    /// joined.
    fn view_changed<S: ReplicaStore, O: Effects>(
        &mut self,
        view: Arc<View>,
        turn: &mut Turn<'_, S, O>,
    ) {
        debug_assert_eq!(view.ring().parameters().hash, self.settings.ring_hash);
        if let Some(member) =
            view.roster().member(self.me).filter(|member| member.boot == self.boot)
        {
            self.clock.set_tie_breaker(TieBreaker::of_slot(member.slot));
        }
        self.history.push_back(view.clone());
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        let before = self.placement.take();
        let mut transfers = Vec::new();
        if let Some(Placement { view: before, transfers: former }) = before {
            transfers = former;
            let sources = vec![Source::Missing; before.roster().members().len()];
            let transfer = RangeTransfer { before, after: view.clone(), sources };
            if transfer.share(self.me, self.boot) > 0.0 {
                transfers.push(Arc::new(transfer));
            }
        }
        self.placement = Some(Placement { view, transfers });
        // Others now copy from here what this node no longer owns.
        self.transfers.stop_sweeping();
        self.anti_entropy.stop();
        self.fetched.clear();
        self.note_gone_sources(turn.now);
        self.finish_transfers(turn);
        self.recheck(|operation| !matches!(operation.stage, Stage::Forwarded(_)), turn);
        self.begin_queued(turn);
    }

    /// Gossip says that this boot of a node is alive, or dead.
    fn liveness<S: ReplicaStore, O: Effects>(
        &mut self,
        node: NodeKey,
        boot: Boot,
        alive: bool,
        turn: &mut Turn<'_, S, O>,
    ) {
        self.peers.liveness(node, boot, alive, turn.now);
        self.note_gone_sources(turn.now);
        self.finish_transfers(turn);
        if !alive {
            self.node_went(node, turn);
            self.begin_queued(turn);
        }
    }

    /// A link was opened or closed.
    pub fn link<S: ReplicaStore, O: Effects>(
        &mut self,
        event: LinkEvent,
        turn: &mut Turn<'_, S, O>,
    ) {
        match event {
            LinkEvent::Up { peer, facts } => {
                let known = self.reach.get(&peer.node).map(|reach| reach.facts);
                if known != Some(facts) {
                    self.reach.insert(peer.node, Reach { facts, links: 0 });
                    if known.is_some() {
                        // Nothing that its former boot was asked will be answered.
                        self.no_room_any_more(|waited_for| waited_for.node == peer.node);
                        self.peers.link(peer.node, false, turn.now);
                        self.node_went(peer.node, turn);
                        self.begin_queued(turn);
                    }
                }
                let reach = self.reach.get_mut(&peer.node).expect("it is there now");
                reach.links += 1;
                self.peers.link(peer.node, true, turn.now);
            }
            LinkEvent::Down { peer, boot } => {
                // Links of a former boot may close after the first of the next one has opened.
                let reach = self.reach.get_mut(&peer.node);
                let Some(reach) = reach.filter(|reach| reach.facts.boot == boot) else { return };
                reach.links = reach.links.saturating_sub(1);
                let left = reach.links;
                self.no_room_any_more(|waited_for| waited_for == peer);
                if left == 0 {
                    self.peers.link(peer.node, false, turn.now);
                }
                self.node_went(peer.node, turn);
                self.begin_queued(turn);
            }
        }
    }

    /// Every live member has all data assigned to it up to the roster of `epoch`: data no longer
    /// assigned to this node may be dropped.
    fn rebalanced(&mut self, epoch: u64) {
        if self.view().is_some_and(|view| view.epoch() == epoch) {
            self.transfers.sweep_from_the_beginning();
        }
    }

    /// This node begins a new boot: its store is empty; its membership and everything in progress
    /// are gone.
    fn restart_empty<S: ReplicaStore, O: Effects>(
        &mut self,
        boot: Boot,
        turn: &mut Turn<'_, S, O>,
    ) {
        turn.store.clear();
        for id in self.operations.ids(|_| true) {
            if let Some(operation) = self.operations.take(id) {
                self.finish_uncertain(id, operation, turn);
            }
        }
        let settings = self.settings.clone();
        let (peers, reach) = (std::mem::take(&mut self.peers), std::mem::take(&mut self.reach));
        let (clock, counters) = (self.clock.clone(), self.counters);
        let operations = std::mem::take(&mut self.operations);
        *self = Self {
            peers,
            reach,
            clock,
            counters,
            operations,
            ..Self::new(self.me, boot, settings)
        };
    }

    /// Everything with a version up to `version` was flushed.
    pub fn flush<S: ReplicaStore, O: Effects>(
        &mut self,
        version: Version,
        turn: &mut Turn<'_, S, O>,
    ) {
        let _ = self.clock.observe(version, turn.now);
        turn.store.flush(version);
        self.hot_keys.forget_all();
        self.operations.keep_no_copies();
    }

    /// Tells every core that has a link with this one that everything with a version up to
    /// `version` was flushed. What this core asks them from now on arrives after that, so nobody
    /// who knows of the flush reads anything older.
    pub fn announce_flush<S: ReplicaStore, O: Effects>(
        &mut self,
        version: Version,
        turn: &mut Turn<'_, S, O>,
    ) {
        for (node, reach) in &self.reach {
            for core in 0..reach.facts.core_count {
                if let Some(out) = turn.effects.buffer_for(Peer { node: *node, core }) {
                    NodeMessage::Flush { version }.write(out);
                }
            }
        }
    }

    /// Does what is due. To be called when the deadline has passed; harmless at any time.
    pub fn tick<S: ReplicaStore, O: Effects>(&mut self, turn: &mut Turn<'_, S, O>) {
        let mut left = self.checks.len();
        while left > 0 && self.checks.front().is_some_and(|(at, _)| *at <= turn.now) {
            left -= 1;
            let (_, id) = self.checks.pop_front().expect("just looked at");
            let Some(operation) = self.operations.take(id) else { continue };
            if let Some(operation) = self.check(id, operation, turn) {
                self.checks.push_back((turn.now.after(CHECK_EVERY), id));
                self.operations.keep(id, operation);
            }
        }
        self.begin_queued(turn);
        self.give_up_sources(turn);
        self.transfer(turn);
        self.sweep(turn);
        self.compare(turn);
        self.hand_over_hints(turn);
    }

    /// When the next [`Coordinator::tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let check = self.checks.front().map(|(at, _)| *at);
        let anti_entropy = self.anti_entropy.next_deadline();
        let anti_entropy = anti_entropy.filter(|_| self.settings.replication.replicas() > 1);
        let hints = self.hints.next_deadline(|node| self.peers.is_present(node));
        [check, anti_entropy, self.transfers.next_deadline(), hints].into_iter().flatten().min()
    }

    /// Checks all operations selected by `concerned`.
    fn recheck<S: ReplicaStore, O: Effects>(
        &mut self,
        concerned: impl Fn(&Operation) -> bool,
        turn: &mut Turn<'_, S, O>,
    ) {
        for id in self.operations.ids(concerned) {
            let Some(operation) = self.operations.take(id) else { continue };
            if let Some(operation) = self.check(id, operation, turn) {
                self.operations.keep(id, operation);
            }
        }
    }

    /// Operations that wait for `node` need not wait any longer.
    fn node_went<S: ReplicaStore, O: Effects>(&mut self, node: NodeKey, turn: &mut Turn<'_, S, O>) {
        let asks = |operation: &Operation| {
            matches!(operation.stage, Stage::Forwarded(to) | Stage::Congested(to) if to.node == node)
                || operation
                    .replicas
                    .iter()
                    .any(|replica| replica.node == node && matches!(replica.state, State::Asked(_)))
        };
        self.recheck(asks, turn);
    }

    /// Checks an operation in progress. `None` if that ended it.
    fn check<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        mut operation: Box<Operation>,
        turn: &mut Turn<'_, S, O>,
    ) -> Option<Box<Operation>> {
        if operation.stage == Stage::Queued {
            return Some(operation);
        }
        if operation.until <= turn.now {
            return self.give_up(id, operation, turn);
        }
        if let Stage::Forwarded(to) = operation.stage {
            return self.check_forwarded(id, operation, to, turn);
        }
        let stamp = self.view().map_or(0, |view| view.stamp());
        if let Stage::Congested(to) = operation.stage
            && operation.stamp == stamp
            && self.peers.may_be_asked(to.node, turn.now)
        {
            return Some(operation);
        }
        if matches!(operation.stage, Stage::Waiting | Stage::Congested(_))
            || (operation.stamp != stamp && operation.stage != Stage::Writing)
        {
            return self.route(id, operation, turn);
        }
        if operation.stamp != stamp {
            return self.write_under_new_view(id, operation, turn);
        }
        self.look_at_replicas(&mut operation, turn);
        match operation.stage {
            Stage::Fetching => self.fetch(id, operation, turn),
            Stage::Reading => self.read(id, operation, true, turn),
            _ => self.write(id, operation, turn),
        }
    }

    /// Sends a short `message` for the operation `id` to the core of `node` that owns `key`.
    fn send<S: ReplicaStore, O: Effects>(
        &mut self,
        id: OperationId,
        node: NodeKey,
        key: &[u8],
        message: &Message<'_>,
        turn: &mut Turn<'_, S, O>,
    ) -> Sent {
        let Some(to) = self.peer(node, key) else { return Sent::No };
        match turn.effects.request_buffer(to, 0) {
            PeerBuffer::Open(out) => {
                message.write(out);
                Sent::Yes
            }
            PeerBuffer::Full => {
                self.wait_for_room(to, id);
                Sent::Later
            }
            PeerBuffer::Unlinked => Sent::No,
        }
    }

    /// The core of `node` that owns `key`.
    #[inline]
    fn peer(&self, node: NodeKey, key: &[u8]) -> Option<Peer> {
        let reach = self.reach.get(&node)?;
        Some(Peer { node, core: reach.facts.core_of(key) })
    }

    /// Whether this boot of a node can be reached, whatever its circuit breaker says.
    fn is_present(&self, node: NodeKey, boot: Boot) -> bool {
        self.peers.is_present(node)
            && self.reach.get(&node).is_some_and(|reach| reach.facts.boot == boot)
    }

    /// The hash of `key` as used by this node's shards.
    fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash::of(key, &self.settings.hash_secret)
    }
}
