//! Every test on a cluster, by name.

mod certificates;
mod control;
mod figures;
mod injection;
mod lifecycle;
mod protocols;
mod routing;
mod security;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::client::Cluster;
use super::machine::{Machine, TAG};
use super::space::Space;
use super::{dump, install};
use crate::runner::Named;

/// A test that takes longer than any may is hung.
const DEADLINE: Duration = Duration::from_secs(420);

/// What all tests know.
#[derive(Clone)]
pub(super) struct Settings {
    /// The programs that change the cluster.
    pub(super) machine: Machine,
    mesh: bool,
    keep: bool,
    image: String,
    dumps: PathBuf,
}

/// A row of the table.
pub(super) struct Row {
    name: &'static str,
    shows: &'static str,
    /// Disturbs the mesh as a whole, or wants a quiet machine.
    alone: bool,
    /// Why it passes without the mesh, if it does.
    passes: Option<&'static str>,
    play: Play,
}

type Play = for<'a> fn(&'a Space, &'a Settings) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A test with what it needs.
pub(super) struct Case {
    row: Row,
    settings: Settings,
}

macro_rules! row {
    ($path:ident :: $name:ident, $shows:literal $(, $field:ident: $value:expr)*) => {
        {
            #[allow(unused_mut)]
            let mut row = Row {
                name: stringify!($name),
                shows: $shows,
                alone: false,
                passes: None,
                play: |space, settings| Box::pin($path::$name(space, settings)),
            };
            $(row.$field = $value;)*
            row
        }
    };
}

/// The table.
pub(super) fn all() -> Vec<Row> {
    vec![
        row!(injection::injected_and_opted_out, "by namespace and by pod, and what was injected"),
        row!(injection::namespace_just_created, "a pod right after its namespace"),
        row!(injection::init_containers_have_network, "init containers of the user send through the mesh"),
        row!(injection::jobs_complete, "a Job and a CronJob's Jobs end, though the proxy serves for ever"),
        row!(injection::invalid_webhook_calls, "4xx with a reason, and the webhook lives on"),
        row!(security::bytes_are_tls, "what passes between nodes; the marker is seen where there is no mesh"),
        row!(security::neighbours_outside, "client and server outside of the mesh"),
        row!(security::strict_and_probes, "STRICT refuses plaintext; the kubelet's probes pass"),
        row!(security::excluded_ports_bypass, "an annotation keeps a port out of the mesh"),
        row!(
            certificates::strangers_are_refused,
            "foreign identity, foreign namespace, foreign token",
            passes: Some("it asks mesh-control itself; no proxy takes part")
        ),
        row!(routing::split_and_change, "90/10 of 2,000, then 50/50 under load"),
        row!(routing::canary_by_header, "a header chooses the version"),
        row!(routing::metrics_are_exact, "istio_requests_total is what was sent, by both reporters"),
        row!(routing::invalid_route_says_why, "its status, and the answer, name the reason"),
        row!(routing::names_short_and_full, "a service by every name that DNS knows"),
        row!(routing::calls_itself, "a pod through its own service"),
        row!(protocols::server_speaks_first, "opaque TCP without a declared protocol"),
        row!(protocols::headless_and_stateful_set, "pods by name, with mutual TLS"),
        row!(protocols::grpc_per_call, "calls of one connection reach every pod"),
        row!(protocols::web_socket, "an upgraded connection"),
        row!(lifecycle::restarted_under_load, "a Deployment restarted 10 times, retries off"),
        row!(figures::figures, "memory, start, injection, images", alone: true),
        row!(control::control_gone, "60 s without mesh-control: nothing fails, and new pods come good after", alone: true),
        row!(control::one_replica_killed, "of two: nothing fails, changes go on", alone: true),
        row!(control::upgrade_and_rollback, "helm upgrade and rollback under load lose nothing", alone: true),
        row!(
            control::uninstalled,
            "leaves the root Secret and nothing else; installed again, it is the same mesh",
            alone: true
        ),
    ]
}

/// The table, ready to play.
pub(super) fn with(settings: Settings) -> Vec<Case> {
    all().into_iter().map(|row| Case { row, settings: settings.clone() }).collect()
}

impl Settings {
    /// Everything that the cluster's maker left.
    ///
    /// # Errors
    /// When nothing was left.
    pub(super) fn new(machine: &Machine, mesh: bool, keep: bool) -> Result<Self> {
        let image = format!("{}/mesh-test-app:{TAG}", machine.registry());
        let dumps = machine.work().join("failed");
        Ok(Self { machine: machine.clone(), mesh, keep, image, dumps })
    }
}

impl Case {
    /// Whether it must not run beside others.
    pub(super) fn alone(&self) -> bool {
        self.row.alone
    }

    /// Why it passes without the mesh, if it may.
    pub(super) fn passes_without_the_mesh(&self) -> Option<&'static str> {
        self.row.passes
    }

    async fn run(&self) -> Result<()> {
        let Settings { machine, mesh, keep, image, dumps } = &self.settings;
        let cluster = Cluster::connect(machine.kubeconfig()).await?;
        let space = Space::make(cluster, self.row.name, *mesh, image).await.context("no namespace")?;
        let played = tokio::time::timeout(DEADLINE, (self.row.play)(&space, &self.settings)).await;
        let outcome = played.unwrap_or_else(|_| Err(anyhow::anyhow!("it did not end within {DEADLINE:?}")));
        if outcome.is_err() && *mesh {
            let folder = dumps.join(self.row.name);
            match dump::of(&space, &folder).await {
                Ok(()) => crate::runner::say(&format!("        see {}", folder.display())),
                Err(error) => crate::runner::say(&format!("        nothing could be kept of it: {error:#}")),
            }
        }
        if outcome.is_ok() || !keep {
            space.delete().await?;
        }
        outcome
    }
}

impl Named for Case {
    fn name(&self) -> &'static str {
        self.row.name
    }

    fn shows(&self) -> &'static str {
        self.row.shows
    }

    fn play(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.run()).with_context(|| self.row.shows)
    }
}

impl Named for Row {
    fn name(&self) -> &'static str {
        self.name
    }

    fn shows(&self) -> &'static str {
        self.shows
    }

    fn play(&self) -> Result<()> {
        anyhow::bail!("a row alone cannot be played")
    }
}

/// The namespace of the mesh.
const MESH: &str = install::NAMESPACE;
