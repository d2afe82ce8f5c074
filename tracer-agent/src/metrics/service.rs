//! Which service a span is counted for: its resource without what is of one process alone, so that a service
//! that starts again goes on with its series.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    OTHER,
    group::Class,
    key::{TEXT_MAX, limited},
};
use crate::{
    enrich::{Resource, ResourceAttribute},
    protocol::{Attribute, Value},
};

/// Processes whose service is remembered; then all of them are looked up again.
const PROCESSES_MAX: usize = 1024;

/// What a process, or a container that starts again, has for itself.
const PASSING: [&str; 2] = ["container.id", "k8s.container.restart_count"];
const PASSING_PREFIX: &str = "process.";

/// The service of those that are too many.
const OTHERS: u32 = 0;

#[derive(Debug, Default)]
pub struct Service {
    /// What stays of the resource.
    pub attributes: Vec<ResourceAttribute>,
    /// `namespace/name`
    pub job: String,
    /// With `job`, no other service has it.
    pub instance: String,
    /// By class.
    kept: [Kept; Class::COUNT],
    /// Series, with those of the overflow.
    all: usize,
}

#[derive(Debug, Default)]
struct Kept {
    /// Series that are no overflow.
    series: usize,
    /// What it is a client of.
    servers: BTreeSet<Server>,
}

#[cfg(test)]
impl Service {
    /// With the one that stands for the rest.
    pub(super) fn servers_known(&self) -> usize {
        let servers = self.kept.iter().flat_map(|kept| &kept.servers);
        servers.filter(|[address, _]| *address != Some(Value::Text(OTHER))).count()
    }
}

type Server = [Option<Value>; 2];

pub(super) struct Services {
    max: usize,
    known: BTreeMap<u32, Service>,
    by_attributes: BTreeMap<Vec<ResourceAttribute>, u32>,
    by_process: BTreeMap<u32, (Arc<Resource>, u32)>,
    last: u32,
}

impl Services {
    pub(super) fn new(max: usize) -> Self {
        let attributes = vec![Attribute::text("service.name", OTHER).into()];
        let others = Service { attributes, job: OTHER.to_string(), ..Service::default() };
        Self {
            max,
            known: BTreeMap::from([(OTHERS, others)]),
            by_attributes: BTreeMap::new(),
            by_process: BTreeMap::new(),
            last: OTHERS,
        }
    }

    pub(super) fn get(&self, id: u32) -> &Service {
        &self.known[&id]
    }

    pub(super) fn find(&self, resource: &Arc<Resource>) -> Option<u32> {
        match self.by_process.get(&resource.process) {
            Some((held, id)) if Arc::ptr_eq(held, resource) => Some(*id),
            _ => self.by_attributes.get(&lasting(resource)).copied(),
        }
    }

    pub(super) fn of(&mut self, resource: &Arc<Resource>) -> u32 {
        if let Some((held, id)) = self.by_process.get(&resource.process)
            && Arc::ptr_eq(held, resource)
        {
            return *id;
        }
        let attributes = lasting(resource);
        let id = match self.by_attributes.get(&attributes) {
            Some(id) => *id,
            None if self.by_attributes.len() >= self.max => OTHERS,
            None => self.add(attributes),
        };
        if self.by_process.len() >= PROCESSES_MAX {
            self.by_process.clear();
        }
        self.by_process.insert(resource.process, (resource.clone(), id));
        id
    }

    /// Whether all of its spans are counted as one.
    pub(super) fn is_others(id: u32) -> bool {
        id == OTHERS
    }

    pub(super) fn series(&self, id: u32, class: Class) -> usize {
        self.get(id).kept[class as usize].series
    }

    pub(super) fn servers(&self, id: u32, class: Class) -> usize {
        self.get(id).kept[class as usize].servers.len()
    }

    pub(super) fn knows_server(&self, id: u32, class: Class, server: [Option<&Value>; 2]) -> bool {
        self.get(id).kept[class as usize].servers.contains(&server.map(Option::<&Value>::cloned))
    }

