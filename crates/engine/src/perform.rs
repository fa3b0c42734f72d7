//! The one way in which a request for a key of this core is performed, whoever asked: a connection of
//! this core, another core, or a connection whose request had to wait.
//!
//! A key that this node alone keeps, as it keeps all keys when there is no cluster, is answered in place.
//! For any other its coordinator asks the replicas, and the answer comes later. Whatever an option does
//! to answers is done here ([`Finishing`](crate::Finishing)), or in
//! [`Engine::take_answers`](crate::Engine::take_answers) to those that come later.

use arrayvec::ArrayVec;

use crate::cluster::Links;
use crate::{BATCH, Batch, Engine};
use ringlane_cluster::coordinator::Asker;
use ringlane_ring::Point;
use ringlane_types::request::{Consistency, Request, Response};
use ringlane_types::time::Instant;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered.
    Ready,
    /// Its answer will be among [`Engine::take_answers`].
    Pending,
}

/// What replicas are asked.
pub(super) struct Demand<'r, 'b> {
    pub request: &'r Request<'b>,
    /// How many of them have to agree.
    pub consistency: Consistency,
    /// Where the key lies on the ring.
    pub point: Point,
}

/// Whether there is a ring. What is done for each request is compiled twice, so that without one
/// nothing asks for it.
pub(super) const STANDALONE: bool = false;
/// See [`STANDALONE`].
pub(super) const CLUSTERED: bool = true;

impl Engine {
    /// Performs `request`, whose key is one of this core and lies at `point` of the ring, if there is
    /// one ([`Engine::point`]). `answer` gets the response, if there is one now; `asker` tells whom to
    /// answer later.
    #[inline]
    pub fn perform(
        &mut self,
        asker: impl FnOnce() -> Asker,
        consistency: Consistency,
        (point, request): (Option<Point>, &Request<'_>),
        now: Instant,
        links: &mut (impl Links + ?Sized),
        answer: impl FnOnce(&Response<'_>),
    ) -> Outcome {
        match point {
            Some(point) if !self.is_sole_replica(&point) => {
                self.ask_replicas(asker(), Demand { request, consistency, point }, now, links);
                Outcome::Pending
            }
            Some(_) => {
                self.perform_here::<CLUSTERED, _>(request, now, answer);
                Outcome::Ready
            }
            None => {
                self.perform_here::<STANDALONE, _>(request, now, answer);
                Outcome::Ready
            }
        }
    }

    /// Performs a request for a key that is this node's alone. `answer` gets the response: handed back
    /// it would be copied, which takes longer than finding most items.
    #[inline]
    pub(super) fn perform_here<const IS_CLUSTERED: bool, T>(
        &mut self,
        request: &Request<'_>,
        now: Instant,
        answer: impl FnOnce(&Response<'_>) -> T,
    ) -> T {
        debug_assert_eq!(IS_CLUSTERED, self.membership.is_some());
        let mut response = match &mut self.membership {
            Some(membership) if IS_CLUSTERED => membership.execute(&mut self.shard, request, now),
            _ => self.shard.execute(request, now),
        };
        self.finishing.finish(request, &mut response);
        answer(&response)
    }

    /// The same, where that is not known at compile time.
    #[inline]
    pub(super) fn perform_alone(
        &mut self,
        request: &Request<'_>,
        now: Instant,
        answer: impl FnOnce(&Response<'_>),
    ) {
        if self.membership.is_none() {
            self.perform_here::<STANDALONE, _>(request, now, answer);
        } else {
            self.perform_here::<CLUSTERED, _>(request, now, answer);
        }
    }

    /// Whether what lies at `point` is answered from this core's shard at once, as everything is where
    /// there is no ring; else other nodes have a say, and answers are copies that come later.
    #[inline]
    pub(super) fn is_sole_replica(&self, point: &Point) -> bool {
        self.membership.as_ref().is_none_or(|membership| membership.is_sole_replica(*point))
    }

    /// Where the keys of this core in `batch` lie on the ring.
    pub(super) fn points_of(&self, batch: &Batch<'_>) -> ArrayVec<Point, BATCH> {
        let own = batch.iter().filter(|asked| asked.owner == self.config.core);
        let keys: ArrayVec<&[u8], BATCH> = own.map(|asked| asked.request.key).collect();
        self.points(&keys)
    }
}
