//! `cargo xtask test`: everything that CI checks.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster, deploy, fuzz, kernels, setup,
    shell::{self, Toolchain},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this suite; what it needs is built first
    #[arg(value_enum, conflicts_with_all = ["only", "vm"])]
    suite: Option<Suite>,

    /// Of kubernetes: 20,000 pods and 5,000 services, and what it takes to know them
    #[arg(long, requires = "suite")]
    scale: bool,

    /// Of cluster: only tests with these in their names
    #[arg(long, requires = "suite", value_name = "PART", value_delimiter = ',')]
    named: Vec<String>,

    /// Only these steps, in this order
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,

    /// Under these of Debian's kernels instead, each in a VM (6.1,6.12): every probe, and the live tests that
    /// are soon over
    #[arg(long, value_name = "KERNELS", value_delimiter = ',', conflicts_with = "only")]
    vm: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// What is told of pods, against an API server: the one of KUBECONFIG, or one that is brought up; as root
    Kubernetes,
    /// The whole as pods of a cluster: the one of KUBECONFIG, or one that is brought up; as root
    Cluster,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// rustfmt
    Format,
    /// clippy, warnings are errors
    Lint,
    /// cargo-deny: bans, licences, sources; advisories where the database can be had
    Deny,
    /// The core without aya and tokio
    Core,
    /// Unit, snapshot and property tests
    Unit,
    /// What the fuzzer found, again
    Corpus,
    /// What deploy/ renders to
    Deploy,
    /// Real servers under the real probes; as root
    Live,
    /// Some of that with each of the other ways to see bytes
    Modes,
    /// What is told of pods, where an API server has been built already; as root
    Kubernetes,
    /// The probes come out the same in two folders
    Reproduce,
}

const ALL: [Step; 11] = [
    Step::Format,
    Step::Lint,
    Step::Deny,
    Step::Core,
    Step::Unit,
    Step::Corpus,
    Step::Deploy,
    Step::Live,
    Step::Modes,
    Step::Kubernetes,
    Step::Reproduce,
];

/// Every test is built with the same features of the same packages: else libraries are built anew for each.
const BUILT: &str =
    "--locked --workspace --exclude tracer-ebpf --features tracer-tests/kubernetes,tracer-tests/cluster";

/// What users get, and what is traced; likewise.
const PROGRAMS: &str = "build --release --locked --package tracer-agent --package workloads";

/// What calls alone cannot tell depends on the way.
const NAMED: &str = "servers::io_uring_and_32_bit_tasks_are_named";

/// The ways to see bytes that are not the best one here.
const OTHER_MODES: [&str; 2] = ["sys_exit", "raw_sys_exit"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(true)?;
    match arguments.suite {
        Some(Suite::Kubernetes) => return cluster::test(&toolchain, arguments.scale),
        Some(Suite::Cluster) => return cluster::test_whole(&toolchain, &arguments.named),
        None => {}
    }
    if !arguments.vm.is_empty() {
        return kernels::run(&arguments.vm, &toolchain);
    }
    let steps = if arguments.only.is_empty() { &ALL[..] } else { &arguments.only };
    for step in steps {
        println!("== {step:?}");
        #[allow(clippy::disallowed_methods, reason = "it tells how long the step took")]
        let begun = Instant::now();
        match step {
            Step::Format => format(&toolchain)?,
            Step::Lint => lint(&toolchain)?,
            Step::Deny => deny(&toolchain)?,
            Step::Core => core(&toolchain)?,
            Step::Unit => unit(&toolchain)?,
            Step::Corpus => fuzz::replay(&toolchain)?,
            Step::Deploy => deploy::test(&toolchain)?,
            Step::Live => live(&toolchain)?,
            Step::Modes => modes(&toolchain)?,
            Step::Kubernetes => cluster::test_if_built(&toolchain)?,
            Step::Reproduce => reproduce(&toolchain)?,
        }
        println!("== {step:?} took {} s", begun.elapsed().as_secs());
    }
    println!("== all {} steps passed", steps.len());
    Ok(())
}

