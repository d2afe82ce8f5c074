//! Processes, by what records and facts tell of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tracer_common::record::{FactKey, Process as Wire};

use super::{Resource, kubernetes::Object};
use crate::{capture::Life, protocol::Attribute};

/// The process id under which facts of the whole machine are told.
pub const HOST: u32 = 0;

/// More processes than these are not kept, ended or not: the oldest go.
const KNOWN_MAX: usize = 32768;

/// Processes that have ended are kept for spans that come later, up to this many, or as many as fit into an eighth
/// of the memory.
const ENDED_MAX: usize = 4096;
const ENDED_SHARE: usize = 8;

/// What is known of one with its resource, in bytes, about.
const COST: usize = 2048;

#[derive(Debug)]
pub struct Processes {
    ended_max: usize,
    known: BTreeMap<u32, Process>,
    /// In the order in which they were first told of: numbers are used again, so each with its life.
    order: VecDeque<(u32, u64)>,
    /// Those that have ended, in that order.
    ended: VecDeque<(u32, u64)>,
    lives: u64,
}

#[derive(Clone, Debug, Default)]
struct Process {
    command: String,
    facts: BTreeMap<FactKey, String>,
    listening: BTreeSet<u16>,
    resource: Option<Arc<Resource>>,
    /// When its last thread ended.
    ended: Option<u64>,
    life: u64,
}

impl Default for Processes {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Processes {
    /// `memory`: bytes of which a part is for those that have ended.
    pub fn new(memory: usize) -> Self {
        Self {
            ended_max: (memory / ENDED_SHARE / COST).clamp(64, ENDED_MAX),
            known: BTreeMap::new(),
            order: VecDeque::new(),
            ended: VecDeque::new(),
            lives: 0,
        }
    }

    pub fn handle_life(&mut self, life: Life, wire: &Wire) {
        let id = wire.header.pid;
        let command = text(&wire.command);
        // One that was forked is another one, whoever had its number before.
        let number = match self.known.get(&id) {
            Some(known) if life != Life::Forked => known.life,
            _ => self.begin(id),
        };
        match life {
            Life::Forked => {
                let parent = self.known.get(&wire.parent).cloned().unwrap_or_default();
                let child = Process { command, resource: None, ended: None, life: number, ..parent };
                self.known.insert(id, child);
            }
            Life::Executed => {
                let process = Process { command, life: number, ..Process::default() };
                self.known.insert(id, process);
            }
            Life::Chosen => {
                let process = self.known.entry(id).or_default();
                process.command = command;
                process.ended = None;
                process.resource = None;
                process.life = number;
            }
            Life::Exited => {
                let process = self.known.entry(id).or_default();
                process.ended = Some(wire.header.time);
                process.life = number;
                self.ended.push_back((id, number));
                if self.ended.len() > self.ended_max
                    && let Some((oldest, life)) = self.ended.pop_front()
                    && self
                        .known
                        .get(&oldest)
                        .is_some_and(|known| known.ended.is_some() && known.life == life)
                {
                    self.known.remove(&oldest);
                }
            }
        }
    }

    /// A life of its own for a process. Where there are too many the oldest goes.
    fn begin(&mut self, id: u32) -> u64 {
        self.lives += 1;
        self.order.push_back((id, self.lives));
        let known = &mut self.known;
        let is_there = |(id, life): &(u32, u64)| known.get(id).is_some_and(|process| process.life == *life);
        if self.order.len() > 2 * KNOWN_MAX {
            let newest = self.lives;
            self.order.retain(|entry| entry.1 == newest || is_there(entry));
        }
        while known.len() >= KNOWN_MAX
            && let Some((oldest, life)) = self.order.pop_front()
        {
            if known.get(&oldest).is_some_and(|process| process.life == life) {
                known.remove(&oldest);
            }
        }
        self.lives
    }

    pub fn handle_fact(&mut self, process: u32, key: FactKey, value: &str) {
        if process == HOST {
            for process in self.known.values_mut() {
                process.resource = None;
            }
        }
        let process = self.known.entry(process).or_default();
        process.resource = None;
        if key == FactKey::ListeningPort {
            process.listening.extend(value.parse::<u16>());
        } else {
            process.facts.insert(key, value.to_owned());
        }
    }

    pub fn handle_object(&mut self, _object: Object) {}

    pub fn knows(&self, process: u32) -> bool {
        self.known.contains_key(&process)
    }

    /// Those that have not ended.
    pub fn running(&self) -> impl Iterator<Item = u32> {
        let running = self.known.iter().filter(|(id, process)| **id != HOST && process.ended.is_none());
        running.map(|(id, _)| *id)
    }

    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        self.known.len() * COST
    }

