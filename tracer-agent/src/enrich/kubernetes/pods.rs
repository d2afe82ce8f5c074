//! The pods that the API told of, by uid and by container.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::{Container, Pod, Watch};

/// More pods than these are not kept: a node has some hundreds.
const KNOWN_MAX: usize = 4096;

/// Pods that are gone are kept for what is under way, up to this many.
const GONE_MAX: usize = 1024;

/// A part of the memory is for pods.
const SHARE: usize = 16;

/// Of a static pod: the uid that its cgroup has, where the API shows another.
pub const STATIC_UID: &str = "kubernetes.io/config.hash";

#[derive(Debug, Default)]
pub struct Pods {
    watch: Watch,
    shown: [GlobSet; 2],
    /// Grows with each word of how pods are told of.
    settings: u64,
    known: BTreeMap<String, Known>,
    by_container: BTreeMap<String, String>,
    by_static_uid: BTreeMap<String, String>,
    /// Those that are gone, in that order: uids with their numbers, also of those that are told of again.
    gone: VecDeque<(String, u64)>,
    last: u64,
    held: usize,
    limit: usize,
}

#[derive(Debug)]
struct Known {
    pod: Arc<Pod>,
    /// When it was told, as a count.
    number: u64,
    gone: bool,
    cost: usize,
}

impl Pods {
    /// `memory`: bytes of which a part is for pods.
    pub fn new(memory: usize) -> Self {
        Self { limit: memory / SHARE, ..Self::default() }
    }

    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    pub fn set_watch(&mut self, watch: Watch) {
        self.shown = [globs(&watch.labels), globs(&watch.annotations)];
        self.watch = watch;
        self.settings += 1;
    }

    /// Whether a label is shown, and an annotation.
    pub fn shows_label(&self, key: &str) -> bool {
        self.shown[0].is_match(key)
    }

    pub fn shows_annotation(&self, key: &str) -> bool {
        self.shown[1].is_match(key)
    }

    pub fn tell(&mut self, pod: Pod) {
        if pod.uid.is_empty() {
            return;
        }
        self.forget(&pod.uid.clone());
        self.last += 1;
        for container in ids(&pod) {
            self.by_container.insert(container.id.clone(), pod.uid.clone());
        }
        if let Some(uid) = pod.annotations.get(STATIC_UID) {
            self.by_static_uid.insert(uid.clone(), pod.uid.clone());
        }
        let cost = cost(&pod);
        self.held += cost;
        let known = Known { number: self.last, gone: false, cost, pod: Arc::new(pod) };
        self.known.insert(known.pod.uid.clone(), known);
        self.fit();
    }

    /// A pod that is deleted stays for a while.
    pub fn gone(&mut self, uid: &str) {
        let Some(known) = self.known.get_mut(uid).filter(|known| !known.gone) else { return };
        known.gone = true;
        self.gone.push_back((uid.to_owned(), known.number));
        while self.gone.len() > GONE_MAX {
            self.drop_oldest_gone();
        }
    }

    /// By what its cgroup says.
    pub fn find(&self, uid: Option<&str>, container: Option<&str>) -> Option<&Arc<Pod>> {
        self.known(uid, container).map(|known| &known.pod)
    }

    /// Changes when what is known of such a process does.
    pub fn stamp(&self, uid: Option<&str>, container: Option<&str>) -> (u64, u64) {
        (self.settings, self.known(uid, container).map_or(0, |known| known.number))
    }

    fn known(&self, uid: Option<&str>, container: Option<&str>) -> Option<&Known> {
        let direct =
            uid.and_then(|uid| self.known.get(self.by_static_uid.get(uid).map_or(uid, String::as_str)));
        // No other container has its id: a static pod is found by that where its uid is not told.
        direct.or_else(|| self.known.get(self.by_container.get(container?)?))
    }

    /// Within the budget: of those that are gone the oldest go first, then the oldest at all.
    fn fit(&mut self) {
        while self.known.len() > 1 && (self.known.len() > KNOWN_MAX || self.held > self.limit) {
            if !self.drop_oldest_gone() {
                let oldest = self.known.iter().min_by_key(|(_, known)| known.number);
                let Some(uid) = oldest.map(|(uid, _)| uid.clone()) else { return };
                self.forget(&uid);
            }
        }
    }

    fn drop_oldest_gone(&mut self) -> bool {
        while let Some((uid, number)) = self.gone.pop_front() {
            if self.known.get(&uid).is_some_and(|known| known.gone && known.number == number) {
                self.forget(&uid);
                return true;
            }
        }
        false
    }

    fn forget(&mut self, uid: &str) {
        let Some(known) = self.known.remove(uid) else { return };
        self.held -= known.cost;
        for container in ids(&known.pod) {
            if self.by_container.get(&container.id).is_some_and(|of| of == uid) {
                self.by_container.remove(&container.id);
            }
        }
        if let Some(alias) = known.pod.annotations.get(STATIC_UID)
            && self.by_static_uid.get(alias).is_some_and(|of| of == uid)
        {
            self.by_static_uid.remove(alias);
        }
        if known.gone {
            self.gone.retain(|(gone, _)| gone != uid);
        }
    }
}

