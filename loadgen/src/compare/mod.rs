//! The command `compare`: servers under the same workload in alternating rounds.
//!
//! A machine drifts: clocks, caches, neighbours. Two figures taken minutes apart differ by more
//! than most improvements, but the ratio of two figures taken in turn does not. So every round
//! measures every server once, in an order that reverses from round to round, ratios are formed
//! within a round, and the median over rounds is reported with its extremes.

pub mod rows;

use std::sync::Arc;

use crate::args;
use crate::error::Error;
use crate::plan::{LoadMode, Plan};
use crate::report::{self, markdown};
use crate::results::comparison::{Comparison, Figures, GoalResult, Ratios, RowResult};
use crate::results::document::Document;
use crate::results::summary::Summary;
use crate::run;
use crate::server::{Server, ServerSpec};
use crate::units;
use crate::wire::Protocol;
use crate::workload::Workload;
use ringlane_client::discovery::Directory;
use rows::{Goal, Row};

/// Runs the command.
pub fn run(compare: &args::Compare) -> Result<(), Error> {
    let mut document = Document::new("compare");
    report::check(compare.common.output.files().chain(&compare.markdown))?;
    let specs: Vec<ServerSpec> =
        compare.servers.iter().map(|text| ServerSpec::parse(text)).collect();
    if compare.rounds == 0 {
        return Err(Error::Setup("a comparison has at least one round".into()));
    }
    let rows = match &compare.rows {
        None => vec![Row::of(compare)],
        Some(path) => rows::read(path, compare)?,
    };
    let mut comparison = Comparison {
        rounds: compare.rounds,
        servers: specs.iter().map(|spec| (spec.name.clone(), spec.text.clone())).collect(),
        rows: Vec::new(),
    };
    for row in rows {
        eprintln!("== {}", row.name);
        let Some((result, runs)) = compare_row(compare, &specs, &row)? else { continue };
        print!("{}", markdown::row_as_text(&result));
        document.runs.extend(runs);
        comparison.rows.push(result);
        // After every row: a table takes long, and the machine may fail before it is complete.
        document.comparison = Some(comparison.clone());
        document.verdict = verdict(&comparison);
        report::write(&compare.common.output, &document)?;
        if let Some(path) = &compare.markdown {
            report::file(path, &markdown::page(&document, &comparison))?;
        }
    }
    document.verdict.iter().for_each(|sentence| println!("{sentence}"));
    Ok(())
}

/// One server of one row, with its protocol.
struct Contender {
    server: Server,
    protocol: Protocol,
    directory: Arc<Directory>,
    /// One per server: what reads may return depends on what was written there.
    workload: Workload,
}

fn compare_row(
    compare: &args::Compare,
    specs: &[ServerSpec],
    row: &Row,
) -> Result<Option<(RowResult, Vec<Summary>)>, Error> {
    let mut contenders = contenders(compare, specs, row)?;
    if contenders.len() < 2 {
        eprintln!("   skipped: fewer than two of the servers support this");
        return Ok(None);
    }
    // Address, routes and protocol differ per contender.
    let target = args::TargetArgs { protocol: Protocol::Text, ..row.target.clone() };
    let plan = run::plan(&target, &row.load)?;
    for (place, contender) in contenders.iter_mut().enumerate() {
        let known = compare.pids.get(place).copied();
        contender.server.pid = known.or(contender.server.pid);
        run::prepare(&contender.plan(&plan), &contender.workload, row.load.populate)?;
        contender.server.pause();
    }
    let pace = pace(&contenders, &plan, row)?;
    let plan = Plan { pace, ..plan };
    let mut measured: Vec<Vec<Summary>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..compare.rounds {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            let contender = &contenders[place];
            contender.server.resume();
            let name = contender.name(row);
            let mut summary =
                run::measure(&name, &contender.plan(&plan), &contender.workload, true)?.whole()?;
            contender.server.pause();
            eprintln!(
                "   round {} {name}: {:.0} requests/s, p99 {}{}",
                round + 1,
                summary.requests_per_second,
                units::span(summary.latency.p99),
                match &summary.server_cpu {
                    Some(cpu) => format!(", server CPU {:.3} µs/request", cpu.micros_per_request),
                    None => String::new(),
                },
            );
            summary.group = row.name.clone();
            measured[place].push(summary);
        }
    }
    let result = judge(&row.name, &measured, &row.goals);
    Ok(Some((result, measured.into_iter().flatten().collect())))
}

