//! Processes, by what records and facts tell of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tracer_common::record::{FactKey, Process as Wire};

use super::{
    Resource,
    container::Place,
    kubernetes::{Object, Pod, pods::Pods},
    resource::Known,
};
use crate::{capture::Life, protocol::Text};

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
    programs: u64,
    pods: Pods,
    /// The last that was made for a process that is another one by now.
    former: Option<(Arc<Known>, Arc<Resource>)>,
}

#[derive(Clone, Debug, Default)]
struct Process {
    known: Arc<Known>,
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
            programs: 0,
            pods: Pods::new(memory),
            former: None,
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
                let known = Known { command, program: self.program(), ..(*parent.known).clone() };
                let child =
                    Process { known: Arc::new(known), resource: None, ended: None, life: number, ..parent };
                self.known.insert(id, child);
            }
            Life::Executed => {
                // It stays where it is: one that is gone before anybody looks has its pod.
                let before = self.known.get(&id).map(|process| process.known.clone()).unwrap_or_default();
                let place = |key: FactKey| Some((key, before.facts.get(&key)?.clone()));
                let facts = FactKey::PLACES.into_iter().filter_map(place).collect();
                let known = Known { command, facts, place: before.place.clone(), program: self.program() };
                let process = Process { known: Arc::new(known), life: number, ..Process::default() };
                self.known.insert(id, process);
            }
            Life::Chosen => {
                let program = self.program();
                let process = self.known.entry(id).or_default();
                let known = Arc::make_mut(&mut process.known);
                known.command = command;
                if known.program == 0 {
                    known.program = program;
                }
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

    fn program(&mut self) -> u64 {
        self.programs += 1;
        self.programs
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
            return;
        }
        Arc::make_mut(&mut process.known).hear(key, value);
    }

    /// Peers are none of its business.
    pub fn handle_object(&mut self, object: Object) {
        match object {
            Object::Pod(pod) => self.pods.tell(pod),
            Object::Gone { uid } => self.pods.gone(&uid),
            Object::Watch(watch) => self.pods.set_watch(watch),
            Object::Peer(_) => {}
        }
    }

    /// Whether the process was in a pod, or in a container of one, that may yet be told of: the uid and the id by
    /// which it is known then.
    pub fn lacks(&self, resource: &Resource) -> Option<(Text, Text)> {
        let known = resource.origin.known.as_ref().filter(|_| self.pods.watch().pods)?;
        known.lacks(&self.pods).then(|| {
            let id = known.place.id.clone().unwrap_or_default();
            (known.pod_uid().unwrap_or_default().into(), id)
        })
    }

    /// Whether that was told of by now.
    pub fn has(&self, pod: &str, container: &str) -> bool {
        let found = self.pods.find(Some(pod), Some(container));
        let is_its = |pod: &Arc<Pod>| pod.containers.iter().any(|known| known.id == container);
        found.is_some_and(|pod| container.is_empty() || is_its(pod))
    }

    /// The resource with what was told since it was made, also where the number is that of another process by now.
    pub fn settle(&mut self, resource: &Arc<Resource>) -> Arc<Resource> {
        let id = resource.process;
        let Some(known) = resource.origin.known.as_ref().filter(|known| known.pod_uid().is_some()) else {
            return resource.clone();
        };
        if self.known.get(&id).is_some_and(|process| process.known.program == known.program) {
            return self.resource(id);
        }
        if resource.origin.stamp == self.stamp(known) {
            return resource.clone();
        }
        if let Some((former, made)) = &self.former
            && Arc::ptr_eq(former, known)
            && made.origin.stamp == self.stamp(known)
        {
            return made.clone();
        }
        let made = Arc::new(known.describe(id, self.host(), &self.pods));
        self.former = Some((known.clone(), made.clone()));
        made
    }

    fn stamp(&self, known: &Known) -> (u64, u64) {
        self.pods.stamp(known.pod_uid(), known.place.id.as_deref())
    }

    pub fn knows(&self, process: u32) -> bool {
        self.known.contains_key(&process)
    }

    /// Whether anything is known besides that it is there, and what it is called: it may have been gone when somebody
    /// looked.
    pub fn has_facts(&self, process: u32) -> bool {
        self.known.get(&process).is_some_and(|process| !process.known.facts.is_empty())
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
        let process = self.known.entry(id).or_default();
        let known = process.known.clone();
        let before = process.resource.clone();
        if let Some(resource) = &before
            && resource.origin.stamp == self.stamp(&known)
        {
            return resource.clone();
        }
        let resource = Arc::new(known.describe(id, self.host(), &self.pods));
        if let Some(process) = self.known.get_mut(&id) {
            process.resource = Some(resource.clone());
        }
        resource
    }

    fn host(&self) -> Option<&str> {
        self.known.get(&HOST)?.known.fact(FactKey::HostName)
    }
}

impl Known {
    fn hear(&mut self, key: FactKey, value: &str) {
        let is_path = matches!(key, FactKey::Cgroup | FactKey::CgroupV1);
        if is_path && self.facts.get(&key).is_some_and(|before| before != value) {
            // It is somewhere else: what was said of the container was said of another one.
            self.facts.retain(|known, _| !FactKey::PLACES.contains(known));
        }
        self.facts.insert(key, value.to_owned());
        if is_path {
            let of = |key| self.fact(key).map(Place::of).filter(|place| !place.is_open());
            self.place = of(FactKey::Cgroup).or_else(|| of(FactKey::CgroupV1)).unwrap_or_default();
        }
    }
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

    /// Its children are looked at then: they may live longer.
    #[test]
    fn of_one_that_was_gone_before_anybody_looked_nothing_is_known() {
        let mut processes = Processes::default();
        tell(&mut processes, Life::Chosen, 1, 0);
        tell(&mut processes, Life::Forked, 2, 1);
        assert!(processes.knows(1) && !processes.has_facts(1) && !processes.has_facts(2));
        processes.handle_fact(2, FactKey::Cgroup, "/a");
        tell(&mut processes, Life::Forked, 3, 2);
        tell(&mut processes, Life::Executed, 3, 0);
        assert!(!processes.has_facts(1) && processes.has_facts(2) && processes.has_facts(3));
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
