//! What `trace` and `record` share: choosing processes, and running a capture to its end.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};
use tracer_agent::tell;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracer_agent::{
    export::text,
    live::{
        discover,
        gate::{Gate, User},
        load::{Probes, RING_DEFAULT, RING_MIN, Wanted},
        outputs::{Outputs, Recording},
        print::{Format, Printer, Shape, Target},
        privileges,
        probes::Capture,
        send::Sender,
        session::{Finished, Session, Turn},
    },
    pipeline::Limits,
    protocol::Shown,
    summary::{Summary, edges::Edges},
};

use super::{
    Exit, Failure, OrExit,
    choice::{Choice, FilterArguments, SelectionArguments, StitchingArguments},
    otlp::OtlpArguments,
    parse_duration, parse_size,
};

/// After a signal everything is written and sent within this time.
const FLUSH: Duration = Duration::from_millis(4500);

/// How long the helper may take to come to the gate.
const THERE: Duration = Duration::from_secs(2);

/// How long a command may take to end that is told to.
const STOP: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(crate) struct Bounds {
    /// Ends after this time (500ms, 30s, 5m), and with it a command that it started
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, help_heading = "Bounds")]
    pub(crate) time: Option<Duration>,

    /// Ends after so many spans (that match), and with it a command that it started
    #[arg(long, value_name = "N", help_heading = "Bounds")]
    pub(crate) count: Option<u64>,

    /// Ends with status 4 if anything was lost: records, bytes, lines, or spans on their way to a receiver
    #[arg(long, help_heading = "Bounds")]
    pub(crate) strict: bool,

    /// Size of the buffer between kernel and tracer; a power of two from 64KiB on
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Bounds")]
    pub(crate) ring: Option<u64>,

    /// Memory for connections and the bytes they hold; past it the oldest go, counted
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Bounds")]
    pub(crate) memory: Option<u64>,

    /// How bytes are seen; the best that the kernel has, if not named
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Bounds")]
    pub(crate) capture: Option<Capture>,

    /// A probe that is dealt with as if the kernel refused it: for tests
    #[arg(long, hide = true, value_name = "TRACEPOINT")]
    pub(crate) refuse: Vec<String>,

    /// The probes copy what nobody needs too: for the benchmark, to show what it saves not to
    #[arg(long, hide = true)]
    pub(crate) copy_all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Output {
    /// How spans are printed on standard output
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    pub(crate) output: Format,

    /// Prints the spans into a file instead
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output_file: Option<PathBuf>,

    /// Prints lines that are alike, one after the other, once and then how many more there were (text alone)
    #[arg(long, help_heading = "Output")]
    pub(crate) fold: bool,

    /// Prints whole traces as trees, each when its root is over: who called whom, how long each took, how long by
    /// itself, and when (text alone). A filter then chooses traces: those with a span that it matches
    #[arg(long, conflicts_with = "fold", help_heading = "Output")]
    pub(crate) tree: bool,

    /// A table of who called whom at the end, on standard error: how often, how often in vain, how long
    #[arg(long, help_heading = "Output")]
    pub(crate) edges: bool,

    /// Without the table at the end of text output: per service and route how many, how many errors, how long
    #[arg(long, help_heading = "Output")]
    pub(crate) no_summary: bool,

    /// Puts also the text that servers of gRPC send with a status (grpc-message) into JSON and OTLP: it can hold
    /// secrets
    #[arg(long, help_heading = "Output")]
    pub(crate) grpc_message: bool,

    #[command(flatten)]
    pub(crate) stitching: StitchingArguments,

    #[command(flatten)]
    pub(crate) otlp: OtlpArguments,
}

