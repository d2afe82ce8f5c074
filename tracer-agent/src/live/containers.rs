//! What container runtimes keep of their containers in files: names and images, and in a cluster the pod's. It is
//! there before the container's first process, and needs no API.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use serde::Deserialize;
use tracer_common::record::FactKey;

use super::discover::{self, Cgroups};
use crate::enrich::container::{Place, Runtime};

/// The most that is read of one file, and of one text in it.
const READ_MAX: u64 = 4 << 20;
const TEXT_MAX: usize = 1024;

/// Containers that are remembered, also those that no file tells of.
const KNOWN_MAX: usize = 4096;

/// How far up it is looked for whoever started the container.
const ANCESTORS_MAX: usize = 64;

/// Of the runtime's ancestors, so many are asked: some have a process of their own between.
const ASKED_MAX: usize = 4;

/// By key, what is known of a container.
type About = BTreeMap<FactKey, String>;

/// By the id of the container.
#[derive(Default)]
pub struct Containers {
    known: BTreeMap<String, Rc<About>>,
    order: VecDeque<String>,
    /// Roots of the machine, as found last.
    machine: Vec<PathBuf>,
}

impl Containers {
    /// What its runtime calls the container whose folder in the cgroup tree this is, if anything runs in it or not.
    pub fn name(&mut self, place: &Place, folder: &Path) -> Option<String> {
        let id = place.id.as_deref()?;
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let process = processes.lines().find_map(|line| line.parse().ok());
        let name = |about: &About| about.get(&FactKey::ContainerName).cloned();
        let by_process = process.and_then(|process| name(&self.of(process, place)));
        by_process.or_else(|| name(&look_up(&[], self.machine(), id, place.runtime)))
    }

    /// What is known of the container that a process is in.
    pub fn of(&mut self, process: u32, place: &Place) -> Rc<About> {
        let Some(id) = place.id.as_deref() else { return Rc::default() };
        if let Some(known) = self.known.get(id) {
            return known.clone();
        }
        let above = above(process, id);
        let about = Rc::new(look_up(&above, self.machine(), id, place.runtime));
        if above.is_empty() && about.is_empty() {
            // The process is gone: the next one of the container may show more.
            return about;
        }
        if self.order.len() >= KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id.to_owned());
        self.known.insert(id.to_owned(), about.clone());
        about
    }

    /// From within a container the machine's root is that of its first process, or of a runtime's own one where
    /// nobody may look at the first; else it is this one's.
    fn machine(&mut self) -> &[PathBuf] {
        let is_there = |root: &PathBuf| root.join("proc").is_dir();
        if self.machine.len() < 2 || !self.machine.iter().all(is_there) {
            let of_process = |process| PathBuf::from(format!("/proc/{process}/root"));
            let mut roots = vec![of_process(1)];
            if !is_there(&roots[0]) {
                let all = discover::all().unwrap_or_default();
                roots = all.into_iter().filter(|process| is_runtime(*process)).map(of_process).collect();
                roots.retain(is_there);
                roots.truncate(1);
            }
            roots.push(PathBuf::from("/"));
            self.machine = roots;
        }
        &self.machine
    }
}

/// Processes that run in the machine's own root.
const RUNTIMES: [&str; 4] = ["containerd", "dockerd", "crio", "kubelet"];

fn is_runtime(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| RUNTIMES.contains(&name.trim_end()))
}

/// In the machine's root, where they keep what they tell their lower runtimes.
const BUNDLES: [&str; 2] =
    ["run/containerd/io.containerd.runtime.v2.task", "run/k3s/containerd/io.containerd.runtime.v2.task"];
const STORAGES: [&str; 2] = ["run/containers/storage", "var/lib/containers/storage"];

/// By the bundle, wherever runtimes put it: nothing of the container needs to run.
fn in_bundles(machine: &[PathBuf], id: &str) -> About {
    let tasks = machine.iter().flat_map(|root| BUNDLES.map(|folder| root.join(folder)));
    let namespaces = tasks.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let bundles = namespaces.map(|namespace| namespace.path().join(id));
    let storages = machine.iter().flat_map(|root| STORAGES.map(|folder| root.join(folder)));
    let storages = storages.map(|folder| folder.join("overlay-containers").join(id).join("userdata"));
    let texts = bundles.chain(storages).filter_map(|folder| read(&folder.join("config.json")));
    texts.map(|text| bundle(&text)).find(|about| !about.is_empty()).unwrap_or_default()
}

