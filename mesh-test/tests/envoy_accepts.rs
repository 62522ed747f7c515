//! What the control plane translates for an Envoy, the real Envoy takes: every golden case, in one bootstrap that
//! it validates. And what it announces on a port where the protocol is detected. `MESH_ENVOY` names the program.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]
#![allow(dead_code)] // the world has tools for other tests, too

#[path = "../../mesh-control/tests/translate/cases/mod.rs"]
mod cases;
#[path = "../../mesh-control/tests/translate/world.rs"]
mod world;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::bootstrap::v3::{Admin, Bootstrap, bootstrap};
use mesh_common::xds::proto::config::cluster::v3::{Cluster, cluster};
use mesh_common::xds::proto::config::core::v3::{
    Address, ApiConfigSource, ApiVersion, GrpcService, Node, SocketAddress, address, api_config_source,
    grpc_service, socket_address,
};
use mesh_common::xds::proto::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use mesh_common::xds::proto::config::listener::v3::{Filter, FilterChain, Listener, filter};
use mesh_common::xds::proto::config::route::v3::RouteConfiguration;
use mesh_common::xds::proto::extensions::filters::http::router::v3::Router;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use mesh_common::xds::protobuf::{Any, Duration};
use mesh_control::translate::client::{ClientKind, EnvoyClient};
use mesh_control::translate::{Request, translate};
use mesh_test::certs::{Authority, Certificate, Leaf};
use mesh_test::client::exchange;
use mesh_test::process::Process;
use mesh_test::wait::PATIENCE;
use prost::{Message, Name};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use cases::Case;

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// The files that `mesh-proxy certificate` writes.
fn certificates(folder: &Path) -> Certificate {
    let authority = Authority::new("root").unwrap();
    let uris = ["spiffe://cluster.local/ns/shop/sa/reviews"];
    let leaf = authority.leaf(&Leaf { uris: &uris, ..Leaf::default() }).unwrap();
    let inline = |pem: &str| serde_json::json!({ "inline_string": pem });
    let secret = |name: &str, kind: &str, body: serde_json::Value| {
        let url = ResourceType::Secret.url();
        serde_json::json!({ "resources": [{ "@type": url, "name": name, kind: body }] }).to_string()
    };
    let own = serde_json::json!({
        "certificate_chain": inline(&leaf.pem), "private_key": inline(&leaf.key_pem),
    });
    let roots = serde_json::json!({ "trusted_ca": inline(authority.root_pem()) });
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("envoy-certificate.json", secret("default", "tls_certificate", own));
    write("envoy-roots.json", secret("ROOTCA", "validation_context", roots));
    leaf
}

#[derive(Default)]
struct Collected {
    resources: bootstrap::StaticResources,
    accepted: Vec<&'static str>,
}

impl Collected {
    fn add(&mut self, case: &'static str, kind: ResourceType, any: &Any) {
        let value = any.value.as_slice();
        match kind {
            ResourceType::Cluster => {
                let cluster = Cluster::decode(value).unwrap();
                self.resources.clusters.push(Cluster { name: case.to_owned(), ..cluster });
            }
            ResourceType::Endpoints => {
                let assignment = ClusterLoadAssignment::decode(value).unwrap();
                self.resources.clusters.push(Cluster {
                    name: case.to_owned(),
                    connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
                    load_assignment: Some(assignment),
                    cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(0)),
                    ..Cluster::default()
                });
            }
            ResourceType::Listener => {
                let listener = Listener::decode(value).unwrap();
                self.listener(case, listener);
            }
            ResourceType::Route => {
                let routes = RouteConfiguration::decode(value).unwrap();
                self.listener(case, around(routes));
            }
            ResourceType::Secret | ResourceType::Workload => return,
        }
        self.accepted.push(case);
    }

    /// Each at a port of its own: several cases have the same address.
    fn listener(&mut self, case: &str, listener: Listener) {
        let port = 20_000 + u32::try_from(self.resources.listeners.len()).unwrap();
        let address = SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        };
        let address = Some(Address { address: Some(address::Address::SocketAddress(address)) });
        self.resources.listeners.push(Listener { name: case.to_owned(), address, ..listener });
    }
}

/// A listener with these routes.
fn around(routes: RouteConfiguration) -> Listener {
    let router = HttpFilter {
        name: "router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "routes".to_owned(),
        http_filters: vec![router],
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "http".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    };
    Listener {
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}

fn bootstrap(resources: bootstrap::StaticResources) -> Bootstrap {
    let service = grpc_service::EnvoyGrpc { cluster_name: "control".to_owned(), ..Default::default() };
    let ads = ApiConfigSource {
        api_type: api_config_source::ApiType::DeltaGrpc as i32,
        transport_api_version: ApiVersion::V3 as i32,
        grpc_services: vec![GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(service)),
            ..GrpcService::default()
        }],
        ..ApiConfigSource::default()
    };
    Bootstrap {
        node: Some(Node { id: "test".to_owned(), cluster: "test".to_owned(), ..Node::default() }),
        static_resources: Some(resources),
        dynamic_resources: Some(bootstrap::DynamicResources { ads_config: Some(ads), ..Default::default() }),
        ..Bootstrap::default()
    }
}

