//! Builds the probes from source and puts the object where `live::load` embeds it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// `rustc-web` of Debian has `core` for the probes' target ready made; it is the way without rustup.
const DEBIAN_TARGET_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";
const TARGET: &str = "bpfel-unknown-none";
const SET_UP: &str = "run `cargo xtask setup`, which installs what is missing";

fn main() {
    let source = PathBuf::from("../tracer-ebpf");
    for path in [
        source.join("src"),
        source.join("Cargo.toml"),
        "../Cargo.lock".into(),
        source.join("rust-toolchain.toml"),
        "../tracer-common/src".into(),
    ] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    if env::var_os("CARGO_FEATURE_PROBES").is_none() {
        return;
    }
    if let Err(sentence) = build(&source) {
        // Fails the build, with this sentence and nothing else.
        println!("cargo::error={sentence}");
    }
}

fn build(source: &Path) -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    let source = source.canonicalize().map_err(|error| format!("{}: {error}", source.display()))?;
    let root = source.parent().ok_or("the probes' folder has no parent")?.to_owned();
    let Compiler { mut cargo, sysroot, arguments } = compiler(&source)?;
    // One folder for all profiles: the probes are the same in each.
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("probes");
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .ok_or("there is no home folder")?;
    // `cargo install` puts it there, on the path or not.
    let path =
        env::join_paths(env::split_paths(&env::var_os("PATH").unwrap_or_default()).chain([home.join("bin")]))
            .map_err(|error| format!("PATH: {error}"))?;
    if !runs(Command::new("bpf-linker").arg("--version").env("PATH", &path)) {
        return Err(format!("the linker for the probes (bpf-linker) is missing: {SET_UP}"));
    }
    // The same bytes wherever it is built: no path of this machine gets in.
    let flags = [
        format!("--remap-path-prefix={}=/tracer", root.display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        format!("--remap-path-prefix={sysroot}=/rust"),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clinker-plugin-lto=yes".to_owned(),
    ];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let inherited = name.starts_with("CARGO") && name != "CARGO_HOME";
        if inherited || name == "RUSTC" || name.starts_with("RUSTC_") || name == "RUSTFLAGS" {
            cargo.env_remove(&*name);
        }
    }
    cargo
        .current_dir(&root)
        .env("PATH", path)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "tracer-ebpf",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target_dir)
        .args(arguments);
    let output = cargo.output().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("the probes do not build (see above); if a tool is missing, {SET_UP}"));
    }
    let object = target_dir.join(TARGET).join("release/tracer-ebpf");
    std::fs::copy(&object, out.join("tracer-ebpf"))
        .map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}

struct Compiler {
    cargo: Command,
    /// Where the source of Rust's library is.
    sysroot: String,
    /// For `cargo build`.
    arguments: &'static [&'static str],
}

/// Of the pinned toolchain, or of Debian.
fn compiler(source: &Path) -> Result<Compiler, String> {
    let pinned = source.join("rust-toolchain.toml");
    let pinned =
        std::fs::read_to_string(&pinned).map_err(|error| format!("{}: {error}", pinned.display()))?;
    let channel = pinned
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .map(|channel| channel.trim().trim_matches('"').to_owned())
        .ok_or("tracer-ebpf/rust-toolchain.toml names no channel")?;
    let rustc =
        |arguments: &[&str]| Command::new("rustup").args(["run", &channel, "rustc"]).args(arguments).output();
    if let Ok(output) = rustc(&["--print", "sysroot"])
        && output.status.success()
    {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists() {
            return Err(format!("the source of Rust's library ({channel}, rust-src) is missing: {SET_UP}"));
        }
        let mut cargo = Command::new("rustup");
        cargo.args(["run", &channel, "cargo"]);
        return Ok(Compiler { cargo, sysroot, arguments: &["-Zbuild-std=core"] });
    }
    if Path::new(DEBIAN_TARGET_CORE).exists() {
        let mut cargo = Command::new("/usr/bin/cargo");
        cargo.env("RUSTC", "/usr/bin/rustc");
        // It is a little older than what aya-ebpf asks for, and compiles it.
        return Ok(Compiler { cargo, sysroot: "/usr".to_owned(), arguments: &["--ignore-rust-version"] });
    }
    Err(format!("the compiler for the probes (Rust {channel}) is missing: {SET_UP}"))
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
