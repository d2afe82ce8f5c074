//! Chains of services in several languages: every parent is right, and is there where there is evidence.
//!
//! The path is the truth: whoever is asked for P asks the next for P/0, P/1 and so on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    mem::replace,
    path::Path,
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tracer_tests::process::{
    Folder, Server, Traced, Tracer, assert_same, count, line, program, python, run, wait_for, workload,
};

use super::findings::explain;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Go,
    /// Python, a thread for each connection.
    Threads,
    Asyncio,
    Node,
    /// A pool, of which one thread serves a request.
    Java,
    /// gunicorn's sync workers.
    Gunicorn,
    /// Python, whose calls are made by other threads than those that read.
    Handover,
    Tokio,
    GrpcGo,
    GrpcPython,
    GrpcNode,
    GrpcTonic,
}

use Stack::{
    Asyncio, Go, GrpcGo, GrpcNode, GrpcPython, GrpcTonic, Gunicorn, Handover, Java, Node, Threads, Tokio,
};

fn chain(name: &str) -> String {
    workload(&format!("../chain/{name}")).display().to_string()
}

impl Stack {
    fn start(self, folder: &Folder, number: usize, next: Option<&str>, options: &[&str]) -> Server {
        let built = |name: &str, build: &dyn Fn(&Path)| {
            let path = folder.path(name);
            if !path.exists() {
                build(&path);
            }
            path.display().to_string()
        };
        let log = folder.path(&format!("{number}.log"));
        fs::write(&log, "").expect("a file");
        let words = match self {
            Go => vec![built("chain-go", &|out| {
                run(Command::new("go").arg("build").arg("-o").arg(out).arg(chain("chain.go")));
            })],
            Threads => vec![python().display().to_string(), chain("threads.py")],
            Asyncio => vec![python().display().to_string(), chain("aio.py")],
            Handover => vec![python().display().to_string(), chain("handover.py")],
            Node => vec!["node".to_owned(), chain("chain.js")],
            Java => {
                let classes = built("classes", &|out| {
                    run(Command::new("javac").arg("-d").arg(out).arg(chain("Chain.java")));
                });
                ["java", "-XX:+UseSerialGC", "-cp", &classes, "Chain"].map(str::to_owned).to_vec()
            }
            Gunicorn => {
                let gunicorn = python().with_file_name("gunicorn").display().to_string();
                [&gunicorn, "-c", &chain("wsgi.py"), "--workers", "4", "wsgi:application"]
                    .map(str::to_owned)
                    .to_vec()
            }
            Tokio => vec![program("chain-rust").display().to_string()],
            GrpcGo => vec![grpc_go(folder)],
            GrpcPython => vec![python().display().to_string(), chain("grpc/chain.py")],
            GrpcNode => vec!["node".to_owned(), chain("grpc/chain.js")],
            GrpcTonic => vec![program("chain-grpc-rust").display().to_string()],
        };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let is_grpc = matches!(self, GrpcGo | GrpcPython | GrpcNode | GrpcTonic);
        let next = next.map(|next| if is_grpc { next.to_owned() } else { format!("http://{next}") });
        if self == Gunicorn {
            command.current_dir(chain(".")).env("CHAIN_LOG", &log);
            if let Some(next) = next {
                command.env("CHAIN_NEXT", next);
            }
            for option in options.chunks(2) {
                match *option {
                    ["--child"] => command.env("CHAIN_CHILD", "1"),
                    [name, value] => {
                        command.env(format!("CHAIN_{}", name.trim_start_matches('-').to_uppercase()), value)
                    }
                    _ => unreachable!("options come in pairs"),
                };
            }
        } else {
            command.arg("--log").arg(&log).args(options);
            if let Some(next) = next {
                command.args(["--next", &next]);
            }
        }
        command.env("NODE_PATH", python().ancestors().nth(3).expect("builds").join("node/node_modules"));
        Server::start(command, log)
    }
}

