//! Wiring: watches, certificate, server, admin pages; and the end of them all. No logic of any part is here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use mesh_common::identity::connect::{ControlAddress, ControlTls, Dial, control_config, dial_tls};
use mesh_common::listen::listen;
use mesh_common::process::{Readiness, drain, terminated};
use mesh_common::spiffe::SpiffeId;
use mesh_common::telemetry::admin::{self, AdminState};
use mesh_common::telemetry::log::LogLevel;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::certificate::{Keeper, ServingCertificate, server_config};
use crate::events;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::options::Options;
use crate::roots::Roots;
use crate::serve::{Limits, Server};
use crate::settings_file::SettingsFile;
use crate::version::Version;
use crate::webhook::Webhook;

/// Runs the webhook until it is told to stop and has finished what was under way.
///
/// # Errors
/// When it cannot start.
pub async fn run(options: &Options, log_level: Option<LogLevel>) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("no way to the Kubernetes API: run in a pod, or name a kubeconfig by KUBECONFIG")?;
    let mut terminated = std::pin::pin!(terminated());
    let app = tokio::select! {
        app = Box::pin(App::start(options, client, log_level)) => app?,
        signal = &mut terminated => {
            tracing::info!(signal = signal?, "stopping before anything was served");
            return Ok(());
        }
    };
    let signal = terminated.await?;
    tracing::info!(signal, propagation = ?options.drain_propagation, "draining");
    let finished = app.stop(options.drain_propagation, options.drain_deadline).await;
    tracing::info!(finished, "drained");
    Ok(())
}

/// The running webhook.
pub struct App {
    /// Whatever still runs when this is dropped is aborted.
    _tasks: JoinSet<()>,
    trigger: mesh_common::process::DrainTrigger,
    leaving: CancellationToken,
    addresses: Addresses,
}

/// Where it listens.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Addresses {
    /// The webhook, over TLS.
    pub webhook: std::net::SocketAddr,
    /// Health and metrics.
    pub admin: std::net::SocketAddr,
}

impl App {
    /// Starts everything.
    ///
    /// # Errors
    /// When the settings cannot be used or an address cannot be taken.
    pub async fn start(
        options: &Options,
        client: Client,
        log_level: Option<LogLevel>,
    ) -> anyhow::Result<Self> {
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        let file = SettingsFile::open(&options.config, metrics.clone()).await?;
        let settings = file.current();
        let listener =
            listen(options.address).await.with_context(|| format!("cannot listen on {}", options.address))?;
        let pages = listen(options.admin_address).await;
        let pages = pages.with_context(|| format!("cannot listen on {}", options.admin_address))?;
        let addresses = Addresses { webhook: listener.local_addr()?, admin: pages.local_addr()? };

        let (roots, version) = (Roots::default(), Version::default());
        let namespaces = Namespaces::new(client.clone());
        let (events, writer) = events::events(client.clone(), metrics.clone());
        let serving = Arc::new(ServingCertificate::default());
        let keeper = Keeper {
            id: SpiffeId::new(&settings.load().trust_domain, &options.namespace, &options.service_account)?,
            name: format!("{}.{}.svc", options.service_account, options.namespace),
            dial: dial(options, &roots),
            serving: Arc::clone(&serving),
            metrics: metrics.clone(),
        };
        let webhook = Webhook {
            settings,
            namespaces: namespaces.clone(),
            roots: roots.clone(),
            version: version.clone(),
            events,
            metrics: metrics.clone(),
            control: options.control.clone(),
            control_name: options.control_name.clone(),
            own_namespace: options.namespace.clone(),
        };

        let mut tasks = JoinSet::new();
        let (trigger, guard) = drain();
        tasks.spawn(file.follow());
        tasks.spawn(namespaces.follow(readiness.condition("namespaces")));
        tasks.spawn(version.follow(client.clone(), readiness.condition("version of the cluster")));
        let known = readiness.condition("trust bundle");
        tasks.spawn(roots.clone().follow(client, options.namespace.clone(), known));
        tasks.spawn(writer.run());
        let first = readiness.condition("certificate");
        tasks.spawn(async move {
            roots.present().await;
            keeper.run(first).await;
        });
        let leaving = CancellationToken::new();
        let tls = server_config(serving)?;
        tasks.spawn(Server::new(listener, tls, webhook, Limits::default(), leaving.clone()).run(guard));
        let state = AdminState { readiness, registry: metrics.registry(), log_level };
        tasks.spawn(serve_pages(pages, admin::common_pages(state)));
        if let Some(path) = &options.address_file {
            write_addresses(path, addresses).await?;
        }
        tracing::info!(webhook = %addresses.webhook, admin = %addresses.admin, "injector started");
        Ok(Self { _tasks: tasks, trigger, leaving, addresses })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Takes calls for `propagation` more, the last one on each connection, then finishes what is under way. Returns
    /// whether all finished in time.
    pub async fn stop(self, propagation: Duration, deadline: Duration) -> bool {
        self.leaving.cancel();
        tokio::time::sleep(propagation).await;
        self.trigger.drain(deadline).await
    }
}

/// The way to mesh-control. Always by the token: a deleted pod's certificate must not get it another one.
fn dial(options: &Options, roots: &Roots) -> Dial {
    let control = ControlAddress {
        address: options.control.clone(),
        name: options.control_name.clone(),
        token_file: options.token_file.clone(),
    };
    let roots = roots.clone();
    dial_tls(control, move || {
        let bundle = roots.bundle();
        control_config(bundle.as_deref()).map(|config| ControlTls { config, has_certificate: false })
    })
}

async fn serve_pages(listener: TcpListener, pages: axum::Router) {
    // A drain of their own, that never comes: the pages stay while calls finish.
    let (_never, own) = drain();
    if let Err(error) = admin::serve(listener, pages, own).await {
        tracing::error!(%error, "admin pages ended");
    }
}

async fn write_addresses(path: &Path, addresses: Addresses) -> anyhow::Result<()> {
    let write = async {
        let draft = path.with_extension("new");
        tokio::fs::write(&draft, serde_json::to_vec(&addresses)?).await?;
        tokio::fs::rename(&draft, path).await?;
        anyhow::Ok(())
    };
    write.await.with_context(|| format!("cannot write {}", path.display()))
}
