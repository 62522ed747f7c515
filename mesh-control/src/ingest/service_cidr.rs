//! ServiceCIDR: the ranges that services' addresses are taken from. They are the mesh's before a service has one.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;

use super::invalid;
use crate::api::InvalidObject;

pub(super) fn ranges(object: &networking::ServiceCIDR) -> Result<Vec<IpNet>, InvalidObject> {
    let networking::ServiceCIDR { metadata: _, spec, status: _ } = object;
    let networking::ServiceCIDRSpec { cidrs } = spec.clone().unwrap_or_default();
    let parse = |(i, text): (usize, String)| {
        let reason = || invalid(format!("/spec/cidrs/{i}"), format!("{text:?} is not a range of addresses"));
        text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| reason())
    };
    cidrs.unwrap_or_default().into_iter().enumerate().map(parse).collect()
}
