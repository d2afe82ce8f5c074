//! The real program under the real kernel, with real servers and clients: spans are compared with
//! what the server itself logged, by exact count. As root, one test at a time: `cargo xtask test`.

#[path = "live/agent.rs"]
mod agent;
#[path = "live/exports.rs"]
mod exports;
#[path = "live/findings.rs"]
mod findings;
#[path = "live/grpc.rs"]
mod grpc;
#[path = "live/harmless.rs"]
mod harmless;
#[path = "live/http2.rs"]
mod http2;
#[path = "live/selection.rs"]
mod selection;
#[path = "live/servers.rs"]
mod servers;
#[path = "live/shapes.rs"]
mod shapes;
#[path = "live/stitch.rs"]
mod stitch;
#[path = "live/tcp.rs"]
mod tcp;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tracer_tests::process::{
    Folder, Process, Server, Tracer, assert_same, client, count, line, program, python, run, wait_for,
};

const ALL_KINDS: &str = "ok,empty,missing,fail,chunked";
/// nginx has no chunked answers without a backend.
const NGINX_KINDS: &str = "ok,empty,missing,fail";

/// 10,000 requests: over one connection, over new ones, and over 64 at once.
fn exact(server: &Server, kinds: &str) {
    let tracer = Tracer::of(&[server.process.id()], &[]);
    client(&server.address, "keep-alive", 4000, 0, kinds);
    client(&server.address, "new", 2000, 4000, kinds);
    client(&server.address, "64", 4000, 6000, kinds);
    let truth = server.wait_logged(10_000);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    assert_eq!(traced.spans.len(), 10_000);
}

#[test]
fn nginx_with_two_workers_is_seen_exactly() {
    let folder = Folder::new("nginx");
    exact(&Server::nginx(&folder), NGINX_KINDS);
}

#[test]
fn pythons_threading_server_is_seen_exactly() {
    let folder = Folder::new("python");
    exact(&Server::python(&folder), ALL_KINDS);
}

#[test]
fn a_node_server_is_seen_exactly() {
    let folder = Folder::new("node");
    exact(&Server::node(&folder), ALL_KINDS);
}

#[test]
fn a_go_server_is_seen_exactly() {
    let folder = Folder::new("go");
    exact(&Server::go(&folder), ALL_KINDS);
}

/// All of them as commands, from their first byte: their spans are what the server logged.
#[test]
fn commands_are_seen_from_their_first_byte() {
    let folder = Folder::new("commands");
    let server = Server::python(&folder);
    let url = |path: &str| format!("http://{}{path}", server.address);
    let requests = format!(
        "import requests\ns = requests.Session()\nfor n in range(50): s.get('{}/' + str(n))\n\
         for n in range(50): requests.post('{}/' + str(n), data=b'x' * n)",
        url("/ok"),
        url("/chunked"),
    );
    let commands: [Vec<String>; 3] = [
        vec!["curl".into(), "-s".into(), "-o".into(), "/dev/null".into(), url("/ok/curl")],
        vec!["wget".into(), "-q".into(), "-O".into(), "/dev/null".into(), url("/chunked/wget")],
        vec![python().display().to_string(), "-c".into(), requests],
    ];
    let mut seen = BTreeMap::new();
    for command in commands {
        let mut arguments = vec!["--".to_owned()];
        arguments.extend(command);
        let traced = Tracer::start("trace", &arguments).wait();
        assert!(traced.status.success(), "{}", traced.errors);
        traced.assert_complete();
        for (exchange, times) in traced.exchanges("CLIENT") {
            *seen.entry(exchange).or_default() += times;
        }
        assert!(traced.exchanges("SERVER").is_empty());
    }
    assert_same(&seen, &server.wait_logged(102));
}

