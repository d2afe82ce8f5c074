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
    export::{json, text},
    span::Span,
};

/// Spans that wait to be written; what comes on top is dropped and counted.
const QUEUE: usize = 32 * 1024;

/// How long lines stay in the buffer while more come.
const FLUSH: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// A line of JSON for each span.
    Json,
    None,
}

pub struct Printer {
    queue: Option<SyncSender<Span>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    dropped: u64,
    /// Nobody reads any more.
    closed: bool,
}

impl Printer {
    pub fn start(format: Format, file: Option<&Path>) -> Result<Self> {
        if format == Format::None {
            return Ok(Self { queue: None, thread: None, dropped: 0, closed: false });
        }
        let (out, color): (Box<dyn Write + Send>, bool) = match file {
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
        let (queue, spans) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("print".into())
            .spawn(move || write(&spans, format, color, out))
            .context("no thread can be started")?;
        Ok(Self { queue: Some(queue), thread: Some(thread), dropped: 0, closed: false })
    }

    pub fn print(&mut self, span: Span) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.dropped += 1,
            Err(TrySendError::Disconnected(_)) => self.closed = true,
        }
    }

    /// As [`Self::print`], but waits for room.
    pub fn print_waiting(&mut self, span: Span) {
        if let Some(queue) = &self.queue {
            self.closed |= queue.send(span).is_err();
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

fn write(spans: &Receiver<Span>, format: Format, color: bool, out: Box<dyn Write>) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(64 << 10, out);
    let mut flushed = Instant::now();
    loop {
        let span = match spans.recv_timeout(FLUSH) {
            Ok(span) => span,
            Err(RecvTimeoutError::Timeout) => {
                out.flush()?;
                flushed = Instant::now();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return out.flush(),
        };
        let line = match format {
            Format::Json => json::line(&span),
            _ => text::line(&span, color),
        };
        writeln!(out, "{line}")?;
        if flushed.elapsed() >= FLUSH {
            out.flush()?;
            flushed = Instant::now();
        }
    }
}