fn grpc_go(folder: &Folder) -> String {
    let out = folder.path("chain-grpc-go");
    if !out.exists() {
        run(Command::new("go").arg("build").arg("-C").arg(chain("grpc/go")).arg("-o").arg(&out).arg("."));
    }
    out.display().to_string()
}

/// Services, the first of which is asked and asks the next.
struct Services {
    folder: Folder,
    all: Vec<Server>,
}

/// Services that are traced.
struct Chain {
    services: Services,
    tracer: Tracer,
}

impl Chain {
    /// Each with its options, and `all` of them with these.
    fn start(name: &str, stacks: &[(Stack, &[&str])], all: &[&str]) -> Self {
        Services::start(name, stacks, all).trace("trace", &[])
    }

    fn finish(mut self) -> Told {
        for service in &mut self.services.all {
            service.process.signal(Signal::TERM);
            service.process.wait();
        }
        let traced = self.tracer.finish();
        Told { traced, log: self.services.log() }
    }
}

impl Services {
    fn start(name: &str, stacks: &[(Stack, &[&str])], common: &[&str]) -> Self {
        let folder = Folder::new(&format!("chain-{name}"));
        let mut all: Vec<Server> = Vec::new();
        for (number, (stack, options)) in stacks.iter().enumerate().rev() {
            let next = all.last().map(|next| next.address.clone());
            let options: Vec<&str> = common.iter().chain(*options).copied().collect();
            all.push(stack.start(&folder, number, next.as_deref(), &options));
        }
        all.reverse();
        Self { folder, all }
    }

    /// With a command of the tracer, and its arguments.
    fn trace(self, command: &str, arguments: &[&str]) -> Chain {
        let ids = self.all.iter().flat_map(|service| ["--pid".to_owned(), service.process.id().to_string()]);
        let arguments: Vec<String> =
            ids.chain(arguments.iter().map(|argument| (*argument).to_owned())).collect();
        Chain { tracer: Tracer::start(command, &arguments), services: self }
    }

    fn log(&self) -> String {
        self.all.iter().map(|service| fs::read_to_string(&service.log).expect("a log")).collect()
    }

    /// Returns what was asked for, with the trace that it was part of.
    fn load(
        &self,
        requests: usize,
        concurrency: usize,
        family: &str,
        more: &[&str],
    ) -> BTreeMap<String, String> {
        let log = self.folder.path(&format!("load-{requests}-{concurrency}.log"));
        let (requests, concurrency) = (requests.to_string(), concurrency.to_string());
        let address = &self.all[0].address;
        let mut command = if self.folder.path("chain-grpc-go").exists() {
            let mut command = Command::new(self.folder.path("chain-grpc-go"));
            command.args(["load", address]);
            command
        } else {
            let mut command = Command::new(python());
            command.args([chain("load.py"), format!("http://{address}")]);
            command
        };
        run(command.args([&requests, &concurrency, family]).arg(&log).args(more));
        self.at_rest();
        let text = fs::read_to_string(log).expect("the load's log");
        let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        words.map(|words| (words[1].to_owned(), words[3].to_owned())).collect()
    }

    /// Waits until what is answered later is answered too: as many were served as were asked.
    fn at_rest(&self) {
        let mut before = 0;
        wait_for("the services to come to rest", || {
            std::thread::park_timeout(Duration::from_millis(50));
            let lines = self.log().lines().filter(|line| asked(line)).count();
            (replace(&mut before, lines) == lines).then_some(())
        });
    }
}

/// What the tracer told, and what the services logged.
struct Told {
    traced: Traced,
    log: String,
}

/// Spans that have a parent, and those that could have one: of calls within the request that they are made for,
/// and of requests that come from a service.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parents {
    calls: [usize; 2],
    requests: [usize; 2],
}

fn path(span: &Value) -> &str {
    let attributes = &span["attributes"];
    let full = attributes["url.full"].as_str().and_then(|url| url.splitn(4, '/').nth(3).map(|_| url));
    match full {
        Some(url) => &url[url.match_indices('/').nth(2).expect("a path").0..],
        None => attributes["url.path"].as_str().or(attributes["rpc.method"].as_str()).expect("a path"),
    }
}

