use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::*;
use crate::enrich::Resource;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;
const MINUTE: u64 = 60 * SECOND;

/// Room for everything.
const MUCH: usize = 64 << 20;

struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0.next_u64() % most
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

fn none() -> Rules {
    Rules { share: 0.0, errors: false, slowest: 0, first: false, flag: Flag::Ignore, per_second: None }
}

/// A local root of a service, a new trace.
fn root(dice: &mut Dice, service: &'static str, end: u64, took: u64) -> Span {
    let mut span = Span::sample();
    (span.trace, span.id, span.start, span.end) = (dice.bytes(), dice.bytes(), end - took, end);
    span.resource = Arc::new(Resource { service: Text::new_static(service), ..Resource::default() });
    span.attributes.push(Attribute::word(EVIDENCE, "none"));
    span.view.status = Some(Text::new_static("200"));
    span
}

fn child(dice: &mut Dice, parent: &Span, evidence: &'static str) -> Span {
    let mut span = parent.clone();
    (span.id, span.parent) = (dice.bytes(), Some(parent.id));
    span.kind = if parent.kind == Kind::Server { Kind::Client } else { Kind::Server };
    span.status = Status::Unset;
    span.attributes = vec![Attribute::word(EVIDENCE, evidence)];
    span
}

/// Its parent is elsewhere.
fn from_header(dice: &mut Dice, mut span: Span, sampled: bool) -> Span {
    span.parent = Some(dice.bytes());
    span.trace_flags = sampled.into();
    span.attributes = vec![Attribute::word(EVIDENCE, "header")];
    span
}

fn drain(sampler: &mut Sampler) -> Vec<Span> {
    std::iter::from_fn(|| sampler.poll_output()).collect()
}

fn run(rules: Rules, memory: usize, spans: &[(u64, Span)]) -> (Vec<Span>, Counts) {
    let mut sampler = Sampler::new(rules, memory);
    let mut kept = Vec::new();
    for (time, span) in spans {
        sampler.handle_timeout(*time);
        sampler.take(span.clone(), *time);
        let most = memory + 1024;
        assert!(sampler.held() <= most, "{} of {most}", sampler.held());
        kept.extend(drain(&mut sampler));
    }
    sampler.finish();
    kept.extend(drain(&mut sampler));
    assert!(sampler.is_empty() && sampler.held == 0);
    assert_eq!(sampler.counts().spans_kept, kept.len() as u64);
    (kept, sampler.counts.clone())
}

fn reason(span: &Span) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == "tracer.sampling.reason")?;
    match &found.value {
        Value::Text(text) => Some(text.to_string()),
        _ => None,
    }
}

fn probability(span: &Span) -> f64 {
    let found = span.attributes.iter().find(|attribute| attribute.key == "tracer.sampling.probability");
    match found.unwrap().value {
        Value::Real(value) => value.0,
        _ => panic!("no number"),
    }
}

fn traces(spans: &[Span]) -> BTreeSet<[u8; 16]> {
    spans.iter().map(|span| span.trace).collect()
}

/// Traces of a few services: children right behind their roots, some late, some with errors, and some with a second
/// local root.
fn traffic(seed: u64, count: usize) -> Vec<(u64, Span)> {
    let mut dice = Dice::new(seed);
    let mut spans = Vec::new();
    let mut time = 1_000 * MINUTE;
    for _ in 0..count {
        time += dice.below(40 * MILLISECOND);
        let service = ["shop", "cart", "stock"][dice.below(3) as usize];
        let size = 10 + dice.below(18);
        let took = MILLISECOND + dice.below(1 << size);
        let mut first = root(&mut dice, service, time, took);
        first.name = Text::new_static(["GET /a/{id}", "GET /b", "POST /c"][dice.below(3) as usize]);
        if dice.below(3) == 0 {
            let sampled = dice.below(2) == 0;
            first = from_header(&mut dice, first, sampled);
        }
        let fails = dice.below(30) == 0;
        if fails && dice.below(2) == 0 {
            first.status = Status::Error;
            first.view.status = Some(Text::new_static("500"));
        }
        let mut all = vec![(time, first)];
        for number in 0..dice.below(6) {
            let parent = all[dice.below(all.len() as u64) as usize].clone();
            let mut next = child(&mut dice, &parent.1, "thread");
            // A few come long after the decision.
            let late = if dice.below(15) == 0 { dice.below(5 * SECOND) } else { number };
            if fails && dice.below(3) == 0 {
                next.status = Status::Error;
            }
            all.push((parent.0 + late, next));
        }
        if dice.below(10) == 0 {
            let mut second = root(&mut dice, "cart", time + SECOND, took);
            second.trace = all[0].1.trace;
            let second = from_header(&mut dice, second, true);
            let below = child(&mut dice, &second, "thread");
            all.push((time + dice.below(3 * SECOND), second));
            all.push((all[all.len() - 1].0, below));
        }
        spans.extend(all);
    }
    // As they come: a child is never before its parent.
    spans.sort_by_key(|(time, _)| *time);
    spans
}

