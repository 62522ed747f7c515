//! The key material that outlives the process: root certificate and key, and the key that signs tokens of
//! standalone meshes. Made once, by create only: what is there but cannot be used is an error, and never
//! replaced by something new.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_common::trust::{self, TrustBundle, TrustError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const TOKEN_SIGNER: &str = "token-signer.pem";
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file or folder cannot be used.
    #[error(
        "{path} cannot be used: {reason}; give a folder that this user may write, or a file that this user may read"
    )]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// One half of the root is missing.
    #[error(
        "{present} exists but {missing} does not; restore the missing file, or move the other one away to \
         begin with a new root (every workload then needs the new trust bundle)"
    )]
    HalfThere {
        /// This file exists.
        present: PathBuf,
        /// This one does not.
        missing: PathBuf,
    },
    /// Something in a file is not what it should be.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// A new key or certificate could not be made.
    #[error("a new key or root certificate cannot be made: {0}")]
    Create(#[from] rcgen::Error),
}

/// Something that was read is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct Unusable {
    /// The file, or the key of a Secret.
    pub place: String,
    /// Why.
    pub reason: String,
}

/// PEM text, and where it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pem<'a> {
    pub(super) place: &'a str,
    pub(super) text: &'a str,
}

impl Pem<'_> {
    pub(super) fn unusable(&self, reason: impl ToString) -> Unusable {
        Unusable { place: self.place.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Unusable> {
        trust::parse_certificates(self.text).map_err(|error: TrustError| self.unusable(error))
    }
}

/// What signs: the issuer's key and the certificates from the issuer up to the root.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificate first, the root last.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The first end of validity in the chain.
    pub(super) not_after: SystemTime,
    bundle: TrustBundle,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

impl Authority {
    /// The roots of the mesh.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Uses the root of a state folder; makes it if there is none.
    ///
    /// # Errors
    /// When the folder cannot be used, or holds a root that cannot be used.
    pub fn from_state(folder: &Path) -> Result<Self, RootError> {
        let _lock = lock(folder)?;
        let (cert_path, key_path) = (folder.join(ROOT_CERTIFICATE), folder.join(ROOT_KEY));
        match (exists(&cert_path)?, exists(&key_path)?) {
            (true, true) => {}
            (false, false) => create_root(&cert_path, &key_path)?,
            (true, false) => return Err(RootError::HalfThere { present: cert_path, missing: key_path }),
            (false, true) => return Err(RootError::HalfThere { present: key_path, missing: cert_path }),
        }
        Self::from_files(&cert_path, &key_path)
    }

    /// Uses a chain (issuer first, root last) and the issuer's key.
    ///
    /// # Errors
    /// When they cannot be read, do not fit together, or may not sign.
    pub fn from_files(chain_path: &Path, key_path: &Path) -> Result<Self, RootError> {
        let (chain, key) = (read(chain_path)?, read_key(key_path)?);
        let (chain_place, key_place) = (chain_path.display().to_string(), key_path.display().to_string());
        let chain = Pem { place: &chain_place, text: &chain };
        Ok(Self::from_pem(chain, Pem { place: &key_place, text: &key })?)
    }

    /// As [`Authority::from_files`], from text. The bundle is the last certificate of the chain.
    pub(super) fn from_pem(chain: Pem<'_>, key: Pem<'_>) -> Result<Self, Unusable> {
        let certificates = chain.certificates()?;
        let root = certificates.last().map(|root| trust::pem_of("CERTIFICATE", root)).unwrap_or_default();
        let bundle = TrustBundle::from_pem(&root).map_err(|error| chain.unusable(error))?;
        Self::assemble(certificates, chain, key, bundle)
    }

    /// Uses an issuer with Istio's files: its certificate, the chain from it upwards (with or without the root), the
    /// roots, its key. The bundle is all of `roots`.
    pub(super) fn from_plugged_in(
        issuer: Pem<'_>,
        chain: Pem<'_>,
        roots: Pem<'_>,
        key: Pem<'_>,
    ) -> Result<Self, Unusable> {
        let bundle = TrustBundle::from_pem(roots.text).map_err(|error| roots.unusable(error))?;
        let issuers = issuer.certificates()?;
        let [first] = issuers.as_slice() else {
            return Err(issuer.unusable("it must hold one certificate, the issuer's"));
        };
        let mut certificates = issuers.clone();
        let above = chain.certificates()?.into_iter();
        certificates.extend(above.filter(|der| der != first && !bundle.roots().contains(der)));
        let Some(last) = certificates.last().filter(|last| !bundle.roots().contains(last)) else {
            return Self::assemble(certificates, chain, key, bundle);
        };
        let Some(root) = bundle.roots().iter().find(|root| is_signed_by(last, root)) else {
            return Err(chain
                .unusable("no certificate of root-cert.pem has signed the last certificate of the chain"));
        };
        certificates.push(root.clone());
        Self::assemble(certificates, chain, key, bundle)
    }

    /// Puts a chain (issuer first, root last; read from `chain`) and a key together.
    pub(super) fn assemble(
        certificates: Vec<CertificateDer<'static>>,
        chain: Pem<'_>,
        key: Pem<'_>,
        bundle: TrustBundle,
    ) -> Result<Self, Unusable> {
        let key = KeyPair::from_pem(key.text).map_err(|_| {
            key.unusable("it is not a private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted)")
        })?;
        let not_after = check_chain(&certificates, &key).map_err(|reason| chain.unusable(reason))?;
        let issuer =
            Issuer::from_ca_cert_der(&certificates[0], key).map_err(|error| chain.unusable(error))?;
        Ok(Self { issuer, chain: certificates, not_after, bundle })
    }
}

/// The key that signs and verifies tokens of a standalone mesh; made if there is none.
///
/// # Errors
/// When the folder or the key in it cannot be used.
pub fn token_signer(folder: &Path) -> Result<KeyPair, RootError> {
    let _lock = lock(folder)?;
    let path = folder.join(TOKEN_SIGNER);
    if !exists(&path)? {
        create(&path, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem(), 0o600)?;
    }
    let unusable = |reason: &str| Unusable { place: path.display().to_string(), reason: reason.to_owned() };
    let key = KeyPair::from_pem(&read_key(&path)?)
        .map_err(|_| unusable("it is not a private key in PKCS#8 PEM; restore it or move it away"))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(unusable("tokens are signed with an EC P-256 key, and this is another one").into());
    }
    Ok(key)
}

