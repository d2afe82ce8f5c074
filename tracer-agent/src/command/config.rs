//! `tracer config`: what a file for `tracer run` may say, and whether one does.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use tracer_agent::{
    config::{Config, EXAMPLE},
    tell,
};

use super::{Exit, Failure, OrExit, run::Plan, say};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Says whether a file is right, and where it is not
    Check { file: PathBuf },
    /// Prints the JSON schema, for editors
    Schema,
    /// Prints a file with all keys and their defaults
    Example,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.action {
        Action::Check { file } => {
            let config = parse(file, &read(file)?)?;
            let plan = Plan::new(&config).with_context(|| file.display().to_string()).or_exit(Exit::Usage)?;
            say(&format!("{}: right; it selects {}", file.display(), plan.selected()));
            for missing in plan.missing() {
                tell!("WARNING: {missing}");
            }
        }
        Action::Schema => say(Config::schema().trim_end()),
        Action::Example => say(EXAMPLE.trim_end()),
    }
    Ok(Exit::Fine)
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path);
    text.with_context(|| format!("{} cannot be read", path.display())).or_exit(Exit::Usage)
}

/// What the text of the file says.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, Failure> {
    Config::parse(text)
        .map_err(|wrong| match wrong.line {
            0 => anyhow!("{}: {}", path.display(), wrong.what),
            line => anyhow!("{}:{line}:{}: {}", path.display(), wrong.column, wrong.what),
        })
        .or_exit(Exit::Usage)
}
