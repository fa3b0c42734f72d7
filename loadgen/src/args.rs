//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ringlane_ring::RingHash;

use crate::objective::Objective;
use crate::plan::Refill;
use crate::schedule::Arrival;
use crate::units::parse_span;
use crate::wire::Protocol;
use crate::workload::Verify;
use crate::workload::mix::Mix;
use crate::workload::popularity::Popularity;
use crate::workload::sizes::{Sizes, amount};
use ringlane_client::address::{Address, NodeAddress};

/// Load generator for memcached-compatible servers: open loop, with every answer verified.
#[derive(Debug, Parser)]
#[command(name = "ringload", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: LoadCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum LoadCommand {
    /// Load a server and report throughput, latency and CPU time.
    Run(Run),
    /// Run the same workload on two or more servers in alternating rounds; report ratios with
    /// spread.
    Compare(Compare),
    /// Run at several rates; report latency against rate.
    Sweep(Sweep),
    /// Find the highest rate that meets an objective: climb, then bisect.
    Saturate(Saturate),
    /// Write every key once.
    Populate(Whole),
    /// Read every key once and check its value.
    Verify(Verification),
    /// Show results saved as JSON, optionally as one HTML page.
    Report(ReportArgs),
}

/// Flags shared by all commands that generate load.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub workload: WorkloadArgs,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of `run`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Run {
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `sweep`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Sweep {
    /// Requests per second, one run each: 10k,20k. Default: tenths of a closed loop's rate.
    #[arg(long, value_delimiter = ',', value_parser = per_second, value_name = "RATES")]
    pub rates: Vec<u64>,
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `saturate`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Saturate {
    /// Latency objective, such as p99.9=1ms; repeat it or separate several by commas.
    #[arg(long, required = true, value_delimiter = ',', value_name = "PERCENTILE=TIME")]
    pub slo: Vec<Objective>,
    /// Stop when the rate is known to this precision, in percent.
    #[arg(long, default_value_t = 2.0)]
    pub precision: f64,
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `populate`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Whole {
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Verification {
    /// Treat a missing key as a failure.
    #[arg(long)]
    pub complete: bool,
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// JSON files written by other commands.
    #[arg(required = true)]
    pub files: Vec<std::path::PathBuf>,
    /// Write one HTML page with all of them.
    #[arg(long, value_name = "FILE")]
    pub html: Option<std::path::PathBuf>,
}

/// Flags of `compare`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Compare {
    /// Servers: ADDRESS, NAME=ADDRESS, or NAME='COMMAND {port}' ({socket} for a unix socket) to
    /// start one. The first is compared with each of the others.
    #[arg(required = true, num_args = 2.., value_name = "SERVER")]
    pub servers: Vec<String>,
    /// Rounds; each measures every server once.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// CPUs for servers started by this command.
    #[arg(long, default_value = "0", value_name = "LIST")]
    pub server_cpus: String,
    /// Process ids of the servers already running, in order: 123,456.
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Table of workloads to compare instead of the one described by the flags; see
    /// benches/compare/rows.
    #[arg(long, value_name = "FILE")]
    pub rows: Option<std::path::PathBuf>,
    /// Run only rows whose name contains this.
    #[arg(long, requires = "rows", value_name = "TEXT")]
    pub only: Option<String>,
    /// Write the table as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

/// Where to write results besides the terminal.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Write the full results as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<std::path::PathBuf>,
    /// Write one self-contained HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<std::path::PathBuf>,
    /// Write the latency histogram for HdrHistogram tools; files are numbered for several runs.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<std::path::PathBuf>,
    /// Omit the line per second.
    #[arg(long, short)]
    pub quiet: bool,
}

impl OutputArgs {
    /// The requested files.
    pub fn files(&self) -> impl Iterator<Item = &std::path::PathBuf> {
        [&self.json, &self.html, &self.hgrm].into_iter().flatten()
    }
}

/// Which server to load, and on which CPUs to run.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server and generator")]
pub struct TargetArgs {
    /// Server address: host:port, or the path of a unix socket.
    #[arg(long, short, default_value = "127.0.0.1:11211")]
    pub address: Address,
    /// Several nodes instead, as ID=ADDRESS,ID=ADDRESS; each key goes to its owner on the ring.
    /// (With the binary protocol one address is enough: that node reports the others.) A weight
    /// other than 1 follows the id: ID*2=ADDRESS.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub nodes: Vec<NodeAddress>,
    /// Points on the ring per node and unit of weight, the same as on the nodes.
    #[arg(long, value_name = "COUNT", default_value_t = 150, requires = "nodes")]
    pub vnodes: u32,
    /// Hash function of the ring, the same as on the nodes: md5 or xxh3.
    #[arg(long, default_value = "md5", requires = "nodes", value_parser = ring_hash)]
    pub ring_hash: RingHash,
    /// Binary protocol: do not send keys to their core's own port, even if the server offers it.
    #[arg(long)]
    pub no_shard_ports: bool,
    /// Protocol to use.
    #[arg(long, value_enum, default_value = "text")]
    pub protocol: Protocol,
    /// Measure the total CPU time of these processes. Default: those that listen at the addresses.
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// CPUs for the generator, one thread each: 1 or 2-3,5. Default: the upper half of the allowed
    /// ones.
    #[arg(long, visible_alias = "cpu", value_name = "LIST")]
    pub cpus: Option<String>,
    /// Poll instead of sleeping: fastest reaction, at a whole CPU per thread.
    #[arg(long)]
    pub spin: bool,
    /// Abandon a request and its connection after this time.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_span)]
    pub timeout: Duration,
}

/// Which requests to send.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Workload")]
pub struct WorkloadArgs {
    /// Shares of commands: get, set, delete, incr, multiget.
    #[arg(long, default_value = "get=9,set=1")]
    pub mix: Mix,
    /// Number of keys.
    #[arg(long, default_value = "1M", value_parser = amount)]
    pub keys: u64,
    /// Length of a key in bytes.
    #[arg(long, default_value_t = 16)]
    pub key_bytes: usize,
    /// Prefix of every key.
    #[arg(long, default_value = "key:")]
    pub key_prefix: String,
    /// Distribution of requests over keys: uniform, sequential, zipf, zipf:EXPONENT, hotspot,
    /// hotspot:KEYS%:REQUESTS%.
    #[arg(long, default_value = "uniform")]
    pub popularity: Popularity,
    /// Lengths of values: 32, 10-1000, or weighted 32:50,1KiB:30,100KiB:20.
    #[arg(long, default_value = "32")]
    pub value_bytes: Sizes,
    /// Exptime of sets in seconds, in the same forms; 0 means never.
    #[arg(long, default_value = "0")]
    pub ttl: Sizes,
    /// Keys in a multiget.
    #[arg(long, default_value_t = 50)]
    pub multiget_keys: usize,
    /// Write each key that a get missed.
    #[arg(long)]
    pub cache_aside: bool,
    /// How strictly to check answers.
    #[arg(long, value_enum, default_value = "full")]
    pub verify: Verify,
    /// Random seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How to send them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct Load {
    /// Write every key before the load. Auto: if a sample shows that reads would miss or find
    /// another workload's values.
    #[arg(long, value_enum, default_value = "auto", num_args = 0..=1,
        default_missing_value = "yes", require_equals = true)]
    pub populate: Populate,
    /// Closed loop: send the next request when an answer has arrived.
    #[arg(long, conflicts_with = "rate")]
    pub closed: bool,
    /// Open loop: requests per second, or a percentage of a short closed loop's rate.
    #[arg(long, default_value = "50%", value_name = "RATE|PERCENT%")]
    pub rate: Rate,
    /// Distribution of send times in the open loop.
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrival: Arrival,
    /// Total connections of all threads.
    #[arg(long, short, default_value_t = 50)]
    pub connections: usize,
    /// Unanswered requests per connection.
    #[arg(long, short, default_value_t = 1)]
    pub pipeline: usize,
    /// When a connection sends again in the closed loop.
    #[arg(long, value_enum, default_value = "batch")]
    pub refill: Refill,
    /// Seconds to record.
    #[arg(long, default_value_t = 10.0, value_parser = recording)]
    pub seconds: f64,
    /// Seconds of load before recording starts.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub warmup: f64,
    /// Reopen a connection after this many requests; 0 means never.
    #[arg(long, value_name = "REQUESTS", default_value_t = 0)]
    pub churn: u64,
}

