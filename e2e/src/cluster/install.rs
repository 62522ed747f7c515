//! The chart, installed as users do it.

use anyhow::Result;

use super::machine::{Machine, TAG, root};
use crate::runner::say;

/// The namespace of the mesh.
pub(super) const NAMESPACE: &str = "mesh-system";

/// The release of the chart.
pub(super) const RELEASE: &str = "mesh";

/// Installs the Gateway API's definitions and the mesh, or upgrades what is there.
///
/// # Errors
/// When helm or the API refuses.
pub(super) fn install(machine: &Machine, registry: &str) -> Result<()> {
    say("installing the mesh");
    let definitions = machine.work().join("gateway-api.yaml");
    machine
        .command("kubectl")
        .args(["apply", "--server-side", "--filename"])
        .arg(definitions)
        .output_text()?;
    helm(machine, &[&format!("image.registry={registry}"), &format!("image.tag={TAG}")])
}

/// Installs or upgrades the chart with these values, and waits until it is ready.
///
/// # Errors
/// When helm refuses.
pub(super) fn helm(machine: &Machine, values: &[&str]) -> Result<()> {
    let chart = root().join("charts/mesh");
    let mut helm = machine.command("helm");
    helm.args(["upgrade", RELEASE]).arg(chart).args(["--install", "--create-namespace"]);
    helm.args(["--namespace", NAMESPACE, "--wait", "--timeout", "3m"]);
    for value in values {
        helm.args(["--set", *value]);
    }
    helm.output_text().map(drop)
}

/// Restarts what is installed: the images of a tag may be other ones now.
///
/// # Errors
/// When the API refuses, or they do not come up.
pub(super) fn restart(machine: &Machine) -> Result<()> {
    for action in ["restart", "status"] {
        let mut rollout = machine.command("kubectl");
        rollout.args(["rollout", action, "deployment", "--namespace", NAMESPACE]);
        rollout.args(["--selector", "app.kubernetes.io/part-of=mesh"]).output_text()?;
    }
    Ok(())
}

/// Removes the chart.
///
/// # Errors
/// When helm refuses.
pub(super) fn uninstall(machine: &Machine) -> Result<()> {
    let mut helm = machine.command("helm");
    helm.args(["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"]).output_text().map(drop)
}

/// Goes back to the release before the last change.
///
/// # Errors
/// When helm refuses.
pub(super) fn rollback(machine: &Machine) -> Result<()> {
    let mut helm = machine.command("helm");
    helm.args(["rollback", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "3m"])
        .output_text()
        .map(drop)
}
