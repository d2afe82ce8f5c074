//! Who is behind an address of the cluster: services by their cluster addresses, pods by their own. Texts that many
//! share are held once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use smallvec::SmallVec;

use super::{
    api::Resource,
    owners::{Known, Made, Owners},
    slim,
};
use crate::enrich::kubernetes::{Named, Owner, Peer};

/// The service that a slice of endpoints belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A service whose pods are made by more than these is of no one workload: none is looked up.
const MAKERS_MAX: usize = 8;

/// After so many removals what nobody shares any more is looked for.
const SWEEP: usize = 1024;

type Text = Arc<str>;
type Key = (Text, Text);
pub(super) type Touched = SmallVec<[IpAddr; 2]>;
type Addresses = SmallVec<[IpAddr; 1]>;

#[derive(Default)]
pub(super) struct Index {
    texts: BTreeSet<Text>,
    makers: BTreeSet<Arc<Maker>>,
    services: BTreeMap<Key, Service>,
    service_at: BTreeMap<IpAddr, Key>,
    slices: BTreeMap<Key, Vec<Slice>>,
    pods: BTreeMap<Key, Pod>,
    pod_at: BTreeMap<IpAddr, Key>,
    lists: [u32; 3],
    /// Since it was last swept.
    removed: usize,
}

/// What made a pod.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Maker {
    namespace: Text,
    kind: Text,
    name: Box<str>,
    /// Where it is asked for what made it.
    resource: Option<Resource>,
}

struct Service {
    addresses: Addresses,
    list: u32,
}

struct Slice {
    name: Box<str>,
    addresses: Box<[IpAddr]>,
    list: u32,
}

struct Pod {
    maker: Option<Arc<Maker>>,
    addresses: Addresses,
    list: u32,
}

/// The kinds of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Services,
    Slices,
    Pods,
}

impl Index {
    pub(super) fn begin_list(&mut self, kind: Kind) {
        let list = &mut self.lists[kind as usize];
        *list = list.wrapping_add(1);
    }

    /// Takes away what the list did not name.
    pub(super) fn end_list(&mut self, kind: Kind) -> Vec<IpAddr> {
        let list = self.lists[kind as usize];
        let mut touched = Vec::new();
        match kind {
            Kind::Services => {
                let gone = self.services.iter().filter(|(_, service)| service.list != list);
                let gone: Vec<Key> = gone.map(|(key, _)| key.clone()).collect();
                for key in gone {
                    touched.extend(self.drop_service(&key));
                }
            }
            Kind::Pods => {
                let gone = self.pods.iter().filter(|(_, pod)| pod.list != list);
                let gone: Vec<Key> = gone.map(|(key, _)| key.clone()).collect();
                for key in gone {
                    touched.extend(self.drop_pod(&key));
                }
            }
            Kind::Slices => {
                let services = &self.services;
                self.slices.retain(|key, slices| {
                    let before = slices.len();
                    slices.retain(|slice| slice.list == list);
                    if slices.len() != before {
                        touched.extend(services.get(key).into_iter().flat_map(|service| &service.addresses));
                    }
                    !slices.is_empty()
                });
            }
        }
        self.sweep(SWEEP);
        touched
    }

    pub(super) fn set_service(&mut self, service: &slim::Service) -> Touched {
        let key = self.key(|index| &index.services, &service.metadata.namespace, &service.metadata.name);
        // `None` for one without an address.
        let addresses: Addresses =
            service.spec.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let list = self.lists[Kind::Services as usize];
        let mut touched = Touched::new();
        if self.services.get(&key).is_some_and(|before| before.addresses != addresses) {
            touched.extend(self.drop_service(&key));
        }
        for address in &addresses {
            if self.service_at.insert(*address, key.clone()).as_ref() != Some(&key) {
                touched.push(*address);
            }
        }
        self.services.insert(key, Service { addresses, list });
        touched
    }

    pub(super) fn remove_service(&mut self, service: &slim::Service) -> Touched {
        let key = self.key(|index| &index.services, &service.metadata.namespace, &service.metadata.name);
        self.drop_service(&key)
    }

    fn drop_service(&mut self, key: &Key) -> Touched {
        let Some(service) = self.services.remove(key) else { return Touched::new() };
        self.sweep(1);
        let own = service.addresses.into_iter().filter(|address| {
            let own = self.service_at.get(address) == Some(key);
            if own {
                self.service_at.remove(address);
            }
            own
        });
        own.collect()
    }

