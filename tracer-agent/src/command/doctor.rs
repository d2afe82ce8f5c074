//! `tracer doctor`: what this kernel and these privileges allow, and what to do.

use anyhow::anyhow;
use clap::Args;
use tracer_agent::{
    export::text::plain,
    live::doctor::{self, Level, Report},
};

use super::{Exit, Failure, say};

#[derive(Args, Debug)]
#[command(
    after_help = "Everything is tried for real: maps are made, probes are loaded and attached, with no process
chosen, and taken away again.

Exit status: 0 if something can be captured, 4 if not."
)]
pub(crate) struct Arguments {
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let report = doctor::examine();
    if arguments.json {
        say(&serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?);
    } else {
        show(&report);
    }
    if report.can_capture {
        return Ok(Exit::Fine);
    }
    // The first explains most of the others.
    let fatal = report.checks.iter().find(|check| check.level == Level::Fatal);
    let cause = fatal.map_or(String::new(), |check| format!(": {}: {}", check.name, check.found));
    Err(Failure::new(Exit::CannotCapture, anyhow!("nothing can be captured here{cause}")))
}

fn show(report: &Report) {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let mark = match check.level {
            Level::Good => "ok   ",
            Level::Lack => "lacks",
            Level::Fatal => "FATAL",
        };
        say(&format!("{mark}  {:<width$}  {}", check.name, plain(&check.found)));
        let indent = " ".repeat(width + 9);
        if let Some(costs) = &check.costs {
            say(&format!("{indent}costs: {costs}"));
        }
        if let Some(fix) = &check.fix {
            say(&format!("{indent}to do: {fix}"));
        }
    }
    match report.capture {
        Some(capture) if report.can_capture => say(&format!("\nbytes can be captured, by {capture}")),
        _ => say("\nnothing can be captured"),
    }
}