/// Cargo with arguments that are separated by blanks.
fn cargo(toolchain: &Toolchain, arguments: &str) -> Command {
    let mut command = shell::cargo(toolchain);
    command.args(arguments.split(' '));
    command
}

fn format(toolchain: &Toolchain) -> Result<()> {
    shell::run(&mut cargo(toolchain, "fmt --all --check"))?;
    kernels::check_table()
}

fn lint(toolchain: &Toolchain) -> Result<()> {
    let clippy = |what: &str| cargo(toolchain, &format!("clippy {what} -- -Dwarnings"));
    shell::run(&mut clippy(&format!("{BUILT} --all-targets")))?;
    shell::run(&mut clippy("--locked --package tracer-agent --no-default-features"))?;
    // For the target that it is for: it has nothing to run on this one.
    shell::run(
        clippy("--locked --package tracer-ebpf --target bpfel-unknown-none -Zbuild-std=core")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"")
            .env("CARGO_TARGET_DIR", shell::target().join("probes")),
    )
}

fn deny(toolchain: &Toolchain) -> Result<()> {
    let check = |what: &str| cargo(toolchain, &format!("deny --workspace check {what}"));
    shell::run(&mut check("bans licenses sources"))?;
    let fetched = cargo(toolchain, "deny fetch db")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if fetched {
        return shell::run(&mut check("advisories"));
    }
    println!("the advisory database cannot be had here: advisories are not checked");
    Ok(())
}

