//! The step `deploy` of `cargo xtask test`: what deploy/ renders to.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    setup,
    shell::{self, Toolchain},
    test::{build_programs, build_test},
};

/// Where programs are that Go builds, those of the cluster of the tests among them.
pub(crate) fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CLUSTER_CACHE") {
        return Ok(PathBuf::from(folder).join("bin"));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    Ok(cache.context("there is no home folder")?.join("tracer-cluster/bin"))
}

/// Names the cluster that tests may change: KUBECONFIG may be anybody's.
const CLUSTER: &str = "TRACER_KUBECONFIG";

/// Renders the manifests and the chart, and looks whether they are as they were, and the same. An API server is asked
/// too, if there is one for that.
pub(crate) fn test(toolchain: &Toolchain) -> Result<()> {
    let folder = programs()?;
    setup::install_renderers(&folder)?;
    // It says itself what it thinks of the configurations.
    build_programs(toolchain)?;
    shell::run(tests(toolchain, &folder)?.arg("--test-threads=2"))?;
    if let Some(kubeconfig) = std::env::var_os(CLUSTER) {
        return test_server(toolchain, Path::new(&kubeconfig));
    }
    println!("{CLUSTER} names no cluster: no API server was asked what it thinks of the manifests");
    Ok(())
}

/// What an API server has to be there for.
const WITH_A_SERVER: [&str; 2] =
    ["an_api_server_takes_the_manifests_and_the_chart", "a_release_comes_and_goes"];

/// Whether an API server takes what is rendered, and lets go of a release. It changes the cluster for some seconds.
pub(crate) fn test_server(toolchain: &Toolchain, kubeconfig: &Path) -> Result<()> {
    let folder = programs()?;
    setup::install_renderers(&folder)?;
    shell::run(
        tests(toolchain, &folder)?
            .env("KUBECONFIG", kubeconfig)
            .args(["--ignored", "--exact"])
            .args(WITH_A_SERVER),
    )
}

fn tests(toolchain: &Toolchain, folder: &Path) -> Result<Command> {
    let mut command = Command::new(build_test(toolchain, "deploy")?);
    command.current_dir(shell::root().join("tests"));
    command.env("TRACER_PROGRAM", shell::target().join("release/tracer"));
    for (variable, name) in
        [("TRACER_HELM", "helm"), ("TRACER_KUSTOMIZE", "kustomize"), ("TRACER_KUBECTL", "kubectl")]
    {
        let path = folder.join(name);
        // kubectl may be on the path alone.
        command.env(variable, if path.exists() { path.as_os_str() } else { OsStr::new(name) });
    }
    Ok(command)
}
