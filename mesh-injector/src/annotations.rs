//! What a pod's author may choose, read from its annotations. None gains a privilege; a value that cannot be used
//! refuses the pod and names the annotation, because a setting that is ignored in silence is a trap.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use mesh_common::capture::PortRange;
use mesh_common::options::duration;

use crate::names::{INJECT_LABEL, STATUS_ANNOTATION};
use crate::quantity::Quantity;
use crate::refusal::Refusal;
use crate::settings::{Settings, is_image, log_level, range};

/// What one pod wants otherwise than the settings say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// CPU that the proxy's container asks for.
    pub cpu: Option<Quantity>,
    /// CPU that it may use.
    pub cpu_limit: Option<Quantity>,
    /// Memory that it asks for.
    pub memory: Option<Quantity>,
    /// Memory that it may use.
    pub memory_limit: Option<Quantity>,
    /// What the proxy logs.
    pub log_level: Option<String>,
    /// Ports of the pod that are not captured.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Ports of others that are not captured.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Callers that are not captured.
    pub exclude_inbound_ranges: Vec<IpNet>,
    /// Destinations that are not captured.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// How long new connections are still taken when the pod ends.
    pub drain_propagation: Option<Duration>,
    /// Whether probes are sent through the proxy.
    pub rewrite_probes: Option<bool>,
    /// Whether metrics are merged.
    pub merge_metrics: Option<bool>,
    /// The proxy's image, where the settings allow it to be chosen.
    pub image: Option<String>,
}

/// One annotation: our name, Istio's, and what it does.
struct Known {
    ours: Option<&'static str>,
    istio: Option<&'static str>,
    read: fn(&mut Overrides, &str) -> Result<(), String>,
}

const fn known(
    ours: &'static str,
    istio: Option<&'static str>,
    read: fn(&mut Overrides, &str) -> Result<(), String>,
) -> Known {
    Known { ours: Some(ours), istio, read }
}

const ISTIO_IMAGE: &str = "sidecar.istio.io/proxyImage";

const KNOWN: [Known; 13] = [
    known("mesh/proxy-cpu", Some("sidecar.istio.io/proxyCPU"), |to, it| parse(&mut to.cpu, it)),
    known("mesh/proxy-cpu-limit", Some("sidecar.istio.io/proxyCPULimit"), |to, it| {
        parse(&mut to.cpu_limit, it)
    }),
    known("mesh/proxy-memory", Some("sidecar.istio.io/proxyMemory"), |to, it| parse(&mut to.memory, it)),
    known("mesh/proxy-memory-limit", Some("sidecar.istio.io/proxyMemoryLimit"), |to, it| {
        parse(&mut to.memory_limit, it)
    }),
    known("mesh/log-level", Some("sidecar.istio.io/logLevel"), |to, it| {
        to.log_level = Some(log_level(istio_level(it))?);
        Ok(())
    }),
    known("mesh/exclude-inbound-ports", Some("traffic.sidecar.istio.io/excludeInboundPorts"), |to, it| {
        list(&mut to.exclude_inbound_ports, it, |it| it.parse())
    }),
    known("mesh/exclude-outbound-ports", Some("traffic.sidecar.istio.io/excludeOutboundPorts"), |to, it| {
        list(&mut to.exclude_outbound_ports, it, |it| it.parse())
    }),
    known("mesh/exclude-inbound-ranges", None, |to, it| list(&mut to.exclude_inbound_ranges, it, range)),
    known(
        "mesh/exclude-outbound-ranges",
        Some("traffic.sidecar.istio.io/excludeOutboundIPRanges"),
        |to, it| list(&mut to.exclude_outbound_ranges, it, range),
    ),
    known("mesh/drain-propagation", None, |to, it| {
        to.drain_propagation = Some(duration(it)?);
        Ok(())
    }),
    known("mesh/rewrite-probes", Some("sidecar.istio.io/rewriteAppHTTPProbers"), |to, it| {
        switch(&mut to.rewrite_probes, it)
    }),
    known("mesh/merge-metrics", Some("prometheus.istio.io/merge-metrics"), |to, it| {
        switch(&mut to.merge_metrics, it)
    }),
    Known {
        ours: None,
        istio: Some(ISTIO_IMAGE),
        read: |to, it| {
            if !is_image(it) {
                return Err(format!("{it:?} is not the name of an image"));
            }
            to.image = Some(it.to_owned());
            Ok(())
        },
    },
];

/// Prefixes under which every annotation means something to Istio's injector.
const ISTIO_PREFIXES: [&str; 4] =
    ["sidecar.istio.io/", "traffic.sidecar.istio.io/", "proxy.istio.io/", "inject.istio.io/"];
