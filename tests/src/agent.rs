//! `tracer run` as a process, what it answers, and the numbers in it.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Errors, Folder, Process, capture, program, wait_for};

/// An agent that runs.
pub struct Agent {
    process: Process,
    errors: Errors,
    /// Where it answers.
    pub address: String,
    pub config: PathBuf,
    out: PathBuf,
}

/// What an agent said until its end.
pub struct Ended {
    pub spans: Vec<Value>,
    /// What it printed, whatever that is.
    pub printed: String,
    pub errors: String,
    pub status: ExitStatus,
}

/// How a file gets another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Another file takes its name.
    Rename,
    /// A link above it leads elsewhere, as in a volume of Kubernetes.
    Swap,
    /// It is written over, and the agent is told.
    Signal,
}

static AGENTS: AtomicUsize = AtomicUsize::new(0);

/// With a port of its own, if the text says nothing of it.
fn whole(text: &str) -> String {
    if text.lines().any(|line| line.starts_with("serve:")) {
        text.to_owned()
    } else {
        format!("{text}\nserve: {{ address: '127.0.0.1:0' }}\n")
    }
}

/// The port that a text names itself.
fn named_address(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("serve:"))?;
    let address = line.split('\'').nth(1)?;
    (!address.ends_with(":0")).then(|| address.to_owned())
}

impl Agent {
    /// Ready when this returns: it captures, and answers.
    pub fn start(folder: &Folder, text: &str) -> Self {
        Self::start_with(folder, text, &[])
    }

    /// With variables of the environment.
    pub fn start_with(folder: &Folder, text: &str, variables: &[(&str, &str)]) -> Self {
        let number = AGENTS.fetch_add(1, Relaxed);
        // As a volume of Kubernetes: config.yaml -> ..data/config.yaml, ..data -> ..0
        let volume = folder.path(&format!("agent-{number}"));
        fs::create_dir_all(volume.join("..0")).expect("a folder");
        fs::write(volume.join("..0/config.yaml"), whole(text)).expect("a file");
        symlink("..0", volume.join("..data")).expect("a link");
        let config = volume.join("config.yaml");
        symlink("..data/config.yaml", &config).expect("a link");
        let out = volume.join("out");
        let mut command = Command::new(program("tracer"));
        command.arg("run").arg("--config").arg(&config).envs(variables.iter().copied());
        if let Some(capture) = capture() {
            command.args(["--capture", &capture]);
        }
        let printed = fs::File::create(&out).expect("a file");
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(printed).stderr(Stdio::piped()));
        let errors = Errors::of(&mut process);
        let mut agent = Self { process, errors, address: String::new(), config, out };
        let named = named_address(text);
        agent.address = wait_for("the agent to start", || {
            let said = agent.said();
            if let Some(address) = &named {
                // It may be told to say nothing.
                assert!(!agent.process.has_ended(), "the agent ended: {said}");
                TcpStream::connect(address).ok()?;
                return (ask(address, "GET", "/readyz", "").status == 200).then(|| address.clone());
            }
            let address = said.split("answers on http://").nth(1);
            let address = address.and_then(|rest| rest.split(['\n', '"']).next()).map(str::to_owned);
            assert!(address.is_some() || !agent.process.has_ended(), "the agent ended: {said}");
            address
        });
        agent
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn said(&self) -> String {
        self.errors.said()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// The spans that were printed until now.
    pub fn printed(&self) -> Vec<Value> {
        spans(&fs::read_to_string(&self.out).expect("what was printed"))
    }

    /// Another configuration, which it takes or refuses before this returns.
    pub fn change(&self, text: &str, way: Way) {
        let read = |metrics: &Metrics| metrics.sum("tracer_config_reloads_total", &[]);
        let before = read(&self.metrics());
        self.rewrite(text, way);
        wait_for("the file to be read", || (read(&self.metrics()) > before).then_some(()));
    }

    pub fn rewrite(&self, text: &str, way: Way) {
        let (text, volume) = (whole(text), self.config.parent().expect("a folder"));
        match way {
            Way::Rename => {
                let next = volume.join("next");
                fs::write(&next, text).expect("a file");
                // The link itself is replaced, by a file.
                fs::rename(next, &self.config).expect("another file");
            }
            Way::Swap => {
                let name = format!("..{}", AGENTS.fetch_add(1, Relaxed) + 1);
                fs::create_dir(volume.join(&name)).expect("a folder");
                fs::write(volume.join(&name).join("config.yaml"), text).expect("a file");
                symlink(&name, volume.join("next")).expect("a link");
                fs::rename(volume.join("next"), volume.join("..data")).expect("another link");
            }
            Way::Signal => {
                fs::write(&self.config, text).expect("the file");
                self.signal(Signal::HUP);
            }
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        ask(&self.address, "GET", path, "")
    }

    pub fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text);
        Metrics::parse(&answer.text)
    }

