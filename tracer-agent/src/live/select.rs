//! What is to be traced: conditions on processes, and the processes that are there already. What starts
//! later is chosen by the probes, and by this where they have to ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Error, Result, anyhow, bail};
use globset::GlobMatcher;
use tracer_common::config::{File, NAME_SIZE, selected};

use super::{
    discover::{self, Seen},
    load::name_key,
};
use crate::filter;

/// The kernel cuts the name of a process (`TASK_COMM_LEN`).
const COMMAND_MAX: usize = 15;

/// The kinds of conditions, by their bit.
pub const KINDS: [(u32, &str); 5] = [
    (selected::PID, "--pid"),
    (selected::COMMAND, "--command"),
    (selected::EXECUTABLE, "--exe"),
    (selected::PORT, "--port"),
    (selected::CGROUP, "--cgroup"),
];

/// Values of one kind are alternatives; a process has to meet every kind that has values.
#[derive(Debug, Default)]
pub struct Selection {
    pub pids: BTreeSet<u32>,
    commands: Vec<Pattern>,
    executables: Vec<Pattern>,
    ports: BTreeSet<u16>,
    cgroups: Vec<Cgroup>,
    /// Those that exact paths of executables lead to.
    files: Vec<File>,
    /// Processes are named by what becomes of a command that is yet to be started.
    starts_command: bool,
}

/// A name or a path: as it is, or with `*`, `?`, `[…]` and `{…}`.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: String,
    glob: Option<GlobMatcher>,
}

#[derive(Clone, Debug)]
struct Cgroup {
    text: String,
    folder: PathBuf,
    id: u64,
}

impl Pattern {
    pub fn new(text: &str) -> Result<Self> {
        if text.is_empty() {
            bail!("an empty pattern matches nothing");
        }
        let is_glob = text.contains(['*', '?', '[', '{']);
        let glob = is_glob.then(|| filter::glob(text)).transpose().map_err(Error::msg)?;
        Ok(Self { text: text.to_owned(), glob })
    }

    pub fn matches(&self, text: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.is_match(text),
            None => self.text == text,
        }
    }

    pub fn is_exact(&self) -> bool {
        self.glob.is_none()
    }
}

impl Selection {
    pub fn new(
        pids: &[u32],
        commands: &[String],
        executables: &[String],
        ports: &[u16],
        cgroups: &[String],
        starts_command: bool,
    ) -> Result<Self> {
        let patterns = |texts: &[String]| -> Result<Vec<Pattern>> {
            texts.iter().map(|text| Pattern::new(text)).collect()
        };
        let executables = patterns(executables)?;
        Ok(Self {
            pids: pids.iter().copied().collect(),
            commands: patterns(commands)?,
            files: executables
                .iter()
                .filter(|path| path.is_exact())
                .filter_map(|path| discover::file(Path::new(&path.text)))
                .collect(),
            executables,
            ports: ports.iter().copied().collect(),
            cgroups: cgroups.iter().map(|text| Cgroup::find(text)).collect::<Result<_>>()?,
            starts_command,
        })
    }

    /// Probes that are tried with it choose no process.
    pub fn of_nobody() -> Self {
        Self { starts_command: true, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.required() == 0
    }

    /// What a process has to meet.
    pub fn required(&self) -> u32 {
        let kinds = [
            (selected::PID, !self.pids.is_empty() || self.starts_command),
            (selected::COMMAND, !self.commands.is_empty()),
            (selected::EXECUTABLE, !self.executables.is_empty()),
            (selected::PORT, !self.ports.is_empty()),
            (selected::CGROUP, !self.cgroups.is_empty()),
        ];
        kinds.into_iter().filter(|(_, used)| *used).map(|(kind, _)| kind).sum()
    }

    /// Whether what a process meets is enough for it to be chosen.
    pub fn is_met(&self, met: u32) -> bool {
        met & self.required() == self.required()
    }

    /// Whether processes that are not there yet, and no children of those that are, can meet it.
    pub fn may_match_later(&self) -> bool {
        self.required() & selected::PID == 0
    }

    /// What the probes cannot tell alone: patterns, names that the kernel cuts, a file that a path leads
    /// to elsewhere (in a container, or after an upgrade), a port whose socket was handed over.
    pub fn decided_by_agent(&self) -> u32 {
        let mut kinds = self.required() & (selected::EXECUTABLE | selected::PORT);
        if self.commands.iter().any(|name| !name.is_exact() || name.text.len() > COMMAND_MAX) {
            kinds |= selected::COMMAND;
        }
        kinds
    }

    /// Names that the probes compare.
    pub fn names(&self) -> Vec<[u8; NAME_SIZE]> {
        self.commands.iter().filter(|name| name.is_exact()).filter_map(|name| name_key(&name.text)).collect()
    }

    /// Files that the probes compare.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    pub fn ports(&self) -> &BTreeSet<u16> {
        &self.ports
    }

