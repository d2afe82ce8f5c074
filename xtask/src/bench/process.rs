//! Processes and what they cost.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    time::clock_gettime,
    unistd::Pid,
};

/// A process that ends with its owner.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{} cannot be run", command.get_program().display()))?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// Waits for its end. Returns what it has cost; it has to succeed.
    pub(crate) fn finish(mut self) -> Result<u64> {
        // Its clock stays readable until somebody has waited for it.
        waitid(Id::Pid(self.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        let cost = cost_of(self.id())?;
        let status = self.0.wait()?;
        if !status.success() {
            bail!("a process failed: {status}");
        }
        Ok(cost)
    }

    pub(crate) fn interrupt(&self) -> Result<()> {
        Ok(kill(self.pid(), Signal::SIGINT)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let until = Instant::now() + Duration::from_secs(5);
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What a process says on standard error, as it comes.
pub(crate) struct Said(Arc<Mutex<String>>);

impl Said {
    /// It was started with a pipe for it.
    pub(crate) fn of(process: &mut Process) -> Result<Self> {
        let said = Arc::new(Mutex::new(String::new()));
        let (theirs, pipe) = (said.clone(), process.0.stderr.take().context("no pipe")?);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if let Ok(mut said) = theirs.lock() {
                    said.push_str(&line);
                    said.push('\n');
                }
            }
        });
        Ok(Self(said))
    }

    pub(crate) fn text(&self) -> String {
        self.0.lock().map(|said| said.clone()).unwrap_or_default()
    }
}

/// Nanoseconds of processor time of all threads of a process, in the kernel too.
pub(crate) fn cost_of(process: u32) -> Result<u64> {
    let clock = nix::time::clock_getcpuclockid(Pid::from_raw(process as i32))?;
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// A process and its children.
pub(crate) fn family(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(process).chain(children).collect()
}

pub(crate) fn cost_of_family(process: u32) -> Result<u64> {
    family(process).into_iter().map(cost_of).sum()
}

/// A line of `/proc/PID/status`, in KiB.
pub(crate) fn memory(process: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no such line")
}

/// Asks again and again until it is so.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        if Instant::now() >= until {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
