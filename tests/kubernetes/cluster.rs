//! An API server that runs, and a watcher that is asked what it heard.

#![allow(clippy::disallowed_methods, reason = "tests read the environment and clocks")]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use kube::{Client, Config, config::Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tracer_agent::{
    enrich::kubernetes::{Object, Peer, Pod, Watch},
    live::kubernetes::{Kept, Options, Peers, Place, Watcher},
};
use tracer_tests::process::{Folder, wait_for};

static NAMES: AtomicUsize = AtomicUsize::new(0);

/// The API, with a namespace and a node for one test.
pub(crate) struct Cluster {
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) namespace: String,
    pub(crate) node: String,
    pub(crate) folder: Folder,
    /// What is in no namespace.
    made: Vec<String>,
}

pub(crate) const GROUP: &str = "/api/v1";

impl Cluster {
    pub(crate) fn new() -> Self {
        let kubeconfig = std::env::var("KUBECONFIG").map(PathBuf::from);
        let kubeconfig = kubeconfig.expect("`cargo xtask test kubernetes` says where the API is");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(&kubeconfig).expect("the file that KUBECONFIG names");
            let config = Config::from_custom_kubeconfig(file, &Default::default()).await.expect("a cluster");
            Client::try_from(config).expect("a client")
        });
        let name = format!("tracer-{}-{}", std::process::id(), NAMES.fetch_add(1, Relaxed));
        let folder = Folder::new(&name);
        let mut cluster = Self {
            runtime,
            client,
            kubeconfig,
            node: format!("{name}-node"),
            namespace: name,
            folder,
            made: Vec::new(),
        };
        cluster.make(GROUP, "namespaces", &json!({"metadata": {"name": cluster.namespace}}));
        // Pods of a node that does not exist are cleaned away.
        let node = cluster.node.clone();
        cluster.make_node(&node);
        // Without it no pod is taken.
        let account = format!("{}/serviceaccounts/default", cluster.inside(GROUP));
        wait_for("the namespace's account", || cluster.try_ask("GET", &account, None).ok());
        cluster
    }

    pub(crate) fn make_node(&mut self, name: &str) {
        self.make(GROUP, "nodes", &json!({"metadata": {"name": name}}));
    }

    /// Something that is in no namespace: it goes with the test.
    pub(crate) fn make(&mut self, group: &str, plural: &str, object: &Value) {
        self.ask("POST", &format!("{group}/{plural}"), Some(object));
        self.made.push(format!("{group}/{plural}/{}", object["metadata"]["name"].as_str().expect("a name")));
    }

    /// The path of the test's namespace.
    pub(crate) fn inside(&self, group: &str) -> String {
        format!("{group}/namespaces/{}", self.namespace)
    }

    pub(crate) fn create(&self, group: &str, plural: &str, object: &Value) -> Value {
        self.ask("POST", &format!("{}/{plural}", self.inside(group)), Some(object))
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.ask("GET", &format!("{}/pods/{name}", self.inside(GROUP)), None)
    }

    /// At once: there is nobody who would end its containers.
    pub(crate) fn delete_pod(&self, name: &str) {
        let at_once = json!({"gracePeriodSeconds": 0});
        self.ask("DELETE", &format!("{}/pods/{name}", self.inside(GROUP)), Some(&at_once));
    }

    pub(crate) fn patch_pod(&self, name: &str, patch: &Value) -> Value {
        self.ask("PATCH", &format!("{}/pods/{name}", self.inside(GROUP)), Some(patch))
    }

    pub(crate) fn patch_namespace(&self, patch: &Value) -> Value {
        self.ask("PATCH", &format!("{GROUP}/namespaces/{}", self.namespace), Some(patch))
    }

    pub(crate) fn patch_status(&self, name: &str, status: &Value) -> Value {
        let path = format!("{}/pods/{name}/status", self.inside(GROUP));
        self.ask("PATCH", &path, Some(&json!({"status": status})))
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub(crate) fn try_ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, kube::Error> {
        self.runtime.block_on(ask(&self.client, method, path, body))
    }

    /// All that is told of the test's node.
    pub(crate) fn watch(&self) -> Heard {
        self.watch_with(|_| {})
    }

    pub(crate) fn watch_with(&self, change: impl FnOnce(&mut Options)) -> Heard {
        let mut options = Options {
            place: Place::File(self.kubeconfig.clone()),
            node: self.node.clone(),
            told: Watch::default(),
            kept: Kept::default(),
            peers: Peers::None,
        };
        change(&mut options);
        Heard::start(options)
    }

    /// As an account of the test's namespace sees the API, by a file with a token.
    pub(crate) fn account(&self, name: &str, token: &Path) -> PathBuf {
        let account = json!({"metadata": {"name": name}});
        self.create(GROUP, "serviceaccounts", &account);
        let path = self.folder.path(&format!("{name}.kubeconfig"));
        let admin = Kubeconfig::read_from(&self.kubeconfig).expect("the file that KUBECONFIG names");
        let cluster = admin.clusters[0].cluster.as_ref().expect("a cluster");
        let mut said = json!({"server": cluster.server});
        for (key, value) in [
            ("certificate-authority-data", &cluster.certificate_authority_data),
            ("certificate-authority", &cluster.certificate_authority),
        ] {
            if let Some(value) = value {
                said[key] = json!(value);
            }
        }
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": said}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, file.to_string()).expect("a file");
        path
    }

    /// A token that counts as long as `secret` is there.
    pub(crate) fn token(&self, account: &str, secret: &str) -> String {
        let made = self.create(GROUP, "secrets", &json!({"metadata": {"name": secret}, "type": "Opaque"}));
        let request = json!({"spec": {"audiences": [], "expirationSeconds": 3600, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Secret", "name": secret, "uid": made["metadata"]["uid"]}}});
        let path = format!("{}/serviceaccounts/{account}/token", self.inside(GROUP));
        self.ask("POST", &path, Some(&request))["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// Lets the account read what the watcher reads.
    pub(crate) fn grant(&mut self, account: &str) {
        let read = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let role = format!("{}-{account}", self.namespace);
        let rules = json!([
            read(&[""], &["pods", "services"], &["list", "watch"]),
            read(&["discovery.k8s.io"], &["endpointslices"], &["list", "watch"]),
            read(&["apps"], &["replicasets"], &["get"]),
            read(&["batch"], &["jobs"], &["get"]),
        ]);
        self.make(rbac, "clusterroles", &json!({"metadata": {"name": role}, "rules": rules}));
        let binding = json!({
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": self.namespace}],
        });
        self.make(rbac, "clusterrolebindings", &binding);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let at_once = json!({"gracePeriodSeconds": 0});
        let pods = format!("{}/pods", self.inside(GROUP));
        let _ = self.try_ask("DELETE", &pods, Some(&at_once));
        for path in self.made.iter().rev() {
            let _ = self.try_ask("DELETE", path, Some(&at_once));
        }
    }
}

pub(crate) async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = http::Request::builder().method(method).uri(path).header("content-type", kind).body(body);
    client.request(request.expect("a request")).await
}

/// A pod with one container, on a node.
pub(crate) fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "main", "image": "registry/app:1"}]}})
}

