//! `tracer explain`: what is seen of a process, what not, why, and what to do.

use std::{collections::BTreeMap, time::Duration};
use tracer_agent::tell;

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Serialize;
use tracer_agent::{
    export::text::{plain, size},
    filter::Filter,
    live::{
        inspect::{self, Inspected, Meaning},
        load::{Probes, Wanted},
        outputs::Outputs,
        print::Printer,
        privileges,
        probes::Capture,
        select::{Selection, Wish},
        session::Session,
    },
    pipeline::Limits,
    stats::{Bucket, Ledger, Outcome},
    stitch::{Evidence, Habits},
};
use tracer_common::record::omitted;

use super::{
    Exit, Failure, OrExit,
    capture::{self, Signals, tell_if_kept},
    parse_duration, say,
};

/// For what is in the ring when the time is over.
const FLUSH: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
#[command(
    after_help = "It attaches for a while, with the process and its children chosen: what moves in that time is
what it can tell of. Send the process a request meanwhile, if it has none.

Examples:
  tracer explain 4711
  tracer explain 4711 --for 30s --json"
)]
pub(crate) struct Arguments {
    /// The process
    pid: u32,

    /// How long to look
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, default_value = "5s")]
    time: Duration,

    /// How bytes are seen; the best that the kernel has, if not named
    #[arg(long, value_enum, value_name = "MODE")]
    capture: Option<Capture>,

    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Explanation {
    process: Inspected,
    seconds: f64,
    capture: &'static str,
    connections: Vec<Connections>,
    /// Bytes that moved, and in which bucket of the ledger they ended.
    moved: u64,
    coverage: BTreeMap<&'static str, u64>,
    spans: u64,
    traces: Traces,
    findings: Vec<Finding>,
}

/// Whether requests can be followed through the process and its children.
#[derive(Serialize)]
struct Traces {
    /// Requests that it served, and those of them that came with ids (of a trace, or of the request).
    served: u64,
    served_with_ids: u64,
    /// Requests that it made, and those of them with ids of one that it was serving.
    made: u64,
    made_with_those_ids: u64,
    /// Spans by the evidence for their parents.
    parents: BTreeMap<&'static str, u64>,
    /// Why its threads are no evidence, if they are none.
    threads: Option<&'static str>,
    verdict: &'static str,
}

impl Traces {
    fn of(habits: &Habits) -> Self {
        let verdict = match (habits.called, habits.asked, habits.passed_on) {
            (0, _, _) if habits.served == 0 => "nothing was seen that could be followed",
            (0, _, _) => "it made no requests of its own meanwhile",
            (called, _, passed_on) if called == passed_on => "it passes headers on",
            (_, _, 1..) => "it passes headers on with some of its requests",
            (_, 1.., 0) => "it does not pass headers on",
            (_, 0, 0) => "no request came with headers that it could pass on",
        };
        Self {
            served: habits.served,
            served_with_ids: habits.asked,
            made: habits.called,
            made_with_those_ids: habits.passed_on,
            parents: Evidence::ALL
                .into_iter()
                .map(|evidence| (evidence.name(), habits.parents[evidence as usize]))
                .filter(|(_, count)| *count > 0)
                .collect(),
            threads: habits.threads_lost,
            verdict,
        }
    }
}

/// Connections that bytes moved on, as far as they are alike.
#[derive(Serialize)]
struct Connections {
    count: u64,
    side: &'static str,
    transport: &'static str,
    what: String,
    /// They were open before.
    joined: bool,
}