#[test]
fn nginx_at_full_speed_equals_its_access_log() {
    let folder = Folder::new("wrk");
    let server = Server::nginx(&folder);
    let tracer = Tracer::of(&[server.process.id()], &[]);
    let url = format!("http://{}/index.html", server.address);
    run(Command::new("wrk").args(["-t", "2", "-c", "64", "-d", "10s", &url]));
    // When the last of wrk's connections is closed, nothing is logged any more.
    let truth = server.at_rest();
    let traced = tracer.finish();
    traced.assert_complete();
    assert!(truth.values().sum::<usize>() > 10_000, "wrk did little: {truth:?}");
    // A request that the client did not wait for has no status on the wire; nginx logs it as 499.
    let complete = |exchanges: BTreeMap<String, usize>| -> BTreeMap<String, usize> {
        exchanges.into_iter().filter(|(line, _)| line.contains(" 200 615")).collect()
    };
    let total = |exchanges: &BTreeMap<String, usize>| exchanges.values().sum::<usize>();
    let seen = traced.exchanges("SERVER");
    assert_eq!(total(&seen), total(&truth));
    assert_same(&complete(seen), &complete(truth));
    let aborted = traced.spans.iter().filter(|span| !line(span).contains(" 200 615"));
    assert!(
        aborted.clone().all(|span| span["attributes"]["tracer.outcome"] == "aborted"),
        "{:?}",
        aborted.clone().next()
    );
}

#[test]
fn who_is_not_chosen_is_not_seen() {
    let folder = Folder::new("chosen");
    let chosen = Server::python(&folder);
    let other = Server::node(&folder);
    let tracer = Tracer::of(&[chosen.process.id()], &[]);
    client(&other.address, "keep-alive", 200, 0, ALL_KINDS);
    client(&chosen.address, "keep-alive", 10, 0, ALL_KINDS);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &chosen.wait_logged(10));
    assert_eq!(traced.spans.len(), 10);
}

/// A ring that is much too small: what is missing is counted, and nothing is made up.
#[test]
fn losses_are_counted_and_nothing_is_invented() {
    let folder = Folder::new("losses");
    let server = Server::nginx(&folder);
    let tracer = Tracer::of(&[server.process.id()], &["--ring", "64KiB"]);
    for round in 0..4 {
        client(&server.address, "64", 4000, round * 4000, NGINX_KINDS);
    }
    let url = format!("http://{}/index.html", server.address);
    // For a while nobody reads the ring.
    tracer.signal(Signal::STOP);
    run(Command::new("wrk").args(["-t", "2", "-c", "64", "-d", "1s", &url]));
    tracer.signal(Signal::CONT);
    run(Command::new("wrk").args(["-t", "2", "-c", "64", "-d", "2s", &url]));
    let traced = tracer.finish();
    traced.assert_balanced();
    assert!(!traced.ledger().contains(" 0 records lost"), "nothing was lost, so nothing was tested");
    let truth = server.wait_logged(16_000);
    for (exchange, times) in traced.exchanges("SERVER") {
        // What lies in a gap is a dash, and the rest is what was logged.
        let known: String = exchange.split(' ').take_while(|word| *word != "-").collect::<Vec<_>>().join(" ");
        let mut known = known.split(" partial=").next().unwrap_or_default();
        if let Some((rest, _)) = known.split_once(" outcome=") {
            // nginx logs what it gave to the kernel, whether that got out or not.
            known = rest.rsplit_once(' ').map_or(rest, |(rest, _size)| rest);
        }
        let same = truth.iter().filter(|(line, _)| line.starts_with(known));
        let logged: usize = same.map(|(_, times)| times).sum();
        assert!(times <= logged, "invented: {exchange}, seen {times} times and logged {logged} times");
    }
    for span in traced.spans.iter().filter(|span| line(span).contains(" - -")) {
        let attributes = &span["attributes"];
        assert!(
            attributes["tracer.partial"] == "response" || attributes["tracer.outcome"] == "aborted",
            "neither partial nor aborted: {span}"
        );
    }
}

#[test]
fn connections_that_were_open_are_joined() {
    let folder = Folder::new("joined");
    let server = Server::python(&folder);
    let mut connections: Vec<TcpStream> = (0..20)
        .map(|n| {
            let mut connection = TcpStream::connect(&server.address).expect("a connection");
            ask(&mut connection, &format!("/ok/before-{n}"));
            connection
        })
        .collect();
    let tracer = Tracer::of(&[server.process.id()], &[]);
    for round in 0..10 {
        for (n, connection) in connections.iter_mut().enumerate() {
            ask(connection, &format!("/ok/after-{round}-{n}"));
        }
    }
    drop(connections);
    let truth: BTreeMap<String, usize> =
        server.wait_logged(220).into_iter().filter(|(line, _)| line.contains("after")).collect();
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
}

