//! An API that is away, slow, forgets, or refuses.

#![allow(clippy::disallowed_methods, reason = "it is measured how long something takes")]

use std::{
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use kube::config::Kubeconfig;
use serde_json::json;
use tracer_agent::{enrich::kubernetes::Object, live::kubernetes::Place};

use tracer_tests::own::Own;

use super::cluster::{Cluster, GROUP, Heard, pod};

/// Between a watcher and the API, to be cut or to be held up.
struct Wire {
    kubeconfig: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    cut: bool,
    held_up: bool,
    streams: Vec<TcpStream>,
}

impl Wire {
    /// As a file for the API says, but through here.
    fn new(cluster: &Cluster, kubeconfig: &PathBuf) -> Self {
        let mut file = Kubeconfig::read_from(kubeconfig).expect("a file");
        let said = file.clusters[0].cluster.as_mut().expect("a cluster");
        let uri: http::Uri = said.server.as_deref().expect("a server").parse().expect("an address");
        let to = format!("{}:{}", uri.host().expect("a host"), uri.port_u16().unwrap_or(443));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        said.server = Some(format!("https://{}", listener.local_addr().expect("its address")));
        said.tls_server_name = uri.host().map(str::to_owned);
        let path = cluster.folder.path("wire.kubeconfig");
        std::fs::write(&path, serde_json::to_string(&file).expect("JSON")).expect("a file");
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let mut state = shared.0.lock().expect("no panic there");
                let far = (!state.cut).then(|| TcpStream::connect(&to).ok()).flatten();
                let Some(far) = far else { continue };
                let ways = [(&near, &far), (&far, &near)];
                for (from, to) in
                    ways.map(|(a, b)| (a.try_clone().expect("a socket"), b.try_clone().expect("a socket")))
                {
                    let shared = shared.clone();
                    std::thread::spawn(move || pass(&from, &to, &shared));
                }
                state.streams.extend([near, far]);
            }
        });
        Self { kubeconfig: path, state }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.0.lock().expect("no panic there"));
        self.state.1.notify_all();
    }

    fn cut(&self) {
        self.set(|state| {
            state.cut = true;
            for stream in state.streams.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    fn mend(&self) {
        self.set(|state| (state.cut, state.held_up) = (false, false));
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, state: &(Mutex<State>, Condvar)) {
    use std::io::{Read, Write};
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let held = state.0.lock().expect("no panic there");
        drop(state.1.wait_while(held, |state| state.held_up).expect("no panic there"));
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn through(cluster: &Cluster, wire: &Wire) -> Heard {
    cluster.watch_with(|options| options.place = Place::File(wire.kubeconfig.clone()))
}

/// What changed meanwhile is told by a new list, as the server has forgotten where the watch was.
#[test]
fn what_happened_while_nothing_was_heard_is_told() {
    let Some(own) = Own::find() else {
        println!("skipped: this API server is not ours to be killed");
        return;
    };
    let cluster = Cluster::new();
    for name in ["goes", "stays", "changes"] {
        cluster.create(GROUP, "pods", &pod(name, &cluster.node));
    }
    let wire = Wire::new(&cluster, &cluster.kubeconfig);
    let mut heard = through(&cluster, &wire);
    heard.wait("three pods", |heard| (heard.pods().len() == 3).then_some(()));
    let uid = heard.pods()["goes"].uid.clone();
    let before = heard.told.len();
    wire.cut();
    let cut = Instant::now();
    cluster.delete_pod("goes");
    cluster.create(GROUP, "pods", &pod("comes", &cluster.node));
    cluster.create(GROUP, "pods", &pod("blinks", &cluster.node));
    cluster.delete_pod("blinks");
    let team = json!({"metadata": {"labels": {"app.kubernetes.io/version": "2"}}});
    cluster.patch_pod("changes", &team);
    own.kill_api();
    own.compact();
    own.start_api();
    heard.wait("it to be told that nothing is heard", |heard| (!heard.watch().pods).then_some(()));
    assert!(cut.elapsed() >= Duration::from_secs(10), "{:?}", cut.elapsed());
    assert_eq!(heard.told.len(), before + 1, "{:?}", &heard.told[before..]);
    wire.mend();
    heard.wait("it to be told that all is heard", |heard| heard.watch().pods.then_some(()));
    let mut told: Vec<String> = heard.told[before..]
        .iter()
        .map(|object| match object {
            Object::Pod(pod) => pod.name.clone(),
            Object::Gone { uid: gone } => format!("gone: {}", *gone == uid),
            Object::Watch(watch) => format!("heard: {}", watch.pods),
            Object::Peer(_) => "a peer".into(),
        })
        .collect();
    // All of it before anybody waits for more.
    assert_eq!(told.pop().as_deref(), Some("heard: true"));
    assert_eq!(told.remove(0), "heard: false");
    told.sort();
    assert_eq!(told, ["changes", "comes", "gone: true"]);
    let state = heard.watcher.state();
    assert_eq!(state.restarts, [("pods", 1)]);
    assert_eq!(heard.requests("list", "pods"), 2, "{:?}", state.requests);
}

/// Several seconds without a server are soon made up for.
#[test]
fn a_server_that_is_killed_is_found_again() {
    let Some(own) = Own::find() else {
        println!("skipped: this API server is not ours to be killed");
        return;
    };
    let cluster = Cluster::new();
    cluster.create(GROUP, "pods", &pod("first", &cluster.node));
    let mut heard = cluster.watch();
    heard.wait_pod("first", |_| true);
    own.kill_api();
    heard.wait("the loss to be noticed", |heard| {
        heard.watcher.state().hearing.iter().any(|hearing| hearing.error.is_some()).then_some(())
    });
    own.start_api();
    cluster.create(GROUP, "pods", &pod("second", &cluster.node));
    cluster.delete_pod("first");
    heard.wait("both to be told", |heard| {
        let pods = heard.pods();
        (pods.len() == 1 && pods.contains_key("second")).then_some(())
    });
    heard.wait_heard();
    // As long as nothing had ever been refused it was asked some times, not all the time.
    assert!(
        heard.requests("watch", "pods") + heard.requests("list", "pods") < 30,
        "{:?}",
        heard.watcher.state()
    );
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for() {
    let cluster = Cluster::new();
    cluster.create(GROUP, "pods", &pod("first", &cluster.node));
    let wire = Wire::new(&cluster, &cluster.kubeconfig);
    wire.set(|state| state.held_up = true);
    let began = Instant::now();
    let mut heard = through(&cluster, &wire);
    heard.wait("the first word", |heard| (!heard.told.is_empty()).then_some(()));
    assert!(heard.watch().pods, "hope");
    heard.wait("no hope", |heard| (!heard.watch().pods).then_some(()));
    let waited = began.elapsed();
    assert!((10..13).contains(&waited.as_secs()), "{waited:?}");
    wire.mend();
    heard.wait_pod("first", |_| true);
    heard.wait("hope", |heard| heard.watch().pods.then_some(()));
}

#[test]
fn rights_that_come_late_count() {
    let mut cluster = Cluster::new();
    cluster.create(GROUP, "pods", &pod("first", &cluster.node));
    let token = cluster.folder.path("token");
    let file = cluster.account("agent", &token);
    std::fs::write(&token, cluster.token("agent", "one")).expect("a file");
    let mut heard = cluster.watch_with(|options| options.place = Place::File(file));
    heard.wait("a refusal", |heard| {
        let state = heard.watcher.state();
        let hearing = state.hearing.first()?;
        let error = hearing.error.as_deref()?;
        assert!(hearing.denied && error.contains("403") && error.contains("cannot list"), "{error}");
        Some(())
    });
    heard.wait("it to be told that nothing is heard", |heard| (!heard.watch().pods).then_some(()));
    // Who may not asks seldom.
    assert!(heard.requests("list", "pods") <= 3, "{:?}", heard.watcher.state().requests);
    cluster.grant("agent");
    heard.wait_pod("first", |_| true);
    heard.wait("it to be told that all is heard", |heard| heard.watch().pods.then_some(()));
    heard.wait_heard();
}

/// A token that does not count any more is replaced by the one that is in the file by then.
#[test]
fn tokens_are_read_again() {
    let mut cluster = Cluster::new();
    cluster.create(GROUP, "pods", &pod("first", &cluster.node));
    let token = cluster.folder.path("token");
    let file = cluster.account("agent", &token);
    cluster.grant("agent");
    std::fs::write(&token, cluster.token("agent", "one")).expect("a file");
    let wire = Wire::new(&cluster, &file);
    let mut heard = through(&cluster, &wire);
    heard.wait_pod("first", |_| true);
    let lists = heard.requests("list", "pods");
    cluster.ask("DELETE", &format!("{}/secrets/one", cluster.inside(GROUP)), None);
    // A watch that runs goes on: only the next one is asked who it is.
    wire.cut();
    wire.mend();
    heard.wait("a refusal", |heard| {
        if heard.watcher.state().hearing.iter().all(|hearing| hearing.heard) {
            wire.cut();
            wire.mend();
        }
        let state = heard.watcher.state();
        let error = state.hearing.first()?.error.clone()?;
        error.contains("401").then_some(())
    });
    cluster.create(GROUP, "pods", &pod("second", &cluster.node));
    std::fs::write(&token, cluster.token("agent", "two")).expect("a file");
    heard.wait_pod("second", |_| true);
    // It went on where it was.
    assert_eq!(heard.requests("list", "pods"), lists);
}
