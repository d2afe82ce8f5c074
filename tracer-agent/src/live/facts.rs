//! What `/proc` says of a process, as records.

use std::{collections::BTreeSet, fs, os::unix::ffi::OsStrExt, path::Path};

use tracer_common::record::FactKey;

use crate::{capture::own, enrich::process::HOST};

/// Variables of the process's own that name its service; no others are looked at.
const VARIABLES: [(&str, FactKey); 2] = [
    ("OTEL_SERVICE_NAME=", FactKey::ServiceName),
    ("OTEL_RESOURCE_ATTRIBUTES=", FactKey::ResourceAttributes),
];

/// The most that is read of one file.
const READ_MAX: u64 = 1 << 20;

/// `TCP_LISTEN` in `/proc/net/tcp` (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Records of what is known of a process; none if it is gone.
pub fn of(process: u32, now: u64) -> Vec<Vec<u8>> {
    let folder = Path::new("/proc").join(process.to_string());
    let mut facts = Vec::new();
    let mut tell = |key, value: &str| {
        if !value.is_empty() {
            facts.push(own::fact(now, process, key, value));
        }
    };
    if let Ok(path) = fs::read_link(folder.join("exe"))
        && let Some(name) = path.file_name()
    {
        let name = name.to_string_lossy();
        tell(FactKey::Executable, name.strip_suffix(" (deleted)").unwrap_or(&name));
    } else if let Ok(command) = fs::read_to_string(folder.join("comm")) {
        // Readable without any privilege; cut after 15 bytes.
        tell(FactKey::Executable, command.trim_end());
    }
    if let Some(environment) = read(&folder.join("environ")) {
        for variable in environment.split(|byte| *byte == 0) {
            for (name, key) in VARIABLES {
                if let Some(value) = variable.strip_prefix(name.as_bytes()) {
                    tell(key, &String::from_utf8_lossy(value));
                }
            }
        }
    }
    if let Some(cgroups) = read(&folder.join("cgroup")) {
        let cgroups = String::from_utf8_lossy(&cgroups);
        if let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::")) {
            tell(FactKey::Cgroup, path);
        }
    }
    facts
}

/// Records of the ports that a process listens on: the side of an old connection can hang on them.
pub fn listening(process: u32, now: u64) -> Vec<Vec<u8>> {
    let folder = Path::new("/proc").join(process.to_string());
    let Ok(files) = fs::read_dir(folder.join("fd")) else { return Vec::new() };
    let inodes: BTreeSet<String> = files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter_map(|target| {
            let target = target.as_os_str().as_bytes();
            let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
            Some(String::from_utf8_lossy(inode).into_owned())
        })
        .collect();
    let mut ports = BTreeSet::new();
    for table in ["net/tcp", "net/tcp6"] {
        let Ok(table) = fs::read_to_string(folder.join(table)) else { continue };
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { continue };
            if state == LISTEN
                && inodes.contains(inode)
                && let Some((_, port)) = local.rsplit_once(':')
                && let Ok(port) = u16::from_str_radix(port, 16)
            {
                ports.insert(port);
            }
        }
    }
    ports.into_iter().map(|port| own::fact(now, process, FactKey::ListeningPort, &port.to_string())).collect()
}

/// Records of what is known of the machine.
pub fn of_host(now: u64) -> Vec<Vec<u8>> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    vec![own::fact(now, HOST, FactKey::HostName, &name)]
}

fn read(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(READ_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
