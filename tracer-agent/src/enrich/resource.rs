//! What a span's resource says: from what the process says of itself, from Kubernetes, from its cgroup and from
//! its executable, in this order.

use std::{collections::BTreeMap, sync::Arc};

use smol_str::format_smolstr;
use tracer_common::record::FactKey;

use super::{
    Resource, ResourceAttribute,
    container::{Image, Place},
    environment,
    kubernetes::{Container, Pod, pods::Pods},
};
use crate::protocol::{Attribute, Text, Value};

/// What a resource was made from. It says nothing beyond what the resource says.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub(super) known: Option<Arc<Known>>,
    /// When, as the table of pods counts.
    pub(super) stamp: (u64, u64),
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What is known of a process while it runs one program.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) command: String,
    pub(super) facts: BTreeMap<FactKey, String>,
    pub(super) place: Place,
    /// No other program has it.
    pub(super) program: u64,
}

/// Annotations that are attributes of the resource.
const ANNOTATION: &str = "resource.opentelemetry.io/";

/// Bytes of what is said of one process: each has a resource of its own.
const SAID_MAX: usize = 16 << 10;

/// What was seen on the machine: nobody says otherwise of himself.
const SEEN: [&str; 3] = ["os.type", "container.id", "k8s.pod.uid"];
const SEEN_PREFIXES: [&str; 2] = ["process.", "telemetry."];

/// By the kind of an owner, in the order in which they name a service.
const OWNERS: [(&str, &str); 6] = [
    ("Deployment", "k8s.deployment.name"),
    ("ReplicaSet", "k8s.replicaset.name"),
    ("StatefulSet", "k8s.statefulset.name"),
    ("DaemonSet", "k8s.daemonset.name"),
    ("CronJob", "k8s.cronjob.name"),
    ("Job", "k8s.job.name"),
];

impl Known {
    pub(super) fn fact(&self, key: FactKey) -> Option<&str> {
        self.facts.get(&key).map(String::as_str)
    }

    /// By its cgroup, or else as the container's runtime has it.
    pub(super) fn pod_uid(&self) -> Option<&str> {
        self.place.pod.as_deref().or_else(|| self.fact(FactKey::PodUid))
    }

    /// Whether it runs in a pod that was not told of yet, or in a container of it that was not.
    pub(super) fn lacks(&self, pods: &Pods) -> bool {
        let Some(uid) = self.pod_uid() else { return false };
        let id = self.place.id.as_deref();
        let Some(pod) = pods.find(Some(uid), id) else { return true };
        self.container(Some(pod)).is_none() && id.is_some() && self.fact(FactKey::ContainerName).is_none()
    }

