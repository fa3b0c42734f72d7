//! The engine in cluster mode: which requests its own shard answers at once, and which go to the
//! core's coordinator.
//!
//! A key whose sole replica is this node is answered in place, as on a standalone node, except for
//! the version, which the cluster assigns. Everything else goes to the coordinator and is answered
//! later. Later answers are collected, so that the owner of the connections can distribute them
//! while nothing of the engine is borrowed.

use arrayvec::ArrayVec;

use super::perform::Demand;
use super::store::{ShardStore, enable_tombstones};
use super::{BATCH, Engine, Finishing, count_prefix};
use crate::prefixes::PrefixCounters;
use ringlane_cluster::coordinator::{ClientRef, Coordinator, Effects, Turn};
use ringlane_cluster::link::{Peer, PeerBuffer};
use ringlane_cluster::message::Messages;
use ringlane_cluster::record::RetentionTimes;
use ringlane_cluster::version::Version;
use ringlane_ring::Point;
use ringlane_shard::Shard;
use ringlane_types::codec;
use ringlane_types::request::{Request, Response};
use ringlane_types::time::Instant;

/// Capacity that the collected answers may retain between uses.
const ANSWER_BYTES_KEPT: usize = 256 << 10;

/// Collects messages for other nodes. [`Effects`] documents each method.
pub trait PeerOutbox {
    /// The buffer for messages to `to`; `None` without a link.
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>>;

    /// The buffer for a request of about `bytes` to `to`, if it fits.
    fn request_buffer(&mut self, to: Peer, _bytes: usize) -> PeerBuffer<'_> {
        self.buffer_for(to).map_or(PeerBuffer::Unlinked, PeerBuffer::Open)
    }

    /// Like `request_buffer`, for a request that `to` is to coordinate.
    fn forward_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        self.request_buffer(to, bytes)
    }

    /// Whether a long answer to `to` can be built now.
    fn takes_long_answer(&mut self, _to: Peer) -> bool {
        true
    }
}

/// No links at all.
pub struct NoPeers;

impl PeerOutbox for NoPeers {
    fn buffer_for(&mut self, _to: Peer) -> Option<&mut Vec<u8>> {
        None
    }
}

/// The additional state of an engine in cluster mode.
pub(super) struct ClusterPart {
    coordinator: Coordinator,
    answers: Answers,
    /// When a cluster-wide flush is due.
    flush_at: Option<Instant>,
    /// The version up to which everything was flushed here, of which other nodes' cores must be
    /// notified before any further request.
    unannounced: Option<Version>,
    /// The same, for the node's governor, which ensures that every node hears of it.
    unreported: Option<Version>,
}

/// Outgoing answers, as encoded by the codec.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    list: Vec<(ClientRef, usize)>,
    settled: Option<u64>,
}

/// The environment of one core's coordinator during one call.
pub struct TurnEffects<'h, L: ?Sized> {
    links: &'h mut L,
    answers: &'h mut Answers,
}

impl<L: PeerOutbox + ?Sized> Effects for TurnEffects<'_, L> {
    #[inline]
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        self.links.buffer_for(to)
    }

    #[inline]
    fn request_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        self.links.request_buffer(to, bytes)
    }

    #[inline]
    fn forward_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        self.links.forward_buffer(to, bytes)
    }

    #[inline]
    fn takes_long_answer(&mut self, to: Peer) -> bool {
        self.links.takes_long_answer(to)
    }

    fn answer(&mut self, asker: ClientRef, response: &Response<'_>) {
        let start = self.answers.bytes.len();
        let bytes = codec::encoded_response_bytes(response);
        self.answers.bytes.resize(start + bytes, 0);
        codec::encode_response(response, &mut self.answers.bytes[start..]);
        self.answers.list.push((asker, bytes));
    }

    #[inline]
    fn pass_on(&mut self, asker: ClientRef, response: &[u8]) {
        self.answers.bytes.extend_from_slice(response);
        self.answers.list.push((asker, response.len()));
    }

    fn ranges_complete(&mut self, epoch: u64) {
        self.answers.settled = Some(epoch);
    }
}

impl ClusterPart {
    /// Whether this node is the sole replica of `point`.
    #[inline]
    pub(super) fn is_sole_replica(&self, point: Point) -> bool {
        self.coordinator.is_sole_replica(point)
    }

