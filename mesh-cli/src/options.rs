//! The command line, parsed. Environment variables are read here and nowhere else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use mesh_common::options::{duration, kubernetes_name};

use crate::output::Format;

/// Looks at a mesh and runs one to look at.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, about)]
pub(crate) struct Options {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Tables for people, or JSON for programs.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a mesh with a small shop on this machine, send traffic and watch it.
    Demo(DemoOptions),
    /// Who is connected to mesh-control, what each holds, and what it refused.
    Status(ControlOptions),
    /// What became of each HTTPRoute.
    Routes(ControlOptions),
    /// What a proxy holds.
    Config(ConfigOptions),
    /// Mint a service-account token for a pod of a mesh that runs without Kubernetes.
    Token(TokenOptions),
}

/// Options of `meshctl demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// End by itself after so many seconds, with a summary; the exit status says whether a request failed.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: Option<u64>,
    /// Requests a second that the shop's client sends.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rate: u32,
    /// Leave the folder with manifests and logs behind.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Set by cargo: then the mesh's other programs are built first.
    #[arg(long, env = "CARGO", hide = true)]
    pub(crate) cargo: Option<PathBuf>,
    /// Set by cargo, for the program that it runs.
    #[arg(long, env = "CARGO_MANIFEST_DIR", hide = true)]
    pub(crate) cargo_manifest_dir: Option<PathBuf>,
}

/// Where mesh-control is.
#[derive(Debug, Args)]
pub(crate) struct ControlOptions {
    /// The admin address of mesh-control.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "ADDRESS")]
    pub(crate) control_admin: SocketAddr,
}

/// Options of `meshctl config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigOptions {
    /// The proxy's admin address (127.0.0.1:15000), or a pod as `POD.NAMESPACE`: then mesh-control says
    /// what it sent there.
    #[arg(value_parser = proxy)]
    pub(crate) proxy: String,
    /// Where mesh-control is.
    #[command(flatten)]
    pub(crate) control: ControlOptions,
}

/// Options of `meshctl token`.
#[derive(Debug, Args)]
pub(crate) struct TokenOptions {
    /// The state folder of mesh-control, which holds the signing key.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// The pod's namespace.
    #[arg(long, value_parser = kubernetes_name)]
    pub(crate) namespace: String,
    /// The pod's name.
    #[arg(long, value_parser = kubernetes_name)]
    pub(crate) pod: String,
    /// The pod's service account.
    #[arg(long, value_parser = kubernetes_name)]
    pub(crate) service_account: String,
    /// The pod's uid, if its manifest has one.
    #[arg(long, default_value = "")]
    pub(crate) pod_uid: String,
    /// Who the token is for.
    #[arg(long, default_value = mesh_common::xds::names::TOKEN_AUDIENCE)]
    pub(crate) audience: String,
    /// How long it is good for.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub(crate) lifetime: Duration,
}

fn proxy(text: &str) -> Result<String, String> {
    if text.contains(['.', ':']) {
        Ok(text.to_owned())
    } else {
        Err("write a proxy's admin address, such as 127.0.0.1:15000, or POD.NAMESPACE".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [
            &["meshctl", "demo", "--seconds", "0"][..],
            &["meshctl", "demo", "--rate", "0"],
            &["meshctl", "status", "--control-admin", "nowhere"],
            &["meshctl", "token", "--state-dir", "/s"],
            &["meshctl", "status", "--output", "xml"],
        ] {
            assert!(Options::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }
}
