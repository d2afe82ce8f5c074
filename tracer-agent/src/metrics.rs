//! How many requests there were, how they ended, how long they took and how large they were: of every span,
//! whether it is kept or not.
//!
//! Which metrics a span belongs to, and by which attributes its series is told from others, is said by its
//! protocol ([`crate::protocol::measure`]). A series is a service, one end of a protocol and the values of
//! those attributes; it holds the duration and both sizes.
//!
//! - A *stream* ([`crate::span::View::stream`]) has a duration of its own, `tracer.server.stream.duration` and
//!   `tracer.client.stream.duration`: it tells how long somebody listened. It is in no other metric.
//! - A *partial* span is counted like any other, since requests and errors have to be right; where its end
//!   lies in a gap, its duration ends with the last byte that was seen. Sizes are counted only where all of a
//!   side was seen, up to the end of the response.
//! - What was not on the wire (a status, a method) is no attribute of the series.
//! - There are bounds ([`Options`]). Beyond them spans are counted in one series for each metric and service,
//!   with the one attribute `otel.metric.overflow`; beyond the number of services, of the service `_OTHER`.
//! - Connections ([`crate::tcp`]) have series of their own, with bounds of their own: none of them takes the place
//!   of a request's.
//! - A series that has not changed for [`Options::stale`] goes, with all its numbers. If it comes again, it
//!   starts at 0 with a later start, after a time in which it was not there: nobody sees it go backwards.

mod collection;
mod connections;
mod exponential;
mod family;
mod group;
mod histogram;
mod key;
mod service;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, sync::Arc};

pub use self::{
    collection::{Data, Metric, OVERFLOW, Point},
    exponential::{BUCKETS_MAX, Exponential},
    family::{Family, FamilyKind, Sample},
    group::Unit,
    histogram::{Exemplar, Histogram},
    service::Service,
};
use self::{
    group::{Class, Counted, Group, Groups, Measured},
    key::{Key, limited},
    service::Services,
};
use crate::{
    enrich::Resource,
    exchange::Outcome,
    protocol::{Attribute, Kind, Side, Text, Value},
    span::Span,
};

/// The value that stands for all servers beyond the bound.
const OTHER: Text = Text::new_static("_OTHER");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Exponential buckets besides the explicit ones, which stay for text.
    pub exponential: bool,
    /// Sizes of content.
    pub sizes: bool,
    /// Series of all services, and of each.
    pub series_max: usize,
    pub service_series_max: usize,
    pub services_max: usize,
    /// Values of `server.address` with `server.port` that a client may have; further ones are `_OTHER`.
    pub servers_max: usize,
    /// Nanoseconds after which a series goes that does not change.
    pub stale: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            exponential: false,
            sizes: true,
            series_max: 2_000,
            service_series_max: 500,
            services_max: 200,
            servers_max: 100,
            stale: 15 * 60 * 1_000_000_000,
        }
    }
}

/// Requests of one kind that are under way.
#[derive(Clone, Copy, Debug)]
pub struct Active<'a> {
    pub resource: &'a Arc<Resource>,
    /// One of [`crate::protocol::Protocol::exchanges`].
    pub exchange: &'a str,
    pub kind: Kind,
    /// Of the request; those that matter are taken.
    pub attributes: &'a [Attribute],
    pub count: u64,
}

pub struct Metrics {
    options: Options,
    groups: Groups,
    services: Services,
    series: BTreeMap<Key, Series>,
    /// How many of them are no overflow, by class.
    own: [usize; Class::COUNT],
    /// Room for the key of a span, kept.
    key: Key,
    /// The latest time that was told.
    now: u64,
    overflowed: u64,
    expired: u64,
}

#[derive(Debug)]
struct Series {
    start: u64,
    updated: u64,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    /// In the order of the group's instruments.
    Histograms(Box<[Histogram]>),
    Level(i64),
    Count(u64),
}

