//! What single keys do that nothing else shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Command, Stdio},
};

use serde_json::Value;
use tracer_tests::{
    agent::Agent,
    process::{
        Folder, Process, Server, assert_same, client, count, free_port, line, program, python, run, wait_for,
    },
};

use super::{Client, moods};

const SERVER: &str = "http_server_request_duration_seconds";

fn start(folder: &Folder, processes: &[&Server], rest: &str) -> Agent {
    let rules: Vec<String> =
        processes.iter().map(|server| format!("{{ pid: {} }}", server.process.id())).collect();
    Agent::start(folder, &format!("select: {{ include: [ {} ] }}\n{rest}\n", rules.join(", ")))
}

#[test]
fn protocols_that_are_not_named_are_not_reported() {
    let folder = Folder::new("value-protocols");
    let web = moods(&folder, "moods", None);
    let log = folder.path("grpc.log");
    fs::write(&log, "").expect("a file");
    let mut command = Command::new(program("grpc-rust"));
    command.arg("server").arg(&log);
    let grpc = Server::start(command, log);
    for (said, web_seen, grpc_seen) in [("[http]", 10, 0), ("grpc", 0, 51), ("[]", 10, 51)] {
        let agent = start(&folder, &[&web, &grpc], &format!("protocols: {said}\nexport: {{ print: json }}"));
        let mut client = Client::new(&web.address);
        for number in 0..10 {
            client.get(&format!("/get/{number}"));
        }
        run(Command::new(program("grpc-rust"))
            .args(["client", &grpc.address, "/dev/null", "--calls", "51"])
            .stdout(Stdio::null()));
        // Whatever is reported of it, all was seen.
        agent.wait_metrics("all to be seen", |metrics| metrics.sum("tracer_exchanges_total", &[]) == 61.0);
        let metrics = agent.metrics();
        let of_grpc = metrics.sum("rpc_server_call_duration_seconds_count", &[])
            + metrics.sum("tracer_server_stream_duration_seconds_count", &[]);
        assert_eq!(
            (metrics.sum(&format!("{SERVER}_count"), &[]), of_grpc),
            (web_seen as f64, grpc_seen as f64)
        );
        let ended = agent.finish();
        ended.assert_complete();
        let (calls, rest): (Vec<&Value>, Vec<&Value>) =
            ended.spans.iter().partition(|span| span["attributes"]["rpc.system.name"] == "grpc");
        assert_eq!((rest.len(), calls.len()), (web_seen, grpc_seen), "{said}");
    }
}

fn parent_of<'a>(spans: &'a [Value], kind: &str) -> (Option<&'a str>, &'a str) {
    let span = spans.iter().find(|span| span["kind"] == kind).expect("a span");
    (
        span["parentSpanId"].as_str().filter(|id| !id.is_empty()),
        span["attributes"]["tracer.parent.evidence"].as_str().expect("a word"),
    )
}

fn id_of<'a>(spans: &'a [Value], kind: &str) -> &'a str {
    spans.iter().find(|span| span["kind"] == kind).and_then(|span| span["spanId"].as_str()).expect("an id")
}

/// Both ends of a connection are evidence, unless ids in headers alone are wanted.
#[test]
fn parents_are_found_by_what_is_said() {
    let folder = Folder::new("value-parents");
    let server = moods(&folder, "moods", None);
    for said in ["evidence", "header"] {
        let text = format!(
            "select:\n  include:\n    - pid: {}\n    - command: curl\nstitching: {{ parents: {said} }}\n\
             export: {{ print: json }}\n",
            server.process.id()
        );
        let agent = Agent::start(&folder, &text);
        run(Command::new("curl").args([
            "-s",
            "-o",
            "/dev/null",
            &format!("http://{}/get/1", server.address),
        ]));
        agent.wait_counted(SERVER, 1);
        agent.wait_counted("http_client_request_duration_seconds", 1);
        let ended = agent.finish();
        ended.assert_complete();
        let expected = match said {
            "evidence" => (Some(id_of(&ended.spans, "CLIENT")), "connection"),
            _ => (None, "none"),
        };
        assert_eq!(parent_of(&ended.spans, "SERVER"), expected, "{said}");
    }
}

