//! A client of the discovery and certificate services, built on Envoy's own messages.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{self, TrustBundle, WorkloadCertificate};
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};

use crate::form::{Delta, Form};
use crate::world::{Pod, World, pod_of};

pub(crate) const SERVER_NAME: &str = "mesh-control.mesh-system.svc";
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, with a client certificate or without.
pub(crate) async fn connect(
    address: SocketAddr,
    bundle: &TrustBundle,
    name: &'static str,
    certificate: Option<WorkloadCertificate>,
) -> Result<Channel, tonic::transport::Error> {
    connect_from(SocketAddr::from(([127, 0, 0, 1], 0)), address, bundle, name, certificate).await
}

/// A connection from this address.
pub(crate) async fn connect_from(
    from: SocketAddr,
    address: SocketAddr,
    bundle: &TrustBundle,
    name: &'static str,
    certificate: Option<WorkloadCertificate>,
) -> Result<Channel, tonic::transport::Error> {
    let config = rustls::ClientConfig::builder_with_provider(trust::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(bundle.root_store());
    let mut config = match certificate {
        Some(own) => config.with_client_auth_cert(own.chain.clone(), own.key.to_der()).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let dial = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(from)?;
            let socket = socket.connect(address).await?;
            let name = rustls_pki_types::ServerName::try_from(name).map_err(std::io::Error::other)?;
            connector.connect(name, socket).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://mesh-control").connect_with_connector(dial).await
}

/// The identity in the server's certificate.
pub(crate) async fn server_identity(address: SocketAddr, bundle: &TrustBundle) -> SpiffeId {
    let mut config = rustls::ClientConfig::builder_with_provider(trust::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(bundle.root_store())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from(SERVER_NAME).unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    trust::identity_of(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap()
}

/// A pod of a mesh with many.
#[derive(Debug, Clone)]
pub(crate) struct NamedPod {
    pub(crate) name: String,
    pub(crate) account: String,
    pub(crate) ip: String,
}

impl NamedPod {
    pub(crate) fn manifest(&self) -> String {
        let Self { name, account, ip } = self;
        pod_of(name, account, ip, "")
    }
}

pub(crate) fn node(pod: Pod) -> Node {
    let Pod { name, account, ip } = pod;
    node_of(&NamedPod { name: name.to_owned(), account: account.to_owned(), ip: ip.to_owned() })
}

pub(crate) fn node_of(pod: &NamedPod) -> Node {
    let NamedPod { name, account, ip } = pod;
    let fields = [
        ("GENERATOR", "mesh-proxy"),
        ("NAMESPACE", "shop"),
        ("NAME", name),
        ("SERVICE_ACCOUNT", account),
        ("CLUSTER_ID", "Kubernetes"),
        ("NETWORK", ""),
        ("INSTANCE_IPS", ip),
    ];
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = fields.into_iter().map(|(field, text)| (field.to_owned(), value(text))).collect();
    let id = format!("sidecar~{ip}~{name}.shop~shop.svc.cluster.local");
    Node { id, metadata: Some(Struct { fields }), ..Node::default() }
}

/// One stream.
pub(crate) struct Stream<F: Form = Delta> {
    requests: mpsc::Sender<F::Request>,
    responses: Streaming<F::Response>,
    node: Option<Node>,
    form: F,
}

impl<F: Form> Stream<F> {
    /// A stream of a pod with its token, in the form that the caller names.
    pub(crate) async fn of(world: &World, pod: Pod) -> Self {
        Self::with_node(world, pod, node(pod)).await.unwrap()
    }

    /// As [`Stream::of`], of a pod that says of itself what it likes.
    pub(crate) async fn with_node(world: &World, pod: Pod, node: Node) -> Result<Self, Status> {
        let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap();
        Self::through(channel, Some(&world.token(pod)), node).await
    }

    /// A stream over this connection.
    pub(crate) async fn through(channel: Channel, token: Option<&str>, node: Node) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let responses = F::open(channel, request).await?;
        Ok(Self { requests, responses, node: Some(node), form: F::default() })
    }

    /// Sends what was made elsewhere.
    pub(crate) async fn send(&mut self, mut request: F::Request) {
        if let Some(node) = self.node.take() {
            F::introduce(&mut request, node);
        }
        // A stream that was refused takes no requests; the refusal is what the caller reads next.
        self.requests.send(request).await.ok();
    }

    /// Asks for more names of a type, whatever it is.
    pub(crate) async fn ask(&mut self, type_url: &str, names: Vec<String>, nonce: &str) {
        let request = self.form.more(type_url, names, nonce);
        self.send(request).await;
    }

    pub(crate) async fn subscribe(&mut self, kind: ResourceType, names: &[&str]) {
        self.ask(kind.url(), names.iter().map(ToString::to_string).collect(), "").await;
    }

    /// Asks for more and more, as fast as the server reads, and says how the stream ends meanwhile.
    pub(crate) async fn flood(
        &mut self,
        kind: ResourceType,
        nonce: &str,
        batches: impl Iterator<Item = Vec<String>>,
    ) -> Status {
        let (sender, mut node, mut form) = (self.requests.clone(), self.node.take(), F::default());
        let sending = async {
            for names in batches {
                let mut request = form.more(kind.url(), names, nonce);
                if let Some(node) = node.take() {
                    F::introduce(&mut request, node);
                }
                if sender.send(request).await.is_err() {
                    break;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = sending => unreachable!("it stays"),
            status = self.end() => status,
        }
    }

    /// What the server says in the end, whatever comes before.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.try_next().await {
                return status;
            }
        }
    }

    pub(crate) async fn try_next(&mut self) -> Result<F::Response, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing came within {PATIENCE:?}"))?;
        next.ok_or_else(|| Status::cancelled("the server closed the stream without a reason"))
    }

    /// The next response, acknowledged.
    pub(crate) async fn next(&mut self) -> F::Response {
        let response = self.try_next().await.unwrap();
        let request = self.form.acknowledge(&response);
        self.send(request).await;
        response
    }

    /// The next response as text: its type, the names it has, `-` and the names it removes.
    pub(crate) async fn told(&mut self) -> String {
        F::summary(&self.next().await)
    }

    /// What is sent when these names are looked up.
    pub(crate) async fn look_up(&mut self, kind: ResourceType, names: &[&str]) -> F::Response {
        self.subscribe(kind, names).await;
        let response = self.next().await;
        assert_eq!(F::type_url(&response), kind.url());
        response
    }
}

impl Stream {
    /// An incremental stream of a pod with its token.
    pub(crate) async fn open(world: &World, pod: Pod) -> Self {
        Self::of(world, pod).await
    }

    pub(crate) async fn open_at(world: &World, address: SocketAddr, pod: Pod) -> Self {
        let channel = connect(address, &world.bundle(), SERVER_NAME, None).await.unwrap();
        Self::over(channel, Some(&world.token(pod)), node(pod)).await.unwrap()
    }

    /// As [`Stream::open`], when it may be refused.
    pub(crate) async fn try_open(world: &World, pod: Pod) -> Result<Self, Status> {
        Self::with_node(world, pod, node(pod)).await
    }

    /// An incremental stream over this connection.
    pub(crate) async fn over(channel: Channel, token: Option<&str>, node: Node) -> Result<Self, Status> {
        Self::through(channel, token, node).await
    }

    /// Subscribes, holding something from an earlier stream.
    pub(crate) async fn resume(&mut self, kind: ResourceType, names: &[&str], held: HashMap<String, String>) {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            initial_resource_versions: held,
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }
}

pub(crate) fn summary(response: &DeltaDiscoveryResponse) -> String {
    Delta::summary(response)
}

/// Name and version of each resource.
pub(crate) fn versions(response: &DeltaDiscoveryResponse) -> HashMap<String, String> {
    response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
}
