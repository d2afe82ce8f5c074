//! What the agent says of itself: metrics, readiness, its configuration, what it sees of a process.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use tracer_agent::{
    budget::Budget,
    config::Config,
    enrich::process::HOST,
    export::{
        otlp::{self, Encoded},
        prometheus,
    },
    live::{
        clock,
        discover::Seen,
        send::endpoint::Signal,
        serve::{Answer, Question},
        session::Session,
    },
    metrics::Active,
    protocol::{Attribute, Kind, RequestHead},
    stats::Bucket,
};

use super::{capture, families, plan::Exporters};

pub(super) struct Agent {
    pub(super) config: Config,
    pub(super) began: Instant,
    /// Files that were taken, and those that were not.
    pub(super) reloads: [u64; 2],
    /// Why the file as it is now does not count.
    pub(super) refused: Option<String>,
    pub(super) exporters: Exporters,
    pub(super) budget: Option<Budget>,
    /// When metrics were last sent, by receiver.
    pub(super) sent: BTreeMap<String, Instant>,
}

impl Agent {
    pub(super) fn answer(&self, question: Question, session: &mut Session) -> Answer {
        match question {
            Question::Metrics(format) => self.metrics(format, session),
            Question::Ready => self.readiness(session),
            Question::Config => match serde_json::to_string_pretty(&self.config) {
                Ok(text) => Answer { status: 200, kind: "application/json", text: text + "\n" },
                Err(error) => Answer::text(500, format!("{error}\n")),
            },
            Question::Explain(process) => explain(process, session),
        }
    }

    fn metrics(&self, format: prometheus::Format, session: &mut Session) -> Answer {
        count_active(session);
        let families = self.families(session);
        let Some(observer) = &session.outputs.observer else {
            return Answer::text(503, "nothing is measured\n");
        };
        let text = prometheus::text(&observer.metrics.collect(), &families, format);
        Answer { status: 200, kind: format.content_type(), text }
    }

    /// Ready is who captures; what is not as it should be is said besides.
    fn readiness(&self, session: &Session) -> Answer {
        let mut text = String::from("ready\n");
        if session.probes().selects_nobody() {
            text.push_str("no process matches the selection at the moment\n");
        }
        for missing in &session.selection().missing {
            let _ = writeln!(text, "{missing}");
        }
        for refused in &session.probes().refused {
            let _ = writeln!(text, "probe {}: {}; {}", refused.tracepoint, refused.reason, refused.without);
        }
        for sender in session.outputs.senders.iter().filter(|sender| sender.is_failing()) {
            let _ = writeln!(text, "{} does not take what is sent", sender.url());
        }
        if let Some(reason) = &self.refused {
            let _ = writeln!(text, "the configuration is not the one in the file: {reason}");
        }
        Answer::text(200, text)
    }

    /// To each receiver when it is time.
    pub(super) fn send_metrics(&mut self, session: &mut Session) {
        let is_due = |place: usize, url: &str| {
            let interval = self.exporters.said(place).map_or(Duration::MAX, |otlp| otlp.interval.0);
            self.sent.get(url).is_none_or(|sent| sent.elapsed() >= interval)
        };
        self.send_to(&receivers(session, is_due), session);
    }

    pub(super) fn send_metrics_now(&mut self, session: &mut Session) {
        self.send_to(&receivers(session, |_, _| true), session);
    }

    fn send_to(&mut self, places: &[usize], session: &mut Session) {
        if places.is_empty() {
            return;
        }
        count_active(session);
        let families = self.families(session);
        let time = clock::wall(clock::monotonic());
        let began = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut resource = session.pipeline_mut().resource(HOST).attributes.clone();
        resource
            .retain(|attribute| !attribute.key.starts_with("process.") && attribute.key != "service.name");
        resource.push(Attribute::word("service.name", "tracer"));
        let own = otlp::metrics::Own {
            resource: &resource,
            start: time.saturating_sub(began),
            time,
            families: &families,
        };
        let Some(observer) = &session.outputs.observer else { return };
        let requests = otlp::metrics::requests(&observer.metrics.collect(), &own);
        for place in places {
            let sender = &mut session.outputs.senders[*place];
            self.sent.insert(sender.url().to_owned(), capture::now());
            for request in &requests {
                sender.send_encoded(Encoded { bytes: request.bytes.clone(), spans: request.points });
            }
        }
    }