/// Passes on X-Ticket and nothing else, from another thread than the one that reads.
const RELAY: &str = "
import http.client, http.server, sys
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
def call(path, ticket):
    connection = http.client.HTTPConnection(sys.argv[1])
    connection.request('GET', path, headers={'X-Ticket': ticket})
    answer = connection.getresponse()
    answer.read()
    connection.close()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        pool.submit(call, self.path, self.headers['X-Ticket']).result()
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print('listening on 127.0.0.1:%d' % server.server_port, flush=True)
server.serve_forever()
";

#[test]
fn a_header_of_ones_own_finds_parents() {
    let folder = Folder::new("value-correlation");
    let server = moods(&folder, "moods", None);
    let mut command = Command::new(python());
    command.args(["-c", RELAY, &server.address]);
    let relay = Server::start(command, folder.path("none"));
    for said in ["[x-ticket]", "[]"] {
        let rest = format!(
            "stitching: {{ parents: header, correlation_headers: {said} }}\nexport: {{ print: json }}"
        );
        let agent = start(&folder, &[&relay], &rest);
        let mut client = Client::new(&relay.address);
        assert_eq!(client.ask("GET", "/get/1", "X-Ticket: 4711-0815-2342-abcd\r\n", b""), 200);
        agent.wait_counted(SERVER, 1);
        agent.wait_counted("http_client_request_duration_seconds", 1);
        let ended = agent.finish();
        ended.assert_complete();
        let expected = match said {
            "[]" => (None, "none"),
            _ => (Some(id_of(&ended.spans, "SERVER")), "correlation"),
        };
        assert_eq!(parent_of(&ended.spans, "CLIENT"), expected, "{said}");
    }
}

/// What is beyond shares one.
#[test]
fn a_service_has_so_many_routes() {
    let folder = Folder::new("value-routes");
    let server = moods(&folder, "moods", None);
    for (most, other) in [(100, false), (3, true)] {
        let agent = start(&folder, &[&server], &format!("routes: {{ per_service: {most} }}"));
        let mut client = Client::new(&server.address);
        let names = ["users", "orders", "carts", "prices", "stock", "login"];
        for number in 0..300 {
            client.get(&format!("/{}/{number}", names[number % names.len()]));
        }
        let metrics = agent.wait_counted(SERVER, 300);
        let mut routes = metrics.by(&format!("{SERVER}_count"), &["http_route"]);
        routes.remove("-");
        println!("{routes:?}");
        assert_eq!(routes.contains_key("_OTHER"), other, "{routes:?}");
        let own = routes.keys().filter(|route| *route != "_OTHER").count();
        assert_eq!(own, if other { 3 } else { names.len() }, "{routes:?}");
        agent.finish().assert_complete();
    }
}

/// They are still counted, without their attributes.
#[test]
fn series_beyond_the_bound_share_one() {
    let folder = Folder::new("value-series");
    let server = Server::nginx(&folder);
    let agent = start(&folder, &[&server], "metrics: { series: 4 }");
    client(&server.address, "8", 400, 0, super::super::NGINX_KINDS);
    let metrics = agent.wait_counted(SERVER, 400);
    let name = format!("{SERVER}_count");
    let beyond = metrics.sum(&name, &[("otel_metric_overflow", "true")]);
    assert!(beyond > 0.0 && beyond < 400.0, "{beyond}");
    assert_eq!(metrics.sum("tracer_metrics_overflow_total", &[]), beyond);
    let own = metrics.of(&name, &[]).filter(|sample| sample.label("otel_metric_overflow") == "-").count();
    assert!(own <= 4, "{own} series");
    // Without the bound all have their own.
    let all = start(&folder, &[&server], "");
    client(&server.address, "8", 400, 400, super::super::NGINX_KINDS);
    let metrics = all.wait_counted(SERVER, 400);
    assert_eq!(metrics.sum("tracer_metrics_overflow_total", &[]), 0.0);
    assert!(metrics.of(&name, &[]).count() > 8);
    all.finish().assert_complete();
    agent.finish().assert_complete();
}

