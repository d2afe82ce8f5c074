//! Services in a namespace of a test.

#![allow(clippy::disallowed_methods, reason = "tests read the environment")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tracer_tests::process::{Process, count, wait_for};

use super::{
    kubectl::{apply, attempt, get, kubectl, list, text},
    truth::{Exchanges, exchanges, place},
};

static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A namespace, with all that is in it.
pub(crate) struct Shop {
    pub(crate) name: String,
}

impl Shop {
    pub(crate) fn new() -> Self {
        let name = format!("shop-{}-{}", std::process::id(), NAMES.fetch_add(1, Relaxed));
        apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        let shop = Self { name };
        // Without it no pod is taken.
        wait_for("the namespace's account", || {
            attempt(&["--namespace", &shop.name, "get", "serviceaccount", "default"], "").ok()
        });
        shop
    }

    /// The URL of a Service for pods that are called so.
    pub(crate) fn service(&self, app: &str) -> String {
        apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": app, "namespace": self.name},
            "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8080}]},
        }));
        let service = get(&["--namespace", &self.name, "service", app]);
        format!("http://{}", text(&service, "/spec/clusterIP"))
    }

    /// All its pods are ready when this returns.
    pub(crate) fn deploy(&self, app: &str, replicas: usize, arguments: &[&str]) {
        self.deploy_with(app, replicas, arguments, |_| {});
    }

    pub(crate) fn deploy_with(
        &self,
        app: &str,
        replicas: usize,
        arguments: &[&str],
        change: impl FnOnce(&mut Value),
    ) {
        let mut template = template(app, arguments);
        change(&mut template);
        apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": app, "namespace": self.name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": template},
        }));
        self.wait_rolled_out(app);
    }

    pub(crate) fn wait_rolled_out(&self, app: &str) {
        let deployment = format!("deployment/{app}");
        kubectl(&["--namespace", &self.name, "rollout", "status", &deployment, "--timeout=90s"]);
        self.wait_endpoints(app);
    }

    /// A Service knows of all pods that are ready, where there is one.
    fn wait_endpoints(&self, app: &str) {
        if attempt(&["--namespace", &self.name, "get", "service", app], "").is_err() {
            return;
        }
        wait_for("the service's endpoints", || {
            let selector = format!("kubernetes.io/service-name={app}");
            let slices = list(&["--namespace", &self.name, "endpointslices", "--selector", &selector]);
            let endpoints: Vec<Value> = slices
                .iter()
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
                .collect();
            let all_ready = endpoints.iter().all(|endpoint| endpoint["conditions"]["ready"] == true);
            (all_ready && endpoints.len() == self.living(app).len()).then_some(())
        });
    }

    /// A pod of its own, without anybody who would start it again.
    pub(crate) fn pod(&self, name: &str, arguments: &[&str], change: impl FnOnce(&mut Value)) {
        let mut pod = template(name, arguments);
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(self.name);
        change(&mut pod);
        apply(&pod);
    }

    pub(crate) fn pods(&self, app: &str) -> Vec<Value> {
        list(&["--namespace", &self.name, "pods", "--selector", &format!("app={app}")])
    }

    /// Those that are not on their way out.
    pub(crate) fn living(&self, app: &str) -> Vec<Value> {
        let mut pods = self.pods(app);
        pods.retain(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
        pods
    }

    pub(crate) fn log(&self, pod: &str) -> String {
        kubectl(&["--namespace", &self.name, "logs", pod])
    }

    /// How many calls the pods together logged that they made.
    pub(crate) fn called(&self, app: &str) -> usize {
        let pods = self.pods(app);
        // One that does not run yet has none.
        let log = |pod: &Value| {
            attempt(&["--namespace", &self.name, "logs", text(pod, "/metadata/name")], "").unwrap_or_default()
        };
        pods.iter().map(|pod| calls(&log(pod))).sum()
    }

    /// Until the pods together logged so many calls that they made.
    pub(crate) fn wait_called(&self, app: &str, calls: usize) {
        wait_for(&format!("{calls} calls of {app}"), || {
            let called = self.called(app);
            if called < calls {
                // Who asks all the time takes the processor from those who are asked for.
                std::thread::park_timeout(Duration::from_millis(300));
            }
            (called >= calls).then_some(())
        });
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let all = ["delete", "namespace", &self.name, "--timeout=60s"];
        if let Err(error) = attempt(&all, "") {
            eprintln!("{} is not removed: {error}", self.name);
        }
    }
}

fn calls(log: &str) -> usize {
    log.lines().filter(|line| line.starts_with("CLIENT ")).count()
}

/// What pods log as long as they live: nobody can be asked for it later.
#[derive(Default)]
pub(crate) struct Followed {
    pods: BTreeMap<String, Log>,
}

struct Log {
    place: String,
    /// Ends with it.
    _kubectl: Process,
    text: Arc<Mutex<String>>,
}

impl Followed {
    /// Until the pods together logged so many calls. Whatever pod comes meanwhile is followed from its start.
    pub(crate) fn wait_called(&mut self, shop: &Shop, apps: &[&str], wanted: usize) {
        wait_for(&format!("{wanted} calls"), || {
            for pod in apps.iter().flat_map(|app| shop.pods(app)) {
                self.follow(&shop.name, &pod);
            }
            let called = self.pods.values().map(|log| calls(&log.text())).sum::<usize>();
            if called < wanted {
                std::thread::park_timeout(Duration::from_millis(200));
            }
            (called >= wanted).then_some(())
        });
    }

    fn follow(&mut self, namespace: &str, pod: &Value) {
        let name = text(pod, "/metadata/name");
        let runs = pod.pointer("/status/containerStatuses/0/state/running").is_some();
        if !runs || self.pods.contains_key(name) {
            return;
        }
        let mut command = Command::new("kubectl");
        command.args(["--namespace", namespace, "logs", "--follow", name]).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("kubectl");
        let mut reader = BufReader::new(child.stdout.take().expect("an output"));
        let text = Arc::<Mutex<String>>::default();
        let shared = text.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                shared.lock().expect("no panic there").push_str(&line);
                line.clear();
            }
        });
        let log = Log { place: place(pod), _kubectl: Process::of(child), text };
        self.pods.insert(name.to_owned(), log);
    }

    /// All of it, once what was answered is there from both sides.
    pub(crate) fn finish(&mut self) -> Exchanges {
        wait_for("the rest of what the pods logged", || {
            let all = count(self.pods.values().flat_map(|log| exchanges(&log.place, &log.text())));
            let of = |kind: &str| {
                let those = all.iter().filter(|(line, _)| line.contains(kind) && line.ends_with(" 200"));
                those.map(|(_, count)| count).sum::<usize>()
            };
            (of(" SERVER ") >= of(" CLIENT ")).then_some(all)
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = &str> {
        self.pods.values().map(|log| log.place.as_str())
    }
}

impl Log {
    fn text(&self) -> String {
        self.text.lock().expect("no panic there").clone()
    }
}

/// What a Deployment makes pods of. Whether they are ready is asked without a request, which they would log.
fn template(app: &str, arguments: &[&str]) -> Value {
    let image = std::env::var("TRACER_WORKLOAD").expect("`cargo xtask test cluster` says it");
    let all = [&["--address", "0.0.0.0", "--port", "8080", "--log", "/dev/stdout"], arguments].concat();
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "enableServiceLinks": false,
            "containers": [{
                "name": format!("{app}-main"), "image": image, "imagePullPolicy": "IfNotPresent", "args": all,
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            }],
        },
    })
}
