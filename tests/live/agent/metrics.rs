//! Metrics equal what others counted: servers' logs, clients, bytes.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use tracer_tests::{
    agent::{Agent, Metrics},
    process::{Folder, Process, Server, assert_same, client, count, program, wait_for},
};

use super::{Client, assert_balanced, by, let_go, lines, moods};

const SERVER: &str = "http_server_request_duration_seconds";
const BOUNDS: [&str; 15] = [
    "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5",
    "10.0", "+Inf",
];

/// Each series has exactly these buckets, which grow up to its count.
fn assert_buckets(metrics: &Metrics, histogram: &str) {
    let mut series: BTreeMap<_, Vec<(String, f64)>> = BTreeMap::new();
    for sample in metrics.of(&format!("{histogram}_bucket"), &[]) {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").expect("a bound");
        series.entry(labels).or_default().push((bound, sample.value));
    }
    assert!(!series.is_empty(), "no buckets of {histogram}");
    for (labels, buckets) in series {
        let bounds: Vec<&str> = buckets.iter().map(|(bound, _)| bound.as_str()).collect();
        assert_eq!(bounds, BOUNDS, "{labels:?}");
        assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{labels:?}: {buckets:?}");
        let labels: Vec<(&str, &str)> =
            labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let counts: Vec<f64> =
            metrics.of(&format!("{histogram}_count"), &labels).map(|one| one.value).collect();
        assert!(counts.contains(&buckets[14].1), "{labels:?}: {counts:?}");
    }
}

/// Thousands of requests of several methods, statuses and routes: by each of them as nginx logged.
#[test]
fn requests_are_counted_as_nginx_logged_them() {
    let folder = Folder::new("agent-nginx");
    let server = Server::nginx(&folder);
    let agent = Agent::start(
        &folder,
        &format!(
            "select: {{ include: [ {{ pid: {} }} ] }}\n\
             routes: {{ patterns: ['/ok/{{id}}', '/empty/{{id}}', '/missing/{{id}}', '/fail/{{id}}'] }}",
            server.process.id()
        ),
    );
    client(&server.address, "keep-alive", 1500, 0, super::super::NGINX_KINDS);
    client(&server.address, "new", 500, 1500, super::super::NGINX_KINDS);
    client(&server.address, "16", 2000, 2000, super::super::NGINX_KINDS);
    let truth = server.wait_logged(4000);
    let metrics = agent.wait_counted(SERVER, 4000);
    // METHOD PATH STATUS BYTES
    let (mut requests, mut sizes) = (BTreeMap::new(), BTreeMap::new());
    for (line, times) in &truth {
        let words: Vec<&str> = line.split(' ').collect();
        let route = format!("/{}/{{id}}", words[1].split('/').nth(1).expect("a kind"));
        let key = format!("{} {route} {}", words[0], words[2]);
        *requests.entry(key.clone()).or_default() += times;
        *sizes.entry(key).or_default() += times * words[3].parse::<usize>().expect("a size");
    }
    assert!(requests.len() >= 12, "{requests:?}");
    let labels = ["http_request_method", "http_route", "http_response_status_code"];
    assert_same(&metrics.by(&format!("{SERVER}_count"), &labels), &requests);
    assert_same(&metrics.by("http_server_response_body_size_bytes_sum", &labels), &sizes);
    assert_same(&metrics.by("http_server_response_body_size_bytes_count", &labels), &requests);
    // What client.py sends: of every fourth group of four a POST, with as many bytes as its number.
    let sent: usize = (0..4000).filter(|number| number / 4 % 4 == 3).map(|number| number % 1000).sum();
    assert_eq!(metrics.sum("http_server_request_body_size_bytes_sum", &[]) as usize, sent);
    assert_buckets(&metrics, SERVER);
    // Errors are those of servers.
    let errors = count(
        truth
            .iter()
            .filter(|(line, _)| line.contains(" 500 "))
            .flat_map(|(_, times)| std::iter::repeat_n("500".to_owned(), *times)),
    );
    let mut told = metrics.by(&format!("{SERVER}_count"), &["error_type"]);
    told.remove("-");
    assert_same(&told, &errors);
    for sample in metrics.of("http_server_request_duration_seconds_count", &[]) {
        assert_eq!((sample.label("job"), sample.label("otel_scope_name")), ("nginx", "tracer"), "{sample:?}");
        assert_eq!((sample.label("url_scheme"), sample.label("network_protocol_version")), ("http", "1.1"));
    }
    assert_balanced(&agent);
    agent.finish().assert_complete();
}

