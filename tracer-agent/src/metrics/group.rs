//! Which metrics there are, and of what: as the registry of protocols says.

use std::ops::Index;

use super::connections::{OUTCOME, SIDE};
use crate::{
    protocol::{
        Kind,
        measure::{self, End, Instrument, Measure},
    },
    span::Span,
};

/// Numbers are whole: nanoseconds, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    Requests,
    Connects,
    Segments,
}

impl Unit {
    /// As UCUM has it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::Bytes => "By",
            Unit::Requests => "{request}",
            Unit::Connects => "{connect}",
            Unit::Segments => "{segment}",
        }
    }

    /// What others are told of a number that is kept.
    pub fn tell(self, number: u128) -> f64 {
        match self {
            Unit::Seconds => number as f64 / 1e9,
            Unit::Bytes | Unit::Requests | Unit::Connects | Unit::Segments => number as f64,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Calls,
    Streams,
    Active,
    Connects,
    ConnectTimes,
    RoundTrips,
    Retransmits,
}

impl Counted {
    pub(super) fn class(self) -> Class {
        match self {
            Counted::Calls | Counted::Streams | Counted::Active => Class::Requests,
            Counted::Connects | Counted::ConnectTimes | Counted::RoundTrips | Counted::Retransmits => {
                Class::Connections
            }
        }
    }
}

/// Series that share their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Requests = 0,
    Connections = 1,
}

impl Class {
    pub(super) const COUNT: usize = 2;
}

/// Series that have the same attributes.
#[derive(Debug)]
pub(super) struct Group {
    exchange: &'static str,
    kind: Kind,
    pub(super) counted: Counted,
    pub(super) attributes: Vec<&'static str>,
    pub(super) instruments: Vec<Measured>,
    /// The first group of the same metrics: what overflows is one series for all of them.
    pub(super) overflow: usize,
    /// Where the route is among the attributes, the kind of stream, and address and port of the server.
    pub(super) route: Option<usize>,
    pub(super) stream: Option<usize>,
    pub(super) server: Option<[usize; 2]>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) instrument: Instrument,
    pub(super) unit: Unit,
    pub(super) bounds: &'static [u64],
}

pub(super) struct Groups(Vec<Group>);

impl Groups {
    pub(super) fn new(sizes: bool) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for measure in measure::all() {
            for (kind, end) in [(Kind::Server, &measure.server), (Kind::Client, &measure.client)] {
                groups.push(Group::calls(measure, kind, end, sizes));
                groups.push(Group::streams(measure, kind, end));
                groups.extend(Group::active(measure, kind, end));
            }
        }
        groups.extend(CONNECTIONS.iter().map(Group::connections));
        for place in 0..groups.len() {
            let same = |group: &Group| group.names().eq(groups[place].names());
            groups[place].overflow = groups.iter().position(same).unwrap_or(place);
        }
        Self(groups)
    }

    pub(super) fn of_span(&self, span: &Span) -> Option<usize> {
        let counted = if span.view.stream.is_some() { Counted::Streams } else { Counted::Calls };
        self.of(span.view.protocol, span.kind, counted)
    }

    pub(super) fn of_connections(&self, counted: Counted) -> Option<usize> {
        self.0.iter().position(|group| group.counted == counted)
    }

    pub(super) fn of(&self, exchange: &str, kind: Kind, counted: Counted) -> Option<usize> {
        self.0
            .iter()
            .position(|group| group.counted == counted && group.kind == kind && group.exchange == exchange)
    }
}

impl Index<usize> for Groups {
    type Output = Group;

    fn index(&self, place: usize) -> &Group {
        &self.0[place]
    }
}

impl Group {
    fn calls(measure: &Measure, kind: Kind, end: &End, sizes: bool) -> Self {
        let mut instruments =
            vec![Measured { instrument: end.duration, unit: Unit::Seconds, bounds: measure.bounds }];
        for instrument in end.sizes.into_iter().flatten().filter(|_| sizes) {
            instruments.push(Measured { instrument, unit: Unit::Bytes, bounds: SIZES });
        }
        Self::new(measure.exchange, kind, Counted::Calls, end.attributes.to_vec(), instruments)
            .with_route(end.route)
    }

