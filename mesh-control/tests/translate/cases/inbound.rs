//! Inbound: each mode with each protocol, and the clusters of the application.

use mesh_common::xds::ResourceType::{Cluster, Listener};
use mesh_control::model::policy::MtlsMode::{Disable, Permissive, Strict};
use mesh_control::model::service::Protocol::{Detect, Http, Http2, Tcp};

use super::super::world::{Client, World, pod_key};
use super::{Case, case};

pub fn cases() -> Vec<Case> {
    let name = "inbound/shop/reviews-1";
    let world = |mode, protocol| World::new().inbound("reviews-1", mode, &[(8080, protocol, mode)]);
    let row = |row, mode, protocol| case(row, Listener, name, &world(mode, protocol));
    let mixed = World::new().inbound("reviews-1", Strict, &[(8080, Http, Permissive), (9090, Tcp, Disable)]);
    let application = &world(Strict, Http2);
    let other = Client { pod: pod_key("reviews-2"), ..Client::new() };
    vec![
        row("inbound-strict-http", Strict, Http),
        row("inbound-strict-tcp", Strict, Tcp),
        row("inbound-strict-detect", Strict, Detect),
        row("inbound-permissive-http", Permissive, Http),
        row("inbound-permissive-tcp", Permissive, Tcp),
        row("inbound-permissive-detect", Permissive, Detect),
        row("inbound-disable-http", Disable, Http),
        row("inbound-disable-tcp", Disable, Tcp),
        row("inbound-disable-detect", Disable, Detect),
        case("inbound-mixed", Listener, name, &mixed),
        case("inbound-unknown-pod", Listener, "inbound/shop/gone", application),
        case("inbound-cluster", Cluster, "inbound|8080||", application),
        case("inbound-cluster-no-such-port", Cluster, "inbound|8081||", application),
        Case { client: other, ..case("inbound-cluster-other-pod", Cluster, "inbound|8080||", application) },
        case("inbound-cluster-passthrough", Cluster, "InboundPassthroughCluster", application),
    ]
}
