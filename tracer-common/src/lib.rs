//! The wire contract between the probes and the agent: every byte that crosses has its layout here.
//!
//! - [`record`]: what goes through the ring buffer and into a capture file
//! - [`connection`]: directions, sides and what the kernel keeps per connection
//! - [`config`]: what the agent tells the probes, and the counters they answer with
#![no_std]
#![forbid(unsafe_code)]

pub mod config;
pub mod connection;
pub mod record;