    fn families(&self, session: &mut Session) -> Vec<tracer_agent::metrics::Family> {
        let mut all = families::of_session(session);
        all.extend(families::of_agent(self));
        all
    }
}

/// Those of the senders that metrics go to, if they are wanted.
fn receivers(session: &Session, wanted: impl Fn(usize, &str) -> bool) -> Vec<usize> {
    let senders = session.outputs.senders.iter().enumerate();
    senders
        .filter(|(place, sender)| sender.signal() == Signal::Metrics && wanted(*place, sender.url()))
        .map(|(place, _)| place)
        .collect()
}

/// Tells the metrics what is under way.
fn count_active(session: &mut Session) {
    type Same = (u32, Kind, &'static str, Vec<Attribute>);
    let mut open: BTreeMap<Same, u64> = BTreeMap::new();
    session.pipeline().each_open(|process, kind, head: &RequestHead| {
        let wanted = |attribute: &&Attribute| ["http.request.method", "url.scheme"].contains(&attribute.key);
        let attributes = head.common.attributes.iter().filter(wanted).cloned().collect();
        *open.entry((process, kind, head.protocol, attributes)).or_default() += 1;
    });
    let open: Vec<_> = open
        .into_iter()
        .map(|((process, kind, protocol, attributes), count)| {
            (session.pipeline_mut().resource(process), kind, protocol, attributes, count)
        })
        .collect();
    if let Some(observer) = &mut session.outputs.observer {
        observer.set_active(
            clock::wall(clock::monotonic()),
            open.iter().map(|(resource, kind, exchange, attributes, count)| Active {
                resource,
                exchange,
                kind: *kind,
                attributes,
                count: *count,
            }),
        );
    }
}

fn explain(process: u32, session: &mut Session) -> Answer {
    let Some(seen) = Seen::of(process) else {
        return Answer::text(
            404,
            format!("there is no process {process} (or it is a thread of the kernel)\n"),
        );
    };
    let mut text = format!("{process} ({})", seen.command);
    if let Some(executable) = &seen.executable {
        let _ = write!(text, ", {executable}");
    }
    text.push('\n');
    let selected = session.probes().selected(process);
    if selected.chosen == 0 {
        text.push_str("not traced: ");
        let met = session.selection().met_by(&seen);
        let why = session.selection().nearly(process, &seen, &met);
        match why {
            _ if session.selection().chosen(&met) != 0 => {
                text.push_str("it matches, and was not chosen yet\n")
            }
            Some(why) => {
                let _ = writeln!(text, "it nearly matches {}: {why}", session.selection());
            }
            None => {
                let _ = writeln!(text, "it does not match {}", session.selection());
            }
        }
        return Answer::text(200, text);
    }
    let rules = (0..32).filter(|rule| selected.chosen >> rule & 1 == 1);
    let rules: Vec<String> = rules.map(|rule| session.selection().told(rule)).collect();
    let _ = writeln!(text, "traced by {}", rules.join(", and by "));
    let coverage = session.pipeline().coverage().remove(&process).unwrap_or_default();
    let _ = writeln!(text, "{} connections until now, {} open", coverage.connections, coverage.open);
    for (what, count) in session.pipeline().carried(Some(process)) {
        let _ = writeln!(text, "  {count} {what}");
    }
    let _ = writeln!(text, "{} bytes told", coverage.bytes.sum());
    for bucket in Bucket::ALL.into_iter().filter(|bucket| coverage.bytes.get(*bucket) > 0) {
        let _ = writeln!(text, "  {} {}", coverage.bytes.get(bucket), bucket.name());
    }
    let _ = writeln!(text, "`tracer explain {process}` looks closer, and says what to do");
    Answer::text(200, text)
}
