//! Real servers of many kinds, at many connections: exact counts.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tracer_tests::process::{
    Folder, Process, Server, Tracer, assert_same, capture, client, count, free_port, python, run, wait_for,
    workload,
};

const KINDS: &str = "ok,empty,missing,fail";
/// A ring for content whose framing stands in the middle of it.
const ROOMY: [&str; 2] = ["--ring", "64MiB"];
/// The last with content that ends with the connection.
const UWSGI_KINDS: &str = "ok,empty,missing,fail,open";

/// What both ends of two exchanges in a row are: of the proxy, and of the server behind it.
fn assert_relayed(proxy: &tracer_tests::process::Traced, truth: &BTreeMap<String, usize>) {
    proxy.assert_complete();
    assert_same(&proxy.exchanges("SERVER"), truth);
    assert_same(&proxy.exchanges("CLIENT"), truth);
}

/// Unusual calls, see calls.py: each exchange is seen from both ends.
#[test]
fn unusual_calls_are_seen_from_both_ends() {
    let folder = Folder::new("calls");
    let script = workload("calls.py");
    let out = folder.path("truth");
    let shell = format!(
        "exec '{}' '{}' '{}' > '{}'",
        python().display(),
        script.display(),
        folder.path("").display(),
        out.display()
    );
    let traced = Tracer::start("trace", &["--", "sh", "-c", &shell]).wait();
    assert!(traced.status.success(), "{}", traced.errors);
    traced.assert_complete();
    let truth = count(fs::read_to_string(out).expect("the truth").lines().map(str::to_owned));
    assert_eq!(truth.len(), 20);
    for kind in ["SERVER", "CLIENT"] {
        assert_same(&traced.exchanges(kind), &truth);
    }
    for reason in ["by sendfile or splice", "received into nowhere", "beyond what is copied of one call"] {
        assert!(traced.ledger().contains(reason), "{reason}: {}", traced.ledger());
    }
}

/// Workers that are forked before the first connection, and share its socket.
#[test]
fn gunicorn_with_its_workers_is_seen_exactly() {
    let folder = Folder::new("gunicorn");
    let (log, port) = (folder.path("wsgi.log"), free_port());
    let address = format!("127.0.0.1:{port}");
    let server = wsgi(
        Command::new(python().with_file_name("gunicorn"))
            .args(["--workers", "3", "--threads", "2", "--keep-alive", "5", "--log-level", "error"])
            .args(["--bind", &address, "wsgi:application"]),
        &log,
    );
    wait_for("gunicorn to listen", || TcpStream::connect(&address).ok());
    let tracer = Tracer::of(&[server.id()], &[]);
    client(&address, "8", 800, 0, KINDS);
    client(&address, "new", 400, 800, KINDS);
    let truth = logged(&log, 1200);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    let workers: std::collections::BTreeSet<u64> =
        traced.spans.iter().filter_map(|span| span["resource"]["process.pid"].as_u64()).collect();
    assert!(workers.len() > 1 && !workers.contains(&server.id().into()), "{workers:?}");
}

fn wsgi(command: &mut Command, log: &Path) -> Process {
    let folder = workload("wsgi.py").parent().expect("a folder").to_owned();
    Process::start(
        command
            .current_dir(folder)
            .env("LOG", log)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )
}

fn logged(log: &Path, requests: usize) -> BTreeMap<String, usize> {
    wait_for("the log", || {
        let logged = count(fs::read_to_string(log).ok()?.lines().map(str::to_owned));
        (logged.values().sum::<usize>() >= requests).then_some(logged)
    })
}

/// A connection's first request in one process, the others in another that it was handed to.
#[test]
fn connections_that_are_passed_on_are_seen_exactly() {
    let folder = Folder::new("passing");
    let log = folder.path("passing.log");
    let mut command = Command::new(python());
    command.arg(workload("passing.py")).arg(&log);
    let server = Server::start(command, log);
    let tracer = Tracer::of(&[server.process.id()], &[]);
    for round in 0..10 {
        client(&server.address, "8", 80, round * 80, "ok");
    }
    let truth = server.wait_logged(800);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    let of_parent =
        traced.spans.iter().filter(|span| span["resource"]["process.pid"] == server.process.id()).count();
    assert_eq!(of_parent, 80, "one for each connection");
}

