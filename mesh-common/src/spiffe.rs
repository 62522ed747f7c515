//! SPIFFE identities: parse, print, compare. The one place that decides what an identity is;
//! it must never accept two spellings of one identity.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload's identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// The text form is the only form that is compared, so each part is restricted to characters that
/// have a single spelling. Source: SPIFFE-ID specification, section 2, and Istio's path convention.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    namespace: (u16, u16),
    service_account: (u16, u16),
}

/// Why a text is not the identity of a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// Longer than the 2048 bytes that the specification allows.
    #[error("the identity is longer than {MAX_LEN} bytes")]
    TooLong,
    /// The scheme is not `spiffe://`, in lower case.
    #[error("an identity starts with spiffe://")]
    Scheme,
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error("the path of an identity is /ns/<namespace>/sa/<service account>")]
    Path,
    /// A trust domain holds lower-case letters, digits, dots, dashes and underscores.
    #[error("the trust domain {0:?} is empty or has a character outside a-z 0-9 . - _")]
    TrustDomain(String),
    /// Namespaces and service accounts are Kubernetes names.
    #[error("{0:?} is not the name of a namespace or service account")]
    Name(String),
}

const MAX_LEN: usize = 2048;
const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    /// When a part is empty or holds a character that such a name cannot have.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        if !is_trust_domain(trust_domain) {
            return Err(InvalidSpiffeId::TrustDomain(trust_domain.to_owned()));
        }
        for name in [namespace, service_account] {
            if !is_kubernetes_name(name) {
                return Err(InvalidSpiffeId::Name(name.to_owned()));
            }
        }
        let uri = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        if uri.len() > MAX_LEN {
            return Err(InvalidSpiffeId::TooLong);
        }
        let ns_start = SCHEME.len() + trust_domain.len() + "/ns/".len();
        let ns_end = ns_start + namespace.len();
        let sa_start = ns_end + "/sa/".len();
        let range = |from: usize, to: usize| (from as u16, to as u16);
        Ok(Self {
            namespace: range(ns_start, ns_end),
            service_account: range(sa_start, uri.len()),
            uri: uri.into(),
        })
    }

    /// The whole identity, as it stands in a certificate.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.namespace.0 as usize - "/ns/".len()]
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.uri[self.namespace.0 as usize..self.namespace.1 as usize]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.uri[self.service_account.0 as usize..self.service_account.1 as usize]
    }

    /// The identity without its scheme, as Istio's metrics and policies write a principal.
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(InvalidSpiffeId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(InvalidSpiffeId::Scheme)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [trust_domain, "ns", namespace, "sa", service_account] => {
                Self::new(trust_domain, namespace, service_account)
            }
            _ => Err(InvalidSpiffeId::Path),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// Whether this can be a trust domain (SPIFFE-ID specification, section 2.1).
pub fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
}

/// Whether this can name a namespace or a service account: a DNS subdomain (RFC 1123) as Kubernetes reads it.
pub fn is_kubernetes_name(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            !bytes.is_empty()
                && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
                && alphanumeric(bytes[0])
                && alphanumeric(bytes[bytes.len() - 1])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parsed() {
        for text in ["spiffe://cluster.local/ns/shop/sa/reviews", "spiffe://td-1_x/ns/a/sa/b.c-d"] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        let id = SpiffeId::new("cluster.local", "shop", "reviews").unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account(), id.principal()),
            ("cluster.local", "shop", "reviews", "cluster.local/ns/shop/sa/reviews")
        );
    }

    #[test]
    fn refuses_every_other_spelling() {
        for text in [
            "",
            "spiffe://",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local//ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/b/ns/a",
            "spiffe://cluster.local/ns/A/sa/b",
            "spiffe://cluster.local/ns/a%2fb/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x=1",
            "spiffe://cluster.local/ns/a/sa/b#x",
            "spiffe://cluster.local/ns/a/sa/b\0",
            "spiffe://cluster.local/ns/a/sa/b ",
            "spiffe://cluster.local/ns/-a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?} must be refused");
        }
        let long = format!("spiffe://cluster.local/ns/{}/sa/b", "a".repeat(3000));
        assert_eq!(long.parse::<SpiffeId>(), Err(InvalidSpiffeId::TooLong));
    }
}
