//! The webhook's binary: reads the command line, runs until it is told to stop.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_common::telemetry;
use mesh_injector::app;
use mesh_injector::options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    match Box::pin(run(options)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let log_level = telemetry::log::init(&options.log)?;
    app::run(&options, Some(log_level)).await
}

/// Help and version are answers, not errors.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        return fail(&mesh_common::options::sentence(error, "mesh-injector --help"));
    }
    error.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

#[allow(clippy::print_stderr)] // the last word of the process; logging may not be set up
fn fail(sentence: &str) -> ExitCode {
    eprintln!("mesh-injector: {sentence}");
    ExitCode::FAILURE
}