    /// Asks again and again until the metrics are so.
    pub fn wait_metrics(&self, what: &str, mut holds: impl FnMut(&Metrics) -> bool) -> Metrics {
        wait_for(what, || Some(self.metrics()).filter(|metrics| holds(metrics)))
    }

    /// Until a histogram has counted so many, of all series.
    pub fn wait_counted(&self, histogram: &str, count: usize) -> Metrics {
        let name = format!("{histogram}_count");
        let mut last = 0.0;
        let text = format!("{count} in {histogram}");
        let found = wait_for(&text, || {
            let metrics = self.metrics();
            last = metrics.sum(&name, &[]);
            (last >= count as f64).then_some(metrics)
        });
        assert_eq!(last as usize, count, "{histogram}");
        found
    }

    /// Ends it as a service manager does, and takes what it said.
    pub fn finish(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn wait(mut self) -> Ended {
        let status = self.process.wait();
        self.errors.finish();
        let printed = fs::read_to_string(&self.out).expect("what was printed");
        Ended { spans: spans(&printed), printed, errors: self.said(), status }
    }
}

/// Lines of JSON; what is none is not a span.
fn spans(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Ended {
    /// It ended well, its books balance, and nothing was lost.
    pub fn assert_complete(&self) {
        assert_eq!(self.status.code(), Some(0), "{}", self.errors);
        assert!(self.errors.contains("(sums exactly)"), "{}", self.errors);
        assert!(self.errors.contains(" 0 records lost"), "{}", self.errors);
    }
}

pub struct Answer {
    pub status: u16,
    /// The head as it came.
    pub head: String,
    pub text: String,
}

/// One request over a connection of its own. `more` are lines of the head, each with its end.
pub fn ask(address: &str, method: &str, path: &str, more: &str) -> Answer {
    try_ask(address, method, path, more).expect("the agent answers")
}

/// None where nobody listens, or who listened has ended.
pub fn try_ask(address: &str, method: &str, path: &str, more: &str) -> Option<Answer> {
    ask_over(TcpStream::connect(address).ok()?, method, path, more)
}

/// None if there is no whole answer.
pub fn ask_over(mut connection: TcpStream, method: &str, path: &str, more: &str) -> Option<Answer> {
    connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    connection.read_to_string(&mut text).ok()?;
    let (head, text) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), text: text.to_owned() })
}

/// A page of Prometheus' text, understood.
#[derive(Clone, Debug)]
pub struct Metrics(pub Vec<Sample>);

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self(lines.map(|line| Sample::parse(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect())
    }

    pub fn of<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let meets = |sample: &Sample| labels.iter().all(|(key, value)| sample.label(key) == *value);
        self.0.iter().filter(move |sample| sample.name == name && meets(sample))
    }

    /// Of all series with these labels; a dash for one that is not there.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|sample| sample.value).sum()
    }

    /// By the values of these labels, separated by blanks; a dash for one that is not there.
    pub fn by(&self, name: &str, keys: &[&str]) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for sample in self.of(name, &[]) {
            let values: Vec<&str> = keys.iter().map(|key| sample.label(key)).collect();
            *found.entry(values.join(" ")).or_default() += sample.value as usize;
        }
        found
    }

    /// The bytes that were moved, and where they ended.
    pub fn books(&self) -> (u64, u64) {
        (self.sum("tracer_moved_bytes_total", &[]) as u64, self.sum("tracer_bytes_total", &[]) as u64)
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_at(line.find(['{', ' '])?);
        let mut labels = BTreeMap::new();
        let mut rest = rest;
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.starts_with('}') {
                let (key, after) = rest.split_once("=\"")?;
                let end = (0..after.len())
                    .find(|at| after.as_bytes()[*at] == b'"' && !after[..*at].ends_with('\\'))?;
                labels.insert(key.to_owned(), after[..end].to_owned());
                rest = after[end + 1..].trim_start_matches(',');
            }
            rest = &rest[1..];
        }
        // What comes behind a value is an exemplar.
        let value = rest.split_whitespace().next()?.replace("Inf", "inf").parse().ok()?;
        Some(Self { name: name.to_owned(), labels, value })
    }

    pub fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("-", String::as_str)
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|sample| writeln!(f, "{} {:?} {}", sample.name, sample.labels, sample.value))
    }
}

/// A file that is not an agent's own, for `tracer config check` and the like.
pub fn config_in(folder: &Folder, text: &str) -> PathBuf {
    let path = folder.path(&format!("config-{}.yaml", AGENTS.fetch_add(1, Relaxed)));
    fs::write(&path, text).expect("a file");
    path
}

/// The line and column as they are told of a file.
pub fn place(file: &Path, line: u64, column: u64) -> String {
    format!("{}:{line}:{column}: ", file.display())
}
