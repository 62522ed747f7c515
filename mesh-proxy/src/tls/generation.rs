//! One certificate with one trust bundle, and every configuration and session ticket made under them. When
//! either changes the whole generation is dropped, and with it every session that could be resumed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{TrustBundle, WorkloadCertificate};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::TlsError;
use super::verify::{Expected, PeerVerifier};
use super::{client, server};

/// Server configurations kept; a sidecar has as many as it has lists of protocols: two or three.
const SERVERS: usize = 32;

/// Client configurations kept: one for each server name, identity and protocol that is in use.
const CLIENTS: usize = 1024;

/// One certificate with one trust bundle.
#[derive(Debug)]
pub(super) struct Generation {
    provider: Arc<CryptoProvider>,
    certificate: Arc<WorkloadCertificate>,
    roots: Arc<RootCertStore>,
    // Taken once per handshake, for a look-up; whoever changes certificate or bundle makes new ones.
    servers: Mutex<HashMap<Vec<String>, Arc<ServerConfig>>>,
    clients: Mutex<HashMap<ClientKey, Arc<ClientConfig>>>,
}

/// Sessions are resumed only within this key: rustls verifies no certificate when it resumes, so the expected
/// identity must be part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    expected: SpiffeId,
    sni: String,
    alpn: &'static str,
}

impl Generation {
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        certificate: Arc<WorkloadCertificate>,
        bundle: &TrustBundle,
    ) -> Self {
        let roots = Arc::new(bundle.root_store());
        Self { provider, certificate, roots, servers: Mutex::default(), clients: Mutex::default() }
    }

    /// Who may dial us: anybody of our own trust domain.
    pub(super) fn client_expected(&self) -> Expected {
        Expected::TrustDomain(self.certificate.identity.trust_domain().to_owned())
    }

    /// The configuration that offers these protocols.
    pub(super) fn server_config(&self, alpn: &[String]) -> Result<Arc<ServerConfig>, TlsError> {
        cached(&self.servers, SERVERS, alpn.to_vec(), || {
            let verifier = self.verifier(self.client_expected());
            server::config(&self.provider, &self.certificate, verifier, alpn)
        })
    }

    /// The configuration for a server that must be `expected`.
    pub(super) fn client_config(
        &self,
        sni: &str,
        expected: &SpiffeId,
        alpn: &'static str,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let key = ClientKey { expected: expected.clone(), sni: sni.to_owned(), alpn };
        cached(&self.clients, CLIENTS, key, || {
            let verifier = self.verifier(Expected::Identity(expected.clone()));
            client::config(&self.provider, &self.certificate, verifier, alpn)
        })
    }

    fn verifier(&self, expected: Expected) -> Arc<PeerVerifier> {
        let algorithms = self.provider.signature_verification_algorithms;
        Arc::new(PeerVerifier { roots: Arc::clone(&self.roots), algorithms, expected })
    }
}

/// The cached value, or a new one. A full cache starts afresh: that costs full handshakes, never correctness.
fn cached<K: Eq + std::hash::Hash, V>(
    cache: &Mutex<HashMap<K, Arc<V>>>,
    bound: usize,
    key: K,
    make: impl FnOnce() -> Result<V, TlsError>,
) -> Result<Arc<V>, TlsError> {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = cache.get(&key) {
        return Ok(Arc::clone(known));
    }
    let made = Arc::new(make()?);
    if cache.len() >= bound {
        cache.clear();
    }
    cache.insert(key, Arc::clone(&made));
    Ok(made)
}
