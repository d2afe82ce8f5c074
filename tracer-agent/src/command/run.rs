//! `tracer run`: the agent, a service that goes on until it is told to end.

mod answers;
mod families;
mod log;
mod plan;
mod stay;

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use sd_notify::NotifyState;
use tracer_agent::{
    budget::Budget,
    config::{Budgets, Config, Export},
    live::{
        clock, cost,
        kubernetes::Watcher,
        load::{Probes, Wanted},
        outputs::Outputs,
        print::{Printer, Shape, Target},
        privileges,
        probes::Capture,
        serve::Server,
        session::{Finished, Session},
    },
    metrics::Metrics,
    observe::Observer,
    sample::Sampler,
};

use tracer_common::config::{SHED_PARTS, Shed};

pub(crate) use self::plan::Plan;
use self::{answers::Agent, plan::Exporters};
use super::{
    Exit, Failure, OrExit,
    capture::{self, Asked, Signals},
    config,
};

/// After a signal everything is written and sent within this time.
const FLUSH: Duration = Duration::from_millis(4500);

/// How often the file is looked at: its text is compared, whatever way it was changed.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The configuration: `tracer config example` prints one
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Where it cannot begin it stays, says why at /readyz of this address, and tries again when the file changes and
    /// each minute: for those who start at once what ends (Kubernetes)
    #[arg(long, value_name = "IP:PORT")]
    stay: Option<SocketAddr>,

    /// How bytes are seen; the best that the kernel has, if not named
    #[arg(long, value_enum, value_name = "MODE")]
    capture: Option<Capture>,

    /// A probe that is dealt with as if the kernel refused it: for tests
    #[arg(long, hide = true, value_name = "TRACEPOINT")]
    refuse: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    match (begin(arguments), arguments.stay) {
        (Err(failure), Some(address)) => stay::stay(arguments, address, failure),
        (ended, _) => ended,
    }
}

fn begin(arguments: &Arguments) -> Result<Exit, Failure> {
    let text = config::read(&arguments.config)?;
    let config = config::parse(&arguments.config, &text)?;
    log::start(&config.log);
    let plan =
        Plan::new(&config).with_context(|| arguments.config.display().to_string()).or_exit(Exit::Usage)?;
    capture::check_place()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    runtime.block_on(serve(arguments, text, config, plan))
}

