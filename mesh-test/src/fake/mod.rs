//! A mesh-control that says whatever a test wants: any certificate, any resource. And the one sidecar that
//! listens to it.

pub mod resources;
mod sidecar;
mod stream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use mesh_common::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_common::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_common::xds::protobuf::Any;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::certs::{Authority, Certificate};

pub use sidecar::LoneSidecar;

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct FakeControl {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

/// A resource that the proxy refused: type, and the reason in its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The type.
    pub type_url: String,
    /// The reason.
    pub reason: String,
}

#[derive(Debug)]
struct Shared {
    authority: Authority,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// By type URL and name, with a version.
    resources: BTreeMap<(String, String), (u64, Any)>,
    version: u64,
    nacks: Vec<Nack>,
    /// Requests of any kind that reached us, so a caller that should not trust us can be convicted.
    calls: u64,
}

impl FakeControl {
    /// Starts it with this certificate as its own; `authority` signs what callers ask to be signed.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(authority: Authority, own: &Certificate) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { authority, state: Mutex::default(), changed: watch::Sender::new(0) });
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(&own.pem, &own.key_pem));
        let router = Server::builder()
            .tls_config(tls)?
            .add_service(IstioCertificateServiceServer::new(Ca(Arc::clone(&shared))))
            .add_service(AggregatedDiscoveryServiceServer::new(stream::Ads(Arc::clone(&shared))));
        let mut task = JoinSet::new();
        task.spawn(async move {
            // It serves until it is dropped; callers that break off are not its concern.
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap_or_default();
        });
        Ok(Self { address, shared, _task: task })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves this resource from now on, and sends it to whoever holds the name.
    pub fn set(&self, kind: ResourceType, name: &str, resource: Any) {
        let version = {
            let mut state = self.shared.lock();
            state.version += 1;
            let version = state.version;
            state.resources.insert((kind.url().to_owned(), name.to_owned()), (version, resource));
            version
        };
        self.shared.changed.send_replace(version);
    }

    /// What was refused so far.
    pub fn nacks(&self) -> Vec<Nack> {
        self.shared.lock().nacks.clone()
    }

    /// How many calls of any kind got through.
    pub fn calls(&self) -> u64 {
        self.shared.lock().calls
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ca(Arc<Shared>);

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.0.lock().calls += 1;
        let leaf = self.0.authority.sign(&request.into_inner().csr);
        let leaf = leaf.map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        let root = self.0.authority.root_pem().to_owned();
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf, root] }))
    }
}
