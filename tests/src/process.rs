//! Real processes: the tracer, servers and clients. Each ends with its owner.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take that has no reason to.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(now() < until, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[allow(clippy::disallowed_methods, reason = "a test gives up at some time")]
fn now() -> Instant {
    Instant::now()
}

/// Where the programs under test are.
pub fn program(name: &str) -> PathBuf {
    #[allow(clippy::disallowed_methods, reason = "`cargo xtask test` names the folder")]
    let folder = std::env::var("TRACER_BIN")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: run the live tests by `cargo xtask test`", path.display());
    path
}

/// The Python that `cargo xtask setup --tests` made, with the packages that the tests use.
pub fn python() -> PathBuf {
    #[allow(clippy::disallowed_methods, reason = "`cargo xtask test` names it")]
    let folder = std::env::var("TRACER_PYTHON")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python"), PathBuf::from);
    let python = folder.join("bin/python3");
    assert!(python.exists(), "{} is missing: run the live tests by `cargo xtask test`", python.display());
    python
}

/// How bytes are to be seen, where `cargo xtask test` says it: the same tests hold for every way.
pub fn capture() -> Option<String> {
    #[allow(clippy::disallowed_methods, reason = "`cargo xtask test` names it")]
    std::env::var("TRACER_CAPTURE").ok().filter(|name| !name.is_empty())
}

pub fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/servers").join(name)
}

