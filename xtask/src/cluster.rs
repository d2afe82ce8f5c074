//! Tests against Kubernetes: the API server of KUBECONFIG, or one of this repository's own that is brought up and
//! taken down again (tests/cluster/cluster.sh).

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    deploy, image, setup,
    shell::{self, Toolchain},
    test::{LivePrograms, build_test},
};

/// The part of `cargo xtask test`: to build a cluster takes longer than all of it.
pub(crate) fn test_if_built(toolchain: &Toolchain) -> Result<()> {
    let named = std::env::var_os("KUBECONFIG").is_some();
    if !named && !script_works(&["built", "--api-only"]) {
        println!(
            "no API server has been built here: `cargo xtask test kubernetes` builds one, and tests against it"
        );
        return Ok(());
    }
    test(toolchain, false)
}

pub(crate) fn test(toolchain: &Toolchain, scale: bool) -> Result<()> {
    let programs = LivePrograms::build(toolchain, "test --no-run --test", "kubernetes")?;
    let arguments = match scale {
        true => &["--test-threads=1", "--nocapture", "--ignored"][..],
        false => &["--test-threads=1"][..],
    };
    if let Some(named) = std::env::var_os("KUBECONFIG") {
        return programs.run(&[("KUBECONFIG", &named)], arguments);
    }
    let script = script();
    let home = std::env::var_os("HOME").unwrap_or_default();
    let variables = [("HOME", home.as_os_str())];
    let _down = Down(&script);
    shell::run(shell::as_root(&variables, &script).args(["up", "--api-only"]))?;
    let kubeconfig = kubeconfig(&script)?;
    let variables = [("KUBECONFIG", kubeconfig.as_os_str()), ("TRACER_CLUSTER", script.as_os_str())];
    programs.run(&variables, arguments)?;
    if !shell::is_root() {
        println!("only root reads where this cluster is: it was not asked about the manifests");
        return Ok(());
    }
    // Nobody else's cluster: it may be changed.
    deploy::test_server(toolchain, &kubeconfig)
}

/// The images, loaded where that can be done, and the tests.
pub(crate) fn test_whole(toolchain: &Toolchain, named: &[String]) -> Result<()> {
    let folder = deploy::programs()?;
    setup::install_renderers(&folder)?;
    let (agent, workload) = (shell::target().join("tracer.tar"), shell::target().join("workload.tar"));
    let arguments = image::Arguments {
        out: agent.clone(),
        tag: image::NAME.into(),
        authorities: image::AUTHORITIES.into(),
    };
    image::write(toolchain, &arguments)?;
    image::write_workload(toolchain, WORKLOAD, &workload)?;
    let program = build_test(toolchain, "cluster")?;
    let run = |variables: &[(&str, &OsStr)]| {
        let mut variables = variables.to_vec();
        let path = [folder.as_os_str(), OsStr::new(":"), &std::env::var_os("PATH").unwrap_or_default()];
        let path: OsString = path.into_iter().collect();
        variables.extend([("PATH", path.as_os_str()), ("TRACER_WORKLOAD", OsStr::new(WORKLOAD))]);
        shell::run(shell::as_root(&variables, &program).arg("--test-threads=1").args(named))
    };
    if let Some(kubeconfig) = std::env::var_os("KUBECONFIG") {
        // There is no way to bring an image to nodes that holds for all clusters.
        println!(
            "{} and {} have to be on the nodes: load them as deploy/README.md says",
            agent.display(),
            workload.display()
        );
        let receiver = std::env::var_os("TRACER_RECEIVER");
        let receiver =
            receiver.context("TRACER_RECEIVER has to say by which address pods reach this machine")?;
        return run(&[("KUBECONFIG", &kubeconfig), ("TRACER_RECEIVER", &receiver)]);
    }
    let script = script();
    let home = std::env::var_os("HOME").unwrap_or_default();
    let own = [("HOME", home.as_os_str())];
    let _down = Down(&script);
    shell::run(shell::as_root(&own, &script).arg("up"))?;
    shell::run(shell::as_root(&own, &script).arg("load").args([&agent, &workload]))?;
    let kubeconfig = kubeconfig(&script)?;
    run(&[
        ("HOME", &home),
        ("KUBECONFIG", kubeconfig.as_os_str()),
        ("TRACER_CLUSTER", script.as_os_str()),
        ("TRACER_RECEIVER", OsStr::new(HOST)),
    ])
}

/// What the image of the tests' service is called.
const WORKLOAD: &str = concat!("localhost/tracer-workload:", env!("CARGO_PKG_VERSION"));

/// The address by which pods of the script's cluster reach this machine.
const HOST: &str = "10.199.0.1";

fn kubeconfig(script: &Path) -> Result<PathBuf> {
    let output =
        Command::new(script).arg("kubeconfig").output().context("the cluster's script cannot be run")?;
    if !output.status.success() {
        bail!("the cluster does not say where it is");
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Whatever became of the tests.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let home = std::env::var_os("HOME").unwrap_or_default();
        let down = shell::run(shell::as_root(&[("HOME", OsStr::new(&home))], self.0).arg("down"));
        if let Err(error) = down {
            eprintln!("xtask: {error:#}");
        }
    }
}

fn script_works(arguments: &[&str]) -> bool {
    script().to_str().is_some_and(|script| shell::works(script, arguments))
}

fn script() -> PathBuf {
    shell::root().join("tests/cluster/cluster.sh")
}
