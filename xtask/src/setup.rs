//! `cargo xtask setup`: the tools that the build of the probes needs, and what the tests run.

use std::{ffi::OsStr, process::Command};

use anyhow::{Result, bail};

use crate::{
    image,
    shell::{self, Toolchain, as_root, output, run as execute, works},
};

/// The LLVM of the pinned compiler; bpf-linker has to be built with it, or a newer one.
const LLVM: &str = "22";
const LLVM_PACKAGES: [&str; 6] =
    ["llvm-22-dev", "libclang-22-dev", "clang-22", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
const LINKER: &str = "0.13";

/// Debian's compiler, with the probes' `core` ready made.
const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// What the live tests run, and the package that has it.
const TEST_PROGRAMS: [(&str, &str); 17] = [
    ("cc", "gcc"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("wrk", "wrk"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    ("tshark", "tshark"),
    ("go", "golang-go"),
    ("javac", "default-jdk-headless"),
    ("haproxy", "haproxy"),
    ("uwsgi", "uwsgi-core"),
    ("hey", "hey"),
    (PROMETHEUS, PROMETHEUS),
];

/// Its package starts a service too.
const PROMETHEUS: &str = "prometheus";

/// What the soak looks at the probes' maps with.
const SOAK_PROGRAMS: [(&str, &str); 1] = [("bpftool", "bpftool")];

/// What the benchmark runs besides.
const BENCH_PROGRAMS: [(&str, &str); 4] = [
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("hey", "hey"),
    ("h2load", "nghttp2-client"),
];

/// Without a program of its own to look for.
const UWSGI_PYTHON: &str = "uwsgi-plugin-python3";

const DENY: &str = "0.19";

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Also what the tests run: servers, load generators, cargo-deny
    #[arg(long)]
    pub(crate) tests: bool,
}

/// Returns the toolchain to build with.
pub(crate) fn ensure(tests: bool) -> Result<Toolchain> {
    let toolchain = install_rust()?;
    install_linker(&toolchain)?;
    if tests {
        install_test_programs()?;
        install_deny(&toolchain)?;
    }
    Ok(toolchain)
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure(arguments.tests)?;
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        println!("setup: this kernel has no type information (BTF): the build works, tracing here will not");
    }
    println!("setup: all that is needed is there");
    Ok(())
}

fn install_rust() -> Result<Toolchain> {
    let channel = shell::channel()?;
    if works("rustup", &["--version"]) {
        let has = |tool: &str| works("rustup", &["run", &channel, tool, "--version"]);
        let source =
            output("rustup", &["run", &channel, "rustc", "--print", "sysroot"]).is_some_and(|sysroot| {
                std::path::Path::new(&sysroot).join("lib/rustlib/src/rust/library").exists()
            });
        if !(has("cargo") && has("cargo-clippy") && has("rustfmt") && source) {
            println!("setup: Rust {channel} by rustup, for the probes");
            execute(
                Command::new("rustup")
                    .args(["toolchain", "install", &channel, "--profile", "minimal"])
                    .args(["--component", "rust-src", "--component", "clippy", "--component", "rustfmt"]),
            )?;
        }
        return Ok(Toolchain::Rustup(channel));
    }
    println!("setup: rustup is not there; taking Debian's Rust");
    install_packages(&DEBIAN_RUST)?;
    Ok(Toolchain::Debian)
}

fn install_linker(toolchain: &Toolchain) -> Result<()> {
    let version = output("bpf-linker", &["--version"]).unwrap_or_default();
    if version.split_whitespace().any(|word| word.starts_with(LINKER)) {
        return Ok(());
    }
    println!("setup: bpf-linker {LINKER}, the linker of the probes (a few minutes)");
    install_packages(&LLVM_PACKAGES)?;
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    execute(
        shell::cargo(toolchain)
            .env("LLVM_PREFIX", &prefix)
            .env("LLVM_SYS_221_PREFIX", &prefix)
            .env("RUSTFLAGS", format!("-L{prefix}/lib"))
            .args(["install", "bpf-linker", "--locked", "--version", &format!("^{LINKER}")])
            .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]),
    )
}

pub(crate) fn install_bench_programs() -> Result<()> {
    install_programs(&BENCH_PROGRAMS)
}

pub(crate) fn install_soak_programs() -> Result<()> {
    install_programs(&SOAK_PROGRAMS)
}

fn install_test_programs() -> Result<()> {
    let is_new = !is_installed(PROMETHEUS);
    install_programs(&TEST_PROGRAMS)?;
    if is_new && works("systemctl", &["is-active", "--quiet", PROMETHEUS]) {
        println!("setup: the service that came with {PROMETHEUS} is ended: the tests start their own");
        execute(as_root(&[], "systemctl").args(["disable", "--now", PROMETHEUS]))?;
    }
    if output("sh", &["-c", "ls /usr/lib/uwsgi/plugins/python3*"]).is_none() {
        install_packages(&[UWSGI_PYTHON])?;
    }
    install_python_packages()?;
    install_node_packages()
}

fn install_programs(programs: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| {
            output("sh", &["-c", &format!("PATH=$PATH:/usr/sbin command -v {program}")]).is_none()
        })
        .map(|(_, package)| *package)
        .collect();
    install_packages(&missing)
}

