//! What is in force, as JSON for people and programs. Built from one snapshot, so that a page never mixes two.

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{CertificateFacts, certificate_facts};
use serde_json::{Map, Value, json};
use std::time::SystemTime;

use super::Pages;
use crate::config::cluster::{Endpoint, EndpointTls, Health, UpstreamTls};
use crate::config::listener::{ChainMatch, FilterChain, Listener, NetworkFilter, RouteSource};
use crate::config::route::{Route, RouteAction, RouteConfig};
use crate::config::store::{LiveCluster, Snapshot};

/// Everything: the stream with each name and version, then what was made of it.
pub(super) fn config(pages: &Pages) -> Value {
    let snapshot = pages.store.snapshot();
    let connection = pages.xds.connection();
    let mut page = Map::new();
    page.insert("node".to_owned(), json!(pages.node));
    page.insert("connected".to_owned(), json!(connection.connected));
    page.insert("connected_since".to_owned(), json!(connection.since.map(time)));
    page.insert("last_error".to_owned(), json!(connection.last_error));
    for (kind, status) in pages.xds.types() {
        let names: Map<String, Value> = status
            .names
            .iter()
            .map(|(name, held)| {
                let held = json!({
                    "version": held.version.as_deref(), "missing": held.missing, "refused": held.refused.as_deref(),
                });
                (name.to_string(), held)
            })
            .collect();
        page.insert(kind.short().to_owned(), Value::Object(names));
        page.insert(format!("{kind}_last_nack"), json!(status.last_nack));
    }
    page.insert("listeners".to_owned(), all_listeners(&snapshot));
    page.insert("routes".to_owned(), sorted(snapshot.routes.values().map(|config| route_config(config))));
    page.insert("clusters".to_owned(), sorted(snapshot.clusters.values().map(|live| cluster(live))));
    let workloads = snapshot.workloads.iter().map(|(ip, found)| {
        let known = found.workload.as_ref();
        json!({
            "name": ip, "found": known.is_some(),
            "identity": known.and_then(|it| it.identity.as_ref()).map(SpiffeId::as_str),
            "workload": known.map(|it| it.labels.workload.as_str()),
        })
    });
    page.insert("workloads".to_owned(), sorted(workloads));
    Value::Object(page)
}

/// Clusters with their endpoints.
pub(super) fn clusters(pages: &Pages) -> Value {
    sorted(pages.store.snapshot().clusters.values().map(|live| cluster(live)))
}

/// Where the proxy listens, and what connections there meet.
pub(super) fn listeners(pages: &Pages) -> Value {
    json!({
        "addresses": { "inbound": pages.addresses.inbound, "outbound": pages.addresses.outbound },
        "listeners": all_listeners(&pages.store.snapshot()),
    })
}

/// The certificate shown and the roots trusted; no key.
pub(super) fn certificates(pages: &Pages) -> Value {
    let certificate = pages.tls.certificate().map(|own| {
        let mut facts = facts(&own.facts);
        facts["identity"] = json!(own.identity.as_str());
        facts["chain_length"] = json!(own.chain.len());
        facts
    });
    let roots: Vec<Value> = pages.tls.bundle().map_or_else(Vec::new, |bundle| {
        bundle.roots().iter().filter_map(|root| certificate_facts(root).ok()).map(|it| facts(&it)).collect()
    });
    json!({ "certificate": certificate, "trust_bundle": roots })
}

fn facts(facts: &CertificateFacts) -> Value {
    let CertificateFacts { not_before, not_after, serial, uris, dns } = facts;
    json!({
        "serial": serial, "not_before": time(*not_before), "not_after": time(*not_after),
        "uris": uris, "dns": dns,
    })
}

fn all_listeners(snapshot: &Snapshot) -> Value {
    let fixed = [&snapshot.inbound, &snapshot.outbound].into_iter().flatten().map(|it| listener(it));
    let looked_up = snapshot.listeners.iter().map(|(name, found)| match &found.listener {
        Some(known) => listener(known),
        None => json!({ "name": name.to_string(), "found": false }),
    });
    sorted(fixed.chain(looked_up))
}

fn listener(listener: &Listener) -> Value {
    let Listener { name, inspect, chains, default_chain } = listener;
    json!({
        "name": name,
        "found": true,
        "detects_tls": inspect.tls,
        "detects_http": inspect.http,
        "detection_timeout_ms": millis(inspect.timeout),
        "filter_chains": chains.iter().map(|it| chain(it)).collect::<Vec<_>>(),
        "default_filter_chain": default_chain.as_deref().map(chain),
    })
}

