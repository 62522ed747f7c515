//! What a world consists of: pods, services, and other manifests. Says nothing of how traffic is captured,
//! so that the same topologies run on loopback and in network namespaces.

use std::net::IpAddr;
use std::ops::Range;

/// The namespace of all pods and services that name no other.
pub const NAMESPACE: &str = "shop";

/// Ports are given as a distance from the world's own; so many are free on every pod. The distance 1 is the
/// relay's.
pub const PORTS: Range<u16> = 0..8;

/// Which families of addresses pods and services have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    #[default]
    V4,
    /// IPv6 only; in network namespaces.
    V6,
    /// Both, IPv4 first; in network namespaces.
    Dual,
}

impl Families {
    /// Of two addresses those that there are.
    pub(crate) fn choose(self, v4: IpAddr, v6: IpAddr) -> Vec<IpAddr> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }
}

/// The pods and services of a world.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    pub(crate) families: Families,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) files: Vec<(String, String)>,
    pub(crate) leaf_lifetime: Option<String>,
    pub(crate) intermediate: bool,
}

/// What an application does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// HTTP/1.1, HTTP/2, gRPC and upgrades: answers say what arrived.
    Http,
    /// Sends back what arrives.
    TcpEcho,
    /// Speaks first, then sends back what arrives.
    TcpBanner,
    /// Speaks TLS with a certificate of its own, then sends back what arrives.
    TlsEcho,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) app: String,
    pub(crate) version: String,
    pub(crate) service_account: String,
    /// Where its main port is, in [`PORTS`].
    pub(crate) at: u16,
    pub(crate) serves: Option<App>,
    pub(crate) also: Vec<(u16, App)>,
    pub(crate) sidecar: bool,
    pub(crate) meshed: bool,
    /// Whether it has a manifest.
    pub(crate) known: bool,
    pub(crate) relayed: bool,
    pub(crate) arguments: Vec<String>,
    pub(crate) redirect: Vec<String>,
}

/// A service in front of all pods of an app, or of one version of it.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) ports: Vec<PortSpec>,
    pub(crate) address: ServiceAddress,
    pub(crate) app: String,
    pub(crate) version: Option<String>,
    pub(crate) selector: bool,
}

/// A port of a service.
#[derive(Debug, Clone)]
pub(crate) struct PortSpec {
    pub(crate) name: String,
    pub(crate) port: u16,
    /// The pods' port, in [`PORTS`]; `None` is each pod's main port, wherever it has it.
    pub(crate) target: Option<u16>,
}

/// What a service is reached by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceAddress {
    Virtual,
    Headless,
    ExternalName(String),
}

impl Topology {
    /// A client `web`, and the service `reviews` with versions v1 and v2, each with a service of its own.
    pub fn reviews() -> Self {
        Self::default()
            .pod(PodSpec::client("web"))
            .pod(PodSpec::server("reviews-v1", App::Http).app("reviews").version("v1"))
            .pod(PodSpec::server("reviews-v2", App::Http).app("reviews").version("v2"))
            .service(ServiceSpec::new("reviews", "http"))
            .service(ServiceSpec::new("reviews-v1", "http").of("reviews", "v1"))
            .service(ServiceSpec::new("reviews-v2", "http").of("reviews", "v2"))
    }

    /// A client `web`, and a service with one pod of the same name.
    pub fn pair(name: &str, app: App, port_name: &str) -> Self {
        Self::default()
            .pod(PodSpec::client("web"))
            .pod(PodSpec::server(name, app))
            .service(ServiceSpec::new(name, port_name))
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }

    /// Adds a file to the folder of manifests.
    #[must_use]
    pub fn file(mut self, name: &str, text: String) -> Self {
        self.files.push((name.to_owned(), text));
        self
    }

    /// The lifetime of workload certificates.
    #[must_use]
    pub fn leaf_lifetime(mut self, lifetime: &str) -> Self {
        self.leaf_lifetime = Some(lifetime.to_owned());
        self
    }

    /// The families of addresses.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// mesh-control signs with a CA below the root instead of the root itself.
    #[must_use]
    pub fn intermediate(mut self) -> Self {
        self.intermediate = true;
        self
    }
}

