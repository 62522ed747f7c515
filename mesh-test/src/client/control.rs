//! A caller of mesh-control, honest or not: asks for certificates and for configuration with any token and
//! any node.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use mesh_common::ca::IstioCertificateRequest;
use mesh_common::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_common::xds::protobuf::Struct;
use mesh_common::xds::protobuf::Value;
use mesh_common::xds::protobuf::value::Kind;
use tokio_stream::StreamExt as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// The name in mesh-control's own certificate.
pub const CONTROL_NAME: &str = "mesh-control.mesh-system.svc";

/// A caller.
#[derive(Debug, Clone)]
pub struct ControlClient {
    channel: Channel,
    token: Option<String>,
}

/// Who a caller says it is.
#[derive(Debug, Clone, Copy)]
pub struct NodeName<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod.
    pub pod: &'a str,
    /// Its service account.
    pub service_account: &'a str,
    /// Its address.
    pub ip: std::net::IpAddr,
}

impl ControlClient {
    /// Connects over TLS, checking the root and the name.
    ///
    /// # Errors
    /// When nobody good is there.
    pub async fn connect(address: SocketAddr, root_pem: &str, token: Option<&str>) -> Result<Self> {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root_pem)).domain_name(CONTROL_NAME);
        let channel = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?;
        Ok(Self { channel, token: token.map(str::to_owned) })
    }

    /// Asks for a certificate; the answer is the chain.
    ///
    /// # Errors
    /// With the server's refusal.
    pub async fn sign(&self, csr: &str) -> Result<Vec<String>, Status> {
        let request = IstioCertificateRequest { csr: csr.to_owned(), ..IstioCertificateRequest::default() };
        let mut client = IstioCertificateServiceClient::new(self.channel.clone());
        Ok(client.create_certificate(self.request(request)).await?.into_inner().cert_chain)
    }

    /// Opens a stream as `node`, asks for one resource, and returns the first answer.
    ///
    /// # Errors
    /// With the server's refusal.
    pub async fn ask(
        &self,
        node: &NodeName<'_>,
        kind: ResourceType,
        name: &str,
    ) -> Result<DeltaDiscoveryResponse, Status> {
        let request = DeltaDiscoveryRequest {
            node: Some(proto_node(node)),
            type_url: kind.url().to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        // The stream stays open on our side while we wait.
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
        let mut answers = client.delta_aggregated_resources(self.request(requests)).await?.into_inner();
        let answer = tokio::time::timeout(crate::wait::PATIENCE, answers.message()).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer"))??;
        answer.context("the stream ended").map_err(|error| Status::unknown(error.to_string()))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token
            && let Ok(value) = format!("Bearer {token}").parse()
        {
            request.metadata_mut().insert("authorization", value);
        }
        request
    }
}

fn proto_node(name: &NodeName<'_>) -> Node {
    let NodeName { namespace, pod, service_account, ip } = name;
    let ip = ip.to_string();
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields = [
        ("NAMESPACE", *namespace),
        ("NAME", *pod),
        ("SERVICE_ACCOUNT", *service_account),
        ("CLUSTER_ID", "Kubernetes"),
        ("NETWORK", ""),
        ("INSTANCE_IPS", ip.as_str()),
        ("GENERATOR", "mesh-proxy"),
    ];
    Node {
        id: format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{service_account}.{namespace}"),
        metadata: Some(Struct {
            fields: fields.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect(),
        }),
        ..Node::default()
    }
}
