//! Reads of kernel and user memory, and the kernel's structure offsets: the only raw pointers.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::helpers::{bpf_probe_read_user, generated};

/// Offsets of structure members, set by the agent from the kernel's type information. In frozen
/// read-only data the verifier takes them as constants, so a read at one is a plain load.
macro_rules! offsets {
    ($($name:ident)*) => { $(
        // SAFETY: the agent sets it by this name before loading; nothing else has the name.
        #[unsafe(no_mangle)]
        pub(crate) static $name: u32 = 0;
    )* };
}

offsets! {
    TCP_WRITE_SEQ TCP_COPIED_SEQ TCP_SND_UNA TCP_SND_NXT TCP_RCV_NXT
    TCP_BYTES_ACKED TCP_BYTES_RECEIVED TCP_BYTES_SENT TCP_BYTES_RETRANS
    TCP_ROUND_TRIP TCP_DEVIATION TCP_RETRANSMITS TCP_LOCAL_PORT SOCK_ERROR
    SOCK_LOCK SOCK_OWNED
    SOCK_FLAGS SOCK_STATE SOCK_FAMILY SOCK_LOCAL_PORT SOCK_PEER_PORT SOCK_LOCAL_V4 SOCK_PEER_V4
    SOCK_LOCAL_V6 SOCK_PEER_V6 SOCK_NET SOCK_SOCKET SOCKET_FILE NET_INUM
    SOCK_TYPE SOCK_SHUTDOWN UNIX_ADDR UNIX_PEER UNIX_ADDRESS_LENGTH UNIX_ADDRESS_NAME
    SOCK_PROTOCOL SOCKET_SOCK FILE_PRIVATE INODE_MODE
    TASK_FILES FILES_TABLE TABLE_SIZE TABLE_FILES
    TASK_STATUS TASK_TGID TASK_SIGNAL TASK_COMM TASK_FLAGS TASK_CGROUPS SIGNAL_LIVE
    BINPRM_FILE FILE_INODE FILE_DENTRY FILE_FLAGS DENTRY_NAME INODE_NUMBER INODE_SUPER SUPER_DEVICE
    CSS_SET_CGROUP CGROUP_ANCESTORS CGROUP_LEVEL CGROUP_NODE NODE_ID
}

// Whether the agent has a say in who is chosen; the agent's own process; and whether connections are known
// by what the kernel calls their socket, or by where it is (then the kernel gives no cookies to the programs
// that need them); whether there is a budget to stay within; and the size of the ring.
offsets! { DECIDED_BY_AGENT OWN_PROCESS BY_ADDRESS HAS_BUDGET RING_SIZE }
offsets! {
    FRAMING_PREFIX_0 FRAMING_PREFIX_1 FRAMING_PREFIX_2 FRAMING_PREFIX_3 FRAMING_PREFIX_LENGTH
    FRAMING_HEADER FRAMING_LENGTH_AT FRAMING_LENGTH_SIZE FRAMING_KIND_AT FRAMING_KINDS FRAMING_CONTENT
}

/// The value of one of the offsets above.
#[macro_export]
macro_rules! offset {
    ($name:ident) => {
        $crate::memory::constant(&$crate::memory::$name)
    };
}

/// A read-only value that the loader may have replaced: never folded at compile time.
#[inline(always)]
pub(crate) fn constant(value: &'static u32) -> usize {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::read_volatile(value) as usize }
}

/// A kernel object, read at offsets of its members.
pub(crate) trait Object: Copy {
    fn at(address: u64) -> Self;
    fn address(self) -> u64;

    /// A plain number.
    fn load<T: Copy + Default>(self, offset: usize) -> T;

    /// An object that a member points to.
    #[inline(always)]
    fn follow(self, offset: usize) -> Self {
        Self::at(self.load::<u64>(offset))
    }

    /// A member that is no plain number, by a checked copy.
    #[inline(always)]
    fn copy<T: Copy + Default>(self, offset: usize) -> T {
        read_kernel(self.address(), offset)
    }
}

/// One that the verifier knows the type of, and of what it points to: loads that it checks.
#[derive(Clone, Copy)]
pub(crate) struct Typed(pub(crate) u64);

impl Object for Typed {
    #[inline(always)]
    fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn load<T: Copy + Default>(self, offset: usize) -> T {
        // SAFETY: the verifier refuses the program unless the object has such a member there; such
        // loads of kernel objects cannot fault.
        unsafe { core::ptr::read_volatile((self.0 as *const u8).add(offset).cast::<T>()) }
    }
}

/// One that the verifier knows nothing of: copies that cannot fault.
#[derive(Clone, Copy)]
pub(crate) struct Untyped(pub(crate) u64);

impl Object for Untyped {
    #[inline(always)]
    fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn load<T: Copy + Default>(self, offset: usize) -> T {
        read_kernel(self.0, offset)
    }
}

/// Kernel memory at an address of unknown type; zero where it cannot be read.
#[inline(always)]
pub(crate) fn read_kernel<T: Copy + Default>(address: u64, offset: usize) -> T {
    let mut value = T::default();
    let source = (address as usize + offset) as *const core::ffi::c_void;
    // What it returns is not looked at, which would be one more way for the verifier to follow: where it fails it
    // writes zeros. SAFETY: the value is valid for its size, of plain numbers; the helper checks the source.
    unsafe { generated::bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, source) };
    value
}

