//! What the program does when it is called: one file a subcommand, and what they share.

pub(crate) mod capture;
pub(crate) mod choice;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod list;
pub(crate) mod otlp;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod trace;

use std::fmt;

pub(crate) use tracer_agent::config::{parse_period as parse_duration, parse_size};

/// How a call ends: 0 fine; 1 a bad verdict; 2 wrong usage, or nothing selected; 3 inconclusive;
/// 4 no capture, or losses with `--strict`; 5 the traced command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Fine = 0,
    Usage = 2,
    Inconclusive = 3,
    CannotCapture = 4,
    CommandFailed = 5,
}

/// An error that says how the program ends.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// What goes wrong without saying how: the capture could not be done.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::CannotCapture, error }
    }
}

pub(crate) trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}

/// A line on standard output, which nobody has to read to the end.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A variable of the environment: one that is empty is as one that is not set.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty())
}
