//! The law of parents: services of several designs work on random requests in a world where everything is known,
//! and whatever order their records come in, no span has a wrong parent, and each has the one that is proved.

#[path = "stitch/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use tracer_agent::{
    capture::Record,
    pipeline::{Limits, Pipeline},
    protocol::{Kind, Value},
    span::Span,
};
use tracer_common::connection::Direction;
use world::{
    ANSWER, Context, Delivery, Design, Id, Node, Passes, Plan, Process, Request, Scope, Trace, Why, World,
    thread,
};

impl Node {
    fn has_ids_of(&self, other: &Node) -> bool {
        let trace = |node: &Node| node.head.context.map(|(trace, _)| trace);
        let id = |node: &Node| node.head.id.clone();
        trace(self).is_some() && trace(self) == trace(other) || id(self).is_some() && id(self) == id(other)
    }

    fn is_served_at(&self, time: u64) -> bool {
        (self.read..=self.answered).contains(&time)
    }
}

impl World<'_> {
    /// What the pipeline makes of it.
    fn seen(&self, delivery: &Delivery) -> (Vec<Span>, Pipeline) {
        let mut pipeline = Pipeline::new(Limits::default());
        let mut spans = Vec::new();
        let mut ticks = delivery.ticks.iter().cycle();
        let mut now = 0;
        pipeline.handle_record(&Record::Seed([7; 32]));
        for told in self.delivered(delivery) {
            now = now.max(told.time);
            pipeline.handle_record(&told.record());
            if ticks.next().copied().unwrap_or(false) {
                pipeline.handle_record(&Record::Tick { now });
            }
            spans.extend(std::iter::from_fn(|| pipeline.poll_output()));
        }
        pipeline.handle_record(&Record::Finished { now: now + 1 });
        spans.extend(std::iter::from_fn(|| pipeline.poll_output()));
        (spans, pipeline)
    }

    fn is_traced(&self, kind: Kind, node: &Node) -> bool {
        self.plan.processes[if kind == Kind::Client { node.caller } else { node.callee }].traced
    }
}

/// Spans by what they are of.
type Spans<'a> = BTreeMap<(&'static str, usize), &'a Span>;

fn evidence(span: &Span) -> &str {
    let mut said = span.attributes.iter().filter(|attribute| attribute.key == "tracer.parent.evidence");
    match said.next().map(|attribute| &attribute.value) {
        Some(Value::Text(name)) => name,
        _ => "",
    }
}

fn id(span: &Span) -> u64 {
    u64::from_be_bytes(span.id)
}

fn parent(span: &Span) -> Option<u64> {
    span.parent.map(u64::from_be_bytes)
}

