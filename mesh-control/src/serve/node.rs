//! Who a stream says it is, and whether that is true: the node of the first request against the caller's
//! proven identity and the pods of the model. It must never believe a word of the node that the model does
//! not confirm.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::protobuf::Value;
use mesh_common::xds::protobuf::value::Kind;

use super::recorder::Client;
use crate::ca::caller::Caller;
use crate::model::Settings;
use crate::model::workload::Workload;

/// What `GENERATOR` says for our own proxy, the only client that is served on demand.
const GENERATOR: &str = "mesh-proxy";

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeClaims {
    /// The node id, as it stands.
    pub id: String,
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its service account.
    pub service_account: String,
    /// Its cluster, empty for ours.
    pub cluster: String,
    /// Its network.
    pub network: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// What it can do beyond the first version.
    pub features: Vec<String>,
}

/// Why a node is refused. The first word is the label of the metric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The first request has no node.
    #[error("the first request of the stream carries no node")]
    Absent,
    /// Its id has another form.
    #[error("the node id {0:?} is not sidecar~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>")]
    Id(String),
    /// A field of the metadata is missing or has another form.
    #[error("the node's metadata field {0} is missing or is not text")]
    Metadata(&'static str),
    /// Id and metadata say different things.
    #[error("the node's id and its metadata field {0} disagree")]
    Disagrees(&'static str),
    /// Another kind of client.
    #[error("clients of kind {0:?} are not served yet; GENERATOR must be {GENERATOR}")]
    ClientKind(String),
    /// The model knows no such pod.
    #[error("{namespace}/{pod} is not a pod that runs in this mesh")]
    NoSuchPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The caller is somebody else.
    #[error("the caller is {caller}, and may not ask for {namespace}/{pod}, which runs as {owner}")]
    NotTheCaller {
        /// Who asks.
        caller: String,
        /// The pod's namespace.
        namespace: String,
        /// The pod.
        pod: String,
        /// Who may ask.
        owner: String,
    },
    /// Something that the pod is not.
    #[error("the node's {field} is {claimed:?}, but the pod's is {actual:?}")]
    Differs {
        /// Of the node.
        field: &'static str,
        /// As the node has it.
        claimed: String,
        /// As the model has it.
        actual: String,
    },
}

impl NodeError {
    /// For the metric of refused streams.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Absent | Self::Id(_) | Self::Metadata(_) | Self::Disagrees(_) => "bad_node",
            Self::ClientKind(_) => "client_kind",
            Self::NoSuchPod { .. } => "no_such_pod",
            Self::NotTheCaller { .. } => "not_the_caller",
            Self::Differs { .. } => "differs",
        }
    }
}

/// Reads the node of a first request.
///
/// # Errors
/// When it does not say clearly who asks.
pub fn parse(node: Option<Node>) -> Result<NodeClaims, NodeError> {
    #[allow(deprecated)] // to be named, not to be used
    let Node {
        id,
        // Istio's proxies put `<app>.<namespace>` here; identity has its own fields.
        cluster: _,
        metadata,
        dynamic_parameters: _,
        // The model knows the pod's locality; what the client says does not matter.
        locality: _,
        user_agent_name: _,
        extensions: _,
        client_features: _,
        listening_addresses: _,
        user_agent_version_type: _,
    } = node.ok_or(NodeError::Absent)?;
    let fields = metadata.map(|metadata| metadata.fields).unwrap_or_default();
    let text = |field: &'static str| match fields.get(field).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => Ok(Some(text.clone())),
        None => Ok(None),
        Some(_) => Err(NodeError::Metadata(field)),
    };
    let required = |field: &'static str| text(field)?.ok_or(NodeError::Metadata(field));
    match text("GENERATOR")? {
        Some(kind) if kind == GENERATOR => {}
        other => return Err(NodeError::ClientKind(other.unwrap_or_else(|| "envoy".to_owned()))),
    }
    let (namespace, pod) = (required("NAMESPACE")?, required("NAME")?);
    let ip = id_address(&id, &namespace, &pod)?;
    let ips = required("INSTANCE_IPS")?
        .split(',')
        .map(|ip| ip.trim().parse().map_err(|_| NodeError::Metadata("INSTANCE_IPS")))
        .collect::<Result<Vec<IpAddr>, _>>()?;
    if !ips.contains(&ip) {
        return Err(NodeError::Disagrees("INSTANCE_IPS"));
    }
    Ok(NodeClaims {
        namespace,
        pod,
        service_account: required("SERVICE_ACCOUNT")?,
        cluster: text("CLUSTER_ID")?.unwrap_or_default(),
        network: text("NETWORK")?,
        ips,
        features: fields.get("MESH_FEATURES").map(features).unwrap_or_default(),
        id,
    })
}

fn id_address(id: &str, namespace: &str, pod: &str) -> Result<IpAddr, NodeError> {
    let invalid = || NodeError::Id(id.to_owned());
    let parts: Vec<&str> = id.split('~').collect();
    let ["sidecar", ip, name, domain] = parts.as_slice() else { return Err(invalid()) };
    if *name != format!("{pod}.{namespace}") {
        return Err(NodeError::Disagrees("NAME"));
    }
    if !domain.starts_with(&format!("{namespace}.svc.")) {
        return Err(NodeError::Disagrees("NAMESPACE"));
    }
    ip.parse().map_err(|_| invalid())
}

fn features(value: &Value) -> Vec<String> {
    let Some(Kind::ListValue(list)) = &value.kind else { return Vec::new() };
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) if text.len() <= 64 => Some(text.clone()),
        _ => None,
    };
    list.values.iter().filter_map(text).take(64).collect()
}

/// Checks a node's claims: the pod must live, be the caller's, and have what the node says it has. Returns
/// the client, described by the model only.
///
/// # Errors
/// With what does not fit.
pub fn check(
    claims: &NodeClaims,
    caller: &Caller,
    pod: Option<&Workload>,
    settings: &Settings,
) -> Result<Arc<Client>, NodeError> {
    let (namespace, name) = (claims.namespace.clone(), claims.pod.clone());
    let Some(pod) = pod.filter(|pod| pod.live) else {
        return Err(NodeError::NoSuchPod { namespace, pod: name });
    };
    if !caller.is(pod) {
        let owner = format!("{}/{}", pod.key.namespace, pod.service_account);
        return Err(NodeError::NotTheCaller { caller: caller.to_string(), namespace, pod: name, owner });
    }
    let differs = |field, claimed: &str, actual: &str| {
        Err(NodeError::Differs { field, claimed: claimed.to_owned(), actual: actual.to_owned() })
    };
    if claims.service_account != pod.service_account {
        return differs("SERVICE_ACCOUNT", &claims.service_account, &pod.service_account);
    }
    if !claims.cluster.is_empty() && claims.cluster != settings.cluster {
        return differs("CLUSTER_ID", &claims.cluster, &settings.cluster);
    }
    if let Some(network) = claims.network.as_ref().filter(|network| **network != settings.network) {
        return differs("NETWORK", network, &settings.network);
    }
    if let Some(foreign) = claims.ips.iter().find(|ip| !pod.addresses.contains(ip)) {
        let actual: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        return differs("INSTANCE_IPS", &foreign.to_string(), &actual.join(","));
    }
    Ok(Arc::new(Client {
        namespace: pod.key.namespace.clone(),
        workload: Some(pod.key.clone()),
        node: pod.node.clone(),
        zone: pod.zone.clone(),
    }))
}
