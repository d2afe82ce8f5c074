//! Whom the agent traces: each kind of condition, rules beside each other, exclusions, and what comes later.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use tracer_tests::{
    agent::Agent,
    process::{Folder, Server, assert_same, free_port, run, wait_for},
};

use super::{Client, moods, port};
use crate::selection::{Cgroup, Container};

const SERVER: &str = "http_server_request_duration_seconds";
const CLIENT: &str = "http_client_request_duration_seconds";

/// So many requests with this path, which says to whom they went.
fn ask(server: &Server, name: &str, count: usize) {
    let mut client = Client::new(&server.address);
    for _ in 0..count {
        assert_eq!(client.get(&format!("/{name}")), 200);
    }
}

/// Requests by path, as printed spans tell them.
fn seen(agent: Agent, kind: &str) -> BTreeMap<String, usize> {
    let ended = agent.finish();
    ended.assert_complete();
    let paths = ended.spans.iter().filter(|span| span["kind"] == kind).map(|span| {
        let attributes = &span["attributes"];
        match attributes["url.path"].as_str() {
            Some(path) => path.to_owned(),
            None => {
                let url = attributes["url.full"].as_str().expect("a URL");
                format!("/{}", url.splitn(4, '/').nth(3).unwrap_or_default())
            }
        }
    });
    tracer_tests::process::count(paths)
}

fn truth(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(path, count)| (format!("/{path}"), *count)).collect()
}

fn start(folder: &Folder, select: &str) -> Agent {
    Agent::start(folder, &format!("select:\n{select}\nexport: {{ print: json }}\n"))
}

/// A copy of a program under another name.
fn copy(program: &str, to: &Path) {
    fs::copy(fs::canonicalize(program).expect("the program"), to).expect("a copy");
    run(Command::new("chmod").arg("755").arg(to));
}

/// No API is asked; the folder of one that comes later is chosen before its first process.
#[test]
fn containers_are_chosen_as_they_come() {
    let folder = Folder::new("agent-containers");
    let server = Server::nginx_with(&folder, "location / { return 200 ok; }");
    let agent = start(&folder, "  include: [ { container: web-* } ]\n  exclude: [ { container: web-not } ]");
    // Those of the rules, whichever of the two it is.
    let chosen = |count: f64| {
        agent.wait_metrics("the containers", |metrics| {
            metrics.sum("tracer_table_entries", &[("table", "cgroups")]) == count
        });
    };
    chosen(0.0);
    let get = |container: &Container, path: &str| {
        let url = format!("http://{}/{path}", server.address);
        run(&mut container.group.command(&["curl", "-s", "-o", "/dev/null", &url]));
    };
    let mut containers = Vec::new();
    for (number, name) in ["web-1", "web-not", "web-2"].iter().enumerate() {
        let container = Container::new(name, 10 + number);
        chosen(1.0 + number as f64);
        (0..5).for_each(|_| get(&container, name));
        containers.push(container);
    }
    let other = Container::new("db", 20);
    get(&other, "db");
    containers.remove(0);
    chosen(2.0);
    assert_eq!(agent.metrics().sum("tracer_bytes_total", &[("bucket", "before selection")]), 0.0);
    assert_eq!(seen(agent, "CLIENT"), truth(&[("web-1", 5), ("web-2", 5)]));
}

/// Each kind alone, in five rules at once; of six servers the last meets none.
#[test]
fn each_kind_of_condition_chooses() {
    let folder = Folder::new("agent-kinds");
    let servers: Vec<Server> = (0..4).map(|n| moods(&folder, &format!("moods-{n}"), None)).collect();
    let (nginx, go) = (Server::nginx_with(&folder, "location / { return 200 ok; }"), Server::go(&folder));
    let group = Cgroup::new("agent-kinds");
    fs::write(group.path.join("cgroup.procs"), servers[2].process.id().to_string()).expect("it moves");
    let agent = start(
        &folder,
        &format!(
            "  include:\n    - pid: {}\n    - port: [{}]\n    - cgroup: {}\n    - command: nginx\n    - exe: {}\n",
            servers[0].process.id(),
            port(&servers[1]),
            group.name(),
            folder.path("server-*").display(),
        ),
    );
    for (name, server) in ["by-pid", "by-port", "by-cgroup", "not-at-all"].iter().zip(&servers) {
        ask(server, name, 10);
    }
    ask(&nginx, "by-command", 10);
    let mut client = Client::new(&go.address);
    for _ in 0..10 {
        client.get("/by-exe");
    }
    agent.wait_counted(SERVER, 50);
    let expected = ["by-pid", "by-port", "by-cgroup", "by-command", "by-exe"].map(|name| (name, 10));
    assert_same(&seen(agent, "SERVER"), &truth(&expected));
    drop(servers);
}

/// The same, the other way round: of six that a rule includes, those two are left that no other excludes.
#[test]
fn each_kind_of_condition_excludes() {
    let folder = Folder::new("agent-excludes");
    let servers: Vec<Server> = (0..4).map(|n| moods(&folder, &format!("moods-{n}"), None)).collect();
    let (nginx, go) = (Server::nginx_with(&folder, "location / { return 200 ok; }"), Server::go(&folder));
    let group = Cgroup::new("agent-excludes");
    fs::write(group.path.join("cgroup.procs"), servers[2].process.id().to_string()).expect("it moves");
    let ports: Vec<String> =
        servers.iter().chain([&nginx, &go]).map(|server| port(server).to_string()).collect();
    let agent = start(
        &folder,
        &format!(
            "  include:\n    - port: [{}]\n  exclude:\n    - pid: {}\n    - cgroup: {}\n    - command: ngin?\n\
             \x20   - exe: {}\n",
            ports.join(", "),
            servers[0].process.id(),
            group.name(),
            folder.path("server-go").display(),
        ),
    );
    for (name, server) in ["pid", "left-1", "cgroup", "left-2"].iter().zip(&servers) {
        ask(server, name, 10);
    }
    ask(&nginx, "command", 10);
    let mut client = Client::new(&go.address);
    for _ in 0..10 {
        client.get("/exe");
    }
    agent.wait_counted(SERVER, 20);
    assert_same(&seen(agent, "SERVER"), &truth(&[("left-1", 10), ("left-2", 10)]));
    drop(servers);
}

