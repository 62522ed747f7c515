//! Which filter chain a connection gets: pure, in Envoy's order. It never falls back from a chain that asks for
//! mutual TLS to one that does not.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use super::inspect::Seen;
use crate::config::listener::{ChainMatch, FilterChain, Listener, NetworkFilter, Transport};
use crate::connection::Target;

/// What is known of a connection before its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The port that the client dialled.
    pub port: u16,
    /// The address that the client dialled, if it is known.
    pub address: Option<IpAddr>,
    /// What the first bytes are.
    pub transport: Transport,
    /// Server name of the ClientHello, in lower case.
    pub server_name: Option<&'a str>,
    /// ALPN of the ClientHello; `http/1.1` or `h2c` for plaintext HTTP.
    pub protocols: &'a [String],
}

impl<'a> Facts<'a> {
    /// What is known of a connection to `target` whose first bytes are `seen`.
    pub fn new(target: &Target, seen: &'a Seen) -> Self {
        let address = match target {
            Target::Address(address) => Some(address.ip()),
            Target::Host { .. } => None,
        };
        Self {
            port: target.port(),
            address,
            transport: seen.transport,
            server_name: seen.server_name.as_deref(),
            protocols: &seen.protocols,
        }
    }
}

/// No chain takes the connection. Prints the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoChain {
    /// Plaintext where only mutual TLS is taken.
    #[error("the port takes mutual TLS only, and the connection is plaintext")]
    MutualTlsOnly,
    /// TLS that is not the mesh's own.
    #[error(
        "the only TLS that the port takes is the mesh's mutual TLS, and the client's is another: it offers {0}"
    )]
    ForeignTls(String),
    /// Anything else.
    #[error("no filter chain of listener {0} matches the connection")]
    Nothing(String),
}

impl NoChain {
    /// The reason as a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::MutualTlsOnly => "plaintext_to_mutual_tls",
            Self::ForeignTls(_) => "foreign_tls",
            Self::Nothing(_) => "no_filter_chain",
        }
    }
}

/// The chain for a connection. As in Envoy, each step keeps only the chains with the most specific value that
/// matches, and never goes back: a chain for the port hides all chains for every port, even when none of the
/// former matches in a later step.
///
/// # Errors
/// When none matches and there is no default: the connection must be closed, with this reason.
pub fn choose<'a>(listener: &'a Listener, facts: &Facts<'_>) -> Result<&'a Arc<FilterChain>, NoChain> {
    // An on-demand chain only tells which addresses are looked up; that was done before (`resolve`).
    let mut chains: Vec<_> =
        listener.chains.iter().filter(|chain| !matches!(chain.filter, NetworkFilter::OnDemand)).collect();
    keep_best(&mut chains, |wanted| port(wanted, facts));
    let for_port = chains.clone();
    keep_best(&mut chains, |wanted| address(wanted, facts));
    keep_best(&mut chains, |wanted| server_name(wanted, facts));
    keep_best(&mut chains, |wanted| transport(wanted, facts));
    keep_best(&mut chains, |wanted| protocols(wanted, facts));
    match chains.first().copied().or(listener.default_chain.as_ref()) {
        Some(chain) => Ok(chain),
        None => Err(reason(listener, &for_port, facts)),
    }
}

/// Keeps the chains whose condition scores highest; a condition that does not hold scores `None`.
fn keep_best<S: Ord>(chains: &mut Vec<&Arc<FilterChain>>, score: impl Fn(&ChainMatch) -> Option<S>) {
    let best = chains.iter().filter_map(|chain| score(&chain.matches)).max();
    chains.retain(|chain| {
        let score = score(&chain.matches);
        score.is_some() && score == best
    });
}

fn port(wanted: &ChainMatch, facts: &Facts<'_>) -> Option<bool> {
    exact(wanted.destination_port, facts.port)
}

fn transport(wanted: &ChainMatch, facts: &Facts<'_>) -> Option<bool> {
    exact(wanted.transport, facts.transport)
}

/// A condition that names the value is better than none.
fn exact<T: PartialEq>(wanted: Option<T>, actual: T) -> Option<bool> {
    match wanted {
        None => Some(false),
        Some(wanted) => (wanted == actual).then_some(true),
    }
}

/// The longest prefix is best; 0 stands for no condition.
fn address(wanted: &ChainMatch, facts: &Facts<'_>) -> Option<u32> {
    if wanted.prefix_ranges.is_empty() {
        return Some(0);
    }
    let address = facts.address?;
    let matching = wanted.prefix_ranges.iter().filter(|range| range.contains(&address));
    matching.map(|range| u32::from(range.prefix_len()) + 1).max()
}

