//! PeerAuthentication.

use std::collections::BTreeMap;

use super::{created, invalid};
use crate::api::InvalidObject;
use crate::api::peer_authentication::{
    Mode, MutualTls, PeerAuthentication, PeerAuthenticationSpec, WorkloadSelector,
};
use crate::model::ObjectRef;
use crate::model::policy::{MtlsMode, Policy};

pub(super) fn policy(source: ObjectRef, object: &PeerAuthentication) -> Result<Policy, InvalidObject> {
    let PeerAuthentication { metadata, spec, status: _ } = object;
    let PeerAuthenticationSpec { selector, mtls, port_level_mtls } = spec;
    let selector = match selector {
        Some(WorkloadSelector { match_labels }) => match_labels.clone().unwrap_or_default(),
        None => BTreeMap::new(),
    };
    let mut ports = BTreeMap::new();
    for (port, mutual) in port_level_mtls.iter().flatten() {
        let pointer = format!("/spec/portLevelMtls/{port}");
        let number = port.parse::<u16>().ok().filter(|number| *number != 0);
        let number = number.ok_or_else(|| invalid(pointer, "this is not a port; ports are 1 to 65535"))?;
        ports.insert(number, mode(Some(mutual)));
    }
    if selector.is_empty() && !ports.is_empty() {
        // Istio's own schema refuses it too.
        let reason = "modes of single ports need a selector with matchLabels";
        return Err(invalid("/spec/portLevelMtls", reason));
    }
    Ok(Policy {
        source,
        generation: metadata.generation.unwrap_or_default(),
        created: created(metadata),
        selector,
        mode: mode(mtls.as_ref()),
        ports,
    })
}

/// What stands in for a policy that cannot be used and has no predecessor: mutual TLS only.
pub(super) fn closed(source: ObjectRef, object: &PeerAuthentication) -> Policy {
    let PeerAuthentication { metadata, spec, status: _ } = object;
    let PeerAuthenticationSpec { selector, mtls: _, port_level_mtls: _ } = spec;
    Policy {
        source,
        generation: metadata.generation.unwrap_or_default(),
        created: created(metadata),
        selector: selector.as_ref().and_then(|it| it.match_labels.clone()).unwrap_or_default(),
        mode: Some(MtlsMode::Strict),
        ports: BTreeMap::new(),
    }
}

fn mode(mutual: Option<&MutualTls>) -> Option<MtlsMode> {
    let MutualTls { mode } = mutual?;
    match (*mode)? {
        Mode::Unset => None,
        Mode::Disable => Some(MtlsMode::Disable),
        Mode::Permissive => Some(MtlsMode::Permissive),
        Mode::Strict => Some(MtlsMode::Strict),
    }
}
