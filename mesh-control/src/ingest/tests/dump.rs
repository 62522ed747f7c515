//! The model as text that people can compare.

use std::fmt::Write;
use std::net::IpAddr;

use crate::model::facts::{Destination, FactKey, Facts};
use crate::model::route::{Backend, BackendTarget, HeaderChanges, RouteAction, RouteRule, RouteTable};
use crate::model::service::{Endpoint, EndpointTls};
use crate::model::store::{Mesh, SharedModel};
use crate::model::{ServiceKey, WorkloadKey};

fn short(key: &ServiceKey) -> &str {
    key.hostname.split('.').next().unwrap_or_default()
}

/// A key in few words.
pub(crate) fn key(key: &FactKey) -> String {
    match key {
        FactKey::Settings => "Settings".to_owned(),
        FactKey::Ranges => "Ranges".to_owned(),
        FactKey::TrustBundle => "TrustBundle".to_owned(),
        FactKey::Service(service) => format!("Service {}", short(service)),
        FactKey::Services => "Services".to_owned(),
        FactKey::Identities(service, port) => format!("Identities {}:{port}", short(service)),
        FactKey::Endpoints(service, port) => format!("Endpoints {}:{port}", short(service)),
        FactKey::Routes(service, port) => format!("Routes {}:{port}", short(service)),
        FactKey::Workload(workload) => format!("Workload {}", workload.name),
        FactKey::Inbound(workload) => format!("Inbound {}", workload.name),
        FactKey::Destination(ip, port) => format!("Destination {ip}:{port}"),
        FactKey::Owner(ip) => format!("Owner {ip}"),
    }
}

/// Everything the model says, as YAML.
pub(crate) fn model(mesh: &Mesh, errors: &[String]) -> String {
    let mut out = String::new();
    for error in errors {
        writeln!(out, "- refused: {error}").unwrap();
    }
    let settings = mesh.settings();
    if *settings != super::settings() {
        writeln!(out, "- settings: {settings:?}").unwrap();
    }
    let ranges: Vec<String> = mesh.ranges().iter().map(ToString::to_string).collect();
    writeln!(out, "- ranges: {}", ranges.join(" ")).unwrap();
    let mut ips: Vec<IpAddr> = Vec::new();
    for key in mesh.service_keys() {
        service(&mut out, mesh, &key, &mut ips);
    }
    for key in mesh.pod_keys() {
        pod(&mut out, mesh, &key, &mut ips);
    }
    ips.sort();
    ips.dedup();
    for ip in ips {
        writeln!(out, "- address: {ip}").unwrap();
        if let Some(owner) = mesh.owner(ip) {
            writeln!(out, "  owner: {}", owner.key.name).unwrap();
        }
        for port in [80, 81, 443, 8080, 9090, 9999] {
            if let Some(destination) = mesh.destination(ip, port) {
                writeln!(out, "  \"{port}\": {}", destination_text(&destination)).unwrap();
            }
        }
    }
    out
}

fn service(out: &mut String, mesh: &Mesh, key: &ServiceKey, ips: &mut Vec<IpAddr>) {
    let Some(service) = mesh.service(key) else { return };
    ips.extend(&service.addresses);
    writeln!(out, "- service: {}/{}", key.namespace, short(key)).unwrap();
    writeln!(out, "  is: {:?} {:?} node_local={}", service.kind, service.addresses, service.node_local)
        .unwrap();
    for port in &service.ports {
        writeln!(out, "  port {} {:?}: {:?}", port.port, port.name, port.protocol).unwrap();
        let endpoints = mesh.endpoints(key, port.port).unwrap();
        for endpoint in &endpoints.endpoints {
            writeln!(out, "  - {}", endpoint_text(endpoint)).unwrap();
        }
        let Some(routes) = mesh.routes(key, port.port) else { continue };
        if let Some(table) = &routes.producer {
            rules(out, "producer", table);
        }
        for (namespace, table) in &routes.consumers {
            rules(out, namespace, table);
        }
    }
}

fn rules(out: &mut String, whose: &str, table: &RouteTable) {
    for rule in &table.rules {
        writeln!(out, "  - {whose} {}", rule_text(rule)).unwrap();
    }
}