/// Ids hold no more than digits and dashes: they lead nowhere but to a folder of their name.
fn look_up(above: &[u32], machine: &[PathBuf], id: &str, runtime: Option<Runtime>) -> About {
    let mut roots: Vec<PathBuf> =
        above.iter().map(|process| PathBuf::from(format!("/proc/{process}/root"))).collect();
    roots.extend_from_slice(machine);
    let mut about = About::new();
    for ancestor in above {
        let folder = Path::new("/proc").join(ancestor.to_string()).join("cwd");
        about = of_bundle(&folder, id);
        if !about.is_empty() {
            break;
        }
    }
    if about.is_empty() && matches!(runtime, None | Some(Runtime::Docker)) {
        let file = format!("var/lib/docker/containers/{id}/config.v2.json");
        about = in_roots(&roots, &file, docker);
    }
    if about.is_empty() && matches!(runtime, None | Some(Runtime::Podman)) {
        let file = "var/lib/containers/storage/overlay-containers/containers.json";
        about = in_roots(&roots, file, |text| podman(text, id));
    }
    if about.is_empty() && runtime != Some(Runtime::Docker) {
        about = in_bundles(machine, id);
    }
    about
}

/// The processes above, from the first that is not in the container on.
fn above(process: u32, id: &str) -> Vec<u32> {
    let mut above = Vec::new();
    let mut at = process;
    for _ in 0..ANCESTORS_MAX {
        let Some(parent) = discover::parent(at).filter(|parent| *parent > 1) else { break };
        at = parent;
        if above.is_empty() && place_of(at).id.as_deref() == Some(id) {
            continue;
        }
        above.push(at);
        if above.len() == ASKED_MAX {
            break;
        }
    }
    above
}

fn place_of(process: u32) -> Place {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    Cgroups::of(&text).place()
}

/// By the folder that a runtime's own process works in: that of the container, or of the pod's sandbox, beside
/// which the container's lies.
fn of_bundle(folder: &Path, id: &str) -> About {
    let is_its_own = fs::read_link(folder).is_ok_and(|path| path.to_string_lossy().contains(id));
    let file =
        if is_its_own { folder.join("config.json") } else { folder.join("..").join(id).join("config.json") };
    let about = read(&file).map(|text| bundle(&text)).unwrap_or_default();
    if !about.is_empty() || !is_its_own {
        return about;
    }
    // Podman's storage, root's or a user's: STORAGE/overlay-containers/ID/userdata.
    read(&folder.join("../../containers.json")).map(|text| podman(&text, id)).unwrap_or_default()
}

/// The file as the runtime has it, or else the machine.
fn in_roots(roots: &[PathBuf], file: &str, parse: impl Fn(&[u8]) -> About) -> About {
    let texts = roots.iter().filter_map(|root| read(&root.join(file)));
    texts.map(|text| parse(&text)).find(|about| !about.is_empty()).unwrap_or_default()
}

/// Of an OCI bundle's `config.json`.
fn bundle(text: &[u8]) -> About {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Bundle {
        annotations: BTreeMap<String, String>,
    }
    let bundle: Bundle = serde_json::from_slice(text).unwrap_or_default();
    of_annotations(&bundle.annotations)
}