/// What holds whatever is missing: no span is there twice, and each parent is the right one.
fn nothing_is_wrong<'a>(
    world: &World<'_>,
    spans: &'a [Span],
    lossy: bool,
) -> Result<Spans<'a>, TestCaseError> {
    let mut by_node = Spans::new();
    for span in spans {
        let number = world.nodes.iter().position(|node| node.path == span.view.target);
        prop_assert!(number.is_some(), "a span of nothing: {span:?}");
        let number = number.unwrap_or_default();
        prop_assert!(world.is_traced(span.kind, &world.nodes[number]), "nobody saw {span:?}");
        let twice = by_node.insert((span.kind.name(), number), span);
        prop_assert!(twice.is_none(), "twice: {} {}", span.kind.name(), span.view.target);
    }
    let ids: BTreeMap<u64, &Span> = spans.iter().map(|span| (id(span), span)).collect();
    prop_assert_eq!(ids.len(), spans.len(), "two spans have one id");
    for ((_, number), span) in &by_node {
        let node = &world.nodes[*number];
        let what = format!("{} {}, parent by {}", span.kind.name(), node.path, evidence(span));
        let Some(parent) = parent(span) else {
            prop_assert_eq!(evidence(span), "none", "{}", what);
            continue;
        };
        let found = ids.get(&parent).copied();
        if let Some(found) = found {
            prop_assert_eq!(span.trace, found.trace, "{}: another trace than its parent", what);
        }
        let said = node.head.context.map(|(_, span)| span) == Some(parent);
        if span.kind == Kind::Server {
            let is_call =
                found.is_some_and(|found| found.kind == Kind::Client && found.view.target == node.path);
            prop_assert!(said || is_call, "{what}: {:?}", found.map(|found| &found.view.target));
            prop_assert_eq!(evidence(span), if said { "header" } else { "connection" }, "{}", what);
            continue;
        }
        let reason = node.parent.map(|reason| &world.nodes[reason]);
        let right = found.is_some_and(|found| {
            found.kind == Kind::Server && reason.is_some_and(|reason| reason.path == found.view.target)
        });
        let same_ids = found.is_some_and(|found| {
            let other = world.nodes.iter().find(|other| other.path == found.view.target);
            found.kind == Kind::Server && other.is_some_and(|other| other.has_ids_of(node))
        });
        // Nor does anybody know of a service that it calls late before it was seen to.
        let unknown = node.why == Why::Late && !is_known_to_call_late(world, node);
        // And who does not see all requests and calls with the same ids takes those that are there for all.
        if !right && (lossy || unknown) && same_ids && world.plan.scope.returns {
            continue;
        }
        prop_assert!(right, "{what}: {:?}", found.map(|found| &found.view.target));
        let Some(reason) = reason else { continue };
        let trace = |node: &Node| node.head.context.map(|(trace, _)| trace);
        let proved = match evidence(span) {
            "header" => trace(node).is_some() && trace(node) == trace(reason),
            "correlation" => node.head.id.is_some() && node.head.id == reason.head.id,
            "thread" => node.calling == reason.reading && reason.working == Some(node.calling),
            _ => false,
        };
        prop_assert!(proved, "{what}: that is none");
    }
    let mut roots: BTreeMap<[u8; 16], BTreeSet<usize>> = BTreeMap::new();
    for ((_, number), span) in &by_node {
        roots.entry(span.trace).or_default().insert(world.nodes[*number].root);
    }
    let mixed = roots.values().find(|roots| roots.len() > 1);
    prop_assert!(mixed.is_none(), "a trace of several requests: {mixed:?}");
    Ok(by_node)
}

/// Whether the process has made another call before with the ids of a request that was over, and of no other.
fn is_known_to_call_late(world: &World<'_>, call: &Node) -> bool {
    let mut before = world.nodes.iter().filter(|node| {
        node.caller == call.caller && node.why == Why::Late && node.events[0] < call.events[0]
    });
    before.any(|late| {
        let served = world.nodes.iter().filter(|node| node.callee == late.caller && node.has_ids_of(late));
        let (mut busy, mut over) = (false, false);
        for node in served {
            busy |= node.is_served_at(late.called);
            over |= !node.is_served_at(late.called) && node.events[1] < late.events[0];
        }
        // Ids that the process has made itself tell nothing of that.
        let brought = is_brought(world, late, |node| node.head.context.map(|(trace, _)| trace))
            || is_brought(world, late, |node| node.head.id.clone());
        over && !busy && brought
    })
}

/// What holds besides where nothing is missing: all that is proved is there.
fn nothing_is_missing(world: &World<'_>, spans: &Spans<'_>) -> TestCaseResult {
    let firsts = firsts(world);
    for (number, node) in world.nodes.iter().enumerate() {
        let [server, client] = [Kind::Server, Kind::Client].map(|kind| {
            let span = spans.get(&(kind.name(), number)).copied();
            (span, world.is_traced(kind, node))
        });
        for (span, traced) in [server, client] {
            prop_assert_eq!(span.is_some(), traced, "a span of {}", node.path);
        }
        if let Some(span) = server.0 {
            let said = node.head.context.map(|(_, span)| span);
            let call = client.0.map(id);
            prop_assert_eq!(parent(span), call.or(said), "SERVER {}: {}", node.path, evidence(span));
        }
        if let Some(span) = client.0 {
            let own = node.head.context.filter(|context| firsts.get(context) == Some(&(number, 0)));
            if let Some((_, own)) = own {
                prop_assert_eq!(id(span), own, "CLIENT {} does not have the id that it says", node.path);
            }
            let (proof, why) = proof(world, node);
            // A service that calls late makes requests with the same ids doubtful from then on.
            let doubtful = !world.plan.scope.timely && world.plan.scope.returns;
            if let Some(proof) = proof.filter(|_| !doubtful) {
                let reason = node.parent.and_then(|reason| spans.get(&(Kind::Server.name(), reason)));
                let what = format!("CLIENT {}: {why}", node.path);
                prop_assert_eq!(parent(span), reason.map(|reason| id(reason)), "{}", what);
                prop_assert_eq!(evidence(span), proof, "{}", what);
            }
        }
    }
    Ok(())
}

