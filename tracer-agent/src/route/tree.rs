//! The paths of one service as a tree of places, each of which tells words from ids by what was asked for there.

use super::{place::Place, segment::Class};

/// Places of a service that are held.
const PLACES_MAX: usize = 2048;

/// A part of a path and what it looks like.
pub(super) struct Part<'a> {
    pub(super) text: &'a str,
    pub(super) class: Class,
}

#[derive(Default)]
pub(super) struct Tree {
    root: Place,
    tally: Tally,
    /// Requests that were learned from.
    now: u64,
    pruned: u64,
}

/// What a tree holds.
#[derive(Default)]
pub(super) struct Tally {
    places: usize,
    bytes: usize,
    pub(super) routes: usize,
}

pub(super) enum Told {
    Route(String),
    Undecided,
    Overflow,
}

impl Tree {
    pub(super) fn learn(&mut self, parts: &[Part<'_>]) {
        self.now += 1;
        if self.tally.places >= PLACES_MAX && self.now >= self.pruned + PLACES_MAX as u64 / 4 {
            self.pruned = self.now;
            self.root.prune(&mut self.tally);
        }
        let room = self.tally.places < PLACES_MAX;
        let mut node = &mut self.root;
        for part in parts {
            match node.step(part, room, self.now, &mut self.tally) {
                Some(next) => node = next,
                None => return,
            }
        }
        node.ends = true;
    }

    /// The route of a path, if all of its parts are settled.
    pub(super) fn tell(&mut self, parts: &[Part<'_>], routes_max: usize) -> Told {
        let mut node = &mut self.root;
        let mut route = String::new();
        for part in parts {
            let Some((shown, next)) = node.settled(part, self.now) else { return Told::Undecided };
            route.push('/');
            route.push_str(shown);
            node = next;
        }
        if !node.ends {
            return Told::Undecided;
        }
        if !node.told {
            if self.tally.routes >= routes_max {
                return Told::Overflow;
            }
            (node.told, self.tally.routes) = (true, self.tally.routes + 1);
        }
        if route.is_empty() {
            route.push('/');
        }
        Told::Route(route)
    }

    pub(super) fn routes(&self) -> usize {
        self.tally.routes
    }

    /// Bytes of memory, about.
    pub(super) fn held(&self) -> usize {
        size_of::<Self>() + self.tally.bytes
    }
}

impl Tally {
    pub(super) fn add(&mut self, cost: usize) {
        self.places += 1;
        self.bytes += cost;
    }

    pub(super) fn remove(&mut self, cost: usize) {
        self.places -= 1;
        self.bytes -= cost;
    }
}
