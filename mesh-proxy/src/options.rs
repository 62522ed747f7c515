//! The command line, parsed into types that cannot be wrong. A bad flag is one sentence that names it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use mesh_common::options::{LogOptions, dns_name, duration, host_port, kubernetes_name};
use mesh_common::spiffe::{InvalidSpiffeId, SpiffeId, is_trust_domain};

use crate::listener::InboundPort;
use crate::pod::{AppMetrics, AppProbes};
use crate::redirect::RedirectOptions;

/// The data plane of the mesh.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-proxy", version)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Carry a pod's traffic.
    Run(Box<RunOptions>),
    /// Send the pod's connections through the proxy: write the rules into its network namespace.
    Redirect(RedirectOptions),
    /// Wait until the proxy of this pod is ready.
    Wait(WaitOptions),
    /// Tell the proxy of this pod that the pod is about to end, and return at once: it says so to clients, takes no
    /// new work after a moment, and still carries what the application sends.
    Drain(DrainOptions),
    /// Write a pod's certificate to files, for a data plane that is not ours: Envoy, gRPC.
    Certificate(Box<CertificateOptions>),
}

/// How a pod's traffic is carried.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Where mesh-control serves configuration and certificates.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub control: String,
    /// The DNS name that mesh-control's certificate must carry.
    #[arg(long, value_name = "NAME", default_value = "mesh-control.mesh-system.svc", value_parser = dns_name)]
    pub control_name: String,
    /// The mesh's roots, PEM, for the first contact; later ones come from mesh-control. It may be missing where
    /// --trust-bundle-pem has some; then it is looked for again until the proxy is ready.
    #[arg(long, value_name = "FILE", required_unless_present = "trust_bundle_pem")]
    pub trust_bundle: Option<PathBuf>,
    /// Roots, PEM, beside those of --trust-bundle.
    #[arg(long, value_name = "PEM", env = "MESH_TRUST_BUNDLE", hide_env_values = true)]
    pub trust_bundle_pem: Option<String>,
    /// The service-account token; read again each time, because it is replaced.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Namespace of the pod.
    #[arg(long, value_parser = kubernetes_name)]
    pub namespace: String,
    /// Name of the pod.
    #[arg(long, value_parser = kubernetes_name)]
    pub pod: String,
    /// Service account of the pod.
    #[arg(long, value_parser = kubernetes_name)]
    pub service_account: String,
    /// Address of the pod.
    #[arg(long, value_name = "IP")]
    pub pod_ip: IpAddr,
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: String,
    /// The cluster the pod runs in.
    #[arg(long, default_value = "Kubernetes")]
    pub cluster: String,
    /// The network the pod's address belongs to; empty for the only one.
    #[arg(long, default_value = "")]
    pub network: String,
    /// The Kubernetes node.
    #[arg(long, default_value = "")]
    pub node: String,
    /// What owns the pod, such as its Deployment, for metrics; by default the pod.
    #[arg(long, value_name = "NAME", env = "MESH_WORKLOAD", default_value = "")]
    pub workload: String,
    /// The pod's label `app`, for metrics.
    #[arg(long, value_name = "NAME", env = "MESH_APP", default_value = "")]
    pub app: String,
    /// The pod's label `version`, for metrics.
    #[arg(long, value_name = "NAME", env = "MESH_APP_VERSION", default_value = "")]
    pub app_version: String,
    /// The service that the pod is known as in metrics.
    #[arg(long, value_name = "NAME", env = "MESH_CANONICAL_NAME", default_value = "")]
    pub canonical_name: String,
    /// The revision that the pod is known as in metrics.
    #[arg(long, value_name = "NAME", env = "MESH_CANONICAL_REVISION", default_value = "")]
    pub canonical_revision: String,
    /// Take connections to LISTEN for the application at APP, both IP:PORT; may be given several times.
    #[arg(long, value_name = "LISTEN=APP", value_parser = inbound)]
    pub inbound: Vec<InboundPort>,
    /// The forward-proxy port of the application: HTTP, CONNECT and SOCKS5.
    #[arg(long, value_name = "IP:PORT")]
    pub outbound: Option<SocketAddr>,
    /// Take the connections that `mesh-proxy redirect` sends here, on every address of the pod.
    #[arg(long, conflicts_with_all = ["inbound", "outbound"])]
    pub capture: bool,
    /// Where captured connections from the pod arrive.
    #[arg(long, value_name = "PORT", default_value = "15001", value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Where captured connections to the pod arrive.
    #[arg(long, value_name = "PORT", default_value = "15006", value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// Health, metrics and debug pages.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Merged metrics, probes and lifecycle handlers of the application, for kubelet and Prometheus; with --capture
    /// 15020 unless said otherwise, else none.
    #[arg(long, value_name = "PORT")]
    pub status_port: Option<u16>,
    /// Readiness, for kubelet; with --capture 15021 unless said otherwise, else none.
    #[arg(long, value_name = "PORT")]
    pub ready_port: Option<u16>,
    /// The proxy's own metrics, for Prometheus; with --capture 15090 unless said otherwise, else none.
    #[arg(long, value_name = "PORT")]
    pub stats_port: Option<u16>,
    /// Probes and handlers of the application, by path: the pages of --status-port beside its own.
    #[arg(long, value_name = "JSON", env = "MESH_APP_PROBES", hide_env_values = true, value_parser = app_probes)]
    pub app_probes: Option<AppProbes>,
    /// Where the application serves metrics, which are merged with the proxy's: {"port":8080,"path":"/metrics"}.
    #[arg(long, value_name = "JSON", env = "MESH_APP_METRICS", hide_env_values = true, value_parser = app_metrics)]
    pub app_metrics: Option<AppMetrics>,
    /// Write the addresses to this file, as JSON, once they are served.
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Keep key, certificate and the last configuration here, so that a restart needs no mesh-control. Best on a
    /// memory volume.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Threads that carry traffic; by default as many as the process may use CPUs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// How long a connection waits for configuration that is not there yet.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub lookup_timeout: Duration,
    /// How long connections may take to finish once the process is told to stop by SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_deadline: Duration,
    /// How long inbound connections are still accepted once the drain has begun, by `mesh-proxy drain` or by SIGTERM, so
    /// that clients learn of it first.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub drain_propagation: Duration,
    /// How long after the application's last connection new ones are still taken then: beside a proxy that is told to
    /// stop at the same time, it may be at work still.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub drain_linger: Duration,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// How the proxy is waited for.
