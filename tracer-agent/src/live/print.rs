//! Lines on standard output or into a file, from a thread of its own: a reader who stops reading does
//! not stop the capture.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    exchange::Outcome,
    export::{json, text, tree::Trees},
    protocol::{Kind, Text},
    span::Span,
};

/// Spans that wait to be written; what comes on top is dropped and counted.
const QUEUE: usize = 32 * 1024;

/// How long lines stay in the buffer while more come.
const FLUSH: Duration = Duration::from_millis(100);

/// How long lines that are alike are only counted.
const FOLD: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// A line of JSON for each span.
    Json,
    None,
}

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A line for each span.
    Lines,
    /// Lines that are alike are told once, and then how many more there were.
    Folded,
    /// Whole traces.
    Trees,
}

pub struct Printer {
    /// With whether the span is asked for, or only the trace that it is in.
    queue: Option<SyncSender<(Span, bool)>>,
    trees: bool,
    thread: Option<JoinHandle<io::Result<()>>>,
    dropped: u64,
    /// Nobody reads any more.
    closed: bool,
}

/// Where lines go, open but not written to yet.
pub struct Target {
    format: Format,
    out: Box<dyn Write + Send>,
    color: bool,
}

impl Target {
    pub fn open(format: Format, file: Option<&Path>) -> Result<Self> {
        let (out, color): (Box<dyn Write + Send>, bool) = match file {
            _ if format == Format::None => (Box::new(io::sink()), false),
            Some(path) => {
                let file = std::fs::File::create(path)
                    .with_context(|| format!("{} cannot be written", path.display()))?;
                (Box::new(file), false)
            }
            None => {
                let out = io::stdout();
                let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                let color = out.is_terminal() && !plain;
                (Box::new(out), color)
            }
        };
        Ok(Self { format, out, color })
    }
}

impl Printer {
    /// One that prints nothing.
    pub fn silent() -> Self {
        Self { queue: None, trees: false, thread: None, dropped: 0, closed: false }
    }

    pub fn start(target: Target, shape: Shape) -> Result<Self> {
        let Target { format, out, color } = target;
        if format == Format::None {
            return Ok(Self::silent());
        }
        let (queue, spans) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("print".into())
            .spawn(move || write(&spans, format, color, shape, out))
            .context("no thread can be started")?;
        let trees = shape == Shape::Trees && format == Format::Text;
        Ok(Self { queue: Some(queue), trees, thread: Some(thread), ..Self::silent() })
    }

    /// `asked`: somebody wants to see it; the others only stand beside those in trees.
    pub fn print(&mut self, span: Span, asked: bool) {
        let Some(queue) = self.queue.as_ref().filter(|_| asked || self.trees) else { return };
        match queue.try_send((span, asked)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.dropped += 1,
            Err(TrySendError::Disconnected(_)) => self.closed = true,
        }
    }

    /// As [`Self::print`], but waits for room.
    pub fn print_waiting(&mut self, span: Span, asked: bool) {
        if let Some(queue) = self.queue.as_ref().filter(|_| asked || self.trees) {
            self.closed |= queue.send((span, asked)).is_err();
        }
    }

