//! The probes under other kernels: Debian's, each in a VM (tests/vm), with the live tests that are quick
//! enough for software emulation. What came of it is kept in tests/vm/kernels.json, and the README's table
//! is made of that.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    shell::{self, Toolchain},
    test::LivePrograms,
};

/// Live tests that hold under every kernel and in every way to see bytes, and are soon over.
pub(crate) const SMOKE: [&str; 10] = [
    "a_command_keeps_its_terminal_its_status_and_its_signals",
    "both_ends_that_are_chosen_are_seen",
    "children_that_come_later_are_followed",
    "commands_are_seen_from_their_first_byte",
    "connections_that_were_open_are_joined",
    "nothing_is_left_behind",
    "requests_come_in_pieces_and_several_at_once",
    "selection::a_cgroup_chooses_who_joins_it",
    "servers::unusual_calls_are_seen_from_both_ends",
    "who_is_not_chosen_is_not_seen",
];

const RESULTS: &str = "tests/vm/kernels.json";
const README: &str = "README.md";
const START: &str = "<!-- kernels: made by `cargo xtask test --vm` -->\n";
const END: &str = "<!-- end of kernels -->";

/// Seconds for one VM: software emulation takes its time.
const TIME: &str = "1800";

/// What was found under one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kernel {
    release: String,
    /// Each way to see bytes, with whether it loads.
    captures: BTreeMap<String, bool>,
    /// The one that is taken.
    best: Option<String>,
    /// Other probes that it does not take.
    refused: Vec<String>,
    /// Live tests that passed.
    passed: usize,
}

pub(crate) fn run(kernels: &[String], toolchain: &Toolchain) -> Result<()> {
    let programs = LivePrograms::build(toolchain, "test --no-run --test", "live")?;
    programs.check_names(&SMOKE)?;
    let mut results = read()?;
    let folder = shell::target().join("vm");
    std::fs::create_dir_all(&folder)?;
    for name in kernels {
        println!("== Linux {name}");
        let report = folder.canonicalize()?.join(format!("doctor-{name}.json"));
        let _ = std::fs::remove_file(&report);
        let tests = format!("{} --test-threads=1 --exact {}", programs.shown(), SMOKE.join(" "));
        let tracer = programs.folder.join("tracer");
        let script = format!("{} doctor --json > {} && {tests}", tracer.display(), report.display());
        shell::run(
            Command::new("tests/vm/vm.sh")
                .args([name, &script])
                .env("VM_SHARE", shell::root())
                .env("VM_TIMEOUT", TIME),
        )?;
        results.insert(name.clone(), kernel(&report)?);
    }
    let text = serde_json::to_string_pretty(&results)?;
    std::fs::write(shell::root().join(RESULTS), format!("{text}\n"))?;
    let readme = shell::root().join(README);
    std::fs::write(&readme, with_table(&std::fs::read_to_string(&readme)?, &results)?)?;
    println!("{RESULTS} and the table in {README} are written");
    Ok(())
}

/// That the README's table is the one of the results.
pub(crate) fn check_table() -> Result<()> {
    let text = std::fs::read_to_string(shell::root().join(README))?;
    if with_table(&text, &read()?)? != text {
        bail!(
            "the table of kernels in {README} is not that of {RESULTS}: run `cargo xtask test --vm 6.1,6.12`"
        );
    }
    println!("the table of kernels is that of {RESULTS}");
    Ok(())
}

fn read() -> Result<BTreeMap<String, Kernel>> {
    let path = shell::root().join(RESULTS);
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())
}

/// What `tracer doctor --json` wrote.
#[derive(Deserialize)]
struct Report {
    capture: Option<String>,
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    name: String,
    level: String,
    found: String,
}

fn kernel(report: &Path) -> Result<Kernel> {
    let text = std::fs::read_to_string(report).with_context(|| report.display().to_string())?;
    let report: Report = serde_json::from_str(&text)?;
    let named = |start: &'static str| {
        report.checks.iter().filter_map(move |check| Some((check.name.strip_prefix(start)?, check)))
    };
    let kernel =
        report.checks.iter().find(|check| check.name == "kernel").context("no kernel in the report")?;
    Ok(Kernel {
        release: kernel.found.trim_start_matches("Linux ").to_owned(),
        captures: named("capture: ").map(|(name, check)| (name.to_owned(), check.level == "good")).collect(),
        best: report.capture.clone(),
        refused: named("probe: ")
            .filter(|(_, check)| check.level != "good")
            .map(|(name, _)| name.to_owned())
            .collect(),
        passed: SMOKE.len(),
    })
}

fn with_table(text: &str, results: &BTreeMap<String, Kernel>) -> Result<String> {
    let start = text.find(START).context("the README has no place for the table of kernels")? + START.len();
    let end = start + text[start..].find(END).context("the README's table of kernels has no end")?;
    let mut table = String::from(
        "| kernel | ways to see bytes that load | taken | other probes | live tests passed |\n|---|---|---|---|---|\n",
    );
    let mut rows: Vec<&Kernel> = results.values().collect();
    rows.sort_by_key(|kernel| version(&kernel.release));
    for kernel in rows {
        let loads: Vec<&str> =
            kernel.captures.iter().filter(|(_, loads)| **loads).map(|(name, _)| name.as_str()).collect();
        let others = match &kernel.refused[..] {
            [] => "all".to_owned(),
            refused => format!("without {}", refused.join(", ")),
        };
        table.push_str(&format!(
            "| {} | {} | {} | {others} | {} of {} |\n",
            kernel.release,
            loads.join(", "),
            kernel.best.as_deref().unwrap_or("none"),
            kernel.passed,
            SMOKE.len(),
        ));
    }
    Ok(format!("{}{table}{}", &text[..start], &text[end..]))
}

fn version(release: &str) -> Vec<u32> {
    release.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// The programs that a live test needs, as they were built.
impl LivePrograms {
    /// As a shell takes it.
    fn shown(&self) -> String {
        let variables = self.variables();
        let words =
            variables.iter().map(|(name, value)| format!("{name}={}", PathBuf::from(value).display()));
        words.chain([self.program.display().to_string()]).collect::<Vec<_>>().join(" ")
    }
}
