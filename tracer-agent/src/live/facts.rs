//! What `/proc` says of a process, as records.

use std::{fs, path::Path};

use tracer_common::record::FactKey;

use super::{containers::Containers, discover::Seen};
use crate::{
    capture::own,
    enrich::{container::Place, process::HOST},
};

/// Variables of the process's own that name its service; no others are looked at.
const VARIABLES: [(&str, FactKey); 2] = [
    ("OTEL_SERVICE_NAME=", FactKey::ServiceName),
    ("OTEL_RESOURCE_ATTRIBUTES=", FactKey::ResourceAttributes),
];

/// The most that is read of one file.
const READ_MAX: u64 = 1 << 20;

/// Records of what is known of a process.
pub fn of(seen: &Seen, process: u32, now: u64, containers: &mut Containers) -> Vec<Vec<u8>> {
    let mut facts = Vec::new();
    let mut tell = |key, value: &str| {
        if !value.is_empty() {
            facts.push(own::fact(now, process, key, value));
        }
    };
    // The name alone is readable without any privilege; it is cut after 15 bytes.
    tell(FactKey::Executable, seen.executable_name().unwrap_or(&seen.command));
    if let Some(environment) = read(&seen.folder.join("environ")) {
        for variable in environment.split(|byte| *byte == 0) {
            for (name, key) in VARIABLES {
                if let Some(value) = variable.strip_prefix(name.as_bytes()) {
                    tell(key, &String::from_utf8_lossy(value));
                }
            }
        }
    }
    tell(FactKey::Cgroup, seen.cgroup.as_deref().unwrap_or_default());
    tell(FactKey::CgroupV1, seen.cgroup_v1.as_deref().unwrap_or_default());
    for (key, value) in containers.of(process, &seen.place()).iter() {
        tell(*key, value);
    }
    facts
}

/// Of one that is gone: in which pod and container it was is known all the same.
pub fn of_gone(cgroup: &str, process: u32, now: u64, containers: &mut Containers) -> Vec<Vec<u8>> {
    let about = containers.of(process, &Place::of(cgroup));
    let about = about.iter().map(|(key, value)| (*key, value.as_str()));
    let told = [(FactKey::Cgroup, cgroup)].into_iter().chain(about);
    told.map(|(key, value)| own::fact(now, process, key, value)).collect()
}

/// Records of the ports that a process listens on: the side of an old connection can hang on them.
pub fn listening(seen: &Seen, process: u32, now: u64) -> Vec<Vec<u8>> {
    let fact = |port: u16| own::fact(now, process, FactKey::ListeningPort, &port.to_string());
    seen.listening().into_iter().map(fact).collect()
}

/// Records of what is known of the machine.
pub fn of_host(now: u64) -> Vec<Vec<u8>> {
    vec![own::fact(now, HOST, FactKey::HostName, &host_name())]
}

pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(READ_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
