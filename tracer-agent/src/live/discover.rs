//! Processes that are there already, as `/proc` shows them.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tracer_common::config::File;

use crate::enrich::container::Place;

/// `TCP_ESTABLISHED` and `TCP_LISTEN` in `/proc/net/tcp` (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// What a process shows of itself.
#[derive(Debug, Default)]
pub struct Seen {
    pub folder: PathBuf,
    pub command: String,
    /// The path of its file, as the process has it.
    pub executable: Option<String>,
    pub cgroup: Option<String>,
    /// In a tree of cgroup v1, where that says more.
    pub cgroup_v1: Option<String>,
    /// Asked only where ports matter: it takes a look at every open file.
    sockets: OnceCell<Vec<(String, u16)>>,
}

impl Seen {
    /// None if it is gone, or a thread of the kernel.
    pub fn of(process: u32) -> Option<Self> {
        let folder = Path::new("/proc").join(process.to_string());
        let command = fs::read_to_string(folder.join("comm")).ok()?.trim_end_matches('\n').to_owned();
        let executable = fs::read_link(folder.join("exe")).ok().map(|path| {
            let path = path.to_string_lossy();
            path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned()
        });
        let cgroups = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        let Cgroups { cgroup, cgroup_v1 } = Cgroups::of(&cgroups);
        let is_kernels = executable.is_none() && fs::read(folder.join("cmdline")).ok()?.is_empty();
        (!is_kernels).then_some(Self {
            folder,
            command,
            executable,
            cgroup,
            cgroup_v1,
            sockets: OnceCell::new(),
        })
    }

    /// By its cgroup.
    pub fn place(&self) -> Place {
        let (cgroup, cgroup_v1) = (self.cgroup.clone(), self.cgroup_v1.clone());
        Cgroups { cgroup, cgroup_v1 }.place()
    }

    pub fn executable_name(&self) -> Option<&str> {
        self.executable.as_deref()?.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// The file that it runs, as the kernel knows it.
    pub fn file(&self) -> Option<File> {
        file(&self.folder.join("exe"))
    }

    /// The last parts of the first words of its command line.
    pub fn words(&self) -> Vec<String> {
        let line = fs::read(self.folder.join("cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).take(3);
        words.filter_map(|word| Some(String::from_utf8_lossy(word).rsplit('/').next()?.to_owned())).collect()
    }

    /// TCP ports that it listens on.
    pub fn listening(&self) -> BTreeSet<u16> {
        self.ports(LISTEN)
    }

    /// TCP ports of its own end that it has connections on.
    pub fn served(&self) -> BTreeSet<u16> {
        self.ports(ESTABLISHED)
    }

    /// The port of its own end of each TCP connection that is open.
    pub fn connections(&self) -> Vec<u16> {
        self.in_state(ESTABLISHED).collect()
    }

    fn ports(&self, state: &str) -> BTreeSet<u16> {
        self.in_state(state).collect()
    }

    fn in_state(&self, state: &str) -> impl Iterator<Item = u16> {
        let sockets = self.sockets.get_or_init(|| self.sockets());
        sockets.iter().filter(move |(found, _)| found == state).map(|(_, port)| *port)
    }

    /// State and local port of its TCP sockets.
    fn sockets(&self) -> Vec<(String, u16)> {
        let inodes: BTreeSet<String> = inodes(&self.folder).collect();
        if inodes.is_empty() {
            return Vec::new();
        }
        let mut sockets = Vec::new();
        for table in ["net/tcp", "net/tcp6"] {
            let Ok(table) = fs::read_to_string(self.folder.join(table)) else { continue };
            for line in table.lines().skip(1) {
                let mut fields = line.split_whitespace();
                let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else { continue };
                if (state == LISTEN || state == ESTABLISHED)
                    && fields.nth(5).is_some_and(|inode| inodes.contains(inode))
                    && let Some((_, port)) = local.rsplit_once(':')
                    && let Ok(port) = u16::from_str_radix(port, 16)
                {
                    sockets.push((state.to_owned(), port));
                }
            }
        }
        sockets
    }
}

/// What `/proc/PID/cgroup` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    pub cgroup: Option<String>,
    pub cgroup_v1: Option<String>,
}

impl Cgroups {
    /// Lines of `ID:CONTROLLERS:PATH`. On hybrid machines the path of v2 may say nothing: then that of a tree of v1
    /// counts which names a container, or else a unit.
    pub fn of(text: &str) -> Self {
        let paths = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let cgroup = paths().find(|(controllers, _)| controllers.is_empty()).map(|(_, path)| path.to_owned());
        let is_open = |path: &str| Place::of(path).is_open();
        if cgroup.as_deref().is_some_and(|path| !is_open(path)) {
            return Self { cgroup, cgroup_v1: None };
        }
        let trees = || paths().filter(|(controllers, path)| !controllers.is_empty() && !is_open(path));
        let contained = trees().find(|(_, path)| Place::of(path).unit.is_none());
        let cgroup_v1 = contained.or_else(|| trees().next()).map(|(_, path)| path.to_owned());
        Self { cgroup, cgroup_v1 }
    }

    pub fn place(&self) -> Place {
        let paths = [&self.cgroup, &self.cgroup_v1].into_iter().flatten();
        paths.map(|path| Place::of(path)).find(|place| !place.is_open()).unwrap_or_default()
    }
}

/// Whether what a process has open can be listed: to see where it leads takes more than to see that it is.
pub fn shows_files(process: u32) -> bool {
    let Ok(mut files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files.next().is_none_or(|file| file.is_ok_and(|file| fs::read_link(file.path()).is_ok()))
}

/// The inodes of the sockets that a process holds.
pub fn sockets(process: u32) -> impl Iterator<Item = u64> {
    inodes(&Path::new("/proc").join(process.to_string())).filter_map(|inode| inode.parse().ok())
}

fn inodes(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let files = fs::read_dir(folder.join("fd")).into_iter().flatten();
    files.filter_map(|file| fs::read_link(file.ok()?.path()).ok()).filter_map(|target| {
        let target = target.as_os_str().as_bytes();
        let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
        Some(String::from_utf8_lossy(inode).into_owned())
    })
}

/// The file that a path leads to, as the kernel knows it.
pub fn file(path: &Path) -> Option<File> {
    let file = fs::metadata(path).ok()?;
    Some([kernel_device(file.dev()), file.ino()])
}

/// A device number as the kernel has it inside (`MKDEV`, include/linux/kdev_t.h).
pub fn kernel_device(device: u64) -> u64 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    u64::from(major) << 20 | u64::from(minor)
}

/// The numbers of all processes.
pub fn all() -> Result<BTreeSet<u32>> {
    Ok(parents()?.into_keys().collect())
}

/// The process that a thread belongs to.
pub fn process_of_thread(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The processes and all that descend from them, without this one.
pub fn with_descendants(roots: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    let parents = parents()?;
    let own = std::process::id();
    let descends = |process: u32| {
        let mut at = Some(process);
        // A process that ends while this goes on can leave a loop of numbers used again.
        for _ in 0..parents.len() + 1 {
            match at {
                Some(id) if roots.contains(&id) => return true,
                Some(id) => at = parents.get(&id).copied(),
                None => return false,
            }
        }
        false
    };
    Ok(parents.keys().copied().filter(|process| *process != own && descends(*process)).collect())
}

/// The parent of each process.
fn parents() -> Result<BTreeMap<u32, u32>> {
    let entries = fs::read_dir("/proc").context("/proc cannot be read")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process: u32| Some((process, parent(process)?)))
        .collect())
}

/// Fields 3 and 4 of `/proc/PID/stat`: of one that has ended and was not waited for there is no more to
/// see. The name in field 2 can hold anything, also brackets.
pub fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.next()?.parse().ok(),
    }
}

