//! The pods that rules ask for, as cgroups: the kernel chooses what starts in one. A pod is told of before its folder
//! is there, and its folder is there before its first process.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, iter,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow, ensure};
use rustix::fs::inotify;

use super::select::{Cgroup, Pattern, cgroup_root};
use crate::enrich::kubernetes::{Object, Pod};

/// The name by which the kubelet knows a pod that it has from a file, not from the API.
pub(super) const STATIC: &str = "kubernetes.io/config.hash";

/// How often the tree is gone through for places where pods are, nanoseconds: a kubelet may start later.
const LOOK: u64 = 10_000_000_000;

/// Folders that are gone through, and how deep: pods of nodes that are containers themselves are further down.
const FOLDERS_MAX: usize = 20_000;
const DEPTH_MAX: usize = 6;

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
    /// Names of containers: of these alone.
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
    containers: Vec<Pattern>,
}

/// Keys that have to be there, with their values if those are said.
#[derive(Debug)]
struct Pairs(Vec<(String, Option<Pattern>)>);

impl PodWish {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
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
            containers: patterns(&wish.containers)?,
            wish: wish.clone(),
        }))
    }

    pub(super) fn wish(&self) -> &PodWish {
        &self.wish
    }

    fn matches(&self, pod: &Pod) -> bool {
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
    tree: Option<Tree>,
    /// Of cgroups, by their ids: these are not given again, so one that is gone stays so.
    paths: BTreeMap<u64, Option<String>>,
}

impl Pods {
    /// Returns whether it may change what is chosen.
    pub(super) fn handle(&mut self, object: &Object) -> bool {
        match object {
            Object::Pod(pod) => {
                self.known.insert(pod.uid.clone(), pod.clone());
                // Its folder may be there already, and who told of it may have been too early for that.
                if let Some(tree) = &mut self.tree {
                    tree.changed = true;
                }
                true
            }
            Object::Gone { uid } => self.known.remove(uid).is_some(),
            Object::Peer(_) | Object::Watch(_) => false,
        }
    }

    /// Returns whether folders of pods came or went.
    pub(super) fn look(&mut self, now: u64) -> bool {
        if self.known.is_empty() {
            return false;
        }
        if self.tree.is_none() {
            self.tree = Tree::start();
        }
        self.tree.as_mut().is_some_and(|tree| tree.look(now))
    }

    /// The cgroups that the rule asks for and that are there.
    pub(super) fn cgroups(&self, rule: &PodRule) -> Vec<Cgroup> {
        let matching = self.known.values().filter(|pod| rule.matches(pod));
        let mut cgroups = Vec::new();
        for pod in matching {
            let Some(folder) = self.folder(pod) else { continue };
            if rule.containers.is_empty() {
                cgroups.extend(Cgroup::at(folder));
                continue;
            }
            let wanted = pod.containers.iter().filter(|container| {
                !container.id.is_empty() && rule.containers.iter().any(|name| name.matches(&container.name))
            });
            let ids: Vec<&str> = wanted.map(|container| container.id.as_str()).collect();
            let inside = children(folder).filter(|(name, _)| ids.iter().any(|id| name.contains(id)));
            cgroups.extend(inside.filter_map(|(_, folder)| Cgroup::at(&folder)));
        }
        cgroups
    }

    /// The path of a cgroup by its id. Asked only where nothing else is left of a process.
    pub(super) fn cgroup(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        if let Some(path) = self.paths.get(&id) {
            return path.clone();
        }
        let path = path_of(id);
        if self.paths.len() >= PATHS_MAX {
            self.paths.pop_first();
        }
        self.paths.insert(id, path.clone());
        path
    }

    fn folder(&self, pod: &Pod) -> Option<&Path> {
        let folders = &self.tree.as_ref()?.folders;
        let by = |uid: &String| folders.get(uid).map(PathBuf::as_path);
        by(&pod.uid).or_else(|| by(pod.annotations.get(STATIC)?))
    }
}

/// The part of the cgroup tree that pods are in.
struct Tree {
    root: PathBuf,
    /// Tells of folders that come and go.
    news: OwnedFd,
    /// Folders that have those of pods in them.
    places: Vec<PathBuf>,
    /// By the pod's uid.
    folders: BTreeMap<String, PathBuf>,
    changed: bool,
    looked: u64,
}

impl Tree {
    fn start() -> Option<Self> {
        let news = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let root = cgroup_root().ok()?;
        let tree =
            Self { root, news, places: Vec::new(), folders: BTreeMap::new(), changed: true, looked: 0 };
        Some(tree)
    }

    fn look(&mut self, now: u64) -> bool {
        self.changed |= self.read_news();
        let due = self.looked == 0 || now.saturating_sub(self.looked) >= LOOK;
        if !self.changed && !due {
            return false;
        }
        if due {
            self.looked = now;
            self.find_places();
        }
        self.changed = false;
        let folders: BTreeMap<String, PathBuf> = self
            .places
            .iter()
            .flat_map(|place| children(place))
            .filter_map(|(name, folder)| Some((uid(&name)?, folder)))
            .collect();
        let differs = folders != self.folders;
        self.folders = folders;
        differs
    }

