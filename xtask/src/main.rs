//! `cargo xtask`: everything that is done with the project besides plain `cargo`.

mod bench;
mod captures;
mod cluster;
mod demo;
mod deploy;
mod fuzz;
mod image;
mod kernels;
mod setup;
mod shell;
mod soak;
mod test;

use clap::{Parser, Subcommand};

/// Tasks of the project. Start with `demo`, or with `test`: both set up what is missing.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build of the probes needs; quick when nothing is missing
    Setup(setup::Arguments),
    /// Trace a bundled app of two services for a few seconds; needs no backend
    Demo(demo::Arguments),
    /// Measure what tracing costs, here or in a VM where instructions are counted
    Bench(bench::Arguments),
    /// Run the agent through a night in minutes: processes and connections that come and go, within its memory
    Soak(soak::Arguments),
    /// Explore the entrances of bytes with a fuzzer, some minutes each
    Fuzz(fuzz::Arguments),
    /// Write the container image, static and without a shell, as a file that ctr, docker and podman load
    Image(image::Arguments),
    /// Record tests/captures anew, and take the spans of it as they are; as root
    Captures,
    /// Run every test: format, lints, licences, unit, snapshot, property and live tests
    Test(test::Arguments),
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // The tasks work on the checkout, from whichever folder of it they are called.
    std::env::set_current_dir(shell::root())?;
    match Arguments::parse().task {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Captures => captures::run(),
        Task::Test(arguments) => test::run(&arguments),
    }
}
