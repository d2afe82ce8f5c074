//! What the tests share: dialogues as records ([`dialogue`]), those of HTTP/1 ([`http`]) and HTTP/2
//! ([`http2`]), real processes ([`process`]), `tracer run` ([`agent`]), and collectors that
//! behave as they are told ([`collector`]).

pub mod agent;
pub mod collector;
pub mod dialogue;
pub mod http;
pub mod http2;
pub mod process;
