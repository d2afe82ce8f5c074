//! The pods of a node.

use serde_json::json;
use tracer_agent::{
    enrich::kubernetes::{Container, Object, Owner},
    live::kubernetes::{Kept, OPT},
};

use super::cluster::{Cluster, GROUP, container_id, pod, template};

fn owner(kind: &str, name: &str) -> Owner {
    Owner { kind: kind.into(), name: name.into() }
}

#[test]
fn owners_are_those_that_made_a_pod() {
    let cluster = Cluster::new();
    let node = &cluster.node;
    let mut heard = cluster.watch();
    let selector = json!({"matchLabels": {"app": "shop"}});
    let template = template("shop", node);
    let spec = json!({"replicas": 2, "selector": selector, "template": template});
    cluster.create("/apis/apps/v1", "deployments", &json!({"metadata": {"name": "shop"}, "spec": spec}));
    let selector = json!({"matchLabels": {"app": "db"}});
    let template = super::cluster::template("db", node);
    let spec = json!({"replicas": 1, "serviceName": "db", "selector": selector, "template": template});
    cluster.create("/apis/apps/v1", "statefulsets", &json!({"metadata": {"name": "db"}, "spec": spec}));
    // There is nobody who would place its pods: this one says itself whose it is.
    let selector = json!({"matchLabels": {"app": "logs"}});
    let mut template = super::cluster::template("logs", node);
    template["spec"]["nodeName"] = json!("");
    template["spec"]["nodeSelector"] = json!({"none": "such"});
    let spec = json!({"selector": selector, "template": template});
    let daemons =
        cluster.create("/apis/apps/v1", "daemonsets", &json!({"metadata": {"name": "logs"}, "spec": spec}));
    let mut run = super::cluster::template("night", node);
    run["spec"]["restartPolicy"] = json!("Never");
    let job = json!({"spec": {"template": run}});
    let spec = json!({"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": job});
    let night =
        cluster.create("/apis/batch/v1", "cronjobs", &json!({"metadata": {"name": "night"}, "spec": spec}));
    let job = json!({"metadata": {"name": "night-1", "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob",
        "name": "night", "uid": night["metadata"]["uid"], "controller": true}]}, "spec": job["spec"]});
    cluster.create("/apis/batch/v1", "jobs", &job);
    let mut alone = pod("alone", node);
    cluster.create(GROUP, "pods", &alone);
    alone["metadata"] = json!({"name": "logs-1", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet",
        "name": "logs", "uid": daemons["metadata"]["uid"], "controller": true}]});
    cluster.create(GROUP, "pods", &alone);

    let all = heard.wait("six pods with their owners", |heard| {
        let pods = heard.pods();
        let known =
            |kind: &str| pods.values().flat_map(|pod| &pod.owners).filter(|owner| owner.kind == kind).count();
        (pods.len() == 6 && known("Deployment") == 2 && known("CronJob") == 1).then_some(pods)
    });
    let listed = cluster.ask("GET", &format!("{}/pods", cluster.inside(GROUP)), None);
    let listed = listed["items"].as_array().expect("pods");
    assert_eq!(listed.len(), 6);
    for truth in listed {
        let meta = &truth["metadata"];
        let name = meta["name"].as_str().expect("a name");
        let told = &all[name];
        assert_eq!(told.uid, meta["uid"], "{name}");
        assert_eq!((told.namespace.as_str(), &told.node), (cluster.namespace.as_str(), node), "{name}");
        let nearest = &meta["ownerReferences"][0];
        let set = nearest["name"].as_str().unwrap_or_default();
        let owners = match nearest["kind"].as_str() {
            Some("ReplicaSet") => vec![owner("ReplicaSet", set), owner("Deployment", "shop")],
            Some("Job") => vec![owner("Job", "night-1"), owner("CronJob", "night")],
            Some("StatefulSet") => vec![owner("StatefulSet", "db")],
            Some("DaemonSet") => vec![owner("DaemonSet", "logs")],
            _ => vec![],
        };
        assert_eq!(told.owners, owners, "{name}");
    }
    // Two pods, one question.
    assert_eq!((heard.requests("get", "replicasets"), heard.requests("get", "jobs")), (1, 1));
}

