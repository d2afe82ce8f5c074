//! How the agent begins, answers and ends.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tracer_tests::{
    agent::{Agent, ask, config_in, place, try_ask},
    collector::Collector,
    process::{Errors, Folder, Process, Server, client, free_port, program, wait_for},
};

const SERVER: &str = "http_server_request_duration_seconds";

fn tracer(arguments: &[&str]) -> Output {
    Command::new(program("tracer")).args(arguments).stdin(Stdio::null()).output().expect("the tracer")
}

#[allow(clippy::disallowed_methods, reason = "a test measures how long an end takes")]
fn now() -> Instant {
    Instant::now()
}

/// All that was answered before the signal is at the receiver: spans, and the metrics of them.
#[test]
fn a_signal_lets_everything_out_that_was_there() {
    let folder = Folder::new("agent-drain");
    let server = Server::nginx(&folder);
    for signal in [Signal::TERM, Signal::INT] {
        let receiver = Collector::start();
        // With sampling, traces wait to be decided on.
        let agent = Agent::start(
            &folder,
            &format!(
                "select: {{ include: [ {{ pid: {} }} ] }}\nsampling: {{ share: 0.999999999, slowest: 0 }}\n\
                 export: {{ otlp: [ {{ url: '{}', interval: 1h }} ] }}",
                server.process.id(),
                receiver.url()
            ),
        );
        client(&server.address, "8", 2000, 0, super::super::NGINX_KINDS);
        agent.signal(signal);
        let began = now();
        let ended = agent.wait();
        let took = began.elapsed();
        ended.assert_complete();
        assert!(took < Duration::from_secs(5), "{took:?}");
        let received = receiver.received();
        assert_eq!((received.taken, received.spans.len()), (2000, 2000), "{}", ended.errors);
        let counted = receiver.points().metrics().sum("http.server.request.duration.count", &[]);
        assert_eq!(counted, 2000.0, "{}", ended.errors);
        assert!(ended.errors.contains("/v1/traces: 2000 spans sent, 0 dropped"), "{}", ended.errors);
        assert!(ended.errors.contains(" points sent, 0 dropped"), "{}", ended.errors);
    }
}

/// A receiver that takes nothing does not hold the end up, and what was not sent is said.
#[test]
fn an_end_does_not_wait_for_a_receiver() {
    let folder = Folder::new("agent-undrained");
    let server = Server::nginx(&folder);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let agent = Agent::start(
        &folder,
        &format!(
            "select: {{ include: [ {{ pid: {} }} ] }}\nexport: {{ otlp: [ {{ url: 'http://{}' }} ] }}",
            server.process.id(),
            silent.local_addr().expect("an address")
        ),
    );
    client(&server.address, "8", 500, 0, super::super::NGINX_KINDS);
    agent.wait_counted(SERVER, 500);
    let began = now();
    let ended = agent.finish();
    let took = began.elapsed();
    ended.assert_complete();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(ended.errors.contains("otlp: http://"), "{}", ended.errors);
}

#[test]
fn what_is_asked_is_answered() {
    let folder = Folder::new("agent-answers");
    let server = Server::nginx(&folder);
    let process = server.process.id();
    let agent = Agent::start(&folder, &format!("select: {{ include: [ {{ pid: {process} }} ] }}"));
    client(&server.address, "keep-alive", 40, 0, super::super::NGINX_KINDS);
    agent.wait_counted(SERVER, 40);
    let is = |path: &str, status: u16, word: &str| {
        let answer = agent.get(path);
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert!(answer.text.contains(word), "{path}: {}", answer.text);
    };
    is("/healthz", 200, "ok\n");
    is("/readyz", 200, "ready\n");
    is("/", 200, "/metrics");
    is("/metrics", 200, "tracer_moved_bytes_total");
    is("/debug/config", 200, "\"include\"");
    is(&format!("/debug/explain/{process}"), 200, "traced by");
    is(&format!("/debug/explain/{}", std::process::id()), 200, "not traced");
    is("/debug/explain/4194303", 404, "there is no process 4194303");
    is("/debug/explain/nginx", 400, "number");
    is("/nowhere", 404, "/metrics");
    let config: Value = serde_json::from_str(&agent.get("/debug/config").text).expect("JSON");
    assert_eq!(config["select"]["include"][0]["pid"][0], process);
    for method in ["POST", "PUT", "DELETE"] {
        let answer = ask(&agent.address, method, "/metrics", "Content-Length: 0\r\n");
        assert_eq!(answer.status, 405);
        assert!(answer.head.to_lowercase().contains("allow: get, head"), "{}", answer.head);
    }
    let head = ask(&agent.address, "HEAD", "/metrics", "");
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    agent.finish().assert_complete();
}

