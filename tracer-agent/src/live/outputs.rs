//! Where spans and records go.

use std::{io::Write, path::Path};

use anyhow::{Context, Result, bail};

use super::{
    clock,
    gate::User,
    print::Printer,
    send::{Sender, endpoint::Signal},
};
use crate::{
    capture,
    filter::Filter,
    observe::Observer,
    span::Span,
    summary::{Summary, edges::Edges},
};

pub struct Outputs {
    pub printer: Printer,
    pub senders: Vec<Sender>,
    pub recording: Option<Recording>,
    /// What is shown and sent of the spans.
    pub filter: Filter,
    /// Spans that were not.
    pub filtered: u64,
    /// What the spans come to, if that is asked for.
    pub summary: Option<Summary>,
    /// Who calls whom, if that is asked for.
    pub edges: Option<Edges>,
    /// What measures spans and chooses some, where an agent runs.
    pub observer: Option<Observer>,
}

impl Outputs {
    /// A disk that is full ends the recording, and nothing else.
    pub(super) fn record(&mut self, bytes: &[u8]) {
        if let Some(recording) = &mut self.recording
            && let Err(error) = recording.write(bytes)
        {
            recording.give_up(&error);
        }
    }

    pub(super) fn finish_recording(&mut self) -> bool {
        let Some(recording) = &mut self.recording else { return true };
        if let Err(error) = recording.finish() {
            recording.give_up(&error);
        }
        !recording.broken
    }

    /// Returns whether the span is one of those that are asked for.
    pub fn deliver(&mut self, span: Span) -> bool {
        let asked = self.take_notice(&span);
        match &mut self.observer {
            None => self.hand_out(span, asked),
            Some(observer) if asked => {
                observer.take(span);
                self.hand_out_observed();
            }
            Some(_) => {}
        }
        asked
    }

    fn hand_out(&mut self, span: Span, asked: bool) {
        for sender in self.senders.iter_mut().filter(|sender| asked && sender.signal() == Signal::Traces) {
            sender.send(&span);
        }
        self.printer.print(span, asked);
    }

    /// Those that were chosen meanwhile.
    pub(super) fn hand_out_observed(&mut self) {
        while let Some(span) = self.observer.as_mut().and_then(Observer::poll_output) {
            self.hand_out(span, true);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: u64) {
        if let Some(observer) = &mut self.observer {
            observer.handle_timeout(now, clock::wall(now));
            self.hand_out_observed();
        }
        for sender in &mut self.senders {
            sender.flush_due();
        }
    }

    /// Nothing more comes.
    pub(super) fn finish_observing(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.finish();
            self.hand_out_observed();
        }
    }

    /// Counts it, and says whether it is asked for.
    fn take_notice(&mut self, span: &Span) -> bool {
        let asked = self.is_asked_for(span);
        if asked && let Some(summary) = &mut self.summary {
            summary.add(span);
        }
        if let Some(edges) = &mut self.edges {
            edges.add(span, asked);
        }
        asked
    }

    fn is_asked_for(&mut self, span: &Span) -> bool {
        let matches = self.filter.matches(span);
        self.filtered += !matches as u64;
        matches
    }

    /// For a replay, which can wait.
    pub fn deliver_waiting(&mut self, span: Span) {
        let asked = self.take_notice(&span);
        for sender in self.senders.iter_mut().filter(|_| asked) {
            sender.send_waiting(&span);
        }
        self.printer.print_waiting(span, asked);
    }
}

/// A capture file that is being written.
pub struct Recording {
    out: std::io::BufWriter<std::fs::File>,
    broken: bool,
}

impl Recording {
    /// Only for its owner: it will hold what the processes sent and received. A file that is there is
    /// replaced, not written over: somebody may have it open. A device or a pipe is left as it is.
    pub fn create(path: &Path) -> Result<Self> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
        let owner = User::of_sudo();
        let mut options = std::fs::OpenOptions::new();
        options.write(true);
        let special = match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => {
                let own = rustix::process::geteuid().as_raw();
                let users = owner.as_ref().map_or(own, |user| user.id);
                if found.uid() != own && found.uid() != users {
                    bail!("{} belongs to somebody else", path.display());
                }
                std::fs::remove_file(path).with_context(|| path.display().to_string())?;
                false
            }
            Ok(found) if found.is_symlink() => bail!("{} is a symbolic link", path.display()),
            Ok(found) => found.file_type().is_char_device() || found.file_type().is_fifo(),
            Err(_) => false,
        };
        if !special {
            options.create_new(true).mode(0o600);
        }
        let file = options.open(path).with_context(|| format!("{} cannot be written", path.display()))?;
        if let Some(user) = owner.filter(|_| !special) {
            std::os::unix::fs::fchown(&file, Some(user.id), Some(user.group))?;
        }
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        out.write_all(&capture::MAGIC)?;
        Ok(Self { out, broken: false })
    }

    fn write(&mut self, record: &[u8]) -> std::io::Result<()> {
        if self.broken {
            return Ok(());
        }
        self.out.write_all(&capture::frame(record))?;
        self.out.write_all(record)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        if self.broken { Ok(()) } else { self.out.flush() }
    }

    fn give_up(&mut self, error: &std::io::Error) {
        self.broken = true;
        tell!("record: the capture file cannot be written any further: {error}");
    }
}
