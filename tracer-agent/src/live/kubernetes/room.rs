//! Where all that is heard comes together: what is told of it, to whom it matters, and for how long nothing is
//! heard.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, Sender};

use super::{
    Hearing, Options, Peers, State,
    api::Trouble,
    feed::{Event, Lost},
    owners::{Made, Owners},
    peers::{Index, Kind},
    pods::Pods,
    slim,
};
use crate::enrich::kubernetes::{Object, Peer, Watch};

/// When the API was not heard for so long nobody waits for what it may say.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer waits so long for the owner of somebody's owner.
const OWNER: Duration = Duration::from_secs(1);

/// How often is looked whether somebody has waited for long enough, and while nobody waits.
const TICK: Duration = Duration::from_millis(100);
const TICK_IDLE: Duration = Duration::from_millis(500);

/// How often the size of what is held is reckoned anew.
const SIZE: Duration = Duration::from_secs(5);

/// Addresses that were asked for, whose changes are told: the oldest goes.
const ASKED_MAX: usize = 8192;

/// What comes into the room.
pub(super) enum News {
    Pods(Event<slim::Pod>),
    Namespaces(Event<slim::Partial>),
    FarPods(Event<slim::FarPod>),
    Services(Event<slim::Service>),
    Slices(Event<slim::Slice>),
    Owner(Made, Result<slim::Partial, Trouble>),
}

pub(super) struct Room {
    out: Sender<Object>,
    pods: Pods,
    owners: Owners,
    index: Index,
    mode: Peers,
    asked: BTreeMap<IpAddr, Asked>,
    order: VecDeque<IpAddr>,
    /// One of them waits for somebody's owner.
    waits: bool,
    feeds: BTreeMap<&'static str, Listening>,
    told: Watch,
    state: Arc<Mutex<State>>,
    /// When its size was reckoned last.
    sized: Option<Instant>,
}

struct Asked {
    told: Option<Peer>,
    since: Instant,
    /// Somebody's owner is being looked up.
    waits: bool,
}

/// What is heard of a kind of objects.
struct Listening {
    listed: bool,
    lost: Option<Lost>,
    since: Instant,
}

/// Nobody listens any more.
struct Deaf;