#[test]
fn every_golden_translation_is_accepted_by_envoy() -> anyhow::Result<()> {
    let Some(program) = mesh_test::envoy::program()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    certificates(folder.path());
    let certificates = folder.path().to_str().unwrap().to_owned();
    let mut collected = Collected::default();
    for Case { name, kind, resource, world, mut client } in cases::all() {
        let envoy = match client.kind {
            ClientKind::MeshProxy => EnvoyClient::default(),
            ClientKind::Envoy(envoy) => envoy,
            ClientKind::Grpc(_) => continue,
        };
        client.kind = ClientKind::Envoy(EnvoyClient { certificates: certificates.clone(), ..envoy });
        let made = translate(Request { kind, name: &resource }, &client, &world);
        if let (Ok(Some(any)), true) = (made, resource != "*") {
            collected.add(name, kind, &any);
        }
    }
    let control = Cluster {
        name: "control".to_owned(),
        connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(0)),
        ..Cluster::default()
    };
    collected.resources.clusters.push(control);
    let file = folder.path().join("bootstrap.pb");
    std::fs::write(&file, bootstrap(collected.resources).encode_to_vec())?;
    let output = Command::new(program).args(["--mode", "validate", "-c"]).arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let count = collected.accepted.len();
    assert!(count > 45, "only {count} cases give a resource: {:?}", collected.accepted);
    Ok(())
}

/// The server sees the ALPN of each connection: HTTP, then bytes.
#[tokio::test]
async fn what_is_detected_is_announced() -> anyhow::Result<()> {
    let Some(program) = mesh_test::envoy::program()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let own = certificates(folder.path());
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let acceptor = TlsAcceptor::from(own.server_config(&["istio-h2", "istio-http/1.1", "istio"])?);
    let resources = detecting(folder.path(), server.local_addr()?);
    let admin = SocketAddress { address: "127.0.0.1".to_owned(), ..SocketAddress::default() };
    let admin = SocketAddress { port_specifier: Some(socket_address::PortSpecifier::PortValue(0)), ..admin };
    let admin = Address { address: Some(address::Address::SocketAddress(admin)) };
    let bootstrap = Bootstrap {
        node: Some(Node { id: "test".to_owned(), cluster: "test".to_owned(), ..Node::default() }),
        static_resources: Some(resources),
        admin: Some(Admin { address: Some(admin), ..Admin::default() }),
        ..Bootstrap::default()
    };
    let (file, admin_file) = (folder.path().join("bootstrap.pb"), folder.path().join("admin"));
    std::fs::write(&file, bootstrap.encode_to_vec())?;
    let mut arguments: Vec<OsString> = vec!["-c".into(), file.into(), "--admin-address-path".into()];
    arguments.push(admin_file.clone().into());
    arguments.extend(
        ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"].map(OsString::from),
    );
    let mut envoy = Process::start("Envoy", &program, arguments, folder.path().join("log")).await?;
    let (listening, _) = envoy
        .wait(async || {
            let admin = std::fs::read_to_string(&admin_file).ok()?;
            let socket = TcpStream::connect(admin.trim()).await.ok()?;
            let page = exchange(socket, "admin", "/listeners").await.ok()?;
            let text = String::from_utf8(page.body.to_vec()).ok()?;
            text.trim().strip_prefix("detecting::")?.parse::<std::net::SocketAddr>().ok()
        })
        .await?;
    for (first, announced) in
        [(&b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n"[..], "istio-http/1.1"), (b"\x01\x02", "istio")]
    {
        let mut client = TcpStream::connect(listening).await?;
        client.write_all(first).await?;
        let (socket, _) = tokio::time::timeout(PATIENCE, server.accept()).await??;
        let stream = tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await??;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(announced.as_bytes()));
    }
    Ok(())
}

/// The captured listener of a port without declared protocol, at a port of its own, and its cluster.
fn detecting(certificates: &Path, server: std::net::SocketAddr) -> bootstrap::StaticResources {
    let world = cases::destinations::shop();
    let endpoint = world.endpoint_of("reviews-1", 7000);
    let world = world.endpoints("reviews", 7000, vec![endpoint]);
    let certificates = certificates.to_str().unwrap().to_owned();
    let kind = ClientKind::Envoy(EnvoyClient { certificates, ..EnvoyClient::default() });
    let client = world::Client { kind, ..world::Client::new() };
    let made = |kind, name: &str| translate(Request { kind, name }, &client, &world).unwrap().unwrap().value;
    let name = "outbound|7000||reviews.shop.svc.cluster.local";
    let at = |address: std::net::SocketAddr| {
        let address = SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(address.port().into())),
            ..SocketAddress::default()
        };
        Some(Address { address: Some(address::Address::SocketAddress(address)) })
    };
    let mut endpoints = ClusterLoadAssignment::decode(&*made(ResourceType::Endpoints, name)).unwrap();
    let host = &mut endpoints.endpoints[0].lb_endpoints[0].host_identifier;
    let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = host else { panic!("an endpoint") };
    endpoint.address = at(server);
    let cluster = Cluster {
        load_assignment: Some(endpoints),
        eds_cluster_config: None,
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(0)),
        ..Cluster::decode(&*made(ResourceType::Cluster, name)).unwrap()
    };
    let routes = made(ResourceType::Route, "reviews.shop.svc.cluster.local:7000");
    let mut listener = Listener::decode(&*made(ResourceType::Listener, "10.0.3.4_7000")).unwrap();
    // Nobody serves routes here.
    listener.filter_chains[0].filters =
        around(RouteConfiguration::decode(&*routes).unwrap()).filter_chains.remove(0).filters;
    listener.name = "detecting".to_owned();
    (listener.address, listener.bind_to_port) = (at("127.0.0.1:0".parse().unwrap()), None);
    bootstrap::StaticResources {
        listeners: vec![listener],
        clusters: vec![cluster],
        ..bootstrap::StaticResources::default()
    }
}
