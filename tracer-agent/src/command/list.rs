//! `tracer list`: what a selection would trace, what nearly, and why not.

use std::collections::BTreeMap;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use tracer_agent::{
    export::text,
    live::{
        discover::Seen,
        select::{KINDS, Selection},
    },
};

use tracer_common::config::Met;

use super::{Exit, Failure, choice::SelectionArguments, say};

/// Processes that nearly match are shown up to this many.
const NEARLY_MAX: usize = 20;

#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 if a process matches, 2 if none does.

Examples:
  tracer list --port 8080
  tracer list --command 'python*' --cgroup /system.slice
  tracer list --exe /usr/sbin/nginx --json")]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: SelectionArguments,

    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing {
    matches: Vec<Entry>,
    nearly: Vec<Entry>,
    /// Processes that were looked at.
    processes: usize,
}

#[derive(Serialize)]
struct Entry {
    pid: u32,
    command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
    listening: Vec<u16>,
    /// The conditions that it meets, or why it does not match.
    reason: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if !arguments.selection.command.is_empty() {
        let error = anyhow!("`list` starts no command: name processes that run");
        return Err(Failure::new(Exit::Usage, error));
    }
    let selection = arguments.selection.choice()?.selection;
    let listing = listing(&selection, selection.scan()?);
    if arguments.json {
        let json = serde_json::to_string_pretty(&listing).map_err(anyhow::Error::from)?;
        say(&json);
    } else {
        show(&listing);
    }
    if listing.matches.is_empty() {
        let error = anyhow!("none of {} processes matches {selection}", listing.processes);
        return Err(Failure::new(Exit::Usage, error));
    }
    Ok(Exit::Fine)
}

fn listing(selection: &Selection, seen: BTreeMap<u32, (Seen, Met)>) -> Listing {
    let mut listing = Listing { matches: Vec::new(), nearly: Vec::new(), processes: seen.len() };
    for (pid, (seen, met)) in seen {
        let (list, reason) = if selection.chosen(&met) != 0 {
            (&mut listing.matches, kinds(&met))
        } else if let Some(reason) = selection.nearly(pid, &seen, &met) {
            (&mut listing.nearly, reason)
        } else {
            continue;
        };
        list.push(Entry {
            pid,
            listening: seen.listening().into_iter().collect(),
            command: seen.command,
            executable: seen.executable,
            cgroup: seen.cgroup,
            reason,
        });
    }
    listing
}

fn kinds(met: &Met) -> String {
    let names: Vec<&str> =
        KINDS.iter().zip(met).filter(|(_, met)| **met != 0).map(|(kind, _)| *kind).collect();
    names.join(", ")
}

fn show(listing: &Listing) {
    let line = |entry: &Entry| {
        let ports: Vec<String> = entry.listening.iter().map(u16::to_string).collect();
        format!(
            "{:>8}  {:<16} {:<32} {:<12} {}",
            entry.pid,
            text::plain(&entry.command),
            text::plain(entry.executable.as_deref().unwrap_or("?")),
            if ports.is_empty() { "-".to_owned() } else { ports.join(",") },
            text::plain(&entry.reason),
        )
    };
    let mut lines = Vec::new();
    if !listing.matches.is_empty() {
        lines.push(format!("{:>8}  {:<16} {:<32} {:<12} MATCHES BY", "PID", "COMMAND", "FILE", "LISTENS ON"));
        lines.extend(listing.matches.iter().map(line));
    }
    if !listing.nearly.is_empty() {
        lines.push("not traced, but near:".to_owned());
        lines.extend(listing.nearly.iter().take(NEARLY_MAX).map(line));
        if listing.nearly.len() > NEARLY_MAX {
            lines.push(format!("          and {} more", listing.nearly.len() - NEARLY_MAX));
        }
    }
    if !lines.is_empty() {
        say(&lines.join("\n"));
    }
}
