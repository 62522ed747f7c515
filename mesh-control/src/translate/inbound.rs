//! `inbound/<namespace>/<pod>`: what a sidecar does with connections that arrive for its pod. A port in STRICT
//! mode has no chain without mutual TLS: what matches no chain is closed.

use mesh_common::xds::names::{ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP, ClusterName};
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_common::xds::proto::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use mesh_common::xds::proto::config::route::v3::RouteConfiguration;
use mesh_common::xds::protobuf::UInt32Value;

use super::INBOUND_PASSTHROUGH_CLUSTER;
use super::listener::{PLAINTEXT_HTTP, detecting, listener};
use super::proto::{RouteSpecifier, downstream_tls, http_manager, tcp_proxy};
use super::route;
use crate::model::facts::Facts;
use crate::model::policy::MtlsMode;
use crate::model::service::Protocol;
use crate::model::{Settings, WorkloadKey};

/// The listener of this pod, if there is such a pod.
pub(super) fn inbound(name: &str, namespace: &str, pod: &str, facts: &dyn Facts) -> Option<Listener> {
    let settings = facts.settings();
    let key = WorkloadKey {
        cluster: settings.cluster.clone(),
        namespace: namespace.to_owned(),
        name: pod.to_owned(),
    };
    let inbound = facts.inbound(&key)?;
    let mut chains = Vec::new();
    for port in &inbound.ports {
        chains.extend(Port { number: Some(port.port), settings: &settings }.chains(port.mode, port.protocol));
    }
    let others = Port { number: None, settings: &settings };
    chains.extend(others.chains(inbound.default_mode, Protocol::Detect));
    let base = listener(name, TrafficDirection::Inbound);
    Some(detecting(Listener { filter_chains: chains, ..base }, &settings))
}

/// A port of the pod, or all that have nothing of their own.
struct Port<'a> {
    number: Option<u16>,
    settings: &'a Settings,
}

impl Port<'_> {
    fn chains(&self, mode: MtlsMode, protocol: Protocol) -> Vec<FilterChain> {
        match mode {
            MtlsMode::Strict => self.meshed(),
            MtlsMode::Permissive => [self.meshed(), self.plaintext(protocol)].concat(),
            MtlsMode::Disable => self.plaintext(protocol),
        }
    }

    /// The mesh's own connections say what they carry, so the declared protocol does not matter.
    fn meshed(&self) -> Vec<FilterChain> {
        let http = [ALPN_HTTP2, ALPN_HTTP1];
        let mut chains = vec![
            self.chain("mtls-http", Some("tls"), &[ALPN_HTTP1, ALPN_HTTP2], self.http()),
            self.chain("mtls-tcp", Some("tls"), &[ALPN_TCP], self.tcp()),
        ];
        for (chain, alpn) in chains.iter_mut().zip([&http[..], &[ALPN_TCP]]) {
            chain.transport_socket = Some(downstream_tls(alpn));
        }
        chains
    }

    fn plaintext(&self, protocol: Protocol) -> Vec<FilterChain> {
        let raw = Some("raw_buffer");
        let mut chains = match protocol {
            Protocol::Http | Protocol::Http2 => vec![self.chain("http", raw, &[], self.http())],
            Protocol::Tcp => vec![self.chain("tcp", raw, &[], self.tcp())],
            Protocol::Detect => vec![
                self.chain("http", raw, &PLAINTEXT_HTTP, self.http()),
                self.chain("tcp", raw, &[], self.tcp()),
            ],
        };
        // The application's own TLS, passed through untouched.
        chains.push(self.chain("tls", Some("tls"), &[], self.tcp()));
        chains
    }

    fn chain(
        &self,
        suffix: &str,
        transport: Option<&str>,
        protocols: &[&str],
        filter: Filter,
    ) -> FilterChain {
        let matches = FilterChainMatch {
            destination_port: self.number.map(|port| UInt32Value { value: port.into() }),
            transport_protocol: transport.unwrap_or_default().to_owned(),
            application_protocols: protocols.iter().map(|&protocol| protocol.to_owned()).collect(),
            ..Default::default()
        };
        let prefix = self.number.map_or_else(|| "0.0.0.0".to_owned(), |port| port.to_string());
        FilterChain {
            name: format!("{prefix}_{suffix}"),
            filter_chain_match: Some(matches),
            filters: vec![filter],
            ..Default::default()
        }
    }

    fn http(&self) -> Filter {
        let stat_prefix = match self.number {
            Some(port) => format!("inbound_0.0.0.0_{port}"),
            None => INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
        };
        http_manager(&stat_prefix, RouteSpecifier::RouteConfig(self.routes()), self.settings)
    }

    fn tcp(&self) -> Filter {
        tcp_proxy(&self.cluster(), self.settings)
    }

    fn routes(&self) -> RouteConfiguration {
        let cluster = self.cluster();
        let mut routes = route::whole_cluster(&cluster, &cluster);
        for host in &mut routes.virtual_hosts {
            host.name = format!("inbound|http|{}", self.number.unwrap_or(0));
        }
        routes
    }

    fn cluster(&self) -> String {
        match self.number {
            Some(port) => ClusterName::Inbound { port }.to_string(),
            None => INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
        }
    }
}
