//! Results as lines of text.

use std::fmt::Write;

use crate::results::summary::{Percentiles, SecondSummary, Summary};
use crate::units;

/// A run as a small table and a few lines.
pub fn summary(run: &Summary) -> String {
    let mut out = String::new();
    let load = &run.load;
    let pace = match (load.rate, &load.arrival) {
        (Some(rate), Some(arrival)) => {
            format!("open loop: {rate:.0} requests/s asked, {arrival} arrivals")
        }
        _ => "closed loop: a stall also delays the requests, so latencies look too good".into(),
    };
    let workload = &run.workload;
    let _ = writeln!(out, "{} ({}), {pace}", run.name, load.protocol);
    let _ = writeln!(
        out,
        "{}, {} keys {}, values of {} bytes; {} connections, pipeline {}, CPU {:?}, {:.1} s",
        workload.mix,
        workload.keys,
        workload.popularity,
        workload.value_bytes,
        load.connections,
        load.pipeline,
        load.cpus,
        run.seconds,
    );
    let _ = writeln!(
        out,
        "{:<14}{:>12}{:>10}{:>10}{:>10}{:>10}",
        "", "requests/s", "p50", "p99", "p99.9", "max"
    );
    let mut row = |name: &str, requests_per_second: f64, spans: &Percentiles| {
        let _ = writeln!(
            out,
            "{name:<14}{requests_per_second:>12.0}{:>10}{:>10}{:>10}{:>10}",
            units::span(spans.p50),
            units::span(spans.p99),
            units::span(spans.p99_9),
            units::span(spans.max),
        );
    };
    if run.classes.len() > 1 {
        for class in &run.classes {
            row(&class.name, class.requests as f64 / run.seconds, &class.latency);
        }
    }
    row("all", run.requests_per_second, &run.latency);
    if load.rate.is_some() {
        row("service time", run.requests_per_second, &run.service_time);
    }
    if let Some(ratio) = run.hit_ratio {
        let keys = run.keys_per_second;
        let _ = writeln!(out, "hits           {:.2} % of {keys:.0} keys/s", 100.0 * ratio);
    }
    if let Some(cpu) = &run.server_cpu {
        let _ = writeln!(
            out,
            "server CPU     {:.3} µs/request (user {:.3}, system {:.3}), {:.2} CPUs busy",
            cpu.micros_per_request, cpu.user, cpu.system, cpu.cpus,
        );
        if let Some(per_key) = run.cpu_micros_per_key() {
            let _ = writeln!(out, "               {per_key:.3} µs/key");
        }
    }
    let cpu = &run.generator_cpu;
    let _ = writeln!(
        out,
        "generator CPU  {:.3} µs/request (user {:.3}, system {:.3}), busiest thread {:.0} % busy{}",
        cpu.micros_per_request,
        cpu.user,
        cpu.system,
        100.0 * run.generator_busy,
        match run.generator_waited {
            0.0..0.01 => String::new(),
            waited => format!(", {:.0} % waiting for its CPU", 100.0 * waited),
        },
    );
    // A few at the very end are insignificant.
    if run.unsent * 1000 > run.requests {
        let _ = writeln!(out, "not sent       {} requests that were due in time", run.unsent);
    }
    for fault in &run.faults {
        let _ = writeln!(out, "errors         {} x {}: {}", fault.count, fault.kind, fault.first);
    }
    if let Some(limit) = &run.generator_limit {
        let _ = writeln!(out, "WARNING        {limit}");
    }
    out
}

/// One second of a run.
pub fn second(second: &SecondSummary, rate: Option<f64>) -> String {
    let hits = match second.hit_ratio {
        Some(ratio) => format!("  hits {:.1} %", 100.0 * ratio),
        None => String::new(),
    };
    let asked = match rate {
        Some(rate) => format!(" of {rate:.0}"),
        None => String::new(),
    };
    let spans = match second.requests {
        0 => "no answer".into(),
        _ => format!(
            "p50 {}  p99 {}  p99.9 {}  max {}",
            units::span(second.p50),
            units::span(second.p99),
            units::span(second.p99_9),
            units::span(second.max),
        ),
    };
    format!(
        "{:>4} s {:>9}{asked} requests  {spans}{hits}  errors {}",
        second.second, second.requests, second.faults,
    )
}

/// The heads of the columns.
pub fn sweep_header() -> String {
    format!(
        "{:>12}{:>12}{:>10}{:>10}{:>10}{:>10}{:>20}{:>8}",
        "asked/s", "reached/s", "p50", "p99", "p99.9", "max", "server CPU µs/req", "errors"
    )
}

/// A run at one rate.
pub fn sweep_line(run: &Summary) -> String {
    let cpu = run.server_cpu.map_or("-".into(), |cpu| format!("{:.3}", cpu.micros_per_request));
    let mut line = format!(
        "{:>12.0}{:>12.0}{:>10}{:>10}{:>10}{:>10}{cpu:>20}{:>8}",
        run.load.rate.unwrap_or_default(),
        run.requests_per_second,
        units::span(run.latency.p50),
        units::span(run.latency.p99),
        units::span(run.latency.p99_9),
        units::span(run.latency.max),
        run.faults.iter().map(|fault| fault.count).sum::<u64>(),
    );
    if let Some(limit) = &run.generator_limit {
        line = format!("{line}  WARNING {limit}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_without_answers_has_no_latencies() {
        let second = SecondSummary { second: 3, faults: 50, ..SecondSummary::default() };
        let line = super::second(&second, Some(20_000.0));
        assert_eq!(line, "   3 s         0 of 20000 requests  no answer  errors 50");
    }
}
