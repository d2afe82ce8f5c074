//! Running other programs: as root through sudo where that is needed, and with the pinned toolchain.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Says what is run, runs it, and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", shown(command));
    let status = command.status().with_context(|| format!("`{}` cannot be run", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Whether a program runs well, silently.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// What a program prints; None if it cannot be run, or fails.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A program for root: through sudo where this is somebody else, with what it has to know of the
/// environment; sudo itself lets nothing of that through.
pub(crate) fn as_root(variables: &[(&str, &OsStr)], program: impl AsRef<OsStr>) -> Command {
    let (mut command, kept): (Command, &[&str]) = if is_root() {
        (Command::new("env"), &[])
    } else {
        let mut command = Command::new("sudo");
        command.arg("env");
        (command, &["PATH", "HOME", "CI"])
    };
    for name in kept {
        if let Some(value) = std::env::var_os(name) {
            command.arg(assignment(name, &value));
        }
    }
    for (name, value) in variables {
        command.arg(assignment(name, value));
    }
    command.arg(program);
    command
}

fn assignment(name: &str, value: &OsStr) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

pub(crate) fn is_root() -> bool {
    output("id", &["-u"]).as_deref() == Some("0")
}

/// Cargo of the toolchain that the probes are pinned to, where rustup can give it.
pub(crate) fn cargo(toolchain: &Toolchain) -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        // What cargo set for this very program is none of the next one's.
        let name = name.to_string_lossy();
        let inherited = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if inherited || name == "RUSTUP_TOOLCHAIN" || name == "CARGO" {
            command.env_remove(&*name);
        }
    }
    if let Toolchain::Rustup(channel) = toolchain {
        command.env("RUSTUP_TOOLCHAIN", channel);
    }
    command
}

/// Where the compiler comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    Rustup(String),
    /// Debian's packages.
    Debian,
}

/// The release that the probes are pinned to.
pub(crate) fn channel() -> Result<String> {
    let path = root().join("tracer-ebpf/rust-toolchain.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .map(|channel| channel.trim().trim_matches('"').to_owned())
        .with_context(|| format!("{} names no channel", path.display()))
}

/// Cargo's folder for what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
