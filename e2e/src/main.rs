//! End-to-end tests of the mesh as a whole. Each runs alone or with others, by name; the last line counts them.

mod cluster;
mod netns;
mod runner;

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
    /// Make a cluster, or take one, and install the mesh in it.
    Up(cluster::Up),
    /// Test the mesh in the cluster that `up` left.
    Test(cluster::Test),
    /// Remove what `up` made.
    Down(cluster::Down),
}

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        Command::Netns(options) => netns::run(&options),
        Command::Up(options) => cluster::up(&options).map(|()| true),
        Command::Test(options) => cluster::test(&options),
        Command::Down(options) => cluster::down(&options).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            runner::say(&format!("e2e: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
