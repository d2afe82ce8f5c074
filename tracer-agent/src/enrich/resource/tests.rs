use tracer_common::record::{Header, Process as Wire};

use super::*;
use crate::{
    capture::Life,
    enrich::{
        kubernetes::{Object, Owner, Watch},
        process::{HOST, Processes},
    },
};

const POD: &str = "7f9c2ba4-e88f-4c1b-9d3e-0123456789ab";
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn in_pod() -> String {
    format!("/kubepods/burstable/pod{POD}/{ID}")
}

fn pod(owners: &[(&str, &str)]) -> Pod {
    let owner = |(kind, name): &(&str, &str)| Owner { kind: (*kind).into(), name: (*name).into() };
    Pod {
        uid: POD.into(),
        namespace: "prod".into(),
        name: "shop-1".into(),
        node: "node-1".into(),
        owners: owners.iter().map(owner).collect(),
        containers: vec![Container { name: "app".into(), image: "r.io/shop:1.2".into(), id: ID.into() }],
        ..Pod::default()
    }
}

fn with<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The resource of a process of these facts, as `key=value`.
fn resource(facts: &[(FactKey, &str)], objects: Vec<Object>) -> BTreeMap<String, String> {
    let mut processes = Processes::default();
    let header = Header { pid: 7, time: 1, ..Header::default() };
    processes.handle_life(
        Life::Chosen,
        &Wire { header, command: *b"program\0\0\0\0\0\0\0\0\0", ..Wire::default() },
    );
    for (key, value) in facts {
        processes.handle_fact(7, *key, value);
    }
    processes.handle_fact(HOST, FactKey::HostName, "machine");
    objects.into_iter().for_each(|object| processes.handle_object(object));
    let resource = processes.resource(7);
    let told = resource.attributes.iter().map(|attribute| {
        let value = match &attribute.value {
            Value::Text(text) => text.to_string(),
            Value::Number(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key.to_string(), value)
    });
    let all: BTreeMap<_, _> = told.collect();
    assert_eq!(all.len(), resource.attributes.len(), "a key is there twice: {resource:?}");
    assert_eq!(all["service.name"], resource.service.as_str());
    all
}

fn service(facts: &[(FactKey, &str)], objects: Vec<Object>) -> String {
    resource(facts, objects)["service.name"].clone()
}

#[test]
fn a_service_is_called_by_the_first_that_names_it() {
    let path = in_pod();
    let cgroup = (FactKey::Cgroup, path.as_str());
    let all = [
        ("Job", "job"),
        ("CronJob", "cronjob"),
        ("DaemonSet", "daemonset"),
        ("StatefulSet", "statefulset"),
        ("ReplicaSet", "replicaset"),
        ("Deployment", "deployment"),
    ];
    let mut whole = pod(&all);
    whole.labels = with([("app.kubernetes.io/instance", "instance"), ("app.kubernetes.io/name", "name")]);
    whole.annotations = with([("resource.opentelemetry.io/service.name", "annotated")]);
    let watch = |named_by_labels| Object::Watch(Watch { named_by_labels, ..Watch::default() });
    let of =
        |facts: &[(FactKey, &str)], pod: &Pod| service(facts, vec![watch(true), Object::Pod(pod.clone())]);
    let said = (FactKey::ResourceAttributes, "service.name=said");
    assert_eq!(of(&[cgroup, said, (FactKey::ServiceName, "own")], &whole), "own");
    assert_eq!(of(&[cgroup, said], &whole), "said");
    assert_eq!(of(&[cgroup], &whole), "annotated");
    whole.annotations.clear();
    assert_eq!(of(&[cgroup], &whole), "instance");
    // Only where that is asked for.
    assert_eq!(service(&[cgroup], vec![watch(false), Object::Pod(whole.clone())]), "deployment");
    whole.labels.remove("app.kubernetes.io/instance");
    assert_eq!(of(&[cgroup], &whole), "name");
    whole.labels.clear();
    for name in ["deployment", "replicaset", "statefulset", "daemonset", "cronjob", "job"] {
        assert_eq!(of(&[cgroup], &whole), name);
        whole.owners.retain(|owner| owner.name != name);
    }
    assert_eq!(of(&[cgroup], &whole), "shop-1");
    let named = (FactKey::ContainerName, "app");
    assert_eq!(service(&[cgroup, named, (FactKey::PodName, "shop-1")], vec![]), "app");
    assert_eq!(service(&[cgroup], vec![]), "program");
    let docker = format!("/docker/{ID}/system.slice/nginx.service");
    let docker = (FactKey::Cgroup, docker.as_str());
    assert_eq!(service(&[docker, named], vec![]), "app");
    assert_eq!(service(&[docker], vec![]), "nginx");
    assert_eq!(service(&[(FactKey::Executable, "nginx-bin")], vec![]), "nginx-bin");
    assert_eq!(service(&[(FactKey::Cgroup, "/user.slice/user-0.slice/session-1.scope")], vec![]), "program");
}

#[test]
fn what_a_process_says_of_itself_wins_but_for_what_was_seen() {
    let path = in_pod();
    let said = "k8s.pod.name=mine,team=a%20b,process.pid=1,process.runtime.name=x,telemetry.sdk.name=y,\
                k8s.pod.uid=z,container.id=0,os.type=windows,host.name=mine,service.instance.id=me";
    let mut told = pod(&[("Deployment", "shop")]);
    told.annotations = with([
        ("resource.opentelemetry.io/team", "b"),
        ("resource.opentelemetry.io/service.version", "9"),
        ("resource.opentelemetry.io/tier", "front"),
        ("resource.opentelemetry.io/process.pid", "3"),
        ("other", "x"),
    ]);
    let facts = [(FactKey::Cgroup, path.as_str()), (FactKey::ResourceAttributes, said)];
    let told = resource(&facts, vec![Object::Pod(told)]);
    for (key, value) in [
        ("k8s.pod.name", "mine"),
        ("team", "a b"),
        ("tier", "front"),
        ("service.version", "9"),
        ("service.instance.id", "me"),
        ("host.name", "mine"),
        ("process.pid", "7"),
        ("telemetry.sdk.name", "tracer"),
        ("k8s.pod.uid", POD),
        ("container.id", ID),
        ("os.type", "linux"),
        ("k8s.namespace.name", "prod"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!told.contains_key("process.runtime.name") && !told.contains_key("other"));
}

#[test]
fn what_is_said_is_bounded() {
    let said: String = (0..100).map(|n| format!("key{n}={},", "x".repeat(1000))).collect();
    let mut told = pod(&[]);
    told.annotations.insert("resource.opentelemetry.io/team".into(), "a".into());
    let told = resource(
        &[(FactKey::ResourceAttributes, &said), (FactKey::Cgroup, &in_pod())],
        vec![Object::Pod(told)],
    );
    let length: usize = told.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!((SAID_MAX - 2000..SAID_MAX + 2000).contains(&length), "{length}");
    assert_eq!(told["k8s.pod.name"], "shop-1");
}

#[test]
fn labels_and_annotations_are_shown_where_they_are_asked_for() {
    let path = in_pod();
    let mut told = pod(&[]);
    told.labels = with([("team", "a"), ("example.com/tier", "b"), ("app.kubernetes.io/version", "7")]);
    told.annotations = with([("team", "c"), ("note", "d")]);
    let patterns = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let watch = Watch {
        labels: patterns(&["team", "example.com/*", "["]),
        annotations: patterns(&["no*"]),
        cluster: Some("east".into()),
        named_by_labels: true,
        ..Watch::default()
    };
    let facts = [(FactKey::Cgroup, path.as_str())];
    let told = resource(&facts, vec![Object::Watch(watch), Object::Pod(told)]);
    let shown =
        told.keys().filter(|key| key.starts_with("k8s.pod.label.") || key.starts_with("k8s.pod.annotation."));
    assert_eq!(shown.count(), 3);
    assert_eq!(told["k8s.pod.label.example.com/tier"], "b");
    assert_eq!(told["k8s.pod.label.team"], "a");
    assert_eq!(told["k8s.pod.annotation.note"], "d");
    assert!(!told.contains_key("k8s.pod.annotation.team"));
    assert_eq!((told["k8s.cluster.name"].as_str(), told["service.version"].as_str()), ("east", "7"));
}

#[test]
fn what_only_the_runtime_says_is_told() {
    let path = in_pod();
    let facts = [
        (FactKey::Cgroup, "/"),
        (FactKey::CgroupV1, path.as_str()),
        (FactKey::ContainerName, "app"),
        (FactKey::ContainerImage, "r.io/shop:1.2"),
        (FactKey::PodName, "shop-1"),
        (FactKey::PodNamespace, "prod"),
        (FactKey::PodUid, POD),
    ];
    let told = resource(&facts, vec![]);
    let k8s: Vec<_> =
        told.iter().filter(|(key, _)| key.starts_with("k8s.")).map(|(key, _)| key.as_str()).collect();
    assert_eq!(k8s, ["k8s.container.name", "k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid"]);
    assert_eq!(told["service.instance.id"], "prod.shop-1.app");
    assert_eq!(
        (told["container.image.name"].as_str(), told["service.version"].as_str()),
        ("r.io/shop", "1.2")
    );
    assert_eq!(told["process.linux.cgroup"], "/");
    assert!(!told.contains_key("container.name"));
    // Somewhere else, the rest was said of another.
    let moved = [&facts[..], &[(FactKey::CgroupV1, "/docker/x")]].concat();
    let told = resource(&moved, vec![]);
    assert!(!told.keys().any(|key| key.starts_with("k8s.") || key.starts_with("container.")));
}

#[test]
fn a_container_outside_of_kubernetes_has_its_name() {
    let path = format!("/system.slice/docker-{ID}.scope");
    let facts = [
        (FactKey::Cgroup, path.as_str()),
        (FactKey::ContainerName, "web"),
        (FactKey::ContainerImage, "nginx:1.25"),
    ];
    let told = resource(&facts, vec![]);
    assert_eq!((told["container.name"].as_str(), told["container.id"].as_str()), ("web", ID));
    assert_eq!((told["service.name"].as_str(), told["container.image.name"].as_str()), ("web", "nginx"));
    assert!(!told.keys().any(|key| key.starts_with("k8s.") || key == "service.namespace"));
}

#[test]
fn a_program_that_is_executed_stays_where_it_is() {
    let mut processes = Processes::default();
    let life = |processes: &mut Processes, life, pid, parent| {
        let header = Header { pid, time: 1, ..Header::default() };
        processes.handle_life(
            life,
            &Wire { header, parent, command: *b"program\0\0\0\0\0\0\0\0\0", ..Wire::default() },
        );
    };
    life(&mut processes, Life::Chosen, 1, 0);
    processes.handle_fact(1, FactKey::Cgroup, &in_pod());
    processes.handle_fact(1, FactKey::ServiceName, "parent");
    life(&mut processes, Life::Forked, 2, 1);
    let forked = processes.resource(2);
    life(&mut processes, Life::Executed, 2, 0);
    processes.handle_object(Object::Pod(pod(&[("Deployment", "shop")])));
    assert_eq!(processes.resource(2).service, "shop");
    // What was served before is of the program that served it.
    assert_eq!(processes.settle(&forked).service, "parent");
    assert_eq!(processes.settle(&forked).attributes.iter().filter(|a| a.key == "k8s.pod.name").count(), 1);
}