/// Whether a process that runs (and not only a thread) has this number.
pub fn exists(process: u32) -> bool {
    parent(process).is_some()
}

/// Where a file system of this kind is mounted, the first if there are several.
pub fn mounted(kind: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, target, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then(|| PathBuf::from(target))
    })
}

/// Whether processes can be looked up at all.
pub fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// Whether this runs among all processes of the machine: the probes know no other numbers.
pub fn sees_all_processes() -> bool {
    // PROC_PID_INIT_INO (include/linux/proc_ns.h)
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_that_says_something_counts() {
        let id = "0123456789abcdef".repeat(4);
        let told = |text: &str| {
            let Cgroups { cgroup, cgroup_v1 } = Cgroups::of(text);
            [cgroup.unwrap_or_default(), cgroup_v1.unwrap_or_default()]
        };
        let docker = format!("/docker/{id}");
        assert_eq!(told(&format!("0::{docker}\n")), [&docker, ""]);
        assert_eq!(told("0::/user.slice/session-1.scope\n"), ["/user.slice/session-1.scope", ""]);
        let hybrid = format!("2:cpu,cpuacct:{docker}\n1:name=systemd:/system.slice/docker.service\n0::/\n");
        assert_eq!(told(&hybrid), ["/", &docker]);
        let both = format!("2:cpu:/docker/{}\n0::{docker}\n", "f".repeat(64));
        assert_eq!(told(&both), [&docker, ""]);
        assert_eq!(
            told("4:memory:/\n1:name=systemd:/system.slice/a.service\n"),
            ["", "/system.slice/a.service"]
        );
        assert_eq!(told("4:memory:/jobs/1\n0::/\n"), ["/", ""]);
        assert_eq!(told("\n::\n:\nx"), ["", ""]);
        assert_eq!(Cgroups::of(&hybrid).place().id, Some(id.into()));
    }
}
