//! `tracer explain`: what is seen of a process, what not, why, and what to do.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Serialize;
use tracer_agent::{
    export::text::{plain, size},
    filter::Filter,
    live::{
        inspect::{self, Inspected, Meaning},
        load::{Probes, Wanted},
        print::Printer,
        privileges,
        probes::Capture,
        select::Selection,
        session::{Outputs, Session},
    },
    pipeline::Limits,
    stats::{Bucket, Ledger, Outcome},
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
    findings: Vec<Finding>,
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
    capture::check_process(arguments.pid)?;
    capture::check_place()?;
    let selection = Selection::new(&[arguments.pid], &[], &[], &[], &[], false).or_exit(Exit::Usage)?;
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
        sender: None,
        recording: None,
        filter: Filter::default(),
        filtered: 0,
        summary: None,
    };
    let mut session = Session::start(probes, selection, Limits::default(), outputs)?;
    session.scan()?;
    eprintln!("looking at {} ({}) for {:?}", process.pid, plain(&process.command), arguments.time);
    capture::watch(&mut session, &mut signals, &mut None, Some(arguments.time)).await?;
    // What was opened meanwhile counts too.
    let process = inspect::inspect(process.pid).unwrap_or(process);
    let finished = session.finish(FLUSH)?;
    let ledger = finished.pipeline.ledger();
    let buckets = ledger.buckets();
    let coverage = Bucket::ALL
        .into_iter()
        .filter(|bucket| buckets.get(*bucket) > 0)
        .map(|bucket| (bucket.name(), buckets.get(bucket)))
        .collect();
    Ok(Explanation {
        findings: findings(&process, ledger, capture, arguments.time),
        process,
        seconds: arguments.time.as_secs_f64(),
        capture: capture.name(),
        connections: connections(ledger),
        moved: ledger.moved(),
        coverage,
        spans: finished.spans,
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
        Outcome::Undecided => "undecided: no content that could be read".to_owned(),
    }
}