    fn streams(measure: &Measure, kind: Kind, end: &End) -> Self {
        let instrument = match kind {
            Kind::Server => Instrument {
                name: "tracer.server.stream.duration",
                help: "How long streams were open that a server sends: events, messages of sockets and calls",
            },
            Kind::Client => Instrument {
                name: "tracer.client.stream.duration",
                help: "How long streams were open that a client listens to: events, messages of sockets and calls",
            },
        };
        let mut attributes = end.attributes.to_vec();
        attributes.push(STREAM);
        let instruments = vec![Measured { instrument, unit: Unit::Seconds, bounds: STREAMS }];
        Self::new(measure.exchange, kind, Counted::Streams, attributes, instruments).with_route(end.route)
    }

    fn active(measure: &Measure, kind: Kind, end: &End) -> Option<Self> {
        let active = end.active.as_ref()?;
        let measured = Measured { instrument: active.instrument, unit: Unit::Requests, bounds: &[] };
        Some(Self::new(measure.exchange, kind, Counted::Active, active.attributes.to_vec(), vec![measured]))
    }

    fn connections((counted, measured): &(Counted, Measured)) -> Self {
        let mut attributes = vec![SIDE, "server.address", "server.port"];
        if *counted == Counted::Connects {
            attributes.push(OUTCOME);
        }
        Self::new("tcp", Kind::Client, *counted, attributes, vec![*measured])
    }

    fn new(
        exchange: &'static str,
        kind: Kind,
        counted: Counted,
        attributes: Vec<&'static str>,
        instruments: Vec<Measured>,
    ) -> Self {
        let at = |key| attributes.iter().position(|attribute| *attribute == key);
        let server = at("server.address").zip(at("server.port")).map(|(address, port)| [address, port]);
        let stream = at(STREAM);
        Self { exchange, kind, counted, stream, server, route: None, overflow: 0, attributes, instruments }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.instruments.iter().map(|measured| measured.instrument.name)
    }

    fn with_route(mut self, route: Option<&'static str>) -> Self {
        self.route = self.attributes.iter().position(|key| route == Some(*key));
        self
    }
}

/// What is told of connections.
const CONNECTIONS: [(Counted, Measured); 4] = [
    (
        Counted::Connects,
        Measured {
            instrument: Instrument {
                name: "tracer.tcp.connects",
                help: "Connections that were asked for, by what came of it",
            },
            unit: Unit::Connects,
            bounds: &[],
        },
    ),
    (
        Counted::ConnectTimes,
        Measured {
            instrument: Instrument {
                name: "tracer.tcp.connect.duration",
                help: "How long it took until there was a connection",
            },
            unit: Unit::Seconds,
            bounds: NETWORK,
        },
    ),
    (
        Counted::RoundTrips,
        Measured {
            instrument: Instrument {
                name: "tracer.tcp.rtt",
                help: "The smoothed time of a round trip, of connections when they were over",
            },
            unit: Unit::Seconds,
            bounds: NETWORK,
        },
    ),
    (
        Counted::Retransmits,
        Measured {
            instrument: Instrument { name: "tracer.tcp.retransmits", help: "Segments that were sent again" },
            unit: Unit::Segments,
            bounds: &[],
        },
    ),
];

/// Buckets of what the network takes, in nanoseconds: from 50 us to 10 s.
const NETWORK: &[u64] = &[
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// What kind of stream it is.
const STREAM: &str = "tracer.stream";

/// Buckets of sizes, in bytes: none at all, and by sixteens from 256 B to 256 MiB. Each bucket is a line for each
/// series of a page that is read every few seconds.
pub(super) const SIZES: &[u64] = &[0, 1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28];

/// Buckets of streams, in nanoseconds: from 100 ms to a day.
const STREAMS: &[u64] = &[
    100_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
    600_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
    10_800_000_000_000,
    43_200_000_000_000,
    86_400_000_000_000,
];