impl PodSpec {
    /// A pod that only sends.
    pub fn client(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            app: name.to_owned(),
            version: "v1".to_owned(),
            service_account: name.to_owned(),
            at: 0,
            serves: None,
            also: Vec::new(),
            sidecar: true,
            meshed: true,
            known: true,
            relayed: false,
            arguments: Vec::new(),
            redirect: Vec::new(),
        }
    }

    /// A pod that serves.
    pub fn server(name: &str, app: App) -> Self {
        Self { serves: Some(app), ..Self::client(name) }
    }

    /// Label `app`, and the service account of the same name.
    #[must_use]
    pub fn app(mut self, app: &str) -> Self {
        app.clone_into(&mut self.app);
        app.clone_into(&mut self.service_account);
        self
    }

    /// Label `version`.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// Another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// A service account of its own; after [`PodSpec::app`].
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Its main port is at this distance, one of [`PORTS`].
    #[must_use]
    pub fn at(mut self, distance: u16) -> Self {
        self.at = distance;
        self
    }

    /// Serves a second port, at this distance.
    #[must_use]
    pub fn also(mut self, distance: u16, app: App) -> Self {
        self.also.push((distance, app));
        self
    }

    /// A machine without sidecar that is no pod: the mesh has no manifest of it.
    #[must_use]
    pub fn unknown(self) -> Self {
        Self { known: false, ..self.outside_the_mesh() }
    }

    /// No sidecar and no label: the application itself listens on the pod's address.
    #[must_use]
    pub fn outside_the_mesh(mut self) -> Self {
        self.sidecar = false;
        self.meshed = false;
        self
    }

    /// Labelled as meshed, but nothing runs: the scenario itself listens on the pod's address.
    #[must_use]
    pub fn impersonated(mut self) -> Self {
        self.sidecar = false;
        self.serves = None;
        self
    }

    /// Labelled as meshed, but its sidecar is none of ours: the scenario itself starts it.
    #[must_use]
    pub fn with_a_strange_sidecar(mut self) -> Self {
        self.sidecar = false;
        self
    }

    /// A relay on the wire before the pod's sidecar keeps every byte.
    #[must_use]
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }

    /// More arguments for the rules that capture its traffic.
    #[must_use]
    pub fn redirect(mut self, argument: &str) -> Self {
        self.redirect.push(argument.to_owned());
        self
    }

    /// More arguments for its sidecar; `PORT` in them is the port that the pod serves.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }
}

impl ServiceSpec {
    /// A service on port 80 for the app of the same name. The port's name declares the protocol.
    pub fn new(name: &str, port_name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            ports: vec![PortSpec { name: port_name.to_owned(), port: 80, target: None }],
            address: ServiceAddress::Virtual,
            app: name.to_owned(),
            version: None,
            selector: true,
        }
    }

    /// Its first port has this number.
    #[must_use]
    pub fn on(mut self, port: u16) -> Self {
        self.ports.iter_mut().take(1).for_each(|first| first.port = port);
        self
    }

    /// One more port, which the pods have at this distance, one of [`PORTS`].
    #[must_use]
    pub fn port(mut self, port: u16, port_name: &str, distance: u16) -> Self {
        self.ports.push(PortSpec { name: port_name.to_owned(), port, target: Some(distance) });
        self
    }

    /// Without a virtual address.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.address = ServiceAddress::Headless;
        self
    }

    /// A name for a host outside of the mesh.
    #[must_use]
    pub fn external_name(mut self, host: &str) -> Self {
        self.address = ServiceAddress::ExternalName(host.to_owned());
        self
    }

    /// No pod is behind it until the scenario says which ([`crate::world::World::edit`]).
    #[must_use]
    pub fn without_selector(mut self) -> Self {
        self.selector = false;
        self
    }

    /// For another app's one version.
    #[must_use]
    pub fn of(mut self, app: &str, version: &str) -> Self {
        app.clone_into(&mut self.app);
        self.version = Some(version.to_owned());
        self
    }

    pub(crate) fn selects(&self, pod: &PodSpec) -> bool {
        self.selector
            && pod.known
            && pod.namespace == self.namespace
            && pod.app == self.app
            && self.version.as_ref().is_none_or(|version| *version == pod.version)
    }

    /// The names and numbers of the ports that this pod has for the service, as its EndpointSlice says them.
    pub(crate) fn endpoint_ports(&self, pod: &PodSpec, base: u16) -> Vec<(&str, u16)> {
        let number = |port: &PortSpec| base + port.target.unwrap_or(pod.at);
        self.ports.iter().map(|port| (port.name.as_str(), number(port))).collect()
    }
}