/// nginx in front of an application over a Unix socket, all three ends of it.
#[test]
fn nginx_before_uwsgi_over_a_unix_socket_is_seen_exactly() {
    let folder = Folder::new("uwsgi");
    let (log, socket) = (folder.path("wsgi.log"), folder.path("app.sock"));
    let server = wsgi(
        Command::new("uwsgi")
            .args(["--master", "--processes", "2", "--plugin", "python3", "--module", "wsgi:application"])
            .args(["--chmod-socket=666", "--die-on-term", "--http-socket"])
            .arg(&socket),
        &log,
    );
    wait_for("uwsgi to listen", || UnixStream::connect(&socket).ok());
    let location = format!("location / {{ proxy_pass http://unix:{}:; }}", socket.display());
    let proxy = Server::nginx_with(&folder, &location);
    let ends = Tracer::of(&[proxy.process.id(), server.id()], &[]);
    client(&proxy.address, "8", 800, 0, UWSGI_KINDS);
    let truth = logged(&log, 800);
    let traced = ends.finish();
    traced.assert_complete();
    let of = |kind: &str, unix: bool| {
        let spans = traced.spans.iter().filter(|span| {
            span["kind"] == kind && (span["attributes"]["network.transport"] == "unix") == unix
        });
        count(spans.map(tracer_tests::process::line))
    };
    assert_same(&of("SERVER", false), &truth);
    assert_same(&of("CLIENT", true), &truth);
    assert_same(&of("SERVER", true), &truth);
    let path = socket.display().to_string();
    assert!(
        traced
            .spans
            .iter()
            .filter(|span| span["attributes"]["network.transport"] == "unix")
            .all(|span| { span["attributes"]["network.peer.address"] == path.as_str() }),
        "the path is the peer"
    );
}

#[test]
fn haproxy_is_seen_exactly() {
    let folder = Folder::new("haproxy");
    let server = Server::go(&folder);
    let (configuration, port) = (folder.path("haproxy.cfg"), free_port());
    let text = format!(
        "global\n  nbthread 2\n  maxconn 500\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  option splice-auto\n\
         frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n\
         backend b\n  http-reuse always\n  server s {}\n",
        server.address
    );
    fs::write(&configuration, text).expect("a file");
    let proxy = Process::start(Command::new("/usr/sbin/haproxy").arg("-db").arg("-f").arg(&configuration));
    let address = format!("127.0.0.1:{port}");
    wait_for("haproxy to listen", || TcpStream::connect(&address).ok());
    let tracer = Tracer::of(&[proxy.id()], &[]);
    client(&address, "8", 1600, 0, "ok,empty,missing,fail,chunked");
    client(&address, "new", 400, 1600, "ok,empty,missing,fail,chunked");
    let truth = server.wait_logged(2000);
    assert_relayed(&tracer.finish(), &truth);
    // Large content, which it may splice.
    let tracer = Tracer::of(&[proxy.id()], &ROOMY);
    for (kind, rate) in [("large", "100G"), ("large-chunked", "100M")] {
        let url = format!("http://{address}/{kind}/1");
        run(Command::new("curl").args(["-s", "-o", "/dev/null", "--limit-rate", rate, &url]));
    }
    let truth: BTreeMap<String, usize> =
        server.wait_logged(2002).into_iter().filter(|(line, _)| line.contains("/large")).collect();
    let traced = tracer.finish();
    assert_relayed(&traced, &truth);
}

/// Content of a known length as fast as it can be moved. Where the length is found only in the content, all
/// of it has to be copied: there the speed is that of a network, and the ring has room for a tracer that is
/// kept waiting by others (where it has not, such content is partial, and counted).
#[test]
fn a_go_server_with_100_megabytes_is_seen_exactly() {
    let folder = Folder::new("go-large");
    let server = Server::go(&folder);
    let tracer = Tracer::of(&[server.process.id()], &ROOMY);
    let url = |path: &str| format!("http://{}/{path}", server.address);
    let upload = folder.path("upload");
    fs::File::create(&upload).and_then(|file| file.set_len(100 << 20)).expect("a file");
    let curl = |arguments: &[&str], path: &str| {
        run(Command::new("curl").args(["-s", "-o", "/dev/null"]).args(arguments).arg(url(path)));
    };
    let body = format!("@{}", upload.display());
    let file = upload.display().to_string();
    for n in 0..3 {
        curl(&[], &format!("large/{n}"));
        curl(&["--limit-rate", "200M"], &format!("large-chunked/{n}"));
        curl(&["-T", &file], &format!("ok/put-{n}"));
        curl(&["--data-binary", &body], &format!("ok/post-{n}"));
    }
    let chunked = ["-H", "Transfer-Encoding: chunked", "--limit-rate", "100M", "-T", &file];
    curl(&chunked, "ok/chunked");
    let truth = server.wait_logged(13);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    let large = |span: &&serde_json::Value| span["attributes"]["http.request.body.size"] == 100 << 20;
    assert_eq!(traced.spans.iter().filter(large).count(), 7);
}

