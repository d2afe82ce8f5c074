//! What this kernel and these privileges allow: each thing is tried, not looked up.

use std::{fs, path::Path};

use aya::{
    Btf,
    maps::MapType,
    sys::{is_map_supported, is_program_supported},
};
use serde::Serialize;

use super::{
    discover, layout,
    load::{self, Probes, RING_MIN, Wanted},
    privileges,
    probes::{Capture, FOLLOWERS},
    select::Selection,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Good,
    /// Works, with something missing.
    Lack,
    /// Nothing can be captured.
    Fatal,
}

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What it costs, where something is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<String>,
    /// How to get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether anything can be captured.
    pub can_capture: bool,
    /// How bytes would be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<&'static str>,
    pub checks: Vec<Check>,
}

impl Check {
    fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Good, found: found.into(), costs: None, fix: None }
    }

    fn lack(name: impl Into<String>, found: impl Into<String>, costs: &str, fix: &str) -> Self {
        Self {
            costs: Some(costs.to_owned()),
            fix: Some(fix.to_owned()),
            level: Level::Lack,
            ..Self::good(name, found)
        }
    }

    fn fatal(name: impl Into<String>, found: impl Into<String>, fix: &str) -> Self {
        Self {
            costs: Some("nothing can be captured".to_owned()),
            fix: Some(fix.to_owned()),
            level: Level::Fatal,
            ..Self::good(name, found)
        }
    }
}

pub fn examine() -> Report {
    let mut checks = vec![kernel(), architecture(), btf(), jit(), lockdown()];
    if !discover::has_proc() {
        checks.push(Check::fatal(
            "/proc",
            "not mounted here",
            "mount it: processes cannot be told apart without it",
        ));
        return Report { can_capture: false, capture: None, checks };
    }
    checks.extend(capabilities());
    checks.extend([
        user_namespace(),
        pid_namespace(),
        place(),
        cgroups(),
        tracefs(),
        paranoid(),
        unprivileged(),
    ]);
    checks.extend(maps());
    let (probes, capture) = probes();
    checks.extend(probes);
    let can_capture = capture.is_some() && checks.iter().all(|check| check.level != Level::Fatal);
    let capture = capture.filter(|_| can_capture).map(Capture::name);
    Report { can_capture, capture, checks }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|char: char| !char.is_ascii_digit()).map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (0..=5, _) => Check::lack(
            "kernel",
            format!("Linux {release}"),
            "it is older than any that this was tried on: the probes below tell whether it will do",
            "Linux 6.1 or later",
        ),
        (6, 0..=2) => Check::lack(
            "kernel",
            format!("Linux {release}"),
            "bytes are seen at the end of every system call, which costs more",
            "Linux 6.3 or later has tracepoints in the socket calls",
        ),
        _ => Check::good("kernel", format!("Linux {release}")),
    }
}

fn architecture() -> Check {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    if machine == "x86_64" {
        Check::good("processor", machine)
    } else {
        Check::fatal("processor", machine, "only x86-64 is supported so far")
    }
}

fn btf() -> Check {
    const FIX: &str =
        "a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted: all large distributions have it";
    match layout::offsets() {
        Ok(offsets) => {
            let size = fs::metadata(layout::BTF).map_or(0, |file| file.len());
            Check::good(
                "BTF",
                format!("{} ({} KiB), all {} members found", layout::BTF, size >> 10, offsets.len()),
            )
        }
        Err(error) => Check::fatal("BTF", format!("{error:#}"), FIX),
    }
}

fn jit() -> Check {
    match read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => Check::lack(
            "BPF JIT",
            "off",
            "probes are interpreted, and cost several times as much",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Some(_) => Check::good("BPF JIT", "on"),
        // Not to be seen in a network namespace of a container; most kernels have no interpreter at all.
        None => Check::good("BPF JIT", "not to be seen from here"),
    }
}