    fn container<'a>(&self, pod: Option<&'a Arc<Pod>>) -> Option<&'a Container> {
        let id = self.place.id.as_deref()?;
        pod?.containers.iter().find(|container| container.id == id)
    }

    pub(super) fn describe(self: &Arc<Self>, process: u32, host: Option<&str>, pods: &Pods) -> Resource {
        let id = self.place.id.as_deref();
        let pod = pods.find(self.pod_uid(), id);
        let stamp = pods.stamp(self.pod_uid(), id);
        let mut told = Told { said: self.said(pod), attributes: Vec::new() };
        let in_pod = InPod::of(self, pod, pods);
        let executable = self.fact(FactKey::Executable).unwrap_or(&self.command);

        let service = self.service(&told, &in_pod, pod, executable);
        let service = told.put("service.name", &service);
        told.offer("service.namespace", in_pod.namespace);
        told.offer("service.version", in_pod.version().as_deref());
        told.offer("service.instance.id", in_pod.instance().as_deref());
        told.offer("deployment.environment.name", None);
        told.attributes.push(Attribute::number("process.pid", process).into());
        told.offer("process.executable.name", Some(executable));
        let cgroup = self.fact(FactKey::Cgroup).filter(|path| !path.is_empty());
        told.offer("process.linux.cgroup", cgroup.or_else(|| self.fact(FactKey::CgroupV1)));
        told.offer("container.id", id);
        if in_pod.uid.is_none() {
            told.offer("container.name", self.fact(FactKey::ContainerName));
        }
        told.offer("container.image.name", in_pod.image.map(|image| image.name));
        in_pod.tell(&mut told, pod, pods);
        told.offer("host.name", host);
        told.attributes.push(Attribute::word("os.type", "linux").into());
        told.attributes.push(Attribute::word("telemetry.sdk.name", "tracer").into());
        told.attributes.push(Attribute::word("telemetry.sdk.language", "rust").into());
        told.attributes.push(Attribute::word("telemetry.sdk.version", env!("CARGO_PKG_VERSION")).into());
        let attributes = told.finish();
        Resource { process, service, attributes, origin: Origin { known: Some(self.clone()), stamp } }
    }

    /// What the process says of itself, then what the annotations of its pod say.
    fn said(&self, pod: Option<&Arc<Pod>>) -> Vec<(String, String)> {
        let mut said = environment::attributes(self.fact(FactKey::ResourceAttributes).unwrap_or_default());
        for (key, value) in pod.iter().flat_map(|pod| &pod.annotations) {
            if let Some(key) = key.strip_prefix(ANNOTATION)
                && let Some(value) = environment::told(key, value)
                && !said.iter().any(|(known, _)| known == key)
            {
                said.push((key.to_owned(), value.to_owned()));
            }
        }
        let mut length = 0;
        said.retain(|(key, value)| {
            length += key.len() + value.len();
            length <= SAID_MAX
                && !SEEN.contains(&key.as_str())
                && !SEEN_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        });
        said
    }

    fn service(&self, told: &Told, in_pod: &InPod<'_>, pod: Option<&Arc<Pod>>, executable: &str) -> String {
        let label =
            |key| pod.filter(|_| in_pod.by_labels).and_then(|pod| pod.labels.get(key)).map(String::as_str);
        let owner = OWNERS.iter().find_map(|(kind, _)| {
            let mut owners = pod?.owners.iter();
            owners.find(|owner| owner.kind == *kind).map(|owner| owner.name.as_str())
        });
        // Who has only the runtime's word does not know what the pod is a replica of: its own name would be a
        // service for each replica.
        let candidates = [
            self.fact(FactKey::ServiceName),
            told.said("service.name"),
            label("app.kubernetes.io/instance"),
            label("app.kubernetes.io/name"),
            owner,
            pod.map(|pod| pod.name.as_str()),
            in_pod.container,
            self.fact(FactKey::ContainerName),
            self.place.unit.as_deref(),
            Some(executable),
        ];
        let name = candidates.into_iter().flatten().find(|name| !name.is_empty());
        name.unwrap_or("unknown_service").to_owned()
    }
}

/// What Kubernetes and the runtime say.
#[derive(Default)]
struct InPod<'a> {
    uid: Option<&'a str>,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    container: Option<&'a str>,
    image: Option<Image<'a>>,
    by_labels: bool,
    label_of_version: Option<&'a str>,
}

impl<'a> InPod<'a> {
    fn of(known: &'a Known, pod: Option<&'a Arc<Pod>>, pods: &Pods) -> Self {
        let container = known.container(pod);
        let image = container.map(|container| container.image.as_str());
        let image = image.and_then(Image::of).or_else(|| Image::of(known.fact(FactKey::ContainerImage)?));
        let uid = pod.map(|pod| pod.uid.as_str()).or_else(|| known.pod_uid());
        if uid.is_none() {
            return Self { image, ..Self::default() };
        }
        let some = |text: &'a String| Some(text.as_str()).filter(|text| !text.is_empty());
        let by_labels = pods.watch().named_by_labels;
        let version = pod.and_then(|pod| pod.labels.get("app.kubernetes.io/version"));
        Self {
            uid,
            namespace: pod.and_then(|pod| some(&pod.namespace)).or(known.fact(FactKey::PodNamespace)),
            name: pod.and_then(|pod| some(&pod.name)).or(known.fact(FactKey::PodName)),
            container: container
                .and_then(|container| some(&container.name))
                .or(known.fact(FactKey::ContainerName)),
            image,
            by_labels,
            label_of_version: version.filter(|_| by_labels).and_then(some),
        }
    }

