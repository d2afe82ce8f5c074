//! How many traces a service may have in a second.

use std::collections::BTreeMap;

use crate::protocol::Text;

const SECOND: u64 = 1_000_000_000;

/// This part of a limit is for traces that are kept for another reason than their share.
const RESERVE: u32 = 4;

pub(super) struct Rates {
    services: BTreeMap<Text, Rate>,
    held: usize,
    limit: usize,
}

#[derive(Default)]
struct Rate {
    second: u64,
    this: Arrivals,
    /// Those of the second before.
    last: Arrivals,
    kept: u32,
}

#[derive(Clone, Copy, Default)]
struct Arrivals {
    all: u32,
    forced: u32,
}

impl Rates {
    pub(super) fn new(limit: usize) -> Self {
        Self { services: BTreeMap::new(), held: 0, limit }
    }

    /// A trace came. Returns the share that there is room for, by what came in the last second, or in this one if
    /// that is more already. `forced`: its share does not matter.
    pub(super) fn share(&mut self, service: &Text, now: u64, limit: u32, forced: bool) -> f64 {
        let rate = self.of(service, now);
        rate.this.all = rate.this.all.saturating_add(1);
        rate.this.forced += u32::from(forced);
        let forced = rate.this.forced.max(rate.last.forced);
        let others = (rate.this.all - rate.this.forced).max(rate.last.all - rate.last.forced).max(1);
        // Some of these is left, so that the estimate is right where the others take all that there is.
        let room = limit.saturating_sub(forced.max(limit / RESERVE)).max(limit.div_ceil(10));
        (f64::from(room) / f64::from(others)).min(1.0)
    }

    /// Whether there is room for one that is to be kept.
    pub(super) fn admit(&mut self, service: &Text, now: u64, limit: u32, forced: bool) -> bool {
        let rate = self.of(service, now);
        // More may come than was expected: they may have half of the reserve.
        let limit = if forced { limit } else { limit - limit / RESERVE / 2 };
        let room = rate.kept < limit;
        rate.kept += u32::from(room);
        room
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    fn of(&mut self, service: &Text, now: u64) -> &mut Rate {
        let second = now / SECOND;
        let mut name = service.clone();
        if !self.services.contains_key(&name) {
            if self.held >= self.limit {
                self.services.retain(|_, rate| rate.second + 1 >= second);
                self.held = self.services.keys().map(cost).sum();
            }
            if self.held >= self.limit {
                // Those that there is no room for share a limit.
                name = Text::default();
            }
        }
        let held = &mut self.held;
        let rate = self.services.entry(name).or_insert_with_key(|name| {
            *held += cost(name);
            Rate::default()
        });
        rate.turn(second);
        rate
    }
}

fn cost(name: &Text) -> usize {
    2 * size_of::<(Text, Rate)>() + name.len()
}

impl Rate {
    fn turn(&mut self, second: u64) {
        if second <= self.second {
            return;
        }
        self.last = if second == self.second + 1 { self.this } else { Arrivals::default() };
        (self.second, self.this, self.kept) = (second, Arrivals::default(), 0);
    }
}