/// A text that ends with 0, or its start; `target` is all zeros before.
#[inline(always)]
pub(crate) fn read_kernel_text<const N: usize>(address: u64, target: &mut [u8; N]) {
    // SAFETY: the target is valid for N bytes; the helper checks the source.
    unsafe {
        generated::bpf_probe_read_kernel_str(target.as_mut_ptr().cast(), N as u32, address as *const _);
    }
}

/// Copies kernel memory; false where it cannot be read.
#[inline(always)]
pub(crate) fn copy_kernel<const N: usize>(address: u64, length: u32, target: &mut [u8; N]) -> bool {
    let length = bounded(length, N as u32);
    // SAFETY: the target is valid for N bytes; the helper checks the source.
    unsafe { generated::bpf_probe_read_kernel(target.as_mut_ptr().cast(), length, address as *const _) == 0 }
}

/// Memory of the current process.
#[inline(always)]
pub(crate) fn read_user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Copies `length` bytes of the current process to `target`; false where they cannot be read.
///
/// # Safety
/// `target` must be valid for `length` bytes, in a way that the verifier can follow.
#[inline(always)]
pub(crate) unsafe fn copy_user(target: *mut u8, length: u32, source: u64) -> bool {
    // SAFETY: the caller's promise for the target; the helper checks the source.
    unsafe { generated::bpf_probe_read_user(target.cast(), length, source as *const _) == 0 }
}

/// What [`copy_user_few`] copies at most, and what it writes.
pub(crate) const FEW: u32 = 16;

/// The same for few bytes, over the stack: checks on where they go (CONFIG_HARDENED_USERCOPY) cost more than that.
///
/// # Safety
/// `target` must be valid for [`FEW`] bytes, in a way that the verifier can follow.
#[inline(always)]
pub(crate) unsafe fn copy_user_few(target: *mut u8, length: u32, source: u64) -> bool {
    let mut few = MaybeUninit::<[u64; FEW as usize / 8]>::uninit();
    zero_words(few.as_mut_ptr());
    let words = few.as_mut_ptr().cast::<u64>();
    // SAFETY: the stack has room for so many, which are zeros before; the caller's promise for the target.
    unsafe {
        let read = copy_user(words.cast(), bounded(length, FEW), source);
        store(target, core::ptr::read_volatile(words));
        store(target.add(8), core::ptr::read_volatile(words.add(1)));
        read
    }
}

/// Writes a word wherever it is. LLVM would go byte by byte where it does not know that the place is aligned.
///
/// # Safety
/// `target` must be valid for 8 bytes.
#[inline(always)]
unsafe fn store(target: *mut u8, word: u64) {
    // SAFETY: the caller's promise; the kernel lets programs write unaligned words.
    unsafe {
        asm!("*(u64 *)({0} + 0) = {1}", in(reg) target, in(reg) word, options(nostack, preserves_flags))
    }
}

/// Reads half a word in the same way.
///
/// # Safety
/// `source` must be valid for 4 bytes.
#[inline(always)]
pub(crate) unsafe fn load(source: *const u8) -> u32 {
    let half: u64;
    // SAFETY: as above.
    unsafe {
        asm!(
            "{0} = *(u32 *)({1} + 0)", out(reg) half, in(reg) source,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    half as u32
}

/// Copies a value of whole words, aligned to 8. LLVM would make a call of memmove of an assignment of many fields,
/// which goes byte by byte here.
#[inline(always)]
pub(crate) fn copy_words<T: Copy>(target: &mut T, source: &T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let (target, source) = ((&raw mut *target).cast::<u64>(), (&raw const *source).cast::<u64>());
    for index in 0..size_of::<T>() / 8 {
        // SAFETY: both are valid for so many words; any eight bytes of plain numbers are one.
        unsafe { core::ptr::write_volatile(target.add(index), core::ptr::read_volatile(source.add(index))) }
    }
}

/// Zeros for as many words. LLVM would make a call of memset of neighbouring zeros, which goes byte by byte here.
#[inline(always)]
pub(crate) fn zero_words<T: Copy>(target: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for index in 0..size_of::<T>() / 8 {
        // SAFETY: the callers' targets are valid for so many words, aligned to 8; zeros are plain numbers.
        unsafe { core::ptr::write_volatile(target.cast::<u64>().add(index), 0) }
    }
}

/// Hides where a number came from, so that the check that follows is kept: LLVM would drop a bound
/// that it can prove, and the verifier cannot. What was checked is hidden in turn, since verifiers before
/// Linux 6.3 do not know that a copy of the number, put down before the check, is the same. In 64 bits,
/// since the verifier forgets what it knows of a stack slot when the other half is written.
#[inline(always)]
pub(crate) fn bounded(value: u32, most: u32) -> u32 {
    let value = hidden(value as u64);
    let value = if value > most as u64 { most as u64 } else { value };
    hidden(value) as u32
}

/// The same of an offset that is smaller than a power of two, which is `mask` + 1: older verifiers know more of
/// a mask than of a comparison.
#[inline(always)]
pub(crate) fn masked(value: u32, mask: u32) -> u32 {
    hidden(value as u64) as u32 & mask
}

/// The same number, of which LLVM knows nothing. One instruction, where `black_box` goes over the stack.
#[inline(always)]
fn hidden(value: u64) -> u64 {
    let known = value;
    let value: u64;
    // SAFETY: it moves a register to itself. (Nothing at all would be two lines at one instruction for the kernel.)
    unsafe {
        asm!("{0} = {0}", inlateout(reg) known => value, options(pure, nomem, nostack, preserves_flags))
    }
    value
}
