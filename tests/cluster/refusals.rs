//! What keeps the agent from tracing is said where people look, and its pod is not started again and again.

use super::{
    installed::{AgentPod, Installed},
    shop::Shop,
    truth::{assert_told, logged},
};

/// It stays, it is not ready, and says why in both places.
fn assert_stays(installed: &Installed, reason: &str) -> AgentPod {
    let pod = installed.pod();
    let said = pod.wait_readyz(503, reason);
    println!("/readyz: {}", said.trim_end());
    assert!(pod.logs().contains(reason), "{}", pod.logs());
    assert!(!pod.is_ready());
    assert_eq!((pod.restarts(), installed.pod().name == pod.name), (0, true));
    pod
}

#[test]
fn a_wrong_configuration_is_said_and_another_is_taken() {
    let installed = Installed::with(|config| config.replace("select:", "selct:"), "");
    let pod = assert_stays(&installed, "selct");
    installed.configure(|config| config.replace("selct:", "select:"));
    // The kubelet brings it after a minute or so.
    pod.wait_readyz(200, "ready");
    installed.wait_ready();
    assert_eq!(pod.restarts(), 0);
    assert_traces(installed);
}

/// Without the one the probes cannot be loaded.
#[test]
fn a_missing_capability_is_said() {
    let patch = "- op: replace\n  path: /spec/template/spec/containers/0/securityContext/capabilities/add\n  \
                 value: [PERFMON, SYS_PTRACE, DAC_READ_SEARCH]";
    let installed = Installed::with(|config| config, patch);
    assert_stays(&installed, "CAP_BPF");
}

/// An empty folder lies over the kernel's type information.
#[test]
fn a_kernel_without_type_information_is_said() {
    let patch = "- op: add\n  path: /spec/template/spec/volumes/-\n  value: { name: nothing, emptyDir: {} }\n\
                 - op: add\n  path: /spec/template/spec/containers/0/volumeMounts/-\n  \
                 value: { name: nothing, mountPath: /sys/kernel/btf }";
    let installed = Installed::with(|config| config, patch);
    assert_stays(&installed, "BTF");
}

#[test]
fn a_selection_that_matches_nothing_is_said() {
    let installed =
        Installed::with(|config| config.replace("namespace: \"*\"", "namespace: nothing-is-called-so"), "");
    installed.wait_ready();
    let pod = installed.pod();
    let shop = Shop::new();
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    shop.deploy("user", 1, &["--next", &store, "--cron", "5", "--calls", "50"]);
    shop.wait_called("user", 50);
    let said = pod.wait_readyz(200, "no process matches the selection");
    println!("/readyz: {}", said.trim_end());
    assert!(pod.logs().contains("no process matches"), "{}", pod.logs());
    assert!(pod.is_ready());
    assert_eq!(pod.restarts(), 0);
    assert_eq!(installed.finish(0).len(), 0);
}

/// As it should: two pods that talk to each other.
pub(crate) fn assert_traces(installed: Installed) {
    let shop = Shop::new();
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    shop.deploy("user", 1, &["--next", &store, "--cron", "5", "--calls", "50"]);
    shop.wait_called("user", 50);
    let truth = logged(&shop, &["user", "store"]);
    assert_eq!(assert_told(&installed.finish(100), &truth), 100);
}
