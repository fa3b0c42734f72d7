//! memcached's flags that have no counterpart here, so that its command lines keep working.
//!
//! A flag that tunes memcached's internals is parsed, validated and ignored with a note. One that
//! promises something a client or an operator would miss is refused, with an alternative. Refused
//! here: accepting everything silently, since a server that was asked for TLS and answers in plain
//! text is worse than one that does not start.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::settings::Settings;
use super::values::{PositiveNumber, Seconds, UdpOff};

/// Flags accepted for compatibility with memcached.
#[derive(Args, Debug)]
pub struct MemcachedFlags {
    /// Accepted if it is 0: there is no UDP.
    #[arg(short = 'U', long = "udp-port", value_name = "0", hide = true)]
    udp_port: Option<UdpOff>,
    /// Ignored: start the server as that user instead.
    #[arg(short = 'u', long = "user", value_name = "NAME", hide = true)]
    user: Option<String>,
    /// Ignored: a connection's turn serves what one receive buffer holds.
    #[arg(short = 'R', long = "max-reqs-per-event", value_name = "COUNT", hide = true)]
    requests_per_event: Option<PositiveNumber>,
    /// Ignored: watch is always refused.
    #[arg(short = 'W', long = "disable-watch", hide = true)]
    watch_disabled: bool,
    /// Ignored: slab class sizes are fixed.
    #[arg(short = 'f', long = "slab-growth-factor", value_name = "FACTOR", hide = true)]
    growth_factor: Option<GrowthFactor>,
    /// Ignored: slab class sizes are fixed.
    #[arg(short = 'n', long = "slab-min-size", value_name = "BYTES", hide = true)]
    least_chunk: Option<PositiveNumber>,
    /// Accepted if it is auto: all protocols are served.
    #[arg(short = 'B', long = "protocol", value_name = "auto", hide = true)]
    protocol: Option<EveryProtocol>,
    /// memcached's extended options: `idle_timeout` takes effect, other known ones are ignored.
    #[arg(short = 'o', long = "extended", value_name = "LIST", value_delimiter = ',', hide = true)]
    extended: Option<Vec<ExtendedOption>>,
}

impl MemcachedFlags {
    /// Copies options with a counterpart here into `settings`, where a value already set wins.
    /// Returns a sentence naming the ignored ones, if any.
    pub fn apply(&self, settings: &mut Settings) -> Option<String> {
        let mut idle = Vec::new();
        if self.growth_factor.is_some() {
            idle.push("-f".to_owned());
        }
        if self.least_chunk.is_some() {
            idle.push("-n".to_owned());
        }
        for option in self.extended.iter().flatten() {
            match option {
                ExtendedOption::IdleTimeout(timeout) => {
                    settings.idle_timeout = settings.idle_timeout.or(timeout.map(Seconds));
                }
                ExtendedOption::WithoutEffect(name) => idle.push(format!("-o {name}")),
            }
        }
        (!idle.is_empty())
            .then(|| format!("memcached tuning options without effect here: {}", idle.join(", ")))
    }
}

/// memcached's slab growth factor.
#[derive(Clone, Copy, Debug)]
pub struct GrowthFactor;

impl FromStr for GrowthFactor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(factor) if factor > 1.0 && factor.is_finite() => Ok(Self),
            _ => Err("is not a growth factor: use a number above 1, such as 1.25".into()),
        }
    }
}

/// memcached's protocol selection, of which only automatic detection is supported.
#[derive(Clone, Copy, Debug)]
pub struct EveryProtocol;

impl FromStr for EveryProtocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "auto-negotiate" => Ok(Self),
            "ascii" | "binary" => Err("is not supported: one port serves all protocols, \
                                       detected by the first byte; use auto or omit the flag"
                .into()),
            _ => Err("is not a protocol: use auto or omit the flag".into()),
        }
    }
}

/// One of memcached's extended options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtendedOption {
    /// `idle_timeout`: same as `--idle-timeout`; `None` for 0, which means never.
    IdleTimeout(Option<Duration>),
    /// Name of an option that tunes something that works differently here.
    WithoutEffect(&'static str),
}

