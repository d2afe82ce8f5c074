//! The pods and containers that rules ask for, as cgroups: the kernel chooses what starts in one. A pod is told of
//! before its folder is there, and its folder is there before its first process.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow, ensure};

use super::{
    cgroups::{self, Tree},
    kubernetes::OPT,
    select::{Cgroup, Pattern},
};
use crate::enrich::kubernetes::{Object, Pod};

/// The name by which the kubelet knows a pod that it has from a file, not from the API.
pub(super) const STATIC: &str = "kubernetes.io/config.hash";

/// Digits of an id of a container that runtimes show.
const SHORT_ID: usize = 12;

/// Paths of cgroups that are kept.
const PATHS_MAX: usize = 1024;

/// What a rule asks of pods. Values of one kind are alternatives, kinds have to hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodWish {
    pub namespaces: Vec<String>,
    /// `NAME`, or `NAMESPACE/NAME`
    pub pods: Vec<String>,
    /// `NAME`, or `KIND/NAME`
    pub workloads: Vec<String>,
    /// `KEY`, or `KEY=VALUE`; several that have to hold together are separated by commas.
    pub labels: Vec<String>,
    pub annotations: Vec<String>,
    /// Of their namespaces.
    pub namespace_labels: Vec<String>,
    /// Names of containers: of these alone. By themselves they mean any container of the machine, also by its id.
    pub containers: Vec<String>,
}

/// A [`PodWish`], understood.
#[derive(Debug)]
pub(super) struct PodRule {
    wish: PodWish,
    namespaces: Vec<Pattern>,
    /// With the namespace, if it is said.
    pods: Vec<(Option<Pattern>, Pattern)>,
    /// With the kind, if it is said.
    workloads: Vec<(Option<String>, Pattern)>,
    labels: Vec<Pairs>,
    annotations: Vec<Pairs>,
    namespace_labels: Vec<Pairs>,
    containers: Vec<Pattern>,
}

/// Keys that have to be there, with their values if those are said.
#[derive(Debug)]
struct Pairs(Vec<(String, Option<Pattern>)>);

impl PodWish {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Pods that say of themselves whether they are traced: "true" or "false".
    pub fn saying(answer: &str) -> Self {
        Self { annotations: vec![format!("{OPT}={answer}")], ..Self::default() }
    }

    /// Whether pods are meant by nothing but their whole names.
    pub fn names_pods(&self) -> bool {
        let is_name = |text: &String| Pattern::new(text).is_ok_and(|pattern| pattern.is_exact());
        !self.pods.is_empty() && self.pods.iter().all(is_name)
    }

    /// Whether the API is asked: containers are known by their runtimes.
    pub fn asks_pods(&self) -> bool {
        *self != Self { containers: self.containers.clone(), ..Self::default() }
    }

    /// The keys of labels, or of annotations, that it asks for.
    pub fn keys(texts: &[String]) -> impl Iterator<Item = &str> {
        texts
            .iter()
            .flat_map(|text| text.split(','))
            .map(|pair| pair.split_once('=').map_or(pair, |(key, _)| key))
    }

    /// As flags on the command line, for people.
    pub(super) fn words(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let kinds = [
            ("--namespace", &self.namespaces),
            ("--pod", &self.pods),
            ("--workload", &self.workloads),
            ("--label", &self.labels),
            ("--annotation", &self.annotations),
            ("--namespace-label", &self.namespace_labels),
            ("--container", &self.containers),
        ];
        kinds.into_iter().flat_map(|(flag, texts)| texts.iter().map(move |text| (flag, text.as_str())))
    }
}

impl PodRule {
    pub(super) fn new(wish: &PodWish) -> Result<Option<Self>> {
        if wish.is_empty() {
            return Ok(None);
        }
        let patterns =
            |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect::<Result<Vec<_>>>();
        let pairs = |texts: &[String]| texts.iter().map(|text| Pairs::new(text)).collect::<Result<Vec<_>>>();
        let mut pods = Vec::new();
        for text in &wish.pods {
            pods.push(match text.split_once('/') {
                Some((namespace, name)) => (Some(Pattern::new(namespace)?), Pattern::new(name)?),
                None => (None, Pattern::new(text)?),
            });
        }
        let mut workloads = Vec::new();
        for text in &wish.workloads {
            workloads.push(match text.split_once('/') {
                Some((kind, name)) => (Some(kind.to_ascii_lowercase()), Pattern::new(name)?),
                None => (None, Pattern::new(text)?),
            });
        }
        Ok(Some(Self {
            namespaces: patterns(&wish.namespaces)?,
            pods,
            workloads,
            labels: pairs(&wish.labels)?,
            annotations: pairs(&wish.annotations)?,
            namespace_labels: pairs(&wish.namespace_labels)?,
            containers: patterns(&wish.containers)?,
            wish: wish.clone(),
        }))
    }

    pub(super) fn wish(&self) -> &PodWish {
        &self.wish
    }

