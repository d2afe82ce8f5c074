//! The probes: loaded one by one, attached, and taken away again. Nothing is pinned: when the
//! program ends, in whatever way, the kernel drops them with its file descriptors.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Btf, BtfError, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{Program, ProgramError, ProgramInfo},
};
use tracer_common::{
    config::{Counter, Met, NAME_SIZE, Rules, Selected, Shed, condition},
    connection::{self, ConnectionState, ignored},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    layout, privileges,
    probes::{self, Capture, FOLLOWERS, Follower, Refused},
    select::{Compared, Selection},
};
use crate::{
    pipeline::{Hush, Quiet},
    protocol::{Framing, PROTOCOLS},
    stats::Bucket,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer-ebpf"));

/// The smallest ring that holds a record of the largest class.
pub const RING_MIN: u32 = 64 << 10;
pub const RING_DEFAULT: u32 = 8 << 20;

pub struct Probes {
    /// How bytes are seen.
    pub capture: Capture,
    /// What the kernel did not take.
    pub refused: Vec<Refused>,
    ebpf: Ebpf,
    selected: HashMap<MapData, u32, Chosen>,
    rules: Array<MapData, Ruled>,
    shed: Array<MapData, Shedding>,
    undecided: HashMap<MapData, u32, [u64; 2]>,
    connections: HashMap<MapData, u64, Kept>,
    counters: PerCpuArray<MapData, u64>,
    quiet: HashMap<MapData, u64, Hushed>,
    sizes: Sizes,
}

/// Bytes of the ring, and entries that tables have room for.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    ring: u32,
    selected: u32,
    undecided: u32,
    connections: u32,
    quiet: u32,
    cgroups: u32,
}

/// Connections that have a name of ours, where the kernel gives none.
const IDENTITIES: u32 = 131_072;

/// An entry that is gone stays gone (include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

/// [`ConnectionState`] as bytes.
type Kept = [u8; size_of::<ConnectionState>()];

/// [`Selected`], [`Rules`] and [`Shed`] as bytes.
type Chosen = [u8; size_of::<Selected>()];
type Ruled = [u8; size_of::<Rules>()];
type Shedding = [u8; size_of::<Shed>()];

/// [`connection::Quiet`] as bytes.
type Hushed = [u8; size_of::<connection::Quiet>()];

/// What is to be loaded.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Size of the ring: a power of two.
    pub ring: u32,
    /// Connections that the probes keep.
    pub connections: Option<u32>,
    /// The best that the kernel has, if it is not named.
    pub capture: Option<Capture>,
    /// Tracepoints that are dealt with as if the kernel refused them, for tests.
    pub refuse: Vec<String>,
    /// Also those that the selection does not ask for, and may ask for later.
    pub all: bool,
    /// Whether the probes time themselves, and can be told to do less.
    pub budget: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            ring: RING_DEFAULT,
            connections: None,
            capture: None,
            refuse: Vec::new(),
            all: false,
            budget: false,
        }
    }
}

