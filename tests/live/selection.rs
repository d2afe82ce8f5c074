//! Who is traced: by name, file, port and cgroup, alone and together, running already or started later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use tracer_tests::process::{
    Folder, Process, Server, Tracer, assert_same, client, count, program, python, run, workload,
};

const KINDS: &str = "ok,empty";

fn start(arguments: &[&str]) -> Tracer {
    Tracer::start("trace", arguments)
}

/// A short-lived client, from its first byte, a thousand times.
#[test]
fn a_thousand_short_lived_commands_are_seen_from_their_first_byte() {
    let folder = Folder::new("thousand");
    let server = Server::go(&folder);
    let tracer = start(&["--command", "curl"]);
    let script =
        format!("for n in $(seq $1 $2); do curl -s -o /dev/null http://{}/ok/$n; done", server.address);
    let halves = [["1", "500"], ["501", "1000"]]
        .map(|[from, to]| Process::start(Command::new("bash").args(["-c", &script, "bash", from, to])));
    for mut half in halves {
        assert!(half.wait().success());
    }
    let traced = tracer.finish();
    traced.assert_complete();
    assert!(!traced.ledger().contains("before selection"), "{}", traced.ledger());
    assert_same(&traced.exchanges("CLIENT"), &server.wait_logged(1000));
    assert_eq!(traced.spans.len(), 1000);
}

/// What only the agent can tell is decided soon, and what moved before is counted.
#[test]
fn patterns_choose_what_starts_later() {
    let folder = Folder::new("patterns");
    let server = Server::python(&folder);
    // The server is a python too: it is chosen when the tracer starts.
    let tracer = start(&["--command", "pytho[n]*", "--exe", "/*/python3*"]);
    client(&server.address, "keep-alive", 300, 0, KINDS);
    let truth = server.wait_logged(300);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    // The client needs longer to get going than the agent to decide.
    assert_same(&traced.exchanges("CLIENT"), &truth);
}

/// A process that moves bytes before anybody has decided.
#[test]
fn what_moves_before_the_choice_is_counted() {
    let folder = Folder::new("before");
    let server = Server::go(&folder);
    let tracer = start(&["--exe", "/usr/bin/cur?"]);
    for n in 0..50 {
        run(Command::new("curl").args([
            "-s",
            "-o",
            "/dev/null",
            &format!("http://{}/ok/{n}", server.address),
        ]));
    }
    let traced = tracer.finish();
    traced.assert_complete();
    let truth = server.wait_logged(50);
    for (exchange, times) in traced.exchanges("CLIENT") {
        assert!(times <= truth.get(&exchange).copied().unwrap_or_default(), "invented: {exchange}");
    }
    let seen = traced.spans.len();
    assert!(seen == 50 || traced.ledger().contains("before selection"), "{seen}: {}", traced.ledger());
}

/// A file is what it is, by whatever name it is run.
#[test]
fn a_file_is_known_by_any_name() {
    let folder = Folder::new("file");
    let server = Server::go(&folder);
    let copy = folder.path("client-copy");
    fs::copy(fs::canonicalize("/usr/bin/curl").expect("curl"), &copy).expect("a copy");
    run(Command::new("chmod").arg("755").arg(&copy));
    let link = folder.path("a-link");
    std::os::unix::fs::symlink(&copy, &link).expect("a link");
    let tracer = start(&["--exe", &copy.display().to_string()]);
    let url = |path: &str| format!("http://{}/ok/{path}", server.address);
    let run_as = |file: PathBuf, path: &str| {
        run(Command::new(file).args(["-s", "-o", "/dev/null", &url(path)]));
    };
    run_as(copy.clone(), "whole-path");
    run_as(link, "link");
    run(Command::new("sh")
        .current_dir(folder.path(""))
        .args(["-c", &format!("./client-copy -s -o /dev/null {}", url("relative"))]));
    run_as("curl".into(), "another-file");
    let traced = tracer.finish();
    traced.assert_complete();
    let truth = count(
        ["whole-path", "link", "relative"]
            .iter()
            .map(|path| format!("GET /ok/{path} 200 {}", 9 + path.len())),
    );
    let logged: BTreeMap<String, usize> =
        server.wait_logged(4).into_iter().filter(|(line, _)| !line.contains("another")).collect();
    assert_eq!(truth.len(), logged.len());
    assert_same(&traced.exchanges("CLIENT"), &logged);
}

