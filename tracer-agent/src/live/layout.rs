//! Where members are in the kernel's structures, from the kernel's own type information (BTF,
//! Documentation/bpf/btf.rst). The probes are compiled without it and told at load time.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, anyhow, bail};

pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Global of the probes, structure, path of the member.
const MEMBERS: &[(&str, &str, &str)] = &[
    ("TCP_WRITE_SEQ", "tcp_sock", "write_seq"),
    ("TCP_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("TCP_SND_UNA", "tcp_sock", "snd_una"),
    ("TCP_SND_NXT", "tcp_sock", "snd_nxt"),
    ("TCP_RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("TCP_BYTES_ACKED", "tcp_sock", "bytes_acked"),
    ("TCP_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    ("TCP_BYTES_SENT", "tcp_sock", "bytes_sent"),
    ("TCP_BYTES_RETRANS", "tcp_sock", "bytes_retrans"),
    ("TCP_ROUND_TRIP", "tcp_sock", "srtt_us"),
    ("TCP_DEVIATION", "tcp_sock", "mdev_us"),
    ("TCP_RETRANSMITS", "tcp_sock", "total_retrans"),
    ("TCP_LOCAL_PORT", "tcp_sock", "inet_conn.icsk_inet.inet_sport"),
    ("SOCK_ERROR", "sock", "sk_err"),
    ("SOCK_FLAGS", "sock", "__sk_common.skc_flags"),
    ("SOCK_STATE", "sock", "__sk_common.skc_state"),
    ("SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    ("SOCK_LOCAL_PORT", "sock", "__sk_common.skc_num"),
    ("SOCK_PEER_PORT", "sock", "__sk_common.skc_dport"),
    ("SOCK_LOCAL_V4", "sock", "__sk_common.skc_rcv_saddr"),
    ("SOCK_PEER_V4", "sock", "__sk_common.skc_daddr"),
    ("SOCK_LOCAL_V6", "sock", "__sk_common.skc_v6_rcv_saddr"),
    ("SOCK_PEER_V6", "sock", "__sk_common.skc_v6_daddr"),
    ("SOCK_NET", "sock", "__sk_common.skc_net.net"),
    ("SOCK_SOCKET", "sock", "sk_socket"),
    ("SOCKET_FILE", "socket", "file"),
    ("NET_INUM", "net", "ns.inum"),
    ("SOCK_TYPE", "sock", "sk_type"),
    ("SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("SOCKET_SOCK", "socket", "sk"),
    ("FILE_PRIVATE", "file", "private_data"),
    ("INODE_MODE", "inode", "i_mode"),
    ("TASK_FILES", "task_struct", "files"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_SIZE", "fdtable", "max_fds"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("SOCK_SHUTDOWN", "sock", "sk_shutdown"),
    ("UNIX_ADDR", "unix_sock", "addr"),
    ("UNIX_PEER", "unix_sock", "peer"),
    ("UNIX_ADDRESS_LENGTH", "unix_address", "len"),
    ("UNIX_ADDRESS_NAME", "unix_address", "name"),
    ("TASK_STATUS", "task_struct", "thread_info.status"),
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_SIGNAL", "task_struct", "signal"),
    ("TASK_COMM", "task_struct", "comm"),
    ("TASK_FLAGS", "task_struct", "flags"),
    ("TASK_CGROUPS", "task_struct", "cgroups"),
    ("SIGNAL_LIVE", "signal_struct", "live"),
    ("BINPRM_FILE", "linux_binprm", "file"),
    ("FILE_INODE", "file", "f_inode"),
    ("FILE_DENTRY", "file", "f_path.dentry"),
    ("FILE_FLAGS", "file", "f_flags"),
    ("DENTRY_NAME", "dentry", "d_name.name"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("INODE_SUPER", "inode", "i_sb"),
    ("SUPER_DEVICE", "super_block", "s_dev"),
    ("CSS_SET_CGROUP", "css_set", "dfl_cgrp"),
    ("CGROUP_ANCESTORS", "cgroup", "ancestors"),
    ("CGROUP_LEVEL", "cgroup", "level"),
    ("CGROUP_NODE", "cgroup", "kn"),
    ("NODE_ID", "kernfs_node", "id"),
];

/// The same of members that not every kernel has: what is not there stays 0.
const OPTIONAL: &[(&str, &str, &str)] = &[
    // Spinlocks of real-time kernels are others.
    ("SOCK_LOCK", "sock", "sk_lock.slock.rlock.raw_lock.val.counter"),
    ("SOCK_OWNED", "sock", "sk_lock.owned"),
];

/// Globals of the probes with their values.
pub fn offsets() -> Result<Vec<(&'static str, u32)>> {
    let bytes = std::fs::read(Path::new(BTF)).with_context(|| {
        format!("this kernel gives no type information ({BTF}); CONFIG_DEBUG_INFO_BTF is needed")
    })?;
    let types = Types::parse(&bytes)
        .with_context(|| format!("the kernel's type information ({BTF}) cannot be read"))?;
    let optional = OPTIONAL
        .iter()
        .filter_map(|(global, structure, member)| Some(Ok((*global, types.offset(structure, member)?))));
    MEMBERS
        .iter()
        .map(|(global, structure, member)| {
            let offset = types
                .offset(structure, member)
                .ok_or_else(|| anyhow!("this kernel's `struct {structure}` has no member `{member}`"))?;
            Ok((*global, offset))
        })
        .chain(optional)
        .collect()
}

const MAGIC: u16 = 0xeb9f;

/// `BTF_KIND_*` (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

const HEADER: usize = 12;
const MEMBER: usize = 12;

struct Types<'a> {
    bytes: &'a [u8],
    strings: usize,
    /// Where each type is, by its number.
    places: Vec<usize>,
    /// Structures and unions that have members.
    structures: BTreeMap<&'a str, u32>,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()[..]) {
            bail!("{BTF} is not type information");
        }
        let field = |offset| word(bytes, offset).map(|word| word as usize).context("cut short");
        let header = field(4)?;
        let (start, length) = (header + field(8)?, field(12)?);
        let mut types =
            Self { bytes, strings: header + field(16)?, places: vec![0], structures: BTreeMap::new() };
        let mut place = start;
        while place < start + length {
            let number = types.places.len() as u32;
            types.places.push(place);
            let (kind, members) = types.kind(place).context("cut short")?;
            if matches!(kind, kind::STRUCT | kind::UNION) && members > 0 {
                let name = types.name(place).unwrap_or_default();
                types.structures.entry(name).or_insert(number);
            }
            let members = members as usize;
            place += HEADER
                + match kind {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION => members * MEMBER,
                    kind::ENUM | kind::FUNC_PROTO => members * 8,
                    kind::DATASEC | kind::ENUM64 => members * 12,
                    _ => 0,
                };
        }
        Ok(types)
    }

    fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut number = *self.structures.get(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (next, bits) = self.member(number, name)?;
            offset += bits;
            number = next;
        }
        (offset % 8 == 0).then_some(offset / 8)
    }

    /// Type and offset in bits of a member; members of members without a name count as its own.
    fn member(&self, number: u32, name: &str) -> Option<(u32, u32)> {
        let place = *self.places.get(self.resolve(number)? as usize)?;
        let (kind, members) = self.kind(place)?;
        if !matches!(kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        // With this bit the upper byte of an offset is the width of a bit field.
        let has_widths = word(self.bytes, place + 4)? >> 31 == 1;
        for index in 0..members as usize {
            let at = place + HEADER + index * MEMBER;
            let (kind, bits) = (word(self.bytes, at + 4)?, word(self.bytes, at + 8)?);
            let bits = if has_widths { bits & 0x00ff_ffff } else { bits };
            match self.name(at)? {
                found if found == name => return Some((kind, bits)),
                "" => {
                    if let Some((inner, more)) = self.member(kind, name) {
                        return Some((inner, bits + more));
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Follows names and qualifiers to what they stand for.
    fn resolve(&self, mut number: u32) -> Option<u32> {
        loop {
            let place = *self.places.get(number as usize)?;
            match self.kind(place)?.0 {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    number = word(self.bytes, place + 8)?;
                }
                _ => return Some(number),
            }
        }
    }

    fn kind(&self, place: usize) -> Option<(u32, u32)> {
        let information = word(self.bytes, place + 4)?;
        Some((information >> 24 & 31, information & 0xffff))
    }

    fn name(&self, place: usize) -> Option<&'a str> {
        let name = self.bytes.get(self.strings + word(self.bytes, place)? as usize..)?;
        std::str::from_utf8(&name[..memchr::memchr(0, name)?]).ok()
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset + 4)?;
    Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}
