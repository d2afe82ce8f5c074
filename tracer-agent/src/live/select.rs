//! What is to be traced: rules for processes, and the processes that are there already. What starts later is
//! chosen by the probes, and by this where they have to ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Error, Result, anyhow, bail, ensure};
use globset::GlobMatcher;
use tracer_common::config::{File, Met, NAME_SIZE, RULES_MAX, Rules, condition};

use super::{
    discover::{self, Seen},
    load::name_key,
    pods::{PodRule, PodWish, Pods},
};
use crate::{enrich::kubernetes::Object, filter};

/// The kernel cuts the name of a process (`TASK_COMM_LEN`).
const COMMAND_MAX: usize = 15;

/// What the kinds of conditions are called, by their place.
pub const KINDS: [&str; condition::COUNT] = ["pid", "command", "exe", "port", "cgroup"];

/// What a rule asks for. Values of one kind are alternatives; a process has to meet every kind that has values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub pids: Vec<u32>,
    pub commands: Vec<String>,
    pub executables: Vec<String>,
    pub ports: Vec<u16>,
    pub cgroups: Vec<String>,
    pub pods: PodWish,
}

/// Processes that meet a rule that includes them, and none that excludes them.
#[derive(Debug, Default)]
pub struct Selection {
    rules: Vec<Rule>,
    /// Cgroups that are not there.
    pub missing: Vec<String>,
}

/// A [`Wish`], understood.
#[derive(Debug, Default)]
pub struct Rule {
    pub pids: BTreeSet<u32>,
    commands: Vec<Pattern>,
    executables: Vec<Pattern>,
    ports: BTreeSet<u16>,
    /// Those that are there, of those that were named.
    cgroups: Vec<Cgroup>,
    asks_cgroup: bool,
    /// In pods or containers alone, of which these are there.
    pods: Option<PodRule>,
    of_pods: Vec<Cgroup>,
    /// Those that exact paths of executables lead to.
    files: Vec<File>,
    /// Processes are named by what becomes of a command that is yet to be started.
    starts_command: bool,
    excludes: bool,
}

/// A name or a path: as it is, or with `*`, `?`, `[…]` and `{…}`.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: String,
    glob: Option<GlobMatcher>,
}

#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    text: String,
    folder: PathBuf,
    id: u64,
}

/// What the probes compare, each with the rules that ask for it.
#[derive(Debug, Default)]
pub struct Compared {
    pub names: BTreeMap<[u8; NAME_SIZE], u32>,
    pub files: BTreeMap<File, u32>,
    pub ports: BTreeMap<u16, u32>,
    pub cgroups: BTreeMap<u64, u32>,
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