/// Both ends of calls to a server that logs sizes; and streams, which are in no histogram of requests.
#[test]
fn both_ends_and_their_bytes_are_counted() {
    let folder = Folder::new("agent-ends");
    let server = moods(&folder, "moods", None);
    let text =
        format!("select:\n  include:\n    - {{ pid: {} }}\n    - {{ command: curl }}\n", server.process.id());
    let agent = Agent::start(&folder, &text);
    let body = folder.path("body");
    fs::write(&body, vec![b'b'; 70_000]).expect("a file");
    let body = format!("@{}", body.display());
    let asks: [&[&str]; 6] = [
        &["/get/1"],
        &["-I", "/head/1"],
        &["--data-binary", &body, "/post/1"],
        &["-X", "DELETE", "/status/204/1"],
        &["/status/404/1"],
        &["-X", "PUT", "--data-binary", "four", "/status/503/1"],
    ];
    let rounds = 10;
    for _ in 0..rounds {
        for ask in asks {
            let (path, arguments) = ask.split_last().expect("a path");
            let url = format!("http://{}{path}", server.address);
            tracer_tests::process::run(
                Command::new("curl").args(["-s", "-o", "/dev/null"]).args(arguments).arg(url),
            );
        }
    }
    for events in [1, 5, 50] {
        let url = format!("http://{}/events/{events}", server.address);
        tracer_tests::process::run(Command::new("curl").args(["-sN", "-o", "/dev/null", &url]));
    }
    let requests = rounds * asks.len();
    let log: Vec<Vec<String>> =
        lines(&server, requests + 3).into_iter().filter(|words| !words[1].starts_with("/events")).collect();
    assert_eq!(log.len(), requests);
    let metrics = agent.wait_counted(SERVER, requests);
    let metrics = {
        agent.wait_counted("http_client_request_duration_seconds", requests);
        agent.wait_counted("tracer_server_stream_duration_seconds", 3);
        agent.wait_counted("tracer_client_stream_duration_seconds", 3);
        drop(metrics);
        agent.metrics()
    };
    let labels = ["http_request_method", "http_response_status_code"];
    let total =
        |place: usize| log.iter().map(|words| words[place].parse::<usize>().expect("a size")).sum::<usize>();
    for side in ["server", "client"] {
        let of = |what: &str| format!("http_{side}_{what}");
        assert_same(&metrics.by(&of("request_duration_seconds_count"), &labels), &by(&log, &[0, 2]));
        assert_eq!(metrics.sum(&of("request_body_size_bytes_sum"), &[]) as usize, total(3), "{side}");
        assert_eq!(metrics.sum(&of("response_body_size_bytes_sum"), &[]) as usize, total(4), "{side}");
        assert_buckets(&metrics, &of("request_duration_seconds"));
        let kinds = metrics.by(&format!("tracer_{side}_stream_duration_seconds_count"), &["tracer_stream"]);
        assert_eq!(kinds.values().sum::<usize>(), 3, "{kinds:?}");
    }
    // A client's series are told apart by whom it calls.
    let (address, port) = server.address.split_once(':').expect("a port");
    let called = [("server_address", address), ("server_port", port)];
    assert_eq!(metrics.sum("http_client_request_duration_seconds_count", &called) as usize, requests);
    assert_balanced(&agent);
    agent.finish().assert_complete();
}

/// Requests that hang are told while they do, and are 0 afterwards.
#[test]
fn requests_under_way_are_told() {
    const ACTIVE: &str = "http_server_active_requests";
    let folder = Folder::new("agent-active");
    let server = moods(&folder, "moods", None);
    let agent =
        Agent::start(&folder, &format!("select: {{ include: [ {{ pid: {} }} ] }}", server.process.id()));
    let mut clients: Vec<Client> = (0..12).map(|_| Client::new(&server.address)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let method = if number < 9 { "GET" } else { "POST" };
        client.send(method, &format!("/hang/{number}"), "", if number < 9 { b"" } else { b"body" });
    }
    let metrics = agent.wait_metrics("12 to be under way", |metrics| metrics.sum(ACTIVE, &[]) == 12.0);
    let methods = metrics.by(ACTIVE, &["http_request_method"]);
    assert_eq!(methods, BTreeMap::from([("GET".to_owned(), 9), ("POST".to_owned(), 3)]));
    assert_eq!(metrics.sum(&format!("{SERVER}_count"), &[]), 0.0);
    let_go(&server);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.read(if number < 9 { "GET" } else { "POST" }), 200);
    }
    agent.wait_counted(SERVER, 12);
    let metrics = agent.wait_metrics("none to be under way", |metrics| metrics.sum(ACTIVE, &[]) == 0.0);
    assert!(metrics.of(ACTIVE, &[]).count() >= 1, "a series that was there is 0, not gone");
    agent.finish().assert_complete();
}