/// A new root.
pub(super) struct NewRoot {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Makes a root that signs itself.
pub(super) fn new_root() -> Result<NewRoot, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "mesh");
    params.distinguished_name.push(DnType::CommonName, "mesh root");
    params.not_before = (now - Duration::from_secs(120)).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(super::sign::random_serial());
    let certificate = params.self_signed(&key)?;
    Ok(NewRoot { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn create_root(cert_path: &Path, key_path: &Path) -> Result<(), RootError> {
    let NewRoot { certificate, key } = new_root()?;
    create(key_path, &key, 0o600)?;
    create(cert_path, &certificate, 0o644)?;
    tracing::info!(path = %cert_path.display(), "made a new root");
    Ok(())
}

fn is_signed_by(certificate: &CertificateDer<'_>, signer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, signer))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(signer))
    else {
        return false;
    };
    certificate.issuer() == signer.subject()
        && certificate.verify_signature(Some(signer.public_key())).is_ok()
}

/// Checks that the key is the first certificate's, that each is signed by the next, that all may sign and
/// are valid now. Returns when the first of them ends.
fn check_chain(chain: &[CertificateDer<'_>], key: &KeyPair) -> Result<SystemTime, String> {
    let parsed = chain
        .iter()
        .map(|der| {
            X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|e| e.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (Some(issuer), Some(root)) = (parsed.first(), parsed.last()) else {
        return Err("no certificate in it".to_owned());
    };
    if issuer.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err("the first certificate and the private key do not belong together".to_owned());
    }
    for (index, certificate) in parsed.iter().enumerate() {
        let signer = parsed.get(index + 1).unwrap_or(root);
        if certificate.verify_signature(Some(signer.public_key())).is_err() {
            return Err(format!(
                "certificate {index} is not signed by the next one (the last one: by itself)"
            ));
        }
        if !certificate.is_ca() {
            return Err(format!("certificate {index} is not one of a certificate authority"));
        }
        if !certificate.validity().is_valid() {
            return Err(format!("certificate {index} has expired or is not valid yet"));
        }
    }
    let end =
        parsed.iter().map(|certificate| certificate.validity().not_after.timestamp()).min().unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or(0)))
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> RootError + '_ {
    move |reason| RootError::File { path: path.to_owned(), reason }
}

fn read(path: &Path) -> Result<String, RootError> {
    fs::read_to_string(path).map_err(file_error(path))
}

/// Reads a key, and warns when others may read it too.
fn read_key(path: &Path) -> Result<String, RootError> {
    let key = read(path)?;
    let mode = fs::metadata(path).map_err(file_error(path))?.permissions().mode();
    if let Some(fix) = loose(path, mode) {
        tracing::warn!(file = %path.display(), mode = format!("{:o}", mode & 0o777), fix, "others can use this private key");
    }
    Ok(key)
}

/// What to do about a key that its group or everybody may read or write.
fn loose(path: &Path, mode: u32) -> Option<String> {
    (mode & 0o077 != 0).then(|| format!("chmod 600 {}", path.display()))
}

fn exists(path: &Path) -> Result<bool, RootError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(file_error(path)(error)),
    }
}