    /// That which is empty.
    pub fn nothing() -> Self {
        Self { text: String::new(), glob: None }
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
    /// One rule alone, or what becomes of a command. Pods that do not want to be traced are not, if they are not
    /// meant by their names.
    pub fn of(wish: &Wish, starts_command: bool) -> Result<Self> {
        let mut missing = Vec::new();
        let mut rules = vec![Rule { starts_command, ..Rule::new(wish, false, &mut missing)? }];
        if let Some(missing) = missing.pop() {
            bail!("{missing}");
        }
        if wish.pods.asks_pods() && !wish.pods.names_pods() {
            let unwilling = Wish { pods: PodWish::saying("false"), ..Wish::default() };
            rules.push(Rule::new(&unwilling, true, &mut missing)?);
        }
        Ok(Self { rules, missing })
    }

    /// As it comes: cgroups may be there later.
    pub fn new(include: &[Wish], exclude: &[Wish]) -> Result<Self> {
        ensure!(
            include.len() + exclude.len() <= RULES_MAX,
            "there are {} rules, and room for {RULES_MAX}",
            include.len() + exclude.len()
        );
        let included = include.iter().map(|wish| (wish, false));
        let wishes = included.chain(exclude.iter().map(|wish| (wish, true)));
        let mut missing = Vec::new();
        let rules = wishes.map(|(wish, excludes)| Rule::new(wish, excludes, &mut missing));
        Ok(Self { rules: rules.collect::<Result<_>>()?, missing })
    }

    /// Probes that are tried with it choose no process.
    pub fn of_nobody() -> Self {
        Self { rules: vec![Rule { starts_command: true, ..Rule::default() }], missing: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.iter().all(|rule| rule.excludes || rule.kinds().is_empty())
    }

    /// Processes that are named by their ids.
    pub fn pids(&self) -> BTreeSet<u32> {
        self.including().flat_map(|rule| rule.pids.iter().copied()).collect()
    }

    /// The rules as the probes have them.
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        for (bit, rule) in self.bits() {
            if rule.excludes {
                rules.exclude |= bit;
            } else {
                rules.include |= bit;
            }
            let (asked, by_agent) = (rule.kinds(), rule.decided_by_agent());
            for kind in 0..condition::COUNT {
                if !asked.contains(&kind) {
                    rules.free[kind] |= bit;
                }
                if by_agent.contains(&kind) {
                    rules.by_agent[kind] |= bit;
                }
            }
        }
        rules
    }

    /// What the probes compare.
    pub fn compared(&self) -> Compared {
        let mut compared = Compared::default();
        for (bit, rule) in self.bits() {
            let names = rule.commands.iter().filter(|name| name.is_exact());
            for name in names.filter_map(|name| name_key(&name.text)) {
                *compared.names.entry(name).or_default() |= bit;
            }
            for file in &rule.files {
                *compared.files.entry(*file).or_default() |= bit;
            }
            for port in &rule.ports {
                *compared.ports.entry(*port).or_default() |= bit;
            }
            for cgroup in rule.cgroups() {
                *compared.cgroups.entry(cgroup.id).or_default() |= bit;
            }
        }
        compared
    }

    /// The rules by which a process is chosen that meets so much.
    pub fn chosen(&self, met: &Met) -> u32 {
        self.rules().chosen(met)
    }

    /// Whether processes that are not there yet, and no children of those that are, can be chosen.
    pub fn may_match_later(&self) -> bool {
        self.including().any(|rule| !rule.kinds().contains(&condition::PID))
    }

    /// A process that becomes the command meets this.
    pub fn met_by_command(&self) -> Met {
        let mut met = Met::default();
        for (bit, _) in self.bits().filter(|(_, rule)| rule.starts_command) {
            met[condition::PID] |= bit;
        }
        met
    }

    /// What a process meets by itself: its name, its file, its ports.
    pub fn met_by(&self, process: &Seen) -> Met {
        let mut met = Met::default();
        for (bit, rule) in self.bits() {
            for kind in rule.met_by(process) {
                met[kind] |= bit;
            }
        }
        met
    }

    /// All processes that are there, with what each meets; without this one.
    pub fn scan(&self) -> Result<BTreeMap<u32, (Seen, Met)>> {
        let own = std::process::id();
        // By rule: processes that are meant by their ids, and those in its cgroups.
        let mut named = Vec::new();
        for (bit, rule) in self.bits() {
            let descendants = match rule.pids.is_empty() {
                true => BTreeSet::new(),
                false => discover::with_descendants(&rule.pids)?,
            };
            let mut members = BTreeSet::new();
            for cgroup in rule.cgroups() {
                cgroup.members(&cgroup.folder, &mut members);
            }
            named.push((bit, descendants, members));
        }
        let all = discover::all()?;
        Ok(all
            .into_iter()
            .filter(|process| *process != own)
            .filter_map(|process| Some((process, Seen::of(process)?)))
            .map(|(process, seen)| {
                let mut met = self.met_by(&seen);
                for (bit, descendants, members) in &named {
                    if descendants.contains(&process) {
                        met[condition::PID] |= bit;
                    }
                    if members.contains(&process) {
                        met[condition::CGROUP] |= bit;
                    }
                }
                (process, (seen, met))
            })
            .collect())
    }

    /// Why a process that is not chosen nearly is.
    pub fn nearly(&self, process: u32, seen: &Seen, met: &Met) -> Option<String> {
        let included = self.bits().filter(|(_, rule)| !rule.excludes);
        included
            .filter_map(|(bit, rule)| {
                let meets = |kind: &usize| met[*kind] & bit != 0;
                rule.nearly(process, seen, &rule.kinds().into_iter().filter(meets).collect::<Vec<_>>())
            })
            .next()
    }

    /// The rules with these bits, for people.
    pub fn told(&self, rules: u32) -> String {
        let told = self.bits().filter(|(bit, _)| rules & bit != 0).map(|(_, rule)| rule.to_string());
        told.collect::<Vec<_>>().join(", and by ")
    }

    /// Whether any rule is about pods.
    pub fn asks_pods(&self) -> bool {
        self.pod_rules().any(|rule| rule.wish().asks_pods())
    }

    /// Whether any rule names containers.
    pub fn asks_containers(&self) -> bool {
        self.pod_rules().any(|rule| !rule.wish().containers.is_empty())
    }

    fn pod_rules(&self) -> impl Iterator<Item = &PodRule> {
        self.rules.iter().filter_map(|rule| rule.pods.as_ref())
    }

    /// The pods that were told of until now.
    pub fn set_pods_told(&mut self, told: &[Object]) {
        let mut pods = Pods::default();
        for object in told {
            pods.handle(object);
        }
        pods.look(1, self.asks_containers());
        self.set_pods(&pods);
    }

    /// The pods as they are now.
    pub(super) fn set_pods(&mut self, pods: &Pods) {
        for rule in &mut self.rules {
            let Some(asked) = &rule.pods else { continue };
            let mut found = pods.cgroups(asked, rule.excludes);
            if !rule.cgroups.is_empty() {
                found
                    .retain(|found| rule.cgroups.iter().any(|named| found.folder.starts_with(&named.folder)));
            }
            rule.of_pods = found;
        }
    }

    /// Processes in these cgroups, with the rules that ask for them.
    pub(super) fn members(&self, cgroups: &BTreeMap<u64, u32>) -> BTreeMap<u32, u32> {
        let mut members = BTreeMap::new();
        for (bit, rule) in self.bits() {
            let mut inside = BTreeSet::new();
            for cgroup in rule.cgroups().iter().filter(|cgroup| cgroups.contains_key(&cgroup.id)) {
                cgroup.members(&cgroup.folder, &mut inside);
            }
            inside.into_iter().for_each(|process| *members.entry(process).or_default() |= bit);
        }
        members
    }

    fn including(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| !rule.excludes)
    }

