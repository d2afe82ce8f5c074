//! What is looked at each time, and what it comes to.

use std::{fmt, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{
    agent::{Agent, CLIENT, Ended, Page, SERVER},
    churn::Done,
    number_in,
};

#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Seconds since the start.
    at: f64,
    /// In the order of [`COLUMNS`].
    values: [u64; COLUMNS.len()],
    requests: u64,
    lost: u64,
}

const COLUMNS: [&str; 10] = [
    "VmRSS KiB",
    "Pss KiB",
    "RssAnon KiB",
    "RssFile KiB",
    "held KiB",
    "open fds",
    "threads",
    "map entries",
    "connections",
    "processes",
];

impl Sample {
    pub(super) fn take(agent: &Agent, at: Duration) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{}", agent.id()));
        let status = |key: &str| number_in(&proc.join("status"), key).with_context(|| format!("no {key}"));
        let page = agent.page()?;
        let values = [
            status("VmRSS")?,
            number_in(&proc.join("smaps_rollup"), "Pss").unwrap_or_default(),
            status("RssAnon")?,
            status("RssFile")?,
            page.get("tracer_memory_held_bytes") >> 10,
            std::fs::read_dir(proc.join("fd"))?.count() as u64,
            status("Threads")?,
            map_entries(&proc).unwrap_or_default(),
            page.get("tracer_connections_open"),
            page.get("tracer_processes_selected"),
        ];
        let (requests, lost) = (page.get(SERVER) + page.get(CLIENT), page.get("tracer_records_lost_total"));
        Ok(Self { at: at.as_secs_f64(), values, requests, lost })
    }

    /// Progress: what has changed since the last one.
    pub(super) fn line(&self, before: Option<&Self>, pairs: u64) -> String {
        let (requests, at) = before.map_or((0, 0.0), |before| (before.requests, before.at));
        let rate = self.requests.saturating_sub(requests) as f64 / (self.at - at).max(0.1);
        let [rss, pss, anon, _, held, files, threads, entries, connections, processes] = self.values;
        format!(
            "{:>5.0} s  RSS {rss} Pss {pss} anon {anon} held {held} KiB; {files} fds, {threads} threads, {entries} map entries, \
             {connections} connections, {processes} processes; {rate:.0} exchanges/s, {} lost, {pairs} pairs ended",
            self.at, self.lost
        )
    }
}

/// Entries of all hash maps that the agent has, by bpftool.
fn map_entries(proc: &std::path::Path) -> Option<u64> {
    let mut ids = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(proc.join("fdinfo")).ok()?.flatten() {
        let path = entry.path();
        // Hash, per-CPU hash, LRU hash.
        if matches!(number_in(&path, "map_type"), Some(1 | 5 | 9)) {
            ids.extend(number_in(&path, "map_id"));
        }
    }
    let mut entries = 0;
    for id in ids {
        let program =
            if std::path::Path::new("/usr/sbin/bpftool").exists() { "/usr/sbin/bpftool" } else { "bpftool" };
        let output =
            Command::new(program).args(["map", "dump", "id", &id.to_string(), "-j"]).output().ok()?;
        let entry = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?;
        entries += entry.as_array()?.len() as u64;
    }
    Some(entries)
}

/// By the method of least squares, a minute. The first fifth is left out: tables fill.
fn slope(samples: &[Sample], column: usize) -> f64 {
    let samples = &samples[samples.len() / 5..];
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, value) = (mean(&|sample| sample.at), mean(&|sample| sample.values[column] as f64));
    let both = mean(&|sample| (sample.at - time) * (sample.values[column] as f64 - value));
    let squares = mean(&|sample| (sample.at - time).powi(2));
    if squares > 0.0 { both / squares * 60.0 } else { 0.0 }
}

fn range(samples: &[Sample], column: usize) -> (u64, u64) {
    let values = || samples.iter().map(|sample| sample.values[column]);
    (values().min().unwrap_or_default(), values().max().unwrap_or_default())
}

pub(super) fn table(samples: &[Sample]) -> String {
    let mut text = format!("{:<12} {:>10} {:>10} {:>14}\n", "", "min", "max", "slope a minute");
    for (column, name) in COLUMNS.into_iter().enumerate() {
        let (min, max) = range(samples, column);
        text.push_str(&format!("{name:<12} {min:>10} {max:>10} {:>14.1}\n", slope(samples, column)));
    }
    text
}

pub(super) fn json(samples: &[Sample], done: &Done, verdict: &Verdict) -> String {
    let columns: serde_json::Map<String, serde_json::Value> = COLUMNS
        .into_iter()
        .enumerate()
        .map(|(column, name)| {
            let (min, max) = range(samples, column);
            let told = serde_json::json!({ "min": min, "max": max, "slope": slope(samples, column) });
            (name.to_owned(), told)
        })
        .collect();
    serde_json::json!({
        "samples": samples.len(),
        "columns": columns,
        "served": done.served,
        "asked": done.asked,
        "connections": done.connections,
        "failed": done.failed,
        "processes": done.processes,
        "counted": { "server": verdict.counted.0, "client": verdict.counted.1 },
        "lost": verdict.lost,
        "wrong": verdict.wrong,
    })
    .to_string()
}

pub(super) struct Verdict {
    counted: (u64, u64),
    lost: u64,
    pub(super) wrong: Vec<String>,
}

impl Verdict {
    pub(super) fn of(
        memory: u64,
        samples: &[Sample],
        last: &Sample,
        done: &Done,
        page: &Page,
        ended: &Ended,
    ) -> Self {
        let mut wrong = Vec::new();
        let most = samples.iter().chain([last]).map(|sample| sample.values[0]).max().unwrap_or_default();
        if most << 10 > memory {
            wrong.push(format!("resident memory went to {most} KiB, above {} KiB", memory >> 10));
        }
        let counted = (page.get(SERVER), page.get(CLIENT));
        // What did not fit into the ring, or had to go: then some may be missing.
        let lost = page.get("tracer_records_lost_total")
            + page.get("tracer_connections_evicted_total")
            + page.get("tracer_processes_over_limit_total");
        for (side, counted, truth) in [("served", counted.0, done.served), ("asked", counted.1, done.asked)] {
            // Who gave up before the answer was there is counted by one end alone.
            let differs = counted.abs_diff(truth) > done.failed;
            if differs && lost == 0 {
                wrong.push(format!("{truth} requests were {side}, {counted} counted, and nothing lost"));
            } else if counted > truth + done.failed {
                wrong.push(format!("{truth} requests were {side}, {counted} counted: some were invented"));
            }
        }
        if !ended.ledger.contains("(sums exactly)") {
            wrong.push("the ledger differs".to_owned());
        }
        if ended.code != Some(0) {
            wrong.push(format!("the agent ended with {:?}", ended.code));
        }
        Self { counted, lost, wrong }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (server, client) = self.counted;
        writeln!(
            f,
            "metrics: {client} requests asked, {server} served; {} records lost or evicted",
            self.lost
        )?;
        for wrong in &self.wrong {
            writeln!(f, "WRONG: {wrong}")?;
        }
        writeln!(f, "verdict: {}", if self.wrong.is_empty() { "good" } else { "bad" })
    }
}