/// By the annotations that containerd, CRI-O and nerdctl write, or the labels that Docker has in a cluster.
fn of_annotations(annotations: &BTreeMap<String, String>) -> About {
    let keys: [(FactKey, &[&str]); 5] = [
        (
            FactKey::ContainerName,
            &["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"],
        ),
        (FactKey::ContainerImage, &["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]),
        (FactKey::PodName, &["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
        (FactKey::PodNamespace, &["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
        (FactKey::PodUid, &["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
    ];
    let mut about = About::new();
    for (key, names) in keys {
        if let Some(text) = names.iter().find_map(|name| annotations.get(*name)) {
            tell(&mut about, key, text);
        }
    }
    about
}

/// Of Docker's `config.v2.json`.
fn docker(text: &[u8]) -> About {
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "PascalCase")]
    struct Container {
        name: String,
        config: Config,
    }
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "PascalCase")]
    struct Config {
        image: String,
        labels: Option<BTreeMap<String, String>>,
    }
    let container: Container = serde_json::from_slice(text).unwrap_or_default();
    let mut about = of_annotations(&container.config.labels.unwrap_or_default());
    if !about.contains_key(&FactKey::ContainerName) {
        tell(&mut about, FactKey::ContainerName, container.name.trim_start_matches('/'));
    }
    tell(&mut about, FactKey::ContainerImage, &container.config.image);
    about
}

/// Of the list of all containers in a storage of Podman's.
fn podman(text: &[u8], id: &str) -> About {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Container {
        id: String,
        names: Option<Vec<String>>,
        metadata: String,
    }
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "kebab-case")]
    struct Metadata {
        image_name: String,
    }
    let containers: Vec<Container> = serde_json::from_slice(text).unwrap_or_default();
    let mut about = About::new();
    if let Some(container) = containers.into_iter().find(|container| container.id == id) {
        if let Some(name) = container.names.iter().flatten().next() {
            tell(&mut about, FactKey::ContainerName, name);
        }
        let metadata: Metadata = serde_json::from_str(&container.metadata).unwrap_or_default();
        tell(&mut about, FactKey::ContainerImage, &metadata.image_name);
    }
    about
}

fn tell(about: &mut About, key: FactKey, text: &str) {
    if !text.is_empty() {
        about.insert(key, text[..text.floor_char_boundary(TEXT_MAX)].to_owned());
    }
}

/// Only of a file: what somebody else has put there may be a pipe, on which one would wait.
fn read(path: &Path) -> Option<Vec<u8>> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    file.metadata().ok().filter(|found| found.is_file() && found.len() <= READ_MAX)?;
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn told(about: &About) -> Vec<(FactKey, &str)> {
        about.iter().map(|(key, value)| (*key, value.as_str())).collect()
    }

    const IN_A_POD: [(FactKey, &str); 5] = [
        (FactKey::ContainerName, "app"),
        (FactKey::ContainerImage, "r.io/shop:1"),
        (FactKey::PodName, "shop-1"),
        (FactKey::PodNamespace, "prod"),
        (FactKey::PodUid, "7f9c"),
    ];

    #[test]
    fn what_runtimes_write_is_read() {
        let containerd = br#"{"ociVersion":"1.2.0","process":{"args":["a"]},"annotations":{
            "io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container",
            "io.kubernetes.cri.image-name":"r.io/shop:1","io.kubernetes.cri.sandbox-id":"0",
            "io.kubernetes.cri.sandbox-name":"shop-1","io.kubernetes.cri.sandbox-namespace":"prod",
            "io.kubernetes.cri.sandbox-uid":"7f9c"}}"#;
        assert_eq!(told(&bundle(containerd)), IN_A_POD);
        let crio = br#"{"annotations":{"io.kubernetes.container.name":"app",
            "io.kubernetes.cri-o.ImageName":"r.io/shop:1","io.kubernetes.pod.name":"shop-1",
            "io.kubernetes.pod.namespace":"prod","io.kubernetes.pod.uid":"7f9c"}}"#;
        assert_eq!(told(&bundle(crio)), IN_A_POD);
        assert_eq!(
            told(&bundle(br#"{"annotations":{"nerdctl/name":"web"}}"#)),
            [(FactKey::ContainerName, "web")]
        );
        let plain =
            br#"{"ID":"0","Name":"/web","Config":{"Image":"nginx:1.25","Labels":{}},"State":{"Pid":7}}"#;
        let web = [(FactKey::ContainerName, "web"), (FactKey::ContainerImage, "nginx:1.25")];
        assert_eq!(told(&docker(plain)), web);
        let in_a_cluster =
            br#"{"Name":"/k8s_app_shop-1_prod_7f9c_0","Config":{"Image":"r.io/shop:1","Labels":{
            "io.kubernetes.container.name":"app","io.kubernetes.pod.name":"shop-1",
            "io.kubernetes.pod.namespace":"prod","io.kubernetes.pod.uid":"7f9c"}}}"#;
        assert_eq!(told(&docker(in_a_cluster)), IN_A_POD);
        let list = format!(
            r#"[{{"id":"1","names":["other"],"metadata":"{{}}"}},{{"id":"{ID}","names":["web"],"image":"sha",
            "layer":"l","metadata":"{{\"image-name\":\"nginx:1.25\",\"name\":\"web\"}}"}}]"#
        );
        assert_eq!(told(&podman(list.as_bytes(), ID)), web);
    }

    #[test]
    fn what_is_damaged_is_nothing() {
        let long = format!(r#"{{"annotations":{{"nerdctl/name":"{}"}}}}"#, "é".repeat(TEXT_MAX));
        assert_eq!(bundle(long.as_bytes())[&FactKey::ContainerName].len(), TEXT_MAX);
        for text in
            ["", "{", "null", "[]", "7", r#"{"annotations":7}"#, r#"{"Name":7}"#, r#"[{"names":null}]"#]
        {
            let text = text.as_bytes();
            assert!(bundle(text).is_empty() && docker(text).is_empty() && podman(text, ID).is_empty());
        }
    }

    /// As the shims of containerd work in the sandbox's folder, and conmon in the container's.
    #[test]
    fn bundles_are_found_beside_the_one_that_the_runtime_works_in() {
        let root = std::env::temp_dir().join(format!("tracer-bundles-{}", std::process::id()));
        let text = |name: &str| format!(r#"{{"annotations":{{"io.kubernetes.container.name":"{name}"}}}}"#);
        let (sandbox, own) = (root.join("sandbox"), root.join(ID));
        for (folder, name) in [(&sandbox, "sandbox"), (&own, "app")] {
            fs::create_dir_all(folder).expect("a folder");
            fs::write(folder.join("config.json"), text(name)).expect("a file");
        }
        for folder in [&sandbox, &own] {
            let link = root.join(format!("cwd-of-{}", folder == &own));
            std::os::unix::fs::symlink(folder, &link).expect("a link");
            assert_eq!(told(&of_bundle(&link, ID)), [(FactKey::ContainerName, "app")]);
        }
        assert!(of_bundle(&root.join("cwd-of-false"), "1234").is_empty());
        fs::remove_dir_all(&root).expect("it was there");
    }
}
