//! Wiring: one control thread (configuration, identity, admin, metrics, accepting) and N data workers. No logic
//! of any part is here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use arc_swap::ArcSwap;
use mesh_common::process::{DrainGuard, DrainStarter, Readiness, drain, terminated};
use mesh_common::spiffe::SpiffeId;
use mesh_common::telemetry::admin::{self as admin_server, AdminState};
use mesh_common::telemetry::log::LogLevel;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::admin::{self, Pages};
use crate::config::store::{Demand, Store};
use crate::connect::own::OwnAddresses;
use crate::identity::{self, Identity};
use crate::listener::{self, Accepted, Listeners};
use crate::options::RunOptions;
use crate::own_labels::OwnLabels;
use crate::pod::{self, Port};
use crate::telemetry::{AccessLogger, Limits, Telemetry};
use crate::tls::TlsContext;
use crate::worker::{Worker, WorkerParts};
use crate::xds::{self, ControlAddress, ControlTls, Dial, XdsClient, XdsStatus};
use crate::{cpu, own_labels, startup};

/// How long the first certificate is waited for before configuration is asked for with the token.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(1);
/// How long the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often idle metric series are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// What several parts of the process hold.
struct Shared {
    id: SpiffeId,
    tls: TlsContext,
    telemetry: Telemetry,
    store: Arc<Store>,
    me: OwnLabels,
    readiness: Readiness,
    status: XdsStatus,
}

/// Runs the proxy until it is told to stop and has drained.
///
/// # Errors
/// When it cannot start, or a worker breaks.
pub async fn run(options: RunOptions, log_level: LogLevel) -> anyhow::Result<()> {
    let (shared, demands) = share(&options)?;
    let (trigger, guard) = drain();
    let listeners = Listeners::bind(&startup::listen_options(&options))?;
    let admin_listener = startup::bind_admin(&options).await?;
    let ports = startup::bind_ports(&options)?;
    let (admin_address, addresses) = (admin_listener.local_addr()?, listeners.addresses().clone());

    let count = options.workers.map_or_else(cpu::limit, usize::from);
    let (acceptor, queues) = listeners.split(count);
    let own = OwnAddresses::new(addresses.outbound, [options.pod_ip]);
    let mut workers = start_workers(&worker_parts(&options, &shared, &guard, own), queues)?;

    // Owned here: whatever is still running when this function ends is aborted with the set.
    let mut tasks = JoinSet::new();
    start_identity(&mut tasks, &options, &shared);
    start_xds(&mut tasks, &options, &shared, demands);
    tasks.spawn(own_labels::keep(
        Arc::clone(&shared.me),
        Arc::clone(&shared.store),
        options.pod_ip,
        shared.id.clone(),
    ));
    tasks.spawn(housekeeping(shared.telemetry.clone(), shared.status.clone()));
    tasks.spawn(acceptor.run(guard.clone()));
    let pages = Pages {
        store: Arc::clone(&shared.store),
        xds: shared.status.clone(),
        tls: shared.tls.clone(),
        addresses: addresses.clone(),
        node: startup::node(&options).node().id,
        drain: trigger.starter(),
    };
    let common = AdminState {
        readiness: shared.readiness.clone(),
        registry: shared.telemetry.registry(),
        log_level: Some(log_level),
    };
    tasks.spawn(serve_admin(admin_listener, admin::router(pages, common)));
    let pod_addresses = ports.addresses();
    tasks.spawn(ports.serve(pod_pages(&options, &shared, &pod_addresses, trigger.starter())));
    tasks.spawn(pod::until_ready(
        shared.readiness.clone(),
        options.control.clone(),
        shared.status.clone(),
        options.trust_bundle.clone().map(|path| pod::LateBundle { path, tls: shared.tls.clone() }),
    ));
    if let Some(path) = &options.address_file {
        startup::write_addresses(path, admin_address, &addresses, &pod_addresses)?;
    }
    tracing::info!(workers = count, admin = %admin_address, "proxy started");

    let why = tokio::select! {
        signal = terminated() => signal?,
        Some(ended) = workers.join_next() => return Err(anyhow!("a data worker ended: {ended:?}")),
    };
    tracing::info!(reason = why, deadline = ?options.drain_deadline, "draining");
    drop(guard);
    let finished = trigger.drain(options.drain_deadline).await;
    tokio::time::timeout(LAST_LINES, shared.telemetry.access_log().flush()).await.ok();
    tracing::info!(finished, "drained");
    Ok(())
}

fn share(options: &RunOptions) -> anyhow::Result<(Shared, mpsc::Receiver<Demand>)> {
    let id = options.identity()?;
    let tls = TlsContext::new();
    tls.set_bundle(startup::roots(options)?);
    startup::check_token(&options.token_file)?;
    let telemetry = Telemetry::new(Limits::default(), AccessLogger::start(io::stdout())?);
    let (store, demands) = Store::new(options.lookup_timeout);
    let me = Arc::new(ArcSwap::from_pointee(own_labels::from_flags(options, &id)));
    let (readiness, status) = (Readiness::default(), XdsStatus::default());
    Ok((Shared { id, tls, telemetry, store, me, readiness, status }, demands))
}

