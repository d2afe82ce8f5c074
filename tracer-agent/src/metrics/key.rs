//! What tells a series from others.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use super::{Group, Groups};
use crate::protocol::{Attribute, Text, Value};

/// Longer values of attributes are cut.
pub(super) const TEXT_MAX: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Of all the rest. It comes first, since it is what most keys differ in.
    hash: u64,
    pub(super) service: u32,
    pub(super) group: usize,
    /// It is all that had no place; it has no values.
    pub(super) overflow: bool,
    /// In the order of the group's attributes.
    pub(super) values: Vec<Option<Value>>,
}

impl Key {
    pub(super) fn fill(&mut self, place: usize, group: &Group) {
        self.group = place;
        self.overflow = false;
        self.values.clear();
        self.values.resize(group.attributes.len(), None);
    }

    /// The first of a name counts.
    pub(super) fn take(&mut self, group: &Group, attributes: &[Attribute]) {
        for attribute in attributes {
            let place = group.attributes.iter().position(|key| *key == attribute.key);
            if let Some(value) = place.map(|place| &mut self.values[place])
                && value.is_none()
            {
                *value = Some(limited(&attribute.value));
            }
        }
    }

    /// All values are there: it can be looked up.
    pub(super) fn seal(&mut self) {
        let mut hasher = SipHasher13::new();
        (self.service, self.group, self.overflow, &self.values).hash(&mut hasher);
        self.hash = hasher.finish();
    }

    /// It stands for what has no place.
    pub(super) fn overflow(&mut self, groups: &Groups) {
        self.group = groups[self.group].overflow;
        self.overflow = true;
        self.values.clear();
        self.seal();
    }

    pub(super) fn server(&self, [address, port]: [usize; 2]) -> [Option<&Value>; 2] {
        [address, port].map(|at| self.values.get(at).and_then(Option::as_ref))
    }

    pub(super) fn held(&self) -> usize {
        let texts = self.values.iter().map(|value| match value {
            Some(Value::Text(text)) if text.is_heap_allocated() => text.len(),
            _ => 0,
        });
        self.values.capacity() * size_of::<Option<Value>>() + texts.sum::<usize>()
    }
}

pub(super) fn limited(value: &Value) -> Value {
    match value {
        Value::Text(text) if text.len() > TEXT_MAX => {
            Value::Text(Text::new(&text[..text.floor_char_boundary(TEXT_MAX)]))
        }
        value => value.clone(),
    }
}
