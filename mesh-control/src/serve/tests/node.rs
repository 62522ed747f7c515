//! Whether a node is believed: a table of lies.

use std::collections::HashMap;
use std::time::SystemTime;

use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};

use super::super::node::{NodeError, check, parse};
use super::*;
use crate::ca::caller::{Caller, PeerCertificate};
use crate::ca::token::TokenIdentity;
use crate::model::workload::WorkloadKind;
use crate::translate::client::{EnvoyClient, GrpcClient};

pub(crate) fn pod(name: &str, service_account: &str, ip: &str) -> Workload {
    Workload {
        key: WorkloadKey { cluster: "Kubernetes".into(), namespace: "shop".into(), name: name.into() },
        addresses: vec![ip.parse().unwrap()],
        host_network: false,
        identity: SpiffeId::new("cluster.local", "shop", service_account).ok(),
        service_account: service_account.into(),
        meshed: true,
        uncaptured: Vec::new(),
        workload_name: name.into(),
        workload_kind: WorkloadKind::Pod,
        canonical_service: name.into(),
        canonical_revision: "latest".into(),
        app: String::new(),
        version: String::new(),
        node: "n1".into(),
        zone: "z1".into(),
        region: String::new(),
        labels: BTreeMap::new(),
        live: true,
        leaving: false,
    }
}

pub(super) fn node(id: &str, changes: &[(&str, Option<&str>)]) -> Node {
    let mut fields: HashMap<&str, &str> = HashMap::from([
        ("GENERATOR", "mesh-proxy"),
        ("NAMESPACE", "shop"),
        ("NAME", "web-1"),
        ("SERVICE_ACCOUNT", "web"),
        ("CLUSTER_ID", "Kubernetes"),
        ("NETWORK", ""),
        ("INSTANCE_IPS", "10.0.0.1"),
    ]);
    for (field, value) in changes {
        match value {
            Some(value) => _ = fields.insert(field, value),
            None => _ = fields.remove(field),
        }
    }
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = fields.into_iter().map(|(field, text)| (field.to_owned(), value(text))).collect();
    Node { id: id.to_owned(), metadata: Some(Struct { fields }), ..Node::default() }
}

pub(super) const ID: &str = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local";

fn by_certificate(identity: &str) -> Caller {
    let identity = identity.parse().unwrap();
    Caller::Certificate(PeerCertificate { identity, not_after: SystemTime::UNIX_EPOCH })
}

fn by_token(pod: Workload) -> Caller {
    Caller::Token(TokenIdentity { pod: Arc::new(pod), not_after: SystemTime::UNIX_EPOCH })
}

fn judge(node: Node, caller: &Caller, pod: Option<&Workload>) -> Result<Arc<Client>, NodeError> {
    check(&parse(Some(node))?, caller, pod, &FakeFacts::default().settings)
}

#[test]
fn a_true_node_is_described_by_the_model() {
    let web = pod("web-1", "web", "10.0.0.1");
    for caller in [by_certificate("spiffe://cluster.local/ns/shop/sa/web"), by_token(web.clone())] {
        let client = judge(node(ID, &[]), &caller, Some(&web)).unwrap();
        assert_eq!(
            (client.namespace.as_str(), client.node.as_str(), client.zone.as_str()),
            ("shop", "n1", "z1")
        );
        assert_eq!(client.workload.as_ref(), Some(&web.key));
    }
}

#[test]
fn others_say_with_their_id_who_they_are() {
    let bare = |user_agent: &str, fields: &[(&str, &str)]| {
        let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let fields = fields.iter().map(|(field, text)| ((*field).to_owned(), value(text))).collect();
        let metadata = Some(Struct { fields });
        let node =
            Node { id: ID.to_owned(), user_agent_name: user_agent.to_owned(), metadata, ..Node::default() };
        parse(Some(node)).map(|claims| (claims.namespace, claims.pod, claims.kind))
    };
    let kind = |user_agent: &str, fields: &[(&str, &str)]| bare(user_agent, fields).unwrap().2;
    let me = ("shop".to_owned(), "web-1".to_owned());
    let (namespace, pod, first) = bare("envoy", &[]).unwrap();
    assert_eq!(((namespace, pod), first), (me, ClientKind::Envoy(EnvoyClient::default())));
    let all = [
        ("HTTP_PROXY_PORT", "15002"),
        ("MESH_INBOUND", "10.0.0.1:80=127.0.0.1:8080, [::1]:81=127.0.0.1:81"),
        ("MESH_CERTIFICATES", "/certs"),
    ];
    let ClientKind::Envoy(envoy) = kind("envoy", &all) else { panic!("it is an Envoy") };
    assert_eq!(
        (envoy.proxy_port, envoy.inbound.len(), envoy.certificates.as_str()),
        (Some(15002), 2, "/certs")
    );
    assert!(!envoy.captures() && EnvoyClient::default().captures());
    assert_eq!(kind("gRPC C-core", &[]), ClientKind::Grpc(GrpcClient::default()));
    let provider = Some("mesh".to_owned());
    assert_eq!(
        kind("anything", &[("GENERATOR", "grpc"), ("MESH_CERTIFICATE_PROVIDER", "mesh")]),
        ClientKind::Grpc(GrpcClient { provider })
    );
    assert!(bare("envoy", &[("NAMESPACE", "prod")]).is_err());
    assert!(bare("envoy", &[("INSTANCE_IPS", "10.0.0.2")]).is_err());
    assert!(bare("curl", &[]).is_err());
}

