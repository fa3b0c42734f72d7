//! The one path that executes a request for a key of this core, for any requester: a connection of
//! this core, another core, or a connection whose request was deferred.
//!
//! A key whose sole replica is this node, as for all keys on a standalone node, is answered in
//! place. For any other the coordinator asks the replicas, and the answer comes later. The effects
//! of options on answers are applied here ([`Finishing`](crate::Finishing)), or for later answers
//! in [`Engine::take_answers`](crate::Engine::take_answers).

use arrayvec::ArrayVec;

use crate::cluster::PeerOutbox;
use crate::{BATCH, Batch, Engine};
use ringlane_cluster::coordinator::ClientRef;
use ringlane_ring::Point;
use ringlane_types::request::{Consistency, Request, Response};
use ringlane_types::time::Instant;

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered.
    Ready,
    /// Its answer will be among [`Engine::take_answers`].
    Pending,
}

/// The parameters of a request to replicas.
pub(super) struct Demand<'r, 'b> {
    pub request: &'r Request<'b>,
    /// The consistency.
    pub consistency: Consistency,
    /// The key's position on the ring.
    pub point: Point,
}

/// Whether there is a ring. The code of the request path is compiled twice, so that a standalone
/// node never checks for one.
pub(super) const STANDALONE: bool = false;
/// See [`STANDALONE`].
pub(super) const CLUSTERED: bool = true;

impl Engine {
    /// Executes `request` for a key of this core at position `point` of the ring, if there is one
    /// ([`Engine::point`]). `answer` gets the response, if it is available now; `asker` identifies
    /// the receiver of a later one.
    #[inline]
    pub fn perform(
        &mut self,
        asker: impl FnOnce() -> ClientRef,
        consistency: Consistency,
        (point, request): (Option<Point>, &Request<'_>),
        now: Instant,
        links: &mut (impl PeerOutbox + ?Sized),
        answer: impl FnOnce(&Response<'_>),
    ) -> Outcome {
        if let Some(point) = point
            && !self.is_sole_replica(&point)
        {
            self.ask_replicas(asker(), Demand { request, consistency, point }, now, links);
            return Outcome::Pending;
        }
        self.perform_alone(request, now, answer);
        Outcome::Ready
    }

    /// Executes a request for a key with this node as the sole replica. `answer` gets the response:
    /// returning it would copy it, which takes longer than finding most items.
    #[inline]
    pub(super) fn perform_here<const IS_CLUSTERED: bool>(
        &mut self,
        request: &Request<'_>,
        now: Instant,
        answer: impl FnOnce(&Response<'_>),
    ) {
        debug_assert_eq!(IS_CLUSTERED, self.cluster_part.is_some());
        let mut response = match &mut self.cluster_part {
            Some(cluster_part) if IS_CLUSTERED => {
                cluster_part.execute(&mut self.shard, request, now)
            }
            _ => self.shard.execute(request, now),
        };
        self.finishing.finish(request, &mut response);
        answer(&response);
    }

    /// The same, if the mode is not known at compile time.
    #[inline]
    pub(super) fn perform_alone(
        &mut self,
        request: &Request<'_>,
        now: Instant,
        answer: impl FnOnce(&Response<'_>),
    ) {
        if self.cluster_part.is_none() {
            self.perform_here::<STANDALONE>(request, now, answer);
        } else {
            self.perform_here::<CLUSTERED>(request, now, answer);
        }
    }

    /// Whether keys at `point` are answered from this core's shard at once, as all are without a
    /// ring; otherwise other nodes participate, and answers are copies that come later.
    #[inline]
    pub(super) fn is_sole_replica(&self, point: &Point) -> bool {
        self.cluster_part.as_ref().is_none_or(|cluster_part| cluster_part.is_sole_replica(*point))
    }

    /// The ring positions of this core's keys in `batch`.
    pub(super) fn points_of(&self, batch: &Batch<'_>) -> ArrayVec<Point, BATCH> {
        let own = batch.iter().filter(|asked| asked.owner == self.config.core);
        let keys: ArrayVec<&[u8], BATCH> = own.map(|asked| asked.request.key).collect();
        self.points(&keys)
    }
}
