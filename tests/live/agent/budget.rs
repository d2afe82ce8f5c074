//! What is left out where it all takes too much, and that it comes back.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};

use tracer_tests::{
    agent::Agent,
    process::{Folder, wait_for},
};

use super::{Client, assert_balanced, lines, moods};

/// Connections under load: enough that a hash leaves out some of them.
const CLIENTS: usize = 16;

const SERVER: &str = "http_server_request_duration_seconds";

#[test]
fn less_is_captured_past_the_share() {
    let folder = Folder::new("budget-cpu");
    let server = moods(&folder, "moods", None);
    let text =
        format!("select: {{ include: [{{ pid: {} }}] }}\nbudgets: {{ cpu: 2% }}\n", server.process.id());
    let agent = Agent::start(&folder, &text);
    let (over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::new(&server.address);
                while !over.load(Relaxed) {
                    client.get("/get/1");
                    sent.fetch_add(1, Relaxed);
                }
            });
        }
        wait_for("some connections to be left out, and counted", || {
            let metrics = agent.metrics();
            let left_out = metrics.sum("tracer_shed_connections", &[]) > 0.0;
            let counted = metrics.sum("tracer_bytes_total", &[("bucket", "shed for the budget")]) > 0.0;
            (left_out && counted).then_some(())
        });
        over.store(true, Relaxed);
    });
    // Nobody asks any more: everything is captured again. To ask for its metrics all the time would be load too.
    wait_for("everything to be captured again", || {
        let said = agent.said();
        let last = said.lines().rfind(|line| line.contains("of connections"))?;
        last.contains("of connections 100 % are captured, of large calls whole").then_some(())
    });
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tracer_shed_connections", &[]) + metrics.sum("tracer_shed_content", &[]), 0.0);
    assert_balanced(&agent);
    let before = agent.metrics().sum(&format!("{SERVER}_count"), &[]);
    let logged = lines(&server, sent.load(Relaxed)).len();
    assert!((before as usize) < logged, "{before} of {logged}");
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(&server.address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/get/2"), 200);
    }
    agent.wait_counted(SERVER, before as usize + CLIENTS);
    agent.finish();
}
