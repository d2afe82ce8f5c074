//! The part of the cgroup tree that pods and containers are in: their folders come before their first processes.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, iter,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::inotify;

use super::{containers::Containers, select::cgroup_root};
use crate::{
    enrich::container::{self, Place},
    protocol::Text,
};

/// How often the tree is gone through for places where pods and containers are, nanoseconds: a kubelet may start
/// later.
const LOOK: u64 = 10_000_000_000;

/// Folders that are gone through, and how deep: pods of nodes that are containers themselves are further down.
const FOLDERS_MAX: usize = 20_000;
const DEPTH_MAX: usize = 6;

/// Where runtimes make the cgroups of their containers, watched before the first is there.
const USUAL: [&str; 4] = ["", "docker", "system.slice", "machine.slice"];

pub(super) struct Tree {
    root: PathBuf,
    /// Tells of folders that come and go.
    news: OwnedFd,
    /// Folders that have those of pods, or of containers, in them.
    places: Vec<PathBuf>,
    /// By the pod's uid.
    pub(super) pods: BTreeMap<Text, PathBuf>,
    /// By their ids, where rules ask for them.
    pub(super) containers: BTreeMap<Text, Container>,
    names: Containers,
    /// Whether they are looked for.
    containers_asked: bool,
    changed: bool,
    looked: u64,
}

pub(super) struct Container {
    pub(super) folder: PathBuf,
    /// As its runtime knows it.
    pub(super) name: Option<String>,
}

impl Tree {
    pub(super) fn start() -> Option<Self> {
        let news = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        Some(Self {
            root: cgroup_root().ok()?,
            news,
            places: Vec::new(),
            pods: BTreeMap::new(),
            containers: BTreeMap::new(),
            names: Containers::default(),
            containers_asked: false,
            changed: true,
            looked: 0,
        })
    }

    /// Looks again the next time, whatever is heard.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// Returns whether folders came or went, or are known by another name. `containers`: whether these are looked for.
    pub(super) fn look(&mut self, now: u64, containers: bool) -> bool {
        self.changed |= self.read_news();
        if self.containers_asked != containers {
            (self.containers_asked, self.looked) = (containers, 0);
        }
        let due = self.looked == 0 || now.saturating_sub(self.looked) >= LOOK;
        if !self.changed && !due {
            return false;
        }
        if due {
            self.looked = now;
            self.find_places(containers);
        }
        self.changed = false;
        let inside: Vec<(String, PathBuf)> = self.places.iter().flat_map(|place| children(place)).collect();
        let pods: BTreeMap<Text, PathBuf> = inside
            .iter()
            .filter_map(|(name, folder)| Some((container::pod(name)?, folder.clone())))
            .collect();
        let mut differs = pods != self.pods;
        self.pods = pods;
        if containers {
            differs |= self.look_for_containers(inside);
        }
        differs
    }

    fn look_for_containers(&mut self, mut inside: Vec<(String, PathBuf)>) -> bool {
        for pod in self.pods.values() {
            if self.watch(pod) {
                inside.extend(children(pod));
            }
        }
        let (mut differs, mut found) = (false, BTreeMap::new());
        for (_, folder) in inside {
            let Some(place) = self.container(&folder) else { continue };
            let Some(id) = place.id.clone() else { continue };
            let known = self.containers.remove(&id).filter(|known| known.folder == folder);
            let mut container = known.unwrap_or_else(|| {
                differs = true;
                Container { folder, name: None }
            });
            if container.name.is_none() {
                container.name = self.names.name(&place, &container.folder);
                differs |= container.name.is_some();
            }
            found.insert(id, container);
        }
        // Those that are left are gone.
        differs |= !self.containers.is_empty();
        self.containers = found;
        differs
    }

    /// Where processes of this folder are, if it is the outermost of a container.
    fn container(&self, folder: &Path) -> Option<Place> {
        let of = |folder: &Path| {
            let inside = folder.strip_prefix(&self.root).unwrap_or(folder);
            Place::of(&inside.to_string_lossy())
        };
        let place = of(folder);
        let is_outermost = place.id.is_some() && folder.parent().is_none_or(|above| of(above).id != place.id);
        is_outermost.then_some(place)
    }

    fn read_news(&self) -> bool {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut news = inotify::Reader::new(&self.news, &mut room);
        // Whatever it is: the folders are looked at. An end is that there is no more for now.
        iter::from_fn(|| news.next().ok().map(drop)).count() > 0
    }

    fn watch(&self, folder: &Path) -> bool {
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&self.news, folder, flags).is_ok()
    }

    /// New ones are watched before they are read.
    fn find_places(&mut self, containers: bool) {
        let mut found = Vec::new();
        find(&self.root, &mut found);
        if containers {
            found.extend(USUAL.map(|usual| self.root.join(usual)));
            walk(&self.root, DEPTH_MAX, |name, folder| {
                if container::pod(name).is_some() {
                    return Walk::Past;
                }
                if let Some(above) = folder.parent().filter(|_| self.container(folder).is_some()) {
                    found.push(above.to_owned());
                }
                Walk::Inside
            });
            found.sort();
            found.dedup();
        }
        found.retain(|place| self.watch(place));
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
pub(super) fn path_of(id: u64) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