impl Output {
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        Target::open(self.output, self.output_file.as_deref()).or_exit(Exit::Usage)
    }

    pub(crate) fn printer(&self, target: Target) -> Result<Printer, Failure> {
        if self.tree && self.output != Format::Text {
            let error = anyhow!("--tree lays out text: leave --output out, or --tree");
            return Err(Failure::new(Exit::Usage, error));
        }
        let shape = match () {
            () if self.tree => Shape::Trees,
            () if self.fold => Shape::Folded,
            () => Shape::Lines,
        };
        Ok(Printer::start(target, shape)?)
    }

    /// What was asked for of what stays out of spans otherwise.
    pub(crate) fn shown(&self) -> Shown {
        Shown {
            grpc_message: self.grpc_message,
            correlation: self.stitching.correlation(),
            ..Shown::default()
        }
    }

    /// For people alone.
    pub(crate) fn summary(&self) -> Option<Summary> {
        (self.output == Format::Text && !self.no_summary).then(Summary::default)
    }

    pub(crate) fn edges(&self) -> Option<Edges> {
        self.edges.then(Edges::default)
    }
}

/// Captures until something ends it, and says on standard error what was seen.
pub(crate) fn run(
    chosen: &SelectionArguments,
    filter: &FilterArguments,
    bounds: &Bounds,
    output: &Output,
    recording: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let Choice { selection, watcher, told: pods } = chosen.choice()?;
    for pid in selection.pids() {
        check_process(pid)?;
    }
    let later = selection.may_match_later();
    let told = selection.to_string();
    check_place()?;
    let wanted = Wanted {
        ring: ring_size(bounds.ring)?,
        connections: None,
        capture: bounds.capture,
        refuse: bounds.refuse.clone(),
        all: false,
        budget: false,
    };
    let limits = Limits {
        memory: bounds
            .memory
            .map_or(Limits::default().memory, |memory| memory.try_into().unwrap_or(usize::MAX)),
        parents: output.stitching.parents.into(),
        shown: output.shown(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    runtime.block_on(async {
        // Before the probes are attached: from here on nothing ends the program without a flush.
        let mut signals = Signals::new()?;
        let endpoint = output.otlp.endpoint()?;
        // Whoever is not chosen yet waits; started now, it keeps the privileges that it came with.
        let mut command = match &chosen.command[..] {
            [] => None,
            words => Some(Gate::start(words, User::of_sudo())?),
        };
        let probes = Probes::load(&wanted, &selection)?;
        tell_how(&probes.0);
        // Files are written when nothing stands against it any more.
        let target = output.target()?;
        let recording_to = recording.as_deref().map(Recording::create).transpose().or_exit(Exit::Usage)?;
        if let Some(gate) = &command {
            gate.wait_until_there(THERE);
        }
        tell_if_kept(privileges::drop_most(command.is_some()));
        let outputs = Outputs {
            printer: output.printer(target)?,
            senders: endpoint.map(|endpoint| Sender::start(&endpoint)).transpose()?.into_iter().collect(),
            observer: None,
            recording: recording_to,
            filter: filter.filter(),
            filtered: 0,
            summary: output.summary(),
            edges: output.edges(),
        };
        let mut session = Session::start(probes, selection, limits, outputs)?;
        if let Some(watcher) = watcher {
            session.set_watcher(watcher, pods)?;
        }
        session.count = bounds.count;
        session.copy_all = bounds.copy_all;
        match &mut command {
            Some(gate) => open(gate, chosen, &mut session)?,
            None => scan(&told, later, &mut session)?,
        }
        let ended = watch(&mut session, &mut signals, &mut command, bounds.time).await?;
        let mut finished = session.finish(FLUSH)?;
        report(&mut finished);
        let failed = ended.is_some_and(|status| !status.success());
        if finished.chosen == 0 && !told.is_empty() && !failed {
            let error = anyhow!("no process matched {told}: `tracer list {told}` shows what nearly does");
            return Err(Failure::new(Exit::Usage, error));
        }
        if let Some(path) = recording {
            tell!("capture: {} (it holds raw bytes of the traced processes)", path.display());
        }
        Ok(exit(&finished, ended, bounds.strict))
    })
}

/// That it is a process, and another one.
pub(crate) fn check_process(pid: u32) -> Result<(), Failure> {
    let error = if let Some(process) = discover::process_of_thread(pid).filter(|process| *process != pid) {
        anyhow!("{pid} is a thread of the process {process}: name that one")
    } else if !discover::has_proc() {
        anyhow!("/proc is not mounted here: no process can be found without it")
    } else if !discover::exists(pid) {
        anyhow!("there is no process {pid} (or it has ended, or /proc hides it)")
    } else if discover::Seen::of(pid).is_none() {
        anyhow!("{pid} is a thread of the kernel: it has no sockets of its own")
    } else if pid == std::process::id() {
        anyhow!("the tracer does not trace itself")
    } else {
        return Ok(());
    };
    Err(Failure::new(Exit::Usage, error))
}

/// That the numbers of processes are those that the probes know.
pub(crate) fn check_place() -> Result<(), Failure> {
    if discover::sees_all_processes() {
        return Ok(());
    }
    if !discover::has_proc() {
        let error = anyhow!("/proc is not mounted here: processes cannot be told apart without it");
        return Err(Failure::new(Exit::CannotCapture, error));
    }
    let error = anyhow!(
        "this is a pid namespace of its own, whose process ids the probes do not know: \
         run the tracer in that of the host (hostPID, --pid=host)"
    );
    Err(Failure::new(Exit::CannotCapture, error))
}

/// What the kernel refused, once, and how bytes are seen if not in the best way.
pub(crate) fn tell_how(probes: &Probes) {
    for line in probes.shortcomings() {
        tell!("{line}");
    }
}

fn ring_size(asked: Option<u64>) -> Result<u32, Failure> {
    let Some(size) = asked else { return Ok(RING_DEFAULT) };
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (RING_MIN..=1 << 30).contains(size))
        .ok_or_else(|| anyhow!("--ring takes a power of two from 64KiB to 1GiB"))
        .or_exit(Exit::Usage)
}

/// Chooses the command, and lets it go.
fn open(gate: &mut Gate, chosen: &SelectionArguments, session: &mut Session) -> Result<(), Failure> {
    session.select_new(gate.process)?;
    gate.open()?;
    tell!("tracing {} ({})", gate.process, chosen.command[0].to_string_lossy());
    Ok(())
}

/// Chooses what runs already.
fn scan(told: &str, later: bool, session: &mut Session) -> Result<(), Failure> {
    let found = session.scan()?;
    if found.is_empty() {
        tell!(
            "WARNING: no process matches {told} yet; those that start will be traced \
             (`tracer list {told}` shows what nearly matches)"
        );
    }
    tell!(
        "tracing {}{}; Ctrl-C ends it",
        names(&found),
        if later { ", and those that start later" } else { " with the children that match" }
    );
    Ok(())
}

/// What cannot be given up is kept, and that is said.
pub(crate) fn tell_if_kept(dropped: anyhow::Result<()>) {
    if let Err(error) = dropped {
        tell!("WARNING: privileges that are not needed any more are kept: {error:#}");
    }
}

/// Processes that are named one by one.
const NAMED: usize = 5;

fn names(found: &BTreeMap<u32, String>) -> String {
    let mut words: Vec<String> = found
        .iter()
        .take(NAMED)
        .map(|(process, command)| format!("{process} ({})", text::plain(command)))
        .collect();
    match found.len() {
        0 => return "no process yet".to_owned(),
        more if more > NAMED => words.push(format!("{} more", more - NAMED)),
        _ => {}
    }
    words.join(", ")
}

pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

/// What a signal asks for.
pub(crate) enum Asked {
    Interrupt,
    Terminate,
    /// The terminal is gone; to a service it says that it should read its configuration again.
    HangUp,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// What was asked for meanwhile, if anything.
    pub(crate) async fn poll(&mut self) -> Option<Asked> {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Some(Asked::Interrupt),
            _ = self.terminate.recv() => Some(Asked::Terminate),
            _ = self.hang_up.recv() => Some(Asked::HangUp),
            () = std::future::ready(()) => None,
        }
    }
}

