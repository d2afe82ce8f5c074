//! The probes: loaded one by one, attached, and taken away again. Nothing is pinned: when the
//! program ends, in whatever way, the kernel drops them with its file descriptors.

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use tracer_common::{
    config::{Counter, NAME_SIZE, selected},
    connection::{self, ConnectionState, ignored},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{layout, select::Selection};
use crate::{
    pipeline::{Hush, Quiet},
    stats::Bucket,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer-ebpf"));

/// All are named after the kernel's tracepoint that they are attached to. In this order: who is
/// chosen is followed before anyone is.
const PROGRAMS: [&str; 9] = [
    "sched_process_exit",
    "sched_process_fork",
    "sched_process_exec",
    CGROUP_PROGRAM,
    "tcp_destroy_sock",
    "tcp_receive_reset",
    "inet_sock_set_state",
    "sock_send_length",
    "sock_recv_length",
];

/// Only where cgroups are chosen.
const CGROUP_PROGRAM: &str = "cgroup_attach_task";

/// The smallest ring that holds a record of the largest class.
pub const RING_MIN: u32 = 64 << 10;
pub const RING_DEFAULT: u32 = 8 << 20;

pub struct Probes {
    ebpf: Ebpf,
    selected: HashMap<MapData, u32, u32>,
    undecided: HashMap<MapData, u32, [u64; 2]>,
    connections: HashMap<MapData, u64, Kept>,
    counters: PerCpuArray<MapData, u64>,
    quiet: HashMap<MapData, u64, connection::Quiet>,
}

/// An entry that is gone stays gone (include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

/// [`ConnectionState`] as bytes.
type Kept = [u8; size_of::<ConnectionState>()];

impl Probes {
    /// Loads and attaches everything. `ring` is a power of two. In a thread of its own: the kernel's type
    /// information takes many small allocations for a moment, and what a thread has freed goes back to
    /// the system with it.
    pub fn load(ring: u32, selection: &Selection) -> Result<(Self, RingBuf<MapData>)> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| Self::load_all(ring, selection));
            thread.join().unwrap_or_else(|_| bail!("the thread that loads the probes failed"))
        })
    }

    fn load_all(ring: u32, selection: &Selection) -> Result<(Self, RingBuf<MapData>)> {
        let offsets = layout::offsets()?;
        let btf = Btf::from_sys_fs().context("the kernel's type information cannot be read")?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("RECORDS", ring);
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let (required, by_agent, own) =
            (selection.required(), selection.decided_by_agent(), std::process::id());
        loader.override_global("REQUIRED", &required, true);
        loader.override_global("DECIDED_BY_AGENT", &by_agent, true);
        loader.override_global("OWN_PROCESS", &own, true);
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused(error.into()))?;
        let map = |ebpf: &mut Ebpf, name: &str| {
            ebpf.take_map(name).ok_or_else(|| anyhow!("the probes have no map {name}"))
        };
        let selected = HashMap::try_from(map(&mut ebpf, "SELECTED")?)?;
        let undecided = HashMap::try_from(map(&mut ebpf, "UNDECIDED")?)?;
        let connections = HashMap::try_from(map(&mut ebpf, "CONNECTIONS")?)?;
        let counters = PerCpuArray::try_from(map(&mut ebpf, "COUNTERS")?)?;
        let quiet = HashMap::try_from(map(&mut ebpf, "QUIET")?)?;
        let records = RingBuf::try_from(map(&mut ebpf, "RECORDS")?)?;
        // Before anything is attached: no process is missed.
        fill(&mut ebpf, "NAMES", selection.names())?;
        fill(&mut ebpf, "EXECUTABLES", selection.files().iter().copied())?;
        fill(&mut ebpf, "PORTS", selection.ports().iter().copied())?;
        fill(&mut ebpf, "CGROUPS", selection.cgroup_ids())?;
        for name in PROGRAMS {
            if name == CGROUP_PROGRAM && required & selected::CGROUP == 0 {
                continue;
            }
            let program: &mut BtfTracePoint = ebpf
                .program_mut(name)
                .ok_or_else(|| anyhow!("the probes have no program {name}"))?
                .try_into()?;
            program.load(name, &btf).map_err(|error| refused(explain(name, error)))?;
            if let Ok(Some(count)) = program.info().map(|info| info.verified_instruction_count()) {
                tracing::debug!("{name}: {count} instructions were verified");
            }
            program.attach().with_context(|| format!("the probe {name} cannot be attached"))?;
        }
        Ok((Self { ebpf, selected, undecided, connections, counters, quiet }, records))
    }

    /// What a process meets of the selection, as the probes know it.
    pub fn met(&self, process: u32) -> u32 {
        self.selected.get(&process, 0).unwrap_or(0)
    }

    pub fn select(&mut self, process: u32, met: u32) -> Result<()> {
        self.selected.insert(process, met, 0).context("the selection is full")
    }

    /// The agent has looked at the process. Returns what it moved until then.
    pub fn decided(&mut self, process: u32) -> [u64; 2] {
        let before = self.undecided.get(&process, 0).unwrap_or_default();
        let _ = self.undecided.remove(&process);
        before
    }

    /// The connection is over, and no probe saw that.
    pub fn forget(&mut self, cookie: u64) {
        let _ = self.connections.remove(&cookie);
        let _ = self.quiet.remove(&cookie);
    }

    pub fn deselect(&mut self, process: u32) {
        let _ = self.selected.remove(&process);
    }

    /// Tells the probes what they need not copy. What fails is a saving.
    pub fn quiet(&mut self, quiet: &Quiet) {
        let Quiet { cookie, hush } = quiet;
        match hush {
            Hush::Until(until) => {
                let _ = self.quiet.insert(cookie, until, 0);
            }
            Hush::All(bucket) => {
                // The probes may write the other fields at the same time: of a connection that is ignored
                // nobody needs them.
                let Ok(kept) = self.connections.get(cookie, 0) else { return };
                let Ok(mut state) = ConnectionState::read_from_bytes(&kept) else { return };
                state.ignored = match bucket {
                    Bucket::Unknown => ignored::UNKNOWN,
                    Bucket::Encrypted => ignored::ENCRYPTED,
                    _ => ignored::OTHER,
                };
                if let Ok(kept) = <Kept>::try_from(state.as_bytes()) {
                    let _ = self.connections.insert(cookie, kept, BPF_EXIST);
                }
            }
        }
    }

    /// Whether a process is left that was named by its id, or a child of one.
    pub fn selects_by_id(&self) -> bool {
        self.selected.iter().flatten().any(|(_, met)| met & selected::PID != 0)
    }

    pub fn counters(&self) -> Result<[u64; Counter::COUNT as usize]> {
        let mut totals = [0; Counter::COUNT as usize];
        for (index, total) in totals.iter_mut().enumerate() {
            *total = self.counters.get(&(index as u32), 0)?.iter().sum();
        }
        Ok(totals)
    }

    /// Takes the probes away; maps stay readable.
    pub fn detach(&mut self) {
        for name in PROGRAMS {
            if let Some(program) = self.ebpf.program_mut(name)
                && let Ok(program) = <&mut BtfTracePoint>::try_from(program)
            {
                // Dropping the link detaches it, and unloading drops all links.
                let _ = program.unload();
            }
        }
    }
}