/// One that listens already, and one that will, with its workers.
#[test]
fn a_port_chooses_who_listens_there() {
    let folder = Folder::new("port");
    let early = Server::python(&folder);
    let port = |server: &Server| server.address.rsplit(':').next().expect("a port").to_owned();
    let tracer = start(&["--port", &port(&early)]);
    client(&early.address, "8", 200, 0, KINDS);
    let truth = early.wait_logged(200);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    assert!(traced.exchanges("CLIENT").is_empty());

    let later = tracer_tests::process::free_port();
    let tracer = start(&["--port", &later.to_string()]);
    assert!(tracer.said().contains("WARNING: no process matches"), "{}", tracer.said());
    let log = folder.path("later.log");
    let mut command = Command::new(python());
    command.arg(workload("prefork.py")).arg(&log).arg(later.to_string());
    let server = Server::start(command, log);
    client(&server.address, "8", 400, 0, KINDS);
    let truth = server.wait_logged(400);
    let traced = tracer.finish();
    traced.assert_complete();
    assert!(!traced.ledger().contains("before selection"), "{}", traced.ledger());
    assert_same(&traced.exchanges("SERVER"), &truth);
}

/// A cgroup that is empty when it is chosen; who is in another is not seen.
#[test]
fn a_cgroup_chooses_who_joins_it() {
    let folder = Folder::new("cgroup");
    let server = Server::go(&folder);
    let group = Cgroup::new("chosen");
    let below = group.path.join("below");
    fs::create_dir(&below).expect("a cgroup below");
    let other = Cgroup::new("other");
    let tracer = start(&["--cgroup", &group.name()]);
    let url = |path: &str| format!("http://{}/ok/{path}", server.address);
    for (folder, path) in [(&group.path, "joined"), (&below, "below"), (&other.path, "elsewhere")] {
        let script = format!(
            "echo $$ > {}/cgroup.procs && curl -s -o /dev/null {} && sh -c 'curl -s -o /dev/null {}'; \
             echo $$ > {}/cgroup.procs",
            folder.display(),
            url(path),
            url(&format!("{path}-child")),
            group.root.display(),
        );
        run(Command::new("sh").args(["-c", &script]));
    }
    let traced = tracer.finish();
    traced.assert_complete();
    let logged: BTreeMap<String, usize> =
        server.wait_logged(6).into_iter().filter(|(line, _)| !line.contains("elsewhere")).collect();
    assert_eq!(logged.len(), 4);
    assert_same(&traced.exchanges("CLIENT"), &logged);
    fs::remove_dir(below).expect("the cgroup below is empty again");
}