/// What is exported names no parent that is not, unless it came in a header.
fn check_parents(kept: &[Span]) {
    let mut seen = BTreeSet::new();
    for span in kept {
        if let Some(parent) = span.parent {
            assert!(is_from_header(span) || seen.contains(&(span.trace, parent)), "{span:?}");
        }
        assert!(seen.insert((span.trace, span.id)), "twice: {span:?}");
    }
}

#[test]
fn everything_goes_straight_through() {
    let spans = traffic(1, 200);
    let mut sampler = Sampler::new(Rules::default(), 0);
    for (time, span) in &spans {
        sampler.take(span.clone(), *time);
        let out = drain(&mut sampler);
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].id, out[0].attributes.len()), (span.id, span.attributes.len()));
    }
    assert_eq!((sampler.len(), sampler.counts().spans_kept), (0, spans.len() as u64));
}

#[test]
fn the_threshold_is_that_of_the_specification() {
    let trace = |last: u64| {
        let mut trace = [0xff; 16];
        trace[9..].copy_from_slice(&last.to_be_bytes()[1..]);
        trace
    };
    let most = (1 << 56) - 1;
    assert!(is_within(&trace(0), 1.0) && !is_within(&trace(most), 0.0));
    assert!(is_within(&trace(1 << 55), 0.5) && !is_within(&trace((1 << 55) - 1), 0.5));
    // `th:c` is a quarter.
    assert!(is_within(&trace(0xc0_0000_0000_0000), 0.25) && !is_within(&trace(0xbf_ffff_ffff_ffff), 0.25));
}

#[test]
fn a_larger_share_keeps_a_superset_and_the_order_does_not_matter() {
    for seed in 0..5 {
        let spans = traffic(seed, 3_000);
        let mut backwards = spans.clone();
        // Traces in another order, their spans in the same.
        backwards.sort_by_key(|(_, span)| span.trace);
        let mut smaller = BTreeSet::new();
        for share in [0.02, 0.1, 0.5, 0.9] {
            let rules = Rules { share, ..none() };
            let (kept, counts) = run(rules.clone(), MUCH, &spans);
            let kept_traces = traces(&kept);
            assert!(smaller.is_subset(&kept_traces));
            let wanted = spans.iter().filter(|(_, span)| is_within(&span.trace, share)).count();
            assert_eq!(kept.len(), wanted);
            let near = 3_000.0 * share;
            assert!((kept_traces.len() as f64 - near).abs() < 5.0 * (near * (1.0 - share)).sqrt());
            assert_eq!(counts.kept[Reason::Share as usize], kept_traces.len() as u64);
            assert_eq!(counts.dropped[Refusal::Share as usize], 3_000 - kept_traces.len() as u64);
            assert!(
                kept.iter()
                    .all(|span| reason(span).as_deref() == Some("share") && probability(span) == share)
            );
            let (again, _) = run(rules, MUCH, &backwards);
            assert_eq!(traces(&again), kept_traces);
            check_parents(&kept);
            smaller = kept_traces;
        }
    }
}

#[test]
fn what_is_kept_tells_how_many_there_were() {
    let fast = |span: &Span| span.end - span.start < 2 * MILLISECOND;
    let estimate = |kept: &[Span], of: &dyn Fn(&Span) -> bool| -> f64 {
        kept.iter().filter(|span| of(span)).map(|span| 1.0 / probability(span)).sum()
    };
    let (mut all, mut some, mut seeds) = (0.0, 0.0, 0.0);
    for seed in 0..40 {
        let spans = traffic(100 + seed, 1_500);
        let flag = Flag::Keep;
        let rules = Rules { share: 0.3, errors: true, slowest: 3, first: true, flag, per_second: None };
        let (kept, _) = run(rules, MUCH, &spans);
        let fast_ones = spans.iter().filter(|(_, span)| fast(span)).count();
        all += estimate(&kept, &|_| true) / spans.len() as f64;
        some += estimate(&kept, &fast) / fast_ones as f64;
        seeds += 1.0;
        let errors = |span: &&Span| span.status == Status::Error;
        let failed = spans.iter().filter(|(_, span)| errors(&span)).count();
        assert_eq!(kept.iter().filter(errors).count(), failed);
        assert!(kept.iter().filter(errors).all(|span| probability(span) == 1.0));
    }
    let (all, some) = (all / seeds, some / seeds);
    println!("estimates: {all:.4} of all spans, {some:.4} of fast ones");
    // One seed is wrong by about 0.05 (450 traces, of several spans each), their mean by 0.008.
    assert!((all - 1.0).abs() < 0.025 && (some - 1.0).abs() < 0.03, "{all} {some}");
}

