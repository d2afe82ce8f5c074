//! HTTP/2 without TLS, by real servers and clients: exact counts at any number of streams and connections.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    process::{Command, Stdio},
};

use tracer_tests::process::{
    Folder, Process, Server, Traced, Tracer, assert_same, capture, count, free_port, line, python, run,
    wait_for, workload,
};

/// Streams at once on each of so many connections.
const SHAPES: [(usize, usize); 8] = [(1, 1), (2, 1), (10, 1), (100, 1), (1, 16), (2, 4), (10, 16), (100, 16)];

/// Requests in each shape: a multiple of the number of paths for each connection.
const REQUESTS: usize = 4_800;

/// Each connection asks for one path after the other, as often for each.
fn h2load(address: &str, (streams, connections): (usize, usize), paths: &[&str]) -> Command {
    let mut command = Command::new("h2load");
    command.args(["-m", &streams.to_string(), "-c", &connections.to_string(), "-n", &REQUESTS.to_string()]);
    command.args(paths.iter().map(|path| format!("http://{address}{path}")));
    command
}

/// Loads the server in all shapes, while it and the clients are traced. Returns what was seen of both.
fn in_all_shapes(process: u32, address: &str, paths: &[&str]) -> (Traced, Vec<Traced>) {
    let server = Tracer::of(&[process], &[]);
    let clients = SHAPES.map(|shape| {
        let load = h2load(address, shape, paths);
        // It has no way to say less.
        let mut arguments =
            ["--", "sh", "-c", "exec \"$@\" > /dev/null", "-", "h2load"].map(str::to_owned).to_vec();
        arguments.extend(load.get_args().map(|argument| argument.to_string_lossy().into_owned()));
        let traced = Tracer::start("trace", &arguments).wait();
        assert!(traced.status.success(), "{}", traced.errors);
        traced
    });
    (server.finish(), clients.into())
}

/// Both ends have seen what was done, no more and no less.
fn assert_both(server: &Traced, clients: &[Traced], truth: &BTreeMap<String, usize>) {
    server.assert_complete();
    assert_same(&server.exchanges("SERVER"), truth);
    let mut seen = BTreeMap::new();
    for traced in clients {
        traced.assert_complete();
        for (line, count) in traced.exchanges("CLIENT") {
            *seen.entry(line).or_default() += count;
        }
    }
    assert_same(&seen, truth);
    assert!(server.spans.iter().all(|span| span["attributes"]["network.protocol.version"] == "2"));
}

#[test]
fn nginx_over_h2c_is_seen_exactly() {
    let folder = Folder::new("nginx-h2");
    let locations = "location /ok/ { return 200 \"ok $request_uri\\n\"; }\n\
         location /empty/ { return 204; }\n\
         location /fail/ { return 500; }";
    fs::create_dir_all(folder.path("www")).expect("a folder");
    fs::write(folder.path("www/large"), vec![b'l'; 40_000]).expect("a file");
    let server = Server::nginx_of(&folder, " http2", locations);
    let paths = ["/ok/1", "/empty/1", "/missing/1", "/fail/1", "/large"];
    let (traced, clients) = in_all_shapes(server.process.id(), &server.address, &paths);
    let truth = server.wait_logged(SHAPES.len() * REQUESTS);
    assert_both(&traced, &clients, &truth);
}

#[test]
fn gos_own_http2_is_seen_exactly() {
    let folder = Folder::new("go-h2");
    let server = Server::go(&folder);
    let paths = ["/ok/1", "/empty/1", "/missing/1", "/fail/1", "/chunked/1"];
    let (traced, clients) = in_all_shapes(server.process.id(), &server.address, &paths);
    let truth = server.wait_logged(SHAPES.len() * REQUESTS);
    assert_both(&traced, &clients, &truth);
}

/// A server of files that keeps no log; its answers follow from the files.
fn nghttpd(folder: &Folder) -> (Process, String) {
    let port = free_port();
    let root = folder.path("root");
    fs::create_dir_all(&root).expect("a folder");
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "-d"]).arg(&root).arg(port.to_string());
    let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let address = format!("127.0.0.1:{port}");
    wait_for("nghttpd to listen", || TcpStream::connect(&address).ok());
    (process, address)
}

#[test]
fn nghttpd_is_seen_exactly() {
    let folder = Folder::new("nghttpd");
    let (server, address) = nghttpd(&folder);
    for (name, size) in [("small", 200), ("large", 40_000)] {
        fs::write(folder.path("root").join(name), vec![b'x'; size]).expect("a file");
    }
    let (traced, clients) = in_all_shapes(server.id(), &address, &["/small", "/large"]);
    let half = SHAPES.len() * REQUESTS / 2;
    let truth =
        BTreeMap::from([("GET /small 200 200".to_owned(), half), ("GET /large 200 40000".to_owned(), half)]);
    assert_both(&traced, &clients, &truth);
}

/// An upgrade from HTTP/1.1 is one exchange, with the switch as an interim response.
#[test]
fn an_upgrade_is_one_exchange() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(python());
    command.args(["-m", "hypercorn", "--bind", &address, "asgi:app"]).current_dir(workload(""));
    let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for("hypercorn to listen", || TcpStream::connect(&address).ok());
    let url = |path: &str| format!("http://{address}/{path}");
    let ends = Tracer::of(&[process.id()], &[]);
    let arguments =
        ["--", "curl", "--http2", "-s", "-o", "/dev/null", &url("file"), "-o", "/dev/null", &url("none")];
    let client = Tracer::start("trace", &arguments).wait();
    let server = ends.finish();
    for (traced, kind) in [(&client, "CLIENT"), (&server, "SERVER")] {
        traced.assert_complete();
        let seen = traced.exchanges(kind);
        assert_eq!(seen.values().sum::<usize>(), 2, "{seen:?}");
        assert_eq!(seen.get("GET /file 200 1000"), Some(&1), "{seen:?}");
        assert_eq!(seen.get("GET /none 404 1000"), Some(&1), "{seen:?}");
        let interim = |span: &&serde_json::Value| {
            span["events"].as_array().is_some_and(|events| {
                events.iter().any(|event| {
                    event["name"] == "tracer.response.interim"
                        && event["attributes"]["http.response.status_code"] == 101
                })
            })
        };
        assert_eq!(traced.spans.iter().filter(interim).count(), 1, "{:?}", traced.lines);
    }
}

