//! What a process shows of itself that matters for what can be seen of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use object::{Object, ObjectSection, ReadCache};
use serde::Serialize;

use super::discover::{self, Seen};

/// What a library means for the tracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// It encrypts.
    Tls,
    /// It speaks a protocol, or moves bytes in a way of its own.
    Note,
}

/// The start of a file's name, what it is, what it means and what to say of it.
const LIBRARIES: &[(&str, &str, Meaning, &str)] = &[
    ("libssl.so", "OpenSSL", Meaning::Tls, "hooks on SSL_read and SSL_write are to come"),
    ("libssl-", "OpenSSL", Meaning::Tls, "hooks on SSL_read and SSL_write are to come"),
    ("libgnutls.so", "GnuTLS", Meaning::Tls, "hooks on gnutls_record_send and _recv are to come"),
    ("libnspr4.so", "NSS", Meaning::Tls, "hooks on PR_Read and PR_Write are to come"),
    ("libmbedtls.so", "Mbed TLS", Meaning::Tls, "hooks are to come"),
    ("libwolfssl.so", "wolfSSL", Meaning::Tls, "hooks are to come"),
    ("libs2n.so", "s2n-tls", Meaning::Tls, "hooks are to come"),
    ("libconscrypt", "Conscrypt (BoringSSL)", Meaning::Tls, "hooks are to come"),
    ("libnetty_tcnative", "BoringSSL for Netty", Meaning::Tls, "hooks are to come"),
    ("libjvm.so", "Java", Meaning::Tls, "its own TLS (JSSE) is code of Java, which has no function to hook"),
    ("liburing.so", "liburing", Meaning::Note, "what io_uring moves is counted and not read"),
    ("libpq.so", "PostgreSQL's client", Meaning::Note, "its protocol is to come"),
    ("libmysqlclient.so", "MySQL's client", Meaning::Note, "its protocol is to come"),
    ("libmariadb.so", "MariaDB's client", Meaning::Note, "its protocol is to come"),
    ("libhiredis.so", "Redis' client", Meaning::Note, "its protocol is to come"),
    ("librdkafka.so", "Kafka's client", Meaning::Note, "its protocol is to come"),
];

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Library {
    pub name: &'static str,
    pub file: String,
    pub meaning: Meaning,
    pub note: &'static str,
}

/// What stands in `/proc` of a process at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspected {
    pub pid: u32,
    pub command: String,
    pub executable: Option<String>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    pub libraries: Vec<Library>,
    /// Its program is for 32 bits.
    pub is_32_bit: bool,
    /// Rings of io_uring that it holds.
    pub io_urings: usize,
    pub listening: BTreeSet<u16>,
    /// TCP connections that are open, by the port of its own end.
    pub connections: BTreeMap<u16, usize>,
    pub unix_sockets: usize,
    pub udp_sockets: usize,
    /// What it has open could not be listed.
    pub hidden: bool,
}

/// None if there is no such process.
pub fn inspect(process: u32) -> Option<Inspected> {
    let seen = Seen::of(process)?;
    let program = read_program(&seen.folder.join("exe"));
    let inodes: BTreeSet<u64> = discover::sockets(process).collect();
    let among = |table: &str, field: usize| {
        let text = fs::read_to_string(seen.folder.join("net").join(table)).unwrap_or_default();
        let found = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(field)?.parse().ok());
        found.filter(|inode: &u64| inodes.contains(inode)).count()
    };
    let mut connections = BTreeMap::new();
    for port in seen.connections() {
        *connections.entry(port).or_default() += 1;
    }
    let mut libraries = libraries(&seen.folder);
    libraries.extend(inside(&seen, program.is_go));
    Some(Inspected {
        pid: process,
        container: seen.place().id.map(String::from),
        libraries,
        is_32_bit: program.is_32_bit,
        io_urings: links(&seen.folder).iter().filter(|link| *link == "anon_inode:[io_uring]").count(),
        listening: seen.listening(),
        connections,
        unix_sockets: among("unix", 6),
        udp_sockets: among("udp", 9) + among("udp6", 9),
        hidden: !discover::shows_files(process),
        command: seen.command,
        executable: seen.executable,
        cgroup: seen.cgroup,
    })
}

/// Where its open files lead.
fn links(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| Some(fs::read_link(file.path()).ok()?.to_string_lossy().into_owned())).collect()
}

/// Libraries that it has mapped, each once.
fn libraries(folder: &Path) -> Vec<Library> {
    let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default();
    let files: BTreeSet<&str> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|file| file.starts_with('/'))
        .collect();
    files
        .into_iter()
        .filter_map(|file| {
            let base = file.rsplit('/').next()?;
            let (_, name, meaning, note) = LIBRARIES.iter().find(|(start, ..)| base.starts_with(start))?;
            Some(Library { name, file: file.to_owned(), meaning: *meaning, note })
        })
        .collect()
}

/// Libraries that are part of the program.
fn inside(seen: &Seen, is_go: bool) -> Option<Library> {
    let file = seen.executable.clone()?;
    let library = |name, note| Some(Library { name, file: file.clone(), meaning: Meaning::Tls, note });
    match seen.executable_name()? {
        _ if is_go => {
            library("Go", "its crypto/tls is part of the program: hooks by its symbols are to come")
        }
        "node" | "nodejs" | "bun" | "deno" => library("TLS inside the program", "hooks are to come"),
        _ => None,
    }
}

#[derive(Default)]
struct Program {
    is_32_bit: bool,
    is_go: bool,
}

/// Only headers are read, however large the file is.
fn read_program(path: &Path) -> Program {
    let Ok(file) = fs::File::open(path) else { return Program::default() };
    let cache = ReadCache::new(file);
    let Ok(program) = object::File::parse(&cache) else { return Program::default() };
    let is_go = program.sections().any(|section| section.name() == Ok(".go.buildinfo"));
    Program { is_32_bit: !program.is_64(), is_go }
}
