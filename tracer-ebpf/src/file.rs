//! The socket behind a file number of the current process.

use aya_ebpf::helpers::generated::bpf_get_current_task;

use crate::{
    memory::{Object, Untyped},
    offset,
};

/// `S_IFMT` and `S_IFSOCK` (include/uapi/linux/stat.h).
const TYPE: u16 = 0o170_000;
const SOCKET: u16 = 0o140_000;

/// None for other files, and for a number that was closed meanwhile.
#[inline(always)]
pub(crate) fn socket(number: u32) -> Option<Untyped> {
    // SAFETY: no arguments.
    let task = Untyped(unsafe { bpf_get_current_task() });
    let table = task.follow(offset!(TASK_FILES)).follow(offset!(FILES_TABLE));
    if number >= table.load::<u32>(offset!(TABLE_SIZE)) {
        return None;
    }
    let file = table.follow(offset!(TABLE_FILES)).follow(number as usize * size_of::<u64>());
    if file.follow(offset!(FILE_INODE)).load::<u16>(offset!(INODE_MODE)) & TYPE != SOCKET {
        return None;
    }
    let socket = file.follow(offset!(FILE_PRIVATE)).follow(offset!(SOCKET_SOCK));
    if socket.address() == 0 { None } else { Some(socket) }
}