    pub(super) fn set_slice(&mut self, slice: &slim::Slice) -> Touched {
        let Some(service) = slice.metadata.labels.get(SERVICE_LABEL) else { return Touched::new() };
        let key = self.key(|index| &index.slices, &slice.metadata.namespace, service);
        let mut addresses: Vec<IpAddr> = slice
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|ip| ip.parse().ok())
            .collect();
        addresses.sort_unstable();
        let new = Slice {
            name: slice.metadata.name.as_str().into(),
            addresses: addresses.into(),
            list: self.lists[Kind::Slices as usize],
        };
        let slices = self.slices.entry(key.clone()).or_default();
        match slices.iter_mut().find(|slice| slice.name == new.name) {
            Some(before) => *before = new,
            None => slices.push(new),
        }
        self.addresses_of(&key)
    }

    pub(super) fn remove_slice(&mut self, slice: &slim::Slice) -> Touched {
        let Some(service) = slice.metadata.labels.get(SERVICE_LABEL) else { return Touched::new() };
        let key = self.key(|index| &index.slices, &slice.metadata.namespace, service);
        if let Some(slices) = self.slices.get_mut(&key) {
            slices.retain(|held| *held.name != *slice.metadata.name);
            if slices.is_empty() {
                self.slices.remove(&key);
            }
        }
        self.addresses_of(&key)
    }

    fn addresses_of(&self, service: &Key) -> Touched {
        self.services
            .get(service)
            .map(|service| service.addresses.iter().copied().collect())
            .unwrap_or_default()
    }

    /// `addresses`: none of a pod that has those of its node, or that is over.
    pub(super) fn set_pod<'a>(
        &mut self,
        meta: &slim::Meta,
        addresses: impl Iterator<Item = &'a str>,
    ) -> Touched {
        let key = self.key(|index| &index.pods, &meta.namespace, &meta.name);
        let addresses: Addresses = addresses.filter_map(|address| address.parse().ok()).collect();
        let list = self.lists[Kind::Pods as usize];
        let mut touched = Touched::new();
        if self.pods.get(&key).is_some_and(|before| before.addresses != addresses) {
            touched.extend(self.drop_pod(&key));
        }
        // One that nobody can reach is not held: it costs as much as one that can be.
        if addresses.is_empty() {
            return touched;
        }
        let maker = self.maker(meta);
        for address in &addresses {
            if self.pod_at.insert(*address, key.clone()).as_ref() != Some(&key) {
                touched.push(*address);
            }
        }
        self.pods.insert(key, Pod { maker, addresses, list });
        touched
    }

    pub(super) fn remove_pod(&mut self, meta: &slim::Meta) -> Touched {
        let key = self.key(|index| &index.pods, &meta.namespace, &meta.name);
        self.drop_pod(&key)
    }

    fn drop_pod(&mut self, key: &Key) -> Touched {
        let Some(pod) = self.pods.remove(key) else { return Touched::new() };
        self.sweep(1);
        let own = pod.addresses.into_iter().filter(|address| {
            // Another pod may have it by now.
            let own = self.pod_at.get(address) == Some(key);
            if own {
                self.pod_at.remove(address);
            }
            own
        });
        own.collect()
    }

    /// Who is there. The second is false while somebody's owner is being looked up.
    pub(super) fn peer(&self, address: IpAddr, owners: &mut Owners) -> (Peer, bool) {
        let mut peer = Peer { address, service: None, pod: None, workload: None };
        if let Some(key) = self.service_at.get(&address) {
            peer.service = Some(named(key));
            let (workload, known) = self.workload_of(key, owners);
            peer.workload = workload;
            return (peer, known);
        }
        let Some((key, pod)) = self.pod_at.get(&address).and_then(|key| self.pods.get_key_value(key)) else {
            return (peer, true);
        };
        peer.pod = Some(named(key));
        let Some(maker) = &pod.maker else { return (peer, true) };
        let (workload, known) = maker.workload(owners);
        peer.workload = Some(workload);
        (peer, known)
    }

    /// What all pods behind a service are.
    fn workload_of(&self, service: &Key, owners: &mut Owners) -> (Option<Owner>, bool) {
        let mut makers: Vec<&Arc<Maker>> = Vec::new();
        let slices = self.slices.get(service).into_iter().flatten();
        for address in slices.flat_map(|slice| &slice.addresses) {
            let pod = self.pod_at.get(address).and_then(|key| self.pods.get(key));
            // One that is no pod, or nobody's: there is nothing that all are.
            let Some(maker) = pod.and_then(|pod| pod.maker.as_ref()) else { return (None, true) };
            if !makers.iter().any(|known| Arc::ptr_eq(known, maker)) {
                makers.push(maker);
            }
            if makers.len() > MAKERS_MAX {
                return (None, true);
            }
        }
        let mut common: Option<Owner> = None;
        let mut all_known = true;
        for maker in makers {
            let (workload, known) = maker.workload(owners);
            all_known &= known;
            match &common {
                Some(common) if *common != workload => return (None, all_known),
                _ => common = Some(workload),
            }
        }
        (common, all_known)
    }

    pub(super) fn counts(&self) -> [(&'static str, u64); 3] {
        let slices: usize = self.slices.values().map(Vec::len).sum();
        [
            ("services", self.services.len() as u64),
            ("endpointslices", slices as u64),
            ("cluster pods", self.pods.len() as u64),
        ]
    }

    /// About what it takes, with what the allocator and the trees add.
    pub(super) fn bytes(&self) -> usize {
        /// Leaves of a tree are two thirds full.
        fn tree<K, V>(entries: usize) -> usize {
            entries * (size_of::<K>() + size_of::<V>()) * 3 / 2
        }
        const HEAP: usize = 16;
        /// Its two counts stand before a text.
        fn text(text: &str) -> usize {
            text.len() + 2 * size_of::<usize>() + HEAP
        }
        fn names<V>(map: &BTreeMap<Key, V>) -> usize {
            tree::<Key, V>(map.len()) + map.keys().map(|(_, name)| text(name)).sum::<usize>()
        }
        let maker = |maker: &Arc<Maker>| size_of::<Maker>() + maker.name.len() + 3 * HEAP;
        let slice = |slice: &Slice| {
            let addresses = slice.addresses.len() * size_of::<IpAddr>();
            size_of::<Slice>() + slice.name.len() + addresses + 3 * HEAP
        };
        self.texts.iter().map(|shared| text(shared)).sum::<usize>()
            + tree::<Text, ()>(self.texts.len())
            + self.makers.iter().map(maker).sum::<usize>()
            + tree::<Arc<Maker>, ()>(self.makers.len())
            + names(&self.services)
            + names(&self.slices)
            + self.slices.values().flatten().map(slice).sum::<usize>()
            + names(&self.pods)
            + tree::<IpAddr, Key>(self.service_at.len() + self.pod_at.len())
    }

    /// As it is held already, if it is.
    fn key<V>(&mut self, held: fn(&Self) -> &BTreeMap<Key, V>, namespace: &str, name: &str) -> Key {
        let key = (self.text(namespace), Text::from(name));
        held(self).get_key_value(&key).map_or(key, |(held, _)| held.clone())
    }

    /// One of the few that many share.
    fn text(&mut self, text: &str) -> Text {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let new = Text::from(text);
        self.texts.insert(new.clone());
        new
    }

    fn maker(&mut self, meta: &slim::Meta) -> Option<Arc<Maker>> {
        let owner = meta.controller()?;
        let maker = Maker {
            namespace: self.text(&meta.namespace),
            kind: self.text(&owner.kind),
            name: owner.name.as_str().into(),
            resource: Made::resource(owner),
        };
        if let Some(known) = self.makers.get(&maker) {
            return Some(known.clone());
        }
        let new = Arc::new(maker);
        self.makers.insert(new.clone());
        Some(new)
    }

    /// From time to time what nobody shares any more goes.
    fn sweep(&mut self, removed: usize) {
        self.removed += removed;
        if self.removed >= SWEEP {
            self.removed = 0;
            self.makers.retain(|maker| Arc::strong_count(maker) > 1);
            self.texts.retain(|text| Arc::strong_count(text) > 1);
        }
    }
}

impl Maker {
    /// The outermost, as far as it is known.
    fn workload(&self, owners: &mut Owners) -> (Owner, bool) {
        let own = || Owner { kind: self.kind.to_string(), name: self.name.to_string() };
        let Some(resource) = self.resource else { return (own(), true) };
        let made = Made { resource, namespace: self.namespace.to_string(), name: self.name.to_string() };
        match owners.of(&made) {
            Known::Is(owner) => (owner.unwrap_or_else(own), true),
            Known::NotYet => (own(), false),
        }
    }
}

fn named((namespace, name): &Key) -> Named {
    Named { namespace: namespace.to_string(), name: name.to_string() }
}
