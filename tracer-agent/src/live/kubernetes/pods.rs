//! The pods of this node: each is told when it comes, when something of it that counts changes, and when it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use globset::GlobMatcher;

use super::{
    owners::{Known, Made, Owners},
    slim,
};
use crate::live::pods::STATIC;
use crate::{
    enrich::kubernetes::{Container, Object, Owner, Pod},
    filter,
};

/// Says of a pod whether it is traced, whatever the selection says: "true" or "false".
pub const OPT: &str = "tracer.dev/trace";

/// What says how the service is called, and which attributes it has: always kept.
const USUAL_LABELS: [&str; 3] =
    ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version"];
const USUAL_PREFIX: &str = "resource.opentelemetry.io/";

/// A pod waits so long for its owner's owner, and for its namespace, before it is told without.
const OWNER: Duration = Duration::from_secs(1);

/// No node has more.
const PODS_MAX: usize = 4096;

/// Longer values are cut.
const VALUE_MAX: usize = 4096;

/// What is kept of labels and annotations besides.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    asked: [Vec<String>; 3],
    labels: Vec<GlobMatcher>,
    annotations: Vec<GlobMatcher>,
    /// Of namespaces, which are not asked for where these are none.
    namespace_labels: Vec<GlobMatcher>,
}

impl Kept {
    /// Names, or patterns of names.
    pub fn new<'a>(
        labels: impl IntoIterator<Item = &'a str>,
        annotations: impl IntoIterator<Item = &'a str>,
        namespace_labels: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, String> {
        let texts = |all: &mut dyn Iterator<Item = &'a str>| all.map(str::to_owned).collect::<Vec<_>>();
        let asked = [
            texts(&mut labels.into_iter()),
            texts(&mut annotations.into_iter()),
            texts(&mut namespace_labels.into_iter()),
        ];
        let globs = |texts: &[String]| texts.iter().map(|text| filter::glob(text)).collect::<Result<_, _>>();
        let [labels, annotations, namespace_labels] =
            [globs(&asked[0])?, globs(&asked[1])?, globs(&asked[2])?];
        Ok(Self { asked, labels, annotations, namespace_labels })
    }

    /// Whether all is kept that the other keeps.
    pub fn covers(&self, other: &Self) -> bool {
        let pairs = self.asked.iter().zip(&other.asked);
        pairs.into_iter().all(|(own, others)| others.iter().all(|text| own.contains(text)))
    }

    pub(super) fn asks_namespaces(&self) -> bool {
        !self.namespace_labels.is_empty()
    }

    fn labels(&self, all: BTreeMap<String, String>) -> BTreeMap<String, String> {
        keep(all, |name| USUAL_LABELS.contains(&name) || is_kept(name, &self.labels))
    }

    fn annotations(&self, all: BTreeMap<String, String>) -> BTreeMap<String, String> {
        keep(all, |name| is_kept(name, &self.annotations))
    }

    fn namespace_labels(&self, all: BTreeMap<String, String>) -> BTreeMap<String, String> {
        keep(all, |name| self.namespace_labels.iter().any(|glob| glob.is_match(name)))
    }
}

fn is_kept(name: &str, asked: &[GlobMatcher]) -> bool {
    name == OPT
        || name == STATIC
        || name.starts_with(USUAL_PREFIX)
        || asked.iter().any(|glob| glob.is_match(name))
}

fn keep(all: BTreeMap<String, String>, is_kept: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let kept = all.into_iter().filter(|(name, _)| is_kept(name));
    kept.map(|(name, mut value)| {
        if value.len() > VALUE_MAX {
            value.truncate(value.floor_char_boundary(VALUE_MAX));
        }
        (name, value)
    })
    .collect()
}

pub(super) struct Pods {
    kept: Kept,
    held: BTreeMap<String, Held>,
    /// Of the list that goes on, or the last one.
    list: u32,
    /// Labels by namespace, where somebody asks for them.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Those that the list which goes on has not named yet.
    unlisted: BTreeSet<String>,
    /// Those whose owner's owner is not known, or whose namespace.
    waiting: BTreeSet<String>,
    /// Those that did not fit.
    pub(super) over: u64,
}

struct Held {
    /// With the owners that its own metadata names.
    now: Pod,
    made: Option<Made>,
    told: Option<Pod>,
    since: Instant,
    list: u32,
}

impl Pods {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            kept,
            held: BTreeMap::new(),
            list: 0,
            namespaces: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            waiting: BTreeSet::new(),
            over: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// What is not told of until the list ends is gone.
    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    pub(super) fn end_list(&mut self) -> Vec<Object> {
        let gone = self.held.iter().filter(|(_, held)| held.list != self.list).map(|(uid, _)| uid.clone());
        let gone: Vec<String> = gone.collect();
        gone.into_iter().flat_map(|uid| self.remove(&uid)).collect()
    }

