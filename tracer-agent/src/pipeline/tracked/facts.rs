//! What TCP says of a connection that is followed.

use tracer_common::{
    connection::{Direction, Role},
    record::Transit,
};

use super::{Run, State, Tracked};
use crate::{
    connection::Place,
    tcp::{Begun, Fact, What},
};

impl Tracked {
    /// A connect was seen that it came of.
    pub(in crate::pipeline) fn begin_tcp(&mut self, begun: Option<Begun>) {
        if let Some(begun) = begun {
            self.retransmits = Some(begun.retransmits);
            self.begun = Some(begun);
        }
    }

    /// How many segments were sent again since it began. What was before anything was seen of it is not told.
    pub(in crate::pipeline) fn hear_retransmits(&mut self, total: u32, run: &mut Run<'_>) {
        let before = self.retransmits.get_or_insert(total);
        let more = total.saturating_sub(*before);
        if more == 0 {
            return;
        }
        *before = total;
        // What this end sends of the exchange is the request: an answer would come when the next is under way.
        if let State::Speaking(speaking) = &self.state
            && speaking.spoken.requests == Direction::Sent
            && let Some(exchange) = self.exchanges.only()
        {
            exchange.retransmits += more;
        }
        self.tell(What::Retransmits(more.into()), run);
    }

    /// When it is over.
    pub(in crate::pipeline) fn hear_round_trip(&self, transit: &Transit, run: &mut Run<'_>) {
        if transit.round_trip > 0 {
            self.tell(What::RoundTrip(u64::from(transit.round_trip) * 1_000), run);
        }
    }

    fn tell(&self, what: What, run: &mut Run<'_>) {
        let Some(ends) = &self.connection.ends else { return };
        let Place::Tcp { peer, .. } = &ends.place else { return };
        let role = match (ends.role, &self.state) {
            (Role::Unknown, State::Speaking(speaking)) => match speaking.spoken.requests {
                Direction::Sent => Role::Client,
                Direction::Received => Role::Server,
            },
            (role, _) => role,
        };
        run.facts.tell(Fact {
            resource: run.processes.resource(self.connection.process),
            time: run.spans.wall(self.connection.last_time),
            role,
            server: (role == Role::Client).then(|| peer.clone()),
            what,
        });
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{
        ChaCha8Rng,
        rand_core::{Rng, SeedableRng},
    };
    use tracer_common::{
        connection::AF_INET,
        record::{Closed, Connect, Data, Header, Measured, Opened},
    };

    use super::*;
    use crate::{
        capture::Record,
        pipeline::{Limits, Pipeline},
        protocol::Value,
        span::Span,
        tcp::Outcome,
    };

    const COOKIE: u64 = 7;

    fn header(time: u64) -> Header {
        Header { time, pid: 1, thread: 1, ..Header::default() }
    }

    fn transit(retransmits: u32) -> Transit {
        Transit { round_trip: 250, deviation: 10, retransmits, padding: 0 }
    }

    fn opened(role: Role, retransmits: u32) -> Record<'static> {
        Record::Opened(Opened {
            header: header(20),
            cookie: COOKIE,
            family: AF_INET,
            role: role as u8,
            settled: 1,
            peer_port: 80,
            retransmits,
            ..Opened::default()
        })
    }

