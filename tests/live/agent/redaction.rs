//! What is told of requests and responses besides: what is named, and nothing else.

use std::process::{Command, Stdio};

use serde_json::Value;
use tracer_tests::{
    agent::Agent,
    process::{Folder, Server, program, run},
};

use super::{Client, moods};

const SERVER: &str = "http_server_request_duration_seconds";

/// Spans of two requests to a server, with what is said under `redaction`.
fn spans(folder: &Folder, redaction: &str) -> Vec<Value> {
    let server = moods(folder, "moods", None);
    let text = format!(
        "select: {{ include: [{{ pid: {} }}] }}\nredaction: {redaction}\nexport: {{ print: json }}\n",
        server.process.id()
    );
    let agent = Agent::start(folder, &text);
    let mut client = Client::new(&server.address);
    client.ask("GET", "/get/1?page=2&token=hidden-1", "X-Tenant: shop\r\nCookie: hidden-2\r\n", b"");
    client.ask("GET", "/get/2?token=hidden-1", "X-Tenant: a\r\nX-Tenant: b\r\n", b"");
    agent.wait_counted(SERVER, 2);
    let ended = agent.finish();
    ended.assert_complete();
    assert_eq!(ended.spans.len(), 2);
    let told = format!("{:?}", ended.spans);
    assert!(!told.contains("hidden"), "{told}");
    ended.spans
}

fn values<'a>(spans: &'a [Value], key: &str) -> Vec<Option<&'a str>> {
    spans.iter().map(|span| span["attributes"][key].as_str()).collect()
}

#[test]
fn query_values_that_are_named_are_told() {
    let folder = Folder::new("redaction-query");
    let named = spans(&folder, "{ query_values: page }");
    assert_eq!(values(&named, "url.query"), [Some("page=2&token=REDACTED"), Some("token=REDACTED")]);
    let none = spans(&folder, "{}");
    assert_eq!(values(&none, "url.query"), [Some("page=REDACTED&token=REDACTED"), Some("token=REDACTED")]);
}

#[test]
fn headers_that_are_named_are_told() {
    let folder = Folder::new("redaction-headers");
    let named = spans(&folder, "{ request_headers: [X-Tenant, absent], response_headers: content-length }");
    assert_eq!(values(&named, "http.request.header.x-tenant"), [Some("shop"), Some("a, b")]);
    assert_eq!(values(&named, "http.request.header.absent"), [None, None]);
    let lengths = values(&named, "http.response.header.content-length");
    let none = spans(&folder, "{}");
    assert_eq!(values(&none, "http.request.header.x-tenant"), [None, None]);
    assert_eq!(values(&none, "http.response.header.content-length"), [None, None]);
    assert!(lengths.iter().all(Option::is_some), "{lengths:?}");
}

#[test]
fn messages_of_grpc_are_told_if_that_is_said() {
    let folder = Folder::new("redaction-grpc");
    let log = folder.path("grpc.log");
    std::fs::write(&log, "").expect("a file");
    let mut command = Command::new(program("grpc-rust"));
    command.arg("server").arg(&log);
    let server = Server::start(command, log);
    let told = |said: bool| {
        let text = format!(
            "select: {{ include: [{{ pid: {} }}] }}\nredaction: {{ grpc_messages: {said} }}\nexport: {{ print: json }}\n",
            server.process.id()
        );
        let agent = Agent::start(&folder, &text);
        run(Command::new(program("grpc-rust"))
            .args(["client", &server.address, "/dev/null", "--calls", "51"])
            .stdout(Stdio::null()));
        agent.wait_metrics("all to be seen", |metrics| metrics.sum("tracer_exchanges_total", &[]) == 51.0);
        let ended = agent.finish();
        ended.assert_complete();
        let failed = |span: &&Value| {
            span["attributes"]["rpc.response.status_code"].as_str().is_some_and(|status| status != "OK")
        };
        let failed: Vec<&Value> = ended.spans.iter().filter(failed).collect();
        let told = failed.iter().filter(|span| span["attributes"]["tracer.rpc.message"].is_string()).count();
        (failed.len(), told)
    };
    let (failed, with_message) = told(true);
    assert!(failed > 0);
    assert_eq!(with_message, failed);
    assert_eq!(told(false), (failed, 0));
}