/// Where each span's id was said first, among those that are seen: in which request, at which end.
fn firsts(world: &World<'_>) -> BTreeMap<Context, (usize, usize)> {
    let mut seen: Vec<(usize, Context, usize, usize)> = Vec::new();
    for (number, node) in world.nodes.iter().enumerate() {
        for (end, kind) in [Kind::Client, Kind::Server].into_iter().enumerate() {
            let context = node.head.context.filter(|_| world.is_traced(kind, node));
            seen.extend(context.map(|context| (node.events[end], context, number, end)));
        }
    }
    seen.sort_unstable();
    let mut firsts = BTreeMap::new();
    for (_, context, number, end) in seen {
        firsts.entry(context).or_insert((number, end));
    }
    firsts
}

/// By what the parent of a call is proved.
fn proof(world: &World<'_>, call: &Node) -> (Option<&'static str>, &'static str) {
    let Some(reason) = call.parent.map(|reason| &world.nodes[reason]) else { return (None, "nobody asked") };
    let served: Vec<&Node> = world
        .nodes
        .iter()
        .filter(|node| node.callee == call.caller && node.is_served_at(call.called))
        .collect();
    let trace = |node: &Node| node.head.context.map(|(trace, _)| trace);
    let id = |node: &Node| node.head.id.clone();
    let brought_trace = is_brought(world, call, trace);
    let mut by_trace: Vec<&&Node> =
        served.iter().filter(|node| brought_trace && trace(node) == trace(call)).collect();
    if is_brought(world, call, |node| node.head.context)
        && by_trace.iter().any(|node| node.head.context == call.head.context)
    {
        by_trace.retain(|node| node.head.context == call.head.context);
    }
    let brought_id = is_brought(world, call, id);
    let by_id: Vec<&&Node> = served.iter().filter(|node| brought_id && id(node) == id(call)).collect();
    // Another one alone is no proof against what is true.
    let is_reason = |found: &[&&Node]| matches!(found, [one] if one.path == reason.path);
    let process = &world.plan.processes[call.caller];
    let silent = process.passes.trace == Trace::Nothing && process.passes.id == Id::Nothing;
    let alone = matches!(process.design, Design::Threads { .. }) && reason.working == Some(call.calling);
    if is_reason(&by_trace) {
        (Some("header"), "one has this trace")
    } else if by_trace.is_empty() && is_reason(&by_id) && call.head.context.is_none() {
        (Some("correlation"), "one has this id")
    } else if silent && alone && call.why != Why::Late {
        (Some("thread"), "one thread does it all")
    } else {
        (None, "nothing tells")
    }
}

/// Whether what a call says was told its process before any call of it said it.
fn is_brought<T: PartialEq>(world: &World<'_>, call: &Node, of: impl Fn(&Node) -> Option<T>) -> bool {
    let same = |node: &&Node| of(call).is_some() && of(node) == of(call);
    let nodes = || world.nodes.iter().filter(same);
    let called = nodes().filter(|node| node.caller == call.caller).map(|node| node.events[0]).min();
    let read = nodes().filter(|node| node.callee == call.caller).map(|node| node.events[1]).min();
    read.is_some_and(|read| called.is_none_or(|called| read < called))
}

fn passes() -> impl Strategy<Value = Passes> {
    let trace = prop_oneof![
        3 => Just(Trace::Nothing),
        1 => Just(Trace::Same),
        1 => Just(Trace::Request),
        2 => Just(Trace::Call),
    ];
    let id = prop_oneof![3 => Just(Id::Nothing), 2 => Just(Id::Unique)];
    (trace, prop::bool::weighted(0.2), id).prop_map(|(trace, b3, id)| Passes { trace, b3, id })
}

fn process() -> impl Strategy<Value = Process> {
    let design = prop_oneof![
        2 => Just(Design::Threads { dedicated: true }),
        2 => Just(Design::Threads { dedicated: false }),
        2 => Just(Design::Loop),
        1 => Just(Design::Pool),
        1 => Just(Design::Shared),
    ];
    let fields = (design, prop::bool::weighted(0.8), passes(), prop::bool::weighted(0.7));
    fields.prop_map(|(design, traced, passes, keeps)| Process { design, traced, passes, keeps })
}

