//! One HTTP/1.1 exchange over a connection of its own, in plaintext or in TLS that proves nothing: kubelet and
//! Prometheus do not ask applications for a certificate that anybody has signed.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_common::error::in_full;
use mesh_common::trust::provider;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Bytes of a body that are looked at; kubelet takes no more either.
const BODY: usize = 10 * 1024;

/// An answer, and what reads it: dropped together.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) driver: AbortOnDropHandle<()>,
}

/// Sends `request` over `stream`, in TLS if `tls` says so.
///
/// # Errors
/// With the reason, when there is no answer.
pub(super) async fn exchange(
    stream: TcpStream,
    tls: bool,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, String> {
    if !tls {
        return send(stream, request).await;
    }
    let name = server_name(request.uri().host().unwrap_or_default(), &stream)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified))
        .with_no_client_auth();
    config.enable_sni = matches!(name, ServerName::DnsName(_));
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = Box::pin(connecting).await.map_err(|error| format!("TLS: {error}"))?;
    send(stream, request).await
}

fn server_name(host: &str, stream: &TcpStream) -> Result<ServerName<'static>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match (bare.parse::<IpAddr>(), ServerName::try_from(bare.to_owned())) {
        (Err(_), Ok(name)) => Ok(name),
        _ => Ok(ServerName::from(stream.peer_addr().map_err(|error| error.to_string())?.ip())),
    }
}

async fn send<S>(stream: S, mut request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The absolute form is for proxies.
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = target.parse().map_err(|_| format!("{target:?} is not a path"))?;
    let (mut sender, driver) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its error is the request's.
        driver.await.ok();
    }));
    let response = sender.send_request(request).await.map_err(|error| in_full(&error))?;
    Ok(Answer { response, driver })
}

/// The beginning of a body as text.
pub(super) async fn text(body: Incoming) -> String {
    match Limited::new(body, BODY).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(_) => String::new(),
    }
}

/// Takes every certificate. It must never be used for what the mesh itself relies on.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
