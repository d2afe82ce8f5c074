//! What ended while the ring was full is not there for ever.

use rustix::process::Signal;
use tracer_tests::{
    agent::Agent,
    process::{Folder, wait_for},
};

use super::{Client, assert_balanced, moods};

const SERVER: &str = "http_server_request_duration_seconds";

/// Connections that end while the agent hears nothing.
const CLIENTS: usize = 8;

/// More than the ring of 48Mi has room for, with several records each.
const REQUESTS: usize = 12_000;

#[test]
fn what_ended_unseen_is_found_to_be_over() {
    let folder = Folder::new("agent-losses");
    let (stays, goes) = (moods(&folder, "stays", None), moods(&folder, "goes", None));
    let text = format!(
        "select: {{ include: [ {{ pid: [ {}, {} ] }} ] }}\nbudgets: {{ memory: 48Mi }}\n",
        stays.process.id(),
        goes.process.id()
    );
    let agent = Agent::start(&folder, &text);
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|n| Client::new([&stays.address, &goes.address][n % 2])).collect();
    for client in &mut clients {
        assert_eq!(client.get("/get/1"), 200);
    }
    agent.wait_counted(SERVER, CLIENTS);
    let of_process = |id: u32| [("pid".to_owned(), id.to_string())];
    let told = |id: u32| {
        let label = of_process(id);
        agent.metrics().sum("tracer_process_records_total", &[(&label[0].0, &label[0].1)])
    };
    let gone = goes.process.id();
    assert!(told(gone) > 0.0);

    agent.signal(Signal::STOP);
    let mut busy = Client::new(&stays.address);
    for _ in 0..REQUESTS {
        assert_eq!(busy.get("/get/2"), 200);
    }
    drop((clients, busy, goes));
    agent.signal(Signal::CONT);

    let metrics = agent.wait_metrics("all that ended to be over", |metrics| {
        metrics.sum("tracer_connections_open", &[]) == 0.0
            && metrics.sum("tracer_connections_vanished_total", &[]) > 0.0
    });
    assert!(metrics.sum("tracer_records_lost_total", &[("reason", "ring full")]) > 0.0);
    assert!(metrics.sum("tracer_connections_vanished_total", &[]) >= CLIENTS as f64);
    assert_eq!(metrics.sum("http_server_active_requests", &[]), 0.0);
    // As many as fit were in the ring.
    let [peak, limit] =
        ["tracer_ring_peak_bytes", "tracer_ring_limit_bytes"].map(|name| metrics.sum(name, &[]));
    assert!(peak > limit / 10.0 * 9.0 && peak <= limit, "{peak} of {limit}");
    wait_for("the process that ended to be gone", || (told(gone) == 0.0).then_some(()));
    assert_balanced(&agent);

    // And what comes is counted as before.
    let before = metrics.sum(&format!("{SERVER}_count"), &[]) as usize;
    let mut client = Client::new(&stays.address);
    for _ in 0..10 {
        assert_eq!(client.get("/get/3"), 200);
    }
    agent.wait_counted(SERVER, before + 10);
    agent.finish();
}
