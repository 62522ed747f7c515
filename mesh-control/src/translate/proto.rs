//! Small builders for the protos that several resources share. It knows Envoy's messages and nothing of the
//! model: a decision that depends on a service or pod is never taken here.

use mesh_common::xds::names;
use mesh_common::xds::proto::config::accesslog::v3::{AccessLog, access_log};
use mesh_common::xds::proto::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, Metadata, SocketAddress,
    SubstitutionFormatString, TransportSocket, address, config_source, data_source, socket_address,
    substitution_format_string, transport_socket,
};
use mesh_common::xds::proto::config::listener::v3::{Filter, ListenerFilter, filter, listener_filter};
use mesh_common::xds::proto::extensions::access_loggers::stream::v3::{StdoutAccessLog, stdout_access_log};
use mesh_common::xds::proto::extensions::filters::http::router::v3::Router;
use mesh_common::xds::proto::extensions::filters::listener::http_inspector::v3::HttpInspector;
use mesh_common::xds::proto::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use mesh_common::xds::proto::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use mesh_common::xds::proto::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters, UpstreamTlsContext,
    common_tls_context, tls_parameters,
};
use mesh_common::xds::protobuf::{Any, BoolValue, Duration, Struct, Value, value};
use prost::{Message, Name};

use crate::model::{AccessLogEncoding, Settings};

pub(super) use http_connection_manager::RouteSpecifier;

/// A year: no wait is longer, and a proxy refuses more, as it overflows timers.
const MAX_DURATION_MS: u64 = 365 * 24 * 3600 * 1000;

/// Istio's default line, so that what reads Istio's logs reads these.
const ACCESS_LOG_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The keys of Istio's default JSON object.
const ACCESS_LOG_JSON: [(&str, &str); 23] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
];

/// A message with its type.
pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Milliseconds as a duration, cut to [`MAX_DURATION_MS`].
pub(super) fn duration(ms: u64) -> Duration {
    let ms = ms.min(MAX_DURATION_MS);
    Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

/// "Over the same stream."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

/// Text in the resource itself.
pub(super) fn inline(text: String) -> DataSource {
    DataSource { specifier: Some(data_source::Specifier::InlineString(text)), ..Default::default() }
}

/// An address and port, or a host name and port.
pub(super) fn socket_address(host: &str, port: u16) -> SocketAddress {
    SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    }
}

/// See [`socket_address`].
pub(super) fn address(host: &str, port: u16) -> Address {
    Address { address: Some(address::Address::SocketAddress(socket_address(host, port))) }
}

/// A value of text.
pub(super) fn text(text: &str) -> Value {
    Value { kind: Some(value::Kind::StringValue(text.to_owned())) }
}

/// A struct of these fields.
pub(super) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

/// Metadata of these namespaces.
pub(super) fn metadata<'a>(parts: impl IntoIterator<Item = (&'a str, Struct)>) -> Metadata {
    let filter_metadata = parts.into_iter().map(|(key, part)| (key.to_owned(), part)).collect();
    Metadata { filter_metadata, ..Default::default() }
}

/// The inspectors of a listener that looks at first bytes.
pub(super) fn inspectors() -> Vec<ListenerFilter> {
    let inspector = |name: &str, config: Any| ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    vec![
        inspector("envoy.filters.listener.tls_inspector", pack(&TlsInspector::default())),
        inspector("envoy.filters.listener.http_inspector", pack(&HttpInspector::default())),
    ]
}

/// The HTTP connection manager.
pub(super) fn http_manager(stat_prefix: &str, routes: RouteSpecifier, settings: &Settings) -> Filter {
    http_manager_filter(&http_connection_manager(stat_prefix, routes, settings))
}

/// A changed [`http_connection_manager`].
pub(super) fn http_manager_filter(manager: &HttpConnectionManager) -> Filter {
    network_filter("envoy.filters.network.http_connection_manager", pack(manager))
}

/// The filter that ends every chain of HTTP filters.
pub(super) fn router() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
        ..Default::default()
    }
}

/// See [`http_manager`].
pub(super) fn http_connection_manager(
    stat_prefix: &str,
    routes: RouteSpecifier,
    settings: &Settings,
) -> HttpConnectionManager {
    let websocket =
        http_connection_manager::UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() };
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![router()],
        upgrade_configs: vec![websocket],
        // Envoy would cut a stream that is silent for five minutes; without the mesh nobody does.
        stream_idle_timeout: Some(duration(0)),
        access_log: access_log(settings),
        route_specifier: Some(routes),
        ..Default::default()
    }
}

/// The TCP proxy.
pub(super) fn tcp_proxy(cluster: &str, settings: &Settings) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        access_log: access_log(settings),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", pack(&proxy))
}

/// A filter of a chain.
pub(super) fn network_filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

fn access_log(settings: &Settings) -> Vec<AccessLog> {
    let Some(encoding) = settings.access_log else {
        return Vec::new();
    };
    let format = match encoding {
        AccessLogEncoding::Text => {
            substitution_format_string::Format::TextFormatSource(inline(ACCESS_LOG_TEXT.to_owned()))
        }
        AccessLogEncoding::Json => substitution_format_string::Format::JsonFormat(fields(
            ACCESS_LOG_JSON.map(|(key, format)| (key, text(format))),
        )),
    };
    let format = SubstitutionFormatString { format: Some(format), ..Default::default() };
    let stdout =
        StdoutAccessLog { access_log_format: Some(stdout_access_log::AccessLogFormat::LogFormat(format)) };
    vec![AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(pack(&stdout))),
        ..Default::default()
    }]
}

/// Plaintext upstream.
pub(super) fn raw_buffer() -> TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", pack(&RawBuffer::default()))
}

/// The mesh's mutual TLS toward an upstream.
pub(super) fn upstream_tls(sni: String, alpn: &[&str]) -> TransportSocket {
    let context = UpstreamTlsContext { common_tls_context: Some(mesh_tls(alpn)), sni, ..Default::default() };
    transport_socket("envoy.transport_sockets.tls", pack(&context))
}

/// The mesh's mutual TLS from a downstream.
pub(super) fn downstream_tls(alpn: &[&str]) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(mesh_tls(alpn)),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    transport_socket("envoy.transport_sockets.tls", pack(&context))
}

/// A transport socket.
pub(super) fn transport_socket(name: &str, config: Any) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// TLS 1.3 and nothing else.
pub(super) fn tls_parameters() -> TlsParameters {
    let tls13 = tls_parameters::TlsProtocol::TlSv13 as i32;
    TlsParameters {
        tls_minimum_protocol_version: tls13,
        tls_maximum_protocol_version: tls13,
        ..Default::default()
    }
}

fn mesh_tls(alpn: &[&str]) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(tls_parameters()),
        // Without a source: the key is the proxy's own and never travels.
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
            name: names::OWN_CERTIFICATE.to_owned(),
            sds_config: None,
        }],
        alpn_protocols: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        validation_context_type: Some(
            common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(SdsSecretConfig {
                name: names::TRUST_BUNDLE.to_owned(),
                sds_config: Some(ads()),
            }),
        ),
        ..Default::default()
    }
}
