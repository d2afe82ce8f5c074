//! From records of what the kernel moved to spans, in the order of the data:
//!
//! - [`capture`]: records, and the file that holds them
//! - [`tcp`]: how connections came to be, and how they fare
//! - [`connection`]: both directions of a connection in order, with gaps
//! - [`protocol`]: what the bytes mean; one file a protocol; [`propagation`]: what requests say of their trace
//! - [`exchange`]: requests with their responses
//! - [`span`]: exchanges with ids, kind, status and resource
//! - [`stitch`]: spans with their parents
//! - [`enrich`]: what is known of the processes
//! - [`observe`]: where an agent runs, routes for all of them, metrics of all, and some that are chosen
//! - [`noise`]: requests that nobody asks about; [`route`]: what a path stands for
//! - [`filter`]: which spans are asked for
//! - [`summary`]: what all of them come to; [`metrics`]: how many, how long, how large
//! - [`export`]: spans as text, JSON and OTLP; metrics as OTLP and for Prometheus
//! - [`sample`]: which traces are kept
//! - [`pipeline`]: all of it as one function of the records
//! - [`stats`]: the ledger; [`budget`]: what is left out where it all takes too much
//!
//! Nothing of this reads a clock, a file or a socket: the same records give the same spans. What
//! does is in `live`.
#![forbid(unsafe_code)]

/// A line on standard error, which nobody has to read.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

pub mod budget;
pub mod capture;
#[cfg(feature = "live")]
pub mod config;
pub mod connection;
pub mod enrich;
pub mod exchange;
pub mod export;
pub mod filter;
#[cfg(feature = "live")]
pub mod live;
pub mod metrics;
pub mod noise;
pub mod observe;
pub mod pipeline;
pub mod propagation;
pub mod protocol;
pub mod route;
pub mod sample;
pub mod span;
pub mod stats;
pub mod stitch;
pub mod summary;
pub mod tcp;
