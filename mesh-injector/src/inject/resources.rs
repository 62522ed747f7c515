//! What the proxy's container asks for and may use: the settings', changed by the pod's annotations so that the API
//! server takes the result.

use crate::quantity::Quantity;
use crate::refusal::Refusal;
use crate::settings::{Amounts, Resources};

use super::Context;

/// The container's resources.
///
/// # Errors
/// When the annotations ask for more than they allow.
pub(super) fn resources(context: &Context<'_>) -> Result<Resources, Refusal> {
    let (wanted, usual) = (&context.overrides, &context.settings.proxy.resources);
    let (requests, limits) = (&usual.requests, &usual.limits);
    let cpu = pair("cpu", [&wanted.cpu, &requests.cpu], [&wanted.cpu_limit, &limits.cpu])?;
    let memory = pair("memory", [&wanted.memory, &requests.memory], [&wanted.memory_limit, &limits.memory])?;
    Ok(Resources {
        requests: Amounts { cpu: cpu.0, memory: memory.0 },
        limits: Amounts { cpu: cpu.1, memory: memory.1 },
    })
}

type Given<'a> = [&'a Option<Quantity>; 2];

/// Request and limit: the pod's before the usual ones. What the pod says moves the usual other one along.
fn pair(
    what: &str,
    [own_request, request]: Given<'_>,
    [own_limit, limit]: Given<'_>,
) -> Result<(Option<Quantity>, Option<Quantity>), Refusal> {
    let mut both =
        (own_request.as_ref().or(request.as_ref()).cloned(), own_limit.as_ref().or(limit.as_ref()).cloned());
    if let (Some(request), Some(limit)) = &both
        && request > limit
    {
        both = match (own_request, own_limit) {
            (Some(request), Some(limit)) => {
                let message = format!(
                    "annotations of the pod cannot be used: mesh/proxy-{what}: {request} is more than \
                     mesh/proxy-{what}-limit: {limit}"
                );
                return Err(Refusal::forbidden("annotation", message));
            }
            (Some(request), None) => (Some(request.clone()), Some(request.clone())),
            _ => (Some(limit.clone()), Some(limit.clone())),
        };
    }
    Ok(both)
}
