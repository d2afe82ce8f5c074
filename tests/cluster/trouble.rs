//! An API server that is away or refuses, under load.

use tracer_tests::{own::Own, process::wait_for};

use super::{
    installed::{AgentPod, Installed},
    kubectl::kubectl,
    shop::Shop,
    truth::{assert_parents, assert_told, logged},
};

const GAP: &str = "kubernetes: pods have not been heard of";

fn heard(pod: &AgentPod) -> f64 {
    pod.metrics().sum("tracer_kubernetes_heard", &[("resource", "pods")])
}

fn wait_heard(pod: &AgentPod) {
    wait_for("pods to be heard of", || {
        (!pod.get("/readyz").text.contains("kubernetes:") && heard(pod) == 1.0).then_some(())
    });
}

/// Services that talk all the time: a call each 20 ms.
fn busy(shop: &Shop, calls: usize) -> String {
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    let calls = calls.to_string();
    shop.deploy(
        "user",
        1,
        &["--next", &store, "--cron", "20", "--calls", &calls, "--name", "user", "--fresh"],
    );
    store
}

/// Those of which the agent hears, and which have begun to talk.
struct Busy {
    installed: Installed,
    shop: Shop,
    store: String,
    pod: AgentPod,
}

impl Busy {
    fn new(calls: usize) -> Self {
        let installed = Installed::as_shipped();
        let shop = Shop::new();
        let store = busy(&shop, calls);
        shop.wait_called("user", 100);
        let pod = installed.pod();
        wait_heard(&pod);
        Self { installed, shop, store, pod }
    }
}

fn come_late(shop: &Shop, store: &str) {
    shop.deploy("late", 1, &["--next", store, "--cron", "5", "--calls", "50", "--name", "late"]);
    shop.wait_called("late", 50);
}

#[test]
fn an_api_server_that_is_away_for_half_a_minute_costs_no_span() {
    const CALLS: usize = 3500;
    let Some(own) = Own::find() else {
        println!("skipped: this API server is not ours to be killed");
        return;
    };
    let Busy { installed, shop, store, pod } = Busy::new(CALLS);
    let before = installed.collector.spans().len();
    own.kill_api();
    let said = pod.wait_readyz(200, GAP);
    println!("/readyz: {}", said.trim_end());
    assert_eq!(heard(&pod), 0.0);
    let seconds = wait_for("half a minute without the API", || {
        let metrics = pod.metrics();
        let seconds = metrics.sum("tracer_kubernetes_unheard_time_seconds", &[("resource", "pods")]);
        (seconds >= 30.0).then_some(seconds)
    });
    let meanwhile = installed.collector.spans().len() - before;
    own.start_api();
    wait_heard(&pod);
    println!("{meanwhile} spans came in during {seconds:.0} s without the API");
    // 50 calls a second, of which both sides are told.
    assert!(meanwhile > 30 * 50, "{meanwhile}");
    come_late(&shop, &store);
    shop.wait_called("user", CALLS);
    let truth = logged(&shop, &["user", "store", "late"]);
    let expected = 2 * (CALLS + 50);
    assert_eq!(truth.values().sum::<usize>(), expected);
    assert_eq!(pod.restarts(), 0);
    let spans = installed.finish(expected);
    println!("{} exchanges", assert_told(&spans, &truth));
    assert_eq!(assert_parents(&spans).requests, [expected / 2, 0]);
}

/// Who was known stays so; who comes while nothing may be asked is nobody that was chosen, and is known afterwards.
#[test]
fn rights_that_are_taken_and_given_back_cost_no_span_of_who_was_known() {
    const CALLS: usize = 2500;
    let Some(own) = Own::find() else {
        println!("skipped: this API server is not ours to be killed");
        return;
    };
    let Busy { installed, shop, store, pod } = Busy::new(CALLS);
    kubectl(&["delete", "clusterrolebinding", "tracer"]);
    // A watch that runs goes on: only the next one is asked who it is.
    own.kill_api();
    own.start_api();
    let said = wait_for("the refusal", || {
        let text = pod.get("/readyz").text;
        text.contains("403").then_some(text)
    });
    println!("/readyz: {}", said.trim_end());
    assert!(said.contains(GAP), "{said}");
    let unknown = ["--next", &store, "--cron", "5", "--calls", "100", "--name", "unknown", "--fresh"];
    shop.deploy("unknown", 1, &unknown);
    shop.wait_called("unknown", 100);
    installed.apply();
    wait_heard(&pod);
    come_late(&shop, &store);
    shop.wait_called("user", CALLS);
    let truth = logged(&shop, &["user", "store", "late"]);
    let expected = 2 * (CALLS + 50) + 100;
    assert_eq!(truth.values().sum::<usize>(), expected);
    assert_eq!(pod.restarts(), 0);
    let spans = installed.finish(expected);
    println!("{} exchanges", assert_told(&spans, &truth));
    assert_eq!(assert_parents(&spans).requests, [CALLS + 50, 0]);
}
