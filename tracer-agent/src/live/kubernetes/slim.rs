//! What is read of the API's objects: the few fields that count, so that a pod's environment, its volumes and
//! its managed fields are never held.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// An object that is listed and watched.
pub(super) trait Watched: DeserializeOwned + Send + 'static {
    fn meta(&self) -> &Meta;
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) owner_references: Vec<OwnerReference>,
}

impl Meta {
    /// The one that made it.
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct OwnerReference {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) controller: bool,
}

/// Of a ReplicaSet, a Job or a namespace only this counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Partial {
    pub(super) metadata: Meta,
}

/// A pod of this node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) host_network: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    pub(super) init_containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ephemeral_containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: String,
    #[serde(rename = "podIP")]
    pub(super) address: String,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub(super) addresses: Vec<PodAddress>,
    #[serde(deserialize_with = "or_default")]
    pub(super) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ephemeral_container_statuses: Vec<ContainerStatus>,
}

impl PodStatus {
    /// Its addresses may belong to somebody else by now.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        let several = self.addresses.iter().map(|address| address.ip.as_str());
        let one = self.addresses.is_empty().then_some(self.address.as_str());
        several.chain(one).filter(|address| !address.is_empty())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodAddress {
    pub(super) ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    #[serde(rename = "containerID", deserialize_with = "or_default")]
    id: String,
    #[serde(deserialize_with = "or_default")]
    state: ContainerState,
    #[serde(deserialize_with = "or_default")]
    last_state: ContainerState,
}

impl ContainerStatus {
    /// The container that runs, then those that it was before: digits alone.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        let ended = [&self.state, &self.last_state].into_iter().map(|state| state.terminated.id.as_str());
        let all = std::iter::once(self.id.as_str()).chain(ended);
        all.map(|id| id.rsplit_once("//").map_or(id, |(_, digits)| digits)).filter(|id| !id.is_empty())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    #[serde(deserialize_with = "or_default")]
    terminated: Terminated,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Terminated {
    #[serde(rename = "containerID", deserialize_with = "or_default")]
    id: String,
}

/// A pod of the cluster: only who it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FarPod {
    pub(super) metadata: Meta,
    pub(super) spec: FarPodSpec,
    pub(super) status: FarPodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct FarPodSpec {
    #[serde(deserialize_with = "or_default")]
    pub(super) host_network: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FarPodStatus {
    pub(super) phase: String,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub(super) addresses: Vec<PodAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) metadata: Meta,
    pub(super) spec: ServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub(super) addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Slice {
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    #[serde(deserialize_with = "or_default")]
    pub(super) addresses: Vec<String>,
}

macro_rules! watched {
    ($($type:ident),*) => { $(
        impl Watched for $type {
            fn meta(&self) -> &Meta {
                &self.metadata
            }
        }
    )* };
}

watched!(Pod, FarPod, Service, Slice, Partial);

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: PageMeta,
    #[serde(default = "Vec::new", deserialize_with = "or_default")]
    pub(super) items: Vec<T>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    /// Asks for the next page.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What the API says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) message: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) details: RefusalDetails,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RefusalDetails {
    pub(super) retry_after_seconds: u64,
}

/// What is null is not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_as_good_as_null() {
        let page: Page<Slice> = serde_json::from_str(r#"{"items": [{"endpoints": null}]}"#).unwrap();
        assert!(page.items[0].endpoints.is_empty());
        let page: Page<Slice> = serde_json::from_str(r#"{"metadata": {}, "items": null}"#).unwrap();
        assert!(page.items.is_empty());
        let pod: Pod =
            serde_json::from_str(r#"{"metadata": {"labels": null}, "spec": {}, "status": {}}"#).unwrap();
        assert!(pod.metadata.labels.is_empty());
    }

    #[test]
    fn a_container_is_known_by_all_that_it_was() {
        let text = r#"{"name": "a", "containerID": "containerd://03", "state": {"terminated": {"containerID":
            "containerd://02"}}, "lastState": {"terminated": {"containerID": "cri-o://01"}}}"#;
        let status: ContainerStatus = serde_json::from_str(text).unwrap();
        assert_eq!(status.ids().collect::<Vec<_>>(), ["03", "02", "01"]);
        let status: ContainerStatus =
            serde_json::from_str(r#"{"name": "a", "state": {"waiting": {}}}"#).unwrap();
        assert_eq!(status.ids().count(), 0);
    }
}
