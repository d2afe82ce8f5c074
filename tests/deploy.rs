//! deploy/ as kustomize and Helm render it: what comes out is as it was, and the same from both. Run by
//! `cargo xtask test --only deploy`, which has the programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const CHART: &str = "deploy/helm/tracer";
const MANIFESTS: &str = "deploy/kubernetes";
const OVERLAY: &str = "tests/deploy/overlay";

/// Labels that say which of the two it was.
const BY_WHOM: [&str; 2] = ["app.kubernetes.io/managed-by", "helm.sh/chart"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A program that `cargo xtask` has put somewhere.
fn program(variable: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?} (see `cargo xtask test`): {error}"))
}

/// What a command prints that has to go well.
fn said(command: &mut Command) -> String {
    let output = output(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn kustomize(folder: &str) -> String {
    said(program("TRACER_KUSTOMIZE", "kustomize").args(["build", folder]))
}

fn helm(arguments: &[&str]) -> Command {
    let mut command = program("TRACER_HELM", "helm");
    command.args(arguments);
    command
}

fn kubectl(arguments: &[&str]) -> Command {
    let mut command = program("TRACER_KUBECTL", "kubectl");
    command.args(arguments);
    command
}

/// Without a server: a helm that `go install` built takes the version for an old one, if none is said.
fn template(release: &str, namespace: &str) -> Command {
    helm(&["template", release, CHART, "--namespace", namespace, "--kube-version", "1.30.0"])
}

fn chart(arguments: &[&str]) -> String {
    said(template("tracer", "tracer").args(arguments))
}

/// The documents by kind and name, with the configuration read as the YAML that it is.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}"));
    let named = documents.into_iter().filter(|object| !object.is_null()).map(|mut object| {
        forget_by_whom(&mut object);
        if let Some(config) = object.pointer_mut("/data/config.yaml") {
            *config = serde_saphyr::from_str(config.as_str().unwrap()).unwrap();
        }
        let name = object["metadata"]["name"].as_str().unwrap();
        (format!("{}/{name}", object["kind"].as_str().unwrap()), object)
    });
    named.collect()
}

fn forget_by_whom(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !BY_WHOM.contains(&name.as_str()));
            members.values_mut().for_each(forget_by_whom);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_by_whom),
        _ => {}
    }
}

fn assert_same(manifests: &str, chart: &str) {
    let (manifests, chart) = (objects(manifests), objects(chart));
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&manifests), names(&chart));
    for (name, object) in &manifests {
        let shown = |value: &Value| serde_json::to_string_pretty(&sorted(value)).unwrap();
        assert_eq!(shown(object), shown(&chart[name]), "{name}");
    }
}

