//! The measuring: for each server, rounds without the tracer and with it.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Arguments,
    process::{Process, Said, cost_of, cost_of_family, memory, wait_until},
    server::{ALL, Kind, Server},
    sink::Sink,
    table::{self, Row},
};

/// The tracer's processor time while nothing happens is taken over so long.
const IDLE: Duration = Duration::from_secs(3);

pub(super) fn run(arguments: &Arguments, programs: &Path, counted: bool) -> Result<()> {
    let kinds = if arguments.only.is_empty() { ALL.to_vec() } else { arguments.only.clone() };
    let folder = Folder::new()?;
    let mut rows = Vec::new();
    for kind in kinds {
        eprintln!("bench: {}, {} rounds", kind.name(), arguments.rounds);
        rows.push(measure(kind, arguments.rounds, &folder.0, programs, counted)?);
    }
    if arguments.json {
        println!("{}", table::json(&rows, counted));
    } else {
        print!("{}", table::text(&rows, counted));
    }
    Ok(())
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tracer-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn measure(kind: Kind, rounds: usize, folder: &Path, programs: &Path, counted: bool) -> Result<Row> {
    let server = kind.start(folder, programs)?;
    let requests = kind.requests(counted);
    let mut row = Row::new(kind);
    // What is set up once is no part of it.
    load(kind, folder, &server, requests / 4)?;
    for _ in 0..rounds {
        let (cost, load_cost) = load(kind, folder, &server, requests)?;
        row.server_off.push(cost / requests as f64);
        row.load_off.push(load_cost / requests as f64);
        with_tracer(kind, folder, &server, requests, programs, &mut row)?;
    }
    Ok(row)
}

/// Returns what the server and the load generator have cost.
fn load(kind: Kind, folder: &Path, server: &Server, requests: u64) -> Result<(f64, f64)> {
    let before = cost_of_family(server.process.id())?;
    let generator = Process::start(&mut kind.load(folder, &server.address, requests))?;
    let load = generator.finish().context("the load generator")?;
    Ok(((cost_of_family(server.process.id())? - before) as f64, load as f64))
}

fn with_tracer(
    kind: Kind,
    folder: &Path,
    server: &Server,
    requests: u64,
    programs: &Path,
    row: &mut Row,
) -> Result<()> {
    let sink = Sink::start()?;
    let tracer = Tracer::start(kind, server, programs, &sink)?;
    row.start.push(tracer.cost()? as f64);
    let before = tracer.cost()?;
    std::thread::sleep(IDLE);
    let idle = (tracer.cost()? - before) as f64 / IDLE.as_secs_f64();
    row.idle.push(idle / 1e9 * 100.0);
    let (before, started) = (tracer.cost()?, Instant::now());
    let (cost, load_cost) = load(kind, folder, server, requests)?;
    row.server_on.push(cost / requests as f64);
    row.load_on.push(load_cost / requests as f64);
    // The last batch goes out a moment later.
    std::thread::sleep(Duration::from_millis(2500));
    let spent = (tracer.cost()? - before) as f64 - idle * started.elapsed().as_secs_f64();
    row.tracer.push(spent / requests as f64);
    row.memory.push(memory(tracer.process.id(), "VmRSS")? as f64);
    let ledger = tracer.finish()?;
    row.spans.push(number_before(&ledger, " exchanges")? / requests as f64);
    row.lost += number_before(&ledger, " records lost")? as u64;
    if !ledger.contains("(sums exactly)") {
        bail!("the ledger does not sum: {ledger}");
    }
    if kind.spans() > 0 && sink.bytes.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        bail!("no spans were sent");
    }
    row.first_span.push(first_span(kind, folder, server, programs)?);
    Ok(())
}

/// The number that stands before a word of the ledger.
fn number_before(ledger: &str, word: &str) -> Result<f64> {
    let (before, _) = ledger.split_once(word).with_context(|| format!("no {word} in: {ledger}"))?;
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).context("no number")
}

struct Tracer {
    process: Process,
    said: Said,
}

impl Tracer {
    fn start(kind: Kind, server: &Server, programs: &Path, sink: &Sink) -> Result<Self> {
        let mut command = Command::new(programs.join("tracer"));
        command
            .args(["trace", "--pid", &server.process.id().to_string(), "--output", "none"])
            .args(["--otlp", &sink.url])
            .args(kind.options())
            .stderr(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let said = Said::of(&mut process)?;
        let tracer = Self { process, said };
        wait_until("the tracer to start", || {
            tracer.said.text().lines().any(|line| line.starts_with("tracing "))
        })?;
        Ok(tracer)
    }

    fn cost(&self) -> Result<u64> {
        cost_of(self.process.id())
    }

    fn finish(self) -> Result<String> {
        self.process.interrupt()?;
        wait_until("the tracer's ledger", || self.said.text().contains("ledger:"))?;
        let said = self.said.text();
        said.lines().find(|line| line.starts_with("ledger:")).map(str::to_owned).context("no ledger")
    }
}

/// From the start of the program to the first line on its output, while requests come all the time.
fn first_span(kind: Kind, folder: &Path, server: &Server, programs: &Path) -> Result<f64> {
    if kind.spans() == 0 {
        return Ok(f64::NAN);
    }
    let mut load = kind.slow_load(folder, &server.address);
    let _load = Process::start(&mut load)?;
    let started = Instant::now();
    let mut command = Command::new(programs.join("tracer"));
    command
        .args(["trace", "--pid", &server.process.id().to_string(), "--count", "1"])
        .stdout(Stdio::piped())
        .stderr(File::create("/dev/null")?);
    let mut tracer = Process::start(&mut command)?;
    let mut line = String::new();
    BufReader::new(tracer.0.stdout.take().context("no pipe")?).read_line(&mut line)?;
    if line.is_empty() {
        bail!("the tracer showed no span");
    }
    Ok(started.elapsed().as_secs_f64())
}