/// Those that need no warning: the decision's own, and what another injector noted.
const ISTIO_SILENT: [&str; 2] = ["sidecar.istio.io/inject", "sidecar.istio.io/status"];

/// Reads all annotations that concern the injector, and says which ones it does not know.
///
/// # Errors
/// With every annotation whose value cannot be used.
pub fn read(
    annotations: &BTreeMap<String, String>,
    settings: &Settings,
) -> Result<(Overrides, Vec<String>), Refusal> {
    let compat = &settings.compat;
    let (mut overrides, mut wrong, mut used) = (Overrides::default(), Vec::new(), Vec::new());
    for Known { ours, istio, read } in &KNOWN {
        let istio = istio.filter(|name| compat.istio_labels && (compat.proxy_image || *name != ISTIO_IMAGE));
        // Ours first: who writes both has begun to move.
        let mut given =
            [*ours, istio].into_iter().flatten().filter_map(|name| annotations.get_key_value(name));
        used.extend([*ours, istio].into_iter().flatten());
        if let Some((name, value)) = given.next()
            && let Err(why) = read(&mut overrides, value.trim())
        {
            wrong.push(format!("{name}: {why}"));
        }
    }
    if !wrong.is_empty() {
        let message = format!("annotations of the pod cannot be used: {}", wrong.join("; "));
        return Err(Refusal::forbidden("annotation", message));
    }
    let unknown = annotations.keys().filter(|name| !used.contains(&name.as_str()));
    Ok((overrides, unknown.filter_map(|name| unknown_warning(name, compat.istio_labels)).collect()))
}

fn unknown_warning(name: &str, istio: bool) -> Option<String> {
    if name == INJECT_LABEL {
        return Some("mesh/inject is read from labels; as an annotation it does nothing".to_owned());
    }
    if name.starts_with("mesh/") && name != STATUS_ANNOTATION {
        return Some(format!("the mesh knows no annotation {name}; it does nothing"));
    }
    if istio && name == ISTIO_IMAGE {
        return Some(format!(
            "{name} does nothing: the mesh's settings do not let pods choose the proxy's image"
        ));
    }
    let theirs = ISTIO_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    (istio && theirs && !ISTIO_SILENT.contains(&name))
        .then(|| format!("Istio's annotation {name} does nothing here"))
}

fn parse(to: &mut Option<Quantity>, text: &str) -> Result<(), String> {
    *to = Some(text.parse()?);
    Ok(())
}

fn switch(to: &mut Option<bool>, text: &str) -> Result<(), String> {
    *to = Some(text.parse().map_err(|_| format!("{text:?} is neither \"true\" nor \"false\""))?);
    Ok(())
}

fn list<T>(to: &mut Vec<T>, text: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    *to = text.split(',').map(|it| one(it.trim())).collect::<Result<_, _>>()?;
    Ok(())
}

/// Istio's proxy has two levels of other names.
fn istio_level(level: &str) -> &str {
    match level {
        "warning" => "warn",
        "critical" => "error",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::parse("proxy: {image: a}\ncompat: {istioLabels: true, proxyImage: true}").unwrap()
    }

    fn read_one(name: &str, value: &str) -> Result<(Overrides, Vec<String>), Refusal> {
        read(&[(name.to_owned(), value.to_owned())].into(), &settings())
    }

    #[test]
    fn values_as_people_write_them() {
        for (name, value, level) in [
            ("mesh/log-level", " debug ", "debug"),
            ("sidecar.istio.io/logLevel", "warning", "warn"),
            ("sidecar.istio.io/logLevel", "critical", "error"),
        ] {
            let (overrides, warnings) = read_one(name, value).unwrap();
            assert_eq!((overrides.log_level.as_deref(), warnings.len()), (Some(level), 0), "{name}: {value}");
        }
        for name in ["mesh/exclude-inbound-ports", "traffic.sidecar.istio.io/excludeOutboundIPRanges"] {
            assert_eq!(read_one(name, "").unwrap(), (Overrides::default(), Vec::new()), "{name}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for image in ["", "a b", "-a", "a;b", "$(X)"] {
            let refusal = read_one(ISTIO_IMAGE, image).unwrap_err();
            assert!(refusal.message.contains("is not the name of an image"), "{image}: {refusal}");
        }
    }

    #[test]
    fn what_needs_no_warning_has_none() {
        for name in ["sidecar.istio.io/inject", "sidecar.istio.io/status", "mesh/status", "example.com/mesh"]
        {
            assert_eq!(read_one(name, "true").unwrap().1, [""; 0], "{name}");
        }
    }
}
