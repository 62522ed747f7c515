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
use clap::error::ErrorKind;

use options::{Command, Options};
use output::Output;

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    let mut out = Output::new(options.output);
    match run(options.command, &mut out).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Help and version are answers, not errors.
fn usage(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output::complain(
            &"say what to do: `meshctl demo` runs a mesh to look at, `meshctl --help` says more",
        );
    } else if error.use_stderr() {
        output::complain(&mesh_common::options::sentence(error, "meshctl --help"));
    } else {
        return error.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    ExitCode::from(2)
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
