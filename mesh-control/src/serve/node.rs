//! Who a stream says it is, and whether that is true: the node of the first request against the caller's
//! proven identity and the pods of the model. It must never believe a word of the node that the model does
//! not confirm.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::protobuf::Value;
use mesh_common::xds::protobuf::value::Kind;

use super::recorder::Client;
use crate::ca::caller::Caller;
use crate::model::Settings;
use crate::model::workload::Workload;
use crate::translate::client::{Bind, ClientKind, EnvoyClient, GrpcClient};

/// The kinds of clients, as `GENERATOR` names them.
const KINDS: &str = "mesh-proxy, envoy or grpc";
/// No id and no field of the metadata that is read is longer than this, in bytes.
const MAX_TEXT: usize = 1024;

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
    /// What it is.
    pub kind: ClientKind,
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
    #[error(
        "the node's metadata field {0} is missing or has another form; texts have at most {MAX_TEXT} bytes"
    )]
    Metadata(&'static str),
    /// Id and metadata say different things.
    #[error("the node's id and its metadata field {0} disagree")]
    Disagrees(&'static str),
    /// Another kind of client.
    #[error("clients of kind {0:?} are not served; GENERATOR must be {KINDS}")]
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
        user_agent_name,
        extensions: _,
        client_features: _,
        listening_addresses: _,
        user_agent_version_type: _,
    } = node.ok_or(NodeError::Absent)?;
    let fields = metadata.map(|metadata| metadata.fields).unwrap_or_default();
    let fields = Fields(&fields);
    let kind = kind(&fields, &user_agent_name)?;
    let own = kind == ClientKind::MeshProxy;
    let from_id = parse_id(&id)?;
    // Our own proxy says everything twice; others have only the id to say it.
    let agrees = |field: &'static str, said: &str| match fields.text(field)? {
        Some(text) if text == said => Ok(()),
        Some(_) => Err(NodeError::Disagrees(field)),
        None if own => Err(NodeError::Metadata(field)),
        None => Ok(()),
    };
    agrees("NAMESPACE", from_id.namespace)?;
    agrees("NAME", from_id.pod)?;
    let ips = match fields.text("INSTANCE_IPS")? {
        None if own => return Err(NodeError::Metadata("INSTANCE_IPS")),
        None => vec![from_id.ip],
        Some(text) => text
            .split(',')
            .map(|ip| ip.trim().parse().map_err(|_| NodeError::Metadata("INSTANCE_IPS")))
            .collect::<Result<Vec<IpAddr>, _>>()?,
    };
    if !ips.contains(&from_id.ip) {
        return Err(NodeError::Disagrees("INSTANCE_IPS"));
    }
    let service_account = fields.text("SERVICE_ACCOUNT")?;
    if own && service_account.is_none() {
        return Err(NodeError::Metadata("SERVICE_ACCOUNT"));
    }
    Ok(NodeClaims {
        namespace: from_id.namespace.to_owned(),
        pod: from_id.pod.to_owned(),
        service_account: service_account.unwrap_or_default().to_owned(),
        cluster: fields.text("CLUSTER_ID")?.unwrap_or_default().to_owned(),
        network: fields.text("NETWORK")?.map(str::to_owned),
        ips,
        features: fields.0.get("MESH_FEATURES").map(features).unwrap_or_default(),
        kind,
        id,
    })
}

/// The metadata of a node.
struct Fields<'a>(&'a HashMap<String, Value>);

impl Fields<'_> {
    fn text(&self, field: &'static str) -> Result<Option<&str>, NodeError> {
        match self.0.get(field).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) if text.len() <= MAX_TEXT => Ok(Some(text)),
            None => Ok(None),
            Some(_) => Err(NodeError::Metadata(field)),
        }
    }
}

fn kind(fields: &Fields<'_>, user_agent: &str) -> Result<ClientKind, NodeError> {
    match fields.text("GENERATOR")? {
        Some("mesh-proxy") => Ok(ClientKind::MeshProxy),
        Some("envoy") => envoy(fields),
        Some("grpc") => grpc(fields),
        Some(other) => Err(NodeError::ClientKind(other.to_owned())),
        None if user_agent == "envoy" => envoy(fields),
        None if user_agent.starts_with("gRPC") => grpc(fields),
        None => Err(NodeError::ClientKind(user_agent.to_owned())),
    }
}

/// Where the ports are named that a pod listens on without capture.
const BINDS: &str = "MESH_INBOUND";
/// Ports that a pod may name; each is a listener and a cluster.
const MAX_BINDS: usize = 64;

