//! A comparison as lines of text and as a page of Markdown.

use std::fmt::Write;

use crate::results::comparison::{Comparison, Ratios, RowResult, Spread};
use crate::results::document::Document;
use crate::units;

/// One row for the terminal.
pub fn row_as_text(row: &RowResult) -> String {
    let mut out = format!("{}\n", row.name);
    for figures in &row.servers {
        let cpu = figures.cpu_micros.map_or(String::new(), |cpu| format!("{:.3}", cpu.median));
        let _ = writeln!(
            out,
            "  {:<24}{:>12.0} requests/s  server CPU {cpu:>8} µs/request  p50 {:>9}  p99 {:>9}  p99.9 {:>9}",
            figures.server,
            figures.requests_per_second.median,
            units::span(figures.p50.median),
            units::span(figures.p99.median),
            units::span(figures.p99_9.median),
        );
    }
    for ratio in &row.ratios {
        let _ = writeln!(
            out,
            "  against {:<16} requests/s x {}  CPU x {}  p50 x {}  p99 x {}  p99.9 x {}",
            ratio.against,
            factor(Some(ratio.rate)),
            factor(ratio.cpu),
            factor(Some(ratio.p50)),
            factor(Some(ratio.p99)),
            factor(Some(ratio.p99_9)),
        );
    }
    for goal in &row.goals {
        let _ = writeln!(out, "  goal {}: {:.2}, {}", goal.goal, goal.ratio, goal.verdict);
    }
    if let Some(words) = &row.withheld {
        let _ = writeln!(out, "  WARNING {words}");
    }
    out
}

/// The whole comparison as a page.
pub fn page(document: &Document, comparison: &Comparison) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "# Comparison, {}\n", document.date);
    let _ = writeln!(out, "Host: {}\n", document.host.sentence());
    let _ = writeln!(out, "```\n{}\n```\n", document.command);
    for (name, text) in &comparison.servers {
        let _ = writeln!(out, "- {name}: `{text}`");
    }
    let _ = writeln!(
        out,
        "\nMedians of {} alternating rounds, smallest and largest in brackets. Ratios are {}'s \
         figure divided by the other's within a round: below 1 is better for CPU and latency, \
         above 1 for requests/s.\n",
        comparison.rounds, comparison.servers[0].0,
    );
    let _ = writeln!(out, "## Ratios\n");
    let _ = writeln!(
        out,
        "| workload | against | server CPU per request | requests/s | p50 | p99 | p99.9 | goals |"
    );
    let _ = writeln!(out, "|---|---|---|---|---|---|---|---|");
    for row in &comparison.rows {
        for ratio in &row.ratios {
            let limited = if row.withheld.is_some() { " (generator's limit)" } else { "" };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {}{limited} | {} | {} | {} | {} |",
                row.name,
                ratio.against,
                factor(ratio.cpu),
                factor(Some(ratio.rate)),
                factor(Some(ratio.p50)),
                factor(Some(ratio.p99)),
                factor(Some(ratio.p99_9)),
                goals(row, ratio),
            );
        }
    }
    let _ = writeln!(out, "\n## Figures\n");
    let _ = writeln!(
        out,
        "| workload | server | server CPU, µs/request | requests/s | p50 | p99 | p99.9 |"
    );
    let _ = writeln!(out, "|---|---|---|---|---|---|---|");
    for row in &comparison.rows {
        for figures in &row.servers {
            let cpu = match (figures.cpu_micros, figures.cpu_micros_per_key) {
                (_, Some(cpu)) => format!("{} per key", micros(cpu)),
                (Some(cpu), None) => micros(cpu),
                _ => "unknown".into(),
            };
            let rate = figures.requests_per_second;
            let _ = writeln!(
                out,
                "| {} | {} | {cpu} | {:.0} [{:.0}, {:.0}] | {} | {} | {} |",
                row.name,
                figures.server,
                rate.median,
                rate.low,
                rate.high,
                units::span(figures.p50.median),
                units::span(figures.p99.median),
                units::span(figures.p99_9.median),
            );
        }
    }
    let warnings = comparison.rows.iter().filter_map(|row| Some((row, row.withheld.as_ref()?)));
    for (row, words) in warnings {
        let _ = writeln!(out, "\nNo verdict on requests/s for \"{}\": {words}.", row.name);
    }
    out
}

fn goals(row: &RowResult, ratio: &Ratios) -> String {
    let about = format!(" against {}", ratio.against);
    let goals: Vec<String> = row
        .goals
        .iter()
        .filter_map(|goal| Some((goal, goal.goal.strip_suffix(&about)?)))
        .map(|(goal, text)| {
            let (metric, bound) = match text.find(['<', '>']) {
                Some(at) => (text.split(':').next().unwrap_or(text), &text[at..]),
                None => (text, ""),
            };
            let verdict = match goal.verdict.as_str() {
                "missed" => "**missed**",
                verdict => verdict,
            };
            format!("{metric} {bound}: {verdict}")
        })
        .collect();
    goals.join("; ").replace("<=", "≤ ").replace(">=", "≥ ")
}

fn factor(spread: Option<Spread>) -> String {
    match spread {
        Some(Spread { median, low, high }) => format!("{median:.2} [{low:.2}, {high:.2}]"),
        None => "unknown".into(),
    }
}

fn micros(spread: Spread) -> String {
    format!("{:.3} [{:.3}, {:.3}]", spread.median, spread.low, spread.high)
}
