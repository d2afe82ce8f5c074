//! gRPC in four stacks, both ends traced: every call, with the status that was on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    mem::replace,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tracer_tests::process::{
    Folder, Process, Server, Traced, Tracer, assert_same, count, line, program, python, run, wait_for,
};

/// By their number.
pub(super) const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Go,
    Rust,
    Python,
    Node,
}

use Stack::{Go, Node, Python, Rust};

impl Stack {
    /// The program of `tests/workloads/grpc`, with its arguments.
    fn words(self, folder: &Folder) -> Vec<String> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/grpc");
        let paths: Vec<PathBuf> = match self {
            Go => {
                let program = folder.path("grpc-go");
                if !program.exists() {
                    let mut build = Command::new("go");
                    build.arg("build").arg("-C").arg(sources.join("go")).arg("-o").arg(&program).arg(".");
                    run(&mut build);
                }
                vec![program]
            }
            Rust => vec![program("grpc-rust")],
            Python => vec![python(), sources.join("python/lab.py")],
            // Where `cargo xtask setup --tests` put it beside its packages.
            Node => {
                let python = python();
                let target = python.ancestors().nth(3).expect("the folder of builds");
                vec!["node".into(), target.join("node/lab.js")]
            }
        };
        paths.into_iter().map(|path| path.display().to_string()).collect()
    }

    fn server(self, folder: &Folder) -> Server {
        let words = self.words(folder);
        let log = folder.path("server.log");
        fs::write(&log, "").expect("a file");
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("server").arg(&log);
        Server::start(command, log)
    }

    fn client(self, folder: &Folder, address: &str, arguments: &[&str]) -> Vec<String> {
        let mut words = self.words(folder);
        words.extend(["client", address].map(str::to_owned));
        words.push(folder.path("client.log").display().to_string());
        words.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        words
    }
}

/// Calls as a workload logs them: `METHOD STATUS SENT RECEIVED`, seen from the client.
fn logged(path: &Path) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(path).expect("the log of a workload");
    count(text.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let status = words[1].parse::<usize>().map_or(words[1], |number| STATUSES[number]);
        format!("gRPC {} {status} {}>{}", words[0], words[2], words[3])
    }))
}

/// Runs a client against a server with both traced. Returns what was seen of the server, and of the client.
fn call(folder: &Folder, server: Stack, client: Stack, arguments: &[&str]) -> [Traced; 2] {
    let mut server = server.server(folder);
    let ends = Tracer::of(&[server.process.id()], &[]);
    let words = client.client(folder, &server.address, arguments);
    let mut command = vec!["--".to_owned()];
    command.extend(words);
    let client = Tracer::start("trace", &command).wait();
    assert!(client.status.success(), "{}", client.errors);
    // What it has to log is there when it has ended.
    server.process.signal(Signal::TERM);
    server.process.wait();
    [ends.finish(), client]
}

fn assert_calls(folder: &Folder, [server, client]: &[Traced; 2], calls: usize) {
    for (traced, kind, log) in [(server, "SERVER", "server.log"), (client, "CLIENT", "client.log")] {
        traced.assert_complete();
        let truth = logged(&folder.path(log));
        assert_eq!(truth.values().sum::<usize>(), calls, "{log}");
        assert_same(&traced.exchanges(kind), &truth);
        for span in &traced.spans {
            let attributes = &span["attributes"];
            assert_eq!(span["name"], attributes["rpc.method"]);
            assert_eq!(attributes["rpc.system.name"], "grpc");
            assert_error(span);
        }
    }
}

/// The semantic conventions say which statuses are errors of which side.
fn assert_error(span: &Value) {
    const OF_SERVERS: [&str; 6] =
        ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
    let status = span["attributes"]["rpc.response.status_code"].as_str().expect("a status");
    let failed = match span["kind"].as_str() {
        Some("CLIENT") => status != "OK",
        _ => OF_SERVERS.contains(&status),
    };
    assert_eq!(span["status"]["code"] == "ERROR", failed, "{span}");
    assert_eq!(span["attributes"]["error.type"] == status, failed, "{span}");
}

