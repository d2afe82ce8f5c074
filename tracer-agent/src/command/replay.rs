//! `tracer replay`: a capture file through the same pipeline, without a kernel.

use std::{path::PathBuf, time::Duration};
use tracer_agent::tell;

use anyhow::Context;
use clap::Args;
use tracer_agent::{
    capture::Reader,
    export::text,
    live::{outputs::Outputs, send::Sender},
    pipeline::{Limits, Pipeline},
};

use super::{
    Exit, Failure, OrExit,
    capture::{self, Output},
    choice::FilterArguments,
    parse_size,
};

/// For output and sending to get done after the last record.
const FLUSH: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  tracer replay slow.capture
  tracer replay slow.capture --slower 1s
  tracer replay slow.capture --output json | jq .name")]
pub(crate) struct Arguments {
    /// A file that `tracer record` wrote
    file: PathBuf,
    /// Ends with status 4 if the capture has losses
    #[arg(long)]
    strict: bool,
    /// Memory for connections and the bytes they hold; as it was recorded with, for the same spans
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    #[command(flatten)]
    filter: FilterArguments,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let bytes = std::fs::read(&arguments.file)
        .with_context(|| format!("{} cannot be read", arguments.file.display()))
        .or_exit(Exit::Usage)?;
    let records = Reader::new(&bytes).or_exit(Exit::CannotCapture)?;
    let mut limits = Limits {
        shown: arguments.output.shown(),
        parents: arguments.output.stitching.parents.into(),
        ..Limits::default()
    };
    if let Some(memory) = arguments.memory {
        limits.memory = memory.try_into().unwrap_or(usize::MAX);
    }
    let mut outputs = Outputs {
        printer: arguments.output.printer(arguments.output.target()?)?,
        senders: arguments
            .output
            .otlp
            .endpoint()?
            .map(|endpoint| Sender::start(&endpoint))
            .transpose()?
            .into_iter()
            .collect(),
        observer: None,
        recording: None,
        filter: arguments.filter.filter(),
        filtered: 0,
        summary: arguments.output.summary(),
        edges: arguments.output.edges(),
    };
    let mut pipeline = Pipeline::new(limits);
    let mut damage = None;
    for record in records {
        match record {
            Ok(record) => pipeline.handle_record(&record),
            Err(found) => {
                damage = Some(found);
                break;
            }
        }
        while let Some(span) = pipeline.poll_output() {
            outputs.deliver_waiting(span);
        }
    }
    if !pipeline.is_finished() {
        pipeline.flush();
        while let Some(span) = pipeline.poll_output() {
            outputs.deliver_waiting(span);
        }
    }
    let mut unsent = 0;
    for mut sender in outputs.senders {
        sender.flush_waiting();
        let (url, sent) = sender.finish(FLUSH);
        tell!("otlp: {url}: {sent}");
        unsent = sent.lost();
    }
    let unprinted = outputs.printer.finish(FLUSH)?;
    capture::tell_summary(outputs.summary.as_ref(), outputs.edges.as_mut());
    for open in pipeline.open_exchanges() {
        tell!("{}", text::open(open));
    }
    if let Some(damage) = damage {
        let error = anyhow::anyhow!("{damage}; what stands before it was replayed");
        return Err(Failure::new(Exit::CannotCapture, error));
    }
    if !pipeline.is_finished() {
        let error = anyhow::anyhow!("the capture file has no end: the recording was cut off");
        return Err(Failure::new(Exit::Inconclusive, error));
    }
    tell!("{}", pipeline.ledger());
    let ledger = pipeline.ledger();
    let lost = ledger.has_losses() || ledger.difference() != 0 || unsent > 0 || unprinted > 0;
    if arguments.strict && lost {
        return Ok(Exit::CannotCapture);
    }
    Ok(Exit::Fine)
}