/// An exact name is best, then the longest `*.suffix`, then no condition.
fn server_name(wanted: &ChainMatch, facts: &Facts<'_>) -> Option<(bool, usize)> {
    if wanted.server_names.is_empty() {
        return Some((false, 0));
    }
    let name = facts.server_name?;
    let score = |pattern: &String| match pattern.strip_prefix('*') {
        Some(suffix) => {
            (name.len() > suffix.len() && name.ends_with(suffix)).then_some((false, pattern.len()))
        }
        None => (pattern == name).then_some((true, pattern.len())),
    };
    wanted.server_names.iter().filter_map(score).max()
}

/// The client's first protocol that a chain names is best.
fn protocols(wanted: &ChainMatch, facts: &Facts<'_>) -> Option<Reverse<usize>> {
    if wanted.application_protocols.is_empty() {
        return Some(Reverse(usize::MAX));
    }
    facts.protocols.iter().position(|offered| wanted.application_protocols.contains(offered)).map(Reverse)
}

fn reason(listener: &Listener, for_port: &[&Arc<FilterChain>], facts: &Facts<'_>) -> NoChain {
    let meshed = |chain: &&Arc<FilterChain>| chain.tls.is_some();
    match facts.transport {
        Transport::RawBuffer if !for_port.is_empty() && for_port.iter().all(meshed) => NoChain::MutualTlsOnly,
        Transport::Tls if !for_port.iter().any(meshed) => NoChain::Nothing(listener.name.clone()),
        Transport::RawBuffer => NoChain::Nothing(listener.name.clone()),
        Transport::Tls if facts.protocols.is_empty() => NoChain::ForeignTls("no protocol (ALPN)".to_owned()),
        // What a stranger wrote goes to the log: cut, and quoted against control characters.
        Transport::Tls => {
            let offered = facts.protocols.iter().take(4).map(|p| p.chars().take(32).collect::<String>());
            NoChain::ForeignTls(format!("{:?}", offered.collect::<Vec<_>>()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::listener::{DownstreamTls, Inspect, TcpProxy};

    fn chain(name: &str, matches: ChainMatch) -> Arc<FilterChain> {
        let clusters = vec![(name.to_owned(), 1)];
        let filter = NetworkFilter::Tcp(TcpProxy {
            stat_prefix: String::new(),
            clusters,
            idle_timeout: None,
            access_log: None,
        });
        let tls = name.contains("mtls").then(|| DownstreamTls { alpn: vec!["istio".to_owned()] });
        Arc::new(FilterChain { name: name.to_owned(), matches, tls, filter })
    }

    fn listener(chains: Vec<Arc<FilterChain>>, default: Option<&str>) -> Listener {
        Listener {
            name: "test".to_owned(),
            inspect: Inspect { tls: true, http: true, timeout: Duration::from_millis(100) },
            chains,
            default_chain: default.map(|name| chain(name, ChainMatch::default())),
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn tls(port: Option<u16>, alpn: &[&str]) -> ChainMatch {
        ChainMatch {
            destination_port: port,
            transport: Some(Transport::Tls),
            application_protocols: strings(alpn),
            ..ChainMatch::default()
        }
    }

    fn raw(port: Option<u16>, protocols: &[&str]) -> ChainMatch {
        ChainMatch { transport: Some(Transport::RawBuffer), ..tls(port, protocols) }
    }

    fn seen(transport: Transport, protocols: &[&str]) -> Seen {
        Seen { transport, server_name: None, protocols: strings(protocols) }
    }

    fn name_of(listener: &Listener, port: u16, seen: &Seen) -> Result<String, &'static str> {
        let target = Target::Address(([10, 1, 2, 3], port).into());
        match choose(listener, &Facts::new(&target, seen)) {
            Ok(chain) => Ok(chain.name.clone()),
            Err(error) => Err(error.label()),
        }
    }

    /// As mesh-control writes it: port 80 permissive, port 90 strict, 91 without mutual TLS, 93 permissive and declared
    /// to speak HTTP, others strict.
    fn inbound() -> Listener {
        let mtls = |port: Option<u16>, name: &str| {
            [
                chain(&format!("{name}_mtls-http"), tls(port, &["istio-http/1.1", "istio-h2"])),
                chain(&format!("{name}_mtls-tcp"), tls(port, &["istio"])),
            ]
        };
        let open = |port: u16| {
            [
                chain(&format!("{port}_http"), raw(Some(port), &["http/1.1", "h2c"])),
                chain(&format!("{port}_tcp"), raw(Some(port), &[])),
                chain(&format!("{port}_tls"), tls(Some(port), &[])),
            ]
        };
        let mut chains = Vec::new();
        chains.extend(mtls(Some(80), "80"));
        chains.extend(open(80));
        chains.extend(mtls(Some(90), "90"));
        chains.extend(open(91));
        chains.extend(mtls(Some(93), "93"));
        chains.extend([
            chain("93_mtls-proxyless", tls(Some(93), &["h2"])),
            chain("93_http", raw(Some(93), &[])),
        ]);
        chains.extend(mtls(None, "0.0.0.0"));
        listener(chains, None)
    }

    #[test]
    fn a_sidecars_inbound_chains() {
        use Transport::{RawBuffer, Tls};
        let listener = inbound();
        for (port, transport, protocols, wanted) in [
            (80, Tls, &["istio-h2"][..], Ok("80_mtls-http")),
            (80, Tls, &["istio"], Ok("80_mtls-tcp")),
            (80, Tls, &["h2", "http/1.1"], Ok("80_tls")),
            (80, Tls, &[], Ok("80_tls")),
            (80, RawBuffer, &["h2c"], Ok("80_http")),
            (80, RawBuffer, &[], Ok("80_tcp")),
            (90, Tls, &["istio-http/1.1"], Ok("90_mtls-http")),
            (90, Tls, &["h2"], Err("foreign_tls")),
            (90, RawBuffer, &["http/1.1"], Err("plaintext_to_mutual_tls")),
            (91, Tls, &["istio"], Ok("91_tls")),
            (91, RawBuffer, &["http/1.1"], Ok("91_http")),
            (93, Tls, &["h2"], Ok("93_mtls-proxyless")),
            (93, Tls, &["http/1.1"], Err("foreign_tls")),
            (93, Tls, &[], Err("foreign_tls")),
            (93, RawBuffer, &[], Ok("93_http")),
            (92, Tls, &["istio"], Ok("0.0.0.0_mtls-tcp")),
            (92, RawBuffer, &[], Err("plaintext_to_mutual_tls")),
        ] {
            let got = name_of(&listener, port, &seen(transport, protocols));
            assert_eq!(got.as_deref(), wanted.as_deref(), "{port} {transport:?} {protocols:?}");
        }
    }

    #[test]
    fn a_named_port_hides_the_other_chains_and_falls_to_the_default() {
        let chains = vec![chain("80", tls(Some(80), &[])), chain("any", ChainMatch::default())];
        let with_default = listener(chains.clone(), Some("default"));
        let plain = Seen::raw();
        assert_eq!(name_of(&with_default, 80, &plain).as_deref(), Ok("default"));
        assert_eq!(name_of(&with_default, 81, &plain).as_deref(), Ok("any"));
        assert_eq!(name_of(&listener(chains, None), 80, &plain), Err("no_filter_chain"));
    }

    #[test]
    fn more_specific_addresses_and_names_win() {
        let range =
            |text: &str| ChainMatch { prefix_ranges: vec![text.parse().unwrap()], ..ChainMatch::default() };
        let ranges = listener(
            vec![chain("/8", range("10.0.0.0/8")), chain("/16", range("10.1.0.0/16"))],
            Some("default"),
        );
        assert_eq!(name_of(&ranges, 1, &Seen::raw()).as_deref(), Ok("/16"));
        let host = Target::Host { host: "a".to_owned(), port: 1 };
        assert_eq!(choose(&ranges, &Facts::new(&host, &Seen::raw())).unwrap().name, "default");

        let named = |name: &str| ChainMatch { server_names: strings(&[name]), ..ChainMatch::default() };
        let names = ["*.b.c", "a.b.c", "*.c"].map(|name| chain(name, named(name)));
        let names = listener(names.to_vec(), Some("default"));
        for (name, wanted) in
            [("a.b.c", "a.b.c"), ("x.b.c", "*.b.c"), ("b.c", "*.c"), ("c", "default"), ("d", "default")]
        {
            let hello = Seen { server_name: Some(name.to_owned()), ..seen(Transport::Tls, &[]) };
            assert_eq!(name_of(&names, 1, &hello).as_deref(), Ok(wanted), "{name}");
        }
    }

    #[test]
    fn the_clients_order_of_protocols_counts() {
        let chains = vec![chain("a", tls(None, &["a"])), chain("b", tls(None, &["b"]))];
        let listener = listener(chains, None);
        assert_eq!(name_of(&listener, 1, &seen(Transport::Tls, &["b", "a"])).as_deref(), Ok("b"));
    }

    #[test]
    fn strangers_bytes_are_quoted_and_cut() {
        let listener = inbound();
        let hello = seen(Transport::Tls, &["\u{1b}[31m", &"x".repeat(99)]);
        let target = Target::Address(([10, 1, 2, 3], 90).into());
        let text = choose(&listener, &Facts::new(&target, &hello)).unwrap_err().to_string();
        assert!(!text.contains('\u{1b}') && text.len() < 200, "{text}");
    }
}