fn ids(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.containers.iter().filter(|container| !container.id.is_empty())
}

/// What is no pattern is left out: the configuration was checked before.
fn globs(patterns: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in patterns.iter().filter_map(|pattern| Glob::new(pattern).ok()) {
        set.add(glob);
    }
    set.build().unwrap_or_default()
}

/// Bytes of memory, about.
fn cost(pod: &Pod) -> usize {
    const ENTRY: usize = 64;
    let pairs = pod.labels.iter().chain(&pod.annotations).map(|(key, value)| key.len() + value.len() + ENTRY);
    let owners = pod.owners.iter().map(|owner| owner.kind.len() + owner.name.len() + ENTRY);
    let containers = pod
        .containers
        .iter()
        .map(|container| container.name.len() + container.image.len() + 3 * (container.id.len() + ENTRY));
    size_of::<Pod>()
        + 4 * ENTRY
        + 3 * pod.uid.len()
        + pod.namespace.len()
        + pod.name.len()
        + pod.node.len()
        + pairs.chain(owners).chain(containers).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: impl ToString) -> Pod {
        let uid = uid.to_string();
        let container = Container { name: "app".into(), image: "shop:1".into(), id: format!("id-{uid}") };
        Pod { name: format!("pod-{uid}"), containers: vec![container], uid, ..Pod::default() }
    }

    fn name<'a>(pods: &'a Pods, uid: &str) -> Option<&'a str> {
        pods.find(Some(uid), None).map(|pod| pod.name.as_str())
    }

    #[test]
    fn pods_are_found_by_uid_and_by_container() {
        let mut pods = Pods::new(1 << 30);
        pods.tell(pod(1));
        pods.tell(pod(2));
        assert_eq!(name(&pods, "1"), Some("pod-1"));
        let by_container = |pods: &Pods, id| pods.find(None, Some(id)).map(|pod| pod.uid.clone());
        assert_eq!(by_container(&pods, "id-2").as_deref(), Some("2"));
        assert_eq!(by_container(&pods, "id-3"), None);
        // A container that was started again has another id.
        let mut again = pod(2);
        again.containers[0].id = "id-3".into();
        let before = pods.stamp(Some("2"), None);
        pods.tell(again);
        assert_ne!(pods.stamp(Some("2"), None), before);
        assert_eq!(by_container(&pods, "id-2"), None);
        assert_eq!(by_container(&pods, "id-3").as_deref(), Some("2"));
    }

    #[test]
    fn a_static_pod_is_found_by_the_uid_of_its_cgroup() {
        let mut pods = Pods::new(1 << 30);
        let mut mirror = pod("mirror");
        mirror.annotations.insert(STATIC_UID.into(), "hash".into());
        pods.tell(mirror);
        assert_eq!(name(&pods, "hash"), Some("pod-mirror"));
        assert_eq!(pods.find(Some("hash"), Some("unknown")).map(|pod| pod.uid.as_str()), Some("mirror"));
        pods.forget("mirror");
        assert_eq!(name(&pods, "hash"), None);
    }

    #[test]
    fn those_that_are_gone_stay_and_the_oldest_go_first() {
        let mut pods = Pods::new(1 << 30);
        for uid in 0..GONE_MAX + 2 {
            pods.tell(pod(uid));
            pods.gone(&uid.to_string());
            pods.gone(&uid.to_string());
        }
        assert_eq!((pods.known.len(), pods.gone.len()), (GONE_MAX, GONE_MAX));
        assert_eq!((name(&pods, "1"), name(&pods, "2")), (None, Some("pod-2")));
        // One that is told of again is there.
        pods.tell(pod(2));
        pods.tell(pod("a"));
        pods.gone("a");
        pods.tell(pod("b"));
        pods.gone("b");
        assert_eq!((name(&pods, "2"), name(&pods, "3")), (Some("pod-2"), None));
        pods.gone("nobody");
    }

    #[test]
    fn they_fit_into_the_memory() {
        let one = cost(&pod(100));
        let mut pods = Pods::new(SHARE * one * 10);
        (100..105).for_each(|uid| pods.tell(pod(uid)));
        pods.gone("103");
        (105..200).for_each(|uid| pods.tell(pod(uid)));
        assert_eq!(pods.known.len(), 10);
        assert_eq!((pods.by_container.len(), pods.held), (10, 10 * one));
        assert_eq!((name(&pods, "189"), name(&pods, "190")), (None, Some("pod-190")));
        // The one that was gone went before all others: nothing of it is left.
        assert!(pods.gone.is_empty());
        let mut pods = Pods::new(SHARE * one * 3);
        (100..103).for_each(|uid| pods.tell(pod(uid)));
        pods.gone("102");
        pods.tell(pod(103));
        assert_eq!((name(&pods, "100"), name(&pods, "102")), (Some("pod-100"), None));
    }
}
