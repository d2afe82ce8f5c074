//! The container, the pod and the systemd unit that a process is in, by the path of its cgroup.
//!
//! Runtimes and drivers name their cgroups each in their own way, and nest them: the path is read from the root
//! inwards, and what lies further in counts.

use crate::protocol::Text;

/// Digits of the ids that container runtimes give, of a pod's uid with what stands between them, and of the
/// uids that the kubelet makes for static pods.
const ID: usize = 64;
const UID: usize = 36;
const STATIC_UID: usize = 32;

/// Where a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Of the container, digits alone. In a pod the one that the pod has, whatever runs in that.
    pub id: Option<Text>,
    /// Of the pod, as Kubernetes writes it.
    pub pod: Option<Text>,
    pub runtime: Option<Runtime>,
    /// Of systemd, without `.service`.
    pub unit: Option<Text>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Containerd,
    Crio,
    Docker,
    Podman,
}

/// What scopes and folders of containers start with.
const PREFIXES: [(&str, Option<Runtime>); 6] = [
    ("cri-containerd", Some(Runtime::Containerd)),
    ("nerdctl", Some(Runtime::Containerd)),
    ("crio", Some(Runtime::Crio)),
    ("docker", Some(Runtime::Docker)),
    ("libpod", Some(Runtime::Podman)),
    ("", None),
];

/// Units that start what others ask them for: nobody calls a service by their names.
const LAUNCHERS: [&str; 13] = [
    "user@",
    "ssh",
    "sshd",
    "ssh@",
    "sshd@",
    "cron",
    "crond",
    "cronie",
    "atd",
    "anacron",
    "getty@",
    "serial-getty@",
    "console-getty",
];

impl Place {
    pub fn of(cgroup: &str) -> Self {
        let mut place = Self::default();
        let mut before = ["", ""];
        for part in cgroup.split('/') {
            // As runc is told by containerd with the systemd driver: slice, prefix and name.
            for piece in part.split(':') {
                place.enter(piece, before);
                before = [before[1], piece];
            }
        }
        place
    }

    /// It says nothing.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    fn enter(&mut self, part: &str, before: [&str; 2]) {
        if let Some(pod) = pod(part) {
            *self = Self { pod: Some(pod), ..Self::default() };
        } else if let Some((id, runtime)) = container(part, before) {
            self.unit = None;
            // A container in a pod's container is nothing that the pod knows of.
            if self.pod.is_none() || self.id.is_none() {
                (self.id, self.runtime) = (Some(id), runtime);
            }
        } else if let Some(unit) = part.strip_suffix(".service") {
            self.unit = (!is_launcher(unit)).then(|| Text::new(unit));
        } else if part.ends_with(".scope") {
            self.unit = None;
        }
    }
}

/// `pod<uid>` of the cgroupfs driver, `…kubepods-burstable-pod<uid>.slice` of that of systemd, where `-` would be
/// a level of its own.
pub fn pod(part: &str) -> Option<Text> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) if slice.contains("kubepods") => slice.rsplit_once("-pod")?.1,
        Some(_) => return None,
        None => part.strip_prefix("pod")?,
    };
    is_uid(uid).then(|| if uid.contains('_') { uid.replace('_', "-").into() } else { Text::new(uid) })
}

fn is_uid(text: &str) -> bool {
    let bytes = text.as_bytes();
    match bytes.len() {
        STATIC_UID => bytes.iter().all(u8::is_ascii_hexdigit),
        UID => bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => byte.is_ascii_hexdigit(),
        }),
        _ => false,
    }
}

fn container(part: &str, before: [&str; 2]) -> Option<(Text, Option<Runtime>)> {
    if before[0] == "ecs" && is_of_task(part, before[1]) {
        return Some((Text::new(part), None));
    }
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = name.get(name.len().checked_sub(ID)?..)?;
    if !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let prefix = name.strip_suffix(id)?;
    if prefix.is_empty() {
        // The folder that it lies in, or the word before it, may tell.
        let runtime =
            PREFIXES.iter().find(|(known, _)| *known == before[1]).and_then(|(_, runtime)| *runtime);
        return Some((Text::new(id), runtime));
    }
    let prefix = prefix.strip_suffix('-')?;
    // conmon looks after a container from outside.
    if prefix.ends_with("conmon") {
        return None;
    }
    let runtime = PREFIXES.iter().find(|(known, _)| *known == prefix).and_then(|(_, runtime)| *runtime);
    Some((Text::new(id), runtime))
}

