//! The command line, parsed into types that cannot be wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use mesh_common::options::{LogOptions, duration, kubernetes_name};

/// The control plane: reads configuration, serves it to proxies, signs their certificates.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-control", version, group = ArgGroup::new("source").required(true).args(["kubernetes", "config_dir"]))]
pub struct Options {
    /// Read and follow the objects of Kubernetes: of the cluster that this runs in, or of KUBECONFIG's.
    #[arg(long)]
    pub kubernetes: bool,
    /// The folder of manifests to read and follow, without Kubernetes.
    #[arg(long, value_name = "DIR", env = "MESH_CONFIG_DIR", requires = "state_dir")]
    pub config_dir: Option<PathBuf>,
    /// The folder that keeps the root certificate and keys; made if it is not there. Kubernetes keeps them itself.
    #[arg(long, value_name = "DIR", env = "MESH_STATE_DIR", conflicts_with = "kubernetes")]
    pub state_dir: Option<PathBuf>,
    /// The name of the pod that this runs in, by which replicas know each other.
    #[arg(
        long,
        value_name = "NAME",
        env = "MESH_POD_NAME",
        value_parser = kubernetes_name,
        required_if_eq("kubernetes", "true"),
        conflicts_with = "config_dir"
    )]
    pub pod_name: Option<String>,
    /// Where proxies connect: configuration and certificates, over TLS. Port 0 picks a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15012")]
    pub xds_address: SocketAddr,
    /// Where metrics and debug pages are. Port 0 picks a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15014")]
    pub admin_address: SocketAddr,
    /// Write the addresses to this file, as JSON, once they are served.
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// How long a workload's certificate lives.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = leaf_lifetime)]
    pub leaf_lifetime: Duration,
    /// Sign with this issuer instead of the root of the state folder: its chain, issuer first, root last.
    #[arg(long, value_name = "FILE", requires = "ca_key", conflicts_with = "kubernetes")]
    pub ca_cert_chain: Option<PathBuf>,
    /// The key of that issuer, PKCS#8.
    #[arg(long, value_name = "FILE", requires = "ca_cert_chain", conflicts_with = "kubernetes")]
    pub ca_key: Option<PathBuf>,
    /// The namespace of mesh-control itself; part of the name that proxies know it by.
    #[arg(long, default_value = "mesh-system", value_parser = namespace)]
    pub namespace: String,
    /// The id of this cluster, as proxies and metrics name it.
    #[arg(long, value_name = "NAME", default_value = "Kubernetes", value_parser = cluster)]
    pub cluster: String,
    /// Streams that may be open at once.
    #[arg(long, value_name = "NUMBER", default_value = "20000", value_parser = count)]
    pub max_streams: usize,
    /// Streams that one pod may have open at once.
    #[arg(long, value_name = "NUMBER", default_value = "16", value_parser = count)]
    pub max_streams_per_pod: usize,
    /// A proxy that does not answer a response for this long is cut.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = ack_timeout)]
    pub ack_timeout: Duration,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Where objects come from, and with them keys and the proof of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder of manifests; a folder of keys.
    Folder {
        /// The manifests.
        config: PathBuf,
        /// Keys, and what was good last.
        state: PathBuf,
        /// Chain and key of an issuer that takes the place of the state folder's root.
        issuer: Option<(PathBuf, PathBuf)>,
    },
    /// The API server.
    Kubernetes {
        /// Our own pod.
        pod: String,
    },
}

impl Options {
    /// The one source that the command line names.
    pub fn source(&self) -> Source {
        match (&self.config_dir, &self.state_dir) {
            (Some(config), Some(state)) => Source::Folder {
                config: config.clone(),
                state: state.clone(),
                issuer: self.ca_cert_chain.clone().zip(self.ca_key.clone()),
            },
            _ => Source::Kubernetes { pod: self.pod_name.clone().unwrap_or_default() },
        }
    }
}

fn leaf_lifetime(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let allowed = Duration::from_secs(10)..=Duration::from_secs(365 * 24 * 3600);
    if allowed.contains(&parsed) { Ok(parsed) } else { Err("it must be between 10s and 8760h".to_owned()) }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => Err("it must be a number between 1 and 1000000".to_owned()),
    }
}

fn ack_timeout(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    if allowed.contains(&parsed) { Ok(parsed) } else { Err("it must be between 1s and 1h".to_owned()) }
}

fn namespace(text: &str) -> Result<String, String> {
    if mesh_common::spiffe::is_kubernetes_name(text) && !text.contains('.') {
        Ok(text.to_owned())
    } else {
        Err("it is not the name of a namespace".to_owned())
    }
}

fn cluster(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("it must have 1 to 63 letters, digits, dashes, dots or underscores".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Options, String> {
        let given = ["mesh-control", "--config-dir", "c", "--state-dir", "s"];
        Options::try_parse_from(given.iter().chain(more)).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.xds_address.port(), 15012);
        assert_eq!(options.admin_address.port(), 15014);
        assert_eq!(options.leaf_lifetime, Duration::from_secs(24 * 3600));
        assert_eq!(options.namespace, "mesh-system");
        assert_eq!((options.max_streams, options.max_streams_per_pod), (20_000, 16));
        assert_eq!(options.ack_timeout, Duration::from_secs(60));
    }

    #[test]
    fn a_bad_flag_is_named() {
        for (arguments, word) in [
            (&["--leaf-lifetime", "1s"][..], "--leaf-lifetime"),
            (&["--leaf-lifetime", "soon"], "not a duration"),
            (&["--xds-address", "localhost"], "--xds-address"),
            (&["--namespace", "a.b"], "not the name of a namespace"),
            (&["--ca-key", "k"], "--ca-cert-chain"),
            (&["--max-streams-per-pod", "0"], "--max-streams-per-pod"),
            (&["--max-streams", "many"], "between 1 and"),
            (&["--ack-timeout", "0s"], "--ack-timeout"),
            (&["--cluster", "a b"], "--cluster"),
            (&["--pod-name", "mesh-control-1"], "--pod-name"),
            (&["--kubernetes"], "--kubernetes"),
            (&["--bogus"], "--bogus"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    /// Exactly one source, with all that belongs to it and nothing of the other's.
    #[test]
    fn one_source() {
        let parse = |text: &str| {
            let words = ["mesh-control"].into_iter().chain(text.split_whitespace());
            Options::try_parse_from(words).map(|options| options.source()).map_err(|error| error.to_string())
        };
        let folder = |issuer| Source::Folder { config: "c".into(), state: "s".into(), issuer };
        let good = [
            ("--config-dir c --state-dir s", folder(None)),
            (
                "--config-dir c --state-dir s --ca-cert-chain x --ca-key y",
                folder(Some(("x".into(), "y".into()))),
            ),
            ("--kubernetes --pod-name p-1", Source::Kubernetes { pod: "p-1".to_owned() }),
        ];
        for (text, expected) in good {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for (text, word) in [
            ("", "--kubernetes|--config-dir"),
            ("--config-dir c", "--state-dir"),
            ("--state-dir s", "--config-dir"),
            ("--kubernetes", "--pod-name"),
            ("--kubernetes --pod-name p --config-dir c --state-dir s", "cannot be used with"),
            ("--kubernetes --pod-name p --state-dir s", "cannot be used with"),
            ("--kubernetes --pod-name p --ca-cert-chain x --ca-key y", "cannot be used with"),
            ("--kubernetes --pod-name P", "lower-case"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
