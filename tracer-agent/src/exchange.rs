//! Requests and their responses, put together in one place for all protocols.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    connection::stream::{Mark, Marks},
    protocol::{Attribute, Attributes, Event, RequestHead, ResponseHead, Side, Text, What},
};

/// Interim responses that one exchange remembers.
const INTERIM_MAX: usize = 16;

/// Bytes of memory for what comes to an exchange later, about: its response, counts of messages, its parent.
const REST: usize = 1024;

/// A request with its response, as far as they were seen.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// By which [`crate::stitch`] knows it.
    pub number: u64,
    /// The process that moved the request's first byte, and its thread.
    pub process: u32,
    pub thread: u32,
    /// Another thread moved a part of it.
    pub handed_over: bool,
    pub request: Arc<RequestHead>,
    pub response: Option<Arc<ResponseHead>>,
    /// Times of the first and the last byte that were seen.
    pub request_start: u64,
    pub request_end: u64,
    pub response_start: Option<u64>,
    pub response_end: Option<u64>,
    /// First content of the response.
    pub content_start: Option<u64>,
    /// When it broke off.
    pub broken: Option<u64>,
    /// Responses before the last one: when, and what they were.
    pub interim: Vec<(u64, Vec<Attribute>)>,
    /// Content that was seen to move.
    pub request_content: u64,
    pub response_content: u64,
    /// What the protocol says at the end of the messages.
    pub attributes: Attributes,
    pub outcome: Outcome,
    /// By side: a gap hides where the message ends, or a part of it.
    pub cut: [bool; 2],
    /// The messages within the content, by side, where the protocol has such.
    pub messages: Option<Box<[Messages; 2]>>,
    /// The protocol's word for why one side gave it up.
    pub error: Option<Text>,
    /// Segments of the request that were sent again, if no other exchange was open then.
    pub retransmits: u32,
}

/// Messages within the content of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    pub count: u64,
    /// Bytes of all of them.
    pub size: u64,
    /// When the first and the last had come to their end.
    pub first: Option<u64>,
    pub last: Option<u64>,
    /// A gap hides how many there were.
    pub uncounted: bool,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet.
    Open,
    /// The response was seen up to its end.
    Complete,
    /// The client went away before the end of the response.
    Aborted,
    /// The server closed the connection before the end of the response.
    Closed,
    /// The server broke it off, or the connection.
    Reset,
    /// A gap hides the end.
    Hidden,
}

/// What an event does.
#[derive(Debug)]
pub enum Change<'a> {
    None,
    Began(&'a mut Exchange),
    Ended(Box<Exchange>),
}

/// Exchanges of one connection.
#[derive(Debug, Default)]
pub struct Exchanges {
    /// In the order of their ids, which is that of the requests.
    open: VecDeque<(u64, Progress)>,
    /// Bytes of memory, about.
    cost: usize,
    /// Responses whose request was not seen.
    pub orphans: u64,
}

#[derive(Debug)]
struct Progress {
    exchange: Box<Exchange>,
    ended: [bool; 2],
    /// Its end may have been missed.
    doubtful: bool,
    /// Bytes of memory, about.
    cost: usize,
}