    /// Returns what is to be told.
    pub(super) fn is(&mut self, pod: slim::Pod, owners: &mut Owners) -> Option<Object> {
        let uid = pod.metadata.uid.clone();
        if uid.is_empty() {
            return None;
        }
        if !self.held.contains_key(&uid) && self.held.len() >= PODS_MAX {
            self.over += 1;
            return None;
        }
        let made = pod.metadata.controller().and_then(|owner| Made::of(&pod.metadata.namespace, owner));
        let now = self.slimmed(pod);
        let list = self.list;
        let held = self.held.entry(uid.clone()).or_insert_with(|| Held {
            now: Pod::default(),
            made: None,
            told: None,
            since: Instant::now(),
            list,
        });
        (held.now, held.made, held.list) = (now, made, list);
        self.tell(&uid, owners)
    }

    pub(super) fn remove(&mut self, uid: &str) -> Vec<Object> {
        self.waiting.remove(uid);
        let Some(held) = self.held.remove(uid) else { return Vec::new() };
        // One that still waits for its owner's owner may have been traced.
        let pod = held.told.is_none().then_some(Object::Pod(held.now));
        pod.into_iter().chain([Object::Gone { uid: uid.to_owned() }]).collect()
    }

    pub(super) fn begin_namespaces(&mut self) {
        self.unlisted = self.namespaces.keys().cloned().collect();
    }

    /// Those that are still there have been told.
    pub(super) fn end_namespaces(&mut self) {
        for gone in std::mem::take(&mut self.unlisted) {
            self.namespaces.remove(&gone);
        }
    }

    /// Returns what is to be told.
    pub(super) fn is_namespace(&mut self, namespace: slim::Meta, owners: &mut Owners) -> Vec<Object> {
        self.unlisted.remove(&namespace.name);
        let labels = self.kept.namespace_labels(namespace.labels);
        if self.namespaces.get(&namespace.name) == Some(&labels) {
            return Vec::new();
        }
        let inside = self.held.iter().filter(|(_, held)| held.now.namespace == namespace.name);
        let inside: Vec<String> = inside.map(|(uid, _)| uid.clone()).collect();
        self.namespaces.insert(namespace.name, labels);
        inside.iter().filter_map(|uid| self.tell(uid, owners)).collect()
    }

    /// Nothing is left in one that is gone: its pods went before.
    pub(super) fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Those that have waited for long enough, or whose owner's owner is known by now.
    pub(super) fn tell_waiting(&mut self, owners: &mut Owners) -> Vec<Object> {
        let waiting: Vec<String> = self.waiting.iter().cloned().collect();
        waiting.iter().filter_map(|uid| self.tell(uid, owners)).collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn tell(&mut self, uid: &str, owners: &mut Owners) -> Option<Object> {
        let held = self.held.get_mut(uid)?;
        let mut pod = held.now.clone();
        let mut waits = false;
        match held.made.as_ref().map_or(Known::Is(None), |made| owners.of(made)) {
            Known::Is(owner) => pod.owners.extend(owner),
            Known::NotYet => {
                waits = true;
                // What was known stays until it is known anew.
                let before = held.told.as_ref().filter(|told| told.owners.first() == pod.owners.first());
                if let Some(before) = before {
                    pod.owners.clone_from(&before.owners);
                }
            }
        }
        let is_new = held.told.is_none() && held.since.elapsed() < OWNER;
        if self.kept.asks_namespaces() {
            pod.namespace_labels = self.namespaces.get(&pod.namespace).cloned();
            // Later it is told anew when the namespace is.
            waits |= pod.namespace_labels.is_none() && is_new;
        }
        if waits {
            self.waiting.insert(uid.to_owned());
        } else {
            self.waiting.remove(uid);
        }
        if waits && is_new {
            return None;
        }
        if held.told.as_ref() == Some(&pod) {
            return None;
        }
        held.told = Some(pod.clone());
        Some(Object::Pod(pod))
    }

    fn slimmed(&self, pod: slim::Pod) -> Pod {
        let owner = pod.metadata.controller();
        let owners = owner.map(|owner| Owner { kind: owner.kind.clone(), name: owner.name.clone() });
        Pod {
            owners: owners.into_iter().collect(),
            containers: containers(&pod),
            labels: self.kept.labels(pod.metadata.labels),
            annotations: self.kept.annotations(pod.metadata.annotations),
            uid: pod.metadata.uid,
            namespace: pod.metadata.namespace,
            namespace_labels: None,
            name: pod.metadata.name,
            node: pod.spec.node_name,
        }
    }
}

/// Each with the id that it has, and again with those that it had before; one without an id if there is none.
fn containers(pod: &slim::Pod) -> Vec<Container> {
    let kinds = [
        (&pod.spec.containers, &pod.status.container_statuses),
        (&pod.spec.init_containers, &pod.status.init_container_statuses),
        (&pod.spec.ephemeral_containers, &pod.status.ephemeral_container_statuses),
    ];
    let mut all = Vec::new();
    for (containers, statuses) in kinds {
        for slim::Container { name, image } in containers {
            let status = statuses.iter().find(|status| status.name == *name);
            let mut ids: Vec<&str> = Vec::new();
            for id in status.into_iter().flat_map(|status| status.ids()) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            if ids.is_empty() {
                ids.push("");
            }
            all.extend(ids.into_iter().map(|id| Container {
                name: name.clone(),
                image: image.clone(),
                id: id.to_owned(),
            }));
        }
    }
    all
}