#[derive(Debug, Clone, Args)]
pub struct WaitOptions {
    /// Where the proxy serves its admin pages.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// How long at most.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Which proxy is told to drain.
#[derive(Debug, Clone, Args)]
pub struct DrainOptions {
    /// Where the proxy serves its admin pages.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
}

/// How a pod's certificate gets into files.
#[derive(Debug, Clone, Args)]
pub struct CertificateOptions {
    /// Where mesh-control signs certificates.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub control: String,
    /// The DNS name that mesh-control's certificate must carry.
    #[arg(long, value_name = "NAME", default_value = "mesh-control.mesh-system.svc", value_parser = dns_name)]
    pub control_name: String,
    /// The mesh's roots, PEM. Read again each minute; the folder follows.
    #[arg(long, value_name = "FILE")]
    pub trust_bundle: PathBuf,
    /// The service-account token; read again each time, because it is replaced.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Namespace of the pod.
    #[arg(long, value_parser = kubernetes_name)]
    pub namespace: String,
    /// Service account of the pod.
    #[arg(long, value_parser = kubernetes_name)]
    pub service_account: String,
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: String,
    /// The folder that gets key.pem, cert-chain.pem, root-cert.pem and Envoy's two secrets that name them. Best
    /// on a memory volume.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Keep running, and renew what is written before it runs out.
    #[arg(long)]
    pub watch: bool,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

impl RunOptions {
    /// Who this workload is.
    ///
    /// # Errors
    /// When the parts are too long together.
    pub fn identity(&self) -> Result<SpiffeId, InvalidSpiffeId> {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)
    }
}

/// One sentence for a command line that cannot be used.
pub fn sentence(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "say what to do: `mesh-proxy run` carries a pod's traffic, `mesh-proxy --help` says more"
            .to_owned();
    }
    mesh_common::options::sentence(error, "mesh-proxy run --help")
}

fn trust_domain(text: &str) -> Result<String, String> {
    if is_trust_domain(text) {
        Ok(text.to_owned())
    } else {
        Err("a trust domain holds lower-case letters, digits, dots, dashes and underscores".to_owned())
    }
}

fn inbound(text: &str) -> Result<InboundPort, String> {
    let form = || "write it as LISTEN=APP, such as 10.1.2.3:8080=127.0.0.1:8080".to_owned();
    let (listen, app) = text.split_once('=').ok_or_else(form)?;
    let parse = |address: &str| address.parse().map_err(|_| form());
    Ok(InboundPort { listen: parse(listen)?, app: parse(app)? })
}

fn app_probes(text: &str) -> Result<AppProbes, String> {
    AppProbes::from_json(text)
}

fn app_metrics(text: &str) -> Result<AppMetrics, String> {
    AppMetrics::from_json(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [&str; 14] = [
        "mesh-proxy",
        "run",
        "--control=127.0.0.1:15012",
        "--trust-bundle=root.pem",
        "--token-file=token",
        "--namespace=shop",
        "--pod=web-1",
        "--service-account=web",
        "--pod-ip=127.0.0.11",
        "--inbound=127.0.0.11:8080=127.0.0.1:9080",
        "--inbound=[::1]:8080=[::1]:9080",
        "--outbound=127.0.0.11:15001",
        "--lookup-timeout=250ms",
        "--workers=3",
    ];

    fn parse(more: &[&str]) -> Result<RunOptions, String> {
        let all = NEEDED.iter().chain(more);
        match Options::try_parse_from(all).map_err(|e| sentence(&e))?.command {
            Command::Run(options) => Ok(*options),
            _ => Err("another command".to_owned()),
        }
    }

    #[test]
    fn flags_become_types() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.inbound[0].app, "127.0.0.1:9080".parse().unwrap());
        assert_eq!(options.inbound.len(), 2);
        assert_eq!(options.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(options.admin, "127.0.0.1:15000".parse().unwrap());
        assert_eq!(options.lookup_timeout, Duration::from_millis(250));
        assert_eq!(options.drain_deadline, Duration::from_secs(30));
    }

    #[test]
    fn a_bad_flag_is_one_sentence_that_names_it() {
        for (flag, words) in [
            ("--inbound=8080", "--inbound <LISTEN=APP>': write it as LISTEN=APP"),
            ("--admin=localhost", "--admin <IP:PORT>'"),
            ("--workers=0", "--workers <N>'"),
            ("--drain-deadline=soon", "\"soon\" is not a duration"),
            ("--trust-domain=Mesh", "a trust domain holds"),
            ("--bogus", "unexpected argument '--bogus'"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{flag}: {error}");
        }
        let error = Options::try_parse_from(["mesh-proxy", "run"]).map_err(|e| sentence(&e)).unwrap_err();
        assert!(error.contains("--control <HOST:PORT>") && error.contains("--pod-ip <IP>"), "{error}");
    }
}
