//! What a world consists of: pods, services, and other manifests. Says nothing of how traffic is captured,
//! so that the same topologies run on loopback and, later, in network namespaces.

/// The namespace of all pods.
pub const NAMESPACE: &str = "shop";

/// The pods and services of a world.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) files: Vec<(String, String)>,
    pub(crate) leaf_lifetime: Option<String>,
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
}

/// A pod.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) app: String,
    pub(crate) version: String,
    pub(crate) service_account: String,
    pub(crate) serves: Option<App>,
    pub(crate) sidecar: bool,
    pub(crate) meshed: bool,
    pub(crate) relayed: bool,
    pub(crate) arguments: Vec<String>,
}

/// A service in front of all pods of an app, or of one version of it.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) port_name: String,
    pub(crate) port: u16,
    pub(crate) app: String,
    pub(crate) version: Option<String>,
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
}

impl PodSpec {
    /// A pod that only sends.
    pub fn client(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            app: name.to_owned(),
            version: "v1".to_owned(),
            service_account: name.to_owned(),
            serves: None,
            sidecar: true,
            meshed: true,
            relayed: false,
            arguments: Vec::new(),
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

    /// A relay on the wire before the pod's sidecar keeps every byte.
    #[must_use]
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }

    /// More arguments for its sidecar.
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
            port_name: port_name.to_owned(),
            port: 80,
            app: name.to_owned(),
            version: None,
        }
    }

    /// For another app's one version.
    #[must_use]
    pub fn of(mut self, app: &str, version: &str) -> Self {
        app.clone_into(&mut self.app);
        self.version = Some(version.to_owned());
        self
    }

    pub(crate) fn selects(&self, pod: &PodSpec) -> bool {
        pod.app == self.app && self.version.as_ref().is_none_or(|version| *version == pod.version)
    }
}