/// How the traced command ended, if there was one and it has.
pub(crate) type Ended = Option<ExitStatus>;

pub(crate) async fn watch(
    session: &mut Session,
    signals: &mut Signals,
    command: &mut Option<Gate>,
    time: Option<Duration>,
) -> Result<Ended, Failure> {
    // A time that no clock reaches is none.
    let until = time.and_then(|time| now().checked_add(time));
    let mut interrupted = false;
    loop {
        let turn = session.turn()?;
        // Lets the runtime look at signals and at the command.
        tokio::task::yield_now().await;
        if let Some(gate) = command
            && let Some(status) = gate.child.try_wait().context("the command cannot be waited for")?
        {
            return Ok(Some(status));
        }
        match turn {
            Turn::More => {}
            // The command's own end is waited for.
            Turn::Deserted if command.is_some() => {}
            Turn::Deserted => {
                tell!("the traced processes have ended");
                return Ok(None);
            }
            Turn::Counted | Turn::Unread => {
                if command.is_some() {
                    tell!("that was all that was asked for: the command is told to end");
                }
                stop(session, command).await?;
                return Ok(None);
            }
        }
        if until.is_some_and(|until| now() >= until) {
            if command.is_some() {
                tell!("the time is over: the command is told to end");
            }
            stop(session, command).await?;
            return Ok(None);
        }
        match signals.poll().await {
            None => {}
            // The terminal has sent it to the command too: it may want to end in its own way.
            Some(Asked::Interrupt) if command.is_some() && !interrupted => interrupted = true,
            Some(_) => {
                stop(session, command).await?;
                return Ok(None);
            }
        }
    }
}