    /// Whether there is nobody to write for: the reader of a pipe has gone.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes what is left, for at most as long. Returns how many lines were dropped.
    pub fn finish(mut self, most: Duration) -> Result<u64> {
        drop(self.queue.take());
        let Some(thread) = self.thread.take() else { return Ok(self.dropped) };
        let until = Instant::now() + most;
        while !thread.is_finished() {
            if Instant::now() >= until {
                anyhow::bail!("the output is not read: lines are missing");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        match thread.join() {
            Ok(Ok(())) => Ok(self.dropped),
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(self.dropped),
            Ok(Err(error)) => Err(error).context("the output cannot be written"),
            Err(_) => anyhow::bail!("the thread that writes the output failed"),
        }
    }
}

fn write(
    spans: &Receiver<(Span, bool)>,
    format: Format,
    color: bool,
    shape: Shape,
    out: Box<dyn Write>,
) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(64 << 10, out);
    let mut flushed = Instant::now();
    let mut layout = match (format, shape) {
        (Format::Text, Shape::Folded) => Layout::Folded(Folded::default()),
        (Format::Text, Shape::Trees) => Layout::Trees(Trees::default(), flushed),
        _ => Layout::Lines,
    };
    loop {
        match spans.recv_timeout(FLUSH) {
            Ok((span, asked)) => {
                layout.take(span, asked, format, color, &mut out)?;
                if flushed.elapsed() < FLUSH {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                layout.finish(color, &mut out)?;
                return out.flush();
            }
        }
        layout.look(color, &mut out)?;
        out.flush()?;
        flushed = Instant::now();
    }
}

enum Layout {
    Lines,
    Folded(Folded),
    /// With when it began.
    Trees(Trees, Instant),
}

impl Layout {
    fn take(
        &mut self,
        span: Span,
        asked: bool,
        format: Format,
        color: bool,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        match self {
            Layout::Lines if format == Format::Json => return writeln!(out, "{}", json::line(&span)),
            Layout::Lines => {}
            Layout::Folded(folded) => match folded.take(&span) {
                Fold::New(before) => put(before, out)?,
                Fold::More => return Ok(()),
            },
            Layout::Trees(trees, began) => {
                trees.add(span, asked, nanoseconds(*began));
                return self.look(color, out);
            }
        }
        writeln!(out, "{}", text::line(&span, color))
    }

    /// What is told when some time has passed.
    fn look(&mut self, color: bool, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Layout::Lines => Ok(()),
            Layout::Folded(folded) => put(folded.look(), out),
            Layout::Trees(trees, began) => {
                let now = nanoseconds(*began);
                std::iter::from_fn(|| trees.poll(now, color)).try_for_each(|lines| put(lines, out))
            }
        }
    }

    fn finish(&mut self, color: bool, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Layout::Lines => Ok(()),
            Layout::Folded(folded) => put(folded.end(), out),
            Layout::Trees(trees, _) => put(trees.finish(color), out),
        }
    }
}

fn nanoseconds(since: Instant) -> u64 {
    since.elapsed().as_nanos().try_into().unwrap_or(u64::MAX)
}

fn put(lines: impl IntoIterator<Item = String>, out: &mut dyn Write) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))
}

/// Lines that are alike, but for time, duration and size.
#[derive(Default)]
struct Folded {
    like: Option<Like>,
    more: u64,
    least: u64,
    most: u64,
    since: Option<Instant>,
}

#[derive(PartialEq)]
struct Like {
    process: u32,
    kind: Kind,
    operation: Text,
    target: Text,
    status: Option<Text>,
    outcome: Outcome,
}

enum Fold {
    /// Another one, after a line on those before.
    New(Option<String>),
    More,
}

impl Folded {
    fn take(&mut self, span: &Span) -> Fold {
        let like = Like {
            process: span.resource.process,
            kind: span.kind,
            operation: span.view.operation.clone(),
            target: span.view.target.clone(),
            status: span.view.status.clone(),
            outcome: span.view.outcome,
        };
        let time = span.end.saturating_sub(span.start);
        if self.like.as_ref() != Some(&like) {
            let before = self.end();
            self.like = Some(like);
            return Fold::New(before);
        }
        (self.least, self.most) =
            if self.more == 0 { (time, time) } else { (self.least.min(time), self.most.max(time)) };
        self.more += 1;
        self.since.get_or_insert_with(Instant::now);
        Fold::More
    }

    /// Nobody waits for long to hear of them.
    fn look(&mut self) -> Option<String> {
        self.since.filter(|since| since.elapsed() >= FOLD)?;
        self.tell()
    }

    fn end(&mut self) -> Option<String> {
        let line = self.tell();
        self.like = None;
        line
    }

    fn tell(&mut self) -> Option<String> {
        self.since = None;
        let more = std::mem::take(&mut self.more);
        let (least, most) = (text::duration(self.least), text::duration(self.most));
        let times = if least == most { least } else { format!("{least} to {most}") };
        (more > 0).then(|| format!("                and {more} more like it, {times}"))
    }
}
