//! Traces as trees, for people: who called whom, how long each took by itself, and where it went wrong.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
};

use super::{
    hex,
    text::{self, Paint, duration, plain},
};
use crate::{
    protocol::Kind,
    span::{Span, Status},
};

/// A trace is shown when nothing was added to it for so long: children come right after their parents.
const QUIET: u64 = 500_000_000;

/// Traces that are held; the oldest are shown early when there are more.
const TRACES_MAX: usize = 1024;

/// Spans of one trace that are shown.
const ROWS_MAX: usize = 200;

/// Characters of the bar, and for what stands before it.
const BAR: usize = 24;
const LABEL_MAX: usize = 72;

/// Characters of a label that show how deep it is; of more the last ones.
const LEAD_MAX: usize = 36;

/// Traces that are being put together.
#[derive(Default)]
pub struct Trees {
    traces: BTreeMap<[u8; 16], Trace>,
    /// In the order in which they will be quiet, some of them more than once.
    order: VecDeque<(u64, [u8; 16])>,
}

#[derive(Default)]
struct Trace {
    spans: Vec<Span>,
    more: usize,
    /// Some span of it is asked for.
    asked: bool,
    last: u64,
}

impl Trees {
    /// `asked`: the trace of this span is to be shown. `now` is any clock that goes forward, in nanoseconds.
    pub fn add(&mut self, span: Span, asked: bool, now: u64) {
        self.order.push_back((now, span.trace));
        let trace = self.traces.entry(span.trace).or_default();
        trace.last = now;
        trace.asked |= asked;
        if trace.spans.len() < ROWS_MAX { trace.spans.push(span) } else { trace.more += 1 }
    }

    /// The lines of a trace that is quiet by now, or that has to go for there are too many.
    pub fn poll(&mut self, now: u64, color: bool) -> Option<Vec<String>> {
        loop {
            let (time, id) = *self.order.front()?;
            let early = self.traces.len() > TRACES_MAX;
            if !early && now.saturating_sub(time) < QUIET {
                return None;
            }
            self.order.pop_front();
            // What was added since comes later in the order.
            if let Some(trace) = self.traces.get(&id)
                && (early || trace.last <= time)
                && let Some(trace) = self.traces.remove(&id)
                && trace.asked
            {
                return Some(trace.lines(color));
            }
        }
    }

    /// Whatever is left.
    pub fn finish(&mut self, color: bool) -> Vec<String> {
        std::iter::from_fn(|| self.poll(u64::MAX, color)).flatten().collect()
    }
}

impl Trace {
    fn lines(&self, color: bool) -> Vec<String> {
        let mut children: BTreeMap<[u8; 8], Vec<usize>> = BTreeMap::new();
        let places: BTreeMap<[u8; 8], usize> =
            self.spans.iter().enumerate().map(|(place, span)| (span.id, place)).collect();
        let mut roots = Vec::new();
        for (place, span) in self.spans.iter().enumerate() {
            match span.parent.filter(|parent| places.contains_key(parent)) {
                Some(parent) => children.entry(parent).or_default().push(place),
                None => roots.push(place),
            }
        }
        let by_start = |place: &usize| (self.spans[*place].start, *place);
        children.values_mut().for_each(|places| places.sort_by_key(by_start));
        roots.sort_by_key(by_start);
        let first = self.spans.iter().map(|span| span.start).min().unwrap_or(0);
        let last = self.spans.iter().map(|span| span.end).max().unwrap_or(0);
        let failed = self.spans.iter().filter(|span| span.status == Status::Error).count();
        let mut head = format!(
            "trace {}  {} {}, {}",
            hex(&self.spans.first().map(|span| span.trace).unwrap_or_default()),
            self.spans.len() + self.more,
            if self.spans.len() + self.more == 1 { "span" } else { "spans" },
            duration(last.saturating_sub(first))
        );
        match failed {
            0 => {}
            1 => head.push_str(", 1 error"),
            many => {
                let _ = write!(head, ", {many} errors");
            }
        }
        let mut rows = Vec::new();
        for root in roots {
            self.walk(root, &children, String::new(), String::new(), &mut rows);
        }
        let width = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).min(LABEL_MAX);
        let paint = Paint(color);
        let mut lines = vec![head];
        lines.extend(rows.iter().map(|row| {
            let span = &self.spans[row.place];
            let mut line = String::new();
            let _ = write!(line, "{:<width$} ", cut(&row.label, width));
            paint.put(
                &mut line,
                text::style(span),
                &format!("{:<4}", span.view.status.as_deref().unwrap_or("-")),
            );
            let total = span.end.saturating_sub(span.start);
            let mark = if span.status == Status::Error { '!' } else { ' ' };
            let _ = write!(line, "{mark}{:>9} {:>9} ", duration(total), duration(row.own));
            let _ = write!(line, "|{}|", bar(first, last, span));
            line
        }));
        if self.more > 0 {
            lines.push(format!("and {} more", self.more));
        }
        lines.push(String::new());
        lines
    }

    /// The span and what is below it. `lead` stands before its own line, `below` before those of its children.
    fn walk(
        &self,
        place: usize,
        children: &BTreeMap<[u8; 8], Vec<usize>>,
        lead: String,
        below: String,
        rows: &mut Vec<Row>,
    ) {
        let span = &self.spans[place];
        let view = &span.view;
        let sign = match span.kind {
            Kind::Client => "-> ",
            Kind::Server => "",
        };
        let service = plain(&span.resource.service);
        let depth = lead.chars().count();
        let shown: String = match depth > LEAD_MAX {
            true => std::iter::once('\u{2026}').chain(lead.chars().skip(depth + 1 - LEAD_MAX)).collect(),
            false => lead,
        };
        let mut label = format!("{shown}{service} {sign}{} {}", plain(&view.operation), plain(&view.target));
        if view.outcome != crate::exchange::Outcome::Complete {
            let _ = write!(label, " ({})", text::outcome(view.outcome).unwrap_or("open"));
        }
        // A root here, of somebody who is not seen.
        if let Some(parent) = span.parent.filter(|_| depth == 0) {
            let _ = write!(label, " (child of {})", hex(&parent));
        }
        let below_it = children.get(&span.id).map(Vec::as_slice).unwrap_or_default();
        rows.push(Row { place, label, own: self.own_time(span, below_it) });
        // Nobody calls so deep; whoever pretends to is cut.
        if rows.len() >= ROWS_MAX {
            return;
        }
        for (number, child) in below_it.iter().enumerate() {
            let is_last = number + 1 == below_it.len();
            let (lead, more) = if is_last { ("`- ", "   ") } else { ("|- ", "|  ") };
            self.walk(*child, children, format!("{below}{lead}"), format!("{below}{more}"), rows);
        }
    }

    /// What of a span's time none of its children took.
    fn own_time(&self, span: &Span, children: &[usize]) -> u64 {
        let mut own = span.end.saturating_sub(span.start);
        let mut until = span.start;
        // They are in the order of their starts.
        for child in children.iter().map(|place| &self.spans[*place]) {
            let (start, end) = (child.start.max(until), child.end.min(span.end));
            own -= end.saturating_sub(start).min(own);
            until = until.max(end);
        }
        own
    }
}

