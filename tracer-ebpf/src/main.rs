//! The probes. They know sockets, threads and bytes; what the bytes mean is decided in user space.
//!
//! - `socket`: bytes moved on a socket, and its end (entry points)
//! - `connect`: connections that are asked for, and how they fare (entry points)
//! - `tcp`: where the directions of a connection stand; `identity`: what it is called
//! - `process`: fork, exec and exit of processes, and moves between cgroups (entry points)
//! - `select`: who is chosen
//! - `syscall`: the call that moved the bytes: all that depends on the processor is there
//! - `file`: the socket behind a file number
//! - `frames`: what of a framed stream is passed over
//! - `emit`: the only way out
//! - `maps`, `memory`: what is shared with the agent, and the only raw pointers
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod emit;
mod file;
mod frames;
mod identity;
mod maps;
mod memory;
mod process;
mod select;
mod socket;
mod syscall;
mod tcp;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: a constant that the kernel reads by section; nothing else has these names.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