/// One content of a gigabyte, as fast as it can be moved: its frames are told by their headers.
#[test]
fn a_gigabyte_is_counted_and_not_copied() {
    let folder = Folder::new("gigabyte");
    let (server, address) = nghttpd(&folder);
    fs::File::create(folder.path("root/large")).and_then(|file| file.set_len(1 << 30)).expect("a file");
    let tracer = Tracer::of(&[server.id()], &[]);
    let before = tracer.memory();
    let url = format!("http://{address}/large");
    run(Command::new("h2load").args(["-m", "1", "-c", "1", "-n", "1", "-w", "24", "-W", "24", &url]));
    let grown = tracer.memory().saturating_sub(before);
    let traced = tracer.finish();
    traced.assert_complete();
    if capture().is_some_and(|mode| mode != "sock_length") {
        // There all of it is copied, as far as there is room.
        return;
    }
    assert_same(&traced.exchanges("SERVER"), &BTreeMap::from([(format!("GET /large 200 {}", 1 << 30), 1)]));
    // The ring is mapped twice, and used once around; what is held besides is a few frames.
    assert!(grown < 24 * 1024, "{grown} KiB more");
    let saved = traced.ledger().split("; told by length alone: ").nth(1).unwrap_or_default();
    let saved: u64 = saved.split(' ').next().and_then(|bytes| bytes.parse().ok()).unwrap_or_default();
    assert!(saved > 1 << 29, "{}", traced.ledger());
}

/// A ring that is far too small: nothing is told wrongly, and what is missing lies in gaps.
#[test]
fn a_small_ring_loses_and_says_so() {
    let folder = Folder::new("small-ring");
    let server = Server::go(&folder);
    let tracer = Tracer::of(&[server.process.id()], &["--ring", "64KiB"]);
    let paths = ["/ok/1", "/missing/1", "/fail/1", "/chunked/1"];
    for shape in [(10, 16), (100, 16), (100, 1)] {
        run(&mut h2load(&server.address, shape, &paths));
    }
    let truth = server.wait_logged(3 * REQUESTS);
    let traced = tracer.finish();
    traced.assert_balanced();
    let whole = |span: &&serde_json::Value| {
        let attributes = &span["attributes"];
        ["tracer.partial", "tracer.capture", "tracer.outcome"].iter().all(|key| attributes[key].is_null())
    };
    let seen = count(traced.spans.iter().filter(whole).map(line));
    for (line, seen) in &seen {
        let held = truth.get(line).copied().unwrap_or_default();
        assert!(*seen <= held, "{line}: {seen} seen, {held} held");
    }
    // Whatever is said of the others is said of one that was held.
    for span in traced.spans.iter().filter(|span| !whole(span)) {
        let attributes = &span["attributes"];
        let said = ["url.path", "http.response.status_code"].map(|key| match &attributes[key] {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        });
        let fits = truth.keys().any(|held| {
            let words: Vec<&str> = held.split(' ').collect();
            said[0].as_ref().is_none_or(|path| path == words[1])
                && said[1].as_ref().is_none_or(|status| status == words[2])
        });
        assert!(fits, "{span}");
        assert!(attributes["tracer.outcome"].is_null(), "{span}");
    }
    let seen: usize = seen.values().sum();
    let lost = !traced.ledger().contains(" 0 records lost") || traced.ledger().contains("ring was filling");
    assert!(seen == 3 * REQUESTS || lost, "{seen} of {} and no loss: {}", 3 * REQUESTS, traced.ledger());
    // That the ring was too small is what the test is about.
    assert!(lost || capture().is_some(), "{}", traced.ledger());
}

/// Connections that are open before the tracer starts, in the middle of their streams.
#[test]
fn connections_are_joined_while_they_go_on() {
    let folder = Folder::new("joined-h2");
    let server = Server::go(&folder);
    let paths = ["/ok/1", "/missing/1", "/fail/1"];
    let mut load = Command::new("h2load");
    load.args(["-m", "50", "-c", "4", "-n", "120000"]);
    load.args(paths.iter().map(|path| format!("http://{}{path}", server.address)));
    let mut load = Process::start(load.stdout(Stdio::null()));
    wait_for("the load to run", || (server.logged().values().sum::<usize>() > 10_000).then_some(()));
    let tracer = Tracer::of(&[server.process.id()], &[]);
    let before = server.logged().values().sum::<usize>();
    assert!(before < 100_000, "the load is over before the tracer starts");
    assert!(load.wait().success(), "the load failed");
    let truth = server.wait_logged(120_000);
    let traced = tracer.finish();
    traced.assert_complete();
    // All that were logged after the tracer was ready, but for those that had begun: 50 on each connection.
    let seen = traced.spans.len();
    assert!(seen + 200 >= 120_000 - before && seen <= 120_000, "{seen} seen, {before} before");
    let known = count(traced.spans.iter().filter(|span| !span["attributes"]["url.path"].is_null()).map(line));
    for line in known.keys() {
        let line = line.split(" capture=").next().unwrap_or_default();
        assert!(truth.contains_key(line), "{line} was never asked for");
    }
}