    /// Executes a request for a key with this node as the sole replica, under a version assigned by
    /// the cluster.
    #[inline(never)]
    pub(super) fn execute<'s>(
        &mut self,
        shard: &'s mut Shard,
        request: &Request<'_>,
        now: Instant,
    ) -> Response<'s> {
        let version = match request.operation.may_change() {
            true => self.coordinator.next_version(now),
            false => Version::NONE,
        };
        ShardStore::new(shard).execute_local(request, version, now)
    }
}

impl Engine {
    /// Puts this engine into cluster mode. Its shard must be empty.
    pub fn join_cluster(&mut self, coordinator: Coordinator, retention: &RetentionTimes) {
        enable_tombstones(&mut self.shard, retention);
        self.cluster_part = Some(Box::new(ClusterPart {
            coordinator,
            answers: Answers::default(),
            flush_at: None,
            unannounced: None,
            unreported: None,
        }));
    }

    /// The coordinator, for views.
    pub fn coordinator(&self) -> Option<&Coordinator> {
        self.cluster_part.as_ref().map(|cluster_part| &cluster_part.coordinator)
    }

    /// The ring position of `key`, if there is a ring.
    #[inline]
    pub fn point(&self, key: &[u8]) -> Option<Point> {
        Some(self.coordinator()?.point_of(key))
    }

    /// The ring positions of `keys`, like [`Engine::point`] but cheaper. `None` on a standalone
    /// node.
    #[inline]
    pub fn points<const N: usize>(&self, keys: &[&[u8]]) -> ArrayVec<Point, N> {
        self.coordinator().map_or_else(ArrayVec::new, |coordinator| coordinator.points_of(keys))
    }

    /// Starts a request to the replicas of a key, possibly including this node. The answer will be
    /// among [`Engine::take_answers`].
    #[inline(never)]
    pub(super) fn ask_replicas(
        &mut self,
        asker: ClientRef,
        Demand { request, consistency, point }: Demand<'_, '_>,
        now: Instant,
        links: &mut (impl PeerOutbox + ?Sized),
    ) {
        let cluster_part = self.cluster_part.as_mut().expect("there is a ring");
        let ClusterPart { coordinator, answers, unannounced, .. } = &mut **cluster_part;
        if let Some(prefixes) = &mut self.finishing.prefixes {
            // A hit is counted once it is known to be one.
            count_prefix(prefixes, request, &Response::Miss);
        }
        let mut store = ShardStore::new(&mut self.shard);
        let mut effects = TurnEffects { links, answers };
        let mut turn = Turn { now, store: &mut store, effects: &mut effects };
        if let Some(version) = unannounced.take() {
            coordinator.announce_flush(version, &mut turn);
        }
        coordinator.request(asker, consistency, point, request, &mut turn);
    }

    /// Whether no further requests should be started, because too many are in flight.
    #[inline]
    pub fn is_saturated(&self) -> bool {
        self.cluster_part.as_ref().is_some_and(|cluster_part| cluster_part.coordinator.is_full())
    }

    /// Bytes of requests that other nodes may forward now, for this core to coordinate.
    pub fn forward_room(&self) -> usize {
        self.coordinator().map_or(0, Coordinator::forward_room)
    }

    /// A client flushes everything at `at`, on all nodes: here at once if that is not in the
    /// future. A later flush replaces a pending one.
    pub fn flush_everywhere_at(&mut self, at: Instant, now: Instant) {
        self.cluster_part.as_mut().expect("the engine is in cluster mode").flush_at = Some(at);
        self.flush_if_due(now);
    }

    fn flush_if_due(&mut self, now: Instant) {
        let Some(cluster_part) = &mut self.cluster_part else { return };
        if cluster_part.flush_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let version = cluster_part.coordinator.next_version(now);
        (cluster_part.unannounced, cluster_part.unreported) = (Some(version), Some(version));
        self.coordinate(now, &mut NoPeers, |coordinator, turn| coordinator.flush(version, turn));
    }

    /// The version of a cluster-wide flush, if one is due. Flushes it here, and notifies the cores
    /// linked to this one.
    pub fn due_flush(
        &mut self,
        now: Instant,
        links: &mut (impl PeerOutbox + ?Sized),
    ) -> Option<Version> {
        self.flush_if_due(now);
        let cluster_part = self.cluster_part.as_mut()?;
        let unreported = cluster_part.unreported.take();
        if let Some(version) = cluster_part.unannounced.take() {
            self.coordinate(now, links, |coordinator, turn| {
                coordinator.announce_flush(version, turn);
            });
        }
        unreported
    }

