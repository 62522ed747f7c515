//! A request for a certificate, from a caller who is who he says: checked, never believed.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_common::spiffe::SpiffeId;
use mesh_control::ca::sign::check;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

/// The first byte says what the others are: the text, its DER, or the attributes of a request that is signed as it
/// should be, for what a request asks is read only then.
pub fn run(bytes: &[u8]) {
    let Some((&form, bytes)) = bytes.split_first() else { return };
    let text = match form % 3 {
        0 => String::from_utf8_lossy(bytes).into_owned(),
        1 => pem(bytes),
        _ => pem(&signed(bytes)),
    };
    let Ok(caller) = SpiffeId::new("cluster.local", "shop", "web") else { return };
    // Accepted or not: it must not panic, and an error must say something.
    if let Err(error) = check(&text, &caller) {
        assert!(!error.to_string().is_empty() && error.to_string().len() < 4096, "{error}");
    }
}

fn pem(der: &[u8]) -> String {
    let label = "CERTIFICATE REQUEST";
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// A request with these attributes, signed by its own key.
fn signed(attributes: &[u8]) -> Vec<u8> {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    let key = KEY.get_or_init(|| KeyPair::generate().unwrap());
    let version_and_subject = [0x02, 0x01, 0x00, 0x30, 0x00];
    let info =
        [&version_and_subject[..], &key.subject_public_key_info(), &element(0xa0, attributes)].concat();
    let info = element(0x30, &info);
    // ECDSA with SHA-256.
    let algorithm = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let signature = key.sign(&info).unwrap();
    let signature = element(0x03, &[&[0][..], &signature].concat());
    element(0x30, &[&info[..], &algorithm, &signature].concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let mut made = vec![tag, 0x84];
    if content.len() < 0x80 {
        made = vec![tag, length[3]];
    } else {
        let zeros = length.iter().take_while(|&&byte| byte == 0).count();
        made[1] = 0x84 - u8::try_from(zeros).unwrap();
        made.extend(&length[zeros..]);
    }
    made.extend(content);
    made
}

#[cfg(test)]
mod tests {
    use mesh_control::ca::sign::SignError;

    use super::*;

    /// Else the third form would only ever find that the signature is wrong.
    #[test]
    fn what_is_signed_here_is_taken() {
        let caller = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        check(&pem(&signed(&[])), &caller).unwrap();
        let unreadable = check(&pem(&signed(&[0x30, 0x01, 0x00])), &caller).unwrap_err();
        assert_ne!(unreadable.label(), SignError::Signature.label(), "{unreadable}");
    }
}