/// gRPC of both ends, with all statuses; calls of several messages are streams.
#[test]
fn calls_are_counted_as_both_ends_logged_them() {
    let folder = Folder::new("agent-grpc");
    let log = folder.path("server.log");
    fs::write(&log, "").expect("a file");
    let grpc = program("grpc-rust");
    let mut command = Command::new(&grpc);
    command.arg("server").arg(&log);
    let mut server = Server::start(command, log.clone());
    // The client is the same program: chosen by its name, as the server is.
    let agent = Agent::start(&folder, "select: { include: [ { command: grpc-rust } ] }");
    let theirs = folder.path("client.log");
    let mut client = Process::start(
        Command::new(&grpc)
            .args(["client", &server.address])
            .arg(&theirs)
            .args(["--calls", "816", "--concurrency", "8"])
            .stdout(Stdio::null()),
    );
    assert!(client.wait().success());
    server.process.signal(Signal::TERM);
    server.process.wait();
    for (side, log) in [("server", &log), ("client", &theirs)] {
        let text = fs::read_to_string(log).expect("a log");
        let (mut calls, mut streams) = (BTreeMap::new(), 0);
        // METHOD STATUS SENT RECEIVED
        for words in text.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
            if words[2..4].iter().any(|messages| messages.parse::<usize>().expect("a number") > 1) {
                streams += 1;
                continue;
            }
            let status = super::super::grpc::STATUSES[words[1].parse::<usize>().expect("a status")];
            *calls.entry(format!("{} {status}", words[0])).or_default() += 1;
        }
        let total = calls.values().sum::<usize>();
        assert!(total > 100 && streams > 100, "{total} {streams}");
        agent.wait_counted(&format!("tracer_{side}_stream_duration_seconds"), streams);
        let metrics = agent.wait_counted(&format!("rpc_{side}_call_duration_seconds"), total);
        let told = metrics.by(
            &format!("rpc_{side}_call_duration_seconds_count"),
            &["rpc_method", "rpc_response_status_code"],
        );
        assert_same(&told, &calls);
        assert_eq!(
            metrics.sum(&format!("rpc_{side}_call_duration_seconds_count"), &[("rpc_system_name", "grpc")])
                as usize,
            total
        );
        assert_buckets(&metrics, &format!("rpc_{side}_call_duration_seconds"));
    }
    assert_balanced(&agent);
    agent.finish().assert_complete();
}

/// The families of the ledger sum to what the kernel moved, also under load and of each process.
#[test]
fn every_byte_is_in_one_bucket() {
    let folder = Folder::new("agent-books");
    let server = Server::nginx(&folder);
    let agent =
        Agent::start(&folder, &format!("select: {{ include: [ {{ pid: {} }} ] }}", server.process.id()));
    let url = format!("http://{}/index.html", server.address);
    let mut load = Process::start(
        Command::new("wrk").args(["-t", "1", "-c", "16", "-d", "3s", &url]).stdout(Stdio::null()),
    );
    let mut looked = 0;
    while !load.has_ended() {
        let (moved, buckets) = agent.metrics().books();
        // What is in the ring was moved, and has ended nowhere yet.
        assert!(buckets <= moved, "{buckets} of {moved} bytes");
        looked += 1;
    }
    assert!(looked > 3, "looked {looked} times");
    server.at_rest();
    let metrics = wait_for("the books to balance", || {
        let metrics = agent.metrics();
        let (moved, buckets) = metrics.books();
        (moved == buckets && metrics.sum(&format!("{SERVER}_count"), &[]) > 0.0).then_some(metrics)
    });
    let of_processes = metrics.sum("tracer_process_bytes_total", &[]) as u64;
    let moved = metrics.books().0;
    assert_eq!(of_processes, moved, "of its processes, which all run");
    assert_eq!(
        metrics.sum("tracer_process_records_total", &[]) > 0.0,
        metrics.sum("tracer_records_total", &[]) > 0.0
    );
    let ended = agent.finish();
    assert!(ended.errors.contains("(sums exactly)"), "{}", ended.errors);
}
