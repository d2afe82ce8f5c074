//! A line for people: when, what, how it ended, how long, how much, with whom, in which process.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use crate::{
    exchange::Outcome,
    pipeline::OpenExchange,
    protocol::Kind,
    span::{Span, Status},
};

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default();

/// Without the line break; `color` only for a terminal.
pub fn line(span: &Span, color: bool) -> String {
    let paint = Paint(color);
    let mut line = String::with_capacity(160);
    paint.put(&mut line, DIM, &time(span.start));
    line.push(' ');
    paint.put(&mut line, BOLD, &format!("{:<6}", span.kind.name()));
    let view = &span.view;
    let _ = write!(line, " {} {} ", plain(&view.operation), plain(&view.target));
    paint.put(&mut line, style(span), view.status.as_deref().unwrap_or("-"));
    if let Some(stream) = view.stream {
        line.push(' ');
        line.push_str(stream);
    }
    if let Some(outcome) = outcome(view.outcome) {
        line.push(' ');
        paint.put(&mut line, ODD, outcome);
    }
    let _ = write!(line, " {}", duration(span.end.saturating_sub(span.start)));
    let _ = write!(line, " {}>{}", size(view.request_content), size(view.response_content));
    paint.put(&mut line, DIM, &whereabouts(span.kind, view.peer.as_deref(), &span.resource));
    line
}

/// How the status of a span is painted.
pub(super) fn style(span: &Span) -> Style {
    match (&span.view.status, span.status) {
        (_, Status::Error) => BAD,
        (Some(status), _) if status.starts_with(['4', '5']) => ODD,
        (Some(_), _) => GOOD,
        (None, _) => ODD,
    }
}

/// An exchange that was not over at the end.
pub fn open(open: &OpenExchange) -> String {
    let state = match &open.status {
        Some(status) if status.is_empty() => "its response goes on".to_owned(),
        Some(status) if open.answered => format!("{status}, its request goes on"),
        Some(status) => format!("{status}, its response goes on"),
        None => "no response yet".to_owned(),
    };
    format!(
        "open for {}: {} {} ({state}){}",
        duration(open.age),
        plain(&open.operation),
        plain(&open.target),
        whereabouts(open.kind, open.peer.as_deref(), &open.resource)
    )
}

fn whereabouts(kind: Kind, peer: Option<&str>, resource: &crate::enrich::Resource) -> String {
    let peer = plain(peer.unwrap_or("?"));
    let process = format!("{}[{}]", plain(&resource.service), resource.process);
    match kind {
        Kind::Server => format!(" {peer} -> {process}"),
        Kind::Client => format!(" {process} -> {peer}"),
    }
}

pub(super) fn outcome(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Complete | Outcome::Open => None,
        Outcome::Aborted => Some("aborted"),
        Outcome::Closed => Some("closed"),
        Outcome::Reset => Some("reset"),
        Outcome::Hidden => Some("partial"),
    }
}

/// What came over the network must not steer the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// Time of day (UTC) in microseconds.
fn time(nanoseconds: u64) -> String {
    match Timestamp::from_nanosecond(nanoseconds.into()) {
        Ok(time) => time.strftime("%H:%M:%S%.6f").to_string(),
        Err(_) => "?".to_owned(),
    }
}

pub fn duration(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{:.0}us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}ms", value / 1e6),
        _ => format!("{:.2}s", value / 1e9),
    }
}

pub fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_024 => format!("{bytes}B"),
        1_024..1_048_576 => format!("{:.1}KiB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1}MiB", value / 1_048_576.0),
        _ => format!("{:.1}GiB", value / 1_073_741_824.0),
    }
}

pub(super) struct Paint(pub(super) bool);

impl Paint {
    pub(super) fn put(&self, line: &mut String, style: Style, text: &str) {
        let _ = if self.0 { write!(line, "{style}{text}{style:#}") } else { write!(line, "{text}") };
    }
}