    fn measured(retransmits: u32) -> Record<'static> {
        Record::Measured(Measured { header: header(30), cookie: COOKIE, transit: transit(retransmits) })
    }

    fn closed(retransmits: u32) -> Record<'static> {
        let transit = transit(retransmits);
        Record::Closed(Closed { header: header(90), cookie: COOKIE, transit, ..Closed::default() })
    }

    fn data(direction: Direction, time: u64, position: u64, opposite: u64, bytes: &[u8]) -> Record<'_> {
        let length = bytes.len() as u32;
        let direction = direction as u8;
        let fields = Data {
            header: header(time),
            cookie: COOKIE,
            position,
            opposite,
            length,
            captured: length,
            direction,
            ..Data::default()
        };
        Record::Data(fields, bytes)
    }

    /// What comes of the records.
    fn outcome(records: &[Record<'_>]) -> (Vec<Span>, Vec<Fact>) {
        let mut pipeline = Pipeline::new(Limits::default());
        let mut facts = Vec::new();
        for record in records.iter().chain([&Record::Finished { now: 100 }]) {
            pipeline.handle_record(record);
            facts.extend(std::iter::from_fn(|| pipeline.poll_fact()));
        }
        (std::iter::from_fn(|| pipeline.poll_output()).collect(), facts)
    }

    fn value(span: &Span, key: &str) -> Option<Value> {
        let found = span.attributes.iter().find(|attribute| attribute.key == key);
        found.map(|attribute| attribute.value.clone())
    }

    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    /// Two requests, of which the second is sent again.
    fn talk(role: Role, begin: Option<Connect>) -> (Vec<Span>, Vec<Fact>) {
        let (asks, answers) = match role {
            Role::Client => (Direction::Sent, Direction::Received),
            _ => (Direction::Received, Direction::Sent),
        };
        let (asked, answered) = (ASKED.len() as u64, ANSWER.len() as u64);
        let mut records: Vec<Record<'_>> = begin.map(Record::Connect).into_iter().collect();
        records.extend([
            opened(role, 1),
            data(asks, 21, 0, 0, ASKED),
            data(answers, 22, 0, asked, ANSWER),
            data(asks, 23, asked, answered, ASKED),
            measured(3),
            measured(2),
            data(answers, 40, answered, 2 * asked, ANSWER),
            closed(4),
        ]);
        outcome(&records)
    }

    #[test]
    fn a_client_is_told_of_its_connect_and_of_what_was_sent_again() {
        let connect = Connect {
            header: header(10_000_000),
            cookie: COOKIE,
            began: 5_000_000,
            established: 1,
            family: AF_INET,
            peer_port: 80,
            transit: transit(1),
            ..Connect::default()
        };
        let (spans, facts) = talk(Role::Client, Some(connect));
        let [first, second] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(value(first, "tracer.connect.duration"), Some(Value::Real(crate::protocol::Real(0.005))));
        assert_eq!(value(first, "tracer.connect.retransmits"), Some(Value::Number(1)));
        assert_eq!(value(first, "tracer.tcp.retransmits"), None);
        assert_eq!(value(second, "tracer.connect.duration"), None);
        assert_eq!(value(second, "tracer.tcp.retransmits"), Some(Value::Number(2)));
        let whats: Vec<What> = facts.iter().map(|fact| fact.what).collect();
        assert_eq!(
            whats,
            [
                What::Connect { outcome: Outcome::Ok, duration: 5_000_000 },
                What::Retransmits(1),
                What::Retransmits(2),
                What::Retransmits(1),
                What::RoundTrip(250_000),
            ]
        );
        assert!(facts.iter().all(|fact| fact.server.as_ref().is_some_and(|server| server.port == 80)));
    }

    #[test]
    fn a_server_and_a_connection_that_was_there_before_say_less() {
        for role in [Role::Server, Role::Client] {
            let (spans, facts) = talk(role, None);
            assert_eq!(spans.len(), 2);
            assert!(spans.iter().all(|span| value(span, "tracer.connect.duration").is_none()));
            // What was before is not counted: 4 in all, and 1 of them before.
            let told = facts.iter().map(|fact| match fact.what {
                What::Retransmits(more) => more,
                _ => 0,
            });
            assert_eq!(told.sum::<u64>(), 3);
            let is_client = role == Role::Client;
            assert!(facts.iter().all(|fact| fact.role == role && fact.server.is_some() == is_client));
            assert_eq!(value(&spans[1], "tracer.tcp.retransmits").is_some(), is_client);
        }
    }

    /// In whatever order they come, and whichever are lost: no segment is counted twice.
    #[test]
    fn what_was_sent_again_adds_up_to_the_most_that_was_heard() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200 {
            let totals: Vec<u32> = (0..random.next_u32() % 20).map(|_| random.next_u32() % 50).collect();
            let first = random.next_u32() % 50;
            let mut records = vec![opened(Role::Client, first)];
            records.extend(totals.iter().map(|total| measured(*total)));
            let (_, facts) = outcome(&records);
            let told: u64 = facts
                .iter()
                .map(|fact| match fact.what {
                    What::Retransmits(more) => more,
                    _ => panic!("{fact:?}"),
                })
                .sum();
            let most = totals.into_iter().max().unwrap_or(0);
            assert_eq!(told, u64::from(most.saturating_sub(first)));
        }
    }
}
