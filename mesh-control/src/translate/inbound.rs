//! `inbound/<namespace>/<pod>`: what a sidecar does with connections that arrive for its pod. A port in STRICT
//! mode has no chain without mutual TLS: what matches no chain is closed.

use mesh_common::xds::names::{ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP, ClusterName};
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_common::xds::proto::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use mesh_common::xds::proto::config::route::v3::RouteConfiguration;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager,
};
use mesh_common::xds::protobuf::UInt32Value;

use super::INBOUND_PASSTHROUGH_CLUSTER;
use super::client::EnvoyClient;
use super::listener::{PLAINTEXT_HTTP, detecting, listener};
use super::proto::{
    RouteSpecifier, downstream_tls, http_connection_manager, http_manager, http_manager_filter, tcp_proxy,
};
use super::{envoy, route};
use crate::model::facts::Facts;
use crate::model::policy::MtlsMode;
use crate::model::service::Protocol;
use crate::model::workload::Inbound;
use crate::model::{Settings, WorkloadKey};

/// What gRPC offers.
const ALPN_GRPC: &str = "h2";

/// The listener of this pod, if there is such a pod.
pub(super) fn inbound(name: &str, namespace: &str, pod: &str, facts: &dyn Facts) -> Option<Listener> {
    let settings = facts.settings();
    let key = WorkloadKey {
        cluster: settings.cluster.clone(),
        namespace: namespace.to_owned(),
        name: pod.to_owned(),
    };
    let inbound = facts.inbound(&key)?;
    let filter_chains = chains(&inbound, None, &settings);
    let base = listener(name, TrafficDirection::Inbound);
    Some(detecting(Listener { filter_chains, ..base }, &settings))
}

/// The chains of all ports.
pub(super) fn chains(
    inbound: &Inbound,
    envoy: Option<&EnvoyClient>,
    settings: &Settings,
) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for port in &inbound.ports {
        let own = Port { number: Some(port.port), settings, envoy };
        chains.extend(own.chains(port.mode, port.protocol));
    }
    let others = Port { number: None, settings, envoy };
    chains.extend(others.chains(inbound.default_mode, Protocol::Detect));
    chains
}

/// A port of the pod, or all that have nothing of their own.
pub(super) struct Port<'a> {
    pub(super) number: Option<u16>,
    pub(super) settings: &'a Settings,
    /// The client, if it is a stock Envoy.
    pub(super) envoy: Option<&'a EnvoyClient>,
}

impl Port<'_> {
    /// The chains of this port.
    pub(super) fn chains(&self, mode: MtlsMode, protocol: Protocol) -> Vec<FilterChain> {
        match mode {
            MtlsMode::Strict => [self.meshed(), self.proxyless(protocol)].concat(),
            // What is declared to be HTTP is not TLS: the client must be one of the mesh, as at STRICT.
            MtlsMode::Permissive if is_http(protocol) => {
                [self.meshed(), self.proxyless(protocol), self.plaintext(protocol)].concat()
            }
            MtlsMode::Permissive => [self.meshed(), self.plaintext(protocol), vec![self.own_tls()]].concat(),
            MtlsMode::Disable => [self.plaintext(protocol), vec![self.own_tls()]].concat(),
        }
    }

    /// The mesh's own connections say what they carry, so the declared protocol does not matter.
    fn meshed(&self) -> Vec<FilterChain> {
        if let Some(envoy) = self.envoy {
            return self.meshed_for(envoy);
        }
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

    /// gRPC's own client shows its mesh certificate, but knows no ALPN of the mesh. Only where TLS cannot be the
    /// application's own. Istio takes it at STRICT; at PERMISSIVE it closes the connection where HTTP is declared.
    fn proxyless(&self, protocol: Protocol) -> Vec<FilterChain> {
        let filter = if protocol == Protocol::Tcp { self.tcp() } else { self.http() };
        let socket = match self.envoy {
            None => downstream_tls(&[ALPN_GRPC]),
            Some(envoy) => envoy::downstream_tls(&envoy.certificates, ALPN_GRPC, &self.settings.trust_domain),
        };
        vec![FilterChain {
            transport_socket: Some(socket),
            ..self.chain("mtls-proxyless", Some("tls"), &[ALPN_GRPC], filter)
        }]
    }

    /// A stock Envoy takes any ALPN that it does not know for HTTP/1.1, so each gets a chain that says what it is.
    fn meshed_for(&self, envoy: &EnvoyClient) -> Vec<FilterChain> {
        use http_connection_manager::CodecType;
        let chain = |suffix, alpn: &str, filter| FilterChain {
            transport_socket: Some(envoy::downstream_tls(
                &envoy.certificates,
                alpn,
                &self.settings.trust_domain,
            )),
            ..self.chain(suffix, Some("tls"), &[alpn], filter)
        };
        vec![
            chain("mtls-http1", ALPN_HTTP1, self.http_from_mesh(CodecType::Http1)),
            chain("mtls-http2", ALPN_HTTP2, self.http_from_mesh(CodecType::Http2)),
            chain("mtls-tcp", ALPN_TCP, self.tcp()),
        ]
    }

    /// As [`Self::http`]; the application is told who the client is, as Istio's sidecars do.
    fn http_from_mesh(&self, codec: http_connection_manager::CodecType) -> Filter {
        use http_connection_manager::{ForwardClientCertDetails, SetCurrentClientCertDetails};
        let routes = RouteSpecifier::RouteConfig(self.routes());
        http_manager_filter(&HttpConnectionManager {
            codec_type: codec as i32,
            forward_client_cert_details: ForwardClientCertDetails::SanitizeSet as i32,
            set_current_client_cert_details: Some(SetCurrentClientCertDetails {
                uri: true,
                ..Default::default()
            }),
            ..http_connection_manager(&self.stat_prefix(), routes, self.settings)
        })
    }

    fn plaintext(&self, protocol: Protocol) -> Vec<FilterChain> {
        let raw = Some("raw_buffer");
        match protocol {
            Protocol::Http | Protocol::Http2 => vec![self.chain("http", raw, &[], self.http())],
            Protocol::Tcp => vec![self.chain("tcp", raw, &[], self.tcp())],
            Protocol::Detect => vec![
                self.chain("http", raw, &PLAINTEXT_HTTP, self.http()),
                self.chain("tcp", raw, &[], self.tcp()),
            ],
        }
    }

    /// The application's own TLS, passed through untouched.
    fn own_tls(&self) -> FilterChain {
        self.chain("tls", Some("tls"), &[], self.tcp())
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
        http_manager(&self.stat_prefix(), RouteSpecifier::RouteConfig(self.routes()), self.settings)
    }

    fn stat_prefix(&self) -> String {
        match self.number {
            Some(port) => format!("inbound_0.0.0.0_{port}"),
            None => INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
        }
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

fn is_http(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http | Protocol::Http2)
}
