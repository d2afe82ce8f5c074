//! `cargo xtask demo`: traces a bundled app of two services and shows its spans and the ledger.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    setup,
    shell::{self, as_root},
    test::build_programs,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Requests that the demo's user sends
    #[arg(long, default_value_t = 12)]
    requests: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(false)?;
    println!("demo: building (a few minutes the first time)");
    let programs = build_programs(&toolchain)?;
    if !shell::is_root() {
        println!("demo: sudo is used to load the probes");
    }

    let (backend, backend_port) =
        Service::start(Command::new(programs.join("demo-backend")).arg("0"), "backend")?;
    let (frontend, frontend_port) = Service::start(
        Command::new(programs.join("demo-frontend")).args(["0", &format!("127.0.0.1:{backend_port}")]),
        "frontend",
    )?;
    println!("demo: nobody told these two that they would be traced: {frontend} and {backend}");
    let spans = arguments.requests * 3;
    let mut tracer = as_root(&[], programs.join("tracer"));
    tracer
        .arg("trace")
        .args(["--pid", &frontend.process(), "--pid", &backend.process()])
        // Three spans a request: the frontend as server and as client, the backend as server.
        .args(["--count", &spans.to_string(), "--for", "30s"]);
    let mut tracer = Guard(tracer.stderr(Stdio::piped()).spawn().context("the tracer cannot be started")?);
    let mut lines = BufReader::new(tracer.0.stderr.take().context("no pipe")?).lines();
    for line in &mut lines {
        let line = line?;
        eprintln!("{line}");
        if line.starts_with("tracing") {
            shell::run(
                Command::new(programs.join("demo-user"))
                    .args([&format!("127.0.0.1:{frontend_port}"), &arguments.requests.to_string()]),
            )?;
        }
    }
    let status = tracer.0.wait()?;
    if !status.success() {
        bail!("the tracer failed ({status})");
    }
    println!("demo: that was it; `tracer trace --pid PID` does the same for a service of yours");
    Ok(())
}

/// A program that ends with its owner.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

struct Service {
    name: &'static str,
    program: Guard,
}

impl Service {
    /// Starts it on a port that the system chooses, and waits until it says which.
    fn start(command: &mut Command, name: &'static str) -> Result<(Self, u16)> {
        let child = command
            .env("OTEL_SERVICE_NAME", name)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("the {name} cannot be started"))?;
        let mut program = Guard(child);
        let mut line = String::new();
        BufReader::new(program.0.stdout.take().context("no pipe")?).read_line(&mut line)?;
        let port = line
            .trim()
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .with_context(|| format!("the {name} did not say where it listens: `{line}`"))?;
        Ok((Self { name, program }, port))
    }

    fn process(&self) -> String {
        self.program.0.id().to_string()
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {})", self.name, self.process())
    }
}
