//! End-to-end tests of the mesh as a whole. Each runs alone or with others, by name; the last line counts them.

mod netns;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// End-to-end tests of the mesh.
#[derive(Debug, Parser)]
#[command(name = "e2e", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pods as network namespaces on this machine, their traffic captured. Needs root.
    Netns(netns::Options),
}

fn main() -> ExitCode {
    let Options { command: Command::Netns(options) } = Options::parse();
    match netns::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            netns::say(&format!("e2e: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