impl Room {
    pub(super) fn new(
        options: &Options,
        feeds: &[&'static str],
        out: Sender<Object>,
        owners: Owners,
        state: Arc<Mutex<State>>,
    ) -> Self {
        let listening = || Listening { listed: false, lost: None, since: Instant::now() };
        Self {
            out,
            pods: Pods::new(options.kept.clone()),
            owners,
            index: Index::default(),
            mode: options.peers,
            asked: BTreeMap::new(),
            order: VecDeque::new(),
            waits: false,
            feeds: feeds.iter().map(|feed| (*feed, listening())).collect(),
            // Hope: what is there is about to be told.
            told: Watch { pods: true, peers: options.peers != Peers::None, ..options.told.clone() },
            state,
            sized: None,
        }
    }

    /// Until nobody asks any more.
    pub(super) async fn run(mut self, mut news: Receiver<News>, mut asks: Receiver<IpAddr>) {
        if self.out.send(Object::Watch(self.told.clone())).await.is_err() {
            return;
        }
        let mut next = tokio::time::Instant::now() + TICK;
        loop {
            let handled = tokio::select! {
                some = news.recv() => match some {
                    Some(some) => self.handle(some).await,
                    None => return,
                },
                address = asks.recv() => match address {
                    Some(address) => self.handle_ask(address).await,
                    None => return,
                },
                () = tokio::time::sleep_until(next) => {
                    next += TICK_IDLE;
                    self.handle_tick().await
                }
            };
            if handled.is_err() {
                return;
            }
            if self.pods.waiting() > 0 || self.waits {
                next = next.min(tokio::time::Instant::now() + TICK);
            }
        }
    }

    async fn handle(&mut self, news: News) -> Result<(), Deaf> {
        match news {
            News::Pods(event) => self.handle_pods(event).await,
            News::Namespaces(event) => {
                match self.heard("namespaces", event) {
                    Heard::Begins => self.pods.begin_namespaces(),
                    Heard::Is(namespace) => {
                        for object in self.pods.is_namespace(namespace.metadata, &mut self.owners) {
                            self.tell(object).await?;
                        }
                    }
                    Heard::Gone(namespace) => self.pods.remove_namespace(&namespace.metadata.name),
                    Heard::Listed => self.pods.end_namespaces(),
                    Heard::Else => {}
                }
                self.tell_hearing().await
            }
            News::FarPods(event) => {
                let touched = match self.heard("cluster pods", event) {
                    Heard::Begins => return self.begin(Kind::Pods),
                    Heard::Is(pod) => set_pod(&mut self.index, &pod).to_vec(),
                    Heard::Gone(pod) => self.index.remove_pod(&pod.metadata).to_vec(),
                    Heard::Listed => return self.end(Kind::Pods).await,
                    Heard::Else => Vec::new(),
                };
                self.answer(&touched).await
            }
            News::Services(event) => {
                let touched = match self.heard("services", event) {
                    Heard::Begins => return self.begin(Kind::Services),
                    Heard::Is(service) => self.index.set_service(&service).to_vec(),
                    Heard::Gone(service) => self.index.remove_service(&service).to_vec(),
                    Heard::Listed => return self.end(Kind::Services).await,
                    Heard::Else => Vec::new(),
                };
                self.answer(&touched).await
            }
            News::Slices(event) => {
                let touched = match self.heard("endpointslices", event) {
                    Heard::Begins => return self.begin(Kind::Slices),
                    Heard::Is(slice) => self.index.set_slice(&slice).to_vec(),
                    Heard::Gone(slice) => self.index.remove_slice(&slice).to_vec(),
                    Heard::Listed => return self.end(Kind::Slices).await,
                    Heard::Else => Vec::new(),
                };
                self.answer(&touched).await
            }
            News::Owner(made, found) => {
                if self.owners.handle(&made, found) {
                    self.tell_waiting().await?;
                }
                Ok(())
            }
        }
    }

    async fn handle_pods(&mut self, event: Event<slim::Pod>) -> Result<(), Deaf> {
        // In this mode they are all that is known of pods.
        let near = self.mode == Peers::Node;
        match self.heard("pods", event) {
            Heard::Begins => {
                self.pods.begin_list();
                if near {
                    self.index.begin_list(Kind::Pods);
                }
                Ok(())
            }
            Heard::Is(pod) => {
                let touched = match near {
                    true => {
                        let none = pod.spec.host_network || pod.status.is_over();
                        let addresses = pod.status.addresses().filter(|_| !none);
                        self.index.set_pod(&pod.metadata, addresses).to_vec()
                    }
                    false => Vec::new(),
                };
                if let Some(object) = self.pods.is(pod, &mut self.owners) {
                    self.tell(object).await?;
                }
                self.answer(&touched).await
            }
            Heard::Gone(pod) => {
                for object in self.pods.remove(&pod.metadata.uid) {
                    self.tell(object).await?;
                }
                let touched = match near {
                    true => self.index.remove_pod(&pod.metadata).to_vec(),
                    false => Vec::new(),
                };
                self.answer(&touched).await
            }
            Heard::Listed => {
                for object in self.pods.end_list() {
                    self.tell(object).await?;
                }
                if near {
                    return self.end(Kind::Pods).await;
                }
                self.tell_hearing().await
            }
            Heard::Else => self.tell_hearing().await,
        }
    }

    /// Takes notice of what the event says of the API itself.
    fn heard<T>(&mut self, feed: &'static str, event: Event<T>) -> Heard<T> {
        let Some(listening) = self.feeds.get_mut(feed) else { return Heard::Else };
        match event {
            Event::Begins => return Heard::Begins,
            Event::Is(object) => return Heard::Is(object),
            Event::Gone(object) => return Heard::Gone(object),
            Event::Lost(lost) => {
                if listening.lost.is_none() {
                    tracing::warn!("kubernetes: {feed} are not heard of: {}; trying again", lost.reason);
                    // Who was never heard is waited for from the start on.
                    if listening.listed {
                        listening.since = Instant::now();
                    }
                } else {
                    tracing::debug!("kubernetes: {feed} are not heard of: {}", lost.reason);
                }
                listening.lost = Some(lost);
                return Heard::Else;
            }
            Event::Listed | Event::Heard => {}
        }
        let is_list = matches!(event, Event::Listed);
        listening.listed |= is_list;
        if listening.lost.take().is_some() {
            let seconds = listening.since.elapsed().as_secs();
            tracing::warn!("kubernetes: {feed} are heard of again after {seconds}s");
            listening.since = Instant::now();
        }
        if is_list { Heard::Listed } else { Heard::Else }
    }

    fn begin(&mut self, kind: Kind) -> Result<(), Deaf> {
        self.index.begin_list(kind);
        Ok(())
    }

    async fn end(&mut self, kind: Kind) -> Result<(), Deaf> {
        let touched = self.index.end_list(kind);
        self.answer(&touched).await?;
        if self.is_indexed() {
            let unanswered = self.asked.iter().filter(|(_, asked)| asked.told.is_none());
            let unanswered: Vec<IpAddr> = unanswered.map(|(address, _)| *address).collect();
            self.answer(&unanswered).await?;
        }
        self.tell_hearing().await
    }

    async fn handle_ask(&mut self, address: IpAddr) -> Result<(), Deaf> {
        if self.mode == Peers::None {
            return Ok(());
        }
        let asked = self.asked.entry(address).or_insert_with(|| {
            self.order.push_back(address);
            Asked { told: None, since: Instant::now(), waits: false }
        });
        // Asked for again: whoever asks has forgotten.
        (asked.told, asked.since) = (None, Instant::now());
        while self.order.len() > ASKED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.asked.remove(&oldest);
            }
        }
        self.answer(&[address]).await
    }

    async fn handle_tick(&mut self) -> Result<(), Deaf> {
        if self.pods.waiting() > 0 {
            for object in self.pods.tell_waiting(&mut self.owners) {
                self.tell(object).await?;
            }
        }
        let waiting = self.asked.iter().filter(|(_, asked)| asked.waits && asked.since.elapsed() >= OWNER);
        let waiting: Vec<IpAddr> = waiting.map(|(address, _)| *address).collect();
        self.answer(&waiting).await?;
        self.waits = self.asked.values().any(|asked| asked.waits);
        self.tell_hearing().await?;
        self.publish();
        Ok(())
    }

    /// An owner is known that somebody may have waited for.
    async fn tell_waiting(&mut self) -> Result<(), Deaf> {
        for object in self.pods.tell_waiting(&mut self.owners) {
            self.tell(object).await?;
        }
        let waiting = self.asked.iter().filter(|(_, asked)| asked.waits);
        let waiting: Vec<IpAddr> = waiting.map(|(address, _)| *address).collect();
        self.answer(&waiting).await
    }

    /// Tells who is at those of the addresses that were asked for, where that is news.
    async fn answer(&mut self, addresses: &[IpAddr]) -> Result<(), Deaf> {
        if !self.is_indexed() {
            return Ok(());
        }
        for address in addresses {
            let Some(asked) = self.asked.get_mut(address) else { continue };
            let (peer, known) = self.index.peer(*address, &mut self.owners);
            asked.waits = !known;
            self.waits |= asked.waits;
            let wait = !known && asked.told.is_none() && asked.since.elapsed() < OWNER;
            if wait || asked.told.as_ref() == Some(&peer) {
                continue;
            }
            asked.told = Some(peer.clone());
            self.tell(Object::Peer(peer)).await?;
        }
        Ok(())
    }

    /// All has been listed once from which addresses are told.
    fn is_indexed(&self) -> bool {
        self.mode != Peers::None && self.of_peers().all(|feed| feed.listed)
    }

    /// What tells of addresses.
    fn of_peers(&self) -> impl Iterator<Item = &Listening> {
        self.feeds.iter().filter(|(name, _)| **name != "namespaces").map(|(_, feed)| feed)
    }

    /// Whether the API is heard, where that is news: an interruption is none until it has lasted.
    async fn tell_hearing(&mut self) -> Result<(), Deaf> {
        let is_heard = |feed: &Listening| match feed.listed && feed.lost.is_none() {
            true => true,
            false => feed.since.elapsed() < PATIENCE,
        };
        let pods = self.feeds.get("pods").is_some_and(is_heard);
        let peers = self.mode != Peers::None && self.of_peers().all(is_heard);
        // Once it is known to be away it takes more than a moment's hope.
        let back = |told: bool, now: bool, sure: bool| if told { now } else { now && sure };
        let is_sure = |feed: &Listening| feed.listed && feed.lost.is_none();
        let watch = Watch {
            pods: back(self.told.pods, pods, self.feeds.get("pods").is_some_and(is_sure)),
            peers: back(self.told.peers, peers, self.of_peers().all(is_sure)),
            ..self.told.clone()
        };
        if watch != self.told {
            self.told = watch.clone();
            self.tell(Object::Watch(watch)).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, object: Object) -> Result<(), Deaf> {
        self.out.send(object).await.map_err(|_| Deaf)
    }

    fn publish(&mut self) {
        let hearing = |(what, listening): (&&'static str, &Listening)| Hearing {
            what,
            heard: listening.listed && listening.lost.is_none(),
            since: listening.since,
            error: listening.lost.as_ref().map(|lost| lost.reason.clone()),
            denied: listening.lost.as_ref().is_some_and(|lost| lost.denied),
        };
        let mut objects = vec![("pods", self.pods.len() as u64), ("owners", self.owners.len() as u64)];
        if self.mode != Peers::None {
            objects.extend(self.index.counts());
        }
        let size = self.sized.is_none_or(|sized| sized.elapsed() >= SIZE).then(|| {
            self.sized = Some(Instant::now());
            self.index.bytes() as u64
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.hearing = self.feeds.iter().map(hearing).collect();
        state.objects = objects;
        state.over = self.pods.over;
        state.pending = self.owners.pending as u64;
        state.waiting = self.pods.waiting() as u64;
        state.asked = self.asked.len() as u64;
        state.told = self.told.clone();
        state.bytes = size.unwrap_or(state.bytes);
    }
}

enum Heard<T> {
    Begins,
    Is(T),
    Gone(T),
    Listed,
    Else,
}

fn set_pod(index: &mut Index, pod: &slim::FarPod) -> super::peers::Touched {
    let over = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
    let none = pod.spec.host_network || over;
    let addresses = pod.status.addresses.iter().map(|address| address.ip.as_str()).filter(|_| !none);
    index.set_pod(&pod.metadata, addresses)
}