#[test]
fn laws_hold_whatever_the_rules_and_the_memory_are() {
    for seed in 0..60 {
        let mut dice = Dice::new(900 + seed);
        let spans = traffic(seed, 600);
        let rules = Rules {
            share: [0.0, 0.05, 0.5, 1.0][dice.below(4) as usize],
            errors: true,
            slowest: dice.below(4) as usize,
            first: dice.below(2) == 0,
            flag: [Flag::Ignore, Flag::Keep, Flag::Follow][dice.below(3) as usize],
            per_second: [None, None, Some(1), Some(20)][dice.below(4) as usize],
        };
        let memory = [4 << 10, 32 << 10, 256 << 10, MUCH][dice.below(4) as usize];
        let (kept, counts) = run(rules.clone(), memory, &spans);
        if rules.keep_all() {
            assert_eq!(kept.len(), spans.len());
            continue;
        }
        check_parents(&kept);
        let ids: BTreeSet<_> = kept.iter().map(|span| span.id).collect();
        if rules.per_second.is_none() {
            for (_, span) in spans.iter().filter(|(_, span)| span.status == Status::Error) {
                assert!(ids.contains(&span.id), "{rules:?} {memory}");
            }
        }
        let (again, _) = run(rules, memory, &spans);
        assert!(kept.iter().map(|span| span.id).eq(again.iter().map(|span| span.id)));
        assert_eq!(counts.spans, spans.len() as u64);
    }
}

#[test]
fn the_slowest_of_each_minute_are_kept() {
    for seed in 0..10 {
        let most = 1 + seed as usize % 4;
        let spans = traffic(seed, 5_000);
        let (kept, counts) = run(Rules { slowest: most, ..none() }, MUCH, &spans);
        let mut minutes: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for (_, span) in spans.iter().filter(|(_, span)| is_root(span, |_| false)) {
            let key = (span.resource.service.clone(), span.name.clone(), span.end / MINUTE);
            minutes.entry(key).or_default().push(span.end - span.start);
        }
        for ((service, name, minute), mut times) in minutes {
            times.sort_unstable_by_key(|time| std::cmp::Reverse(*time));
            let of = |span: &&Span| {
                (&span.resource.service, &span.name, span.end / MINUTE) == (&service, &name, minute)
                    && is_root(span, |_| false)
            };
            let mut kept: Vec<u64> = kept.iter().filter(of).map(|span| span.end - span.start).collect();
            kept.sort_unstable_by_key(|time| std::cmp::Reverse(*time));
            times.truncate(most);
            assert_eq!(kept[..times.len()], times[..], "{service} {name} {minute}");
        }
        let slow = counts.kept[Reason::Slow as usize];
        println!("slowest {most}: {slow} of 5000 traces");
        assert!(slow < 5_000 / 3, "{slow}");
    }
}

#[test]
fn the_first_of_each_status_is_kept() {
    let spans = traffic(3, 1_000);
    let (kept, counts) = run(Rules { first: true, ..none() }, MUCH, &spans);
    let keys = |spans: &[Span]| -> BTreeSet<_> {
        let roots = spans.iter().filter(|span| is_root(span, |_| false));
        roots
            .map(|span| (span.resource.service.clone(), span.name.clone(), span.view.status.clone()))
            .collect()
    };
    let all: Vec<Span> = spans.into_iter().map(|(_, span)| span).collect();
    assert_eq!(keys(&kept), keys(&all));
    // With those that were below one that came late.
    let [first, late] = [Reason::First, Reason::Late].map(|reason| counts.kept[reason as usize]);
    assert!(first <= 20 && counts.kept.iter().sum::<u64>() == first + late, "{counts:?}");
}

#[test]
fn flags_that_came_count() {
    let mut dice = Dice::new(5);
    let mut one = |sampled: Option<bool>, error: bool| {
        let mut span = root(&mut dice, "shop", MINUTE, SECOND);
        if let Some(sampled) = sampled {
            span = from_header(&mut dice, span, sampled);
        }
        span.status = if error { Status::Error } else { Status::Unset };
        (MINUTE, span)
    };
    let spans = [one(Some(true), false), one(Some(false), false), one(None, false), one(Some(false), true)];
    let kept = |flag, share| {
        let rules = Rules { share, flag, errors: true, ..none() };
        let (kept, _) = run(rules, MUCH, &spans);
        spans.iter().map(|(_, span)| kept.iter().any(|other| other.id == span.id)).collect::<Vec<_>>()
    };
    assert_eq!(kept(Flag::Ignore, 0.0), [false, false, false, true]);
    assert_eq!(kept(Flag::Keep, 0.0), [true, false, false, true]);
    assert_eq!(kept(Flag::Follow, 0.0), [true, false, false, true]);
    assert_eq!(kept(Flag::Follow, 1.0), [true, false, true, true]);
}