fn chain(chain: &FilterChain) -> Value {
    let FilterChain { name, matches, tls, filter } = chain;
    let ChainMatch { destination_port, prefix_ranges, server_names, transport, application_protocols } =
        matches;
    json!({
        "name": name,
        "match": {
            "destination_port": destination_port, "prefix_ranges": prefix_ranges,
            "server_names": server_names, "transport": transport.map(|it| format!("{it:?}")),
            "application_protocols": application_protocols,
        },
        "mutual_tls": tls.as_ref().map(|tls| json!({ "alpn": tls.alpn })),
        "filter": match filter {
            NetworkFilter::Http(http) => match &http.routes {
                RouteSource::Named(name) => json!({ "http": { "routes": name } }),
                RouteSource::Inline(config) => json!({ "http": { "routes": route_config(config) } }),
            },
            NetworkFilter::Tcp(tcp) => json!({ "tcp": { "clusters": tcp.clusters } }),
            NetworkFilter::OnDemand => json!("look the destination up"),
        },
    })
}

fn route_config(config: &RouteConfig) -> Value {
    let hosts = config.virtual_hosts.iter().map(|host| {
        let routes: Vec<Value> = host.routes.iter().map(route).collect();
        json!({ "name": host.name, "domains": host.domains, "routes": routes })
    });
    json!({ "name": config.name, "virtual_hosts": hosts.collect::<Vec<_>>() })
}

fn route(route: &Route) -> Value {
    let action = match &route.action {
        RouteAction::Forward(forward) => {
            let clusters: Vec<Value> =
                forward.clusters.iter().map(|it| json!({ "name": it.name, "weight": it.weight })).collect();
            json!({ "clusters": clusters, "timeout_ms": forward.timeout.map(millis) })
        }
        RouteAction::Redirect(redirect) => json!({ "redirect": redirect.status.as_u16() }),
        RouteAction::Respond { status, body } => json!({ "respond": status.as_u16(), "body": body }),
    };
    let matches = &route.matches;
    json!({
        "name": route.name,
        "match": {
            "path": format!("{:?}", matches.path),
            "headers": matches.headers.iter().map(|it| format!("{it:?}")).collect::<Vec<_>>(),
            "query": matches.query.iter().map(|it| format!("{it:?}")).collect::<Vec<_>>(),
            "method": matches.method.as_ref().map(ToString::to_string),
        },
        "action": action,
    })
}

fn cluster(live: &LiveCluster) -> Value {
    let config = &live.config;
    let endpoints = live.endpoints.load();
    let endpoints: Vec<Value> = endpoints
        .localities
        .iter()
        .flat_map(|place| place.endpoints.iter().map(|it| endpoint(it, &place.region, &place.zone)))
        .collect();
    json!({
        "name": config.name,
        "service": config.service.host,
        "discovery": format!("{:?}", config.discovery).split(['(', ' ']).next(),
        "connect_timeout_ms": millis(config.connect_timeout),
        "sni": match &config.tls {
            UpstreamTls::ByEndpoint(mesh) => Some(mesh.sni.as_str()),
            UpstreamTls::None => None,
        },
        "http": format!("{:?}", config.http),
        "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Endpoint, region: &str, zone: &str) -> Value {
    let (mutual_tls, refused) = match &endpoint.tls {
        EndpointTls::Plaintext => (None, None),
        EndpointTls::Mutual(identity) => (Some(identity.as_str()), None),
        EndpointTls::Refused(reason) => (None, Some(reason.as_str())),
    };
    json!({
        "address": endpoint.address,
        "health": match endpoint.health {
            Health::Healthy => "healthy",
            Health::Draining => "draining",
            Health::Unhealthy => "unhealthy",
        },
        "weight": endpoint.weight,
        "mutual_tls": mutual_tls,
        "refused": refused,
        "workload": endpoint.workload.workload,
        "version": endpoint.workload.version,
        "region": region,
        "zone": zone,
    })
}

/// By name, so that two looks can be compared.
fn sorted(items: impl Iterator<Item = Value>) -> Value {
    let mut items: Vec<Value> = items.collect();
    items.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Value::Array(items)
}

fn time(time: SystemTime) -> Option<String> {
    jiff::Timestamp::try_from(time).ok().map(|time| format!("{time:.0}"))
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
