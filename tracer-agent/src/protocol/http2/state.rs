//! How far the sides of a connection were read, and what is kept of its streams.

use std::sync::Arc;

use super::{hpack::Decoder, known::Known};
use crate::protocol::{
    RequestHead,
    grpc::{self, Flavor, Messages},
};

/// How far one side was read.
pub(super) struct Reader {
    pub(super) state: State,
    pub(super) table: Decoder,
    /// The last block that did not end the side's part of a stream, and the last one that did.
    pub(super) known: [Option<Box<Known>>; 2],
    /// It goes on when the other side was read further.
    pub(super) waits: bool,
    /// Up to where it was looked at when more was needed.
    pub(super) needs_more: Option<u64>,
    /// Up to where some of it was missed.
    pub(super) missed: u64,
    /// Bytes that were searched for frames in vain.
    pub(super) searched: usize,
    /// Frames of it were read.
    pub(super) spoke: bool,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            state: State::Lost,
            table: Decoder::new(None),
            known: [None, None],
            waits: false,
            needs_more: None,
            missed: 0,
            searched: 0,
            spoke: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// The client's first bytes.
    Preface,
    /// The first frame of a side.
    Settings,
    Frame,
    Data(Data),
    /// What is left of a frame that says nothing here.
    Skip(u64),
    /// Where the next frame starts is not known.
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) stream: u32,
    pub(super) content: u64,
    pub(super) padding: u64,
    pub(super) ends: bool,
}

/// A request with its response.
pub(super) struct Stream {
    pub(super) exchange: u64,
    /// Where the responses stood when it was asked.
    pub(super) opposite: u64,
    pub(super) sides: [Message; 2],
    /// The head of the response was read.
    pub(super) answered: bool,
    pub(super) connects: bool,
    pub(super) call: Option<Flavor>,
    /// The head as that of a call, where it is not known whether it is one.
    pub(super) vague: Option<Arc<RequestHead>>,
    /// It was told that something is not known of it.
    pub(super) told: bool,
}

impl Stream {
    /// Bytes of memory that not every stream takes, about.
    pub(super) fn extra(&self) -> usize {
        let trailers = self.call.filter(|call| call.is_web()).map_or(0, |_| 2 * grpc::TRAILERS_MAX);
        trailers + self.vague.as_ref().map_or(0, |head| head.cost())
    }

    pub(super) fn new(exchange: u64, opposite: u64) -> Self {
        Self {
            exchange,
            opposite,
            sides: [Message::default(), Message::default()],
            answered: false,
            connects: false,
            call: None,
            vague: None,
            told: false,
        }
    }
}

/// One side of an exchange.
#[derive(Default)]
pub(super) struct Message {
    pub(super) content: u64,
    pub(super) ended: bool,
    /// A part of it may lie in a gap, and nothing was seen of it since.
    pub(super) doubtful: bool,
    /// A part of it may lie in a gap.
    pub(super) hole: bool,
    pub(super) messages: Option<Messages>,
}

impl Reader {
    /// Bytes of memory besides its own, about.
    pub(super) fn held(&self) -> usize {
        let known = self.known.iter().flatten().map(|known| known.held());
        self.table.held() + known.sum::<usize>()
    }

    pub(super) fn lose(&mut self, why: &'static str) {
        self.state = State::Lost;
        self.table.forget(why);
    }
}
