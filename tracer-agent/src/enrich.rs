//! What is known of the processes that spans belong to.

pub mod container;
mod environment;
pub mod kubernetes;
pub mod late;
pub mod process;
mod resource;

use crate::protocol::{Attribute, Text};

pub use self::resource::Origin;

/// An attribute of a resource: who runs a process may choose the key.
pub type ResourceAttribute = Attribute<Text>;

/// What a span's resource says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    pub process: u32,
    pub service: Text,
    pub attributes: Vec<ResourceAttribute>,
    /// What it was made from.
    pub origin: Origin,
}
