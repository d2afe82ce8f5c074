//! A release of the chart: it traces, and leaves nothing behind.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, process::Command};

use tracer_tests::{
    collector::Collector,
    own::Own,
    process::{run, wait_for},
};

use super::{
    installed::{NAMESPACE, receiver_url, root},
    kubectl::{attempt, kubectl, list, text},
    shop::Shop,
    truth::{assert_told, logged},
};

#[test]
fn a_release_traces_and_leaves_nothing_behind() {
    let collector = Collector::start_at(Ipv4Addr::UNSPECIFIED.into());
    let own = Own::find();
    let before = own.as_ref().map(files);
    let release = Release::install(&format!("config.export.otlp[0].url={}", receiver_url(&collector)));
    let selector = "app.kubernetes.io/name=tracer";
    let pods = list(&["--namespace", NAMESPACE, "pods", "--selector", selector]);
    let loaded = own.as_ref().map(|own| Loaded::of(own.process(NAMESPACE, text(&pods[0], "/metadata/name"))));
    let shop = Shop::new();
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    shop.deploy("user", 1, &["--next", &store, "--cron", "5", "--calls", "100"]);
    shop.wait_called("user", 100);
    let truth = logged(&shop, &["user", "store"]);
    wait_for("200 spans", || (collector.spans().len() >= 200).then_some(()));
    release.uninstall();
    assert_eq!(assert_told(&collector.spans(), &truth), 200);
    let kinds = "daemonsets,pods,configmaps,secrets,serviceaccounts,clusterroles,clusterrolebindings";
    let left = wait_for("the pods to be gone", || {
        let left = kubectl(&["get", kinds, "--all-namespaces", "--selector", selector, "--output", "name"]);
        (!left.contains("pod/")).then_some(left)
    });
    assert_eq!(left, "");
    let (Some(own), Some(loaded)) = (own, loaded) else { return };
    println!("{} programs and {} maps were loaded", loaded.programs.len(), loaded.maps.len());
    assert!(loaded.programs.len() > 5 && loaded.maps.len() > 5);
    wait_for("the probes to be gone", || loaded.left().is_empty().then_some(()));
    assert_eq!(files(&own), before.expect("the same"));
}

struct Release;

impl Release {
    fn install(set: &str) -> Self {
        let chart = root().join("deploy/helm/tracer").display().to_string();
        let release = Self;
        run(Command::new("helm")
            .args(["install", "tracer", &chart, "--namespace", NAMESPACE, "--create-namespace", "--set", set])
            .args(["--wait", "--timeout", "90s"]));
        release
    }

    fn uninstall(self) {
        run(Command::new("helm").args(["uninstall", "tracer", "--namespace", NAMESPACE, "--wait"]));
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let _ = Command::new("helm").args(["uninstall", "tracer", "--namespace", NAMESPACE]).output();
        let _ = attempt(&["delete", "namespace", NAMESPACE, "--timeout=60s", "--ignore-not-found"], "");
    }
}

/// What on the node is called as the tracer is, but for what the kubelet and containerd keep of pods and images.
fn files(own: &Own) -> BTreeSet<String> {
    let places = ["/sys/fs/bpf", "/etc", "/opt", "/run", "/usr/local", "/var/lib", "/var/run"];
    let others = ["/var/lib/containerd", "/run/containerd", "/var/lib/kubelet", "/run/netns"];
    let mut command = [&["find"], &places[..]].concat();
    for other in others {
        command.extend(["-path", other, "-prune", "-o"]);
    }
    command.extend(["-path", "/sys/fs/bpf/*", "-print", "-o", "-iname", "*tracer*", "-print"]);
    own.node(&command).lines().map(str::to_owned).collect()
}

/// Numbers of programs and maps, which are not given again.
struct Loaded {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Loaded {
    fn of(process: u32) -> Self {
        let folder = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("it runs");
        let files = folder.flatten().filter_map(|file| fs::read_to_string(file.path()).ok());
        let lines: Vec<String> =
            files.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let numbers =
            |key: &str| lines.iter().filter_map(|line| line.strip_prefix(key)?.trim().parse().ok()).collect();
        Self { programs: numbers("prog_id:"), maps: numbers("map_id:") }
    }

    fn left(&self) -> Vec<u32> {
        let programs = aya::programs::loaded_programs().flatten().map(|program| program.id());
        let maps = aya::maps::loaded_maps().flatten().map(|map| map.id());
        let programs = programs.filter(|id| self.programs.contains(id));
        programs.chain(maps.filter(|id| self.maps.contains(id))).collect()
    }
}