    pub fn cgroup_ids(&self) -> Vec<u64> {
        self.cgroups.iter().map(|cgroup| cgroup.id).collect()
    }

    /// What a process meets by itself: its name, its file, its ports.
    pub fn met_by(&self, process: &Seen) -> u32 {
        let mut met = 0;
        let names = [Some(process.command.as_str()), process.executable_name()];
        let by_name = |pattern: &Pattern| names.iter().flatten().any(|name| pattern.matches(name));
        // The kernel keeps the start of a name; the whole of it is in the command line.
        let by_long_name = |pattern: &Pattern| {
            process.command.len() == COMMAND_MAX
                && pattern.is_exact()
                && pattern.text.starts_with(&process.command)
                && process.words().contains(&pattern.text)
        };
        if self.commands.iter().any(|pattern| by_name(pattern) || by_long_name(pattern)) {
            met |= selected::COMMAND;
        }
        // By its path, or as the same file by another.
        let is_same = |path: &str| self.executables.iter().any(|pattern| pattern.matches(path));
        let is_file = || process.file().is_some_and(|file| self.files.contains(&file));
        if !self.executables.is_empty() && (process.executable.as_deref().is_some_and(is_same) || is_file()) {
            met |= selected::EXECUTABLE;
        }
        if !self.ports.is_empty() && process.listening().iter().any(|port| self.ports.contains(port)) {
            met |= selected::PORT;
        }
        met
    }

    /// All processes that are there, with what each meets; without this one.
    pub fn scan(&self) -> Result<BTreeMap<u32, (Seen, u32)>> {
        let own = std::process::id();
        let descendants = discover::with_descendants(&self.pids)?;
        let mut members = BTreeSet::new();
        for cgroup in &self.cgroups {
            cgroup.members(&cgroup.folder, &mut members);
        }
        let all = discover::all()?;
        Ok(all
            .into_iter()
            .filter(|process| *process != own)
            .filter_map(|process| Some((process, Seen::of(process)?)))
            .map(|(process, seen)| {
                let mut met = self.met_by(&seen);
                if descendants.contains(&process) {
                    met |= selected::PID;
                }
                if members.contains(&process) {
                    met |= selected::CGROUP;
                }
                (process, (seen, met))
            })
            .collect())
    }

    /// Why a process that is not chosen nearly is.
    pub fn nearly(&self, process: u32, seen: &Seen, met: u32) -> Option<String> {
        let missing = self.required() & !met;
        let kinds = self.required().count_ones();
        if missing.count_ones() != 1 {
            return None;
        }
        // With one kind alone everything would be one condition short.
        let unmet = match missing {
            selected::COMMAND => {
                let close = self.commands.iter().find(|pattern| {
                    is_close(&pattern.text, &seen.command)
                        || seen.executable_name().is_some_and(|name| is_close(&pattern.text, name))
                });
                (kinds > 1 || close.is_some()).then(|| match seen.executable_name() {
                    Some(name) if name != seen.command => {
                        format!("its name is {} and that of its file {name}", seen.command)
                    }
                    _ => format!("its name is {}", seen.command),
                })
            }
            selected::EXECUTABLE => {
                let path = seen.executable.as_deref().unwrap_or("unknown");
                let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
                let close =
                    self.executables.iter().any(|pattern| is_close(&last(&pattern.text), &last(path)));
                (kinds > 1 || close).then(|| format!("its file is {path}"))
            }
            selected::PORT => {
                let listening = seen.listening();
                if listening.is_empty() {
                    let served = seen.served();
                    let held = served.iter().any(|port| self.ports.contains(port));
                    match (held, kinds > 1) {
                        (true, _) => Some("it has connections on the port, and does not listen".to_owned()),
                        (false, true) => Some("it listens on no port".to_owned()),
                        (false, false) => None,
                    }
                } else {
                    let ports: Vec<String> = listening.iter().map(u16::to_string).collect();
                    let close = listening.iter().any(|port| {
                        self.ports.iter().any(|wanted| is_close(&port.to_string(), &wanted.to_string()))
                    });
                    (kinds > 1 || close).then(|| format!("it listens on {}", ports.join(", ")))
                }
            }
            selected::CGROUP if kinds > 1 => {
                Some(format!("its cgroup is {}", seen.cgroup.as_deref().unwrap_or("unknown")))
            }
            selected::PID if kinds > 1 => Some("it is neither one of the processes nor a child".to_owned()),
            _ => None,
        };
        let thread = self.pids.iter().find(|id| discover::process_of_thread(**id) == Some(process));
        match thread {
            Some(thread) if *thread != process => Some(format!("{thread} is one of its threads")),
            _ => unmet,
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.pids.iter().map(|pid| format!("--pid {pid}")));
        words.extend(self.commands.iter().map(|pattern| format!("--command {}", quoted(&pattern.text))));
        words.extend(self.executables.iter().map(|pattern| format!("--exe {}", quoted(&pattern.text))));
        words.extend(self.ports.iter().map(|port| format!("--port {port}")));
        words.extend(self.cgroups.iter().map(|cgroup| format!("--cgroup {}", cgroup.text)));
        f.write_str(&words.join(" "))
    }
}

