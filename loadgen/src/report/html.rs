//! One page with everything: readable offline, no script, nothing loaded.

use std::fmt::Write;

use super::chart::{Axis, Chart, Scale, Series, escaped};
use crate::results::document::Document;
use crate::results::summary::Summary;
use crate::units;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8886; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { font-size: 13.5px; text-align: right; white-space: nowrap; padding: .25rem .4rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.words th, .words td { text-align: left; white-space: normal; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: 6px; }
svg { width: 100%; height: auto; margin: .6rem 0 1.2rem; }
svg .grid { stroke: var(--line); stroke-width: .6; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg text { fill: currentColor; font-size: 11.5px; }
svg .title { font-size: 13.5px; font-weight: 600; } svg .label { fill: var(--dim); }
.wide { overflow-x: auto; } .dim { color: var(--dim); } .warning { color: #c03000; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dd { margin: 0; }
dt { color: var(--dim); }
";

/// The page of one or more documents.
pub fn page(documents: &[Document]) -> String {
    let mut out =
        String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = write!(out, "<title>ringload</title>\n<style>{STYLE}</style></head><body>\n");
    for document in documents {
        section(&mut out, document);
    }
    if documents.len() > 1 {
        let runs: Vec<&Summary> = documents.iter().flat_map(|document| &document.runs).collect();
        let _ = writeln!(out, "<h1>All together</h1>");
        out.push_str(&latency_by_rate(&runs));
        out.push_str(&distribution("Distribution of latency", &runs));
    }
    out.push_str("</body></html>\n");
    out
}

fn section(out: &mut String, document: &Document) {
    let _ = writeln!(
        out,
        "<h1>ringload {}</h1>\n<p class=\"dim\">{}, ringload {}</p>\n<pre>{}</pre>",
        escaped(&document.kind),
        escaped(&document.date),
        escaped(&document.version),
        escaped(&document.command),
    );
    if !document.verdict.is_empty() {
        let sentence = |sentence: &String| format!("<li>{}</li>\n", escaped(sentence));
        let verdict: String = document.verdict.iter().map(sentence).collect();
        let _ = writeln!(out, "<ul>\n{verdict}</ul>");
    }
    let limits: Vec<&str> =
        document.runs.iter().filter_map(|run| run.generator_limit.as_deref()).collect();
    if let Some(first) = limits.first() {
        let which = match document.runs.len() {
            1 => String::new(),
            all => format!(" on {} of {all} runs, the first because", limits.len()),
        };
        let _ = writeln!(out, "<p class=\"warning\">No verdict{which}: {}.</p>", escaped(first));
    }
    if let Some(comparison) = &document.comparison {
        ratios(out, comparison);
    }
    let runs: Vec<&Summary> = document.runs.iter().collect();
    match document.kind.as_str() {
        "compare" => {
            by_row(out, &runs);
            table(out, document);
        }
        _ => {
            table(out, document);
            if runs.len() > 1 {
                out.push_str(&latency_by_rate(&runs));
            }
            out.push_str(&distribution("Distribution of latency", &runs));
            if let [run] = runs[..] {
                out.push_str(&timeline(run));
                classes(out, run);
            }
        }
    }
    faults(out, &runs);
    facts(out, document);
}

/// One line per run.
fn table(out: &mut String, document: &Document) {
    out.push_str("<h2>Runs</h2>\n<div class=\"wide\"><table><tr>");
    for head in [
        "run",
        "asked/s",
        "reached/s",
        "p50",
        "p99",
        "p99.9",
        "max",
        "hits",
        "server µs/request",
        "generator busy",
        "errors",
    ] {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr>\n");
    for run in &document.runs {
        let loop_kind = if run.load.rate.is_some() { "open" } else { "closed" };
        let asked = run.load.rate.map_or("closed loop".into(), |rate| format!("{rate:.0}"));
        let hits = run.hit_ratio.map_or(String::new(), |ratio| format!("{:.2} %", ratio * 100.0));
        let cpu =
            run.server_cpu.map_or(String::new(), |cpu| format!("{:.3}", cpu.micros_per_request));
        let faults: u64 = run.faults.iter().map(|fault| fault.count).sum();
        let name = match run.group.is_empty() {
            true => run.name.clone(),
            false => format!("{}: {}", run.group, run.name),
        };
        let _ = writeln!(
            out,
            "<tr class=\"{loop_kind}\"><td>{}</td><td>{asked}</td><td>{:.0}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{hits}</td><td>{cpu}</td><td>{:.0} %</td>\
             <td>{faults}</td></tr>",
            escaped(&name),
            run.requests_per_second,
            units::span(run.latency.p50),
            units::span(run.latency.p99),
            units::span(run.latency.p99_9),
            units::span(run.latency.max),
            run.generator_busy * 100.0,
        );
    }
    out.push_str("</table></div>\n");
    let closed = document.runs.iter().any(|run| run.load.rate.is_none());
    let open = document.runs.iter().any(|run| run.load.rate.is_some());
    if open {
        out.push_str(
            "<p class=\"dim\">Open loop: latency counts from the intended send time, so a stall \
             counts for every request it delays.</p>\n",
        );
    }
    if closed {
        out.push_str(
            "<p class=\"dim\">Closed loop: a stall also delays the requests, so latencies look too \
             good. Suited for throughput and CPU time.</p>\n",
        );
    }
}

fn classes(out: &mut String, run: &Summary) {
    out.push_str("<h2>By command</h2>\n<div class=\"wide\"><table><tr><th>command</th>");
    out.push_str("<th>requests</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th>");
    out.push_str("<th>p99.99</th><th>max</th><th>service p99</th></tr>\n");
    for class in &run.classes {
        let spans = &class.latency;
        let _ = write!(out, "<tr><td>{}</td><td>{}</td>", escaped(&class.name), class.requests);
        for span in [spans.p50, spans.p90, spans.p99, spans.p99_9, spans.p99_99, spans.max] {
            let _ = write!(out, "<td>{}</td>", units::span(span));
        }
        let _ = writeln!(out, "<td>{}</td></tr>", units::span(class.service_time.p99));
    }
    out.push_str("</table></div>\n");
}

fn ratios(out: &mut String, comparison: &crate::results::comparison::Comparison) {
    let _ = writeln!(
        out,
        "<h2>{} against the others</h2>\n<p class=\"dim\">Ratios within {} alternating rounds: \
         median, and smallest to largest. Below 1 is better for CPU and latency, above 1 for \
         requests/s.</p>",
        escaped(&comparison.servers[0].0),
        comparison.rounds,
    );
    out.push_str("<div class=\"wide\"><table><tr><th>workload</th><th>against</th>");
    out.push_str("<th>server CPU/request</th><th>requests/s</th><th>p50</th><th>p99</th>");
    out.push_str("<th>p99.9</th></tr>\n");
    for row in &comparison.rows {
        for ratio in &row.ratios {
            let _ = write!(
                out,
                "<tr><td>{}</td><td>{}</td>",
                escaped(&row.name),
                escaped(&ratio.against)
            );
            let spreads =
                [ratio.cpu, Some(ratio.rate), Some(ratio.p50), Some(ratio.p99), Some(ratio.p99_9)];
            for spread in spreads {
                let _ = match spread {
                    Some(s) => {
                        write!(out, "<td>{:.2} ({:.2} to {:.2})</td>", s.median, s.low, s.high)
                    }
                    None => write!(out, "<td>unknown</td>"),
                };
            }
            out.push_str("</tr>\n");
        }
    }
    out.push_str("</table></div>\n");
}

/// The first round of every row, its servers in one chart.
fn by_row(out: &mut String, runs: &[&Summary]) {
    let mut groups: Vec<&str> = runs.iter().map(|run| run.group.as_str()).collect();
    groups.dedup();
    for group in groups {
        let mut seen = Vec::new();
        let first: Vec<&Summary> = runs
            .iter()
            .filter(|run| run.group == group)
            .filter(|run| {
                let new = !seen.contains(&run.name.as_str());
                seen.push(&run.name);
                new
            })
            .copied()
            .collect();
        let _ = writeln!(out, "<h2>{}</h2>", escaped(group));
        out.push_str(&distribution("Distribution of latency in the first round", &first));
    }
}

/// Most lines that can still be told apart in one chart: each color twice.
const LINES_MAX: usize = 16;

/// Latency at every percentile: the CDF, with its tail spread out.
fn distribution(title: &str, runs: &[&Summary]) -> String {
    let series = runs.iter().take(LINES_MAX).map(|run| Series {
        name: run.label(),
        points: run.distribution.iter().map(|&(micros, part)| (part, micros)).collect(),
        marked: false,
    });
    let left_out = match runs.len() {
        0..=LINES_MAX => String::new(),
        all => format!("<p class=\"dim\">The first {LINES_MAX} of {all} runs.</p>\n"),
    };
    let chart = Chart {
        title,
        x: Axis { label: "part of the requests", scale: Scale::Nines, format: nines },
        y: Axis { label: "latency", scale: Scale::Log, format: axis_span },
        series: series.collect(),
    };
    chart.svg() + &left_out
}

/// Latency against the rate reached.
fn latency_by_rate(runs: &[&Summary]) -> String {
    // The rate asked for: what a server past its limit reaches may fall again.
    let rate = |run: &Summary| run.load.rate.unwrap_or(run.requests_per_second);
    let mut runs: Vec<&Summary> = runs.to_vec();
    runs.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    let line = |name: &str, figure: fn(&Summary) -> f64| Series {
        name: name.into(),
        points: runs.iter().map(|run| (rate(run), figure(run))).collect(),
        marked: true,
    };
    Chart {
        title: "Latency against rate",
        x: Axis {
            label: "requests/s asked (closed loop: reached)",
            scale: Scale::Linear,
            format: count,
        },
        y: Axis { label: "latency", scale: Scale::Log, format: axis_span },
        series: vec![
            line("p50", |run| run.latency.p50),
            line("p99", |run| run.latency.p99),
            line("p99.9", |run| run.latency.p99_9),
        ],
    }
    .svg()
}

/// Second by second.
fn timeline(run: &Summary) -> String {
    let line = |name: &str, figure: fn(&crate::results::summary::SecondSummary) -> f64| Series {
        name: name.into(),
        points: run.timeline.iter().map(|s| (s.second as f64, figure(s))).collect(),
        marked: true,
    };
    let seconds = || Axis { label: "second", scale: Scale::Linear, format: count };
    let latency = Chart {
        title: "Latency, second by second",
        x: seconds(),
        y: Axis { label: "latency", scale: Scale::Log, format: axis_span },
        series: vec![
            line("p50", |second| second.p50),
            line("p99", |second| second.p99),
            line("p99.9", |second| second.p99_9),
            line("max", |second| second.max),
        ],
    };
    let rate = Chart {
        title: "Requests answered, second by second",
        x: seconds(),
        y: Axis { label: "requests/s", scale: Scale::Linear, format: count },
        series: vec![
            line("answered", |second| second.requests as f64),
            line("errors", |second| second.faults as f64),
        ],
    };
    rate.svg() + &latency.svg()
}

fn faults(out: &mut String, runs: &[&Summary]) {
    if runs.iter().all(|run| run.faults.is_empty()) {
        return;
    }
    out.push_str("<h2>Errors</h2>\n<div class=\"wide\"><table class=\"words\"><tr><th>run</th>");
    out.push_str("<th>kind</th><th>count</th><th>the first one</th></tr>\n");
    for run in runs {
        for fault in &run.faults {
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escaped(&run.label()),
                escaped(&fault.kind),
                fault.count,
                escaped(&fault.first),
            );
        }
    }
    out.push_str("</table></div>\n");
}

fn facts(out: &mut String, document: &Document) {
    let host = &document.host;
    out.push_str("<h2>Host and load</h2>\n<dl>\n");
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
    };
    fact("host", &host.sentence());
    fact("huge pages", &host.huge_pages);
    if let Some(run) = document.runs.first() {
        let (load, workload) = (&run.load, &run.workload);
        match &document.comparison {
            Some(comparison) => {
                comparison.servers.iter().for_each(|(name, server)| fact(name, server));
            }
            None => fact("server", &format!("{} ({})", load.address, load.protocol)),
        }
        fact(
            "load",
            &format!(
                "{} connections, pipeline {}, generator on CPU {:?}{}, {:.1} s after {:.1} s of warm-up",
                load.connections,
                load.pipeline,
                load.cpus,
                if load.spin { " (polling)" } else { "" },
                run.seconds,
                load.warmup_seconds,
            ),
        );
        fact(
            "workload",
            &format!(
                "{}, {} keys of {} bytes, {}, values of {} bytes, ttl {}, verify {}, seed {}",
                workload.mix,
                workload.keys,
                workload.key_bytes,
                workload.popularity,
                workload.value_bytes,
                workload.ttl,
                workload.verify,
                workload.seed,
            ),
        );
    }
    out.push_str("</dl>\n");
}

/// A time at an axis, where round ones stand: 100ms rather than 100.00ms.
fn axis_span(micros: f64) -> String {
    let text = units::span(micros);
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    match number.contains('.') {
        true => format!("{}{unit}", number.trim_end_matches('0').trim_end_matches('.')),
        false => text,
    }
}

fn nines(part: f64) -> String {
    let percent = format!("{:.6}", part * 100.0);
    format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
}

fn count(value: f64) -> String {
    match value {
        1e6.. => format!("{:.2}M", value / 1e6),
        // To a tenth, which a round number has none of.
        1e3.. => format!("{}k", (value / 1e2).round() / 10.0),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([axis_span(100_000.0), axis_span(10.0)], ["100ms", "10µs"]);
        assert_eq!(axis_span(1_230.0), "1.23ms");
        assert_eq!(nines(0.0), "0 %");
        assert_eq!(nines(0.999), "99.9 %");
        assert_eq!(nines(1.0 - 1e-5), "99.999 %");
        assert_eq!(count(1_250_000.0), "1.25M");
        assert_eq!([20_000.0, 5_000.0, 1_530.0].map(count), ["20k", "5k", "1.5k"]);
        assert_eq!(count(7.0), "7");
    }
}