/// All four kinds of calls with all statuses, one at a time and a hundred at once.
fn exact(server: Stack, client: Stack) {
    for concurrency in ["1", "100"] {
        let folder = Folder::new(&format!("grpc-{server:?}-{client:?}-{concurrency}"));
        let both = call(&folder, server, client, &["--calls", "408", "--concurrency", concurrency]);
        assert_calls(&folder, &both, 408);
    }
}

#[test]
fn calls_of_go_are_seen_exactly() {
    exact(Go, Go);
    exact(Python, Go);
}

#[test]
fn calls_of_tonic_are_seen_exactly() {
    exact(Rust, Rust);
    exact(Go, Rust);
}

#[test]
fn calls_of_python_are_seen_exactly() {
    exact(Python, Python);
    exact(Node, Python);
}

#[test]
fn calls_of_node_are_seen_exactly() {
    exact(Node, Node);
    exact(Rust, Node);
}

/// 16 KiB of metadata in each of a hundred calls at once: their heads fill several frames.
#[test]
fn large_metadata_is_read() {
    for (server, client) in [(Go, Go), (Rust, Rust), (Python, Python), (Node, Node)] {
        let folder = Folder::new(&format!("metadata-{server:?}"));
        let arguments = ["--calls", "204", "--concurrency", "100", "--mode", "metadata"];
        let both = call(&folder, server, client, &arguments);
        assert_calls(&folder, &both, 204);
    }
}

/// Bytes of the file for a datagram of 8 bytes: heads of a block, of Ethernet, IP and UDP, and 2 to fill up.
const MARK: usize = 32 + 14 + 20 + 8 + 8 + 2;

/// Whoever decodes the packets of a port, and knows nothing of the tracer.
struct Wire {
    process: Process,
    file: PathBuf,
    port: String,
    /// Datagrams that were sent to know how far the file is.
    marks: usize,
}

/// Streams by what ended them: a status, a reset, or both, which one end may see in either order.
#[derive(Debug, Default)]
struct Ends {
    status: BTreeMap<String, usize>,
    reset: usize,
    both: BTreeMap<String, usize>,
    /// Nothing did, before the connection was over.
    open: usize,
    /// Streams that were asked for.
    asked: usize,
}

impl Wire {
    fn start(folder: &Folder, address: &str) -> Self {
        let port = address.rsplit(':').next().expect("a port").to_owned();
        let file = folder.path("wire.pcap");
        let filter = format!("port {port}");
        let mut command = Command::new("dumpcap");
        command.args(["-q", "-i", "lo", "-f", &filter, "-w"]).arg(&file);
        let mut process = command.stderr(Stdio::piped()).spawn().expect("dumpcap, which comes with tshark");
        let mut said = BufReader::new(process.stderr.take().expect("a pipe"));
        let mut text = String::new();
        while !text.contains("File:") {
            assert!(said.read_line(&mut text).expect("dumpcap's words") > 0, "dumpcap ended: {text}");
        }
        Self { process: Process::of(process), file, port, marks: 0 }
    }

    /// Waits until all that was captured before this is in the file. Returns how large that is.
    fn written(&mut self) -> usize {
        self.marks += 1;
        let mark = format!("mark {:03}", self.marks);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.send_to(mark.as_bytes(), format!("127.0.0.1:{}", self.port)).expect("a datagram");
        wait_for("the packets to be written", || {
            let file = fs::read(&self.file).ok()?;
            file.windows(mark.len()).any(|bytes| bytes == mark.as_bytes()).then_some(file.len())
        })
    }

    /// Waits until nothing is sent any more.
    fn at_rest(&mut self) {
        let mut before = self.written();
        wait_for("the wire to come to rest", || {
            std::thread::park_timeout(Duration::from_millis(200));
            let now = self.written();
            (replace(&mut before, now) + MARK == now).then_some(())
        });
    }

