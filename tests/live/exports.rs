//! Spans to collectors of all manners: what the tracer says of them is what the collector took.

use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use rustix::process::Signal;
use tracer_tests::{
    collector::{Collector, GrpcCollector, Manner, Received},
    process::{Folder, Process, Server, Traced, Tracer, client, free_port, python, run, wait_for, workload},
};

/// The numbers of the line on the export.
fn told(traced: &Traced) -> BTreeMap<&'static str, u64> {
    let line = traced.errors.lines().find(|line| line.starts_with("otlp:")).expect("a line on the export");
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |name: &str| {
        let at = words.iter().position(|word| word.trim_end_matches([',', ')']) == name)?;
        words[..at].iter().rev().find_map(|word| word.trim_start_matches('(').parse().ok())
    };
    ["sent", "dropped", "failed", "rejected"]
        .into_iter()
        .map(|name| (name, before(name).unwrap_or_else(|| panic!("no {name} in {line}"))))
        .collect()
}

/// Each span that was made was sent, dropped, rejected or not sent, and the collector agrees on the first two.
fn assert_agreed(traced: &Traced, received: &Received) -> BTreeMap<&'static str, u64> {
    traced.assert_balanced();
    let told = told(traced);
    assert_eq!(told.values().sum::<u64>(), traced.spans.len() as u64, "{told:?}\n{}", traced.errors);
    assert_eq!((told["sent"], told["rejected"]), (received.taken, received.rejected), "{told:?}");
    let ours: std::collections::BTreeSet<&str> =
        traced.spans.iter().map(|span| span["spanId"].as_str().expect("an id")).collect();
    assert!(received.spans.keys().all(|id| ours.contains(id.as_str())), "spans that nobody made");
    told
}

/// Until it is told to end.
fn load(server: &Server, rate: u64) -> Process {
    let url = format!("http://{}/index.html", server.address);
    let each = (rate / 8).to_string();
    Process::start(
        Command::new("hey").args(["-z", "10m", "-c", "8", "-q", &each, &url]).stdout(Stdio::null()),
    )
}

fn pause(seconds: u64) {
    std::thread::park_timeout(Duration::from_secs(seconds));
}

fn is_long() -> bool {
    #[allow(clippy::disallowed_methods, reason = "whoever runs the tests may have time")]
    std::env::var_os("TRACER_LONG").is_some()
}

/// Under a steady load the collector is there, silent, killed and back, busy, slow and picky. With TRACER_LONG
/// it is silent for a minute, at 5,000 requests a second.
#[test]
fn whatever_a_collector_does_is_counted() {
    let folder = Folder::new("manners");
    let server = Server::nginx(&folder);
    let mut collector = Collector::start();
    let (silent, rate) = if is_long() { (60, 5000) } else { (6, 2000) };
    let arguments = [
        "--otlp",
        &collector.url(),
        "--otlp-timeout",
        "3s",
        "--otlp-queue",
        "2MiB",
        "--otlp-compression",
        "gzip",
    ];
    let tracer = Tracer::of(&[server.process.id()], &arguments);
    let mut load = load(&server, rate);
    let mut memory = Vec::new();
    let mut behave = |collector: &Collector, manner: Manner, seconds: u64| {
        println!("{manner:?}");
        collector.behave(manner);
        pause(seconds);
        memory.push(tracer.memory());
    };
    // Spans go on once it takes them again.
    let recovers = |collector: &Collector| {
        collector.behave(Manner::Take);
        let before = collector.received().taken;
        wait_for("spans to go on", || (collector.received().taken > before).then_some(()));
    };
    behave(&collector, Manner::Take, 2);
    behave(&collector, Manner::Silent, silent);
    recovers(&collector);
    behave(&collector, Manner::Status(429, None), 2);
    recovers(&collector);
    behave(&collector, Manner::Status(503, Some("1")), 3);
    recovers(&collector);
    behave(&collector, Manner::Reject(7), 2);
    behave(&collector, Manner::Slow, 3);
    recovers(&collector);
    // In the middle of a request: what was taken, and not answered for, would be taken twice.
    behave(&collector, Manner::Silent, 2);
    collector.kill();
    pause(3);
    collector.restart();
    recovers(&collector);
    behave(&collector, Manner::Status(400, None), 2);
    recovers(&collector);
    load.signal(Signal::INT);
    load.wait();
    server.at_rest();
    let traced = tracer.finish();
    let received = collector.received();
    let told = assert_agreed(&traced, &received);
    println!("{told:?}; memory {memory:?} KiB; answers {:?}", received.answers);
    assert!(told["sent"] > 0 && told["rejected"] >= 7 && told["failed"] > 0, "{told:?}");
    assert!(received.answers[&400] > 0 && received.answers[&429] > 0 && received.answers[&503] > 0);
    // None was taken twice: those that were sent again had not been answered.
    assert!(received.spans.values().all(|times| *times == 1));
    let most = memory.iter().max().expect("some");
    assert!(*most < memory[0] + 16 * 1024, "memory grows: {memory:?} KiB");
    assert_eq!(server.logged().values().sum::<usize>(), traced.spans.len());
}

