//! What was missed: where frames start again, and what may have been said meanwhile.

use super::{
    Dialogue, GAP,
    frame::{self, HEADER},
    hpack::Decoder,
    state::State,
};
use crate::{
    connection::stream::After,
    protocol::{Class, Event, Input, Progress, Side, Start, Verdict, What},
};

/// A stream that may have ended in a gap is given up when so many were opened after it.
const DOUBTFUL_MAX: u32 = 256;

/// So many streams are remembered whose requests may still be found.
const EARLY_MAX: usize = 1024;

/// So many bytes are searched for frames each time that some come.
const SEARCH_OFTEN: usize = 1024;

/// Stretches of stream ids that were missed.
const MISSED_MAX: usize = 64;

/// As much is held where a frame may have begun that is not whole.
const HELD_MAX: usize = 64 * 1024;

impl Dialogue {
    /// A stream was answered, and its request may still be found.
    pub(super) fn remember_early(&mut self, id: u32) {
        if id > self.highest && self.early.len() < EARLY_MAX {
            self.early.insert(id);
        }
    }

    /// Where the next frame starts cannot be told, and blocks may have been missed.
    pub(super) fn lose(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) {
        self.sides[side.index()].lose(GAP);
        self.request_missed |= side == Side::Request;
        let end = input.position + input.bytes.len() as u64;
        let gap = if let After::Gap(gap) = input.after { gap.length } else { 0 };
        self.doubt(side, input.position, end + gap, events);
    }

    /// What moved of a side up to `end` was missed: a part of its messages may be among it.
    pub(super) fn doubt(&mut self, side: Side, at: u64, end: u64, events: &mut Vec<Event>) {
        let missed = &mut self.sides[side.index()].missed;
        *missed = (*missed).max(end);
        for (id, stream) in self.streams.iter_mut() {
            // Nothing is answered that was not asked yet.
            let asked_later = side == Side::Response && stream.opposite >= end;
            let message = &mut stream.sides[side.index()];
            let event = |what| Event { side, exchange: Some(stream.exchange), start: at, end: at, what };
            if message.ended && side == Side::Request && !std::mem::replace(&mut message.hole, true) {
                events.push(event(What::Doubt));
            }
            if message.ended || asked_later {
                continue;
            }
            message.doubtful = true;
            self.doubts.insert(id);
            if std::mem::replace(&mut message.hole, true) {
                continue;
            }
            events.push(event(What::Hole));
            message.messages = None;
            if stream.call.is_some() {
                events.push(event(What::Uncounted));
            }
        }
    }

    /// Streams of which nothing was seen for long have ended in the gap.
    pub(super) fn give_up_doubtful(&mut self, at: u64, events: &mut Vec<Event>) {
        let old = self.highest.saturating_sub(2 * DOUBTFUL_MAX);
        while let Some(id) = self.doubts.first().copied().filter(|id| *id < old) {
            self.doubts.remove(&id);
            let Some(stream) = self.streams.get(id) else { continue };
            if !stream.sides.iter().any(|message| message.doubtful) {
                continue;
            }
            let Some(stream) = self.remove(id) else { continue };
            for side in Side::BOTH.into_iter().filter(|side| !stream.sides[side.index()].ended) {
                let exchange = Some(stream.exchange);
                events.push(Event { side, exchange, start: at, end: at, what: What::Cut });
            }
        }
    }

    pub(super) fn miss(&mut self, first: u32, last: u32) {
        if first > last {
            return;
        }
        if self.missed.len() == MISSED_MAX {
            // The two oldest become one: a response of a stream between them may be counted too much.
            let (_, last) = self.missed.remove(1);
            self.missed[0].1 = last;
        }
        self.missed.push((first, last));
    }

    /// Whether the request of a stream was missed, or was none: the server has pushed the response.
    pub(super) fn is_missed(&self, id: u32) -> bool {
        let before = self.request_missed && id > self.highest;
        before
            || id.is_multiple_of(2)
            || self.missed.iter().any(|(first, last)| (*first..=*last).contains(&id))
    }

    pub(super) fn find(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let reader = &mut self.sides[side.index()];
        if input.bytes.is_empty() {
            if let After::Gap(_) = input.after {
                reader.table.forget(GAP);
            } else {
                self.doubt(side, input.position, input.position, events);
            }
            return input.skip_all();
        }
        let preface = frame::preface(input.bytes);
        if side == Side::Request && !reader.spoke && preface != Verdict::No {
            if preface == Verdict::Unsure && input.after == After::More {
                return Progress::NeedMore;
            }
            // What was before it was another protocol's.
            reader.state = State::Preface;
            (reader.table, reader.known) = (Decoder::new(None), [None, None]);
            return Progress::Read { length: 0, class: Class::Parsed };
        }
        // Much of it is looked at again when it has grown by a quarter.
        let there = input.bytes.len();
        if input.after == After::More && there > SEARCH_OFTEN && there < reader.searched / 4 * 5 {
            return Progress::NeedMore;
        }
        reader.searched = there;
        let read = |length: usize| Progress::Read { length: length as u64, class: Class::Unparsed };
        match frame::find(side, input.bytes, input.position, input.marks) {
            Start::At(at) => {
                self.sides[side.index()].searched = 0;
                self.sides[side.index()].state = State::Frame;
                self.doubt(side, input.position, input.position + at as u64, events);
                read(at)
            }
            Start::NotBefore(0) if input.after == After::More && input.bytes.len() <= HELD_MAX + HEADER => {
                Progress::NeedMore
            }
            // No frame that began here would be as long.
            Start::NotBefore(0) if input.after == After::More => {
                self.sides[side.index()].searched = 0;
                read(there / 4)
            }
            Start::NotBefore(0) => input.skip_all(),
            Start::NotBefore(at) => {
                self.sides[side.index()].searched = 0;
                read(at)
            }
        }
    }
}
