//! The command line: what the user typed, read into settings and merged with file and host.
//!
//! Flags and configuration file are two spellings of one [`Settings`]; the flags win. Every error
//! is one sentence that names the value and the fix: clap's own messages, several lines with a
//! usage text, are rewritten here.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use ringlane::server::host::HostFacts;

mod cluster;
pub mod describe;
mod file;
mod inquire;
mod key_file;
mod memcached;
pub mod resolve;
pub mod settings;
mod values;

use memcached::{MemcachedFlags, REFUSED};
pub use resolve::Resolution;
use settings::Settings;

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    /// Run the server.
    Serve(Resolution),
    /// Show what the server would run with, and what the host lacks.
    Check(Resolution, HostFacts),
    /// Print this and exit: help or version.
    Print(String),
}

/// What is wrong with the command line or the file, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError(pub String);

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CliError {}

#[derive(Debug, Parser)]
#[command(
    name = "ringlane",
    version,
    about = "A distributed in-memory cache server, compatible with memcached clients.",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    args_override_self = true,
    allow_negative_numbers = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the server (the default).
    #[command(args_override_self = true, allow_negative_numbers = true)]
    Serve(Flags),
    /// Print the effective settings and what this host lacks; exit code 1 if the server would fail.
    #[command(args_override_self = true, allow_negative_numbers = true)]
    Check(Flags),
    /// Query a running node about its cluster.
    #[command(subcommand)]
    Cluster(inquire::Inquiry),
}

#[derive(Debug, Args)]
struct Flags {
    /// Read settings from a TOML file whose keys are long flag names; flags win.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    memcached: MemcachedFlags,
}

/// Reads a whole command line, program name included.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, CliError> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return refusal(&error),
    };
    let (flags, checking) = match cli.command {
        None => (cli.flags, false),
        Some(CliCommand::Serve(flags)) => (flags, false),
        Some(CliCommand::Check(flags)) => (flags, true),
        Some(CliCommand::Cluster(inquiry)) => {
            return inquire::inquire(inquiry).map(Command::Print);
        }
    };
    let host = HostFacts::gather();
    let (settings, note) = merged(flags)?;
    let mut resolution = resolve::resolve(settings, &host)?;
    resolution.notes.extend(note);
    Ok(if checking { Command::Check(resolution, host) } else { Command::Serve(resolution) })
}

/// Merges flags and file; also returns a note on flags that have no effect.
fn merged(mut flags: Flags) -> Result<(Settings, Option<String>), CliError> {
    let note = flags.memcached.apply(&mut flags.settings);
    let file = match &flags.config {
        None => Settings::default(),
        Some(path) => file::read(Path::new(path))?,
    };
    Ok((flags.settings.or(file), note))
}