fn request() -> impl Strategy<Value = Request> {
    let why = prop_oneof![
        6 => Just(Why::Call),
        3 => Just(Why::Client),
        2 => Just(Why::Parallel),
        1 => Just(Why::Helper),
        1 => Just(Why::Cron),
        1 => Just(Why::Late),
    ];
    let fields = (why, any::<u8>(), any::<u8>(), prop::bool::weighted(0.3), prop::bool::weighted(0.1));
    fields.prop_map(|(why, of, to, split, again)| Request { why, of, to, split, again })
}

fn plan(scope: Scope) -> impl Strategy<Value = Plan> {
    let pace = prop_oneof![Just(10_000), Just(1_000_000), Just(10_000_000)];
    let parts = (vec(process(), 2..6), vec(request(), 1..24), vec(any::<u16>(), 1..200), pace);
    parts.prop_map(move |(processes, requests, picks, pace)| Plan { processes, requests, picks, pace, scope })
}

fn ticks() -> impl Strategy<Value = Vec<bool>> {
    vec(prop::bool::weighted(0.2), 1..60)
}

fn delays() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![3 => Just(0usize), 1 => 1..5usize], 1..60)
}

/// All comes, and in order.
fn all_in_order(plan: &Plan, ticks: Vec<bool>) -> TestCaseResult {
    let world = World::of(plan);
    let (spans, pipeline) = world.seen(&Delivery { ticks, ..Delivery::default() });
    let spans = nothing_is_wrong(&world, &spans, false)?;
    nothing_is_missing(&world, &spans)?;
    prop_assert_eq!(pipeline.unfinished(), 0);
    Ok(())
}

/// All comes, and some of it late.
fn all_in_disorder(plan: &Plan, ticks: Vec<bool>, delays: Vec<usize>) -> TestCaseResult {
    let world = World::of(plan);
    let (spans, pipeline) = world.seen(&Delivery { delays, ticks, ..Delivery::default() });
    let spans = nothing_is_wrong(&world, &spans, false)?;
    for (number, node) in world.nodes.iter().enumerate() {
        for kind in [Kind::Server, Kind::Client] {
            let seen = spans.contains_key(&(kind.name(), number));
            prop_assert_eq!(seen, world.is_traced(kind, node), "{} {}", kind.name(), &node.path);
        }
    }
    prop_assert_eq!(pipeline.unfinished(), 0);
    Ok(())
}

/// Not all comes.
fn with_losses(plan: &Plan, delivery: &Delivery) -> TestCaseResult {
    let world = World::of(plan);
    let (spans, pipeline) = world.seen(delivery);
    nothing_is_wrong(&world, &spans, true)?;
    prop_assert_eq!(pipeline.unfinished(), 0);
    Ok(())
}

fn losses() -> impl Strategy<Value = Delivery> {
    (ticks(), delays(), vec(prop::bool::weighted(0.1), 1..200)).prop_map(|(ticks, delays, lost)| Delivery {
        delays,
        lost,
        ticks,
    })
}

const ONCE: Scope = Scope { returns: false, timely: false };
const RETURNS: Scope = Scope { returns: true, timely: true };

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(1000),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn parents_are_right_and_complete(plan in plan(ONCE), ticks in ticks()) {
        all_in_order(&plan, ticks)?;
    }

    #[test]
    fn parents_are_right_in_disorder(plan in plan(ONCE), ticks in ticks(), delays in delays()) {
        all_in_disorder(&plan, ticks, delays)?;
    }

    #[test]
    fn parents_are_right_with_losses(plan in plan(ONCE), losses in losses()) {
        with_losses(&plan, &losses)?;
    }

    /// The ids of a call can then be those of several requests of one process, or of others alone.
    #[test]
    fn parents_of_requests_that_return(plan in plan(RETURNS), ticks in ticks()) {
        all_in_order(&plan, ticks)?;
    }

    #[test]
    fn parents_of_requests_that_return_in_disorder(plan in plan(RETURNS), ticks in ticks(), delays in delays()) {
        all_in_disorder(&plan, ticks, delays)?;
    }

    #[test]
    fn parents_of_requests_that_return_with_losses(plan in plan(RETURNS), losses in losses()) {
        with_losses(&plan, &losses)?;
    }

    #[test]
    fn parents_of_late_calls_of_requests_that_return(
        plan in plan(Scope { timely: false, ..RETURNS }),
        ticks in ticks(),
    ) {
        all_in_order(&plan, ticks)?;
    }
}

