//! `stats` without an argument: memcached's 84 names, in its order.
//!
//! They are those of a memcached without LRU threads, since there are none here. Test suites count
//! the names, so there are no others, except one that memcached adds with an idle timeout.

use std::fmt;
use std::time::Duration;

use super::{Emit, Snapshot, emit};
use crate::shard::counters::Counters;
use crate::stats::ConnectionCounters;

/// Renders all names.
pub fn render(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    let mut count = Counters::default();
    let mut conn = ConnectionCounters::default();
    for core in snapshot.cores {
        count.add(&core.counters);
        conn.add(&core.connections);
    }
    let process = snapshot.process;
    let config = snapshot.config;
    let curr_connections = snapshot.sum(|core| core.curr_connections);
    let index_buckets = snapshot.sum(|core| core.gauges.buckets);
    emit! { emit:
        pid = process.pid,
        uptime = process.uptime.as_secs(),
        time = snapshot.now.as_secs(),
        version = crate::protocol::VERSION,
        libevent = "none",
        pointer_size = usize::BITS,
        rusage_user = Micros(process.user),
        rusage_system = Micros(process.system),
        max_connections = config.connections_max,
        curr_connections = curr_connections,
        total_connections = conn.total_connections,
        rejected_connections = conn.rejected_connections,
        connection_structures = curr_connections,
        response_obj_oom = 0,
        response_obj_count = 0,
        response_obj_bytes = 0,
        read_buf_count = snapshot.sum(|core| core.receive_buffers),
        read_buf_bytes = snapshot.sum(|core| core.receive_buffer_bytes),
        read_buf_bytes_free = snapshot.sum(|core| core.receive_buffer_bytes_free),
        read_buf_oom = conn.read_buf_oom,
        reserved_fds = 0,
        cmd_get = count.cmd_get,
        cmd_set = count.cmd_set,
        cmd_flush = conn.cmd_flush,
        cmd_touch = count.cmd_touch,
        cmd_meta = count.cmd_meta,
        get_hits = count.get_hits,
        get_misses = count.get_misses,
        get_expired = count.get_expired,
        get_flushed = count.get_flushed,
        delete_misses = count.delete_misses,
        delete_hits = count.delete_hits,
        incr_misses = count.incr_misses,
        incr_hits = count.incr_hits,
        decr_misses = count.decr_misses,
        decr_hits = count.decr_hits,
        cas_misses = count.cas_misses,
        cas_hits = count.cas_hits,
        cas_badval = count.cas_badval,
        touch_hits = count.touch_hits,
        touch_misses = count.touch_misses,
        store_too_large = count.store_too_large,
        store_no_memory = count.store_no_memory,
        auth_cmds = conn.auth_cmds,
        auth_errors = conn.auth_errors,
    }
    // Present only with an idle timeout, as in memcached.
    if config.idle_timeout.is_some() {
        emit! { emit: idle_kicks = conn.idle_kicks, }
    }
    emit! { emit:
        bytes_read = conn.bytes_read,
        bytes_written = conn.bytes_written,
        limit_maxbytes = snapshot.memory_bytes(),
        accepting_conns = u8::from(curr_connections < u64::from(config.connections_max)),
        listen_disabled_num = 0,
        time_in_listen_disabled_us = 0,
        threads = snapshot.cores.len(),
        conn_yields = conn.conn_yields,
        hash_power_level = index_buckets.checked_ilog2().unwrap_or(0),
        hash_bytes = snapshot.sum(|core| core.gauges.index_bytes),
        hash_is_expanding = 0,
        slab_reassign_rescues = 0,
        slab_reassign_chunk_rescues = 0,
        slab_reassign_inline_reclaim = 0,
        slab_reassign_busy_items = 0,
        slab_reassign_busy_deletes = 0,
        slab_reassign_busy_nomem = 0,
        slab_reassign_last_busy_status = 0,
        slab_reassign_running = 0,
        slabs_moved = count.slabs_moved,
        malloc_fails = 0,
        log_worker_dropped = 0,
        log_worker_written = 0,
        log_watcher_skipped = 0,
        log_watcher_sent = 0,
        log_watchers = 0,
        unexpected_napi_ids = 0,
        round_robin_fallback = 0,
        bytes = snapshot.sum(|core| core.gauges.item_bytes),
        curr_items = snapshot.sum(|core| core.gauges.items),
        total_items = count.total_items,
        slab_global_page_pool = snapshot.sum(|core| core.gauges.pages_free),
        expired_unfetched = count.expired_unfetched,
        evicted_unfetched = count.evicted_unfetched,
        evictions = count.evictions,
        reclaimed = count.reclaimed,
        crawler_reclaimed = 0,
        crawler_items_checked = 0,
        lrutail_reflocked = 0,
    }
}

/// Seconds with six decimals.
struct Micros(Duration);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
}