fn crowd(folder: &Folder) -> PathBuf {
    let program = folder.path("crowd");
    run(Command::new("go").arg("build").arg("-o").arg(&program).arg(workload("crowd.go")));
    program
}

/// 20,000 connections are open, 1,000 of them active.
#[test]
fn many_open_connections_cost_nothing() {
    let folder = Folder::new("crowd");
    let program = crowd(&folder);
    let server = Server::nginx(&folder);
    let tracer = Tracer::of(&[server.process.id()], &[]);
    // Two of them, since a process may have no more files open than 20,000 on some machines.
    let mut crowds = [0, 1].map(|_| {
        Process::start(
            Command::new(&program).arg(&server.address).args(["10000", "500", "40"]).stdout(Stdio::null()),
        )
    });
    for crowd in &mut crowds {
        assert!(crowd.wait().success(), "the crowd failed");
    }
    let truth = server.wait_logged(60_000);
    let memory = tracer.memory();
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    assert_eq!(traced.spans.len(), 60_000);
    assert!(memory < 150 * 1024, "{memory} KiB");
}

/// 50,000 connections a minute, each for one request; for two minutes where TRACER_LONG is set.
#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    #[allow(clippy::disallowed_methods, reason = "whoever runs the tests says how long")]
    let seconds = if std::env::var_os("TRACER_LONG").is_some() { 120 } else { 20 };
    let folder = Folder::new("rate");
    let program = crowd(&folder);
    let server = Server::nginx(&folder);
    let tracer = Tracer::of(&[server.process.id()], &[]);
    let mut memory = Vec::new();
    // A first part for what is set up once.
    for part in [5, seconds] {
        let out = run(Command::new(&program).arg(&server.address).args(["834", "rate", &part.to_string()]));
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), (834 * part).to_string());
        memory.push(tracer.memory());
    }
    let truth = server.wait_logged(834 * (5 + seconds));
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    println!("memory after 5 s and after {seconds} s more: {memory:?} KiB");
    assert!(memory[1] < memory[0] + 4 * 1024, "memory grows: {memory:?} KiB");
}

/// Whose bytes cannot be read are counted, and told by name.
#[test]
fn io_uring_and_32_bit_tasks_are_named() {
    let folder = Folder::new("named");
    let server = Server::go(&folder);
    let port = server.address.rsplit(':').next().expect("a port").to_owned();
    let compile = |name: &str, options: &[&str]| {
        let program = folder.path(name);
        let source = workload(&format!("{name}.c"));
        run(Command::new("cc").args(options).arg("-o").arg(&program).arg(source));
        program.display().to_string()
    };
    let defined = format!("-DPORT={port}");
    let old = compile("task32", &["-m32", "-nostdlib", "-static", "-fno-stack-protector", &defined]);
    let ring = compile("uring", &["-O1"]);
    for (arguments, name) in [(vec![old.as_str()], "by 32-bit tasks"), (vec![&ring, &port], "by io_uring")] {
        let mut all = vec!["--"];
        all.extend(arguments);
        let traced = Tracer::start("trace", &all).wait();
        assert!(traced.status.success(), "{}", traced.errors);
        traced.assert_complete();
        assert_eq!(traced.spans.len(), 0);
        if name == "by io_uring" && capture().is_some_and(|capture| capture.contains("sys_exit")) {
            // No call moves them: `--capture` says so, and `tracer explain`.
            assert!(traced.ledger().contains(" 0 bytes moved"), "{}", traced.ledger());
            continue;
        }
        assert!(
            traced.ledger().contains(name) && traced.ledger().contains(" not copied"),
            "{}",
            traced.ledger()
        );
    }
    assert_eq!(server.wait_logged(2).len(), 2);
}