    fn version(&self) -> Option<Text> {
        // An image alone says nothing of a service that is no pod's.
        self.uid?;
        if let Some(label) = self.label_of_version {
            return Some(label.into());
        }
        match self.image? {
            Image { tag: Some(tag), digest: Some(digest), .. } => Some(format_smolstr!("{tag}@{digest}")),
            Image { tag, digest, .. } => tag.or(digest).map(Text::new),
        }
    }

    fn instance(&self) -> Option<String> {
        Some([self.namespace?, self.name?, self.container?].join("."))
    }

    fn tell(&self, told: &mut Told, pod: Option<&Arc<Pod>>, pods: &Pods) {
        told.offer("k8s.namespace.name", self.namespace);
        told.offer("k8s.pod.name", self.name);
        told.offer("k8s.pod.uid", self.uid);
        told.offer("k8s.container.name", self.container.filter(|_| self.uid.is_some()));
        if let Some(pod) = pod {
            told.offer("k8s.node.name", Some(&pod.node));
            for (kind, key) in OWNERS {
                let owner = pod.owners.iter().find(|owner| owner.kind == kind);
                told.offer(key, owner.map(|owner| owner.name.as_str()));
            }
        }
        if self.uid.is_some() {
            told.offer("k8s.cluster.name", pods.watch().cluster.as_deref());
        }
        for (key, value) in pod.iter().flat_map(|pod| &pod.labels).filter(|(key, _)| pods.shows_label(key)) {
            told.offer_named(format_smolstr!("k8s.pod.label.{key}"), value);
        }
        let annotations = pod.iter().flat_map(|pod| &pod.annotations);
        for (key, value) in annotations.filter(|(key, _)| pods.shows_annotation(key)) {
            told.offer_named(format_smolstr!("k8s.pod.annotation.{key}"), value);
        }
    }
}

/// Attributes, with what was said of them by those who know best.
struct Told {
    said: Vec<(String, String)>,
    attributes: Vec<ResourceAttribute>,
}

impl Told {
    fn said(&self, key: &str) -> Option<&str> {
        self.said.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn take(&mut self, key: &str) -> Option<Text> {
        let place = self.said.iter().position(|(known, _)| known == key)?;
        Some(self.said.remove(place).1.into())
    }

    /// Whatever was said.
    fn put(&mut self, key: &'static str, value: &str) -> Text {
        self.take(key);
        let value = Text::new(value);
        self.attributes.push(Attribute::text(key, value.clone()).into());
        value
    }

    /// Unless something else was said; nothing where nothing is known.
    fn offer(&mut self, key: &'static str, value: Option<&str>) {
        let said = self.take(key);
        if let Some(value) = said.or_else(|| value.filter(|value| !value.is_empty()).map(Text::new)) {
            self.attributes.push(Attribute::text(key, value).into());
        }
    }

    fn offer_named(&mut self, key: Text, value: &str) {
        let said = self.take(&key);
        if let Some(value) = said.as_deref().or_else(|| environment::told(&key, value)) {
            self.attributes.push(Attribute { key, value: Value::Text(value.into()) });
        }
    }

    /// With all else that was said.
    fn finish(mut self) -> Vec<ResourceAttribute> {
        let rest = self.said.into_iter();
        self.attributes
            .extend(rest.map(|(key, value)| Attribute { key: key.into(), value: Value::Text(value.into()) }));
        self.attributes
    }
}

#[cfg(test)]
mod tests;