impl Metrics {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            groups: Groups::new(options.sizes),
            services: Services::new(options.services_max),
            series: BTreeMap::new(),
            own: [0; Class::COUNT],
            key: Key::default(),
            now: 0,
            overflowed: 0,
            expired: 0,
        }
    }

    /// Every span, once. `route` is what its path stands for, if that is known.
    pub fn observe(&mut self, span: &Span, route: Option<&Text>) {
        let Some(group) = self.groups.of_span(span) else { return };
        self.key.service = self.services.of(&span.resource);
        self.describe(group, span, route, true);
        let (duration, sizes) = (span.end.saturating_sub(span.start), sizes(span));
        self.update(span.end, |series| {
            let Numbers::Histograms(histograms) = &mut series.numbers else { return };
            let values = [Some(duration)].into_iter().chain(sizes);
            for (histogram, value) in histograms.iter_mut().zip(values) {
                if let Some(value) = value {
                    histogram.add(value);
                }
            }
        });
    }

    /// A span that is kept, after it was observed: what its bucket points at.
    pub fn exemplar(&mut self, span: &Span, route: Option<&Text>) {
        let Some(group) = self.groups.of_span(span) else { return };
        let Some(service) = self.services.find(&span.resource) else { return };
        self.key.service = service;
        self.describe(group, span, route, false);
        if !self.series.contains_key(&self.key) {
            self.key.overflow(&self.groups);
        }
        let Some(series) = self.series.get_mut(&self.key) else { return };
        if let Numbers::Histograms(histograms) = &mut series.numbers
            && let Some(durations) = histograms.first_mut()
        {
            let value = span.end.saturating_sub(span.start);
            durations.point_at(Exemplar { trace: span.trace, span: span.id, value, time: span.end });
        }
    }

    /// All that is under way at `now`; what was there before and is not any more is 0.
    pub fn set_active<'a>(&mut self, now: u64, active: impl IntoIterator<Item = Active<'a>>) {
        self.now = self.now.max(now);
        for series in self.series.values_mut() {
            if let Numbers::Level(level) = &mut series.numbers {
                *level = 0;
            }
        }
        for active in active {
            let Some(group) = self.groups.of(active.exchange, active.kind, Counted::Active) else { continue };
            self.key.service = self.services.of(active.resource);
            self.key.fill(group, &self.groups[group]);
            self.key.take(&self.groups[group], active.attributes);
            self.key.seal();
            self.update(now, |series| {
                if let Numbers::Level(level) = &mut series.numbers {
                    *level = level.saturating_add_unsigned(active.count);
                }
            });
        }
    }

    /// Time goes on: series that have not changed for too long go.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = self.now.max(now);
        let oldest = self.now.saturating_sub(self.options.stale);
        let before = self.series.len();
        self.series.retain(|_, series| series.updated >= oldest || series.is_active());
        if self.series.len() == before {
            return;
        }
        self.expired += (before - self.series.len()) as u64;
        self.own = [0; Class::COUNT];
        self.services.forget_series();
        for key in self.series.keys() {
            let group = &self.groups[key.group];
            let (server, class) = (group.server, group.counted.class());
            self.services.keep(key.service, class, server.map(|server| key.server(server)), key.overflow);
            self.own[class as usize] += usize::from(!key.overflow);
        }
        self.services.drop_unused();
    }

    /// All metrics by name, their points by service and attributes.
    pub fn collect(&self) -> Vec<Metric<'_>> {
        collection::of(self)
    }

    /// Series, with those of the overflow.
    pub fn series(&self) -> usize {
        self.series.len()
    }

    /// Spans that had no series of their own.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// What these metrics say of themselves.
    pub fn families(&self) -> Vec<Family> {
        vec![
            Family::of(
                "tracer.metrics.series",
                "Series of requests that are kept",
                "{series}",
                FamilyKind::Gauge,
                self.series.len() as f64,
            ),
            Family::of(
                "tracer.metrics.overflow",
                "Requests that were counted without their attributes, as there were too many series",
                "{request}",
                FamilyKind::Counter,
                self.overflowed as f64,
            ),
            Family::of(
                "tracer.metrics.expired",
                "Series that went as they did not change",
                "{series}",
                FamilyKind::Counter,
                self.expired as f64,
            ),
        ]
    }

    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        /// What a tree takes for an entry besides.
        const NODE: usize = 16;
        let entry = NODE + size_of::<Key>() + size_of::<Series>();
        let series = self.series.iter().map(|(key, series)| entry + key.held() + series.held());
        series.sum::<usize>() + self.services.held()
    }

    /// Makes the key of a span; `admit`: what is new of it may be remembered.
    fn describe(&mut self, place: usize, span: &Span, route: Option<&Text>, admit: bool) {
        let group = &self.groups[place];
        self.key.fill(place, group);
        self.key.take(group, &span.request.common.attributes);
        self.key.take(group, &span.attributes);
        self.key.take(group, &span.common.attributes);
        if let (Some(at), Some(route)) = (group.route, route) {
            self.key.values[at] = Some(limited(&Value::Text(route.clone())));
        }
        if let (Some(at), Some(stream)) = (group.stream, span.view.stream) {
            self.key.values[at] = Some(Value::Text(Text::new_static(stream)));
        }
        self.bound_server(place, admit);
        self.key.seal();
    }

    /// A server that is beyond the bound is one of the rest.
    fn bound_server(&mut self, place: usize, admit: bool) {
        let group = &self.groups[place];
        let Some(server) = group.server else { return };
        let (service, class) = (self.key.service, group.counted.class());
        let known = self.services.knows_server(service, class, self.key.server(server));
        let room = || self.services.servers(service, class) < self.options.servers_max;
        if !known && (!admit || !room()) {
            self.key.values[server[0]] = Some(Value::Text(OTHER));
            self.key.values[server[1]] = None;
        }
    }

    /// Changes the series of the key, which may have to be made.
    fn update(&mut self, time: u64, change: impl FnOnce(&mut Series)) {
        let time = time.max(self.now);
        if !self.series.contains_key(&self.key) && !self.has_room() {
            self.key.overflow(&self.groups);
        }
        let is_span = matches!(self.groups[self.key.group].counted, Counted::Calls | Counted::Streams);
        self.overflowed += u64::from(self.key.overflow && is_span);
        if let Some(series) = self.series.get_mut(&self.key) {
            series.updated = series.updated.max(time);
            return change(series);
        }
        let group = &self.groups[self.key.group];
        let mut series = Series { start: time, updated: time, numbers: group.numbers(self.options) };
        change(&mut series);
        let class = group.counted.class();
        self.services.keep(
            self.key.service,
            class,
            group.server.map(|server| self.key.server(server)),
            self.key.overflow,
        );
        self.own[class as usize] += usize::from(!self.key.overflow);
        self.series.insert(self.key.clone(), series);
    }

    fn has_room(&self) -> bool {
        let class = self.groups[self.key.group].counted.class();
        !Services::is_others(self.key.service)
            && self.own[class as usize] < self.options.series_max
            && self.services.series(self.key.service, class) < self.options.service_series_max
    }
}