/// A process that meets one condition of one rule and another of another rule meets neither; and who meets an
/// exclusion is not traced, whatever else it meets.
#[test]
fn rules_do_not_mix_and_exclusions_win() {
    let folder = Folder::new("agent-rules");
    let (one, two, three) =
        (moods(&folder, "one", None), moods(&folder, "two", None), moods(&folder, "three", None));
    let go = Server::go(&folder);
    // `one` has the name of the first rule and the port of the second.
    let agent = start(
        &folder,
        &format!(
            "  include:\n\
             \x20   - {{ command: 'python*', port: {} }}\n\
             \x20   - {{ command: server-go, port: [{}, {}] }}\n\
             \x20   - {{ command: 'python*', port: {} }}\n\
             \x20 exclude:\n\
             \x20   - port: {}\n",
            port(&two),
            port(&one),
            port(&go),
            port(&three),
            port(&three),
        ),
    );
    ask(&one, "mixed", 10);
    ask(&two, "first", 10);
    ask(&three, "excluded", 10);
    let mut client = Client::new(&go.address);
    for _ in 0..10 {
        client.get("/second");
    }
    agent.wait_counted(SERVER, 20);
    for (server, word) in
        [(&one, "not traced"), (&two, "traced by"), (&three, "not traced"), (&go, "traced by")]
    {
        let answer = agent.get(&format!("/debug/explain/{}", server.process.id()));
        assert!(answer.text.contains(word), "{word}: {}", answer.text);
    }
    assert_same(&seen(agent, "SERVER"), &truth(&[("first", 10), ("second", 10)]));
}

/// Whoever starts after the agent, chosen by a name and not by another, is seen from its first byte.
#[test]
fn who_starts_later_is_seen_from_the_first_byte() {
    let folder = Folder::new("agent-later");
    let server = moods(&folder, "moods", None);
    let (chosen, other) = (folder.path("later-client"), folder.path("other-client"));
    copy("/usr/bin/curl", &chosen);
    copy("/usr/bin/curl", &other);
    let later = free_port();
    let agent =
        start(&folder, &format!("  include:\n    - command: [later-client, no-such]\n    - port: {later}\n"));
    assert!(agent.said().contains("no process matches"), "{}", agent.said());
    assert!(agent.get("/readyz").text.contains("no process matches"));
    for number in 0..100 {
        for (program, path) in [(&chosen, "chosen"), (&other, "other")] {
            let url = format!("http://{}/{path}/{number}", server.address);
            run(Command::new(program).args(["-s", "-o", "/dev/null", &url]));
        }
    }
    // A server that will listen on the port: its first requests come as soon as it does.
    let second = moods(&folder, "second", Some(later));
    ask(&second, "by-port", 20);
    agent.wait_counted(CLIENT, 100);
    let metrics = agent.wait_counted(SERVER, 20);
    assert_eq!(metrics.sum("tracer_bytes_total", &[("bucket", "before selection")]), 0.0);
    assert_eq!(metrics.sum("tracer_processes_chosen_total", &[]), 101.0, "a hundred clients and a server");
    let ended = agent.finish();
    ended.assert_complete();
    let clients = ended.spans.iter().filter(|span| span["kind"] == "CLIENT");
    let urls: std::collections::BTreeSet<String> =
        clients.map(|span| span["attributes"]["url.full"].as_str().expect("a URL").to_owned()).collect();
    assert_eq!(urls.len(), 100);
    assert!(urls.iter().all(|url| url.contains("/chosen/")), "{:?}", urls.first());
}

/// A cgroup that nobody has made yet is looked for until it is there; then who is in it is traced.
#[test]
fn a_cgroup_that_comes_later_is_found() {
    let folder = Folder::new("agent-cgroup");
    let group = Cgroup::of("agent-later");
    let server = moods(&folder, "moods", None);
    let agent = start(&folder, &format!("  include:\n    - cgroup: {}\n", group.name()));
    assert!(agent.said().contains("it is looked for again"), "{}", agent.said());
    assert!(agent.get("/readyz").text.contains("there is no cgroup"), "{}", agent.get("/readyz").text);
    ask(&server, "before", 5);
    fs::create_dir(&group.path).expect("a cgroup");
    fs::write(group.path.join("cgroup.procs"), server.process.id().to_string()).expect("it moves");
    wait_for("the cgroup to be found", || {
        (!agent.get("/readyz").text.contains("there is no cgroup")).then_some(())
    });
    let explain = format!("/debug/explain/{}", server.process.id());
    wait_for("the process to be chosen", || agent.get(&explain).text.contains("traced by").then_some(()));
    ask(&server, "after", 10);
    agent.wait_counted(SERVER, 10);
    fs::write(group.root.join("cgroup.procs"), server.process.id().to_string()).expect("it moves back");
    assert_same(&seen(agent, "SERVER"), &truth(&[("after", 10)]));
}