    fn finish(mut self) -> Ends {
        self.written();
        self.process.signal(Signal::INT);
        self.process.wait();
        let ports = format!("tcp.port=={},http2", self.port);
        let output = run(Command::new("tshark").arg("-r").arg(&self.file).args([
            "-d",
            &ports,
            "-Y",
            "http2",
            "-T",
            "json",
            "--no-duplicate-keys",
            "-J",
            "tcp http2",
        ]));
        let packets: Value = serde_json::from_slice(&output.stdout).expect("JSON of tshark");
        let mut statuses: BTreeMap<String, String> = BTreeMap::new();
        let mut resets: BTreeSet<String> = BTreeSet::new();
        let mut opened: BTreeSet<String> = BTreeSet::new();
        for packet in packets.as_array().expect("packets") {
            for frame in frames(&packet["_source"]["layers"]["http2"]) {
                let Some(stream) = frame["http2.streamid"].as_str().map(str::to_owned) else { continue };
                if frame["http2.type"] == "3" {
                    // One that says that nothing is wrong ends what was said already.
                    if frame["http2.rst_stream.error"] != "0" {
                        resets.insert(stream);
                    }
                    continue;
                }
                for header in listed(&frame["http2.header"]) {
                    if header["http2.header.name"] == ":path" {
                        opened.insert(stream.clone());
                    }
                    if header["http2.header.name"] == "grpc-status" {
                        let number = header["http2.header.value"].as_str().expect("a value");
                        let number: usize = number.parse().expect("a number");
                        statuses.insert(stream.clone(), STATUSES[number].to_owned());
                    }
                }
            }
        }
        let mut ends =
            Ends { reset: resets.iter().filter(|id| !statuses.contains_key(*id)).count(), ..Ends::default() };
        ends.asked = opened.len();
        ends.open = opened.iter().filter(|id| !statuses.contains_key(*id) && !resets.contains(*id)).count();
        for (stream, status) in statuses {
            let both = resets.contains(&stream);
            *if both { &mut ends.both } else { &mut ends.status }.entry(status).or_default() += 1;
        }
        ends
    }
}

/// All frames of a packet, wherever tshark lists them.
fn frames(layer: &Value) -> Vec<&Value> {
    listed(layer).into_iter().flat_map(|part| listed(&part["http2.stream"])).collect()
}