/// Into an environment of their own, in cargo's folder: a client, a collector, and gRPC.
fn install_python_packages() -> Result<()> {
    let folder = python();
    let python = folder.join("bin/python3").display().to_string();
    if works(&python, &["-c", "import grpc, gunicorn, hypercorn, requests, rotel"]) {
        return Ok(());
    }
    println!(
        "setup: Python's requests, gunicorn, hypercorn and grpcio, and rotel, a collector, for the tests"
    );
    let path = folder.display().to_string();
    if !works("python3", &["-m", "venv", &path]) {
        install_packages(&["python3-venv"])?;
        execute(Command::new("python3").args(["-m", "venv", &path]))?;
    }
    execute(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "gunicorn", "hypercorn", "requests", "rotel"])
            .args(["-r", "tests/workloads/grpc/python/requirements.txt"])
            .current_dir(shell::root()),
    )
}

/// Beside the program that needs them, in cargo's folder: Node looks for packages where a program is.
fn install_node_packages() -> Result<()> {
    let folder = shell::target().join("node");
    let source = shell::root().join("tests/workloads/grpc/node");
    std::fs::create_dir_all(&folder)?;
    for name in ["lab.js", "package.json", "package-lock.json"] {
        std::fs::copy(source.join(name), folder.join(name))?;
    }
    if folder.join("node_modules/@grpc/grpc-js/package.json").exists() {
        return Ok(());
    }
    println!("setup: gRPC for Node, for the tests");
    execute(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder))
}

/// Where the tests' Python is.
pub(crate) fn python() -> std::path::PathBuf {
    shell::target().join("python")
}

fn install_deny(toolchain: &Toolchain) -> Result<()> {
    if works("cargo-deny", &["--version"]) {
        return Ok(());
    }
    println!("setup: cargo-deny, which checks licences and sources (a few minutes)");
    execute(shell::cargo(toolchain).args([
        "install",
        "cargo-deny",
        "--locked",
        "--version",
        &format!("^{DENY}"),
    ]))
}

/// What a program without libraries of the system is built with: Rust's library for it, and a C compiler for ring.
pub(crate) fn install_static(toolchain: &Toolchain) -> Result<()> {
    let Toolchain::Rustup(channel) = toolchain else {
        bail!("Debian's Rust has no library for {}: rustup (https://rustup.rs) has it", image::TARGET);
    };
    let installed = output("rustup", &["target", "list", "--installed", "--toolchain", channel]);
    if !installed.is_some_and(|list| list.lines().any(|target| target == image::TARGET)) {
        println!("setup: Rust's library for {}", image::TARGET);
        execute(Command::new("rustup").args(["target", "add", image::TARGET, "--toolchain", channel]))?;
    }
    install_packages(&["musl-tools", "ca-certificates"])
}

/// What renders deploy/: program, version, and the module that Go builds it from.
const RENDERERS: [(&str, &str, &str); 2] = [
    ("helm", "v3.22.0", "helm.sh/helm/v3/cmd/helm"),
    ("kustomize", "v5.8.2", "sigs.k8s.io/kustomize/kustomize/v5"),
];

/// Builds in the folder what is not there in its version: another one renders in another way.
pub(crate) fn install_renderers(folder: &std::path::Path) -> Result<()> {
    for (name, version, module) in RENDERERS {
        let program = folder.join(name).display().to_string();
        let built = output("go", &["version", "-m", &program]).unwrap_or_default();
        if built.lines().any(|line| line.trim_start().starts_with("mod") && line.contains(version)) {
            continue;
        }
        println!("setup: {name} {version}, from its Go module (a minute or two)");
        if !works("go", &["version"]) {
            install_packages(&["golang-go"])?;
        }
        execute(
            Command::new("go")
                .env("GOBIN", folder)
                .env("CGO_ENABLED", "0")
                .args(["install", "-trimpath", "-ldflags=-s -w"])
                .arg(format!("{module}@{version}")),
        )?;
    }
    Ok(())
}

/// The driver of the fuzzer.
pub(crate) fn install_fuzzer(toolchain: &Toolchain) -> Result<()> {
    if works("cargo-fuzz", &["--version"]) {
        return Ok(());
    }
    println!("setup: cargo-fuzz (a minute)");
    execute(shell::cargo(toolchain).args(["install", "cargo-fuzz", "--locked"]))
}

/// With apt, as root; what is installed already is left alone.
fn install_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&&str> = packages.iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|package| **package).collect::<Vec<_>>().join(" ");
    if !works("apt-get", &["--version"]) {
        bail!(
            "this is no Debian: install what these packages of Debian have with your own package manager, \
             then run this again: {names}"
        );
    }
    if !shell::is_root() {
        println!("setup: sudo is used to install packages: {names}");
    }
    let apt = |arguments: &[&str]| {
        let mut command = as_root(&[("DEBIAN_FRONTEND", OsStr::new("noninteractive"))], "apt-get");
        command.arg("-qq").args(arguments);
        command
    };
    execute(&mut apt(&["update"]))?;
    execute(
        apt(&["install", "-y", "--no-install-recommends"]).args(missing).stdout(std::process::Stdio::null()),
    )
}

fn is_installed(package: &str) -> bool {
    output("dpkg-query", &["-W", "-f=${db:Status-Status}", package]).as_deref() == Some("installed")
}
