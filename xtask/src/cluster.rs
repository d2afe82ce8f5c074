//! Tests against Kubernetes: the API server of KUBECONFIG, or one of this repository's own that is brought up and
//! taken down again (tests/cluster/cluster.sh).

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    shell::{self, Toolchain},
    test::LivePrograms,
};

/// What the tests are built by.
const BUILD: &str = "test --no-run --features kubernetes --test";

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
    let programs = LivePrograms::build(toolchain, BUILD, "kubernetes")?;
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
    let output =
        Command::new(&script).arg("kubeconfig").output().context("the cluster's script cannot be run")?;
    if !output.status.success() {
        bail!("the cluster does not say where it is");
    }
    let kubeconfig = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let variables = [("KUBECONFIG", kubeconfig.as_os_str()), ("TRACER_CLUSTER", script.as_os_str())];
    programs.run(&variables, arguments)
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
