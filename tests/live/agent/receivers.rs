//! What is said of receivers of OTLP.

use std::time::{Duration, Instant};

use tracer_tests::{
    agent::Agent,
    collector::{Collector, Manner},
    process::{Folder, Server, client, wait_for},
};

use super::{Client, moods};
use crate::exports::{Authority, spans_in};

const SERVER: &str = "http_server_request_duration_seconds";

fn start(folder: &Folder, server: &Server, rest: &str) -> Agent {
    start_with(folder, server, rest, &[])
}

fn start_with(folder: &Folder, server: &Server, rest: &str, variables: &[(&str, &str)]) -> Agent {
    let select = format!("select: {{ include: [ {{ pid: {} }} ] }}\n", server.process.id());
    Agent::start_with(folder, &format!("{select}{rest}\n"), variables)
}

fn ask(server: &Server, requests: usize) {
    let mut client = Client::new(&server.address);
    for number in 0..requests {
        client.get(&format!("/get/{number}"));
    }
}

/// With a variable of the environment in them, which nobody is shown.
#[test]
fn headers_are_sent_and_shown_to_nobody() {
    let folder = Folder::new("receiver-headers");
    let server = moods(&folder, "moods", None);
    let receiver = Collector::start();
    let rest = format!(
        "export: {{ otlp: [ {{ url: '{}', metrics: false, compression: gzip, \
         headers: {{ Authorization: 'Bearer ${{TRACER_TEST_TOKEN}}', x-tenant: shop }} }} ] }}",
        receiver.url()
    );
    let agent = start_with(&folder, &server, &rest, &[("TRACER_TEST_TOKEN", "sesame")]);
    ask(&server, 20);
    wait_for("the spans", || (receiver.received().taken == 20).then_some(()));
    let headers = receiver.received().headers;
    assert_eq!((headers["authorization"].as_str(), headers["x-tenant"].as_str()), ("Bearer sesame", "shop"));
    assert_eq!(headers["content-encoding"], "gzip");
    assert!(headers["request"].starts_with("POST /v1/traces"), "{headers:?}");
    let shown = agent.get("/debug/config").text;
    assert!(shown.contains("***") && !shown.contains("sesame") && !shown.contains("TOKEN"), "{shown}");
    let ended = agent.finish();
    ended.assert_complete();
    assert!(!ended.errors.contains("sesame"), "{}", ended.errors);
}

/// Spans to one, metrics to another, often to a third and seldom to a fourth.
#[test]
fn each_gets_what_is_meant_for_it_and_when() {
    let folder = Folder::new("receiver-kinds");
    let server = moods(&folder, "moods", None);
    let [spans, metrics, often, seldom] = std::array::from_fn(|_| Collector::start());
    let rest = format!(
        "export:\n  otlp:\n    - {{ url: '{}', metrics: false }}\n    - {{ url: '{}', traces: false, interval: 1s }}\n\
         \x20   - {{ url: '{}', traces: false, interval: 200ms }}\n    - {{ url: '{}', traces: false, interval: 1h }}",
        spans.url(),
        metrics.url(),
        often.url(),
        seldom.url()
    );
    let agent = start(&folder, &server, &rest);
    ask(&server, 20);
    agent.wait_counted(SERVER, 20);
    wait_for("the spans", || (spans.received().taken == 20).then_some(()));
    wait_for("metrics, again and again", || {
        let [some, more] = [&metrics, &often].map(|receiver| receiver.received().metrics);
        (some >= 3 && more >= 6).then_some(())
    });
    let seldom_before = seldom.received().metrics;
    let often_before = often.received().metrics;
    agent.finish().assert_complete();
    // One at the start, in as many requests as the last one has at the end.
    assert!(seldom_before * 3 <= often_before, "{seldom_before} of {often_before}");
    assert_eq!(spans.received().metrics, 0);
    for receiver in [&metrics, &often, &seldom] {
        assert_eq!(receiver.received().taken, 0);
        let counted = receiver.points().metrics().sum("http.server.request.duration.count", &[]);
        assert_eq!(counted, 20.0);
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "it measures how long is waited")]
fn a_receiver_has_so_long() {
    let folder = Folder::new("receiver-timeout");
    let server = moods(&folder, "moods", None);
    // Until the agent says that it is not taken: after a second, and after ten by default.
    let mut took = ["timeout: 1s, ", ""].map(|timeout| {
        let receiver = Collector::start();
        receiver.behave(Manner::Silent);
        let rest =
            format!("export: {{ otlp: [ {{ {timeout}metrics: false, url: '{}' }} ] }}", receiver.url());
        let agent = start(&folder, &server, &rest);
        ask(&server, 5);
        let began = Instant::now();
        wait_for("it to give up", || agent.get("/readyz").text.contains("does not take").then_some(()));
        let took = began.elapsed();
        // What was not taken is sent again.
        receiver.behave(Manner::Take);
        wait_for("the spans", || (receiver.received().taken == 5).then_some(()));
        wait_for("all to be well", || (agent.get("/readyz").text == "ready\n").then_some(()));
        agent.finish().assert_complete();
        took
    });
    println!("{took:?}");
    took.sort();
    assert!(took[0] < Duration::from_secs(9) && took[1] >= Duration::from_secs(9), "{took:?}");
}