    /// `excludes`: what it is for. A namespace that is not known yet may be one whose pods nobody may trace.
    fn matches(&self, pod: &Pod, excludes: bool) -> bool {
        let in_namespace = |pattern: &Pattern| pattern.matches(&pod.namespace);
        let is_named = |(namespace, name): &(Option<Pattern>, Pattern)| {
            namespace.as_ref().is_none_or(in_namespace) && name.matches(&pod.name)
        };
        let is_of = |(kind, name): &(Option<String>, Pattern)| {
            pod.owners.iter().any(|owner| {
                kind.as_ref().is_none_or(|kind| owner.kind.eq_ignore_ascii_case(kind))
                    && name.matches(&owner.name)
            })
        };
        any(&self.namespaces, in_namespace)
            && any(&self.pods, is_named)
            && any(&self.workloads, is_of)
            && any(&self.labels, |pairs| pairs.hold(&pod.labels))
            && any(&self.annotations, |pairs| pairs.hold(&pod.annotations))
            && any(&self.namespace_labels, |pairs| {
                pod.namespace_labels.as_ref().map_or(excludes, |labels| pairs.hold(labels))
            })
    }

    /// By its name, or by the start of its id, as people copy it.
    fn matches_container(&self, id: &str, name: Option<&str>) -> bool {
        self.containers.iter().any(|wanted| {
            name.is_some_and(|name| wanted.matches(name))
                || (wanted.text.len() >= SHORT_ID && id.starts_with(&wanted.text))
        })
    }
}

/// Where nothing is said everything is meant.
fn any<T>(said: &[T], holds: impl Fn(&T) -> bool) -> bool {
    said.is_empty() || said.iter().any(holds)
}

impl Pairs {
    fn new(text: &str) -> Result<Self> {
        let pair = |pair: &str| -> Result<(String, Option<Pattern>)> {
            let (key, value) = match pair.split_once('=') {
                Some((key, "")) => (key, Some(Pattern::nothing())),
                Some((key, value)) => (key, Some(Pattern::new(value)?)),
                None => (pair, None),
            };
            ensure!(!key.is_empty(), anyhow!("`{text}` names no key: KEY, or KEY=VALUE"));
            Ok((key.to_owned(), value))
        };
        Ok(Self(text.split(',').map(pair).collect::<Result<_>>()?))
    }

    fn hold(&self, all: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| {
            all.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| value.matches(found)))
        })
    }
}

/// The pods of this node that are told of, and where their processes are.
#[derive(Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Pod>,
    /// Those of whom only somebody told who is not asked any more.
    doubted: BTreeSet<String>,
    tree: Option<Tree>,
    /// Of cgroups, by their ids: these are not given again, so one that is gone stays so.
    paths: BTreeMap<u64, Option<String>>,
}

impl Pods {
    /// Returns whether it may change what is chosen.
    pub(super) fn handle(&mut self, object: &Object) -> bool {
        match object {
            Object::Pod(pod) => {
                self.doubted.remove(&pod.uid);
                self.known.insert(pod.uid.clone(), pod.clone());
                // Its folder may be there already, and who told of it may have been too early for that.
                if let Some(tree) = &mut self.tree {
                    tree.touch();
                }
                true
            }
            Object::Gone { uid } => {
                self.doubted.remove(uid);
                self.known.remove(uid).is_some()
            }
            Object::Peer(_) | Object::Watch(_) => false,
        }
    }

