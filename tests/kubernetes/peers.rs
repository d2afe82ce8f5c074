//! Who is behind addresses.

use serde_json::{Value, json};
use tracer_agent::{
    enrich::kubernetes::{Named, Owner, Peer},
    live::kubernetes::Peers,
};
use tracer_tests::process::wait_for;

use super::cluster::{Cluster, GROUP, Heard, pod, template};

fn named(cluster: &Cluster, name: &str) -> Option<Named> {
    Some(Named { namespace: cluster.namespace.clone(), name: name.into() })
}

fn nobody(address: &str) -> Peer {
    Peer { address: address.parse().expect("an address"), service: None, pod: None, workload: None }
}

fn shop() -> Option<Owner> {
    Some(Owner { kind: "Deployment".into(), name: "shop".into() })
}

fn running(address: &str) -> Value {
    json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}]})
}

/// A Deployment of two pods with addresses. Returns their names, and the address of the service before them.
fn make_shop(cluster: &Cluster, addresses: [&str; 2]) -> (Vec<String>, String) {
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "shop"}},
        "template": template("shop", &cluster.node)});
    cluster.create("/apis/apps/v1", "deployments", &json!({"metadata": {"name": "shop"}, "spec": spec}));
    let spec = json!({"selector": {"app": "shop"}, "ports": [{"port": 80}]});
    let service = cluster.create(GROUP, "services", &json!({"metadata": {"name": "till"}, "spec": spec}));
    let names = wait_for("two pods", || {
        let path = format!("{}/pods?labelSelector=app%3Dshop", cluster.inside(GROUP));
        let pods = cluster.ask("GET", &path, None);
        let names = pods["items"].as_array()?.iter().map(|pod| pod["metadata"]["name"].as_str());
        let names: Vec<String> = names.flatten().map(str::to_owned).collect();
        (names.len() == 2).then_some(names)
    });
    for (name, address) in names.iter().zip(addresses) {
        cluster.patch_status(name, &running(address));
    }
    (names, service["spec"]["clusterIP"].as_str().expect("an address").to_owned())
}

fn ask(heard: &mut Heard, address: &str, expected: &Peer) {
    assert!(heard.watcher.ask(address.parse().expect("an address")));
    told(heard, address, expected);
}

fn told(heard: &mut Heard, address: &str, expected: &Peer) {
    heard.wait(&format!("{expected:?}"), |heard| {
        (heard.peer(address).as_ref() == Some(expected)).then_some(())
    });
}

#[test]
fn all_pods_and_services_are_known_where_that_is_asked_for() {
    let mut cluster = Cluster::new();
    let other = format!("{}-other", cluster.node);
    cluster.make_node(&other);
    let [first, second, far, host] = ["10.250.1.1", "10.250.1.2", "10.250.1.3", "10.250.1.4"];
    let (names, till) = make_shop(&cluster, [first, second]);
    cluster.create(GROUP, "pods", &pod("far", &other));
    cluster.patch_status("far", &running(far));
    let mut hosted = pod("hosted", &other);
    hosted["spec"]["hostNetwork"] = json!(true);
    cluster.create(GROUP, "pods", &hosted);
    cluster.patch_status("hosted", &running(host));
    let mut heard = cluster.watch_with(|options| options.peers = Peers::Cluster);
    // Before anything was heard.
    ask(&mut heard, &till, &Peer { service: named(&cluster, "till"), workload: shop(), ..nobody(&till) });
    for (name, address) in names.iter().zip([first, second]) {
        ask(&mut heard, address, &Peer { pod: named(&cluster, name), workload: shop(), ..nobody(address) });
    }
    ask(&mut heard, far, &Peer { pod: named(&cluster, "far"), ..nobody(far) });
    // Whoever uses the node's address is not known by it.
    ask(&mut heard, host, &nobody(host));
    ask(&mut heard, "10.250.1.99", &nobody("10.250.1.99"));
    // One question for the set, whoever asked for it.
    assert_eq!(heard.requests("get", "replicasets"), 1);

    // What becomes of addresses is told to whoever asked once.
    let before = heard.told.len();
    cluster.patch_status("far", &json!({"phase": "Succeeded"}));
    told(&mut heard, far, &nobody(far));
    cluster.create(GROUP, "pods", &pod("heir", &other));
    cluster.patch_status("heir", &running(far));
    told(&mut heard, far, &Peer { pod: named(&cluster, "heir"), ..nobody(far) });
    // Late news of the one that had it before.
    cluster.delete_pod("far");
    let mut stranger = pod("stranger", &other);
    stranger["metadata"]["labels"] = json!({"app": "shop"});
    stranger["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.com/v1", "kind": "Shop", "name": "own",
        "uid": cluster.pod("heir")["metadata"]["uid"], "controller": true}]);
    cluster.create(GROUP, "pods", &stranger);
    cluster.patch_status("stranger", &running("10.250.1.5"));
    // Not all are of one workload any more.
    told(&mut heard, &till, &Peer { service: named(&cluster, "till"), ..nobody(&till) });
    assert_eq!(heard.peer(far), Some(Peer { pod: named(&cluster, "heir"), ..nobody(far) }));
    cluster.ask("DELETE", &format!("{}/services/till", cluster.inside(GROUP)), None);
    told(&mut heard, &till, &nobody(&till));
    let of_far = heard.told[before..].iter().filter(|object| {
        matches!(object, tracer_agent::enrich::kubernetes::Object::Peer(peer) if peer.address.to_string() == far)
    });
    assert_eq!(of_far.count(), 2);
    assert!(heard.watch().peers);
}

#[test]
fn a_node_knows_its_own_pods_and_all_services() {
    let mut cluster = Cluster::new();
    let other = format!("{}-other", cluster.node);
    cluster.make_node(&other);
    let [first, second, far] = ["10.250.2.1", "10.250.2.2", "10.250.2.3"];
    let (names, till) = make_shop(&cluster, [first, second]);
    cluster.create(GROUP, "pods", &pod("far", &other));
    cluster.patch_status("far", &running(far));
    let mut heard = cluster.watch_with(|options| options.peers = Peers::Node);
    ask(&mut heard, &till, &Peer { service: named(&cluster, "till"), ..nobody(&till) });
    ask(&mut heard, first, &Peer { pod: named(&cluster, &names[0]), workload: shop(), ..nobody(first) });
    ask(&mut heard, far, &nobody(far));
    cluster.delete_pod(&names[0]);
    told(&mut heard, first, &nobody(first));
    assert_eq!((heard.requests("list", "endpointslices"), heard.requests("list", "pods")), (0, 1));
}

#[test]
fn nobody_is_watched_for_whom_nobody_asks() {
    let cluster = Cluster::new();
    let mut heard = cluster.watch_with(|options| options.peers = Peers::None);
    heard.wait_heard();
    assert!(!heard.watch().peers);
    let requests = heard.watcher.state().requests;
    assert!(requests.iter().all(|((_, resource, _), _)| *resource == "pods"), "{requests:?}");
}
