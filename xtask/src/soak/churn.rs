//! The load: one server and one client that stay, and pairs of them that come and go.

use std::{
    collections::VecDeque,
    fmt,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use crate::bench::process::Process;

/// Pairs that run at the same time, at most: where the machine is slower than what is wanted, fewer start.
const PAIRS: usize = 32;
const REQUESTS: u64 = 6;

pub(super) struct Churn {
    server: Process,
    load: Process,
    pairs: Arc<Pairs>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Pairs {
    ended: AtomicBool,
    /// Pairs that have ended, and what they said.
    count: AtomicU64,
    served: AtomicU64,
    asked: AtomicU64,
    wrong: Mutex<Option<String>>,
}

/// What was done, by those who did it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) served: u64,
    pub(super) asked: u64,
    pub(super) connections: u64,
    pub(super) failed: u64,
    pub(super) processes: u64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { served, asked, connections, failed, processes } = self;
        write!(
            f,
            "load: {asked} requests asked, {served} served, {failed} failed; {connections} connections, {processes} processes"
        )
    }
}

impl Churn {
    pub(super) fn start(program: &Path, rate: u64, connections: u64, processes: u64) -> Result<Self> {
        let mut server = Process::start(Command::new(program).arg("serve").stdout(Stdio::piped()))?;
        let mut line = String::new();
        let mut out = BufReader::new(server.0.stdout.take().context("no pipe")?);
        out.read_line(&mut line)?;
        server.0.stdout = Some(out.into_inner());
        let ports = line.trim().strip_prefix("listening on ").context("the server says no ports")?.to_owned();
        let rates = [rate, connections / 60].map(|rate| rate.to_string());
        let mut load = Command::new(program);
        let load = Process::start(load.args(["load", &ports]).args(rates).stdout(Stdio::piped()))?;
        let pairs = Arc::new(Pairs::default());
        let (theirs, program) = (pairs.clone(), program.to_owned());
        let thread = std::thread::spawn(move || {
            if let Err(error) = theirs.go_on(&program, processes)
                && let Ok(mut wrong) = theirs.wrong.lock()
            {
                *wrong = Some(format!("{error:#}"));
            }
        });
        Ok(Self { server, load, pairs, thread: Some(thread) })
    }

    /// Pairs that have ended.
    pub(super) fn pairs(&self) -> u64 {
        self.pairs.count.load(Relaxed)
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.pairs.wrong.lock().ok().and_then(|mut wrong| wrong.take()) {
            Some(wrong) => bail!("a pair: {wrong}"),
            None => Ok(()),
        }
    }

    /// Lets all of them end in their order: clients before servers.
    pub(super) fn finish(mut self) -> Result<Done> {
        self.pairs.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the pairs panicked"))?;
        }
        self.check()?;
        let asked = numbers(&end(&mut self.load)?);
        let served = numbers(&end(&mut self.server)?);
        let [asked, connections, failed] = asked[..] else { bail!("the load did not say what it did") };
        let [served] = served[..] else { bail!("the server did not say what it did") };
        let pairs = &self.pairs;
        let count = pairs.count.load(Relaxed);
        Ok(Done {
            served: served + pairs.served.load(Relaxed),
            asked: asked + pairs.asked.load(Relaxed),
            connections: connections + count * REQUESTS.div_ceil(2),
            failed,
            processes: 2 + 2 * count,
        })
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.pairs.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells a process to end. Returns what it said.
fn end(process: &mut Process) -> Result<String> {
    kill(process.pid(), Signal::SIGTERM)?;
    let mut said = String::new();
    process.0.stdout.take().context("no pipe")?.read_to_string(&mut said)?;
    let status = process.0.wait()?;
    if !status.success() {
        bail!("{status}: {said}");
    }
    Ok(said)
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

impl Pairs {
    fn go_on(&self, program: &Path, processes: u64) -> Result<()> {
        let pause = Duration::from_secs_f64(2.0 / processes.max(1) as f64);
        let mut running: VecDeque<Process> = VecDeque::new();
        let mut next = Instant::now();
        while !self.ended.load(Relaxed) && processes > 0 {
            if running.len() < PAIRS {
                let mut command = Command::new(program);
                command.args(["brief", &REQUESTS.to_string()]).stdout(Stdio::piped());
                running.push_back(Process::start(&mut command)?);
            }
            while let Some(mut first) = running.pop_front() {
                if first.0.try_wait()?.is_none() {
                    running.push_front(first);
                    break;
                }
                self.take(first)?;
            }
            next = (next + pause).max(Instant::now() - pause);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        running.into_iter().try_for_each(|pair| self.take(pair))
    }

    /// One that has ended, or is about to.
    fn take(&self, mut pair: Process) -> Result<()> {
        let mut said = String::new();
        pair.0.stdout.take().context("no pipe")?.read_to_string(&mut said)?;
        let status = pair.0.wait()?;
        let [served, asked] = numbers(&said)[..] else { bail!("{status}: {said}") };
        self.served.fetch_add(served, Relaxed);
        self.asked.fetch_add(asked, Relaxed);
        self.count.fetch_add(1, Relaxed);
        Ok(())
    }
}
