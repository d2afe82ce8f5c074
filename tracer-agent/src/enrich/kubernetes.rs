//! What Kubernetes says of pods and of addresses, as facts that enter as records.

pub mod peers;
pub mod pods;

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// A fact: the payload of a record, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Object {
    /// A pod of this node, as it is now: told again when something of it that counts changes.
    Pod(Pod),
    /// A pod is deleted: what is known of it stays for the spans that are under way.
    Gone { uid: String },
    /// Who is behind an address that was asked for. Told again when that changes; with neither, nobody is known.
    Peer(Peer),
    /// Whether the API is heard. While it is not (or nobody is asked), nothing is waited for.
    Watch(Watch),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub node: String,
    /// Those that are asked for, and those that say what the service is called.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Those of its namespace that a rule asks for; absent where none does, and as long as they are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// From the nearest outwards: a ReplicaSet, then its Deployment; a Job, then its CronJob.
    pub owners: Vec<Owner>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Such as Deployment.
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    pub name: String,
    pub image: String,
    /// Digits alone; empty as long as it is not known.
    pub id: String,
}

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    pub address: IpAddr,
    #[serde(default)]
    pub service: Option<Named>,
    #[serde(default)]
    pub pod: Option<Named>,
    /// What the pod is a replica of, or what all pods behind the service are.
    #[serde(default)]
    pub workload: Option<Owner>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Pods are heard of: one that nobody told of may still be told.
    pub pods: bool,
    /// And who is behind addresses.
    pub peers: bool,
    /// The cluster's name, as configured.
    pub cluster: Option<String>,
    /// Which labels and annotations of pods are shown: keys, `*` stands for anything. Others that are told only say
    /// what the service is called.
    pub labels: Vec<String>,
    pub annotations: Vec<String>,
    /// The labels `app.kubernetes.io/instance`, `name` and `version` say what the service is called.
    pub named_by_labels: bool,
}