#[test]
fn spans_are_printed_as_it_is_said() {
    let folder = Folder::new("value-print");
    let server = moods(&folder, "moods", None);
    for said in ["none", "text", "json"] {
        let agent = start(&folder, &[&server], &format!("export: {{ print: {said} }}"));
        let mut client = Client::new(&server.address);
        for number in 0..10 {
            client.get(&format!("/get/{number}"));
        }
        agent.wait_counted(SERVER, 10);
        let ended = agent.finish();
        ended.assert_complete();
        let truth = count((0..10).map(|number| format!("GET /get/{number} 200 9")));
        match said {
            "none" => assert_eq!(ended.printed, ""),
            "json" => assert_same(&count(ended.spans.iter().map(line)), &truth),
            _ => {
                let lines: BTreeSet<&str> = ended.printed.lines().collect();
                assert_eq!(lines.len(), 10, "{}", ended.printed);
                for number in 0..10 {
                    let word = format!(" SERVER GET /get/{number} 200 ");
                    assert!(lines.iter().any(|line| line.contains(&word)), "{word}: {}", ended.printed);
                }
            }
        }
    }
}

/// Bytes of the ring that a process has open: of the map's kind 27.
fn ring(process: u32) -> u64 {
    let folder = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("the agent runs");
    let texts = folder.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let value = |text: &str, key: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let sizes = texts
        .filter(|text| value(text, "map_type:") == Some(27))
        .filter_map(|text| value(&text, "max_entries:"));
    sizes.max().expect("a ring")
}

fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the agent runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|size| size.parse::<u64>().ok()).expect("a size") << 10
}

#[test]
fn the_memory_sizes_the_ring_and_is_kept() {
    let folder = Folder::new("value-memory");
    let server = Server::nginx(&folder);
    for (memory, size) in [(48u64, 2u64 << 20), (128, 8 << 20)] {
        let rest = format!("budgets: {{ memory: {memory}Mi }}\nsampling: {{ share: 0.5 }}");
        let agent = start(&folder, &[&server], &rest);
        assert_eq!(ring(agent.id()), size);
        let metrics = agent.metrics();
        assert_eq!(metrics.sum("tracer_memory_budget_bytes", &[]), (memory << 20) as f64);
        let url = format!("http://{}/index.html", server.address);
        let mut load = Process::start(
            Command::new("wrk").args(["-t", "1", "-c", "64", "-d", "4s", &url]).stdout(Stdio::null()),
        );
        let mut most = 0;
        while !load.has_ended() {
            most = most.max(resident(agent.id()));
            agent.metrics();
        }
        println!("{memory} MiB: {} KiB", most >> 10);
        assert!(most <= memory << 20, "{most} bytes of {memory} MiB");
        let ended = agent.finish();
        assert!(ended.errors.contains("(sums exactly)"), "{}", ended.errors);
    }
}

#[test]
fn it_answers_where_it_is_told_to() {
    let folder = Folder::new("value-address");
    let server = moods(&folder, "moods", None);
    for host in ["127.0.0.1", "[::1]"] {
        if host == "[::1]" && std::net::TcpListener::bind("[::1]:0").is_err() {
            continue;
        }
        let address = format!("{host}:{}", free_port());
        let agent = start(&folder, &[&server], &format!("serve: {{ address: '{address}' }}"));
        assert_eq!(agent.address, address);
        assert_eq!(agent.get("/healthz").text, "ok\n");
        agent.finish().assert_complete();
    }
}

#[test]
fn it_says_as_much_as_it_is_told_to() {
    let folder = Folder::new("value-log");
    let server = moods(&folder, "moods", None);
    let mut lines = BTreeMap::new();
    for level in ["error", "warn", "info", "debug"] {
        let rest = format!(
            "log: {{ level: {level}, format: json }}\nserve: {{ address: '127.0.0.1:{}' }}",
            free_port()
        );
        let agent = start(&folder, &[&server], &rest);
        wait_for("an answer", || (agent.get("/nowhere").status == 404).then_some(()));
        let ended = agent.finish();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.errors);
        let told: Vec<Value> =
            ended.errors.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        let rank = |level: &str| ["ERROR", "WARN", "INFO", "DEBUG"].iter().position(|name| *name == level);
        for line in &told {
            assert!(line["message"].is_string() && line["timestamp"].is_string(), "{line}");
            let of = line["level"].as_str().and_then(rank);
            assert!(of <= rank(&level.to_uppercase()), "{line} at {level}");
        }
        lines.insert(level, told.len());
    }
    assert_eq!(lines["error"], 0, "{lines:?}");
    assert!(lines["info"] >= 3 && lines["debug"] >= lines["info"], "{lines:?}");
    let agent = start(&folder, &[&server], "log: { format: text }");
    let ended = agent.finish();
    assert!(
        ended.errors.lines().any(|line| line.contains(" INFO ") && !line.starts_with('{')),
        "{}",
        ended.errors
    );
}