/// The path of the request that this one is made for.
fn reason(path: &str) -> Option<&str> {
    let sign = if path.starts_with("chain.Echo/") { '_' } else { '/' };
    let (before, last) = path.rsplit_once(sign)?;
    let counts = last == "late" || last.bytes().all(|byte| byte.is_ascii_digit()) && last.len() < 4;
    let by_itself = path.starts_with("/cron/") && path.matches('/').count() == 3;
    (counts && !by_itself).then_some(before)
}

/// The request that all of it comes from.
fn root(path: &str) -> &str {
    reason(path).map_or(path, root)
}

/// Not by a service itself, from time to time.
fn asked(path: &str) -> bool {
    !path.contains("/cron/")
}

impl Told {
    /// Nothing is missing, nothing is wrong. Returns how many parents there are. `sent`: the trace ids that
    /// requests came with.
    fn check(&self, sent: &BTreeMap<String, String>) -> Parents {
        self.traced.assert_complete();
        // Whether the last of those is logged when its process is told to end is chance.
        let seen = count(self.traced.spans.iter().filter(|span| asked(path(span))).map(|span| {
            let attributes = &span["attributes"];
            let status = match attributes["rpc.response.status_code"].as_str() {
                Some(name) => ["OK", "INTERNAL", "UNAVAILABLE"]
                    .iter()
                    .zip([0, 13, 14])
                    .find(|(known, _)| **known == name)
                    .map_or(-1, |(_, number)| number),
                None => attributes["http.response.status_code"].as_i64().unwrap_or(-1),
            };
            format!("{} {} {status}", span["kind"].as_str().expect("a kind"), path(span))
        }));
        assert_same(&seen, &count(self.log.lines().filter(|line| asked(line)).map(str::to_owned)));
        let by_id: BTreeMap<&str, &Value> =
            self.traced.spans.iter().map(|span| (span["spanId"].as_str().expect("an id"), span)).collect();
        assert_eq!(by_id.len(), self.traced.spans.len(), "ids are no two times the same");
        let called: BTreeSet<&str> =
            self.traced.spans.iter().filter(|span| span["kind"] == "CLIENT").map(path).collect();
        let mut parents = Parents::default();
        for span in &self.traced.spans {
            let (path_of_it, is_call) = (path(span), span["kind"] == "CLIENT");
            let evidence = span["attributes"]["tracer.parent.evidence"].as_str().expect("evidence");
            let from_outside = !is_call && !called.contains(path_of_it);
            let parent = span["parentSpanId"].as_str();
            assert_eq!(parent.is_none(), evidence == "none", "{}", line(span));
            if is_call && asked(path_of_it) {
                parents.calls[usize::from(parent.is_none())] += 1;
            }
            if !is_call && !from_outside && asked(path_of_it) {
                parents.requests[usize::from(parent.is_none())] += 1;
            }
            if from_outside {
                // What it came with.
                let trace = sent.get(path_of_it).filter(|trace| *trace != "-");
                assert!(trace.is_none_or(|trace| span["traceId"] == trace.as_str()), "{}", line(span));
                assert!(parent.is_none() || evidence == "header", "{}", line(span));
                assert!(parent.is_none_or(|parent| !by_id.contains_key(parent)));
                continue;
            }
            let Some(parent) = parent else { continue };
            let parent = by_id.get(parent).unwrap_or_else(|| panic!("a parent that is none: {}", line(span)));
            let right = if is_call {
                parent["kind"] == "SERVER"
                    && Some(path(parent)) == reason(path_of_it)
                    && parent["resource"]["process.pid"] == span["resource"]["process.pid"]
            } else {
                parent["kind"] == "CLIENT" && path(parent) == path_of_it
            };
            assert!(right, "WRONG PARENT by {evidence}: {} of {}", line(span), line(parent));
            assert_eq!(parent["traceId"], span["traceId"]);
        }
        self.check_traces();
        parents
    }

