//! `tracer trace`: what the chosen processes exchange, as it happens.

use clap::Args;

use super::{
    Exit, Failure,
    capture::{self, Bounds, Output, Selection},
};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  tracer trace --pid 4711                       a running server and its workers
  tracer trace --pid 4711 --for 30s --output json > spans.jsonl
  tracer trace -- curl http://127.0.0.1:8080/   one command, from its first byte
  tracer trace --pid 4711 --output none --otlp http://127.0.0.1:4318")]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    capture::run(&arguments.selection, &arguments.bounds, &arguments.output, None)
}
