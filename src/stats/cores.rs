//! `stats cores`: statistics per core. A Ringlane extension; memcached has no such topic.

use super::{Emit, Snapshot};

/// Renders every core. Requests are those of the core's own connections; a request forwarded to
/// another core counts there as served.
pub fn render(snapshot: &Snapshot<'_>, emit: Emit<'_>) {
    for (number, core) in snapshot.cores.iter().enumerate() {
        let mut figure = |name: &str, value: u128| {
            emit(format_args!("core:{number}:{name}"), format_args!("{value}"));
        };
        let requests = core.local_requests + core.forwarded_requests;
        figure("cpu", snapshot.config.cpus.get(number).map_or(0, |&cpu| cpu as u128));
        figure("items", core.gauges.items.into());
        figure("bytes", core.gauges.item_bytes.into());
        figure("index_bytes", core.gauges.index_bytes.into());
        figure("pages", core.gauges.pages_used.into());
        figure("free_pages", core.gauges.pages_free.into());
        figure("touched_bytes", core.gauges.touched_bytes.into());
        figure("evictions", core.counters.evictions.into());
        figure("chain_evictions", core.counters.chain_evictions.into());
        figure("connections", core.curr_connections.into());
        figure("connection_bytes", core.connection_bytes.into());
        figure("connection_bytes_peak", core.connection_bytes_peak.into());
        figure("stalled_kicks", core.connections.stalled_kicks.into());
        figure("uploads_refused", core.connections.uploads_refused.into());
        figure("requests", requests.into());
        figure("forwarded", core.forwarded_requests.into());
        figure("served", core.served_requests.into());
        figure("busy_us", core.busy.as_micros());
        figure("idle_us", core.idle.as_micros());
        figure("longest_turn_us", core.longest_turn.as_micros());
        figure("stale_completions", core.stale_completions.into());
    }
}