/// With its members in order, whatever the map keeps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let ordered: BTreeMap<_, _> = members.iter().map(|(name, value)| (name, sorted(value))).collect();
            serde_json::to_value(ordered).unwrap()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn assert_rendered(name: &str, text: String) {
    insta::with_settings!({ snapshot_path => "deploy/snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn the_manifests_are_as_they_were() {
    assert_rendered("kustomize", kustomize(MANIFESTS));
    assert_rendered("kustomize-components", kustomize(OVERLAY));
}

#[test]
fn the_chart_is_as_it_was() {
    assert_rendered("helm", chart(&[]));
    assert_rendered("helm-everything", chart(&["--values", "tests/deploy/everything.values.yaml"]));
}

#[test]
fn the_chart_and_the_manifests_have_the_same_content() {
    assert_same(&kustomize(MANIFESTS), &chart(&["--set", "namespace.create=true"]));
    assert_same(&kustomize(OVERLAY), &chart(&["--values", "tests/deploy/overlay.values.yaml"]));
}

#[test]
fn the_chart_knows_its_values() {
    said(&mut helm(&["lint", "--strict", CHART]));
    said(&mut helm(&["lint", "--strict", CHART, "--values", "tests/deploy/everything.values.yaml"]));
    let schema: Value = serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    let values: Value = serde_saphyr::from_str(&read(&format!("{CHART}/values.yaml"))).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let mut known = keys(&schema["properties"]);
    // Helm's own, which every chart has.
    known.remove("global");
    assert_eq!(known, keys(&values));
}

#[test]
fn wrong_values_are_refused_with_the_reason() {
    for (wrong, reason) in [
        ("privilegd=true", "privilegd"),
        ("image.tagg=1", "tagg"),
        ("capabilities={CAP_BPF}", "capabilities"),
        ("config.kubernetes.peers=all", "peers"),
        ("config.serve.address=127.0.0.1:9464", "the kubelet does not reach 127.0.0.1"),
        ("config.serve.address=nowhere", "address"),
        ("config.budgets.memory=lots", "config.budgets.memory: lots"),
        ("config.export.otlp[0].url=collector:4318", "url"),
        ("terminationGracePeriodSeconds=1", "terminationGracePeriodSeconds"),
    ] {
        let output = output(template("tracer", "tracer").args(["--set", wrong]));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(reason), "{wrong}: {errors}");
    }
}

/// Each release reads only what it needs, and leaves its own namespace out.
#[test]
fn releases_in_other_namespaces_have_names_of_their_own() {
    let text = said(&mut template("blue", "watch"));
    let objects = objects(&text);
    assert!(objects.contains_key("ClusterRole/blue-tracer-watch"), "{:?}", objects.keys());
    let excluded =
        &objects["ConfigMap/blue-tracer"]["data"]["config.yaml"]["select"]["exclude"][0]["namespace"];
    assert!(excluded.as_array().unwrap().contains(&"watch".into()), "{excluded}");
    assert!(!excluded.as_array().unwrap().contains(&"tracer".into()), "{excluded}");
}

#[test]
fn all_say_the_same_version() {
    let version = env!("CARGO_PKG_VERSION");
    let yaml = |path: &str| -> Value { serde_saphyr::from_str(&read(path)).unwrap() };
    let chart = yaml("deploy/helm/tracer/Chart.yaml");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&version.into(), &version.into()));
    let manifests = yaml("deploy/kubernetes/kustomization.yaml");
    assert_eq!(manifests["images"][0]["newTag"], version);
    assert_eq!(manifests["labels"][0]["pairs"]["app.kubernetes.io/version"], version);
    // A component has its own: the labels of the base do not reach it.
    for file in ["service", "servicemonitor"] {
        let object = yaml(&format!("{MANIFESTS}/components/servicemonitor/{file}.yaml"));
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/version"], version, "{file}");
    }
    let file = read("deploy/Containerfile");
    assert!(file.contains(&format!("org.opencontainers.image.version=\"{version}\"")));
    assert!(file.contains(&format!("localhost/tracer:{version}")));
}

/// The probes are built with one release of Rust: so is the image.
#[test]
fn the_container_file_has_the_pinned_compiler() {
    let pinned = read("tracer-ebpf/rust-toolchain.toml");
    let channel = pinned.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    assert!(read("deploy/Containerfile").contains(&format!("/rust:{channel}-")), "{channel}");
}

