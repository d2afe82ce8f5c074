//! `cargo xtask soak`: a night in minutes. Processes and connections come and go as fast as the machine allows,
//! `tracer run` sees all of it within its memory, and in the end its numbers are those of the load itself.

#![allow(clippy::disallowed_methods, reason = "it measures over time, and waits for it to pass")]

mod agent;
mod churn;
mod sample;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::{agent::Agent, churn::Churn, sample::Sample};
use crate::{bench::sink::Sink, setup, shell, test::build_programs};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,

    /// `budgets.memory` of the agent, at which its resident memory is held
    #[arg(long, default_value = "96Mi", value_parser = size)]
    memory: u64,

    /// Requests a second at most, over connections that stay
    #[arg(long, default_value_t = 10_000)]
    rate: u64,

    /// Connections a minute
    #[arg(long, default_value_t = 50_000)]
    connections: u64,

    /// Processes that start, and end, a second: each two are a server and its client
    #[arg(long, default_value_t = 20)]
    processes: u64,

    /// One JSON object at the end instead of the table
    #[arg(long)]
    json: bool,

    /// Where tracer and churn are, if they are not to be built
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

/// Mebibytes, as in `96Mi`.
fn size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(['M', 'i', 'B']).parse::<u64>();
    number.map(|number| number << 20).map_err(|_| format!("`{text}` is no size; say for example 96Mi"))
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !shell::is_root() {
        bail!("probes need root: run it as root, or with sudo");
    }
    let programs = match &arguments.programs {
        Some(folder) => folder.clone(),
        None => build()?,
    };
    let folder = Folder::new()?;
    let sink = Sink::start()?;
    // A name that nobody else has: it is what the agent chooses by.
    let name = format!("churn-{}", std::process::id());
    let load = folder.0.join(&name);
    std::fs::copy(programs.join("churn"), &load).context("the load's program")?;
    let agent = Agent::start(&programs, &folder.0, &name, arguments.memory, &sink.url)?;
    let churn = Churn::start(&load, arguments.rate, arguments.connections, arguments.processes)?;
    let samples = watch(arguments, &agent, &churn)?;
    let done = churn.finish().context("the load")?;
    agent.come_to_rest(&done)?;
    let page = agent.page()?;
    let last = Sample::take(&agent, Duration::from_secs_f64(arguments.minutes * 60.0))?;
    let ended = agent.finish()?;
    let verdict = sample::Verdict::of(arguments.memory, &samples, &last, &done, &page, &ended);
    if arguments.json {
        println!("{}", sample::json(&samples, &done, &verdict));
    } else {
        print!("{}", sample::table(&samples));
        println!("after it: {}", last.line(samples.last(), 0));
        println!("{done}\n{ended}");
        print!("{verdict}");
    }
    if verdict.wrong.is_empty() { Ok(()) } else { bail!("the soak found {} faults", verdict.wrong.len()) }
}

/// Looks at the agent again and again, until the time is over.
fn watch(arguments: &Arguments, agent: &Agent, churn: &Churn) -> Result<Vec<Sample>> {
    let began = Instant::now();
    let end = Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut samples: Vec<Sample> = Vec::new();
    eprintln!("soak: {:.1} minutes; each line is {} s", arguments.minutes, LOOK.as_secs());
    while began.elapsed() < end {
        let next = LOOK * (samples.len() as u32 + 1);
        std::thread::sleep(next.saturating_sub(began.elapsed()).min(end.saturating_sub(began.elapsed())));
        churn.check()?;
        let sample = Sample::take(agent, began.elapsed())?;
        eprintln!("soak: {}", sample.line(samples.last(), churn.pairs()));
        samples.push(sample);
    }
    Ok(samples)
}

/// In the way that users get them.
fn build() -> Result<PathBuf> {
    let toolchain = setup::ensure(false)?;
    setup::install_soak_programs()?;
    build_programs(&toolchain)
}

/// It goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tracer-soak-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Of a file such as `/proc/PID/status`: the number behind a key.
fn number_in(path: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
