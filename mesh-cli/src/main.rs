//! `meshctl`, the command line for people: runs the demo, asks the mesh's own admin pages, mints tokens.
//! It must never be needed for the mesh to work.

mod admin;
mod config;
mod demo;
mod options;
mod output;
mod routes;
mod status;
mod token;

use std::process::ExitCode;

use clap::Parser as _;

use options::{Command, Options};
use output::Output;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let mut out = Output::new(options.output);
    match run(options.command, &mut out).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, out: &mut Output) -> anyhow::Result<()> {
    match command {
        Command::Demo(options) => Box::pin(demo::run(options, out)).await?,
        Command::Status(options) => status::run(&options, out).await?,
        Command::Routes(options) => routes::run(&options, out).await?,
        Command::Config(options) => config::run(&options, out).await?,
        Command::Token(options) => token::run(&options, out)?,
    }
    Ok(())
}
