//! A large cluster: what it costs to know all of it. By `cargo xtask test kubernetes --scale`.

#![allow(clippy::disallowed_methods, reason = "it is measured how long something takes")]

use std::time::Instant;

use serde_json::{Value, json};
use tracer_agent::live::kubernetes::Peers;

use super::cluster::{Cluster, GROUP, ask, pod};

const PODS: usize = 20_000;
const SERVICES: usize = 5_000;

/// Requests at a time while all is made.
const AT_A_TIME: usize = 32;

/// What one more object may take of the agent's memory.
const BYTES_MAX: u64 = 1024;

#[test]
#[ignore = "makes 25,000 objects: minutes"]
fn twenty_thousand_pods_and_five_thousand_services() {
    let mut cluster = Cluster::new();
    let began = Instant::now();
    let far = format!("{}-far", cluster.node);
    cluster.make_node(&far);
    // Sets of four, as Deployments make them.
    let sets = PODS / 4;
    let pods = (0..PODS).map(|number| {
        let set = number % sets;
        let mut pod = pod(&format!("service-{set:04}-6d4cf56db6-{number:05}"), &far);
        pod["metadata"]["labels"] = json!({"app": format!("service-{set:04}"), "pod-template-hash": "6d4cf56db6"});
        // Pods of a ReplicaSet that is not there are cleaned away; of a kind that nobody knows they are left.
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.com/v1", "kind": "Rollout", "controller": true,
            "name": format!("service-{set:04}-6d4cf56db6"), "uid": format!("00000000-0000-4000-8000-{set:012}")}]);
        pod
    });
    make(&cluster, pods, |client, namespace, pod| async move {
        let path = format!("{GROUP}/namespaces/{namespace}/pods");
        let made = ask(&client, "POST", &path, Some(&pod)).await.expect("a pod");
        let name = made["metadata"]["name"].as_str().expect("a name").to_owned();
        let number: usize = name.rsplit('-').next().and_then(|digits| digits.parse().ok()).expect("a number");
        let address = format!("10.{}.{}.{}", 100 + number / 65536, number / 256 % 256, number % 256);
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
        ask(&client, "PATCH", &format!("{path}/{name}/status"), Some(&status)).await.expect("its status");
    });
    let services = (0..SERVICES).map(|number| {
        let slice = json!({
            "metadata": {"name": format!("service-{number:04}-x"),
                "labels": {"kubernetes.io/service-name": format!("service-{number:04}")}},
            "addressType": "IPv4",
            "endpoints": (0..4).map(|pod| {
                let pod = number + pod * sets;
                json!({"addresses": [format!("10.{}.{}.{}", 100 + pod / 65536, pod / 256 % 256, pod % 256)]})
            }).collect::<Vec<_>>(),
        });
        let spec = json!({"ports": [{"port": 80}]});
        json!([{"metadata": {"name": format!("service-{number:04}")}, "spec": spec}, slice])
    });
    make(&cluster, services, |client, namespace, both| async move {
        let path = format!("{GROUP}/namespaces/{namespace}/services");
        ask(&client, "POST", &path, Some(&both[0])).await.expect("a service");
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        ask(&client, "POST", &path, Some(&both[1])).await.expect("a slice");
    });
    println!("made within {:?}", began.elapsed());

    let before = resident();
    let began = Instant::now();
    let mut heard = cluster.watch_with(|options| options.peers = Peers::Cluster);
    let count = |heard: &super::cluster::Heard, what: &str| {
        let objects = heard.watcher.state().objects;
        objects.iter().find(|(kind, _)| *kind == what).map_or(0, |(_, count)| *count) as usize
    };
    heard.wait("all of them", |heard| {
        let all = count(heard, "cluster pods") >= PODS
            && count(heard, "services") >= SERVICES
            && count(heard, "endpointslices") >= SERVICES;
        all.then_some(())
    });
    heard.wait_heard();
    let after = resident();
    let objects = (PODS + 2 * SERVICES) as u64;
    // It is reckoned every few seconds: the one that is waited for is of all.
    let reckoned = heard.wait("its size", |heard| {
        let bytes = heard.watcher.state().bytes;
        (bytes > objects * 50).then_some(bytes)
    });
    println!("known within {:?}", began.elapsed());
    println!(
        "resident: {before} KiB before, {after} KiB after: {} bytes per object",
        (after - before) * 1024 / objects
    );
    println!("reckoned: {reckoned} bytes: {} per object", reckoned / objects);
    let requests = heard.watcher.state().requests;
    println!("requests: {requests:?}");
    let lists: u64 = requests.iter().filter(|((verb, ..), _)| *verb == "list").map(|(_, count)| count).sum();
    // A page holds 500: those of pods, services and slices, one list of the node, and some for what others made.
    assert!(lists <= (PODS + 2 * SERVICES) as u64 / 500 + 8, "{lists}");
    assert!((after - before) * 1024 / objects <= BYTES_MAX, "{} KiB more", after - before);
    // All pods of a node that has none of them.
    assert!(heard.pods().is_empty());
}

/// Some at a time.
fn make<F: Future<Output = ()> + Send + 'static>(
    cluster: &Cluster,
    objects: impl Iterator<Item = Value>,
    send: impl Fn(kube::Client, String, Value) -> F,
) {
    cluster.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for object in objects {
            if tasks.len() >= AT_A_TIME {
                tasks.join_next().await.expect("a task").expect("no panic there");
            }
            tasks.spawn(send(cluster.client.clone(), cluster.namespace.clone(), object));
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic there");
        }
    });
}

/// KiB of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line of memory");
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size")
}
