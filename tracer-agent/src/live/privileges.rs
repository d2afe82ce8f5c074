//! What this process may do, and what it gives up when the probes are loaded: from then on it reads
//! `/proc`, the ring and what strangers sent, and needs little for that.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads, sock_filter,
};

/// A capability by its number (include/uapi/linux/capability.h) and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub number: u32,
    pub name: &'static str,
}

pub const DAC_READ_SEARCH: Capability = Capability { number: 2, name: "CAP_DAC_READ_SEARCH" };
pub const SYS_PTRACE: Capability = Capability { number: 19, name: "CAP_SYS_PTRACE" };
pub const SYS_ADMIN: Capability = Capability { number: 21, name: "CAP_SYS_ADMIN" };
pub const PERFMON: Capability = Capability { number: 38, name: "CAP_PERFMON" };
pub const BPF: Capability = Capability { number: 39, name: "CAP_BPF" };

/// Whether this process has it, and it counts.
pub fn has(capability: Capability) -> bool {
    effective() >> capability.number & 1 == 1
}

/// Those that loading probes needs, and that are not there.
pub fn missing_to_load() -> Vec<&'static str> {
    if has(SYS_ADMIN) {
        return Vec::new();
    }
    [BPF, PERFMON].into_iter().filter(|needed| !has(*needed)).map(|needed| needed.name).collect()
}

/// Whether capabilities are those of a namespace of users, which the kernel takes for none where probes are
/// loaded.
pub fn is_in_own_user_namespace() -> bool {
    // PROC_USER_INIT_INO (include/linux/proc_ns.h)
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() != "user:[4026531837]")
}

fn effective() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Gives up what is not needed once probes are loaded and files are open, for this thread and those that it
/// starts. `kills`: there is a command of another user, which may have to be told to end.
pub fn drop_most(kills: bool) -> Result<()> {
    // Each for itself: one that fails takes no other with it. Neither a core file nor another process shows
    // what was captured.
    let steps = [
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("core files cannot be switched off"),
        drop_capabilities(kills).context("capabilities cannot be given up"),
        set_no_new_privs(true).context("new privileges cannot be refused"),
        refuse_calls().context("system calls cannot be refused"),
    ];
    let failed: Vec<String> =
        steps.into_iter().filter_map(|step| Some(format!("{:#}", step.err()?))).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn drop_capabilities(kills: bool) -> Result<()> {
    // For `/proc` of other users' processes.
    let mut keep = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    if kills {
        keep |= CapabilitySet::KILL;
    }
    let have = capabilities(None)?;
    clear_ambient_capability_set()?;
    if have.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..64 {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(one) {
                Ok(true) if !keep.contains(one) => remove_capability_from_bounding_set(one)?,
                Ok(_) => {}
                // The kernel has no more.
                Err(_) => break,
            }
        }
    }
    let left = have.permitted & keep;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Calls that nothing here makes after loading, and that whoever took the process over would want.
const REFUSED: [libc::c_long; 28] = [
    libc::SYS_pidfd_getfd,
    libc::SYS_open_by_handle_at,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
];

/// Commands of bpf(2) that make or find something new (include/uapi/linux/bpf.h): maps, programs, pins,
/// attachments, type information, and file descriptors for those of others.
const REFUSED_OF_BPF: [u64; 14] = [0, 5, 6, 7, 8, 13, 14, 17, 18, 19, 28, 29, 30, 33];

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JGE | BPF_K` and `BPF_RET | BPF_K` (include/uapi/linux/filter.h).
const LOAD: u16 = 0x20;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// `__X32_SYSCALL_BIT`
const X32: u32 = 0x4000_0000;

fn refuse_calls() -> Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let command = |number: &u64| {
        let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *number)?;
        SeccompRule::new(vec![is])
    };
    rules.insert(libc::SYS_bpf, REFUSED_OF_BPF.iter().map(command).collect::<Result<_, _>>()?);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?;
    let mut program: BpfProgram = filter.try_into()?;
    if cfg!(target_arch = "x86_64") {
        // Behind the load of the call's number: the same calls by the numbers of x32 are none.
        let after = program.iter().position(|step| step.code == LOAD && step.k == 0);
        let at = after.context("the filter loads no number")? + 1;
        program.splice(
            at..at,
            [
                sock_filter { code: JUMP_IF_GREATER_OR_EQUAL, jt: 0, jf: 1, k: X32 },
                sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
            ],
        );
    }
    Ok(apply_filter_all_threads(&program)?)
}
