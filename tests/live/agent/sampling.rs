//! Which traces are sent: what is to be kept is, whatever the share; and all agents keep the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use serde_json::Value;
use tracer_tests::{
    agent::Agent,
    collector::Collector,
    process::{Folder, Process, Server, assert_same, count, python, wait_for},
};

use super::{Client, by, lines, moods};

const SERVER: &str = "http_server_request_duration_seconds";

fn start(folder: &Folder, server: &Server, sampling: &str) -> Agent {
    Agent::start(
        folder,
        &format!(
            "select: {{ include: [ {{ pid: {} }} ] }}\nsampling: {{ {sampling} }}\nexport: {{ print: json }}\n\
             routes: {{ patterns: ['/{{kind}}/{{what}}/{{id}}'] }}",
            server.process.id()
        ),
    )
}

/// Ends the agent once it has counted so many. Returns the spans that were kept.
fn kept(agent: Agent, requests: usize) -> Vec<Value> {
    let metrics = agent.wait_counted(SERVER, requests);
    let ended = agent.finish();
    ended.assert_complete();
    assert!(metrics.sum("tracer_traces_kept_total", &[]) <= requests as f64);
    ended.spans
}

/// `METHOD PATH STATUS`
fn told(spans: &[Value]) -> BTreeMap<String, usize> {
    count(spans.iter().map(|span| {
        let attributes = &span["attributes"];
        let text = |key: &str| attributes[key].as_str().unwrap_or("-").to_owned();
        let (method, path) = (text("http.request.method"), text("url.path"));
        format!("{method} {path} {}", attributes["http.response.status_code"])
    }))
}

fn reasons(spans: &[Value]) -> BTreeSet<&str> {
    spans.iter().filter_map(|span| span["attributes"]["tracer.sampling.reason"].as_str()).collect()
}

const NONE: &str = "share: 0, errors: false, slowest: 0, first: false";

#[test]
fn nothing_is_sent_if_nothing_is_to_be() {
    let folder = Folder::new("sample-none");
    let server = moods(&folder, "moods", None);
    let agent = start(&folder, &server, NONE);
    let mut client = Client::new(&server.address);
    for number in 0..100 {
        client.get(&format!("/status/{}/{number}", if number % 3 == 0 { 500 } else { 200 }));
    }
    assert!(kept(agent, 100).is_empty());
}

/// All errors, over OTLP and in print; nothing else. The metrics count all.
#[test]
fn every_error_is_sent() {
    let folder = Folder::new("sample-errors");
    let server = moods(&folder, "moods", None);
    let receiver = Collector::start();
    let agent = Agent::start(
        &folder,
        &format!(
            "select: {{ include: [ {{ pid: {} }} ] }}\nexport: {{ print: json, otlp: [ {{ url: '{}' }} ] }}\n\
             sampling: {{ share: 0, errors: true, slowest: 0, first: false }}\n",
            server.process.id(),
            receiver.url()
        ),
    );
    let mut clients: Vec<Client> = (0..4).map(|_| Client::new(&server.address)).collect();
    for number in 0..1000 {
        let status = [200, 404, 200, 503, 200, 204, 201][number % 7];
        assert_eq!(clients[number % 4].get(&format!("/status/{status}/{number}")), status);
    }
    let log = lines(&server, 1000);
    let errors: Vec<_> = log.into_iter().filter(|words| words[2] == "503").collect();
    let spans = kept(agent, 1000);
    assert_same(&told(&spans), &by(&errors, &[0, 1, 2]));
    assert_eq!(reasons(&spans), BTreeSet::from(["error"]));
    assert!(spans.iter().all(|span| span["attributes"]["tracer.sampling.probability"] == 1.0));
    let received = receiver.received();
    assert_eq!((received.taken as usize, received.spans.len()), (errors.len(), errors.len()));
}

/// The slowest of a route are among those that are sent, and few others.
#[test]
fn the_slowest_are_sent() {
    let folder = Folder::new("sample-slowest");
    let server = moods(&folder, "moods", None);
    let agent = start(&folder, &server, "share: 0, errors: false, slowest: 3, first: false");
    let mut client = Client::new(&server.address);
    let slow = [150, 200, 250];
    for number in 0..300 {
        let time = if number % 100 == 60 { slow[number / 100] } else { 0 };
        client.get(&format!("/slow/{time}/{number}"));
    }
    let spans = kept(agent, 300);
    let paths: BTreeSet<&str> =
        spans.iter().filter_map(|span| span["attributes"]["url.path"].as_str()).collect();
    for (round, time) in slow.iter().enumerate() {
        let path = format!("/slow/{time}/{}", round * 100 + 60);
        assert!(paths.contains(path.as_str()), "{path}: {paths:?}");
    }
    // About 3 (1 + ln(300 / 3)) of each minute.
    assert!(spans.len() < 80, "{}", spans.len());
    assert_eq!(reasons(&spans), BTreeSet::from(["slow"]));
}

#[test]
fn the_first_of_each_route_and_status_is_sent() {
    let folder = Folder::new("sample-first");
    let server = moods(&folder, "moods", None);
    let agent = start(&folder, &server, "share: 0, errors: false, slowest: 0, first: true");
    let mut client = Client::new(&server.address);
    for number in 0..200 {
        let status = [200, 204, 404, 500][number % 4];
        let method = if number % 8 < 4 { "GET" } else { "DELETE" };
        client.ask(method, &format!("/status/{status}/{number}"), "", b"");
    }
    let spans = kept(agent, 200);
    let first: BTreeMap<String, usize> = (0..8)
        .map(|number| {
            let status = [200, 204, 404, 500][number % 4];
            (format!("{} /status/{status}/{number} {status}", if number < 4 { "GET" } else { "DELETE" }), 1)
        })
        .collect();
    assert_same(&told(&spans), &first);
}

