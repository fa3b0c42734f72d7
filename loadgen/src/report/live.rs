//! What is seen while a run goes on: a block that is redrawn on a terminal, plain lines elsewhere.

use std::io::Write;

use super::text;
use crate::phase::Moment;
use crate::plan::{LoadMode, Plan};
use crate::results::summary::SecondSummary;
use crate::units;

/// The view of one phase.
pub struct LiveView {
    rate: Option<f64>,
    shown: bool,
    terminal: bool,
    /// Lines of the block that is on the screen.
    drawn: usize,
    /// Requests of the last seconds, for the bar chart.
    recent: Vec<u64>,
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl LiveView {
    /// A view of a phase that follows `plan`; on a `terminal` it is redrawn in place.
    pub fn new(plan: &Plan, shown: bool, terminal: bool) -> Self {
        let rate = match plan.pace {
            LoadMode::Open { rate, .. } => Some(rate),
            LoadMode::Closed => None,
        };
        Self { rate, shown, terminal, drawn: 0, recent: Vec::new() }
    }

    /// Shows one second more.
    pub fn show(&mut self, moment: &Moment) {
        if !self.shown {
            return;
        }
        let second = SecondSummary::of(moment);
        let mut err = std::io::stderr().lock();
        // Nobody may be reading; the run goes on regardless.
        let _ = if self.terminal {
            let block = self.block(&second, moment);
            let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
            self.drawn = block.len();
            write!(
                err,
                "{up}{}",
                block.iter().map(|line| format!("\x1b[2K{line}\n")).collect::<String>()
            )
        } else {
            writeln!(err, "{}", text::second(&second, self.rate))
        };
    }

    /// Takes the block off the screen.
    pub fn finish(&mut self) {
        if self.drawn > 0 {
            eprint!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    fn block(&mut self, second: &SecondSummary, moment: &Moment) -> Vec<String> {
        self.recent.push(second.requests);
        let recent = &self.recent[self.recent.len().saturating_sub(40)..];
        let most = recent.iter().copied().max().unwrap_or(0).max(1);
        let bars: String = recent.iter().map(|&n| BARS[(n * 7 / most) as usize]).collect();
        let asked = match self.rate {
            Some(rate) => format!("asked {rate:.0}/s, "),
            None => String::new(),
        };
        let faults = match moment.faults.is_empty() {
            true => "none".into(),
            false => moment
                .faults
                .iter()
                .map(|(name, count)| format!("{count} x {name}"))
                .collect::<Vec<_>>()
                .join(", "),
        };
        let hits = match second.hit_ratio {
            Some(ratio) => format!("hits {:.2} %   ", 100.0 * ratio),
            None => String::new(),
        };
        vec![
            format!("{:>4} s  {asked}reached {}/s  {bars}", second.second, second.requests),
            match second.requests {
                0 => "        no answer".into(),
                _ => format!(
                    "        p50 {}   p99 {}   p99.9 {}   max {}",
                    units::span(second.p50),
                    units::span(second.p99),
                    units::span(second.p99_9),
                    units::span(second.max),
                ),
            },
            format!("        {hits}errors {faults}"),
        ]
    }
}