    /// Somebody else is asked from here on.
    pub(super) fn doubt(&mut self) {
        self.doubted = self.known.keys().cloned().collect();
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// All was told that there is.
    pub(super) fn end_doubt(&mut self) -> impl Iterator<Item = Object> + use<> {
        std::mem::take(&mut self.doubted).into_iter().map(|uid| Object::Gone { uid })
    }

    /// Returns whether folders of pods came or went, or of containers where these are asked for.
    pub(super) fn look(&mut self, now: u64, containers: bool) -> bool {
        if self.known.is_empty() && !containers {
            return false;
        }
        if self.tree.is_none() {
            self.tree = Tree::start();
        }
        self.tree.as_mut().is_some_and(|tree| tree.look(now, containers))
    }

    /// The cgroups that the rule asks for and that are there.
    pub(super) fn cgroups(&self, rule: &PodRule, excludes: bool) -> Vec<Cgroup> {
        let Some(tree) = &self.tree else { return Vec::new() };
        let pods = || self.known.values().filter(|pod| rule.matches(pod, excludes));
        let folders = || pods().filter_map(|pod| self.folder(pod));
        if rule.containers.is_empty() {
            return folders().filter_map(Cgroup::at).collect();
        }
        // By the names that the runtime has for them, which knows them first, or the API.
        let told = pods().flat_map(|pod| &pod.containers);
        let told: BTreeSet<&str> = told
            .filter(|container| rule.matches_container(&container.id, Some(&container.name)))
            .map(|container| container.id.as_str())
            .collect();
        let folders: Option<Vec<&Path>> = rule.wish.asks_pods().then(|| folders().collect());
        let is_there = |container: &Path| {
            folders.as_ref().is_none_or(|pods| pods.iter().any(|pod| container.starts_with(pod)))
        };
        let wanted = tree.containers.iter().filter(|(id, container)| {
            (rule.matches_container(id, container.name.as_deref()) || told.contains(id.as_str()))
                && is_there(&container.folder)
        });
        wanted.filter_map(|(_, container)| Cgroup::at(&container.folder)).collect()
    }

    /// The path of a cgroup by its id. Asked only where nothing else is left of a process.
    pub(super) fn cgroup(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        if let Some(path) = self.paths.get(&id) {
            return path.clone();
        }
        let path = cgroups::path_of(id);
        if self.paths.len() >= PATHS_MAX {
            self.paths.pop_first();
        }
        self.paths.insert(id, path.clone());
        path
    }

    fn folder(&self, pod: &Pod) -> Option<&Path> {
        let folders = &self.tree.as_ref()?.pods;
        let by = |uid: &String| folders.get(uid.as_str()).map(PathBuf::as_path);
        by(&pod.uid).or_else(|| by(pod.annotations.get(STATIC)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::kubernetes::Owner;

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn pod() -> Pod {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let owner = |kind: &str, name: &str| Owner { kind: kind.to_owned(), name: name.to_owned() };
        Pod {
            uid: "7f9c0000-0000-4000-8000-000000000001".to_owned(),
            namespace: "shop".to_owned(),
            name: "web-5d9-x7k".to_owned(),
            labels: map(&[("app", "web"), ("tier", "front"), ("empty", "")]),
            annotations: map(&[("tracer.dev/trace", "false")]),
            owners: vec![owner("ReplicaSet", "web-5d9"), owner("Deployment", "web")],
            ..Pod::default()
        }
    }

    fn matches(wish: PodWish) -> bool {
        PodRule::new(&wish).unwrap().unwrap().matches(&pod(), false)
    }

    #[test]
    fn a_pod_meets_all_kinds_by_one_value_each() {
        let of = |namespaces: &[&str], pods: &[&str], workloads: &[&str]| {
            let (namespaces, pods, workloads) = (texts(namespaces), texts(pods), texts(workloads));
            matches(PodWish { namespaces, pods, workloads, ..PodWish::default() })
        };
        assert!(of(&["shop"], &[], &[]) && of(&["other", "sh*"], &[], &[]) && !of(&["other"], &[], &[]));
        assert!(of(&[], &["web-*"], &[]) && of(&[], &["shop/web-*"], &[]) && !of(&[], &["other/web-*"], &[]));
        assert!(
            of(&[], &[], &["web"]) && of(&[], &[], &["deployment/web"]) && of(&[], &[], &["Deployment/w*"])
        );
        assert!(!of(&[], &[], &["statefulset/web"]) && !of(&[], &[], &["we"]));
        assert!(!of(&["shop"], &["db-*"], &["web"]));
    }

    #[test]
    fn namespaces_that_are_not_known_are_excluded_and_not_included() {
        let wish = PodWish { namespace_labels: texts(&["team=shop"]), ..PodWish::default() };
        let rule = PodRule::new(&wish).unwrap().unwrap();
        let of = |labels: Option<&str>, excludes| {
            let namespace_labels = labels.map(|team| BTreeMap::from([("team".to_owned(), team.to_owned())]));
            rule.matches(&Pod { namespace_labels, ..pod() }, excludes)
        };
        assert!(of(Some("shop"), false) && of(Some("shop"), true));
        assert!(!of(Some("other"), false) && !of(Some("other"), true));
        assert!(!of(None, false) && of(None, true));
    }

    #[test]
    fn containers_are_known_by_name_or_by_what_is_shown_of_their_ids() {
        let of = |wanted: &str, name| {
            let wish = PodWish { containers: texts(&[wanted]), ..PodWish::default() };
            assert!(!wish.asks_pods());
            let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
            PodRule::new(&wish).unwrap().unwrap().matches_container(id, name)
        };
        assert!(
            of("web", Some("web")) && of("w*", Some("web")) && !of("web", Some("web2")) && !of("web", None)
        );
        assert!(of("0123456789ab", None) && of("0123456789ab", Some("web")) && !of("0123456789", None));
    }

    #[test]
    fn labels_and_annotations_hold_together_where_a_comma_stands() {
        let of = |labels: &[&str]| matches(PodWish { labels: texts(labels), ..PodWish::default() });
        assert!(of(&["app=web"]) && of(&["app"]) && of(&["app=w*"]) && of(&["app=db", "tier=front"]));
        assert!(of(&["app=web,tier=front"]) && !of(&["app=web,tier=back"]) && !of(&["app=db,tier"]));
        assert!(of(&["empty="]) && !of(&["app="]) && !of(&["nothing"]));
        assert!(matches(PodWish { annotations: texts(&["tracer.dev/trace=false"]), ..PodWish::default() }));
        assert!(PodRule::new(&PodWish { labels: texts(&["=web"]), ..PodWish::default() }).is_err());
        let asked = texts(&["a=b,c", "d"]);
        let keys: Vec<&str> = PodWish::keys(&asked).collect();
        assert_eq!(keys, ["a", "c", "d"]);
    }
}
