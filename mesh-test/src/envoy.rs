//! A stock Envoy as the sidecar of a pod: its bootstrap, its process, its counters. It knows of the mesh what a
//! user would write down for it, and nothing else.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use mesh_common::xds::names::TOKEN_AUDIENCE;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::binaries::binaries;
use crate::client::{CONTROL_NAME, Dialer, HttpClient, exchange};
use crate::place::Place;
use crate::process::{PROXY_UID, Process, Start};
use crate::topology::NAMESPACE;
use crate::world::{self, World};

/// The two forms of xDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Incremental; proves who it is by its certificate.
    Delta,
    /// State of the world; proves who it is by its token.
    StateOfTheWorld,
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    dialer: Dialer,
    place: Place,
    admin: SocketAddr,
    process: Mutex<Process>,
    _certificate: Process,
}

/// What one is started with.
#[derive(Debug, Clone, Copy)]
struct Own<'a> {
    world: &'a World,
    pod: &'a str,
    ip: IpAddr,
    captured: bool,
    certificates: &'a Path,
    form: Form,
    app: Option<SocketAddr>,
}

impl Envoy {
    /// Starts `program` as the sidecar of a pod that runs none of ours; returns when it has all its configuration.
    /// In a network namespace the pod's traffic is captured; elsewhere `app`, if there is one, is behind its port.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub async fn start(
        program: &Path,
        world: &World,
        pod: &str,
        service_account: &str,
        form: Form,
        app: Option<SocketAddr>,
    ) -> Result<Self> {
        let place = world.pod(pod)?.place().clone();
        let captured = is_captured(&place);
        if captured {
            world::redirect(&place, &[]).await?;
        }
        let (certificates, certificate) = certificate(world, pod, service_account).await?;
        let ip = world.pod(pod)?.ip();
        let own = Own { world, pod, ip, captured, certificates: &certificates, form, app };
        let token = world.token(pod, service_account, TOKEN_AUDIENCE).await?;
        let folder = certificates.parent().context("the certificate is in no folder")?;
        let (file, admin_file) = (folder.join("envoy.json"), folder.join("envoy.admin"));
        std::fs::write(&file, own.bootstrap(&token).to_string())?;
        let mut arguments: Vec<OsString> = vec!["-c".into(), file.into()];
        arguments.extend(["--admin-address-path".into(), admin_file.clone().into()]);
        arguments.extend(
            [
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
                "--disable-hot-restart",
            ]
            .map(OsString::from),
        );
        let start = Start::new(&format!("the Envoy of {pod}"), program).arguments(arguments);
        let start = start.log(world.scratch().join(format!("{pod}-envoy.log")));
        let mut process = in_the_pod(start, &place).spawn().await?;
        let (admin, _) =
            process.wait(async || std::fs::read_to_string(&admin_file).ok()?.trim().parse().ok()).await?;
        process.wait(async || page(&place, admin, "/ready").await.ok()).await?;
        let dialer = match captured {
            true => world.pod(pod)?.dialer(),
            false => Dialer::Forward(SocketAddr::from((ip, world.port() + 1))),
        };
        Ok(Self { dialer, place, admin, process: Mutex::new(process), _certificate: certificate })
    }

    /// An HTTP client in its pod.
    pub fn client(&self) -> HttpClient {
        HttpClient::with(self.dialer.clone())
    }

    /// A counter or gauge, 0 when absent; the sum when several end in `name`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn sum(&self, name: &str) -> Result<u64> {
        let text = page(&self.place, self.admin, "/stats").await?;
        let values = text.lines().filter_map(|line| line.split_once(": "));
        let values = values.filter(|(known, _)| known.ends_with(name));
        Ok(values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
    }

    /// Fails when Envoy refused anything that it was sent, or got nothing.
    ///
    /// # Errors
    /// With what it logged.
    pub async fn refused_nothing(&self) -> Result<()> {
        let refused = self.sum("update_rejected").await?;
        ensure!(refused == 0, "Envoy refused {refused} updates:\n{}", self.process.lock().await.log());
        for kind in ["cluster_manager.cds.update_success", "listener_manager.lds.update_success"] {
            ensure!(self.sum(kind).await? > 0, "{kind} is 0");
        }
        Ok(())
    }

    /// The serial numbers of its own certificates, of every place where it uses one.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn serials(&self) -> Result<BTreeSet<String>> {
        let page: Value = serde_json::from_str(&page(&self.place, self.admin, "/certs").await?)?;
        let places = page["certificates"].as_array().context("no certificates")?;
        let own = places.iter().filter_map(|place| place["cert_chain"].as_array()).flatten();
        Ok(own.filter_map(|one| one["serial_number"].as_str()).map(str::to_owned).collect())
    }

    /// All that it logged.
    pub async fn log(&self) -> String {
        self.process.lock().await.log()
    }
}

fn is_captured(place: &Place) -> bool {
    matches!(place, Place::In(_))
}

/// As the user whose own traffic is not captured, where it would be.
fn in_the_pod(start: Start, place: &Place) -> Start {
    if is_captured(place) { start.place(place).user(PROXY_UID) } else { start }
}

