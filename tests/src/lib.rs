//! What the tests share: dialogues as records ([`dialogue`]) and those of HTTP ([`http`]), real
//! processes ([`process`]), and collectors that behave as they are told ([`collector`]).

pub mod collector;
pub mod dialogue;
pub mod http;
pub mod process;
