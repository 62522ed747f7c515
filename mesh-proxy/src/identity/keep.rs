//! Key and certificate in a file, so that a restarted proxy serves again with the control plane away. Nobody
//! else may read it, and half a file is never seen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{
    PrivateKey, TrustError, WorkloadCertificate, certificate_facts, identity_of, parse_certificates, pem_of,
};

use crate::state_dir;

/// One file, so that key and certificate are replaced together.
const FILE: &str = "identity.pem";
/// Larger than any key with its certificates.
const BOUND: u64 = 1 << 20;
const KEY_END: &str = "-----END PRIVATE KEY-----\n";

/// Why a kept certificate cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file system says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the file holds is not a key with its certificate.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: TrustError,
    },
    /// It is of somebody else: another service account ran here before.
    #[error("{path} holds the certificate of {kept}, this workload is {id}")]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        kept: SpiffeId,
        /// Who we are.
        id: SpiffeId,
    },
}

/// The certificate of an earlier run; `None` when there is none or it ran out.
pub(super) fn load(
    dir: &Path,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<Option<WorkloadCertificate>, KeepError> {
    let path = dir.join(FILE);
    let text = match state_dir::read(&path, BOUND) {
        Ok(Some(text)) => String::from_utf8_lossy(&text).into_owned(),
        Ok(None) => return Ok(None),
        Err(source) => return Err(KeepError::Io { path, source }),
    };
    let kept = parse(&text).map_err(|reason| KeepError::Content { path: path.clone(), reason })?;
    if kept.identity != *id {
        return Err(KeepError::OtherIdentity { path, kept: kept.identity, id: id.clone() });
    }
    Ok(Some(kept).filter(|kept| kept.facts.not_after > now))
}

/// Writes it whole or not at all.
pub(super) fn save(dir: &Path, certificate: &WorkloadCertificate) -> Result<(), KeepError> {
    let path = dir.join(FILE);
    let mut text = certificate.key.to_pem().replace("\r\n", "\n");
    for one in &certificate.chain {
        text.push_str(&pem_of("CERTIFICATE", one));
    }
    state_dir::write(&path, text.as_bytes()).map_err(|source| KeepError::Io { path, source })
}

fn parse(text: &str) -> Result<WorkloadCertificate, TrustError> {
    let (key, chain) =
        text.split_once(KEY_END).ok_or_else(|| TrustError::Key("there is none in it".to_owned()))?;
    let key = Arc::new(PrivateKey::from_pem(&format!("{key}{KEY_END}"))?);
    let chain = parse_certificates(chain)?;
    let (facts, identity) = (certificate_facts(&chain[0])?, identity_of(&chain[0])?);
    Ok(WorkloadCertificate { chain, key, identity, facts })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;
    use crate::tls::test_mesh::Mesh;

    #[test]
    fn what_is_saved_is_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made");
        let mesh = Mesh::new("cluster.local");
        let certificate = mesh.workload("shop", "web");
        let id = certificate.identity.clone();
        let now = SystemTime::now();
        assert!(load(&dir, &id, now).unwrap().is_none());

        save(&dir, &certificate).unwrap();
        save(&dir, &certificate).unwrap();
        let kept = load(&dir, &id, now).unwrap().unwrap();
        assert_eq!((&kept.chain, &kept.facts), (&certificate.chain, &certificate.facts));
        assert_eq!(kept.key.to_pem(), certificate.key.to_pem());
        let mode = fs::metadata(dir.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");

        assert!(load(&dir, &id, now + Duration::from_secs(10 * 86_400)).unwrap().is_none(), "ran out");
        let other = mesh.workload("shop", "db").identity;
        assert!(matches!(load(&dir, &other, now), Err(KeepError::OtherIdentity { .. })));
        fs::write(dir.join(FILE), "half a fi").unwrap();
        assert!(matches!(load(&dir, &id, now), Err(KeepError::Content { .. })));
    }
}