/// By the name that its runtime has for it, or by its id. No runtime is needed: what one leaves on the disk is what
/// counts.
#[test]
fn a_container_is_chosen_by_its_name_or_its_id() {
    let folder = Folder::new("container");
    let server = Server::go(&folder);
    let (first, second) = (Container::new("db", 1), Container::new("web-1", 2));
    let others = [Container::new("web", 3), Container::new("other", 4)];
    let tracer = start(&["--container", "web-*", "--container", &first.id[..12]]);
    let url = |path: &str| format!("http://{}/ok/{path}", server.address);
    run(&mut first.group.command(&["curl", "-s", "-o", "/dev/null", &url("by-id")]));
    run(&mut second.group.command(&["curl", "-s", "-o", "/dev/null", &url("by-name")]));
    for other in &others {
        run(&mut other.group.command(&["curl", "-s", "-o", "/dev/null", &url("elsewhere")]));
    }
    let traced = tracer.finish();
    traced.assert_complete();
    let logged: BTreeMap<String, usize> =
        server.wait_logged(4).into_iter().filter(|(line, _)| !line.contains("elsewhere")).collect();
    assert_eq!(logged.len(), 2);
    assert_same(&traced.exchanges("CLIENT"), &logged);
    let names: BTreeSet<&str> =
        traced.spans.iter().filter_map(|span| span["resource"]["container.name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["db", "web-1"]));
}

/// A container as nerdctl leaves it: a bundle and a cgroup, which go with their owner.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) group: Cgroup,
    bundle: PathBuf,
}

impl Container {
    pub(super) fn new(name: &str, number: usize) -> Self {
        // Its first digits are its own.
        let id = format!("{number:08x}{:08x}", std::process::id()).repeat(4);
        let namespace = PathBuf::from("/run/containerd/io.containerd.runtime.v2.task/tracer-test");
        let bundle = namespace.join(&id);
        fs::create_dir_all(&bundle).expect("a bundle");
        let config = serde_json::json!({"ociVersion": "1.2.0", "annotations": {"nerdctl/name": name}});
        fs::write(bundle.join("config.json"), config.to_string()).expect("its configuration");
        let mut group = Cgroup::of("");
        group.path = group.root.join(format!("nerdctl-{id}.scope"));
        fs::create_dir(&group.path).expect("a cgroup");
        Self { id, group, bundle }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.bundle);
        // And what was made for it: not what somebody else still uses.
        for above in self.bundle.ancestors().skip(1).take(3) {
            let _ = fs::remove_dir(above);
        }
    }
}

/// A cgroup of the v2 tree, which goes with its owner.
pub(super) struct Cgroup {
    pub(super) root: PathBuf,
    pub(super) path: PathBuf,
}

impl Cgroup {
    pub(super) fn new(name: &str) -> Self {
        let group = Self::of(name);
        fs::create_dir(&group.path).expect("a cgroup");
        group
    }

    /// One that is yet to be made.
    pub(super) fn of(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let root = PathBuf::from(mount.and_then(|line| line.split(' ').nth(1)).expect("a cgroup v2 tree"));
        let path = root.join(format!("tracer-test-{}-{name}", std::process::id()));
        Self { root, path }
    }

    /// A command that is in it from its first byte on, and so are its children.
    pub(super) fn command(&self, command: &[&str]) -> Command {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        let mut wrapped = Command::new("sh");
        wrapped.args(["-c", &script, "sh"]).args(command);
        wrapped
    }