/// When to write all keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Populate {
    /// If the workload reads keys that are missing or hold another workload's values.
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// The rate of an open loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Requests per second.
    Fixed(f64),
    /// A fraction of a closed loop's rate.
    OfPeak(f64),
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 1000.0 => {
                    Ok(Rate::OfPeak(percent / 100.0))
                }
                _ => Err(format!("{text:?} is not a percentage above 0 and up to 1000")),
            },
            None => per_second(text).map(|rate| Rate::Fixed(rate as f64)),
        }
    }
}

fn per_second(text: &str) -> Result<u64, String> {
    match amount(text)? {
        0 => Err("a rate must be above 0".into()),
        rate => Ok(rate),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().map_err(|_| "write seconds as 2 or 0.5".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(span) if span <= Duration::from_secs(86_400) => Ok(seconds),
        _ => Err("must be between 0 and 86400 seconds, a day".into()),
    }
}

/// Shorter recordings would mostly measure nothing.
fn recording(text: &str) -> Result<f64, String> {
    match seconds(text)? {
        0.0..0.1 => Err("must be at least 0.1 seconds".into()),
        seconds => Ok(seconds),
    }
}

fn ring_hash(text: &str) -> Result<RingHash, String> {
    let found = RingHash::NAMES.iter().find(|(name, _)| *name == text);
    found.map(|(_, hash)| *hash).ok_or_else(|| "use md5 or xxh3".into())
}

/// CPUs written as `1` or `0,2-4`.
pub fn cpu_list(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("{text:?} is not a list of CPUs: use one such as 1 or 0,2-4");
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if last < first || last > 4095 {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(cpu_list("0,2-4").unwrap(), [0, 2, 3, 4]);
        assert!(cpu_list("3-1").is_err() && cpu_list("").is_err());
    }

    #[test]
    fn what_would_measure_nothing_is_refused_and_a_sign_is_part_of_its_value() {
        for (flag, value, words) in [
            ("--seconds", "0", "at least 0.1"),
            ("--seconds", "-1", "between 0 and"),
            ("--seconds", "soon", "as 2 or 0.5"),
            ("--warmup", "-1", "between 0 and"),
            ("--rate", "0", "above 0"),
            ("--rate", "-5", "not a number"),
            ("--keys", "-5", "not a number"),
        ] {
            let error = Arguments::try_parse_from(["ringload", "run", flag, value]).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(&format!("'{value}'")) && error.contains(words), "{error}");
        }
        assert!(Arguments::try_parse_from(["ringload", "sweep", "--rates", "1k,0"]).is_err());
        assert!(Arguments::try_parse_from(["ringload", "run", "--warmup", "0"]).is_ok());
    }
}