fn lockdown() -> Check {
    let Some(text) = read("/sys/kernel/security/lockdown") else {
        return Check::good("lockdown", "none, or not to be seen from here");
    };
    let mode = text.split(['[', ']']).nth(1).unwrap_or(&text).to_owned();
    if mode == "confidentiality" {
        return Check::fatal(
            "lockdown",
            mode,
            "the kernel lets nobody read memory: boot with lockdown=integrity, or without",
        );
    }
    Check::good("lockdown", mode)
}

/// Capability, what goes without it, and how to get it.
fn capabilities() -> Vec<Check> {
    use privileges::{BPF, DAC_READ_SEARCH, PERFMON, SYS_ADMIN, SYS_PTRACE, has};
    const LOAD: &str = "run it as root (sudo), or give it CAP_BPF and CAP_PERFMON; in Kubernetes: privileged, or \
                        securityContext.capabilities.add";
    const READ: &str = "run it as root (sudo), or add the capability";
    let name = |capability: privileges::Capability| capability.name;
    let mut checks = Vec::new();
    for needed in [BPF, PERFMON] {
        checks.push(if has(needed) {
            Check::good(name(needed), "there")
        } else if has(SYS_ADMIN) {
            Check::good(name(needed), "not there, CAP_SYS_ADMIN stands in")
        } else {
            Check::fatal(name(needed), "missing", LOAD)
        });
    }
    let rest = [
        (
            SYS_PTRACE,
            "the files, sockets and service names of other users' processes cannot be read: their short name is \
             shown, and --exe and --port match fewer of them",
        ),
        (
            DAC_READ_SEARCH,
            "what other users' processes have open cannot be listed: --port matches fewer of them",
        ),
    ];
    checks.extend(rest.into_iter().map(|(wanted, costs)| {
        if has(wanted) {
            Check::good(name(wanted), "there")
        } else {
            Check::lack(name(wanted), "missing", costs, READ)
        }
    }));
    checks
}

fn user_namespace() -> Check {
    if privileges::is_in_own_user_namespace() {
        return Check::fatal(
            "user namespace",
            "one of its own: its capabilities do not count for probes",
            "run it outside, as root (rootless containers cannot load probes)",
        );
    }
    Check::good("user namespace", "the machine's")
}

fn pid_namespace() -> Check {
    if discover::sees_all_processes() {
        return Check::good("pid namespace", "the machine's");
    }
    Check::fatal(
        "pid namespace",
        "one of its own: the probes know processes by the machine's numbers",
        "hostPID: true in Kubernetes, --pid=host for docker and podman",
    )
}

fn place() -> Check {
    let marks = ["/.dockerenv", "/run/.containerenv"].into_iter().find(|path| Path::new(path).exists());
    let cgroup = read("/proc/self/cgroup").unwrap_or_default();
    let inside =
        ["docker", "kubepods", "containerd", "libpod", "crio"].iter().any(|word| cgroup.contains(word));
    match marks {
        Some(mark) => Check::good("runs in", format!("a container ({mark})")),
        None if inside => Check::good("runs in", "a container (by its cgroup)"),
        None => Check::good("runs in", "the host"),
    }
}

fn cgroups() -> Check {
    match (discover::mounted("cgroup2"), discover::mounted("cgroup")) {
        (Some(path), None) => Check::good("cgroups", format!("v2 at {}", path.display())),
        (Some(path), Some(_)) => Check::good("cgroups", format!("v1 and v2, v2 at {}", path.display())),
        (None, old) => Check::lack(
            "cgroups",
            if old.is_some() { "v1 alone" } else { "no tree is mounted" },
            "--cgroup does not work",
            "mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2",
        ),
    }
}

fn tracefs() -> Check {
    let found = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .find(|path| Path::new(path).join("events").is_dir());
    match found {
        Some(path) => Check::good("tracefs", path),
        // All probes there are so far attach without it.
        None => Check::good("tracefs", "not mounted, and not needed"),
    }
}

fn paranoid() -> Check {
    match read("/proc/sys/kernel/perf_event_paranoid") {
        Some(level) => Check::good("perf_event_paranoid", format!("{level}: no matter with CAP_PERFMON")),
        None => Check::good("perf_event_paranoid", "not to be seen from here"),
    }
}

