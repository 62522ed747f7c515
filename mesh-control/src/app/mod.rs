//! The wiring of the process: what exists, in which order it starts, and how it ends. No decisions.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use mesh_common::process::{DrainGuard, DrainTrigger, Readiness, drain};
use mesh_common::telemetry::admin::{AdminState, SharedRegistry, common_pages};
use mesh_common::telemetry::log::LogLevel;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

mod platform;

use crate::admin;
use crate::ca::caller::Authenticator;
use crate::ca::root::Authority;
use crate::model::store::{Mesh, SharedModel};
use crate::model::{OutboundTrafficPolicy, Settings};
use crate::options::Options;
use crate::serve::discovery::{self, Discovery};
use crate::serve::metrics::{self, Metrics};
use crate::serve::server::Server;
use crate::translate::translate;
use crate::watch::health::WatchHealth;
use platform::Platform;

/// The running process.
pub struct App {
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Where the pages are.
    pub admin: SocketAddr,
    trigger: DrainTrigger,
    /// The pages are there to the end.
    pages: DrainTrigger,
    tasks: TaskTracker,
}

/// What the parts are made from.
struct Parts {
    model: SharedModel,
    authenticator: Authenticator,
    metrics: Arc<Metrics>,
    registry: SharedRegistry,
    readiness: Readiness,
    watches: WatchHealth,
    tasks: TaskTracker,
    guard: DrainGuard,
}

impl App {
    /// Starts everything; returns when it serves. That is not before everything that is wanted is known: until then
    /// there are only the pages, which say what is missing or wrong. Cancel-safe.
    ///
    /// # Errors
    /// With one sentence when a folder, a key or an address cannot be used.
    pub async fn start(options: &Options, log_level: Option<LogLevel>) -> anyhow::Result<Self> {
        let platform = Box::pin(Platform::open(options)).await?;
        let (xds, admin) = (
            listen(options.xds_address, "--xds-address").await?,
            listen(options.admin_address, "--admin-address").await?,
        );
        let (xds_address, admin_address) = (xds.local_addr()?, admin.local_addr()?);
        let ((trigger, guard), (pages, pages_guard)) = (drain(), drain());
        let parts = parts(options, &platform, guard)?;
        let readiness = &parts.readiness;
        let (synced, serving) = (readiness.condition("configuration"), readiness.condition("xds"));

        let changes = parts.model.subscribe();
        let discovery = Arc::new(parts.discovery(options));
        parts.run({
            let discovery = Arc::clone(&discovery);
            let guard = parts.guard.clone();
            async move { discovery.pump(changes, guard).await }
        });
        let registry = Arc::clone(&parts.registry);
        let state = AdminState { readiness: readiness.clone(), registry, log_level };
        let debug_pages = admin::pages(parts.model.clone(), Arc::clone(&discovery), parts.watches.clone());
        parts.serve_admin(admin, common_pages(state).merge(debug_pages).merge(platform.pages()), pages_guard);

        let running = platform.follow(&parts);
        let authority = Box::pin(running.authority(&parts)).await?;
        parts.model.set_trust_bundle(authority.bundle().to_pem());
        parts.model.synced().await;
        synced.met();
        parts.server(options, discovery, Arc::clone(&authority)).serve(xds)?;
        if let Some(file) = &options.address_file {
            write_addresses(file, xds_address, admin_address)
                .with_context(|| format!("--address-file {} cannot be written", file.display()))?;
        }
        serving.met();
        running.lead(&parts, &authority);
        tracing::info!(xds = %xds_address, admin = %admin_address, "serving");
        Ok(Self { xds: xds_address, admin: admin_address, trigger, pages, tasks: parts.tasks })
    }

    /// Ends every stream with a reason and stops. Returns whether all ended in time.
    pub async fn stop(self, deadline: Duration) -> bool {
        self.tasks.close();
        let drained = self.trigger.drain(deadline).await;
        self.pages.drain(Duration::ZERO).await;
        drained && tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok()
    }
}

fn parts(options: &Options, platform: &Platform, guard: DrainGuard) -> anyhow::Result<Parts> {
    let model = SharedModel::new(Mesh::new(base_settings(options)));
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    metrics::register_model(&mut registry, model.clone());
    Ok(Parts {
        authenticator: platform.authenticator(&model, &mut registry)?,
        model,
        metrics,
        registry: Arc::new(Mutex::new(registry)),
        readiness: Readiness::default(),
        watches: WatchHealth::default(),
        tasks: TaskTracker::new(),
        guard,
    })
}

/// The settings of a mesh without a MeshConfig.
fn base_settings(options: &Options) -> Settings {
    Settings {
        trust_domain: "cluster.local".to_owned(),
        domain: "cluster.local".to_owned(),
        cluster: options.cluster.clone(),
        network: String::new(),
        root_namespace: options.namespace.clone(),
        outbound: OutboundTrafficPolicy::AllowAny,
        access_log: None,
        detection_timeout_ms: 100,
        connect_timeout_ms: 10_000,
        standalone: !options.kubernetes,
    }
}

impl Parts {
    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(task);
        self.tasks.spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("a part of mesh-control broke; the process ends, to be started anew");
                std::process::abort();
            }
        });
    }

    fn discovery(&self, options: &Options) -> Discovery {
        let (authenticator, metrics) = (self.authenticator.clone(), Arc::clone(&self.metrics));
        let options = discovery::Options {
            max_streams: options.max_streams,
            max_streams_per_pod: options.max_streams_per_pod,
            ack_timeout: options.ack_timeout,
            ..discovery::Options::default()
        };
        Discovery::new(self.model.clone(), translate, authenticator, metrics, options)
    }

    fn serve_admin(&self, listener: TcpListener, pages: axum::Router, guard: DrainGuard) {
        self.run(async move {
            if let Err(error) = mesh_common::telemetry::admin::serve(listener, pages, guard).await {
                tracing::error!(%error, "the admin pages are gone");
            }
        });
    }

    fn server(&self, options: &Options, discovery: Arc<Discovery>, authority: Arc<Authority>) -> Server {
        Server {
            model: self.model.clone(),
            discovery,
            authority,
            authenticator: self.authenticator.clone(),
            metrics: Arc::clone(&self.metrics),
            namespace: options.namespace.clone(),
            leaf_lifetime: options.leaf_lifetime,
            tasks: self.tasks.clone(),
            guard: self.guard.clone(),
        }
    }
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = mesh_common::listen::listen(address).await;
    bound.with_context(|| {
        format!("{flag} {address} cannot be used; choose another address, or port 0 for a free port")
    })
}

fn write_addresses(file: &Path, xds: SocketAddr, admin: SocketAddr) -> std::io::Result<()> {
    let draft = file.with_extension("tmp");
    std::fs::write(&draft, serde_json::json!({ "xds": xds, "admin": admin }).to_string())?;
    std::fs::rename(&draft, file)
}
