//! What the keys of the section `kubernetes` do, by what the agent hears.

use serde_json::json;
use tracer_tests::{
    agent::{Agent, Metrics},
    process::{Folder, Server, client, wait_for},
};

use super::{
    cluster::{Cluster, GROUP, container_id, pod},
    place::Place,
};

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

#[test]
fn what_is_said_of_a_pod_stands_on_its_spans() {
    let cluster = Cluster::new();
    let mut till = pod("till-0", &cluster.node);
    till["metadata"]["labels"] = json!({"team": "a", "hidden": "b", "app.kubernetes.io/name": "till"});
    till["metadata"]["annotations"] = json!({"example.com/tier": "c", "hidden": "d"});
    let made = cluster.create(GROUP, "pods", &till);
    let (uid, container) = (made["metadata"]["uid"].as_str().expect("an id"), container_id(0xabc));
    let status = json!({"name": "main", "containerID": format!("containerd://{container}"), "image": "", "imageID": "",
        "ready": true, "restartCount": 0, "state": {"running": {}}});
    cluster.patch_status("till-0", &json!({"phase": "Running", "containerStatuses": [status]}));
    // Before the server: it goes after it.
    let place = Place::new(&cluster.namespace, uid, &container);
    let server = Server::python(&cluster.folder);
    place.take(server.process.id());
    let start = |said: &str| {
        let text = format!(
            "select: {{ include: [{{ pid: {} }}] }}\nexport: {{ print: json }}\nkubernetes: {{ kubeconfig: {}, node: {}{said} }}\n",
            server.process.id(),
            cluster.kubeconfig.display(),
            cluster.node
        );
        let agent = Agent::start(&cluster.folder, &text);
        agent.wait_metrics("the pod", |metrics| objects(metrics, "pods") == 1.0);
        client(&server.address, "keep-alive", 3, 0, "ok");
        let spans = wait_for("three spans", || Some(agent.printed()).filter(|spans| spans.len() == 3));
        agent.finish();
        let resource = spans[0]["resource"].clone();
        assert!(spans.iter().all(|span| span["resource"] == resource), "{spans:#?}");
        resource
    };
    let said =
        ", cluster: east, labels: [team], annotations: \"example.com/*\", service_name_from_labels: true";
    let told = start(said);
    for (key, value) in [
        ("k8s.pod.uid", uid),
        ("k8s.pod.name", "till-0"),
        ("k8s.namespace.name", &cluster.namespace),
        ("k8s.container.name", "main"),
        ("container.id", &container),
        ("k8s.node.name", &cluster.node),
        ("k8s.cluster.name", "east"),
        ("k8s.pod.label.team", "a"),
        ("k8s.pod.annotation.example.com/tier", "c"),
        ("service.name", "till"),
    ] {
        assert_eq!(told[key], value, "{key}: {told:#}");
    }
    assert!(!told.to_string().contains("hidden"), "{told:#}");
    let told = start("");
    assert_eq!((&told["service.name"], &told["k8s.pod.name"]), (&json!("till-0"), &json!("till-0")));
    let keys = ["k8s.cluster.name", "k8s.pod.label.team", "k8s.pod.annotation.example.com/tier"];
    assert!(keys.iter().all(|key| told[*key].is_null()), "{told:#}");
}