fn unprivileged() -> Check {
    match read("/proc/sys/kernel/unprivileged_bpf_disabled") {
        Some(value) => Check::good("unprivileged_bpf_disabled", format!("{value}: no matter with CAP_BPF")),
        None => Check::good("unprivileged_bpf_disabled", "not to be seen from here"),
    }
}

/// Kinds of maps that the probes have.
fn maps() -> Vec<Check> {
    let kinds = [
        (MapType::RingBuf, "ring buffer"),
        (MapType::Hash, "hash"),
        (MapType::LruHash, "LRU hash"),
        (MapType::PerCpuArray, "per-CPU array"),
        (MapType::Array, "array"),
    ];
    kinds
        .into_iter()
        .map(|(kind, name)| {
            let name = format!("map: {name}");
            match is_map_supported(kind) {
                Ok(true) => Check::good(name, "made"),
                Ok(false) => Check::fatal(name, "not known to this kernel", "Linux 6.1 or later is needed"),
                Err(error) => Check::fatal(name, load::reason(error), "see what is fatal above"),
            }
        })
        .collect()
}

/// Every way to see bytes, and every other probe, loaded and attached for real; with nobody chosen.
fn probes() -> (Vec<Check>, Option<Capture>) {
    let mut checks = Vec::new();
    let mut best: Option<(Capture, Probes)> = None;
    for capture in Capture::ALL {
        let name = format!("capture: {capture}");
        let wanted =
            Wanted { ring: RING_MIN, capture: Some(capture), all: true, budget: true, ..Wanted::default() };
        match Probes::load(&wanted, &Selection::of_nobody()) {
            Ok((probes, _)) => {
                let worse = best.as_ref().map(|(best, _)| *best);
                let state = match worse {
                    None => "loaded and attached: this one is taken".to_owned(),
                    Some(best) => format!("loaded and attached; {best} is better"),
                };
                checks.push(Check::good(name, format!("{state} ({})", capture.told())));
                if best.is_none() {
                    best = Some((capture, probes));
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                let fix = if text.contains("no such tracepoint") {
                    "Linux 6.3 or later has it"
                } else {
                    "see what is fatal above"
                };
                checks.push(Check::lack(name, text, "another of the ways is needed", fix));
            }
        }
    }
    let Some((capture, probes)) = best else {
        for kind in ["Tracing", "RawTracePoint"] {
            checks.push(program_kind(kind));
        }
        checks.push(Check::fatal(
            "capture",
            "none of the ways to see bytes works",
            "see the reasons above; the first that is fatal explains most of the others",
        ));
        return (checks, None);
    };
    if let Some(lacks) = capture.lacks() {
        checks.push(Check::lack(
            "capture",
            capture.told(),
            lacks,
            "Linux 6.3 or later has tracepoints in the socket calls",
        ));
    }
    for follower in FOLLOWERS {
        let name = format!("probe: {}", follower.tracepoint);
        match probes.refused.iter().find(|refused| refused.tracepoint == follower.tracepoint) {
            None => checks.push(Check::good(name, "loaded and attached")),
            Some(refused) => {
                checks.push(Check::lack(name, &refused.reason, follower.without, "a kernel that has it"));
            }
        }
    }
    (checks, Some(capture))
}

fn program_kind(kind: &str) -> Check {
    let (program, has_types) = match kind {
        "Tracing" => (aya::programs::ProgramType::Tracing, Btf::from_sys_fs().is_ok()),
        _ => (aya::programs::ProgramType::RawTracePoint, true),
    };
    let name = format!("programs: {kind}");
    match is_program_supported(program) {
        Ok(true) => Check::good(name, "loaded"),
        Ok(false) if !has_types => Check::good(name, "not without BTF"),
        Ok(false) => Check::good(name, "not known to this kernel, or not allowed"),
        Err(error) => Check::good(name, load::reason(error)),
    }
}
