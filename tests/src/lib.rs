//! What the tests share: dialogues as records ([`dialogue`]), those of HTTP/1 ([`http`]) and HTTP/2
//! ([`http2`]), real processes ([`process`]), `tracer run` ([`agent`]), collectors that behave as they are told
//! ([`collector`]), and the cluster that is brought up for them ([`own`]).

pub mod agent;
pub mod collector;
pub mod dialogue;
pub mod http;
pub mod http2;
pub mod own;
pub mod process;