/// Clients that say half of what they want, and clients that do not read: the capture goes on, and so do the
/// answers to others once these had their time.
#[test]
fn clients_that_hang_stop_nothing() {
    let folder = Folder::new("agent-hanging");
    let server = Server::nginx(&folder);
    let agent =
        Agent::start(&folder, &format!("select: {{ include: [ {{ pid: {} }} ] }}", server.process.id()));
    let open = |request: &[u8]| {
        let mut connection = TcpStream::connect(&agent.address).expect("a connection");
        connection.write_all(request).expect("a part of a request");
        connection
    };
    let halves: Vec<TcpStream> = (0..40).map(|_| open(b"GET /metrics HTTP/1.1\r\nHos")).collect();
    client(&server.address, "8", 1000, 0, super::super::NGINX_KINDS);
    server.wait_logged(1000);
    // Those before it are given up, and this one is answered while they still hold on.
    assert_eq!(agent.get("/healthz").status, 200);
    agent.wait_counted(SERVER, 1000);
    let deaf: Vec<TcpStream> = (0..8)
        .map(|_| {
            // More answers than any buffer holds.
            open("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2000).as_bytes())
        })
        .collect();
    client(&server.address, "8", 1000, 1000, super::super::NGINX_KINDS);
    agent.wait_counted(SERVER, 2000);
    assert_eq!(agent.get("/readyz").text, "ready\n");
    agent.finish().assert_complete();
    drop((halves, deaf));
}

/// What is wrong is said with its place before anything is done.
#[test]
fn a_wrong_file_is_an_error_at_the_start() {
    let folder = Folder::new("agent-start");
    let cases = [
        ("select:\n  inclde: []\n", 2, 3, "did you mean `include`?"),
        ("sampling:\n  share: 110%\n", 2, 10, "no share"),
        ("select:\n  include:\n    - pid: 1\n    - {}\n", 2, 3, "names nothing"),
        ("budgets:\n  memory: 47Mi\n", 2, 3, "48Mi or more"),
        ("serve: { address: localhost }\n", 1, 19, "no IP address with a port"),
        ("protocols: [http, gopher]\n", 1, 19, "no protocol that is read"),
        ("routes: { patterns: users }\n", 1, 21, ""),
        ("select:\n\tinclude: []\n", 2, 2, "tabs"),
    ];
    for (text, line, column, what) in cases {
        let file = config_in(&folder, text);
        let path = file.display().to_string();
        for arguments in [&["run", "--config", &path][..], &["config", "check", &path]] {
            let output = tracer(arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?} {text}: {said}");
            assert!(said.contains(&place(&file, line, column)) && said.contains(what), "{text}: {said}");
        }
    }
    let missing = folder.path("nowhere.yaml").display().to_string();
    assert_eq!(tracer(&["run", "--config", &missing]).status.code(), Some(2));
    // A variable that is not there, and a port that somebody has.
    let unset = "export: { otlp: [ { url: 'http://127.0.0.1:1', headers: { a: '${NO_SUCH_ONE}' } } ] }\n";
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!("serve: {{ address: '{}' }}\n", taken.local_addr().expect("an address"));
    for (text, what) in [(unset, "no variable NO_SUCH_ONE"), (&taken, "cannot be served on")] {
        let output = tracer(&["run", "--config", &config_in(&folder, text).display().to_string()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(what), "{said}");
    }
}

/// What is printed to begin with is right, and what is right is said to be so.
#[test]
fn files_are_checked_and_shown() {
    let folder = Folder::new("agent-config");
    let example = tracer(&["config", "example"]);
    assert_eq!(example.status.code(), Some(0));
    let file = config_in(&folder, &String::from_utf8_lossy(&example.stdout)).display().to_string();
    let checked = tracer(&["config", "check", &file]);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(said.contains("right; it selects") && said.contains("nginx"), "{said}");
    let schema = tracer(&["config", "schema"]);
    let printed: Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    let kept = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.schema.json"));
    assert_eq!(printed, serde_json::from_str::<Value>(&kept.expect("the schema")).expect("JSON"));
    // A cgroup that is not there is a warning.
    let later =
        config_in(&folder, "select: { include: [ { cgroup: /no/such/cgroup } ] }\n").display().to_string();
    let checked = tracer(&["config", "check", &later]);
    assert_eq!(checked.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&checked.stderr).contains("WARNING: there is no cgroup"));
}

/// Two agents on one machine: each sees what it was told to see, and none the other.
#[test]
fn agents_run_beside_each_other() {
    let folder = Folder::new("agent-two");
    let server = Server::nginx(&folder);
    let text = format!(
        "select: {{ include: [ {{ command: [nginx, tracer] }} ] }}\nserve: {{ address: '127.0.0.1:{}' }}",
        free_port()
    );
    let one = Agent::start(&folder, &text);
    let two =
        Agent::start(&folder, &format!("select: {{ include: [ {{ pid: {} }} ] }}", server.process.id()));
    client(&server.address, "8", 200, 0, super::super::NGINX_KINDS);
    for agent in [&one, &two] {
        wait_for("all to be counted", || {
            (agent.metrics().sum(&format!("{SERVER}_count"), &[("job", "nginx")]) == 200.0).then_some(())
        });
    }
    two.finish().assert_complete();
    one.finish().assert_complete();
}

/// Where somebody starts again at once what ends, it stays and says why, and begins when the reason is gone.
#[test]
fn an_agent_that_cannot_begin_stays_where_it_is_told_to() {
    let folder = Folder::new("agent-stay");
    let server = Server::nginx(&folder);
    let address = format!("127.0.0.1:{}", free_port());
    let right = format!(
        "select: {{ include: [ {{ pid: {} }} ] }}\nserve: {{ address: '{address}' }}\n",
        server.process.id()
    );
    let file = config_in(&folder, "select:\n  inclde: []\n");
    let refuse = ["--refuse", "sock_send_length", "--refuse", "sock_recv_length", "--refuse", "sys_exit"];
    let said = |what: &str, status: u16| {
        wait_for(what, || {
            let answer = try_ask(&address, "GET", "/readyz", "")?;
            (answer.status == status).then_some(answer.text)
        })
    };
    let bare = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"", "sh"];
    for (text, before, arguments, reason) in [
        ("select:\n  inclde: []\n", &[][..], &[][..], "did you mean `include`?"),
        (&right, &[], &refuse, "bytes cannot be seen on this kernel"),
        (&right, &bare, &[], "BTF"),
        (
            "select: { include: [ { namespace: a } ] }\nkubernetes: { enabled: off }\n",
            &[],
            &[],
            "kubernetes.enabled is off",
        ),
    ] {
        fs::write(&file, text).expect("the file");
        let tracer = program("tracer");
        let words = before.iter().map(Path::new).chain([tracer.as_path()]).collect::<Vec<_>>();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("run").arg("--config").arg(&file).args(["--stay", &address]);
        command.args(arguments);
        let mut agent = Process::start(command.stdin(Stdio::null()).stderr(Stdio::piped()));
        let errors = Errors::of(&mut agent);
        let answer = said("it to say why", 503);
        assert!(answer.contains(reason), "{answer}");
        assert_eq!(ask(&address, "GET", "/healthz", "").status, 200);
        assert!(errors.said().contains(reason), "{}", errors.said());
        if arguments.is_empty() && before.is_empty() {
            fs::write(&file, &right).expect("the file");
            assert_eq!(said("it to begin", 200), "ready\n");
            agent.signal(Signal::TERM);
            assert_eq!(agent.wait().code(), Some(0), "{}", errors.said());
        } else {
            agent.signal(Signal::TERM);
            assert_eq!(agent.wait().code(), Some(4), "{}", errors.said());
        }
    }
}