    /// All that belongs to one request is in one trace, as far as it has parents, and nothing else is.
    fn check_traces(&self) {
        let mut requests: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for span in &self.traced.spans {
            let trace = span["traceId"].as_str().expect("a trace");
            requests.entry(trace).or_default().insert(root(path(span)).to_owned());
        }
        for (trace, requests) in requests {
            assert_eq!(requests.len(), 1, "trace {trace} is of several requests: {requests:?}");
        }
    }

    /// How many spans each trace has.
    fn sizes(&self) -> BTreeMap<usize, usize> {
        let traces = count(self.traced.spans.iter().map(|span| span["traceId"].to_string()));
        let mut sizes = BTreeMap::new();
        for size in traces.into_values() {
            *sizes.entry(size).or_default() += 1;
        }
        sizes
    }

    fn by(&self, evidence: &str, kind: &str) -> usize {
        let spans = self.traced.spans.iter().filter(|span| span["kind"] == kind && asked(path(span)));
        spans.filter(|span| span["attributes"]["tracer.parent.evidence"] == evidence).count()
    }
}

const NONE: &[&str] = &[];
const FIVE: [(Stack, &[&str]); 5] =
    [(Go, NONE), (Threads, NONE), (Asyncio, NONE), (Node, NONE), (Tokio, NONE)];
const FIVE_CALLS: [(Stack, &[&str]); 5] =
    [(GrpcGo, NONE), (GrpcPython, NONE), (GrpcTonic, NONE), (GrpcNode, NONE), (GrpcGo, NONE)];

/// One at a time, ten and a hundred at once.
const LOADS: [(usize, usize); 3] = [(50, 1), (200, 10), (500, 100)];

/// Every link is right and there, and each trace has as many spans as the logs have lines for it.
fn passes_on(name: &str, stacks: &[(Stack, &[&str])], family: &str, all: &[&str]) {
    let chain = Chain::start(name, stacks, all);
    let mut sent = BTreeMap::new();
    for (requests, concurrency) in LOADS {
        sent.extend(chain.services.load(requests, concurrency, family, &[]));
    }
    let told = chain.finish();
    let (requests, calls) = (sent.len(), stacks.len() - 1);
    let parents = told.check(&sent);
    assert_eq!(
        parents,
        Parents { calls: [requests * calls, 0], requests: [requests * calls, 0] },
        "{family}"
    );
    assert_eq!(told.sizes(), BTreeMap::from([(2 * calls + 1, requests)]), "{family}");
    let by = if family == "x-request-id" { "correlation" } else { "header" };
    assert_eq!(told.by(by, "CLIENT"), requests * calls, "{family}");
}

#[test]
fn chains_that_pass_a_trace_on_are_whole() {
    for family in ["traceparent", "b3", "b3multi", "uber-trace-id", "x-request-id"] {
        passes_on(family, &FIVE, family, &["--pass", family]);
    }
    // A library that makes ids of its own.
    passes_on("child", &FIVE, "traceparent", &["--pass", "traceparent", "--child"]);
}

#[test]
fn chains_of_grpc_that_pass_a_trace_on_are_whole() {
    for family in ["traceparent", "b3", "b3multi", "uber-trace-id", "x-request-id"] {
        passes_on(&format!("grpc-{family}"), &FIVE_CALLS, family, &["--pass", family]);
    }
    passes_on("grpc-child", &FIVE_CALLS, "traceparent", &["--pass", "traceparent", "--child"]);
}

/// Where one thread serves one request at a time, that is evidence enough.
#[test]
fn threads_that_serve_one_request_at_a_time_are_evidence() {
    let stacks: [(Stack, &[&str]); 4] = [(Threads, NONE), (Java, NONE), (Gunicorn, NONE), (Threads, NONE)];
    // What a timer does meanwhile, on a thread of its own, is nobody's child.
    let chain = Chain::start("threads", &stacks, &["--pass", "none", "--cron", "20", "--name", "x"]);
    let mut sent = BTreeMap::new();
    for (requests, concurrency) in [(50, 1), (200, 10)] {
        sent.extend(chain.services.load(requests, concurrency, "none", &[]));
    }
    let told = chain.finish();
    let parents = told.check(&sent);
    assert_eq!(parents, Parents { calls: [750, 0], requests: [750, 0] });
    assert_eq!((told.by("thread", "CLIENT"), told.by("connection", "SERVER")), (750, 750));
    assert_eq!(told.sizes()[&7], 250);
}

