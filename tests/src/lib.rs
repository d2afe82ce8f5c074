//! What the tests share: made-up dialogues as records ([`dialogue`]), and real processes ([`process`]).

pub mod dialogue;
pub mod process;
