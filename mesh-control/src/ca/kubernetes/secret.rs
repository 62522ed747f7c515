//! The authority of a mesh on Kubernetes: an issuer that the user plugged in (Secret `cacerts`), else the mesh's own
//! root (Secret `mesh-ca-root`), made once by create only. What is there but cannot be used is an error with its
//! remedy; it must never be replaced by something new.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use tokio::time::Instant;

use crate::ca::root::{Authority, NewRoot, Pem, Unusable, new_root};
use crate::fault::{Asked, Fault, ask};

/// The Secret of the mesh's own root.
pub const ROOT: &str = "mesh-ca-root";
/// The Secret of an issuer that the user brings, with Istio's keys.
pub const PLUGGED_IN: &str = "cacerts";

const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
/// One request takes no longer.
const REQUEST: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// RBAC rules that were made a moment ago need a moment to be seen.
const PATIENCE_WITH_RULES: Duration = Duration::from_secs(5);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A key of the Secret is missing.
    #[error("{place} has no key {missing:?}; {}", remedy(place))]
    Incomplete {
        /// The Secret.
        place: String,
        /// The missing key.
        missing: &'static str,
    },
    /// A key of the Secret holds something else.
    #[error("{unusable}; {}", remedy(&unusable.place))]
    Unusable {
        /// Which one, and why.
        unusable: Unusable,
    },
    /// A new root could not be made.
    #[error("a new root certificate cannot be made: {0}")]
    Create(#[from] rcgen::Error),
    /// The API server does not give or take it.
    #[error("the root certificate of the mesh can neither be read nor made: {0}")]
    Api(#[from] Fault),
}

impl From<Unusable> for SecretError {
    fn from(unusable: Unusable) -> Self {
        Self::Unusable { unusable }
    }
}

/// What helps against a Secret that cannot be used.
fn remedy(place: &str) -> &'static str {
    if place.contains(PLUGGED_IN) {
        "put the right content there (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem), or delete the Secret \
         to use the mesh's own root"
    } else {
        "restore the Secret from a backup, or delete it to begin with a new root (every workload then needs the new \
         trust bundle)"
    }
}

/// The authority. Two who ask at once get the same one. Waits up to `patience` for an API server that cannot be
/// asked.
///
/// # Errors
/// With one sentence and its remedy, when a Secret cannot be used, or the API server does not give or take it.
pub async fn authority(
    client: &kube::Client,
    namespace: &str,
    patience: Duration,
) -> Result<Authority, SecretError> {
    let secrets = Secrets { api: Api::namespaced(client.clone(), namespace), namespace };
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match secrets.authority().await {
            Err(SecretError::Api(fault)) => fault,
            done => return done,
        };
        let patience = match &error {
            fault if fault.passes() => patience,
            Fault::Forbidden { .. } => patience.min(PATIENCE_WITH_RULES),
            _ => Duration::ZERO,
        };
        if begin.elapsed() + pause > patience {
            return Err(error.into());
        }
        tracing::warn!(%error, "the root certificate cannot be read yet; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Secrets<'a> {
    api: Api<Secret>,
    namespace: &'a str,
}

impl Secrets<'_> {
    async fn authority(&self) -> Result<Authority, SecretError> {
        if let Some(secret) = self.read(PLUGGED_IN).await? {
            let authority = plugged_in(&self.place(PLUGGED_IN), &secret)?;
            tracing::info!(secret = PLUGGED_IN, "certificates are signed by the issuer that was plugged in");
            return Ok(authority);
        }
        loop {
            if let Some(secret) = self.read(ROOT).await? {
                tracing::info!(secret = ROOT, "certificates are signed by the mesh's own root");
                return own_root(&self.place(ROOT), &secret);
            }
            match self.create(&new_root()?).await {
                Ok(made) => {
                    tracing::info!(secret = ROOT, "made a new root");
                    return own_root(&self.place(ROOT), &made);
                }
                // Another replica made it at the same moment: its root is the mesh's.
                Err(Fault::Exists) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    fn place(&self, name: &str) -> String {
        format!("the Secret {}/{name}", self.namespace)
    }

    fn asked<'a>(&'a self, verb: &'static str, name: &'a str) -> Asked<'a> {
        Asked { verb, group: "", resource: "secrets", namespace: self.namespace, name }
    }

    async fn read(&self, name: &str) -> Result<Option<Secret>, Fault> {
        ask(self.asked("get", name), REQUEST, self.api.get_opt(name)).await
    }

    async fn create(&self, root: &NewRoot) -> Result<Secret, Fault> {
        let text = |text: &str| ByteString(text.as_bytes().to_vec());
        let labels =
            [("app.kubernetes.io/managed-by", "mesh-control"), ("app.kubernetes.io/part-of", "mesh")];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(ROOT.to_owned()),
                namespace: Some(self.namespace.to_owned()),
                labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(BTreeMap::from([
                (ROOT_CERTIFICATE.to_owned(), text(&root.certificate)),
                (ROOT_KEY.to_owned(), text(&root.key)),
            ])),
            ..Secret::default()
        };
        ask(self.asked("create", ROOT), REQUEST, self.api.create(&PostParams::default(), &secret)).await
    }
}

fn own_root(place: &str, secret: &Secret) -> Result<Authority, SecretError> {
    let [certificate, key] = fields(place, secret, [ROOT_CERTIFICATE, ROOT_KEY])?;
    Ok(Authority::from_pem(certificate.pem(), key.pem())?)
}

fn plugged_in(place: &str, secret: &Secret) -> Result<Authority, SecretError> {
    let wanted = ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "ca-key.pem"];
    let [issuer, chain, roots, key] = fields(place, secret, wanted)?;
    Ok(Authority::from_plugged_in(issuer.pem(), chain.pem(), roots.pem(), key.pem())?)
}

/// The text of one key of a Secret.
struct Field {
    place: String,
    text: String,
}

impl Field {
    fn pem(&self) -> Pem<'_> {
        Pem { place: &self.place, text: &self.text }
    }
}

fn fields<const N: usize>(
    place: &str,
    secret: &Secret,
    names: [&'static str; N],
) -> Result<[Field; N], SecretError> {
    let data = secret.data.clone().unwrap_or_default();
    if let Some(missing) = names.into_iter().find(|name| data.get(*name).is_none_or(|it| it.0.is_empty())) {
        return Err(SecretError::Incomplete { place: place.to_owned(), missing });
    }
    Ok(names.map(|name| Field {
        place: format!("{place}, key {name}"),
        text: data.get(name).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default(),
    }))
}
