//! The way to the control plane: TLS 1.3 to an address, checked against a name that the address has nothing
//! to do with. A token must never go out before the server's certificate has been verified.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::error::in_full;
use crate::trust::{TrustBundle, provider};

/// Limit for TCP, TLS and HTTP/2 together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead connection is noticed after the sum of both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The token that proves who asks cannot be read.
    #[error("the token file {path} cannot be used: {reason}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configured name is not one that a certificate can have.
    #[error("{0:?} is not a server name")]
    ServerName(String),
    /// Our own side of TLS cannot be set up.
    #[error("TLS to the control plane cannot be set up: {0}")]
    Own(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// TCP failed.
    #[error("cannot connect to {address}: {source}")]
    Tcp {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// TLS failed: the server is not the control plane, or refuses this client.
    #[error("TLS with {address} as {name:?} failed: {source}")]
    Tls {
        /// Where.
        address: String,
        /// Expected name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// HTTP/2 failed, or it took too long.
    #[error("cannot reach the control plane: {0}")]
    Transport(String),
}

/// A stream of bytes to the control plane.
pub trait ControlIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ControlIo for T {}

/// A connection to the control plane, and the proof that goes along.
pub struct Dialled {
    /// The bytes.
    pub io: Box<dyn ControlIo>,
    /// The bearer token, where no client certificate proves who asks.
    pub token: Option<String>,
}

/// A dial under way.
pub type Dialling = Pin<Box<dyn Future<Output = Result<Dialled, ConnectError>> + Send>>;
/// How the control plane is dialled.
pub type Dial = Arc<dyn Fn() -> Dialling + Send + Sync>;

/// How TLS to the control plane is configured at this moment.
pub struct ControlTls {
    /// Checks the server against the mesh's roots; offers the workload certificate when there is one.
    pub config: ClientConfig,
    /// Whether there is a workload certificate; without one the token goes along.
    pub has_certificate: bool,
}

/// Where and what the control plane is.
#[derive(Debug, Clone)]
pub struct ControlAddress {
    /// `host:port` to dial.
    pub address: String,
    /// The DNS name that its certificate must carry.
    pub name: String,
    /// The projected service-account token; read again at each connect, because it rotates.
    pub token_file: PathBuf,
}

/// A [`Dial`] over TCP and TLS. `tls` is asked at each connect, so that a new bundle or certificate counts.
pub fn dial_tls<E: std::error::Error + Send + Sync + 'static>(
    control: ControlAddress,
    tls: impl Fn() -> Result<ControlTls, E> + Send + Sync + 'static,
) -> Dial {
    Arc::new(move || {
        let (control, tls) = (control.clone(), tls());
        Box::pin(async move { dial(control, tls.map_err(|error| ConnectError::Own(Box::new(error)))?).await })
    })
}

/// TLS to the control plane for a client that proves itself by its token: TLS 1.3, the server's chain checked against
/// `roots`. Without roots nothing verifies.
///
/// # Errors
/// When the provider lacks what TLS 1.3 needs.
pub fn control_config(roots: Option<&TrustBundle>) -> Result<ClientConfig, rustls::Error> {
    let roots = roots.map_or_else(rustls::RootCertStore::empty, TrustBundle::root_store);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

async fn dial(control: ControlAddress, tls: ControlTls) -> Result<Dialled, ConnectError> {
    let ControlAddress { address, name, token_file } = control;
    let token = if tls.has_certificate { None } else { Some(read_token(token_file).await?) };
    let server = ServerName::try_from(name.clone()).map_err(|_| ConnectError::ServerName(name.clone()))?;
    let tcp = TcpStream::connect(&address)
        .await
        .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
        .map_err(|source| ConnectError::Tcp { address: address.clone(), source })?;
    let mut config = tls.config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let io = TlsConnector::from(Arc::new(config))
        .connect(server, tcp)
        .await
        .map_err(|source| ConnectError::Tls { address, name, source })?;
    Ok(Dialled { io: Box::new(io), token })
}

async fn read_token(path: PathBuf) -> Result<String, ConnectError> {
    let text = tokio::fs::read_to_string(&path)
        .await
        .map_err(|error| ConnectError::Token { path: path.clone(), reason: error.to_string() })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(ConnectError::Token { path, reason: "it is empty".to_owned() });
    }
    Ok(token.to_owned())
}

/// HTTP/2 over a fresh connection, and the token to send with the stream.
///
/// # Errors
/// When there is no connection within ten seconds, or no proof to send.
pub async fn channel(dial: Dial) -> Result<(Channel, Option<String>), ConnectError> {
    let connect = async {
        let Dialled { io, token } = dial().await?;
        let mut io = Some(TokioIo::new(io));
        // One connection for one stream: when it is lost, the task dials again, with what is valid then.
        let connector = tower::service_fn(move |_| {
            let io = io.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { io }
        });
        // TLS is the dialler's business; the scheme only keeps tonic from adding its own.
        let channel = Endpoint::from_static("http://mesh-control")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| ConnectError::Transport(in_full(&error)))?;
        Ok((channel, token))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Transport(format!("no connection within {CONNECT_TIMEOUT:?}"))),
    }
}
