//! Selects the connections to close when connection memory is used up and others need some.
//!
//! A slow client holds the data being sent to it for an unknown time. As long as there is memory
//! for all, that is fine. When there is not, connections that hold some but have made no progress
//! for a second are closed, longest stalled first, until there is a little room again. No
//! connection is closed merely for being slow: one that receives a byte per second stays.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use super::connection::Connection;
use super::core_state::CoreState;
use super::process;
use crate::time::Instant;

/// A connection without progress for this long while others wait is closed.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Maximum connections checked for progress at a time: each costs a system call.
const LOOKS_MAX: usize = 512;
/// Maximum connections closed at a time.
const CLOSED_MAX: usize = 64;
/// Minimum interval between log lines.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Observed progress of the connections that hold memory, while others need some.
#[derive(Default)]
pub struct Watches {
    seen: HashMap<u32, Seen>,
    /// Where the next check starts.
    from: usize,
    /// Connections closed since the last log line, and its time.
    unlogged: u64,
    logged: Instant,
}

/// A connection's progress, and since when.
#[derive(Clone, Copy, Debug)]
struct Seen {
    generation: u32,
    progress: Progress,
    since: Instant,
}

/// Changes with any progress: completed sends, and bytes as counted by the kernel.
type Progress = (u8, Option<u64>);

impl CoreState {
    /// Closes connections that hold memory and have stalled, if others need some.
    pub(super) fn close_stalled(&mut self) {
        if !self.memory.take_wanted() && !self.has_waiting() {
            if !self.watches.seen.is_empty() {
                self.watches.seen.clear();
            }
            return;
        }
        let mut stalled = self.look_for_stalled();
        stalled.sort_unstable();
        let (mut freed, excess) = (0, self.memory.excess());
        for (count, &(_, index)) in stalled.iter().take(CLOSED_MAX).enumerate() {
            if count > 0 && freed >= excess {
                break;
            }
            let connection = self.connection_at(index);
            connection.broken = true;
            connection.shut_down();
            freed += connection.charge.held();
            self.watches.seen.remove(&index);
            self.counters.stalled_kicks += 1;
            self.watches.unlogged += 1;
            self.mark_dirty(index);
        }
        let Watches { unlogged, logged, .. } = &mut self.watches;
        if *unlogged > 0 && self.now.since(*logged) >= LOGGED_EVERY {
            log::warn!(
                "connection memory is used up: closed {unlogged} connections that held some and \
                 moved nothing for a second (--connection-memory raises it)"
            );
            (*unlogged, *logged) = (0, self.now);
        }
    }

    /// The stalled connections with the time since when, as far as one check reaches.
    fn look_for_stalled(&mut self) -> Vec<(Instant, u32)> {
        let Self { connections, watches, now, .. } = self;
        let mut stalled = Vec::new();
        let (mut looks, mut index) = (0, watches.from.min(connections.len()));
        for _ in 0..connections.len() {
            index = if index < connections.len() { index } else { 0 };
            let slot = &connections[index];
            let key = index as u32;
            index += 1;
            let Some(progress) = slot.connection.as_deref().and_then(progress) else {
                watches.seen.remove(&key);
                continue;
            };
            let fresh = Seen { generation: slot.generation, progress, since: *now };
            let seen = watches.seen.entry(key).or_insert(fresh);
            if (seen.generation, seen.progress) != (fresh.generation, fresh.progress) {
                *seen = fresh;
            } else if now.since(seen.since) >= STALLED_AFTER {
                stalled.push((seen.since, key));
            }
            looks += 1;
            if looks == LOOKS_MAX {
                break;
            }
        }
        watches.from = index;
        stalled
    }
}

/// The client's progress, if the client has to act next and the connection holds memory meanwhile.
fn progress(connection: &Connection) -> Option<Progress> {
    let receives = connection.streaming.is_some()
        || (!connection.pending.is_empty() && !connection.is_stalled());
    let holds = connection.charge.held() > 0 || connection.out.refers();
    if connection.broken || !holds || !(connection.sending || receives) {
        return None;
    }
    let moved = process::bytes_moved(connection.socket().as_fd());
    let moved = moved.map(|moved| if connection.sending { moved.acked } else { moved.received });
    Some((connection.sends, moved))
}
