//! Who calls whom: how often, how often in vain, and how long the caller waits.

use std::collections::{BTreeMap, VecDeque};

use super::{Row, table};
use crate::{
    export::text::plain,
    protocol::{Kind, Text},
    span::{Span, Status},
};

/// Calls that wait for what their other end says: that comes right after them.
const CALLS_MAX: usize = 4096;

/// Pairs that have a row of their own.
const ROWS_MAX: usize = 500;

/// Who calls where nobody is seen to.
const OUTSIDE: &str = "(outside)";

#[derive(Default)]
pub struct Edges {
    rows: BTreeMap<(Text, Text), Row>,
    /// Calls whose callee was not seen yet, in their order.
    calls: BTreeMap<[u8; 8], Call>,
    order: VecDeque<[u8; 8]>,
}

struct Call {
    caller: Text,
    /// As the caller knows the callee.
    peer: Text,
    time: u64,
    failed: bool,
    asked: bool,
}

impl Edges {
    /// `asked`: it is to be counted. Others tell who is at the other end.
    pub fn add(&mut self, span: &Span, asked: bool) {
        let service = span.resource.service.clone();
        let (time, failed) = (span.end.saturating_sub(span.start), span.status == Status::Error);
        match span.kind {
            Kind::Client => {
                let peer = span.view.peer.clone().unwrap_or_default();
                self.calls.insert(span.id, Call { caller: service, peer, time, failed, asked });
                self.order.push_back(span.id);
                if self.order.len() > CALLS_MAX {
                    self.settle_oldest();
                }
            }
            Kind::Server => match span.parent.and_then(|parent| self.calls.remove(&parent)) {
                Some(call) => {
                    if call.asked || asked {
                        self.count(call.caller, service, call.time, call.failed);
                    }
                }
                None if asked => self.count(Text::new_static(OUTSIDE), service, time, failed),
                None => {}
            },
        }
    }

    fn settle_oldest(&mut self) {
        if let Some(call) = self.order.pop_front().and_then(|id| self.calls.remove(&id))
            && call.asked
        {
            self.count(call.caller, call.peer, call.time, call.failed);
        }
    }

    fn count(&mut self, caller: Text, callee: Text, time: u64, failed: bool) {
        let mut key = (caller, callee);
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            key = (Text::new_static("(others)"), Text::new_static("(others)"));
        }
        self.rows.entry(key).or_insert_with(Row::new).add(time, failed);
    }

    /// Lines for people, the busiest first.
    pub fn lines(&mut self) -> Vec<String> {
        while !self.order.is_empty() {
            self.settle_oldest();
        }
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(key, row)| (std::cmp::Reverse(row.count), *key));
        let head = ["CALLS", "ERRORS", "P50", "P95", "MAX", "CALLER", "CALLEE"].map(str::to_owned);
        let mut cells = vec![head];
        cells.extend(rows.into_iter().map(|((caller, callee), row)| {
            let [count, errors, middle, most, max] = row.cells();
            [count, errors, middle, most, max, plain(caller), format!("-> {}", plain(callee))]
        }));
        table(&cells)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::enrich::Resource;

    fn span(id: u64, parent: Option<u64>, kind: Kind, service: &'static str) -> Span {
        let mut span = Span::sample();
        (span.id, span.kind, span.end) = (id.to_be_bytes(), kind, span.start + 1_000_000);
        span.parent = parent.map(u64::to_be_bytes);
        span.resource = Arc::new(Resource { service: Text::new(service), ..Resource::default() });
        span.view.peer = Some(Text::new("10.0.0.7:80"));
        span
    }

    #[test]
    fn each_call_is_counted_once_with_both_its_ends() {
        let mut edges = Edges::default();
        for number in 0..10_000u64 {
            edges.add(&span(4 * number + 1, None, Kind::Server, "web"), true);
            edges.add(&span(4 * number + 2, None, Kind::Client, "web"), true);
            edges.add(&span(4 * number + 3, Some(4 * number + 2), Kind::Server, "cart"), true);
            if number % 2 == 0 {
                edges.add(&span(4 * number + 4, None, Kind::Client, "cart"), true);
            }
        }
        edges.add(&span(1 << 60, None, Kind::Client, "web"), false);
        let lines = edges.lines();
        let cells: Vec<Vec<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(cells[0], ["CALLS", "ERRORS", "P50", "P95", "MAX", "CALLER", "CALLEE"]);
        assert_eq!(cells[1], ["10000", "0", "1.00ms", "1.00ms", "1.00ms", "(outside)", "->", "web"]);
        assert_eq!(cells[2][5..], ["web", "->", "cart"]);
        assert_eq!(cells[2][0], "10000");
        assert_eq!((cells[3][0], &cells[3][5..]), ("5000", &["cart", "->", "10.0.0.7:80"][..]));
        assert_eq!(cells.len(), 4);
    }
}
