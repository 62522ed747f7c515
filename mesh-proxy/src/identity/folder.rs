//! Key, chain and roots as PEM files for a program that is not ours: Envoy, gRPC. All are replaced at one stroke,
//! so that nobody ever reads a key beside another key's chain.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use mesh_common::trust::{TrustBundle, WorkloadCertificate, pem_of};
use mesh_common::xds::names;
use serde_json::json;

use super::KeepError;

/// The files, links into the present version.
const KEY: &str = "key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
/// The link to the present version: as in Kubernetes' own volumes, its move is what readers watch for.
const PRESENT: &str = "..data";
const VERSION: &str = "..version-";

/// Writes all of it, or leaves what is there.
///
/// # Errors
/// When the file system says no.
pub(super) fn write(
    dir: &Path,
    certificate: &WorkloadCertificate,
    roots: &TrustBundle,
) -> Result<(), KeepError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| KeepError::Io { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail(dir))?;
    let dir = &dir.canonicalize().map_err(fail(dir))?;
    let version = format!("{VERSION}{}-{:08x}", certificate.facts.serial, rand::random::<u32>());
    let folder = dir.join(&version);
    DirBuilder::new().mode(0o700).create(&folder).map_err(fail(&folder))?;
    let chain: String = certificate.chain.iter().map(|one| pem_of("CERTIFICATE", one)).collect();
    let key = certificate.key.to_pem().replace("\r\n", "\n");
    for (name, text) in [(KEY, key), (CHAIN, chain), (ROOTS, roots.to_pem())] {
        let path = folder.join(name);
        create(&path, text.as_bytes()).map_err(fail(&path))?;
    }
    let before = fs::read_link(dir.join(PRESENT)).ok();
    link(&dir.join(PRESENT), Path::new(&version)).map_err(fail(&dir.join(PRESENT)))?;
    for name in [KEY, CHAIN, ROOTS] {
        let (path, target) = (dir.join(name), Path::new(PRESENT).join(name));
        if fs::read_link(&path).ok().as_ref() != Some(&target) {
            link(&path, &target).map_err(fail(&path))?;
        }
    }
    for (name, secret) in [(names::ENVOY_CERTIFICATE_FILE, own(dir)), (names::ENVOY_ROOTS_FILE, trusted(dir))]
    {
        let path = dir.join(name);
        replace(&path, format!("{secret:#}\n").as_bytes()).map_err(fail(&path))?;
    }
    forget(dir, &version, before).map_err(fail(dir))
}

/// Envoy's secret of the workload's own certificate: the names of files, never a key.
fn own(dir: &Path) -> serde_json::Value {
    let body = json!({
        "certificate_chain": { "filename": dir.join(CHAIN) },
        "private_key": { "filename": dir.join(KEY) },
        "watched_directory": { "path": dir },
    });
    secret(names::OWN_CERTIFICATE, "tls_certificate", body)
}

/// Envoy's secret of the roots.
fn trusted(dir: &Path) -> serde_json::Value {
    let body = json!({
        "trusted_ca": { "filename": dir.join(ROOTS) },
        "watched_directory": { "path": dir },
    });
    secret(names::TRUST_BUNDLE, "validation_context", body)
}

fn secret(name: &str, kind: &str, body: serde_json::Value) -> serde_json::Value {
    let secret = json!({ "@type": mesh_common::xds::ResourceType::Secret.url(), "name": name, kind: body });
    json!({ "resources": [secret] })
}

/// Versions that nobody reads any more. The one before stays once: a reader may be in the middle of it.
fn forget(dir: &Path, present: &str, before: Option<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let kept = name == present || before.as_ref().is_some_and(|before| before.as_os_str() == name);
        if !kept && name.to_string_lossy().starts_with(VERSION) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|known| known == content) {
        return Ok(());
    }
    let temporary = temporary(path)?;
    create(&temporary, content)?;
    fs::rename(temporary, path)
}

fn link(path: &Path, target: &Path) -> io::Result<()> {
    let temporary = temporary(path)?;
    symlink(target, &temporary)?;
    fs::rename(temporary, path)
}

/// A name beside `path` that is free.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    match fs::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(name.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::tls::test_mesh::Mesh;

    #[test]
    fn key_chain_and_roots_are_replaced_together() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("made");
        let mesh = Mesh::new("cluster.local");
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        for _ in 0..4 {
            let certificate = mesh.workload("shop", "web");
            write(&dir, &certificate, &mesh.bundle()).unwrap();
            assert_eq!(read(KEY), certificate.key.to_pem().replace("\r\n", "\n"));
            assert!(read(CHAIN).starts_with(&pem_of("CERTIFICATE", &certificate.chain[0])));
            assert_eq!(read(ROOTS), mesh.bundle().to_pem());
            for name in [KEY, CHAIN, ROOTS, names::ENVOY_CERTIFICATE_FILE] {
                let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{name}");
            }
        }
        let versions = fs::read_dir(&dir).unwrap().flatten();
        let versions = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with(VERSION));
        assert_eq!(versions.count(), 2, "the present one and the one before");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 8, "no temporary file is left");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let secret: serde_json::Value = serde_json::from_str(&read(names::ENVOY_CERTIFICATE_FILE)).unwrap();
        let body = &secret["resources"][0]["tls_certificate"];
        let dir = dir.canonicalize().unwrap();
        assert_eq!(body["private_key"], json!({ "filename": dir.join(KEY) }));
        assert!(!secret.to_string().contains("PRIVATE KEY"));
    }
}