/// As much as the unit of systemd, but what that needs to give capabilities up for programs that it starts.
#[test]
fn a_pod_may_as_much_as_the_service() {
    let unit = read("deploy/systemd/tracer.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let mut service: BTreeSet<&str> = line.split(' ').filter_map(|name| name.strip_prefix("CAP_")).collect();
    assert!(service.remove("SETPCAP"));
    let objects = objects(&kustomize(MANIFESTS));
    let container = &objects["DaemonSet/tracer"]["spec"]["template"]["spec"]["containers"][0];
    let added = container["securityContext"]["capabilities"]["add"].as_array().unwrap();
    assert_eq!(added.iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>(), service);
}

#[test]
fn the_agent_takes_the_configurations() {
    for (name, text) in [("kustomize", kustomize(MANIFESTS)), ("chart", chart(&[]))] {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let configs = documents.iter().filter_map(|object| object.pointer("/data/config.yaml")?.as_str());
        let configs: Vec<&str> = configs.collect();
        assert_eq!(configs.len(), 1, "{name}");
        let file = std::env::temp_dir().join(format!("tracer-config-{}-{name}.yaml", std::process::id()));
        fs::write(&file, configs[0]).unwrap();
        let answer = output(program("TRACER_PROGRAM", "tracer").args(["config", "check"]).arg(&file));
        fs::remove_file(&file).unwrap();
        assert!(answer.status.success(), "{name}: {}", String::from_utf8_lossy(&answer.stderr));
    }
}

/// What a server knows of them; nothing but their namespace is made, and that goes again.
#[test]
#[ignore = "asks the API server of KUBECONFIG"]
fn an_api_server_takes_the_manifests_and_the_chart() {
    let folder = std::env::temp_dir().join(format!("tracer-deploy-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let is_there = output(&mut kubectl(&["get", "namespace", "tracer"])).status.success();
    if !is_there {
        said(&mut kubectl(&["apply", "--filename", "deploy/kubernetes/namespace.yaml"]));
    }
    let renderings = [
        ("kustomize", kustomize(MANIFESTS)),
        ("components", kustomize(OVERLAY)),
        ("chart", chart(&["--set", "namespace.create=true"])),
        ("everything", chart(&["--values", "tests/deploy/everything.values.yaml"])),
    ];
    let answers: Vec<(&str, usize, Output)> = renderings
        .into_iter()
        .map(|(name, text)| {
            // Of a kind that only a server with the operator of Prometheus has.
            let known: Vec<&str> =
                text.split("\n---\n").filter(|text| !text.contains("kind: ServiceMonitor")).collect();
            let file = folder.join(name).with_extension("yaml");
            fs::write(&file, known.join("\n---\n")).unwrap();
            let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename"];
            (name, known.len(), output(kubectl(&apply).arg(&file)))
        })
        .collect();
    fs::remove_dir_all(&folder).unwrap();
    if !is_there {
        said(&mut kubectl(&["delete", "--filename", "deploy/kubernetes/namespace.yaml", "--wait=false"]));
    }
    for (name, count, answer) in answers {
        let (told, errors) =
            (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert!(answer.status.success(), "{name}: {errors}");
        assert_eq!(told.matches("(server dry run)").count(), count, "{name}: {told}");
        // Such as a pod that the namespace would not let in. Of the namespace itself, which `apply` did not make.
        let warnings = errors.lines().filter(|line| !line.contains("last-applied-configuration"));
        assert_eq!(warnings.collect::<Vec<_>>(), Vec::<&str>::new(), "{name}");
    }
}

/// In a namespace of its own, for as long as the test takes: what is installed is all gone again.
#[test]
#[ignore = "changes the cluster of KUBECONFIG"]
fn a_release_comes_and_goes() {
    let namespace = format!("tracer-test-{}", std::process::id());
    let release = ["eyes", CHART, "--namespace", &namespace];
    let labelled = || {
        let kinds = "daemonsets,configmaps,serviceaccounts,clusterroles,clusterrolebindings";
        let label = "app.kubernetes.io/instance=eyes";
        said(&mut kubectl(&["get", kinds, "--all-namespaces", "--selector", label, "--output", "name"]))
    };
    let reads_services = || {
        let role = format!("eyes-tracer-{namespace}");
        said(&mut kubectl(&["get", "clusterrole", &role, "--output", "yaml"])).contains("endpointslices")
    };
    assert_eq!(labelled(), "", "a release of this name is there already");
    said(helm(&["install", "--create-namespace"]).args(release));
    let installed = labelled();
    let read = reads_services();
    said(helm(&["upgrade", "--set", "config.kubernetes.peers=none"]).args(release));
    let reads = reads_services();
    said(&mut helm(&["uninstall", "eyes", "--namespace", &namespace, "--wait"]));
    let left = labelled();
    said(&mut kubectl(&["delete", "namespace", &namespace, "--wait=false"]));
    assert_eq!(installed.lines().count(), 5, "{installed}");
    assert!(read && !reads, "the role does not follow what is watched");
    assert_eq!(left, "");
}