fn rule_text(rule: &RouteRule) -> String {
    let matches = &rule.matches;
    let mut text = format!("{}#{}: {:?}", rule.source.name, rule.rule, matches.path);
    if let Some(method) = &matches.method {
        write!(text, " {method}").unwrap();
    }
    for (name, condition) in &matches.headers {
        write!(text, " header {name} {condition:?}").unwrap();
    }
    for (name, condition) in &matches.query {
        write!(text, " query {name} {condition:?}").unwrap();
    }
    match &rule.action {
        RouteAction::Forward { backends, path, host } => {
            let backends: Vec<String> = backends.iter().map(backend_text).collect();
            write!(text, " -> [{}]", backends.join(", ")).unwrap();
            path.iter().for_each(|path| write!(text, " path {path:?}").unwrap());
            host.iter().for_each(|host| write!(text, " host {host}").unwrap());
        }
        other => write!(text, " -> {other:?}").unwrap(),
    }
    changes(&mut text, "request", &rule.request_headers);
    changes(&mut text, "response", &rule.response_headers);
    if let Some(millis) = rule.timeout_ms {
        write!(text, " timeout {millis}").unwrap();
    }
    if let Some(millis) = rule.backend_timeout_ms {
        write!(text, " backend timeout {millis}").unwrap();
    }
    text
}

fn backend_text(backend: &Backend) -> String {
    let mut text = match &backend.target {
        BackendTarget::Service(key, port) => {
            format!("{}x {}/{}:{port}", backend.weight, key.namespace, short(key))
        }
        BackendTarget::Invalid(reason) | BackendTarget::Missing { reason, .. } => {
            format!("{}x invalid: {reason}", backend.weight)
        }
    };
    changes(&mut text, "request", &backend.request_headers);
    changes(&mut text, "response", &backend.response_headers);
    text
}

fn changes(text: &mut String, which: &str, changes: &HeaderChanges) {
    if *changes != HeaderChanges::default() {
        let HeaderChanges { remove, set, add } = changes;
        write!(text, " {which} remove {remove:?} set {set:?} add {add:?}").unwrap();
    }
}

fn endpoint_text(endpoint: &Endpoint) -> String {
    let tls = match &endpoint.tls {
        EndpointTls::Plaintext => "plaintext".to_owned(),
        EndpointTls::Mutual(id) => format!("mutual {id}"),
        EndpointTls::Refused => "refused".to_owned(),
    };
    let workload = endpoint.workload.as_ref().map_or("-", |workload| &workload.key.name);
    let (ip, port, health) = (endpoint.address.ip, endpoint.port, endpoint.health);
    let place = format!("{}/{}/{}", endpoint.region, endpoint.zone, endpoint.node);
    format!("{ip} {port} {health:?} {tls} of {workload} at {place}")
}

fn destination_text(destination: &Destination) -> String {
    match destination {
        Destination::Service(key) => format!("service {}/{}", key.namespace, short(key)),
        Destination::NoSuchPort(key) => format!("no such port of {}/{}", key.namespace, short(key)),
        Destination::Contested => "contested".to_owned(),
        Destination::Pod(pod) => {
            let service = pod.service.as_ref().map_or("-", |(_, name, _)| name);
            format!("pod {:?} for {service}: {}", pod.protocol, endpoint_text(&pod.endpoint))
        }
    }
}

fn pod(out: &mut String, mesh: &Mesh, key: &WorkloadKey, ips: &mut Vec<IpAddr>) {
    let (Some(pod), Some(inbound)) = (mesh.workload(key), mesh.inbound(key)) else { return };
    ips.extend(&pod.addresses);
    writeln!(out, "- pod: {}/{}", key.namespace, key.name).unwrap();
    let identity = pod.identity.as_ref().map_or("none", |id| id.as_str());
    let (meshed, live, host) = (pod.meshed, pod.live, pod.host_network);
    writeln!(out, "  identity: {identity} meshed={meshed} live={live} host_network={host}").unwrap();
    let (name, kind) = (&pod.workload_name, pod.workload_kind);
    writeln!(out, "  workload: {name} {kind:?} {}/{}", pod.canonical_service, pod.canonical_revision)
        .unwrap();
    writeln!(out, "  default: {:?}", inbound.default_mode).unwrap();
    for port in &inbound.ports {
        let service = port.service.as_ref().map_or("-", |(_, name, _)| name);
        writeln!(out, "  port {}: {:?} {:?} {service}", port.port, port.protocol, port.mode).unwrap();
    }
}

/// The conditions, as YAML.
pub(crate) fn status(model: &SharedModel) -> String {
    let mut out = String::new();
    for status in model.statuses() {
        writeln!(out, "- {} {}/{}:", status.kind, status.namespace, status.name).unwrap();
        for parent in status.parents {
            writeln!(out, "  - parent: {}", parent.parent).unwrap();
            for condition in parent.conditions {
                let state = if condition.status { "True" } else { "False" };
                let generation = condition.observed_generation;
                writeln!(out, "    {}: {state} {} at {generation}", condition.kind, condition.reason)
                    .unwrap();
                for message in condition.message.split("; ").filter(|message| !message.is_empty()) {
                    writeln!(out, "      - {message:?}").unwrap();
                }
            }
        }
    }
    out
}