    /// In the tree.
    pub(super) fn name(&self) -> String {
        format!("/{}", self.path.file_name().expect("a name").to_string_lossy())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.path.join("below"));
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn kinds_have_to_hold_together_and_values_are_alternatives() {
    let folder = Folder::new("together");
    let (one, two) = (Server::python(&folder), Server::go(&folder));
    let port = |server: &Server| server.address.rsplit(':').next().expect("a port").to_owned();
    let (first, second) = (port(&one), port(&two));
    let lists = |arguments: &[&str]| matches(&list(arguments));
    assert_eq!(lists(&["--port", &first, "--port", &second]).len(), 2);
    assert_eq!(lists(&["--port", &first, "--port", &second, "--command", "server-go"]), [two.process.id()]);
    assert_eq!(lists(&["--port", &first, "--command", "python*"]), [one.process.id()]);
    assert_eq!(lists(&["--pid", &one.process.id().to_string(), "--port", &first]), [one.process.id()]);
    let tracer =
        start(&["--port", &first, "--port", &second, "--command", "server-go", "--command", "no-one"]);
    client(&one.address, "keep-alive", 20, 0, KINDS);
    client(&two.address, "keep-alive", 20, 0, KINDS);
    let truth = two.wait_logged(20);
    let traced = tracer.finish();
    traced.assert_complete();
    assert_same(&traced.exchanges("SERVER"), &truth);
    assert_eq!(traced.spans.len(), 20);
}

fn list(arguments: &[&str]) -> Output {
    Command::new(program("tracer")).arg("list").args(arguments).arg("--json").output().expect("tracer list")
}

fn matches(output: &Output) -> Vec<u32> {
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let pids = listing["matches"].as_array().expect("a list").iter();
    pids.map(|entry| entry["pid"].as_u64().expect("a pid") as u32).collect()
}

#[test]
fn what_nearly_matches_is_listed_with_the_reason() {
    let folder = Folder::new("nearly");
    let server = Server::go(&folder);
    let port = server.address.rsplit(':').next().expect("a port").to_owned();
    let nearly = |arguments: &[&str]| {
        let output = list(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("none of"), "{arguments:?}");
        let listing: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(listing["matches"].as_array().map(Vec::len), Some(0));
        let entry = listing["nearly"].as_array().expect("a list").iter();
        entry
            .filter(|entry| entry["pid"] == server.process.id())
            .map(|entry| entry["reason"].as_str().expect("a reason").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(nearly(&["--command", "server-og"]), ["its name is server-go"]);
    assert_eq!(nearly(&["--command", "server-go", "--port", "1"]), [format!("it listens on {port}")]);
    assert_eq!(nearly(&["--exe", "/elsewhere/server-go"]).len(), 1);
    assert!(nearly(&["--command", "nothing-like-it-at-all"]).is_empty());
    let found = list(&["--port", &port]);
    assert_eq!((found.status.code(), matches(&found)), (Some(0), vec![server.process.id()]));
}

#[test]
fn a_selection_that_matches_nothing_is_an_error() {
    let fails = |arguments: &[&str], status: i32, sentence: &str| {
        let output =
            Command::new(program("tracer")).args(arguments).stdin(Stdio::null()).output().expect("tracer");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(sentence), "{arguments:?}: {said}");
    };
    fails(&["trace", "--command", "no-such-command", "--for", "200ms"], 2, "no process matched");
    fails(&["trace", "--cgroup", "/no/such/cgroup", "--for", "200ms"], 2, "there is no cgroup");
    fails(&["trace", "--exe", "[", "--for", "200ms"], 2, "is no pattern");
    fails(&["list", "--command", "no-such-command"], 2, "none of");
    fails(&["list"], 2, "nothing is selected");
    fails(&["trace", "--pid", "1", "--", "true"], 2, "exclude each other");
}

/// Filters say what is shown: all else is seen, and counted.
#[test]
fn filters_leave_what_was_asked_for() {
    let folder = Folder::new("filters");
    let server = Server::python(&folder);
    let capture = folder.path("all.capture").display().to_string();
    let process = server.process.id().to_string();
    let tracer = Tracer::start("record", &["--pid", process.as_str(), "--out", &capture]);
    client(&server.address, "keep-alive", 100, 0, "ok,missing,fail,empty");
    let all = tracer.finish();
    all.assert_complete();
    let shown = |filter: &[&str]| {
        let output =
            run(Command::new(program("tracer")).args(["replay", &capture, "--output", "json"]).args(filter));
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    assert_eq!(shown(&[]), 100);
    assert_eq!(shown(&["--status", "5xx"]), 25);
    assert_eq!(shown(&["--status", "5xx", "--status", "404"]), 50);
    assert_eq!(shown(&["--status", "none"]), 0);
    assert_eq!(shown(&["--path", "/ok/*"]), 25);
    assert_eq!(shown(&["--path", "/ok/*", "--status", "5xx"]), 0);
    assert_eq!(shown(&["--slower", "1h"]), 0);
    assert_eq!(shown(&["--slower", "0"]), 100);
    assert_eq!(shown(&["--protocol", "http"]), 100);
    let peer = all.spans[0]["attributes"]["network.peer.port"].to_string();
    assert_eq!(shown(&["--peer-port", &peer]), 100);
    assert_eq!(shown(&["--peer-port", "1"]), 0);
    let tracer = Tracer::of(&[server.process.id()], &["--status", "4xx", "--count", "10"]);
    client(&server.address, "keep-alive", 200, 1000, "ok,missing,fail,empty");
    let traced = tracer.wait();
    assert_eq!(traced.spans.len(), 10);
    assert!(traced.spans.iter().all(|span| span["attributes"]["http.response.status_code"] == 404));
}