/// One request and its whole answer, which ends with a line break and is longer than its head.
fn ask(connection: &mut TcpStream, path: &str) {
    write!(connection, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
    read_answer(connection, &format!("{path} 0\n"));
}

fn read_answer(connection: &mut TcpStream, end: &str) {
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.ends_with(end.as_bytes()) {
        let length = connection.read(&mut part).expect("an answer in time");
        assert!(length > 0, "the server closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..length]);
    }
}

#[test]
fn requests_come_in_pieces_and_several_at_once() {
    let folder = Folder::new("pieces");
    let server = Server::node(&folder);
    let tracer = Tracer::of(&[server.process.id()], &[]);
    let mut connection = TcpStream::connect(&server.address).expect("a connection");
    connection.set_nodelay(true).expect("no delay");
    let long = "l".repeat(8_000);
    let request =
        format!("POST /ok/pieces HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\nContent-Length: 5\r\n\r\nhello");
    for byte in request.as_bytes() {
        connection.write_all(&[*byte]).expect("a byte");
    }
    read_answer(&mut connection, "/ok/pieces 5\n");
    let several: String =
        (0..20).map(|n| format!("GET /ok/pipelined-{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    connection.write_all(several.as_bytes()).expect("requests");
    read_answer(&mut connection, "/ok/pipelined-19 0\n");
    let chunked = "POST /chunked/up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for part in [chunked, "3;ext=1\r\nabc\r\n", "4\r\ndefg", "\r\n0\r\n", "X-Trailer: 1\r\n\r\n"] {
        connection.write_all(part.as_bytes()).expect("a part");
    }
    read_answer(&mut connection, "0\r\n\r\n");
    drop(connection);
    let big = folder.path("big");
    std::fs::write(&big, vec![b'b'; 3 << 20]).expect("a file");
    let body = format!("@{}", big.display());
    let url = format!("http://{}/ok/continue", server.address);
    // More than a megabyte: curl asks with Expect: 100-continue before it sends.
    run(Command::new("curl").args([
        "-s",
        "-o",
        "/dev/null",
        "-H",
        "Expect: 100-continue",
        "--data-binary",
        &body,
        &url,
    ]));
    let truth = server.wait_logged(23);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    let upload = traced.spans.iter().find(|span| line(span).contains("/ok/continue")).expect("the upload");
    assert_eq!(upload["attributes"]["http.request.body.size"], 3 << 20);
    assert_eq!(upload["events"][0]["name"], "tracer.response.interim", "{upload}");
}

/// Content is counted, and soon not even copied: the probes are told how much of it follows.
#[test]
fn large_content_is_counted_and_not_copied() {
    let folder = Folder::new("large");
    let server = Server::nginx(&folder);
    std::fs::write(folder.path("www/large"), vec![b'l'; 40 << 20]).expect("a file");
    run(Command::new("chmod").arg("a+r").arg(folder.path("www/large")));
    let capture = folder.path("large.capture").display().to_string();
    let process = server.process.id().to_string();
    let tracer = Tracer::start("record", &["--pid", process.as_str(), "--out", &capture]);
    let url = format!("http://{}/large", server.address);
    for _ in 0..10 {
        run(Command::new("curl").args(["-s", "-o", "/dev/null", &url]));
    }
    let body = format!("@{}", folder.path("www/large").display());
    // nginx reads all of it before it answers that the method is not allowed.
    run(Command::new("curl").args(["-s", "-o", "/dev/null", "-H", "Expect:", "--data-binary", &body, &url]));
    let truth = server.wait_logged(11);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    let moved = (40 << 20) * 10;
    let copied = std::fs::metadata(&capture).expect("the capture").len();
    assert!(copied < moved / 2, "{copied} bytes of capture for {moved} bytes of content");
}

/// Clients that leave and servers that hang up have no status that was not on the wire.
#[test]
fn what_broke_off_has_no_status() {
    let script = "import socket, sys\n\
        s = socket.create_server(('127.0.0.1', 0))\n\
        print('listening on 127.0.0.1:%d' % s.getsockname()[1], flush=True)\n\
        part = b'HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\nonly this'\n\
        for answer in (b'', part, part, None):\n\
        \x20   c, _ = s.accept()\n\
        \x20   d = c.recv(1000)\n\
        \x20   if b'reset' in d: c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))\n\
        \x20   if answer is None: c.recv(1000)\n\
        \x20   elif answer: c.sendall(answer)\n\
        \x20   c.close()\n\
        sys.stdin.read()";
    let folder = Folder::new("broken");
    let mut command = Command::new(python());
    command.args(["-c", script]).stdin(Stdio::piped());
    let server = Server::start(command, folder.path("none"));
    let tracer = Tracer::of(&[server.process.id()], &[]);
    for path in ["hung-up", "cut-short", "reset", "left"] {
        let mut connection = TcpStream::connect(&server.address).expect("a connection");
        // In one piece: the server closes after the first that it gets.
        let request = format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.write_all(request.as_bytes()).expect("a request");
        if path != "left" {
            let mut rest = Vec::new();
            let _ = connection.read_to_end(&mut rest);
        }
    }
    // The last is over when the server has closed it, which nobody here can see.
    let traced = {
        wait_for("the last connection to be over", || {
            let sockets = run(Command::new("cat").arg(format!("/proc/{}/net/tcp", server.process.id())));
            let port =
                server.address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
            let own = format!(":{port:04X} ");
            let text = String::from_utf8_lossy(&sockets.stdout).into_owned();
            let open =
                text.lines().skip(1).filter(|line| line.contains(&own) && line.contains(" 08 ")).count();
            (open == 0).then_some(())
        });
        tracer.finish()
    };
    traced.assert_complete();
    let content = |path: &str| {
        let span = traced.spans.iter().find(|span| line(span).contains(path)).expect("a span");
        span["attributes"]["http.response.body.size"].as_u64()
    };
    assert_eq!((content("/cut-short"), content("/reset")), (Some(9), Some(9)));
    let outcome = |path: &str| {
        let span = traced
            .spans
            .iter()
            .find(|span| line(span).contains(path))
            .unwrap_or_else(|| panic!("{path}: {:?}", traced.lines));
        let attributes = &span["attributes"];
        (
            attributes["http.response.status_code"].as_u64(),
            attributes["tracer.outcome"].as_str().map(str::to_owned),
        )
    };
    assert_eq!(outcome("/hung-up"), (None, Some("connection_closed".into())));
    assert_eq!(outcome("/cut-short"), (Some(200), Some("connection_closed".into())));
    assert_eq!(outcome("/reset"), (Some(200), Some("connection_closed".into())));
    assert_eq!(outcome("/left"), (None, Some("aborted".into())));
    assert_eq!(traced.spans.len(), 4);
}

#[test]
fn both_ends_that_are_chosen_are_seen() {
    let folder = Folder::new("both");
    let server = Server::go(&folder);
    let tracer = Tracer::of(&[server.process.id()], &[]);
    let url = format!("http://{}/ok/both", server.address);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let header = format!("traceparent: {parent}");
    let arguments = ["--", "curl", "-s", "-o", "/dev/null", "-H", &header, &url];
    let client = Tracer::start("trace", &arguments).wait();
    let server = tracer.finish();
    assert_same(&client.exchanges("CLIENT"), &server.exchanges("SERVER"));
    for traced in [&client, &server] {
        traced.assert_complete();
        assert_eq!(traced.spans.len(), 1);
        let span = &traced.spans[0];
        assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    }
    // The id that the client made is its own, and the server's parent: neither tracer knows of the other.
    let (client_span, server_span) = (&client.spans[0], &server.spans[0]);
    assert_eq!(client_span["spanId"], "00f067aa0ba902b7");
    assert_eq!(client_span["attributes"]["tracer.parent.evidence"], "none");
    assert_eq!(server_span["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(server_span["attributes"]["tracer.parent.evidence"], "header");
    let ports = |span: &serde_json::Value| {
        let attributes = &span["attributes"];
        (attributes["network.local.port"].as_u64(), attributes["network.peer.port"].as_u64())
    };
    let (local, peer) = ports(&server.spans[0]);
    assert_eq!(ports(&client.spans[0]), (peer, local));
    assert!(local.is_some());
}

#[test]
fn a_replay_is_the_live_run() {
    let folder = Folder::new("replay");
    let server = Server::python(&folder);
    let capture = folder.path("run.capture").display().to_string();
    let process = server.process.id().to_string();
    let tracer = Tracer::start("record", &["--pid", process.as_str(), "--out", &capture]);
    client(&server.address, "8", 500, 0, ALL_KINDS);
    server.wait_logged(500);
    let live = tracer.finish();
    live.assert_complete();
    assert_eq!(live.spans.len(), 500);
    let replay = run(Command::new(program("tracer")).args(["replay", &capture, "--output", "json"]));
    let replayed: Vec<String> =
        String::from_utf8(replay.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(replayed, live.lines);
    assert!(String::from_utf8_lossy(&replay.stderr).contains(live.ledger()));
    let mode = run(Command::new("stat").args(["-c", "%a", &capture]));
    assert_eq!(String::from_utf8_lossy(&mode.stdout).trim(), "600");
    let mut bytes = std::fs::read(&capture).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&capture, bytes).unwrap();
    fails(&["replay", &capture], 4, "damaged");
}

fn wrk_requests(out: &[u8]) -> usize {
    let out = String::from_utf8_lossy(out);
    let line = out.lines().find(|line| line.contains("requests in")).expect("wrk's count");
    line.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn nothing_is_left_behind() {
    let folder = Folder::new("left");
    let server = Server::python(&folder);
    for kill in [false, true] {
        let mut tracer = Tracer::of(&[server.process.id()], &[]);
        let probes = tracer.probes();
        assert!(probes.iter().any(|(kind, _)| kind == "prog_id"), "no probes to look for: {probes:?}");
        if kill {
            tracer.kill();
        } else {
            assert!(tracer.finish().status.success());
        }
        wait_for("the kernel to drop the probes", || {
            let left = loaded();
            probes.iter().all(|probe| !left.contains(probe)).then_some(())
        });
    }
}

/// Ids of all BPF programs and links of the machine.
fn loaded() -> Vec<(String, u32)> {
    use std::io::Error;
    let list = || -> Result<Vec<(String, u32)>, Box<dyn std::error::Error>> {
        let mut found = Vec::new();
        for program in aya::programs::loaded_programs() {
            found.push(("prog_id".to_owned(), program?.id()));
        }
        for link in aya::programs::loaded_links() {
            found.push(("link_id".to_owned(), link?.id()));
        }
        for map in aya::maps::loaded_maps() {
            found.push(("map_id".to_owned(), map?.id()));
        }
        Ok(found)
    };
    // Something that is on its way out can be listed and not be opened any more.
    wait_for("a list of what is loaded", || match list() {
        Ok(found) => Some(found),
        Err(error) => {
            let cause =
                std::iter::successors(Some(&*error as &dyn std::error::Error), |error| error.source());
            let known = cause.filter_map(|error| error.downcast_ref::<Error>()?.raw_os_error()).next();
            assert!(matches!(known, Some(2 | 11)), "{error:?}");
            None
        }
    })
}

#[test]
fn children_that_come_later_are_followed() {
    let folder = Folder::new("children");
    // A server whose every connection is served by a process of its own.
    let script = "import http.server, socketserver, sys\n\
        class H(http.server.BaseHTTPRequestHandler):\n\
        \x20   def do_GET(self):\n\
        \x20       self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers()\n\
        \x20       self.wfile.write(b'ok')\n\
        \x20   def log_message(self, *a): pass\n\
        class S(socketserver.ForkingMixIn, http.server.HTTPServer): pass\n\
        s = S(('127.0.0.1', 0), H)\n\
        print('listening on 127.0.0.1:%d' % s.server_port, flush=True)\n\
        s.serve_forever()";
    let mut command = Command::new(python());
    command.args(["-c", script]);
    let server = Server::start(command, folder.path("none"));
    let tracer = Tracer::of(&[server.process.id()], &[]);
    for n in 0..50 {
        run(Command::new("curl").args(["-s", &format!("http://{}/fork/{n}", server.address)]));
    }
    let traced = tracer.finish();
    traced.assert_complete();
    let truth = count((0..50).map(|n| format!("GET /fork/{n} 200 2")));
    assert_same(&traced.exchanges("SERVER"), &truth);
    let parent = server.process.id();
    assert!(traced.spans.iter().all(|span| span["resource"]["process.pid"] != parent), "the parent served");
}

#[test]
fn a_command_keeps_its_terminal_its_status_and_its_signals() {
    let echo = Command::new(program("tracer"))
        .args(["trace", "--output", "none", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut echo = echo.unwrap();
    echo.stdin.take().unwrap().write_all(b"through").unwrap();
    let output = echo.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"through"[..]));
    fails(&["trace", "--", "sh", "-c", "exit 3"], 5, "exit status: 3");
    fails(&["trace", "--otlp-queue", "1MiB", "--", "true"], 2, "no receiver is named");
    fails(&["trace", "--", "/nowhere/at-all"], 5, "cannot be run");
    let tracer = Tracer::start("trace", &["--", "sleep", "1000"]);
    let started = tracer.said();
    let traced = {
        // A terminal would send it to both.
        let child: u32 = started
            .lines()
            .find_map(|line| line.strip_prefix("tracing ")?.split(' ').next()?.parse().ok())
            .expect("the command's id");
        run(Command::new("kill").args(["-INT", &child.to_string()]));
        tracer.finish()
    };
    assert_eq!(traced.status.code(), Some(5), "{}", traced.errors);
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    fails(&["trace", "--pid", "999999"], 2, "there is no process 999999");
    fails(&["trace"], 2, "nothing is selected");
    fails(&["trace", "--no-such-flag"], 2, "--no-such-flag");
    fails(&["replay", "/nowhere/at-all"], 2, "cannot be read");
    fails(&["replay", "/proc/self/exe"], 4, "does not start as a capture file does");
    fails(&["trace", "--pid", "1", "--otlp", "not a url"], 2, "is not a URL");
    let program = program("tracer");
    let copy = Folder::new("nobody");
    std::fs::copy(&program, copy.path("tracer")).unwrap();
    run(Command::new("chmod").args([
        "755",
        &copy.path("").display().to_string(),
        &copy.path("tracer").display().to_string(),
    ]));
    let sleep = Process::start(Command::new("sleep").arg("100"));
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy.path("tracer"))
        .args(["trace", "--pid", &sleep.id().to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("need root") && said.lines().count() == 1, "{said}");
}

fn fails(arguments: &[&str], status: i32, sentence: &str) {
    let output = Command::new(program("tracer")).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(said.contains(sentence), "{arguments:?}: {said}");
}

#[test]
fn what_is_not_over_is_told_at_the_end() {
    let folder = Folder::new("open");
    let script = "import socket, sys\n\
        s = socket.create_server(('127.0.0.1', 0))\n\
        print('listening on 127.0.0.1:%d' % s.getsockname()[1], flush=True)\n\
        c, _ = s.accept()\n\
        c.recv(1000)\n\
        sys.stdin.read()";
    let mut command = Command::new(python());
    command.args(["-c", script]).stdin(Stdio::piped());
    let server = Server::start(command, folder.path("none"));
    let tracer = Tracer::of(&[server.process.id()], &[]);
    let mut connection = TcpStream::connect(&server.address).unwrap();
    write!(connection, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_for("the server to read the request", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let peer = connection.local_addr().ok()?.port();
        // The receive queue of the server's end is empty again.
        let end = format!(" 0100007F:{peer:04X} 01 00000000:00000000 ");
        sockets.contains(&end).then_some(())
    });
    let traced = tracer.finish();
    assert_eq!(traced.spans.len(), 0);
    assert!(traced.errors.contains("GET /slow (no response yet)"), "{}", traced.errors);
    traced.assert_complete();
}