/// Two processes that start on one folder wait for each other: the second reads what the first made.
fn lock(folder: &Path) -> Result<File, RootError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file_error(folder))?;
    let path = folder.join(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(file_error(&path))?;
    file.lock().map_err(file_error(&path))?;
    Ok(file)
}

/// Writes a file that must not exist yet; it appears whole or not at all.
fn create(path: &Path, text: &str, mode: u32) -> Result<(), RootError> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(file_error(&draft)(error)),
        _ => {}
    }
    let written =
        OpenOptions::new().create_new(true).write(true).mode(mode).open(&draft).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(file_error(&draft))?;
    fs::hard_link(&draft, path).map_err(file_error(path))?;
    fs::remove_file(&draft).map_err(file_error(&draft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_may_use_is_told_with_its_remedy() {
        let path = Path::new("state/root-key.pem");
        for mode in [0o100_640, 0o604, 0o620, 0o602, 0o100_644, 0o777] {
            assert_eq!(loose(path, mode).unwrap(), "chmod 600 state/root-key.pem", "{mode:o}");
        }
        for mode in [0o100_600, 0o400, 0o700] {
            assert_eq!(loose(path, mode), None, "{mode:o}");
        }
    }

    #[test]
    fn a_root_is_made_once_and_read_after() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = Authority::from_state(&state).unwrap();
        let second = Authority::from_state(&state).unwrap();
        assert_eq!(first.bundle(), second.bundle());
        for name in [ROOT_KEY, TOKEN_SIGNER] {
            token_signer(&state).unwrap();
            let mode = fs::metadata(state.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(
            token_signer(&state).unwrap().serialize_pem(),
            token_signer(&state).unwrap().serialize_pem()
        );
    }

    #[test]
    fn half_a_root_is_an_error_and_stays_as_it_is() {
        for missing in [ROOT_CERTIFICATE, ROOT_KEY] {
            let folder = tempfile::tempdir().unwrap();
            Authority::from_state(folder.path()).unwrap();
            fs::remove_file(folder.path().join(missing)).unwrap();
            let error = Authority::from_state(folder.path()).unwrap_err();
            assert!(matches!(error, RootError::HalfThere { .. }), "{error}");
            assert!(!folder.path().join(missing).exists());
        }
    }

    #[test]
    fn what_cannot_be_used_is_never_replaced() {
        for (name, text) in [
            (ROOT_CERTIFICATE, ""),
            (ROOT_CERTIFICATE, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            (ROOT_KEY, "no key"),
            (TOKEN_SIGNER, "no key"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            Authority::from_state(folder.path()).unwrap();
            token_signer(folder.path()).unwrap();
            fs::write(folder.path().join(name), text).unwrap();
            let result =
                Authority::from_state(folder.path()).map(drop).and(token_signer(folder.path()).map(drop));
            let error = result.unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), text);
        }
    }

    #[test]
    fn the_key_of_another_root_is_an_error() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::from_state(one.path()).unwrap();
        Authority::from_state(other.path()).unwrap();
        fs::copy(other.path().join(ROOT_KEY), one.path().join(ROOT_KEY)).unwrap();
        let error = Authority::from_state(one.path()).unwrap_err().to_string();
        assert!(error.contains("do not belong together"), "{error}");
    }

    #[test]
    fn a_plugged_in_intermediate_signs_and_the_root_is_the_bundle() {
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::from_state(folder.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let intermediate = params.signed_by(&key, &root.issuer).unwrap();
        let (chain, key_path) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        fs::write(&chain, intermediate.pem() + &root.bundle().to_pem()).unwrap();
        fs::write(&key_path, key.serialize_pem()).unwrap();
        let authority = Authority::from_files(&chain, &key_path).unwrap();
        assert_eq!(authority.bundle(), root.bundle());
        assert_eq!(authority.chain.len(), 2);

        // The intermediate alone does not reach a root.
        fs::write(&chain, intermediate.pem()).unwrap();
        assert!(Authority::from_files(&chain, &key_path).is_err());
    }
}