#[test]
fn codes_of_grpc_are_retried_or_not() {
    let folder = Folder::new("codes");
    let server = Server::python(&folder);
    const RESOURCE_EXHAUSTED: u16 = 8;
    const INVALID_ARGUMENT: u16 = 3;
    const UNAVAILABLE: u16 = 14;
    // Code, when to come again, how many of 20 spans get there in the end.
    let cases = [
        (Manner::Status(UNAVAILABLE, None), 20),
        (Manner::Status(RESOURCE_EXHAUSTED, Some("1")), 20),
        (Manner::Status(RESOURCE_EXHAUSTED, None), 0),
        (Manner::Status(INVALID_ARGUMENT, None), 0),
        (Manner::Silent, 20),
        (Manner::Reject(3), 17),
    ];
    for (index, (manner, arrive)) in cases.into_iter().enumerate() {
        let collector = GrpcCollector::start();
        collector.behave(manner.clone());
        let arguments = ["--otlp", &collector.url(), "--otlp-protocol", "grpc", "--otlp-timeout", "1s"];
        let more = ["--otlp-compression", "gzip", "--otlp-header", "x-tenant=a b"];
        let tracer = Tracer::of(&[server.process.id()], &[&arguments[..], &more[..]].concat());
        client(&server.address, "keep-alive", 20, index * 100, "ok");
        match &manner {
            Manner::Status(status, _) => {
                wait_for("an answer", || collector.received().answers.get(status).copied());
            }
            _ => pause(2),
        }
        collector.behave(if let Manner::Reject(_) = manner { manner.clone() } else { Manner::Take });
        if arrive == 20 {
            wait_for("the spans", || (collector.received().taken == 20).then_some(()));
        }
        let traced = tracer.finish();
        let received = collector.received();
        let told = assert_agreed(&traced, &received);
        assert_eq!(told["sent"], arrive, "{manner:?}: {}", traced.errors);
        if received.taken > 0 {
            assert_eq!(received.headers["x-tenant"], "a b", "{:?}", received.headers);
            assert_eq!(received.headers["grpc-encoding"], "gzip");
        }
    }
}

#[test]
fn variables_of_the_specification_are_honoured() {
    let folder = Folder::new("variables");
    let server = Server::python(&folder);
    let collector = Collector::start();
    let process = server.process.id().to_string();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{}/base/", collector.url())),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,authorization=Bearer c".to_owned()),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "5000".to_owned()),
    ];
    let tracer = Tracer::start_with("trace", &["--pid", &process], &variables);
    client(&server.address, "keep-alive", 20, 0, "ok");
    let traced = tracer.finish();
    let received = collector.received();
    assert_eq!(assert_agreed(&traced, &received)["sent"], 20);
    let header = |name: &str| received.headers[name].as_str();
    assert_eq!(header("request"), "POST /base/v1/traces HTTP/1.1");
    assert_eq!((header("x-tenant"), header("authorization")), ("a b", "Bearer c"));
    assert_eq!(header("content-encoding"), "gzip");
    assert!(header("user-agent").starts_with("tracer-otlp/"));
    // What the environment says wrongly is said before anything is traced.
    let wrong =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon".into())];
    let output = Command::new(tracer_tests::process::program("tracer"))
        .args(["trace", "--pid", &process])
        .envs(wrong)
        .output()
        .expect("the tracer");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("OTEL_EXPORTER_OTLP_TIMEOUT: `soon` is no number of milliseconds"), "{said}");
}

