//! Another configuration under load: nothing of what goes on is lost, and what is wrong changes nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use tracer_tests::{
    agent::{Agent, Way, place},
    collector::Collector,
    process::{Folder, Process, Server, assert_same, count, wait_for},
};

use super::{Client, moods};

const SERVER: &str = "http_server_request_duration_seconds";

/// Clients that send one request after the other on connections that stay, until they are told to end.
struct Load {
    ended: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(server: &Server, name: &str, clients: usize) -> Self {
        let (ended, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..clients).map(|client| {
            let mut connection = Client::new(&server.address);
            let (name, ended, sent) = (name.to_owned(), ended.clone(), sent.clone());
            std::thread::spawn(move || {
                for number in 0.. {
                    if ended.load(Relaxed) {
                        break;
                    }
                    let status = if number % 10 == 9 { 500 } else { 200 };
                    let path = format!("/status/{status}/{name}-{client}-{number}");
                    assert_eq!(connection.get(&path), status);
                    sent.fetch_add(1, Relaxed);
                }
            })
        });
        Self { threads: threads.collect(), ended, sent }
    }

    /// Until so many more are answered.
    fn goes_on(&self, more: usize) {
        let until = self.sent.load(Relaxed) + more;
        wait_for("the load to go on", || (self.sent.load(Relaxed) >= until).then_some(()));
    }

    fn end(self) -> usize {
        self.ended.store(true, Relaxed);
        for thread in self.threads {
            thread.join().expect("the load is answered");
        }
        self.sent.load(Relaxed)
    }
}

/// METHOD PATH STATUS of what moods.py logged.
fn logged(server: &Server, requests: usize) -> BTreeMap<String, usize> {
    let lines = super::lines(server, requests);
    super::by(&lines, &[0, 1, 2])
}

fn told(spans: &[serde_json::Value]) -> BTreeMap<String, usize> {
    count(spans.iter().map(|span| {
        let attributes = &span["attributes"];
        let text = |key: &str| attributes[key].as_str().unwrap_or("-").to_owned();
        let mut line = format!(
            "{} {} {}",
            text("http.request.method"),
            text("url.path"),
            attributes["http.response.status_code"]
        );
        for key in ["tracer.partial", "tracer.capture", "tracer.outcome"] {
            if let Some(what) = attributes[key].as_str() {
                line.push_str(&format!(" {what}"));
            }
        }
        line
    }))
}

fn config(processes: &[&Process], rest: &str) -> String {
    let rules: Vec<String> = processes.iter().map(|process| format!("{{ pid: {} }}", process.id())).collect();
    format!("select: {{ include: [ {} ] }}\nexport:\n  print: json\n{rest}", rules.join(", "))
}

/// Everything that can change does, by every way that a file changes, while the first server is asked all the
/// time: each of its requests is there once and whole, before and after each change.
#[test]
fn nothing_is_lost_while_the_configuration_changes() {
    let folder = Folder::new("agent-reload");
    let (one, two) = (moods(&folder, "one", None), moods(&folder, "two", None));
    let receivers = [Collector::start(), Collector::start()];
    let [first, second] = receivers
        .each_ref()
        .map(|receiver| format!("  otlp: [ {{ url: '{}', metrics: false }} ]\n", receiver.url()));
    let agent = Agent::start(&folder, &config(&[&one.process], &first));
    let load = Load::start(&one, "one", 4);
    load.goes_on(100);
    let other = Load::start(&two, "two", 2);
    other.goes_on(50);
    assert_eq!(agent.metrics().sum("tracer_processes_chosen_total", &[]), 1.0);

    // Sampling that keeps all the same, by every way; then routes, receivers, and one process more.
    let errors = format!("{first}sampling: {{ share: 1, first: false }}\n");
    let routes = format!("{second}routes: {{ patterns: ['/status/{{code}}/{{id}}'] }}\n");
    let changes = [
        (Way::Swap, config(&[&one.process], &errors)),
        (Way::Swap, config(&[&one.process], &first)),
        (Way::Signal, config(&[&one.process], &second)),
        (Way::Rename, config(&[&one.process], &routes)),
        (Way::Rename, config(&[&one.process, &two.process], &routes)),
    ];
    for (way, text) in &changes {
        load.goes_on(100);
        agent.change(text, *way);
        load.goes_on(100);
    }
    // The second server is seen from here on; joined, or from the first whole request.
    let before = other.sent.load(Relaxed);
    other.goes_on(100);
    let sent = load.end();
    let sent_other = other.end();
    let truth = logged(&one, sent);
    let truth_other = logged(&two, sent_other);
    wait_for("all to be told", || {
        let of_one = agent.printed().iter().filter(|span| is_of(span, "/one-")).count();
        (of_one >= sent).then_some(())
    });
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tracer_config_reloads_total", &[("result", "taken")]), 5.0);
    assert_eq!(metrics.sum("tracer_config_reloads_total", &[("result", "refused")]), 0.0);
    assert!(metrics.sum(&format!("{SERVER}_count"), &[("http_route", "/status/{code}/{id}")]) > 0.0);
    let ended = agent.finish();
    ended.assert_complete();
    let (ours, theirs): (Vec<_>, Vec<_>) = ended.spans.into_iter().partition(|span| is_of(span, "/one-"));
    // Nothing is said to be partial or joined.
    assert_same(&told(&ours), &truth);
    let seen = told(&theirs);
    assert!(seen.iter().all(|(line, times)| truth_other.get(line) == Some(times)), "{seen:?}");
    let since = sent_other - before;
    assert!(theirs.len() >= since, "{} of at least {since}", theirs.len());
    // Each span went to one of the receivers, once.
    let received = receivers.each_ref().map(Collector::received);
    assert!(
        received
            .iter()
            .all(|received| received.taken > 0 && received.spans.values().all(|times| *times == 1))
    );
    let taken: u64 = received.iter().map(|received| received.taken).sum();
    assert_eq!(taken as usize, ours.len() + theirs.len(), "{}", ended.errors);
    assert!(received[0].spans.keys().all(|id| !received[1].spans.contains_key(id)));
}