/// No thread of these is evidence; what both ends saw is.
#[test]
fn services_that_do_many_things_at_once_get_no_wrong_parents() {
    let stacks: [(Stack, &[&str]); 5] =
        FIVE.map(|(stack, _)| (stack, if stack == Threads { NONE } else { &["--cron", "5"] as &[&str] }));
    let chain = Chain::start("nothing", &stacks, &["--pass", "none", "--name", "x"]);
    let mut sent = BTreeMap::new();
    for (requests, concurrency) in LOADS {
        sent.extend(chain.services.load(requests, concurrency, "none", &["--prefix", "/slow/2"]));
    }
    let told = chain.finish();
    let parents = told.check(&sent);
    // Those of the one that has threads.
    assert_eq!(parents.calls[0], sent.len());
    assert_eq!(told.by("thread", "CLIENT"), sent.len());
    assert_eq!(parents.requests[1], 0, "{parents:?}");
}

/// In all of these a call may be made by whom nobody would think.
#[test]
fn retries_fans_queues_and_what_comes_late_get_no_wrong_parents() {
    const ALL: [Stack; 6] = [Go, Threads, Asyncio, Node, Java, Tokio];
    for mode in ["fan", "sequence", "retry", "late", "stream"] {
        for family in ["none", "traceparent"] {
            for stack in ALL {
                let first: &[&str] = &["--mode", mode];
                let leaf: &[&str] = match mode {
                    // The first attempt fails there.
                    "retry" => &["--name", "leaf", "--mode", "retry"],
                    _ => &["--name", "leaf"],
                };
                let stacks = [(stack, first), (Go, leaf)];
                let name = format!("{mode}-{family}-{stack:?}");
                let chain = Chain::start(&name, &stacks, &["--pass", family]);
                let fails = if mode == "retry" { "/fail-leaf" } else { "" };
                let mut sent = chain.services.load(20, 1, family, &["--prefix", fails]);
                sent.extend(chain.services.load(60, 20, family, &["--prefix", fails]));
                let told = chain.finish();
                let parents = told.check(&sent);
                assert_eq!(parents.requests[1], 0, "{name}: {parents:?}");
                // What is asked within the request is told apart by the ids.
                if family == "traceparent" && mode != "late" {
                    assert_eq!(parents.calls[1], 0, "{name}: {parents:?}");
                }
            }
        }
    }
}

#[test]
fn requests_that_are_handed_over_get_no_wrong_parents() {
    for mode in ["single", "acceptor"] {
        for family in ["none", "traceparent"] {
            let first: &[&str] = &["--mode", mode];
            let name = format!("handover-{mode}-{family}");
            let chain = Chain::start(&name, &[(Handover, first), (Threads, NONE)], &["--pass", family]);
            let mut sent = chain.services.load(50, 1, family, &[]);
            sent.extend(chain.services.load(200, 20, family, &[]));
            let told = chain.finish();
            let parents = told.check(&sent);
            let linked = if family == "none" { 0 } else { sent.len() };
            assert_eq!(parents.calls[0], linked, "{name}");
            assert_eq!(parents.requests, [sent.len(), 0], "{name}");
        }
    }
}

