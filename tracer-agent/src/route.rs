//! The route of a request, as far as its path tells: parts that stand for one thing among many are left out.
//!
//! [`of`] looks at one path alone. [`Routes`] learns from those that were asked for before: `/users/alice` is
//! `/users/{id}` where many names were seen, and `/users/search` stays. It says nothing until it knows, so that
//! a route that was told is not replaced by a more general one later. What it knows of a service is a tree of
//! bounded size ([`tree`]), and depends on what was asked for, hardly on the order.

mod pattern;
mod place;
mod segment;
#[cfg(test)]
mod tests;
mod tree;
mod words;

use std::collections::BTreeMap;

pub use self::pattern::Pattern;
use self::{
    segment::Class,
    tree::{Part, Told, Tree},
};
use crate::protocol::Text;

/// Parts of a path that are looked at; what comes after them is `{*}`.
const DEPTH_MAX: usize = 16;

/// Services that are remembered, and bytes of memory for what was learned of them.
const SERVICES_MAX: usize = 1024;
const MEMORY_MAX: usize = 16 << 20;

/// `/users/{id}/orders` of `/users/4711/orders`, without the query.
pub fn of(target: &str) -> String {
    if target == "?" {
        // What was not seen.
        return target.to_owned();
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut route = String::with_capacity(path.len());
    for (index, part) in path.split('/').enumerate() {
        if index > 0 {
            route.push('/');
        }
        let is_id = !part.is_empty() && matches!(segment::class(part), Class::Id | Class::Status);
        route.push_str(if is_id { "{id}" } else { part });
    }
    route
}

#[derive(Clone, Debug)]
pub struct Rules {
    /// Asked before anything is learned; the first that matches is the route.
    pub patterns: Vec<Pattern>,
    /// Routes of a service that are told, besides these patterns.
    pub routes_max: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self { patterns: Vec::new(), routes_max: 200 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    Route(Text),
    /// The service has as many routes as it may.
    Overflow,
    /// Not enough was seen to tell words from ids, or the target has no path.
    Undecided,
}

pub struct Routes {
    rules: Rules,
    services: BTreeMap<Text, Service>,
    /// Of all services.
    held: usize,
    asked: u64,
}

/// Of a service in the table, besides its tree.
const SERVICE_COST: usize = 2 * size_of::<(Text, Service)>();

#[derive(Default)]
struct Service {
    tree: Tree,
    /// When it was asked for last.
    used: u64,
    held: usize,
}

impl Default for Routes {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl Routes {
    pub fn new(rules: Rules) -> Self {
        Self { rules, services: BTreeMap::new(), held: 0, asked: 0 }
    }

    /// What was learned stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The route of a request of a service. `taught`: it is one that the service knows. What was answered with
    /// 404 is not to be learned from; its route is told if that is known all the same.
    pub fn learn(&mut self, service: &str, target: &str, taught: bool) -> Learned {
        let Some(path) = path_of(target) else {
            let all = Learned::Route(Text::new_static("*"));
            return if target == "*" { all } else { Learned::Undecided };
        };
        let clean: Vec<_> = path.split('/').filter_map(segment::clean).take(DEPTH_MAX + 1).collect();
        let whole = || path.split('/').filter_map(segment::clean);
        for pattern in &self.rules.patterns {
            // Long paths may match all the same.
            let matches = match clean.len() > DEPTH_MAX {
                true => pattern.matches(whole().collect::<Vec<_>>().iter().map(|part| &**part)),
                false => pattern.matches(clean.iter().map(|part| &**part)),
            };
            if matches {
                return Learned::Route(pattern.text().clone());
            }
        }
        let parts = clean.iter().take(DEPTH_MAX);
        let parts: Vec<Part<'_>> = parts.map(|text| Part { text, class: segment::class(text) }).collect();
        self.asked += 1;
        if taught && !self.services.contains_key(service) {
            self.services.insert(Text::new(service), Service::default());
        }
        let Some(known) = self.services.get_mut(service) else { return Learned::Undecided };
        known.used = self.asked;
        if taught {
            known.tree.learn(&parts);
        }
        let told = known.tree.tell(&parts, self.rules.routes_max);
        let held = SERVICE_COST + service.len() + known.tree.held();
        self.held = self.held + held - std::mem::replace(&mut known.held, held);
        while self.services.len() > SERVICES_MAX || (self.held > MEMORY_MAX && self.services.len() > 1) {
            self.forget_oldest();
        }
        match told {
            Told::Route(mut route) => {
                if clean.len() > DEPTH_MAX {
                    route.push_str("/{*}");
                }
                Learned::Route(route.into())
            }
            Told::Overflow => Learned::Overflow,
            Told::Undecided => Learned::Undecided,
        }
    }

    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Routes that were told, of all services.
    pub fn len(&self) -> usize {
        self.services.values().map(|service| service.tree.routes()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn forget_oldest(&mut self) {
        let oldest = self.services.iter().min_by_key(|(_, service)| service.used);
        let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
        if let Some(service) = self.services.remove(&name) {
            self.held -= service.held;
        }
    }
}

/// Without the query. `None` for a target that is none, or that has no path: `host:443`, `*`.
fn path_of(target: &str) -> Option<&str> {
    let target = target.split(['?', '#']).next().unwrap_or_default();
    if target.starts_with('/') {
        return Some(target);
    }
    let (_, rest) = target.split_once("://")?;
    Some(rest.find('/').map_or("/", |at| &rest[at..]))
}