    fn bits(&self) -> impl Iterator<Item = (u32, &Rule)> {
        self.rules.iter().enumerate().map(|(index, rule)| (1 << index, rule))
    }
}

impl Rule {
    /// `missing`: where it is told which cgroups are not there.
    fn new(wish: &Wish, excludes: bool, missing: &mut Vec<String>) -> Result<Self> {
        let patterns = |texts: &[String]| -> Result<Vec<Pattern>> {
            texts.iter().map(|text| Pattern::new(text)).collect()
        };
        let executables = patterns(&wish.executables)?;
        Ok(Self {
            pids: wish.pids.iter().copied().collect(),
            commands: patterns(&wish.commands)?,
            files: executables
                .iter()
                .filter(|path| path.is_exact())
                .filter_map(|path| discover::file(Path::new(&path.text)))
                .collect(),
            executables,
            ports: wish.ports.iter().copied().collect(),
            cgroups: wish
                .cgroups
                .iter()
                .filter_map(|text| Cgroup::find(text).map_err(|error| missing.push(error.to_string())).ok())
                .collect(),
            asks_cgroup: !wish.cgroups.is_empty() || !wish.pods.is_empty(),
            pods: PodRule::new(&wish.pods)?,
            of_pods: Vec::new(),
            starts_command: false,
            excludes,
        })
    }

    /// Those of which a process has to be in one.
    fn cgroups(&self) -> &[Cgroup] {
        if self.pods.is_some() { &self.of_pods } else { &self.cgroups }
    }

