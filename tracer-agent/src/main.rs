//! `tracer`: sees every request of a service that nobody instrumented.
#![forbid(unsafe_code)]

mod command;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};
use tracer_agent::tell;

use clap::{Parser, Subcommand};
use tracer_agent::live::gate;

/// Sees every HTTP request of a service that nobody instrumented.
#[derive(Parser, Debug)]
#[command(
    name = "tracer",
    version,
    about,
    after_help = "Exit status: 0 fine; 2 wrong usage, or nothing selected; 3 inconclusive; 4 no capture, or losses
with --strict; 5 the traced command failed.

Environment: OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT and _PROTOCOL name a receiver; TRACER_LOG=debug says
more on standard error; NO_COLOR switches colours off."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show what processes exchange, as it happens
    Trace(command::trace::Arguments),
    /// Show it and keep everything in a capture file
    Record(command::record::Arguments),
    /// Show what a capture file holds; needs no root
    Replay(command::replay::Arguments),
    /// Show what a selection would trace, what nearly, and why not
    List(command::list::Arguments),
    /// Show what this kernel and these privileges allow, and what to do
    Doctor(command::doctor::Arguments),
    /// Show what is seen of a process, what not, why, and what to do
    Explain(command::explain::Arguments),
    /// Run as a service on a node: spans and metrics go where a configuration says
    Run(command::run::Arguments),
    /// Check a configuration, or show what one can say
    Config(command::config::Arguments),
    /// The helper that becomes a traced command
    #[command(name = gate::SUBCOMMAND, hide = true)]
    WaitAtGate {
        gate: PathBuf,
        #[arg(long)]
        user: Option<String>,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    // A service says in its configuration how it logs.
    if !matches!(arguments.command, Command::Run(_)) {
        log();
    }
    let result = match arguments.command {
        Command::Trace(arguments) => command::trace::run(&arguments),
        Command::Record(arguments) => command::record::run(&arguments),
        Command::Replay(arguments) => command::replay::run(&arguments),
        Command::List(arguments) => command::list::run(&arguments),
        Command::Doctor(arguments) => command::doctor::run(&arguments),
        Command::Explain(arguments) => command::explain::run(&arguments),
        Command::Run(arguments) => command::run::run(&arguments),
        Command::Config(arguments) => command::config::run(&arguments),
        Command::WaitAtGate { gate, user, command } => {
            return ExitCode::from(gate::wait_and_become(gate, user.as_deref(), &command) as u8);
        }
    };
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            tell!("tracer: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn log() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::Level::WARN.into())
        .with_env_var("TRACER_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .log_internal_errors(false)
        .init();
}
