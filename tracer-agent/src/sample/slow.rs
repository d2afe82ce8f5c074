//! Traces that stand out among those of the same name: the slowest of a minute, and the first of a status.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use crate::{
    protocol::{Text, Value},
    span::Span,
};

const MINUTE: u64 = 60_000_000_000;

/// More of a minute are not told from the others.
const SLOWEST_MAX: usize = 64;

/// The slowest of each minute, by service and name. A trace is one of them if fewer than so many of its minute were as
/// slow until now: so the slowest are always among those that are kept, with some more from the minute's first
/// seconds. Of n in any order that are k (1 + ln(n / k)); if each is slower than all before, it is every one.
pub(super) struct Slowest {
    names: BTreeMap<Name, [Minute; 2]>,
    held: usize,
    limit: usize,
    /// When room was made last.
    cleared: u64,
}

#[derive(Default)]
struct Minute {
    /// Since 1970.
    minute: u64,
    /// The slowest first.
    times: SmallVec<[u64; 4]>,
}

/// Service, name and route, where that is not in the name.
type Name = (Text, Text, Text);

impl Slowest {
    pub(super) fn new(limit: usize) -> Self {
        Self { names: BTreeMap::new(), held: 0, limit, cleared: 0 }
    }

    /// Whether a span is one of the `most` slowest of its minute until now.
    pub(super) fn note(&mut self, span: &Span, most: usize) -> bool {
        let most = most.min(SLOWEST_MAX);
        if most == 0 {
            return false;
        }
        let minute = span.end / MINUTE;
        let mut name = name_of(span);
        if !self.names.contains_key(&name) {
            if self.held >= self.limit && minute > self.cleared {
                self.cleared = minute;
                self.names.retain(|_, minutes| minutes[1].minute + 1 >= minute);
                let cost = |(name, minutes): (&Name, &[Minute; 2])| {
                    Self::cost(name) + minutes.iter().map(Minute::held).sum::<usize>()
                };
                self.held = self.names.iter().map(cost).sum();
            }
            if self.held >= self.limit {
                // Those that there is no room for are of one name.
                name = Name::default();
            }
        }
        let held = &mut self.held;
        let minutes = self.names.entry(name).or_insert_with_key(|name| {
            *held += Self::cost(name);
            Default::default()
        });
        if minute > minutes[1].minute {
            *held -= minutes[0].held();
            minutes.swap(0, 1);
            minutes[1] = Minute { minute, times: SmallVec::new() };
        }
        let one = &mut minutes[usize::from(minute == minutes[1].minute)];
        if minute > one.minute {
            *held -= one.held();
            *one = Minute { minute, times: SmallVec::new() };
        }
        let before = one.held();
        let is_slow = one.note(span.end.saturating_sub(span.start), most);
        *held += one.held().saturating_sub(before);
        is_slow
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    fn cost(name: &Name) -> usize {
        2 * size_of::<(Name, [Minute; 2])>() + cost_of(name)
    }
}

impl Minute {
    /// Bytes besides itself.
    fn held(&self) -> usize {
        if self.times.spilled() { self.times.capacity() * size_of::<u64>() } else { 0 }
    }

    fn note(&mut self, time: u64, most: usize) -> bool {
        let place = self.times.partition_point(|slower| *slower >= time);
        if place >= most {
            return false;
        }
        self.times.insert(place, time);
        self.times.truncate(most);
        true
    }
}

/// What was seen of each service and name by status. It is never forgotten: where there is no room for more, nothing
/// is the first any more.
pub(super) struct First {
    seen: BTreeSet<(Name, Text)>,
    held: usize,
    limit: usize,
}

impl First {
    pub(super) fn new(limit: usize) -> Self {
        Self { seen: BTreeSet::new(), held: 0, limit }
    }

    pub(super) fn note(&mut self, span: &Span) -> bool {
        if self.held >= self.limit {
            return false;
        }
        let key = (name_of(span), span.view.status.clone().unwrap_or_default());
        let cost = 2 * size_of::<(Name, Text)>() + cost_of(&key.0);
        let is_new = self.seen.insert(key);
        self.held += if is_new { cost } else { 0 };
        is_new
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }
}

fn name_of(span: &Span) -> Name {
    let route = span.attributes.iter().find(|attribute| attribute.key == "http.route");
    let route = route.and_then(|route| match &route.value {
        Value::Text(route) => Some(route.clone()),
        _ => None,
    });
    (span.resource.service.clone(), span.name.clone(), route.unwrap_or_default())
}

fn cost_of((service, name, route): &Name) -> usize {
    [service, name, route].into_iter().filter(|text| text.is_heap_allocated()).map(|text| text.len()).sum()
}
