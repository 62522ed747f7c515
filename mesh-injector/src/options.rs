//! The command line, parsed into types that cannot be wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use mesh_common::options::{LogOptions, dns_name, duration, host_port, kubernetes_name};

/// The mutating webhook: puts the mesh's proxy into pods.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-injector", version)]
pub struct Options {
    /// Where mesh-control is, for the injector and for the pods' proxies.
    #[arg(long, value_name = "HOST:PORT", default_value = "mesh-control.mesh-system.svc:15012", value_parser = host_port)]
    pub control: String,
    /// The DNS name that mesh-control's certificate must carry.
    #[arg(long, value_name = "NAME", default_value = "mesh-control.mesh-system.svc", value_parser = dns_name)]
    pub control_name: String,
    /// The namespace that the injector runs in; its pods are never injected.
    #[arg(long, default_value = "mesh-system", value_parser = kubernetes_name)]
    pub namespace: String,
    /// The injector's service account, and the name of its Service.
    #[arg(long, default_value = "mesh-injector", value_parser = kubernetes_name)]
    pub service_account: String,
    /// The service-account token of audience mesh-ca; read again each time, because it is replaced.
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/tokens/mesh-token")]
    pub token_file: PathBuf,
    /// The settings, YAML; read again when they change.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where the API server calls, over TLS. Port 0 picks a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:15017")]
    pub address: SocketAddr,
    /// Health and metrics. Port 0 picks a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:15014")]
    pub admin_address: SocketAddr,
    /// Write the addresses to this file, as JSON, once they are served.
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// How long calls are still taken once the process is told to stop, so that the API server learns of it first.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub drain_propagation: Duration,
    /// How long calls under way may take then.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration)]
    pub drain_deadline: Duration,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_flag_is_named() {
        let parse = |more: &[&str]| {
            let all = ["mesh-injector", "--config=f"].iter().chain(more);
            Options::try_parse_from(all).map_err(|error| error.to_string())
        };
        let options = parse(&[]).unwrap();
        assert_eq!((options.address.port(), options.admin_address.port()), (15017, 15014));
        for (flag, words) in [
            ("--control=mesh-control", "HOST:PORT"),
            ("--control-name=a b", "not a DNS name"),
            ("--address=15017", "--address"),
            ("--drain-deadline=soon", "not a duration"),
            ("--bogus", "--bogus"),
        ] {
            assert!(parse(&[flag]).unwrap_err().contains(words), "{flag}");
        }
        assert!(Options::try_parse_from(["mesh-injector"]).unwrap_err().to_string().contains("--config"));
    }
}
