//! `tracer record`: the same, with all records kept in a file.

use std::path::PathBuf;

use clap::Args;

use super::{
    Exit, Failure,
    capture::{self, Bounds, Output},
    choice::{FilterArguments, SelectionArguments},
};

#[derive(Args, Debug)]
#[command(
    after_help = "The file holds the bytes that the traced processes sent and received, as far as they were
copied: it is readable for its owner alone.

Examples:
  tracer record --pid 4711 --out slow.capture --for 30s
  tracer record --out test.capture --output none -- ./run-tests
  tracer replay slow.capture --output json"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: SelectionArguments,
    #[command(flatten)]
    filter: FilterArguments,
    /// The capture file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    capture::run(
        &arguments.selection,
        &arguments.filter,
        &arguments.bounds,
        &arguments.output,
        Some(arguments.out.clone()),
    )
}
