//! The two forms of an access log line: Istio's default text format, and its JSON keys. Every value that came
//! from the network is escaped, so that no client can forge a line.

use std::fmt::{Display, Write as _};
use std::time::SystemTime;

use super::AccessEntry;

/// `[start] "method path protocol" code flags ...` with a line feed.
pub(super) fn text(entry: &AccessEntry<'_>) -> String {
    let e = entry;
    let mut line = String::with_capacity(512);
    put(&mut line, "[", start(e.start), "] ");
    put(&mut line, "\"", escaped(e.method), " ");
    put(&mut line, "", escaped(e.path), " ");
    put(&mut line, "", escaped(e.protocol), "\" ");
    put(&mut line, "", e.code, " ");
    put(&mut line, "", e.flags, " ");
    put(&mut line, "", escaped(e.code_details), " ");
    put(&mut line, "", escaped(e.termination_details), " ");
    put(&mut line, "\"", escaped(e.upstream_failure), "\" ");
    put(&mut line, "", e.bytes_received, " ");
    put(&mut line, "", e.bytes_sent, " ");
    put(&mut line, "", e.duration.as_millis(), " ");
    put(&mut line, "", optional(e.upstream_service_time.map(|t| t.as_millis())), " ");
    put(&mut line, "\"", escaped(e.forwarded_for), "\" ");
    put(&mut line, "\"", escaped(e.user_agent), "\" ");
    put(&mut line, "\"", escaped(e.request_id), "\" ");
    put(&mut line, "\"", escaped(e.authority), "\" ");
    put(&mut line, "\"", optional(e.upstream_host), "\" ");
    put(&mut line, "", escaped(e.upstream_cluster), " ");
    put(&mut line, "", optional(e.upstream_local), " ");
    put(&mut line, "", optional(e.downstream_local), " ");
    put(&mut line, "", optional(e.downstream_remote), " ");
    put(&mut line, "", escaped(e.server_name), " ");
    put(&mut line, "", escaped(e.route_name), "\n");
    line
}

/// One JSON object with a line feed; keys in Istio's order.
pub(super) fn json(entry: &AccessEntry<'_>) -> String {
    let line = JsonLine {
        start_time: start(entry.start),
        route_name: present(entry.route_name),
        method: present(entry.method),
        path: present(entry.path),
        protocol: present(entry.protocol),
        response_code: entry.code,
        response_flags: entry.flags.to_string(),
        response_code_details: present(entry.code_details),
        connection_termination_details: present(entry.termination_details),
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        duration: millis(entry.duration),
        upstream_service_time: entry.upstream_service_time.map(millis),
        x_forwarded_for: present(entry.forwarded_for),
        user_agent: present(entry.user_agent),
        request_id: present(entry.request_id),
        authority: present(entry.authority),
        upstream_host: entry.upstream_host,
        upstream_cluster: present(entry.upstream_cluster),
        upstream_local_address: entry.upstream_local,
        downstream_local_address: entry.downstream_local,
        downstream_remote_address: entry.downstream_remote,
        requested_server_name: present(entry.server_name),
        upstream_transport_failure_reason: present(entry.upstream_failure),
    };
    // Neither maps nor foreign types are in it: it cannot fail, and an empty line would be seen.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

#[derive(serde::Serialize)]
struct JsonLine<'a> {
    start_time: String,
    route_name: Option<&'a str>,
    method: Option<&'a str>,
    path: Option<&'a str>,
    protocol: Option<&'a str>,
    response_code: u16,
    response_flags: String,
    response_code_details: Option<&'a str>,
    connection_termination_details: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    upstream_service_time: Option<u64>,
    x_forwarded_for: Option<&'a str>,
    user_agent: Option<&'a str>,
    request_id: Option<&'a str>,
    authority: Option<&'a str>,
    upstream_host: Option<std::net::SocketAddr>,
    upstream_cluster: Option<&'a str>,
    upstream_local_address: Option<std::net::SocketAddr>,
    downstream_local_address: Option<std::net::SocketAddr>,
    downstream_remote_address: Option<std::net::SocketAddr>,
    requested_server_name: Option<&'a str>,
    upstream_transport_failure_reason: Option<&'a str>,
}

fn put(line: &mut String, before: &str, value: impl Display, after: &str) {
    // Writing to a String cannot fail.
    write!(line, "{before}{value}{after}").ok();
}

fn start(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "-".to_owned(),
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn optional(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn present(value: &str) -> Option<&str> {
    if value.is_empty() { None } else { Some(value) }
}

/// Quotes, backslashes and control characters are written as escapes.
fn escaped(value: &str) -> String {
    if value.is_empty() { "-".to_owned() } else { value.escape_debug().to_string().replace("\\'", "'") }
}
