//! Who is behind addresses: asked of whoever watches the cluster, and told as attributes of spans.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::Peer;
use crate::protocol::Attribute;

/// More addresses are not remembered: the one that was asked for first is forgotten, and asked for again.
const KNOWN_MAX: usize = 8192;

#[derive(Debug, Default)]
pub struct Peers {
    is_heard: bool,
    known: BTreeMap<IpAddr, Known>,
    /// In the order in which they were asked for.
    order: VecDeque<IpAddr>,
    /// Those that nobody was told yet to look up.
    wanted: VecDeque<IpAddr>,
}

#[derive(Debug)]
struct Known {
    asked: u64,
    answer: Option<Arc<[Attribute]>>,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Told(Arc<[Attribute]>),
    /// Asked at this time, and not told yet.
    Asked(u64),
    Unknown,
}

impl Peers {
    pub fn set_heard(&mut self, is_heard: bool) {
        self.is_heard = is_heard;
        if !is_heard {
            // Whoever is there next has to be asked again.
            self.wanted.clear();
            self.known.retain(|_, known| known.answer.is_some());
            self.order.retain(|address| self.known.contains_key(address));
        }
    }

    /// Nothing was ever heard of any.
    pub fn is_idle(&self) -> bool {
        !self.is_heard && self.known.is_empty()
    }

    /// Asks once. Addresses that say nothing beyond this machine are not asked for.
    pub fn ask(&mut self, address: IpAddr, now: u64) {
        let address = address.to_canonical();
        if self.is_heard && is_public(address) && !self.known.contains_key(&address) {
            self.insert(address, Known { asked: now, answer: None });
            self.wanted.push_back(address);
        }
    }

    /// The next address that is to be looked up.
    pub fn poll(&mut self) -> Option<IpAddr> {
        while let Some(address) = self.wanted.pop_front() {
            if self.known.contains_key(&address) {
                return Some(address);
            }
        }
        None
    }

    pub fn tell(&mut self, peer: &Peer) {
        let address = peer.address.to_canonical();
        let answer = Some(describe(peer));
        match self.known.get_mut(&address) {
            Some(known) => known.answer = answer,
            None => self.insert(address, Known { asked: 0, answer }),
        }
    }

    pub fn answer(&self, address: IpAddr) -> Answer {
        match self.known.get(&address.to_canonical()) {
            Some(Known { answer: Some(answer), .. }) => Answer::Told(answer.clone()),
            Some(known) if self.is_heard => Answer::Asked(known.asked),
            _ => Answer::Unknown,
        }
    }

    fn insert(&mut self, address: IpAddr, known: Known) {
        if self.order.len() >= KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.wanted.len() >= KNOWN_MAX {
            self.wanted.pop_front();
        }
        self.known.insert(address, known);
        self.order.push_back(address);
    }
}

fn is_public(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_link_local)
}

/// What the service is called there follows the rule for those that are traced, as far as it is known.
fn describe(peer: &Peer) -> Arc<[Attribute]> {
    let mut attributes = Vec::new();
    let mut tell = |key, value: &str| {
        if !value.is_empty() {
            attributes.push(Attribute::text(key, value));
        }
    };
    let (service, pod, workload) = (peer.service.as_ref(), peer.pod.as_ref(), peer.workload.as_ref());
    let place = pod.or(service);
    let name = workload.map(|workload| &workload.name).or(service.or(pod).map(|named| &named.name));
    if let Some(name) = name {
        tell("service.peer.name", name);
    }
    if let Some(place) = place {
        tell("service.peer.namespace", &place.namespace);
        tell("tracer.peer.namespace", &place.namespace);
    }
    if let Some(service) = service {
        tell("tracer.peer.service.name", &service.name);
    }
    if let Some(workload) = workload {
        tell("tracer.peer.workload.kind", &workload.kind);
        tell("tracer.peer.workload.name", &workload.name);
    }
    if let Some(pod) = pod {
        tell("tracer.peer.pod.name", &pod.name);
    }
    attributes.into()
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn address(last: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + last).to_be_bytes())
    }

    #[test]
    fn addresses_are_asked_for_once() {
        let mut peers = Peers::default();
        peers.ask(address(1), 5);
        assert_eq!((peers.poll(), peers.answer(address(1))), (None, Answer::Unknown));
        peers.set_heard(true);
        for text in
            ["127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.2", "fe80::1", "224.0.0.1", "::ffff:127.0.0.1"]
        {
            peers.ask(text.parse().expect("an address"), 5);
        }
        assert_eq!(peers.poll(), None);
        peers.ask(address(1), 5);
        peers.ask(address(1), 6);
        peers.ask("::ffff:10.0.0.1".parse().expect("an address"), 7);
        assert_eq!((peers.poll(), peers.poll()), (Some(address(1)), None));
        assert_eq!(peers.answer(address(1)), Answer::Asked(5));
        peers.tell(&Peer { address: address(1), service: None, pod: None, workload: None });
        assert_eq!(peers.answer(address(1)), Answer::Told([].into()));
        // What was told stays, what was not is asked for again.
        peers.ask(address(2), 8);
        peers.set_heard(false);
        assert_eq!((peers.poll(), peers.answer(address(2))), (None, Answer::Unknown));
        assert_eq!(peers.answer(address(1)), Answer::Told([].into()));
        peers.set_heard(true);
        peers.ask(address(1), 9);
        peers.ask(address(2), 9);
        assert_eq!((peers.poll(), peers.poll()), (Some(address(2)), None));
    }

    #[test]
    fn they_are_bounded() {
        let mut peers = Peers::default();
        peers.set_heard(true);
        for n in 0..3 * KNOWN_MAX as u32 {
            peers.ask(address(n + 1), 1);
        }
        assert_eq!(
            (peers.known.len(), peers.order.len(), peers.wanted.len()),
            (KNOWN_MAX, KNOWN_MAX, KNOWN_MAX)
        );
        assert_eq!(peers.answer(address(1)), Answer::Unknown);
    }

    #[test]
    fn a_peer_is_told_by_all_that_is_known() {
        let named = |name: &str| Some(Named { namespace: "shop".into(), name: name.into() });
        let workload = Some(Owner { kind: "Deployment".into(), name: "cart".into() });
        let peer = |service, pod, workload| Peer { address: address(1), service, pod, workload };
        let text = |peer: &Peer| {
            let told = describe(peer);
            let told = told.iter().map(|attribute| match &attribute.value {
                crate::protocol::Value::Text(text) => format!("{}={text}", attribute.key),
                _ => String::new(),
            });
            told.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            text(&peer(named("carts"), named("cart-1"), workload)),
            "service.peer.name=cart service.peer.namespace=shop tracer.peer.namespace=shop \
             tracer.peer.service.name=carts tracer.peer.workload.kind=Deployment \
             tracer.peer.workload.name=cart tracer.peer.pod.name=cart-1"
        );
        assert_eq!(
            text(&peer(named("carts"), None, None)),
            "service.peer.name=carts service.peer.namespace=shop tracer.peer.namespace=shop \
             tracer.peer.service.name=carts"
        );
        assert_eq!(
            text(&peer(None, named("bare"), None)),
            "service.peer.name=bare service.peer.namespace=shop tracer.peer.namespace=shop \
             tracer.peer.pod.name=bare"
        );
        assert_eq!(text(&peer(None, None, None)), "");
    }
}