fn is_of(span: &serde_json::Value, name: &str) -> bool {
    span["attributes"]["url.path"].as_str().is_some_and(|path| path.contains(name))
}

/// Who is not chosen any more is not seen any more, and the others go on.
#[test]
fn who_is_taken_out_is_not_seen_any_more() {
    let folder = Folder::new("agent-less");
    let (one, two) = (moods(&folder, "one", None), moods(&folder, "two", None));
    let agent = Agent::start(&folder, &config(&[&one.process, &two.process], ""));
    let loads = [Load::start(&one, "one", 2), Load::start(&two, "two", 2)];
    loads.iter().for_each(|load| load.goes_on(100));
    agent.change(&config(&[&one.process], ""), Way::Rename);
    let counted = |name: &str| agent.printed().iter().filter(|span| is_of(span, name)).count();
    let explain = agent.get(&format!("/debug/explain/{}", two.process.id()));
    assert!(explain.text.contains("not traced"), "{}", explain.text);
    let before = loads[1].sent.load(Relaxed);
    loads.iter().for_each(|load| load.goes_on(100));
    assert!(counted("/two-") <= before + 2, "{} of {before}", counted("/two-"));
    let [sent, _] = loads.map(Load::end);
    let truth = logged(&one, sent);
    wait_for("all to be told", || (counted("/one-") >= sent).then_some(()));
    let ended = agent.finish();
    ended.assert_complete();
    let ours: Vec<_> = ended.spans.into_iter().filter(|span| is_of(span, "/one-")).collect();
    assert_same(&told(&ours), &truth);
}

/// A file that is wrong is refused with its place, and the old one goes on, in whatever way it came.
#[test]
fn what_is_wrong_is_refused_and_the_old_goes_on() {
    let folder = Folder::new("agent-wrong");
    let server = moods(&folder, "moods", None);
    let good = config(&[&server.process], "");
    let agent = Agent::start(&folder, &good);
    let load = Load::start(&server, "one", 2);
    let wrong = [
        // Each with where, and a word on what.
        (good.replace("include", "inclde"), 1, 11, "did you mean `include`?"),
        (format!("{good}sampling:\n  share: 7\n"), 5, 10, "`7` is no share"),
        (format!("{good}log: [\n"), 0, 0, ""),
        (format!("{good}budgets:\n  memory: 1Mi\n"), 5, 3, "48Mi or more"),
    ];
    for (way, (text, line, column, what)) in
        [Way::Swap, Way::Signal, Way::Rename, Way::Rename].into_iter().zip(&wrong)
    {
        agent.change(text, way);
        let ready = agent.get("/readyz");
        assert_eq!(ready.status, 200);
        let told = match line {
            0 => format!("{}:", agent.config.display()),
            _ => place(&agent.config, *line, *column),
        };
        for text in [&ready.text, &agent.said()] {
            assert!(text.contains(&told) && text.contains(what), "{told}{what}\n{text}");
        }
        load.goes_on(50);
        let shown = agent.get("/debug/config");
        assert!(shown.text.contains(&server.process.id().to_string()), "{}", shown.text);
    }
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tracer_config_reloads_total", &[("result", "refused")]), 4.0);
    assert_eq!(metrics.sum("tracer_config_reloads_total", &[("result", "taken")]), 0.0);
    agent.change(&format!("{good}routes: {{ per_service: 7 }}\n"), Way::Rename);
    assert_eq!(agent.get("/readyz").text, "ready\n");
    assert!(agent.get("/debug/config").text.contains("\"per_service\": 7"));
    let sent = load.end();
    let truth = logged(&server, sent);
    agent.wait_counted(SERVER, sent);
    let ended = agent.finish();
    ended.assert_complete();
    assert_same(&told(&ended.spans), &truth);
}
