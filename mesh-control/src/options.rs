//! The command line, parsed into types that cannot be wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use mesh_common::options::{LogOptions, duration};

/// The control plane: reads configuration, serves it to proxies, signs their certificates.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-control", version)]
pub struct Options {
    /// The folder of manifests to read and follow.
    #[arg(long, value_name = "DIR", env = "MESH_CONFIG_DIR")]
    pub config_dir: PathBuf,
    /// The folder that keeps the root certificate and keys; made if it is not there.
    #[arg(long, value_name = "DIR", env = "MESH_STATE_DIR")]
    pub state_dir: PathBuf,
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
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub ca_cert_chain: Option<PathBuf>,
    /// The key of that issuer, PKCS#8.
    #[arg(long, value_name = "FILE", requires = "ca_cert_chain")]
    pub ca_key: Option<PathBuf>,
    /// The namespace of mesh-control itself; part of the name that proxies know it by.
    #[arg(long, default_value = "mesh-system", value_parser = namespace)]
    pub namespace: String,
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
            (&["--bogus"], "--bogus"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