    /// When the coordinator next has work.
    pub fn next_deadline(&self) -> Option<Instant> {
        let cluster_part = self.cluster_part.as_ref()?;
        let unreported = cluster_part.unreported.map(|_| Instant::default());
        let due = [cluster_part.coordinator.next_deadline(), cluster_part.flush_at, unreported];
        due.into_iter().flatten().min()
    }

    /// Handles the body of a frame from another node's core; an empty one if a part of a long
    /// message has arrived or been consumed there. While one message is handled, the data of the
    /// next ones is prefetched.
    pub fn frame(
        &mut self,
        from: Peer,
        body: &[u8],
        now: Instant,
        links: &mut (impl PeerOutbox + ?Sized),
    ) {
        if let Some(cluster_part) = &mut self.cluster_part {
            cluster_part.coordinator.heard(from, body.is_empty(), now);
        }
        let mut messages = Messages::new(body).flatten();
        loop {
            let batch: ArrayVec<_, BATCH> = messages.by_ref().take(BATCH).collect();
            if batch.len() > 1 {
                let coordinator = self.coordinator();
                let keys = batch.iter().filter_map(|message| coordinator?.key_of(message));
                let hashes: ArrayVec<_, BATCH> = keys.map(|key| self.shard.hash_key(key)).collect();
                self.prefetch(hashes.iter().copied());
            }
            if batch.is_empty() {
                return;
            }
            self.coordinate(now, links, |coordinator, turn| {
                for message in batch {
                    coordinator.message(from, message, turn);
                }
            });
        }
    }

    /// Passes a notice to the coordinator.
    pub fn coordinate<L: PeerOutbox + ?Sized>(
        &mut self,
        now: Instant,
        links: &mut L,
        call: impl FnOnce(&mut Coordinator, &mut Turn<'_, ShardStore<'_>, TurnEffects<'_, L>>),
    ) {
        let Some(cluster_part) = &mut self.cluster_part else { return };
        let ClusterPart { coordinator, answers, .. } = &mut **cluster_part;
        let mut store = ShardStore::new(&mut self.shard);
        let mut effects = TurnEffects { links, answers };
        call(coordinator, &mut Turn { now, store: &mut store, effects: &mut effects });
    }

    /// Takes the collected answers, and the epoch up to which all data has arrived, if that has
    /// changed.
    pub fn take_answers(&mut self, mut give: impl FnMut(ClientRef, &Response<'_>)) -> Option<u64> {
        let Finishing { hides_cas, prefixes } = &mut self.finishing;
        let answers = &mut self.cluster_part.as_mut()?.answers;
        let mut rest = &answers.bytes[..];
        for (asker, bytes) in answers.list.drain(..) {
            let (response, after) = rest.split_at(bytes);
            rest = after;
            match &mut codec::decode_response(response) {
                Ok(response) => {
                    if *hides_cas {
                        response.hide_cas();
                    }
                    if let Some(prefixes) = prefixes {
                        count_late(prefixes, response);
                    }
                    if asker.core != self.config.core {
                        self.traffic.served += u64::from(response.is_performed());
                    }
                    give(asker, response);
                }
                Err(error) => panic!("written by this core, but {error:?}"),
            }
        }
        answers.bytes.clear();
        answers.bytes.shrink_to(ANSWER_BYTES_KEPT);
        answers.settled.take()
    }

    /// Whether there are collected answers.
    #[inline]
    pub fn has_answers(&self) -> bool {
        self.cluster_part.as_ref().is_some_and(|cluster_part| {
            !cluster_part.answers.list.is_empty() || cluster_part.answers.settled.is_some()
        })
    }
}

/// Counts the outcome, per prefix, of a request that was counted when it arrived.
#[cold]
fn count_late(prefixes: &mut PrefixCounters, response: &Response<'_>) {
    match response {
        Response::Hit(hit) => prefixes.hit(hit.key),
        Response::OverAllowance { request, .. } => {
            if let Ok((key, _)) = codec::decode_key(request) {
                prefixes.put_off(key);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
