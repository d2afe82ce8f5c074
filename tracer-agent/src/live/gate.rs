//! A command that starts only when the probes are ready, so that its first byte is seen: a helper
//! process waits at a pipe, then becomes the command.

use std::{
    ffi::{CString, OsString},
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::{Gid, Uid, initgroups, setgid, setuid};
use rustix::pipe::{PipeFlags, pipe_with};

/// The hidden subcommand that the helper is.
pub const SUBCOMMAND: &str = "wait-at-gate";

/// Exit status of the helper where the command cannot be run, as shells have it.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// The process that waits, and what lets it go.
pub struct Gate {
    pub child: tokio::process::Child,
    pub process: u32,
    open: File,
    /// Kept until the helper has opened it by its path.
    _wait: OwnedFd,
}

impl Gate {
    /// Starts the helper. It takes over the terminal, the folder and the environment as they are.
    pub fn start(command: &[OsString], user: Option<User>) -> Result<Self> {
        let (wait, open) = pipe_with(PipeFlags::CLOEXEC).context("no pipe can be made")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), wait.as_raw_fd());
        let own = std::env::current_exe().context("the program's own file is not known")?;
        let mut helper = tokio::process::Command::new(own);
        helper.arg(SUBCOMMAND).arg(&path);
        if let Some(user) = user {
            helper.args(["--user", &format!("{}:{}:{}", user.id, user.group, user.name)]);
        }
        let child = helper.arg("--").args(command).spawn().context("the helper process cannot be started")?;
        let process = child.id().ok_or_else(|| anyhow!("the helper process ended at once"))?;
        Ok(Self { child, process, open: File::from(open), _wait: wait })
    }

    /// Once the helper has opened the gate by its path it needs nothing of this process any more.
    pub fn wait_until_there(&self, most: Duration) {
        let Ok(own) = fs::read_link(format!("/proc/self/fd/{}", self._wait.as_raw_fd())) else { return };
        let until = Instant::now() + most;
        let folder = format!("/proc/{}/fd", self.process);
        let is_there = || {
            let files = fs::read_dir(&folder).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target == own)
        };
        while Instant::now() < until && !is_there() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn open(&mut self) -> Result<()> {
        self.open.write_all(&[1]).context("the helper process is gone")
    }
}

/// Who the command belongs to where root acts for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub id: u32,
    pub group: u32,
    pub name: String,
}

impl User {
    /// Whoever called sudo.
    pub fn of_sudo() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let variable = |name: &str| std::env::var_os(name)?.into_string().ok();
        let user = Self {
            id: variable("SUDO_UID")?.parse().ok()?,
            group: variable("SUDO_GID")?.parse().ok()?,
            name: variable("SUDO_USER")?,
        };
        (user.id != 0).then_some(user)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        Some(Self {
            id: parts.next()?.parse().ok()?,
            group: parts.next()?.parse().ok()?,
            name: parts.next()?.to_owned(),
        })
    }
}

/// The helper's life: it ends only if the command cannot be run. Returns its exit status.
pub fn wait_and_become(gate: PathBuf, user: Option<&str>, command: &[OsString]) -> i32 {
    match become_command(gate, user, command) {
        Ok(status) => status,
        Err(error) => {
            tell!("tracer: {error:#}");
            NOT_FOUND
        }
    }
}

fn become_command(gate: PathBuf, user: Option<&str>, command: &[OsString]) -> Result<i32> {
    let mut gate = match File::open(gate) {
        Ok(gate) => gate,
        // The tracer ended, and said why.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(NOT_FOUND),
        Err(error) => return Err(error).context("the tracer cannot be asked when to start"),
    };
    if gate.read(&mut [0])? == 0 {
        // The tracer ended, and said why.
        return Ok(NOT_FOUND);
    }
    drop(gate);
    if let Some(user) = user {
        let user = User::parse(user).ok_or_else(|| anyhow!("a user that cannot be read: `{user}`"))?;
        let (id, group) = (Uid::from_raw(user.id), Gid::from_raw(user.group));
        let name = CString::new(user.name)?;
        initgroups(&name, group)
            .and_then(|()| setgid(group))
            .and_then(|()| setuid(id))
            .context("the command cannot be given back to its user")?;
    }
    let Some((program, arguments)) = command.split_first() else { bail!("there is no command") };
    let error = Command::new(program).args(arguments).exec();
    tell!("tracer: `{}` cannot be run: {error}", program.to_string_lossy());
    Ok(if error.kind() == std::io::ErrorKind::PermissionDenied { NOT_EXECUTABLE } else { NOT_FOUND })
}
