//! `meshctl demo`: a whole mesh on this machine, from the same binaries and manifests as on a cluster: a
//! folder of manifests, mesh-control, a sidecar for each pod, a small shop, and traffic. It must leave
//! nothing behind: no process, no folder.

mod binaries;
mod client;
mod histogram;
mod load;
mod manifests;
mod process;
mod shop;
mod subnet;
mod summary;
mod view;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::options::DemoOptions;
use crate::output::Output;
use load::Load;
use shop::Shop;
use summary::Summary;
use view::View;
use world::World;

/// Why the demo did not run, or did not end well. Each sentence stands for itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// A binary is missing or cannot be built.
    #[error(transparent)]
    Binaries(#[from] binaries::BinariesError),
    /// A file cannot be written.
    #[error("cannot write {path} ({reason}); the demo needs a folder for temporary files (TMPDIR)")]
    Write { path: PathBuf, reason: std::io::Error },
    /// No addresses.
    #[error(transparent)]
    Subnet(#[from] subnet::SubnetError),
    /// A process of the mesh did not start or ended early.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    /// No token for a pod.
    #[error(transparent)]
    Token(#[from] crate::token::TokenError),
    /// Something of this process, such as a listener.
    #[error("cannot {what} ({reason})")]
    System { what: &'static str, reason: std::io::Error },
    /// The mesh lost requests.
    #[error("{failures} of {requests} requests failed; the first: {first}")]
    Failed { failures: u64, requests: u64, first: String },
}

/// Runs the demo until its time is over or somebody ends it.
pub(crate) async fn run(options: DemoOptions, out: &mut Output) -> Result<(), DemoError> {
    let system = |reason| DemoError::System { what: "wait for signals", reason };
    let end = mesh_common::process::terminated();
    tokio::pin!(end);
    let mut world = tokio::select! {
        ended = &mut end => return ended.map(drop).map_err(system),
        world = start(&options, out) => world?,
    };
    let shop = Shop::start(&mut world);
    let load = Load::start(shop.entrance(), options.rate);
    let summary = tokio::select! {
        ended = &mut end => ended.map(|_| None).map_err(system)?,
        watched = watch(&options, &mut world, &load, out) => Some(watched?),
    };
    load.stop().await;
    let summary = match summary {
        Some(()) | None => Summary::take(&world, &load).await,
    };
    drop(shop);
    world.stop().await;
    if out.is_json() {
        out.json(&summary.json());
    } else {
        out.text(&summary.text());
    }
    match load.first_failure() {
        Some(first) => {
            Err(DemoError::Failed { failures: summary.failures, requests: summary.requests, first })
        }
        None => Ok(()),
    }
}

async fn start(options: &DemoOptions, out: &mut Output) -> Result<World, DemoError> {
    let binaries = binaries::locate(options, out.is_json()).await?;
    World::start(&binaries, options.keep).await
}

/// Shows the traffic once a second until the time is over. Without an end it runs until cancelled.
async fn watch(
    options: &DemoOptions,
    world: &mut World,
    load: &Load,
    out: &mut Output,
) -> Result<(), DemoError> {
    let started = Instant::now();
    let end = options.seconds.map(|seconds| started + Duration::from_secs(seconds));
    let mut view = View::new(world, out.is_terminal());
    if !out.is_json() {
        out.text(&view.intro());
    }
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tick.tick().await;
    loop {
        tick.tick().await;
        world.check()?;
        let window = load.window();
        let counts = world.server_counts().await;
        if !out.is_json() {
            out.text(&view.draw(started.elapsed(), &window, counts));
        }
        if end.is_some_and(|end| Instant::now() + Duration::from_millis(50) >= end) {
            return Ok(());
        }
    }
}
