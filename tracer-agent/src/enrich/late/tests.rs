use std::net::IpAddr;

use tracer_common::{
    connection::{AF_INET, Direction, Role},
    record::{Closed, Connect, Data, FactKey, Header, Opened, Process, kind},
};

use super::*;
use crate::{
    capture::{Record, encode, own},
    enrich::kubernetes::{Container, Named, Owner, Peer, Pod, Watch},
    export::json,
    pipeline::{Limits, Pipeline},
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

const PODS: [&str; 3] = [
    "11111111-1111-1111-1111-111111111111",
    "22222222-2222-2222-2222-222222222222",
    "33333333-3333-3333-3333-333333333333",
];

fn id(pod: usize) -> String {
    format!("{pod:064x}")
}

fn pod(pod: usize, name: &str) -> Object {
    let container = Container { name: "app".into(), image: "r.io/shop:1.2".into(), id: id(pod) };
    let owner = |kind: &str, name: &str| Owner { kind: kind.into(), name: name.into() };
    Object::Pod(Pod {
        uid: PODS[pod].into(),
        namespace: "prod".into(),
        name: name.into(),
        node: "node-1".into(),
        owners: vec![owner("ReplicaSet", "shop-5f"), owner("Deployment", "shop")],
        containers: vec![container],
        ..Pod::default()
    })
}

fn watch(pods: bool, peers: bool) -> Object {
    Object::Watch(Watch { pods, peers, ..Watch::default() })
}

/// Records, and what came of them.
struct World {
    pipeline: Pipeline,
    limits: Limits,
    records: Vec<Vec<u8>>,
    now: u64,
    cookies: u64,
    lines: Vec<String>,
    facts: Vec<Fact>,
}

impl World {
    fn new(watch: Object) -> Self {
        Self::within(Limits::default(), watch)
    }

    fn within(limits: Limits, watch: Object) -> Self {
        let pipeline = Pipeline::new(limits.clone());
        let (records, lines, facts) = (Vec::new(), Vec::new(), Vec::new());
        let mut world = Self { pipeline, limits, records, now: SECOND, cookies: 0, lines, facts };
        world.object(&watch);
        world
    }

    fn record(&mut self, bytes: Vec<u8>) {
        self.pipeline.handle_record(&Record::parse(&bytes).expect("a record"));
        self.records.push(bytes);
        self.lines.extend(std::iter::from_fn(|| self.pipeline.poll_output()).map(|span| json::line(&span)));
        self.facts.extend(std::iter::from_fn(|| self.pipeline.poll_fact()));
    }

    fn object(&mut self, object: &Object) {
        self.record(own::object(self.now, object));
    }

    /// A process that is forked, in the container of a pod.
    fn process(&mut self, process: u32, pod: usize) {
        let fields =
            Process { command: *b"app\0\0\0\0\0\0\0\0\0\0\0\0\0", selected: 1, ..Process::default() };
        self.record(encode(kind::FORKED, self.now, process, &fields, &[]));
        self.record(encode(kind::EXECUTED, self.now, process, &fields, &[]));
        let path = format!("/kubepods/burstable/pod{}/{}", PODS[pod], id(pod));
        self.record(own::fact(self.now, process, FactKey::Cgroup, &path));
    }

    fn ends(&mut self, process: u32) {
        self.record(encode(kind::EXITED, self.now, process, &Process::default(), &[]));
    }

    /// One exchange over a connection of its own, that is over then.
    fn serve(&mut self, process: u32, path: &str) {
        self.exchange(process, path, Role::Server);
    }

    fn exchange(&mut self, process: u32, path: &str, role: Role) {
        self.cookies += 1;
        let cookie = self.cookies;
        let mut peer_address = [0; 16];
        peer_address[..4].copy_from_slice(&[10, 0, 0, 9]);
        let opened = Opened {
            cookie,
            family: AF_INET,
            role: role as u8,
            settled: 1,
            peer_port: 80,
            peer_address,
            ..Opened::default()
        };
        self.record(encode(kind::OPENED, self.now, process, &opened, &[]));
        let asked = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (asks, answers) = match role {
            Role::Client => (Direction::Sent, Direction::Received),
            _ => (Direction::Received, Direction::Sent),
        };
        for (direction, opposite, text) in [(asks, 0, asked.as_str()), (answers, asked.len(), answer)] {
            self.now += MS;
            let length = text.len() as u32;
            let fields = Data {
                cookie,
                opposite: opposite as u64,
                length,
                captured: length,
                direction: direction as u8,
                ..Data::default()
            };
            self.record(encode(kind::DATA, self.now, process, &fields, text.as_bytes()));
        }
        let closed = Closed { cookie, ..Closed::default() };
        self.record(encode(kind::CLOSED, self.now, process, &closed, &[]));
        // The other end of it is not waited for any longer.
        self.pass(300 * MS);
    }

    fn pass(&mut self, time: u64) {
        let until = self.now + time;
        while self.now < until {
            self.now = (self.now + 100 * MS).min(until);
            self.record(own::tick(self.now));
        }
    }

    /// What came out until now.
    fn take(&mut self) -> Vec<serde_json::Value> {
        let lines = self.lines.drain(..);
        lines.map(|line| serde_json::from_str(&line).expect("JSON")).collect()
    }

    /// Until the end; and all of it once more, whose spans nobody asked for until the end.
    fn finish(mut self) -> (Vec<serde_json::Value>, Counts) {
        self.record(own::finished(self.now));
        let counts = self.pipeline.ledger().late;
        assert!(!self.pipeline.is_waiting() && self.pipeline.unfinished() == 0);
        let run = |drained: bool| {
            let mut pipeline = Pipeline::new(self.limits.clone());
            let mut lines = Vec::new();
            for bytes in &self.records {
                pipeline.handle_record(&Record::parse(bytes).expect("a record"));
                if drained {
                    lines.extend(std::iter::from_fn(|| pipeline.poll_output()).map(|span| json::line(&span)));
                }
            }
            lines.extend(std::iter::from_fn(|| pipeline.poll_output()).map(|span| json::line(&span)));
            lines
        };
        let whole = run(true);
        assert_eq!(whole, run(false));
        assert!(whole.ends_with(&self.lines));
        (self.take(), counts)
    }
}

/// Path, pod and service of each.
fn said(spans: &[serde_json::Value]) -> Vec<[&str; 3]> {
    let text = |value: &'_ serde_json::Value| -> &'static str {
        Box::leak(value.as_str().unwrap_or("-").to_owned().into_boxed_str())
    };
    let said = spans.iter().map(|span| {
        let (attributes, resource) = (&span["attributes"], &span["resource"]);
        let path =
            attributes["url.path"].as_str().map_or(&attributes["url.full"], |_| &attributes["url.path"]);
        [text(path), text(&resource["k8s.pod.name"]), text(&resource["service.name"])]
    });
    said.collect()
}

#[test]
fn a_span_waits_for_its_pod_and_no_other_does() {
    let mut world = World::new(watch(true, false));
    world.process(10, 0);
    world.process(20, 1);
    world.object(&pod(1, "shop-b"));
    world.serve(10, "/late");
    world.serve(20, "/known");
    assert_eq!(said(&world.take()), [["/known", "shop-b", "shop"]]);
    assert!(world.pipeline.is_waiting() && world.pipeline.unfinished() == 1);
    world.pass(2 * SECOND);
    assert!(world.take().is_empty());
    world.object(&pod(0, "shop-a"));
    let spans = world.take();
    assert_eq!(said(&spans), [["/late", "shop-a", "shop"]]);
    let resource = &spans[0]["resource"];
    for (key, value) in [
        ("service.namespace", "prod"),
        ("service.version", "1.2"),
        ("service.instance.id", "prod.shop-a.app"),
        ("container.id", &id(0)),
        ("container.image.name", "r.io/shop"),
        ("k8s.namespace.name", "prod"),
        ("k8s.pod.uid", PODS[0]),
        ("k8s.container.name", "app"),
        ("k8s.node.name", "node-1"),
        ("k8s.deployment.name", "shop"),
        ("k8s.replicaset.name", "shop-5f"),
    ] {
        assert_eq!(resource[key], value, "{key}");
    }
    let (rest, counts) = world.finish();
    assert_eq!((rest.len(), counts), (0, Counts { waited: 1, ..Counts::default() }));
}

#[test]
fn a_pod_that_is_not_told_is_waited_for_once() {
    let mut world = World::new(watch(true, false));
    world.process(10, 0);
    world.serve(10, "/1");
    world.pass(2 * SECOND);
    world.serve(10, "/2");
    world.pass(2 * SECOND);
    assert!(world.take().is_empty());
    world.pass(SECOND);
    let spans = world.take();
    assert_eq!(said(&spans), [["/1", "-", "app"], ["/2", "-", "app"]]);
    // What the cgroup says, and nothing that nobody said.
    let resource = spans[0]["resource"].as_object().expect("a map");
    let known: Vec<_> = resource.keys().filter(|key| key.starts_with("k8s.")).collect();
    assert_eq!(known, ["k8s.pod.uid"]);
    assert_eq!((&resource["k8s.pod.uid"], &resource["container.id"]), (&PODS[0].into(), &id(0).into()));
    world.serve(10, "/3");
    assert_eq!(said(&world.take()), [["/3", "-", "app"]]);
    // It is told at last.
    world.object(&pod(0, "shop-a"));
    world.serve(10, "/4");
    assert_eq!(said(&world.take()), [["/4", "shop-a", "shop"]]);
    assert_eq!(world.finish().1, Counts { waited: 2, podless: 3, ..Counts::default() });
}

#[test]
fn nothing_waits_while_the_api_is_not_heard() {
    let mut world = World::new(watch(false, false));
    world.process(10, 0);
    world.serve(10, "/1");
    assert_eq!(said(&world.take()), [["/1", "-", "app"]]);
    world.object(&watch(true, false));
    world.serve(10, "/2");
    assert!(world.take().is_empty());
    // It falls silent: what waits goes.
    world.object(&watch(false, false));
    assert_eq!(said(&world.take()), [["/2", "-", "app"]]);
    world.object(&pod(0, "shop-a"));
    world.object(&Object::Gone { uid: PODS[0].into() });
    // What was told stays known.
    world.serve(10, "/3");
    assert_eq!(said(&world.take()), [["/3", "shop-a", "shop"]]);
    assert_eq!(world.finish().1, Counts { waited: 1, ..Counts::default() });
}

#[test]
fn a_pod_that_lives_shortly_is_known_after_it_is_gone() {
    let mut world = World::new(watch(true, false));
    world.process(10, 0);
    world.serve(10, "/1");
    world.ends(10);
    // Its number is that of a process of another pod by now.
    world.process(10, 1);
    world.object(&pod(1, "shop-b"));
    world.serve(10, "/2");
    assert_eq!(said(&world.take()), [["/2", "shop-b", "shop"]]);
    world.object(&pod(0, "shop-a"));
    world.object(&Object::Gone { uid: PODS[0].into() });
    let spans = world.take();
    assert_eq!(said(&spans), [["/1", "shop-a", "shop"]]);
    assert_eq!(spans[0]["resource"]["container.id"], id(0));
    assert_eq!(world.finish().1, Counts { waited: 1, ..Counts::default() });
}

/// Five of one image on the node's own address: nothing but the cgroup tells them apart.
#[test]
fn pods_of_one_image_and_one_address_stay_apart() {
    let mut world = World::new(watch(true, false));
    let names = ["shop-a", "shop-b", "shop-c"];
    for (n, name) in names.iter().enumerate() {
        world.process(10 + n as u32, n);
        world.object(&pod(n, name));
    }
    for n in [2, 0, 1, 1, 2] {
        world.serve(10 + n as u32, "/");
        assert_eq!(said(&world.take()), [["/", names[n], "shop"]]);
    }
    world.finish();
}

#[test]
fn what_waits_is_bounded() {
    let limits = Limits { memory: SHARE * 8192, ..Limits::default() };
    let mut world = World::within(limits, watch(true, false));
    world.process(10, 0);
    for n in 0..10 {
        world.serve(10, &format!("/{n}"));
        assert!(world.pipeline.unfinished() < 8);
    }
    let early = world.take();
    assert!(!early.is_empty());
    world.object(&pod(0, "shop-a"));
    let late = world.take();
    assert!(!late.is_empty());
    let all = [early.clone(), late].concat();
    let paths: Vec<String> = said(&all).iter().map(|said| said[0].to_owned()).collect();
    assert_eq!(paths, (0..10).map(|n| format!("/{n}")).collect::<Vec<_>>());
    let counts = world.finish().1;
    assert_eq!(counts, Counts { waited: 10, crowded: early.len() as u64, ..Counts::default() });
}

#[test]
fn the_end_lets_all_go() {
    let mut world = World::new(watch(true, false));
    world.process(10, 0);
    world.serve(10, "/1");
    let (spans, counts) = world.finish();
    assert_eq!(said(&spans), [["/1", "-", "app"]]);
    assert_eq!(counts, Counts { waited: 1, podless: 1, ..Counts::default() });
}

#[test]
fn what_is_counted_is_counted_for_the_pod() {
    let mut world = World::new(watch(true, false));
    world.process(10, 0);
    let connect =
        Connect { established: 1, cookie: 99, family: AF_INET, began: world.now, ..Connect::default() };
    world.record(encode(kind::CONNECT, world.now + 1, 10, &connect, &[]));
    assert!(world.facts.is_empty());
    world.object(&pod(0, "shop-a"));
    assert_eq!(world.facts.len(), 1);
    assert_eq!(world.facts[0].resource.service, "shop");
}

#[test]
fn who_is_at_the_other_end_is_asked_and_waited_for() {
    let address = IpAddr::from([10, 0, 0, 9]);
    let named = |name: &str| Some(Named { namespace: "prod".into(), name: name.into() });
    let workload = Some(Owner { kind: "Deployment".into(), name: "cart".into() });
    let peer = Object::Peer(Peer { address, service: named("carts"), pod: None, workload });
    let mut world = World::new(watch(false, true));
    world.exchange(10, "/1", Role::Client);
    assert_eq!((world.pipeline.poll_peer(), world.pipeline.poll_peer()), (Some(address), None));
    assert!(world.take().is_empty());
    world.object(&peer);
    world.exchange(10, "/2", Role::Server);
    let spans = world.take();
    assert_eq!(spans.len(), 2);
    for span in &spans {
        let attributes = &span["attributes"];
        assert_eq!(attributes["service.peer.name"], "cart");
        assert_eq!(attributes["tracer.peer.service.name"], "carts");
        assert_eq!(attributes["network.peer.address"], "10.0.0.9");
    }
    assert_eq!(spans[0]["attributes"]["server.address"], "a");
    assert_eq!(world.pipeline.poll_peer(), None);
    assert_eq!(world.finish().1, Counts { waited: 1, ..Counts::default() });
}

#[test]
fn an_address_that_nobody_tells_of_is_waited_for_once() {
    let mut world = World::new(watch(false, true));
    world.exchange(10, "/1", Role::Client);
    world.pass(SECOND);
    let spans = world.take();
    assert_eq!((spans.len(), &spans[0]["attributes"]["service.peer.name"]), (1, &serde_json::Value::Null));
    world.exchange(10, "/2", Role::Client);
    assert_eq!(world.take().len(), 1);
    assert_eq!(world.finish().1, Counts { waited: 1, peerless: 1, ..Counts::default() });
}

#[test]
fn a_record_of_an_object_that_is_none_is_damage() {
    let mut world = World::new(watch(true, true));
    let before = world.pipeline.ledger().damaged;
    for text in ["", "{}", "null", r#"{"kind":"pod","uid":7}"#, r#"{"kind":"peer","address":"shop"}"#] {
        let header = Header::default();
        world.record(encode(kind::OBJECT, 1, 0, &header, text.as_bytes()));
    }
    assert_eq!(world.pipeline.ledger().damaged, before + 5);
    world.object(&Object::Pod(Pod::default()));
    world.object(&Object::Gone { uid: "nobody".into() });
}