struct Row {
    place: usize,
    label: String,
    own: u64,
}

/// The start of a text that is too long, and a sign that there is more.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// When, within its trace, a span took place.
fn bar(first: u64, last: u64, span: &Span) -> String {
    let all = last.saturating_sub(first).max(1);
    let at = |time: u64| {
        let share = u128::from(time.saturating_sub(first)) * BAR as u128 / u128::from(all);
        (share as usize).min(BAR)
    };
    let (from, to) = (at(span.start).min(BAR - 1), at(span.end));
    let length = to.saturating_sub(from).max(1);
    format!("{:from$}{}{:rest$}", "", "=".repeat(length), "", rest = BAR - from - length)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{enrich::Resource, protocol::Text};

    fn span(id: u8, parent: u8, kind: Kind, service: &'static str, times: (u64, u64), failed: bool) -> Span {
        let mut span = Span::sample();
        (span.id, span.kind) = ([id; 8], kind);
        span.parent = (parent > 0).then_some([parent; 8]);
        (span.start, span.end) = (times.0 * 1_000_000, times.1 * 1_000_000);
        span.status = if failed { Status::Error } else { Status::Unset };
        span.resource = Arc::new(Resource { service: Text::new(service), ..Resource::default() });
        span.view.target = Text::new("/cart");
        span.view.status = Some(Text::new(if failed { "500" } else { "200" }));
        span
    }

    #[test]
    fn a_trace_is_shown_as_a_tree_when_it_is_quiet() {
        let mut trees = Trees::default();
        trees.add(span(1, 0, Kind::Server, "web", (0, 100), false), false, 0);
        trees.add(span(2, 1, Kind::Client, "web", (10, 90), true), true, 1);
        trees.add(span(3, 2, Kind::Server, "cart", (20, 80), true), true, 2);
        trees.add(span(4, 1, Kind::Client, "web", (50, 95), false), false, 3);
        assert_eq!(trees.poll(4, false), None);
        let lines = trees.poll(QUIET + 3, false).expect("a tree");
        let expected = [
            "trace 01010101010101010101010101010101  4 spans, 100.00ms, 2 errors",
            "web GET /cart        200   100.00ms   15.00ms |========================|",
            "|- web -> GET /cart  500 !  80.00ms   20.00ms |  ===================   |",
            "|  `- cart GET /cart 500 !  60.00ms   60.00ms |    ===============     |",
            "`- web -> GET /cart  200    45.00ms   45.00ms |            ==========  |",
            "",
        ];
        assert_eq!(lines, expected);
        assert!(trees.finish(false).is_empty());
    }

    #[test]
    fn traces_that_nobody_asked_for_are_not_shown_and_none_is_held_for_ever() {
        let mut trees = Trees::default();
        for number in 0..3 * TRACES_MAX as u64 {
            let mut other = span(1, 0, Kind::Server, "web", (0, 1), false);
            other.trace[..8].copy_from_slice(&number.to_be_bytes());
            trees.add(other, number % 2 == 0, number);
            while trees.poll(number, false).is_some() {}
            assert!(trees.traces.len() <= TRACES_MAX);
        }
        let mut long = Trees::default();
        for id in 0..250u8 {
            long.add(span(id, id.saturating_sub(1), Kind::Server, "deep", (0, 1), false), true, 0);
        }
        let lines = long.finish(false);
        assert!(lines.contains(&"and 50 more".to_owned()), "{lines:?}");
        // However deep it is, something is to be seen of it.
        assert!(lines[150].contains("deep GET") && lines[150].contains('\u{2026}'), "{}", lines[150]);
        assert!(lines.len() <= ROWS_MAX + 3);
    }
}