#[test]
fn what_counts_is_told_and_nothing_else() {
    let mut cluster = Cluster::new();
    let (node, other) = (cluster.node.clone(), format!("{}-other", cluster.node));
    cluster.make_node(&other);
    let mut first = pod("first", &node);
    first["metadata"]["labels"] = json!({"app.kubernetes.io/name": "shop", "team": "a", "secret": "s"});
    first["metadata"]["annotations"] = json!({"resource.opentelemetry.io/service.name": "till", OPT: "false",
        "example.com/owner": "b", "secret": "s"});
    first["spec"]["initContainers"] = json!([{"name": "before", "image": "registry/init:2"}]);
    first["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": "secret"}]);
    cluster.create(GROUP, "pods", &first);
    cluster.create(GROUP, "pods", &pod("elsewhere", &other));
    let kept = Kept::new(["team"], ["example.com/*"], []).expect("patterns");
    let mut heard = cluster.watch_with(|options| options.kept = kept);
    let told = heard.wait_pod("first", |_| true);
    let texts =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    assert_eq!(told.labels, texts(&[("app.kubernetes.io/name", "shop"), ("team", "a")]));
    let annotations =
        [("resource.opentelemetry.io/service.name", "till"), (OPT, "false"), ("example.com/owner", "b")];
    assert_eq!(told.annotations, texts(&annotations));
    let container = |name: &str, image: &str, id: &str| Container {
        name: name.into(),
        image: image.into(),
        id: id.into(),
    };
    let (main, before) = (("main", "registry/app:1"), ("before", "registry/init:2"));
    assert_eq!(told.containers, [container(main.0, main.1, ""), container(before.0, before.1, "")]);

    // What runs, what has ended, and what was before.
    let ids: Vec<String> = (0..4).map(container_id).collect();
    let status = |name: &str, id: &str, state: serde_json::Value, last: serde_json::Value| {
        json!({"name": name, "containerID": format!("containerd://{id}"), "image": "sha256:0", "imageID": "",
            "ready": true, "restartCount": 1, "state": state, "lastState": last})
    };
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
    let ended =
        |id: &str| json!({"terminated": {"exitCode": 0, "containerID": format!("containerd://{id}")}});
    let statuses = json!({
        "phase": "Running",
        "containerStatuses": [status("main", &ids[1], running, ended(&ids[0]))],
        "initContainerStatuses": [status("before", &ids[2], ended(&ids[2]), json!({}))],
    });
    cluster.patch_status("first", &statuses);
    let told = heard.wait_pod("first", |pod| pod.containers.iter().any(|container| !container.id.is_empty()));
    let containers = [
        container(main.0, main.1, &ids[1]),
        container(main.0, main.1, &ids[0]),
        container(before.0, before.1, &ids[2]),
    ];
    assert_eq!(told.containers, containers);

    // A container that is added to a pod that runs.
    let path = format!("{}/pods/first/ephemeralcontainers", cluster.inside(GROUP));
    let ephemeral =
        json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "registry/debug:3"}]}});
    cluster.ask("PATCH", &path, Some(&ephemeral));
    cluster.patch_status(
        "first",
        &json!({"ephemeralContainerStatuses": [status("debug", &ids[3], json!({}), json!({}))]}),
    );
    heard.wait_pod("first", |pod| pod.containers.contains(&container("debug", "registry/debug:3", &ids[3])));

    // What the kubelet says every few seconds.
    let before = heard.told.len();
    for minute in 0..20 {
        let condition = json!({"type": "Ready", "status": if minute % 2 == 0 { "True" } else { "False" },
            "lastProbeTime": format!("2026-01-01T00:{minute:02}:00Z")});
        cluster.patch_status("first", &json!({"conditions": [condition]}));
        cluster.patch_pod("first", &json!({"metadata": {"labels": {"secret": minute.to_string()}}}));
    }
    cluster.patch_pod("first", &json!({"metadata": {"labels": {"team": "c"}}}));
    heard.wait_pod("first", |pod| pod.labels["team"] == "c");
    assert_eq!(heard.told.len(), before + 1, "{:#?}", &heard.told[before..]);

    let uid = cluster.pod("first")["metadata"]["uid"].as_str().expect("an id").to_owned();
    cluster.delete_pod("first");
    heard.wait("it to be gone", |heard| heard.pods().is_empty().then_some(()));
    assert_eq!(heard.told.last(), Some(&Object::Gone { uid }));
    assert!(heard.told.iter().all(|object| !matches!(object, Object::Pod(pod) if pod.name == "elsewhere")));
    assert!(heard.watch().pods);
}

#[test]
fn pods_come_and_go() {
    let cluster = Cluster::new();
    let names: Vec<String> = (0..20).map(|number| format!("pod-{number}")).collect();
    for name in &names[..10] {
        cluster.create(GROUP, "pods", &pod(name, &cluster.node));
    }
    let mut heard = cluster.watch();
    heard.wait("those that were there", |heard| (heard.pods().len() == 10).then_some(()));
    for name in &names[10..] {
        cluster.create(GROUP, "pods", &pod(name, &cluster.node));
    }
    heard.wait("those that came", |heard| (heard.pods().len() == 20).then_some(()));
    for name in &names {
        cluster.delete_pod(name);
    }
    heard.wait("all to be gone", |heard| heard.pods().is_empty().then_some(()));
    // Each once, by one list and one watch.
    let kinds = heard.told.iter().filter(|object| !matches!(object, Object::Watch(_)));
    assert_eq!(kinds.count(), 40);
    assert_eq!((heard.requests("list", "pods"), heard.requests("watch", "pods")), (1, 1));
}