/// Something that is not seen.
#[derive(Serialize)]
struct Finding {
    what: String,
    why: String,
    to_do: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.time.is_zero() {
        return Err(Failure::new(Exit::Usage, anyhow!("--for 0s leaves no time to look")));
    }
    capture::check_process(arguments.pid)?;
    capture::check_place()?;
    let selection =
        Selection::of(&Wish { pids: vec![arguments.pid], ..Wish::default() }, false).or_exit(Exit::Usage)?;
    let process = inspect::inspect(arguments.pid)
        .ok_or_else(|| anyhow!("there is no process {} any more", arguments.pid))
        .or_exit(Exit::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    let explanation = runtime.block_on(look(arguments, selection, process))?;
    if arguments.json {
        say(&serde_json::to_string_pretty(&explanation).map_err(anyhow::Error::from)?);
    } else {
        show(&explanation);
    }
    Ok(Exit::Fine)
}

async fn look(
    arguments: &Arguments,
    selection: Selection,
    process: Inspected,
) -> Result<Explanation, Failure> {
    let mut signals = Signals::new()?;
    let wanted = Wanted { capture: arguments.capture, ..Wanted::default() };
    let probes = Probes::load(&wanted, &selection)?;
    capture::tell_how(&probes.0);
    let capture = probes.0.capture;
    tell_if_kept(privileges::drop_most(false));
    let outputs = Outputs {
        printer: Printer::silent(),
        senders: Vec::new(),
        observer: None,
        recording: None,
        filter: Filter::default(),
        filtered: 0,
        summary: None,
        edges: None,
    };
    let mut session = Session::start(probes, selection, Limits::default(), outputs)?;
    session.scan()?;
    tell!("looking at {} ({}) for {:?}", process.pid, plain(&process.command), arguments.time);
    let began = capture::now();
    capture::watch(&mut session, &mut signals, &mut None, Some(arguments.time)).await?;
    let time = began.elapsed();
    // What was opened meanwhile counts too.
    let now = inspect::inspect(process.pid);
    let ended = now.is_none();
    let process = now.unwrap_or(process);
    let finished = session.finish(FLUSH)?;
    let ledger = finished.pipeline.ledger();
    let buckets = ledger.buckets();
    let coverage = Bucket::ALL
        .into_iter()
        .filter(|bucket| buckets.get(*bucket) > 0)
        .map(|bucket| (bucket.name(), buckets.get(bucket)))
        .collect();
    Ok(Explanation {
        findings: findings(&Looked { process: &process, ledger, capture, time, ended }),
        process,
        seconds: time.as_secs_f64(),
        capture: capture.name(),
        connections: connections(ledger),
        moved: ledger.moved(),
        coverage,
        spans: finished.spans,
        traces: Traces::of(&finished.pipeline.habits()),
    })
}

fn connections(ledger: &Ledger) -> Vec<Connections> {
    let mut all: Vec<Connections> = ledger
        .verdicts
        .iter()
        .map(|(verdict, count)| Connections {
            count: *count,
            side: verdict.side,
            transport: verdict.transport,
            what: what(verdict.outcome),
            joined: verdict.joined,
        })
        .collect();
    all.sort_by_key(|connections| std::cmp::Reverse(connections.count));
    all
}

fn what(outcome: Outcome) -> String {
    match outcome {
        Outcome::Read(protocol) => protocol.to_owned(),
        Outcome::Unread(Bucket::Encrypted, _) => "encrypted (TLS)".to_owned(),
        Outcome::Unread(bucket, None) => bucket.name().to_owned(),
        Outcome::Unread(bucket, Some(clue)) => format!("{}: {clue}", bucket.name()),
        Outcome::Left(protocol, bucket, why) => format!("{protocol}, then {}: {why}", bucket.name()),
        Outcome::Undecided => "undecided: no content that could be read".to_owned(),
    }
}

/// What is not seen, in the order in which it matters.
fn findings(looked: &Looked<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    looked.whether_anything_moved(&mut findings);
    looked.what_is_not_read(&mut findings);
    looked.what_broke_off(&mut findings);
    looked.what_was_not_copied(&mut findings);
    looked.what_is_elsewhere(&mut findings);
    looked.what_was_lost(&mut findings);
    let read = looked.bytes(Bucket::Parsed) + looked.bytes(Bucket::Body);
    let moved = looked.ledger.moved();
    if findings.0.is_empty() && read < moved {
        findings.add(
            format!("{} belong to no whole message", size(moved - read)),
            "they are at the start or the end of what was seen".to_owned(),
            "nothing",
        );
    }
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: String, why: String, to_do: &str) {
        self.0.push(Finding { what, why, to_do: to_do.to_owned() });
    }
}