fn worker_parts(options: &RunOptions, shared: &Shared, guard: &DrainGuard, own: OwnAddresses) -> WorkerParts {
    WorkerParts {
        store: Arc::clone(&shared.store),
        tls: shared.tls.clone(),
        telemetry: shared.telemetry.clone(),
        drain: guard.watch(),
        me: Arc::clone(&shared.me),
        source_ip: Some(options.pod_ip),
        own,
    }
}

fn start_identity(tasks: &mut JoinSet<()>, options: &RunOptions, shared: &Shared) {
    let identity = Identity {
        id: shared.id.clone(),
        dial: dial(options, &shared.tls, Proof::Token),
        dir: options.state_dir.clone(),
        tls: shared.tls.clone(),
        metrics: shared.telemetry.proxy().clone(),
    };
    let (tls, ready) = (shared.tls.clone(), shared.readiness.condition("certificate"));
    tasks.spawn(async move {
        tls.ready().await;
        ready.met();
    });
    identity::load_kept(&identity);
    tasks.spawn(identity::run(identity));
}

fn start_xds(
    tasks: &mut JoinSet<()>,
    options: &RunOptions,
    shared: &Shared,
    demands: mpsc::Receiver<Demand>,
) {
    let (tls, store) = (shared.tls.clone(), Arc::clone(&shared.store));
    let (on_bundle, on_kept_bundle) = (tls.clone(), tls.clone());
    let client = XdsClient {
        node: startup::node(options),
        dial: dial(options, &tls, Proof::CertificateOrToken),
        certificate: tls.watch_ready(),
        on_bundle: Box::new(move |bundle| on_bundle.set_bundle(bundle)),
        on_kept_bundle: Box::new(move |bundle| on_kept_bundle.add_roots(&bundle)),
        state_dir: options.state_dir.clone(),
        inbound_ready: shared.readiness.condition("inbound listener"),
        outbound_ready: shared.readiness.condition("outbound listener"),
        limits: xds::Limits::default(),
        status: shared.status.clone(),
    };
    tasks.spawn(async move {
        // A stream that starts with the certificate need not be opened twice.
        tokio::time::timeout(FIRST_CERTIFICATE, tls.ready()).await.ok();
        xds::run(client, store, demands).await;
    });
}

/// One thread for each queue; the set ends with the first of them that does.
fn start_workers(parts: &WorkerParts, queues: Vec<Accepted>) -> io::Result<JoinSet<()>> {
    let mut workers = JoinSet::new();
    for (index, accepted) in queues.into_iter().enumerate() {
        let parts = parts.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (alive, ended) = oneshot::channel::<()>();
        let work = move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move { listener::serve(Worker::new(parts), accepted).await });
            drop(alive);
        };
        std::thread::Builder::new().name(format!("worker-{index}")).spawn(work)?;
        workers.spawn(async move {
            // Nobody ever sends: the channel closes when the thread ends, whatever ends it.
            ended.await.ok();
        });
    }
    Ok(workers)
}

/// What the ports of the pod answer from.
fn pod_pages(
    options: &RunOptions,
    shared: &Shared,
    addresses: &[(Port, SocketAddr)],
    drain: DrainStarter,
) -> pod::Pages {
    let status = addresses.iter().find(|(port, _)| *port == Port::Status);
    pod::Pages {
        readiness: shared.readiness.clone(),
        drain,
        registry: shared.telemetry.registry(),
        metrics: shared.telemetry.proxy().clone(),
        reach: pod::Reach {
            pod_ip: options.pod_ip,
            captured: options.capture,
            own_port: status.map_or(0, |(_, address)| address.port()),
        },
        probes: options.app_probes.clone().unwrap_or_default(),
        app_metrics: options.app_metrics.clone(),
    }
}

async fn serve_admin(listener: TcpListener, pages: axum::Router) {
    // A drain of their own, that never comes: the pages stay while connections finish.
    let (_never, own) = drain();
    if let Err(error) = admin_server::serve(listener, pages, own).await {
        tracing::error!(%error, "admin pages ended");
    }
}

/// What proves who we are to the control plane.
#[derive(Clone, Copy)]
enum Proof {
    /// Signing: a deleted pod's certificate must not get it another one.
    Token,
    /// Configuration.
    CertificateOrToken,
}

fn dial(options: &RunOptions, tls: &TlsContext, proof: Proof) -> Dial {
    let control = ControlAddress {
        address: options.control.clone(),
        name: options.control_name.clone(),
        token_file: options.token_file.clone(),
    };
    let tls = tls.clone();
    xds::dial_tls(control, move || {
        let has_certificate = matches!(proof, Proof::CertificateOrToken) && tls.has_valid_certificate();
        Ok(ControlTls { config: tls.control_client_config()?, has_certificate })
    })
}

/// Lets idle series go, and copies what the configuration client counts into metrics.
async fn housekeeping(telemetry: Telemetry, status: XdsStatus) {
    telemetry.follow_xds(status);
    loop {
        tokio::time::sleep(SWEEP).await;
        telemetry.sweep();
    }
}
