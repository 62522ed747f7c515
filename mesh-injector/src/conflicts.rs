//! What in a pod would let it past the proxy, or would keep the proxy from working: refused before anything is
//! created, because afterwards it shows as a crash of the proxy or, worse, not at all.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::names::{PROXY_UID, ROOT_VOLUME, STATE_VOLUME, TOKEN_VOLUME, is_ours, is_reserved};
use crate::refusal::Refusal;

/// Checks everything in the pod that is not the injector's. `injected` says that the pod carries the injector's note:
/// what has one of its names is then its own, or will be replaced.
///
/// # Errors
/// With the first conflict.
pub fn check(spec: &PodSpec, injected: bool) -> Result<(), Refusal> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for container in init.iter().chain(&spec.containers) {
        if is_ours(&container.name) {
            if !injected {
                return Err(name_taken("container", &container.name));
            }
            continue;
        }
        check_ports(container)?;
        check_user(spec, container)?;
    }
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let ours = |name: &str| [STATE_VOLUME, TOKEN_VOLUME, ROOT_VOLUME].contains(&name);
    match volumes.iter().find(|volume| !injected && ours(&volume.name)) {
        Some(volume) => Err(name_taken("volume", &volume.name)),
        None => Ok(()),
    }
}

fn name_taken(what: &str, name: &str) -> Refusal {
    let message = format!(
        "the {what} {name} has a name that belongs to the mesh's proxy; give it another one, or opt out with the \
         pod's label mesh/inject: disabled"
    );
    Refusal::forbidden("name_taken", message)
}

fn check_ports(container: &Container) -> Result<(), Refusal> {
    let tcp = |protocol: &Option<String>| protocol.as_deref().is_none_or(|it| it == "TCP");
    let mut ports = container.ports.iter().flatten().filter(|port| tcp(&port.protocol));
    let Some(port) = ports.find(|port| is_reserved(port.container_port.into())) else { return Ok(()) };
    let message = format!(
        "the container {} listens on port {}, which the mesh's proxy needs in every pod (15000-15006, 15020, 15021, \
         15090); use another port, or opt out with the pod's label mesh/inject: disabled",
        container.name, port.container_port
    );
    Err(Refusal::forbidden("port_taken", message))
}

/// The proxy's user is how its own connections are told from the application's.
fn check_user(spec: &PodSpec, container: &Container) -> Result<(), Refusal> {
    let own = container.security_context.as_ref().and_then(|it| it.run_as_user);
    let pods = spec.security_context.as_ref().and_then(|it| it.run_as_user);
    if own.or(pods) != Some(PROXY_UID) {
        return Ok(());
    }
    let message = format!(
        "the container {} runs as uid {PROXY_UID}, which is the proxy's: its connections would pass by the mesh; set \
         another runAsUser",
        container.name
    );
    Err(Refusal::forbidden("proxy_uid", message))
}
