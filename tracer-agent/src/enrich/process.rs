//! Processes, by what records and facts tell of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tracer_common::record::{FactKey, Process as Wire};

use super::Resource;
use crate::{capture::Life, protocol::Attribute};

/// The process id under which facts of the whole machine are told.
pub const HOST: u32 = 0;

/// More processes than these are not kept, ended or not: the oldest go.
const KNOWN_MAX: usize = 32768;

/// Processes that have ended are kept for spans that come later, up to this many.
const ENDED_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct Processes {
    known: BTreeMap<u32, Process>,
    /// In the order in which they were first told of.
    order: std::collections::VecDeque<u32>,
    /// Those that have ended, in that order.
    ended: std::collections::VecDeque<u32>,
}

#[derive(Clone, Debug, Default)]
struct Process {
    command: String,
    facts: BTreeMap<FactKey, String>,
    listening: BTreeSet<u16>,
    resource: Option<Arc<Resource>>,
    /// When its last thread ended.
    ended: Option<u64>,
}

impl Processes {
    pub fn handle_life(&mut self, life: Life, wire: &Wire) {
        let id = wire.header.pid;
        let command = text(&wire.command);
        if !self.known.contains_key(&id) {
            self.order.push_back(id);
            if self.order.len() > KNOWN_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
        match life {
            Life::Forked => {
                let parent = self.known.get(&wire.parent).cloned().unwrap_or_default();
                let child = Process { command, resource: None, ended: None, ..parent };
                self.known.insert(id, child);
            }
            Life::Executed => {
                let process = self.known.entry(id).or_default();
                *process = Process { command, ..Process::default() };
            }
            Life::Chosen => {
                let process = self.known.entry(id).or_default();
                process.command = command;
                process.ended = None;
                process.resource = None;
            }
            Life::Exited => {
                self.known.entry(id).or_default().ended = Some(wire.header.time);
                self.ended.push_back(id);
                if self.ended.len() > ENDED_MAX
                    && let Some(oldest) = self.ended.pop_front()
                    && self.known.get(&oldest).is_some_and(|process| process.ended.is_some())
                {
                    self.known.remove(&oldest);
                }
            }
        }
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

    pub fn knows(&self, process: u32) -> bool {
        self.known.contains_key(&process)
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
