//! From a target to the listener that says what to do with it. A target is looked up only when it can be in the
//! mesh: an external address never causes a question to the control plane, so that it works without one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::xds::names::ListenerName;
use tokio::time::Instant;

use crate::config::listener::{Listener, NetworkFilter};
use crate::config::store::{Snapshot, Store};
use crate::connection::Target;
use crate::telemetry::ResponseFlags;

/// How long a connection waits for the first configuration of the proxy.
pub(super) const CONFIG_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of a target.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// An IP literal as an address, a host in lower case.
    pub target: Target,
    /// What to do: a looked-up listener; or `virtualOutbound`, of which then only the default chain counts
    /// (see [`super::chain::choose`]).
    pub listener: Arc<Listener>,
}

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// In Envoy's terms.
    pub flags: ResponseFlags,
    /// For people.
    pub reason: String,
}

/// What to do with connections to `target`. `own` is the address at which the client reached this proxy: a
/// target that is this very address would be a loop.
///
/// # Errors
/// When there is no configuration in time, or the target must not be dialled.
pub async fn resolve(store: &Store, own: Option<SocketAddr>, target: Target) -> Result<Resolved, Refused> {
    let target = normal(target)?;
    if own.is_some_and(|own| is_self(own, &target)) {
        let reason = format!("{target} is this proxy itself: the connection would come back for ever");
        return Err(Refused { flags: ResponseFlags::NO_ROUTE, reason });
    }
    let outbound = configured(store, |snapshot| snapshot.outbound.clone()).await.map_err(|waited| {
        no_config(format!(
            "no outbound configuration within {waited:?}: the control plane is not connected or does not answer"
        ))
    })?;
    let name = match &target {
        Target::Address(address) if in_mesh(&outbound, address.ip()) => ListenerName::Address(*address),
        Target::Host { host, port } if may_be_in_mesh(host) => {
            ListenerName::Host { host: host.clone(), port: *port }
        }
        Target::Address(_) | Target::Host { .. } => return Ok(Resolved { target, listener: outbound }),
    };
    let known = store.listener(&name).await.map_err(|error| no_config(error.to_string()))?;
    let listener = known.listener.clone().unwrap_or(outbound);
    Ok(Resolved { target, listener })
}