/// Each is told once, and none is kept for longer than it has to be.
#[test]
fn many_requests_at_once() {
    const REQUESTS: usize = 100_000;
    const OPEN: usize = 1_000;
    let process = |design| Process {
        design,
        traced: true,
        passes: Passes { trace: Trace::Nothing, b3: false, id: Id::Nothing },
        keeps: true,
    };
    let plan = Plan {
        processes: vec![process(Design::Threads { dedicated: true }), process(Design::Loop)],
        requests: Vec::new(),
        picks: vec![0],
        pace: 0,
        scope: Scope::default(),
    };
    let mut world = World::of(&plan);
    for _ in 0..OPEN {
        world.open([1, 0]);
    }
    let mut pipeline = Pipeline::new(Limits::default());
    let (mut seen, mut traces) = (vec![[0; 2]; REQUESTS], BTreeMap::new());
    let mut take = |pipeline: &mut Pipeline| {
        assert!(pipeline.unfinished() <= 4 * OPEN, "{} are kept", pipeline.unfinished());
        while let Some(span) = pipeline.poll_output() {
            let number: usize = span.view.target[1..].parse().expect("a path of ours");
            seen[number][usize::from(span.kind == Kind::Client)] += 1;
            *traces.entry(span.trace).or_insert(0) += 1;
        }
    };
    for number in 0..REQUESTS + OPEN {
        // Every round in another order.
        let connection = number * [7, 11, 13, 617][number / OPEN % 4] % OPEN;
        let (own, loops) = (thread(0, 100 + connection), thread(1, 0));
        if number >= OPEN {
            world.tell(connection, 1, Direction::Sent, ANSWER, own);
            world.tell(connection, 0, Direction::Received, ANSWER, loops);
        }
        if number < REQUESTS {
            let request = format!("GET /{number} HTTP/1.1\r\nHost: shop\r\n\r\n");
            world.tell(connection, 0, Direction::Sent, request.as_bytes(), loops);
            world.tell(connection, 1, Direction::Received, request.as_bytes(), own);
        }
        world.time += 100_000;
        for told in std::mem::take(&mut world.records) {
            pipeline.handle_record(&told.record());
        }
        if number % 100 == 0 {
            pipeline.handle_record(&Record::Tick { now: world.time });
        }
        take(&mut pipeline);
    }
    assert_eq!(pipeline.unfinished(), 0, "all are answered");
    pipeline.handle_record(&Record::Finished { now: world.time });
    take(&mut pipeline);
    assert!(seen.iter().all(|ends| *ends == [1, 1]), "each end is told once");
    assert_eq!((traces.len(), traces.values().max()), (REQUESTS, Some(&2)), "both ends are of one trace");
}

/// An id that every request has is none, as soon as that shows: what a timer does under it is nobody's child.
#[test]
fn an_id_that_many_requests_have_is_none() {
    let passes = Passes { trace: Trace::Nothing, b3: false, id: Id::Nothing };
    let process = |design| Process { design, traced: true, passes, keeps: true };
    let plan = Plan {
        processes: vec![process(Design::Loop), process(Design::Loop)],
        requests: Vec::new(),
        picks: vec![0],
        pace: 0,
        scope: Scope::default(),
    };
    const REQUESTS: usize = 200;
    let mut world = World::of(&plan);
    let (served, made) = (world.open([1, 0]), world.open([0, 1]));
    let head =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop\r\nX-Request-Id: shop-release-2024\r\n\r\n");
    for number in 0..REQUESTS {
        let (request, cron) = (head(&format!("/{number}")), head(&format!("/cron/{number}")));
        for (connection, bytes, ends) in [
            (served, request.as_bytes(), [0, 1]),
            (made, cron.as_bytes(), [0, 1]),
            (made, ANSWER, [1, 0]),
            (served, ANSWER, [1, 0]),
        ] {
            for (end, direction) in ends.into_iter().zip([Direction::Sent, Direction::Received]) {
                world.time += 1_000;
                world.tell(connection, end, direction, bytes, thread(connection, end));
            }
        }
    }
    let (spans, _) = world.seen(&Delivery::default());
    let linked = |span: &&Span| {
        span.kind == Kind::Client && span.view.target.starts_with("/cron/") && span.parent.is_some()
    };
    let last =
        spans.iter().filter(linked).map(|span| span.view.target[6..].parse::<usize>().expect("a number"));
    assert!(last.max().is_none_or(|last| last < REQUESTS / 2), "it took too long to see");
}
