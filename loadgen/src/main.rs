//! `ringload`: generates load for memcached-compatible servers and measures what they cost.
//!
//! One thread per CPU, each with its own io_uring; open loop by default, so that stalls are not
//! hidden; values derive from keys, so that wrong answers are caught. Modules in dependency order.

mod args;
mod compare;
mod connection;
mod connections;
mod error;
mod errors;
mod histogram;
mod host;
mod listener;
mod net;
mod objective;
mod phase;
mod phase_state;
mod plan;
mod process;
mod random;
mod report;
mod results;
mod run;
mod saturate;
mod schedule;
mod server;
mod source;
mod sweep;
mod units;
mod wire;
mod worker;
mod workload;

use std::process::ExitCode;

use clap::Parser;

use error::Error;

fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    let result = match &arguments.command {
        args::LoadCommand::Run(run) => run::run(&run.common),
        args::LoadCommand::Compare(compare) => compare::run(compare),
        args::LoadCommand::Sweep(sweep) => sweep::run(sweep),
        args::LoadCommand::Saturate(saturate) => saturate::run(saturate),
        args::LoadCommand::Populate(whole) => run::populate(&whole.common),
        args::LoadCommand::Verify(verification) => run::verify(verification),
        args::LoadCommand::Report(report) => report::run(report),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ringload: {failure}");
            ExitCode::from(if matches!(failure, Error::WrongAnswer(_)) { 3 } else { 1 })
        }
    }
}
