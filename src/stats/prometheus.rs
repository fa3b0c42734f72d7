//! The statistics in Prometheus' text exposition format, version 0.0.4.
//!
//! Node-wide families are sums over the cores; per-core figures are in separate families,
//! `ringlane_core_*`, so that `sum()` over a family never counts anything twice. Counters take
//! their names and help texts from the structs that declare them: a new counter appears here
//! automatically. Refused: latency histograms, since the cores do not measure latency.

use std::fmt::{Display, Write};

use super::{ConnectionCounters, CoreStats, Snapshot, classes};
use crate::shard::counters::Counters;
use crate::shard::{ClassStats, Gauges};

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders all families.
pub fn render(snapshot: &Snapshot<'_>) -> String {
    let mut page = Page { text: String::with_capacity(32 << 10) };
    node(snapshot, &mut page);
    totals(snapshot, &mut page);
    per_core(snapshot, &mut page);
    per_class(snapshot, &mut page);
    page.text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only increases, except when statistics are reset. Its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

struct Page {
    text: String,
}

impl Page {
    /// Opens a family; its samples must follow.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let (kind, total) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        let help = help.replace('\\', "\\\\").replace('\n', " ");
        self.line(format_args!("# HELP ringlane_{name}{total} {help}"));
        self.line(format_args!("# TYPE ringlane_{name}{total} {kind}"));
    }

    /// A family with one sample and no labels.
    fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        let total = if kind == Kind::Counter { "_total" } else { "" };
        self.line(format_args!("ringlane_{name}{total} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes everything");
    }
}

/// Facts about the whole node.
fn node(snapshot: &Snapshot<'_>, page: &mut Page) {
    let Snapshot { process, config, .. } = snapshot;
    page.family("info", Kind::Gauge, "Version and eviction policy.");
    page.line(format_args!(
        "ringlane_info{{version=\"{}\",eviction=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION"),
        config.eviction.name()
    ));
    let mut gauge = |name: &str, help, value: u64| page.single(name, Kind::Gauge, help, value);
    gauge("cores", "Cores of this node.", snapshot.cores.len() as u64);
    gauge("connections", "Open connections.", snapshot.sum(|core| core.curr_connections));
    gauge("connections_max", "Limit of concurrent connections.", u64::from(config.connections_max));
    page.single("uptime_seconds", Kind::Gauge, "Time since startup.", Seconds(process.uptime));
    let user = Seconds(process.user);
    page.single("cpu_user_seconds", Kind::Counter, "CPU time in user mode.", user);
    let system = Seconds(process.system);
    page.single("cpu_system_seconds", Kind::Counter, "CPU time in the kernel.", system);
}

/// Totals of all cores.
fn totals(snapshot: &Snapshot<'_>, page: &mut Page) {
    let mut counters = Counters::default();
    let mut connections = ConnectionCounters::default();
    let mut gauges = Gauges::default();
    for core in snapshot.cores {
        counters.add(&core.counters);
        connections.add(&core.connections);
        gauges.add(&core.gauges);
    }
    let mut counter = |name: &'static str, help: &'static str, value| {
        page.single(counter_name(name), Kind::Counter, help, value);
    };
    counters.each(&mut counter);
    connections.each(&mut counter);
    gauges.each(|name, help, value| page.single(name, Kind::Gauge, help, value));
}

/// memcached's name, unless it would read badly before `_total`.
fn counter_name(name: &'static str) -> &'static str {
    match name {
        "total_items" => "items_stored",
        "total_connections" => "connections_accepted",
        name => name,
    }
}

/// Figures per core.
fn per_core(snapshot: &Snapshot<'_>, page: &mut Page) {
    use Kind::{Counter, Gauge};
    type Figure = (&'static str, Kind, &'static str, fn(&CoreStats) -> u64);
    const FIGURES: [Figure; 7] = [
        ("items", Gauge, "Live items of the core.", |core| core.gauges.items),
        ("item_bytes", Gauge, "Bytes of the core's items.", |core| core.gauges.item_bytes),
        ("connections", Gauge, "Open connections of the core.", |core| core.curr_connections),
        ("evictions", Counter, "Items the core evicted.", |core| core.counters.evictions),
        (
            "local_requests",
            Counter,
            "Requests that the core answered for its own clients.",
            |core| core.local_requests,
        ),
        (
            "forwarded_requests",
            Counter,
            "Requests that the core forwarded to other cores.",
            |core| core.forwarded_requests,
        ),
        ("served_requests", Counter, "Requests that the core answered for other cores.", |core| {
            core.served_requests
        }),
    ];
    for (name, kind, help, figure) in FIGURES {
        core_family(snapshot, page, (name, kind, help), figure);
    }
    let busy = ("busy_seconds", Counter, "Time the core spent working.");
    core_family(snapshot, page, busy, |core| Seconds(core.busy));
    let idle = ("idle_seconds", Counter, "Time the core waited for work, polling included.");
    core_family(snapshot, page, idle, |core| Seconds(core.idle));
}

fn core_family<V: Display>(
    snapshot: &Snapshot<'_>,
    page: &mut Page,
    (name, kind, help): (&str, Kind, &str),
    figure: impl Fn(&CoreStats) -> V,
) {
    page.family(&format!("core_{name}"), kind, help);
    let total = if kind == Kind::Counter { "_total" } else { "" };
    for (number, core) in snapshot.cores.iter().enumerate() {
        let cpu = snapshot.config.cpus.get(number).copied().unwrap_or_default();
        let value = figure(core);
        page.line(format_args!(
            "ringlane_core_{name}{total}{{core=\"{number}\",cpu=\"{cpu}\"}} {value}"
        ));
    }
}

/// Figures per slab class with pages.
fn per_class(snapshot: &Snapshot<'_>, page: &mut Page) {
    use Kind::{Counter, Gauge};
    type Figure = (&'static str, Kind, &'static str, fn(&ClassStats) -> u64);
    const FIGURES: [Figure; 9] = [
        ("pages", Gauge, "Pages of the slab class.", |class| class.total_pages),
        ("chunks", Gauge, "Chunks of the slab class.", |class| class.total_chunks),
        ("chunks_used", Gauge, "Chunks of the slab class in use.", |class| class.used_chunks),
        ("items", Gauge, "Items of the slab class.", |class| class.number),
        ("item_bytes", Gauge, "Bytes of the slab class's items.", |class| class.mem_requested),
        ("oldest_seconds", Gauge, "Time since the last use of its oldest item.", |class| class.age),
        ("evictions", Counter, "Items of the slab class evicted.", |class| class.evicted),
        ("out_of_memory", Counter, "Stores refused for lack of memory.", |class| class.outofmemory),
        ("reclaimed", Counter, "Expired items whose memory was reclaimed.", |class| {
            class.reclaimed
        }),
    ];
    let classes = classes::merged(snapshot);
    for (name, kind, help, figure) in FIGURES {
        page.family(&format!("class_{name}"), kind, help);
        let total = if kind == Counter { "_total" } else { "" };
        for class in classes.iter().filter(|class| class.total_pages > 0) {
            let (number, chunk_bytes, value) = (class.class, class.chunk_size, figure(class));
            page.line(format_args!(
                "ringlane_class_{name}{total}{{class=\"{number}\",chunk_bytes=\"{chunk_bytes}\"}} \
                 {value}"
            ));
        }
    }
}

/// A duration in seconds, Prometheus' unit.
struct Seconds(std::time::Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
}