/// What a caller said of a trace is kept, or followed, or ignored.
#[test]
fn the_flag_of_the_caller_counts_as_it_is_said() {
    let folder = Folder::new("sample-flag");
    let server = moods(&folder, "moods", None);
    let ask = |client: &mut Client, number: usize, flag: Option<bool>| {
        let header = flag.map_or(String::new(), |flag| {
            format!("traceparent: 00-{:032x}-{:016x}-0{}\r\n", number + 1, number + 1, u8::from(flag))
        });
        let name = flag.map_or("silent", |flag| if flag { "sampled" } else { "not" });
        client.ask("GET", &format!("/status/200/{name}-{number}"), &header, b"");
    };
    // Of 30 each: sampled, not sampled, without a word.
    for (said, share, expected) in [
        ("ignore", 0, [0, 0, 0]),
        ("keep", 0, [30, 0, 0]),
        ("keep", 1, [30, 30, 30]),
        ("follow", 1, [30, 0, 30]),
    ] {
        let rules = format!("share: {share}, errors: false, slowest: 0, first: false, sampled_flag: {said}");
        let agent = start(&folder, &server, &rules);
        let mut client = Client::new(&server.address);
        for number in 0..30 {
            for flag in [Some(true), Some(false), None] {
                ask(&mut client, number * 3 + flag.map_or(0, |flag| 1 + usize::from(flag)), flag);
            }
        }
        let spans = kept(agent, 90);
        let seen = ["/sampled-", "/not-", "/silent-"].map(|name| {
            let paths = spans.iter().filter_map(|span| span["attributes"]["url.path"].as_str());
            paths.filter(|path| path.contains(name)).count()
        });
        assert_eq!(seen, expected, "{said} with share {share}");
    }
}

/// No more than so many a second, and what was over that is counted.
#[test]
fn a_limit_per_second_holds() {
    let folder = Folder::new("sample-rate");
    let server = Server::nginx(&folder);
    let agent = start(&folder, &server, "share: 1, errors: false, slowest: 0, first: false, per_second: 20");
    let url = format!("http://{}/index.html", server.address);
    tracer_tests::process::run(Command::new("hey").args(["-z", "4s", "-c", "4", "-q", "100", &url]));
    let requests = server.at_rest().values().sum::<usize>();
    assert!(requests > 400, "{requests}");
    let metrics = agent.wait_counted(SERVER, requests);
    let metrics = {
        drop(metrics);
        agent.wait_metrics("all to be decided", |metrics| {
            let [kept, dropped] =
                ["kept", "dropped"].map(|what| metrics.sum(&format!("tracer_traces_{what}_total"), &[]));
            (kept + dropped) as usize == requests
        })
    };
    assert!(metrics.sum("tracer_traces_dropped_total", &[("reason", "rate_limited")]) > 0.0);
    let ended = agent.finish();
    ended.assert_complete();
    let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
    for span in &ended.spans {
        let end: u64 = span["endTimeUnixNano"].as_str().and_then(|end| end.parse().ok()).expect("a time");
        *seconds.entry(end / 1_000_000_000).or_default() += 1;
    }
    assert!(!ended.spans.is_empty() && ended.spans.len() <= 20 * (seconds.len() + 2), "{seconds:?}");
    assert_eq!(metrics.sum("tracer_traces_kept_total", &[]) as usize, ended.spans.len());
}

const CALLER: &str = "
import http.client, secrets, sys
connection = http.client.HTTPConnection(sys.argv[1])
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    parent = '00-%s-%s-01' % (secrets.token_hex(16), secrets.token_hex(8))
    connection.request('GET', '/status/200/%d' % number, headers={'traceparent': parent})
    connection.getresponse().read()
print('done', flush=True)
sys.stdin.readline()
";

/// One agent at each end of the same calls, as on two machines: they keep the same traces.
#[test]
fn agents_keep_the_same_traces() {
    let folder = Folder::new("sample-two");
    let server = moods(&folder, "moods", None);
    let mut caller = Command::new(python());
    caller.args(["-c", CALLER, &server.address, "1000"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut caller = caller.spawn().expect("a caller");
    let mut line = caller.stdin.take().expect("a pipe");
    let caller = Process::of(caller);
    let agents = [server.process.id(), caller.id()].map(|process| {
        Agent::start(
            &folder,
            &format!(
                "select: {{ include: [ {{ pid: {process} }} ] }}\nexport: {{ print: json }}\n\
                 sampling: {{ share: 0.3, errors: false, slowest: 0, first: false }}"
            ),
        )
    });
    std::io::Write::write_all(&mut line, b"go\n").expect("it reads");
    let [callee, caller_agent] = agents;
    callee.wait_counted(SERVER, 1000);
    caller_agent.wait_counted("http_client_request_duration_seconds", 1000);
    let kept = [callee, caller_agent].map(|agent| {
        wait_for("all to be decided", || {
            (agent.metrics().sum("tracer_traces_undecided", &[]) == 0.0).then_some(())
        });
        let ended = agent.finish();
        ended.assert_complete();
        let traces = ended.spans.iter().map(|span| span["traceId"].as_str().expect("an id").to_owned());
        traces.collect::<BTreeSet<String>>()
    });
    assert_eq!(kept[0], kept[1]);
    // Of 1000 with 0.3: 14 is one standard deviation.
    assert!((220..=380).contains(&kept[0].len()), "{}", kept[0].len());
}