/// Extended options whose absence no client can observe.
const WITHOUT_EFFECT: [&str; 37] = [
    "modern",
    "no_modern",
    "maxconns_fast",
    "no_maxconns_fast",
    "hashpower",
    "no_hashexpand",
    "hash_algorithm",
    "tail_repair_time",
    "slab_reassign",
    "no_slab_reassign",
    "slab_automove",
    "no_slab_automove",
    "slab_automove_window",
    "slab_automove_ratio",
    "slab_automove_freeratio",
    "slab_chunk_max",
    "slab_sizes",
    "lru_crawler",
    "no_lru_crawler",
    "lru_crawler_sleep",
    "lru_crawler_tocrawl",
    "lru_maintainer",
    "no_lru_maintainer",
    "hot_lru_pct",
    "warm_lru_pct",
    "hot_max_factor",
    "warm_max_factor",
    "temporary_ttl",
    "inline_ascii_resp",
    "no_inline_ascii_resp",
    "worker_logbuf_size",
    "watcher_logbuf_size",
    "read_buf_mem_limit",
    "resp_obj_mem_limit",
    "no_chunked_items",
    "relaxed_privileges",
    "no_drop_privileges",
];

impl FromStr for ExtendedOption {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (text.trim(), None),
        };
        if name == "idle_timeout" {
            return match value.unwrap_or_default().parse::<u32>() {
                Ok(0) => Ok(Self::IdleTimeout(None)),
                Ok(seconds) => Ok(Self::IdleTimeout(Some(Duration::from_secs(u64::from(seconds))))),
                Err(_) => Err("needs a number of seconds, as in idle_timeout=60".into()),
            };
        }
        WITHOUT_EFFECT
            .into_iter()
            .find(|known| *known == name)
            .map(Self::WithoutEffect)
            .ok_or_else(|| "is not a supported extended option: omit it".into())
    }
}

/// memcached's flags that this server does not support, with what to do instead.
pub const REFUSED: [(&str, &str); 10] = [
    ("-d", "Ringlane stays in the foreground; run it under systemd or end the line with `&`"),
    ("-S", "there is no SASL yet; omit it and protect the port with a firewall"),
    ("-Y", "there is no authentication yet; omit it and protect the port with a firewall"),
    ("-Z", "there is no TLS; omit it or put a TLS proxy in front"),
    ("-L", "huge pages are not requested by flag; omit it"),
    ("-r", "core dumps are not configured by flag; run `ulimit -c unlimited` first"),
    ("-e", "items do not survive the process; omit it"),
    ("-N", "connections are not assigned by NAPI id; omit it"),
    ("-i", "the licence is in the files LICENSE-MIT and LICENSE-APACHE"),
    ("-q", "there is no such flag; omit it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: MemcachedFlags,
    }

    fn parse(line: &str) -> Result<MemcachedFlags, String> {
        use clap::Parser;
        let words = std::iter::once("ringlane").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.flags).map_err(|error| error.to_string())
    }

    #[test]
    fn tuning_of_memcacheds_machinery_is_taken_and_named() {
        let flags =
            parse("-f 1.25 -n 48 -B auto -o no_modern,slab_automove=0 -o lru_crawler -R 20")
                .expect("all of these are ignored");
        let mut settings = Settings::default();
        let note = flags.apply(&mut settings).expect("a note");
        for name in ["-f", "-n", "-o no_modern", "-o slab_automove", "-o lru_crawler"] {
            assert!(note.contains(name), "{name}: {note}");
        }
        assert_eq!(settings, Settings::default());
        assert_eq!(parse("-R 20 -W").expect("harmless").apply(&mut settings), None);
    }

    #[test]
    fn the_idle_timeout_among_the_extended_options_counts_unless_the_flag_is_given() {
        let mut settings = Settings::default();
        assert_eq!(parse("-o idle_timeout=3").expect("valid").apply(&mut settings), None);
        assert_eq!(settings.idle_timeout, Some(Seconds(Duration::from_secs(3))));
        parse("-o idle_timeout=9").expect("valid").apply(&mut settings);
        assert_eq!(settings.idle_timeout, Some(Seconds(Duration::from_secs(3))));
        let mut settings = Settings::default();
        parse("-o idle_timeout=0").expect("valid").apply(&mut settings);
        assert_eq!(settings.idle_timeout, None);
    }

    #[test]
    fn what_promises_something_or_makes_no_sense_is_refused() {
        for line in [
            "-f 1",
            "-f x",
            "-n 0",
            "-B http",
            "-B binary",
            "-o ext_path=/tmp/x:1g",
            "-o drop_privileges",
            "-o track_sizes",
            "-o idle_timeout",
            "-o idle_timeout=x",
            "-U 11211",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
