//! Service-account tokens: from what one proves to the pod in the model; and those of a standalone mesh, which have
//! the claims of Kubernetes' projected tokens. A token is good only for the pod it names, and only while that pod
//! lives in the model.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use mesh_common::xds::names::TOKEN_AUDIENCE;
use rcgen::{KeyPair, PublicKeyData as _};
use serde::Deserialize;

use crate::model::WorkloadKey;
use crate::model::store::SharedModel;
use crate::model::workload::Workload;

/// Tokens above this size are refused unread.
pub(super) const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Clocks of whoever minted the token may differ by this much.
const LEEWAY_SECONDS: u64 = 10;
/// Who mints tokens in a standalone mesh.
pub const ISSUER: &str = "mesh";

/// The pods, as far as tokens and streams have to know them.
pub trait Pods: Send + Sync + 'static {
    /// The pod of this name, if it may hold a stream and get a certificate.
    fn live_pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>>;
    /// Its uid, if its manifest has one.
    fn pod_uid(&self, key: &WorkloadKey) -> Option<String>;
}

impl Pods for SharedModel {
    fn live_pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        Self::live_pod(self, namespace, name)
    }

    fn pod_uid(&self, key: &WorkloadKey) -> Option<String> {
        Self::pod_uid(self, key)
    }
}

/// Why a token is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is larger than any real one.
    #[error("the token is larger than {MAX_TOKEN_BYTES} bytes")]
    TooLarge,
    /// Signature, algorithm, time, audience, issuer, form.
    #[error("the token is not good: {0}")]
    Invalid(String),
    /// Its subject and its Kubernetes claims name different things.
    #[error(
        "the token's subject {subject:?} is not the service account {namespace}/{service_account} of its claims"
    )]
    Subject {
        /// The claim `sub`.
        subject: String,
        /// The claim's namespace.
        namespace: String,
        /// The claim's service account.
        service_account: String,
    },
    /// The pod is not there any more, or never was.
    #[error("the token names the pod {namespace}/{pod}, which does not run in this mesh")]
    NoSuchPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The pod runs as somebody else.
    #[error("the token is for the service account {claimed:?}, but the pod runs as {actual:?}")]
    ServiceAccount {
        /// Of the token.
        claimed: String,
        /// Of the pod.
        actual: String,
    },
    /// The pod runs elsewhere.
    #[error("the token is for a pod on the node {claimed:?}, but the pod is on {actual:?}")]
    Node {
        /// Of the token.
        claimed: String,
        /// Of the pod.
        actual: String,
    },
    /// Another pod of the same name.
    #[error("the token is for an earlier pod of this name")]
    Uid,
    /// Whoever could say whose it is does not answer, or not now.
    #[error("whose this token is cannot be found out now, ask again: {0}")]
    Unavailable(String),
    /// The API server knows the pod, and we do not know it yet.
    #[error("the pod {namespace}/{pod} of the token is not known here yet; ask again in some seconds")]
    NotYet {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// Its sender asks too often.
    #[error("tokens come from this address too often; ask again in some seconds")]
    TooOften,
}

impl TokenError {
    /// Whether the same token may be good a moment later, without a change of anything.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::NotYet { .. } | Self::TooOften)
    }

    /// Whether a model that has not heard of the newest pods yet would answer this.
    pub(super) fn may_be_lag(&self) -> bool {
        match self {
            Self::NoSuchPod { .. } | Self::Uid => true,
            Self::Node { actual, .. } => actual.is_empty(),
            _ => false,
        }
    }
}

/// What a token says, once whoever may vouch for it has done so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// Its node, if the token tells.
    pub node: Option<String>,
    /// From when on the token is not taken any more.
    pub not_after: SystemTime,
}

impl Claimed {
    /// The pod that it names, if it lives and is what it says.
    ///
    /// # Errors
    /// When the pod does not live, or is another one by now.
    pub fn bind(&self, pods: &dyn Pods) -> Result<TokenIdentity, TokenError> {
        let Self { namespace, service_account, pod, uid, node, not_after } = self;
        let Some(found) = pods.live_pod(namespace, pod).filter(|found| found.live) else {
            return Err(TokenError::NoSuchPod { namespace: namespace.clone(), pod: pod.clone() });
        };
        if pods.pod_uid(&found.key).is_some_and(|known| known != *uid) {
            return Err(TokenError::Uid);
        }
        if found.service_account != *service_account {
            let actual = found.service_account.clone();
            return Err(TokenError::ServiceAccount { claimed: service_account.clone(), actual });
        }
        if let Some(node) = node.as_ref().filter(|node| **node != found.node) {
            return Err(TokenError::Node { claimed: node.clone(), actual: found.node.clone() });
        }
        Ok(TokenIdentity { pod: found, not_after: *not_after })
    }
}

/// The verified content of a token.
#[derive(Debug, Clone)]
pub struct TokenIdentity {
    /// The pod, as the model knows it.
    pub pod: Arc<Workload>,
    /// From when on the token is not taken any more.
    pub not_after: SystemTime,
}

impl fmt::Display for TokenIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, account) = (&self.pod.key, &self.pod.service_account);
        write!(f, "the pod {}/{} with service account {account}", key.namespace, key.name)
    }
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    /// Required by the validation, which names it if it is missing.
    #[serde(default)]
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Debug, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    pod: Reference,
    serviceaccount: Reference,
    /// Kubernetes says where the pod runs since 1.30.
    node: Option<Reference>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    name: String,
    #[serde(default)]
    uid: String,
}

/// Verifies tokens.
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
}

impl TokenVerifier {
    /// For tokens signed by this key.
    pub fn new(signer: &KeyPair) -> Self {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[TOKEN_AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        Self { key: DecodingKey::from_ec_der(signer.der_bytes()), validation }
    }

    /// The pod that a token proves.
    ///
    /// # Errors
    /// When the token is not good, or its pod does not live, or is another one by now.
    pub fn verify(&self, token: &str, pods: &dyn Pods) -> Result<TokenIdentity, TokenError> {
        self.claimed(token)?.bind(pods)
    }

    fn claimed(&self, token: &str) -> Result<Claimed, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        let Claims { sub, exp, kubernetes } =
            jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
                .map_err(|error| TokenError::Invalid(describe(&error)))?
                .claims;
        let KubernetesClaims { namespace, pod, serviceaccount, node } = kubernetes;
        let not_after = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(exp.saturating_add(LEEWAY_SECONDS)))
            .ok_or_else(|| TokenError::Invalid("its exp is not a time".to_owned()))?;
        if sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
            return Err(TokenError::Subject {
                subject: sub,
                namespace,
                service_account: serviceaccount.name,
            });
        }
        Ok(Claimed {
            namespace,
            service_account: serviceaccount.name,
            pod: pod.name,
            uid: pod.uid,
            node: node.map(|node| node.name),
            not_after,
        })
    }
}

fn describe(error: &jsonwebtoken::errors::Error) -> String {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::ExpiredSignature => "it has expired".to_owned(),
        ErrorKind::ImmatureSignature => "it is not valid yet".to_owned(),
        ErrorKind::InvalidAudience => format!("its audience is not {TOKEN_AUDIENCE}"),
        ErrorKind::InvalidIssuer => format!("its issuer is not {ISSUER}"),
        ErrorKind::InvalidSignature => "its signature is not this mesh's".to_owned(),
        ErrorKind::InvalidAlgorithm => "its algorithm is not ES256".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("it has no {claim}"),
        _ => "it cannot be read".to_owned(),
    }
}
