//! A SPIFFE id from a certificate: parsed, or refused; what is parsed prints as it was, and holds names only.

use mesh_common::spiffe::{SpiffeId, is_kubernetes_name, is_trust_domain};

/// The bytes are the text.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.as_str(), text);
    assert!(is_trust_domain(id.trust_domain()));
    assert!(is_kubernetes_name(id.namespace()) && is_kubernetes_name(id.service_account()));
    let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
    assert_eq!(again.ok().as_ref(), Some(&id));
}
