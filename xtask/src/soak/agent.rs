//! The agent under test, and what it says.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use super::churn::Done;
use crate::bench::process::{Process, Said, wait_until};

pub(super) const SERVER: &str = "http_server_request_duration_seconds_count";
pub(super) const CLIENT: &str = "http_client_request_duration_seconds_count";

/// So many looks in a row at which nothing has changed.
const REST: usize = 5;

pub(super) struct Agent {
    process: Process,
    address: String,
    said: Said,
}

/// Each family of `/metrics` as one number: the sum of its series.
pub(super) struct Page(BTreeMap<String, f64>);

impl Page {
    pub(super) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default() as u64
    }
}

/// What it said when it ended.
pub(super) struct Ended {
    pub(super) ledger: String,
    pub(super) code: Option<i32>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ledger)
    }
}

impl Agent {
    /// `name`: of the processes that it traces.
    pub(super) fn start(
        programs: &Path,
        folder: &Path,
        name: &str,
        memory: u64,
        receiver: &str,
    ) -> Result<Self> {
        let config = folder.join("config.yaml");
        // All of it has something to do: the sampler, the routes, the queue.
        let text = format!(
            "select: {{ include: [ {{ command: {name} }} ] }}\n\
             sampling: {{ share: 0.05 }}\n\
             export: {{ otlp: [ {{ url: '{receiver}', interval: 10s }} ] }}\n\
             budgets: {{ memory: {memory} }}\n\
             serve: {{ address: '127.0.0.1:0' }}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(programs.join("tracer"));
        let mut process =
            Process::start(command.arg("run").arg("--config").arg(&config).stderr(Stdio::piped()))?;
        let said = Said::of(&mut process)?;
        let mut agent = Self { process, address: String::new(), said };
        let address = |said: &str| -> Option<String> {
            Some(said.split("answers on http://").nth(1)?.lines().next()?.to_owned())
        };
        wait_until("the agent to start", || address(&agent.said.text()).is_some())
            .with_context(|| agent.said.text())?;
        agent.address = address(&agent.said.text()).context("no address")?;
        Ok(agent)
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn page(&self) -> Result<Page> {
        let mut connection = TcpStream::connect(&self.address).context("the agent does not answer")?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        let (head, text) = text.split_once("\r\n\r\n").context("no answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("/metrics: {head}\n{text}");
        }
        let mut page = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = name.split('{').next().unwrap_or_default();
            *page.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap_or_default();
        }
        Ok(Page(page))
    }

    /// Waits until it has counted what was done, or nothing more comes: where records were lost, some never do.
    pub(super) fn come_to_rest(&self, done: &Done) -> Result<()> {
        let (mut looks, mut before) = (Vec::new(), None);
        while !looks.ends_with(&[true; REST]) {
            std::thread::sleep(Duration::from_secs(1));
            let page = self.page()?;
            let now = (page.get(SERVER), page.get(CLIENT));
            let all = now.0 >= done.served && now.1 >= done.asked;
            if all && page.get("tracer_moved_bytes_total") == page.get("tracer_bytes_total") {
                break;
            }
            looks.push(before.replace(now) == Some(now));
        }
        Ok(())
    }

    /// As a service manager does.
    pub(super) fn finish(mut self) -> Result<Ended> {
        kill(self.process.pid(), Signal::SIGTERM)?;
        let status = self.process.0.wait()?;
        wait_until("the agent's ledger", || self.said.text().contains("ledger:"))?;
        let said = self.said.text();
        let ledger = said.lines().find(|line| line.contains("ledger:")).context("no ledger")?;
        let ledger = ledger.split_once("ledger:").map_or(ledger, |(_, rest)| rest);
        Ok(Ended { ledger: format!("ledger:{ledger}"), code: status.code() })
    }
}