/// Waits, bounded, for a part of the configuration that the proxy holds from its start on.
///
/// # Errors
/// The time that was waited in vain.
pub(super) async fn configured<T>(
    store: &Store,
    part: impl Fn(&Snapshot) -> Option<T>,
) -> Result<T, Duration> {
    const LOOK_AGAIN: Duration = Duration::from_millis(10);
    let started = Instant::now();
    loop {
        if let Some(part) = part(&store.snapshot()) {
            return Ok(part);
        }
        if started.elapsed() >= CONFIG_TIMEOUT {
            return Err(CONFIG_TIMEOUT);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn no_config(reason: String) -> Refused {
    Refused { flags: ResponseFlags::NO_CLUSTER, reason }
}

/// One spelling for each target: IP literals are addresses, IPv4 is never written as IPv6, hosts are in lower
/// case and without the root's dot.
fn normal(target: Target) -> Result<Target, Refused> {
    match target {
        Target::Address(address) => Ok(Target::Address(canonical(address))),
        Target::Host { host, port } => {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
            if let Ok(ip) = bare.parse::<IpAddr>() {
                return Ok(Target::Address(canonical(SocketAddr::new(ip, port))));
            }
            let host = host.strip_suffix('.').unwrap_or(&host).to_ascii_lowercase();
            if !is_host(&host) {
                let cut: String = host.chars().take(64).collect();
                let reason = format!("{cut:?} is not a host name");
                return Err(Refused { flags: ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, reason });
            }
            Ok(Target::Host { host, port })
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    // Without scope and flow label: they mean nothing to another machine.
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_host(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host.split('.').all(|label| (1..=63).contains(&label.len()))
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

fn is_self(own: SocketAddr, target: &Target) -> bool {
    let own = canonical(own);
    match target {
        // The unspecified address reaches this machine.
        Target::Address(target) => {
            target.port() == own.port() && (target.ip() == own.ip() || target.ip().is_unspecified())
        }
        Target::Host { host, port } => *port == own.port() && own.ip().is_loopback() && is_localhost(host),
    }
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

fn may_be_in_mesh(host: &str) -> bool {
    !is_localhost(host)
}

/// Whether an address is worth a question to the control plane.
fn in_mesh(outbound: &Listener, ip: IpAddr) -> bool {
    let ranges = outbound
        .chains
        .iter()
        .filter(|chain| matches!(chain.filter, NetworkFilter::OnDemand))
        .flat_map(|chain| &chain.matches.prefix_ranges);
    !never_in_mesh(ip) && ranges.into_iter().any(|range| range.contains(&ip))
}

fn never_in_mesh(ip: IpAddr) -> bool {
    let special = match ip {
        // Only 127.0.0.1: without Kubernetes each pod has its own address in 127.0.0.0/8.
        IpAddr::V4(ip) => ip == std::net::Ipv4Addr::LOCALHOST || ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    special || ip.is_multicast() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::listener::{ChainMatch, FilterChain, Inspect, TcpProxy};
    use crate::config::store::{Demand, LookedUp};

    fn chain(name: &str, ranges: &[&str], filter: NetworkFilter) -> Arc<FilterChain> {
        let prefix_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let matches = ChainMatch { prefix_ranges, ..ChainMatch::default() };
        Arc::new(FilterChain { name: name.to_owned(), matches, tls: None, filter })
    }

    fn listener(name: &str) -> Arc<Listener> {
        let tcp = NetworkFilter::Tcp(TcpProxy {
            stat_prefix: String::new(),
            clusters: vec![("PassthroughCluster".to_owned(), 1)],
            idle_timeout: None,
            access_log: None,
        });
        Arc::new(Listener {
            name: name.to_owned(),
            inspect: Inspect { tls: false, http: false, timeout: Duration::ZERO },
            chains: vec![chain(
                "mesh-addresses",
                &["10.0.0.0/8", "127.0.0.0/8", "fd00::/8", "0.0.0.0/32"],
                NetworkFilter::OnDemand,
            )],
            default_chain: Some(chain("passthrough", &[], tcp)),
        })
    }

    fn store() -> (Arc<Store>, mpsc::Receiver<Demand>) {
        let (store, demands) = Store::new(Duration::from_secs(5));
        store.publish(Snapshot { outbound: Some(listener("virtualOutbound")), ..Snapshot::default() });
        (store, demands)
    }

    fn target(text: &str) -> Target {
        match text.parse() {
            Ok(address) => Target::Address(address),
            Err(_) => {
                let (host, port) = text.rsplit_once(':').unwrap();
                Target::Host { host: host.to_owned(), port: port.parse().unwrap() }
            }
        }
    }

    /// Resolves against a control plane that knows everything, and says what was looked up.
    async fn looked_up(text: &str) -> Option<String> {
        let (store, mut demands) = store();
        let answer = async {
            let Some(Demand::Listener(name, reply)) = demands.recv().await else { return };
            let found = LookedUp { listener: Some(listener(&name.to_string())), used: Default::default() };
            reply.send(Arc::new(found)).unwrap();
            std::future::pending::<()>().await;
        };
        let resolved = tokio::select! {
            () = answer => unreachable!("the store lives"),
            resolved = resolve(&store, None, target(text)) => resolved.unwrap(),
        };
        Some(resolved.listener.name.clone()).filter(|name| name != "virtualOutbound")
    }

    #[tokio::test]
    async fn only_what_can_be_in_the_mesh_is_looked_up() {
        for (text, wanted) in [
            ("10.96.3.4:80", Some("10.96.3.4:80")),
            ("[::ffff:10.96.3.4]:80", Some("10.96.3.4:80")),
            ("[fd00::1]:80", Some("[fd00::1]:80")),
            ("127.0.0.11:80", Some("127.0.0.11:80")),
            ("127.0.0.1:80", None),
            ("[::1]:80", None),
            ("[fe80::1]:80", None),
            ("169.254.169.254:80", None),
            ("224.0.0.1:80", None),
            ("0.0.0.0:80", None),
            ("1.1.1.1:443", None),
            ("Reviews:80", Some("host/reviews:80")),
            ("reviews.shop.svc.cluster.local.:80", Some("host/reviews.shop.svc.cluster.local:80")),
            ("localhost:80", None),
        ] {
            assert_eq!(looked_up(text).await.as_deref(), wanted, "{text}");
        }
        let literal = Target::Host { host: "10.1.2.3".to_owned(), port: 80 };
        assert_eq!(normal(literal), Ok(target("10.1.2.3:80")));
    }

    #[tokio::test]
    async fn what_is_not_in_the_mesh_gets_the_traffic_policy() {
        let (store, mut demands) = store();
        let ask = resolve(&store, None, target("example.com:443"));
        let answer = async {
            let Some(Demand::Listener(_, reply)) = demands.recv().await else { panic!("no look-up") };
            reply.send(Arc::new(LookedUp { listener: None, used: Default::default() })).unwrap();
        };
        let (resolved, ()) = tokio::join!(ask, answer);
        assert_eq!(resolved.unwrap().listener.name, "virtualOutbound");
    }

    #[tokio::test(start_paused = true)]
    async fn late_configuration_is_a_refusal_with_its_reason() {
        let (empty, _demands) = Store::new(Duration::from_secs(5));
        let refused = resolve(&empty, None, target("1.1.1.1:443")).await.unwrap_err();
        assert_eq!(refused.flags, ResponseFlags::NO_CLUSTER);
        assert!(refused.reason.contains("control plane"), "{refused}");

        let (store, _demands) = store();
        let refused = resolve(&store, None, target("10.96.3.4:80")).await.unwrap_err();
        assert!(refused.reason.contains("10.96.3.4:80"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn configuration_that_comes_late_but_in_time_is_used() {
        let (store, _demands) = Store::new(Duration::from_secs(5));
        let ask = resolve(&store, None, target("1.1.1.1:443"));
        let publish = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            store.publish(Snapshot { outbound: Some(listener("virtualOutbound")), ..Snapshot::default() });
        };
        assert!(tokio::join!(ask, publish).0.is_ok());
    }

    #[tokio::test]
    async fn loops_and_nonsense_are_refused() {
        let (store, _demands) = store();
        let own: SocketAddr = "127.0.0.1:15001".parse().unwrap();
        for text in ["127.0.0.1:15001", "0.0.0.0:15001", "[::ffff:127.0.0.1]:15001", "localhost:15001"] {
            let refused = resolve(&store, Some(own), target(text)).await.unwrap_err();
            assert!(refused.reason.contains("this proxy"), "{text}: {refused}");
        }
        assert!(resolve(&store, Some(own), target("127.0.0.1:15002")).await.is_ok());
        for host in ["", "a/b", "a..b", "-\u{1b}"] {
            let target = Target::Host { host: host.to_owned(), port: 80 };
            assert!(resolve(&store, None, target).await.is_err(), "{host:?}");
        }
    }
}