    fn read_news(&self) -> bool {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut news = inotify::Reader::new(&self.news, &mut room);
        // Whatever it is: the folders are looked at. An end is that there is no more for now.
        iter::from_fn(|| news.next().ok().map(drop)).count() > 0
    }

    /// New ones are watched before they are read.
    fn find_places(&mut self) {
        let mut found = Vec::new();
        find(&self.root, &mut found);
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE | inotify::WatchFlags::ONLYDIR;
        found.retain(|place| inotify::add_watch(&self.news, place, flags).is_ok());
        self.places = found;
    }
}

/// The folders of kubelets, and those in them for the classes of service.
fn find(root: &Path, found: &mut Vec<PathBuf>) {
    walk(root, DEPTH_MAX, |name, child| {
        let bare = name.strip_suffix(".slice").unwrap_or(name);
        if !bare.ends_with("kubepods") {
            return Walk::Inside;
        }
        found.push(child.to_owned());
        let classes = children(child).filter(|(name, _)| {
            let bare = name.strip_suffix(".slice").unwrap_or(name);
            bare.ends_with("burstable") || bare.ends_with("besteffort")
        });
        found.extend(classes.map(|(_, class)| class));
        Walk::Past
    });
}

/// The path in the tree of the cgroup with this id, if it is still there.
fn path_of(id: u64) -> Option<String> {
    let root = cgroup_root().ok()?;
    let mut path = None;
    walk(&root, usize::MAX, |_, folder| {
        if fs::metadata(folder).is_ok_and(|found| found.ino() == id) {
            path = folder.strip_prefix(&root).ok().map(|inside| format!("/{}", inside.display()));
            return Walk::End;
        }
        Walk::Inside
    });
    path
}

/// Where a walk through folders goes on.
enum Walk {
    Inside,
    Past,
    End,
}

/// Goes through folders, those above before those below, down to a depth.
fn walk(root: &Path, depth_max: usize, mut visit: impl FnMut(&str, &Path) -> Walk) {
    let mut folders = VecDeque::from([(root.to_owned(), 0)]);
    let mut left = FOLDERS_MAX;
    while let Some((folder, depth)) = folders.pop_front() {
        for (name, child) in children(&folder) {
            if left == 0 {
                return;
            }
            left -= 1;
            match visit(&name, &child) {
                Walk::Inside if depth < depth_max => folders.push_back((child, depth + 1)),
                Walk::Inside | Walk::Past => {}
                Walk::End => return,
            }
        }
    }
}

fn children(folder: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

/// Of the pod whose folder is called so: `pod<uid>`, `kubepods-burstable-pod<uid with _>.slice`.
fn uid(name: &str) -> Option<String> {
    let bare = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = bare.rsplit_once("pod")?;
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let others = uid.bytes().filter(|byte| matches!(byte, b'-' | b'_')).count();
    let is_uid = digits == 32 && digits + others == uid.len() && (others == 0 || others == 4);
    (is_uid && (before.is_empty() || before.ends_with('-'))).then(|| uid.replace('_', "-"))
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
        PodRule::new(&wish).unwrap().unwrap().matches(&pod())
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

    #[test]
    fn folders_of_pods_are_told_from_others() {
        let uids = [
            ("pod7f9c0000-0000-4000-8000-000000000001", Some("7f9c0000-0000-4000-8000-000000000001")),
            (
                "kubepods-burstable-pod7f9c0000_0000_4000_8000_000000000001.slice",
                Some("7f9c0000-0000-4000-8000-000000000001"),
            ),
            (
                "kubepods-pod7f9c0000_0000_4000_8000_000000000001.slice",
                Some("7f9c0000-0000-4000-8000-000000000001"),
            ),
            // Of a pod that the kubelet has from a file.
            ("pod7f9c0000000040008000000000000001", Some("7f9c0000000040008000000000000001")),
            ("burstable", None),
            ("kubepods.slice", None),
            ("mypod7f9c0000000040008000000000000001", None),
            ("pod7f9c", None),
        ];
        for (name, expected) in uids {
            assert_eq!(uid(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn places_are_found_wherever_a_kubelet_has_them() {
        let root = std::env::temp_dir().join(format!("tracer-pods-{}", std::process::id()));
        let places = [
            "kubepods/burstable",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
            "docker/0123/kubelet/kubepods/besteffort",
        ];
        for place in places {
            fs::create_dir_all(root.join(place).join("pod7f9c0000000040008000000000000001")).unwrap();
        }
        fs::create_dir_all(root.join("system.slice/ssh.service")).unwrap();
        let mut found = Vec::new();
        find(&root, &mut found);
        let mut expected: Vec<PathBuf> = places
            .iter()
            .flat_map(|place| [root.join(place), root.join(place).parent().unwrap().to_owned()])
            .collect();
        found.sort();
        expected.sort();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, expected);
    }
}
