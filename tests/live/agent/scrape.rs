//! Who else reads the metrics: a real Prometheus, its promtool, and receivers of OTLP. All have the same numbers.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use tracer_tests::{
    agent::{Agent, Metrics, ask},
    collector::{Collector, GrpcCollector},
    process::{Folder, Process, Server, assert_same, client, count, free_port, wait_for},
};

const SERVER: &str = "http_server_request_duration_seconds";

/// METHOD STATUS as nginx logged them.
fn truth(server: &Server, requests: usize) -> BTreeMap<String, usize> {
    let logged = server.wait_logged(requests);
    let lines = logged.iter().flat_map(|(line, times)| std::iter::repeat_n(line, *times));
    count(lines.map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        format!("{} {}", words[0], words[2])
    }))
}

/// It is stopped with its owner, and keeps nothing.
#[test]
fn a_prometheus_has_the_numbers_of_the_log() {
    let folder = Folder::new("agent-prometheus");
    let server = Server::nginx(&folder);
    let agent =
        Agent::start(&folder, &format!("select: {{ include: [ {{ pid: {} }} ] }}", server.process.id()));
    client(&server.address, "8", 800, 0, super::super::NGINX_KINDS);
    let truth = truth(&server, 800);
    agent.wait_counted(SERVER, 800);
    // Both forms, as the tool that comes with it sees them.
    for accept in ["", "Accept: application/openmetrics-text; version=1.0.0\r\n"] {
        let answer = ask(&agent.address, "GET", "/metrics", accept);
        let kind =
            if accept.is_empty() { "text/plain; version=0.0.4" } else { "openmetrics-text; version=1.0.0" };
        assert!(answer.head.contains(kind), "{}", answer.head);
        assert_eq!(answer.text.ends_with("# EOF\n"), !accept.is_empty());
        if accept.is_empty() {
            check_with_promtool(&answer.text);
        }
    }
    let config = folder.path("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s }}\n\
         scrape_configs:\n- job_name: tracer\n  honor_labels: true\n  static_configs: [ {{ targets: ['{}'] }} ]\n",
        agent.address
    );
    fs::write(&config, text).expect("a file");
    let address = format!("127.0.0.1:{}", free_port());
    let log = fs::File::create(folder.path("prometheus.log")).expect("a file");
    let _prometheus = Process::start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(log.try_clone().expect("a file"))
            .stderr(log),
    );
    wait_for("Prometheus to be ready", || {
        let answer =
            std::net::TcpStream::connect(&address).ok().map(|_| ask(&address, "GET", "/-/ready", ""));
        answer.filter(|answer| answer.status == 200).map(drop)
    });
    let query = format!(
        "sum%20by(http_request_method,http_response_status_code)({SERVER}_count%7Bjob=%22nginx%22%7D)"
    );
    let path = format!("/api/v1/query?query={query}");
    let told = wait_for("Prometheus to have scraped", || {
        let answer = ask(&address, "GET", &path, "");
        let answer: Value = serde_json::from_str(&unchunked(&answer.text)).expect("JSON");
        let result = answer["data"]["result"].as_array().expect("a result");
        let told: BTreeMap<String, usize> = result
            .iter()
            .map(|series| {
                let label = |key: &str| series["metric"][key].as_str().unwrap_or("-").to_owned();
                let value = series["value"][1].as_str().expect("a value").parse().expect("a number");
                (format!("{} {}", label("http_request_method"), label("http_response_status_code")), value)
            })
            .collect();
        (!told.is_empty()).then_some(told)
    });
    assert_same(&told, &truth);
    // Its own look at the target: no warning on what could not be read.
    let targets = ask(&address, "GET", "/api/v1/targets", "");
    assert!(
        targets.text.contains("\"health\":\"up\"") && targets.text.contains("\"lastError\":\"\""),
        "{}",
        targets.text
    );
    agent.finish().assert_complete();
}

/// What comes in pieces with their sizes, joined.
fn unchunked(text: &str) -> String {
    if text.starts_with('{') {
        return text.to_owned();
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        out.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    out
}

fn check_with_promtool(text: &str) {
    let mut tool = Command::new("promtool");
    tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().expect("promtool");
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = tool.wait_with_output().expect("promtool");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // It ends with 3 for matters of style, which it names.
    assert_eq!(output.status.code(), Some(0), "{said}");
}

/// Over both protocols, compressed and not.
#[test]
fn receivers_of_otlp_have_the_numbers_of_the_page() {
    let folder = Folder::new("agent-otlp");
    let server = Server::nginx(&folder);
    let (http, grpc) = (Collector::start(), GrpcCollector::start());
    let text = format!(
        "select: {{ include: [ {{ pid: {} }} ] }}\n\
         export:\n  otlp:\n\
         \x20   - {{ url: '{}', interval: 1s }}\n\
         \x20   - {{ url: '{}', protocol: grpc, compression: gzip, interval: 1s }}\n",
        server.process.id(),
        http.url(),
        grpc.url()
    );
    let agent = Agent::start(&folder, &text);
    client(&server.address, "8", 800, 0, super::super::NGINX_KINDS);
    let truth = truth(&server, 800);
    let page = agent.wait_counted(SERVER, 800);
    let labels = ["http.request.method", "http.response.status_code"];
    for (name, points) in [
        ("http", &(|| http.points().metrics()) as &dyn Fn() -> Metrics),
        ("grpc", &|| grpc.points().metrics()),
    ] {
        let metrics = wait_for("the receiver to have all", || {
            let metrics = points();
            // Its own numbers, those of a service `tracer`, can come in another request.
            let own = metrics.sum("tracer.moved", &[("service.name", "tracer")]);
            let all = metrics.sum("http.server.request.duration.count", &[]) == 800.0 && own > 0.0;
            all.then_some(metrics)
        });
        assert_same(&metrics.by("http.server.request.duration.count", &labels), &truth);
        for (theirs, ours) in [
            ("http.server.request.duration.sum", "http_server_request_duration_seconds_sum"),
            ("http.server.response.body.size.sum", "http_server_response_body_size_bytes_sum"),
            ("http.server.request.body.size.sum", "http_server_request_body_size_bytes_sum"),
        ] {
            let (theirs, ours) = (metrics.sum(theirs, &[]), page.sum(ours, &[]));
            assert!((theirs - ours).abs() < 1e-6 * ours, "{name}: {theirs}, on the page {ours}");
        }
        let bounds = metrics.of("http.server.request.duration.bounds", &[]);
        assert!(bounds.map(|sample| sample.value).all(|bounds| bounds == 14.0));
        for sample in metrics.of("http.server.request.duration.count", &[]) {
            assert_eq!(sample.label("service.name"), "nginx");
        }
        let (moved, buckets) = (metrics.sum("tracer.moved", &[]), metrics.sum("tracer.bytes", &[]));
        assert!(buckets <= moved, "{buckets} of {moved}");
    }
    agent.finish().assert_complete();
    // What the last request of metrics said, on the way out.
    for points in [http.points(), grpc.points()] {
        let metrics = points.metrics();
        assert_eq!(metrics.sum("http.server.request.duration.count", &[]), 800.0);
    }
    assert_eq!((http.received().taken, grpc.received().taken), (800, 800));
}