/// On Fargate: the task's id and a number.
fn is_of_task(part: &str, task: &str) -> bool {
    let number = part.strip_prefix(task).and_then(|rest| rest.strip_prefix('-'));
    task.len() == STATIC_UID
        && task.bytes().all(|byte| byte.is_ascii_hexdigit())
        && number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_launcher(unit: &str) -> bool {
    LAUNCHERS.iter().any(|known| match known.strip_suffix('@') {
        Some(_) => unit.starts_with(known),
        None => unit == *known,
    })
}

/// What an image is called, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    pub name: &'a str,
    pub tag: Option<&'a str>,
    pub digest: Option<&'a str>,
}

impl<'a> Image<'a> {
    /// None for one that has no name, only a digest.
    pub fn of(reference: &'a str) -> Option<Self> {
        let (rest, digest) = match reference.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (reference, None),
        };
        // A colon before the last slash is that of the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let is_digest =
            name == "sha256" || name.len() == ID && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let tag = tag.filter(|tag| !tag.is_empty());
        (!name.is_empty() && !is_digest).then_some(Self { name, tag, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OUTER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
    const POD: &str = "7f9c2ba4-e88f-4c1b-9d3e-0123456789ab";
    const SLICE: &str = "7f9c2ba4_e88f_4c1b_9d3e_0123456789ab";
    const STATIC: &str = "4752cdc26d79e024da287ffaf6307884";

    fn place(pod: Option<&str>, id: Option<&str>, runtime: Option<Runtime>) -> Place {
        Place { pod: pod.map(Text::new), id: id.map(Text::new), runtime, unit: None }
    }

    #[test]
    fn pods_are_found_in_the_paths_of_all_drivers_and_runtimes() {
        use Runtime::{Containerd, Crio, Docker};
        let slices = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice");
        let inner = format!(
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SLICE}.slice"
        );
        let (pod, id) = (Some(POD), Some(ID));
        let table = [
            (format!("/kubepods/burstable/pod{POD}/{ID}"), pod, id, None),
            (format!("/kubepods/besteffort/pod{POD}/{ID}"), pod, id, None),
            (format!("/kubepods/pod{POD}/{ID}"), pod, id, None),
            (format!("/kubepods/pod{POD}"), pod, None, None),
            (format!("/kubepods/burstable/pod{POD}/crio-{ID}"), pod, id, Some(Crio)),
            (format!("/kubepods/burstable/pod{POD}/crio-conmon-{ID}"), pod, None, None),
            (format!("/kubepods/burstable/pod{STATIC}/{ID}"), Some(STATIC), id, None),
            (format!("/{slices}/cri-containerd-{ID}.scope"), pod, id, Some(Containerd)),
            (format!("/{slices}/crio-{ID}.scope"), pod, id, Some(Crio)),
            (format!("/{slices}/crio-{ID}.scope/container"), pod, id, Some(Crio)),
            (format!("/{slices}/crio-conmon-{ID}.scope"), pod, None, None),
            (format!("/{slices}/docker-{ID}.scope"), pod, id, Some(Docker)),
            (
                format!("/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-{ID}.scope"),
                pod,
                id,
                Some(Containerd),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{ID}.scope"
                ),
                Some(STATIC),
                id,
                Some(Crio),
            ),
            // From a private cgroup namespace.
            (format!("/../../pod{POD}/{ID}"), pod, id, None),
            (format!("/../cri-containerd-{ID}.scope"), None, id, Some(Containerd)),
            (format!("/../../{slices}/cri-containerd-{ID}.scope"), pod, id, Some(Containerd)),
            // kind
            (format!("/{inner}/cri-containerd-{ID}.scope"), pod, id, Some(Containerd)),
            (format!("/docker/{OUTER}/kubelet/kubepods/burstable/pod{POD}/{ID}"), pod, id, None),
            (
                format!("/system.slice/docker-{OUTER}.scope/{inner}/cri-containerd-{ID}.scope"),
                pod,
                id,
                Some(Containerd),
            ),
            (format!("/kubepods/pod{STATIC}/{OUTER}/kubelet/kubepods/pod{POD}/{ID}"), pod, id, None),
            (format!("/docker/{OUTER}/kubelet/kubepods/burstable/pod{POD}"), pod, None, None),
            // What runs in a pod's container is the pod's.
            (format!("/kubepods/pod{POD}/{ID}/docker/{OUTER}"), pod, id, None),
            (format!("/kubepods/pod{POD}/{ID}/system.slice/docker-{OUTER}.scope"), pod, id, None),
            // The driver that the runtime did not know.
            (format!("/kubepods-burstable-pod{SLICE}.slice:cri-containerd:{ID}"), pod, id, Some(Containerd)),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{SLICE}.slice:cri-containerd:{ID}"
                ),
                pod,
                id,
                Some(Containerd),
            ),
            (format!("/system.slice/kubepods-pod{SLICE}.slice:crio:{ID}"), pod, id, Some(Crio)),
        ];
        for (path, pod, id, runtime) in table {
            assert_eq!(Place::of(&path), place(pod, id, runtime), "{path}");
        }
    }

    #[test]
    fn containers_are_found_outside_of_pods() {
        use Runtime::{Containerd, Docker, Podman};
        const TASK: &str = "cd189a933e5849daa93386466019ab50";
        let fargate = format!("{TASK}-2495160603");
        let user = "user.slice/user-1000.slice/user@1000.service/user.slice";
        let table = [
            (format!("/docker/{ID}"), ID, Some(Docker)),
            (format!("/system.slice/docker-{ID}.scope"), ID, Some(Docker)),
            (format!("/../../system.slice/docker-{ID}.scope"), ID, Some(Docker)),
            (format!("/docker/{OUTER}/docker/{ID}"), ID, Some(Docker)),
            (format!("/machine.slice/libpod-{ID}.scope"), ID, Some(Podman)),
            (format!("/machine.slice/libpod-{ID}.scope/container"), ID, Some(Podman)),
            (format!("/libpod_parent/libpod-{ID}"), ID, Some(Podman)),
            (format!("/{user}/libpod-{ID}.scope/container"), ID, Some(Podman)),
            (format!("/system.slice/nerdctl-{ID}.scope"), ID, Some(Containerd)),
            (format!("/default/{ID}"), ID, None),
            (format!("/ecs/{TASK}/{ID}"), ID, None),
            (format!("/ecs/{TASK}/{fargate}"), fargate.as_str(), None),
        ];
        for (path, id, runtime) in table {
            assert_eq!(Place::of(&path), place(None, Some(id), runtime), "{path}");
        }
    }

    #[test]
    fn what_names_no_container_is_none() {
        let short = &ID[1..];
        for path in [
            "",
            "/",
            "/init.scope",
            "/user.slice/user-1000.slice/session-3.scope",
            "/kubepods/burstable",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods/podshop",
            "/some-pod.slice",
            &format!("/docker/{short}"),
            &format!("/docker/g{short}"),
            &format!("/machine.slice/libpod-conmon-{ID}.scope"),
            &format!("/machine.slice/machine-libpod_pod_{ID}.slice"),
            &format!("/ecs/{STATIC}/{STATIC}-x"),
            &format!("/ecs/{STATIC}/{POD}"),
        ] {
            assert!(Place::of(path).is_open(), "{path}: {:?}", Place::of(path));
        }
    }

    #[test]
    fn units_are_those_that_the_process_is_of() {
        let unit = |path: &str| Place::of(path).unit;
        let inside = format!("/docker/{ID}/system.slice/nginx.service");
        for (path, expected) in [
            ("/system.slice/nginx.service", Some("nginx")),
            ("/system.slice/system-postgresql.slice/postgresql@16-main.service", Some("postgresql@16-main")),
            ("/system.slice/nginx.service/workers", Some("nginx")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/syncthing.service", Some("syncthing")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-shell-77.scope", None),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", None),
            ("/user.slice/user-1000.slice/user@1000.service", None),
            ("/user.slice/user-1000.slice/session-3.scope", None),
            ("/system.slice/ssh.service", None),
            ("/system.slice/cron.service", None),
            ("/system.slice/system-getty.slice/getty@tty1.service", None),
            ("/init.scope", None),
            (&inside, Some("nginx")),
            (&format!("/system.slice/k3s.service/kubepods/pod{POD}/{ID}"), None),
            (&format!("/system.slice/containerd.service/{ID}"), None),
        ] {
            assert_eq!(unit(path).as_deref(), expected, "{path}");
        }
        assert_eq!(Place::of(&inside).id.as_deref(), Some(ID));
    }

    #[test]
    fn images_are_taken_apart() {
        let digest = format!("sha256:{ID}");
        let of = |name, tag, digest| Some(Image { name, tag, digest });
        for (reference, expected) in [
            ("nginx", of("nginx", None, None)),
            ("nginx:1.25", of("nginx", Some("1.25"), None)),
            ("localhost:5000/shop", of("localhost:5000/shop", None, None)),
            ("localhost:5000/shop:v1", of("localhost:5000/shop", Some("v1"), None)),
            (&format!("r.io/a/b:v1@{digest}"), of("r.io/a/b", Some("v1"), Some(&digest))),
            (&format!("r.io/a/b@{digest}"), of("r.io/a/b", None, Some(&digest))),
            (&digest, None),
            (ID, None),
            ("", None),
        ] {
            assert_eq!(Image::of(reference), expected, "{reference}");
        }
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
            assert_eq!(pod(name).as_deref(), expected, "{name}");
        }
    }
}