/// What a Deployment and its like make pods of.
pub(crate) fn template(app: &str, node: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": pod("", node)["spec"]})
}

/// An id as containers have them.
pub(crate) fn container_id(number: usize) -> String {
    format!("{number:064x}")
}

/// A watcher, and what it has told.
pub(crate) struct Heard {
    pub(crate) watcher: Watcher,
    pub(crate) told: Vec<Object>,
}

impl Heard {
    pub(crate) fn start(options: Options) -> Self {
        Self { watcher: Watcher::start(options).expect("a watcher"), told: Vec::new() }
    }

    pub(crate) fn take(&mut self) {
        while let Some(object) = self.watcher.poll() {
            self.told.push(object);
        }
    }

    /// Asks again and again until what was told is so.
    pub(crate) fn wait<T>(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Option<T>) -> T {
        wait_for(what, || {
            self.take();
            holds(self)
        })
    }

    /// The pods as they were told last, by their names.
    pub(crate) fn pods(&self) -> BTreeMap<String, Pod> {
        let mut pods = BTreeMap::new();
        for object in &self.told {
            match object {
                Object::Pod(pod) => {
                    pods.insert(pod.uid.clone(), pod.clone());
                }
                Object::Gone { uid } => {
                    pods.remove(uid);
                }
                _ => {}
            }
        }
        pods.into_values().map(|pod| (pod.name.clone(), pod)).collect()
    }

    pub(crate) fn wait_pod(&mut self, name: &str, mut holds: impl FnMut(&Pod) -> bool) -> Pod {
        self.wait(name, |heard| heard.pods().remove(name).filter(|pod| holds(pod)))
    }

    pub(crate) fn watch(&self) -> Watch {
        let last = self.told.iter().rev().find_map(|object| match object {
            Object::Watch(watch) => Some(watch.clone()),
            _ => None,
        });
        last.expect("it is told how things stand")
    }

    pub(crate) fn peer(&self, address: &str) -> Option<Peer> {
        let address: IpAddr = address.parse().expect("an address");
        self.told.iter().rev().find_map(|object| match object {
            Object::Peer(peer) if peer.address == address => Some(peer.clone()),
            _ => None,
        })
    }

    pub(crate) fn wait_heard(&mut self) {
        self.wait("all to be heard of", |heard| {
            let state = heard.watcher.state();
            (!state.hearing.is_empty()
                && state.hearing.iter().all(|hearing| hearing.heard && hearing.error.is_none()))
            .then_some(())
        });
    }

    /// Requests of this kind until now, whatever came of them.
    pub(crate) fn requests(&self, verb: &str, resource: &str) -> u64 {
        let requests = self.watcher.state().requests;
        let those = requests.iter().filter(|((of, what, _), _)| *of == verb && *what == resource);
        those.map(|(_, count)| count).sum()
    }
}
