//! Every metric name, its help text, and every label name. Istio's names, so that existing boards work; they
//! must never change. Counters stand without `_total`: the encoder appends it.

/// A metric's name and help text.
pub(super) type Metric = (&'static str, &'static str);

pub(super) const REQUESTS: Metric = ("istio_requests", "Requests handled by the proxy.");
pub(super) const REQUEST_DURATION: Metric = (
    "istio_request_duration_milliseconds",
    "Time from the first byte of the request to the end of the response.",
);
pub(super) const REQUEST_BYTES: Metric = ("istio_request_bytes", "Size of request bodies.");
pub(super) const RESPONSE_BYTES: Metric = ("istio_response_bytes", "Size of response bodies.");
pub(super) const REQUEST_MESSAGES: Metric =
    ("istio_request_messages", "gRPC messages sent by clients, counted when the call is over.");
pub(super) const RESPONSE_MESSAGES: Metric =
    ("istio_response_messages", "gRPC messages sent by servers, counted when the call is over.");
pub(super) const TCP_OPENED: Metric = ("istio_tcp_connections_opened", "TCP connections opened.");
pub(super) const TCP_CLOSED: Metric = ("istio_tcp_connections_closed", "TCP connections closed.");
pub(super) const TCP_SENT: Metric = ("istio_tcp_sent_bytes", "Bytes sent in response on TCP connections.");
pub(super) const TCP_RECEIVED: Metric =
    ("istio_tcp_received_bytes", "Bytes received as request on TCP connections.");

pub(super) const BUILD_INFO: Metric = ("mesh_proxy_build", "Version of the proxy; the value is always 1.");
pub(super) const XDS_CONNECTED: Metric =
    ("mesh_proxy_xds_connected", "1 while the stream to the control plane is open.");
pub(super) const XDS_RESPONSES: Metric = ("mesh_proxy_xds_responses", "Responses of the control plane.");
pub(super) const XDS_RESOURCES: Metric =
    ("mesh_proxy_xds_resources", "Resources and removals that the control plane sent.");
pub(super) const XDS_NACKS: Metric =
    ("mesh_proxy_xds_nacks", "Responses that were refused at least in part.");
pub(super) const XDS_RECONNECTS: Metric =
    ("mesh_proxy_xds_reconnects", "Attempts to reach the control plane after the first.");
pub(super) const XDS_NAMES: Metric =
    ("mesh_proxy_xds_names", "Names that are asked for at the moment, by type.");
pub(super) const CERTIFICATE_EXPIRY: Metric = (
    "mesh_proxy_certificate_expiration_timestamp_seconds",
    "When the workload certificate ends, as Unix time; 0 without one.",
);
pub(super) const CERTIFICATE_RENEWALS: Metric =
    ("mesh_proxy_certificate_renewals", "Attempts to get a workload certificate, by result.");
pub(super) const INBOUND_REFUSED: Metric =
    ("mesh_inbound_refused", "Inbound connections that were closed for a reason of the mesh's own.");
pub(super) const OUTBOUND_REFUSED: Metric = (
    "mesh_outbound_refused",
    "Connections of the application that were refused before anything was dialled.",
);
pub(super) const APP_SCRAPE_FAILURES: Metric = (
    "mesh_proxy_app_scrape_failures",
    "Scrapes for which the application's own metrics could not be had, or not all of them.",
);
pub(super) const ACCESS_LOG_DROPPED: Metric =
    ("mesh_proxy_access_log_dropped", "Access log lines that were dropped because the reader is too slow.");
pub(super) const SERIES: Metric = ("mesh_proxy_metric_series", "Traffic series held at the moment.");
pub(super) const SERIES_OVERFLOW: Metric =
    ("mesh_proxy_metric_series_overflow", "Series that were not made because the limit was reached.");

pub(super) const REPORTER: &str = "reporter";
pub(super) const SOURCE_WORKLOAD: &str = "source_workload";
pub(super) const SOURCE_CANONICAL_SERVICE: &str = "source_canonical_service";
pub(super) const SOURCE_CANONICAL_REVISION: &str = "source_canonical_revision";
pub(super) const SOURCE_WORKLOAD_NAMESPACE: &str = "source_workload_namespace";
pub(super) const SOURCE_PRINCIPAL: &str = "source_principal";
pub(super) const SOURCE_APP: &str = "source_app";
pub(super) const SOURCE_VERSION: &str = "source_version";
pub(super) const SOURCE_CLUSTER: &str = "source_cluster";
pub(super) const DESTINATION_SERVICE: &str = "destination_service";
pub(super) const DESTINATION_SERVICE_NAMESPACE: &str = "destination_service_namespace";
pub(super) const DESTINATION_SERVICE_NAME: &str = "destination_service_name";
pub(super) const DESTINATION_WORKLOAD: &str = "destination_workload";
pub(super) const DESTINATION_CANONICAL_SERVICE: &str = "destination_canonical_service";
pub(super) const DESTINATION_CANONICAL_REVISION: &str = "destination_canonical_revision";
pub(super) const DESTINATION_WORKLOAD_NAMESPACE: &str = "destination_workload_namespace";
pub(super) const DESTINATION_PRINCIPAL: &str = "destination_principal";
pub(super) const DESTINATION_APP: &str = "destination_app";
pub(super) const DESTINATION_VERSION: &str = "destination_version";
pub(super) const DESTINATION_CLUSTER: &str = "destination_cluster";
pub(super) const REQUEST_PROTOCOL: &str = "request_protocol";
pub(super) const RESPONSE_FLAGS: &str = "response_flags";
pub(super) const CONNECTION_SECURITY_POLICY: &str = "connection_security_policy";
pub(super) const RESPONSE_CODE: &str = "response_code";
pub(super) const GRPC_RESPONSE_STATUS: &str = "grpc_response_status";

/// What stands for a value that is not known.
pub(super) const UNKNOWN: &str = "unknown";
