//! What is known of the processes that spans belong to.

pub mod container;
pub mod kubernetes;
pub mod process;

use crate::protocol::{Attribute, Text};

/// What a span's resource says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    pub process: u32,
    pub service: Text,
    pub attributes: Vec<Attribute>,
}
