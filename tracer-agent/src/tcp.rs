//! How connections came to be, and how they fare: what the kernel knows of them besides their bytes.
//!
//! Connects are seen where a chosen process asks for them, whether its call waits or not; what the kernel refuses
//! before it sends anything (no route to the address) is not among them. Of connections that are there the
//! segments that were sent again are counted from the connect on, or else from the first bytes that were seen;
//! the time of a round trip is the kernel's smoothed one when the connection is over.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tracer_common::{connection::Role, record::Connect};

use crate::{
    connection::Address,
    enrich::Resource,
    protocol::{Attribute, Attributes},
};

/// Connections that nothing has moved on yet, whose connect is remembered.
const BEGUN_MAX: usize = 8192;

/// Facts that wait for somebody to take them: a replay takes none.
const FACTS_MAX: usize = 1024;

/// What became of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Ok,
    /// The peer has nobody who listens there.
    Refused,
    /// The peer did not answer.
    Timeout,
    /// The network says that there is no way to the peer.
    Unreachable,
    Reset,
    /// The process closed the socket before there was an answer: its own timeout, or another address that was
    /// faster.
    Abandoned,
    Other,
}

impl Outcome {
    pub const ALL: [Outcome; 7] = [
        Outcome::Ok,
        Outcome::Refused,
        Outcome::Timeout,
        Outcome::Unreachable,
        Outcome::Reset,
        Outcome::Abandoned,
        Outcome::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Refused => "refused",
            Outcome::Timeout => "timeout",
            Outcome::Unreachable => "unreachable",
            Outcome::Reset => "reset",
            Outcome::Abandoned => "abandoned",
            Outcome::Other => "other",
        }
    }

    pub fn of(connect: &Connect) -> Self {
        if connect.established != 0 {
            return Outcome::Ok;
        }
        // include/uapi/asm-generic/errno.h
        match connect.error {
            // Without a port nothing was sent.
            0 if connect.local_port == 0 => Outcome::Other,
            0 => Outcome::Abandoned,
            111 => Outcome::Refused,
            110 => Outcome::Timeout,
            101 | 113 => Outcome::Unreachable,
            104 => Outcome::Reset,
            _ => Outcome::Other,
        }
    }
}

/// Something that is to be counted.
#[derive(Clone, Debug)]
pub struct Fact {
    pub resource: Arc<Resource>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Of the process.
    pub role: Role,
    /// Of a client: whom it speaks to. Ports of clients are many, and say nothing.
    pub server: Option<Address>,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Connect {
        outcome: Outcome,
        /// Nanoseconds.
        duration: u64,
    },
    /// The smoothed time of a round trip of a connection that is over, in nanoseconds.
    RoundTrip(u64),
    /// So many segments more were sent again.
    Retransmits(u64),
}

/// A connection that there is from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Nanoseconds.
    pub duration: u64,
    /// How often it was asked for again.
    pub retransmits: u32,
}

impl Begun {
    /// For the first request of the connection.
    pub fn describe(&self, attributes: &mut Attributes) {
        attributes.push(Attribute::real("tracer.connect.duration", self.duration as f64 / 1e9));
        if self.retransmits > 0 {
            attributes.push(Attribute::number("tracer.connect.retransmits", self.retransmits));
        }
    }
}

#[derive(Debug, Default)]
pub struct Facts {
    told: VecDeque<Fact>,
    /// By cookie, with a number of its own.
    begun: BTreeMap<u64, (u64, Begun)>,
    /// In this order: cookies with their numbers, also of those that are gone.
    order: VecDeque<(u64, u64)>,
    last: u64,
}

impl Facts {
    pub fn poll(&mut self) -> Option<Fact> {
        self.told.pop_front()
    }

    pub fn tell(&mut self, fact: Fact) {
        if self.told.len() >= FACTS_MAX {
            self.told.pop_front();
        }
        self.told.push_back(fact);
    }

