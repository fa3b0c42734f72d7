//! The command `sweep`: latency against rate.

use crate::args;
use crate::error::Error;
use crate::plan::{LoadMode, Plan};
use crate::report::{self, text};
use crate::results::document::Document;
use crate::run::{self, Measured};
use crate::workload::Workload;

/// Runs `sweep`: a list of rates, or tenths of the peak.
pub fn run(sweep: &args::Sweep) -> Result<(), Error> {
    let mut document = Document::new("sweep");
    report::check(sweep.common.output.files())?;
    let common = &sweep.common;
    let (workload, plan) = prepared(common)?;
    let rates = match sweep.rates.is_empty() {
        false => sweep.rates.iter().map(|&rate| rate as f64).collect(),
        true => {
            let peak = run::peak(&plan, &workload)?;
            eprintln!("closed loop reaches {peak:.0} requests/s; in tenths of that:");
            (1..=10).map(|tenth| peak * f64::from(tenth) / 10.0).collect::<Vec<f64>>()
        }
    };
    println!("{}", text::sweep_header());
    for rate in rates {
        let Measured { summary, failure } = trial(common, &plan, &workload, rate)?;
        println!("{}", text::sweep_line(&summary));
        document.runs.push(summary);
        report::write(&common.output, &document)?;
        failure.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// Workload and plan described by the flags, after writing every key if requested.
pub fn prepared(common: &args::Common) -> Result<(Workload, Plan), Error> {
    let workload = run::workload(&common.workload)?;
    let plan = run::plan(&common.target, &common.load)?;
    run::prepare(&plan, &workload, common.load.populate)?;
    Ok((workload, plan))
}

/// One run at `rate` requests per second.
pub fn trial(
    common: &args::Common,
    plan: &Plan,
    workload: &Workload,
    rate: f64,
) -> Result<Measured, Error> {
    let pace = LoadMode::Open { rate, arrival: common.load.arrival };
    let name = format!("{rate:.0}/s");
    run::measure(&name, &Plan { pace, ..plan.clone() }, workload, true)
}
