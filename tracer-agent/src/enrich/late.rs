//! Facts may come late: spans wait a bounded time for the pod of their process and for who is at the other end,
//! and go out with what is known then. Those of other processes do not wait.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use super::{
    Resource,
    kubernetes::{
        Object,
        peers::{Answer, Peers},
    },
    process::Processes,
};
use crate::{
    protocol::{Text, Value},
    span::Span,
    tcp::Fact,
};

/// How long a pod is waited for, from the first that asked for it on, and who is behind an address.
const POD_WAIT: u64 = 5_000_000_000;
const PEER_WAIT: u64 = 1_000_000_000;

/// A part of the memory is for spans that wait.
const SHARE: usize = 8;

/// A fact that waits, with what it takes to find it, about.
const COST: usize = 512;

/// Pods that were asked for, as far as it is remembered since when.
const ASKED_MAX: usize = 4096;

/// Facts that wait for somebody to take them: a replay takes none.
const FACTS_MAX: usize = 1024;

/// What became of those that waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub waited: u64,
    /// Went out without what they waited for: their pod, who is at the other end, either since memory was short.
    pub podless: u64,
    pub peerless: u64,
    pub crowded: u64,
}

#[derive(Default)]
pub struct Late {
    limit: usize,
    held: usize,
    peers: Peers,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    wants: BTreeMap<Want, BTreeSet<u64>>,
    due: BTreeSet<(u64, u64)>,
    last: u64,
    /// Since when a pod is asked for.
    asked: BTreeMap<Want, u64>,
    order: VecDeque<Want>,
    spans: VecDeque<Box<Span>>,
    facts: VecDeque<Fact>,
    counts: Counts,
}

struct Waiting {
    what: What,
    wants: Vec<Want>,
    until: u64,
    cost: usize,
}