/// A folder that goes with its owner.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tracer-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder for the test cannot be made");
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that is ended with its owner.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}")))
    }

    /// One that was started with pipes.
    pub fn of(child: Child) -> Self {
        Self(child)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.0.id() as i32).expect("a process id");
        kill_process(id, signal).expect("the process has ended before it was signalled");
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child can be waited for").is_some()
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("a process to end", || self.0.try_wait().expect("a child can be waited for"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            if let Some(id) = Pid::from_raw(self.0.id() as i32) {
                let _ = kill_process(id, Signal::TERM);
            }
            let until = now() + Duration::from_secs(5);
            while matches!(self.0.try_wait(), Ok(None)) && now() < until {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A server that prints where it listens, and logs its requests.
pub struct Server {
    pub process: Process,
    pub address: String,
    pub log: PathBuf,
}

impl Server {
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let mut process = Process::start(command.stdout(Stdio::piped()));
        let mut line = String::new();
        let out = process.0.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("the server says where it listens");
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        assert!(address.contains(':'), "the server did not say where it listens: {line:?}");
        Self { process, address, log }
    }

    pub fn python(folder: &Folder) -> Self {
        let log = folder.path("python.log");
        let mut command = Command::new(python());
        command.arg(workload("server.py")).arg(&log);
        Self::start(command, log)
    }

    pub fn node(folder: &Folder) -> Self {
        let log = folder.path("node.log");
        let mut command = Command::new("node");
        command.arg(workload("server.js")).arg(&log);
        Self::start(command, log)
    }

    pub fn go(folder: &Folder) -> Self {
        let log = folder.path("go.log");
        let program = folder.path("server-go");
        run(Command::new("go").arg("build").arg("-o").arg(&program).arg(workload("server.go")));
        let mut command = Command::new(program);
        command.arg(&log);
        Self::start(command, log)
    }

    /// Two workers, answering from a file and from its configuration.
    pub fn nginx(folder: &Folder) -> Self {
        let locations = "location /ok/ { return 200 \"ok $request_uri\\n\"; }\n\
             location /empty/ { return 204; }\n\
             location /missing/ { return 404; }\n\
             location /fail/ { return 500; }";
        Self::nginx_with(folder, locations)
    }

    pub fn nginx_with(folder: &Folder, locations: &str) -> Self {
        Self::nginx_of(folder, "", locations)
    }

    /// `protocol` is what nginx calls that of the port, after a space.
    pub fn nginx_of(folder: &Folder, protocol: &str, locations: &str) -> Self {
        let port = free_port();
        let log = folder.path("access.log");
        fs::create_dir_all(folder.path("www")).expect("a folder");
        fs::write(folder.path("www/index.html"), "x".repeat(615)).expect("a file");
        let root = folder.path("");
        let root = root.display();
        let configuration = folder.path("nginx.conf");
        let text = format!(
            "worker_processes 2; daemon off; pid {root}nginx.pid; error_log {root}error.log;\n\
             events {{ worker_connections 16384; }} worker_rlimit_nofile 20000;\n\
             http {{ log_format ids '$request_method $request_uri $status $body_bytes_sent';\n\
             access_log {root}access.log ids; keepalive_requests 10000000; sendfile on;\n\
             client_body_temp_path {root}body; proxy_temp_path {root}proxy; fastcgi_temp_path {root}fastcgi;\n\
             uwsgi_temp_path {root}uwsgi; scgi_temp_path {root}scgi;\n\
             server {{ listen 127.0.0.1:{port}{protocol} backlog=1024; root {root}www;\n\
             {locations} }} }}\n"
        );
        fs::write(&configuration, text).expect("a file");
        make_readable(&folder.path(""));
        let process = Process::start(Command::new(nginx_program()).arg("-c").arg(&configuration));
        let address = format!("127.0.0.1:{port}");
        wait_for("nginx to listen", || std::net::TcpStream::connect(&address).ok());
        Self { process, address, log }
    }

    /// `METHOD PATH STATUS BYTES` of each request, counted.
    pub fn logged(&self) -> BTreeMap<String, usize> {
        let text = fs::read_to_string(&self.log).expect("the server's log");
        count(text.lines().map(str::to_owned))
    }

    /// Waits until nothing is logged any more.
    pub fn at_rest(&self) -> BTreeMap<String, usize> {
        let mut before = 0;
        wait_for("the access log to come to rest", || {
            std::thread::park_timeout(Duration::from_millis(200));
            let logged = self.logged();
            let now = logged.values().sum::<usize>();
            (std::mem::replace(&mut before, now) == now).then_some(logged)
        })
    }

    /// Waits until so many requests are in the log: a server may write it after it answered.
    pub fn wait_logged(&self, requests: usize) -> BTreeMap<String, usize> {
        wait_for("the server's log", || {
            let logged = self.logged();
            (logged.values().sum::<usize>() >= requests).then_some(logged)
        })
    }
}

/// Where sbin is not on the path of whoever runs the tests.
fn nginx_program() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" }
}

/// For workers of nginx, who are somebody else.
fn make_readable(folder: &Path) {
    run(Command::new("chmod").arg("-R").arg("a+rX").arg(folder));
}

pub fn count(items: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Runs a command to its end; it has to succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Requests with unique ids from `first` on, see client.py.
pub fn client(address: &str, mode: &str, count: usize, first: usize, kinds: &str) {
    run(Command::new(python()).arg(workload("client.py")).args([
        address,
        mode,
        &count.to_string(),
        &first.to_string(),
        kinds,
    ]));
}

/// A tracer that runs.
pub struct Tracer {
    process: Process,
    errors: Errors,
    _folder: Folder,
    out: PathBuf,
}

/// What a process says on standard error, while it runs and when it has ended.
pub struct Errors {
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Errors {
    /// It was started with a pipe for them.
    pub fn of(process: &mut Process) -> Self {
        let said = Arc::new(Mutex::new(String::new()));
        let theirs = said.clone();
        let mut pipe = BufReader::new(process.0.stderr.take().expect("a pipe"));
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            while pipe.read_line(&mut line).is_ok_and(|length| length > 0) {
                theirs.lock().expect("no panic there").push_str(&std::mem::take(&mut line));
            }
        });
        Self { said, reader: Some(reader) }
    }

    pub fn said(&self) -> String {
        self.said.lock().expect("no panic there").clone()
    }

    /// Waits for the last word of a process that has ended.
    pub fn finish(&mut self) {
        self.reader.take().expect("once").join().expect("the reader ends with the pipe");
    }
}

/// What a tracer said.
pub struct Traced {
    pub spans: Vec<Value>,
    pub lines: Vec<String>,
    pub errors: String,
    pub status: ExitStatus,
}

impl Tracer {
    /// `trace` or `record`, with its arguments; spans go into a file. Ready when this returns.
    pub fn start<S: AsRef<OsStr>>(task: &str, arguments: &[S]) -> Self {
        Self::start_with(task, arguments, &[])
    }

    /// With variables of the environment.
    pub fn start_with<S: AsRef<OsStr>>(task: &str, arguments: &[S], variables: &[(&str, String)]) -> Self {
        let folder = Folder::new(&format!("tracer-{}", free_port()));
        let out = folder.path("spans.json");
        let mut command = Command::new(program("tracer"));
        command.arg(task).args(["--output", "json", "--output-file"]).arg(&out);
        if let Some(capture) = capture() {
            command.args(["--capture", &capture]);
        }
        command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start(command.stdin(Stdio::null()).stderr(Stdio::piped()));
        let errors = Errors::of(&mut process);
        let mut tracer = Self { process, errors, _folder: folder, out };
        wait_for("the tracer to start", || {
            let ready = tracer.said().lines().any(|line| line.starts_with("tracing "));
            let ended = tracer.process.0.try_wait().expect("a child").is_some();
            assert!(ready || !ended, "the tracer ended: {}", tracer.said());
            ready.then_some(())
        });
        tracer
    }

    /// Traces processes by their ids.
    pub fn of(processes: &[u32], arguments: &[&str]) -> Self {
        let mut all: Vec<String> =
            processes.iter().flat_map(|process| ["--pid".to_owned(), process.to_string()]).collect();
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Self::start("trace", &all)
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

    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait();
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the tracer runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line of memory");
        line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size")
    }

    /// Ids of the BPF programs, links and maps that the tracer holds.
    pub fn probes(&self) -> Vec<(String, u32)> {
        let folder = format!("/proc/{}/fdinfo", self.id());
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).expect("the tracer runs") {
            let Ok(text) = fs::read_to_string(entry.expect("an entry").path()) else { continue };
            for line in text.lines() {
                if let Some((key @ ("prog_id" | "link_id" | "map_id"), id)) = line.split_once(':') {
                    found.push((key.to_owned(), id.trim().parse().expect("an id")));
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// Ends it as Ctrl-C does, and takes what it said.
    pub fn finish(self) -> Traced {
        self.process.signal(Signal::INT);
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Traced {
        let status = self.process.wait();
        self.errors.finish();
        let mut text = String::new();
        fs::File::open(&self.out).expect("the spans").read_to_string(&mut text).expect("text");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let spans = lines.iter().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        Traced { spans, lines, errors: self.said(), status }
    }
}

impl Traced {
    /// `METHOD PATH STATUS BYTES` of each span of this kind, counted; a dash for what was not seen.
    pub fn exchanges(&self, kind: &str) -> BTreeMap<String, usize> {
        count(self.spans.iter().filter(|span| span["kind"] == kind).map(line))
    }

    pub fn ledger(&self) -> &str {
        self.errors.lines().find(|line| line.starts_with("ledger:")).unwrap_or("no ledger")
    }

    /// The books balance, and nothing was lost.
    pub fn assert_complete(&self) {
        self.assert_balanced();
        assert!(self.ledger().contains(" 0 records lost"), "{}", self.ledger());
    }

    pub fn assert_balanced(&self) {
        assert!(self.ledger().contains("(sums exactly)"), "{}\n{}", self.ledger(), self.errors);
    }
}

/// `METHOD PATH STATUS BYTES` of a span, or `gRPC METHOD STATUS ASKED>ANSWERED` with the numbers of messages;
/// and what is odd about it.
pub fn line(span: &Value) -> String {
    let attributes = &span["attributes"];
    let shown = |key: &str| match &attributes[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let path = match attributes["url.full"].as_str() {
        Some(url) => {
            let path = url.splitn(4, '/').nth(3).unwrap_or_default();
            format!("/{}", path.split('?').next().unwrap_or_default())
        }
        None => shown("url.path"),
    };
    let mut line = if attributes["rpc.system.name"].is_null() {
        format!(
            "{} {path} {} {}",
            shown("http.request.method"),
            shown("http.response.status_code"),
            shown("http.response.body.size")
        )
    } else {
        format!(
            "gRPC {} {} {}>{}",
            shown("rpc.method"),
            shown("rpc.response.status_code"),
            shown("tracer.request.message.count"),
            shown("tracer.response.message.count")
        )
    };
    for (key, name) in [("stream", "stream"), ("outcome", "outcome"), ("partial", "partial")] {
        if let Some(value) = attributes[format!("tracer.{key}")].as_str() {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    if !attributes["tracer.ambiguity"].is_null() {
        line.push_str(" ambiguous");
    }
    let (outcome, error) = (&attributes["tracer.outcome"], &attributes["error.type"]);
    if !outcome.is_null() && !error.is_null() && outcome != error {
        line.push_str(&format!(" error={}", shown("error.type")));
    }
    if let Some(why) = attributes["tracer.capture"].as_str() {
        line.push_str(&format!(" capture={why}"));
    }
    line
}

/// The two are the same, or the first differences are shown.
pub fn assert_same(seen: &BTreeMap<String, usize>, truth: &BTreeMap<String, usize>) {
    let missing: Vec<_> = truth.iter().filter(|(key, count)| seen.get(*key) != Some(count)).take(5).collect();
    let invented: Vec<_> =
        seen.iter().filter(|(key, count)| truth.get(*key) != Some(count)).take(5).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not seen as often as logged: {missing:?}; seen and not logged so often: {invented:?}; {} of {}",
        seen.values().sum::<usize>(),
        truth.values().sum::<usize>()
    );
}