fn findings(process: &Inspected, ledger: &Ledger, capture: Capture, time: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |what: String, why: String, to_do: &str| {
        findings.push(Finding { what, why, to_do: to_do.to_owned() });
    };
    let buckets = ledger.buckets();
    let bytes = |bucket: Bucket| buckets.get(bucket);
    let moved = ledger.moved();
    let count = |is: &dyn Fn(Outcome, bool) -> bool| -> u64 {
        let all = ledger.verdicts.iter();
        all.filter(|(verdict, _)| is(verdict.outcome, verdict.joined)).map(|(_, count)| count).sum()
    };
    let open: usize = process.connections.values().sum();
    if moved == 0 && ledger.connections == 0 {
        let (why, to_do) = if process.hidden {
            ("nothing moved, and what it has open cannot be listed".to_owned(), "run it as root")
        } else if open > 0 || process.unix_sockets > 0 {
            let each = process.connections.iter().map(|(port, count)| format!("{count} at port {port}"));
            let ports: Vec<String> = each.collect();
            let held = if ports.is_empty() { String::new() } else { format!(" ({})", ports.join(", ")) };
            (
                format!(
                    "it holds {open} TCP connections{held} and {} Unix sockets that were open before, and \
                     nothing moved on them in {time:?}",
                    process.unix_sockets
                ),
                "send it a request, or look for longer (--for 1m): a connection that is open is followed from its \
                 next message on",
            )
        } else if !process.listening.is_empty() {
            ("it listens, and nobody came".to_owned(), "send it a request meanwhile")
        } else {
            (
                "it has no sockets".to_owned(),
                "see whether another process of the service does the talking (tracer list --port N)",
            )
        };
        find(format!("nothing moved in {time:?}"), why, to_do);
    }
    let encrypted = count(&|outcome, _| matches!(outcome, Outcome::Unread(Bucket::Encrypted, _)));
    let tls: Vec<String> = process
        .libraries
        .iter()
        .filter(|library| library.meaning == Meaning::Tls)
        .map(|library| format!("{} ({}): {}", library.name, library.file, library.note))
        .collect();
    if bytes(Bucket::Encrypted) > 0 || encrypted > 0 {
        let by = if tls.is_empty() {
            "the library that does it is part of the program, or not known".to_owned()
        } else {
            tls.join("; ")
        };
        find(
            format!("{encrypted} connections with {} are encrypted (TLS)", size(bytes(Bucket::Encrypted))),
            by,
            "trace the side behind the TLS end (a proxy's backend), until hooks on TLS libraries are there",
        );
    }
    let mut unknown: BTreeMap<Option<&str>, u64> = BTreeMap::new();
    for (verdict, count) in &ledger.verdicts {
        if let Outcome::Unread(Bucket::Unknown, clue) = verdict.outcome {
            *unknown.entry(clue).or_default() += count;
        }
    }
    for (clue, count) in unknown {
        let (what, why) = match clue {
            Some(clue) => {
                (format!("{count} connections speak {clue}"), format!("{clue} is recognised and not read"))
            }
            None => (
                format!("{count} connections speak a protocol that is not known"),
                "their first bytes are of none of the protocols that are read".to_owned(),
            ),
        };
        find(what, why, "nothing: its bytes are counted (`protocol unknown`) and not copied");
    }
    for (verdict, count) in &ledger.verdicts {
        if let Outcome::Unread(bucket @ (Bucket::Unparsed | Bucket::OverLimit), clue) = verdict.outcome {
            find(
                format!("{count} connections could not be followed to their end"),
                clue.unwrap_or(bucket.name()).to_owned(),
                if bucket == Bucket::OverLimit {
                    "more memory (trace --memory)"
                } else {
                    "send us a capture (tracer record)"
                },
            );
        }
    }
    let ring_bytes = ledger.omitted[usize::from(omitted::IO_URING)];
    if ring_bytes > 0 {
        find(
            format!("{} moved by io_uring", size(ring_bytes)),
            "io_uring moves bytes without a call whose buffers could be read: they are counted".to_owned(),
            "switch io_uring off in the service, if it can do without",
        );
    } else if process.io_urings > 0 {
        let why = match capture.lacks() {
            Some(_) => {
                format!("the way that bytes are seen here ({capture}) does not see what io_uring moves")
            }
            None => "nothing moved by it while this looked".to_owned(),
        };
        find(
            format!("it holds {} rings of io_uring", process.io_urings),
            why,
            "switch io_uring off in the service, if it can do without",
        );
    }
    for (reason, bytes) in ledger.omitted.iter().enumerate() {
        let reason = reason as u8;
        let expected = matches!(reason, omitted::QUIET | omitted::IO_URING | omitted::NOTHING);
        if *bytes > 0 && !expected {
            find(
                format!("{} were told by their number alone", size(*bytes)),
                format!("moved {}", omitted::name(reason)),
                match reason {
                    omitted::CROWDED => "a larger ring (trace --ring 64MiB)",
                    omitted::TASK_32_BIT => "nothing: programs for 32 bits are counted and not read",
                    _ => "nothing: what is left out is content, where heads are not in it",
                },
            );
        }
    }
    if process.is_32_bit && ledger.omitted[usize::from(omitted::TASK_32_BIT)] == 0 {
        find(
            "its program is for 32 bits".to_owned(),
            "calls of such programs are counted and not read".to_owned(),
            "nothing so far",
        );
    }
    let joined = count(&|_, joined| joined);
    if joined > 0 {
        find(
            format!("{joined} connections were open before"),
            "they are followed from the first message that was seen whole: a request that was under way has no \
             span"
                .to_owned(),
            "nothing: what comes next on them is seen",
        );
    }
    let undecided = count(&|outcome, _| outcome == Outcome::Undecided);
    if undecided > 0 && ring_bytes == 0 {
        find(
            format!("{undecided} connections moved nothing that could be read"),
            "their bytes were told by their number alone, or lost".to_owned(),
            "see the other findings",
        );
    }
    if bytes(Bucket::OtherSockets) > 0 || process.udp_sockets > 0 {
        find(
            format!(
                "{} on sockets that are neither TCP nor Unix streams; {} UDP sockets",
                size(bytes(Bucket::OtherSockets)),
                process.udp_sockets
            ),
            "UDP (DNS, QUIC with HTTP/3) and MPTCP are not followed".to_owned(),
            "nothing so far",
        );
    }
    if ledger.has_losses() {
        find(
            format!("{} records were lost", ledger.lost_records()),
            "the ring between kernel and tracer was full".to_owned(),
            "a larger ring (trace --ring 64MiB)",
        );
    }
    findings
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
    say(&format!("listens on  {}", if ports.is_empty() { "nothing".to_owned() } else { ports.join(", ") }));
    for (index, library) in process.libraries.iter().enumerate() {
        let label = if index == 0 { "libraries" } else { "" };
        say(&format!("{label:<11} {} ({}): {}", library.name, plain(&library.file), library.note));
    }
    say(&format!("\nin {} s, by {}:", explanation.seconds, explanation.capture));
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
    if explanation.findings.is_empty() {
        say("\neverything that moved was read");
        return;
    }
    say("\nwhat is not seen, and why:");
    for finding in &explanation.findings {
        say(&format!("- {}\n  why:   {}\n  to do: {}", finding.what, plain(&finding.why), finding.to_do));
    }
}
