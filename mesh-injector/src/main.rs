//! The webhook's binary: reads the command line, runs until it is told to stop.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_common::last_words::{fail, usage};
use mesh_common::telemetry;
use mesh_injector::app;
use mesh_injector::options::Options;

const PROGRAM: &str = "mesh-injector";

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(PROGRAM, "mesh-injector --help", &error),
    };
    match Box::pin(run(options)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(PROGRAM, &format!("{error:#}")),
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let log_level = telemetry::log::init(&options.log)?;
    app::run(&options, Some(log_level)).await
}
