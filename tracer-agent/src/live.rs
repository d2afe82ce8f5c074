//! The part that touches the machine: loads the probes, reads the ring buffer, asks `/proc`, sends.
//! Only here are clocks, sockets and files used.
#![allow(clippy::disallowed_methods, reason = "this is the module that may read clocks")]

mod cgroups;
pub mod clock;
pub mod containers;
pub mod cost;
pub mod discover;
pub mod doctor;
pub mod facts;
pub mod gate;
pub mod inspect;
pub mod kubernetes;
pub mod layout;
pub mod load;
pub mod outputs;
pub mod pods;
pub mod print;
pub mod privileges;
pub mod probes;
mod ring;
pub mod select;
pub mod send;
pub mod serve;
pub mod session;
pub mod sockets;
