//! The streams that go on, by their ids: nearly always a new one has the highest, and one of the first ends.

use std::collections::VecDeque;

use super::state::Stream;

/// In the order of their ids.
#[derive(Default)]
pub(super) struct Streams(VecDeque<(u32, Box<Stream>)>);

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        self.place(id).ok().map(|place| &*self.0[place].1)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        self.place(id).ok().map(|place| &mut *self.0[place].1)
    }

    pub(super) fn insert(&mut self, id: u32, stream: Stream) {
        match self.place(id) {
            Ok(place) => *self.0[place].1 = stream,
            Err(place) => self.0.insert(place, (id, Box::new(stream))),
        }
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Box<Stream>> {
        let place = self.place(id).ok()?;
        self.0.remove(place).map(|(_, stream)| stream)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Stream)> {
        self.0.iter_mut().map(|(id, stream)| (*id, &mut **stream))
    }

    /// The ids above one.
    pub(super) fn above(&self, id: u32) -> Vec<u32> {
        self.0.iter().map(|(above, _)| *above).filter(|above| *above > id).collect()
    }

    /// Where it is, or would be.
    fn place(&self, id: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id)
    }
}
