//! `cargo xtask fuzz`: the fuzzer on each entrance of tests/fuzz, from the corpus that is committed.

use anyhow::Result;

use crate::{
    setup,
    shell::{self, Toolchain},
};

const TARGETS: [&str; 3] = ["record", "protocol", "pipeline"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seconds for each
    #[arg(long, default_value_t = 600)]
    seconds: u64,

    /// Only writes the inputs to begin with, from the dialogues and captures of the tests
    #[arg(long)]
    seeds: bool,

    /// Only these
    #[arg(long, value_delimiter = ',', value_parser = TARGETS)]
    only: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(false)?;
    if arguments.seeds {
        return shell::run(cargo(&toolchain).args(["run", "--release", "--locked", "--bin", "seeds"]));
    }
    setup::install_fuzzer(&toolchain)?;
    let targets = TARGETS
        .iter()
        .filter(|target| arguments.only.is_empty() || arguments.only.iter().any(|only| only == *target));
    for target in targets {
        println!("fuzz: {target}, {} seconds", arguments.seconds);
        shell::run(
            cargo(&toolchain)
                .args(["fuzz", "run", "--fuzz-dir", ".", "--sanitizer", "none", "--features", "fuzz", target])
                .arg("--")
                .arg(format!("-max_total_time={}", arguments.seconds))
                .args(["-max_len=8192", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]),
        )?;
    }
    println!("fuzz: nothing was found; `cargo fuzz cmin` in tests/fuzz makes the corpus small again");
    Ok(())
}

/// Replays the corpora, which is what CI does.
pub(crate) fn replay(toolchain: &Toolchain) -> Result<()> {
    shell::run(cargo(toolchain).args(["test", "--locked", "--lib"]))
}

/// In the fuzzer's workspace, with a folder of its own for what it builds.
fn cargo(toolchain: &Toolchain) -> std::process::Command {
    let mut command = shell::cargo(toolchain);
    command.current_dir("tests/fuzz").env("CARGO_TARGET_DIR", shell::target().join("fuzz"));
    command
}