/// Ends the command, if it goes on. That it was ended is no failure of its own.
async fn stop(session: &mut Session, command: &mut Option<Gate>) -> anyhow::Result<()> {
    let Some(gate) = command.as_mut() else { return Ok(()) };
    let process = nix::unistd::Pid::from_raw(gate.process as i32);
    let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM);
    let until = now() + STOP;
    while gate.child.try_wait()?.is_none() {
        if now() >= until {
            tell!("the command goes on, though it was told to end ({})", gate.process);
            break;
        }
        session.turn()?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The table, if there is anything in it.
pub(crate) fn tell_summary(summary: Option<&Summary>, edges: Option<&mut Edges>) {
    for line in summary.filter(|summary| !summary.is_empty()).map(Summary::lines).unwrap_or_default() {
        tell!("{line}");
    }
    for line in edges.map(Edges::lines).unwrap_or_default() {
        tell!("{line}");
    }
}

fn report(finished: &mut Finished) {
    tell_summary(finished.summary.as_ref(), finished.edges.as_mut());
    for open in finished.pipeline.open_exchanges() {
        tell!("{}", text::open(open));
    }
    for (url, sent) in &finished.sent {
        tell!("otlp: {url}: {sent}");
    }
    if finished.filtered > 0 {
        let all = finished.spans + finished.filtered;
        tell!("filter: {} of {all} spans were asked for", finished.spans);
    }
    if finished.unprinted > 0 {
        tell!("output: {} spans were not printed, since nobody read in time", finished.unprinted);
    }
    tell!("{}", finished.pipeline.ledger());
}

fn exit(finished: &Finished, ended: Ended, strict: bool) -> Exit {
    if let Some(status) = ended
        && !status.success()
    {
        tell!("the traced command failed: {status}");
        return Exit::CommandFailed;
    }
    if !finished.recorded {
        return Exit::CannotCapture;
    }
    let ledger = finished.pipeline.ledger();
    let unsent: u64 = finished.sent.iter().map(|(_, sent)| sent.lost()).sum();
    if strict && (ledger.has_losses() || ledger.difference() != 0 || finished.unprinted > 0 || unsent > 0) {
        tell!("something was lost (see the lines above)");
        return Exit::CannotCapture;
    }
    Exit::Fine
}

#[allow(clippy::disallowed_methods, reason = "how long a capture takes is the caller's wish, not the core's")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
