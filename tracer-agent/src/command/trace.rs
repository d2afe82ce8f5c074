//! `tracer trace`: what the chosen processes exchange, as it happens.

use clap::Args;

use super::{
    Exit, Failure,
    capture::{self, Bounds, Output},
    choice::{FilterArguments, SelectionArguments},
};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  tracer trace --pid 4711                       a running server and its workers
  tracer trace --pid 4711 --for 30s --output json > spans.jsonl
  tracer trace --port 8080 --status 5xx         what fails of whoever listens there
  tracer trace --command curl                   each curl that runs from now on
  tracer trace -- curl http://127.0.0.1:8080/   one command, from its first byte
  tracer trace --pid 4711 --output none --otlp http://127.0.0.1:4318")]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: SelectionArguments,
    #[command(flatten)]
    filter: FilterArguments,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    capture::run(&arguments.selection, &arguments.filter, &arguments.bounds, &arguments.output, None)
}