    /// Whether the process listened on the port when it was found.
    pub fn listens(&self, process: u32, port: u16) -> bool {
        self.known.get(&process).is_some_and(|process| process.listening.contains(&port))
    }

    /// When the process ended, if it has.
    pub fn ended(&self, process: u32) -> Option<u64> {
        self.known.get(&process)?.ended
    }

    pub fn resource(&mut self, id: u32) -> Arc<Resource> {
        if let Some(resource) = self.known.get(&id).and_then(|process| process.resource.clone()) {
            return resource;
        }
        let host = self.known.get(&HOST).and_then(|host| host.facts.get(&FactKey::HostName)).cloned();
        let process = self.known.entry(id).or_default();
        let resource = Arc::new(process.describe(id, host));
        process.resource = Some(resource.clone());
        resource
    }
}

impl Process {
    fn describe(&self, id: u32, host: Option<String>) -> Resource {
        let fact = |key| self.facts.get(&key).map(String::as_str);
        let executable = fact(FactKey::Executable).unwrap_or(&self.command);
        let environment = fact(FactKey::ResourceAttributes).unwrap_or_default();
        // The process's own name, then the one in its resource attributes, then what it is.
        let service = fact(FactKey::ServiceName)
            .or_else(|| from_environment(environment, "service.name"))
            .filter(|name| !name.is_empty())
            .unwrap_or(if executable.is_empty() { "unknown_service" } else { executable });
        let mut attributes = vec![Attribute::text("service.name", service)];
        for key in ["service.namespace", "service.version", "deployment.environment.name"] {
            if let Some(value) = from_environment(environment, key) {
                attributes.push(Attribute::text(key, value));
            }
        }
        attributes.push(Attribute::number("process.pid", id));
        if !executable.is_empty() {
            attributes.push(Attribute::text("process.executable.name", executable));
        }
        if let Some(cgroup) = fact(FactKey::Cgroup) {
            attributes.push(Attribute::text("process.linux.cgroup", cgroup));
        }
        if let Some(host) = host {
            attributes.push(Attribute::text("host.name", host));
        }
        attributes.push(Attribute::text("os.type", "linux"));
        attributes.push(Attribute::text("telemetry.sdk.name", "tracer"));
        attributes.push(Attribute::text("telemetry.sdk.language", "rust"));
        attributes.push(Attribute::text("telemetry.sdk.version", env!("CARGO_PKG_VERSION")));
        Resource { process: id, service: service.into(), attributes }
    }
}

/// A value of OTEL_RESOURCE_ATTRIBUTES (`key=value,key=value`).
fn from_environment<'a>(attributes: &'a str, key: &str) -> Option<&'a str> {
    attributes
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
        .filter(|value| !value.is_empty())
}

fn text(command: &[u8; 16]) -> String {
    let end = command.iter().position(|byte| *byte == 0).unwrap_or(command.len());
    String::from_utf8_lossy(&command[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::record::Header;

    fn tell(processes: &mut Processes, life: Life, id: u32, parent: u32) {
        let header = Header { pid: id, time: 1, ..Header::default() };
        processes.handle_life(
            life,
            &Wire { header, parent, command: *b"a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Wire::default() },
        );
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let mut processes = Processes::default();
        tell(&mut processes, Life::Chosen, 1, 0);
        processes.handle_fact(1, FactKey::Executable, "server");
        // Numbers go round many times.
        for n in 0..200_000u32 {
            let id = 2 + n % 1000;
            tell(&mut processes, Life::Forked, id, 1);
            assert_eq!(&*processes.resource(id).service, "server");
            assert_eq!(processes.ended(id), None);
            tell(&mut processes, Life::Exited, id, 0);
        }
        assert!(processes.knows(1) && processes.known.len() <= 1001 + 1);
        assert!(processes.order.len() <= 2 * KNOWN_MAX + 1 && processes.ended.len() <= ENDED_MAX);
    }

    #[test]
    fn as_many_that_have_ended_are_kept_as_fit() {
        for (memory, most) in [(0, 64), (8 << 20, 512), (1 << 30, ENDED_MAX)] {
            let mut processes = Processes::new(memory);
            for id in 1..=5000 {
                tell(&mut processes, Life::Chosen, id, 0);
                tell(&mut processes, Life::Exited, id, 0);
            }
            assert_eq!((processes.known.len(), processes.ended.len()), (most, most));
            assert!(processes.knows(5000) && !processes.knows(5000 - most as u32));
        }
    }

    #[test]
    fn the_oldest_goes_where_there_are_too_many() {
        let mut processes = Processes::default();
        (1..=KNOWN_MAX as u32 + 10).for_each(|id| tell(&mut processes, Life::Chosen, id, 0));
        assert_eq!(processes.known.len(), KNOWN_MAX);
        assert!(!processes.knows(10) && processes.knows(11));
    }
}