/// `mesh-proxy certificate --watch` for a pod: the folder, once it is there, and the process.
///
/// # Errors
/// When no certificate comes.
pub async fn certificate(world: &World, pod: &str, service_account: &str) -> Result<(PathBuf, Process)> {
    let place = world.pod(pod)?.place();
    let folder = world.scratch().join(format!("{pod}-own"));
    std::fs::create_dir(&folder)?;
    if is_captured(place) {
        std::os::unix::fs::chown(&folder, Some(PROXY_UID), Some(PROXY_UID))?;
    }
    let (out, token, roots) =
        (folder.join("certificate"), folder.join("token"), folder.join("first-root-cert.pem"));
    std::fs::write(&token, world.token(pod, service_account, TOKEN_AUDIENCE).await?)?;
    std::fs::write(&roots, world.root_pem()?)?;
    let mut arguments: Vec<OsString> = vec!["certificate".into(), "--watch".into()];
    for (flag, value) in [
        ("--control", OsString::from(world.addresses().xds.to_string())),
        ("--trust-bundle", roots.into()),
        ("--token-file", token.into()),
        ("--namespace", NAMESPACE.into()),
        ("--service-account", service_account.into()),
        ("--out", out.clone().into()),
    ] {
        arguments.extend([flag.into(), value]);
    }
    let start = Start::new(&format!("the certificate of {pod}"), &binaries()?.proxy).arguments(arguments);
    let start = start.log(world.scratch().join(format!("{pod}-certificate.log")));
    let mut process = in_the_pod(start, place).spawn().await?;
    // The last file that is written.
    process.wait(async || out.join("envoy-roots.json").exists().then_some(())).await?;
    Ok((out, process))
}

impl Own<'_> {
    fn bootstrap(&self, token: &str) -> Value {
        let Self { ip, captured, form, .. } = self;
        // Where pods share a machine, each dials from its own address.
        let bind = match captured {
            true => json!({}),
            false => json!({ "upstream_bind_config": { "source_address": address(&ip.to_string(), 0) } }),
        };
        let (api, metadata) = match form {
            Form::Delta => ("DELTA_GRPC", json!([])),
            Form::StateOfTheWorld => {
                ("GRPC", json!([{ "key": "authorization", "value": format!("Bearer {token}") }]))
            }
        };
        let ads = json!({ "ads": {}, "resource_api_version": "V3" });
        json!({
            "node": self.node(),
            "admin": { "address": socket("127.0.0.1", 0) },
            "cluster_manager": bind,
            "dynamic_resources": {
                "cds_config": ads, "lds_config": ads,
                "ads_config": {
                    "api_type": api, "transport_api_version": "V3",
                    "grpc_services": [{
                        "envoy_grpc": { "cluster_name": "mesh-control" }, "initial_metadata": metadata,
                    }],
                },
            },
            "static_resources": { "clusters": [self.control()] },
        })
    }

    fn node(&self) -> Value {
        let Self { world, pod, ip, captured, certificates, app, .. } = self;
        let mut metadata = json!({
            "NAMESPACE": NAMESPACE, "NAME": pod, "INSTANCE_IPS": ip, "MESH_CERTIFICATES": certificates,
        });
        if !captured {
            metadata["HTTP_PROXY_PORT"] = (world.port() + 1).to_string().into();
        }
        if let Some(app) = app {
            metadata["MESH_INBOUND"] = format!("{ip}:{}={app}", world.port()).into();
        }
        json!({
            "id": format!("sidecar~{ip}~{pod}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
            "cluster": format!("{pod}.{NAMESPACE}"),
            "metadata": metadata,
        })
    }

    /// The cluster of mesh-control: TLS 1.3, its name checked; with a client certificate or without.
    fn control(&self) -> Value {
        let Self { world, certificates, form, .. } = self;
        let secret = |name: &str, file: &str| {
            let path = json!({ "path": certificates.join(file) });
            json!({ "name": name, "sds_config": { "path_config_source": path, "resource_api_version": "V3" } })
        };
        let mut common = json!({
            "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": [
                    { "san_type": "DNS", "matcher": { "exact": CONTROL_NAME } },
                ] },
                "validation_context_sds_secret_config": secret("ROOTCA", "envoy-roots.json"),
            },
        });
        if *form == Form::Delta {
            common["tls_certificate_sds_secret_configs"] =
                json!([secret("default", "envoy-certificate.json")]);
        }
        let xds = world.addresses().xds;
        let endpoint = json!({ "endpoint": { "address": socket(&xds.ip().to_string(), xds.port()) } });
        json!({
            "name": "mesh-control",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "mesh-control",
                "endpoints": [{ "lb_endpoints": [endpoint] }],
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": CONTROL_NAME,
                    "common_tls_context": common,
                },
            },
        })
    }
}

/// The text of an admin page.
async fn page(place: &Place, admin: SocketAddr, path: &str) -> Result<String> {
    // Envoy's pages take no absolute URL, which is what a client of a forward proxy sends.
    let reply = exchange(place.connect(admin).await?, &admin.to_string(), path).await?;
    ensure!(reply.status == 200, "{path}: {reply}");
    Ok(String::from_utf8(reply.body.to_vec())?)
}

fn address(ip: &str, port: u16) -> Value {
    json!({ "address": ip, "port_value": port })
}

fn socket(ip: &str, port: u16) -> Value {
    json!({ "socket_address": address(ip, port) })
}

/// The program, when it is there.
///
/// # Errors
/// When it must be there and is not.
pub fn program() -> Result<Option<PathBuf>> {
    crate::stranger::ENVOY.find().context("Envoy")
}
