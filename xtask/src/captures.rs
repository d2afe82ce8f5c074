//! `cargo xtask captures`: tests/captures from real sockets, and the snapshots of what they give.

use std::process::Command;

use anyhow::Result;

use crate::{setup, shell, test};

pub(crate) fn run() -> Result<()> {
    let toolchain = setup::ensure(true)?;
    test::run_live(&toolchain, "build --bin", "record-captures", &[])?;
    for entry in std::fs::read_dir("tests/snapshots")? {
        std::fs::remove_file(entry?.path())?;
    }
    shell::run(
        shell::cargo(&toolchain)
            .args(["test", "--locked", "--package", "tracer-tests", "--test", "replay"])
            .env("INSTA_UPDATE", "always"),
    )?;
    println!("captures: look through what has changed: git diff --stat tests/");
    shell::run(Command::new("git").args(["status", "--short", "tests/captures", "tests/snapshots"]))
}