async fn serve(arguments: &Arguments, text: String, config: Config, plan: Plan) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let wanted = Wanted {
        ring: plan.shares.ring,
        connections: Some(plan.shares.kernel_connections),
        capture: arguments.capture,
        refuse: arguments.refuse.clone(),
        all: true,
        budget: true,
    };
    let probes = Probes::load(&wanted, &plan.selection)?;
    let server = Server::start(config.serve.address.0).or_exit(Exit::Usage)?;
    for line in probes.0.shortcomings() {
        tracing::warn!("{line}");
    }
    if let Err(error) = privileges::drop_most(false) {
        tracing::warn!("privileges that are not needed any more are kept: {error:#}");
    }
    let target = Target::open(plan.print, None)?;
    let sampler = Sampler::new(plan.sampling.clone(), plan.shares.sampler);
    let mut exporters = Exporters::default();
    let outputs = Outputs {
        printer: Printer::start(target, Shape::Lines)?,
        senders: exporters.change(&plan.endpoints, Vec::new()),
        recording: None,
        filter: plan.filter.clone(),
        filtered: 0,
        summary: None,
        edges: None,
        observer: Some(Observer::new(plan.routes.clone(), Metrics::new(plan.metrics), sampler)),
    };
    let selected = plan.selected();
    plan.tell_missing();
    let mut session = Session::start(probes, plan.selection, plan.limits, outputs)?;
    let kept = plan.kubernetes.as_ref().map(|options| options.kept.clone());
    if let Some(options) = plan.kubernetes {
        tracing::info!("kubernetes: the pods of node {} are asked for", options.node);
        session.set_watcher(Watcher::start(options)?, Vec::new())?;
    }
    let found = session.scan()?;
    match found.len() {
        0 => tracing::warn!("no process matches {selected} yet; those that start will be traced"),
        count => tracing::info!("tracing {count} processes that match {selected}, and those that start"),
    }
    if config.budgets.cpu.is_some() && !session.probes().capture.sheds() {
        tracing::warn!("budgets.cpu: with capture {} nothing can be left out", session.probes().capture);
    }
    tracing::info!("answers on http://{}", server.address);
    tell_manager(&[NotifyState::Ready]);
    let budget = config.budgets.cpu.map(|cpu| Budget::new(cpu.cores()));
    let mut agent =
        Agent { config, began: capture::now(), reloads: [0; 2], refused: None, exporters, budget, kept };
    let mut file = File { path: arguments.config.clone(), text, looked: capture::now() };
    loop {
        session.turn()?;
        // Lets the runtime look at signals.
        tokio::task::yield_now().await;
        server.beat();
        while let Some(ask) = server.poll() {
            let answer = agent.answer(ask.question, &mut session);
            ask.answer(answer);
        }
        agent.send_metrics(&mut session);
        agent.keep_budget(&mut session);
        let reload = match signals.poll().await {
            Some(Asked::Interrupt | Asked::Terminate) => break,
            Some(Asked::HangUp) => true,
            None => {
                file.is_due() && {
                    tell_manager_alive();
                    agent.look_for_cgroups(&mut session)?;
                    file.has_changed()
                }
            }
        };
        if reload {
            tell_manager(&reloading());
            agent.reload(&mut file, &mut session);
            tell_manager(&[NotifyState::Ready]);
        }
    }
    tracing::info!("told to end: what is left is sent");
    tell_manager(&[NotifyState::Stopping]);
    let until = capture::now() + FLUSH;
    session.close_books(until)?;
    agent.send_metrics_now(&mut session);
    let finished = session.send_rest(until)?;
    report(&finished);
    Ok(Exit::Fine)
}

/// The configuration's file, as last read.
struct File {
    path: PathBuf,
    text: String,
    looked: Instant,
}

impl File {
    /// Whether it is time to look.
    fn is_due(&mut self) -> bool {
        let due = self.looked.elapsed() >= LOOK;
        if due {
            self.looked = capture::now();
        }
        due
    }

    /// A file that is being written, or is gone for a moment, is looked at again.
    fn has_changed(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|text| text != self.text)
    }
}

impl Agent {
    /// Looks at what all of it takes, and leaves out what is too much.
    fn keep_budget(&mut self, session: &mut Session) {
        let Some(budget) = &mut self.budget else { return };
        let now = clock::monotonic();
        let Some(shed) = budget.handle_due(now, || {
            let own = u64::try_from(cost::own().cpu.as_nanos()).unwrap_or(u64::MAX);
            own.saturating_add(session.probe_time())
        }) else {
            return;
        };
        let kept = 100.0 * f64::from(SHED_PARTS - shed.connections) / f64::from(SHED_PARTS);
        let content = if shed.content == 0 { "whole" } else { "their start and end" };
        tracing::warn!(
            "cpu: {:.1} % of a core was taken: of connections {kept:.0} % are captured, of large calls {content}",
            100.0 * budget.taken,
        );
        if let Err(error) = session.probes_mut().shed(&shed) {
            tracing::error!("{error:#}");
        }
    }

    /// Those that were not there when the rules were made.
    fn look_for_cgroups(&self, session: &mut Session) -> Result<(), Failure> {
        let missing = session.selection().missing.len();
        if missing > 0 {
            let selection = Plan::selection(&self.config)?;
            if selection.missing.len() < missing {
                session.set_selection(selection)?;
            }
        }
        Ok(())
    }