/// The core is a function of records: nothing in it can touch a kernel or wait.
fn core(toolchain: &Toolchain) -> Result<()> {
    let tree = "tree --package tracer-agent --no-default-features --edges normal --prefix none";
    let output = cargo(toolchain, tree).output()?;
    let tree = String::from_utf8(output.stdout)?;
    if !output.status.success() || !tree.starts_with("tracer-agent") {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let banned = ["aya", "tokio", "rustix", "nix", "libc"];
    let found: Vec<&str> = tree
        .lines()
        .filter(|line| line.split(' ').next().is_some_and(|name| banned.contains(&name)))
        .collect();
    if !found.is_empty() {
        bail!("the core depends on {}", found.join(", "));
    }
    println!("the core has no {}", banned.join(", no "));
    Ok(())
}

fn unit(toolchain: &Toolchain) -> Result<()> {
    let test = |what: &str| cargo(toolchain, &format!("test {BUILT} {what}"));
    shell::run(&mut test("--lib --bins --test replay --test properties"))?;
    shell::run(&mut test("--doc"))
}

/// A program of the tests: built, and run with what it is to know.
pub(crate) fn build_test(toolchain: &Toolchain, name: &str) -> Result<PathBuf> {
    build_program(toolchain, "test --no-run --test", name)
}

/// By a command of cargo's.
fn build_program(toolchain: &Toolchain, build: &str, name: &str) -> Result<PathBuf> {
    let build = format!("{build} {name} {BUILT} --message-format=json");
    let built = cargo(toolchain, &build).stderr(Stdio::inherit()).output()?;
    if !built.status.success() {
        bail!("the tests do not build");
    }
    built_program(&String::from_utf8(built.stdout)?, name).context("cargo built no program")
}

/// Returns where they are.
pub(crate) fn build_programs(toolchain: &Toolchain) -> Result<PathBuf> {
    shell::run(&mut cargo(toolchain, PROGRAMS))?;
    Ok(shell::target().join("release").canonicalize()?)
}

/// The tests are built as whoever calls, and run as root: one after the other, since each has its own
/// probes and its own load on two cores.
fn live(toolchain: &Toolchain) -> Result<()> {
    run_live(toolchain, "test --no-run --test", "live", &["--test-threads=1"])
}

fn modes(toolchain: &Toolchain) -> Result<()> {
    let programs = LivePrograms::build(toolchain, "test --no-run --test", "live")?;
    let tests = [&kernels::SMOKE[..], &[NAMED]].concat();
    programs.check_names(&tests)?;
    for mode in OTHER_MODES {
        println!("== capture: {mode}");
        let arguments = [&["--test-threads=1", "--exact"][..], &tests].concat();
        programs.run(&[("TRACER_CAPTURE", OsStr::new(mode))], &arguments)?;
    }
    Ok(())
}

/// Builds a program of the tests by a command of cargo's, and runs it as root with all that it needs.
pub(crate) fn run_live(toolchain: &Toolchain, build: &str, name: &str, arguments: &[&str]) -> Result<()> {
    LivePrograms::build(toolchain, build, name)?.run(&[], arguments)
}

/// A program of the tests with all that it needs.
pub(crate) struct LivePrograms {
    pub(crate) program: PathBuf,
    /// Where the tracer and the workloads are.
    pub(crate) folder: PathBuf,
    python: PathBuf,
}

impl LivePrograms {
    pub(crate) fn build(toolchain: &Toolchain, build: &str, name: &str) -> Result<Self> {
        let folder = build_programs(toolchain)?;
        let program = build_program(toolchain, build, name)?;
        Ok(Self { program, folder, python: setup::python().canonicalize()? })
    }

    /// That there are tests of these names: one that does not exist would pass.
    pub(crate) fn check_names(&self, names: &[&str]) -> Result<()> {
        let output = Command::new(&self.program).args(["--list", "--exact"]).args(names).output()?;
        let text = String::from_utf8(output.stdout)?;
        let missing: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !text.lines().any(|line| line == format!("{name}: test")))
            .collect();
        if !missing.is_empty() {
            bail!("there are no live tests {}", missing.join(", "));
        }
        Ok(())
    }

    pub(crate) fn variables(&self) -> [(&'static str, &OsStr); 2] {
        [("TRACER_BIN", self.folder.as_os_str()), ("TRACER_PYTHON", self.python.as_os_str())]
    }

    /// As root.
    pub(crate) fn run(&self, more: &[(&str, &OsStr)], arguments: &[&str]) -> Result<()> {
        if !shell::is_root() {
            println!("sudo is used to load the probes");
        }
        let variables = [&self.variables()[..], more].concat();
        shell::run(shell::as_root(&variables, &self.program).args(arguments))
    }
}

/// The executable in cargo's messages: one JSON object a line.
fn built_program(messages: &str, name: &str) -> Option<PathBuf> {
    // The programs of a package are built with its tests.
    let named = format!(r#""name":"{name}""#);
    let mut lines = messages.lines().filter(|line| line.contains(&named));
    let line = lines.find(|line| line.contains(r#""executable":""#))?;
    let (_, rest) = line.split_once(r#""executable":""#)?;
    rest.split_once('"').map(|(path, _)| PathBuf::from(path))
}

/// Builds the probes from a copy of their source in another folder, and compares the objects.
fn reproduce(toolchain: &Toolchain) -> Result<()> {
    let copy = shell::target().join("reproduce/elsewhere");
    let _ = std::fs::remove_dir_all(&copy);
    std::fs::create_dir_all(&copy)?;
    let source = shell::root();
    let mut names = vec!["Cargo.toml", "Cargo.lock"];
    names.extend(["tracer-common", "tracer-ebpf", "tracer-agent", "xtask", "tests"]);
    shell::run(
        Command::new("tar")
            .args(["--create", "--exclude=target", "--file=-", "--directory"])
            .arg(&source)
            .args(&names)
            .stdout(std::fs::File::create(copy.join("source.tar"))?),
    )?;
    shell::run(Command::new("tar").args(["--extract", "--file=source.tar"]).current_dir(&copy))?;
    for (folder, target) in [(&source, shell::target()), (&copy, copy.join("target"))] {
        let check = "check --quiet --locked --package tracer-agent --no-default-features --features probes";
        shell::run(cargo(toolchain, check).current_dir(folder).env("CARGO_TARGET_DIR", target))?;
    }
    let object =
        |target: PathBuf| std::fs::read(target.join("probes/bpfel-unknown-none/release/tracer-ebpf"));
    let (here, there) = (object(shell::target())?, object(copy.join("target"))?);
    if here != there {
        bail!("the probes differ when they are built in another folder");
    }
    println!("the probes are the same {} bytes in two folders", here.len());
    std::fs::remove_dir_all(copy)?;
    Ok(())
}