impl Exchanges {
    /// `marks` are those of the event's side. Says if an exchange begins or is over with it.
    pub fn handle_event(&mut self, event: Event, marks: Marks<'_>) -> Change<'_> {
        let is_long = event.start < event.end;
        let first = marks.at(event.start).filter(|_| is_long);
        // Most lie within one record.
        let last = first.filter(|mark| event.end <= mark.end).or_else(|| marks.before(event.end));
        let first = first.or(if is_long { marks.before(event.start) } else { last });
        let [first_time, last_time] = [first, last].map(|mark| mark.map_or(0, |mark| mark.time));
        let Some(id) = event.exchange else {
            self.orphans += matches!(event.what, What::Response(_)) as u64;
            return Change::None;
        };
        if let What::Request(head) = event.what {
            let (process, thread) = first.map_or((0, 0), |mark| (mark.process, mark.thread));
            let mut progress = Progress::start(head, process, thread, first_time, last_time);
            progress.exchange.hear(last);
            self.cost += progress.cost;
            let place = self.open.partition_point(|(open, _)| *open < id);
            self.open.insert(place, (id, progress));
            return Change::Began(&mut self.open[place].1.exchange);
        }
        let Ok(place) = self.open.binary_search_by_key(&id, |(open, _)| *open) else { return Change::None };
        let progress = &mut self.open[place].1;
        let exchange = &mut progress.exchange;
        if is_long {
            exchange.hear(first);
            exchange.hear(last);
        }
        let side = event.side;
        match event.what {
            What::Request(_) => {}
            What::Revised(head) => {
                exchange.request = head;
                // What was said of it as something else.
                exchange.attributes.retain(|attribute| !attribute.key.starts_with("http."));
                if let Some(response) = &mut exchange.response {
                    *response = Arc::default();
                }
            }
            What::Response(head) => {
                exchange.response = Some(head);
                exchange.response_start.get_or_insert(first_time);
                exchange.reach(side, last_time);
            }
            What::Interim { attributes } if exchange.interim.len() < INTERIM_MAX => {
                exchange.interim.push((last_time, attributes));
            }
            What::Interim { .. } => {}
            What::Data { length } => {
                match side {
                    Side::Request => exchange.request_content += length,
                    Side::Response => {
                        exchange.response_content += length;
                        exchange.content_start.get_or_insert(first_time);
                    }
                }
                exchange.reach(side, last_time);
            }
            What::Trailers(more) => {
                exchange.reach(side, last_time);
                if let Some(more) = more {
                    match &mut exchange.response {
                        Some(head) if !head.is_empty() => Arc::make_mut(head).add(&more),
                        nothing => *nothing = Some(more),
                    }
                }
            }
            What::Message { size } => {
                let messages = exchange.messages(side);
                messages.count += 1;
                messages.size += size;
                messages.first.get_or_insert(last_time);
                messages.last = Some(last_time);
            }
            What::Uncounted => exchange.messages(side).uncounted = true,
            What::End { attribute } => {
                exchange.reach(side, last_time);
                if let Some(attribute) = attribute {
                    exchange.attributes.push(attribute);
                }
                progress.ended[side.index()] = true;
            }
            What::Over => progress.ended[side.index()] = true,
            // Who broke it off is known when the connection has ended.
            What::Reset { attribute } => exchange.attributes.extend(attribute),
            What::Abandoned { error } => {
                return self.abandon(place, side, error, last_time).map_or(Change::None, Change::Ended);
            }
            What::Hole => exchange.cut[side.index()] = true,
            What::Doubt => progress.doubtful = true,
            What::Cut => {
                exchange.cut[side.index()] = true;
                progress.ended[side.index()] = true;
            }
        }
        if progress.ended != [true, true] {
            return Change::None;
        }
        let Some(mut exchange) = self.take(place) else { return Change::None };
        let hidden = exchange.cut[Side::Response.index()];
        exchange.outcome = if hidden { Outcome::Hidden } else { Outcome::Complete };
        Change::Ended(exchange)
    }

    /// One side gave it up at `time`.
    fn abandon(&mut self, place: usize, side: Side, error: Text, time: u64) -> Option<Box<Exchange>> {
        let mut exchange = self.take(place)?;
        if exchange.cut[Side::Response.index()] {
            // Whether that broke anything off lies in the gap.
            exchange.outcome = Outcome::Hidden;
            return Some(exchange);
        }
        exchange.outcome = match side {
            Side::Request => Outcome::Aborted,
            Side::Response => Outcome::Reset,
        };
        exchange.error = Some(error);
        exchange.broken = Some(time);
        Some(exchange)
    }

    fn take(&mut self, place: usize) -> Option<Box<Exchange>> {
        let (_, progress) = self.open.remove(place)?;
        self.cost -= progress.cost;
        Some(progress.exchange)
    }

    /// The connection has ended at `time`, for what is still open with this outcome.
    pub fn finish(&mut self, outcome: Outcome, time: u64) -> impl Iterator<Item = Box<Exchange>> + use<> {
        self.cost = 0;
        std::mem::take(&mut self.open).into_iter().map(move |(_, progress)| {
            let mut exchange = progress.exchange;
            let answered = progress.ended[Side::Response.index()];
            exchange.cut[Side::Response.index()] |= progress.doubtful && !answered;
            exchange.outcome = match answered {
                _ if exchange.cut[Side::Response.index()] => Outcome::Hidden,
                true => Outcome::Complete,
                false => outcome,
            };
            if !answered && exchange.outcome != Outcome::Hidden {
                exchange.broken = Some(time);
            }
            exchange
        })
    }

    /// The exchanges that go on, the oldest first; whether the response is over.
    pub fn open(&self) -> impl Iterator<Item = (&Exchange, bool)> {
        self.open.iter().map(|(_, progress)| (&*progress.exchange, progress.ended[Side::Response.index()]))
    }

    /// The one that is open, if it is the only one.
    pub fn only(&mut self) -> Option<&mut Exchange> {
        match self.open.make_contiguous() {
            [(_, progress)] => Some(&mut progress.exchange),
            _ => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Forgets what is open: the connection is not what it seemed. Returns the numbers.
    pub fn forget(&mut self) -> impl Iterator<Item = u64> + use<> {
        self.cost = 0;
        self.orphans = 0;
        std::mem::take(&mut self.open).into_iter().map(|(_, progress)| progress.exchange.number)
    }

    /// Bytes of memory that are held, about.
    pub fn held(&self) -> usize {
        self.cost
    }
}

impl Progress {
    fn start(request: Arc<RequestHead>, process: u32, thread: u32, start: u64, end: u64) -> Self {
        Self {
            ended: [false; 2],
            doubtful: false,
            cost: size_of::<Self>() + size_of::<Exchange>() + REST + request.cost(),
            exchange: Box::new(Exchange {
                number: 0,
                process,
                thread,
                handed_over: false,
                request,
                response: None,
                request_start: start,
                request_end: end,
                response_start: None,
                response_end: None,
                content_start: None,
                broken: None,
                interim: Vec::new(),
                request_content: 0,
                response_content: 0,
                attributes: Attributes::new(),
                outcome: Outcome::Open,
                cut: [false; 2],
                messages: None,
                error: None,
                retransmits: 0,
            }),
        }
    }
}

impl Exchange {
    /// Who moved a part of it; nobody knows of one that was lost.
    fn hear(&mut self, mark: Option<&Mark>) {
        self.handed_over |= mark.is_some_and(|mark| mark.thread != 0 && mark.thread != self.thread);
    }

    fn messages(&mut self, side: Side) -> &mut Messages {
        &mut self.messages.get_or_insert_default()[side.index()]
    }

    /// When the last of it was seen.
    pub fn last(&self) -> u64 {
        self.response_end.max(self.broken).unwrap_or(0).max(self.request_end)
    }

    fn reach(&mut self, side: Side, time: u64) {
        match side {
            Side::Request => self.request_end = self.request_end.max(time),
            Side::Response => self.response_end = self.response_end.max(Some(time)),
        }
    }
}
