//! A folder of manifests, a server on it, and the tokens of its pods.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mesh_common::trust::TrustBundle;
use mesh_control::app::App;
use mesh_control::options::Options;
use serde_json::json;

/// A pod of the shop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) account: &'static str,
    pub(crate) ip: &'static str,
}

pub(crate) const WEB: Pod = Pod { name: "web-1", account: "web", ip: "127.0.21.1" };
pub(crate) const REVIEWS: Pod = Pod { name: "reviews-1", account: "reviews", ip: "127.0.21.2" };
pub(crate) const RATINGS: Pod = Pod { name: "ratings-1", account: "ratings", ip: "127.0.21.3" };

/// A mesh of one control plane.
pub(crate) struct World {
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    app: App,
    changes: AtomicUsize,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for pod in [WEB, REVIEWS, RATINGS] {
            write(config.path(), &format!("{}.yaml", pod.name), &pod_manifest(pod, ""));
        }
        for (service, address, pods) in [
            ("web", "10.96.0.1", &[WEB][..]),
            ("reviews", "10.96.0.2", &[REVIEWS]),
            ("ratings", "10.96.0.3", &[RATINGS]),
        ] {
            write(config.path(), &format!("{service}-service.yaml"), &service_manifest(service, address));
            write(config.path(), &format!("{service}-slice.yaml"), &slice_manifest(service, pods));
        }
        let app = serve(config.path(), state.path(), flags).await;
        Self { config, state, app, changes: AtomicUsize::new(0) }
    }

    /// Stops the server, lets this happen to the folder, and starts another one at the same addresses.
    pub(crate) async fn restart(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { config, state, app, changes: _ } = self;
        let (xds, admin) = (app.xds.to_string(), app.admin.to_string());
        assert!(app.stop(Duration::from_secs(10)).await, "everything ends in time");
        meanwhile(config.path());
        let app =
            serve(config.path(), state.path(), &["--xds-address", &xds, "--admin-address", &admin]).await;
        Self { config, state, app, changes: AtomicUsize::new(0) }
    }

    /// Another server on the same folders.
    pub(crate) async fn second_server(&self) -> App {
        serve(self.config.path(), self.state.path(), &[]).await
    }

    pub(crate) fn xds(&self) -> SocketAddr {
        self.app.xds
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.app.admin
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(&std::fs::read_to_string(self.state.path().join("root-cert.pem")).unwrap())
            .unwrap()
    }

    /// The token that the pod's proxy would have.
    pub(crate) fn token(&self, pod: Pod) -> String {
        self.token_for(pod, "mesh-ca", 600)
    }

    pub(crate) fn token_for(&self, pod: Pod, audience: &str, seconds: i64) -> String {
        Signer::of(self.state.path()).token(pod.name, pod.account, audience, seconds)
    }

    /// Changes one file, as an editor would: by renaming a new one over it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        write(self.config.path(), name, text);
    }

    /// Changes the endpoints of the service `ratings`, each time.
    pub(crate) fn change_ratings(&self) {
        let pods: &[Pod] = match self.changes.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => &[RATINGS, REVIEWS],
            _ => &[RATINGS],
        };
        self.write("ratings-slice.yaml", &slice_manifest("ratings", pods));
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.config.path().join(name)).unwrap();
    }

    pub(crate) async fn stop(self) {
        assert!(self.app.stop(Duration::from_secs(10)).await, "everything ends in time");
    }

    /// A page of the admin server.
    pub(crate) async fn page(&self, path: &str) -> String {
        page(self.admin(), path).await.unwrap()
    }
}

/// The key that signs tokens.
pub(crate) struct Signer(EncodingKey);

impl Signer {
    pub(crate) fn of(state: &Path) -> Self {
        let key = std::fs::read(state.join("token-signer.pem")).unwrap();
        Self(EncodingKey::from_ec_pem(&key).unwrap())
    }

    pub(crate) fn token(&self, name: &str, account: &str, audience: &str, seconds: i64) -> String {
        let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let claims = json!({
            "iss": "mesh", "aud": [audience], "iat": now, "nbf": now - 300, "exp": now + seconds,
            "sub": format!("system:serviceaccount:shop:{}", account),
            "kubernetes.io": {
                "namespace": "shop",
                "pod": { "name": name, "uid": "" },
                "serviceaccount": { "name": account, "uid": "" },
            },
        });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.0).unwrap()
    }
}

/// A page of an admin server, with its status line.
pub(crate) async fn page(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    socket.read_to_string(&mut page).await?;
    Ok(page)
}

/// Asks again until something holds, for ten seconds.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let patience = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < patience, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn serve(config: &Path, state: &Path, flags: &[&str]) -> App {
    let options = options(config, state, flags);
    let started = tokio::time::timeout(Duration::from_secs(10), App::start(&options, None)).await;
    started.expect("it serves in time").unwrap()
}

pub(crate) fn options(config: &Path, state: &Path, flags: &[&str]) -> Options {
    let mut arguments = vec![
        "mesh-control",
        "--config-dir",
        config.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ];
    for (flag, default) in [("--xds-address", "127.0.0.1:0"), ("--admin-address", "127.0.0.1:0")] {
        if !flags.contains(&flag) {
            arguments.extend([flag, default]);
        }
    }
    arguments.extend(flags);
    Options::try_parse_from(arguments).unwrap()
}

pub(crate) fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join(format!(".{name}.tmp"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, folder.join(name)).unwrap();
}

pub(crate) fn pod_manifest(pod: Pod, annotation: &str) -> String {
    let Pod { name, account, ip } = pod;
    pod_of(name, account, ip, annotation)
}

pub(crate) fn pod_of(name: &str, account: &str, ip: &str, annotation: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels:
    app: {account}
    security.istio.io/tlsMode: istio
  annotations:
    note: \"{annotation}\"
spec:
  serviceAccountName: {account}
  nodeName: node-1
  containers:
  - name: app
    image: app
status:
  phase: Running
  podIP: {ip}
  podIPs:
  - ip: {ip}
"
    )
}

pub(crate) fn service_manifest(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: shop
spec:
  clusterIP: {address}
  clusterIPs: [{address}]
  selector:
    app: {name}
  ports:
  - name: http
    port: 80
    targetPort: 8080
"
    )
}

pub(crate) fn slice_manifest(service: &str, pods: &[Pod]) -> String {
    let pods: Vec<(&str, &str)> = pods.iter().map(|pod| (pod.name, pod.ip)).collect();
    slice_of(service, &pods)
}

/// (name, address) of each pod.
pub(crate) fn slice_of(service: &str, pods: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-1
  namespace: shop
  labels:
    kubernetes.io/service-name: {service}
addressType: IPv4
ports:
- name: http
  port: 8080
  protocol: TCP
endpoints:
"
    );
    for (name, ip) in pods {
        text.push_str(&format!(
            "- addresses: [{ip}]
  conditions: {{ready: true, serving: true, terminating: false}}
  nodeName: node-1
  targetRef: {{kind: Pod, name: {name}, namespace: shop}}
"
        ));
    }
    text
}
