//! What is kept of a failed test: objects, events, logs, and what each proxy was told.

use std::path::Path;

use anyhow::Result;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams, LogParams};

use super::install;
use super::space::Space;

/// Pages of a proxy that tell what it does.
const PAGES: [&str; 5] = ["/config_dump", "/clusters", "/listeners", "/certs", "/metrics"];

/// Writes it into a folder.
///
/// # Errors
/// When the API does not answer, or the folder cannot be written.
pub(super) async fn of(space: &Space, folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    for namespace in [space.name.as_str(), install::NAMESPACE] {
        let events: Api<Event> = space.cluster.in_namespace(namespace);
        let events = events.list(&ListParams::default()).await?.items;
        let line = |event: &Event| {
            let (about, text) = (&event.involved_object, event.message.as_deref().unwrap_or_default());
            format!(
                "{:?} {} {}/{}: {text}\n",
                event.last_timestamp.as_ref().map(|time| time.0),
                event.reason.as_deref().unwrap_or_default(),
                about.kind.as_deref().unwrap_or_default(),
                about.name.as_deref().unwrap_or_default(),
            )
        };
        std::fs::write(
            folder.join(format!("events-{namespace}")),
            events.iter().map(line).collect::<String>(),
        )?;
        let pods: Api<Pod> = space.cluster.in_namespace(namespace);
        for pod in pods.list(&ListParams::default()).await?.items {
            pod_of(space, namespace, &pod, folder).await?;
        }
    }
    Ok(())
}

async fn pod_of(space: &Space, namespace: &str, pod: &Pod, folder: &Path) -> Result<()> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    std::fs::write(folder.join(format!("{namespace}-{name}.json")), serde_json::to_vec_pretty(pod)?)?;
    let pods: Api<Pod> = space.cluster.in_namespace(namespace);
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    for container in containers {
        for previous in [false, true] {
            let parameters =
                LogParams { container: Some(container.name.clone()), previous, ..LogParams::default() };
            // A container that did not start, or not a second time, has no log.
            if let Ok(log) = pods.logs(name, &parameters).await {
                let suffix = if previous { "-previous" } else { "" };
                std::fs::write(
                    folder.join(format!("{namespace}-{name}-{}{suffix}.log", container.name)),
                    log,
                )?;
            }
        }
    }
    if namespace == space.name {
        for page in PAGES {
            if let Ok(text) = space.at(name).page(page).await {
                std::fs::write(folder.join(format!("{name}{}", page.replace('/', "-"))), text)?;
            }
        }
    }
    Ok(())
}
