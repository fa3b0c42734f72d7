//! Adopts new routes while load runs: connections move to the current endpoints.
//!
//! A connection whose endpoint stays is kept. Any other sends nothing more, closes when its answers
//! have arrived (a node that no longer owns a key still answers for it), and is reopened at its new
//! endpoint. Requests drawn for a removed endpoint are not lost: a job over all keys must be
//! complete, and due requests of an open loop stay due.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Connections, State};
use crate::source::endpoint_of;
use ringlane_client::routes::Routes;

impl Connections<'_> {
    /// Adopts the routes if they have changed.
    #[inline]
    pub(super) fn follow_directory(&mut self) {
        let version = self.shared.plan.directory.version();
        if version != self.version {
            self.version = version;
            self.reroute(self.shared.plan.directory.current());
        }
    }

    #[cold]
    fn reroute(&mut self, routes: Arc<Routes>) {
        let count = routes.endpoints().len();
        self.assign(&routes);
        self.takers = vec![VecDeque::new(); count];
        let due = std::mem::replace(&mut self.backlog, vec![VecDeque::new(); count]);
        let mut due: Vec<_> = due.into_iter().flatten().collect();
        // Each queue was in order; the merged one must be too.
        due.sort_by_key(|(due_ns, _)| *due_ns);
        for (due_ns, draft) in due {
            let endpoint = endpoint_of(&self.shared.workload, &routes, draft);
            self.backlog[endpoint].push_back((due_ns, draft));
        }
        self.source.reroute(&self.shared.workload, &routes);
        self.routes = routes;
        for slot in 0..self.slots.len() as u32 {
            self.slots[slot as usize].listed = false;
            self.list(slot);
        }
    }

    /// Assigns each connection an endpoint, its own if it still exists, spreading them evenly.
    fn assign(&mut self, routes: &Routes) {
        let endpoints = routes.endpoints();
        let each = self.slots.len().div_ceil(endpoints.len());
        let mut taken = vec![0; endpoints.len()];
        let mut homeless = Vec::new();
        for (slot, entry) in self.slots.iter_mut().enumerate() {
            let same = endpoints.iter().position(|endpoint| *endpoint == entry.address);
            match same {
                Some(endpoint) if taken[endpoint] < each => {
                    taken[endpoint] += 1;
                    (entry.endpoint, entry.moving) = (endpoint, false);
                }
                _ => homeless.push(slot),
            }
        }
        for slot in homeless {
            let least = (0..taken.len()).min_by_key(|&endpoint| taken[endpoint]);
            let endpoint = least.expect("routes have an endpoint");
            taken[endpoint] += 1;
            let entry = &mut self.slots[slot];
            entry.endpoint = endpoint;
            match entry.state {
                // At once: the server at the old address may never come back.
                State::Down { .. } => {
                    entry.state = State::Down { retry_ns: 0 };
                    entry.address = endpoints[endpoint].clone();
                }
                _ => entry.moving = true,
            }
        }
    }
}
