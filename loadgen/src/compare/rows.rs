//! The rows of a comparison table, from flags or from a file.
//!
//! A line of the file is a name in quotes and flags of `run`, plus some additional ones:
//! `--unix`, `--peak-of SERVER`, `--against-protocol PROTOCOL`, `--against-mix MIX` and
//! `--goal 'METRIC:SERVER<=RATIO'`.
//! Empty lines and lines that begin with `#` are ignored.

use std::path::Path;
use std::str::FromStr;

use clap::Parser;

use crate::args;
use crate::error::Error;
use crate::results::comparison::{Ratios, Spread};
use crate::wire::Protocol;
use crate::workload::mix::Mix;

/// One workload to compare servers under.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The workload.
    pub workload: args::WorkloadArgs,
    /// The load.
    pub load: args::Load,
    /// The generator.
    pub target: args::TargetArgs,
    /// Only servers on unix sockets, instead of only those on TCP.
    pub over_unix: bool,
    /// Instead of other servers: the first server against itself in this protocol.
    pub against_protocol: Option<Protocol>,
    /// Instead of other servers: the first server against itself with this mix of commands.
    pub against_mix: Option<Mix>,
    /// The server whose peak a rate in percent refers to.
    pub peak_of: Option<String>,
    /// The goals.
    pub goals: Vec<Goal>,
}

/// A line of the file.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    name: String,
    #[command(flatten)]
    target: args::TargetArgs,
    #[command(flatten)]
    workload: args::WorkloadArgs,
    #[command(flatten)]
    load: args::Load,
    #[arg(long)]
    unix: bool,
    #[arg(long, value_enum)]
    against_protocol: Option<Protocol>,
    #[arg(long, conflicts_with = "against_protocol")]
    against_mix: Option<Mix>,
    #[arg(long)]
    peak_of: Option<String>,
    #[arg(long)]
    goal: Vec<Goal>,
}

/// A goal for a ratio, spelled `cpu:pogocache<=0.90`. A `*` at the end of the server's name matches
/// any suffix.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// As spelled.
    pub text: String,
    /// Which ratio.
    pub metric: Metric,
    server: String,
    at_most: bool,
    bound: f64,
}

/// A ratio of two servers' figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Server CPU time per request.
    Cpu,
    /// Requests per second.
    Rate,
    /// Median latency.
    P50,
    /// 99th percentile.
    P99,
    /// 99.9th percentile.
    P99_9,
}

impl Metric {
    /// This metric among the ratios.
    pub fn of(self, ratios: &Ratios) -> Option<Spread> {
        match self {
            Metric::Cpu => ratios.cpu,
            Metric::Rate => Some(ratios.rate),
            Metric::P50 => Some(ratios.p50),
            Metric::P99 => Some(ratios.p99),
            Metric::P99_9 => Some(ratios.p99_9),
        }
    }
}

impl Goal {
    /// Whether it applies to this server.
    pub fn is_about(&self, server: &str) -> bool {
        match self.server.strip_suffix('*') {
            Some(beginning) => server.starts_with(beginning),
            None => self.server == server,
        }
    }

    /// Whether a ratio reaches it.
    pub fn holds(&self, ratio: f64) -> bool {
        if self.at_most { ratio <= self.bound } else { ratio >= self.bound }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not METRIC:SERVER<=RATIO or METRIC:SERVER>=RATIO");
        let (subject, bound, at_most) = match (text.split_once("<="), text.split_once(">=")) {
            (Some((subject, bound)), _) => (subject, bound, true),
            (_, Some((subject, bound))) => (subject, bound, false),
            _ => return Err(wrong()),
        };
        let (metric, server) = subject.split_once(':').ok_or_else(wrong)?;
        let metric = match metric {
            "cpu" => Metric::Cpu,
            "rate" => Metric::Rate,
            "p50" => Metric::P50,
            "p99" => Metric::P99,
            "p99.9" => Metric::P99_9,
            _ => {
                return Err(format!(
                    "there is no metric {metric:?}; use cpu, rate, p50, p99 or p99.9"
                ));
            }
        };
        let bound = bound.parse().map_err(|_| wrong())?;
        Ok(Self { text: text.into(), metric, server: server.into(), at_most, bound })
    }
}

