//! `bench-load backend`: the backend. `bench-load load`: the client; prints `warm` when it begins to measure, and what
//! came of it as a line of JSON.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bench::load::Load;
use bench::{backend, bulk};
use clap::Parser;
use tokio::net::TcpListener;

#[derive(Debug, Parser)]
enum Command {
    /// Answers.
    Backend {
        /// HTTP/1.1 here.
        #[arg(long)]
        http1: Vec<SocketAddr>,
        /// HTTP/2 here.
        #[arg(long)]
        http2: Vec<SocketAddr>,
        /// Bytes without end here.
        #[arg(long)]
        bulk: Vec<SocketAddr>,
    },
    /// Asks.
    Load(Load),
}

fn main() -> ExitCode {
    let local = tokio::task::LocalSet::new();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| local.block_on(&runtime, run(Command::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "bench-load: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Backend { http1, http2, bulk } => {
            let listen =
                async |at: SocketAddr| TcpListener::bind(at).await.with_context(|| format!("listen at {at}"));
            for (all, over_http2) in [(http1, false), (http2, true)] {
                for at in all {
                    tokio::task::spawn_local(backend::serve(listen(at).await?, over_http2));
                }
            }
            for at in bulk {
                tokio::task::spawn_local(bulk::give(listen(at).await?));
            }
            std::future::pending().await
        }
        Command::Load(load) => {
            let report = load.run(|| say("warm")).await?;
            say(&serde_json::to_string(&report)?);
            Ok(())
        }
    }
}

fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).unwrap_or_default();
}
