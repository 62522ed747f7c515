//! How the proxy introduces itself. What it can do goes along, so that it is never sent what it lacks.

use std::collections::HashMap;
use std::net::IpAddr;

use mesh_common::xds::names::ListenerName;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::config::core::v3::node::UserAgentVersionType;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{ListValue, Struct, Value};

/// What the configuration of this version may hold beyond the plainest forwarding. The control plane reads
/// these words before it sends what an older proxy would have to refuse.
pub const FEATURES: &[&str] = &[
    "on-demand",
    "peer-workloads",
    "protocol-detection",
    "weighted-clusters",
    "tcp-weighted-clusters",
    "header-mutation",
    "url-rewrite",
    "redirect",
    "direct-response",
    "per-try-timeout",
    "upgrade-websocket",
    "access-log",
];

/// Who this proxy is, as its flags say. The control plane believes none of it without a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Service account of the pod.
    pub service_account: String,
    /// Address of the pod.
    pub pod_ip: IpAddr,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// The cluster the pod runs in.
    pub cluster: String,
    /// The network the pod's address belongs to; empty for the only one.
    pub network: String,
    /// The Kubernetes node, empty when unknown.
    pub node: String,
    /// Labels of the pod, if known.
    pub labels: Vec<(String, String)>,
}

impl NodeIdentity {
    /// The listener of this proxy's own pod.
    pub fn inbound_listener(&self) -> ListenerName {
        ListenerName::Inbound { namespace: self.namespace.clone(), pod: self.pod.clone() }
    }

    /// The node of discovery requests.
    pub fn node(&self) -> Node {
        let Self { namespace, pod, service_account, pod_ip, trust_domain, cluster, network, node, labels } =
            self;
        let mut fields: HashMap<String, Value> = [
            ("NAMESPACE", text(namespace)),
            ("NAME", text(pod)),
            ("SERVICE_ACCOUNT", text(service_account)),
            ("CLUSTER_ID", text(cluster)),
            ("NETWORK", text(network)),
            ("NODE_NAME", text(node)),
            ("INSTANCE_IPS", text(&pod_ip.to_string())),
            ("GENERATOR", text("mesh-proxy")),
            ("MESH_FEATURES", list(FEATURES)),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        if !labels.is_empty() {
            let labels = labels.iter().map(|(key, value)| (key.clone(), text(value))).collect();
            fields.insert("LABELS".to_owned(), kind(Kind::StructValue(Struct { fields: labels })));
        }
        Node {
            id: format!("sidecar~{pod_ip}~{pod}.{namespace}~{namespace}.svc.{trust_domain}"),
            cluster: format!("{service_account}.{namespace}"),
            metadata: Some(Struct { fields }),
            user_agent_name: "mesh-proxy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            ..Node::default()
        }
    }
}

fn kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn text(text: &str) -> Value {
    kind(Kind::StringValue(text.to_owned()))
}

fn list(words: &[&str]) -> Value {
    kind(Kind::ListValue(ListValue { values: words.iter().map(|word| text(word)).collect() }))
}