    /// A file that is wrong changes nothing.
    fn reload(&mut self, file: &mut File, session: &mut Session) {
        let changed = config::read(&file.path).and_then(|text| {
            // Told once: the same text is not looked at again.
            file.text = text;
            let config = config::parse(&file.path, &file.text)?;
            let plan = Plan::new(&config).or_exit(Exit::Usage)?;
            self.change(config, plan, session)
        });
        match changed {
            Ok(()) => {
                self.reloads[0] += 1;
                self.refused = None;
                tracing::info!("{}: what changed counts from here on", file.path.display());
            }
            Err(failure) => {
                self.reloads[1] += 1;
                tracing::error!("{failure}; what was said before goes on");
                self.refused = Some(failure.to_string());
            }
        }
    }

    fn change(&mut self, config: Config, plan: Plan, session: &mut Session) -> Result<(), Failure> {
        let fixed = [
            ("stitching", config.stitching != self.config.stitching),
            ("metrics", config.metrics != self.config.metrics),
            ("budgets.memory", config.budgets.memory != self.config.budgets.memory),
            ("kubernetes", config.kubernetes != self.config.kubernetes),
            ("serve", config.serve != self.config.serve),
            ("log", config.log != self.config.log),
            ("export.print", config.export.print != self.config.export.print),
        ];
        for (key, _) in fixed.into_iter().filter(|(_, changed)| *changed) {
            tracing::warn!("{key}: what is said of it counts when the agent starts again");
        }
        match (&mut self.budget, config.budgets.cpu) {
            (Some(budget), Some(cpu)) => budget.set_limit(cpu.cores()),
            (budget, cpu) => {
                *budget = cpu.map(|cpu| Budget::new(cpu.cores()));
                session.probes_mut().shed(&Shed::default())?;
            }
        }
        if config.select != self.config.select {
            plan.tell_missing();
            session.set_selection(plan.selection)?;
            self.ask_for_more(&config, session)?;
        }
        let outputs = &mut session.outputs;
        outputs.filter = plan.filter;
        if let Some(observer) = &mut outputs.observer {
            observer.set_rules(plan.routes, plan.sampling);
        }
        outputs.senders = self.exporters.change(&plan.endpoints, std::mem::take(&mut outputs.senders));
        session.pipeline_mut().set_shown(plan.limits.shown);
        // What did not change is not what the file says.
        self.config = Config {
            stitching: self.config.stitching.clone(),
            metrics: self.config.metrics.clone(),
            kubernetes: self.config.kubernetes.clone(),
            serve: self.config.serve.clone(),
            log: self.config.log.clone(),
            budgets: Budgets { memory: self.config.budgets.memory, ..config.budgets },
            export: Export { print: self.config.export.print, ..config.export },
            ..config
        };
        Ok(())
    }

    /// Rules may be about labels and annotations that were not kept until now: all pods are asked for again.
    fn ask_for_more(&mut self, config: &Config, session: &mut Session) -> Result<(), Failure> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        // What else is said of Kubernetes counts when the agent starts again.
        let config = Config { kubernetes: self.config.kubernetes.clone(), ..config.clone() };
        if let Some(options) = plan::watched(&config).or_exit(Exit::Usage)?
            && !kept.covers(&options.kept)
        {
            kept.clone_from(&options.kept);
            session.set_watcher(Watcher::start(options)?, Vec::new())?;
        }
        Ok(())
    }
}

fn report(finished: &Finished) {
    for (url, sent) in &finished.sent {
        tracing::info!("otlp: {url}: {sent}");
    }
    tracing::info!("{}", finished.pipeline.ledger());
}

/// Where nobody manages services nothing is told.
fn tell_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}

fn reloading() -> Vec<NotifyState<'static>> {
    [Some(NotifyState::Reloading), NotifyState::monotonic_usec_now().ok()].into_iter().flatten().collect()
}

/// As often as the manager asked for.
fn tell_manager_alive() {
    if sd_notify::watchdog_enabled().is_some() {
        tell_manager(&[NotifyState::Watchdog]);
    }
}