fn envoy(fields: &Fields<'_>) -> Result<ClientKind, NodeError> {
    let default = EnvoyClient::default();
    let proxy_port = fields
        .text("HTTP_PROXY_PORT")?
        .map(|port| port.parse().ok().filter(|&port| port > 0).ok_or(NodeError::Metadata("HTTP_PROXY_PORT")));
    let bind = |text: &str| {
        let (listen, app) = text.trim().split_once('=')?;
        Some(Bind { listen: listen.parse().ok()?, app: app.parse().ok()? })
    };
    let binds = fields.text(BINDS)?.into_iter().flat_map(|text| text.split(','));
    if binds.clone().count() > MAX_BINDS {
        return Err(NodeError::Metadata(BINDS));
    }
    let certificates = fields.text("MESH_CERTIFICATES")?.map_or(default.certificates, str::to_owned);
    if !certificates.starts_with('/') {
        return Err(NodeError::Metadata("MESH_CERTIFICATES"));
    }
    Ok(ClientKind::Envoy(EnvoyClient {
        certificates,
        proxy_port: proxy_port.transpose()?,
        inbound: binds
            .map(|text| bind(text).ok_or(NodeError::Metadata(BINDS)))
            .collect::<Result<Vec<_>, _>>()?,
    }))
}

fn grpc(fields: &Fields<'_>) -> Result<ClientKind, NodeError> {
    let provider = fields.text("MESH_CERTIFICATE_PROVIDER")?.map(str::to_owned);
    Ok(ClientKind::Grpc(GrpcClient { provider }))
}

/// What a node id says.
struct Id<'a> {
    ip: IpAddr,
    pod: &'a str,
    namespace: &'a str,
}

fn parse_id(id: &str) -> Result<Id<'_>, NodeError> {
    let invalid = || NodeError::Id(id.to_owned());
    if id.len() > MAX_TEXT {
        return Err(invalid());
    }
    let parts: Vec<&str> = id.split('~').collect();
    let ["sidecar", ip, name, domain] = parts.as_slice() else { return Err(invalid()) };
    // A pod's name may hold dots, a namespace's not.
    let (pod, namespace) = name.rsplit_once('.').ok_or_else(invalid)?;
    if pod.is_empty() || namespace.is_empty() {
        return Err(invalid());
    }
    if !domain.strip_prefix(namespace).is_some_and(|rest| rest.starts_with(".svc.")) {
        return Err(NodeError::Disagrees("NAMESPACE"));
    }
    Ok(Id { ip: ip.parse().map_err(|_| invalid())?, pod, namespace })
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
    if !claims.service_account.is_empty() && claims.service_account != pod.service_account {
        return differs("SERVICE_ACCOUNT", &claims.service_account, &pod.service_account);
    }
    if !claims.cluster.is_empty() && claims.cluster != settings.cluster {
        return differs("CLUSTER_ID", &claims.cluster, &settings.cluster);
    }
    if let Some(network) = claims.network.as_ref().filter(|network| **network != settings.network) {
        return differs("NETWORK", network, &settings.network);
    }
    // The kubelet tells a pod its address before it tells the API server: until then there is nothing to compare. The
    // stream's binding is checked again and again.
    let known = !pod.addresses.is_empty();
    let addresses = || pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some(foreign) = claims.ips.iter().find(|ip| known && !pod.addresses.contains(ip)) {
        return differs("INSTANCE_IPS", &foreign.to_string(), &addresses());
    }
    if let Some(foreign) = foreign_bind(&claims.kind, pod).filter(|_| known) {
        return differs(BINDS, &foreign.to_string(), &addresses());
    }
    Ok(Arc::new(Client {
        namespace: pod.key.namespace.clone(),
        workload: Some(pod.key.clone()),
        node: pod.node.clone(),
        zone: pod.zone.clone(),
        kind: claims.kind.clone(),
    }))
}

/// An address that is not the pod's: it listens on its own, and its application is behind loopback or these.
fn foreign_bind(kind: &ClientKind, pod: &Workload) -> Option<IpAddr> {
    let ClientKind::Envoy(envoy) = kind else { return None };
    let own = |ip: &IpAddr| pod.addresses.contains(ip);
    envoy.inbound.iter().find_map(|bind| {
        let (listen, app) = (bind.listen.ip(), bind.app.ip());
        (!own(&listen)).then_some(listen).or((!app.is_loopback() && !own(&app)).then_some(app))
    })
}