enum What {
    Span(Box<Span>),
    Fact(Box<Fact>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Want {
    /// Its uid, and the container's id.
    Pod(Text, Text),
    Peer(IpAddr),
}

impl Late {
    /// `memory`: bytes of which a part is for those that wait.
    pub fn new(memory: usize) -> Self {
        Self { limit: memory / SHARE, ..Self::default() }
    }

    /// After the processes have heard it.
    pub fn handle_object(&mut self, object: &Object, processes: &mut Processes) {
        match object {
            Object::Pod(_) => {
                self.wake(processes, |want, processes| {
                    matches!(want, Want::Pod(pod, container) if processes.has(pod, container))
                });
            }
            Object::Gone { .. } => {}
            Object::Peer(peer) => {
                self.peers.tell(peer);
                let address = peer.address.to_canonical();
                self.wake_for(&Want::Peer(address), processes);
            }
            Object::Watch(watch) => {
                self.peers.set_heard(watch.peers);
                // Whoever speaks again gets its time again.
                self.asked.clear();
                self.order.clear();
                let (pods, peers) = (watch.pods, watch.peers);
                self.wake(processes, |want, _| match want {
                    Want::Pod(..) => !pods,
                    Want::Peer(_) => !peers,
                });
            }
        }
    }

    /// An address that a connection leads to.
    pub fn ask(&mut self, address: IpAddr, now: u64) {
        self.peers.ask(address, now);
    }

    pub fn asks(&self) -> bool {
        !self.peers.is_idle()
    }

    /// The next address that somebody is to look up.
    pub fn poll_peer(&mut self) -> Option<IpAddr> {
        self.peers.poll()
    }

    pub fn take(&mut self, span: Box<Span>, now: u64, processes: &mut Processes) {
        let mut wants = Vec::new();
        let mut until = 0;
        self.want_pod(&span.resource, now, processes, &mut wants, &mut until);
        if !self.peers.is_idle()
            && let Some(address) = peer(&span)
        {
            self.peers.ask(address, now);
            if let Answer::Asked(since) = self.peers.answer(address)
                && now < since.saturating_add(PEER_WAIT)
            {
                until = until.max(since.saturating_add(PEER_WAIT));
                wants.push(Want::Peer(address.to_canonical()));
            }
        }
        let cost = if wants.is_empty() { 0 } else { span.held() + COST };
        self.hold(Waiting { what: What::Span(span), wants, until, cost }, processes);
    }

    /// What is counted by its resource is counted once that is known: it would be two series.
    pub fn take_fact(&mut self, fact: Fact, now: u64, processes: &mut Processes) {
        let mut wants = Vec::new();
        let mut until = 0;
        self.want_pod(&fact.resource, now, processes, &mut wants, &mut until);
        self.hold(Waiting { what: What::Fact(Box::new(fact)), wants, until, cost: COST }, processes);
    }

    /// Those that have waited for too long.
    pub fn handle_timeout(&mut self, now: u64, processes: &mut Processes) {
        while let Some((_, number)) = self.due.first().copied().filter(|(until, _)| *until <= now) {
            self.give_up(number, processes);
        }
    }

    /// Nothing more comes.
    pub fn finish(&mut self, processes: &mut Processes) {
        while let Some(number) = self.waiting.keys().next().copied() {
            self.give_up(number, processes);
        }
    }

    /// Whether nothing of the resource may be told within the time that it is waited for.
    pub fn is_settled(&self, resource: &Resource, now: u64, processes: &Processes) -> bool {
        let Some((pod, container)) = processes.lacks(resource) else { return true };
        let asked = self.asked.get(&Want::Pod(pod, container));
        asked.is_some_and(|since| now >= since.saturating_add(POD_WAIT))
    }

    pub fn poll_span(&mut self) -> Option<Span> {
        self.spans.pop_front().map(|span| *span)
    }

    pub fn poll_fact(&mut self) -> Option<Fact> {
        self.facts.pop_front()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Spans and facts that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        self.held
    }

    fn want_pod(
        &mut self,
        resource: &Resource,
        now: u64,
        processes: &Processes,
        wants: &mut Vec<Want>,
        until: &mut u64,
    ) {
        let Some((pod, container)) = processes.lacks(resource) else { return };
        let want = Want::Pod(pod, container);
        let since = match self.asked.get(&want) {
            Some(since) => *since,
            None => {
                if self.order.len() >= ASKED_MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.asked.remove(&oldest);
                }
                self.order.push_back(want.clone());
                self.asked.insert(want.clone(), now);
                now
            }
        };
        let last = since.saturating_add(POD_WAIT);
        if now < last {
            *until = (*until).max(last);
            wants.push(want);
        } else {
            self.counts.podless += 1;
        }
    }

    fn hold(&mut self, waiting: Waiting, processes: &mut Processes) {
        if waiting.wants.is_empty() {
            return self.put_out(waiting.what, processes);
        }
        self.last += 1;
        self.counts.waited += 1;
        for want in &waiting.wants {
            self.wants.entry(want.clone()).or_default().insert(self.last);
        }
        self.due.insert((waiting.until, self.last));
        self.held += waiting.cost;
        self.waiting.insert(self.last, waiting);
        while self.held > self.limit
            && let Some(oldest) = self.waiting.keys().next().copied()
        {
            self.counts.crowded += 1;
            self.let_go(oldest, processes);
        }
    }

    fn wake(&mut self, processes: &mut Processes, is_there: impl Fn(&Want, &Processes) -> bool) {
        let there: Vec<Want> = self.wants.keys().filter(|want| is_there(want, processes)).cloned().collect();
        for want in &there {
            self.wake_for(want, processes);
        }
    }

    /// What was wanted is there, or will not be.
    fn wake_for(&mut self, want: &Want, processes: &mut Processes) {
        for number in self.wants.remove(want).into_iter().flatten() {
            let Some(waiting) = self.waiting.get_mut(&number) else { continue };
            waiting.wants.retain(|other| other != want);
            if waiting.wants.is_empty() {
                self.let_go(number, processes);
            }
        }
    }

    fn give_up(&mut self, number: u64, processes: &mut Processes) {
        for want in self.waiting.get(&number).iter().flat_map(|waiting| &waiting.wants) {
            match want {
                Want::Pod(..) => self.counts.podless += 1,
                Want::Peer(_) => self.counts.peerless += 1,
            }
        }
        self.let_go(number, processes);
    }

    fn let_go(&mut self, number: u64, processes: &mut Processes) {
        let Some(waiting) = self.waiting.remove(&number) else { return };
        self.due.remove(&(waiting.until, number));
        self.held -= waiting.cost;
        for want in &waiting.wants {
            if let Some(numbers) = self.wants.get_mut(want) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.wants.remove(want);
                }
            }
        }
        self.put_out(waiting.what, processes);
    }

    fn put_out(&mut self, what: What, processes: &mut Processes) {
        match what {
            What::Span(mut span) => {
                span.resource = processes.settle(&span.resource);
                if !self.peers.is_idle()
                    && let Some(address) = peer(&span)
                    && let Answer::Told(attributes) = self.peers.answer(address)
                {
                    span.attributes.extend(attributes.iter().cloned());
                }
                self.spans.push_back(span);
            }
            What::Fact(mut fact) => {
                fact.resource = processes.settle(&fact.resource);
                if self.facts.len() >= FACTS_MAX {
                    self.facts.pop_front();
                }
                self.facts.push_back(*fact);
            }
        }
    }
}

/// Who is at the other end of the span's connection.
fn peer(span: &Span) -> Option<IpAddr> {
    let mut said = span.common.attributes.iter().filter(|attribute| attribute.key == "network.peer.address");
    match &said.next()?.value {
        Value::Text(address) => address.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
