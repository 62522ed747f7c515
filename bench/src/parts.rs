//! The parts of the way of a request that can be measured alone, as they are in a sidecar of a mesh.

use std::hint::black_box;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use mesh_proxy::cluster::{EndpointState, pick};
use mesh_proxy::config::cluster::{Endpoint, EndpointTls, Health, ServiceLabels};
use mesh_proxy::config::route::{
    Forward, HeaderMatch, HeaderMutation, PathMatch, Route, RouteAction, RouteConfig, RouteMatch, ValueMatch,
    VirtualHost, WeightedCluster,
};
use mesh_proxy::http::route::{Head, choose};
use mesh_proxy::http::{headers, path, rewrite};
use mesh_proxy::telemetry::{Outcome, Reporter, RequestProtocol, Security, Telemetry, Traffic};

/// Something that is done again and again.
pub type Part = Box<dyn FnMut()>;

/// The names of all parts.
pub const NAMES: [&str; 4] = ["route", "headers", "pick", "record"];

/// The part of this name.
pub fn part(name: &str) -> Option<Part> {
    Some(match name {
        "route" => route(),
        "headers" => change_headers(),
        "pick" => pick_endpoint(),
        "record" => record(),
        _ => return None,
    })
}

/// The tenth of ten routes is the one; each has a path and a header to compare.
fn route() -> Part {
    let routes = (0..10).map(|n| Route {
        name: format!("shop/reviews/{n}"),
        matches: RouteMatch {
            path: PathMatch::PathSeparatedPrefix(format!("/reviews/{n}")),
            headers: vec![HeaderMatch {
                name: HeaderName::from_static("x-tester"),
                value: ValueMatch::Exact("yes".into()),
                invert: false,
            }],
            query: Vec::new(),
            method: None,
        },
        action: RouteAction::Forward(forward()),
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    });
    let config = RouteConfig {
        name: "routes".into(),
        virtual_hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: routes.collect(),
        }],
    };
    let headers = request().headers().clone();
    Box::new(move || {
        let canonical = path::canonical(black_box("/reviews/9/of/somebody"));
        let path = canonical.as_deref().unwrap_or_default();
        let head =
            Head { authority: "reviews.shop", path, query: None, method: &Method::GET, headers: &headers };
        black_box(choose(&config, &head).is_some());
    })
}

fn forward() -> Forward {
    let cluster = |name: &str, weight| WeightedCluster {
        name: name.into(),
        weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    };
    Forward {
        clusters: vec![cluster("v1", 90), cluster("v2", 10)],
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        timeout: None,
        per_try_timeout: None,
        idle_timeout: None,
        path_rewrite: None,
        host_rewrite: None,
        upgrades: false,
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    for (name, value) in [
        ("host", "reviews.shop:9080"),
        ("user-agent", "curl/8.5.0"),
        ("accept", "*/*"),
        ("x-tester", "yes"),
        ("x-request-id", "5f2c1f9e-1f0e-4f6e-9a57-5b8f0c1f5d3c"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("cookie", "session=0123456789"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request
}

/// What a sidecar does to the headers of each request that comes in.
fn change_headers() -> Part {
    let request = request();
    let change = HeaderMutation {
        remove: vec![HeaderName::from_static("cookie")],
        set: vec![(HeaderName::from_static("x-version"), HeaderValue::from_static("v2"))],
        add: Vec::new(),
    };
    let certificate =
        headers::client_cert("spiffe://mesh/ns/shop/sa/reviews", "spiffe://mesh/ns/shop/sa/web");
    Box::new(move || {
        black_box(headers::check(&request).is_ok());
        let mut changed: HeaderMap = request.headers().clone();
        headers::strip_hop_by_hop(&mut changed, true);
        headers::trust_inbound(&mut changed, certificate.as_ref());
        headers::complete(&mut changed);
        rewrite::headers(&change, &mut changed);
        black_box(changed.len());
    })
}

/// One of ten endpoints.
fn pick_endpoint() -> Part {
    let endpoint = |n: u8| {
        let endpoint = Endpoint {
            address: SocketAddr::from(([10, 0, 0, n], 8080)),
            tls: EndpointTls::Plaintext,
            health: Health::Healthy,
            weight: 1,
            workload: Arc::default(),
        };
        Rc::new(EndpointState::new(Arc::new(endpoint)))
    };
    let endpoints: Vec<_> = (0..10).map(endpoint).collect();
    let mut random = rand::rng();
    Box::new(move || {
        black_box(pick(&endpoints, &[], &mut random).is_some());
    })
}

/// The count of a request.
fn record() -> Part {
    let series = Telemetry::detached().http(&Traffic {
        reporter: Reporter::Destination,
        source: Arc::default(),
        destination: Arc::default(),
        service: ServiceLabels::default(),
        security: Security::MutualTls,
        protocol: RequestProtocol::Http,
    });
    let outcome = Outcome {
        code: 200,
        duration: Duration::from_millis(7),
        request_bytes: 100,
        response_bytes: 1024,
        ..Outcome::default()
    };
    Box::new(move || series.record(black_box(&outcome)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_be_done() {
        for name in NAMES {
            part(name).unwrap()();
        }
        assert!(part("other").is_none());
    }
}
