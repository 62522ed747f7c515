//! `istio.v1.auth.IstioCertificateService`: the service around [`super::sign`]. It proves the caller, bounds
//! how often it asks, and counts; it decides nothing about certificates.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_common::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_common::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_common::trust;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::caller::{Authenticator, CallerError};
use super::names::service_names;
use super::rate::{Pace, RateLimit};
use super::root::Authority;
use super::sign::{self, SignError, Subject};
use super::token::TokenIdentity;
use crate::model::facts::Facts as _;
use crate::model::store::SharedModel;
use crate::serve::metrics::Metrics;
use crate::serve::tls::PeerInfo;

/// How often a pod may ask: enough for leaves of a minute, and
/// for a proxy that is restarted again and again.
const RATE: Pace = Pace { burst: 30, interval: Duration::from_secs(2) };
/// More pods than this do not ask within a minute.
const RATED_PODS: usize = 100_000;

/// The service.
pub struct CertificateService {
    authority: Arc<Authority>,
    authenticator: Authenticator,
    model: SharedModel,
    namespace: String,
    leaf_lifetime: Duration,
    rate: Mutex<RateLimit>,
    metrics: Arc<Metrics>,
}

impl CertificateService {
    /// Signs with `authority`, for at most `leaf_lifetime`. `namespace` is the mesh's own.
    pub fn new(
        authority: Arc<Authority>,
        authenticator: Authenticator,
        model: SharedModel,
        namespace: String,
        leaf_lifetime: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let rate = Mutex::new(RateLimit::new(RATE, RATED_PODS));
        Self { authority, authenticator, model, namespace, leaf_lifetime, rate, metrics }
    }

    async fn answer(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, (Status, &'static str)> {
        if !self.model.is_synced() {
            return Err((
                Status::unavailable("the configuration has not been read yet; ask again"),
                "not_synced",
            ));
        }
        let (metadata, extensions, message) = request.into_parts();
        let Some(PeerInfo { address, .. }) = extensions.get() else {
            return Err((Status::internal("the connection has no peer"), "caller"));
        };
        let caller = self.authenticator.token(metadata.as_ref(), address.ip()).await;
        let caller = caller.map_err(|error| (refuse(&error, *address), "caller"))?;
        self.check_rate(&caller)?;
        let IstioCertificateRequest { csr, validity_duration, metadata: _ } = message;
        let chain = self.sign(&caller, &csr, validity_duration).map_err(|error| {
            tracing::warn!(%caller, %error, "refused a signing request");
            (status(&error), error.label())
        })?;
        Ok(IstioCertificateResponse { cert_chain: chain })
    }

    fn check_rate(&self, caller: &TokenIdentity) -> Result<(), (Status, &'static str)> {
        let key = format!("{}/{}", caller.pod.key.namespace, caller.pod.key.name);
        let allowed = self.rate.lock().unwrap_or_else(PoisonError::into_inner).allow(&key, Instant::now());
        let sentence = "this pod asks for certificates too often; ask again in some seconds";
        if allowed { Ok(()) } else { Err((Status::resource_exhausted(sentence), "rate")) }
    }

    fn sign(&self, caller: &TokenIdentity, csr: &str, seconds: i64) -> Result<Vec<String>, SignError> {
        let nobody = || SignError::Issuer(format!("{caller} has no valid identity"));
        let identity = caller.pod.identity.clone().ok_or_else(nobody)?;
        let asked = u64::try_from(seconds).map_err(|_| SignError::Lifetime)?;
        let asked = if asked == 0 { self.leaf_lifetime } else { Duration::from_secs(asked) };
        let request = sign::check(csr, &identity)?;
        let dns = service_names(&identity, &self.model.read().settings(), &self.namespace);
        let subject = Subject { identity, dns };
        let lifetime = asked.min(self.leaf_lifetime);
        let chain = self.authority.sign(&request, &subject, lifetime, SystemTime::now())?;
        Ok(chain.iter().map(|der| trust::pem_of("CERTIFICATE", der)).collect())
    }
}

fn refuse(error: &CallerError, peer: SocketAddr) -> Status {
    tracing::warn!(%error, %peer, "refused a signing request");
    error.status(error.to_string())
}

fn status(error: &SignError) -> Status {
    match error {
        SignError::Issuer(_) => Status::internal(error.to_string()),
        SignError::Authority | SignError::ForeignName { .. } => Status::permission_denied(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.answer(request).await {
            Ok(response) => {
                self.metrics.signed("ok");
                Ok(Response::new(response))
            }
            Err((status, result)) => {
                self.metrics.signed(result);
                Err(status)
            }
        }
    }
}
