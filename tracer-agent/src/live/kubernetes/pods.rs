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

/// A pod waits so long for its owner's owner before it is told without.
const OWNER: Duration = Duration::from_secs(1);

/// No node has more.
const PODS_MAX: usize = 4096;

/// Longer values are cut.
const VALUE_MAX: usize = 4096;

/// What is kept of labels and annotations besides.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    labels: Vec<GlobMatcher>,
    annotations: Vec<GlobMatcher>,
}

impl Kept {
    /// Names, or patterns of names.
    pub fn new<'a>(
        labels: impl IntoIterator<Item = &'a str>,
        annotations: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, String> {
        Ok(Self {
            labels: labels.into_iter().map(filter::glob).collect::<Result<_, _>>()?,
            annotations: annotations.into_iter().map(filter::glob).collect::<Result<_, _>>()?,
        })
    }

    fn labels(&self, all: BTreeMap<String, String>) -> BTreeMap<String, String> {
        keep(all, |name| USUAL_LABELS.contains(&name) || is_kept(name, &self.labels))
    }

    fn annotations(&self, all: BTreeMap<String, String>) -> BTreeMap<String, String> {
        keep(all, |name| is_kept(name, &self.annotations))
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
    /// Those whose owner's owner is not known.
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
        Self { kept, held: BTreeMap::new(), list: 0, waiting: BTreeSet::new(), over: 0 }
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

    /// Those that have waited for long enough, or whose owner's owner is known by now.
    pub(super) fn tell_waiting(&mut self, owners: &mut Owners) -> Vec<Object> {
        let waiting: Vec<String> = self.waiting.iter().cloned().collect();
        waiting.iter().filter_map(|uid| self.tell(uid, owners)).collect()
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn tell(&mut self, uid: &str, owners: &mut Owners) -> Option<Object> {
        let held = self.held.get_mut(uid)?;
        let mut pod = held.now.clone();
        let known = held.made.as_ref().map_or(Known::Is(None), |made| owners.of(made));
        match known {
            Known::Is(owner) => {
                pod.owners.extend(owner);
                self.waiting.remove(uid);
            }
            Known::NotYet => {
                self.waiting.insert(uid.to_owned());
                if held.told.is_none() && held.since.elapsed() < OWNER {
                    return None;
                }
                // What was known stays until it is known anew.
                let before = held.told.as_ref().filter(|told| told.owners.first() == pod.owners.first());
                if let Some(before) = before {
                    pod.owners.clone_from(&before.owners);
                }
            }
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