    pub fn handle_connect(&mut self, connect: &Connect, resource: Arc<Resource>, time: u64) {
        let outcome = Outcome::of(connect);
        let duration = connect.header.time.saturating_sub(connect.began);
        let retransmits = connect.transit.retransmits;
        if outcome == Outcome::Ok {
            self.begin(connect.cookie, Begun { duration, retransmits });
        }
        let server = Address::of(connect.family, connect.peer_address, connect.peer_port);
        let fact = |what| Fact {
            resource: resource.clone(),
            time,
            role: Role::Client,
            server: Some(server.clone()),
            what,
        };
        let again = (retransmits > 0).then_some(What::Retransmits(retransmits.into()));
        for what in [Some(What::Connect { outcome, duration }), again].into_iter().flatten() {
            self.tell(fact(what));
        }
    }

    /// How the connection came to be, asked when bytes move on it.
    pub fn take_begun(&mut self, cookie: u64) -> Option<Begun> {
        self.begun.remove(&cookie).map(|(_, begun)| begun)
    }

    fn begin(&mut self, cookie: u64, begun: Begun) {
        self.last += 1;
        self.begun.insert(cookie, (self.last, begun));
        self.order.push_back((cookie, self.last));
        if self.order.len() > 2 * BEGUN_MAX {
            let known = &self.begun;
            self.order.retain(|(cookie, number)| known.get(cookie).is_some_and(|(known, _)| known == number));
        }
        while self.begun.len() > BEGUN_MAX
            && let Some((cookie, number)) = self.order.pop_front()
        {
            if self.begun.get(&cookie).is_some_and(|(known, _)| *known == number) {
                self.begun.remove(&cookie);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::record::{Header, Transit};

    fn connect(cookie: u64, error: u32, established: u8) -> Connect {
        Connect {
            header: Header { time: 1_500, ..Header::default() },
            cookie,
            began: 1_000,
            error,
            established,
            family: tracer_common::connection::AF_INET,
            local_port: 40_000,
            peer_port: 80,
            peer_address: [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..Connect::default()
        }
    }

    #[test]
    fn each_end_of_a_connect_has_its_name() {
        let of = |error| Outcome::of(&connect(0, error, 0)).name();
        assert_eq!(
            [0, 111, 110, 101, 113, 104, 99].map(of),
            ["abandoned", "refused", "timeout", "unreachable", "unreachable", "reset", "other"]
        );
        assert_eq!(Outcome::of(&connect(1, 0, 1)), Outcome::Ok);
        assert_eq!(Outcome::of(&Connect { local_port: 0, ..connect(0, 0, 0) }), Outcome::Other);
        let names: std::collections::BTreeSet<_> = Outcome::ALL.map(Outcome::name).into();
        assert_eq!(names.len(), Outcome::ALL.len());
    }

    #[test]
    fn a_connect_is_told_with_what_it_took() {
        let mut facts = Facts::default();
        let mut asked = connect(7, 0, 1);
        asked.transit = Transit { retransmits: 2, ..Transit::default() };
        facts.handle_connect(&asked, Arc::default(), 5);
        let told: Vec<Fact> = std::iter::from_fn(|| facts.poll()).collect();
        let whats: Vec<What> = told.iter().map(|fact| fact.what).collect();
        assert_eq!(whats, [What::Connect { outcome: Outcome::Ok, duration: 500 }, What::Retransmits(2)]);
        assert_eq!(told[0].server, Some(Address { ip: "10.0.0.1".into(), port: 80 }));
        assert_eq!(facts.take_begun(7), Some(Begun { duration: 500, retransmits: 2 }));
        assert_eq!(facts.take_begun(7), None);
    }

    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let mut facts = Facts::default();
        for cookie in 0..5 * BEGUN_MAX as u64 {
            facts.handle_connect(&connect(cookie, 0, 1), Arc::default(), 5);
            if cookie % 2 == 0 {
                assert!(facts.take_begun(cookie).is_some());
            }
        }
        assert!(facts.begun.len() <= BEGUN_MAX && facts.order.len() <= 2 * BEGUN_MAX + 1);
        assert_eq!(facts.told.len(), FACTS_MAX);
        // The newest is there, and the oldest is not.
        assert!(facts.take_begun(5 * BEGUN_MAX as u64 - 1).is_some() && facts.take_begun(1).is_none());
    }
}