/// Three services, one of which fails for one path: whoever has never seen them finds it in one screen.
#[test]
fn what_fails_deep_in_a_chain_is_seen_in_one_screen() {
    let stacks: [(Stack, &[&str]); 3] = [(Go, NONE), (Node, NONE), (Threads, &["--name", "deep"])];
    let capture = Folder::new("chain-capture");
    let capture = capture.path("chain.capture").display().to_string();
    let services = Services::start("screen", &stacks, &["--pass", "traceparent"]);
    let chain = services.trace("record", &["--out", &capture]);
    chain.services.load(50, 10, "traceparent", &[]);
    chain.services.load(1, 1, "traceparent", &["--prefix", "/fail-deep", "--any"]);
    chain.finish();
    let replay = |arguments: &[&str]| {
        let mut command = Command::new(program("tracer"));
        command.args(["replay", &capture, "--no-summary"]).args(arguments);
        run(&mut command)
    };
    let output = replay(&["--tree", "--status", "5xx"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(text.matches("trace ").count(), 1, "{text}");
    assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 140), "{text}");
    let shown: Vec<Vec<&str>> = lines[1..6]
        .iter()
        .map(|line| line.split_whitespace().filter(|word| word.len() > 2).collect())
        .collect();
    let rows =
        [("chain-go", "502"), ("chain-go", "502"), ("node", "502"), ("node", "503"), ("python3", "503")];
    for (words, (service, status)) in shown.iter().zip(rows) {
        let said = |wanted: &str| words.iter().any(|word| word.starts_with(wanted));
        assert!(said(service) && said(status), "{service} {status}: {text}");
    }
    assert!(lines[5].contains(" 503 !") && lines[5].trim_start().starts_with("`- python3"), "{text}");
    // And who calls whom, on the other stream.
    let output = replay(&["--edges", "--output", "none"]);
    let text = String::from_utf8(output.stderr).expect("text");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for (caller, callee) in [("(outside)", "chain-go"), ("chain-go", "node"), ("node", "python3")] {
        let row = rows.iter().find(|row| row.len() > 7 && row[5] == caller && row[7].starts_with(callee));
        assert_eq!(row.map(|row| [row[0], row[1]]), Some(["51", "1"]), "{caller} {callee}: {text}");
    }
}

/// Whether a process passes headers on, and what its links rest on.
#[test]
fn explain_says_what_a_process_passes_on() {
    for (stack, pass, verdict, evidence) in [
        (Go, "traceparent", "it passes headers on", "header"),
        (Go, "none", "it does not pass headers on", "none"),
        (Threads, "none", "it does not pass headers on", "thread"),
    ] {
        let name = format!("explain-{stack:?}-{pass}");
        let chain = Chain::start(&name, &[(stack, NONE), (Go, NONE)], &["--pass", pass]);
        let process = chain.services.all[0].process.id();
        let explained = explain(process, "4s", || {
            chain.services.load(30, 3, "traceparent", &[]);
        });
        let traces = &explained["traces"];
        assert_eq!(traces["verdict"], verdict, "{traces}");
        let passed = if pass == "none" { 0 } else { 30 };
        for (key, count) in
            [("served", 30), ("served_with_ids", 30), ("made", 30), ("made_with_those_ids", passed)]
        {
            assert_eq!(traces[key], count, "{key}: {traces}");
        }
        // Its requests came with the ids of their callers.
        let parents = if evidence == "header" { 60 } else { 30 };
        assert_eq!(traces["parents"][evidence], parents, "{traces}");
        assert_eq!(traces["threads"].is_null(), stack == Threads, "{traces}");
        chain.finish();
    }
}

/// Connections that were open before are joined at both ends too, by where TCP stands.
#[test]
fn services_that_ran_before_the_tracer_are_joined() {
    for (name, pass) in [("before", "none"), ("before-passed-on", "x-request-id")] {
        let services = Services::start(name, &FIVE, &["--pass", pass]);
        let before = services.load(100, 10, pass, &[]);
        let chain = services.trace("trace", &[]);
        let sent = chain.services.load(200, 10, pass, &[]);
        let mut told = chain.finish();
        let since = |line: &&str| !before.contains_key(root(line.split(' ').nth(1).expect("a path")));
        told.log = told.log.lines().filter(since).map(|line| format!("{line}\n")).collect();
        let parents = told.check(&sent);
        assert_eq!(parents.requests, [800, 0], "{name}");
    }
}