impl Row {
    /// The single row described by the command's own flags.
    pub fn of(compare: &args::Compare) -> Self {
        Self {
            name: "as asked".into(),
            workload: compare.common.workload.clone(),
            load: compare.common.load.clone(),
            target: compare.common.target.clone(),
            over_unix: false,
            against_protocol: None,
            against_mix: None,
            peak_of: None,
            goals: Vec::new(),
        }
    }
}

/// Reads a table. Duration and generator are the command's; the workload is the line's.
pub fn read(path: &Path, compare: &args::Compare) -> Result<Vec<Row>, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Setup(format!("cannot read {}: {error}", path.display())))?;
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong =
            |words: String| Error::Setup(format!("{}:{}: {words}", path.display(), number + 1));
        let words = words(line).map_err(wrong)?;
        let line = Line::try_parse_from(words).map_err(|error| wrong(error.to_string()))?;
        if compare.only.as_ref().is_some_and(|only| !line.name.contains(only.as_str())) {
            continue;
        }
        let protocol = line.target.protocol;
        rows.push(Row {
            name: line.name,
            workload: line.workload,
            load: args::Load {
                seconds: compare.common.load.seconds,
                warmup: compare.common.load.warmup,
                ..line.load
            },
            target: args::TargetArgs { protocol, ..compare.common.target.clone() },
            over_unix: line.unix,
            against_protocol: line.against_protocol,
            against_mix: line.against_mix,
            peak_of: line.peak_of,
            goals: line.goal,
        });
    }
    Ok(rows)
}

/// Splits at spaces, except within single or double quotes.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_quoted_blanks() {
        let split = words("'get 32 B' --mix get=1  --goal \"cpu:a b<=1\" ''").unwrap();
        assert_eq!(split, ["get 32 B", "--mix", "get=1", "--goal", "cpu:a b<=1", ""]);
        assert!(words("'open").is_err());
    }

    #[test]
    fn goals_are_read_and_judged() {
        let goal: Goal = "cpu:pogocache<=0.90".parse().unwrap();
        assert!(goal.is_about("pogocache") && !goal.is_about("memcached"));
        assert!(goal.holds(0.9) && !goal.holds(0.91));
        let goal: Goal = "cpu:memcached*<=0.4".parse().unwrap();
        assert!(goal.is_about("memcached") && goal.is_about("memcached-1.6.45"));
        assert!(!goal.is_about("pogocache"));
        let goal: Goal = "rate:*>=1.1".parse().unwrap();
        assert!(goal.is_about("anything") && goal.holds(1.1) && !goal.holds(1.0));
        for text in ["cpu<=1", "cpu:x=1", "size:x<=1", "cpu:x<=y"] {
            assert!(text.parse::<Goal>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_tables_of_this_repository_are_read() {
        for table in ["rows", "own-rows"] {
            let path = format!("{}/../benches/compare/{table}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).expect(&path);
            let mut rows = 0;
            for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let line = Line::try_parse_from(words(line).unwrap()).expect(line);
                assert!(crate::run::workload(&line.workload).is_ok(), "{}", line.name);
                rows += 1;
            }
            assert!(rows >= 3, "{table}");
        }
    }

    #[test]
    fn lines_of_a_table_are_command_lines() {
        let line = words("'get' --closed --mix get=1 -p 64 --goal p99:*<=0.8 --unix").unwrap();
        let line = Line::try_parse_from(line).unwrap();
        assert!(line.unix && line.load.closed && line.load.pipeline == 64);
        assert_eq!(line.goal[0].metric, Metric::P99);
        assert!(Line::try_parse_from(["x", "--no-such"]).is_err());
    }
}