fn listed(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(all) => all.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

/// Calls of a client that breaks them off.
const CALLS: usize = 120;

/// Calls that run out of time or are cancelled have the status that was on the wire, or none.
fn broken_off(server: Stack, client: Stack, mode: &str) {
    let folder = Folder::new(&format!("{mode}-{server:?}"));
    let mut served = server.server(&folder);
    let mut wire = Wire::start(&folder, &served.address);
    let ends = Tracer::of(&[served.process.id()], &[]);
    let calls = CALLS.to_string();
    let arguments = ["--calls", &calls, "--pause-after", &calls, "--concurrency", "40", "--mode", mode];
    // The client stays until what both ends had to say was read: what it leaves behind nobody can tell.
    let last_word = folder.path("last-word");
    run(Command::new("mkfifo").arg(&last_word));
    let mut command = ["--", "sh", "-c", "exec \"$@\" <$0"].map(str::to_owned).to_vec();
    command.push(last_word.display().to_string());
    command.extend(client.client(&folder, &served.address, &arguments));
    let client = Tracer::start("trace", &command);
    let mut release = File::create(&last_word).expect("the client reads it");
    let log = folder.path("client.log");
    wait_for("all calls to end", || {
        let text = fs::read_to_string(&log).ok()?;
        (text.lines().count() == CALLS).then_some(())
    });
    wire.at_rest();
    writeln!(release).expect("the client waits");
    let client = client.wait();
    assert!(client.status.success(), "{}", client.errors);
    served.process.signal(Signal::TERM);
    served.process.wait();
    let traced = [ends.finish(), client];
    let truth = wire.finish();
    // Where the machine is slow the time of a call is over before it is sent: then there is none.
    let is_late = mode == "deadline" && (1..CALLS).contains(&truth.asked);
    assert!(truth.asked == CALLS || is_late, "{truth:?}");
    for (traced, kind) in traced.iter().zip(["SERVER", "CLIENT"]) {
        traced.assert_complete();
        let mut seen = truth.status.clone();
        let (mut without, mut reset) = (0, 0);
        assert_eq!(traced.spans.len(), truth.asked, "{kind}");
        for span in &traced.spans {
            let attributes = &span["attributes"];
            assert!(attributes["rpc.method"].as_str().is_some_and(|name| name.starts_with("lab.Echo/")));
            match attributes["rpc.response.status_code"].as_str() {
                Some(status) => {
                    let left = seen.entry(status.to_owned()).or_default();
                    if *left > 0 {
                        *left -= 1;
                    } else {
                        // More than those with a status alone: a reset has crossed them.
                        let more = without_status(&truth.both, status);
                        assert!(more > 0, "{kind}: {status} was never sent: {truth:?}");
                    }
                }
                None => {
                    without += 1;
                    reset += usize::from(attributes["error.type"] == "CANCEL");
                    assert!(attributes["tracer.outcome"].is_string(), "{span}");
                }
            }
        }
        assert!(seen.values().all(|left| *left == 0), "{kind}: not seen: {seen:?}; {truth:?}");
        let crossed: usize = truth.both.values().sum();
        assert!(
            (truth.reset..=truth.reset + crossed).contains(&reset) && without - reset <= truth.open,
            "{kind}: {without} without a status, {reset} of them reset: {truth:?}"
        );
    }
}

fn without_status(both: &BTreeMap<String, usize>, status: &str) -> usize {
    both.get(status).copied().unwrap_or_default()
}

#[test]
fn deadlines_have_the_status_that_was_sent() {
    for stack in [Go, Rust, Python, Node] {
        broken_off(stack, stack, "deadline");
    }
}

#[test]
fn cancelled_calls_have_no_status() {
    for stack in [Go, Rust, Python, Node] {
        broken_off(stack, stack, "cancel");
    }
}

/// Calls of a client that was running before the tracer: with fifty streams open all the time.
struct Joined {
    server: Traced,
    client: Traced,
    /// The calls that began after the tracer was there, in their order.
    truth: Vec<String>,
}

fn join(name: &str, stack: Stack, arguments: &[&str]) -> Joined {
    const BEFORE: &str = "60";
    let folder = Folder::new(&format!("joined-{name}"));
    let mut server = stack.server(&folder);
    let mut all = vec!["--concurrency", "4", "--held", "50", "--pause-after", BEFORE];
    all.extend(arguments);
    let words = stack.client(&folder, &server.address, &all);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client");
    let (mut input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let mut client = Process::of(child);
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("paused"));
    let tracers = [server.process.id(), client.id()].map(|process| Tracer::of(&[process], &[]));
    writeln!(input).expect("the client waits");
    assert!(client.wait().success(), "the client failed");
    server.process.signal(Signal::TERM);
    server.process.wait();
    let [server, client] = tracers.map(Tracer::finish);
    let log = fs::read_to_string(folder.path("client.log")).expect("the client's log");
    let before: usize = BEFORE.parse().expect("a number");
    let mut truth: Vec<String> = log.lines().skip(before).map(str::to_owned).collect();
    // Those that were held began before: they are the last.
    truth.truncate(truth.len() - 50);
    Joined { server, client, truth }
}

impl Joined {
    /// Every call that began after the join is there, and whatever is said of it is right. Returns how many
    /// of the spans of the last half have a name.
    fn assert_right(&self) -> (usize, usize) {
        let mut named = 0;
        for (traced, kind) in [(&self.server, "SERVER"), (&self.client, "CLIENT")] {
            traced.assert_complete();
            assert_eq!(traced.spans.len(), self.truth.len(), "{kind}: {}", traced.ledger());
            // The calls that were held are counted by their ends.
            assert!(traced.ledger().contains(" 50 responses without request"), "{}", traced.ledger());
            let truth: Vec<Vec<&str>> = self.truth.iter().map(|line| line.split(' ').collect()).collect();
            for span in &traced.spans {
                let attributes = &span["attributes"];
                let method = attributes["rpc.method"].as_str();
                let status = attributes["rpc.response.status_code"].as_str();
                let counts = ["request", "response"]
                    .map(|side| attributes[format!("tracer.{side}.message.count")].as_u64());
                let fits = truth.iter().any(|words| {
                    let number: usize = words[1].parse().expect("a number");
                    method.is_none_or(|method| method == words[0])
                        && status.is_none_or(|status| status == STATUSES[number])
                        && counts[0].is_none_or(|count| count.to_string() == words[2])
                        && counts[1].is_none_or(|count| count.to_string() == words[3])
                });
                assert!(fits, "{kind}: {}", line(span));
                let whole = method.is_some() && status.is_some();
                assert_eq!(
                    attributes["tracer.capture"] == "joined",
                    !whole || !attributes["tracer.capture"].is_null()
                );
                assert!(attributes["tracer.outcome"].is_null(), "{span}");
            }
            // Of each method and each status no more than there were.
            for (key, at) in [("rpc.method", 0), ("rpc.response.status_code", 1)] {
                let seen = count(
                    traced
                        .spans
                        .iter()
                        .filter_map(|span| span["attributes"][key].as_str().map(str::to_owned)),
                );
                let held = count(truth.iter().map(|words| match words[at].parse::<usize>() {
                    Ok(number) => STATUSES[number].to_owned(),
                    Err(_) => words[at].to_owned(),
                }));
                for (value, seen) in seen {
                    assert!(
                        held.get(&value).is_some_and(|held| seen <= *held),
                        "{kind}: {value} {seen} times"
                    );
                }
            }
            let last = &traced.spans[traced.spans.len() / 2..];
            named = last.iter().filter(|span| !span["attributes"]["rpc.method"].is_null()).count();
        }
        (named, self.truth.len() - self.truth.len() / 2)
    }
}

/// An encoder that never sends a name again leaves it unknown; one whose table turns over sends it again.
#[test]
fn calls_of_a_connection_that_was_open_before() {
    let steady = join("steady", Go, &["--calls", "264"]);
    assert_eq!(steady.assert_right().0, 0, "Go's encoder has its names in the table");
    let churning = join("churning", Go, &["--calls", "264", "--churn"]);
    let (named, all) = churning.assert_right();
    assert_eq!(named, all, "all names were sent again by then");
    // tonic's encoder sends each path as it is.
    let (named, all) = join("tonic", Rust, &["--calls", "264"]).assert_right();
    assert!(named == all || named == 0, "{named} of {all}");
    for (name, stack) in [("python", Python), ("node", Node)] {
        join(name, stack, &["--calls", "264"]).assert_right();
    }
}

/// What a span says of a call beside its name: time limit, messages, where it was.
#[test]
fn a_call_is_told_in_full() {
    let folder = Folder::new("grpc-full");
    let [server, client] = call(&folder, Go, Go, &["--calls", "8", "--mode", "status"]);
    for traced in [&server, &client] {
        let stream = |span: &&Value| span["name"] == "lab.Echo/Bidi" && span["status"]["code"] == "UNSET";
        let span = traced.spans.iter().find(stream).expect("a call");
        let attributes = &span["attributes"];
        for side in ["request", "response"] {
            assert_eq!(attributes[format!("tracer.{side}.message.count")], 3);
            assert_eq!(attributes[format!("tracer.{side}.message.size")], 300);
        }
        let events: Vec<&str> = span["events"]
            .as_array()
            .expect("events")
            .iter()
            .filter_map(|event| event["name"].as_str())
            .collect();
        for name in ["request.first", "request.last", "response.first", "response.last"] {
            assert!(events.contains(&format!("tracer.{name}_message").as_str()), "{events:?}");
        }
        assert!(traced.lines.iter().all(|line| !line.contains("told 1")), "the text of a status stays");
    }
}
