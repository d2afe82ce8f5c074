//! What the keys of the section `kubernetes` do, by what the agent hears.

use serde_json::json;
use tracer_tests::{
    agent::{Agent, Metrics},
    process::{Folder, wait_for},
};

use super::cluster::{Cluster, GROUP, pod};

/// An agent that traces nobody.
fn agent(folder: &Folder, kubernetes: &str, variables: &[(&str, &str)]) -> Agent {
    let text = format!("select: {{ include: [{{ command: no-such-command }}] }}\nkubernetes: {kubernetes}\n");
    Agent::start_with(folder, &text, variables)
}

fn objects(metrics: &Metrics, resource: &str) -> f64 {
    metrics.sum("tracer_kubernetes_objects", &[("resource", resource)])
}

fn heard(metrics: &Metrics) -> f64 {
    metrics.sum("tracer_kubernetes_heard", &[("resource", "pods")])
}

fn make_pods(cluster: &mut Cluster) -> String {
    let other = format!("{}-other", cluster.node);
    cluster.make_node(&other);
    for (name, node) in [("a", &cluster.node), ("b", &cluster.node), ("c", &other)] {
        cluster.create(GROUP, "pods", &pod(name, node));
    }
    other
}

#[test]
fn the_api_is_asked_where_it_is_said_and_the_node_that_is_said() {
    let mut cluster = Cluster::new();
    let other = make_pods(&mut cluster);
    let path = cluster.kubeconfig.display().to_string();
    let none = [("KUBECONFIG", ""), ("KUBERNETES_SERVICE_HOST", ""), ("NODE_NAME", &*cluster.node)];
    // By the file; by the variable; the node by the key before the variable.
    let by_file = agent(&cluster.folder, &format!("{{ kubeconfig: {path}, peers: none }}"), &none);
    by_file.wait_metrics("two pods", |metrics| objects(metrics, "pods") == 2.0);
    assert!(by_file.get("/readyz").text.lines().all(|line| !line.contains("kubernetes")));
    let variables = [("KUBECONFIG", &*path), ("KUBERNETES_SERVICE_HOST", ""), ("NODE_NAME", &*cluster.node)];
    let said = format!("{{ enabled: on, node: {other}, peers: none }}");
    let by_variable = agent(&cluster.folder, &said, &variables);
    by_variable.wait_metrics("one pod", |metrics| objects(metrics, "pods") == 1.0);
    for (said, variables) in [("{}", &variables), ("{ enabled: off }", &variables), ("{}", &none)] {
        let deaf = agent(&cluster.folder, said, variables);
        assert!(!deaf.get("/metrics").text.contains("tracer_kubernetes"), "{said}");
        deaf.finish();
    }
    let ended = by_variable.finish();
    assert!(ended.status.success(), "{}", ended.errors);
    by_file.finish();
}

#[test]
fn as_many_are_watched_as_is_said() {
    let mut cluster = Cluster::new();
    make_pods(&mut cluster);
    for (number, name) in ["a", "b", "c"].iter().enumerate() {
        let address = format!("10.250.3.{}", number + 1);
        cluster
            .patch_status(name, &json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}));
    }
    let path = cluster.kubeconfig.display().to_string();
    let listed = |what: &str| cluster.ask("GET", what, None)["items"].as_array().expect("a list").clone();
    let services = listed("/api/v1/services").len() as f64;
    let reachable =
        |pod: &&serde_json::Value| pod["status"]["podIPs"].is_array() && pod["spec"]["hostNetwork"] != true;
    let pods = listed("/api/v1/pods").iter().filter(reachable).count() as f64;
    for (peers, expected) in [("none", [0.0, 0.0]), ("node", [services, 2.0]), ("cluster", [services, pods])]
    {
        let said = format!("{{ kubeconfig: {path}, node: {}, peers: {peers} }}", cluster.node);
        let agent = agent(&cluster.folder, &said, &[]);
        agent.wait_metrics("pods", |metrics| objects(metrics, "pods") == 2.0);
        let metrics = agent.wait_metrics(peers, |metrics| {
            [objects(metrics, "services"), objects(metrics, "cluster pods")] == expected
        });
        assert_eq!(heard(&metrics), 1.0);
        agent.finish();
    }
}

#[test]
fn a_gap_is_told_and_the_agent_stays_ready() {
    let cluster = Cluster::new();
    let path = cluster.folder.path("none.kubeconfig");
    let said = format!("{{ kubeconfig: {}, node: {}, peers: none }}", path.display(), cluster.node);
    let agent = agent(&cluster.folder, &said, &[]);
    let answer = wait_for("the gap to be told", || {
        let answer = agent.get("/readyz");
        answer.text.contains("none.kubeconfig").then_some(answer)
    });
    assert_eq!(answer.status, 200);
    assert!(answer.text.contains("kubernetes: pods have not been heard of for"), "{}", answer.text);
    assert_eq!(heard(&agent.metrics()), 0.0);
    // It is made: no restart is needed.
    std::fs::copy(&cluster.kubeconfig, &path).expect("a file");
    agent.wait_metrics("pods to be heard of", |metrics| heard(metrics) == 1.0);
    assert!(!agent.get("/readyz").text.contains("kubernetes"));
    assert_eq!(agent.metrics().sum("tracer_kubernetes_unheard_time_seconds", &[]), 0.0);
    agent.finish();
}