/// Turns clap's report into one sentence, or into the text that was asked for.
fn refusal(error: &clap::Error) -> Result<Command, CliError> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let argument = text(ContextKind::InvalidArg);
    let flag = argument.split([' ', '[', '=']).next().unwrap_or_default();
    let value = text(ContextKind::InvalidValue);
    Err(CliError(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Ok(Command::Print(error.render().to_string()));
        }
        ErrorKind::UnknownArgument => match REFUSED.iter().find(|(refused, _)| *refused == flag) {
            Some((flag, fix)) => format!("{flag} is not supported: {fix}"),
            None if flag.starts_with('-') => {
                let similar = text(ContextKind::SuggestedArg);
                let fix = match similar.as_str() {
                    "" => "`ringlane --help` lists the flags".into(),
                    similar => format!("did you mean {similar}?"),
                };
                let below_zero = flag[1..].starts_with(|c: char| c.is_ascii_digit());
                match below_zero {
                    true => format!("there is no flag {flag}, and values below 0 are not allowed"),
                    false => format!("there is no flag {}: {fix}", values::printable(flag)),
                }
            }
            None => format!(
                "{} is neither a flag nor a command: `ringlane --help` lists both",
                values::printable(&argument)
            ),
        },
        ErrorKind::InvalidSubcommand => {
            let usage = error.get(ContextKind::Usage).map(ToString::to_string).unwrap_or_default();
            let fix = match usage.contains("ringlane cluster") {
                true => "use status or ring",
                false => "use serve (the default), check or cluster",
            };
            let command = values::printable(&text(ContextKind::InvalidSubcommand));
            format!("there is no command {command}: {fix}")
        }
        // Only `cluster` has commands that must be given, and they have arguments that must.
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "`ringlane cluster` needs a command: use status or ring".into()
        }
        ErrorKind::MissingRequiredArgument => {
            format!("{argument} is missing: `ringlane cluster --help` shows the usage")
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{flag} needs a value: `ringlane --help` shows which")
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let reason = std::error::Error::source(error)
                .map_or("is neither true nor false: use one of them".into(), |reason| {
                    reason.to_string()
                });
            values::complaint(flag, &value, &reason)
        }
        ErrorKind::ArgumentConflict => {
            "flags follow the command: write `ringlane check --memory 1GiB`".into()
        }
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8: encode it as UTF-8".into(),
        _ => error.to_string().lines().next().unwrap_or_default().replace("error: ", ""),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Settings, CliError> {
        let words = std::iter::once("ringlane").chain(line.split_whitespace());
        match Cli::try_parse_from(words) {
            Ok(cli) => merged(match cli.command {
                Some(CliCommand::Serve(flags) | CliCommand::Check(flags)) => flags,
                None => cli.flags,
                Some(CliCommand::Cluster(_)) => panic!("a query has no settings"),
            })
            .map(|(settings, _)| settings),
            Err(error) => Err(refusal(&error).expect_err("a refusal")),
        }
    }

    fn complaint(line: &str) -> String {
        let sentence = parse(line).expect_err(line).to_string();
        assert!(!sentence.contains('\n') && !sentence.is_empty(), "one sentence: {sentence}");
        sentence
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn memcacheds_own_short_flags_work() {
        let line = "-l 127.0.0.1 -p 11299 -m 64 -c 500 -t 2 -I 2m -M -vv -U 0 -u nobody -C -F -A \
                    -X -W -b 512 -R 20 -f 1.08 -n 32 -B auto -o modern -s /tmp/r.sock -a 0770";
        let long = "--listen 127.0.0.1 --port 11299 --memory 64MiB --max-connections 500 --cores 2 \
                    --max-item-size 2MiB --eviction none -v -v --disable-cas --disable-flush-all \
                    --enable-shutdown --disable-dumping --backlog 512 \
                    --unix-socket /tmp/r.sock --unix-mode 770";
        let (short, long) = (parse(line), parse(long));
        let mut short = short.expect("the short flags");
        assert_eq!(short.disable_evictions.take(), Some(true));
        let mut long = long.expect("the long flags");
        assert_eq!(long.eviction.take().map(|e| e.0.name()), Some("none"));
        assert_eq!(short, long);
    }

    #[test]
    fn short_flags_may_be_run_together_and_carry_their_value() {
        let settings = parse("-CFm64 -p11299").expect("valid");
        assert_eq!(settings.disable_cas, Some(true));
        assert_eq!(settings, parse("-C -F -m 64 -p 11299").expect("valid"));
    }

    #[test]
    fn of_a_flag_given_twice_the_last_counts_but_addresses_add_up() {
        assert_eq!(parse("-m 64 -m 128"), parse("-m 128"));
        assert_eq!(parse("-l 127.0.0.1 -l ::1"), parse("-l 127.0.0.1,::1"));
    }

    #[test]
    fn serve_is_the_default_command_and_takes_the_same_flags() {
        assert_eq!(parse("serve -m 64"), parse("-m 64"));
        assert_eq!(parse("check -m 64"), parse("-m 64"));
    }

    #[test]
    fn a_refused_value_is_named_with_its_flag_and_the_fix() {
        for (line, words) in [
            ("-m 12x", ["--memory 12x", "64MiB"]),
            ("--memory -5", ["--memory -5", "64MiB"]),
            ("-p 70000", ["--port 70000", "65535"]),
            ("-p http", ["--port http", "65535"]),
            ("-t 0", ["--cores 0", "1"]),
            ("-c -1", ["--max-connections -1", "1"]),
            ("--eviction mru", ["--eviction mru", "lru, none"]),
            ("--cpus 3-1", ["--cpus 3-1", "2-5,8"]),
            ("--log loud", ["--log loud", "warn"]),
            ("--unix-mode 999", ["--unix-mode 999", "700"]),
            ("--busy-poll soon", ["--busy-poll soon", "microseconds"]),
            ("--default-ttl 0", ["--default-ttl 0", "1"]),
            ("--admin 8080", ["--admin 8080", "127.0.0.1:8080"]),
            ("-U 11211", ["--udp-port 11211", "0"]),
            ("--listen 1.2.3.4.5", ["--listen 1.2.3.4.5", "127.0.0.1"]),
        ] {
            let sentence = complaint(line);
            assert!(words.iter().all(|word| sentence.contains(word)), "{line}: {sentence}");
        }
    }

    #[test]
    fn what_does_not_exist_is_named() {
        assert!(complaint("-d").contains("foreground"));
        assert!(complaint("--memry 64").contains("--memory"));
        assert!(complaint("--frobnicate").contains("--frobnicate"));
        assert!(complaint("start").contains("start"));
        assert!(complaint("-m").contains("--memory needs a value"));
        assert!(complaint("-m 64 check").contains("follow the command"));
        assert!(complaint("stop").contains("check or cluster"));
        assert!(complaint("cluster").contains("use status or ring"));
        assert!(complaint("cluster sttus").contains("no command sttus: use status or ring"));
        assert!(complaint("cluster ring").contains("<KEY>... is missing"));
        assert!(complaint("--leave-timeout -1s").contains("values below 0 are not allowed"));
        assert!(complaint("--disable-cas=perhaps").contains("--disable-cas perhaps is neither"));
        assert!(complaint("--config /no/such.toml").contains("/no/such.toml"));
    }

    #[test]
    fn help_and_version_are_printed() {
        for (flag, word) in [("-h", "--memory"), ("--help", "--memory"), ("-V", "ringlane")] {
            let printed = read(["ringlane", flag].map(OsString::from)).expect(flag);
            assert!(matches!(printed, Command::Print(text) if text.contains(word)), "{flag}");
        }
    }
}