fn fill<K: aya::Pod>(ebpf: &mut Ebpf, name: &str, keys: impl IntoIterator<Item = K>) -> Result<()> {
    let map = ebpf.map_mut(name).ok_or_else(|| anyhow!("the probes have no map {name}"))?;
    let mut map: HashMap<&mut MapData, K, u8> = HashMap::try_from(map)?;
    for key in keys {
        map.insert(key, 1, 0).context("the selection has too many values")?;
    }
    Ok(())
}

/// A name as the probes look it up.
pub fn name_key(name: &str) -> Option<[u8; NAME_SIZE]> {
    let mut key = [0; NAME_SIZE];
    // The last byte is always zero.
    key[..NAME_SIZE - 1].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(key)
}

/// The reason in one line; the end of the verifier's log for those who ask.
fn explain(name: &str, error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            tracing::debug!("{name}: {}", lines[lines.len().saturating_sub(20)..].join("\n"));
            let what = format!("the kernel refuses the probe {name} (TRACER_LOG=debug says more)");
            anyhow::Error::new(io_error).context(what)
        }
        other => anyhow::Error::new(other).context(format!(
            "this kernel has no tracepoint {name} for a probe (Linux 6.3 or later is needed)"
        )),
    }
}

/// What to do about the commonest reason.
fn refused(error: anyhow::Error) -> anyhow::Error {
    const EPERM: i32 = 1;
    let denied = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.raw_os_error() == Some(EPERM));
    if denied || !rustix::process::geteuid().is_root() {
        anyhow!(
            "probes need root (or CAP_BPF and CAP_PERFMON, and CAP_SYS_PTRACE for names): run it with sudo"
        )
    } else {
        error
    }
}
