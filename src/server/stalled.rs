//! Which connections are closed when the memory for connections is used up and others want some.
//!
//! A client that takes its time holds what is being sent to it, and nobody can say for how long. As
//! long as there is room for all that is fine. When there is not, those that hold some and have moved
//! nothing for a second go, the longest silent first, until there is a little room again. Nobody is
//! closed for being slow alone: one that takes a byte a second stays.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use super::connection::Connection;
use super::core_state::CoreState;
use super::process;
use crate::time::Instant;

/// Whoever moves nothing for so long while others wait is closed.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Connections that are asked for their progress at a time: each costs a system call.
const LOOKS_MAX: usize = 512;
/// Most that are closed at a time.
const CLOSED_MAX: usize = 64;
/// Logged no more often than this.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// What was seen of the connections that hold memory, since somebody wants some.
#[derive(Default)]
pub struct Watches {
    seen: HashMap<u32, Seen>,
    /// Where the next look begins.
    from: usize,
    /// Closed since the last time it was logged, and when that was.
    unlogged: u64,
    logged: Instant,
}

/// How far a connection was, and since when.
#[derive(Clone, Copy, Debug)]
struct Seen {
    generation: u32,
    progress: Progress,
    since: Instant,
}

/// What changes when something moves: sends that ended, and bytes by the kernel's count.
type Progress = (u8, Option<u64>);

impl CoreState {
    /// Closes those that hold memory and have stalled, if others want some.
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

    /// Those that have stalled, with the moment since when, as far as one look goes.
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

/// How far the client is with what it has to do next, if it is the client that has to do something
/// and the connection holds memory meanwhile.
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