impl Probes {
    /// Loads and attaches everything. In a thread of its own: the kernel's type information takes many small
    /// allocations for a moment, and what a thread has freed goes back to the system with it.
    pub fn load(wanted: &Wanted, selection: &Selection) -> Result<(Self, RingBuf<MapData>)> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| Self::load_best(wanted, selection));
            thread.join().unwrap_or_else(|_| bail!("the thread that loads the probes failed"))
        })
    }

    /// The ways to see bytes are tried, the best first.
    fn load_best(wanted: &Wanted, selection: &Selection) -> Result<(Self, RingBuf<MapData>)> {
        let offsets = layout::offsets()?;
        let btf = Btf::from_sys_fs().context("the kernel's type information cannot be read")?;
        let all = match &wanted.capture {
            Some(capture) => std::slice::from_ref(capture),
            None => &Capture::ALL[..],
        };
        let mut reasons = Vec::new();
        for capture in all {
            match Self::load_as(*capture, wanted, selection, &offsets, &btf) {
                Ok((mut probes, ring)) => {
                    probes.refused.splice(..0, reasons);
                    return Ok((probes, ring));
                }
                Err(NoCapture::Refused(refused)) => reasons.push(refused),
                Err(NoCapture::Other(error)) => return Err(sentence(error)),
            }
        }
        let missing = privileges::missing_to_load();
        if !missing.is_empty() {
            return Err(denied(&missing));
        }
        let told: Vec<String> = all
            .iter()
            .zip(&reasons)
            .map(|(capture, refused)| format!("{capture}: {}: {}", refused.tracepoint, refused.reason))
            .collect();
        bail!("bytes cannot be seen on this kernel: {}", told.join("; "))
    }

    fn load_as(
        capture: Capture,
        wanted: &Wanted,
        selection: &Selection,
        offsets: &[(&'static str, u32)],
        btf: &Btf,
    ) -> Result<(Self, RingBuf<MapData>), NoCapture> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("RECORDS", wanted.ring);
        if let Some(connections) = wanted.connections {
            loader.map_max_entries("CONNECTIONS", connections);
        }
        for (name, offset) in offsets {
            loader.override_global(name, offset, true);
        }
        let rules = selection.rules();
        let (by_agent, own, by_address, has_budget, ring) = (
            u32::from(wanted.all || rules.by_agent != Met::default()),
            std::process::id(),
            u32::from(capture.knows_by_address()),
            u32::from(wanted.budget),
            wanted.ring,
        );
        loader.override_global("DECIDED_BY_AGENT", &by_agent, true);
        loader.override_global("OWN_PROCESS", &own, true);
        loader.override_global("BY_ADDRESS", &by_address, true);
        loader.override_global("HAS_BUDGET", &has_budget, true);
        loader.override_global("RING_SIZE", &ring, true);
        let framing = PROTOCOLS.iter().find_map(|protocol| protocol.framing()).map(framing_constants);
        for (name, value) in framing.iter().flatten() {
            loader.override_global(name, value, true);
        }
        if capture.knows_by_address() {
            loader.map_max_entries("IDENTITIES", IDENTITIES);
        }
        let mut ebpf = loader.load(OBJECT).map_err(anyhow::Error::new)?;
        let sizes = Sizes {
            ring: wanted.ring,
            selected: room(&ebpf, "SELECTED")?,
            undecided: room(&ebpf, "UNDECIDED")?,
            connections: room(&ebpf, "CONNECTIONS")?,
            quiet: room(&ebpf, "QUIET")?,
            cgroups: room(&ebpf, "CGROUPS")?,
        };
        let map = |ebpf: &mut Ebpf, name: &str| {
            ebpf.take_map(name).ok_or_else(|| anyhow!("the probes have no map {name}"))
        };
        let records = RingBuf::try_from(map(&mut ebpf, "RECORDS")?).map_err(anyhow::Error::new)?;
        let mut probes = Self {
            capture,
            refused: Vec::new(),
            selected: typed(map(&mut ebpf, "SELECTED")?)?,
            rules: Array::try_from(map(&mut ebpf, "RULES")?).map_err(anyhow::Error::new)?,
            shed: Array::try_from(map(&mut ebpf, "SHED")?).map_err(anyhow::Error::new)?,
            undecided: typed(map(&mut ebpf, "UNDECIDED")?)?,
            connections: typed(map(&mut ebpf, "CONNECTIONS")?)?,
            counters: PerCpuArray::try_from(map(&mut ebpf, "COUNTERS")?).map_err(anyhow::Error::new)?,
            quiet: typed(map(&mut ebpf, "QUIET")?)?,
            sizes,
            ebpf,
        };
        // Before anything is attached: no process is missed.
        probes.set_rules(selection)?;
        for tracepoint in capture.tracepoints() {
            probes
                .attach(tracepoint, wanted, btf)
                .map_err(|reason| NoCapture::Refused(Refused { tracepoint, reason, without: "" }))?;
        }
        // Then those that choose: who is chosen is seen from the start.
        for Follower { tracepoint, without, only_for } in FOLLOWERS {
            if only_for.is_some_and(|kind| !rules.uses(kind)) && !wanted.all {
                continue;
            }
            if let Err(reason) = probes.attach(tracepoint, wanted, btf) {
                probes.refused.push(Refused { tracepoint, reason, without });
            }
        }
        let is_refused = |name: &str| probes.refused.iter().any(|refused| refused.tracepoint == name);
        if capture.knows_by_address() && is_refused("tcp_destroy_sock") && is_refused("inet_sock_set_state") {
            let reason = "neither the end nor the start of a connection is seen, so that two at the same place \
                          cannot be told apart";
            let (tracepoint, reason) = (capture.tracepoints()[0], reason.to_owned());
            return Err(NoCapture::Refused(Refused { tracepoint, reason, without: "" }));
        }
        Ok((probes, records))
    }

    /// What the kernel refused, and how bytes are seen if not in the best way: lines for people.
    pub fn shortcomings(&self) -> impl Iterator<Item = String> {
        let capture = self.capture;
        let lacks = capture.lacks().map(|lacks| format!("capture: {capture} ({}): {lacks}", capture.told()));
        self.refused.iter().map(Refused::to_string).chain(lacks)
    }

    /// One probe; why not, if not.
    fn attach(&mut self, tracepoint: &str, wanted: &Wanted, btf: &Btf) -> Result<(), String> {
        if wanted.refuse.iter().any(|name| name == tracepoint) {
            return Err("refused by the command line".to_owned());
        }
        let name = probes::program(tracepoint, self.capture.is_raw());
        let program = self.ebpf.program_mut(&name).ok_or("the probes have no such program")?;
        attach(program, tracepoint, btf).map_err(|error| explain(&name, error))
    }

    /// Tells the probes whom to choose. Those that are chosen already stay so until they are looked at again.
    pub fn set_rules(&mut self, selection: &Selection) -> Result<()> {
        let Compared { names, files, ports, cgroups } = selection.compared();
        fill(&mut self.ebpf, "NAMES", names)?;
        fill(&mut self.ebpf, "EXECUTABLES", files)?;
        fill(&mut self.ebpf, "PORTS", ports)?;
        self.set_cgroups(cgroups)?;
        let rules = selection.rules();
        let bytes = <Ruled>::try_from(rules.as_bytes()).context("rules have another size")?;
        self.rules.set(0, bytes, 0).context("the probes do not take the rules")
    }

    /// The cgroups that rules ask for.
    pub fn set_cgroups(&mut self, cgroups: BTreeMap<u64, u32>) -> Result<()> {
        fill(&mut self.ebpf, "CGROUPS", cgroups)
    }

    /// Tells the probes what to leave out.
    pub fn shed(&mut self, shed: &Shed) -> Result<()> {
        let bytes = <Shedding>::try_from(shed.as_bytes()).context("what is left out has another size")?;
        self.shed.set(0, bytes, 0).context("the probes cannot be told to do less")
    }

    /// What a process meets of the selection, as the probes know it, and the rules by which it is chosen.
    pub fn selected(&self, process: u32) -> Selected {
        let known = self.selected.get(&process, 0).ok();
        known.and_then(|bytes| Selected::read_from_bytes(&bytes).ok()).unwrap_or_default()
    }

    pub fn select(&mut self, process: u32, selected: Selected) -> Result<()> {
        if selected == Selected::default() {
            self.deselect(process);
            return Ok(());
        }
        let bytes = <Chosen>::try_from(selected.as_bytes()).context("a choice has another size")?;
        self.selected.insert(process, bytes, 0).context("the selection is full")
    }

    pub fn selects_nobody(&self) -> bool {
        let known = self.selected.iter().flatten();
        !known.filter_map(|(_, bytes)| Selected::read_from_bytes(&bytes).ok()).any(|known| known.chosen != 0)
    }

    /// How long each probe ran, and how often, where the kernel counts that.
    pub fn run_times(&self) -> Vec<(String, Duration, u64)> {
        let programs = self.ebpf.programs();
        programs
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some((name.to_owned(), info.run_time(), info.run_count()))
            })
            .collect()
    }

    /// The connections that the probes know, if their table has room: else some had to go that are open.
    pub fn open(&self) -> Option<BTreeSet<u64>> {
        let open: BTreeSet<u64> = self.connections.keys().flatten().collect();
        (open.len() < self.sizes.connections as usize / 4 * 3).then_some(open)
    }

    pub fn knows_connection(&self, cookie: u64) -> bool {
        self.connections.get(&cookie, 0).is_ok()
    }

    /// How full the tables of the probes are: entries, and the most.
    pub fn tables(&self) -> [(&'static str, u64, u64); 5] {
        let cgroups = self.ebpf.map("CGROUPS").and_then(|map| HashMap::<_, u64, u32>::try_from(map).ok());
        [
            ("cgroups", cgroups.map_or(0, |map| map.keys().count() as u64), self.sizes.cgroups.into()),
            ("processes", self.selected.keys().count() as u64, self.sizes.selected.into()),
            ("undecided processes", self.undecided.keys().count() as u64, self.sizes.undecided.into()),
            ("connections", self.connections.keys().count() as u64, self.sizes.connections.into()),
            ("quiet connections", self.quiet.keys().count() as u64, self.sizes.quiet.into()),
        ]
    }

    /// Bytes of the ring.
    pub fn ring(&self) -> u32 {
        self.sizes.ring
    }

    /// All processes that the probes know something of.
    pub fn known(&self) -> Vec<u32> {
        self.selected.keys().flatten().collect()
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
            Hush::Content { until, frames } => {
                let quiet = connection::Quiet { until: *until, frames: u32::from(*frames), padding: 0 };
                if let Ok(quiet) = <Hushed>::try_from(quiet.as_bytes()) {
                    let _ = self.quiet.insert(cookie, quiet, 0);
                }
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
        let known = self.selected.iter().flatten();
        known
            .filter_map(|(_, bytes)| Selected::read_from_bytes(&bytes).ok())
            .any(|known| known.met[condition::PID] != 0)
    }

    pub fn counters(&self) -> Result<[u64; Counter::COUNT as usize]> {
        let mut totals = [0; Counter::COUNT as usize];
        for (index, total) in totals.iter_mut().enumerate() {
            *total = self.counters.get(&(index as u32), 0)?.iter().sum();
        }
        Ok(totals)
    }

    /// Records that the ring had no room for.
    pub fn lost(&self) -> u64 {
        self.counters.get(&(Counter::LostRecords as u32), 0).map_or(0, |counts| counts.iter().sum())
    }

    /// Takes the probes away; maps stay readable.
    pub fn detach(&mut self) {
        for (_, program) in self.ebpf.programs_mut() {
            // Dropping the link detaches it, and unloading drops all links.
            let _ = match program {
                Program::BtfTracePoint(program) => program.unload(),
                Program::RawTracePoint(program) => program.unload(),
                _ => Ok(()),
            };
        }
    }
}

/// Why there is no capture in one of the ways.
enum NoCapture {
    /// The kernel does not take it; it may take another.
    Refused(Refused),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for NoCapture {
    fn from(error: anyhow::Error) -> Self {
        NoCapture::Other(error)
    }
}

/// Loads a probe and attaches it to its tracepoint.
fn attach(program: &mut Program, tracepoint: &str, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => {
            program.load(tracepoint, btf)?;
            verified(tracepoint, program.info());
            program.attach().map(drop)
        }
        Program::RawTracePoint(program) => {
            program.load()?;
            verified(tracepoint, program.info());
            program.attach(tracepoint).map(drop)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn verified(tracepoint: &str, info: Result<ProgramInfo, ProgramError>) {
    if let Some(count) = info.ok().and_then(|info| info.verified_instruction_count()) {
        tracing::debug!("{tracepoint}: {count} instructions were verified");
    }
}

fn typed<K: aya::Pod, V: aya::Pod>(map: aya::maps::Map) -> Result<HashMap<MapData, K, V>> {
    Ok(HashMap::try_from(map)?)
}

/// Makes these the values of a map, and no others.
fn fill<K: aya::Pod + Ord>(ebpf: &mut Ebpf, name: &str, values: BTreeMap<K, u32>) -> Result<()> {
    let map = ebpf.map_mut(name).ok_or_else(|| anyhow!("the probes have no map {name}"))?;
    let mut map: HashMap<&mut MapData, K, u32> = HashMap::try_from(map)?;
    let gone: Vec<K> = map.keys().flatten().filter(|key| !values.contains_key(key)).collect();
    for key in gone {
        let _ = map.remove(&key);
    }
    for (key, rules) in values {
        map.insert(key, rules, 0).context("the selection has too many values")?;
    }
    Ok(())
}

/// Entries that a table has room for.
fn room(ebpf: &Ebpf, name: &str) -> Result<u32, anyhow::Error> {
    let data = match ebpf.map(name) {
        Some(Map::HashMap(data) | Map::LruHashMap(data)) => data,
        _ => bail!("the probes have no table {name}"),
    };
    Ok(data.info()?.max_entries())
}

/// A name as the probes look it up.
pub fn name_key(name: &str) -> Option<[u8; NAME_SIZE]> {
    let mut key = [0; NAME_SIZE];
    // The last byte is always zero.
    key[..NAME_SIZE - 1].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(key)
}

/// The reason in one line; the end of the verifier's log for those who ask.
fn explain(name: &str, error: ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            tracing::debug!("{name}: {}", lines[lines.len().saturating_sub(20)..].join("\n"));
            if is_denied(&io_error) {
                return format!("the kernel does not allow it ({io_error})");
            }
            format!("the kernel refuses it: {io_error} (TRACER_LOG=debug shows the verifier's last lines)")
        }
        ProgramError::Btf(BtfError::UnknownBtfTypeName { .. }) => {
            "this kernel has no such tracepoint".to_owned()
        }
        other => reason(other),
    }
}

/// What the last cause of an error says.
pub fn reason(error: impl Into<anyhow::Error>) -> String {
    error.into().root_cause().to_string()
}

fn is_denied(error: &std::io::Error) -> bool {
    // EPERM: EACCES is a word of the verifier's.
    error.raw_os_error() == Some(1)
}

/// What to do about the commonest reason.
fn sentence(error: anyhow::Error) -> anyhow::Error {
    let is_denied = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(is_denied);
    if is_denied {
        let missing = privileges::missing_to_load();
        if missing.is_empty() {
            return match privileges::is_in_own_user_namespace() {
                true => anyhow!(
                    "this is a user namespace of its own, whose capabilities do not count for probes: run it \
                     outside, as root"
                ),
                false => anyhow!("the kernel does not let probes be loaded: {}", error.root_cause()),
            };
        }
        return denied(&missing);
    }
    if error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.raw_os_error() == Some(24))
    {
        return anyhow!("too few files may be open for the probes: raise the limit (ulimit -n 1024)");
    }
    error
}

fn denied(missing: &[&str]) -> anyhow::Error {
    anyhow!("probes need root, or {}: run it with sudo (`tracer doctor` says more)", missing.join(" and "))
}

/// A layout of frames, as the constants that the probes have for it.
fn framing_constants(framing: Framing) -> [(&'static str, u32); 11] {
    let word = |at: usize| {
        let prefix = &framing.prefix;
        u32::from_ne_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]])
    };
    [
        ("FRAMING_PREFIX_0", word(0)),
        ("FRAMING_PREFIX_1", word(4)),
        ("FRAMING_PREFIX_2", word(8)),
        ("FRAMING_PREFIX_3", word(12)),
        ("FRAMING_PREFIX_LENGTH", framing.prefix_length),
        ("FRAMING_HEADER", framing.header),
        ("FRAMING_LENGTH_AT", framing.length_at),
        ("FRAMING_LENGTH_SIZE", framing.length_size),
        ("FRAMING_KIND_AT", framing.kind_at),
        ("FRAMING_KINDS", framing.kinds),
        ("FRAMING_CONTENT", framing.content),
    ]
}
