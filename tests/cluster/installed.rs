//! The DaemonSet of deploy/kubernetes, with another configuration where a test wants one.

#![allow(clippy::disallowed_methods, reason = "tests read the environment")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tracer_tests::{
    agent::{Answer, Metrics, ask_over},
    collector::{Collector, Span},
    process::{Folder, wait_for},
};

use super::kubectl::{attempt, kubectl, list, text};

pub(crate) const NAMESPACE: &str = "tracer";

/// It is there as long as this is.
pub(crate) struct Installed {
    folder: Folder,
    pub(crate) collector: Collector,
}

/// The pod of the agent on the one node.
pub(crate) struct AgentPod {
    pub(crate) name: String,
    pub(crate) address: String,
}

impl Installed {
    /// With the receiver outside of the cluster, and else as it is shipped; ready when this returns.
    pub(crate) fn as_shipped() -> Self {
        let installed = Self::with(|config| config, "");
        installed.wait_ready();
        installed
    }

    /// With a changed configuration, and with a patch of the DaemonSet (JSON patch, as YAML).
    pub(crate) fn with(change: impl FnOnce(String) -> String, patch: &str) -> Self {
        let collector = Collector::start_at(Ipv4Addr::UNSPECIFIED.into());
        let folder = Folder::new("installed");
        let url = receiver_url(&collector);
        let shipped = fs::read_to_string(root().join("deploy/kubernetes/config.yaml")).expect("the file");
        let config = shipped.replace("otlp: []", &format!("otlp: [{{ url: '{url}' }}]"));
        assert_ne!(config, shipped, "the shipped configuration names no receivers");
        fs::write(folder.path("config.yaml"), change(config)).expect("a file");
        // Kustomize takes a base by a relative path alone.
        let up = "../".repeat(folder.path("").components().count());
        let patches = match patch {
            "" => String::new(),
            patch => format!(
                "patches:\n  - target: {{ kind: DaemonSet }}\n    patch: |-\n{}\n",
                patch.lines().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n")
            ),
        };
        let overlay = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{up}{}/deploy/kubernetes]\n\
             configMapGenerator:\n  - {{ name: tracer, namespace: tracer, behavior: replace, files: [config.yaml] }}\n\
             generatorOptions: {{ disableNameSuffixHash: true }}\n{patches}",
            root().display().to_string().trim_start_matches('/')
        );
        fs::write(folder.path("kustomization.yaml"), overlay).expect("a file");
        let installed = Self { folder, collector };
        installed.apply();
        installed
    }

    pub(crate) fn apply(&self) {
        kubectl(&["apply", "--kustomize", &self.path()]);
    }

    /// Another configuration, in the config map.
    pub(crate) fn configure(&self, change: impl FnOnce(String) -> String) {
        let file = self.folder.path("config.yaml");
        fs::write(&file, change(fs::read_to_string(&file).expect("the file"))).expect("a file");
        self.apply();
    }

    fn path(&self) -> String {
        self.folder.path("").display().to_string()
    }

    pub(crate) fn wait_ready(&self) {
        kubectl(&["--namespace", NAMESPACE, "rollout", "status", "daemonset/tracer", "--timeout=90s"]);
        // Of one that is on its way out nothing is asked.
        wait_for("the agent's pod", || (self.pods().len() == 1).then_some(()));
    }

    fn pods(&self) -> Vec<Value> {
        let selector = "app.kubernetes.io/name=tracer";
        list(&["--namespace", NAMESPACE, "pods", "--selector", selector])
    }

    /// The pod, when its container runs: it may not be ready.
    pub(crate) fn pod(&self) -> AgentPod {
        wait_for("the agent's container to run", || {
            let pods = self.pods();
            let pod = pods.iter().find(|pod| {
                pod.pointer("/status/containerStatuses/0/state/running").is_some()
                    && pod.pointer("/metadata/deletionTimestamp").is_none()
            })?;
            let address = format!("{}:9464", text(pod, "/status/podIP"));
            Some(AgentPod { name: text(pod, "/metadata/name").to_owned(), address })
        })
    }

    /// So many spans as there have to be; then it is removed, which lets it send what it still has.
    pub(crate) fn finish(self, expected: usize) -> Vec<Span> {
        let spans = wait_for(&format!("{expected} spans"), || {
            Some(self.collector.spans()).filter(|spans| spans.len() >= expected)
        });
        drop(spans);
        self.remove();
        self.collector.spans()
    }

    fn remove(&self) {
        let all = ["delete", "--kustomize", &self.path(), "--ignore-not-found", "--timeout=60s"];
        if let Err(error) = attempt(&all, "") {
            eprintln!("the tracer is not removed: {error}");
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = attempt(&["--namespace", NAMESPACE, "logs", "daemonset/tracer", "--tail=60"], "");
            eprintln!("the agent said: {}", said.unwrap_or_else(|error| error));
        }
        self.remove();
    }
}

impl AgentPod {
    pub(crate) fn try_get(&self, path: &str) -> Option<Answer> {
        let address: SocketAddr = self.address.parse().ok()?;
        let connection = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        ask_over(connection, "GET", path, "")
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        wait_for("the agent to answer", || self.try_get(path))
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").text)
    }

    /// Asks again and again until it says so.
    pub(crate) fn wait_readyz(&self, status: u16, part: &str) -> String {
        let mut last = String::new();
        let mut holds = || {
            let answer = self.try_get("/readyz")?;
            last = format!("{} {}", answer.status, answer.text);
            (answer.status == status && answer.text.contains(part)).then_some(answer.text)
        };
        let mut tries = 0;
        loop {
            if let Some(text) = holds() {
                return text;
            }
            tries += 1;
            assert!(tries < 600, "/readyz never said {status} {part:?}, at last: {last}");
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }

    pub(crate) fn logs(&self) -> String {
        kubectl(&["--namespace", NAMESPACE, "logs", &self.name])
    }

    pub(crate) fn restarts(&self) -> u64 {
        let pod = super::kubectl::get(&["--namespace", NAMESPACE, "pod", &self.name]);
        pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64).expect("a count")
    }

    pub(crate) fn is_ready(&self) -> bool {
        let pod = super::kubectl::get(&["--namespace", NAMESPACE, "pod", &self.name]);
        pod.pointer("/status/containerStatuses/0/ready").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// As the pods reach it.
pub(crate) fn receiver_url(collector: &Collector) -> String {
    let host = std::env::var("TRACER_RECEIVER").expect("`cargo xtask test cluster` says it");
    format!("http://{host}:{}", collector.address.port())
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder").to_owned()
}
