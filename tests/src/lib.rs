//! What the tests share: dialogues as records ([`dialogue`]) and those of HTTP ([`http`]), and real
//! processes ([`process`]).

pub mod dialogue;
pub mod http;
pub mod process;
