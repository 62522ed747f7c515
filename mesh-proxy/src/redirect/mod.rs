//! `mesh-proxy redirect`: gives the pod's network namespace the rules that send its connections through the
//! proxy, over netlink, without any other program. Running it again replaces the rules at once.

mod kernel;
mod message;
mod plan;
mod verify;

use std::io::{self, Write as _};
use std::net::SocketAddr;

use clap::Args;
use ipnet::IpNet;
use mesh_common::capture::PortRange;

use plan::Plan;
use verify::Proof;

/// Which connections are captured.
#[derive(Debug, Clone, Args)]
pub struct RedirectOptions {
    /// Connections from the pod go to this port of the proxy.
    #[arg(long, value_name = "PORT", default_value = "15001", value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Connections to the pod go to this port of the proxy.
    #[arg(long, value_name = "PORT", default_value = "15006", value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// The user that the proxy runs as; its own connections are not captured.
    #[arg(long, value_name = "UID", default_value = "1337", value_parser = clap::value_parser!(u32).range(1..))]
    pub proxy_uid: u32,
    /// Leave connections to these ports of the pod alone: 22, or 8000-8010; separated by commas.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Leave connections from these addresses alone: CIDRs, separated by commas.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = range)]
    pub exclude_inbound_ranges: Vec<IpNet>,
    /// Leave connections to these ports of others alone.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Leave connections to these addresses alone.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = range)]
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// Only print the rules, as `nft` would list them.
    #[arg(long, conflicts_with = "verify")]
    pub dry_run: bool,
    /// Then prove it: read the rules back, and see that a connection is captured.
    #[arg(long)]
    pub verify: bool,
}

/// Why traffic is not captured.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// No right to it.
    #[error(
        "the kernel does not let this process write network rules: run it as uid 0 with the capability \
         NET_ADMIN, inside the pod's network namespace ({0})"
    )]
    Denied(io::Error),
    /// The kernel lacks a part.
    #[error(
        "this kernel cannot redirect connections with nftables: it needs nf_tables with nft_chain_nat and \
         nft_redir for IPv4 and IPv6; load those modules on the node ({0})"
    )]
    Unsupported(io::Error),
    /// Anything else that the kernel said.
    #[error("the kernel refused the network rules: {0}")]
    Refused(io::Error),
    /// It answered something else than expected.
    #[error("the kernel's answer about network rules cannot be used: {0}")]
    Answer(String),
    /// Other rules are in place than those that were written.
    #[error(
        "the rules in place are not the wanted ones: {found} instead of {wanted}, different at rule {at}; does \
         another program write to the table `inet mesh`?"
    )]
    NotInPlace {
        /// The first difference, from 0.
        at: usize,
        /// How many there should be.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// A connection passed by.
    #[error("a connection to {0} was not captured: does another program redirect it before?")]
    NotCaptured(SocketAddr),
    /// No connection could be tried.
    #[error(
        "the rules are in place, but no connection can be tried, for the pod has no route to anywhere: {0}"
    )]
    NoRoute(io::Error),
    /// Standard output is closed.
    #[error("cannot print the rules: {0}")]
    Print(io::Error),
}

impl RedirectError {
    fn refused(error: &io::Error) -> Self {
        let code = error.raw_os_error();
        let error = code.map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error);
        match code {
            Some(libc::EPERM | libc::EACCES) => Self::Denied(error),
            Some(
                libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL,
            ) => Self::Unsupported(error),
            _ => Self::Refused(error),
        }
    }
}

/// Writes the rules, or prints them; and proves that they work, if asked to.
///
/// # Errors
/// When capture is not in place afterwards.
pub fn run(options: &RedirectOptions) -> Result<(), RedirectError> {
    let plan = Plan::new(options);
    if options.dry_run {
        return print(&plan.to_string());
    }
    if kernel::has_ipv6() {
        kernel::add_proxy_address()?;
    }
    kernel::replace(&plan)?;
    if !options.verify {
        return Ok(());
    }
    match verify::verify(options, &plan)? {
        Proof::Captured(address) => print(&format!("verified: a connection to {address} was captured\n")),
        Proof::AllExcluded => {
            print("verified: the rules are in place; they exclude every address that could be tried\n")
        }
    }
}

fn print(text: &str) -> Result<(), RedirectError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(RedirectError::Print)
}

fn range(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    let range = text.parse().or(address).map_err(|_| format!("{text:?} is no CIDR, such as 10.0.0.0/8"))?;
    // 10.1.2.3/8 is a slip, or means 10.0.0.0/8: say so instead of guessing.
    if range != range.trunc() {
        return Err(format!("{text:?} has bits beyond its length; did you mean {}?", range.trunc()));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::options::{Command, Options};

    pub(super) fn options(flags: &[&str]) -> RedirectOptions {
        let all = ["mesh-proxy", "redirect"].iter().chain(flags);
        match Options::try_parse_from(all).unwrap().command {
            Command::Redirect(options) => options,
            _ => unreachable!("it says redirect"),
        }
    }

    #[test]
    fn ranges_are_parsed_strictly() {
        assert_eq!(range("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(range("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(range("fd00::1").unwrap().to_string(), "fd00::1/128");
        for (wrong, words) in
            [("10.1.2.3/8", "did you mean 10.0.0.0/8"), ("10.0.0.0/33", "no CIDR"), ("x", "no CIDR")]
        {
            assert!(range(wrong).unwrap_err().contains(words), "{wrong}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let said = |code| RedirectError::refused(&io::Error::from_raw_os_error(code)).to_string();
        assert!(said(libc::EPERM).contains("NET_ADMIN"));
        assert!(said(libc::ENOENT).contains("nft_redir"));
        assert!(said(libc::EBUSY).contains("refused"));
    }
}
