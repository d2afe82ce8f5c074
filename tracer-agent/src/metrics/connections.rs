//! What TCP says of connections, by service and by whom it speaks to.

use tracer_common::connection::Role;

use super::{Counted, Metrics, Numbers};
use crate::{
    protocol::Attribute,
    tcp::{Fact, Outcome, What},
};

/// Which side the service is on; and what became of a connect.
pub(super) const SIDE: &str = "tracer.side";
pub(super) const OUTCOME: &str = "tracer.tcp.outcome";

impl Metrics {
    /// Every fact, once.
    pub fn observe_connection(&mut self, fact: &Fact) {
        match fact.what {
            What::Connect { outcome, duration } => {
                self.count_fact(Counted::Connects, fact, Some(outcome), 1);
                // How long it takes to fail is a number of whoever has set the timeout.
                if outcome == Outcome::Ok {
                    self.count_fact(Counted::ConnectTimes, fact, None, duration);
                }
            }
            What::RoundTrip(time) => self.count_fact(Counted::RoundTrips, fact, None, time),
            What::Retransmits(segments) => self.count_fact(Counted::Retransmits, fact, None, segments),
        }
    }

    fn count_fact(&mut self, counted: Counted, fact: &Fact, outcome: Option<Outcome>, number: u64) {
        let Some(place) = self.groups.of_connections(counted) else { return };
        self.key.service = self.services.of(&fact.resource);
        let group = &self.groups[place];
        self.key.fill(place, group);
        let side = match fact.role {
            Role::Client => "client",
            Role::Server => "server",
            Role::Unknown => "unknown",
        };
        self.key.take(group, &[Attribute::word(SIDE, side)]);
        if let Some(server) = &fact.server {
            let address = Attribute::text("server.address", server.ip.clone());
            self.key.take(group, &[address, Attribute::number("server.port", server.port)]);
            if let Some(outcome) = outcome {
                self.key.take(group, &[Attribute::word(OUTCOME, outcome.name())]);
            }
            self.bound_server(place, true);
        }
        self.key.seal();
        self.update(fact.time, |series| match &mut series.numbers {
            Numbers::Count(count) => *count += number,
            Numbers::Histograms(histograms) => histograms.iter_mut().for_each(|one| one.add(number)),
            Numbers::Level(_) => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connection::Address,
        metrics::{Data, Options, tests::resource},
        protocol::Kind,
    };

    const SECOND: u64 = 1_000_000_000;

    fn fact(server: u16, what: What) -> Fact {
        let server = Some(Address { ip: "10.0.0.1".into(), port: server });
        Fact { resource: resource("shop", 1), time: SECOND, role: Role::Client, server, what }
    }

    /// How many points a metric has, and what they come to.
    fn sum(metrics: &Metrics, name: &str) -> (usize, u64) {
        let all = metrics.collect();
        let points = all.iter().filter(|metric| metric.name == name).flat_map(|metric| &metric.points);
        let numbers: Vec<u64> = points
            .map(|point| match point.data {
                Data::Count(count) => count,
                Data::Histogram(histogram) => histogram.count(),
                Data::Level(_) => panic!("no level"),
            })
            .collect();
        (numbers.len(), numbers.iter().sum())
    }

    #[test]
    fn connects_are_counted_by_what_came_of_them() {
        let mut metrics = Metrics::new(Options::default());
        for outcome in Outcome::ALL.into_iter().chain([Outcome::Ok]) {
            metrics.observe_connection(&fact(80, What::Connect { outcome, duration: 1_000_000 }));
        }
        metrics.observe_connection(&fact(80, What::Retransmits(4)));
        metrics.observe_connection(&Fact {
            role: Role::Server,
            server: None,
            ..fact(80, What::Retransmits(3))
        });
        metrics.observe_connection(&fact(80, What::RoundTrip(90_000)));
        assert_eq!(sum(&metrics, "tracer.tcp.connects"), (Outcome::ALL.len(), 8));
        assert_eq!(sum(&metrics, "tracer.tcp.connect.duration"), (1, 2));
        assert_eq!(sum(&metrics, "tracer.tcp.retransmits"), (2, 7));
        assert_eq!(sum(&metrics, "tracer.tcp.rtt"), (1, 1));
    }

    /// However many peers there are, sums are right, and requests have their places.
    #[test]
    fn peers_are_bounded_and_take_no_place_of_requests() {
        let options =
            Options { series_max: 40, service_series_max: 30, servers_max: 10, ..Options::default() };
        let mut metrics = Metrics::new(options);
        for server in 0..500 {
            metrics.observe_connection(&fact(server, What::Connect { outcome: Outcome::Ok, duration: 1 }));
            metrics.observe_connection(&fact(server, What::Retransmits(2)));
        }
        let (series, connects) = sum(&metrics, "tracer.tcp.connects");
        assert!(series <= 12 && connects == 500, "{series} series, {connects}");
        assert_eq!(sum(&metrics, "tracer.tcp.retransmits").1, 1000);
        assert!(metrics.series() <= 40 && metrics.overflowed() == 0);
        for number in 0..20 {
            let span =
                crate::metrics::tests::span(&resource("shop", 1), Kind::Server, 200 + number, SECOND, 1);
            metrics.observe(&span, None);
        }
        assert_eq!((sum(&metrics, "http.server.request.duration"), metrics.overflowed()), ((20, 20), 0));
    }
}
