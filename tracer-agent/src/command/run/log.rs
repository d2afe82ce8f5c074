//! What the agent says on standard error: lines for the journal or for a collector of logs, and of lines from the
//! same place not too many.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracer_agent::config::{Level, Log, LogFormat};
use tracing::{Event, Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    layer::{Context, Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use super::capture;

/// From one place so many lines in this time.
const LINES: u32 = 20;
const TIME: Duration = Duration::from_secs(60);

/// TRACER_LOG says more than the file.
pub(super) fn start(log: &Log) {
    let level = match log.level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    };
    let filter =
        EnvFilter::builder().with_default_directive(level.into()).with_env_var("TRACER_LOG").from_env_lossy();
    // The journal has its own time, and no use for colours.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text if in_journal => lines.without_time().boxed(),
        LogFormat::Text => lines.boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(Few::default()).with_filter(filter)).init();
}

/// Leaves out lines of which there are too many; the first one afterwards is said again.
#[derive(Default)]
struct Few {
    /// The places in the program that said something: some dozens at most.
    places: Mutex<Vec<Place>>,
}

impl<S: Subscriber> Filter<S> for Few {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let now = capture::now();
        // Each change is whole before anything can fail.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let callsite = event.metadata().callsite();
        let known = places.iter().position(|place| place.callsite == callsite).unwrap_or_else(|| {
            places.push(Place { callsite, since: now, lines: 0 });
            places.len() - 1
        });
        let place = &mut places[known];
        if now.duration_since(place.since) >= TIME {
            (place.since, place.lines) = (now, 0);
        }
        place.lines += 1;
        place.lines <= LINES
    }
}

struct Place {
    callsite: Identifier,
    since: Instant,
    lines: u32,
}
