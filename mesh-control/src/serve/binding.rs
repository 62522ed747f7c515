//! What a stream was opened on: a credential that ends, and a pod that is the caller's. Pure. A stream must not
//! outlive either: it is looked at again and again, not only when it is opened.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::node::{self, NodeClaims, NodeError};
use super::recorder::Client;
use crate::ca::caller::Caller;
use crate::model::Settings;
use crate::model::workload::Workload;

/// Why a stream does not stand any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The token or the certificate has ended.
    #[error("the {0} that this stream was opened with has expired; connect again with a new one")]
    Expired(&'static str),
    /// There is another pod of this name.
    #[error("the pod {namespace}/{pod} was replaced by another of this name; connect again with its token")]
    Replaced {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The pod is gone for longer than the grace.
    #[error("{0}; its stream is closed")]
    Gone(NodeError),
    /// The pod is not any more what the node said: another service account, another address.
    #[error("{0}; connect again")]
    Changed(NodeError),
    /// The pod's node or zone is another.
    #[error("the pod's node or zone changed; connect again")]
    Moved,
}

/// What a stream stands on.
#[derive(Debug)]
pub struct Binding {
    caller: Caller,
    uid: Option<String>,
    client: Arc<Client>,
    gone: Option<Instant>,
}

/// What is true at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Present<'a> {
    /// The wall clock, which credentials go by.
    pub wall: SystemTime,
    /// The clock that never jumps.
    pub now: Instant,
    /// The pod.
    pub pod: Option<&'a Workload>,
    /// Its uid, if its manifest has one.
    pub uid: Option<&'a str>,
    /// The settings of the mesh.
    pub settings: &'a Settings,
}

impl Binding {
    /// Checks for the first time.
    ///
    /// # Errors
    /// When the node's claims are not true of the caller's pod.
    pub fn new(caller: Caller, claims: &NodeClaims, present: Present<'_>) -> Result<Self, NodeError> {
        let client = node::check(claims, &caller, present.pod, present.settings)?;
        Ok(Self { caller, uid: present.uid.map(str::to_owned), client, gone: None })
    }

    /// For whom is translated.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Who was proven to ask.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whether it still stands. A pod may be away for `grace`: a manifest that is replaced is gone for a moment.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(
        &mut self,
        claims: &NodeClaims,
        present: Present<'_>,
        grace: Duration,
    ) -> Result<(), Broken> {
        if present.wall >= self.caller.not_after() {
            return Err(Broken::Expired(self.caller.credential()));
        }
        match node::check(claims, &self.caller, present.pod, present.settings) {
            Ok(_) if present.uid != self.uid.as_deref() => {
                Err(Broken::Replaced { namespace: claims.namespace.clone(), pod: claims.pod.clone() })
            }
            Ok(client) if client == self.client => {
                self.gone = None;
                Ok(())
            }
            Ok(_) => Err(Broken::Moved),
            Err(error @ NodeError::NoSuchPod { .. }) => {
                let since = *self.gone.get_or_insert(present.now);
                if present.now - since >= grace { Err(Broken::Gone(error)) } else { Ok(()) }
            }
            Err(error) => Err(Broken::Changed(error)),
        }
    }
}
