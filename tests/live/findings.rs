//! What a machine allows, and what is seen of a process: each lack is named with its reason, and costs what
//! `doctor` says that it does.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use serde_json::Value;
use tracer_tests::process::{
    Folder, Process, Server, Tracer, capture, client, count, free_port, program, run, wait_for, workload,
};

/// The tracer behind other programs, which take something from it.
fn tracer_behind(before: &[&str], arguments: &[&str]) -> Output {
    let tracer = program("tracer");
    let mut words: Vec<&str> = before.to_vec();
    let path = tracer.display().to_string();
    words.push(&path);
    words.extend(arguments);
    Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().expect("the tracer behind others")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Names of the checks that came out so.
fn checks(report: &Value, level: &str) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks").iter();
    checks
        .filter(|check| check["level"] == level)
        .map(|check| check["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// `doctor` and `trace` in the same place agree on whether anything can be captured.
fn assert_told(server: &Server, before: &[&str], fatal: &[&str], lacks: &[&str]) {
    let doctor = tracer_behind(before, &["doctor", "--json"]);
    let report: Value =
        serde_json::from_slice(&doctor.stdout).unwrap_or_else(|_| panic!("{}", said(&doctor)));
    for name in fatal {
        assert!(checks(&report, "fatal").iter().any(|found| found == name), "{before:?}: {report:#}");
    }
    for name in lacks {
        assert!(checks(&report, "lack").iter().any(|found| found == name), "{before:?}: {report:#}");
    }
    for check in report["checks"].as_array().expect("checks") {
        let told = check["costs"].is_string() && check["fix"].is_string();
        assert!(told || check["level"] == "good", "{before:?}: neither cost nor cure: {check}");
    }
    let can = fatal.is_empty();
    assert_eq!(report["can_capture"], can, "{before:?}: {report:#}");
    assert_eq!(doctor.status.code(), Some(if can { 0 } else { 4 }), "{before:?}: {}", said(&doctor));
    let url = format!("http://{}/ok/{}", server.address, before.len());
    let trace =
        tracer_behind(before, &["trace", "--output", "json", "--", "curl", "-s", "-o", "/dev/null", &url]);
    let spans = String::from_utf8_lossy(&trace.stdout).lines().count();
    if can {
        assert_eq!((trace.status.code(), spans), (Some(0), 1), "{before:?}: {}", said(&trace));
    } else {
        assert_eq!((trace.status.code(), spans), (Some(4), 0), "{before:?}: {}", said(&trace));
        let sentences: Vec<String> = said(&trace).lines().map(str::to_owned).collect();
        assert_eq!(sentences.len(), 1, "{before:?}: {sentences:?}");
        assert!(sentences[0].starts_with("tracer: "), "{before:?}: {sentences:?}");
    }
}

#[test]
fn what_is_missing_is_named_and_costs_what_is_said() {
    let folder = Folder::new("doctor");
    let server = Server::python(&folder);
    assert_told(&server, &["env"], &[], &[]);
    let without = |capabilities: &str, fatal: &[&str], lacks: &[&str]| {
        assert_told(&server, &["setpriv", "--bounding-set", capabilities], fatal, lacks);
    };
    without("-sys_admin", &[], &[]);
    without("-bpf", &[], &[]);
    without("-perfmon", &[], &[]);
    without("-bpf,-sys_admin", &["CAP_BPF"], &[]);
    without("-perfmon,-sys_admin", &["CAP_PERFMON"], &[]);
    without("-sys_ptrace", &[], &["CAP_SYS_PTRACE"]);
    without("-dac_read_search", &[], &["CAP_DAC_READ_SEARCH"]);
    without("-all", &["CAP_BPF", "CAP_PERFMON"], &["CAP_SYS_PTRACE"]);
    for other in ["-net_admin", "-kill", "-setpcap", "-dac_override", "-sys_resource", "-net_raw", "-chown"] {
        without(other, &[], &[]);
    }
    std::fs::create_dir(folder.path("empty")).expect("a folder");
    let empty = folder.path("empty");
    let hidden = |target: &str| format!("mount --bind '{}' {target} && exec \"$@\"", empty.display());
    let btf = hidden("/sys/kernel/btf");
    assert_told(&server, &["unshare", "-m", "sh", "-c", &btf, "sh"], &["BTF"], &[]);
    let tracefs = hidden("/sys/kernel");
    assert_told(&server, &["unshare", "-m", "sh", "-c", &tracefs, "sh"], &["BTF"], &[]);
    let untraced = "umount -l /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; exec \"$@\"";
    assert_told(&server, &["unshare", "-m", "sh", "-c", untraced, "sh"], &[], &[]);
    assert_told(&server, &["unshare", "-pf", "--mount-proc"], &["pid namespace"], &[]);
}

/// Each probe refused in turn: what is there still works, and what is not is said once.
#[test]
fn a_probe_that_is_refused_costs_what_it_is_for() {
    let folder = Folder::new("refused");
    let server = Server::python(&folder);
    let followers = [
        "tcp_destroy_sock",
        "tcp_receive_reset",
        "inet_sock_set_state",
        "tcp_retransmit_skb",
        "sched_process_exit",
        "sched_process_fork",
        "sched_process_exec",
    ];
    for (round, refused) in followers.into_iter().enumerate() {
        let process = server.process.id().to_string();
        let tracer = Tracer::start("trace", &["--pid", &process, "--refuse", refused]);
        client(&server.address, "new", 20, round * 20, "ok");
        let traced = tracer.finish();
        let named = traced.errors.lines().filter(|line| line.starts_with(&format!("probe {refused}: ")));
        assert_eq!(named.count(), 1, "{}", traced.errors);
        assert_eq!(traced.exchanges("SERVER").values().sum::<usize>(), 20, "{refused}: {}", traced.errors);
        traced.assert_complete();
    }
    if capture().is_none() {
        // Another way is found, and all of it works.
        let process = server.process.id().to_string();
        let arguments = ["--pid", &process, "--refuse", "sock_recv_length"];
        let tracer = Tracer::start("trace", &arguments);
        client(&server.address, "keep-alive", 20, 1000, "ok");
        let traced = tracer.finish();
        assert!(traced.errors.contains("capture: sys_exit"), "{}", traced.errors);
        assert_eq!(traced.spans.len(), 20);
        traced.assert_complete();
    }
}

/// Waits for a line on standard error that begins so. Returns what follows.
fn wait_for_line(child: &mut Child, start: &str) -> BufReader<ChildStderr> {
    let mut errors = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.starts_with(start) {
        line.clear();
        assert!(errors.read_line(&mut line).expect("a line") > 0, "the tracer ended");
    }
    errors
}

/// Explains a process while something is done to it.
pub(super) fn explain(process: u32, time: &str, meanwhile: impl FnOnce()) -> Value {
    let mut command = Command::new(program("tracer"));
    command.args(["explain", &process.to_string(), "--for", time, "--json"]);
    if let Some(capture) = capture() {
        command.args(["--capture", &capture]);
    }
    let mut looking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tracer");
    let _errors = wait_for_line(&mut looking, "looking at ");
    meanwhile();
    let output = looking.wait_with_output().expect("the tracer");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn findings(explained: &Value) -> String {
    explained["findings"].to_string()
}

#[test]
fn what_is_not_seen_of_a_process_has_its_reason() {
    let folder = Folder::new("explain");
    // TLS.
    let (key, pem) = (folder.path("key").display().to_string(), folder.path("pem").display().to_string());
    let subject = ["-subj", "/CN=localhost", "-days", "2", "-nodes"];
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-keyout", &key, "-out", &pem])
        .args(subject));
    let locations =
        format!("listen 127.0.0.1:{} ssl; ssl_certificate {pem}; ssl_certificate_key {key};", free_port());
    let nginx = Server::nginx_with(&folder, &locations);
    let secure = locations.split([':', ' ']).find_map(|word| word.parse::<u16>().ok()).expect("the port");
    let explained = explain(nginx.process.id(), "2s", || {
        for _ in 0..5 {
            let url = format!("https://127.0.0.1:{secure}/index.html");
            run(Command::new("curl").args(["-sk", "-o", "/dev/null", &url]));
        }
    });
    assert!(explained["coverage"]["encrypted"].as_u64() > Some(1000), "{explained:#}");
    assert!(findings(&explained).contains("5 connections with"), "{explained:#}");
    assert!(findings(&explained).contains("libssl"), "the library is named: {explained:#}");
    assert_eq!(explained["connections"][0]["what"], "encrypted (TLS)");
    assert_eq!(
        (&explained["connections"][0]["count"], &explained["connections"][0]["side"]),
        (&5.into(), &"server".into())
    );

    // Another protocol.
    let port = free_port().to_string();
    let redis = Process::start(
        Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
            .stdout(Stdio::null()),
    );
    wait_for("redis to listen", || TcpStream::connect(format!("127.0.0.1:{port}")).ok());
    let explained = explain(redis.id(), "2s", || {
        run(Command::new("redis-cli").args(["-p", &port, "set", "a", "b"]));
        run(Command::new("redis-cli").args(["-p", &port, "get", "a"]));
    });
    assert!(findings(&explained).contains("Redis is recognised and not read"), "{explained:#}");
    assert_eq!(explained["coverage"]["protocol unknown"], explained["moved"]);

    // What io_uring moves.
    let echo = folder.path("uring-echo").display().to_string();
    run(Command::new("cc").args(["-O1", "-o", &echo]).arg(workload("uring.c")));
    let server = Server::start(Command::new(&echo), folder.path("none"));
    let explained = explain(server.process.id(), "2s", || {
        let mut connection = TcpStream::connect(&server.address).expect("a connection");
        for _ in 0..3 {
            std::io::Write::write_all(&mut connection, b"hello").expect("sent");
            std::io::Read::read_exact(&mut connection, &mut [0; 5]).expect("echoed");
        }
    });
    assert!(findings(&explained).contains("io_uring"), "{explained:#}");
    if capture().is_none() {
        assert!(findings(&explained).contains("30B moved by io_uring"), "{explained:#}");
    }

    // Connections that were there before, silent and not.
    let python = Server::python(&folder);
    let mut connections: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(&python.address).expect("a connection")).collect();
    let explained = explain(python.process.id(), "1s", || ());
    assert!(findings(&explained).contains("it holds 3 TCP connections"), "{explained:#}");
    let mut ask = |path: &str| {
        for connection in &mut connections {
            super::ask(connection, path);
        }
    };
    ask("/ok/before");
    let explained = explain(python.process.id(), "2s", || ask("/ok/during"));
    assert_eq!(explained["spans"], 3, "{explained:#}");
    assert!(findings(&explained).contains("3 connections were open before"), "{explained:#}");
    assert_eq!(explained["connections"][0]["joined"], true);

    // And one of which everything is seen.
    let explained = explain(python.process.id(), "2s", || client(&python.address, "new", 10, 0, "ok"));
    assert_eq!((&explained["spans"], explained["findings"].as_array().map(Vec::len)), (&10.into(), Some(0)));
}

/// The table at the end is what the server logged.
#[test]
fn the_summary_is_what_the_server_logged() {
    let folder = Folder::new("summary");
    let server = Server::python(&folder);
    let process = server.process.id().to_string();
    let mut command = Command::new(program("tracer"));
    command.args(["trace", "--pid", &process, "--output", "text", "--fold"]);
    let mut tracer = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tracer");
    let mut errors = wait_for_line(&mut tracer, "tracing ");
    client(&server.address, "keep-alive", 300, 0, "ok,missing,fail");
    for _ in 0..7 {
        run(Command::new("curl").args([
            "-s",
            "-o",
            "/dev/null",
            &format!("http://{}/healthz", server.address),
        ]));
    }
    let logged = server.wait_logged(307);
    run(Command::new("kill").args(["-INT", &tracer.id().to_string()]));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut errors, &mut rest).expect("text");
    let mut lines = String::new();
    std::io::Read::read_to_string(&mut tracer.stdout.take().expect("a pipe"), &mut lines).expect("text");
    assert!(tracer.wait().expect("its end").success());
    // Count, errors, and `METHOD /route` of each row.
    let rows: Vec<Vec<&str>> = rest
        .lines()
        .skip_while(|line| !line.contains("P95"))
        .skip(1)
        .take_while(|line| !line.starts_with("slowest"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let seen: std::collections::BTreeMap<String, usize> =
        rows.iter().map(|row| (format!("{} {}", row[7], row[8]), row[0].parse().expect("a count"))).collect();
    let route = |line: &String| {
        let mut words = line.split(' ');
        let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
        format!("{method} {}", tracer_agent::route::of(path))
    };
    let truth = count(logged.iter().flat_map(|(line, times)| vec![route(line); *times]));
    assert_eq!(seen, truth, "{rest}");
    let errors: usize = rows.iter().map(|row| row[1].parse::<usize>().expect("a count")).sum();
    let failed: usize =
        logged.iter().filter(|(line, _)| line.contains(" 500 ")).map(|(_, times)| times).sum();
    assert_eq!(errors, failed, "{rest}");
    assert!(lines.contains("and 6 more like it"), "{lines}");
}

/// Nanoseconds of a time as people are shown it.
fn nanoseconds(text: &str) -> f64 {
    let at = text.find(|char: char| !(char.is_ascii_digit() || char == '.')).expect("a unit");
    let (number, unit) = text.split_at(at);
    let scale = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        other => panic!("{other} is no unit"),
    };
    number.parse::<f64>().expect("a number") * scale
}

/// The same capture as JSON and as a table: quantiles are near those of all times.
#[test]
fn quantiles_of_the_summary_are_those_of_the_spans() {
    let folder = Folder::new("quantiles");
    let server = Server::python(&folder);
    let file = folder.path("run.capture").display().to_string();
    let process = server.process.id().to_string();
    let tracer = Tracer::start("record", &["--pid", &process, "--out", &file]);
    client(&server.address, "64", 2000, 0, "ok");
    let traced = tracer.finish();
    assert_eq!(traced.spans.len(), 2000);
    let replay = run(Command::new(program("tracer")).args(["replay", &file]));
    let said = String::from_utf8_lossy(&replay.stderr).into_owned();
    let row = said.lines().skip_while(|line| !line.contains("P95")).nth(1).expect("a row");
    let cells: Vec<&str> = row.split_whitespace().collect();
    let mut times: Vec<u64> = traced
        .spans
        .iter()
        .filter(|span| span["attributes"]["http.request.method"] == cells[7])
        .map(|span| {
            let time =
                |key: &str| span[key].as_str().and_then(|time| time.parse::<u64>().ok()).expect("a time");
            time("endTimeUnixNano") - time("startTimeUnixNano")
        })
        .collect();
    times.sort_unstable();
    assert_eq!(cells[..2], [times.len().to_string().as_str(), "0"], "{said}");
    for (cell, quantile) in [(cells[2], 0.5), (cells[3], 0.95), (cells[4], 1.0)] {
        let exact = times[((times.len() as f64 * quantile).ceil() as usize).max(1) - 1] as f64;
        let shown = nanoseconds(cell);
        // A hundredth by the histogram, and as much by the digits that are shown.
        assert!((shown - exact).abs() <= exact * 0.02, "{quantile}: {cell}, and exactly {exact} ns\n{said}");
    }
}
