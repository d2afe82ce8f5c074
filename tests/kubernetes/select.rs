//! Rules about pods: those that they ask for are traced, and no others.

use std::process::Command;

use serde_json::{Value, json};
use tracer_tests::{
    agent::{Agent, Way},
    process::{Server, Tracer, client, run, wait_for},
};

use super::{
    cluster::{Cluster, GROUP, container_id, pod},
    place::Place,
};

/// A pod with a server in it.
struct Inhabited {
    name: &'static str,
    server: Server,
    // Goes after the server.
    _place: Place,
}

impl Inhabited {
    fn new(cluster: &Cluster, name: &'static str, number: usize, metadata: Value) -> Self {
        let mut object = pod(name, &cluster.node);
        for (key, value) in metadata.as_object().expect("fields") {
            object["metadata"][key] = value.clone();
        }
        object["spec"]["containers"][0]["name"] = json!(format!("{name}-main"));
        let made = cluster.create(GROUP, "pods", &object);
        let (uid, container) = (made["metadata"]["uid"].as_str().expect("an id"), container_id(number));
        let status = json!({"name": format!("{name}-main"), "containerID": format!("containerd://{container}"),
            "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}});
        cluster.patch_status(name, &json!({"phase": "Running", "containerStatuses": [status]}));
        let place = Place::new(&format!("{}-{name}", cluster.namespace), uid, &container);
        let server = Server::python(&cluster.folder);
        place.take(server.process.id());
        Self { name, server, _place: place }
    }

    fn is_traced(&self, agent: &Agent) -> bool {
        let answer = agent.get(&format!("/debug/explain/{}", self.server.process.id())).text;
        assert!(answer.contains("traced"), "{answer}");
        !answer.contains("not traced")
    }
}

fn config(cluster: &Cluster, select: &str) -> String {
    format!(
        "select: {select}\nexport: {{ print: json }}\nkubernetes: {{ kubeconfig: {}, node: {}, peers: none }}\n",
        cluster.kubeconfig.display(),
        cluster.node
    )
}

fn start(cluster: &Cluster, select: &str) -> Agent {
    Agent::start(&cluster.folder, &config(cluster, select))
}

/// Both serve, and spans are of the one alone.
fn assert_only(agent: Agent, chosen: &Inhabited, other: &Inhabited) {
    wait_for("the right one to be traced", || {
        (chosen.is_traced(&agent) && !other.is_traced(&agent)).then_some(())
    });
    client(&other.server.address, "keep-alive", 5, 0, "ok");
    client(&chosen.server.address, "keep-alive", 3, 0, "ok");
    let spans = wait_for("three spans", || Some(agent.printed()).filter(|spans| spans.len() >= 3));
    agent.finish();
    let names: Vec<&str> =
        spans.iter().filter_map(|span| span["resource"]["k8s.pod.name"].as_str()).collect();
    assert_eq!(names, [chosen.name; 3]);
}

/// Owned by a kind that nobody looks after: else the owner would have to be there.
fn owner(name: &str) -> Value {
    json!([{"apiVersion": "example.com/v1", "kind": "Rollout", "name": name, "uid": "0b0b0b0b-0000-4000-8000-000000000001",
        "controller": true}])
}

#[test]
fn each_kind_of_rule_chooses_and_excludes() {
    let cluster = Cluster::new();
    let web = Inhabited::new(
        &cluster,
        "web",
        1,
        json!({"labels": {"app": "web", "tier": "front"}, "annotations": {"example.com/team": "a"},
            "ownerReferences": owner("site")}),
    );
    let db = Inhabited::new(
        &cluster,
        "db",
        2,
        json!({"labels": {"app": "db", "tier": "back"}, "annotations": {"example.com/team": "b"},
            "ownerReferences": owner("store")}),
    );
    let namespace = &cluster.namespace;
    let rules = [
        "pod: web".to_owned(),
        format!("pod: {namespace}/w*"),
        "workload: [site, other]".to_owned(),
        "workload: rollout/s?te".to_owned(),
        "label: app=web".to_owned(),
        "label: \"app=w*,tier=front\"".to_owned(),
        "annotation: example.com/team=a".to_owned(),
        "container: web-*".to_owned(),
        format!("namespace: {namespace}, label: tier=front"),
        format!("namespace_label: kubernetes.io/metadata.name={namespace}, pod: web"),
    ];
    for rule in &rules {
        let agent = start(&cluster, &format!("{{ include: [ {{ {rule} }} ] }}"));
        assert_only(agent, &web, &db);
        let all = format!("{{ include: [ {{ namespace: {namespace} }} ], exclude: [ {{ {rule} }} ] }}");
        assert_only(start(&cluster, &all), &db, &web);
    }
    // And the namespace by itself.
    let others = "{ include: [ { pod: \"*\" } ], exclude: [ { namespace: \"tracer-*\" } ] }";
    let agent = start(&cluster, others);
    agent.wait_metrics("the pods", |metrics| {
        metrics.sum("tracer_kubernetes_objects", &[("resource", "pods")]) == 2.0
            && metrics.sum("tracer_table_entries", &[("table", "cgroups")]) == 2.0
    });
    assert!(!web.is_traced(&agent) && !db.is_traced(&agent));
    agent.finish();
}

/// As the rules, on the command line. A pod that does not want to be traced has to be named.
#[test]
fn flags_choose_pods_too() {
    let cluster = Cluster::new();
    let metadata = json!({"labels": {"app": "web"}, "annotations": {"example.com/team": "a"},
        "ownerReferences": owner("site")});
    let web = Inhabited::new(&cluster, "web", 8, metadata);
    let metadata = json!({"labels": {"app": "db"}, "annotations": {"tracer.dev/trace": "false"}});
    let unwilling = Inhabited::new(&cluster, "unwilling", 9, metadata);
    let namespace = cluster.namespace.as_str();
    let qualified = format!("{namespace}/web");
    let label = format!("kubernetes.io/metadata.name={namespace}");
    let variables =
        [("KUBECONFIG", cluster.kubeconfig.display().to_string()), ("NODE_NAME", cluster.node.clone())];
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--namespace", namespace], &["web"]),
        (&["--pod", "web"], &["web"]),
        (&["--pod", &qualified], &["web"]),
        (&["--label", "app"], &["web"]),
        (&["--annotation", "example.com/team=a"], &["web"]),
        (&["--workload", "rollout/site"], &["web"]),
        (&["--namespace-label", &label], &["web"]),
        (&["--namespace", namespace, "--container", "web-main"], &["web"]),
        (&["--pod", "unwilling", "--pod", "web"], &["unwilling", "web"]),
    ];
    for (arguments, expected) in cases {
        let tracer = Tracer::start_with("trace", arguments, &variables);
        for server in [&web, &unwilling] {
            client(&server.server.address, "keep-alive", 4, 0, "ok");
        }
        let traced = tracer.finish();
        traced.assert_complete();
        let names = traced.spans.iter().filter_map(|span| span["resource"]["k8s.pod.name"].as_str());
        let names = tracer_tests::process::count(names.map(str::to_owned));
        let expected = expected.iter().map(|name| ((*name).to_owned(), 4)).collect();
        assert_eq!(names, expected, "{arguments:?}");
        assert!(traced.spans.iter().all(|span| span["kind"] == "SERVER"), "{arguments:?}");
    }
}

/// Labels and annotations are kept that a rule asks for: one that comes later asks for others, and of a pod that goes
/// meanwhile nothing is left.
#[test]
fn rules_that_come_later_know_labels_that_nobody_asked_for() {
    let cluster = Cluster::new();
    let metadata = json!({"labels": {"tier": "front"}, "annotations": {"example.com/team": "a"}});
    let web = Inhabited::new(&cluster, "web", 5, metadata);
    let other = Inhabited::new(&cluster, "other", 6, json!({}));
    let agent = start(&cluster, "{ include: [ { pod: web } ] }");
    wait_for("the pod", || (web.is_traced(&agent) && !other.is_traced(&agent)).then_some(()));
    for rule in ["label: tier=front", "annotation: example.com/team=a", "label: tier=back", "label: tier"] {
        agent.change(&config(&cluster, &format!("{{ include: [ {{ {rule} }} ] }}")), Way::Swap);
        let expected = rule != "label: tier=back";
        wait_for(rule, || (web.is_traced(&agent) == expected && !other.is_traced(&agent)).then_some(()));
    }
    cluster.delete_pod("web");
    agent.change(
        &config(&cluster, "{ include: [ { namespace_label: kubernetes.io/metadata.name } ] }"),
        Way::Swap,
    );
    wait_for("the other one alone", || {
        let cgroups = agent.metrics().sum("tracer_table_entries", &[("table", "cgroups")]);
        (other.is_traced(&agent) && cgroups == 1.0).then_some(())
    });
    agent.finish();
}

/// A label that the namespace gets while the agent runs, and loses again.
#[test]
fn namespaces_choose_by_their_labels() {
    let cluster = Cluster::new();
    let web = Inhabited::new(&cluster, "web", 7, json!({}));
    let label = |value: Value| cluster.patch_namespace(&json!({"metadata": {"labels": {"traced": value}}}));
    let included = start(&cluster, "{ include: [ { namespace_label: traced=yes } ] }");
    let excluded = start(
        &cluster,
        &format!(
            "{{ include: [ {{ namespace: {} }} ], exclude: [ {{ namespace_label: traced=no }} ] }}",
            cluster.namespace
        ),
    );
    let traced = |by_included: bool, by_excluded: bool| {
        wait_for("the rules to hold", || {
            let now = (web.is_traced(&included), web.is_traced(&excluded));
            (now == (by_included, by_excluded)).then_some(())
        });
    };
    traced(false, true);
    label(json!("yes"));
    traced(true, true);
    label(json!("no"));
    traced(false, false);
    label(Value::Null);
    traced(false, true);
    for agent in [included, excluded] {
        agent.finish();
    }
}

/// What a pod says of itself, and what is said of it later.
#[test]
fn a_pod_says_whether_it_is_traced() {
    let cluster = Cluster::new();
    let says = |answer: &str| json!({"labels": {"app": "a"}, "annotations": {"tracer.dev/trace": answer}});
    let willing = Inhabited::new(&cluster, "willing", 3, says("true"));
    let unwilling = Inhabited::new(&cluster, "unwilling", 4, says("false"));
    assert_only(start(&cluster, "{ include: [ { pod: unwilling } ] }"), &willing, &unwilling);
    // Where no rule is about pods none is added, and one that says no is traced by no rule.
    let processes = format!("{{ include: [ {{ pid: {} }} ] }}", unwilling.server.process.id());
    let agent = start(&cluster, &processes);
    agent.wait_metrics("the pods", |metrics| {
        metrics.sum("tracer_table_entries", &[("table", "cgroups")]) == 1.0
    });
    wait_for("it not to be traced", || (!unwilling.is_traced(&agent)).then_some(()));
    assert!(!willing.is_traced(&agent));
    agent.finish();
    // Said while the agent runs.
    let agent = start(&cluster, "{ include: [ { label: app=b } ] }");
    wait_for("the willing one", || (willing.is_traced(&agent) && !unwilling.is_traced(&agent)).then_some(()));
    let change = |name: &str, metadata: Value| cluster.patch_pod(name, &json!({ "metadata": metadata }));
    change("willing", json!({"annotations": {"tracer.dev/trace": null}}));
    change("unwilling", json!({"annotations": {"tracer.dev/trace": null}, "labels": {"app": "b"}}));
    assert_only(agent, &unwilling, &willing);
}

/// The folder is there before the first process, and that one is seen from its first byte.
#[test]
fn a_pod_is_chosen_before_its_first_process() {
    let cluster = Cluster::new();
    let server = Server::nginx(&cluster.folder);
    let agent = start(&cluster, &format!("{{ include: [ {{ namespace: {} }} ] }}", cluster.namespace));
    let mut places = Vec::new();
    for number in 0..5 {
        let made = cluster.create(GROUP, "pods", &pod(&format!("short-{number}"), &cluster.node));
        let uid = made["metadata"]["uid"].as_str().expect("an id");
        let name = format!("{}-{number}", cluster.namespace);
        let place = Place::new(&name, uid, &container_id(number));
        agent.wait_metrics("its cgroup to be chosen", |metrics| {
            metrics.sum("tracer_table_entries", &[("table", "cgroups")]) == f64::from(number as u32 + 1)
        });
        for _ in 0..20 {
            let url = format!("http://{}/small", server.address);
            let mut command: Command = place.command(&["curl", "-s", "-o", "/dev/null", &url]);
            run(&mut command);
        }
        places.push(place);
    }
    let spans = wait_for("all spans", || Some(agent.printed()).filter(|spans| spans.len() >= 100));
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("tracer_bytes_total", &[("bucket", "before selection")]), 0.0);
    agent.finish();
    assert_eq!(spans.len(), 100);
    for number in 0..5 {
        let name = format!("short-{number}");
        let of_pod = spans.iter().filter(|span| span["resource"]["k8s.pod.name"] == name);
        assert_eq!(of_pod.count(), 20, "{name}");
    }
    assert!(spans.iter().all(|span| span["kind"] == "CLIENT"));
}
