//! EndpointSlice.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;

use super::{invalid, key_in_domain, port_number};
use crate::api::InvalidObject;
use crate::model::service::EndpointHealth;
use crate::model::store::input::{SliceEndpoint, SliceInput};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// `None` for slices of DNS names, which nobody may dial by that.
pub(super) fn slice(
    namespace: &str,
    domain: &str,
    slice: &discovery::EndpointSlice,
) -> Result<Option<SliceInput>, InvalidObject> {
    let discovery::EndpointSlice { address_type, endpoints, metadata, ports } = slice;
    match address_type.as_str() {
        "IPv4" | "IPv6" => {}
        "FQDN" => return Ok(None),
        other => {
            let reason = format!("{other:?} is not known; write IPv4 or IPv6");
            return Err(invalid("/addressType", reason));
        }
    }
    let service = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
    let service = service.ok_or_else(|| {
        let reason = format!("the label {SERVICE_LABEL} is missing: it names the service");
        invalid("/metadata/labels", reason)
    })?;
    let mut input = SliceInput {
        service: key_in_domain(namespace, service, domain),
        ports: Vec::new(),
        endpoints: Vec::new(),
    };
    for (i, port) in ports.iter().flatten().enumerate() {
        // What is spoken is the service's to say.
        let discovery::EndpointPort { app_protocol: _, name, port, protocol } = port;
        let tcp = protocol.as_ref().is_none_or(|protocol| protocol == "TCP");
        if let Some(port) = port.filter(|_| tcp) {
            let number = port_number(&format!("/ports/{i}/port"), port)?;
            input.ports.push((name.clone().unwrap_or_default(), number));
        }
    }
    for (i, of_slice) in endpoints.iter().enumerate() {
        input.endpoints.push(endpoint(i, namespace, of_slice)?);
    }
    Ok(Some(input))
}

fn endpoint(
    i: usize,
    namespace: &str,
    endpoint: &discovery::Endpoint,
) -> Result<SliceEndpoint, InvalidObject> {
    let discovery::Endpoint {
        addresses,
        conditions,
        node_name,
        target_ref,
        zone,
        hostname,
        // For balancers that do not know zones themselves.
        hints: _,
        deprecated_topology: _,
    } = endpoint;
    let parse = |(j, text): (usize, &String)| {
        let pointer = format!("/endpoints/{i}/addresses/{j}");
        text.parse::<IpAddr>().map_err(|_| invalid(pointer, format!("{text:?} is not an IP address")))
    };
    let pod = target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = pod.and_then(|target| {
        let namespace = target.namespace.clone().unwrap_or_else(|| namespace.to_owned());
        Some((namespace, target.name.clone()?))
    });
    Ok(SliceEndpoint {
        addresses: addresses.iter().enumerate().map(parse).collect::<Result<_, _>>()?,
        health: health(conditions.as_ref()),
        node: node_name.clone().unwrap_or_default(),
        zone: zone.clone().unwrap_or_default(),
        pod,
        hostname: hostname.clone().unwrap_or_default(),
    })
}

/// Absent means ready; serving follows ready unless it is said.
fn health(conditions: Option<&discovery::EndpointConditions>) -> EndpointHealth {
    let Some(discovery::EndpointConditions { ready, serving, terminating }) = conditions else {
        return EndpointHealth::Ready;
    };
    let ready = ready.unwrap_or(true);
    let draining = serving.unwrap_or(ready) && terminating.unwrap_or(false);
    match (ready, draining) {
        (true, _) => EndpointHealth::Ready,
        (false, true) => EndpointHealth::Draining,
        (false, false) => EndpointHealth::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let cases = [
            (None, None, None, EndpointHealth::Ready),
            (Some(true), None, None, EndpointHealth::Ready),
            (Some(false), None, None, EndpointHealth::NotReady),
            (Some(false), Some(true), Some(true), EndpointHealth::Draining),
            (Some(false), Some(false), Some(true), EndpointHealth::NotReady),
            (Some(false), Some(true), None, EndpointHealth::NotReady),
        ];
        for (ready, serving, terminating, expected) in cases {
            let conditions = discovery::EndpointConditions { ready, serving, terminating };
            assert_eq!(health(Some(&conditions)), expected, "{conditions:?}");
        }
        assert_eq!(health(None), EndpointHealth::Ready);
    }
}