/// What there is to judge by.
struct Looked<'a> {
    process: &'a Inspected,
    ledger: &'a Ledger,
    capture: Capture,
    time: Duration,
    ended: bool,
}

impl Looked<'_> {
    fn bytes(&self, bucket: Bucket) -> u64 {
        self.ledger.buckets().get(bucket)
    }

    fn omitted(&self, reason: u8) -> u64 {
        self.ledger.omitted[usize::from(reason)]
    }

    fn count(&self, is: impl Fn(Outcome, bool) -> bool) -> u64 {
        let all = self.ledger.verdicts.iter();
        all.filter(|(verdict, _)| is(verdict.outcome, verdict.joined)).map(|(_, count)| count).sum()
    }

    fn whether_anything_moved(&self, findings: &mut Findings) {
        let (process, time) = (self.process, self.time);
        if self.ended {
            let what = format!("it ended after {time:.1?}");
            return findings.add(what, "the process is gone".to_owned(), "nothing");
        }
        if self.ledger.moved() > 0 || self.ledger.connections > 0 {
            return;
        }
        let open: usize = process.connections.values().sum();
        let (why, to_do) = if process.hidden {
            (
                "what it has open cannot be listed".to_owned(),
                "run it as root, with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
            )
        } else if process.io_urings > 0 && self.capture.lacks().is_some() {
            let why = format!("it uses io_uring, and what that moves is not seen by {}", self.capture);
            (why, "Linux 6.3 or later counts it")
        } else if open > 0 || (process.unix_sockets > 0 && process.listening.is_empty()) {
            let each = process.connections.iter().map(|(port, count)| format!("{count} at port {port}"));
            let ports: Vec<String> = each.collect();
            let held = if ports.is_empty() { String::new() } else { format!(" ({})", ports.join(", ")) };
            let why = format!(
                "it holds {open} TCP connections{held} and {} Unix sockets that were open before, and nothing \
                 moved on them",
                process.unix_sockets
            );
            let to_do = "send it a request, or look for longer (--for 1m): a connection that is open is followed \
                         from its next message on";
            (why, to_do)
        } else if !process.listening.is_empty() {
            let why = "it listens, and nobody came; where several processes listen together another one may have \
                       taken the connections";
            let to_do = "send it a request meanwhile, or explain the process that started it: its children are \
                         looked at with it";
            (why.to_owned(), to_do)
        } else if process.udp_sockets > 0 {
            ("it has UDP sockets alone, and UDP is not followed".to_owned(), "nothing so far")
        } else {
            let to_do = "see whether another process of the service does the talking (tracer list --port N)";
            ("it has no sockets".to_owned(), to_do)
        };
        findings.add(format!("nothing moved in {time:.1?}"), why, to_do);
    }

    fn what_is_not_read(&self, findings: &mut Findings) {
        let encrypted = self.count(|outcome, _| matches!(outcome, Outcome::Unread(Bucket::Encrypted, _)));
        if self.bytes(Bucket::Encrypted) > 0 || encrypted > 0 {
            let libraries = self.process.libraries.iter();
            let tls = libraries.filter(|library| library.meaning == Meaning::Tls);
            let by: Vec<String> =
                tls.map(|library| format!("{} ({}): {}", library.name, library.file, library.note)).collect();
            let what = format!(
                "{} with {} are encrypted (TLS)",
                connections_of(encrypted),
                size(self.bytes(Bucket::Encrypted))
            );
            let why = match by.is_empty() {
                true => "the library that does it is part of the program, or not known".to_owned(),
                false => by.join("; "),
            };
            let to_do = "trace the side behind the TLS end (a proxy's backend), until hooks on TLS libraries are there";
            findings.add(what, why, to_do);
        }
        let mut unknown: BTreeMap<Option<&str>, u64> = BTreeMap::new();
        for (verdict, count) in &self.ledger.verdicts {
            if let Outcome::Unread(Bucket::Unknown, clue) = verdict.outcome {
                *unknown.entry(clue).or_default() += count;
            }
        }
        for (clue, count) in unknown {
            let (what, why) = match clue {
                Some(clue) => (format!("speak {clue}"), format!("{clue} is recognised and not read")),
                None => (
                    "carry something that is not known".to_owned(),
                    "what was seen of them begins no message of a protocol that is read: another protocol, or \
                     the middle of a message"
                        .to_owned(),
                ),
            };
            let what = format!("{} {what}", connections_of(count));
            findings.add(what, why, "nothing: its bytes are counted (`protocol unknown`) and not copied");
        }
    }

    fn what_broke_off(&self, findings: &mut Findings) {
        let mut left: BTreeMap<(&str, Bucket, &str), u64> = BTreeMap::new();
        for (verdict, count) in &self.ledger.verdicts {
            let key = match verdict.outcome {
                Outcome::Left(protocol, bucket, why) => (protocol, bucket, why),
                Outcome::Unread(bucket @ Bucket::OverLimit, _) => ("nothing", bucket, bucket.name()),
                _ => continue,
            };
            *left.entry(key).or_default() += count;
        }
        for ((protocol, bucket, why), count) in left {
            let to_do = match bucket {
                Bucket::OverLimit => "more memory (trace --memory)",
                Bucket::Unknown => "nothing: what comes after is another protocol, counted and not read",
                _ => "keep a capture of it (tracer record) and send it to us",
            };
            let what = format!("{} were followed as {protocol} up to a point", connections_of(count));
            findings.add(what, why.to_owned(), to_do);
        }
    }

    fn what_was_not_copied(&self, findings: &mut Findings) {
        let by_ring = self.omitted(omitted::IO_URING);
        let without = "switch io_uring off in the service, if it can do without";
        if by_ring > 0 {
            let why = "io_uring moves bytes without a call whose buffers could be read: they are counted";
            findings.add(format!("{} moved by io_uring", size(by_ring)), why.to_owned(), without);
        } else if self.process.io_urings > 0 {
            let why = match self.capture.lacks() {
                Some(_) => {
                    format!("the way that bytes are seen here ({}) does not see what it moves", self.capture)
                }
                None => "nothing moved by it while this looked".to_owned(),
            };
            findings.add(format!("it uses io_uring ({} of its files)", self.process.io_urings), why, without);
        }
        for reason in 0..omitted::COUNT as u8 {
            let bytes = self.omitted(reason);
            if bytes == 0 || matches!(reason, omitted::QUIET | omitted::IO_URING | omitted::NOTHING) {
                continue;
            }
            let to_do = match reason {
                omitted::CROWDED => "a larger ring (trace --ring 64MiB)",
                omitted::TASK_32_BIT => "nothing: programs for 32 bits are counted and not read",
                _ => "nothing: what is left out is content, where heads are not in it",
            };
            let what = format!("{} were told by their number alone", size(bytes));
            findings.add(what, format!("moved {}", omitted::name(reason)), to_do);
        }
        if self.process.is_32_bit && self.omitted(omitted::TASK_32_BIT) == 0 {
            let why = "calls of such programs are counted and not read".to_owned();
            findings.add("its program is for 32 bits".to_owned(), why, "nothing so far");
        }
        let undecided = self.count(|outcome, _| outcome == Outcome::Undecided);
        if undecided > 0 && by_ring == 0 {
            let what = format!("{} moved nothing that could be read", connections_of(undecided));
            findings.add(
                what,
                "their bytes were told by their number alone, or lost".to_owned(),
                "see the others",
            );
        }
    }

    fn what_is_elsewhere(&self, findings: &mut Findings) {
        let joined = self.count(|_, joined| joined);
        if joined > 0 {
            let what =
                format!("{} were open before, or their beginning was not seen", connections_of(joined));
            let why = "they are followed from the first message that was seen whole: a request that was under way \
                       has no span";
            findings.add(what, why.to_owned(), "nothing: what comes next on them is seen");
        }
        let frames = self.count(|outcome, joined| joined && matches!(outcome, Outcome::Read("http2")));
        if frames > 0 {
            let what = format!("{} of HTTP/2 were open before", connections_of(frames));
            let why = "HTTP/2 sends a field once and a number for it from then on: names, paths and statuses that \
                       were sent before are not known until they are sent again (tracer.capture = joined)";
            findings.add(what, why.to_owned(), "let the client connect anew, or start the tracer before it");
        }
        let others = self.bytes(Bucket::OtherSockets);
        if others > 0 {
            findings.add(
                format!("{} on sockets that are neither TCP nor Unix streams", size(others)),
                "UDP (DNS, QUIC with HTTP/3) and MPTCP are not followed".to_owned(),
                "nothing so far",
            );
        }
    }

    fn what_was_lost(&self, findings: &mut Findings) {
        if self.ledger.lost_records() > 0 {
            findings.add(
                format!("{} records were lost", self.ledger.lost_records()),
                "the ring between kernel and tracer was full".to_owned(),
                "a larger ring (trace --ring 64MiB)",
            );
        }
        if self.ledger.holes > 0 {
            findings.add(
                format!("{} are missing in the streams", size(self.ledger.holes)),
                "lost in the ring, or moved in a way that is not seen (splice from a socket, io_uring)"
                    .to_owned(),
                "a larger ring (trace --ring 64MiB), if records were lost",
            );
        }
        if self.ledger.evicted > 0 {
            findings.add(
                format!("{} had to go", connections_of(self.ledger.evicted)),
                "the memory for connections was used up".to_owned(),
                "more of it (trace --memory 512MiB)",
            );
        }
    }
}