#[test]
fn a_limit_leaves_room_for_errors() {
    let mut dice = Dice::new(6);
    let (mut spans, mut errors) = (Vec::new(), 0);
    for number in 0..60_000u64 {
        // 2,000 a second
        let time = MINUTE + number * MILLISECOND / 2;
        let mut span = root(&mut dice, "shop", time, MILLISECOND);
        if dice.below(200) == 0 {
            (span.status, errors) = (Status::Error, errors + 1);
        }
        spans.push((time, span));
    }
    let rules = Rules { share: 0.5, errors: true, per_second: Some(100), ..none() };
    let mut sampler = Sampler::new(rules, MUCH);
    let mut seconds: BTreeMap<u64, Vec<Span>> = BTreeMap::new();
    for (time, span) in spans {
        sampler.handle_timeout(time);
        sampler.take(span, time);
        seconds.entry(time / SECOND).or_default().extend(drain(&mut sampler));
    }
    assert!(seconds.values().all(|kept| kept.len() <= 101), "{:?}", seconds.values().map(Vec::len));
    // Not of the first seconds, when it is not known yet how many come.
    let later: Vec<&Span> = seconds.iter().skip(3).take(26).flat_map(|(_, kept)| kept).collect();
    let estimate: f64 = later.iter().map(|span| 1.0 / probability(span)).sum();
    let failed = later.iter().filter(|span| span.status == Status::Error).count();
    println!(
        "limit: {} kept of 52000, estimate {estimate:.0}, {failed} errors of all {errors}, {:?}",
        later.len(),
        sampler.counts()
    );
    assert!((estimate / 52_000.0 - 1.0).abs() < 0.06, "{estimate}");
    assert!(failed as f64 > 0.8 * f64::from(errors) * 26.0 / 30.0);
    assert!(sampler.counts().dropped[Refusal::Rate as usize] > 0);
}

#[test]
fn what_is_decided_stays_decided() {
    let mut dice = Dice::new(8);
    let mut sampler = Sampler::new(none(), MUCH);
    let dropped = root(&mut dice, "shop", MINUTE, SECOND);
    sampler.take(dropped.clone(), MINUTE);
    assert_eq!((sampler.len(), sampler.poll_output().is_none()), (1, true));
    sampler.handle_timeout(MINUTE + SETTLE);
    assert_eq!(sampler.len(), 0);
    let waiting = root(&mut dice, "shop", MINUTE, SECOND);
    sampler.take(waiting.clone(), MINUTE + SECOND);
    sampler.set_rules(Rules::default());
    assert_eq!(traces(&drain(&mut sampler)), BTreeSet::from([waiting.trace]));
    // Of the one that was dropped an error is kept, and what is below it; without a parent that nobody has.
    sampler.take(child(&mut dice, &dropped, "thread"), MINUTE + 2 * SECOND);
    assert_eq!(drain(&mut sampler).len(), 0);
    let mut late = child(&mut dice, &dropped, "thread");
    late.status = Status::Error;
    let below = child(&mut dice, &late, "connection");
    sampler.take(late.clone(), MINUTE + 2 * SECOND);
    sampler.take(below, MINUTE + 2 * SECOND);
    let out = drain(&mut sampler);
    assert_eq!(out.iter().map(|span| span.parent).collect::<Vec<_>>(), [None, Some(late.id)]);
    assert!(out.iter().all(|span| reason(span).as_deref() == Some("late") && probability(span) == 1.0));
    assert!(out[0].attributes.contains(&Attribute::word(EVIDENCE, "none")));
    assert_eq!((sampler.counts().orphans, sampler.counts().kept[Reason::Late as usize]), (1, 2));
    // After a time it is forgotten.
    sampler.handle_timeout(10 * MINUTE);
    assert_eq!(sampler.decided.held(), 0);
}

#[test]
fn a_trace_waits_for_its_last_root() {
    let mut dice = Dice::new(9);
    let mut sampler = Sampler::new(Rules { errors: true, ..none() }, MUCH);
    let first = root(&mut dice, "shop", MINUTE, SECOND);
    sampler.take(first.clone(), MINUTE);
    let mut second = root(&mut dice, "cart", MINUTE, SECOND);
    second.trace = first.trace;
    let second = Span { status: Status::Error, ..from_header(&mut dice, second, true) };
    sampler.take(second, MINUTE + SETTLE - 1);
    sampler.handle_timeout(MINUTE + SETTLE);
    assert_eq!(sampler.len(), 1);
    sampler.handle_timeout(MINUTE + 2 * SETTLE);
    assert_eq!((sampler.len(), drain(&mut sampler).len()), (0, 2));
}
