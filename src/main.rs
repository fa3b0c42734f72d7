//! Turns flags into a configuration, runs the server, and turns errors into one line and an exit
//! code.

mod cli;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use cli::{Command, Resolution};
use ringlane::config::{Config, LogLevel};
use ringlane::server::host::HostFacts;
use ringlane::server::log_writer::{self, LogWriter};
use ringlane::server::signals::Signals;
use ringlane::server::{ServerError, preflight};

fn main() -> ExitCode {
    let outcome = match cli::read(std::env::args_os()) {
        Ok(Command::Serve(resolution)) => serve(resolution),
        Ok(Command::Check(resolution, host)) => check(&resolution, &host),
        Ok(Command::Print(text)) => {
            print(&text);
            Ok(())
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log_writer::say(&format!("ringlane: {}\n", chain(error.as_ref())));
            error
                .downcast_ref::<ServerError>()
                .map_or(ExitCode::FAILURE, |error| error.exit_code().into())
        }
    }
}

fn serve(Resolution { config, notes }: Resolution) -> Result<(), Box<dyn Error>> {
    // Before anything that takes time: a signal during startup is neither lost nor fatal.
    let signals = Signals::install().map_err(ServerError::Signals)?;
    let log = start_log(config.log)?;
    let outcome = run(config, &notes, signals, &log);
    log.flush_within_patience();
    outcome
}

fn run(
    config: Config,
    notes: &[String],
    signals: Signals,
    log: &LogWriter,
) -> Result<(), Box<dyn Error>> {
    fit(&config, &HostFacts::gather())?;
    notes.iter().for_each(|note| log::warn!("{note}"));
    Ok(ringlane::server::run(config, signals, log)?)
}

fn check(resolution: &Resolution, host: &HostFacts) -> Result<(), Box<dyn Error>> {
    let Resolution { config, notes } = resolution;
    print(&format!("ringlane {} would run with\n", env!("CARGO_PKG_VERSION")));
    print(&cli::describe::describe(config));
    notes.iter().for_each(|note| print(&format!("note: {note}\n")));
    fit(config, host)?;
    print(&format!("kernel {} provides everything required\n", host.kernel));
    Ok(())
}

/// Prints to stdout; a closed pipe, as in `ringlane check | head`, is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Fails with everything this host lacks, one sentence per line.
fn fit(config: &Config, host: &HostFacts) -> Result<(), Box<dyn Error>> {
    let problems = preflight::run(config, host);
    if problems.is_empty() {
        return Ok(());
    }
    let sentences: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(sentences.join("\nringlane: ").into())
}

/// Starts a dedicated thread that writes the log to stderr.
fn start_log(level: LogLevel) -> Result<LogWriter, String> {
    let writer = LogWriter::start(std::io::stderr()).map_err(|error| {
        format!(
            "cannot start the log thread ({error}): raise the limit with `ulimit -u` or TasksMax of \
             the systemd unit"
        )
    })?;
    let filter = match level {
        LogLevel::Off => log::LevelFilter::Off,
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    };
    // The logger would detect this if it wrote to the terminal itself.
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style =
        if coloured { env_logger::WriteStyle::Always } else { env_logger::WriteStyle::Never };
    env_logger::Builder::new()
        // `log::max_level` decides what is shown; the `verbosity` command changes it.
        .filter_module("ringlane", log::LevelFilter::Trace)
        // The executor's own messages matter only for debugging.
        .filter_module("glommio", filter.min(log::LevelFilter::Error))
        .format_target(false)
        .target(env_logger::Target::Pipe(Box::new(writer.clone())))
        .write_style(style)
        .init();
    log::set_max_level(filter);
    Ok(writer)
}

/// The error and its causes, joined by colons.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