fn connections_of(count: u64) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

fn show(explanation: &Explanation) {
    let process = &explanation.process;
    say(&format!("process     {} {}", process.pid, plain(&process.command)));
    say(&format!(
        "file        {}",
        plain(process.executable.as_deref().unwrap_or("not to be seen from here"))
    ));
    if let Some(cgroup) = &process.cgroup {
        say(&format!("cgroup      {}", plain(cgroup)));
    }
    say(&format!("container   {}", process.container.as_deref().unwrap_or("none")));
    let ports: Vec<String> = process.listening.iter().map(u16::to_string).collect();
    let ports = match ports.is_empty() {
        true if process.hidden => "not to be seen from here".to_owned(),
        true => "nothing".to_owned(),
        false => ports.join(", "),
    };
    say(&format!("listens on  {ports}"));
    for (index, library) in process.libraries.iter().enumerate() {
        let label = if index == 0 { "libraries" } else { "" };
        say(&format!("{label:<11} {} ({}): {}", library.name, plain(&library.file), library.note));
    }
    say(&format!("\nin {:.1} s, by {}:", explanation.seconds, explanation.capture));
    for connections in &explanation.connections {
        say(&format!(
            "{:>8} connections  {:<6} {:<4} {}{}",
            connections.count,
            connections.side,
            connections.transport,
            connections.what,
            if connections.joined { "  (open before)" } else { "" }
        ));
    }
    say(&format!("{:>8} exchanges seen", explanation.spans));
    say(&format!("{:>8} bytes moved", explanation.moved));
    for (bucket, bytes) in &explanation.coverage {
        let share = *bytes as f64 * 100.0 / explanation.moved.max(1) as f64;
        say(&format!("{bytes:>8} {bucket} ({share:.1} %)"));
    }
    let traces = &explanation.traces;
    say(&format!(
        "\ntraces: {}\n{:>8} requests served, {} of them with ids\n{:>8} requests made, {} of them with ids of one \
         that it served",
        traces.verdict, traces.served, traces.served_with_ids, traces.made, traces.made_with_those_ids
    ));
    for (evidence, count) in &traces.parents {
        match *evidence {
            "none" => say(&format!("{count:>8} spans without a parent")),
            _ => say(&format!("{count:>8} spans with a parent by {evidence}")),
        }
    }
    if let Some(why) = traces.threads {
        say(&format!("         its threads are no evidence: {why}"));
    }
    if explanation.findings.is_empty() {
        say("\neverything that moved was read");
        return;
    }
    say("\nwhat is not seen, and why:");
    for finding in &explanation.findings {
        say(&format!("- {}\n  why:   {}\n  to do: {}", finding.what, plain(&finding.why), finding.to_do));
    }
}
