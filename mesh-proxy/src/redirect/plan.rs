//! Which rules a pod's network namespace gets: pure. A plan prints as `nft` would list it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_common::capture::PortRange;

use super::RedirectOptions;

/// The table; everything in it is ours, and nothing outside of it is touched.
pub(super) const TABLE: &str = "mesh";
/// Where address translation of destinations happens (`NF_IP_PRI_NAT_DST`).
pub(super) const PRIORITY: i32 = -100;
/// Ports at which the proxy itself answers kubelet and Prometheus in plaintext: merged metrics and probes,
/// readiness, its own metrics.
const OWN_OPEN_PORTS: [u16; 3] = [15020, 15021, 15090];

/// The source addresses of connections from the proxy to the application. They are never captured again.
const PROXY_TO_APP: [IpNet; 2] = [v4([127, 0, 0, 6], 32), v6(PROXY_TO_APP_V6, 128)];
/// The one of them that the loopback interface does not have by itself.
pub(super) const PROXY_TO_APP_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
const LOCALHOST: [IpNet; 2] = [v4([127, 0, 0, 0], 8), v6(Ipv6Addr::LOCALHOST, 128)];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(address: Ipv6Addr, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// All rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) chains: [Chain; 2],
}

/// The rules of one hook; what none of them takes goes its way untouched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) hook: Hook,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Connections that come to the pod.
    Prerouting,
    /// Connections from the pod's own processes.
    Output,
}

/// The action is taken when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    NotTcp,
    FromLoopback,
    ToLoopback,
    Uid(u32),
    Source(IpNet),
    Destination(IpNet),
    Port(PortRange),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Not captured.
    Return,
    /// Counted, and sent to this port of the pod.
    Redirect(u16),
}

impl Plan {
    pub(super) fn new(options: &RedirectOptions) -> Self {
        Self { chains: [inbound(options), outbound(options)] }
    }
}

fn rule(conditions: impl Into<Vec<Condition>>, action: Action) -> Rule {
    Rule { conditions: conditions.into(), action }
}

fn inbound(options: &RedirectOptions) -> Chain {
    use Action::{Redirect, Return};
    use Condition::{FromLoopback, NotTcp, Port, Source};
    let mut rules = vec![rule([NotTcp], Return), rule([FromLoopback], Return)];
    rules.extend(OWN_OPEN_PORTS.map(|port| rule([Port(port.into())], Return)));
    rules.extend(options.exclude_inbound_ports.iter().map(|ports| rule([Port(*ports)], Return)));
    rules.extend(options.exclude_inbound_ranges.iter().map(|range| rule([Source(*range)], Return)));
    rules.push(rule([], Redirect(options.inbound_port)));
    Chain { hook: Hook::Prerouting, rules }
}

fn outbound(options: &RedirectOptions) -> Chain {
    use Action::{Redirect, Return};
    use Condition::{Destination, NotTcp, Port, Source, ToLoopback, Uid};
    let proxy = || Uid(options.proxy_uid);
    let mut rules = vec![rule([NotTcp], Return)];
    rules.extend(PROXY_TO_APP.map(|source| rule([ToLoopback, Source(source)], Return)));
    // The application's own localhost, used by the proxy: its probes and its admin page.
    rules.extend(LOCALHOST.map(|to| rule([ToLoopback, Destination(to)], Return)));
    // An application that calls itself through its service: the proxy has chosen this very pod, and must
    // meet its inbound side as it would in any other pod.
    rules.push(rule([ToLoopback, proxy()], Redirect(options.inbound_port)));
    rules.push(rule([proxy()], Return));
    // The application talks to itself by its own address.
    rules.push(rule([ToLoopback], Return));
    rules.extend(options.exclude_outbound_ports.iter().map(|ports| rule([Port(*ports)], Return)));
    rules.extend(options.exclude_outbound_ranges.iter().map(|range| rule([Destination(*range)], Return)));
    rules.push(rule([], Redirect(options.outbound_port)));
    Chain { hook: Hook::Output, rules }
}

impl Hook {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for Chain { hook, rules } in &self.chains {
            let hook = hook.name();
            writeln!(f, "\tchain {hook} {{")?;
            writeln!(f, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;")?;
            for rule in rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(f, "{condition} ")?;
        }
        match self.action {
            Action::Return => write!(f, "return"),
            Action::Redirect(port) => write!(f, "meta l4proto tcp counter redirect to :{port}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |range: &IpNet| match range {
            IpNet::V4(_) => "ip",
            IpNet::V6(_) => "ip6",
        };
        match self {
            Self::NotTcp => write!(f, "meta l4proto != tcp"),
            Self::FromLoopback => write!(f, "iif \"lo\""),
            Self::ToLoopback => write!(f, "oif \"lo\""),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Source(range) => write!(f, "{} saddr {}", family(range), Short(range)),
            Self::Destination(range) => write!(f, "{} daddr {}", family(range), Short(range)),
            Self::Port(ports) => write!(f, "tcp dport {ports}"),
        }
    }
}

/// A range as `nft` writes it: one address without its length.
struct Short<'a>(&'a IpNet);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::tests::options;

    #[test]
    fn the_rules_of_a_pod() {
        let plan = Plan::new(&options(&[
            "--exclude-inbound-ports=22,8000-8010",
            "--exclude-inbound-ranges=10.9.0.0/16",
            "--exclude-outbound-ports=3306",
            "--exclude-outbound-ranges=169.254.169.254/32,fd00:ec2::/32",
        ]));
        let wanted = "\
table inet mesh {
\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\tiif \"lo\" return
\t\ttcp dport 15020 return
\t\ttcp dport 15021 return
\t\ttcp dport 15090 return
\t\ttcp dport 22 return
\t\ttcp dport 8000-8010 return
\t\tip saddr 10.9.0.0/16 return
\t\tmeta l4proto tcp counter redirect to :15006
\t}
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\toif \"lo\" ip saddr 127.0.0.6 return
\t\toif \"lo\" ip6 saddr ::6 return
\t\toif \"lo\" ip daddr 127.0.0.0/8 return
\t\toif \"lo\" ip6 daddr ::1 return
\t\toif \"lo\" meta skuid 1337 meta l4proto tcp counter redirect to :15006
\t\tmeta skuid 1337 return
\t\toif \"lo\" return
\t\ttcp dport 3306 return
\t\tip daddr 169.254.169.254 return
\t\tip6 daddr fd00:ec2::/32 return
\t\tmeta l4proto tcp counter redirect to :15001
\t}
}
";
        assert_eq!(plan.to_string(), wanted);
    }
}