#[test]
fn a_node_that_is_not_clear_is_refused() {
    for (id, changes, expected) in [
        ("", &[][..], "is not sidecar~"),
        ("sidecar~10.0.0.1~web-1.shop", &[], "is not sidecar~"),
        ("router~10.0.0.1~web-1.shop~shop.svc.cluster.local", &[], "is not sidecar~"),
        ("sidecar~nowhere~web-1.shop~shop.svc.cluster.local", &[], "is not sidecar~"),
        ("sidecar~10.0.0.1~web-2.shop~shop.svc.cluster.local", &[], "field NAME disagree"),
        ("sidecar~10.0.0.1~web-1.shop~prod.svc.cluster.local", &[], "field NAMESPACE disagree"),
        ("sidecar~10.0.0.2~web-1.shop~shop.svc.cluster.local", &[], "field INSTANCE_IPS disagree"),
        (ID, &[("GENERATOR", None)], "clients of kind \"\" are not served"),
        (ID, &[("GENERATOR", Some("other"))], "clients of kind \"other\" are not served"),
        (ID, &[("GENERATOR", Some("envoy")), ("HTTP_PROXY_PORT", Some("no"))], "field HTTP_PROXY_PORT"),
        (ID, &[("GENERATOR", Some("envoy")), ("MESH_INBOUND", Some("10.0.0.1:80"))], "field MESH_INBOUND"),
        (ID, &[("GENERATOR", Some("envoy")), ("MESH_CERTIFICATES", Some("here"))], "field MESH_CERTIFICATES"),
        (ID, &[("NAMESPACE", None)], "metadata field NAMESPACE"),
        (ID, &[("SERVICE_ACCOUNT", None)], "metadata field SERVICE_ACCOUNT"),
        (ID, &[("INSTANCE_IPS", Some("10.0.0.1,x"))], "metadata field INSTANCE_IPS"),
    ] {
        let error = parse(Some(node(id, changes))).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(parse(None), Err(NodeError::Absent));
}

#[test]
fn a_node_that_is_not_the_callers_is_refused() {
    let web = pod("web-1", "web", "10.0.0.1");
    let me = by_certificate("spiffe://cluster.local/ns/shop/sa/web");
    let dead = Workload { live: false, ..web.clone() };
    for (changes, caller, pod, expected) in [
        (&[][..], &me, None, "shop/web-1 is not a pod"),
        (&[], &me, Some(&dead), "shop/web-1 is not a pod"),
        (&[], &by_certificate("spiffe://cluster.local/ns/shop/sa/db"), Some(&web), "may not ask for"),
        (&[], &by_certificate("spiffe://other/ns/shop/sa/web"), Some(&web), "may not ask for"),
        (&[], &by_token(super::node::pod("web-2", "web", "10.0.0.2")), Some(&web), "may not ask for"),
        (&[("SERVICE_ACCOUNT", Some("db"))], &me, Some(&web), "SERVICE_ACCOUNT is \"db\""),
        (&[("CLUSTER_ID", Some("other"))], &me, Some(&web), "CLUSTER_ID is \"other\""),
        (&[("NETWORK", Some("other"))], &me, Some(&web), "NETWORK is \"other\""),
        (&[("INSTANCE_IPS", Some("10.0.0.1,10.0.0.9"))], &me, Some(&web), "INSTANCE_IPS is \"10.0.0.9\""),
    ] {
        let error = judge(node(ID, changes), caller, pod).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_envoy_listens_at_its_pods_addresses_only() {
    let web = Workload {
        addresses: ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).to_vec(),
        ..pod("web-1", "web", "10.0.0.1")
    };
    let me = by_certificate("spiffe://cluster.local/ns/shop/sa/web");
    let judge = |binds| {
        let fields = [("GENERATOR", Some("envoy")), ("MESH_INBOUND", Some(binds))];
        judge(node(ID, &fields), &me, Some(&web)).map(drop).map_err(|error| error.to_string())
    };
    for good in [
        "10.0.0.1:80=127.0.0.1:8080",
        "10.0.0.1:80=127.0.0.6:8080,[fd00::1]:80=[::1]:8080",
        "[fd00::1]:80=10.0.0.1:8080",
    ] {
        assert_eq!(judge(good), Ok(()), "{good}");
    }
    for (bad, foreign) in [
        ("10.0.0.2:80=127.0.0.1:8080", "10.0.0.2"),
        ("0.0.0.0:80=127.0.0.1:8080", "0.0.0.0"),
        ("127.0.0.1:80=127.0.0.1:8080", "127.0.0.1"),
        ("10.0.0.1:80=127.0.0.1:8080,[fd00::2]:80=[::1]:8080", "fd00::2"),
        ("10.0.0.1:80=10.0.0.2:8080", "10.0.0.2"),
    ] {
        let reason = format!("the node's MESH_INBOUND is {foreign:?}, but the pod's is \"10.0.0.1,fd00::1\"");
        assert_eq!(judge(bad), Err(reason), "{bad}");
    }
}