#[test]
fn certificates_are_used() {
    let folder = Folder::new("receiver-tls");
    let server = moods(&folder, "moods", None);
    let authority = Authority::new("receiver-authority");
    let [ca, certificate, key] =
        ["ca.pem", "client.pem", "client.key"].map(|name| authority.path(name).display().to_string());
    let own = format!(", client_certificate: {certificate}, client_key: {key}");
    // Who is let in: known ones alone, and who trusts the receiver.
    for (trust, own, arrive) in [
        (format!(", certificate: {ca}"), own.as_str(), 10),
        (format!(", certificate: {ca}"), "", 0),
        (String::new(), &own, 0),
    ] {
        let receiver = authority.server(true);
        let rest = format!(
            "export: {{ otlp: [ {{ url: 'https://{}', metrics: false{trust}{own} }} ] }}",
            receiver.address
        );
        let agent = start(&folder, &server, &rest);
        ask(&server, 10);
        agent.wait_counted(SERVER, 10);
        if arrive == 0 {
            wait_for("a word on it", || agent.get("/readyz").text.contains("does not take").then_some(()));
        } else {
            wait_for("the spans", || (spans_in(&receiver.log) == arrive).then_some(()));
        }
        agent.finish().assert_complete();
        assert_eq!(spans_in(&receiver.log), arrive, "{rest}");
    }
    let missing = folder.path("nowhere.pem").display().to_string();
    let text = format!("export: {{ otlp: [ {{ url: 'https://127.0.0.1:1', certificate: {missing} }} ] }}");
    let file = tracer_tests::agent::config_in(&folder, &text).display().to_string();
    let output = std::process::Command::new(tracer_tests::process::program("tracer"))
        .args(["config", "check", &file])
        .output()
        .expect("the tracer");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.pem"));
}

/// Over OTLP they are; the page has those that Prometheus knows.
#[test]
fn buckets_are_exponential_where_that_is_said() {
    let folder = Folder::new("receiver-exponential");
    let server = Server::nginx(&folder);
    for (said, exponential) in [("explicit", 0.0), ("exponential", 200.0)] {
        let receiver = Collector::start();
        let rest = format!(
            "metrics: {{ histograms: {said} }}\nexport: {{ otlp: [ {{ url: '{}', traces: false, interval: 300ms }} ] }}",
            receiver.url()
        );
        let agent = start(&folder, &server, &rest);
        client(&server.address, "8", 200, 0, super::super::NGINX_KINDS);
        let page = agent.wait_counted(SERVER, 200);
        agent.finish().assert_complete();
        let metrics = receiver.points().metrics();
        let names = ["http.server.request.duration.exponential.count", "http.server.request.duration.count"];
        let counted = names.map(|name| metrics.sum(name, &[]));
        assert_eq!(counted, [exponential, 200.0 - exponential], "{said}");
        assert_eq!(page.sum(&format!("{SERVER}_bucket"), &[("le", "+Inf")]), 200.0);
    }
}
