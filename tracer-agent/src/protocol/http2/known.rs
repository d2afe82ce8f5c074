//! A block of fields with what it says. One that comes again often says the same, and is not read again.

use super::{
    GAP,
    fields::Fields,
    hpack::{Decoder, Field, Uses, Value},
};
use crate::protocol::Shown;

/// A longer block is not kept.
const KEPT_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Known {
    block: Vec<u8>,
    /// None if it would not say the same again.
    uses: Option<Uses>,
    pub(super) fields: Fields,
    held: usize,
}

impl Known {
    /// Reads a block, unless it is the one that is known.
    pub(super) fn read(&mut self, block: &[u8], table: &mut Decoder, shown: Shown) {
        if self.block == block && self.uses.as_ref().is_some_and(|uses| table.repeat(uses)) {
            return;
        }
        (self.fields, self.uses) = (Fields::new(shown), None);
        let missing = table.missing();
        match table.decode(block, |field| self.fields.take(field, missing)) {
            Ok(uses) if block.len() <= KEPT_MAX && self.fields.missing().is_none() => {
                self.block.clear();
                self.block.extend_from_slice(block);
                self.uses = Some(uses);
            }
            Ok(_) => {}
            Err(_) => {
                // What stands before the error is right; nothing is known of the table after it.
                table.forget(GAP);
                self.fields.take(Field { name: None, value: Value::Unknown }, Some(GAP));
            }
        }
        self.held = size_of::<Self>() + self.block.capacity() + self.fields.held();
    }

    /// Bytes of memory, about.
    pub(super) fn held(&self) -> usize {
        self.held
    }
}
