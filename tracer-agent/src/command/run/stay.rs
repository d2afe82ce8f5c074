//! An agent that cannot begin, where what ends is started again at once: it stays, says why, and begins anew when the
//! file changes, when it is told to, and from time to time.

use std::{net::SocketAddr, os::unix::process::CommandExt, process::Command, time::Duration};

use anyhow::Context;
use tracer_agent::{
    live::serve::{Answer, Question, Server},
    tell,
};

use super::{
    super::{
        Exit, Failure,
        capture::{self, Asked, Signals},
    },
    Arguments,
};

/// How often it begins anew without a reason: what the machine allows may have changed.
const AGAIN: Duration = Duration::from_secs(60);

/// How often is looked.
const STEP: Duration = Duration::from_millis(200);

pub(super) fn stay(arguments: &Arguments, address: SocketAddr, failure: Failure) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    let Ok(server) = Server::start(address) else { return Err(failure) };
    tell!("error: {failure}");
    tell!("not capturing: it is tried again when {} changes, and each minute", arguments.config.display());
    let text = std::fs::read(&arguments.config).ok();
    let began = capture::now();
    let ends = runtime.block_on(async {
        let mut signals = Signals::new()?;
        loop {
            server.beat();
            while let Some(ask) = server.poll() {
                let ready = matches!(ask.question, Question::Ready | Question::Metrics(_));
                let status = if ready { 503 } else { 404 };
                ask.answer(Answer::text(status, format!("not capturing: {failure}\n")));
            }
            match signals.poll().await {
                Some(Asked::Interrupt | Asked::Terminate) => return Ok::<_, Failure>(true),
                Some(Asked::HangUp) => return Ok(false),
                None => {}
            }
            if began.elapsed() >= AGAIN || std::fs::read(&arguments.config).ok() != text {
                return Ok(false);
            }
            tokio::time::sleep(STEP).await;
        }
    })?;
    if ends {
        return Err(failure);
    }
    // As it was started: nothing of this try is left.
    let mut words = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let error = command.args(words).exec();
    tell!("it cannot be started again: {error}");
    Err(failure)
}