/// Certificates of an authority of our own: of a server, and of a client.
pub(super) struct Authority {
    folder: Folder,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let authority = Self { folder: Folder::new(name) };
        authority.openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        );
        for name in ["server", "client"] {
            fs::write(authority.path("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")
                .expect("a file");
            authority.openssl(&format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            authority.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
            ));
        }
        authority
    }

    fn openssl(&self, arguments: &str) {
        run(Command::new("openssl").args(arguments.split(' ')).current_dir(self.folder.path("")));
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// A collector that lets in who has a certificate of it.
    pub(super) fn server(&self, only_known: bool) -> Server {
        let bodies = self.path("bodies");
        let _ = fs::remove_dir_all(&bodies);
        fs::create_dir(&bodies).expect("a folder");
        let mut command = Command::new(python());
        command.arg(workload("tls.py")).arg(self.path("server.pem")).arg(self.path("server.key"));
        command.arg(if only_known { self.path("ca.pem") } else { PathBuf::from("-") }).arg(&bodies);
        Server::start(command, bodies)
    }
}

/// Spans in requests that were kept as files.
pub(super) fn spans_in(folder: &Path) -> usize {
    let files = fs::read_dir(folder).expect("the requests");
    files
        .map(|file| fs::read(file.expect("a file").path()).expect("a request"))
        .map(|body| ExportTraceServiceRequest::decode(&body[..]).expect("a request of spans"))
        .flat_map(|request| request.resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .map(|scope| scope.spans.len())
        .sum()
}

#[test]
fn tls_is_spoken_with_those_that_are_trusted() {
    let folder = Folder::new("tls");
    let server = Server::python(&folder);
    let authority = Authority::new("authority");
    let [ca, certificate, key] =
        ["ca.pem", "client.pem", "client.key"].map(|name| authority.path(name).display().to_string());
    let trusted = vec!["--otlp-certificate", &ca];
    let known =
        [&trusted[..], &["--otlp-client-certificate", &certificate, "--otlp-client-key", &key]].concat();
    let grpc = known.clone();
    // Who is let in, with what, and why not.
    let cases = [
        (false, trusted.clone(), None),
        (false, vec![], Some("UnknownIssuer")),
        (true, known, None),
        (true, trusted, Some("ertificate")),
    ];
    for (only_known, arguments, refused) in cases {
        let collector = authority.server(only_known);
        let url = format!("https://{}", collector.address);
        let tracer = Tracer::of(&[server.process.id()], &[&["--otlp", &url], &arguments[..]].concat());
        client(&server.address, "keep-alive", 20, 0, "ok");
        if refused.is_some() {
            wait_for("a word on it", || tracer.said().contains("does not take spans").then_some(()));
        }
        let traced = tracer.finish();
        traced.assert_complete();
        let told = told(&traced);
        match refused {
            None => assert_eq!((told["sent"], spans_in(&collector.log)), (20, 20), "{}", traced.errors),
            Some(reason) => {
                assert_eq!((told["sent"], told["failed"], spans_in(&collector.log)), (0, 20, 0));
                assert!(traced.errors.contains(reason), "{}", traced.errors);
            }
        }
    }
    // The same over gRPC.
    let read = |name: &str| fs::read(authority.path(name)).expect("a file");
    for (arguments, arrive) in [(&grpc, 20), (&grpc[..2].to_vec(), 0)] {
        let collector =
            GrpcCollector::start_with_tls(&read("server.pem"), &read("server.key"), &read("ca.pem"));
        let url = format!("https://{}", collector.address);
        let tracer = Tracer::of(
            &[server.process.id()],
            &[&["--otlp", &url, "--otlp-protocol", "grpc"], &arguments[..]].concat(),
        );
        client(&server.address, "keep-alive", 20, 0, "ok");
        let traced = tracer.finish();
        assert_eq!(assert_agreed(&traced, &collector.received())["sent"], arrive, "{}", traced.errors);
    }
    // What listens there speaks no TLS at all.
    let plain = Collector::start();
    let url = format!("https://{}", plain.address);
    let tracer = Tracer::of(&[server.process.id()], &["--otlp", &url]);
    client(&server.address, "keep-alive", 20, 0, "ok");
    let traced = tracer.finish();
    assert_eq!((told(&traced)["failed"], plain.received().taken), (20, 0), "{}", traced.errors);
}

/// A collector that is traced itself: spans of spans would never end.
#[test]
fn exports_make_no_spans() {
    let folder = Folder::new("siblings");
    let collector = Server::python(&folder);
    let url = format!("http://{}", collector.address);
    let tracer = Tracer::of(&[collector.process.id()], &["--otlp", &url]);
    let sibling = Tracer::of(&[collector.process.id()], &["--otlp", &url]);
    for round in 0..3 {
        client(&collector.address, "keep-alive", 20, round * 20, "ok");
        pause(2);
    }
    for traced in [sibling.finish(), tracer.finish()] {
        traced.assert_balanced();
        assert_eq!(traced.spans.len(), 60, "{}", traced.errors);
        let ledger = traced.ledger();
        let left = ledger.split(" exports of tracers left out").next().expect("a ledger");
        let left: u64 = left.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
        assert!(left >= 6, "of two tracers three batches each: {ledger}");
    }
}

/// Both are receivers that others wrote.
#[test]
fn a_collector_gets_the_spans() {
    let folder = Folder::new("otlp");
    let server = Server::python(&folder);
    for protocol in ["grpc", "http/protobuf"] {
        let (grpc, http) = (free_port(), free_port());
        let log = std::fs::File::create(folder.path("rotel.log")).unwrap();
        let _collector = Process::start(
            Command::new(collector())
                .args(["start", "--exporter", "blackhole", "--debug-log", "traces"])
                .args(["--debug-log-verbosity", "detailed"])
                .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
                .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
                .stdout(log.try_clone().unwrap())
                .stderr(log),
        );
        let port = if protocol == "grpc" { grpc } else { http };
        wait_for("the collector to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
        let url = format!("http://127.0.0.1:{port}");
        let tracer = Tracer::of(&[server.process.id()], &["--otlp", &url, "--otlp-protocol", protocol]);
        client(&server.address, "keep-alive", 20, 0, "ok");
        let traced = tracer.finish();
        traced.assert_complete();
        assert!(
            traced.errors.contains("20 spans sent, 0 dropped (queue full), 0 failed, 0 rejected"),
            "{}",
            traced.errors
        );
        let received = wait_for("the collector's log", || {
            let text = std::fs::read_to_string(folder.path("rotel.log")).unwrap();
            (text.matches("Trace ID").count() >= 20).then_some(text)
        });
        for span in &traced.spans {
            for key in ["traceId", "spanId"] {
                let id = span[key].as_str().unwrap();
                assert_eq!(received.matches(id).count(), 1, "{key} {id} over {protocol}");
            }
        }
    }
}

/// A collector that accepts connections and never answers.
#[test]
fn a_collector_that_is_dead_costs_spans_and_nothing_else() {
    let folder = Folder::new("blackhole");
    let server = Server::nginx(&folder);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for protocol in ["grpc", "http/protobuf"] {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let tracer = Tracer::of(&[server.process.id()], &["--otlp", &url, "--otlp-protocol", protocol]);
        let load = format!("http://{}/index.html", server.address);
        let mut memory = Vec::new();
        let mut requests = 0;
        for _ in 0..2 {
            requests += super::wrk_requests(
                &run(Command::new("wrk").args(["-t", "1", "-c", "16", "-d", "3s", &load])).stdout,
            );
            memory.push(tracer.memory());
        }
        let traced = tracer.finish();
        traced.assert_complete();
        // Those that wrk did not wait for are logged as well.
        assert!(traced.spans.len() >= requests, "{} of {requests}", traced.spans.len());
        assert!(memory[1] < memory[0] + 16 * 1024, "memory grows: {memory:?} KiB");
        let dropped =
            traced.errors.lines().find(|line| line.starts_with("otlp:")).expect("a line on the export");
        assert!(dropped.contains(" 0 spans sent") && !dropped.contains(" 0 dropped"), "{dropped}");
    }
}

/// The program inside its Python package.
fn collector() -> String {
    let script = "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
    let output = run(Command::new(python()).args(["-c", script]));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
