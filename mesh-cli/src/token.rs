//! Mints tokens with the claims of a projected service-account token, signed by the key that mesh-control
//! made at its first start. It never makes that key: whoever mints must not decide whom the mesh believes.

use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use crate::options::TokenOptions;
use crate::output::Output;

/// Clocks may differ by so much.
const LEEWAY_SECONDS: i64 = 10;

/// Why no token was minted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The key is not there.
    #[error("cannot read {path} ({reason}); start mesh-control with this --state-dir once, it makes the key")]
    NoKey { path: PathBuf, reason: std::io::Error },
    /// The key is no key.
    #[error("{path} is not an EC P-256 private key in PKCS#8 PEM ({reason}); restore it from a backup")]
    BadKey { path: PathBuf, reason: String },
    /// The claims could not be signed.
    #[error("the token could not be signed: {0}")]
    Sign(String),
    /// A lifetime beyond what a date can say.
    #[error("a lifetime of {0} seconds is too long; 24h is a good one")]
    Lifetime(u64),
}

/// Whom a token speaks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) pod_uid: &'a str,
    pub(crate) service_account: &'a str,
}

/// `meshctl token`.
pub(crate) fn run(options: &TokenOptions, out: &mut Output) -> Result<(), TokenError> {
    let subject = Subject {
        namespace: &options.namespace,
        pod: &options.pod,
        pod_uid: &options.pod_uid,
        service_account: &options.service_account,
    };
    let now = jiff::Timestamp::now().as_second();
    let lifetime = options.lifetime.as_secs();
    let token = mint(&options.state_dir, subject, &options.audience, now, lifetime)?;
    if out.is_json() {
        out.json(&json!({ "token": token, "expires": now.saturating_add_unsigned(lifetime) }));
    } else {
        out.text(&format!("{token}\n"));
    }
    Ok(())
}

/// Signs a token for `subject`, good from `now` (seconds) for `lifetime` (seconds).
pub(crate) fn mint(
    state_dir: &Path,
    subject: Subject<'_>,
    audience: &str,
    now: i64,
    lifetime: u64,
) -> Result<String, TokenError> {
    let path = state_dir.join("token-signer.pem");
    let pem = std::fs::read(&path).map_err(|reason| TokenError::NoKey { path: path.clone(), reason })?;
    let key = EncodingKey::from_ec_pem(&pem)
        .map_err(|reason| TokenError::BadKey { path, reason: reason.to_string() })?;
    let expires = now.checked_add_unsigned(lifetime).ok_or(TokenError::Lifetime(lifetime))?;
    let Subject { namespace, pod, pod_uid, service_account } = subject;
    let claims = json!({
        "iss": "mesh",
        "aud": [audience],
        "iat": now,
        "nbf": now - LEEWAY_SECONDS,
        "exp": expires,
        "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        "kubernetes.io": {
            "namespace": namespace,
            "pod": { "name": pod, "uid": pod_uid },
            "serviceaccount": { "name": service_account, "uid": "" },
        },
    });
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key)
        .map_err(|error| TokenError::Sign(error.to_string()))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::*;

    const SUBJECT: Subject<'_> =
        Subject { namespace: "shop", pod: "web-1", pod_uid: "u1", service_account: "web" };

    #[test]
    fn claims_are_those_of_a_projected_token() {
        let folder = tempfile::tempdir().unwrap();
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        std::fs::write(folder.path().join("token-signer.pem"), pair.serialize_pem()).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let token = mint(folder.path(), SUBJECT, "mesh-ca", now, 60).unwrap();

        let key = DecodingKey::from_ec_pem(pair.public_key_pem().as_bytes()).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["mesh-ca"]);
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:shop:web");
        assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "web-1", "uid": "u1"}));
        assert_eq!(claims["exp"], now + 60);
        validation.set_audience(&["other"]);
        assert!(jsonwebtoken::decode::<Value>(&token, &key, &validation).is_err());
    }

    #[test]
    fn errors_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = mint(folder.path(), SUBJECT, "mesh-ca", 0, 60).unwrap_err().to_string();
        assert!(error.contains("start mesh-control"), "{error}");
        std::fs::write(folder.path().join("token-signer.pem"), "no key").unwrap();
        let error = mint(folder.path(), SUBJECT, "mesh-ca", 0, 60).unwrap_err().to_string();
        assert!(error.contains("is not an EC P-256 private key"), "{error}");
    }
}
