//! `cargo xtask bench`: what tracing costs, as ratios within one run.
//!
//! Servers under a fixed number of requests, without the tracer and with it, interleaved. Costs are the
//! processor time of each process, by its own clock; in the VM of `--vm` that clock counts instructions.

#![allow(clippy::disallowed_methods, reason = "it measures time, and waits for it to pass")]

mod measure;
pub(crate) mod process;
mod server;
pub(crate) mod sink;
mod table;

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{setup, shell};

#[derive(Args, Clone)]
pub(crate) struct Arguments {
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,

    /// How often each server is measured without the tracer and with it
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Only these servers
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<server::Kind>,

    /// In a VM with this kernel (6.12) and one processor whose clock counts instructions
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,

    /// Everything is built, and this machine is the one to measure on: what --vm runs inside
    #[arg(long, hide = true)]
    here: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(programs) = &arguments.here {
        return measure::run(arguments, programs, true);
    }
    let programs = build()?;
    if let Some(kernel) = &arguments.vm {
        return run_in_vm(arguments, kernel, &programs);
    }
    if !shell::is_root() {
        bail!("probes need root: run it as root, or with sudo");
    }
    measure::run(arguments, &programs, false)
}

/// The folder with the tracer and the Go server, in the way that users get them.
fn build() -> Result<PathBuf> {
    let toolchain = setup::ensure(true)?;
    setup::install_bench_programs()?;
    let mut cargo = shell::cargo(&toolchain);
    shell::run(cargo.args(["build", "--release", "--locked", "--package", "tracer-agent"]))?;
    let programs = shell::target().join("release").canonicalize()?;
    shell::run(
        Command::new("go")
            .args(["build", "-o"])
            .arg(programs.join("server-go"))
            .arg("tests/workloads/servers/server.go")
            .env("CGO_ENABLED", "0"),
    )?;
    shell::run(
        Command::new("go")
            .args(["build", "-C", "tests/workloads/grpc/go", "-o"])
            .arg(programs.join("grpc-go"))
            .arg(".")
            .env("CGO_ENABLED", "0"),
    )?;
    Ok(programs)
}

/// The same program, in the guest: it has this machine's files.
fn run_in_vm(arguments: &Arguments, kernel: &str, programs: &std::path::Path) -> Result<()> {
    let own = std::env::current_exe().context("the program's own file is not known")?;
    // Of a copy that cargo does not replace meanwhile, in a folder that the guest sees.
    let copy = programs.join("xtask-bench");
    std::fs::copy(own, &copy)?;
    let mut inner = format!(
        "cd '{}' && '{}' bench --rounds {} --here '{}'",
        shell::root().display(),
        copy.display(),
        arguments.rounds,
        programs.display()
    );
    if arguments.json {
        inner.push_str(" --json");
    }
    if !arguments.only.is_empty() {
        let names: Vec<String> = arguments.only.iter().map(|kind| kind.name().to_owned()).collect();
        inner.push_str(&format!(" --only {}", names.join(",")));
    }
    eprintln!("bench: a VM with Linux {kernel}, one processor, by software: this takes some minutes");
    shell::run(
        Command::new("tests/vm/vm.sh")
            .args([kernel, &inner])
            .env("VM_ICOUNT", "0")
            .env("VM_SMP", "1")
            .env("VM_TIMEOUT", "3600")
            .env("VM_SHARE", shell::root()),
    )
}
