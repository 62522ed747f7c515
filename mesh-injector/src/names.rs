//! Names and ports that the injector shares with the proxy, with mesh-control and with the people who look at pods.

/// The label, of a namespace or a pod, that asks for injection: `enabled` or `disabled`.
pub const INJECT_LABEL: &str = "mesh/inject";
/// What the injector notes on a pod.
pub const STATUS_ANNOTATION: &str = "mesh/status";
pub use mesh_common::capture::REDIRECT_CONTAINER as REDIRECT;

/// The container of the proxy.
pub const PROXY: &str = "mesh-proxy";
/// The proxy's user.
pub const PROXY_UID: i64 = 1337;
/// Where the proxy answers probes and serves merged metrics.
pub const MERGED_PORT: i64 = 15020;
/// Where the proxy says whether it is ready.
pub const READY_PORT: i64 = 15021;
/// Where the proxy serves its own metrics.
pub const METRICS_PORT: i64 = 15090;
/// The path of metrics, on both ports.
pub const METRICS_PATH: &str = "/stats/prometheus";
/// The environment variable that tells the proxy of rewritten probes.
pub const PROBES_ENV: &str = "MESH_APP_PROBES";
/// The environment variable that tells the proxy of the application's metrics.
pub const METRICS_ENV: &str = "MESH_APP_METRICS";
/// The environment variable with the mesh's roots.
pub const BUNDLE_ENV: &str = "MESH_TRUST_BUNDLE";
/// The ConfigMap with the mesh's roots, in every namespace.
pub const ROOT_CONFIG_MAP: &str = "mesh-root-cert";
/// Its key.
pub const ROOT_KEY: &str = "root-cert.pem";
/// The audience of the token that proves who asks for a certificate.
pub const TOKEN_AUDIENCE: &str = "mesh-ca";
/// The volume for key, certificate and last configuration.
pub const STATE_VOLUME: &str = "mesh-state";
/// The volume with the token.
pub const TOKEN_VOLUME: &str = "mesh-token";
/// The volume with the mesh's roots.
pub const ROOT_VOLUME: &str = "mesh-root-cert";

/// Whether the proxy listens on this port in every pod.
pub fn is_reserved(port: i64) -> bool {
    matches!(port, 15000..=15006 | MERGED_PORT | READY_PORT | METRICS_PORT)
}

/// Whether this container is one of the injector's.
pub fn is_ours(container: &str) -> bool {
    container == REDIRECT || container == PROXY
}