impl Contender {
    fn plan(&self, plan: &Plan) -> Plan {
        Plan {
            address: self.server.address.clone(),
            directory: self.directory.clone(),
            server_pids: self.server.pid.into_iter().collect(),
            protocol: self.protocol,
            ..plan.clone()
        }
    }

    fn name(&self, row: &Row) -> String {
        match (&row.against_protocol, &row.against_mix) {
            (Some(_), _) => format!("{} {}", self.server.name, self.protocol.name()),
            (_, Some(_)) => format!("{} {}", self.server.name, self.workload.mix),
            _ => self.server.name.clone(),
        }
    }
}

/// The servers of a row, started if necessary.
fn contenders(
    compare: &args::Compare,
    specs: &[ServerSpec],
    row: &Row,
) -> Result<Vec<Contender>, Error> {
    let protocol = row.target.protocol;
    let usable =
        specs.iter().filter(|spec| compare.rows.is_none() || spec.is_unix() == row.over_unix);
    let ready = |spec: &ServerSpec, protocol: Protocol, asked: &args::WorkloadArgs| {
        let workload = run::workload(asked)?;
        let server = Server::ready(spec, &compare.server_cpus)?;
        let target = args::TargetArgs { protocol, nodes: Vec::new(), ..row.target.clone() };
        let directory = run::directory(&server.address, &target, row.load.connections)?;
        Ok(Contender { server, protocol, directory: Arc::new(directory), workload })
    };
    if row.against_protocol.is_none() && row.against_mix.is_none() {
        return usable.map(|spec| ready(spec, protocol, &row.workload)).collect();
    }
    // The same server twice, so that the two do not share their items.
    let Some(spec) = usable.take(1).next() else { return Ok(Vec::new()) };
    let other = row.against_protocol.unwrap_or(protocol);
    let mut asked = row.workload.clone();
    asked.mix = row.against_mix.clone().unwrap_or(asked.mix);
    Ok(vec![ready(spec, protocol, &row.workload)?, ready(spec, other, &asked)?])
}

/// The rate of an open loop: given, or a fraction of one server's peak.
fn pace(contenders: &[Contender], plan: &Plan, row: &Row) -> Result<LoadMode, Error> {
    let of = match &row.peak_of {
        Some(name) => contenders.iter().find(|contender| contender.server.name == *name),
        None => contenders.last(),
    };
    // If the named server is absent, the peak of the last one is used.
    let of = of.or(contenders.last()).expect("a row has at least two servers");
    of.server.resume();
    let paced = run::paced(of.plan(plan), &of.workload, &row.load);
    of.server.pause();
    Ok(paced?.pace)
}

/// Computes ratios and compares them with the goals.
fn judge(name: &str, measured: &[Vec<Summary>], goals: &[Goal]) -> RowResult {
    let servers: Vec<Figures> = measured.iter().map(|rounds| Figures::of(rounds)).collect();
    let ratios: Vec<Ratios> =
        measured[1..].iter().map(|rounds| Ratios::of(&measured[0], rounds)).collect();
    let withheld = measured
        .iter()
        .flatten()
        .find_map(|run| run.generator_limit.as_ref().map(|words| format!("{}: {words}", run.name)));
    let mut results = Vec::new();
    for goal in goals {
        for ratio in ratios.iter().filter(|ratio| goal.is_about(&ratio.against)) {
            let Some(spread) = goal.metric.of(ratio) else { continue };
            let reached = goal.holds(spread.median);
            let verdict = match (reached, &withheld) {
                (true, _) => "reached",
                (false, Some(_)) if goal.metric != rows::Metric::Cpu => "withheld",
                (false, _) => "missed",
            };
            results.push(GoalResult {
                goal: format!("{} against {}", goal.text, ratio.against),
                ratio: spread.median,
                verdict: verdict.into(),
            });
        }
    }
    RowResult { name: name.into(), servers, ratios, withheld, goals: results }
}

/// The verdict; none about rates that the generator limited.
fn verdict(comparison: &Comparison) -> Vec<String> {
    let mut sentences = Vec::new();
    for row in &comparison.rows {
        let ours = &row.servers[0].server;
        for ratio in &row.ratios {
            let cpu = match &ratio.cpu {
                Some(cpu) => format!("{:.2} x the CPU per request", cpu.median),
                None => "CPU unknown".into(),
            };
            let rate = match row.withheld {
                None => format!("{:.2} x the requests/s", ratio.rate.median),
                Some(_) => "no verdict on requests/s, the generator was the limit".into(),
            };
            sentences
                .push(format!("{}: {ours} against {}: {cpu}, {rate}", row.name, ratio.against));
        }
    }
    sentences
}
