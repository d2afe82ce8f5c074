//! What the agent says of itself: metrics, readiness, its configuration, what it sees of a process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
    time::Instant,
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
        kubernetes::Kept,
        serve::{Answer, Question},
        session::Session,
    },
    metrics::Active,
    protocol::{Attribute, RequestHead},
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
    /// What is kept of pods' labels and annotations, where they are asked for.
    pub(super) kept: Option<Kept>,
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
            let _ = writeln!(text, "{refused}");
        }
        for sender in session.outputs.senders.iter().filter(|sender| sender.is_failing()) {
            let _ = writeln!(text, "{} does not take what is sent", sender.url());
        }
        let hearing = session.watcher().map(|watcher| watcher.state().hearing).unwrap_or_default();
        for lost in hearing.iter().filter(|hearing| !hearing.heard) {
            let (what, seconds) = (lost.what, lost.since.elapsed().as_secs());
            let reason = lost.error.as_deref().unwrap_or("no answer yet");
            let _ = writeln!(text, "kubernetes: {what} have not been heard of for {seconds} s: {reason}");
        }
        if let Some(reason) = &self.refused {
            let _ = writeln!(text, "the configuration is not the one in the file: {reason}");
        }
        Answer::text(200, text)
    }

    /// To each receiver when it is time.
    pub(super) fn send_metrics(&mut self, session: &mut Session) {
        let places = self.exporters.take_due(capture::now());
        self.send_to(&places, session);
    }

    pub(super) fn send_metrics_now(&mut self, session: &mut Session) {
        let places = self.exporters.of_metrics();
        self.send_to(&places, session);
    }

    fn send_to(&self, places: &[usize], session: &mut Session) {
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
        resource.push(Attribute::word("service.name", "tracer").into());
        let own = otlp::metrics::Own {
            resource: &resource,
            start: time.saturating_sub(began),
            time,
            families: &families,
        };
        let Some(observer) = &session.outputs.observer else { return };
        let requests = otlp::metrics::requests(&observer.metrics.collect(), &own);
        for place in places {
            for request in &requests {
                let sender = &mut session.outputs.senders[*place];
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

/// Tells the metrics what is under way.
fn count_active(session: &mut Session) {
    let mut open = Vec::new();
    session
        .pipeline()
        .each_open(|process, kind, head: &Arc<RequestHead>| open.push((process, kind, head.clone())));
    let processes: BTreeSet<u32> = open.iter().map(|(process, ..)| *process).collect();
    // One whose pod may yet be told would be counted for two services.
    let settled = |process| Some((process, session.pipeline_mut().settled_resource(process)?));
    let resources: BTreeMap<u32, _> = processes.into_iter().filter_map(settled).collect();
    if let Some(observer) = &mut session.outputs.observer {
        let known =
            open.iter().filter_map(|(process, kind, head)| Some((resources.get(process)?, kind, head)));
        let active = known.map(|(resource, kind, head)| Active {
            resource,
            exchange: head.protocol,
            kind: *kind,
            attributes: &head.common.attributes,
            count: 1,
        });
        observer.set_active(clock::wall(clock::monotonic()), active);
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
    let _ = writeln!(text, "traced by {}", session.selection().told(selected.chosen));
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
