//! `stats settings`: the configuration under memcached's names, followed by Ringlane's own.

use std::fmt::{self, Write};

use super::{Emit, Snapshot, emit};
use crate::engine::PREFIX_DELIMITER;
use crate::shard::Eviction;

/// Renders all settings. Those without meaning here have the value for "off".
pub fn render(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    let config = snapshot.config;
    let knobs = snapshot.knobs;
    let mut listen = String::new();
    for address in &config.listen {
        let comma = if listen.is_empty() { "" } else { "," };
        write!(listen, "{comma}{address}").expect("a string takes everything");
    }
    let oldest = match snapshot.flushed_at.as_millis() {
        0 => 0,
        _ => snapshot
            .process
            .uptime
            .as_secs()
            .saturating_sub(snapshot.now.since(snapshot.flushed_at).as_secs()),
    };
    let umask = config.unix_socket.as_ref().map_or(0o700, |socket| socket.mode);
    emit! { emit:
        maxbytes = snapshot.memory_bytes(),
        maxconns = config.connections_max,
        tcpport = if config.listen.is_empty() { 0 } else { config.port },
        udpport = 0,
        inter = Given((!listen.is_empty()).then_some(&listen)),
        verbosity = snapshot.verbosity,
        oldest = oldest,
        evictions = on(config.eviction != Eviction::None),
        domain_socket = Given(config.unix_socket.as_ref().map(|socket| socket.path.display())),
        umask = format_args!("{umask:o}"),
        shutdown_command = yes(config.permissions.shutdown),
        growth_factor = "1.25",
        chunk_size = 48,
        num_threads = snapshot.cores.len(),
        num_threads_per_udp = 0,
        stat_key_prefix = char::from(config.prefix_delimiter.unwrap_or(PREFIX_DELIMITER)),
        detail_enabled = yes(knobs.detail),
        reqs_per_event = 0,
        cas_enabled = yes(config.permissions.cas),
        tcp_backlog = config.backlog,
        binding_protocol = "auto-negotiate",
        auth_enabled_sasl = "no",
        auth_enabled_ascii = "no",
        item_size_max = config.item_bytes_max,
        maxconns_fast = "yes",
        hashpower_init = 0,
        slab_reassign = "yes",
        slab_automove = knobs.automove,
        slab_automove_ratio = Hundredths(knobs.automove_ratio_hundredths),
        slab_automove_window = knobs.automove_window,
        slab_chunk_max = 524_288,
        lru_crawler = yes(knobs.crawler),
        lru_crawler_sleep = knobs.crawler_sleep_micros,
        lru_crawler_tocrawl = knobs.crawler_items,
        tail_repair_time = 0,
        flush_enabled = yes(config.permissions.flush),
        dump_enabled = yes(config.permissions.dump),
        hash_algorithm = "multiply-shift",
        lru_maintainer_thread = "no",
        lru_segmented = yes(knobs.segmented),
        hot_lru_pct = knobs.hot_percent,
        warm_lru_pct = knobs.warm_percent,
        hot_max_factor = Hundredths(knobs.hot_age_hundredths),
        warm_max_factor = Hundredths(knobs.warm_age_hundredths),
        temp_lru = yes(knobs.temporary_ttl.is_some()),
        temporary_ttl = knobs.temporary_ttl.unwrap_or(61),
        idle_timeout = config.idle_timeout.map_or(0, |span| span.as_secs()),
        watcher_logbuf_size = 0,
        worker_logbuf_size = 0,
        read_buf_mem_limit = 0,
        track_sizes = "no",
        inline_ascii_response = "no",
        slab_automove_freeratio = Thousandths(knobs.automove_free_ratio_myriadths / 10),
        ssl_enabled = "no",
        num_napi_ids = "(null)",
        memory_file = "(null)",
        client_flags_size = 4,
        lock_memory = yes(config.lock_memory),
        eviction_policy = config.eviction.name(),
        default_ttl = config.default_ttl.map_or(0, |span| span.as_secs()),
        busy_poll_us = config.busy_poll.as_micros(),
        pipeline_depth_max = config.queues.pipeline_depth_max,
        output_bytes_max = config.queues.output_bytes_max,
        pipeline_bytes_max = config.queues.pipeline_bytes_max,
        connection_memory = config.connection_memory_bytes,
        receive_buffers = config.queues.receive_buffers,
        receive_buffer_bytes = config.queues.receive_buffer_bytes,
        mesh_ring_bytes = config.queues.mesh_ring_bytes,
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn on(is: bool) -> &'static str {
    if is { "on" } else { "off" }
}

/// A value, or memcached's `NULL`.
struct Given<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Given<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("NULL"),
        }
    }
}

/// A number with two decimals.
struct Hundredths(u32);

impl fmt::Display for Hundredths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// A number with three decimals.
struct Thousandths(u32);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