/// As it has to be typed.
fn quoted(text: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "/._-+:@".contains(char);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

impl Cgroup {
    /// A folder of the cgroup v2 tree: by its path in the file system, or in the tree.
    fn find(text: &str) -> Result<Self> {
        let root = cgroup_root()?;
        let direct = Path::new(text);
        let folder = if direct.starts_with(&root) {
            direct.to_owned()
        } else {
            root.join(text.trim_start_matches('/'))
        };
        let found = fs::metadata(&folder)
            .ok()
            .filter(|found| found.is_dir() && folder.join("cgroup.procs").exists())
            .ok_or_else(|| {
                anyhow!(
                    "there is no cgroup `{text}` (looked for {}, in the cgroup v2 tree)",
                    folder.display()
                )
            })?;
        Ok(Self { text: text.to_owned(), folder, id: found.ino() })
    }

    /// Its processes, and those of the cgroups in it.
    fn members(&self, folder: &Path, members: &mut BTreeSet<u32>) {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.members(&entry.path(), members);
            }
        }
    }
}

/// Where the cgroup v2 tree is mounted.
fn cgroup_root() -> Result<PathBuf> {
    discover::mounted("cgroup2").ok_or_else(|| anyhow!("no cgroup v2 tree is mounted: --cgroup needs one"))
}

/// Whether somebody who typed the one may have meant the other.
fn is_close(typed: &str, found: &str) -> bool {
    let typed: String = typed.chars().filter(|char| !"*?[]{}".contains(*char)).collect();
    let (typed, found) = (typed.to_lowercase(), found.to_lowercase());
    if typed.is_empty() || found.is_empty() {
        return false;
    }
    found.contains(&typed)
        || (found.len() > 2 && typed.contains(&found))
        || (typed.len() > 3 && strsim::damerau_levenshtein(&typed, &found) <= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_whole_text() {
        let matches = |pattern: &str, text| Pattern::new(pattern).unwrap().matches(text);
        assert!(matches("curl", "curl") && !matches("curl", "curl2") && !matches("curl", "Curl"));
        assert!(matches("python*", "python3.11") && !matches("python*", "cpython"));
        assert!(matches("/usr/*/nginx", "/usr/sbin/nginx") && matches("{a,b}?", "b1"));
        assert!(Pattern::new("[").is_err() && Pattern::new("").is_err());
    }

    #[test]
    fn devices_are_as_the_kernel_has_them() {
        let kernel_device = discover::kernel_device;
        assert_eq!(kernel_device(rustix::fs::makedev(253, 0)), 253 << 20);
        assert_eq!(kernel_device(rustix::fs::makedev(8, 300)), 8 << 20 | 300);
    }

    #[test]
    fn close_is_what_somebody_may_have_meant() {
        assert!(is_close("ngin", "nginx") && is_close("ngnix", "nginx") && is_close("Node*", "node"));
        assert!(!is_close("curl", "cat") && !is_close("nginx", "bash"));
    }
}
