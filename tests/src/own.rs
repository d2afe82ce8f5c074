//! The cluster that `tests/cluster/cluster.sh` brought up.

#![allow(clippy::disallowed_methods, reason = "`cargo xtask test` says in the environment where it is")]

use std::{path::PathBuf, process::Command};

use serde_json::{Value, json};

use crate::process::{run, wait_for};

/// The cluster of this repository, if the tests run against it: only that one is taken down and up.
pub struct Own {
    script: PathBuf,
    state: PathBuf,
}

impl Own {
    pub fn find() -> Option<Self> {
        let script = PathBuf::from(std::env::var_os("TRACER_CLUSTER")?);
        let output = run(Command::new(&script).arg("kubeconfig"));
        let kubeconfig = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Some(Self { script, state: kubeconfig.parent()?.to_owned() })
    }

    pub fn kill_api(&self) {
        let id = std::fs::read_to_string(self.state.join("run/kube-apiserver.pid")).expect("its id");
        let id: i32 = id.trim().parse().expect("a number");
        let process = rustix::process::Pid::from_raw(id).expect("an id");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it runs");
        wait_for("the API server to end", || {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
    }

    pub fn start_api(&self) {
        run(Command::new(&self.script).args(["up", "--api-only"]));
    }

    /// What a program prints in the node's namespaces.
    pub fn node(&self, command: &[&str]) -> String {
        let output = run(Command::new(&self.script).arg("node").args(command));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Of a pod's first process, as the machine numbers it.
    pub fn process(&self, namespace: &str, pod: &str) -> u32 {
        let output = run(Command::new(&self.script).args(["pid", namespace, pod]));
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    }

    /// Forgets all versions but the newest.
    pub fn compact(&self) -> Value {
        let etcd = |path: &str, body: &str| {
            let url = format!("http://127.0.0.1:2379/v3/kv/{path}");
            let output =
                run(Command::new(&self.script).args(["node", "curl", "--silent", "--data", body]).arg(url));
            serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
        };
        let newest = etcd("range", r#"{"key": "AA=="}"#)["header"]["revision"].clone();
        etcd("compaction", &json!({"revision": newest, "physical": true}).to_string())
    }
}