    /// Kinds of conditions that it has.
    fn kinds(&self) -> Vec<usize> {
        let kinds = [
            (condition::PID, !self.pids.is_empty() || self.starts_command),
            (condition::COMMAND, !self.commands.is_empty()),
            (condition::EXECUTABLE, !self.executables.is_empty()),
            (condition::PORT, !self.ports.is_empty()),
            (condition::CGROUP, self.asks_cgroup),
        ];
        kinds.into_iter().filter(|(_, used)| *used).map(|(kind, _)| kind).collect()
    }

    /// What the probes cannot tell alone: patterns, names that the kernel cuts, a file that a path leads
    /// to elsewhere (in a container, or after an upgrade), a port whose socket was handed over.
    fn decided_by_agent(&self) -> Vec<usize> {
        let by_agent = |kind: &usize| match *kind {
            condition::EXECUTABLE | condition::PORT => true,
            condition::COMMAND => {
                self.commands.iter().any(|name| !name.is_exact() || name.text.len() > COMMAND_MAX)
            }
            _ => false,
        };
        self.kinds().into_iter().filter(by_agent).collect()
    }

    /// Kinds of which the process meets a condition by itself.
    fn met_by(&self, process: &Seen) -> Vec<usize> {
        let mut met = Vec::new();
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
            met.push(condition::COMMAND);
        }
        // By its path, or as the same file by another.
        let is_same = |path: &str| self.executables.iter().any(|pattern| pattern.matches(path));
        let is_file = || process.file().is_some_and(|file| self.files.contains(&file));
        if !self.executables.is_empty() && (process.executable.as_deref().is_some_and(is_same) || is_file()) {
            met.push(condition::EXECUTABLE);
        }
        if !self.ports.is_empty() && process.listening().iter().any(|port| self.ports.contains(port)) {
            met.push(condition::PORT);
        }
        met
    }

    /// Why a process that meets conditions of these kinds nearly meets all.
    fn nearly(&self, process: u32, seen: &Seen, met: &[usize]) -> Option<String> {
        let asked = self.kinds();
        let kinds = asked.len();
        let missing: Vec<usize> = asked.into_iter().filter(|kind| !met.contains(kind)).collect();
        let [missing] = missing[..] else { return None };
        // With one kind alone everything would be one condition short.
        let unmet = match missing {
            condition::COMMAND => {
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
            condition::EXECUTABLE => {
                let path = seen.executable.as_deref().unwrap_or("unknown");
                let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
                let close =
                    self.executables.iter().any(|pattern| is_close(&last(&pattern.text), &last(path)));
                (kinds > 1 || close).then(|| format!("its file is {path}"))
            }
            condition::PORT => {
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
            condition::CGROUP if kinds > 1 => {
                Some(format!("its cgroup is {}", seen.cgroup.as_deref().unwrap_or("unknown")))
            }
            condition::PID if kinds > 1 => Some("it is neither one of the processes nor a child".to_owned()),
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
        let (excluding, including): (Vec<&Rule>, Vec<&Rule>) =
            self.rules.iter().partition(|rule| rule.excludes);
        let words = |rules: Vec<&Rule>| rules.iter().map(|rule| rule.to_string()).collect::<Vec<_>>();
        f.write_str(&words(including).join(" or "))?;
        if excluding.is_empty() { Ok(()) } else { write!(f, " but not {}", words(excluding).join(" or ")) }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.pids.iter().map(|pid| format!("--pid {pid}")));
        words.extend(self.commands.iter().map(|pattern| format!("--command {}", quoted(&pattern.text))));
        words.extend(self.executables.iter().map(|pattern| format!("--exe {}", quoted(&pattern.text))));
        words.extend(self.ports.iter().map(|port| format!("--port {port}")));
        words.extend(self.cgroups.iter().map(|cgroup| format!("--cgroup {}", cgroup.text)));
        let pods = self.pods.iter().flat_map(|pods| pods.wish().words());
        words.extend(pods.map(|(flag, text)| format!("{flag} {}", quoted(text))));
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

    pub(super) fn at(folder: &Path) -> Option<Self> {
        let id = fs::metadata(folder).ok()?.ino();
        Some(Self { text: folder.display().to_string(), folder: folder.to_owned(), id })
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
pub(super) fn cgroup_root() -> Result<PathBuf> {
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