impl Group {
    fn numbers(&self, options: Options) -> Numbers {
        match self.counted {
            Counted::Active => Numbers::Level(0),
            Counted::Connects | Counted::Retransmits => Numbers::Count(0),
            Counted::Calls | Counted::Streams | Counted::ConnectTimes | Counted::RoundTrips => {
                let histogram =
                    |Measured { bounds, unit, .. }: &_| Histogram::new(bounds, *unit, options.exponential);
                Numbers::Histograms(self.instruments.iter().map(histogram).collect())
            }
        }
    }
}

impl Series {
    fn is_active(&self) -> bool {
        matches!(self.numbers, Numbers::Level(level) if level != 0)
    }

    fn held(&self) -> usize {
        match &self.numbers {
            Numbers::Histograms(histograms) => histograms.iter().map(Histogram::held).sum(),
            Numbers::Level(_) | Numbers::Count(_) => 0,
        }
    }
}

/// The sizes of the content, by side, where all of it was seen.
fn sizes(span: &Span) -> [Option<u64>; 2] {
    let view = &span.view;
    let cut = span.attributes.iter().find(|attribute| attribute.key == "tracer.partial");
    let is_cut = |side: &str| {
        cut.is_some_and(
            |cut| matches!(&cut.value, Value::Text(sides) if sides.split(',').any(|cut| cut == side)),
        )
    };
    let mut sizes = [None; 2];
    if matches!(view.outcome, Outcome::Complete | Outcome::Hidden) && !is_cut("request") {
        sizes[Side::Request.index()] = Some(view.request_content);
    }
    if view.outcome == Outcome::Complete && !is_cut("response") {
        sizes[Side::Response.index()] = Some(view.response_content);
    }
    sizes
}
