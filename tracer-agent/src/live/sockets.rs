//! Unix sockets that are gone: no probe sees their end, the kernel's table of them does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use super::discover;

use tracer_common::record::OpenedUnix;

/// How often the table is looked at while there are sockets to look for.
const INTERVAL: u64 = 500_000_000;

/// Sockets that were there when their process was chosen: beyond so many the smallest inodes, which are
/// the oldest, are forgotten.
const OLD_MAX: usize = 1 << 16;

#[derive(Default)]
pub struct UnixSockets {
    /// Inodes of sockets that may have moved something before.
    old: BTreeSet<u64>,
    /// By cookie.
    open: BTreeMap<u64, Socket>,
    /// Not in the table at the last look: one that is read while it changes can miss a socket.
    missed: BTreeSet<u64>,
    /// Gone; what they moved before may still be in the ring.
    gone: Vec<u64>,
    looked: u64,
}

struct Socket {
    inode: u64,
    namespace: u32,
    process: u32,
}

impl UnixSockets {
    /// What is there now may have been used before anybody looked.
    pub fn start() -> Self {
        Self { old: inodes(std::process::id()).unwrap_or_default(), ..Self::default() }
    }

    /// A process was chosen that had begun before.
    pub fn handle_chosen(&mut self, process: u32) {
        self.old.extend(discover::sockets(process));
        while self.old.len() > OLD_MAX {
            self.old.pop_first();
        }
    }

    /// Whether the socket is one that nothing had moved on.
    pub fn is_fresh(&self, opened: &OpenedUnix) -> bool {
        !self.old.contains(&opened.inode) && !self.open.contains_key(&opened.cookie)
    }

    pub fn handle_opened(&mut self, opened: &OpenedUnix) {
        let socket =
            Socket { inode: opened.inode, namespace: opened.network_namespace, process: opened.header.pid };
        self.open.insert(opened.cookie, socket);
    }

    /// Looks which are left, if it is time to, or for the last time.
    pub fn look(&mut self, now: u64, last: bool) {
        if self.open.is_empty() || (now.saturating_sub(self.looked) < INTERVAL && !last) {
            return;
        }
        self.looked = now;
        let mut processes: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for socket in self.open.values() {
            processes.entry(socket.namespace).or_default().insert(socket.process);
        }
        let left: BTreeMap<u32, BTreeSet<u64>> = processes
            .into_iter()
            .map(|(namespace, processes)| {
                // Without any process of the namespace nobody is left to hold its sockets.
                let own = own_namespace() == Some(namespace);
                let processes = own.then_some(std::process::id()).into_iter().chain(processes);
                (namespace, processes.into_iter().find_map(inodes).unwrap_or_default())
            })
            .collect();
        let is_left = |socket: &Socket| {
            left.get(&socket.namespace).is_some_and(|inodes| inodes.contains(&socket.inode))
        };
        let before = std::mem::take(&mut self.missed);
        for (cookie, _) in self.open.iter().filter(|(_, socket)| !is_left(socket)) {
            if before.contains(cookie) || last {
                self.gone.push(*cookie);
            } else {
                self.missed.insert(*cookie);
            }
        }
        for cookie in &self.gone {
            self.open.remove(cookie);
        }
    }

    /// Those that are gone, once everything that they moved was read.
    pub fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }
}

/// The network namespace of this process.
fn own_namespace() -> Option<u32> {
    let link = fs::read_link("/proc/self/ns/net").ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of all Unix sockets in the network namespace of a process; none if it has ended.
fn inodes(process: u32) -> Option<BTreeSet<u64>> {
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).ok()?;
    Some(table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(6)?.parse().ok()).collect())
}
