//! The command `run`, and the code that other commands share with it: from flags to a measured
//! phase.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use ringlane_ring::RingParameters;

use crate::args::{self, Populate, Rate};
use crate::error::Error;
use crate::listener;
use crate::phase::{self, Moment, PhaseOutcome};
use crate::plan::{LoadMode, Plan, Refill};
use crate::process::CpuTime;
use crate::report::live::LiveView;
use crate::report::{self, text};
use crate::results::document::Document;
use crate::results::summary::Summary;
use crate::source::Job;
use crate::wire::Protocol;
use crate::workload::keys::Keys;
use crate::workload::mix::WorkloadCommand;
use crate::workload::values::Values;
use crate::workload::versions::Versions;
use crate::workload::{Verify, Workload};
use ringlane_client::address::{Address, NodeAddress};
use ringlane_client::discovery::{self, Directory};
use ringlane_client::routes::{Layout, Routes};

/// Versions take up to sixteen bytes per key.
const VERIFIED_KEYS_MAX: u64 = 200_000_000;

/// Bytes of values in flight per connection when every key is written or read once.
const ONCE_BYTES: u64 = 256 << 10;

/// Runs the command.
pub fn run(run: &args::Common) -> Result<(), Error> {
    let mut document = Document::new("run");
    report::check(run.output.files())?;
    let workload = workload(&run.workload)?;
    let plan = plan(&run.target, &run.load)?;
    prepare(&plan, &workload, run.load.populate)?;
    let plan = paced(plan, &workload, &run.load)?;
    let name = plan.address.to_string();
    let Measured { summary, failure } = measure(&name, &plan, &workload, run.output.quiet)?;
    print!("{}", text::summary(&summary));
    println!("host           {}", document.host.sentence());
    document.runs.push(summary);
    report::write(&run.output, &document)?;
    failure.map_or(Ok(()), Err)
}

/// The command `populate`.
pub fn populate(common: &args::Common) -> Result<(), Error> {
    let workload = workload(&common.workload)?;
    report::check(common.output.files())?;
    let plan = plan(&common.target, &common.load)?;
    whole(common, "populate", &once(&plan, &workload, Job::Populate), &workload).map(|_| ())
}

/// The command `verify`.
pub fn verify(verification: &args::Verification) -> Result<(), Error> {
    let common = &verification.common;
    // Only values written by earlier runs can be seen.
    let workload = Workload { versions: None, ..workload(&common.workload)? };
    report::check(common.output.files())?;
    let plan = plan(&common.target, &common.load)?;
    let summary = whole(common, "verify", &once(&plan, &workload, Job::Verify), &workload)?;
    let hits: u64 =
        summary.classes.iter().filter(|c| c.name == "get hit").map(|c| c.requests).sum();
    let keys = workload.keys.count();
    println!("{hits} of {keys} keys hold their value, {} are missing, none are wrong", keys - hits);
    if verification.complete && hits < keys {
        return Err(Error::Setup(format!("{} keys are missing", keys - hits)));
    }
    Ok(())
}

/// A phase over every key, with its report.
fn whole(
    common: &args::Common,
    kind: &str,
    plan: &Plan,
    workload: &Workload,
) -> Result<Summary, Error> {
    let mut document = Document::new(kind);
    let name = plan.address.to_string();
    let Measured { summary, failure } = measure(&name, plan, workload, common.output.quiet)?;
    print!("{}", text::summary(&summary));
    document.runs.push(summary.clone());
    report::write(&common.output, &document)?;
    failure.map_or(Ok(summary), Err)
}

/// The result of a phase, and what is wrong with it.
pub struct Measured {
    /// The figures.
    pub summary: Summary,
    /// Why they do not cover the whole phase.
    pub failure: Option<Error>,
}

impl Measured {
    /// The figures of the whole phase.
    ///
    /// # Errors
    /// If the server died during it.
    pub fn whole(self) -> Result<Summary, Error> {
        self.failure.map_or(Ok(self.summary), Err)
    }
}

/// Measures one phase.
pub fn measure(
    name: &str,
    plan: &Plan,
    workload: &Workload,
    quiet: bool,
) -> Result<Measured, Error> {
    let mut live = LiveView::new(plan, !quiet, std::io::stderr().is_terminal());
    let show = |moment: &Moment| live.show(moment);
    let mut outcome = phase::run(plan.clone(), workload.clone(), show)?;
    live.finish();
    let failure = outcome.failure();
    Ok(Measured { summary: Summary::of(name, plan, workload, &mut outcome), failure })
}

