//! The data plane binary: reads the command line, runs until it is told to stop.

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use mesh_common::last_words::fail;
use mesh_common::telemetry::log;
use mesh_proxy::app;
use mesh_proxy::options::{CertificateOptions, Command, Options, RunOptions, sentence};
use mesh_proxy::pod::command;
use mesh_proxy::{identity, redirect};

const PROGRAM: &str = "mesh-proxy";

// Idle it costs under a megabyte more than the system's; under load it keeps threads apart and memory whole.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    let result = match options.command {
        Command::Run(options) => run(*options),
        Command::Redirect(options) => redirect::run(&options).map_err(Into::into),
        Command::Wait(options) => ask(command::wait(&options)),
        Command::Drain(options) => ask(command::drain(&options)),
        Command::Certificate(options) => certificate(*options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(PROGRAM, &format!("{error:#}")),
    }
}

fn run(options: RunOptions) -> anyhow::Result<()> {
    let log_level = log::init(&options.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(app::run(options, log_level)))
}

/// A question to the proxy that runs already; nothing is set up that takes time.
fn ask(question: impl Future<Output = Result<(), command::AskError>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(question)?)
}

fn certificate(options: CertificateOptions) -> anyhow::Result<()> {
    log::init(&options.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(identity::command::run(options)))
}

/// Help and version are answers, not errors.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            error.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        _ => fail(PROGRAM, &sentence(error)),
    }
}
