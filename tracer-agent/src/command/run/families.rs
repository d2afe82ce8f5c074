//! The agent's own numbers, for /metrics and OTLP.

use tracer_agent::{
    live::{cost, kubernetes, session::Session},
    metrics::{Family, FamilyKind},
    sample::{Reason, Refusal},
    stats::Bucket,
    stitch::Evidence,
};

use super::answers::Agent;

/// Processes that have series of their own: those of which most was told.
const PROCESSES: usize = 200;

const BYTES: &str = "By";

fn counter(name: &'static str, help: &'static str, unit: &'static str, value: u64) -> Family {
    Family::of(name, help, unit, FamilyKind::Counter, value as f64)
}

fn gauge(name: &'static str, help: &'static str, unit: &'static str, value: u64) -> Family {
    Family::of(name, help, unit, FamilyKind::Gauge, value as f64)
}

fn counters<L: ToString>(
    name: &'static str,
    help: &'static str,
    unit: &'static str,
    label: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> Family {
    let values = values.into_iter().map(|(word, value)| (word, value as f64));
    Family::by(name, help, unit, FamilyKind::Counter, label, values)
}

fn gauges<L: ToString>(
    name: &'static str,
    help: &'static str,
    unit: &'static str,
    label: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> Family {
    Family { kind: FamilyKind::Gauge, ..counters(name, help, unit, label, values) }
}

/// What the capture counted.
pub(super) fn of_session(session: &mut Session) -> Vec<Family> {
    let ledger = session.ledger();
    let buckets = ledger.buckets();
    let links = ledger.links;
    let runs = session.probes().run_times();
    let tables = session.probes().tables();
    let mut all = vec![
        counter(
            "tracer.moved",
            "Bytes that the kernel moved on sockets of chosen processes",
            BYTES,
            ledger.moved(),
        ),
        counters(
            "tracer.bytes",
            "Where these bytes ended",
            BYTES,
            "bucket",
            Bucket::ALL.map(|bucket| (bucket.name(), buckets.get(bucket))),
        ),
        counter("tracer.records", "Records that the probes told", "{record}", ledger.records),
        counters(
            "tracer.records.lost",
            "Records that were lost, by the reason",
            "{record}",
            "reason",
            [("ring full", ledger.lost_records()), ("damaged", ledger.damaged)],
        ),
        counter("tracer.connections", "Connections that were told of", "{connection}", ledger.connections),
        counter(
            "tracer.connections.evicted",
            "Connections that had to go as memory was short",
            "{connection}",
            ledger.evicted,
        ),
        counter(
            "tracer.connections.vanished",
            "Connections that were over when they were looked for, after records were lost",
            "{connection}",
            ledger.vanished,
        ),
        gauges(
            "tracer.connections.open",
            "Connections that are open, by what they carry",
            "{connection}",
            "carries",
            session.pipeline().carried(None),
        ),
        counter("tracer.exchanges", "Requests with what came of them", "{exchange}", ledger.exchanges),
        counter(
            "tracer.exchanges.partial",
            "Those with a gap in what their span needs",
            "{exchange}",
            ledger.partial,
        ),
        counter(
            "tracer.spans.waited",
            "Spans that waited for their pod, or for who is at the other end",
            "{span}",
            ledger.late.waited,
        ),
        counters(
            "tracer.spans.unenriched",
            "Those that went out without it, by the reason",
            "{span}",
            "reason",
            [("pod", ledger.late.podless), ("peer", ledger.late.peerless), ("memory", ledger.late.crowded)],
        ),
        counter(
            "tracer.responses.without_request",
            "Responses whose request was not seen",
            "{response}",
            ledger.orphans,
        ),
        counters(
            "tracer.parents",
            "Spans by the evidence for their parent",
            "{span}",
            "evidence",
            Evidence::ALL.map(|evidence| (evidence.name(), links.parents[evidence as usize])),
        ),
        gauge(
            "tracer.exchanges.open",
            "Exchanges that are open, or wait for their parents",
            "{exchange}",
            session.pipeline().unfinished() as u64,
        ),
        gauge(
            "tracer.processes.selected",
            "Processes that meet something of the selection",
            "{process}",
            session.probes().known().len() as u64,
        ),
        counter("tracer.processes.chosen", "Processes that were chosen", "{process}", session.chosen),
        counter(
            "tracer.processes.over_limit",
            "Processes that did not fit into the selection",
            "{process}",
            ledger.selection_full(),
        ),
        Family::by(
            "tracer.probe.run_time",
            "Time in the probes, where the kernel counts it (kernel.bpf_stats_enabled)",
            "s",
            FamilyKind::Counter,
            "program",
            runs.iter().map(|(name, time, _)| (name, time.as_secs_f64())),
        ),
        gauges("tracer.memory.held", "Memory that is held, by what for", BYTES, "part", memory(session)),
        gauge(
            "tracer.ring.peak",
            "The most that was found in the ring at a time, of the last 30 to 60 seconds",
            BYTES,
            session.ring_peak(),
        ),
        gauge("tracer.ring.limit", "Bytes that the ring has room for", BYTES, session.probes().ring().into()),
        gauges(
            "tracer.table.entries",
            "Entries of the probes' tables",
            "{entry}",
            "table",
            tables.map(|(name, entries, _)| (name, entries)),
        ),
        gauges(
            "tracer.table.limit",
            "Entries that the probes' tables have room for",
            "{entry}",
            "table",
            tables.map(|(name, _, room)| (name, room)),
        ),
    ];
    all.push(counters(
        "tracer.probe.runs",
        "Runs of the probes, where the kernel counts them",
        "{run}",
        "program",
        runs.iter().map(|(name, _, runs)| (name, *runs)),
    ));
    all.push(Family::of(
        "tracer.probe.time",
        "Time in the probes of socket calls, by one call of 64 that is timed",
        "s",
        FamilyKind::Counter,
        session.probe_time() as f64 / 1e9,
    ));
    all.extend(of_processes(session));
    all.extend(of_sending(session));
    all.extend(session.watcher().map(|watcher| of_kubernetes(&watcher.state())).unwrap_or_default());
    if let Some(observer) = &session.outputs.observer {
        let sampled = observer.sampled();
        all.push(counters(
            "tracer.traces.kept",
            "Traces that were kept, by the reason",
            "{span}",
            "reason",
            Reason::ALL.map(|reason| (reason.name(), sampled.kept[reason as usize])),
        ));
        all.push(counters(
            "tracer.traces.dropped",
            "Traces that were not, by the reason",
            "{span}",
            "reason",
            Refusal::ALL.map(|refusal| (refusal.name(), sampled.dropped[refusal as usize])),
        ));
        all.push(gauge(
            "tracer.traces.undecided",
            "Traces that wait to be decided on",
            "{trace}",
            observer.undecided() as u64,
        ));
        all.push(gauge("tracer.routes", "Routes that are known", "{route}", observer.routes() as u64));
        all.extend(observer.metrics.families());
    }
    all
}

/// What is held, and what for. What the allocator keeps, the program itself and the kernel's tables are not in it.
fn memory(session: &Session) -> Vec<(&'static str, u64)> {
    let mut all: Vec<_> =
        session.pipeline().memory().into_iter().map(|(part, bytes)| (part, bytes as u64)).collect();
    if let Some(observer) = &session.outputs.observer {
        all.push(("observer", observer.held() as u64));
    }
    let queued = session.outputs.senders.iter().map(|sender| sender.waiting() as u64);
    all.push(("queues", queued.sum()));
    // Mapped twice, so that what begins at its end goes on.
    all.push(("ring", 2 * u64::from(session.probes().ring())));
    all
}

/// Coverage by process.
fn of_processes(session: &mut Session) -> Vec<Family> {
    let mut coverage: Vec<_> = session.pipeline().coverage().into_iter().collect();
    coverage.sort_by_key(|(_, coverage)| std::cmp::Reverse(coverage.bytes.sum()));
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    for (process, coverage) in coverage.into_iter().take(PROCESSES) {
        let service = session.pipeline_mut().resource(process).service.to_string();
        let labels = [("pid".to_owned(), process.to_string()), ("service".to_owned(), service)];
        for bucket in Bucket::ALL.into_iter().filter(|bucket| coverage.bytes.get(*bucket) > 0) {
            let mut labels = labels.to_vec();
            labels.push(("bucket".to_owned(), bucket.name().to_owned()));
            bytes.push((labels, coverage.bytes.get(bucket) as f64));
        }
        records.push((labels.to_vec(), coverage.records as f64));
    }
    vec![
        Family {
            name: "tracer.process.bytes",
            help: "Bytes of a process that runs, by where they ended",
            unit: BYTES,
            kind: FamilyKind::Counter,
            samples: bytes,
        },
        Family {
            name: "tracer.process.records",
            help: "Records of a process that runs: its part of what the tracer costs",
            unit: "{record}",
            kind: FamilyKind::Counter,
            samples: records,
        },
    ]
}

fn of_sending(session: &Session) -> Vec<Family> {
    let (mut items, mut queues) = (Vec::new(), Vec::new());
    for sender in &session.outputs.senders {
        let url = || ("url".to_owned(), sender.url().to_owned());
        let sent = sender.sent();
        for (outcome, count) in [
            ("sent", sent.sent),
            ("dropped, queue full", sent.dropped),
            ("rejected", sent.rejected),
            ("refused", sent.refused),
            ("given up", sent.given_up),
        ] {
            items.push((vec![url(), ("outcome".to_owned(), outcome.to_owned())], count as f64));
        }
        queues.push((vec![url()], sender.waiting() as f64));
    }
    vec![
        Family {
            name: "tracer.otlp.items",
            help: "Spans or points by what became of them",
            unit: "{item}",
            kind: FamilyKind::Counter,
            samples: items,
        },
        Family {
            name: "tracer.otlp.queue",
            help: "Bytes that wait to be sent",
            unit: BYTES,
            kind: FamilyKind::Gauge,
            samples: queues,
        },
    ]
}

fn of_kubernetes(state: &kubernetes::State) -> Vec<Family> {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let requests = state.requests.iter().map(|((verb, resource, outcome), count)| {
        let labels = vec![label("verb", verb), label("resource", resource), label("outcome", outcome)];
        (labels, *count as f64)
    });
    let hearing = |value: fn(&kubernetes::Hearing) -> f64| {
        state.hearing.iter().map(move |hearing| (hearing.what, value(hearing)))
    };
    vec![
        Family::by(
            "tracer.kubernetes.heard",
            "1 while objects of this kind are heard of",
            "",
            FamilyKind::Gauge,
            "resource",
            hearing(|hearing| f64::from(u8::from(hearing.heard))),
        ),
        Family::by(
            "tracer.kubernetes.unheard.time",
            "For how long objects of this kind have not been heard of; 0 while they are",
            "s",
            FamilyKind::Gauge,
            "resource",
            hearing(|hearing| if hearing.heard { 0.0 } else { hearing.since.elapsed().as_secs_f64() }),
        ),
        gauges(
            "tracer.kubernetes.objects",
            "Objects that are held, by kind",
            "{object}",
            "resource",
            state.objects.iter().copied(),
        ),
        counter(
            "tracer.kubernetes.pods.over_limit",
            "Times that a pod of this node did not fit",
            "{pod}",
            state.over,
        ),
        gauge(
            "tracer.kubernetes.lookups.pending",
            "Owners that are being looked up",
            "{request}",
            state.pending,
        ),
        gauge(
            "tracer.kubernetes.addresses",
            "Addresses that were asked for, and whose changes are told",
            "{address}",
            state.asked,
        ),
        gauge(
            "tracer.kubernetes.peers.size",
            "About what is held to tell peers by name takes",
            BYTES,
            state.bytes,
        ),
        Family {
            name: "tracer.kubernetes.requests",
            help: "Requests to the API, by what came of them",
            unit: "{request}",
            kind: FamilyKind::Counter,
            samples: requests.collect(),
        },
        counters(
            "tracer.kubernetes.restarts",
            "Lists that were made again as the API had forgotten where the watch was",
            "{list}",
            "resource",
            state.restarts.iter().copied(),
        ),
    ]
}

/// What the agent knows of itself.
pub(super) fn of_agent(agent: &Agent) -> Vec<Family> {
    let own = cost::own();
    vec![
        Family::of(
            "tracer.uptime",
            "Time since the agent started",
            "s",
            FamilyKind::Gauge,
            agent.began.elapsed().as_secs_f64(),
        ),
        Family::of(
            "tracer.cpu.time",
            "Time that the agent itself took of the processors",
            "s",
            FamilyKind::Counter,
            own.cpu.as_secs_f64(),
        ),
        gauge("tracer.memory.resident", "Memory of the agent, with the ring twice", BYTES, own.resident),
        gauge(
            "tracer.shed.connections",
            "Connections that are left out to stay within the budget, in 1024ths",
            "{connection}",
            agent.budget.as_ref().map_or(0, |budget| budget.shed().connections.into()),
        ),
        gauge(
            "tracer.shed.content",
            "1 while of large calls only their start and end are copied to stay within the budget",
            "",
            agent.budget.as_ref().map_or(0, |budget| budget.shed().content.into()),
        ),
        counter(
            "tracer.shed.steps",
            "Times that more or less was left out to stay within the budget",
            "{step}",
            agent.budget.as_ref().map_or(0, |budget| budget.steps),
        ),
        gauge("tracer.memory.budget", "Memory that it may take", BYTES, agent.config.budgets.memory.0),
        counters(
            "tracer.config.reloads",
            "Configurations that were read, by whether they count",
            "{reload}",
            "result",
            [("taken", agent.reloads[0]), ("refused", agent.reloads[1])],
        ),
        Family::by(
            "tracer.build",
            "The version of the tracer",
            "",
            FamilyKind::Gauge,
            "version",
            [(env!("CARGO_PKG_VERSION"), 1.0)],
        ),
    ]
}
