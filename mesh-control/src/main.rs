//! The control plane binary: reads the command line, runs until it is told to stop.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use mesh_common::last_words::{fail, usage};
use mesh_common::{process, telemetry};
use mesh_control::app::App;
use mesh_control::options::Options;

const PROGRAM: &str = "mesh-control";
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(PROGRAM, "mesh-control --help", &error),
    };
    match Box::pin(run(options)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(PROGRAM, &format!("{error:#}")),
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let log_level = telemetry::log::init(&options.log)?;
    let mut terminated = pin!(process::terminated());
    let app = tokio::select! {
        app = Box::pin(App::start(&options, Some(log_level))) => app?,
        signal = &mut terminated => {
            tracing::info!(signal = signal?, "stopping before anything was served");
            return Ok(());
        }
    };
    let signal = terminated.await?;
    tracing::info!(signal, "stopping");
    if !app.stop(DRAIN_DEADLINE).await {
        tracing::warn!("some streams did not end in time");
    }
    Ok(())
}
