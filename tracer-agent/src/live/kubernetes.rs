//! What Kubernetes says: a thread of its own watches the API, and tells the capture what enters as records. The
//! capture never waits for it: an API that is slow, away, or refuses costs attributes, and nothing else.

mod api;
mod feed;
mod owners;
mod peers;
mod pods;
mod room;
mod slim;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc::{Receiver, Sender, channel};

pub use self::{
    api::Place,
    pods::{Kept, OPT},
};
use self::{
    api::{Api, NAMESPACES, PODS, Resource, SERVICES, SLICES},
    feed::{Event, Feed},
    owners::Owners,
    room::{News, Room},
    slim::Watched,
};
use crate::enrich::kubernetes::{Object, Watch};

/// What waits for the capture, for the room, and for an answer.
const OBJECTS: usize = 1024;
const NEWS: usize = 256;
const ASKS: usize = 1024;

/// How often is looked while somebody waits.
const STEP: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub struct Options {
    pub place: Place,
    /// Whose pods are told.
    pub node: String,
    /// What only the user knows: what the cluster is called, and which labels and annotations are shown.
    pub told: Watch,
    pub kept: Kept,
    pub peers: Peers,
}

/// Whose addresses are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    None,
    /// Services, and the pods of this node.
    #[default]
    Node,
    /// And all pods.
    Cluster,
}

/// How things stand.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub hearing: Vec<Hearing>,
    /// What is held, by kind.
    pub objects: Vec<(&'static str, u64)>,
    /// Pods of this node that did not fit.
    pub over: u64,
    /// Owners that are being looked up.
    pub pending: u64,
    /// Pods that are not told yet, or not all of them.
    pub waiting: u64,
    /// Addresses whose changes are told.
    pub asked: u64,
    /// About what is held of peers takes.
    pub bytes: u64,
    /// What the capture was told of all that.
    pub told: Watch,
    /// By verb, resource and what came of them.
    pub requests: Vec<((&'static str, &'static str, &'static str), u64)>,
    /// Lists that had to be made again as the API had forgotten where the watch was.
    pub restarts: Vec<(&'static str, u64)>,
}

/// Whether a kind of objects is heard of.
#[derive(Clone, Debug)]
pub struct Hearing {
    pub what: &'static str,
    pub heard: bool,
    /// When that began.
    pub since: Instant,
    pub error: Option<String>,
    /// The API answers, and refuses.
    pub denied: bool,
}

pub struct Watcher {
    objects: Receiver<Object>,
    asks: Sender<IpAddr>,
    state: Arc<Mutex<State>>,
    api: Arc<Api>,
}

impl Watcher {
    pub fn start(options: Options) -> Result<Self> {
        let (out, objects) = channel(OBJECTS);
        let (asks, asked) = channel(ASKS);
        let state = Arc::new(Mutex::new(State::default()));
        let api = Api::new(options.place.clone());
        let (theirs, shared) = (api.clone(), state.clone());
        std::thread::Builder::new()
            .name("kubernetes".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(watch(options, theirs, out, asked, shared)),
                    Err(error) => tracing::error!("kubernetes: nothing can be watched: {error}"),
                }
            })
            .context("no thread can be started")?;
        Ok(Self { objects, asks, state, api })
    }

    /// What is new, in the order in which it is to be told.
    pub fn poll(&mut self) -> Option<Object> {
        self.objects.try_recv().ok()
    }

    /// All that is told until the pods of the node are known, which may take so long.
    pub fn wait(&mut self, most: Duration) -> Result<Vec<Object>> {
        #[allow(clippy::disallowed_methods, reason = "a bound for a wait, of which nothing else depends")]
        let until = Instant::now() + most;
        let mut told = Vec::new();
        loop {
            // What is said to be heard was told before.
            let state = self.state();
            while let Some(object) = self.poll() {
                told.push(object);
            }
            let asked = |hearing: &&Hearing| matches!(hearing.what, "pods" | "namespaces");
            let asked: Vec<&Hearing> = state.hearing.iter().filter(asked).collect();
            if !asked.is_empty()
                && asked.iter().all(|hearing| hearing.heard)
                && state.pending + state.waiting == 0
            {
                return Ok(told);
            }
            let silent = asked.into_iter().find(|hearing| !hearing.heard);
            #[allow(clippy::disallowed_methods, reason = "a bound for a wait, of which nothing else depends")]
            let over = Instant::now() >= until;
            match silent.and_then(|silent| Some((silent.what, silent.denied, silent.error.as_ref()?))) {
                Some((what, denied, error)) if denied || over => {
                    bail!("Kubernetes does not tell its {what}: {error}")
                }
                _ if over => bail!("Kubernetes did not tell its pods within {} s", most.as_secs()),
                _ => std::thread::sleep(STEP),
            }
        }
    }

    /// Asks who is behind an address: it is told, and told again when that changes. False if there is no room for
    /// the question yet.
    pub fn ask(&self, address: IpAddr) -> bool {
        self.asks.try_send(address).is_ok()
    }

    /// All pods of the node were told once, or wait to be polled.
    pub fn has_told_pods(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_done = state.pending == 0 && state.waiting == 0;
        is_done && state.hearing.iter().any(|hearing| hearing.what == "pods" && hearing.heard)
    }

    pub fn has_room(&self) -> bool {
        self.asks.capacity() > 0
    }

    pub fn state(&self) -> State {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        State {
            requests: self.api.requests().into_iter().collect(),
            restarts: self.api.restarts().into_iter().collect(),
            ..state
        }
    }
}

/// Until the watcher is dropped.
async fn watch(
    options: Options,
    api: Arc<Api>,
    out: Sender<Object>,
    asked: Receiver<IpAddr>,
    state: Arc<Mutex<State>>,
) {
    let (news, heard) = channel(NEWS);
    let node = url::form_urlencoded::byte_serialize(options.node.as_bytes()).collect::<String>();
    let mut feeds = vec!["pods"];
    // A `=` that belongs to the selector.
    start(&api, &news, PODS, format!("&fieldSelector=spec.nodeName%3D{node}"), News::Pods);
    if options.kept.asks_namespaces() {
        feeds.push("namespaces");
        start(&api, &news, NAMESPACES, String::new(), News::Namespaces);
    }
    if options.peers != Peers::None {
        feeds.push("services");
        start(&api, &news, SERVICES, String::new(), News::Services);
    }
    if options.peers == Peers::Cluster {
        feeds.extend(["endpointslices", "cluster pods"]);
        start(&api, &news, SLICES, String::new(), News::Slices);
        start(&api, &news, PODS, String::new(), News::FarPods);
    }
    let owners = Owners::new(api, news);
    Room::new(&options, &feeds, out, owners, state).run(heard, asked).await;
}

fn start<T: Watched>(
    api: &Arc<Api>,
    news: &Sender<News>,
    resource: Resource,
    query: String,
    wrap: fn(Event<T>) -> News,
) {
    let feed = Feed { api: api.clone(), resource, query, news: news.clone(), wrap };
    tokio::spawn(feed.run());
}