    /// A series of it is there.
    pub(super) fn keep(
        &mut self,
        id: u32,
        class: Class,
        server: Option<[Option<&Value>; 2]>,
        overflow: bool,
    ) {
        let Some(service) = self.known.get_mut(&id) else { return };
        service.all += 1;
        if !overflow {
            let kept = &mut service.kept[class as usize];
            kept.series += 1;
            kept.servers.extend(server.map(|server| server.map(Option::<&Value>::cloned)));
        }
    }

    /// Before all that are there are told again, see [`Self::keep`].
    pub(super) fn forget_series(&mut self) {
        for service in self.known.values_mut() {
            service.all = 0;
            service.kept = Default::default();
        }
    }

    /// Those without any series.
    pub(super) fn drop_unused(&mut self) {
        self.known.retain(|id, service| service.all > 0 || *id == OTHERS);
        let known = &self.known;
        self.by_attributes.retain(|_, id| known.contains_key(id));
        // There may be room for others now.
        self.by_process.retain(|_, (_, id)| *id != OTHERS && known.contains_key(id));
    }

    pub(super) fn held(&self) -> usize {
        let service = |service: &Service| {
            size_of::<Service>()
                + 2 * service.attributes.capacity() * size_of::<ResourceAttribute>()
                + service.job.len()
                + service.instance.len()
                + service.kept.iter().map(|kept| kept.servers.len()).sum::<usize>() * size_of::<Server>()
        };
        let process = |(resource, _): &(Arc<Resource>, u32)| {
            size_of::<(u32, Arc<Resource>, u32)>()
                + size_of::<Resource>()
                + resource.attributes.capacity() * size_of::<ResourceAttribute>()
        };
        self.known.values().map(service).sum::<usize>() + self.by_process.values().map(process).sum::<usize>()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Service> {
        self.known.values()
    }

    fn add(&mut self, attributes: Vec<ResourceAttribute>) -> u32 {
        self.last += 1;
        let get = |key| text(&attributes, key);
        let name = get("service.name").unwrap_or("unknown_service");
        let job = match get("service.namespace") {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
            _ => name.to_owned(),
        };
        let wanted = instance(&attributes);
        let taken = |instance: &String| {
            self.known.values().any(|service| service.job == job && service.instance == *instance)
        };
        let numbered = (2..).map(|number| format!("{wanted}#{number}"));
        let instance = std::iter::once(wanted.clone()).chain(numbered).find(|name| !taken(name));
        let instance = instance.unwrap_or_default();
        self.by_attributes.insert(attributes.clone(), self.last);
        self.known.insert(self.last, Service { attributes, job, instance, ..Service::default() });
        self.last
    }
}

/// The attributes of a resource that outlive a process, by name.
fn lasting(resource: &Resource) -> Vec<ResourceAttribute> {
    let mut attributes: Vec<ResourceAttribute> = resource
        .attributes
        .iter()
        .filter(|attribute| {
            !attribute.key.starts_with(PASSING_PREFIX) && !PASSING.contains(&attribute.key.as_str())
        })
        .map(|attribute| Attribute { key: attribute.key.clone(), value: limited(&attribute.value) })
        .collect();
    if text(&attributes, "service.name").is_none() {
        let service = &resource.service[..resource.service.floor_char_boundary(TEXT_MAX)];
        attributes.push(Attribute::text("service.name", service).into());
    }
    attributes.sort();
    attributes.dedup_by(|one, other| one.key == other.key);
    attributes
}

/// What tells this one from others of its name: its id, else its pod and container (as the conventions say for
/// `service.instance.id`), else its machine.
fn instance(attributes: &[ResourceAttribute]) -> String {
    let get = |key| text(attributes, key);
    if let Some(id) = get("service.instance.id") {
        return id.to_owned();
    }
    if get("k8s.pod.name").is_some() {
        let parts = ["k8s.namespace.name", "k8s.pod.name", "k8s.container.name"];
        return parts.into_iter().filter_map(get).collect::<Vec<_>>().join(".");
    }
    get("host.name").unwrap_or_default().to_owned()
}

fn text<'a>(attributes: &'a [ResourceAttribute], key: &str) -> Option<&'a str> {
    attributes.iter().find(|attribute| attribute.key == key).and_then(|attribute| match &attribute.value {
        Value::Text(text) => Some(text.as_str()),
        Value::Number(_) | Value::Real(_) | Value::Flag(_) => None,
    })
}