/// Writes all keys if requested, and reports it.
pub fn prepare(plan: &Plan, workload: &Workload, populate: Populate) -> Result<(), Error> {
    let wanted = match populate {
        Populate::Yes => true,
        Populate::No => false,
        Populate::Auto => {
            let reads = [WorkloadCommand::Get, WorkloadCommand::Multiget]
                .map(|command| workload.mix.weight(command));
            reads != [0, 0] && unready(plan, workload)?
        }
    };
    if wanted {
        let outcome = phase::run(once(plan, workload, Job::Populate), workload.clone(), |_| {})?;
        let seconds = outcome.window.as_secs_f64();
        let refused = outcome.faults.total();
        eprintln!("populated {} keys in {seconds:.1} s", outcome.totals.answers);
        if refused > 0 {
            let first = outcome.faults.telling().unwrap_or_default();
            eprintln!("populating caused {refused} errors: {first}");
        }
    }
    Ok(())
}

/// Whether a sample of keys has misses that the load will not fill, or values of another workload:
/// values of other lengths from an earlier run would count as wrong answers.
fn unready(plan: &Plan, workload: &Workload) -> Result<bool, Error> {
    let verify = if workload.verify == Verify::Off { Verify::Off } else { Verify::Content };
    let sampled = Workload { verify, versions: None, ..workload.clone() };
    match phase::run(once(plan, workload, Job::Sample), sampled, |_| {}) {
        Ok(PhaseOutcome { totals, .. }) => {
            Ok(!workload.cache_aside && totals.keys_hit < totals.keys_asked)
        }
        Err(Error::WrongAnswer(_)) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// The plan at the requested rate, which may depend on a peak that is measured first.
pub fn paced(plan: Plan, workload: &Workload, load: &args::Load) -> Result<Plan, Error> {
    let rate = match (load.closed, load.rate) {
        (true, _) => return Ok(plan),
        (false, Rate::Fixed(rate)) => rate,
        (false, Rate::OfPeak(part)) => {
            let peak = peak(&plan, workload)?;
            eprintln!(
                "closed loop reaches {peak:.0} requests/s; using {:.0} % of that:",
                part * 100.0
            );
            peak * part
        }
    };
    Ok(Plan { pace: LoadMode::Open { rate, arrival: load.arrival }, ..plan })
}

/// The rate of a short closed loop.
pub fn peak(plan: &Plan, workload: &Workload) -> Result<f64, Error> {
    let plan = Plan {
        pace: LoadMode::Closed,
        warmup: Duration::from_millis(500),
        window: Some(Duration::from_secs(3)),
        ..plan.clone()
    };
    let outcome = phase::run(plan, workload.clone(), |_| {})?;
    if let Some(failure) = outcome.failure() {
        return Err(failure);
    }
    Ok(outcome.totals.answers as f64 / outcome.window.as_secs_f64())
}

/// The plan that accesses every key once, over the same connections.
pub fn once(plan: &Plan, workload: &Workload, job: Job) -> Plan {
    // Large values queue behind those of all connections: 32 each would time out.
    let value_bytes = workload.values.sizes().max().max(1);
    let pipeline = (ONCE_BYTES / value_bytes).clamp(1, 32) as usize;
    Plan {
        job,
        pace: LoadMode::Closed,
        pipeline: plan.pipeline.max(pipeline),
        refill: Refill::Batch,
        warmup: Duration::ZERO,
        window: None,
        churn: 0,
        spin: false,
        ..plan.clone()
    }
}

/// The workload described by the flags.
pub fn workload(args: &args::WorkloadArgs) -> Result<Workload, Error> {
    let failed = |words: String| Error::Setup(words);
    let keys = Keys::new(args.keys, &args.key_prefix, args.key_bytes)
        .map_err(|error| failed(error.to_string()))?;
    if !(1..=10_000).contains(&args.multiget_keys) {
        let keys = args.multiget_keys;
        return Err(failed(format!("a multiget of {keys} keys is not possible: use 1 to 10000")));
    }
    if args.value_bytes.max() > 1 << 30 {
        let bytes = &args.value_bytes;
        return Err(failed(format!("values of {bytes} bytes are not possible: use at most 1 GiB")));
    }
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let clock = clock.unwrap_or_default().as_nanos() as u64 ^ u64::from(std::process::id());
    let reads = [WorkloadCommand::Get, WorkloadCommand::Multiget]
        .iter()
        .any(|&command| args.mix.weight(command) > 0);
    // Stale reads are possible only with both reads and writes.
    let verified = reads && (args.mix.writes() || args.cache_aside);
    let counters = if args.mix.weight(WorkloadCommand::Incr) > 0 { args.keys } else { 0 };
    let versions = match args.verify {
        Verify::Full if verified || counters > 0 => {
            if args.keys > VERIFIED_KEYS_MAX {
                let words = "too many keys to track all versions: use --verify content";
                return Err(failed(words.into()));
            }
            Some(Arc::new(Versions::new(args.keys, counters)))
        }
        _ => None,
    };
    Ok(Workload {
        keys,
        values: Values::new(args.value_bytes.clone()),
        mix: args.mix.clone(),
        popularity: args.popularity,
        multiget_keys: args.multiget_keys,
        ttl_seconds: args.ttl.clone(),
        verify: args.verify,
        writer: crate::random::mix(clock) as u32,
        versions,
        cache_aside: args.cache_aside,
        seed: args.seed,
    })
}

/// The load plan described by the flags, in a closed loop; [`paced`] sets its rate.
pub fn plan(target: &args::TargetArgs, load: &args::Load) -> Result<Plan, Error> {
    let failed = |words: &str| Error::Setup(words.into());
    let cpus = cpus(target.cpus.as_deref())?;
    if load.connections < cpus.len() || load.connections > 60_000 {
        return Err(failed(&format!(
            "{} connections: at least one for each of the {} threads and at most 60000 are possible",
            load.connections,
            cpus.len()
        )));
    }
    if !(1..=65_536).contains(&load.pipeline) {
        let pipeline = load.pipeline;
        return Err(failed(&format!(
            "a pipeline of {pipeline} requests is not possible: use 1 to 65536"
        )));
    }
    if target.timeout.is_zero() {
        return Err(failed("a timeout of 0 would abandon every request: use a longer one"));
    }
    let address = target.nodes.first().map_or(&target.address, |node| &node.address).clone();
    let directory = directory(&address, target, load.connections)?;
    let mut server_pids = target.server_pid.clone();
    if let Some(pid) = server_pids.iter().find(|pid| CpuTime::of_process(**pid).is_err()) {
        return Err(Error::Setup(format!("there is no process {pid} to measure")));
    }
    if server_pids.is_empty() {
        let routes = directory.current();
        let nodes = routes.layout().nodes.iter();
        let addresses = nodes.filter_map(|node| node.endpoints.first());
        let found = addresses.map(|address| listener::pid_of(address.socket()));
        // Some of the nodes would be taken for all of them.
        server_pids = found.collect::<Option<Vec<u32>>>().unwrap_or_default();
        server_pids.sort_unstable();
        server_pids.dedup();
    }
    Ok(Plan {
        job: Job::Mix,
        pace: LoadMode::Closed,
        address,
        directory: Arc::new(directory),
        protocol: target.protocol,
        connections: load.connections,
        pipeline: load.pipeline,
        refill: load.refill,
        warmup: Duration::from_secs_f64(load.warmup),
        window: Some(Duration::from_secs_f64(load.seconds)),
        timeout: target.timeout,
        churn: load.churn,
        spin: target.spin,
        cpus,
        server_pids,
    })
}

/// The routes: as given on the command line, as described by the server at `address` in the binary
/// protocol, or all to that server. At most as many endpoints as each thread has connections.
pub fn directory(
    address: &Address,
    target: &args::TargetArgs,
    connections: usize,
) -> Result<Directory, Error> {
    let threads = cpus(target.cpus.as_deref())?.len();
    let binary = target.protocol == Protocol::Binary;
    let shard_ports = binary && !target.no_shard_ports;
    let directory = if !target.nodes.is_empty() {
        let parameters = RingParameters {
            hash: target.ring_hash,
            points_per_weight: target.vnodes,
            ..RingParameters::default()
        };
        named(&target.nodes, parameters, shard_ports, connections / threads)
    } else if binary {
        Directory::discover(address, shard_ports, connections / threads)
    } else {
        Routes::new(Layout::one(address.clone())).map(Directory::fixed)
    };
    let directory = directory.map_err(Error::Setup)?;
    if let Some(words) = directory.sentence() {
        eprintln!("{words}");
    }
    Ok(directory)
}

/// The routes to the nodes listed on the command line.
fn named(
    nodes: &[NodeAddress],
    parameters: RingParameters,
    shard_ports: bool,
    endpoints_max: usize,
) -> Result<Directory, String> {
    let mut layout = Layout::named(nodes, parameters);
    if shard_ports {
        for node in &mut layout.nodes {
            discovery::find_cores(node)?;
        }
    }
    if nodes.len() > endpoints_max {
        let count = nodes.len();
        return Err(format!(
            "{count} nodes need one connection per thread each: raise --connections"
        ));
    }
    Routes::new(layout.within(endpoints_max)).map(Directory::fixed)
}

/// The requested CPUs, or the upper half of those allowed: a local server uses the lower ones.
fn cpus(list: Option<&str>) -> Result<Vec<usize>, Error> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let Some(list) = list else {
        let upper = allowed.len() / 2;
        return match allowed.get(upper..) {
            Some(cpus) if !cpus.is_empty() => Ok(cpus.to_vec()),
            _ => Ok(vec![0]),
        };
    };
    let cpus = args::cpu_list(list).map_err(Error::Setup)?;
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => {
            Err(Error::Setup(format!("CPU {cpu} is not among the allowed ones: {allowed:?}")))
        }
        None => Ok(cpus),
    }
}
