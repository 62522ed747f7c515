//! On what the mesh stands: a folder, or Kubernetes. The one place that chooses where objects, the authority and
//! the proof of tokens come from; whatever comes after must not know which it is.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use prometheus_client::registry::Registry;

use super::Parts;
use crate::ca::caller::Authenticator;
use crate::ca::kubernetes::review::TokenReviewer;
use crate::ca::kubernetes::secret;
use crate::ca::root::{self, Authority};
use crate::ca::token::TokenVerifier;
use crate::lead::{self, Lead, LeadMetrics};
use crate::model::store::SharedModel;
use crate::options::{Options, Source};
use crate::watch::files::Folder;
use crate::watch::kubernetes;

/// How long to wait for an API server that cannot be asked for the root. Whoever starts the process starts it again.
const AUTHORITY_PATIENCE: Duration = Duration::from_secs(300);

/// Opened, nothing read yet.
pub(super) enum Platform {
    Standalone { folder: Box<Folder>, keys: Keys },
    Kubernetes(Cluster),
}

/// Where a standalone mesh has its keys.
pub(super) struct Keys {
    state: PathBuf,
    /// Chain and key of an issuer in place of the root.
    issuer: Option<(PathBuf, PathBuf)>,
}

/// The API server, and who we are there.
pub(super) struct Cluster {
    client: kubernetes::Client,
    /// Our own namespace.
    namespace: String,
    /// Our own pod.
    pod: String,
    /// What people see of the leader.
    leader: lead::View,
}

/// The source of objects is followed; what else the platform gives.
pub(super) enum Running {
    Standalone(Keys),
    Kubernetes(Cluster),
}

impl Platform {
    /// Opens what the command line names.
    ///
    /// # Errors
    /// When the folder cannot be used, or there is nothing that tells where the API server is.
    pub(super) async fn open(options: &Options) -> anyhow::Result<Self> {
        match options.source() {
            Source::Folder { config, state, issuer } => {
                let folder = Box::new(Folder::open(&config, &state)?);
                Ok(Self::Standalone { folder, keys: Keys { state, issuer } })
            }
            Source::Kubernetes { pod } => {
                let client = kubernetes::connect().await?;
                let (namespace, leader) = (options.namespace.clone(), lead::View::default());
                Ok(Self::Kubernetes(Cluster { client, namespace, pod, leader }))
            }
        }
    }

    /// Pages that only this platform has.
    pub(super) fn pages(&self) -> axum::Router {
        match self {
            Self::Standalone { .. } => axum::Router::new(),
            Self::Kubernetes(Cluster { leader, .. }) => leader.page(),
        }
    }

    /// Who proves callers. Asks nobody yet.
    pub(super) fn authenticator(
        &self,
        model: &SharedModel,
        registry: &mut Registry,
    ) -> anyhow::Result<Authenticator> {
        match self {
            Self::Standalone { keys, .. } => {
                let verifier = TokenVerifier::new(&root::token_signer(&keys.state)?);
                Ok(Authenticator::new(verifier, Arc::new(model.clone())))
            }
            Self::Kubernetes(Cluster { client, .. }) => {
                let reviewer = TokenReviewer::new(client.clone(), registry);
                Ok(Authenticator::new(reviewer, Arc::new(model.clone())))
            }
        }
    }

    /// Begins to follow the source of objects; the model says when it was read completely once.
    pub(super) fn follow(self, parts: &Parts) -> Running {
        let (model, mut guard) = (parts.model.clone(), parts.guard.clone());
        match self {
            Self::Standalone { folder, keys } => {
                parts.run(async move {
                    tokio::select! {
                        () = folder.follow(model) => {}
                        () = guard.draining() => {}
                    }
                });
                Running::Standalone(keys)
            }
            Self::Kubernetes(cluster) => {
                let source = kubernetes::Source {
                    client: cluster.client.clone(),
                    namespace: cluster.namespace.clone(),
                    model,
                    health: parts.watches.clone(),
                    metrics: Arc::clone(&parts.metrics),
                };
                let readiness = parts.readiness.clone();
                parts.run(async move { Box::pin(source.follow(&readiness, guard)).await });
                Running::Kubernetes(cluster)
            }
        }
    }
}

impl Running {
    /// What signs. On Kubernetes it waits for the API server, and tries again.
    ///
    /// # Errors
    /// When there is a root or issuer that cannot be used.
    pub(super) async fn authority(&self, _parts: &Parts) -> anyhow::Result<Arc<Authority>> {
        match self {
            Self::Standalone(Keys { issuer: Some((chain, key)), .. }) => {
                Ok(Arc::new(Authority::from_files(chain, key)?))
            }
            Self::Standalone(Keys { state, issuer: None }) => Ok(Arc::new(Authority::from_state(state)?)),
            Self::Kubernetes(Cluster { client, namespace, .. }) => {
                Ok(Arc::new(secret::authority(client, namespace, AUTHORITY_PATIENCE).await?))
            }
        }
    }

    /// Starts what only one replica does: status, ConfigMaps, the webhook's bundle. Runs beside serving.
    pub(super) fn lead(self, parts: &Parts, authority: &Authority) {
        let Self::Kubernetes(Cluster { client, namespace, pod, leader }) = self else { return };
        let metrics = {
            let mut registry = parts.registry.lock().unwrap_or_else(PoisonError::into_inner);
            LeadMetrics::new(&mut registry)
        };
        let lead = Lead {
            client,
            namespace,
            pod,
            model: parts.model.clone(),
            bundle: authority.bundle().to_pem().into(),
            metrics,
            view: leader,
        };
        parts.run(lead.run(parts.guard.clone()));
    }
}
